"use strict";
// Table and figures of the page: sort, filter, highlight, hide, brush, download. Without it, everything is still there.
const raylm = (() => {
  const view = { sort: null, filter: "", hidden: new Set() };  // kept when the dashboard replaces the page's content
  let table, rows, marks, ranges, runNames;

  const split = (element, name) => (element.dataset[name] || "").split(" ").filter(Boolean);
  const value = (cell) =>
    "value" in cell.dataset ? cell.dataset.value : (cell.querySelector("summary") || cell).textContent.trim();
  const headings = () => [...table.tHead.rows[0].cells];
  const column = (key) => headings().findIndex((th) => th.dataset.key === key || th.textContent.trim() === key);

  function create(name, attributes = {}, text = "") {
    const isSvg = name === "rect" || name === "title";
    const element = isSvg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    for (const [key, content] of Object.entries(attributes)) element.setAttribute(key, content);
    element.textContent = text;
    return element;
  }

  // ---- table: order, filter, download

  function compare(a, b) {
    if (a === "" || b === "") return (a === "") - (b === "");
    return isNaN(a) || isNaN(b) ? a.localeCompare(b, undefined, { numeric: true }) : a - b;
  }

  function sortRows() {
    const index = view.sort ? column(view.sort.key) : -1;
    headings().forEach((th, i) => {
      if (i === index) th.setAttribute("aria-sort", view.sort.descending ? "descending" : "ascending");
      else th.removeAttribute("aria-sort");
    });
    const sign = view.sort && view.sort.descending ? -1 : 1;
    const missing = (row) => value(row.cells[index]) === "";
    const ordered = index < 0 ? rows : [...rows].sort((a, b) =>
      missing(a) - missing(b) || sign * compare(value(a.cells[index]), value(b.cells[index])));
    table.tBodies[0].append(...ordered);
  }

  function matches(row, term) {
    const condition = term.match(/^([\w ]+?)(<=|>=|!=|<|>|=)(.*)$/);
    const index = condition ? column(condition[1]) : -1;
    if (index < 0) return row.textContent.toLowerCase().includes(term.toLowerCase());
    const order = compare(value(row.cells[index]), condition[3]);
    return { "<": order < 0, ">": order > 0, "<=": order <= 0, ">=": order >= 0, "=": order === 0, "!=": order !== 0 }[condition[2]];
  }

  function filterRows() {
    const terms = view.filter.split(/\s+/).filter(Boolean);
    const outside = new Set();
    for (const range of ranges.values()) {
      for (const mark of range.marks) {
        const y = vertices(mark)[range.axis];
        if (y < range.low || y > range.high) split(mark, "trials").forEach((id) => outside.add(id));
      }
    }
    for (const row of rows) {
      const isOut = split(row, "trials").length && split(row, "trials").every((id) => outside.has(id));
      row.hidden = isOut || !terms.every((term) => matches(row, term));
    }
    const shown = new Set(rows.filter((row) => !row.hidden).flatMap((row) => split(row, "trials")));
    marks.forEach((mark) => mark.classList.toggle("out", !split(mark, "trials").some((id) => shown.has(id))));
    const count = rows.filter((row) => !row.hidden).length;
    document.getElementById("shown").textContent = count < rows.length ? `${count} of ${rows.length} rows` : "";
  }

  function downloadCsv() {
    const quote = (text) => (/[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const lines = [headings().map((th) => th.dataset.key)];
    for (const row of table.tBodies[0].rows) {
      if (!row.hidden) lines.push([...row.cells].map(value));
    }
    const content = lines.map((line) => line.map(quote).join(",") + "\n").join("");
    const url = URL.createObjectURL(new Blob([content], { type: "text/csv" }));
    create("a", { href: url, download: `${document.querySelector("h1").textContent}.csv` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }

  function addControls() {
    const input = create("input", { type: "search", placeholder: "Filter: words, or val_loss<3", "aria-label": "Filter rows" });
    input.value = view.filter;
    input.addEventListener("input", () => { view.filter = input.value; filterRows(); });
    const button = create("button", { type: "button" }, "Download CSV");
    button.addEventListener("click", downloadCsv);
    const bar = create("div", { class: "controls" });
    bar.append(input, button, create("output", { id: "shown", "aria-live": "polite" }));
    table.closest(".scroll").before(bar);
    for (const th of headings()) {
      const heading = create("button", { type: "button" }, th.textContent);
      th.replaceChildren(heading);
      heading.addEventListener("click", () => {
        const isSame = view.sort && view.sort.key === th.dataset.key;
        view.sort = isSame && view.sort.descending ? null : { key: th.dataset.key, descending: isSame };
        sortRows();
      });
    }
  }

  // ---- rows and lines

  function highlight(trials) {
    const wanted = new Set(trials);
    document.body.classList.toggle("highlighting", wanted.size > 0);
    const isOn = (ids) => ids.some((id) => wanted.has(id));
    rows.forEach((row) => row.classList.toggle("on", isOn(split(row, "trials"))));
    for (const mark of marks) {
      const points = (mark.dataset.points || "").split("|").map((ids) => ids.split(" "));
      const dots = mark.querySelectorAll("use");
      const hasDots = "points" in mark.dataset && dots.length === points.length;
      mark.classList.toggle("on", isOn(split(mark, "trials")) && !hasDots);
      mark.classList.toggle("some", isOn(split(mark, "trials")) && hasDots);
      if (hasDots) dots.forEach((dot, i) => dot.classList.toggle("on", isOn(points[i])));
    }
  }

  function connectMark(mark) {
    const points = (mark.dataset.points || "").split("|");
    const dots = [...mark.querySelectorAll("use")];
    const trialsAt = (target) => {
      const index = "points" in mark.dataset && dots.length === points.length ? dots.indexOf(target) : -1;
      return index < 0 ? split(mark, "trials") : points[index].split(" ");
    };
    mark.prepend(create("title", {}, split(mark, "trials").map((id) => runNames.get(id) || id).join("\n")));
    for (const path of mark.querySelectorAll(":scope > path")) {
      if (getComputedStyle(path).fill !== "none") continue;
      const hit = path.cloneNode();
      hit.setAttribute("class", "hit");
      path.after(hit);
    }
    mark.addEventListener("pointerover", (event) => highlight(trialsAt(event.target)));
    mark.addEventListener("pointerout", () => highlight([]));
    mark.addEventListener("click", (event) => {
      const row = rows.find((each) => split(each, "trials").includes(trialsAt(event.target)[0]));
      if (!row || row.hidden) return;
      row.querySelector("details").open = true;
      row.scrollIntoView({ block: "center" });
    });
  }

  function connectLegend(svg, name) {
    for (const entry of svg.querySelectorAll(".legend[aria-label]")) {
      const line = entry.dataset.line, key = `${name} ${entry.getAttribute("aria-label")}`;
      const apply = () => {
        const isOff = view.hidden.has(key);
        entry.setAttribute("aria-pressed", String(!isOff));
        for (const part of svg.querySelectorAll(`[data-line="${line}"]`)) part.classList.toggle("off", isOff);
      };
      const toggle = () => { view.hidden.delete(key) || view.hidden.add(key); apply(); };
      entry.setAttribute("role", "button");
      entry.setAttribute("tabindex", "0");
      for (const part of svg.querySelectorAll(`.legend[data-line="${line}"]`)) part.addEventListener("click", toggle);
      entry.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); toggle(); }
      });
      apply();
    }
  }

  // ---- parallel coordinates

  const vertices = (mark) =>
    [...mark.querySelector("path").getAttribute("d").matchAll(/[ML] \S+ (\S+)/g)].map((match) => Number(match[1]));

  function connectAxis(svg, axis) {
    const box = axis.getBBox(), number = Number(axis.dataset.axis), key = `${svg.getAttribute("aria-label")} ${number}`;
    const handle = create("rect", { class: "handle", x: box.x - 7, y: box.y, width: 14, height: box.height });
    const brush = create("rect", { class: "brush", x: box.x - 5, width: 10, visibility: "hidden" });
    handle.append(create("title", {}, "Drag to select a range; click to clear it"));
    axis.append(brush, handle);
    axis.parentNode.append(axis);  // above the lines
    let start = null;
    const position = (event) =>
      Math.min(Math.max(new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()).y, box.y), box.y + box.height);
    const move = (event) => {
      if (start === null) return;
      const low = Math.min(start, position(event)), high = Math.max(start, position(event));
      const isRange = high - low > 2;
      brush.setAttribute("visibility", isRange ? "visible" : "hidden");
      brush.setAttribute("y", low);
      brush.setAttribute("height", high - low);
      if (isRange) ranges.set(key, { axis: number, low: low - 0.5, high: high + 0.5, marks: svg.querySelectorAll(".mark") });
      else ranges.delete(key);
      filterRows();
    };
    handle.addEventListener("pointerdown", (event) => { start = position(event); handle.setPointerCapture(event.pointerId); move(event); });
    handle.addEventListener("pointermove", move);
    handle.addEventListener("pointerup", (event) => { move(event); start = null; });
  }

  function enhance() {
    table = document.querySelector(".results table");
    rows = [...table.tBodies[0].rows];
    marks = [...document.querySelectorAll(".mark")];
    runNames = new Map(rows.flatMap((row) => {
      const names = column("run") < 0 ? [] : value(row.cells[column("run")]).split(" ");
      return split(row, "trials").map((id, i) => [id, names[i] || id]);
    }));
    ranges = new Map();
    addControls();
    marks.forEach(connectMark);
    document.querySelectorAll(".panels svg").forEach((svg, number) => {
      connectLegend(svg, number);
      svg.querySelectorAll(".axis").forEach((axis) => connectAxis(svg, axis));
    });
    for (const row of rows) {
      for (const cell of row.cells) cell.setAttribute("role", "cell");  // the layout of phones takes its meaning away
      row.addEventListener("pointerenter", () => highlight(split(row, "trials")));
      row.addEventListener("pointerleave", () => highlight([]));
      row.addEventListener("focusin", () => highlight(split(row, "trials")));
      row.addEventListener("focusout", () => highlight([]));
    }
    sortRows();
    filterRows();
  }

  enhance();
  return { enhance };
})();
