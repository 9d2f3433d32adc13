// The partition that is shown: groups of fine clusters, which the slider cuts from the tree and edits change.

const LEAVES_OF_NODE = Array.from({ length: N_LEAVES }, (_, leaf) => [leaf]);
MERGES.forEach(([one, other]) => {
  LEAVES_OF_NODE.push([...LEAVES_OF_NODE[one], ...LEAVES_OF_NODE[other]].sort((a, b) => a - b));
});
const NODE_OF_KEY = new Map(LEAVES_OF_NODE.map((leaves, node) => [leaves.join(), node]));

const LEAVES_OF_CLUSTER = Array.from({ length: DATA.clusters }, () => []);
CLUSTER_OF_LEAF.forEach((cluster, leaf) => LEAVES_OF_CLUSTER[cluster].push(leaf));
const N_FOUND = LEAVES_OF_CLUSTER.filter((leaves) => leaves.length).length;

// The largest part of a cluster has its colour; the other parts have those that follow.
const STYLE_OF_LEAF = [];
{
  let next = DATA.clusters;
  for (const leaves of LEAVES_OF_CLUSTER) {
    const bySize = leaves.toSorted((a, b) => ROWS_OF_LEAF[b].length - ROWS_OF_LEAF[a].length || a - b);
    bySize.forEach((leaf, place) => { STYLE_OF_LEAF[leaf] = place ? next++ : CLUSTER_OF_LEAF[leaf]; });
  }
}

// The colour of some fine clusters: that of the largest part of the cluster that most of their images are of.
function styleOf(leaves) {
  const sizes = new Map();
  for (const leaf of leaves) {
    const cluster = CLUSTER_OF_LEAF[leaf];
    sizes.set(cluster, (sizes.get(cluster) ?? 0) + ROWS_OF_LEAF[leaf].length);
  }
  const [largest] = [...sizes].reduce((best, entry) => (entry[1] > best[1] ? entry : best));
  const own = leaves.filter((leaf) => CLUSTER_OF_LEAF[leaf] === largest);
  return STYLE_OF_LEAF[own.reduce((best, leaf) => (ROWS_OF_LEAF[leaf].length > ROWS_OF_LEAF[best].length ? leaf : best))];
}

const GROUPS = new Map(); // all that is known of a set of fine clusters, by its key

function groupOf(leaves) {
  const key = leaves.join();
  if (GROUPS.has(key)) return GROUPS.get(key);
  const rows = leaves.flatMap((leaf) => ROWS_OF_LEAF[leaf]).sort((a, b) => a - b);
  const group = { key, leaves, rows, style: styleOf(leaves), node: NODE_OF_KEY.get(key), parts: partsOf(leaves) };
  GROUPS.set(key, group);
  return group;
}

// Whole clusters by their number, and others with a letter for each of their parts: 3, 5a.
function partsOf(leaves) {
  const inside = new Set(leaves), parts = [];
  LEAVES_OF_CLUSTER.forEach((all, cluster) => {
    const own = all.filter((leaf) => inside.has(leaf));
    if (!own.length) return;
    const letters = own.map((leaf) => String.fromCharCode(97 + all.indexOf(leaf))).join("");
    parts.push({ cluster, id: own.length === all.length ? String(cluster) : cluster + letters, leaves: own });
  });
  return parts;
}

function cut(count) {
  const nodes = new Set(Array.from({ length: N_LEAVES }, (_, leaf) => leaf));
  for (let merge = 0; merge < N_LEAVES - count; merge++) {
    nodes.delete(MERGES[merge][0]);
    nodes.delete(MERGES[merge][1]);
    nodes.add(N_LEAVES + merge);
  }
  return ordered([...nodes].map((node) => groupOf(LEAVES_OF_NODE[node])));
}

function ordered(groups) {
  return groups.sort((a, b) => a.leaves[0] - b.leaves[0]);
}

