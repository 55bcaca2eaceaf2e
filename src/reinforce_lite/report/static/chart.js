// One line chart as inline SVG: raw and smoothed lines, evaluations as points, references as dashed lines.
// All charts share the cursor, so that pointing at a step shows every figure of it.

const WIDTH = 400, HEIGHT = 190, LEFT = 46, RIGHT = 10, TOP = 8, BOTTOM = 22, BAR = 24;
const charts = new Set();

// {title, unit, stacked, span: [from, to], clock: bool, lines: [{label, x, y}], points: [{label, x, y, low, high}], references: [{label, y, kind}], exact, hint}
function chart(spec, smoothing) {
  const values = spec.lines.flatMap((l) => l.y).concat((spec.points || []).flatMap((p) => [p.high, p.y]));
  const scale = axis(values.concat((spec.references || []).map((r) => r.y), spec.stacked ? 1 : 0).filter(known), spec.unit);
  const [from, to] = spec.span;
  const atX = (x) => LEFT + ((x - from) / (to - from || 1)) * (WIDTH - LEFT - RIGHT);
  const atY = (y) => HEIGHT - BOTTOM - ((y - scale.low) / (scale.high - scale.low)) * (HEIGHT - TOP - BOTTOM);
  const lines = spec.lines.map((line) => ({ ...line, smooth: smooth(line.y, windowOf(line.y, spec.exact ? 0 : smoothing)) }));
  const cursor = svg("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", tabindex: 0, "aria-label": spec.title },
    ...grid(scale, spec, atY), ...ticksBelow(spec, atX), ...referenceLines(spec, atY),
    ...lines.flatMap((line, i) => (spec.stacked ? area(lines, i, atX, atY) : curve(line, i, atX, atY))),
    ...(spec.points || []).flatMap((p) => point(p, atX, atY)), cursor);
  const legend = el("p", { class: "legend" });
  const node = el("figure", { class: "chart" },
    el("figcaption", { title: spec.hint }, el("b", {}, spec.title), spec.unit && spec.unit !== "share" && spec.unit !== "bytes"
      ? el("span", { class: "unit" }, " " + spec.unit) : ""), picture, legend);
  const show = (x) => {
    cursor.setAttribute("visibility", x === null ? "hidden" : "visible");
    if (x !== null) cursor.setAttribute("x1", atX(x)), cursor.setAttribute("x2", atX(x));
    legend.replaceChildren(...readings(spec, lines, x));
  };
  show(null);
  listen(picture, spec, (px) => from + ((px - LEFT) / (WIDTH - LEFT - RIGHT)) * (to - from));
  charts.add({ node, show });
  return node;
}

function axis(values, unit) {
  let low = Math.min(0, ...values), high = Math.max(...values);
  if (unit === "share") [low, high] = [0, Math.min(1, high)];
  if (high <= low) high = low + (unit === "share" ? 0.1 : 1);
  const rough = (high - low) / 3, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
  return { low: Math.floor(low / step) * step, high: Math.ceil((high / step) * 0.999) * step, step };
}

function grid(scale, spec, atY) {
  const nodes = [];
  for (let i = Math.round(scale.low / scale.step); i * scale.step <= scale.high * 1.0001; i++) {
    const value = i * scale.step, y = atY(value);
    const text = spec.unit === "share" ? Number((100 * value).toPrecision(3)) + "%"
      : spec.unit === "bytes" ? Number((value / 1e9).toPrecision(3)) + " GB" : number(value);
    nodes.push(svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y }),
      svg("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, text));
  }
  return nodes;
}

// Round numbers, and for steps the last one too; each stands exactly where its label says.
const SECONDS = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 18000, 36000, 86400];
function ticksBelow(spec, atX) {
  const [from, to] = spec.span, rough = (to - from) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const unit = spec.clock ? SECONDS.find((s) => s >= rough) ?? 86400 * Math.ceil(rough / 86400)
    : Math.max(1, [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough));
  const ticks = [];
  for (let x = 0; x <= to; x += unit) ticks.push(x);
  if (!spec.clock && ticks.at(-1) < to) {
    if (to - ticks.at(-1) < 0.6 * unit && ticks.length > 1) ticks.pop();
    ticks.push(to);
  }
  return ticks.flatMap((x) => [svg("line", { class: "grid", x1: atX(x), x2: atX(x), y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM + 4 }),
    svg("text", { x: atX(x), y: HEIGHT - 6, "text-anchor": x > 0.93 * to ? "end" : x ? "middle" : "start" },
      spec.clock ? clock(x) : (x ? "" : "step ") + x)]);
}

function referenceLines(spec, atY) {
  return (spec.references || []).map((r) => svg("line", { class: `reference ${r.kind || ""}`, x1: LEFT, x2: WIDTH - RIGHT, y1: atY(r.y), y2: atY(r.y) }));
}

