"""Candidates for a partition, by k-means and by eigenvectors, and the one with the lowest cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn import config_context
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from skdiec.graph import spectral_embedding
from skdiec.partition.merging import in_order
from skdiec.partition.splitting import split_and_merge

AGREEMENT_POWER = 4
"""How steeply the weight of an edge falls with the share of partitions that put its ends into the same cluster."""

NEAR_LOWEST = 1.1
"""Candidates up to so many times the lowest cut are its rivals."""

_MAX_RIVALS = 20
_SPLIT_INIT = 3


@dataclass(frozen=True)
class Partition:
    """A partition and where it came from.

    Attributes
    ----------
    labels : ndarray of shape (n,), int32
        Cluster of each row, from 0.
    cut : float
        Value of the objective, lower is better.
    source : str
        ``"spectral"``, ``"k-means"``, ``"given"`` or ``"merged"``.
    stability : float
        Mean adjusted Rand index with its rivals: the candidates whose cut is at most a tenth higher or, of merged
        clusters, the merges of other finer partitions. 1 where there is none; NaN where it was not asked for.
    """

    labels: NDArray[np.int32]
    cut: float
    source: str
    stability: float = np.nan


CallAll = Callable[[Sequence[Callable[[], Partition]]], Sequence[Partition]]
"""Calls functions without arguments, perhaps several at the same time; returns their results in order."""


def best_partition(
    X: ArrayLike | None,
    graph: sparse.csr_array,
    n_clusters: int,
    cut: Callable[[sparse.csr_array, NDArray[np.int32]], float],
    *,
    n_init: int = 10,
    given: Sequence[NDArray[np.integer]] = (),
    warm_start: NDArray[np.integer] | None = None,
    seed: int = 0,
    call_all: CallAll | None = None,
) -> Partition:
    """Find the partition with the lowest cut among many spectral and k-means partitions.

    A k-means run ends in one of many local optima, typically with one class split and two merged. The cut tells
    such a partition from the right one without labels, so the candidates should differ: k-means on
    n_clusters and more eigenvectors, each from several starts, and k-means on the features themselves.

    Parameters
    ----------
    X : array-like of shape (n, d) or None
        Features; None leaves k-means on them out.
    graph : sparse array of shape (n, n)
        Their neighbourhood graph.
    n_clusters : int
        At most n.
    cut : callable
        ``cut(graph, labels)``, lower is better, such as the normalised cut.
    n_init : int, default=10
        Starts of k-means in each space.
    given : sequence of integer arrays of shape (n,), default=()
        Further candidates.
    warm_start : integer array of shape (m,), default=None
        A partition of the first m rows, found before. On the eigenvectors, k-means starts once from its means and once
        at random, in place of `n_init` times.
    seed : int, default=0
    call_all : callable, default=None
        ``call_all(calls)`` returns what each of some functions without arguments returns: several candidates can be
        found at the same time. None calls one after the other.

    Returns
    -------
    Partition
    """
    vectors = _eigenvectors(graph, n_clusters, seed)
    candidates = _candidates(X, n_clusters, n_init, given, warm_start, seed, vectors)
    return _lowest(_find(candidates, partial(cut, graph), call_all), n_init)


def ensemble_partition(
    X: ArrayLike,
    graph: sparse.csr_array,
    n_clusters: int,
    cut: Callable[[sparse.csr_array, NDArray[np.int32]], float],
    *,
    n_init: int = 10,
    seed: int = 0,
    call_all: CallAll | None = None,
) -> Partition:
    """Find the partition with the lowest cut in two rounds, of which the second one learns from the first.

    Half of the starts go to candidates as in `best_partition`. They disagree on some edges of the graph, and where most
    of them agree they are mostly right: so the other half goes to the eigenvectors of the graph with its edges weighted
    by their agreement (`co_association_graph`). These find lower cuts than as many more starts on the graph itself do.
    All candidates are compared by their cut on the graph itself. Those with a cut near the lowest are mended where they
    split a class and leave two together (`split_and_merge`).

    Parameters
    ----------
    X, graph, n_clusters, cut, seed, call_all
        See `best_partition`.
    n_init : int, default=10
        Starts of k-means in each space, of both rounds together; with one there is no second round.

    Returns
    -------
    Partition
        With its stability.
    """
    second = n_init // 2
    value = partial(cut, graph)
    vectors = _eigenvectors(graph, n_clusters, seed)
    found = _find(_candidates(X, n_clusters, n_init - second, (), None, seed, vectors), value, call_all)
    if second > 0:
        weighted = _eigenvectors(co_association_graph(graph, [one.labels for one in found]), n_clusters, seed)
        found += _find(_candidates(None, n_clusters, second, (), None, seed, weighted), value, call_all)
    found = _near(found, _lowest(found, n_init).cut)
    if vectors is not None:
        found = _mended(found, graph, value, unit_rows(vectors), seed)
    lowest, *rivals = _near(found, min(partition.cut for partition in found))
    return replace(lowest, stability=mean_agreement(lowest, rivals))


def _near(found: Sequence[Partition], lowest: float) -> list[Partition]:
    """Return the partition with the lowest cut and its rivals, by their cut."""
    near = [partition for partition in found if partition.cut <= NEAR_LOWEST * lowest]
    return sorted(near, key=lambda partition: partition.cut)[: 1 + _MAX_RIVALS]


def _mended(
    found: Sequence[Partition],
    graph: sparse.csr_array,
    value: Callable[[NDArray[np.int32]], float],
    rows: NDArray[np.float64],
    seed: int,
) -> list[Partition]:
    """Split and merge clusters of partitions, where that mends them. Many are the same, and so is what becomes of them.

    Clusters are split by k-means on `rows`.
    """

    def halves(members: NDArray[np.integer]) -> NDArray[np.int32]:
        cluster = rows[members]
        if (cluster == cluster[0]).all():
            return np.zeros(len(members), dtype=np.int32)
        return kmeans_labels(cluster, 2, n_init=_SPLIT_INIT, seed=seed)

    keys = [in_order(partition.labels).tobytes() for partition in found]
    mended: dict[bytes, Partition] = {}
    for key, partition in zip(keys, found, strict=True):
        if key not in mended:
            labels = split_and_merge(graph, partition.labels, value, halves)
            mended[key] = replace(partition, labels=labels, cut=value(labels))
    return [mended[key] for key in keys]


def co_association_graph(graph: sparse.csr_array, partitions: Sequence[NDArray[np.integer]]) -> sparse.csr_array:
    r"""Weight a graph's edges by how many partitions put both ends into the same cluster.

    .. math:: w_{ij} \left( (1 + m_{ij}) / (1 + m) \right)^4

    where m_ij of the m partitions do. Such counts are the co-association of cluster ensembles (Fred and Jain, 2005),
    here of neighbours alone, so that the graph stays sparse; 1 is added so that no edge disappears.

    Parameters
    ----------
    graph : sparse array of shape (n, n)
    partitions : sequence of integer arrays of shape (n,)

    Returns
    -------
    csr_array of shape (n, n), float64

    Examples
    --------
    >>> graph = sparse.csr_array(np.diag([1.0, 1], 1) + np.diag([1.0, 1], -1))
    >>> co_association_graph(graph, [np.array([0, 0, 1])]).toarray()
    array([[0.    , 1.    , 0.    ],
           [1.    , 0.    , 0.0625],
           [0.    , 0.0625, 0.    ]])
    """
    graph = sparse.csr_array(graph)
    heads, tails = np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr)), graph.indices
    together = np.ones(len(tails))
    for labels in partitions:
        together += labels[heads] == labels[tails]
    weights = graph.data * (together / (1 + len(partitions))) ** AGREEMENT_POWER
    return sparse.csr_array((weights, tails, graph.indptr), shape=graph.shape)


def kmeans_labels(
    X: NDArray, n_clusters: int, *, n_init: int = 1, warm_start: NDArray[np.integer] | None = None, seed: int = 0
) -> NDArray[np.int32]:
    """Cluster by k-means++, or from the means of a partition of the first rows, unless a cluster of it is empty.

    Rows that coincide leave clusters empty, of which scikit-learn warns.
    """
    init: str | NDArray = "k-means++"
    if warm_start is not None:
        sizes = np.bincount(warm_start, minlength=n_clusters)
        if sizes.all():
            members = np.eye(n_clusters, dtype=X.dtype)[warm_start]
            init, n_init = members.T @ X[: len(warm_start)] / sizes[:, None].astype(X.dtype), 1
    # Checks of what this library passes would take a tenth of the time on few rows.
    with config_context(assume_finite=True, skip_parameter_validation=True):
        return KMeans(n_clusters, init=init, n_init=n_init, random_state=seed).fit(X).labels_


def unit_rows(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rows at length 1, but for those of zeros.

    Parameters
    ----------
    vectors : ndarray of shape (n, d)

    Returns
    -------
    ndarray of shape (n, d)
    """
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def n_eigenvectors(n_clusters: int) -> int:
    """Return how many eigenvectors candidates are found in at most: 1.6 times as many as clusters.

    Parameters
    ----------
    n_clusters : int

    Returns
    -------
    int
    """
    return n_clusters + max(2, round(0.6 * n_clusters))


