"""Initial partitions: many candidates, merges of finer partitions, the choice among them, and the tree of clusters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from skdiec.graph import knn_graph, spectral_embedding
from skdiec.partition.candidates import (
    CallAll,
    Partition,
    best_partition,
    co_association_graph,
    ensemble_partition,
    kmeans_labels,
    mean_agreement,
    n_eigenvectors,
    unit_rows,
)
from skdiec.partition.merging import cut_tree, merge_tree, merged_partition, strongest_link
from skdiec.partition.splitting import WEAKER_BY, split_and_merge

__all__ = [
    "CallAll",
    "Partition",
    "best_partition",
    "cluster_tree",
    "co_association_graph",
    "cut_over_noise",
    "cut_tree",
    "ensemble_partition",
    "initial_partition",
    "kmeans_labels",
    "merge_tree",
    "merged_partition",
    "split_and_merge",
    "strongest_link",
    "unit_rows",
]

STRONG_LINK = 0.045
"""Two clusters whose link (`strongest_link`) is at least this may be halves of one."""

STABLE = 0.88
"""Mean adjusted Rand index among merges of several finer partitions, from which on they are trusted."""

_NOISE_ROWS = 1500

FINER = (4, 8)
"""How many times as many clusters there are before merges. For very rare classes it takes more, where sizes differ less
the fewer are surer: the ones that agree best are taken."""

_SPLIT = 4  # parts of each cluster, at the leaves of the tree
_MIN_FINE_SIZE = 5  # images of a finer cluster: on average, and of each one before merges
_MAX_FINE = 2000  # the time of merges grows with the cube


def initial_partition(
    X: ArrayLike,
    graph: sparse.csr_array,
    n_clusters: int,
    cut: Callable[[sparse.csr_array, NDArray[np.int32]], float],
    *,
    n_init: int = 10,
    seed: int = 0,
    call_all: CallAll | None = None,
) -> Partition:
    """Find the partition that training starts from: that of the lowest cut, or one of merged clusters.

    The normalised cut prefers clusters of like size. Where sizes differ by far, the lowest cut splits a large class
    and joins small ones. Two halves of a class have a strong link (`strongest_link`). Only then, merges of finer
    partitions (`merged_partition`) are looked at: of 4 and of 8 times as many clusters, each from several starts.
    Those of fewer than five images are joined first, since all merges would agree to leave single images alone.
    Those of the two that agree better with each other are preferred if they agree well, and lower the strongest
    link by far. Where classes overlap, merges disagree, or no link is strong: there the cut is right.

    Parameters
    ----------
    X, graph, n_clusters, cut, seed, call_all
        See `best_partition`.
    n_init : int, default=10
        See `ensemble_partition`. Half as many finer partitions of each kind are merged, but at least three.

    Returns
    -------
    Partition
        With its stability.
    """
    lowest = ensemble_partition(X, graph, n_clusters, cut, n_init=n_init, seed=seed, call_all=call_all)
    most = min(graph.shape[0] // _MIN_FINE_SIZE, _MAX_FINE)
    numbers = sorted({min(times * n_clusters, most) for times in FINER})
    link = strongest_link(graph, lowest.labels)
    if most <= n_clusters or link < STRONG_LINK:
        return lowest
    rows = unit_rows(spectral_embedding(graph, n_eigenvectors(n_clusters), seed=seed))

    def merge(n_fine: int, start: int) -> Partition:
        fine = kmeans_labels(rows, n_fine, seed=seed + start)
        labels = merged_partition(graph, fine, n_clusters, least=_MIN_FINE_SIZE)
        return Partition(labels, cut(graph, labels), "merged")

    starts = range(max(3, n_init // 2))
    calls = [partial(merge, n_fine, start) for n_fine in numbers for start in starts]
    found = [call() for call in calls] if call_all is None else list(call_all(calls))
    kinds = [found[first : first + len(starts)] for first in range(0, len(found), len(starts))]
    merged = max((_with_stabilities(kind) for kind in kinds), key=_mean_stability)
    middle = max(merged, key=lambda partition: partition.stability)
    is_weaker = WEAKER_BY * strongest_link(graph, middle.labels) <= link
    return middle if _mean_stability(merged) >= STABLE and is_weaker else lowest


def _with_stabilities(found: Sequence[Partition]) -> list[Partition]:
    """Return partitions with how well each agrees with the others."""
    return [
        replace(one, stability=mean_agreement(one, [other for other in found if other is not one])) for one in found
    ]


def _mean_stability(found: Sequence[Partition]) -> float:
    return float(np.mean([partition.stability for partition in found]))


def cluster_tree(
    X: NDArray, graph: sparse.csr_array, labels: NDArray[np.integer], *, seed: int = 0
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Split each cluster into a few, and find the tree of merges that leads from these over the clusters to one.

    Parameters
    ----------
    X : array of shape (n, d)
        Features: clusters are split by k-means.
    graph : sparse array of shape (n, n)
        Their neighbourhood graph.
    labels : integer array of shape (n,)
    seed : int, default=0

    Returns
    -------
    fine_labels : ndarray of shape (n,), int32
        From 0 to m - 1.
    tree : ndarray of shape (m - 1, 4)
        See `merge_tree`.
    """
    codes = np.unique(labels, return_inverse=True)[1]
    fine = np.zeros(len(codes), dtype=np.int32)
    count = 0
    for cluster in range(codes.max() + 1):
        rows = np.flatnonzero(codes == cluster)
        parts = max(1, min(_SPLIT, len(rows) // _MIN_FINE_SIZE))
        split = kmeans_labels(X[rows], parts, seed=seed) if parts > 1 else np.zeros(len(rows), dtype=np.int32)
        found = np.unique(split, return_inverse=True)[1]
        fine[rows] = count + found
        count += found.max() + 1
    return fine, merge_tree(graph, fine, codes)


def cut_over_noise(
    X: NDArray[np.floating],
    labels: NDArray[np.integer],
    n_neighbors: int,
    cut: Callable[[sparse.csr_array, NDArray[Any]], float],
    *,
    seed: int = 0,
) -> float:
    """Compare the cut of a partition with the lowest one of Gaussian noise, to tell whether there are clusters at all.

    The noise has as many rows as X and, column by column, its variance. Both cuts are of neighbourhood graphs of at
    most 1,500 random rows.

    Parameters
    ----------
    X : array of shape (n, d)
        Features whose columns are uncorrelated, as principal components are.
    labels : integer array of shape (n,)
    n_neighbors : int
        See `skdiec.graph.knn_graph`.
    cut : callable
        ``cut(graph, labels)``, such as the normalised cut.
    seed : int, default=0

    Returns
    -------
    float
        From 0, for clusters without any edge between them, to about 1, for what is no better than noise. NaN for a
        single cluster.
    """
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(X))[:_NOISE_ROWS])
    X, labels = X[rows], labels[rows]
    n_clusters = len(np.unique(labels))
    noise = rng.normal(size=X.shape) * X.std(axis=0)
    lowest = best_partition(noise, knn_graph(noise, n_neighbors), n_clusters, cut, n_init=2, seed=seed).cut
    if n_clusters < 2 or lowest <= 0:
        return float("nan")
    return cut(knn_graph(X, n_neighbors), labels) / lowest
