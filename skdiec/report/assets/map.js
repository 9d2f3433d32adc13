// The map: points on a canvas, thumbnails where there is room, zoom and pan, search, and the epochs of the training.

const PLACES = unpackPlaces(DATA.map);
const EPOCHS = DATA.epochs && {
  epochs: DATA.epochs.epochs, rows: unpack(DATA.epochs.rows), places: unpackPlaces(DATA.epochs.places),
};
const ALL_ROWS = Uint32Array.from({ length: N }, (_, row) => row);
const MAX_ZOOM = 400, THUMBS = 220, REACH = 14;

const map = {
  canvas: $("canvas"), mode: "map", epoch: 0, zoom: 1, x: 0, y: 0, width: 0, height: 0,
  hovered: -1, group: null, hits: null, stale: true,
};
const still = matchMedia("(prefers-reduced-motion: reduce)");

// The rows that are drawn, and their places: two numbers each.
function drawn() {
  if (map.mode === "map") return { rows: ALL_ROWS, places: PLACES };
  const size = 2 * EPOCHS.rows.length, first = Math.floor(map.epoch), rest = map.epoch - first;
  const from = EPOCHS.places.subarray(first * size, (first + 1) * size);
  if (!rest) return { rows: EPOCHS.rows, places: from };
  const to = EPOCHS.places.subarray((first + 1) * size, (first + 2) * size);
  return { rows: EPOCHS.rows, places: from.map((value, i) => value + rest * (to[i] - value)) };
}

// The part of the map that is seen without zoom, the same for all epochs.
function extent() {
  const places = map.mode === "map" ? PLACES : EPOCHS.places;
  let [low, high] = [[Infinity, Infinity], [-Infinity, -Infinity]];
  for (let i = 0; i < places.length; i++) {
    low[i % 2] = Math.min(low[i % 2], places[i]);
    high[i % 2] = Math.max(high[i % 2], places[i]);
  }
  return { low, high };
}

function showWhole() {
  const { low, high } = extent();
  map.base = Math.min((map.width - 48) / (high[0] - low[0] || 1), (map.height - 48) / (high[1] - low[1] || 1));
  map.zoom = 1;
  map.x = (low[0] + high[0]) / 2;
  map.y = (low[1] + high[1]) / 2;
  redraw();
}

function toScreen(x, y) {
  const scale = map.base * map.zoom;
  return [(x - map.x) * scale + map.width / 2, (map.y - y) * scale + map.height / 2];
}

function zoomBy(factor, atX = map.width / 2, atY = map.height / 2) {
  const zoom = Math.min(MAX_ZOOM, Math.max(0.5, map.zoom * factor)), scale = map.base * map.zoom;
  const x = map.x + (atX - map.width / 2) / scale, y = map.y - (atY - map.height / 2) / scale;
  map.zoom = zoom;
  map.x = x - (atX - map.width / 2) / (map.base * zoom);
  map.y = y + (atY - map.height / 2) / (map.base * zoom);
  redraw();
}

function panBy(dx, dy) {
  map.x -= dx / (map.base * map.zoom);
  map.y += dy / (map.base * map.zoom);
  redraw();
}

function redraw() {
  if (map.stale) return;
  map.stale = true;
  requestAnimationFrame(() => { map.stale = false; drawMap(); });
}

function radius(count) {
  const room = Math.min(1, Math.sqrt(map.width * map.height / 600_000));
  const plain = Math.max(1.1, room * Math.min(4.5, 160 / Math.sqrt(count)));
  return Math.min(9, plain * map.zoom ** 0.35);
}

// Rows that stand out: those of a cluster that was chosen, or that the search has found.
function stands(row) {
  if (map.hits) return map.hits.has(row);
  return !map.group || groupOfRow(row) === map.group;
}

