"""How many clusters there are: a score of partitions into every number of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import pairwise_distances, silhouette_score

from skdiec.graph import knn_graph, spectral_embedding
from skdiec.partition import kmeans_labels, strongest_link, unit_rows
from skdiec.scores import modularity, normalized_cut

MAX_IMAGES = 2000
"""Images that the number is estimated on, at most."""

MAX_CLUSTERS = 150
"""The highest number that is looked at."""

_LEAST_SIZE = 8  # images of a cluster, on average
_EVERY_UP_TO = 30
_STEP = 1.06  # from one number to the next, above
_BEYOND = 3  # times the best number by any score, there is no need to look further
_BLOCK = 8  # numbers above the first 30 that are looked at between these decisions


_Judged = tuple[float, float, float]  # silhouette, modularity and score


@dataclass(frozen=True)
class ClusterNumber:
    """How many clusters there are.

    Attributes
    ----------
    n_clusters : int
        The number with the highest score.
    at_most : int
        The largest one of the numbers with the highest score, silhouette and modularity.
    candidates : ndarray of shape (n_candidates,), int64
        Numbers that were looked at, in ascending order: all up to 30, and steps of 6 % above, up to three times those
        where the scores are highest.
    silhouettes : ndarray of shape (n_candidates,), float64
        Mean silhouette of the partition into each.
    modularities : ndarray of shape (n_candidates,), float64
        Modularity of the neighbourhood graph's partition into each.
    scores : ndarray of shape (n_candidates,), float64
        What decides, from both and the strongest link of each partition; see `estimate_n_clusters`.
    """

    n_clusters: int
    at_most: int
    candidates: NDArray[np.int64]
    silhouettes: NDArray[np.float64]
    modularities: NDArray[np.float64]
    scores: NDArray[np.float64]


def estimate_n_clusters(
    X: NDArray[np.floating],
    n_neighbors: int,
    *,
    n_init: int = 3,
    seed: int = 0,
    call_all: Callable[[Sequence[Callable[[], _Judged]]], Sequence[_Judged]] | None = None,
) -> ClusterNumber:
    r"""Estimate the number of clusters of some rows.

    The rows are divided into each number of clusters by k-means on as many eigenvectors of their neighbourhood graph.
    The number is taken whose partition has the highest score

    .. math:: S Q^4 / \sqrt{1 + 10 L}

    with S its mean silhouette (0 where it is less), Q its modularity, and L the strongest link between two of its
    clusters (`skdiec.partition.strongest_link`). Each of them errs in a way of its own. The silhouette is highest at
    two or three clusters where sizes are uneven or classes overlap, and at far too many where the images of a class
    form tight groups, such as poses of one face. Modularity says too many where classes are large beside the
    neighbourhoods of their images: there, the link tells that a class was split.

    Parameters
    ----------
    X : array of shape (n, d)
        Features, none of them of two equal images. More than 2,000 rows take long.
    n_neighbors : int
        See `skdiec.graph.knn_graph`.
    n_init : int, default=3
        Starts of k-means, of which the one with the lowest normalised cut is taken.
    seed : int, default=0
    call_all : callable, default=None
        As in `skdiec.partition.best_partition`.

    Returns
    -------
    ClusterNumber
        1 where there are fewer than 4 rows, and no candidates.
    """
    candidates = candidate_numbers(len(X))
    if not len(candidates):
        return ClusterNumber(1, 1, candidates, np.empty(0), np.empty(0), np.empty(0))
    graph = knn_graph(X, n_neighbors)
    vectors = spectral_embedding(graph, int(candidates[-1]), seed=seed)
    distances = pairwise_distances(X)
    np.fill_diagonal(distances, 0.0)

    def judged(count: int) -> _Judged:
        rows = unit_rows(vectors[:, :count])
        found = [kmeans_labels(rows, count, seed=seed + start) for start in range(n_init)]
        labels = min(found, key=partial(normalized_cut, graph))
        if not 1 < len(np.unique(labels)) < len(X):
            return -1.0, 0.0, 0.0
        silhouette, within = float(silhouette_score(distances, labels, metric="precomputed")), modularity(graph, labels)
        return silhouette, within, _score(silhouette, within, strongest_link(graph, labels))

    found: list[_Judged] = []
    for block in np.split(candidates, range(_EVERY_UP_TO - 1, len(candidates), _BLOCK)):
        calls = [partial(judged, int(count)) for count in block]
        found += [call() for call in calls] if call_all is None else call_all(calls)
        best = candidates[np.argmax(found, axis=0)]
        if block[-1] >= _BEYOND * best.max():
            break
    silhouettes, modularities, scores = np.array(found).T.copy()
    return ClusterNumber(int(best[2]), int(best.max()), candidates[: len(found)], silhouettes, modularities, scores)


def _score(silhouette: float, modularity: float, link: float) -> float:
    return max(silhouette, 0.0) * max(modularity, 0.0) ** 4 / math.sqrt(1 + 10 * link)


def candidate_numbers(n_samples: int) -> NDArray[np.int64]:
    """Return the numbers of clusters to look at.

    Parameters
    ----------
    n_samples : int

    Returns
    -------
    ndarray of shape (n_candidates,), int64
        From 2; none for fewer than 4 images.
    """
    if n_samples < 4:
        return np.empty(0, dtype=np.int64)
    highest = min(max(2, n_samples // _LEAST_SIZE), MAX_CLUSTERS)
    found = list(range(2, min(highest, _EVERY_UP_TO) + 1))
    while (following := int(np.ceil(found[-1] * _STEP))) <= highest and found[-1] >= _EVERY_UP_TO:
        found.append(following)
    return np.array(found, dtype=np.int64)
