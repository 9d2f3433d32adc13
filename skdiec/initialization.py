"""What training begins with: projected features, their neighbourhood graph and the initial partition."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.metrics import pairwise_distances_argmin
from sklearn.semi_supervised import LabelSpreading

from skdiec.cluster_number import ClusterNumber, estimate_n_clusters
from skdiec.graph import knn_graph, moved_knn_graph
from skdiec.parallel import in_parallel
from skdiec.partition import CallAll, Partition, best_partition, initial_partition, kmeans_labels
from skdiec.scores import balanced_cut, normalized_cut
from skdiec.search import principal_components
from skdiec.training import Projection

logger = logging.getLogger(__name__)

_MOVED = "images compared as they are moved"

_SPREAD = 4.0
"""Root mean square distance of projected features from their mean, on which depends how far a Student t kernel of unit
width reaches."""

_OWN_WEIGHT = 2.0
"""Weight of the features' own graph beside those of other representations, which are of one noise draw each."""

_AS_FAR_APART = 1.1
"""Where comparing images as they are moved raises the cut of their clusters by more than this factor, motions may bring
together what does not belong so, such as faces of several people in one pose. Up to it, images as they are say less."""

_SURER_BY = 0.02
"""Where the cut is raised, the partition must be more stable by so much: where all are stable, that says nothing."""

_FEW_IMAGES, _RUNS, _APART = 3000, 3, 100
"""Of up to so many images, each partition is found so many times, and the most stable one taken, of merges if there are
any. Seeds lie apart, since starts within a run count on from its seed."""

_QUICK_INIT = 3

_VOTES = 10
"""Rounds in which neighbours vote, at most. Nearly all labels are settled after three."""

_OWN_VOTE = 0.1
"""An image's own label decides where its neighbours are undecided."""


_ALPHA, _MAX_ITER = 0.95, 1000
"""Label spreading: how much an image takes from its neighbours, the rest from its own label; and its rounds at most."""


@dataclass(frozen=True)
class Initialization:
    """Where training starts.

    Attributes
    ----------
    graph : sparse array of shape (n, n)
        The neighbourhood graph.
    labels : ndarray of shape (n,), int32
        The initial partition.
    stability : float
        How sure it is; NaN where it was not searched for. See `skdiec.partition.initial_partition`.
    n_clusters : int
    number : ClusterNumber or None
        How `n_clusters` was found, where it was.
    """

    graph: sparse.csr_array
    labels: NDArray[np.int32]
    stability: float
    n_clusters: int
    number: ClusterNumber | None


def projection_of(
    version: str, features: NDArray[np.float32], n_components: int, seed: int, n_jobs: int | None
) -> Projection:
    """Find what brings features to their principal components.

    Parameters
    ----------
    version : str
        Of this library, for caches: another one may give another result.
    features : ndarray of shape (n, d), float32
    n_components, n_jobs
        See `DiffusionEmbeddedClustering`.
    seed : int

    Returns
    -------
    Projection
    """
    mean, components, variances = principal_components(features, n_components, n_jobs=n_jobs, seed=seed)
    return Projection(mean, components, (float(np.sqrt(variances.sum())) or 1.0) / _SPREAD)


