// Groups side by side, and the same held-out question at every evaluation: cards, filters, search.

const PAGE_SIZE = 6;

function verdictOf(c) {
  if (c.fault) return ["", "no verdict", "The reward failed"];
  if (c.strict) return ["right", "✓ right", "Strict and correct"];
  return c.lenient ? ["format", "✗ wrong format", "Right by the lenient verdict, but the format is wrong"] : ["wrong", "✗ wrong", ""];
}

// The second opinion, if it differs from what the verdict implies.
function secondOpinionOf(c) {
  if (c.second_opinion === null || c.second_opinion === (c.strict || !!c.lenient)) return null;
  return `second opinion: ${c.second_opinion ? "right" : "wrong"}`;
}

const tag = (text, title) => (text ? el("span", { class: "tag", title }, text) : "");
const extractedOf = (c) => ["extracted answer ", c.extracted === null ? "none" : el("code", {}, ...visible(c.extracted))];

// One completion as a card; dimmed if it does not match the filter and is shown only for comparison.
function cardOf(c, label, dimmed) {
  const [kind, verdict, title] = verdictOf(c);
  const facts = [];
  if (c.reward !== null) facts.push(`reward ${number(c.reward)}`, " · ");
  if (c.advantage !== null) facts.push(`advantage ${signed(c.advantage)}`, " · ");
  facts.push(count(c.tokens, "token"));
  return el("div", { class: `card ${kind}${dimmed ? " dimmed" : ""}` },
    el("p", { class: "verdict" }, el("b", { title }, verdict), label ? el("span", { class: "label" }, label) : "",
      tag(c.truncated && "truncated", "Cut at the token limit, or where it repeats itself"), tag(c.fault && "reward failed"),
      tag(secondOpinionOf(c), "Whether it is right by the lenient verdict, which asks for no format")),
    el("p", { class: "why" }, ...extractedOf(c), ...(c.strict ? [] : [" · ", ...visible(c.reason)])),
    el("pre", { class: "text", tabindex: 0, dir: "auto" }, ...marked(c.text, wordsOf(c.hits))),
    el("p", { class: "facts" }, ...facts, c.fault ? " · " : "", ...(c.fault ? visible(c.fault) : [])));
}

function questionOf(item, head) {
  return [el("p", { class: "head" }, head),
    el("p", { class: "question", dir: "auto" }, ...visible(item.question)),
    el("p", { class: "gold", title: "The correct answer" }, "gold answer ", el("code", {}, ...visible(item.gold)))];
}

// A filtered list: `match` gives the completions of an item that pass the filter, `draw` makes its node.
class List {
  constructor(name, match, draw) {
    Object.assign(this, { container: byId(name), more: byId(`${name}-more`), count: byId(`${name}-count`), match, draw });
    this.more.addEventListener("click", () => this.showMore());
  }
  filter(items) {
    this.matches = items.map((item) => [item, this.match(item)]).filter(([, completions]) => completions.length);
    this.shown = 0;
    this.container.replaceChildren();
    const n = this.matches.reduce((sum, [, completions]) => sum + completions.length, 0);
    this.count.textContent = `${count(n, "completion")} of ${count(this.matches.length, "question")} ${n === 1 ? "matches" : "match"}`;
    this.showMore();
  }
  showMore() {
    const next = this.matches.slice(this.shown, this.shown + PAGE_SIZE);
    this.container.append(...next.map(([item, completions]) => this.draw(item, new Set(completions))));
    this.shown += next.length;
    this.more.hidden = this.shown >= this.matches.length;
    this.more.textContent = `show more (${(this.matches.length - this.shown).toLocaleString("en")} left)`;
  }
}

// The searched text of a question or a completion, in lower case and computed once.
const searchable = new WeakMap();
function contains(object, text, needle) {
  if (!needle) return true;
  if (!searchable.has(object)) searchable.set(object, text().toLowerCase());
  return searchable.get(object).includes(needle);
}
function search(item, completions, needle) {
  if (contains(item, () => item.question ?? "", needle)) return completions;
  return completions.filter((c) => contains(c, () => `${c.text}\n${c.extracted ?? ""}`, needle));
}
const needleOf = (id) => byId(id).value.trim().toLowerCase();

