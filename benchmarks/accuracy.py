"""Compare skdiec with what else clusters images: accuracy, time and memory over seeds.

All images of a data set are clustered, K is given, and labels evaluate alone. Every method of every seed runs in a
process of its own, but for k-means on the features of skdiec's fit, which shares its process. A run that was stopped
goes on where it was.

    python benchmarks/accuracy.py --data FOLDER --datasets usps mnist
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    BACKBONES,
    CACHE,
    SEEDS,
    Results,
    add_run_options,
    agreement,
    in_new_process,
    machine,
    markdown_table,
    sources,
    write_table,
)

from skdiec.datasets import load_dataset

NAMES = {"digits": "digits", "usps": "USPS", "mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}
STAGES = ("backbone", "search", "features", "partition", "training")
OURS, HALVING, OUR_FEATURES = "skdiec", 'skdiec, search="halving"', "KMeans on diffusion features"


def pixels(name: str, folder: Path | None) -> np.ndarray:
    images = load_dataset(name, folder).images
    return images.reshape(len(images), -1).astype(np.float32) / 255


def kmeans(name: str, folder: Path | None, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    return KMeans(10, n_init=10, random_state=seed).fit_predict(pixels(name, folder))


def pca_kmeans(name: str, folder: Path | None, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    reduced = PCA(0.95, svd_solver="full").fit_transform(pixels(name, folder))
    return KMeans(10, n_init=10, random_state=seed).fit_predict(reduced)


def umap_kmeans(name: str, folder: Path | None, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans
    from umap import UMAP

    # What UMAP's documentation advises for clustering.
    embedded = UMAP(n_neighbors=30, min_dist=0.0, random_state=seed).fit_transform(pixels(name, folder))
    return KMeans(10, n_init=10, random_state=seed).fit_predict(embedded)


def initial_partition_of_pixels(name: str, folder: Path | None, seed: int) -> np.ndarray:
    return partition_of_pixels(pixels(name, folder), 10, seed)


def partition_of_pixels(flat: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """Return the partition that skdiec would start from if pixels were its features."""
    from skdiec import DiffusionEmbeddedClustering
    from skdiec.graph import knn_graph
    from skdiec.partition import initial_partition
    from skdiec.scores import balanced_cut
    from skdiec.search import principal_components

    default = DiffusionEmbeddedClustering(n_clusters)
    mean, components, _ = principal_components(flat, default.n_components, seed=seed)
    reduced = (flat - mean) @ components.T
    graph = knn_graph(reduced, default.n_neighbors)
    cut = partial(balanced_cut, n_clusters=n_clusters, balance=default.gamma)
    return initial_partition(reduced, graph, n_clusters, cut, n_init=default.n_init, seed=seed).labels


def clustpy_autoencoder(name: str, folder: Path | None, seed: int, where: Path) -> None:
    """Train the autoencoder that ClustPy's DEC and IDEC both start from, as their defaults say."""
    from clustpy.deep import DEC

    model = DEC(10, clustering_epochs=0, random_state=seed).fit(pixels(name, folder))
    model.neural_network_trained_.save_parameters(where)


def clustpy_dec(name: str, folder: Path | None, seed: int, autoencoder: Path) -> np.ndarray:
    from clustpy.deep import DEC

    return DEC(10, neural_network_weights=autoencoder, random_state=seed).fit(pixels(name, folder)).labels_


def clustpy_idec(name: str, folder: Path | None, seed: int, autoencoder: Path) -> np.ndarray:
    from clustpy.deep import IDEC

    return IDEC(10, neural_network_weights=autoencoder, random_state=seed).fit(pixels(name, folder)).labels_


TRAINED_ON = {"cifar10": " on an NVIDIA H200 that four other trainings shared"}
"""What backbones were trained on, where it is not one thread of a CPU."""

PAPER = {"mnist": "0.995 / -", "usps": "0.985 / -", "fashion_mnist": "0.797 / 0.755", "cifar10": "0.714 / 0.615"}
"""Accuracy and NMI that the paper reports (arXiv 2512.20905)."""

