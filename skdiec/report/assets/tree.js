// The tree of clusters: leaves from left to right, and from the top down as many clusters as there are at that height.

const TREE = { order: [], x: [], level: [], width: 0, height: 0 };
{
  const pending = [LEAVES_OF_NODE.length - 1];
  while (pending.length) {
    const node = pending.pop();
    if (node < N_LEAVES) TREE.order.push(node);
    else pending.push(MERGES[node - N_LEAVES][1], MERGES[node - N_LEAVES][0]);
  }
  TREE.order.forEach((leaf, place) => { TREE.x[leaf] = (place + 0.5) / N_LEAVES; });
  MERGES.forEach(([one, other], merge) => { TREE.x[N_LEAVES + merge] = (TREE.x[one] + TREE.x[other]) / 2; });
}

// The height of a number of clusters, between 0 at the top and 1: few clusters have more room than many.
function heightOf(count) {
  return N_LEAVES < 2 ? 0 : Math.log(count) / Math.log(N_LEAVES);
}

function drawTree() {
  const root = $("tree"), box = root.getBoundingClientRect();
  const width = Math.max(200, box.width), height = box.height, top = 10, bottom = height - 26, left = 34;
  TREE.top = top;
  TREE.bottom = bottom;
  const across = (node) => left + TREE.x[node] * (width - left);
  const down = (count) => top + heightOf(count) * (bottom - top);
  // A merge brings `count` clusters, where there was one more: its bar is halfway.
  const levelOf = (node) => (node < N_LEAVES ? bottom : (down(LEAVES_OF_NODE.length - node) + down(LEAVES_OF_NODE.length - node + 1)) / 2);
  const above = [], paths = new Map();
  MERGES.forEach(([one, other], merge) => {
    const node = N_LEAVES + merge, y = levelOf(node);
    const place = GROUP_OF_LEAF[LEAVES_OF_NODE[node][0]];
    const isWithin = LEAVES_OF_NODE[node].every((leaf) => GROUP_OF_LEAF[leaf] === place);
    for (const child of [one, other]) {
      const path = `M${across(node).toFixed(1)} ${y.toFixed(1)}H${across(child).toFixed(1)}V${levelOf(child).toFixed(1)}`;
      if (isWithin) paths.set(place, (paths.get(place) ?? "") + path);
      else above.push(path);
    }
  });
  const parts = [svg("path", { class: "above", d: above.join("") })];
  const showIds = state.groups.length <= Math.min(60, width / 16);
  state.groups.forEach((group, place) => {
    const color = colorOf(group.style);
    parts.push(svg("path", { d: paths.get(place) ?? "", stroke: color }));
    // Bars under the leaves, one for each run of them.
    const places = group.leaves.map((leaf) => TREE.order.indexOf(leaf)).sort((a, b) => a - b);
    let from = 0;
    places.forEach((at, i) => {
      if (places[i + 1] === at + 1) return;
      const start = left + places[from] / N_LEAVES * (width - left), end = left + (at + 1) / N_LEAVES * (width - left);
      parts.push(svg("rect", { x: start + 1, y: bottom + 2, width: Math.max(1, end - start - 2), height: 5, fill: color }));
      if (showIds && group.parts.length < 3) parts.push(svg("text", { x: (start + end) / 2, y: bottom + 20 }, idOf(group)));
      from = i + 1;
    });
  });
  const count = state.groups.length, y = down(count);
  parts.push(svg("line", { class: "line", x1: left - 8, x2: width, y1: y, y2: y }));
  parts.push(svg("text", { class: "axis", x: 0, y: Math.min(bottom, y + 4) }, String(count)));
  root.replaceChildren(...parts);
  root.setAttribute("aria-label", `Tree of clusters, cut at ${counted(count, "cluster", "clusters")}`);
  $("tree-note").textContent = nextMerge();
}

function nextMerge() {
  const count = state.groups.length;
  if (!isCut()) return "Edited by hand. The slider goes back to the tree.";
  if (count < 2) return "All images in one cluster.";
  const [one, other, height] = MERGES[N_LEAVES - count];
  const names = [one, other].map((node) => titleOf(groupOf(LEAVES_OF_NODE[node])));
  return `With one cluster fewer, ${names[0]} and ${names[1]} would be merged: ${(100 * (1 - height)).toFixed(1)} % of their edges in the `
    + "neighbourhood graph join them.";
}

function countAt(event) {
  const box = $("tree").getBoundingClientRect();
  const share = (event.clientY - box.top - TREE.top) / (TREE.bottom - TREE.top);
  return Math.round(Math.min(N_LEAVES, Math.max(1, N_LEAVES ** share)));
}

$("tree").addEventListener("pointerdown", (event) => {
  $("tree").setPointerCapture(event.pointerId);
  setCount(countAt(event));
});
$("tree").addEventListener("pointermove", (event) => {
  if (event.buttons & 1 && countAt(event) !== state.groups.length) setCount(countAt(event));
});

