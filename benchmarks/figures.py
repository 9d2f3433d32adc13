"""Draw the figures of the benchmark: what the search saw, and what training did.

Needs what criteria.py, ablations.py and pretraining.py measured; fits the estimator once for each data set.

    python benchmarks/figures.py --data FOLDER --datasets usps mnist
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import ablations
import criteria
import matplotlib
import numpy as np
import pretraining
import robustness
from accuracy import NAMES
from accuracy import results_of as accuracy_of
from common import BACKBONES, RESULTS, add_data_options
from numpy.typing import NDArray

from skdiec import DiffusionEmbeddedClustering
from skdiec.datasets import load_dataset
from skdiec.metrics import clustering_accuracy

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FIGURES = RESULTS / "figures"
EPOCHS = (1, 2, 3, 5, 7, 10, 15, 20)
N_MAP = 3000
"""Images in the two-dimensional maps."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_options(parser, NAMES)
    arguments = parser.parse_args()
    FIGURES.mkdir(parents=True, exist_ok=True)
    draw_price()
    draw_drift()
    draw_robustness()
    for name in arguments.datasets:
        draw_search(name)
        data = load_dataset(name, arguments.data)
        with tempfile.TemporaryDirectory() as memory:
            settings = {"backbone": BACKBONES / name, "random_state": 0, "memory": memory}
            model = DiffusionEmbeddedClustering(10, **settings).fit(data.images)
            draw_clusters(name, data.images, model)
            draw_maps(name, data, model, settings)
            draw_epochs(name, data, model, settings)


def save(figure: Any, name: str) -> None:
    figure.savefig(FIGURES / f"{name}.png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    print(FIGURES / f"{name}.png", flush=True)


def draw_search(name: str) -> None:
    """Draw the criterion, the Scott score and the accuracy of every cell, with what each criterion chose."""
    rows = criteria.results_of().find(dataset=name, seed=0)
    if not rows:
        return
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    timesteps = sorted({int(row["timestep"]) for row in rows})
    poolings = sorted({int(row["pooling"]) for row in rows})
    columns = {
        "consensus": "consensus modularity (chooses)",
        "scott": "Scott score (the paper)",
        "acc": "ACC of the initial partition",
    }
    figure, axes = plt.subplots(
        len(poolings), len(columns), figsize=(13, 2.4 * len(poolings)), sharex=True, sharey=True, squeeze=False
    )
    for across, (column, title) in enumerate(columns.items()):
        values = np.full((len(poolings), len(layers), len(timesteps)), np.nan)
        for row in rows:
            position = poolings.index(int(row["pooling"])), layers.index(row["layer"])
            values[(*position, timesteps.index(int(row["timestep"])))] = float(row[column])
        best = np.unravel_index(np.nanargmax(values), values.shape)
        # The worst cells would take most of the colours.
        low, high = np.nanquantile(values, [0.1, 1])
        for down, pooling in enumerate(poolings):
            axis = axes[down, across]
            image = axis.imshow(values[down], aspect="auto", vmin=low, vmax=high, cmap="viridis")
            axis.set_xticks(range(len(timesteps)), timesteps)
            axis.set_yticks(range(len(layers)), layers)
            axis.set_title(f"{title}, pooling {pooling}" if down == 0 else f"pooling {pooling}")
            if down == best[0]:
                axis.plot(best[2], best[1], "o", ms=14, mfc="none", mec="red", mew=2)
        figure.colorbar(image, ax=axes[:, across], fraction=0.03)
    for axis in axes[-1]:
        axis.set_xlabel("timestep")
        axis.tick_params(axis="x", labelsize=7)
    figure.suptitle(f"{NAMES[name]}: every cell of the search; red is the best of each", y=1.0)
    save(figure, f"search_{name}")


def draw_clusters(name: str, images: np.ndarray, model: DiffusionEmbeddedClustering, count: int = 12) -> None:
    """Draw the images nearest to each cluster's centre, and those that are least surely in it."""
    sure = model._model.assign(model.embedding_).max(axis=1)
    figure, axes = plt.subplots(len(model.cluster_centers_), 2 * count + 1, figsize=(13, 5.6))
    for cluster, line in enumerate(axes):
        members = np.flatnonzero(model.labels_ == cluster)
        members = members[np.argsort(-sure[members], kind="stable")]
        chosen = [*members[:count], None, *members[-count:]]
        for axis, index in zip(line, [*chosen, *[None] * (len(line) - len(chosen))], strict=True):
            axis.axis("off")
            if index is not None:
                axis.imshow(images[index], cmap="gray_r" if images.ndim == 3 else None)
    figure.suptitle(f"{NAMES[name]}: a cluster a row; left its surest images, right its least sure", y=0.95)
    save(figure, f"clusters_{name}")


def draw_maps(name: str, data: Any, model: DiffusionEmbeddedClustering, settings: dict[str, Any]) -> None:
    """Draw t-SNE maps of pixels, of the chosen features and of the embedding, coloured by class."""
    from sklearn.manifold import TSNE

    fixed = {"layer": model.layer_, "timestep": model.timestep_, "pooling": model.pooling_}
    untrained = DiffusionEmbeddedClustering(10, **settings, **fixed, head=None).fit(data.images)
    rows = np.random.default_rng(0).choice(len(data.images), min(N_MAP, len(data.images)), replace=False)
    panels = {
        "pixels": data.images[rows].reshape(len(rows), -1) / 255.0,
        f"features ({model.layer_}, t={model.timestep_})": untrained.embedding_[rows],
        "embedding after training": model.embedding_[rows],
    }
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.4))
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        points = TSNE(random_state=0, init="pca").fit_transform(values)
        axis.scatter(*points.T, c=data.labels[rows], s=2, cmap="tab10")
        axis.set(title=title, xticks=[], yticks=[])
    figure.suptitle(f"{NAMES[name]}: t-SNE of {len(rows):,} images; colours are classes, which nothing was fitted to")
    save(figure, f"map_{name}")


