// Time by phase, memory planned and measured, facts, config.

function bar(title, parts, total, show) {
  const picture = svg("svg", { class: "bar", role: "img", "aria-label": title });
  let x = 0;
  parts.forEach(([name, value], i) => {
    picture.append(svg("rect", { class: `s${i % 6}`, x: `${(100 * x) / total}%`, width: `${(100 * value) / total}%`, height: "100%" },
      svg("title", {}, `${name} ${show(value)}`)));
    x += value;
  });
  const keys = parts.map(([name, value], i) => el("span", {}, el("i", { class: `key block s${i % 6}` }), `${name} `, el("b", {}, show(value)),
    el("small", {}, ` ${percent(value / total)}`)));
  return el("figure", {}, el("figcaption", {}, el("b", {}, title)), picture, el("p", { class: "legend" }, ...keys));
}

function showCost() {
  const { time, memory, facts, config } = current.cost;
  const phases = Object.entries(time).filter(([name, s]) => name !== "total" && s)
    .map(([name, s]) => [name === "other" ? "loading, saving, other" : name, s]);
  byId("cost-time").replaceChildren(phases.length ? bar(`Time: ${clock(time.total)}`, phases, time.total, clock) : "");
  byId("cost-memory").replaceChildren(memoryRows(memory));
  byId("facts").replaceChildren(...Object.entries(facts).flatMap(([name, text]) => [el("dt", {}, name), el("dd", {}, ...visible(text))]));
  byId("config").replaceChildren(...visible(config));
}

function memoryRows(memory) {
  const rows = Object.entries(memory).filter(([, bytes]) => bytes);
  if (!rows.length) return "";
  const most = Math.max(...rows.map(([, bytes]) => bytes));
  const note = memory.planned && memory.measured ? `: the plan was ${percent(memory.planned / memory.measured)} of what was measured` : "";
  return el("figure", {}, el("figcaption", {}, el("b", {}, "Memory"), note),
    ...rows.map(([name, bytes]) => el("div", { class: "row" }, el("span", { class: "label" }, name),
      svg("svg", { class: "bar thin" }, svg("rect", { class: "s0", width: `${(100 * bytes) / most}%`, height: "100%" })),
      el("span", { class: "value" }, el("b", {}, gigabytes(bytes))))));
}