PEERS: dict[str, Callable[..., np.ndarray]] = {
    "KMeans": kmeans,
    "PCA + KMeans": pca_kmeans,
    "UMAP + KMeans": umap_kmeans,
    "skdiec's partition of pixels": initial_partition_of_pixels,
    "ClustPy DEC": clustpy_dec,
    "ClustPy IDEC": clustpy_idec,
}
CLUSTPY = ("ClustPy DEC", "ClustPy IDEC")


def autoencoder_of(name: str, folder: Path | None, seed: int) -> tuple[Path, float]:
    """Return the weights of a data set's and seed's autoencoder, kept from the first call on, and what they cost."""
    where = CACHE / f"autoencoder_{name}_{seed}.pt"
    cost = where.with_suffix(".json")
    if not cost.exists():
        _, seconds, _ = in_new_process(clustpy_autoencoder, name, folder, seed, where)
        cost.write_text(json.dumps({"seconds": seconds}))
    return where, json.loads(cost.read_text())["seconds"]


def ours(name: str, folder: Path | None, seed: int, backbone: Path, search: str) -> dict[str, Any]:
    """Fit the estimator, and after the grid cluster by k-means the features that it chose."""
    from skdiec import DiffusionEmbeddedClustering

    images = load_dataset(name, folder).images
    with tempfile.TemporaryDirectory() as cache:
        settings = {"n_clusters": 10, "backbone": backbone, "search": search, "random_state": seed, "memory": cache}
        model = DiffusionEmbeddedClustering(**settings).fit(images)
        found = {
            "labels": model.labels_,
            "initial": model.initial_labels_,
            "stages": model.fit_seconds_,
            "cell": f"{model.layer_} t={model.timestep_} p={model.pooling_}",
        }
        if search == "grid":
            cell = {"layer": model.layer_, "timestep": model.timestep_, "pooling": model.pooling_}
            kmeans = DiffusionEmbeddedClustering(**settings, **cell, init="k-means++", head=None).fit(images)
            found |= {"kmeans": kmeans.initial_labels_, "kmeans_seconds": kmeans.fit_seconds_["partition"]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_run_options(parser, NAMES)
    methods = [OURS, HALVING, *PEERS]
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods, metavar="METHOD")
    arguments = parser.parse_args()
    results = all_results()
    for name in () if arguments.table else arguments.datasets:
        measure(results[name], name, arguments.data, arguments.seeds, arguments.methods)
    for title, lines in tables(results).items():
        write_table(title, lines)


def all_results() -> dict[str, Results]:
    return {name: results_of(name) for name in NAMES}


def tables(results: dict[str, Results]) -> dict[str, list[str]]:
    lines = [line for name in NAMES if results[name].rows for line in table(results[name], name)]
    return {"headline": headline(results), "accuracy": lines}


def results_of(name: str) -> Results:
    values = ("acc", "nmi", "ari", "start_acc", "pretrain_seconds", "seconds", *STAGES, "peak_gb", "cell", "machine")
    return Results(f"accuracy_{name}", ("method", "seed"), values)


def measure(results: Results, name: str, folder: Path | None, seeds: int, methods: list[str]) -> None:
    y = load_dataset(name, folder).labels
    nothing = {"start_acc": "", "cell": "", **dict.fromkeys(STAGES, "")}
    for seed in range(seeds):
        for method, search in ((OURS, "grid"), (HALVING, "halving")):
            if method not in methods or results.find(method=method, seed=seed):
                continue
            found, _, peak = in_new_process(ours, name, folder, seed, BACKBONES / name, search)
            stages = found["stages"]
            common = {
                "seed": seed,
                "pretrain_seconds": float(recipe_of(name)["seconds"]),
                "peak_gb": peak,
                "cell": found["cell"],
                "machine": machine(),
            }
            if method == OURS:
                before = {stage: stages[stage] for stage in STAGES[:3]}
                results.add(
                    method=OUR_FEATURES,
                    **agreement(y, found["kmeans"]),
                    start_acc="",
                    seconds=sum(before.values()) + found["kmeans_seconds"],
                    **{**dict.fromkeys(STAGES, ""), **before},
                    **common,
                )
            results.add(
                method=method,
                **agreement(y, found["labels"]),
                start_acc=agreement(y, found["initial"])["acc"],
                seconds=sum(stages.values()),
                **stages,
                **common,
            )
        for method in methods:
            if method in PEERS and not results.find(method=method, seed=seed):
                weights, trained = autoencoder_of(name, folder, seed) if method in CLUSTPY else (None, 0.0)
                given = (name, folder, seed, *([weights] if weights else []))
                labels, seconds, peak = in_new_process(PEERS[method], *given)
                row = {"method": method, "seed": seed, "pretrain_seconds": trained, **agreement(y, labels)}
                results.add(**nothing, **row, seconds=seconds, peak_gb=peak, machine=machine())


