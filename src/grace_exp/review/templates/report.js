"use strict";
// The step under the pointer, in all diagrams of the page at once.
const charts = [...document.querySelectorAll("svg.chart")].map((svg) => {
  const figure = svg.closest("figure");
  const data = JSON.parse(svg.dataset.chart);
  const values = [...figure.querySelectorAll("[data-series]")].map((item) => [item.dataset.series, item.querySelector(".value")]);
  return { svg, data, values, line: svg.querySelector(".pointer"), at: figure.querySelector(".at"), last: values.map(([, node]) => node.textContent) };
});
const shown = (value) => (value === null || value === undefined ? "none" : Number(value.toPrecision(4)).toString());
let current = null;
function show(step) {
  current = step;
  for (const chart of charts) {
    if (step === null) {
      chart.line.setAttribute("visibility", "hidden");
      chart.at.textContent = "last step";
      chart.values.forEach(([, node], i) => { node.textContent = chart.last[i]; });
      continue;
    }
    const steps = chart.data.steps;
    let place = 0;
    steps.forEach((other, i) => { if (Math.abs(other - step) < Math.abs(steps[place] - step)) place = i; });
    chart.line.setAttribute("x1", chart.data.x[place]);
    chart.line.setAttribute("x2", chart.data.x[place]);
    chart.line.setAttribute("visibility", "visible");
    chart.at.textContent = "step " + shown(steps[place]);
    chart.values.forEach(([name, node]) => { node.textContent = shown(chart.data.series[name][place]); });
  }
}
for (const { svg, data } of charts) {
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    let place = 0;
    data.x.forEach((other, i) => { if (Math.abs(other - x) < Math.abs(data.x[place] - x)) place = i; });
    show(data.steps[place]);
  });
  svg.addEventListener("pointerleave", () => show(null));
  svg.addEventListener("blur", () => show(null));
  svg.addEventListener("keydown", (event) => {
    const steps = data.steps;
    let place = current === null ? steps.length - 1 : steps.findIndex((step) => step >= current);
    if (event.key === "ArrowLeft") place = current === null ? place : place - 1;
    else if (event.key === "ArrowRight") place += 1;
    else if (event.key === "Home") place = 0;
    else if (event.key === "End") place = steps.length - 1;
    else if (event.key === "Escape") { show(null); return; }
    else return;
    event.preventDefault();
    show(steps[Math.min(Math.max(place, 0), steps.length - 1)]);
  });
}
// The table of a sweep: sort by a column, show the rows that contain a text.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headers = [...table.querySelectorAll("th")];
  headers.forEach((header, column) => header.querySelector("button").addEventListener("click", () => {
    const down = header.getAttribute("aria-sort") === "descending";
    headers.forEach((other) => other.setAttribute("aria-sort", "none"));
    header.setAttribute("aria-sort", down ? "ascending" : "descending");
    const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const compare = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "") || 0;
      const order = Number.isNaN(Number(x)) || Number.isNaN(Number(y)) ? x.localeCompare(y) : Number(x) - Number(y);
      return down ? order : -order;
    };
    [...body.rows].sort(compare).forEach((row) => body.append(row));
  }));
  const filter = document.getElementById("filter");
  filter.addEventListener("input", () => {
    const text = filter.value.toLowerCase();
    let count = 0;
    for (const row of body.rows) {
      row.hidden = !row.textContent.toLowerCase().includes(text);
      count += !row.hidden;
    }
    document.getElementById("shown").textContent = `${count} of ${body.rows.length} jobs`;
  });
}
