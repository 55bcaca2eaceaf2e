// The charts over the steps: one run with all its lines, or several runs with one line each.

const several = data.runs.length > 1;

function drawCurves() {
  const axisName = byId("axis").value, smoothing = Number(byId("smoothing").value);
  const specs = (several ? data.charts.flatMap((c) => comparison(c, axisName)) : data.charts.map((c) => single(c, axisName)))
    .filter((s) => s.lines.length);
  reveal("curves", specs.length);
  byId("charts").replaceChildren(...specs.map((s) => chart(s, smoothing)));
  const smooths = (share) => specs.some((s) => !s.exact && s.lines.some((line) => windowOf(line.y, share) > 1));
  byId("smoothing-label").hidden = !smooths(0.3);
  byId("smoothed").hidden = !smooths(smoothing);
  const averaged = Math.max(...data.runs.map((r) => r.curves.averaged));
  if (averaged > 1) byId("charts").append(el("p", { class: "hint" }, `Each point is the mean of up to ${averaged} steps.`));
  const hints = new Map(specs.map((s) => [s.name, s.hint]));
  byId("chart-hints").replaceChildren(...[...hints].flatMap(([name, hint]) => [el("dt", {}, name), el("dd", {}, hint)]));
}

function single(c, axisName) {
  const run = data.runs[0];
  const lines = linesOf(run, c, axisName);
  return { ...c, name: c.title, span: spanOf([run], axisName), clock: axisName === "seconds", lines,
    points: c.evals ? evalPoints(run, axisName, 3) : [], references: references([run], c) };
}

// Levels that all runs have alike, on as many problems of the same split: the untrained model's and, where accuracy is
// drawn, what one answer to all questions would reach.
function references(runs, c) {
  const levels = {
    untrained: ["untrained, greedy", (run) => run.curves.untrained[c.untrained]],
    constant: ["best constant answer", (run) => c.evals ? run.curves.evals[0]?.best_constant : undefined],
  };
  return Object.entries(levels).flatMap(([kind, [label, level]]) => {
    const all = runs.map((run) => JSON.stringify([level(run), run.curves.evals[0]?.split, run.curves.evals[0]?.n]));
    return known(level(runs[0])) && same(all) ? [{ kind, label, y: level(runs[0]) }] : [];
  });
}

function linesOf(run, c, axisName) {
  return Object.entries(c.lines).filter(([key]) => run.curves.columns[key])
    .map(([key, label]) => ({ label, x: run.curves[axisName], y: run.curves.columns[key] }));
}

// One chart per figure, with a line for every run that has it.
function comparison(c, axisName) {
  return Object.entries(c.lines).map(([key, label]) => {
    const runs = data.runs.filter((r) => r.curves.columns[key]);
    const title = Object.keys(c.lines).length > 1 ? `${c.title}: ${label}` : c.title;
    return { ...c, stacked: false, title, name: c.title, span: spanOf(data.runs, axisName), clock: axisName === "seconds",
      lines: runs.map((r) => ({ label: r.name, x: r.curves[axisName], y: r.curves.columns[key] })),
      points: key === c.evals ? data.runs.flatMap((r, i) => evalPoints(r, axisName, i % 6)) : [],
      references: references(data.runs, c) };
  });
}

function evalPoints(run, axisName, series) {
  return run.curves.evals.map((e) => ({
    label: `${e.split}, greedy${several ? ", " + run.name : ""} (step ${e.step}, n = ${e.n})`, series,
    x: axisName === "steps" ? e.step : e.seconds, y: e.strict, low: e.strict_interval[0], high: e.strict_interval[1] }));
}

function spanOf(runs, axisName) {
  return [0, Math.max(1, ...runs.map((r) => r.curves[axisName].at(-1) || 0))];
}
