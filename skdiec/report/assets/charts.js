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
    const last = terms[name]?.length - 1, isShare = name === "changed", shown = (value) => (isShare ? percent(value) : value.toPrecision(3));
    if (values.length < 2 || values.at(-1)[0] === 0) return [];
    const label = `${title} from ${shown(values[0][1])} to ${shown(values.at(-1)[1])} over ${last} epochs`;
    const mark = warmup > 0 && warmup < last ? warmup + 0.5 : null;
    return [curve({ title, note, label, values, ends: [[0, "0"], [last, `epoch ${last}`]], low: isShare ? 0 : null, mark, shown }).box];
  });
  $("curves").replaceChildren(...(curves.length ? curves : [make("p", { className: "note", textContent: "Nothing was trained: images went to the nearest mean of the initial clusters." })]));
}

// The scores by which the fit has found the number of clusters itself.
function showNumber() {
  const { counts, chosen, scores } = DATA.number ?? { counts: [] };
  if (counts.length < 2) return;
  $("number").replaceChildren(...Object.entries(scores).map(([name, found]) => {
    const values = counts.map((count, place) => [count, found[place]]), best = values[found.indexOf(Math.max(...found))];
    const title = { score: "Score of both", silhouette: "Silhouette", modularity: "Modularity" }[name];
    const shown = (value) => (value < 0.1 ? value.toFixed(3) : value.toPrecision(3));
    const note = `highest at ${best[0]}`, label = `${title} of ${counts[0]} to ${counts.at(-1)} clusters, highest at ${best[0]}; ${chosen} were chosen`;
    const { box, picture, at } = curve({
      title, note, label, values, ends: [[counts[0], counted(counts[0], "cluster", "clusters")], [counts.at(-1), String(counts.at(-1))]], mark: chosen, shown,
    });
    for (const [count, value] of values) {
      const [cx, cy] = at(count, value), point = svg("circle", { cx, cy, r: count === best[0] ? 3.5 : 4, class: count === best[0] ? "best" : "" });
      point.append(svg("title", {}, `${counted(count, "cluster", "clusters")}: ${shown(value)}`));
      picture.append(point);
    }
    return box;
  }));
}

// A curve, its picture, and where a point of it is. `mark` is a place on the horizontal axis.
function curve({ title, note, label, values, ends, low = null, mark = null, shown }) {
  const [width, height, left, bottom] = [240, 120, 38, 104];
  low ??= Math.min(...values.map(([, value]) => value));
  const high = Math.max(...values.map(([, value]) => value), low + 1e-9), [[first, firstText], [last, lastText]] = ends;
  const x = (place) => left + (place - first) / (last - first) * (width - left - 6), y = (value) => bottom - (value - low) / (high - low) * (bottom - 10);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  picture.append(svg("line", { x1: left, x2: width, y1: bottom, y2: bottom }), svg("line", { x1: left, x2: width, y1: 10, y2: 10 }));
  if (mark !== null) picture.append(svg("line", { class: "mark-line", x1: x(mark), x2: x(mark), y1: 10, y2: bottom }));
  picture.append(svg("polyline", { points: values.map(([place, value]) => `${x(place).toFixed(1)},${y(value).toFixed(1)}`).join(" ") }),
    svg("text", { x: left - 5, y: 13, "text-anchor": "end" }, shown(high)), svg("text", { x: left - 5, y: bottom, "text-anchor": "end" }, shown(low)),
    svg("text", { x: left, y: height - 2 }, firstText), svg("text", { x: width - 6, y: height - 2, "text-anchor": "end" }, lastText));
  const heading = make("p", {}, make("b", { textContent: title }), " ", make("small", { textContent: note }));
  return { box: make("div", { className: "curve" }, heading, picture), picture, at: (place, value) => [x(place).toFixed(1), y(value).toFixed(1)] };
}

