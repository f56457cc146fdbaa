"use strict";
// Without this script the tables stand in order of rank. With it, a click on a heading orders the rows by that column.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const key = (row, i) => {
    const cell = row.cells[i];
    return cell.dataset.v === undefined ? cell.textContent.trim() : cell.dataset.v === "" ? null : Number(cell.dataset.v);
  };
  heads.forEach((head, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const first = head.dataset.down === undefined && head.dataset.text === undefined ? "descending" : "ascending";
      const order = before ? (before === "ascending" ? "descending" : "ascending") : first;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...body.rows].map((row, at) => [key(row, i), at, row]);
      rows.sort(([a, at], [b, bt]) => {
        if (a === null || b === null) return (a === null) - (b === null) || at - bt;
        const way = typeof a === "number" ? a - b : a.localeCompare(b);
        return sign * way || at - bt;
      });
      body.append(...rows.map(([, , row]) => row));
    });
  });
}
