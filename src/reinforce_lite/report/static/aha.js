// Reflection: words over time with the untrained model as control, what a hit is worth, excerpts.

const WHO = { untrained: "untrained model", training: "answers in training", trained: "last evaluation" };
const KIND = {
  corrected: "right, after another number stood before the word", right: "right after the word", wrong: "wrong in spite of the word",
};

function showAha() {
  const aha = current.aha, smoothing = Number(byId("smoothing").value);
  byId("aha-sentence").textContent = aha.sentence;
  byId("aha-figures").hidden = !Object.values(aha.lists).some((who) => Object.values(who).some((found) => found.with.n));
  const specs = Object.keys(aha.lists).map((name) => listChart(name, aha.lists[name].untrained.rate));
  byId("aha-charts").replaceChildren(...specs.filter((s) => s).map((s) => chart(s, smoothing)));
  byId("aha-table").replaceChildren(...table(aha.lists));
  byId("aha-words").replaceChildren(...Object.entries(aha.words).map(
    ([name, all]) => el("p", { class: "hint" }, `List ${name.toUpperCase()}: ${all.join(", ")}.`)));
  byId("excerpts").replaceChildren(...current.excerpts.map(excerpt));
  byId("aha-note").textContent = current.excerpts.length
    ? "Best first: another number stood before the word and the right answer came after it; then other right answers; then some that are wrong. At most one a question."
    : "No answer has a word of the lists.";
}

function listChart(name, control) {
  const y = current.curves.columns[`reflection/list_${name}`], axisName = byId("axis").value;
  if (!y) return null;
  return { title: `List ${name.toUpperCase()}`, unit: "share", span: spanOf([current], axisName),
    clock: axisName === "seconds", lines: [{ label: "in training", x: current.curves[axisName], y }], control };
}

function table(lists) {
  const head = ["list", "answers of", "with a hit", "right with a hit", "right without", "length with", "without"];
  const rows = Object.entries(lists).flatMap(([name, who]) => Object.entries(who).map(([key, found], i) => el("tr", {},
    i ? "" : el("th", { rowspan: Object.keys(who).length, title: current.aha.words[name].join(", ") }, name.toUpperCase()),
    ...[WHO[key], `${percent(found.rate)} (${found.with.n.toLocaleString("en")})`, accuracy(found.with), accuracy(found.without),
      number(found.with.tokens), number(found.without.tokens)].map((text) => el("td", {}, text)))));
  return [el("caption", {}, "Accuracy (strict, 95% interval) and mean length in tokens, with and without a hit"),
    el("thead", {}, el("tr", {}, ...head.map((text) => el("th", {}, text)))), el("tbody", {}, ...rows)];
}

function accuracy(tally) {
  if (!tally.n) return DASH;
  return `${percent(tally.strict)} (${(100 * tally.interval[0]).toFixed(0)}–${(100 * tally.interval[1]).toFixed(0)}%)`;
}

function excerpt(x) {
  const where = x.split === "train" ? `step ${x.step}` : `${x.split}, ${whenOf(x.step)}`;
  return el("div", { class: `card ${x.strict ? "right" : "wrong"}` },
    el("p", { class: "verdict" }, el("b", {}, `${x.strict ? "✓" : "✗"} ${KIND[x.kind]}`), el("span", { class: "label" }, where)),
    el("p", { class: "question", dir: "auto" }, ...visible(x.question)),
    el("pre", { class: "text", tabindex: 0, dir: "auto" }, ...marked(x.text, wordsOf(x.hits))),
    el("p", { class: "why" }, "answer ", x.answer === null ? "none" : el("code", {}, ...visible(x.answer)), ", gold ", el("code", {}, ...visible(x.gold))));
}
