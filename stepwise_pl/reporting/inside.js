"use strict";
(() => {
  // Of the figures of a menu, the one that is chosen is shown. `page.js` draws it when it is seen.
  for (const menu of document.querySelectorAll(".menu")) {
    const selects = [...menu.querySelectorAll("select")];
    const pick = () => {
      const choice = selects.map((select) => select.value).join(" ");
      let none = true;
      for (const frame of menu.querySelectorAll("[data-choice]")) {
        frame.hidden = frame.dataset.choice !== choice;
        none &&= frame.hidden;
      }
      menu.querySelector("[data-none]").hidden = !none;
    };
    for (const select of selects) select.addEventListener("change", pick);
    pick();
  }

  // All that comes from a run goes into the page as text.
  function cell(row, tag, text, className = "") {
    const element = document.createElement(tag);
    element.textContent = text;
    if (className) element.className = className;
    if (tag === "th") element.scope = row.parentElement.tagName === "THEAD" ? "col" : "row";
    row.append(element);
    return element;
  }

  function fill(table, line) {
    table.replaceChildren();
    const head = table.createTHead(), body = table.createTBody(), foot = table.createTFoot();
    const places = head.insertRow(), next = head.insertRow();
    cell(places, "th", "place");
    cell(next, "th", "right next word");
    line.places.forEach((place, number) => {
      cell(places, "th", place);
      cell(next, "td", line.next[number], "text");
    });
    // The last layer stands above the others, as the answer comes from it.
    for (let layer = line.layers.length - 1; layer >= 0; layer--) {
      const row = body.insertRow();
      cell(row, "th", `layer ${line.layers[layer]}`);
      line.words[layer].forEach((word, place) => {
        const share = line.probabilities[layer][place];
        const here = cell(row, "td", word, word === line.next[place] ? "text hit" : "text");
        here.style.setProperty("--share", `${Math.round(100 * share)}%`);
        here.title = `${word}: ${(100 * share).toFixed(1)}%, ${line.places[place]}, layer ${line.layers[layer]}`;
      });
    }
    const read = foot.insertRow();
    cell(read, "th", "word read");
    for (const word of line.read) cell(read, "td", word, "text");
  }

  for (const figure of document.querySelectorAll(".words")) {
    const lines = JSON.parse(figure.querySelector("script").textContent);
    const selects = [...figure.querySelectorAll("select")];
    const pick = () => {
      const line = lines[selects.map((select) => select.value).join(" ")];
      const table = figure.querySelector("table");
      figure.querySelector("[data-said]").textContent = line ? `whole CoT: ${line.cot}    answer: ${line.answer}` : "";
      if (line) fill(table, line);
      else {
        table.replaceChildren();
        cell(table.createTBody().insertRow(), "td", "This was not measured.");
      }
    };
    for (const select of selects) select.addEventListener("change", pick);
    pick();
  }
})();
