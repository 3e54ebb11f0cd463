// The slices of a case: one at a time, the slider says which.
for (const figure of document.querySelectorAll(".case")) {
  const slider = figure.querySelector("input");
  const output = figure.querySelector("output");
  const images = figure.querySelectorAll("img");
  if (!slider) continue;
  const show = () => {
    images.forEach((image, index) => { image.hidden = index !== Number(slider.value); });
    const label = images[slider.value].dataset.label;
    output.value = label;
    slider.setAttribute("aria-valuetext", label);
  };
  slider.addEventListener("input", show);
  show();
}

// A heading sorts its table's rows: first upwards, then downwards; rows without a value stay last.
for (const button of document.querySelectorAll("table.sortable th button")) {
  const heading = button.closest("th");
  const body = heading.closest("table").tBodies[0];
  const value = (row) => row.cells[heading.cellIndex].dataset.value;
  button.addEventListener("click", () => {
    const direction = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    for (const other of heading.parentNode.cells) {
      if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", other === heading ? direction : "none");
    }
    const compare = (a, b) => heading.dataset.kind === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
    const rows = [...body.rows].sort((first, second) => {
      const [a, b] = [value(first), value(second)];
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
      return direction === "ascending" ? compare(a, b) : compare(b, a);
    });
    body.append(...rows);
  });
}

// What is folded on the screen is printed.
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
