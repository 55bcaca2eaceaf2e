// The audit: forecast and outcome, the ways of asking side by side, the pass rates of the questions.

const WAY_COLUMNS = [
  ["questions", "Questions asked this way: the recipe in every round, other ways as long as they did well", (way) => [number(way.questions)]],
  ["pass@1", "Right completions", (way) => [percent(way.accuracy)]],
  ["pass@G", "Questions with a right completion among the G of their group", (way) => [percent(way.solved)]],
  ["with a signal", "Groups whose completions did not all earn the same reward, with a 95% interval", (way) => [percent(way.live), " ", range(way.live_interval)]],
  ["format missed", "Completions with the right number, but not in the format", (way) => [percent(way.format_failures)]],
  ["truncated", "Completions cut at the token limit, without those that repeat themselves", (way) => [percent(way.truncated)]],
  ["tokens", "Mean length of a completion", (way) => [number(way.mean_tokens)]],
];

const range = (bounds) => (bounds ? el("small", {}, `(${(100 * bounds[0]).toFixed(0)}–${(100 * bounds[1]).toFixed(0)}%)`) : "");

function showAudit() {
  const audit = current.audit;
  reveal("audit", audit);
  if (!audit) return;
  const told = [["forecast", audit.forecast], ["outcome", audit.outcome], ...audit.advice.map((line) => ["advice", line])];
  byId("audit-told").replaceChildren(...told.flatMap(([name, text]) => [el("dt", {}, name), el("dd", {}, ...visible(text))]));
  byId("audit-ways").replaceChildren(
    el("caption", {}, "The untrained model on training questions, by the way of asking"),
    el("thead", {}, el("tr", {}, el("th", {}, "asked with"), ...WAY_COLUMNS.map(([name, title]) => el("th", { title }, name)))),
    el("tbody", {}, ...audit.ways.map((way) => el("tr", {}, el("th", {}, ...visible(way.way)),
      ...WAY_COLUMNS.map(([, , text]) => el("td", {}, ...text(way)))))));
  byId("audit-rates").replaceChildren(audit.pass_rates.length ? histogram(audit.pass_rates) : "");
}

// The number of questions by how many of their completions are right; the bars in colour have a signal.
function histogram(rates) {
  const samples = rates.length - 1, width = WIDTH / rates.length, tallest = Math.max(...rates, 1), room = HEIGHT - BOTTOM - 20;
  const labelled = (right) => right % Math.ceil(samples / 16) === 0 || right === samples;
  const bars = rates.flatMap((n, right) => {
    const height = (room * n) / tallest, x = (right + 0.5) * width;
    return [
      svg("rect", { class: right % samples ? "s0" : "s5", x: x - 0.4 * width, width: 0.8 * width, y: HEIGHT - BOTTOM - height, height },
        svg("title", {}, `${count(n, "question")} with ${right} of ${samples} right`)),
      svg("text", { x, y: HEIGHT - BOTTOM - height - 4, "text-anchor": "middle" }, n ? String(n) : ""),
      labelled(right) ? svg("text", { x, y: HEIGHT - 6, "text-anchor": "middle" }, String(right)) : null];
  });
  return el("figure", { class: "chart" },
    el("figcaption", {}, el("b", {}, "Pass rates"), el("span", { class: "unit" }, ` questions by right completions of ${samples}`)),
    svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": "Pass rates" },
      svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM }), ...bars),
    el("p", { class: "legend" }, el("span", {}, el("i", { class: "key block s0" }), "right and wrong: a signal"),
      el("span", {}, el("i", { class: "key block s5" }), "none or all right")));
}