// Those that match the filter come first, and among them the right ones: a phone shows one card at a time.
const rank = (c, matching) => (matching.has(c) ? 0 : 2) + (c.strict ? 0 : 1);

const groupList = new List("groups", (group) => {
  const step = byId("f-step").value, verdict = byId("f-verdict").value, lists = byId("f-hit").value;
  if (step && group.step !== Number(step)) return [];
  const scored = group.completions.filter((c) => !c.fault), right = scored.filter((c) => c.strict).length;
  if (verdict === "mixed" && (right === 0 || right === scored.length)) return [];
  const fits = {
    "": () => true, mixed: () => true, right: (c) => c.strict, wrong: (c) => !c.strict && !c.fault,
    format: (c) => !c.strict && c.lenient, doubted: (c) => c.strict && c.second_opinion === false,
  }[verdict];
  const completions = group.completions.filter((c) => fits(c) && (!byId("f-truncated").checked || c.truncated)
    && (!lists || [...lists].some((name) => c.hits[name])));
  return search(group, completions, needleOf("f-text"));
}, (group, matching) => {
  const order = [...group.completions].sort((a, b) => rank(a, matching) - rank(b, matching));
  return el("article", { class: "group" }, ...questionOf(group, `step ${group.step}`), advantagesOf(group),
    el("div", { class: "cards" }, ...order.map((c) => cardOf(c, "", !matching.has(c)))));
});

const OUTCOMES = { gained: [false, true], lost: [true, false], still_right: [true, true], still_wrong: [false, false] };

const questionList = new List("questions", (item) => {
  const outcome = OUTCOMES[byId("q-outcome").value];
  const right = item.completions.filter((c) => !c.fault).map((c) => c.strict);
  if (item.split !== byId("q-split").value) return [];
  if (outcome && (right.length < 2 || outcome[0] !== right[0] || outcome[1] !== right.at(-1))) return [];
  return search(item, item.completions, needleOf("q-text"));
}, (item, matching) => el("article", { class: "group" },
  ...questionOf(item, `${item.split} · ` + item.completions.map((c) => `${c.fault ? "–" : c.strict ? "✓" : "✗"} ${whenOf(c.step)}`).join("  ")),
  el("div", { class: "cards" }, ...item.completions.map((c) => cardOf(c, whenOf(c.step), !matching.has(c))))));

const evaluations = (split) => Math.max(0, ...current.eval_history.filter((q) => q.split === split).map((q) => q.completions.length));
const whenOf = (step) => (step ? `after step ${step}` : "untrained");

function filterGroups() { groupList.filter(current.groups); }
function filterQuestions() { questionList.filter(current.eval_history); }

function showCompletions() {
  const n = current.completions, steps = [...new Set(current.groups.map((g) => g.step))];
  reveal("completions", current.groups.length);
  reveal("eval-history", current.eval_history.length);
  byId("f-hit-label").hidden = !reflects(current);
  if (!reflects(current)) byId("f-hit").value = "";
  byId("groups-shown").textContent = n.training_shown === n.training
    ? `All completions of training are here (${n.training.toLocaleString("en")}).`
    : `Shows ${n.training_shown.toLocaleString("en")} of ${n.training.toLocaleString("en")} completions, from ${steps.length} of ${n.steps} steps: alternately the most interesting group (reflection words, else right and wrong together, else truncated) and a random one. Filter and search cover these; figures and curves count all.`;
  byId("f-step").replaceChildren(el("option", { value: "" }, "any"), ...steps.map((s) => el("option", { value: s }, String(s))));
  byId("questions-shown").textContent = n.questions_shown === n.questions
    ? `All held-out questions are here (${n.questions.toLocaleString("en")}), with the completion of every evaluation.`
    : `Shows ${n.questions_shown.toLocaleString("en")} of ${n.questions.toLocaleString("en")} held-out questions: equally many of each outcome, and at most half of the completions are of validation questions.`;
  byId("q-split").value = evaluations("validation") > evaluations("test") ? "validation" : "test";
  filterGroups();
  filterQuestions();
}