def draw_epochs(name: str, data: Any, model: DiffusionEmbeddedClustering, settings: dict[str, Any]) -> None:
    """Draw accuracy and cut over the epochs; a fit that stops early goes through the same epochs."""
    fixed = {"layer": model.layer_, "timestep": model.timestep_, "pooling": model.pooling_}
    epochs, accuracies = [0], [clustering_accuracy(data.labels, model.initial_labels_)]
    for stop in EPOCHS:
        if stop <= model.n_iter_:
            fitted = DiffusionEmbeddedClustering(10, **settings, **fixed, max_epochs=stop).fit(data.images)
            epochs.append(stop)
            accuracies.append(clustering_accuracy(data.labels, fitted.labels_))
    figure, (above, below) = plt.subplots(2, 1, figsize=(7, 5), sharex=True)
    above.plot(epochs, accuracies, "o-")
    above.set(ylabel="ACC", title=f"{NAMES[name]}: training of the head; epoch 0 is the start")
    below.plot(model.history_["cut"])
    below.set(xlabel="epoch", ylabel="balanced cut")
    for axis in (above, below):
        axis.axvline(model.warmup_epochs, color="grey", lw=0.8, ls=":")
    save(figure, f"epochs_{name}")


def draw_price() -> None:
    """Draw the accuracy that seconds buy, from raw pixels to labels, beside that of other methods."""
    results = pretraining.results_of()
    names = [name for name in pretraining.CURVE if results.find(dataset=name, recipe="defaults")]
    if not names:
        return

    def point(rows: list[dict[str, str]], column: str) -> NDArray[np.float64]:
        """Return the means of seconds and accuracy."""
        pairs = [(float(row["pretrain_seconds"]) + float(row[column]), float(row["acc"])) for row in rows]
        return np.mean(pairs, axis=0)

    figure, axis = plt.subplots(figsize=(7, 4))
    for number, name in enumerate(names):
        epochs = sorted({int(row["epochs"]) for row in results.find(dataset=name, recipe="defaults")})
        rows = [results.find(dataset=name, recipe="defaults", epochs=each) for each in epochs]
        points = np.array([point(each, "fit_seconds") for each in rows])
        axis.plot(*points.T, "o-", color=f"C{number}", label=NAMES[name])
        for method, marker in zip(pretraining.BESIDE, "sx", strict=True):
            found = accuracy_of(name).find(method=method)
            if found:
                label = f"{NAMES[name]}, {method}"
                axis.plot(*point(found, "seconds"), marker, color=f"C{number}", label=label)
    axis.set(xscale="log", xlabel="seconds from raw pixels to labels", ylabel="ACC", title="What pretraining buys")
    axis.legend()
    save(figure, "price")


def draw_drift() -> None:
    """Draw the denoising loss while the backbone trains, with and without L_Re."""
    rows = [row for row in ablations.results_of().rows if row["drift"]]
    if not rows:
        return
    figure, axis = plt.subplots(figsize=(7, 4))
    for name, variant in dict.fromkeys((row["dataset"], row["variant"]) for row in rows):
        found = [row for row in rows if (row["dataset"], row["variant"]) == (name, variant)]
        curves = [np.array(row["drift"].split(), float) for row in found]
        shortest = min(map(len, curves))
        mean = np.mean([curve[:shortest] for curve in curves], axis=0)
        axis.plot(mean, "o-", ms=3, label=f"{NAMES[name]}, {variant}")
    axis.set(xlabel="epoch", ylabel="denoising loss / before", title="Generative drift")
    axis.legend()
    save(figure, "drift")


def draw_robustness() -> None:
    """Draw the accuracy of each method on each set of the suite."""
    results = robustness.results_of()
    cases = [case for case in robustness.CASES if results.find(case=case)]
    methods = [method for method in (*robustness.PEERS, robustness.OURS) if results.find(method=method)]
    figure, axis = plt.subplots(figsize=(8, 0.32 * len(cases) + 1.2))
    for number, method in enumerate(methods):
        found = [(case, results.find(case=case, method=method)) for case in cases]
        points = np.array(
            [(np.mean([float(row["acc"]) for row in rows]), -cases.index(c)) for c, rows in found if rows]
        )
        is_ours = method == robustness.OURS
        style = {"color": "black", "s": 60, "zorder": 3} if is_ours else {"color": f"C{number}", "s": 25, "alpha": 0.8}
        axis.scatter(*points.T, label=method, marker="D" if is_ours else "o", **style)
    axis.set(xlabel="ACC", xlim=(0, 1), yticks=[-place for place in range(len(cases))], yticklabels=cases)
    axis.grid(axis="y", lw=0.4)
    axis.legend(loc="upper center", bbox_to_anchor=(0.4, -0.5 / figure.get_figheight()), ncols=3, fontsize="small")
    save(figure, "robustness")


if __name__ == "__main__":
    main()
