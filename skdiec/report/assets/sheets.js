// Contact sheets: a card for each cluster, strips of thumbnails, the viewer and the hint under the pointer.

const TYPICAL = 12, BORDERLINE = 6, MORE = 120;

const seen = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    seen.unobserve(target);
    paint(target);
  }
}, { rootMargin: "400px" });

function paint(thumb) {
  drawThumbnail(thumb.firstChild, Number(thumb.dataset.row));
}

function thumb(row) {
  const canvas = make("canvas", { width: LEVELS[0].width, height: LEVELS[0].height });
  const button = make("button", { type: "button", className: "thumb", tabIndex: -1 }, canvas);
  button.dataset.row = row;
  describe(button);
  seen.observe(button);
  return button;
}

// Fill a strip. Tab reaches its first image; arrow keys go on from there.
function fillStrip(strip, rows, label) {
  strip.setAttribute("role", "group");
  strip.setAttribute("aria-label", label);
  strip.replaceChildren(...rows.map(thumb));
  if (strip.firstChild) strip.firstChild.tabIndex = 0;
  return strip;
}

function refreshThumbs(root) {
  for (const button of root.querySelectorAll(".thumb")) describe(button);
}

function describe(button) {
  const row = Number(button.dataset.row), isWrong = state.wrong.has(row);
  button.classList.toggle("wrong", isWrong);
  button.setAttribute("aria-label", `${imageName(row)}, ${titleOf(groupOfRow(row))}${isWrong ? ", marked as wrong" : ""}`);
}

document.addEventListener("keydown", (event) => {
  const own = event.target.closest?.(".thumb");
  if (!own) return;
  const strip = own.closest(".strip, .groups"), all = [...strip.querySelectorAll(".thumb")];
  const columns = all.filter((one) => one.offsetTop === all[0].offsetTop).length;
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -all.length, End: all.length };
  if (event.key === "x" || event.key === "Delete") toggleWrong(Number(own.dataset.row));
  else if (event.key in steps) {
    const target = all[Math.min(all.length - 1, Math.max(0, all.indexOf(own) + steps[event.key]))];
    own.tabIndex = -1;
    target.tabIndex = 0;
    target.focus();
  } else return;
  event.preventDefault();
});

document.addEventListener("click", (event) => {
  const own = event.target.closest(".thumb");
  if (!own) return;
  const rows = [...own.closest(".strip, .groups").querySelectorAll(".thumb")].map((one) => Number(one.dataset.row));
  openViewer(Number(own.dataset.row), rows);
});

// Cards

const CARDS = new Map(); // by the key of their group

function cardOf(group) {
  const name = make("input", { className: "name", maxLength: 120, spellcheck: false, autocomplete: "off" });
  name.addEventListener("change", () => rename(group, name.value.trim()));
  name.addEventListener("keydown", (event) => {
    if (event.key === "Enter") name.blur();
    if (event.key === "Escape") { name.value = nameOf(group); name.blur(); }
  });
  const size = make("span", { className: "size" });
  const typical = make("div", { className: "strip" }), borderline = make("div", { className: "strip" });
  const others = make("select", { "aria-label": "Merge with another cluster" });
  others.addEventListener("change", () => {
    const other = state.groups.find((one) => one.key === others.value);
    if (other) merge(group, other);
  });
  // Filled when it is needed: with many clusters, all of these lists would be most of the page.
  const fill = () => {
    if (others.options.length > 1) return;
    others.append(...closest(group).map((other) => make("option", { value: other.key, textContent: titleOf(other) })));
  };
  others.addEventListener("pointerdown", fill);
  others.addEventListener("focus", fill);
  const splits = make("button", { type: "button", textContent: "Split", onclick: () => split(group) });
  const card = make("article", { className: "card" },
    make("header", {}, mark(group.style), name, size),
    make("h4", { textContent: "Typical" }), typical,
    make("h4", { textContent: "Borderline" }), borderline,
    make("div", { className: "buttons" },
      make("button", { type: "button", textContent: "All", title: "All images of this cluster", onclick: () => openAll(group) }),
      splits, others,
      make("button", { type: "button", textContent: "Map", title: "Show on the map", onclick: () => showOnMap(group) })));
  const update = () => {
    const wrong = group.rows.filter((row) => state.wrong.has(row));
    card.setAttribute("aria-label", titleOf(group));
    card.dataset.key = group.key;
    card.dataset.size = group.rows.length;
    name.value = nameOf(group);
    name.placeholder = defaultName(group);
    name.setAttribute("aria-label", `Name of ${defaultName(group)}`);
    size.textContent = counted(group.rows.length, "image", "images") + (wrong.length ? `, ${wrong.length} wrong` : "");
    const pieces = piecesOf(group);
    splits.disabled = !pieces.length;
    splits.title = pieces.length ? `Into ${pieces.map(idOf).join(" and ")}` : "The tree goes no further";
    others.replaceChildren(make("option", { value: "", textContent: "Merge with …" }));
    others.disabled = state.groups.length < 2;
    if (typical.firstChild) return refreshThumbs(card); // an image that was marked stays where it is, to be unmarked
    const first = best(group, ORDERS.typical(group), TYPICAL);
    const shown = new Set(first);
    const last = best(group, ORDERS.borderline(group), TYPICAL + BORDERLINE).filter((row) => !shown.has(row));
    fillStrip(typical, first, `Typical images of ${titleOf(group)}`);
    fillStrip(borderline, last.slice(0, BORDERLINE), `Borderline images of ${titleOf(group)}`);
    borderline.hidden = borderline.previousSibling.hidden = !last.length;
  };
  return { card, update };
}

