"use strict";
// Sorts a table by the column whose heading is pressed; numbers are read from data-value.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th");
    const table = heading.closest("table");
    const column = Array.from(heading.parentElement.children).indexOf(heading);
    const down = heading.getAttribute("aria-sort") !== "descending";
    for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = table.tBodies[0];
    const key = (row) => {
      const cell = row.children[column];
      const value = cell.dataset.value;
      return value === undefined ? cell.textContent.trim() : Number(value);
    };
    const rows = Array.from(body.rows).sort((a, b) => {
      const x = key(a), y = key(b);
      const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
      return down ? -order : order;
    });
    body.append(...rows);
  });
}
// On paper everything is open.
const closed = [];
addEventListener("beforeprint", () => {
  for (const box of document.querySelectorAll("details:not([open])")) { box.open = true; closed.push(box); }
});
addEventListener("afterprint", () => { while (closed.length) closed.pop().open = false; });
