"""Compare label-free criteria of the search: which of them points at the representations that cluster best?

Every cell of the full grid (blocks x timesteps x poolings) gets the accuracy that its own partition reaches, and the
value of every criterion on a random subset. A criterion is good where it ranks cells as accuracy does (Spearman's
correlation), and where the cell that it chooses loses little against the best one (regret, in accuracy). Labels
evaluate alone. A run that was stopped goes on where it was.

    python benchmarks/criteria.py --data FOLDER --datasets usps mnist
"""

from __future__ import annotations

import argparse
import functools
import time
from pathlib import Path

import numpy as np
from accuracy import NAMES
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

N_IMAGES = 2000
TIMESTEPS = (10, 25, 50, 75, 100, 150, 200, 250, 300, 400)
POOLINGS = (1, 2, 4)
CRITERIA = {
    "scott": "Scott score (the paper)",
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


def score_timestep(name: str, folder: Path | None, timestep: int, seed: int) -> list[dict]:
    """Score all cells of one timestep."""
    from sklearn.metrics import (
        adjusted_rand_score,
        calinski_harabasz_score,
        davies_bouldin_score,
        silhouette_score,
    )

    from skdiec.activations import Cell
    from skdiec.backbones import load_backbone
    from skdiec.features import FeatureExtractor
    from skdiec.graph import best_partition, kmeans_labels, knn_graph
    from skdiec.images import as_image_source
    from skdiec.metrics import clustering_accuracy
    from skdiec.scores import balanced_cut, modularity, normalized_cut, relative_cut, scott_score
    from skdiec.search import reduce_features

    data = load_dataset(name, folder)
    count = min(N_IMAGES, len(data.images))
    rows = np.sort(np.random.default_rng(seed).choice(len(data.images), count, replace=False))
    y = data.labels[rows]
    extractor = FeatureExtractor(load_backbone(BACKBONES / name), n_draws=2, seed=seed)
    shapes = extractor.layer_shapes()
    cells = [Cell(layer, timestep, p) for layer, shape in shapes.items() for p in POOLINGS if p <= min(shape[1:])]
    width = min(32, *(shapes[cell.layer][0] * cell.pooling**2 for cell in cells))
    source = as_image_source(data.images)
    draws = [extractor.extract(source, cells, rows=rows, draw=draw) for draw in range(2)]
    cut = functools.partial(balanced_cut, n_clusters=10, balance=1.0)

    def partition(features: np.ndarray) -> tuple:
        reduced = reduce_features(features, 128, max_exact=256, seed=seed).transform(features)
        graph = knn_graph(reduced, 10)
        return reduced, graph, best_partition(reduced, graph, 10, cut, n_init=3, seed=seed).labels

    found = []
    for cell in cells:
        started = time.perf_counter()
        (reduced, graph, labels), (_, _, other) = (partition(features[cell]) for features in draws)
        aligned = reduced[:, :width]
        means = kmeans_labels(aligned, 10, n_init=3, seed=seed)
        runs = [kmeans_labels(aligned, 10, seed=seed + start) for start in range(2)]
        found.append(
            {
                "layer": cell.layer,
                "pooling": cell.pooling,
                "acc": clustering_accuracy(y, labels),
                "kmeans_acc": clustering_accuracy(y, means),
                "scott": scott_score(aligned, means),
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
        for timestep in TIMESTEPS:
            if not results.find(dataset=name, timestep=timestep):
                found, _, _ = in_new_process(score_timestep, name, arguments.data, timestep, 0)
                for row in found:
                    results.add(dataset=name, timestep=timestep, machine=machine(), **row)
    write_table("criteria", table(results))


def results_of() -> Results:
    values = ("layer", "pooling", "acc", "kmeans_acc", *CRITERIA, "seconds", "machine")
    return Results("criteria", ("dataset", "timestep"), values)


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
    best = [f"{NAMES[name]} {max(float(row['acc']) for row in results.find(dataset=name)):.3f}" for name in names]
    return [
        *markdown_table(header, lines),
        "",
        f"{N_IMAGES:,} random images (digits: 1,797), seed 0; {len(TIMESTEPS)} timesteps x all blocks x poolings "
        f"{', '.join(map(str, POOLINGS))}; one noise draw. ACC of the best cell: {', '.join(best)}.",
        *sources(results),
        "Command: `python benchmarks/criteria.py`.",
    ]


def quality(rows: list[dict[str, str]], criterion: str) -> tuple[float, float]:
    """Return Spearman's correlation of a criterion with accuracy, and the accuracy that its choice loses."""
    accuracy = np.array([float(row["acc"]) for row in rows])
    values = np.array([float(row[criterion]) for row in rows])
    return float(spearmanr(values, accuracy).statistic), float(accuracy.max() - accuracy[values.argmax()])


if __name__ == "__main__":
    main()
