"""Compare label-free criteria of the search: which of them points at the representations that cluster best?

Every cell of the full grid (blocks x timesteps x poolings) gets the accuracy that its own partition reaches, and the
value of every criterion, on one random subset for each seed. A criterion is good where it ranks cells as accuracy does
(Spearman's correlation), and where the cell that it chooses loses little against the best one (regret, in accuracy).
One subset's accuracies depend much on which local optimum each cell's partition ended in, so that a cell counts by its
mean over the seeds. Labels evaluate alone. A run that was stopped goes on where it was.

    python benchmarks/criteria.py --data FOLDER --datasets usps mnist
"""

from __future__ import annotations

import argparse
import functools
import time
from pathlib import Path

import numpy as np
from accuracy import NAMES as WITH_BACKBONES
from common import (
    BACKBONES,
    Results,
    add_run_options,
    in_new_process,
    machine,
    markdown_table,
    sources,
    write_table,
)
from scipy.stats import spearmanr

from skdiec.datasets import load_dataset

NAMES = {**WITH_BACKBONES, "signs": "hand signs"}
N_IMAGES = 2000
TIMESTEPS = (10, 25, 50, 75, 100, 150, 200, 250, 300, 400)
POOLINGS = (1, 2, 4)
CRITERIA = {
    "scott": "Scott score (the paper)",
    "consensus": "modularity on the graphs of the cells with the lowest cut over noise (default)",
    "scott_consensus": "modularity on the graphs of the cells with the highest Scott scores",
    "over_noise": "normalised cut over that of noise",
    "relative_cut": "relative cut",
    "normalized_cut": "normalised cut",
    "modularity": "modularity",
    "silhouette": "silhouette",
    "calinski_harabasz": "Calinski-Harabasz",
    "davies_bouldin": "Davies-Bouldin",
    "intrinsic_dimension": "intrinsic dimension, lower is better",
    "draw_agreement": "agreement of two noise draws",
    "seed_agreement": "agreement of k-means from two seeds",
}
"""Name of each criterion; all are stored such that higher is better."""


def score_cells(name: str, folder: Path | None, seed: int) -> list[dict]:
    """Score all cells on one subset."""
    from sklearn.metrics import (
        adjusted_rand_score,
        calinski_harabasz_score,
        davies_bouldin_score,
        silhouette_score,
    )

    from skdiec.activations import Cell
    from skdiec.backbones import load_backbone
    from skdiec.features import FeatureExtractor
    from skdiec.graph import knn_graph
    from skdiec.images import as_image_source
    from skdiec.metrics import clustering_accuracy
    from skdiec.partition import best_partition, kmeans_labels
    from skdiec.scores import balanced_cut, modularity, normalized_cut, relative_cut, scott_score
    from skdiec.search import MIN_TRUSTED, TRUSTED_SHARE, reduce_features
    from skdiec.search.scoring import quick_cut_over_noise

    data = load_dataset(name, folder)
    count = min(N_IMAGES, len(data.images))
    rows = np.sort(np.random.default_rng(seed).choice(len(data.images), count, replace=False))
    y = data.labels[rows]
    extractor = FeatureExtractor(load_backbone(BACKBONES / name), n_draws=2, seed=seed)
    shapes = extractor.layer_shapes()
    pairs = [(layer, p) for layer, shape in shapes.items() for p in POOLINGS if p <= min(shape[1:])]
    width = min(32, *(shapes[layer][0] * p**2 for layer, p in pairs))
    source = as_image_source(data.images)
    cut = functools.partial(balanced_cut, n_clusters=10, balance=1.0)

    def partition(features: np.ndarray) -> tuple:
        reduced = reduce_features(features, 128, seed=seed).transform(features)
        graph = knn_graph(reduced, 10)
        return reduced, graph, best_partition(reduced, graph, 10, cut, n_init=3, seed=seed).labels

    found, graphs, partitions = [], [], []
    for timestep in TIMESTEPS:
        cells = [Cell(layer, timestep, p) for layer, p in pairs]
        draws = [extractor.extract(source, cells, rows=rows, draw=draw) for draw in range(2)]
        for cell in cells:
            started = time.perf_counter()
            (reduced, graph, labels), (_, _, other) = (partition(features[cell]) for features in draws)
            aligned = reduced[:, :width]
            means = kmeans_labels(aligned, 10, n_init=3, seed=seed)
            runs = [kmeans_labels(aligned, 10, seed=seed + start) for start in range(2)]
            graphs.append(graph)
            partitions.append(labels)
            found.append(
                {
                    "layer": cell.layer,
                    "timestep": timestep,
                    "pooling": cell.pooling,
                    "acc": clustering_accuracy(y, labels),
                    "kmeans_acc": clustering_accuracy(y, means),
                    "scott": scott_score(aligned, means),
                    "over_noise": -quick_cut_over_noise(reduced, graph, labels, 10, width, 10, seed),
                    "relative_cut": -relative_cut(graph, labels, 10, balance=1.0),
                    "normalized_cut": -normalized_cut(graph, labels),
                    "modularity": modularity(graph, labels),
                    "silhouette": silhouette_score(reduced, labels),
                    "calinski_harabasz": calinski_harabasz_score(reduced, labels),
                    "davies_bouldin": -davies_bouldin_score(reduced, labels),
                    "intrinsic_dimension": -intrinsic_dimension(reduced),
                    "draw_agreement": adjusted_rand_score(labels, other),
                    "seed_agreement": adjusted_rand_score(*runs),
                    "seconds": time.perf_counter() - started,
                }
            )
    for key, trust in (("consensus", "over_noise"), ("scott_consensus", "scott")):
        by_trust = np.argsort([-row[trust] for row in found], kind="stable")
        trusted = by_trust[: max(MIN_TRUSTED, round(TRUSTED_SHARE * len(found)))]
        graph = sum(graphs[index] for index in trusted)
        for row, labels in zip(found, partitions, strict=True):
            row[key] = modularity(graph, labels)
    return found