// The pieces that a group can be split into: the last merge of the tree within it, or what was merged by hand.
function piecesOf(group) {
  if (group.node !== undefined) {
    if (group.node < N_LEAVES) return [];
    return MERGES[group.node - N_LEAVES].slice(0, 2).map((node) => groupOf(LEAVES_OF_NODE[node]));
  }
  const inside = new Set(group.leaves), pieces = [];
  const descend = (node) => {
    const leaves = LEAVES_OF_NODE[node];
    if (leaves.every((leaf) => inside.has(leaf))) pieces.push(groupOf(leaves));
    else if (node >= N_LEAVES) MERGES[node - N_LEAVES].slice(0, 2).forEach(descend);
  };
  descend(LEAVES_OF_NODE.length - 1);
  return pieces;
}

// How likely the images of a group are in it, and in the likeliest other one; as in findings.py.
function likeliness(group) {
  if (group.inside) return group;
  const inside = new Set(group.leaves);
  const whole = LEAVES_OF_CLUSTER.map((all) => all.length > 0 && all.every((leaf) => inside.has(leaf)));
  group.inside = new Float32Array(group.rows.length);
  group.rival = new Float32Array(group.rows.length);
  group.rivalLeaf = new Int32Array(group.rows.length).fill(-1);
  group.rows.forEach((row, place) => {
    const own = RIVALS[row * KEPT], share = SHARES[row * KEPT];
    const hasSecond = PART[row] !== LEAF[row], second = hasSecond ? PART_SHARES[2 * row + 1] / 65535 : 0;
    const secondIsIn = inside.has(PART[row]);
    let likely = share, rival = 0, rivalLeaf = -1;
    if (!whole[own]) {
      likely *= PART_SHARES[2 * row] / 65535 + (secondIsIn ? second : 0);
      if (hasSecond && !secondIsIn) [rival, rivalLeaf] = [share * second, PART[row]];
    }
    for (let other = 1; other < KEPT; other++) {
      const cluster = RIVALS[row * KEPT + other], otherShare = SHARES[row * KEPT + other];
      if (whole[cluster]) likely += otherShare;
      else if (otherShare > rival) [rival, rivalLeaf] = [otherShare, LEAVES_OF_CLUSTER[cluster][0] ?? -1];
    }
    group.inside[place] = likely;
    group.rival[place] = rival;
    group.rivalLeaf[place] = rivalLeaf;
  });
  return group;
}

// The places of the rows of a group with the highest values, of those that are not marked as wrong.
function best(group, value, count) {
  const kept = [];
  for (let place = 0; place < group.rows.length; place++) {
    const score = value(place);
    if (kept.length === count && score <= kept[count - 1][0]) continue;
    if (state.wrong.has(group.rows[place])) continue;
    let at = kept.length;
    while (at > 0 && kept[at - 1][0] < score) at--;
    kept.splice(at, 0, [score, place]);
    if (kept.length > count) kept.pop();
  }
  return kept.map(([, place]) => group.rows[place]);
}

const ORDERS = {
  typical: (group) => (place) => likeliness(group).inside[place],
  borderline: (group) => (place) => likeliness(group).rival[place] - group.inside[place],
  far: (group) => (place) => DISTANCE[group.rows[place]],
};

// The state, what changes it, and what undoes that.

const STORE = `skdiec-report-${DATA.id}`;
const start = () => ({ groups: cut(N_FOUND), names: new Map(startNames()), wrong: new Set() });
let state = { groups: [], names: new Map(), wrong: new Set() };
const past = [];
const listeners = [];
let GROUP_OF_LEAF = []; // the place of each fine cluster's group

function startNames() {
  return DATA.names.flatMap((name, cluster) => (name && LEAVES_OF_CLUSTER[cluster].length
    ? [[LEAVES_OF_CLUSTER[cluster].join(), name]] : []));
}

function nameOf(group) {
  return state.names.get(group.key) ?? "";
}

function idOf(group) {
  const ids = group.parts.map((part) => part.id);
  return ids.length > 4 ? `${ids.slice(0, 3).join(" + ")} + ${ids.length - 3} more` : ids.join(" + ");
}

// Without a name of its own, a group is called by those of its parts.
function defaultName(group) {
  const isNamed = group.parts.some((part) => state.names.has(part.leaves.join()));
  if (group.parts.length === 1 || !isNamed || group.parts.length > 4) return `Cluster ${idOf(group)}`;
  return group.parts.map((part) => state.names.get(part.leaves.join()) ?? part.id).join(" + ");
}