function curve(line, i, atX, atY) {
  const draw = (y, name) => svg("path", { class: `${name} s${i % 6}`, d: path(line.x, y, atX, atY) });
  const lone = line.y.flatMap((y, at) => (isLone(line.y, at)
    ? [svg("circle", { class: `lone s${i % 6}`, cx: atX(line.x[at]), cy: atY(y), r: 3 })] : []));
  return [...(line.smooth ? [draw(line.y, "raw"), draw(line.smooth, "line")] : [draw(line.y, "line")]), ...lone];
}

// Whether a value needs a dot to be seen: it has no neighbour, or the line is of two steps.
function isLone(y, at) {
  return known(y[at]) && (y.length < 3 || (!known(y[at - 1]) && !known(y[at + 1])));
}

// The band of a line between the sum of the lines before it and that sum with it; a bar if there is one step.
function area(lines, i, atX, atY) {
  const sum = (n) => lines[0].x.flatMap((x, at) => {
    const y = lines.slice(0, n).reduce((total, line) => total + ((line.smooth ?? line.y)[at] ?? 0), 0);
    return (lines[0].x.length > 1 ? [0] : [-BAR, 0]).map((shift) => `${(atX(x) + shift).toFixed(1)} ${atY(y).toFixed(1)}`);
  });
  return svg("path", { class: `area d${i}`, d: `M${[...sum(i), ...sum(i + 1).reverse()].join("L")}Z` });
}

function path(x, y, atX, atY) {
  let d = "", pen = false;
  for (let i = 0; i < y.length; i++) {
    if (y[i] === null) { pen = false; continue; }
    d += `${pen ? "L" : "M"}${atX(x[i]).toFixed(1)} ${atY(y[i]).toFixed(1)}`;
    pen = true;
  }
  return d;
}

const windowOf = (y, smoothing) => Math.max(1, Math.round(y.length * smoothing));

// The mean of a window centred on each step, so that it does not lag; null if the window is one step.
function smooth(y, window) {
  if (window === 1) return null;
  const half = Math.floor(window / 2);
  return y.map((value, i) => {
    if (value === null) return null;
    const near = y.slice(Math.max(0, i - half), i + half + 1).filter((v) => v !== null);
    return near.reduce((a, b) => a + b, 0) / near.length;
  });
}

function point(p, atX, atY) {
  const x = atX(p.x), name = `point s${p.series ?? 3}`;
  return [svg("line", { class: name, x1: x, x2: x, y1: atY(p.low), y2: atY(p.high) }),
    svg("circle", { class: name, cx: x, cy: atY(p.y), r: 4 },
      svg("title", {}, `${p.label}: ${percent(p.y)} (${percent(p.low)} to ${percent(p.high)})`))];
}

// Every line's value at x, or its last one; a dash where the line ends before x.
function readings(spec, lines, x) {
  const nodes = lines.map((line, i) => {
    const at = x === null ? line.y.length - 1 : x > line.x.at(-1) ? line.y.length : nearest(line.x, x);
    const smoothed = line.smooth && known(line.y[at]) ? el("small", {}, ` ≈ ${inUnit(line.smooth[at], spec.unit)}`) : "";
    return el("span", {}, el("i", { class: spec.stacked ? `key block d${i}` : `key s${i % 6}` }), line.label + " ", el("b", {}, inUnit(line.y[at], spec.unit)), smoothed);
  });
  const points = spec.points || [];
  if (points.length) {
    const p = x === null ? points[points.length - 1] : points[nearest(points.map((q) => q.x), x)];
    nodes.push(el("span", {}, el("i", { class: `key dot s${p.series ?? 3}` }), p.label + " ", el("b", {}, percent(p.y))));
  }
  for (const r of spec.references || []) {
    nodes.push(el("span", {}, el("i", { class: `key dash ${r.kind || ""}` }), r.label + " ", el("b", {}, inUnit(r.y, spec.unit))));
  }
  return nodes;
}

function nearest(xs, x) {
  let best = 0;
  for (let i = 1; i < xs.length; i++) if (Math.abs(xs[i] - x) < Math.abs(xs[best] - x)) best = i;
  return best;
}

function pointAt(x, spec) {
  for (const c of charts) c.node.isConnected ? c.show(x) : charts.delete(c);
  byId("at").textContent = x === null ? "" : spec.clock ? `at ${clock(x)}` : `at step ${Math.round(x)}`;
}

function listen(picture, spec, toValue) {
  const xs = [...new Set(spec.lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  let cursor = null;
  const go = (x) => { cursor = x; pointAt(x, spec); };
  const move = (event) => {
    const box = picture.getBoundingClientRect();
    if (xs.length) go(xs[nearest(xs, toValue(((event.clientX - box.left) / box.width) * WIDTH))]);
  };
  picture.addEventListener("pointermove", move);
  picture.addEventListener("pointerdown", move);
  picture.addEventListener("pointerleave", () => go(null));
  picture.addEventListener("blur", () => go(null));
  picture.addEventListener("keydown", (event) => {
    const direction = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!direction || !xs.length) return;
    event.preventDefault();
    const at = cursor === null ? (direction > 0 ? -1 : xs.length) : nearest(xs, cursor);
    go(xs[Math.max(0, Math.min(xs.length - 1, at + direction))]);
  });
}
