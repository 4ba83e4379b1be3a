"use strict";
// Tables are readable as they are; with a script their heads become buttons that sort.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => sort(table, heads, column));
  });
}

function sort(table, heads, column) {
  const body = table.tBodies[0];
  const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const numbers = heads[column].dataset.type === "number";
  // Scores are looked at best first, names from A.
  const first = numbers ? "descending" : "ascending";
  const order = heads[column].getAttribute("aria-sort") !== first ? first : numbers ? "ascending" : "descending";
  const sign = order === "ascending" ? 1 : -1;
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === ""); // what is missing comes last
    return sign * (numbers ? Number(x) - Number(y) : x.localeCompare(y, "en", { numeric: true }));
  });
  body.append(...rows);
  heads.forEach((head, place) => head.setAttribute("aria-sort", place === column ? order : "none"));
  document.getElementById("sorted").textContent = `Sorted by ${heads[column].textContent}, ${order}.`;
}