function drawMap() {
  const context = map.canvas.getContext("2d"), ratio = devicePixelRatio || 1;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, map.width, map.height);
  const { rows, places } = drawn(), r = radius(rows.length);
  const hasFocus = Boolean(map.hits || map.group);
  const [dim, bright] = [new Map(), new Map()], near = [];
  const scale = map.base * map.zoom, left = map.width / 2 - map.x * scale, top = map.height / 2 + map.y * scale;
  const styles = state.groups.map((group) => group.style);
  for (let i = 0; i < rows.length; i++) {
    const x = left + places[2 * i] * scale, y = top - places[2 * i + 1] * scale;
    if (x < -20 || y < -20 || x > map.width + 20 || y > map.height + 20) continue;
    if (near.length <= THUMBS) near.push([rows[i], x, y]);
    const target = hasFocus && !stands(rows[i]) ? dim : bright, style = styles[GROUP_OF_LEAF[LEAF[rows[i]]]];
    if (!target.has(style)) target.set(style, []);
    target.get(style).push(x, y);
  }
  const paintAll = (found, alpha) => {
    context.globalAlpha = alpha;
    for (const [style, points] of found) {
      context.fillStyle = colorOf(style);
      if (r < 1.6) {
        for (let i = 0; i < points.length; i += 2) context.fillRect(points[i] - r, points[i + 1] - r, 2 * r, 2 * r);
        continue;
      }
      context.beginPath();
      for (let i = 0; i < points.length; i += 2) outline(context, shapeOf(style), points[i], points[i + 1], r);
      context.fill();
    }
    context.globalAlpha = 1;
  };
  paintAll(dim, 0.12);
  paintAll(bright, 0.85);
  if (near.length <= THUMBS && map.zoom > 1.5) drawNear(context, near);
  drawNames(context, rows, places);
  if (map.hovered >= 0) drawRing(context, rows, places);
  // A finger scrolls the page up and down past the whole map, and moves the map once it is zoomed.
  map.canvas.style.touchAction = map.zoom > 1.01 ? "none" : "pan-y";
}

function drawNear(context, near) {
  const size = Math.min(72, Math.max(26, Math.sqrt(map.width * map.height / near.length) * 0.55));
  for (const [row, x, y] of near) {
    const found = thumbnail(row);
    const picture = found && found.level.loaded?.[found.number];
    if (found && !picture) {
      sheet(found.level, found.number).then((loaded) => {
        (found.level.loaded ??= [])[found.number] = loaded;
        redraw();
      });
    }
    if (!picture) continue;
    const { left, top, width, height } = found, down = size * height / width;
    context.globalAlpha = stands(row) ? 1 : 0.25;
    context.imageSmoothingEnabled = width > 32;
    context.drawImage(picture, left, top, width, height, x - size / 2, y - down / 2, size, down);
    context.lineWidth = 2;
    context.strokeStyle = colorOf(groupOfRow(row).style);
    context.strokeRect(x - size / 2, y - down / 2, size, down);
  }
  context.globalAlpha = 1;
}

// The name of each cluster at its median.
function drawNames(context, rows, places) {
  const found = state.groups.map(() => [[], []]);
  for (let i = 0; i < rows.length; i++) {
    const [xs, ys] = found[GROUP_OF_LEAF[LEAF[rows[i]]]];
    xs.push(places[2 * i]);
    ys.push(places[2 * i + 1]);
  }
  const middle = (values) => Float32Array.from(values).sort()[values.length >> 1];
  const ink = getComputedStyle(document.body);
  context.font = "600 13px ui-sans-serif, system-ui, sans-serif";
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.lineJoin = "round";
  context.lineWidth = 4;
  const named = state.groups.flatMap((group, place) => {
    if (!found[place][0].length || (map.group && map.group !== group)) return [];
    const [x, y] = toScreen(middle(found[place][0]), middle(found[place][1]));
    return x > 0 && y > 0 && x < map.width && y < map.height ? [[group, x, y]] : [];
  });
  if (named.length > map.width / 16) return; // too many to be read
  named.forEach(([group, x, y]) => {
    const text = (nameOf(group) || idOf(group)).slice(0, 24);
    context.strokeStyle = ink.backgroundColor;
    context.strokeText(text, x, y);
    context.fillStyle = ink.color;
    context.fillText(text, x, y);
  });
}

function placeOf(row, rows, places) {
  const i = map.mode === "map" ? row : rows.indexOf(row);
  return i < 0 ? null : toScreen(places[2 * i], places[2 * i + 1]);
}

function drawRing(context, rows, places) {
  const at = placeOf(map.hovered, rows, places);
  if (!at) return;
  context.beginPath();
  context.arc(...at, Math.max(7, radius(rows.length) + 4), 0, 2 * Math.PI);
  context.lineWidth = 2.5;
  context.strokeStyle = getComputedStyle(document.body).color;
  context.stroke();
}

// The nearest image to a place on the screen, within reach.
function nearest(x, y, reach) {
  const { rows, places } = drawn(), hasFocus = Boolean(map.hits || map.group);
  let found = -1, least = reach ** 2;
  for (let i = 0; i < rows.length; i++) {
    const at = toScreen(places[2 * i], places[2 * i + 1]);
    const square = (at[0] - x) ** 2 + (at[1] - y) ** 2;
    if (square < least && (!hasFocus || stands(rows[i]))) [found, least] = [rows[i], square];
  }
  return found;
}

