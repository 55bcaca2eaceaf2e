// Time by phase, memory planned and measured, facts, config.

const PHASE_LABELS = { other: "loading, saving, other" };
const MEMORY_LABELS = {
  planned: ["planned", "Estimated before the run"],
  dry_run: ["dry run", "Peak of a trial of the largest possible step, before training"],
  measured: ["measured", "Peak of the whole run"],
};

function bar(title, parts, total, format) {
  const picture = svg("svg", { class: "bar", role: "img", "aria-label": title });
  let x = 0;
  parts.forEach(([name, value], i) => {
    picture.append(svg("rect", { class: `s${i % 6}`, x: `${(100 * x) / total}%`, width: `${(100 * value) / total}%`, height: "100%" },
      svg("title", {}, `${name} ${format(value)}`)));
    x += value;
  });
  const keys = parts.map(([name, value], i) => el("span", {}, el("i", { class: `key block s${i % 6}` }), `${name} `, el("b", {}, format(value)),
    el("small", {}, ` ${percent(value / total)}`)));
  return el("figure", {}, el("figcaption", {}, el("b", {}, title)), picture, el("p", { class: "legend" }, ...keys));
}

function showCosts() {
  const { time, memory, facts, config } = current.costs;
  const phases = Object.entries(time).filter(([name, s]) => name !== "total" && s)
    .map(([name, s]) => [PHASE_LABELS[name] ?? name, s]);
  byId("costs-time").replaceChildren(phases.length ? bar(`Time: ${clock(time.total)}`, phases, time.total, clock) : "");
  byId("costs-memory").replaceChildren(memoryRows(memory));
  byId("facts").replaceChildren(...Object.entries(facts).flatMap(([name, text]) => [el("dt", {}, name), el("dd", {}, ...visible(text))]));
  byId("config").replaceChildren(...visible(config));
}

function memoryRows(memory) {
  const rows = Object.entries(memory).filter(([, bytes]) => bytes);
  if (!rows.length) return "";
  const most = Math.max(...rows.map(([, bytes]) => bytes));
  const note = memory.planned && memory.measured ? `: the plan is ${percent(memory.planned / memory.measured)} of the measured peak` : "";
  return el("figure", {}, el("figcaption", {}, el("b", {}, "Memory"), note),
    ...rows.map(([name, bytes]) => el("div", { class: "row", title: MEMORY_LABELS[name][1] }, el("span", { class: "label" }, MEMORY_LABELS[name][0]),
      svg("svg", { class: "bar thin" }, svg("rect", { class: "s0", width: `${(100 * bytes) / most}%`, height: "100%" })),
      el("span", { class: "value" }, el("b", {}, gigabytes(bytes))))));
}
