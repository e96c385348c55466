"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const hidden = new Set(); // numbers of the runs not shown
  let printing = false;
  const PAPER = 690; // pixels between the margins of an A4 page

  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  // Black lines would be lost on a dark page.
  const seen = (value) => (value === "#000000" ? color("--ink") : value);

  const CELL = 40; // pixels that a number needs
  const roomForText = (trace, element) => (printing ? PAPER : element.clientWidth) - 150 >= CELL * new Set(trace.x).size;

  function data(figure, element) {
    return figure.data.map((trace) => {
      const runs = trace.meta.runs;
      const shown = runs.length === 0 || runs.some((run) => !hidden.has(run));
      const out = { ...trace, visible: shown && (trace.mode !== "text" || roomForText(trace, element)) };
      if (trace.line) out.line = { ...trace.line, color: seen(trace.line.color) };
      if (trace.marker) {
        out.marker = { ...trace.marker, color: seen(trace.marker.color) };
        out.marker.line = { ...trace.marker.line, color: seen(trace.marker.line.color) };
      }
      if (trace.error_y) out.error_y = { ...trace.error_y, color: seen(trace.error_y.color) };
      return out;
    });
  }

  function layout(figure, element) {
    const axis = { gridcolor: color("--grid"), linecolor: color("--line"), tickcolor: color("--line") };
    const out = {
      ...figure.layout,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: color("--ink") },
      hoverlabel: { bgcolor: color("--panel"), bordercolor: color("--line"), font: { color: color("--ink") }, align: "left" },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: color("--soft"), activecolor: color("--ink") },
      autosize: !printing,
      uirevision: "kept", // where the reader has zoomed
    };
    if (printing) {
      const style = getComputedStyle(element);
      out.width = Math.min(PAPER, parseFloat(style.maxWidth) || PAPER);
      out.height = 0.7 * parseFloat(style.getPropertyValue("--height"));
    }
    for (const key of Object.keys(figure.layout)) {
      if (/^[xy]axis/.test(key)) out[key] = { ...axis, ...figure.layout[key], title: { ...figure.layout[key].title, font: { size: 13 } } };
    }
    return out;
  }

  function draw(element) {
    const figure = figures[element.dataset.figure];
    return Plotly.react(element, data(figure, element), layout(figure, element), {
      responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"],
      toImageButtonOptions: { format: "svg", filename: element.dataset.figure },
    });
  }

  // A figure is drawn when it is about to be seen, so that a page of many runs opens at once.
  const plots = [...document.querySelectorAll(".plot")];
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      observer.unobserve(entry.target);
      draw(entry.target);
    }
  }, { rootMargin: "300px" });
  function redraw() {
    for (const element of plots) {
      observer.unobserve(element);
      observer.observe(element);
    }
  }
  const drawAll = () => plots.filter((element) => element.offsetParent !== null).forEach(draw);

  function show(run, shown) {
    if (shown) hidden.delete(run);
    else hidden.add(run);
    for (const element of document.querySelectorAll(`[data-run="${run}"]`)) element.hidden = !shown;
  }

  const boxes = [...document.querySelectorAll("[data-shows]")];
  function update() {
    for (const box of boxes) show(Number(box.dataset.shows), box.checked);
    redraw();
  }
  for (const box of boxes) {
    box.checked = true; // browsers remember it over a reload
    box.addEventListener("change", update);
  }
  for (const button of document.querySelectorAll("[data-all]")) {
    button.addEventListener("click", () => {
      for (const box of boxes) box.checked = button.dataset.all === "true";
      update();
    });
  }

  for (const part of document.querySelectorAll(".examples")) {
    const select = part.querySelector("select");
    const pick = () => {
      for (const body of part.querySelectorAll("tbody")) body.hidden = body.dataset.stage !== select.value;
    };
    select.selectedIndex = select.options.length - 1;
    select.addEventListener("change", pick);
    for (const button of part.querySelectorAll("[data-step]")) {
      button.addEventListener("click", () => {
        const to = select.selectedIndex + Number(button.dataset.step);
        select.selectedIndex = Math.min(Math.max(to, 0), select.options.length - 1);
        pick();
      });
    }
    pick();
  }

  for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", redraw);
  addEventListener("beforeprint", () => { printing = true; drawAll(); });
  // Only the next frame is laid out for the screen again: a figure measured here could keep the width of the paper.
  addEventListener("afterprint", () => { printing = false; requestAnimationFrame(drawAll); });
  redraw();
})();
