// Groups side by side, and the same held-out question at every evaluation; filters, search, more.

const AT_ONCE = 6;

function verdictOf(a) {
  if (a.strict) return ["right", "✓ right"];
  return a.lenient ? ["format", "✗ wrong by its format"] : ["wrong", "✗ wrong"];
}

// What the second opinion says, where it is another than the verdict says already.
function secondOf(a) {
  if (a.second_opinion === null || a.second_opinion === (a.strict || !!a.lenient)) return null;
  return `second opinion: ${a.second_opinion ? "right" : "wrong"}`;
}

// One answer as a card. `label` says where it stands; a dimmed one is there for comparison only.
function cardOf(a, label, dimmed) {
  const [kind, words] = verdictOf(a);
  const facts = [], second = secondOf(a);
  if (a.reward !== null) facts.push(`reward ${number(a.reward)}`);
  if (a.advantage !== null) facts.push(`advantage ${a.advantage > 0 ? "+" : ""}${number(a.advantage)}`);
  facts.push(count(a.tokens, "token"));
  return el("div", { class: `card ${kind}${dimmed ? " other" : ""}` },
    el("p", { class: "verdict" }, el("b", {}, words), label ? el("span", { class: "label" }, label) : "",
      a.cut ? el("span", { class: "tag" }, "cut") : "", a.fault ? el("span", { class: "tag" }, "reward failed") : "",
      second ? el("span", { class: "tag" }, second) : ""),
    el("p", { class: "why" }, "answer ", a.answer === null ? "none" : el("code", {}, ...visible(a.answer)), ...(a.strict ? [] : [" · ", ...visible(a.reason)])),
    el("pre", { class: "text", tabindex: 0, dir: "auto" }, ...marked(a.text, wordsOf(a.hits))),
    el("p", { class: "facts" }, facts.join(" · "), a.fault ? " · " : "", ...(a.fault ? visible(a.fault) : [])));
}

function questionOf(item, head) {
  return [el("p", { class: "head" }, head),
    el("p", { class: "question", dir: "auto" }, ...visible(item.question)),
    el("p", { class: "gold" }, "gold answer ", el("code", {}, ...visible(item.gold)))];
}

// A list that is filtered: `keep` gives the answers that match, `draw` a node.
class List {
  constructor(name, more, count, keep, draw) {
    Object.assign(this, { place: byId(name), more: byId(more), count: byId(count), keep, draw });
    this.more.addEventListener("click", () => this.grow());
  }
  filter(items) {
    this.found = items.map((item) => [item, this.keep(item)]).filter(([, hits]) => hits.length);
    this.shown = 0;
    this.place.replaceChildren();
    const answers = this.found.reduce((sum, [, hits]) => sum + hits.length, 0);
    this.count.textContent = `${count(answers, "answer")} to ${count(this.found.length, "question")} ${answers === 1 ? "matches" : "match"}`;
    this.grow();
  }
  grow() {
    const next = this.found.slice(this.shown, this.shown + AT_ONCE);
    this.place.append(...next.map(([item, hits]) => this.draw(item, new Set(hits))));
    this.shown += next.length;
    this.more.hidden = this.shown >= this.found.length;
    this.more.textContent = `show more (${(this.found.length - this.shown).toLocaleString("en")} left)`;
  }
}

// What is searched, made once: a question's and an answer's text in lower case.
const searched = new WeakMap();
function contains(thing, text, needle) {
  if (!needle) return true;
  if (!searched.has(thing)) searched.set(thing, text().toLowerCase());
  return searched.get(thing).includes(needle);
}
function matching(item, answers, needle) {
  if (contains(item, () => item.question ?? "", needle)) return answers;
  return answers.filter((a) => contains(a, () => `${a.text}\n${a.answer ?? ""}`, needle));
}
const needleOf = (id) => byId(id).value.trim().toLowerCase();

const groupList = new List("groups", "groups-more", "answers-count", (group) => {
  const step = byId("f-step").value, verdict = byId("f-verdict").value, lists = byId("f-hit").value;
  if (step && group.step !== Number(step)) return [];
  const right = group.answers.filter((a) => a.strict).length;
  if (verdict === "mixed" && (right === 0 || right === group.answers.length)) return [];
  const fits = {
    "": () => true, mixed: () => true, right: (a) => a.strict, wrong: (a) => !a.strict,
    format: (a) => !a.strict && a.lenient, doubted: (a) => a.strict && a.second_opinion === false,
  }[verdict];
  const answers = group.answers.filter((a) => fits(a) && (!byId("f-cut").checked || a.cut)
    && (!lists || [...lists].some((name) => a.hits[name])));
  return matching(group, answers, needleOf("f-text"));
}, (group, hits) => {
  const right = group.answers.filter((a) => a.strict).length;
  return el("article", { class: "group" },
    ...questionOf(group, `step ${group.step} · ${right} of ${group.answers.length} right`),
    el("div", { class: "cards" }, ...group.answers.map((a) => cardOf(a, "", !hits.has(a)))));
});

const CHANGES = { won: [false, true], lost: [true, false], kept: [true, true], missed: [false, false] };

const questionList = new List("questions", "questions-more", "asked-count", (item) => {
  const change = CHANGES[byId("q-change").value];
  const ends = [item.answers[0].strict, item.answers.at(-1).strict];
  if (item.split !== byId("q-split").value) return [];
  if (change && (item.answers.length < 2 || change[0] !== ends[0] || change[1] !== ends[1])) return [];
  return matching(item, item.answers, needleOf("q-text"));
}, (item, hits) => el("article", { class: "group" },
  ...questionOf(item, `${item.split} · ` + item.answers.map((a) => `${a.strict ? "✓" : "✗"} ${whenOf(a.step)}`).join("  ")),
  el("div", { class: "cards" }, ...item.answers.map((a) => cardOf(a, whenOf(a.step), !hits.has(a))))));

const evaluations = (split) => Math.max(0, ...current.asked.filter((q) => q.split === split).map((q) => q.answers.length));
const whenOf = (step) => (step ? `after step ${step}` : "untrained");

function filterGroups() { groupList.filter(current.groups); }
function filterQuestions() { questionList.filter(current.asked); }

function showAnswers() {
  const n = current.answers, steps = [...new Set(current.groups.map((g) => g.step))];
  byId("answers-shown").textContent = n.training_shown === n.training
    ? `Every answer of the training is here (${n.training.toLocaleString("en")}).`
    : `Shows ${n.training_shown.toLocaleString("en")} of ${n.training.toLocaleString("en")} answers, of ${steps.length} of ${n.steps} steps: by turns the group that tells most (reflection words, else right and wrong side by side, else a cut answer) and one drawn at random. Filters and search see these; every figure and curve counts all.`;
  byId("f-step").replaceChildren(el("option", { value: "" }, "any"), ...steps.map((s) => el("option", { value: s }, String(s))));
  byId("asked-shown").textContent = (n.questions_shown === n.questions
    ? `Every held-out question is here (${n.questions.toLocaleString("en")}), with every evaluation's answer. `
    : `Shows ${n.questions_shown.toLocaleString("en")} of ${n.questions.toLocaleString("en")} held-out questions, of every outcome as many, and of validation at most half of the answers. `)
    + "Test questions are asked before and after training, validation questions during it too; answers are greedy.";
  byId("q-split").value = evaluations("validation") > evaluations("test") ? "validation" : "test";
  filterGroups();
  filterQuestions();
}
