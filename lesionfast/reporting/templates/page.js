"use strict";
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, place) => {
    head.querySelector("button").addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const each of heads) each.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = row => {
        const cell = row.cells[place];
        return cell.dataset.number === undefined ? null : Number(cell.dataset.number);
      };
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === null && y === null) {
          const order = a.cells[place].textContent.localeCompare(b.cells[place].textContent);
          return up ? order : -order;
        }
        if (x === null || y === null) return x === null ? 1 : -1;
        return up ? x - y : y - x;
      });
      table.tBodies[0].append(...rows);
    });
  });
}
const openAll = () => { for (const each of document.querySelectorAll("details")) each.open = true; };
window.addEventListener("beforeprint", openAll);