def intrinsic_dimension(X: np.ndarray, n_neighbors: int = 20) -> float:
    """Estimate the local intrinsic dimension by maximum likelihood, averaged as inverses over the rows.

    Levina and Bickel (2004), with the average of MacKay and Ghahramani (2005).
    """
    from sklearn.neighbors import NearestNeighbors

    distances, _ = NearestNeighbors(n_neighbors=n_neighbors).fit(X).kneighbors()
    distances = np.maximum(distances, 1e-12)
    return float(1 / np.log(distances[:, -1:] / distances[:, :-1]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_run_options(parser, NAMES)
    arguments = parser.parse_args()
    results = results_of()
    for name in () if arguments.table else arguments.datasets:
        for seed in range(arguments.seeds):
            if not results.find(dataset=name, seed=seed):
                for row in in_new_process(score_cells, name, arguments.data, seed)[0]:
                    results.add(dataset=name, seed=seed, machine=machine(), **row)
    write_table("criteria", table(results))


def results_of() -> Results:
    values = ("acc", "kmeans_acc", *CRITERIA, "seconds", "machine")
    return Results("criteria", ("dataset", "seed", "layer", "timestep", "pooling"), values)


def table(results: Results) -> list[str]:
    names = [name for name in NAMES if results.find(dataset=name)]
    header = ["criterion", *(f"{NAMES[name]}: {what}" for name in names for what in ("Spearman", "regret"))]
    lines = []
    for criterion, title in CRITERIA.items():
        cells = []
        for name in names:
            correlation, regret = quality(results.find(dataset=name), criterion)
            cells += [f"{correlation:.2f}", f"{regret:.3f}"]
        lines.append([title, *cells])
    cells = [(NAMES[name], *chosen(results.find(dataset=name))) for name in names]
    seeds = [f"{NAMES[name]} {len({row['seed'] for row in results.find(dataset=name)})}" for name in names]
    return [
        *markdown_table(header, lines),
        "",
        f"{N_IMAGES:,} random images (digits: 1,797) for each seed; {len(TIMESTEPS)} timesteps x all blocks x poolings "
        f"{', '.join(map(str, POOLINGS))}; one noise draw. Seeds: {', '.join(seeds)}. ACC of every "
        "cell: the mean over the seeds. Hand signs: colour photographs of 64 x 64.",
        "",
        *markdown_table(("cells, and their ACC", "the best", "Scott's choice", "the default's choice"), cells),
        "",
        *sources(results),
        "Command: `python benchmarks/criteria.py`.",
    ]


def chosen(rows: list[dict[str, str]]) -> list[str]:
    """Return the best cell by accuracy, and those that Scott and the default choose on the first seed."""
    accuracy = mean_accuracy(rows)
    places = [accuracy.argmax(), *(by_seed(rows, criterion)[0].argmax() for criterion in ("scott", "consensus"))]
    names = [f"{row['layer']} t={row['timestep']} p={row['pooling']}" for row in rows[: len(accuracy)]]
    return [f"{names[place]} ({accuracy[place]:.3f})" for place in places]


def quality(rows: list[dict[str, str]], criterion: str) -> tuple[float, float]:
    """Return Spearman's correlation of a criterion with accuracy, and the accuracy that its choice loses.

    Both are means over the seeds.
    """
    accuracy = mean_accuracy(rows)
    values = by_seed(rows, criterion)
    correlations = [spearmanr(each, accuracy).statistic for each in values]
    return float(np.mean(correlations)), float(np.mean(accuracy.max() - accuracy[values.argmax(axis=1)]))


def mean_accuracy(rows: list[dict[str, str]]) -> np.ndarray:
    return by_seed(rows, "acc").mean(axis=0)


def by_seed(rows: list[dict[str, str]], column: str) -> np.ndarray:
    """Return a column as an array of shape (seeds, cells); all seeds list the cells in the same order."""
    return np.array([float(row[column]) for row in rows]).reshape(len({row["seed"] for row in rows}), -1)


if __name__ == "__main__":
    main()