function hover(row, { follow = false } = {}) {
  if (map.hovered !== row) {
    map.hovered = row;
    redraw();
  }
  if (row < 0) return hideTip();
  const { rows, places } = drawn(), at = placeOf(row, rows, places);
  if (!at) return hideTip();
  if (follow && (at[0] < 30 || at[1] < 30 || at[0] > map.width - 30 || at[1] > map.height - 30)) {
    panBy(map.width / 2 - at[0], map.height / 2 - at[1]);
    return hover(row);
  }
  const box = map.canvas.getBoundingClientRect();
  showTip(row, box.left + at[0], box.top + at[1]);
  if (follow) tell(`${imageName(row)}, ${titleOf(groupOfRow(row))}`);
}

// The next image in a direction: the nearest one within a quarter of the circle around it.
function next(dx, dy) {
  const { rows, places } = drawn();
  const from = map.hovered >= 0 && placeOf(map.hovered, rows, places);
  if (!from) return nearest(map.width / 2, map.height / 2, Infinity);
  let found = map.hovered, least = Infinity;
  for (let i = 0; i < rows.length; i++) {
    const at = toScreen(places[2 * i], places[2 * i + 1]);
    const ahead = (at[0] - from[0]) * dx + (at[1] - from[1]) * dy;
    const aside = Math.abs((at[0] - from[0]) * dy) + Math.abs((at[1] - from[1]) * dx);
    if (ahead > 0.5 && aside <= ahead && ahead + aside < least && stands(rows[i])) [found, least] = [rows[i], ahead + aside];
  }
  return found;
}

function showOnMap(group) {
  map.group = group;
  setHits("");
  $("query").value = "";
  showLegend();
  redraw();
  $("map").scrollIntoView();
  map.canvas.focus({ preventScroll: true });
}

function centreOn(row) {
  if (map.mode === "epochs" && !EPOCHS.rows.includes(row)) setMode("map");
  $("canvas").scrollIntoView({ block: "center", behavior: "instant" });
  const { rows, places } = drawn(), i = map.mode === "map" ? row : rows.indexOf(row);
  map.zoom = Math.max(map.zoom, 6);
  [map.x, map.y] = [places[2 * i], places[2 * i + 1]];
  redraw();
  map.canvas.focus({ preventScroll: true });
  hover(row);
}

// Search

function setHits(query) {
  const wanted = query.trim().toLowerCase();
  map.hits = wanted ? new Set() : null;
  if (wanted) for (let row = 0; row < N; row++) if (imageName(row).toLowerCase().includes(wanted)) map.hits.add(row);
  $("hits").textContent = map.hits ? counted(map.hits.size, "image", "images") : "";
  const rows = map.hits ? [...map.hits].slice(0, 24) : [];
  $("results").hidden = !rows.length;
  $("results").replaceChildren(...rows.map((row) => {
    const canvas = make("canvas");
    drawThumbnail(canvas, row, false);
    return make("li", {}, make("button", { type: "button", title: imageName(row), onclick: () => openViewer(row, rows) }, canvas,
      make("span", { textContent: imageName(row).split("/").at(-1) })));
  }));
  redraw();
}

$("query").addEventListener("input", () => setHits($("query").value));
$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const [first] = map.hits ?? [];
  if (first !== undefined) centreOn(first);
});

// Legend: a click shows one cluster alone.

function showLegend() {
  if (map.group && !state.groups.includes(map.group)) map.group = null;
  $("legend").replaceChildren(...state.groups.map((group) => {
    const button = make("button", { type: "button", "aria-pressed": map.group === group }, mark(group.style),
      make("span", { textContent: titleOf(group) }), make("small", { textContent: group.rows.length.toLocaleString("en") }));
    button.addEventListener("click", () => {
      const place = state.groups.indexOf(group);
      map.group = map.group === group ? null : group;
      showLegend();
      redraw();
      $("legend").children[place].focus();
    });
    return button;
  }));
}

// Epochs

function setMode(mode) {
  map.mode = mode;
  document.querySelector(`[name=mode][value=${mode}]`).checked = true;
  $("epoch-tools").hidden = mode === "map";
  map.hovered = -1;
  hideTip();
  showWhole();
}

function setEpoch(place) {
  map.epoch = place;
  $("epoch").value = Math.round(place);
  const epoch = EPOCHS.epochs[Math.round(place)];
  $("epoch-value").textContent = epoch ? String(epoch) : "0, before training";
  redraw();
}

let playing = 0;

function glideTo(target, done = () => {}) {
  cancelAnimationFrame(playing);
  if (still.matches) { setEpoch(target); return done(); }
  const from = map.epoch, began = performance.now(), length = Math.max(350, 450 * Math.abs(target - from));
  const frame = (now) => {
    const share = Math.min(1, (now - began) / length);
    setEpoch(from + (target - from) * share);
    playing = share < 1 ? requestAnimationFrame(frame) : 0;
    if (share === 1) done();
  };
  playing = requestAnimationFrame(frame);
}

