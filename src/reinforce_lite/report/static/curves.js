// The charts over the steps: one run with all its lines, or several runs with one line each.

const several = data.runs.length > 1;

function drawCurves() {
  const axisName = byId("axis").value, smoothing = Number(byId("smoothing").value);
  const specs = several ? data.charts.flatMap((c) => comparison(c, axisName)) : data.charts.map((c) => single(c, axisName));
  byId("charts").replaceChildren(...specs.filter((s) => s && s.lines.length).map((s) => chart(s, smoothing)));
  if (!byId("charts").children.length) byId("charts").append(el("p", { class: "hint" }, "No step is finished yet."));
  const averaged = Math.max(...data.runs.map((r) => r.curves.averaged));
  if (averaged > 1) byId("charts").append(el("p", { class: "hint" }, `Each point is the mean of up to ${averaged} steps.`));
  byId("chart-hints").replaceChildren(...data.charts.flatMap((c) => [el("dt", {}, c.title), el("dd", {}, c.hint)]));
}

function single(c, axisName) {
  const run = data.runs[0];
  const lines = linesOf(run, c, axisName);
  return { ...c, span: spanOf([run], axisName), clock: axisName === "seconds", lines,
    points: c.evals ? evalPoints(run, axisName, 3) : [] };
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
    return { title, unit: c.unit, hint: c.hint, span: spanOf(data.runs, axisName), clock: axisName === "seconds",
      lines: runs.map((r) => ({ label: r.name, x: r.curves[axisName], y: r.curves.columns[key] })),
      points: key === c.evals ? data.runs.flatMap((r, i) => evalPoints(r, axisName, i % 6)) : [] };
  });
}

function evalPoints(run, axisName, series) {
  return run.curves.evals.filter((e) => e.split === "validation").map((e) => ({
    label: `validation${several ? " " + run.name : ""} (step ${e.step}, n = ${e.n})`, series,
    x: axisName === "steps" ? e.step : e.seconds, y: e.strict, low: e.strict_interval[0], high: e.strict_interval[1] }));
}

function spanOf(runs, axisName) {
  return [0, Math.max(1, ...runs.map((r) => r.curves[axisName].at(-1) || 0))];
}