def mean_agreement(partition: Partition, others: Sequence[Partition]) -> float:
    """Return the mean adjusted Rand index of a partition with others.

    Parameters
    ----------
    partition : Partition
    others : sequence of Partition

    Returns
    -------
    float
        Up to 1, which it also is where there are no others.
    """
    found = [adjusted_rand_score(partition.labels, other.labels) for other in others]
    return float(np.mean(found)) if found else 1.0


def _find(
    candidates: Sequence[tuple[str, Callable[[], NDArray[np.int32]]]],
    cut: Callable[[NDArray[np.int32]], float],
    call_all: CallAll | None,
) -> list[Partition]:
    """Compute candidates and their cuts."""

    def find(source: str, run: Callable[[], NDArray[np.int32]]) -> Partition:
        labels = run()
        return Partition(labels, cut(labels), source)

    calls = [partial(find, *candidate) for candidate in candidates]
    return [call() for call in calls] if call_all is None else list(call_all(calls))


def _lowest(found: Sequence[Partition], n_init: int) -> Partition:
    """Return the first partition with the lowest cut."""
    if not found:
        raise ValueError(f"n_init must be at least 1; got {n_init}")
    return min(found, key=lambda partition: partition.cut)


def _eigenvectors(graph: sparse.csr_array, n_clusters: int, seed: int) -> NDArray[np.float64] | None:
    """Return the eigenvectors that candidates are found on, unless there is but one partition to find."""
    if n_clusters < 2 or graph.shape[0] <= n_clusters:
        return None
    return spectral_embedding(graph, n_eigenvectors(n_clusters), seed=seed)


def _candidates(
    X: ArrayLike | None,
    n_clusters: int,
    n_init: int,
    given: Sequence[NDArray[np.integer]],
    warm_start: NDArray[np.integer] | None,
    seed: int,
    vectors: NDArray[np.float64] | None,
) -> list[tuple[str, Callable[[], NDArray[np.int32]]]]:
    """Return where each candidate comes from, and how to find it."""
    found: list[tuple[str, Callable[[], NDArray[np.int32]]]] = []
    found += [("given", partial(np.asarray, labels, dtype=np.int32)) for labels in given]
    if X is not None:
        rows = np.asarray(X)
        found += [("k-means", partial(kmeans_labels, rows, n_clusters, seed=seed + start)) for start in range(n_init)]
    if vectors is None:
        return found
    for width in sorted({n_clusters, (n_clusters + vectors.shape[1]) // 2, vectors.shape[1]}):
        cluster = partial(kmeans_labels, unit_rows(vectors[:, :width]), n_clusters)
        if warm_start is not None:
            found.append(("spectral", partial(cluster, warm_start=warm_start, seed=seed)))
        starts = range(n_init if warm_start is None else 1)
        found += [("spectral", partial(cluster, seed=seed + start)) for start in starts]
    return found
