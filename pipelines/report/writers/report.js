// Tables sort on a click: down, up, then the order they came in. Gaps stay at the end.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, i) => {
    const cell = row.cells[i];
    const text = cell ? (cell.dataset.v ?? cell.textContent).trim() : "";
    return text === "" ? null : isNaN(text) ? text : Number(text);
  };
  heads.forEach((head, i) => {
    head.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const numbers = head.classList.contains("num") || head.classList.contains("gain");
      const first = numbers ? "descending" : "ascending";
      const second = numbers ? "ascending" : "descending";
      const next = before === first ? second : before === second ? null : first;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      let rows = original;
      if (next) {
        head.setAttribute("aria-sort", next);
        const sign = next === "ascending" ? 1 : -1;
        rows = [...original].sort((a, b) => {
          const [x, y] = [value(a, i), value(b, i)];
          if (x === null || y === null) return (x === null) - (y === null);
          return sign * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y)));
        });
      }
      body.append(...rows);
    });
  });
}
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
