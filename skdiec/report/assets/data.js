// What the report holds: numbers, names and thumbnails.

const $ = (id) => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function svg(tag, attributes = {}, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text) element.textContent = text;
  return element;
}

const DATA = JSON.parse($("data").textContent);

// Numbers are little-endian, as on every machine that browsers run on.
function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed.data), (character) => character.charCodeAt(0));
  return packed.type === "u2" ? new Uint16Array(bytes.buffer) : new Uint32Array(bytes.buffer);
}

function unpackPlaces(packed) {
  const scaled = unpack(packed), places = new Float32Array(scaled.length);
  for (let i = 0; i < scaled.length; i++) places[i] = packed.low[i % 2] + scaled[i] / 65535 * packed.width;
  return places;
}

const N = DATA.n;
const LEAF = unpack(DATA.leaf);
const RIVALS = unpack(DATA.rivals); // the likeliest clusters of each image
const SHARES = unpack(DATA.shares); // their probabilities, 65535 for 1
const KEPT = RIVALS.length / N;
const PART = unpack(DATA.part); // the second likeliest part of its cluster
const PART_SHARES = unpack(DATA.partShares);
const DISTANCE = unpack(DATA.distance); // to its centre, 256 for the cluster's median
const MERGES = DATA.tree.merges;
const CLUSTER_OF_LEAF = DATA.tree.clusters;
const N_LEAVES = CLUSTER_OF_LEAF.length;

const ROWS_OF_LEAF = Array.from({ length: N_LEAVES }, () => []);
for (let row = 0; row < N; row++) ROWS_OF_LEAF[LEAF[row]].push(row);

function imageName(row) {
  return DATA.paths ? DATA.paths[row] : `image ${row}`;
}

function percent(share) {
  return share >= 0.995 ? "100 %" : share < 0.005 ? "0 %" : `${Math.round(100 * share)} %`;
}

function counted(count, one, many) {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}

// Thumbnails: the first level has all images, a second one has some at a higher resolution.

const LEVELS = DATA.levels.map((level, number) => {
  const rows = level.rows && unpack(level.rows);
  return { ...level, number, places: rows && new Map(Array.from(rows, (row, place) => [row, place])), pictures: [] };
});

function sheet(level, number) {
  level.pictures[number] ??= (async () => {
    if (document.readyState === "loading") {
      await new Promise((ready) => document.addEventListener("DOMContentLoaded", ready, { once: true }));
    }
    const picture = new Image();
    picture.src = `data:${level.type};base64,${$(`sheet-${level.number}-${number}`).textContent}`;
    await picture.decode();
    return picture;
  })();
  return level.pictures[number];
}

// Where the thumbnail of an image is: the sharpest there is, or null.
function thumbnail(row, sharp = true) {
  for (const level of sharp ? LEVELS.toReversed() : LEVELS) {
    const place = level.places ? level.places.get(row) : row;
    if (place === undefined) continue;
    const within = place % level.perSheet;
    const { width, height, columns } = level;
    const left = within % columns * width, top = Math.floor(within / columns) * height;
    return { level, number: Math.floor(place / level.perSheet), left, top, width, height };
  }
  return null;
}

async function drawThumbnail(canvas, row, sharp = true) {
  const found = thumbnail(row, sharp) ?? { width: LEVELS[0].width, height: LEVELS[0].height };
  canvas.width = found.width;
  canvas.height = found.height;
  canvas.classList.toggle("pixels", found.width <= 32);
  canvas.dataset.row = row;
  delete canvas.dataset.drawn;
  if (!found.level) return;
  const picture = await sheet(found.level, found.number);
  if (canvas.dataset.row !== String(row)) return;
  const { left, top, width, height } = found;
  canvas.getContext("2d").drawImage(picture, left, top, width, height, 0, 0, width, height);
  canvas.dataset.drawn = row;
}

// Colours that people with any colour vision tell apart: those of Petroff (arXiv 2107.02270), lighter on dark pages.

const PALETTES = {
  light: ["#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"],
  dark: ["#58a3e6", "#ffb02e", "#ef6a50", "#a9b7b5", "#bb7ae2", "#c58c7b", "#f58a3c", "#c9bd84", "#8f94a1", "#92dadd"],
};
const SHAPES = ["circle", "square", "triangle", "diamond"];
const darkPage = matchMedia("(prefers-color-scheme: dark)");

function colorOf(style) {
  return PALETTES[darkPage.matches ? "dark" : "light"][style % 10];
}

function shapeOf(style) {
  return SHAPES[Math.floor(style / 10) % SHAPES.length];
}

// Add the outline of a mark to the path of a canvas.
function outline(context, shape, x, y, r) {
  if (shape === "circle") {
    context.moveTo(x + r, y);
    context.arc(x, y, r, 0, 2 * Math.PI);
  } else if (shape === "square") {
    context.rect(x - 0.9 * r, y - 0.9 * r, 1.8 * r, 1.8 * r);
  } else {
    const points = shape === "triangle" ? [[0, -1.15], [1.1, 0.85], [-1.1, 0.85]] : [[0, -1.25], [1.25, 0], [0, 1.25], [-1.25, 0]];
    points.forEach(([dx, dy], i) => context[i ? "lineTo" : "moveTo"](x + r * dx, y + r * dy));
    context.closePath();
  }
}

// The mark of a cluster: its colour and shape.
function mark(style) {
  const canvas = make("canvas", { width: 28, height: 28, className: "mark" });
  canvas.setAttribute("aria-hidden", "true");
  canvas.dataset.style = style;
  paintMark(canvas);
  return canvas;
}

function paintMark(canvas) {
  const context = canvas.getContext("2d"), style = Number(canvas.dataset.style);
  context.clearRect(0, 0, 28, 28);
  context.beginPath();
  outline(context, shapeOf(style), 14, 14, 10.5);
  context.fillStyle = colorOf(style);
  context.fill();
}

