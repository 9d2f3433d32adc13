"""How a cell is scored: its features are reduced and partitioned, and the partition is judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from skdiec.activations import Cell
from skdiec.graph import knn_graph
from skdiec.partition import best_partition, kmeans_labels
from skdiec.scores import balanced_cut, modularity, normalized_cut, relative_cut, scott_score
from skdiec.search.components import reduce_features

Criterion = str | Callable[[NDArray, NDArray], float]

CRITERIA = ("consensus", "relative_cut", "normalized_cut", "scott")
"""Those with a name."""

TRUSTED_SHARE = 0.1
"""Share of the cells, those with the lowest cut over noise, whose graphs make the consensus graph."""

MIN_TRUSTED = 4
"""Cells whose graphs make the consensus graph at least: that of one or two would mostly praise their own."""

N_BESIDE = 3
"""Cells after the best one whose graphs are kept."""


@dataclass(frozen=True)
class Scored:
    """Scott score and criterion of one cell and draw, with the partitions by k-means and by the graph that they judge.

    The graph is there where the consensus has yet to judge, with the partition's cut over that of noise.
    """

    scott: float
    means: NDArray[np.int32]
    value: float = np.nan
    labels: NDArray[np.int32] | None = None
    graph: sparse.csr_array | None = None
    over_noise: float = np.inf


def consensus(runs: Mapping[Cell, Sequence[Scored]]) -> dict[Cell, float]:
    """Judge the partitions of all cells, one for each draw, on the graphs of those with the lowest cut over noise."""
    by_cut = sorted(runs, key=lambda cell: np.mean([run.over_noise for run in runs[cell]]))
    trusted = by_cut[: max(MIN_TRUSTED, round(TRUSTED_SHARE * len(runs)))]
    graph: Any = sum(cast("Any", run.graph) for cell in trusted for run in runs[cell])
    return {
        cell: float(np.mean([modularity(graph, cast("NDArray", run.labels)) for run in each]))
        for cell, each in runs.items()
    }


def quick_cut_over_noise(
    reduced: NDArray[np.float32],
    graph: sparse.csr_array,
    labels: NDArray[np.int32],
    n_clusters: int,
    n_components: int,
    n_neighbors: int,
    seed: int,
) -> float:
    """Compare a partition's normalised cut with that of Gaussian noise, as `skdiec.partition.cut_over_noise` does.

    Where features vary along few dimensions, any cut is cheap: noise of the same variances tells how much. k-means on
    its first components finds a cut of it that is about as low as any, in a tenth of the time.
    """
    noise = np.random.default_rng(seed).standard_normal(reduced.shape, dtype=np.float32) * reduced.std(axis=0)
    of_noise = kmeans_labels(noise[:, :n_components], n_clusters, seed=seed)
    lowest = normalized_cut(knn_graph(noise, n_neighbors), of_noise)
    return normalized_cut(graph, labels) / lowest if lowest > 0 else np.inf


def score(
    features: NDArray[np.float32],
    before: Scored | None,
    *,
    n_clusters: int,
    criterion: Criterion,
    n_components: int,
    n_neighbors: int,
    n_init: int,
    balance: float,
    seed: int,
    is_trusted: bool = False,
) -> Scored:
    """Score the features of one cell and draw, given the partitions found before in its first rows.

    Where the consensus trusts the cell in any case, it is not compared with noise.
    """
    reduced = reduce_features(features, 4 * n_components, seed=seed).transform(features)
    aligned = reduced[:, :n_components]  # components are nested: the first ones are those of a smaller PCA
    warm_means, warm_labels = (None, None) if before is None else (before.means, before.labels)
    means = kmeans_labels(aligned, n_clusters, n_init=n_init, warm_start=warm_means, seed=seed)
    scott = scott_score(aligned, means)
    if criterion == "scott":
        return Scored(scott, means, scott)
    graph = knn_graph(reduced, n_neighbors)
    cut = partial(balanced_cut, n_clusters=n_clusters, balance=balance)
    labels = best_partition(
        None, graph, n_clusters, cut, n_init=n_init, given=[means], warm_start=warm_labels, seed=seed
    ).labels
    if criterion == "consensus":
        scored = Scored(scott, means, labels=labels, graph=graph)
        if is_trusted:
            return scored
        over_noise = quick_cut_over_noise(reduced, graph, labels, n_clusters, n_components, n_neighbors, seed)
        return replace(scored, over_noise=over_noise)
    if criterion == "normalized_cut":
        value = -normalized_cut(graph, labels)
    elif criterion == "relative_cut":
        value = -relative_cut(graph, labels, n_clusters, balance=balance)
    else:
        value = float(cast("Callable", criterion)(reduced, labels))
    return Scored(scott, means, value, labels)