def initialize(
    version: str,
    h: NDArray[np.float64],
    moved: Sequence[NDArray[np.float64]],
    moved_rows: NDArray[np.integer],
    beside: sparse.csr_array | None,
    n_clusters: int | NDArray[np.integer],
    n_neighbors: int,
    neighbors_algorithm: str,
    init: str | ArrayLike,
    n_init: int,
    balance: float,
    seed: int,
    n_jobs: int | None,
) -> Initialization:
    """Find the neighbourhood graph of projected features, and an initial partition.

    Parameters
    ----------
    version : str
        Of this library, for caches: another one may give another result.
    h : ndarray of shape (n, q), float64
        Projected features.
    moved : sequence of ndarray of shape (m, q), float64
        Projected features of some images as they are, then as each motion has moved them. Empty where images are not
        compared so. Where these are all images, and clusters on the graph of `moved_knn_graph` lie as far apart as
        those of `h`, it takes the place of the graph of `h`. Otherwise, its partition must be clearly more stable.
    moved_rows : integer array of shape (m,)
        Which images. The others get the labels of their neighbours.
    beside : sparse array of shape (n, n) or None
        Neighbourhood graphs of other representations, added up. A second initial partition is found on their sum with
        twice the features' own graph, and taken where it is the more stable one.
    n_clusters : int or ndarray of shape (m,)
        Rows of `h`, of images that differ, to estimate the number on.
    n_neighbors, neighbors_algorithm, init, n_init, n_jobs
        See `DiffusionEmbeddedClustering`.
    balance : float
        Weight of cluster sizes in the choice of partitions; see `skdiec.scores.balanced_cut`.
    seed : int

    Returns
    -------
    Initialization

    Raises
    ------
    ValueError
        Where `init` are centres of other dimensions than the embedding has.
    """
    graph = knn_graph(h, n_neighbors, algorithm=neighbors_algorithm, n_jobs=n_jobs, seed=seed)
    side_by_side = functools.partial(in_parallel, n_jobs=n_jobs, threads=True)
    number = None
    if not isinstance(n_clusters, int):
        number = estimate_n_clusters(h[n_clusters], n_neighbors, seed=seed, call_all=side_by_side)
        n_clusters = number.n_clusters
    stability = math.nan
    if not isinstance(init, str) and np.ndim(init) == 1:
        labels = _labels_along_graph(graph, np.asarray(init, dtype=np.int32), h)
    elif not isinstance(init, str):
        centers = np.asarray(init, dtype=np.float64)
        if centers.shape[1] != h.shape[1]:
            raise ValueError(
                f"init must have {h.shape[1]} columns, the dimensions of the embedding; got {centers.shape[1]}"
            )
        labels = pairwise_distances_argmin(h, centers).astype(np.int32)
    elif init == "k-means++":
        run = functools.partial(kmeans_labels, h, n_clusters, n_init=n_init, seed=seed)
        (labels,) = in_parallel([run], 1)
    else:
        surest, graph = _surest_partition(
            h, graph, moved, moved_rows, beside, n_clusters, n_neighbors, n_init, balance, seed, side_by_side
        )
        labels, stability = surest.labels, surest.stability
    return Initialization(graph, labels, stability, n_clusters, number)


def _surest_partition(
    h: NDArray[np.float64],
    graph: sparse.csr_array,
    moved: Sequence[NDArray[np.float64]],
    rows: NDArray[np.integer],
    beside: sparse.csr_array | None,
    n_clusters: int,
    n_neighbors: int,
    n_init: int,
    balance: float,
    seed: int,
    call_all: CallAll,
) -> tuple[Partition, sparse.csr_array]:
    """Return the most stable of several partitions, and the graph that training goes on with."""
    cut = functools.partial(balanced_cut, n_clusters=n_clusters, balance=balance)
    n_runs = min(_RUNS, n_init) if len(h) <= _FEW_IMAGES else 1

    def find(x: NDArray[np.float64], each: sparse.csr_array) -> Partition:
        run = functools.partial(initial_partition, x, each, n_clusters, cut, n_init=n_init, call_all=call_all)
        return max((run(seed=seed + _APART * number) for number in range(n_runs)), key=_merges_first)

    def lowest(each: sparse.csr_array) -> float:
        return best_partition(h, each, n_clusters, normalized_cut, n_init=_QUICK_INIT, seed=seed, call_all=call_all).cut

    are_all = len(rows) == len(h)
    alike = moved_knn_graph(moved, n_neighbors) if moved else graph
    lies_as_far_apart = bool(moved) and are_all and lowest(alike) <= _AS_FAR_APART * lowest(graph)
    found = {} if lies_as_far_apart else {"images as they are": find(h, graph)}
    if beside is not None:
        found["several representations"] = find(h, sparse.csr_array(_OWN_WEIGHT * graph + beside))
    if moved:
        found[_MOVED] = find(h[rows], alike)
    less = {} if lies_as_far_apart else {_MOVED: _SURER_BY}
    surest = max(found, key=lambda name: found[name].stability - less.get(name, 0.0))
    stabilities = ", ".join(f"{partition.stability:.3f} of {name}" for name, partition in found.items())
    logger.info("initial partition: of %s (stability %s)", surest, stabilities)
    if surest != _MOVED:
        return found[surest], graph
    if are_all:
        return found[surest], alike
    return replace(found[surest], labels=_spread(found[surest].labels, rows, h, graph)), graph