// The other groups, those first that most of the images are torn to.
function closest(group) {
  likeliness(group);
  const torn = new Map(state.groups.map((other) => [other, 0]));
  group.rivalLeaf.forEach((leaf, place) => {
    const other = leaf < 0 ? undefined : state.groups[GROUP_OF_LEAF[leaf]];
    if (other && other !== group) torn.set(other, torn.get(other) + group.rival[place]);
  });
  torn.delete(group);
  return [...torn].sort((a, b) => b[1] - a[1]).map(([other]) => other);
}

function showCards() {
  const focused = document.activeElement?.closest?.(".card")?.dataset.key;
  const cards = state.groups.map((group) => {
    if (!CARDS.has(group.key)) CARDS.set(group.key, cardOf(group));
    return CARDS.get(group.key);
  });
  const wanted = cards.map(({ card }) => card), root = $("cards");
  if (wanted.length !== root.children.length || wanted.some((card, place) => root.children[place] !== card)) {
    root.replaceChildren(...wanted);
  }
  cards.forEach(({ update }) => update());
  if (focused !== undefined && !CARDS.get(focused)?.card.isConnected) {
    const leaf = Number(focused.split(",")[0]);
    CARDS.get(state.groups[GROUP_OF_LEAF[leaf]].key).card.querySelector("button:not(.thumb)").focus();
  }
}

// The viewer

let viewed = { row: -1, rows: [] };

function openViewer(row, rows = [row]) {
  viewed = { row, rows };
  hideTip();
  view();
  if (!$("viewer").open) $("viewer").showModal();
}

function view() {
  const { row, rows } = viewed, dialog = $("viewer"), group = likeliness(groupOfRow(row));
  const place = group.rows.indexOf(row);
  drawThumbnail(dialog.querySelector("canvas"), row);
  dialog.querySelector("canvas").setAttribute("role", "img");
  dialog.querySelector("canvas").setAttribute("aria-label", imageName(row));
  dialog.querySelector("h3").textContent = imageName(row);
  const fact = (name, ...value) => [make("dt", { textContent: name }), make("dd", {}, ...value)];
  const rivalLeaf = group.rivalLeaf[place], rival = rivalLeaf < 0 ? null : state.groups[GROUP_OF_LEAF[rivalLeaf]];
  dialog.querySelector(".facts").replaceChildren(
    ...fact("cluster", mark(group.style), titleOf(group)),
    ...fact("probability", percent(group.inside[place] / 65535)),
    ...(rival && rival !== group ? fact("next", mark(rival.style), `${titleOf(rival)}, ${percent(group.rival[place] / 65535)}`) : []),
    ...fact("from the centre", `${(DISTANCE[row] / 256).toFixed(2)} times the median`),
    ...fact("row", row.toLocaleString("en")));
  const isWrong = state.wrong.has(row), button = dialog.querySelector("[data-view=wrong]");
  button.setAttribute("aria-pressed", isWrong);
  button.textContent = isWrong ? "Marked as wrong" : "Mark as wrong";
  dialog.querySelector("[data-view=previous]").disabled = rows.indexOf(row) <= 0;
  dialog.querySelector("[data-view=next]").disabled = rows.indexOf(row) >= rows.length - 1;
}

function step(by) {
  const row = viewed.rows[viewed.rows.indexOf(viewed.row) + by];
  if (row === undefined) return;
  viewed.row = row;
  view();
}

$("viewer").addEventListener("click", (event) => {
  const action = event.target.dataset?.view;
  if (action === "wrong") { toggleWrong(viewed.row); view(); }
  if (action === "previous") step(-1);
  if (action === "next") step(1);
  if (action === "map") { $("viewer").close(); $("all").close(); centreOn(viewed.row); }
  if (event.target === $("viewer")) $("viewer").close();
});
$("viewer").addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
  if (event.key === "x") { toggleWrong(viewed.row); view(); }
});

// All images of a cluster

