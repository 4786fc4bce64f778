// Sorting is an extra: without this script the tables stand in the order of the plan.
for (const table of document.querySelectorAll("table.data")) {
  const body = table.tBodies[0];
  if (body.rows.length < 3) continue;
  const heads = [...table.tHead.rows[0].cells];
  const key = (row, place) => row.cells[place].dataset.v || row.cells[place].textContent.trim();
  heads.forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].sort((a, b) => {
        const x = key(a, place), y = key(b, place), nx = Number(x), ny = Number(y);
        const numbers = Number.isFinite(nx) - Number.isFinite(ny);
        const order = numbers ? -numbers : Number.isFinite(nx) ? nx - ny : x.localeCompare(y, "en");
        return numbers ? order : down ? -order : order; // what has no number stays last
      });
      body.append(...rows);
    });
  });
}
