"""Initial partitions: many candidates, merges of finer partitions, the choice among them, and the tree of clusters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn import config_context
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from skdiec.graph import knn_graph, spectral_embedding

AGREEMENT_POWER = 4
"""How steeply the weight of an edge falls with the share of partitions that put its ends into the same cluster."""

STRONG_LINK = 0.045
"""Two clusters whose link (`strongest_link`) is at least this may be halves of one."""

WEAKER_BY = 1.2
"""By which factor merges must lower the strongest link to be preferred."""

STABLE = 0.9
"""Mean adjusted Rand index among merges of several finer partitions, from which on they are trusted."""

NEAR_LOWEST = 1.1
"""Candidates up to so many times the lowest cut are its rivals."""

_NOISE_ROWS = 1500

_FINER = 4  # times as many clusters before merges
_MIN_FINE_SIZE = 5  # images of a finer cluster, on average
_MAX_FINE = 2000  # the time of merges grows with the cube
_MAX_RIVALS = 20
_TINY = np.finfo(float).tiny
_SEPARATE = 2.0  # more than a link can be


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
    candidates = _candidates(X, graph, n_clusters, n_init, given, warm_start, seed)
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
    All candidates are compared by their cut on the graph itself.

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
    found = _find(_candidates(X, graph, n_clusters, n_init - second, (), None, seed), value, call_all)
    if second > 0:
        weighted = co_association_graph(graph, [partition.labels for partition in found])
        found += _find(_candidates(None, weighted, n_clusters, second, (), None, seed), value, call_all)
    lowest = _lowest(found, n_init)
    rivals = sorted((other for other in found if other is not lowest), key=lambda partition: partition.cut)
    rivals = [other for other in rivals if other.cut <= NEAR_LOWEST * lowest.cut]
    return replace(lowest, stability=_mean_agreement(lowest, rivals[:_MAX_RIVALS]))


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

    The normalised cut prefers clusters of like size. Where sizes differ by far, the lowest cut splits a large class and
    joins small ones. Two halves of a class have a strong link (`strongest_link`). Only then, merges of finer partitions
    (`merged_partition`) from several starts are looked at. They are preferred if they agree with each other, and lower
    the strongest link by far. Where classes overlap, merges disagree, or no link is strong: there the cut is right.

    Parameters
    ----------
    X, graph, n_clusters, cut, seed, call_all
        See `best_partition`.
    n_init : int, default=10
        See `ensemble_partition`. Half as many finer partitions are merged, but at least three.

    Returns
    -------
    Partition
        With its stability.
    """
    lowest = ensemble_partition(X, graph, n_clusters, cut, n_init=n_init, seed=seed, call_all=call_all)
    n_fine = min(_FINER * n_clusters, graph.shape[0] // _MIN_FINE_SIZE, _MAX_FINE)
    link = strongest_link(graph, lowest.labels)
    if n_fine <= n_clusters or link < STRONG_LINK:
        return lowest
    rows = unit_rows(spectral_embedding(graph, _n_vectors(n_clusters), seed=seed))

    def merge(start: int) -> Partition:
        labels = merged_partition(graph, kmeans_labels(rows, n_fine, seed=seed + start), n_clusters)
        return Partition(labels, cut(graph, labels), "merged")

    calls = [partial(merge, start) for start in range(max(3, n_init // 2))]
    found = [call() for call in calls] if call_all is None else list(call_all(calls))
    stabilities = [_mean_agreement(one, [other for other in found if other is not one]) for one in found]
    middle = int(np.argmax(stabilities))
    is_weaker = WEAKER_BY * strongest_link(graph, found[middle].labels) <= link
    if np.mean(stabilities) < STABLE or not is_weaker:
        return lowest
    return replace(found[middle], stability=stabilities[middle])


def strongest_link(graph: sparse.csr_array, labels: NDArray[np.integer]) -> float:
    r"""Return the strongest link between two clusters.

    .. math:: \max_{k \ne l} W_{kl} / \sqrt{W_k W_l}

    with W_kl the weight of the edges between clusters k and l, and W_k the weight of all edges of the images of k.

    Parameters
    ----------
    graph : sparse array of shape (n, n)
    labels : integer array of shape (n,)

    Returns
    -------
    float
        From 0, also of a single cluster, to 1.

    Examples
    --------
    >>> path = sparse.csr_array(np.diag([1.0, 1, 1], 1) + np.diag([1.0, 1, 1], -1))
    >>> round(strongest_link(path, np.array([0, 0, 1, 1])), 4)  # one edge, of the three that each cluster has
    0.3333
    """
    weights = _between(graph, np.unique(labels, return_inverse=True)[1])
    return max(0.0, float(_links(weights).max()))


def merged_partition(graph: sparse.csr_array, fine: NDArray[np.integer], n_clusters: int) -> NDArray[np.int32]:
    """Merge the two clusters with the strongest link, again and again, until some number is left.

    Parameters
    ----------
    graph : sparse array of shape (n, n)
    fine : integer array of shape (n,)
        A partition into more clusters.
    n_clusters : int

    Returns
    -------
    ndarray of shape (n,), int32
        From 0. Fewer clusters only where `fine` has fewer.
    """
    codes = np.unique(fine, return_inverse=True)[1]
    return cut_tree(merge_tree(graph, codes), n_clusters)[codes]


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
        parts = max(1, min(_FINER, len(rows) // _MIN_FINE_SIZE))
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


def merge_tree(
    graph: sparse.csr_array, fine: NDArray[np.integer], coarse: NDArray[np.integer] | None = None
) -> NDArray[np.float64]:
    """Merge the two clusters with the strongest link, again and again, until one is left.

    Parameters
    ----------
    graph : sparse array of shape (n, n)
    fine : integer array of shape (n,)
        m clusters, from 0, none empty.
    coarse : integer array of shape (n,), default=None
        A coarser partition. All of its clusters are put together before any two of them are merged.

    Returns
    -------
    ndarray of shape (m - 1, 4)
        As of `scipy.cluster.hierarchy.linkage`: the two clusters of each merge, its height, and how many of the m it
        has put together. The height is 1 minus the link, or that of the merge before where this is more.
    """
    weights = _between(graph, fine)
    n_fine = len(weights)
    volume, size, node = weights.sum(axis=1), np.ones(n_fine), np.arange(n_fine)
    links = _links(weights)
    apart = np.zeros_like(links)
    if coarse is not None:
        group = np.zeros(n_fine, dtype=int)
        group[fine] = coarse
        apart = _SEPARATE * (group[:, None] != group)
    order = links - apart
    tree, height = np.zeros((n_fine - 1, 4)), 0.0
    for step, merge in enumerate(tree):
        first, second = sorted(divmod(int(order.argmax()), n_fine))
        height = max(height, 1.0 - links[first, second])
        size[first] += size[second]
        merge[:] = (*sorted((node[first], node[second])), height, size[first])
        node[first] = n_fine + step
        weights[first] += weights[second]
        weights[:, first] += weights[:, second]
        volume[first] += volume[second]
        links[first] = links[:, first] = weights[first] / np.sqrt(np.maximum(volume[first] * volume, _TINY))
        order[first] = order[:, first] = links[first] - apart[first]
        order[first, first] = -np.inf
        gone = np.isneginf(order[second])
        gone[second] = True
        order[first, gone] = order[gone, first] = -np.inf
        order[second] = order[:, second] = -np.inf
    return tree


def cut_tree(tree: NDArray[np.float64], n_clusters: int) -> NDArray[np.int32]:
    """Return the cluster of each leaf of a tree, once all but the last merges are done.

    Parameters
    ----------
    tree : ndarray of shape (m - 1, 4)
        See `merge_tree`.
    n_clusters : int
        At least 1; more than m leave all leaves alone.

    Returns
    -------
    ndarray of shape (m,), int32
        Clusters are numbered from 0, in the order of their first leaves.
    """
    n_leaves = len(tree) + 1
    top = np.arange(n_leaves + len(tree))
    for step, (first, second) in enumerate(tree[: max(0, n_leaves - n_clusters), :2].astype(int)):
        top[[first, second]] = n_leaves + step
    for node in range(len(top) - 1, -1, -1):  # parents have higher numbers than their children
        top[node] = top[top[node]]
    _, first_leaf, codes = np.unique(top[:n_leaves], return_index=True, return_inverse=True)
    return first_leaf.argsort().argsort()[codes].astype(np.int32)


def _between(graph: sparse.csr_array, labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the weight of the edges between each two clusters, which are numbered from 0."""
    rows = np.arange(len(labels))
    members = sparse.csr_array((np.ones(len(labels)), (rows, labels)), shape=(len(labels), labels.max() + 1))
    return (members.T @ graph @ members).toarray()


def _links(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the links of clusters, given the weights between them; minus infinity on the diagonal."""
    volume = weights.sum(axis=1)
    links = weights / np.sqrt(np.maximum(np.outer(volume, volume), _TINY))
    np.fill_diagonal(links, -np.inf)
    return links


def _mean_agreement(partition: Partition, others: Sequence[Partition]) -> float:
    """Return the mean adjusted Rand index of a partition with others; 1 where there are none."""
    found = [adjusted_rand_score(partition.labels, other.labels) for other in others]
    return float(np.mean(found)) if found else 1.0


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


def _candidates(
    X: ArrayLike | None,
    graph: sparse.csr_array,
    n_clusters: int,
    n_init: int,
    given: Sequence[NDArray[np.integer]],
    warm_start: NDArray[np.integer] | None,
    seed: int,
) -> list[tuple[str, Callable[[], NDArray[np.int32]]]]:
    """Return where each candidate comes from, and how to find it."""
    found: list[tuple[str, Callable[[], NDArray[np.int32]]]] = []
    found += [("given", partial(np.asarray, labels, dtype=np.int32)) for labels in given]
    if X is not None:
        rows = np.asarray(X)
        found += [("k-means", partial(kmeans_labels, rows, n_clusters, seed=seed + start)) for start in range(n_init)]
    if n_clusters < 2 or graph.shape[0] <= n_clusters:
        return found
    vectors = spectral_embedding(graph, _n_vectors(n_clusters), seed=seed)
    for width in sorted({n_clusters, (n_clusters + vectors.shape[1]) // 2, vectors.shape[1]}):
        cluster = partial(kmeans_labels, unit_rows(vectors[:, :width]), n_clusters)
        if warm_start is not None:
            found.append(("spectral", partial(cluster, warm_start=warm_start, seed=seed)))
        starts = range(n_init if warm_start is None else 1)
        found += [("spectral", partial(cluster, seed=seed + start)) for start in starts]
    return found


def _n_vectors(n_clusters: int) -> int:
    """Return how many eigenvectors candidates are found in at most."""
    return n_clusters + max(2, round(0.6 * n_clusters))


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
