// Wiring: the current run, and what the controls do.

let current = data.runs[0];

function showRun() {
  if (several) current = data.runs[Number(byId("run").value)];
  showAudit();
  showCompletions();
  showReflection();
  showCosts();
  updateNav();
}

function redraw() {
  drawCurves();
  showReflection();
}

function on(ids, event, handler) {
  for (const id of ids) byId(id)?.addEventListener(event, handler);
}

// A phone shows a part of the navigation: an arrow says that there is more, and leads to it.
function updateNav() {
  const links = byId("nav-links");
  byId("nav-more").hidden = links.scrollLeft + links.clientWidth >= links.scrollWidth - 1;
}

on(["axis", "smoothing"], "change", redraw);
on(["run"], "change", showRun);
on(["f-step", "f-verdict", "f-hit", "f-truncated"], "change", filterGroups);
on(["f-text"], "input", filterGroups);
on(["q-split", "q-outcome"], "change", filterQuestions);
on(["q-text"], "input", filterQuestions);
on(["theme"], "click", () => {
  const dark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "light" : "dark";
});

on(["nav-links"], "scroll", updateNav);
on(["nav-more"], "click", () => byId("nav-links").scrollBy({ left: 160 }));
addEventListener("resize", updateNav);

drawCurves();
showRun();
