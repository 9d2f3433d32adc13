// The heat map of the search, and the curves of the training.

const SCORES = {
  consensus: "consensus modularity", scott: "Scott score", relative_cut: "relative cut, sign turned",
  normalized_cut: "normalised cut, sign turned",
};
const VIRIDIS = [[68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142], [31, 158, 137], [53, 183, 121], [109, 205, 89], [180, 222, 44], [253, 231, 37]];

function viridis(share) {
  const place = Math.min(VIRIDIS.length - 1.001, Math.max(0, share * (VIRIDIS.length - 1))), first = Math.floor(place);
  return VIRIDIS[first].map((value, i) => Math.round(value + (place - first) * (VIRIDIS[first + 1][i] - value)));
}

function showHeat() {
  const search = DATA.search, pooling = Number($("pooling").value), round = Number($("round").value);
  const scores = search.rounds[round].scores[$("score").value], isLast = round === search.rounds.length - 1;
  const values = scores.map((row) => row.map((cell) => cell[pooling]));
  const known = values.flat().filter((value) => value !== null);
  const low = Math.min(...known), high = Math.max(...known);
  $("low").textContent = known.length ? low.toPrecision(3) : "";
  $("high").textContent = known.length ? high.toPrecision(3) : "none scored";
  const head = make("tr", {}, make("th", { scope: "col", textContent: "layer \\ timestep" }),
    ...search.timesteps.map((timestep) => make("th", { scope: "col", textContent: timestep })));
  const body = search.layers.map((layer, i) => make("tr", {}, make("th", { scope: "row", textContent: layer }), ...search.timesteps.map((timestep, j) => {
    const value = values[i][j];
    if (value === null) return make("td", { className: "none", textContent: "–", title: "not scored" });
    const color = viridis(high > low ? (value - low) / (high - low) : 0.5);
    const isBest = isLast && search.best[0] === i && search.best[1] === j && search.best[2] === pooling;
    const cell = make("td", { textContent: (isBest ? "★ " : "") + value.toPrecision(3), title: `${layer}, timestep ${timestep}: ${value}` });
    if (isBest) { cell.className = "best"; cell.append(make("span", { className: "hidden", textContent: " chosen" })); }
    cell.style.backgroundColor = `rgb(${color})`;
    cell.style.color = 0.2126 * lightness(color[0]) + 0.7152 * lightness(color[1]) + 0.0722 * lightness(color[2]) > 0.18 ? "#000" : "#fff";
    return cell;
  })));
  $("heat").replaceChildren(make("caption", { className: "hidden", textContent: "Scores; higher is better" }), make("thead", {}, head), make("tbody", {}, ...body));
}

function lightness(value) {
  return value <= 10 ? value / 3294.6 : ((value / 255 + 0.055) / 1.055) ** 2.4;
}

function showSearch() {
  const search = DATA.search;
  $("score").replaceChildren(...Object.keys(search.rounds[0].scores).map((name) => (
    make("option", { value: name, textContent: SCORES[name] ?? name.replaceAll("_", " "), selected: name === search.criterion }))));
  $("pooling").replaceChildren(...search.poolings.map((pooling, place) => (
    make("option", { value: place, textContent: `${pooling} x ${pooling}`, selected: place === search.best[2] }))));
  $("rounds").hidden = search.rounds.length < 2;
  $("round").replaceChildren(...search.rounds.map(({ images }, place) => (
    make("option", { value: place, textContent: `${place + 1}, on ${counted(images, "image", "images")}`, selected: place === search.rounds.length - 1 }))));
  $("scale").style.background = `linear-gradient(90deg, ${VIRIDIS.map((color) => `rgb(${color})`)})`;
  $("score").addEventListener("change", showHeat);
  $("pooling").addEventListener("change", showHeat);
  $("round").addEventListener("change", showHeat);
  showHeat();
}

const TERMS = {
  loss: ["Loss", "all terms, weighted"], kl: ["L KL", "clustering"], graph: ["L graph", "neighbours"], entropy: ["L ent", "sizes of clusters"],
  denoising: ["L Re", "denoising"], changed: ["Changed", "of the images"],
};

function showCurves() {
  const { terms, warmup } = DATA.history;
  const curves = Object.entries(TERMS).flatMap(([name, [title, note]]) => {
    const values = (terms[name] ?? []).map((value, epoch) => [epoch, value]).filter(([, value]) => value !== null);
    return values.length > 1 && values.at(-1)[0] > 0 ? [curve(title, note, values, terms[name].length - 1, warmup, name === "changed")] : [];
  });
  $("curves").replaceChildren(...(curves.length ? curves : [make("p", { className: "note", textContent: "Nothing was trained: images went to the nearest mean of the initial clusters." })]));
}

function curve(title, note, values, last, warmup, isShare) {
  const [width, height, left, bottom] = [240, 120, 38, 104];
  const low = isShare ? 0 : Math.min(...values.map(([, value]) => value)), high = Math.max(...values.map(([, value]) => value), low + 1e-9);
  const x = (epoch) => left + epoch / last * (width - left - 6), y = (value) => bottom - (value - low) / (high - low) * (bottom - 10);
  const shown = (value) => (isShare ? percent(value) : value.toPrecision(3));
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title} from ${shown(values[0][1])} to ${shown(values.at(-1)[1])} over ${last} epochs` });
  picture.append(svg("line", { x1: left, x2: width, y1: bottom, y2: bottom }), svg("line", { x1: left, x2: width, y1: 10, y2: 10 }));
  if (warmup > 0 && warmup < last) picture.append(svg("line", { class: "warmup", x1: x(warmup + 0.5), x2: x(warmup + 0.5), y1: 10, y2: bottom }));
  picture.append(svg("polyline", { points: values.map(([epoch, value]) => `${x(epoch).toFixed(1)},${y(value).toFixed(1)}`).join(" ") }),
    svg("text", { x: left - 5, y: 13, "text-anchor": "end" }, shown(high)), svg("text", { x: left - 5, y: bottom, "text-anchor": "end" }, shown(low)),
    svg("text", { x: left, y: height - 2 }, "0"), svg("text", { x: width - 6, y: height - 2, "text-anchor": "end" }, `epoch ${last}`));
  const heading = make("p", {}, make("b", { textContent: title }), " ", make("small", { textContent: note }));
  return make("div", { className: "curve" }, heading, picture);
}

