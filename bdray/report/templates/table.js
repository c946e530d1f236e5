// Sorts and filters the table of all conditions. The page stays readable without.
"use strict";
{
  const table = document.getElementById("table"), body = table.tBodies[0], rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells], filter = document.getElementById("filter"), count = document.getElementById("count");
  const value = (row, k) => { const cell = row.cells[k]; return cell.dataset.value ?? cell.textContent.trim(); };
  const compare = (a, b) => {
    const [x, y] = [parseFloat(a), parseFloat(b)];
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a.localeCompare(b);
    return x - y;
  };
  const sort = (k) => {
    const up = heads[k].getAttribute("aria-sort") !== "ascending";
    heads.forEach((head) => head.setAttribute("aria-sort", "none"));
    heads[k].setAttribute("aria-sort", up ? "ascending" : "descending");
    body.append(...rows.sort((a, b) => (up ? 1 : -1) * compare(value(a, k), value(b, k))));
  };
  heads.forEach((head, k) => {
    head.setAttribute("aria-sort", "none");
    head.tabIndex = 0;
    head.addEventListener("click", () => sort(k));
    head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(k); });
  });
  const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  const show = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      row.hidden = !words.every((word) => texts.get(row).includes(word));
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${rows.length}`;
  };
  filter.addEventListener("input", show);
  show();
  document.querySelectorAll(".scripted").forEach((element) => { element.hidden = false; });
}