def headline(results: dict[str, Results]) -> list[str]:
    """Return accuracy and NMI of all methods, a column for each data set."""
    names = [name for name in NAMES if results[name].find(method=OURS)]
    header = ["ACC / NMI", *(NAMES[name] for name in names)]
    rows = []
    for method in (*PEERS, OUR_FEATURES, OURS):
        if not any(results[name].find(method=method) for name in names):
            continue
        title = f"**{method}**" if method == OURS else method
        rows.append([title, *(headline_cell(results[name], method) for name in names)])
    rows.append(["DiEC, as its paper reports", *(PAPER.get(name, "-") for name in names)])
    return [
        *markdown_table(header, rows),
        "",
        f"Means over {SEEDS} seeds, or over as many as stand in brackets; bold: the highest ACC measured.",
    ]


def headline_cell(results: Results, method: str) -> str:
    count = len(results.find(method=method))
    if not count:
        return "-"
    scores = " / ".join(results.mean(column, 3, spread=False, method=method) for column in ("acc", "nmi"))
    best = max(
        {row["method"] for row in results.rows} - {HALVING},
        key=lambda each: float(results.mean("acc", spread=False, method=each)),
    )
    if method == best:
        scores = f"**{scores}**"
    return scores if count == SEEDS else f"{scores} ({count})"


def recipe_of(name: str) -> dict[str, Any]:
    return json.loads((BACKBONES / name / "skdiec.json").read_text())


def table(results: Results, name: str) -> list[str]:
    header = (NAMES[name], "seeds", "ACC", "NMI", "ARI", "pretraining s", "clustering s", "peak GB")
    rows = []
    for method in (*PEERS, OUR_FEATURES, HALVING, OURS):
        if results.find(method=method):
            count = len(results.find(method=method))
            figures = [results.mean(column, method=method) for column in ("acc", "nmi", "ari")]
            seconds = [results.mean(c, 0, spread=False, method=method) for c in ("pretrain_seconds", "seconds")]
            title = f"**{method}**" if method == OURS else method
            rows.append((title, count, *figures, *seconds, results.mean("peak_gb", 1, spread=False, method=method)))
    lines = [*markdown_table(header, rows), ""]
    for method in (OURS, HALVING):
        if results.find(method=method):
            stages = ", ".join(f"{s} {results.mean(s, 0, spread=False, method=method)}" for s in STAGES[1:])
            cells = dict.fromkeys(row["cell"] for row in results.find(method=method))
            start = results.mean("start_acc", method=method)
            initial = f"ACC of the initial partition: {start}."
            lines.append(f"{method}: seconds of {stages}. {initial} Chosen: {'; '.join(cells)}.\n")
    if results.find(method=OURS):
        recipe = recipe_of(name)
        lines.append(
            f"Backbone: {recipe['parameters'] / 1e6:.2f} M parameters, {recipe['settings']['epochs']} epochs on the "
            f"same {recipe['images']:,} images without labels, {recipe['seconds'] / 60:.1f} minutes"
            f"{TRAINED_ON.get(name, '')}."
        )
    return [*lines, *sources(results), f"Command: `python benchmarks/accuracy.py --datasets {name}`.", ""]


if __name__ == "__main__":
    main()
