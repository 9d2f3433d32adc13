"""What training begins with: projected features, their neighbourhood graph and the initial partition."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.metrics import pairwise_distances_argmin

from skdiec.cluster_number import ClusterNumber, estimate_n_clusters
from skdiec.graph import knn_graph
from skdiec.parallel import in_parallel
from skdiec.partition import initial_partition, kmeans_labels
from skdiec.scores import balanced_cut
from skdiec.search import principal_components
from skdiec.training import Projection

_SPREAD = 4.0
"""Root mean square distance of projected features from their mean, on which depends how far a Student t kernel of unit
width reaches."""

_OWN_WEIGHT = 2.0
"""Weight of the features' own graph beside those of other representations, which are of one noise draw each."""


@dataclass(frozen=True)
class Initialization:
    """Where training starts.

    Attributes
    ----------
    projection : Projection
        From features to `h`.
    h : ndarray of shape (n, q), float64
        Projected features.
    graph : sparse array of shape (n, n)
        Their neighbourhood graph.
    labels : ndarray of shape (n,), int32
        The initial partition.
    stability : float
        How sure it is; NaN where it was not searched for. See `skdiec.partition.initial_partition`.
    n_clusters : int
    number : ClusterNumber or None
        How `n_clusters` was found, where it was.
    """

    projection: Projection
    h: NDArray[np.float64]
    graph: sparse.csr_array
    labels: NDArray[np.int32]
    stability: float
    n_clusters: int
    number: ClusterNumber | None


def initialize(
    version: str,
    features: NDArray[np.float32],
    n_clusters: int | NDArray[np.integer],
    n_components: int,
    n_neighbors: int,
    neighbors_algorithm: str,
    init: str | ArrayLike,
    n_init: int,
    balance: float,
    beside: sparse.csr_array | None,
    seed: int,
    n_jobs: int | None,
) -> Initialization:
    """Project features, find their neighbourhood graph and an initial partition.

    Parameters
    ----------
    version : str
        Of this library, for caches: another one may give another result.
    features : ndarray of shape (n, d), float32
    n_clusters : int or ndarray of shape (m,)
        Rows of `features`, of images that differ, to estimate the number on.
    n_components, n_neighbors, neighbors_algorithm, init, n_init, n_jobs
        See `DiffusionEmbeddedClustering`.
    balance : float
        Weight of cluster sizes in the choice of partitions; see `skdiec.scores.balanced_cut`.
    beside : sparse array of shape (n, n) or None
        Neighbourhood graphs of other representations, added up. A second initial partition is found on their sum with
        twice the features' own graph, and taken where it is the more stable one.
    seed : int

    Returns
    -------
    Initialization

    Raises
    ------
    ValueError
        Where `init` are centres of other dimensions than the embedding has.
    """
    mean, components, variances = principal_components(features, n_components, n_jobs=n_jobs, seed=seed)
    spread = float(np.sqrt(variances.sum()))
    projection = Projection(mean, components, (spread or 1.0) / _SPREAD)
    h = projection.project(features)
    graph = knn_graph(h, n_neighbors, algorithm=neighbors_algorithm, n_jobs=n_jobs, seed=seed)
    side_by_side = functools.partial(in_parallel, n_jobs=n_jobs, threads=True)
    number = None
    if not isinstance(n_clusters, int):
        number = estimate_n_clusters(h[n_clusters], n_neighbors, seed=seed, call_all=side_by_side)
        n_clusters = number.n_clusters
    stability = math.nan
    if not isinstance(init, str) and np.ndim(init) == 1:
        labels = _completed(np.asarray(init, dtype=np.int32), h)
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
        cut = functools.partial(balanced_cut, n_clusters=n_clusters, balance=balance)
        find = functools.partial(initial_partition, h, n_clusters=n_clusters, cut=cut, n_init=n_init, seed=seed)
        graphs = [graph] if beside is None else [graph, sparse.csr_array(_OWN_WEIGHT * graph + beside)]
        surest = max((find(each, call_all=side_by_side) for each in graphs), key=attrgetter("stability"))
        labels, stability = surest.labels, surest.stability
    return Initialization(projection, h, graph, labels, stability, n_clusters, number)


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