if (EPOCHS) {
  $("modes").hidden = false;
  $("epoch").max = EPOCHS.epochs.length - 1;
  setEpoch(0);
  document.querySelectorAll("[name=mode]").forEach((radio) => radio.addEventListener("change", () => setMode(radio.value)));
  $("epoch").addEventListener("input", () => glideTo(Number($("epoch").value)));
  $("play").addEventListener("click", () => {
    if (playing) { cancelAnimationFrame(playing); playing = 0; $("play").textContent = "Play"; return; }
    if (map.epoch >= EPOCHS.epochs.length - 1) setEpoch(0);
    $("play").textContent = "Pause";
    glideTo(EPOCHS.epochs.length - 1, () => { $("play").textContent = "Play"; });
  });
}

// Pointers: one drags, two pinch.

const pointers = new Map();
let dragged = 0;

map.canvas.addEventListener("pointerdown", (event) => {
  map.canvas.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
  if (pointers.size === 1) dragged = 0;
});
map.canvas.addEventListener("pointermove", (event) => {
  const before = pointers.get(event.pointerId), at = [event.offsetX, event.offsetY];
  if (!before) {
    hover(nearest(...at, REACH));
    return;
  }
  if (pointers.size === 2) {
    const [other] = [...pointers].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
    const distance = (place) => Math.hypot(place[0] - other[0], place[1] - other[1]) || 1;
    zoomBy(distance(at) / distance(before), (at[0] + other[0]) / 2, (at[1] + other[1]) / 2);
    dragged = Infinity;
  } else {
    dragged += Math.hypot(at[0] - before[0], at[1] - before[1]);
    if (dragged > 3) {
      hideTip();
      panBy(at[0] - before[0], at[1] - before[1]);
    }
  }
  pointers.set(event.pointerId, at);
});
const lift = (event) => {
  const wasDown = pointers.delete(event.pointerId);
  if (event.type !== "pointerup" || !wasDown || dragged > 5) return;
  const row = nearest(event.offsetX, event.offsetY, event.pointerType === "mouse" ? REACH : 24);
  // A finger cannot hover: its first touch shows, the second one opens.
  if (row >= 0 && (event.pointerType === "mouse" || (map.hovered === row && !$("tip").hidden))) openViewer(row);
  else hover(row);
};
map.canvas.addEventListener("pointerup", lift);
map.canvas.addEventListener("pointercancel", lift);
map.canvas.addEventListener("pointerleave", () => hover(-1));
// Whoever scrolls past the map is not held up by it: it takes the wheel once it was clicked. Pinching has ctrlKey.
map.canvas.addEventListener("wheel", (event) => {
  if (document.activeElement !== map.canvas && !event.ctrlKey && !event.metaKey) return;
  event.preventDefault();
  zoomBy(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0018)), event.offsetX, event.offsetY);
}, { passive: false });
map.canvas.addEventListener("keydown", (event) => {
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const arrow = arrows[event.key];
  if (arrow && event.shiftKey) panBy(-60 * arrow[0], -60 * arrow[1]);
  else if (arrow) hover(next(...arrow), { follow: true });
  else if (event.key === "+" || event.key === "=") zoomBy(1.5);
  else if (event.key === "-") zoomBy(1 / 1.5);
  else if (event.key === "0") showWhole();
  else if (event.key === "Enter" && map.hovered >= 0) openViewer(map.hovered);
  else if (event.key === "Escape") hover(-1);
  else return;
  event.preventDefault();
});
map.canvas.addEventListener("blur", () => hover(-1));
$("zoom-in").addEventListener("click", () => zoomBy(1.6));
$("zoom-out").addEventListener("click", () => zoomBy(1 / 1.6));
$("zoom-all").addEventListener("click", showWhole);

function sizeMap() {
  const box = map.canvas.getBoundingClientRect(), ratio = devicePixelRatio || 1;
  if (!box.width || (box.width === map.width && box.height === map.height)) return;
  [map.width, map.height] = [box.width, box.height];
  [map.canvas.width, map.canvas.height] = [box.width * ratio, box.height * ratio];
  map.stale = false;
  showWhole();
}

// Where the point of an image is on the page, for whoever drives this page from outside.
map.canvas.placeOf = (row) => {
  const { rows, places } = drawn(), box = map.canvas.getBoundingClientRect(), at = placeOf(row, rows, places);
  return at && [box.left + at[0], box.top + at[1]];
};