def _merges_first(partition: Partition) -> tuple[bool, float]:
    """Return what a run's partition is chosen by.

    Where sizes differ by far, the lowest cut is a wrong partition that nearly all candidates agree on, and merges are
    only trusted in some runs. So they come first: how stable the two are says nothing about which is right.
    """
    return partition.source == "merged", partition.stability


def _spread(
    labels: NDArray[np.int32], rows: NDArray[np.integer], h: NDArray[np.float64], graph: sparse.csr_array
) -> NDArray[np.int32]:
    """Return labels of all rows that fit those of some: of the nearest mean first, then as most neighbours have it."""
    spread = np.full(len(h), -1, dtype=np.int32)
    spread[rows] = labels
    spread = _completed(spread, h)
    itself = sparse.csr_array(graph + _OWN_VOTE * sparse.eye_array(len(h)))
    for _ in range(_VOTES):
        votes = itself @ sparse.csr_array((np.ones(len(h)), spread, np.arange(len(h) + 1)))
        before, spread = spread, votes.toarray().argmax(axis=1).astype(np.int32)
        if (spread == before).all():
            break
    return spread


def _labels_along_graph(
    graph: sparse.csr_array, labels: NDArray[np.int32], h: NDArray[np.float64]
) -> NDArray[np.int32]:
    """Give rows without a label, -1, one by label spreading, or of the nearest mean where no path leads to one.

    Classes are seldom round, so that this is right for more of the others than the nearest mean is. Of images that were
    compared as they are moved, `_spread` has labels of thousands, and a vote of neighbours is enough.
    """
    known = labels >= 0
    completed = _completed(labels, h)
    if known.all() or 2 * (labels.max() + 1) > len(labels):  # of clusters of one or two images, neighbours say little
        return completed
    spreading = LabelSpreading(lambda *_: sparse.csr_matrix(graph), alpha=_ALPHA, max_iter=_MAX_ITER)
    spreading.fit(np.zeros((len(labels), 1)), labels)  # its rows do not count, the graph is given
    reached = ~known & spreading.label_distributions_.any(axis=1)
    completed[reached] = spreading.transduction_[reached]
    return completed


def _completed(labels: NDArray[np.int32], h: NDArray[np.float64]) -> NDArray[np.int32]:
    """Give rows without a label, which is -1, that of the nearest mean of those with one."""
    known = labels >= 0
    if known.all():
        return labels
    means = np.stack([h[labels == cluster].mean(axis=0) for cluster in range(labels.max() + 1)])
    completed = labels.copy()
    completed[~known] = pairwise_distances_argmin(h[~known], means)
    return completed


def first_number(
    features: NDArray[np.float32], n_components: int, n_neighbors: int, seed: int, n_jobs: int | None
) -> int:
    """Estimate how many clusters a representation has at most, for the search to work with.

    Too few would lead it to a representation in which these few lie apart, too many do little harm.

    Parameters
    ----------
    features : ndarray of shape (n, d), float32
        Of images that differ.
    n_components, n_neighbors, n_jobs
        See `DiffusionEmbeddedClustering`.
    seed : int

    Returns
    -------
    int
    """
    mean, components, _ = principal_components(features, n_components, n_jobs=n_jobs, seed=seed)
    h = Projection(mean, components, 1.0).project(features)
    side_by_side = functools.partial(in_parallel, n_jobs=n_jobs, threads=True)
    return estimate_n_clusters(h, n_neighbors, n_init=1, seed=seed, call_all=side_by_side).at_most
