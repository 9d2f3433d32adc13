// What starts it all, and what all parts share: the slider, undo, and the table of labels.

function showDock() {
  const count = state.groups.length;
  $("k").value = count;
  $("k").setAttribute("aria-valuetext", counted(count, "cluster", "clusters"));
  $("count").replaceChildren(counted(count, "cluster", "clusters"), ...(isCut() ? [] : [make("small", { textContent: "edited by hand" })]));
  $("undo").disabled = !past.length;
}

function download() {
  const { text, count } = table();
  const address = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  make("a", { href: address, download: "labels.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
  tell(`Labels of ${counted(N, "image", "images")} in ${counted(count, "cluster", "clusters")} were saved.`);
}

document.addEventListener("click", (event) => {
  const action = event.target.closest("[data-do]")?.dataset.do;
  if (action) ({ undo, download, reset })[action]();
});
document.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key === "z" && !event.target.closest("input, textarea")) {
    event.preventDefault();
    undo();
  }
});

$("k").max = N_LEAVES;
$("k").disabled = N_LEAVES < 2;
$("k").addEventListener("input", () => {
  const count = Number($("k").value);
  if (count !== state.groups.length || !isCut()) setCount(count);
});

listeners.push(showDock, showCards, drawTree, showLegend, redraw, showEdits, () => refreshThumbs($("odd")), () => refreshThumbs($("all")));
setState(kept() ?? start());
showSearch();
showCurves();
showNumber();
showOdd();
new ResizeObserver(sizeMap).observe(map.canvas);
new ResizeObserver(drawTree).observe($("tree"));
darkPage.addEventListener("change", () => {
  document.querySelectorAll(".mark").forEach(paintMark);
  drawTree();
  redraw();
});
addEventListener("beforeprint", () => document.querySelectorAll(".thumb").forEach(paint));
// After the frame in which all that is in sight was drawn: milliseconds since the file was opened.
requestAnimationFrame(() => requestAnimationFrame(() => {
  document.documentElement.dataset.ready = Math.round(performance.now());
}));