function titleOf(group) {
  return nameOf(group) || defaultName(group);
}

function groupOfRow(row) {
  return state.groups[GROUP_OF_LEAF[LEAF[row]]];
}

function isCut() {
  return state.groups.every((group, place) => cut(state.groups.length)[place]?.key === group.key);
}

function change(next, told, { kind = "" } = {}) {
  // Moves of the slider in a row are undone together.
  if (!kind || past.at(-1)?.kind !== kind) past.push({ state, kind });
  if (past.length > 200) past.shift();
  setState({ ...state, ...next });
  if (told) tell(told);
}

function setState(next) {
  state = next;
  GROUP_OF_LEAF = [];
  state.groups.forEach((group, place) => group.leaves.forEach((leaf) => { GROUP_OF_LEAF[leaf] = place; }));
  keep();
  listeners.forEach((listener) => listener());
}

function undo() {
  if (!past.length) return;
  setState(past.pop().state);
  tell("Undone.");
}

function keep() {
  try {
    const groups = state.groups.map((group) => group.leaves);
    localStorage.setItem(STORE, JSON.stringify({ groups, names: [...state.names], wrong: [...state.wrong] }));
  } catch { /* a browser that keeps nothing for files */ }
}

function kept() {
  try {
    const found = JSON.parse(localStorage.getItem(STORE));
    const leaves = found.groups.flat().sort((a, b) => a - b);
    if (leaves.length !== N_LEAVES || leaves.some((leaf, place) => leaf !== place)) return null;
    const wrong = new Set(found.wrong.filter((row) => row >= 0 && row < N));
    return { groups: ordered(found.groups.map(groupOf)), names: new Map(found.names), wrong };
  } catch {
    return null;
  }
}

function tell(text) {
  $("live").textContent = text;
}

function setCount(count) {
  change({ groups: cut(count) }, counted(count, "cluster", "clusters"), { kind: "slider" });
}

function split(group) {
  const pieces = piecesOf(group);
  if (!pieces.length) return;
  const groups = ordered([...state.groups.filter((other) => other !== group), ...pieces]);
  change({ groups }, `${titleOf(group)} was split into ${pieces.length}.`);
}

function merge(group, other) {
  const merged = groupOf([...group.leaves, ...other.leaves].sort((a, b) => a - b));
  const names = new Map(state.names);
  // The name of the larger one goes on, if the merged group has none from before.
  const [large, small] = group.rows.length >= other.rows.length ? [group, other] : [other, group];
  const name = nameOf(large) || nameOf(small);
  if (name && !names.has(merged.key)) names.set(merged.key, name);
  const groups = ordered([...state.groups.filter((one) => one !== group && one !== other), merged]);
  change({ groups, names }, `${titleOf(group)} and ${titleOf(other)} were merged.`);
}

function rename(group, name) {
  if (name === nameOf(group)) return;
  const names = new Map(state.names);
  if (name) names.set(group.key, name);
  else names.delete(group.key);
  change({ names }, `Named ${name || "again by its number"}.`);
}

function toggleWrong(row) {
  const wrong = new Set(state.wrong);
  if (!wrong.delete(row)) wrong.add(row);
  change({ wrong }, `${imageName(row)} is ${wrong.has(row) ? "marked as wrong" : "no longer marked as wrong"}.`);
}

function reset() {
  change(start(), "All is as the fit has found it.");
}

// The table of labels. Clusters are numbered anew, in the order in which they are shown.
function table() {
  const quoted = (text) => (/[",\r\n]/.test(text) || text !== text.trim() ? `"${text.replaceAll('"', '""')}"` : text);
  const left = state.groups.filter((group) => group.rows.some((row) => !state.wrong.has(row)));
  const place = new Map(left.map((group, number) => [group, number]));
  const lines = ["path,cluster,name"];
  for (let row = 0; row < N; row++) {
    const group = groupOfRow(row);
    const path = quoted(DATA.paths ? DATA.paths[row] : String(row));
    lines.push(state.wrong.has(row) ? `${path},,` : `${path},${place.get(group)},${quoted(nameOf(group))}`);
  }
  return { text: `${lines.join("\r\n")}\r\n`, count: left.length };
}

