"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const hidden = new Set(); // numbers of the runs not shown
  let printing = false;
  const PAPER = 690; // pixels between the margins of an A4 page

  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  // Black lines would be lost on a dark page.
  const seen = (value) => (value === "#000000" ? color("--ink") : value);

  const GAP = 14, HEAD = 24; // pixels between panels side by side, and those that the title of a panel takes
  const letters = (count) => 7 * count; // pixels, at most

  // How the panels of a heat map are laid out: side by side where there is room, below each other on a narrow screen.
  function plan(figure, element) {
    const { panels, columns, height, x, y, characters, title, label } = figure.layout.meta;
    const width = printing ? Math.min(PAPER, parseFloat(getComputedStyle(element).maxWidth) || PAPER) : element.clientWidth;
    const narrow = width < 600;
    const left = Math.max(48, 34 + letters(y[1])), right = narrow ? 10 : 96;
    const least = Math.max(90, (characters ? 14 : 7) * x[0], letters(Math.max(title, label)));
    const across = Math.max(1, Math.min(columns, Math.floor((width - left - right + GAP) / (least + GAP))));
    const down = Math.ceil(panels / across);
    const wide = (width - left - right - GAP * (across - 1)) / across;
    const turned = letters(x[1]) + 6 > wide / x[0];
    const top = (narrow ? 62 : 34) + (title ? HEAD : 4), bottom = 40 + (turned ? letters(x[1]) : 16);
    const gap = title ? HEAD + 12 : GAP, tall = (printing ? 0.7 : 1) * height;
    return {
      width, narrow, left, right, top, bottom, across, down, turned, panels,
      height: top + bottom + down * tall + (down - 1) * gap,
      shareX: [wide, GAP].map((pixels) => pixels / (width - left - right)),
      shareY: [tall, gap].map((pixels) => pixels / (down * tall + (down - 1) * gap)),
      hasRoom: characters > 0 && wide / x[0] >= letters(characters) + 3,
    };
  }

  function arrange(out, figure, is) {
    out.height = is.height;
    out.margin = { l: is.left, r: is.right, t: is.top, b: is.bottom };
    const title = figure.layout.meta.title;
    if (title) out.annotations = [...figure.layout.annotations];
    for (let panel = 0; panel < is.panels; panel++) {
      const suffix = panel ? String(panel + 1) : "", column = panel % is.across, row = Math.floor(panel / is.across);
      const x = column * (is.shareX[0] + is.shareX[1]), y = 1 - row * (is.shareY[0] + is.shareY[1]);
      const isLast = panel + is.across >= is.panels, isFirst = column === 0;
      Object.assign(out[`xaxis${suffix}`], {
        domain: [x, Math.min(1, x + is.shareX[0])], showticklabels: isLast, tickangle: is.turned ? -90 : 0, automargin: false,
      });
      Object.assign(out[`yaxis${suffix}`], { domain: [Math.max(0, y - is.shareY[0]), y], showticklabels: isFirst, automargin: isFirst });
      if (!isLast) delete out[`xaxis${suffix}`].title;
      if (!isFirst) delete out[`yaxis${suffix}`].title;
      // On a narrow screen, a title may be wider than its panel, and begins at the left edge of the figure.
      const place = { xref: "paper", yref: "paper", x, y, xshift: is.narrow && is.across === 1 ? 4 - is.left : 0 };
      if (title) out.annotations[panel] = { ...figure.layout.annotations[panel], ...place };
    }
    const inside = is.height - is.top - is.bottom;
    const bar = figure.layout.coloraxis.colorbar;
    const flat = {
      ...bar, orientation: "h", x: 0.5, xanchor: "center", y: 1 + (title ? HEAD : 4) / inside, yanchor: "bottom", thickness: 10,
      title: { ...bar.title, side: "top" },
    };
    const upright = { ...bar, lenmode: "pixels", len: Math.min(inside, 320) };
    out.coloraxis = { ...figure.layout.coloraxis, colorbar: is.narrow ? flat : upright };
  }

  function data(figure, hasRoom) {
    return figure.data.map((trace) => {
      const runs = trace.meta.runs;
      const shown = runs.length === 0 || runs.some((run) => !hidden.has(run));
      const out = { ...trace, visible: shown && (trace.mode !== "text" || hasRoom) };
      if (trace.line) out.line = { ...trace.line, color: seen(trace.line.color) };
      if (trace.marker) {
        out.marker = { ...trace.marker, color: seen(trace.marker.color) };
        out.marker.line = { ...trace.marker.line, color: seen(trace.marker.line.color) };
      }
      if (trace.error_y) out.error_y = { ...trace.error_y, color: seen(trace.error_y.color) };
      return out;
    });
  }

  function layout(figure, element, is) {
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
    if (is) arrange(out, figure, is);
    return out;
  }

  function draw(element) {
    const figure = figures[element.dataset.figure];
    const is = figure.layout.meta ? plan(figure, element) : null;
    // Plotly leaves titles where they were if other panels stand side by side. Such a figure is drawn anew.
    const laidOut = is ? `${is.across} ${is.narrow}` : "";
    if (element.dataset.laidOut && element.dataset.laidOut !== laidOut) Plotly.purge(element);
    element.dataset.laidOut = laidOut;
    if (is) element.style.setProperty("--height", `${is.height / (printing ? 0.7 : 1)}px`); // paper has 0.7 of it
    const drawn = Plotly.react(element, data(figure, is?.hasRoom), layout(figure, element, is), {
      responsive: true, displaylogo: false,
      // Few buttons stand side by side, so that they fit into the upper margin of a narrow figure.
      modeBarButtonsToRemove: ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"],
      toImageButtonOptions: { format: "svg", filename: element.dataset.figure },
    });
    return drawn.then(() => element.dispatchEvent(new Event("drawn", { bubbles: true })));
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
  // The width decides how many panels stand side by side.
  let width = innerWidth;
  addEventListener("resize", () => {
    if (!printing && innerWidth !== width) redraw();
    width = innerWidth;
  });
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
