// Reflection: rates over time compared with the untrained model's, accuracy with and without a hit, excerpts.

const POPULATIONS = { untrained: "untrained model", training: "training", trained: "last evaluation" };
const KINDS = {
  corrected: "right after another number", right: "right, with the word", wrong: "wrong, despite the word",
};

// Whether any completion has a word of the lists.
const reflects = (run) => Object.values(run.reflection.lists).some((list) => Object.values(list).some((figures) => figures.with.n));

function showReflection() {
  const reflection = current.reflection, smoothing = Number(byId("smoothing").value);
  reveal("reflection", reflects(current));
  byId("reflection-sentence").textContent = reflection.sentence;
  const specs = Object.keys(reflection.lists).map((name) => listChart(name, reflection.lists[name].untrained.rate));
  byId("reflection-charts").replaceChildren(...specs.filter((s) => s).map((s) => chart(s, smoothing)));
  byId("reflection-table").replaceChildren(...table(reflection.lists));
  byId("reflection-words").replaceChildren(...Object.entries(reflection.words).map(
    ([name, words]) => el("p", { class: "hint" }, `List ${name.toUpperCase()}: ${words.join(", ")}.`)));
  byId("excerpts").replaceChildren(...current.excerpts.map(excerpt));
}

function listChart(name, reference) {
  const y = current.curves.columns[`reflection/list_${name}`], axisName = byId("axis").value;
  if (!y) return null;
  return { title: `List ${name.toUpperCase()}`, unit: "share", span: spanOf([current], axisName),
    clock: axisName === "seconds", lines: [{ label: "in training", x: current.curves[axisName], y }],
    references: known(reference) ? [{ label: "untrained", y: reference }] : [],
    hint: `Share of completions with at least one of: ${current.reflection.words[name].join(", ")}` };
}

function table(lists) {
  const head = ["list", "completions of", "with a hit", "right with a hit", "right without", "tokens with a hit", "tokens without"];
  const rows = Object.entries(lists).flatMap(([name, list]) => Object.entries(list).map(([key, figures], i) => el("tr", {},
    i ? "" : el("th", { rowspan: Object.keys(list).length, title: current.reflection.words[name].join(", ") }, name.toUpperCase()),
    ...[POPULATIONS[key], `${percent(figures.rate)} (${figures.with.n.toLocaleString("en")})`, accuracy(figures.with), accuracy(figures.without),
      number(figures.with.tokens), number(figures.without.tokens)].map((text) => el("td", {}, text)))));
  return [el("caption", {}, "Accuracy (strict; 95% interval, except in training, where completions of one question are alike) and mean length in tokens, of completions with and without a hit"),
    el("thead", {}, el("tr", {}, ...head.map((text) => el("th", {}, text)))), el("tbody", {}, ...rows)];
}

function accuracy(tally) {
  if (!tally.n) return DASH;
  if (!tally.interval) return percent(tally.strict);
  return `${percent(tally.strict)} (${(100 * tally.interval[0]).toFixed(0)}–${(100 * tally.interval[1]).toFixed(0)}%)`;
}

function excerpt(x) {
  const origin = x.split === "train" ? `step ${x.step}` : `${x.split}, ${whenOf(x.step)}`;
  return el("div", { class: `card ${x.strict ? "right" : "wrong"}` },
    el("p", { class: "verdict" }, el("b", {}, `${x.strict ? "✓" : "✗"} ${KINDS[x.kind]}`), el("span", { class: "label" }, origin)),
    el("p", { class: "question", dir: "auto" }, ...visible(x.question)),
    el("pre", { class: "text", tabindex: 0, dir: "auto" }, ...marked(x.text, wordsOf(x.hits))),
    el("p", { class: "why" }, ...extractedOf(x), ", gold ", el("code", {}, ...visible(x.gold))));
}