let listed = { group: null, rows: [], count: 0 };

function openAll(group) {
  const order = $("all-order").value, value = ORDERS[order](group);
  const places = Array.from(group.rows, (_, place) => place);
  const values = Float32Array.from(places, value);
  places.sort((a, b) => values[b] - values[a] || a - b);
  listed = { group, rows: places.map((place) => group.rows[place]), count: MORE };
  $("all-title").textContent = `${titleOf(group)}, ${counted(group.rows.length, "image", "images")}`;
  showAll();
  if (!$("all").open) $("all").showModal();
}

function showAll() {
  fillStrip($("all-strip"), listed.rows.slice(0, listed.count), `Images of ${titleOf(listed.group)}`);
  $("all-more").hidden = listed.count >= listed.rows.length;
}

$("all-order").addEventListener("change", () => openAll(listed.group));
$("all-more").addEventListener("click", () => {
  const first = listed.count;
  listed.count += MORE;
  $("all-strip").append(...listed.rows.slice(first, listed.count).map(thumb));
  $("all-more").hidden = listed.count >= listed.rows.length;
});
$("all").addEventListener("click", (event) => { if (event.target === $("all")) $("all").close(); });

// The hint under the pointer

function showTip(row, x, y) {
  const tip = $("tip"), group = groupOfRow(row);
  if (tip.dataset.row !== String(row) || tip.hidden) {
    tip.dataset.row = row;
    drawThumbnail(tip.querySelector("canvas"), row);
    tip.querySelector("p").replaceChildren(
      make("b", {}, mark(group.style), titleOf(group)), make("span", { textContent: imageName(row) }));
    tip.hidden = false;
  }
  const box = tip.getBoundingClientRect(), gap = 14;
  const left = x + gap + box.width > innerWidth ? x - gap - box.width : x + gap;
  const top = y + gap + box.height > innerHeight ? y - gap - box.height : y + gap;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, top)}px`;
}

function hideTip() {
  $("tip").hidden = true;
}

document.addEventListener("pointerover", (event) => {
  const own = event.target.closest?.(".thumb");
  if (own && event.pointerType === "mouse" && !own.closest("dialog")) showTip(Number(own.dataset.row), event.clientX, event.clientY);
  else if (event.target.id !== "canvas") hideTip();
});
addEventListener("scroll", hideTip, { passive: true });

// Odd images, and those that were marked as wrong

function showOdd() {
  const { count, rows } = DATA.far;
  $("far-note").textContent = `${count ? counted(count, "image", "images") : "None"}. Such an image is far from the nearest centre `
    + "(further than the upper quartile of its cluster by more than three times the spread between the quartiles), "
    + "and its cluster is less likely than all others together."
    + (count > rows.length ? ` The furthest ${rows.length} are shown.` : "");
  fillStrip($("far"), rows, "Images that fit nowhere");
  const alike = DATA.alike;
  const rule = "in one cluster, closer in the embedding than images mostly are to their nearest one, with pixels that correlate by more than 0.99 at 16 x 16";
  $("alike-note").textContent = alike.count
    ? `${counted(alike.images, "image", "images")} in ${counted(alike.count, "group", "groups")}. Such images are ${rule}.`
      + (alike.count > alike.groups.length ? ` The largest ${alike.groups.length} groups are shown.` : "")
    : `None. Such images would be ${rule}.`;
  $("alike").setAttribute("role", "group");
  $("alike").setAttribute("aria-label", "Near-duplicates");
  $("alike").replaceChildren(...alike.groups.map(([size, rows]) => (
    make("div", { className: "group" }, ...rows.map(thumb), ...(size > rows.length ? [make("span", { textContent: `and ${size - rows.length} more` })] : [])))));
  const first = $("alike").querySelector(".thumb");
  if (first) first.tabIndex = 0;
}

function showEdits() {
  const wrong = [...state.wrong].sort((a, b) => a - b);
  const parts = [counted(state.groups.length, "cluster", "clusters") + (isCut() ? "" : ", edited by hand")];
  if (state.names.size) parts.push(counted(state.groups.filter(nameOf).length, "name", "names"));
  parts.push(wrong.length ? `${counted(wrong.length, "image", "images")} marked as wrong:` : "no image marked as wrong.");
  $("edits").textContent = parts.join(", ");
  fillStrip($("wrong"), wrong.slice(0, 600), "Images marked as wrong");
  $("wrong").hidden = !wrong.length;
  const folder = DATA.paths ? ', "FOLDER"' : "";
  $("snippet").textContent = `labels, names = skdiec.report.read_labels("labels.csv"${folder})\n`
    + `model = skdiec.DiffusionEmbeddedClustering(len(names), init=labels)`
    + (DATA.paths ? `\n\nskdiec cluster FOLDER --labels labels.csv` : "");
}

