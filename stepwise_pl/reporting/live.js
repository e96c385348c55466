"use strict";
// The page of a run that is being trained loads itself again. The reader finds everything as it was left.
(() => {
  const KEY = `stepwise_pl ${location.pathname}`;
  const QUIET = 3000; // milliseconds: a reader who has just moved the mouse, typed or scrolled is not disturbed
  const live = document.getElementById("live");
  const labels = () => [...document.querySelectorAll("[data-shows]")];
  const nameOf = (box) => box.closest("label").textContent.trim();
  const details = () => [...document.querySelectorAll("details")];
  const nameOfPart = (part) => `${part.closest("section")?.id} ${part.querySelector("summary").textContent.trim()}`;
  const selects = () => [...document.querySelectorAll("select")];
  // The last stage of the answers is followed: another one may have come.
  const isFollowed = (select) => select.closest(".examples") && select.selectedIndex === select.options.length - 1;
  const zooms = {}; // ranges of the axes by figure, where the reader has zoomed

  function save() {
    const state = {
      at: Date.now(), scroll: scrollY, zooms,
      hidden: labels().filter((box) => !box.checked).map(nameOf),
      open: details().map((part) => [nameOfPart(part), part.open]),
      chosen: selects().map((select) => (isFollowed(select) ? null : select.selectedIndex)),
    };
    sessionStorage.setItem(KEY, JSON.stringify(state));
  }

  function restore() {
    const state = JSON.parse(sessionStorage.getItem(KEY) ?? "null");
    sessionStorage.removeItem(KEY);
    if (!state || Date.now() - state.at > 60000) return;
    const open = new Map(state.open);
    for (const part of details()) part.open = open.get(nameOfPart(part)) ?? part.open;
    for (const box of labels()) box.checked = !state.hidden.includes(nameOf(box));
    labels()[0]?.dispatchEvent(new Event("change"));
    selects().forEach((select, place) => {
      const chosen = state.chosen[place];
      if (chosen === null || chosen === undefined || chosen >= select.options.length) return;
      select.selectedIndex = chosen;
      select.dispatchEvent(new Event("change"));
    });
    Object.assign(zooms, state.zooms);
    scrollTo(0, state.scroll);
  }

  document.addEventListener("drawn", ({ target }) => {
    if (target.dataset.heard) return;
    target.dataset.heard = "yes";
    const slug = target.dataset.figure;
    target.on("plotly_relayout", (change) => {
      for (const [key, value] of Object.entries(change)) {
        if (/^[xy]axis\d*\.range/.test(key)) (zooms[slug] ??= {})[key] = value;
        if (/^[xy]axis\d*\.autorange$/.test(key)) delete zooms[slug];
      }
    });
    if (zooms[slug]) Plotly.relayout(target, { ...zooms[slug] });
  });

  restore();
  if (!live) return;
  history.scrollRestoration = "manual";
  live.checked = true;
  let last = 0;
  for (const event of ["pointermove", "pointerdown", "keydown", "wheel", "touchmove"]) {
    addEventListener(event, () => { last = Date.now(); }, { passive: true });
  }
  function look() {
    const isReading = Date.now() - last < QUIET || document.visibilityState === "hidden" || String(getSelection()) !== "";
    if (!live.checked || isReading) return setTimeout(look, 500);
    save();
    location.reload();
  }
  setTimeout(look, 1000 * Number(live.dataset.every));
  // Who wants it again need not wait.
  live.addEventListener("change", () => { if (live.checked) look(); });
})();
