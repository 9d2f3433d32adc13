"""What a fitted model says of its images: how surely each is in its cluster, which fit nowhere, which are alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import NearestNeighbors

FENCE = 3.0
"""An image lies far from its cluster's centre if it is further than the upper quartile of the distances by more than so
many times the spread between the quartiles: Tukey's outer fence."""

UNSURE = 0.5
"""Below this probability, an image's cluster is less likely than all others together."""

CLEAR = 2.0
"""An image is clearly in its cluster if that is at least so many times as likely as the next one."""

ALIKE_DISTANCE = 1.0
"""Near-duplicates are closer in the embedding than so many times the median distance of images to the nearest one."""

ALIKE_PIXELS = 0.99
"""Correlation of the pixels of near-duplicates, both reduced to 16 x 16 grey values."""

_BLOCK_ROWS = 8192
_CANDIDATES = 5  # nearest neighbours that may be duplicates
_MOST_AT_ONCE = 20_000  # images of a cluster that are compared with each other


@dataclass(frozen=True)
class Membership:
    """The likeliest clusters of each image, and the likeliest parts of its own one.

    Attributes
    ----------
    clusters : ndarray of shape (n, 3), int
        The likeliest first; fewer columns where there are fewer clusters.
    shares : ndarray of shape (n, 3), float
        Their probabilities.
    parts : ndarray of shape (n, 2), int
        Fine clusters of the image's cluster: its own one, and the likeliest other one, or itself where there is none.
    part_shares : ndarray of shape (n, 2), float
        Soft assignments among the fine clusters of its cluster, by the same kernel around their means; 0 for the second
        where there is none.
    """

    clusters: NDArray[np.int64]
    shares: NDArray[np.float64]
    parts: NDArray[np.int64]
    part_shares: NDArray[np.float64]

    def likeliness(self, leaves: NDArray[np.bool_], whole: NDArray[np.bool_], rows: NDArray[np.integer]) -> NDArray:
        """Return how likely images are in a set of fine clusters, and how likely in the likeliest other one.

        Parameters
        ----------
        leaves : ndarray of shape (n_fine,), bool
            The set.
        whole : ndarray of shape (n_clusters,), bool
            Clusters all of which lies in it.
        rows : ndarray of shape (m,)
            Which images.

        Returns
        -------
        ndarray of shape (2, m)
        """
        clusters, shares, parts = self.clusters[rows], self.shares[rows], self.parts[rows]
        is_in = whole[clusters]
        second = np.where(parts[:, 1] != parts[:, 0], self.part_shares[rows, 1], 0)
        own_parts = self.part_shares[rows, 0] + np.where(leaves[parts[:, 1]], second, 0)
        own = shares[:, 0] * np.where(is_in[:, 0], 1, own_parts)
        others = shares[:, 1:]
        inside = own + np.where(is_in[:, 1:], others, 0).sum(axis=1)
        rival_part = np.where(leaves[parts[:, 1]] | is_in[:, 0], 0, shares[:, 0] * second)
        rivals = np.column_stack([rival_part, np.where(is_in[:, 1:], 0, others)])
        return np.stack([inside, rivals.max(axis=1)])


def membership(model: Any) -> Membership:
    """Find the likeliest clusters of each image of a fit.

    Parameters
    ----------
    model : DiffusionEmbeddedClustering
        Fitted.

    Returns
    -------
    Membership
    """
    z, labels, leaves = model.embedding_, model.labels_, model.fine_labels_
    n, n_clusters = len(z), len(model.cluster_centers_)
    n_kept = min(3, n_clusters)
    clusters, shares = np.empty((n, n_kept), dtype=np.int64), np.empty((n, n_kept))
    for start in range(0, n, _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        assigned = model._model.assign(z[block])
        # The label first, also where another cluster is as likely.
        assigned_first = assigned.copy()
        assigned_first[np.arange(len(assigned)), labels[block]] = np.inf
        clusters[block] = np.argsort(-assigned_first, axis=1, kind="stable")[:, :n_kept]
        shares[block] = np.take_along_axis(assigned, clusters[block], axis=1)
    parts = np.repeat(leaves[:, None].astype(np.int64), 2, axis=1)
    part_shares = np.tile([1.0, 0.0], (n, 1))
    for cluster in np.unique(labels):
        rows = np.flatnonzero(labels == cluster)
        own, codes = np.unique(leaves[rows], return_inverse=True)
        if len(own) < 2:
            continue
        members = z[rows].astype(np.float64)
        means = np.stack([members[codes == code].mean(axis=0) for code in range(len(own))])
        q = _kernel(members, means, model._model.nu)
        part_shares[rows, 0] = q[np.arange(len(rows)), codes]
        q[np.arange(len(rows)), codes] = -1
        second = q.argmax(axis=1)
        parts[rows, 1], part_shares[rows, 1] = own[second], q.max(axis=1)
    return Membership(clusters, shares, parts, part_shares)


def _kernel(members: NDArray[np.float64], means: NDArray[np.float64], nu: float) -> NDArray[np.float64]:
    """Return soft assignments by a Student t kernel; rows sum to 1."""
    squares = np.stack([((members - mean) ** 2).sum(axis=1) for mean in means], axis=1)
    weights = (1 + squares / nu) ** (-(nu + 1) / 2)
    return weights / weights.sum(axis=1, keepdims=True)


def far_images(model: Any) -> tuple[NDArray[np.integer], NDArray[np.float64]]:
    """Find the images that fit nowhere: those far from the nearest centre, as its cluster goes, and unsure too.

    Parameters
    ----------
    model : DiffusionEmbeddedClustering
        Fitted.

    Returns
    -------
    rows : ndarray of shape (m,)
        The furthest first, in distances of their cluster's median.
    distances : ndarray of shape (n,)
        Of each image to its centre, over the median of its cluster.
    """
    z, labels = model.embedding_, model.labels_
    distances = np.linalg.norm(z - model.cluster_centers_[labels], axis=1)
    relative, is_far = np.zeros(len(z)), np.zeros(len(z), dtype=bool)
    for cluster in np.unique(labels):
        rows = labels == cluster
        lower, median, upper = np.quantile(distances[rows], [0.25, 0.5, 0.75])
        is_far[rows] = distances[rows] > upper + FENCE * (upper - lower)
        relative[rows] = distances[rows] / (median or 1.0)
    is_far &= (relative > 1) & (model.probabilities_ < UNSURE)
    rows = np.flatnonzero(is_far)
    return rows[np.argsort(-relative[rows], kind="stable")], relative


def alike_images(
    z: NDArray[np.floating], labels: NDArray[np.integer], fine: NDArray[np.integer], sketches: NDArray[np.uint8]
) -> list[NDArray[np.integer]]:
    """Find groups of near-duplicates.

    Two images are near-duplicates if one is among the five nearest of the other in the embedding, closer than the
    median distance of images to their nearest one (`ALIKE_DISTANCE`), and their pixels correlate by more than
    `ALIKE_PIXELS`. Images are compared within their clusters; within fine clusters, where a cluster has over 20,000.
    Groups are what such pairs connect.

    Parameters
    ----------
    z : ndarray of shape (n, d)
        Embedding.
    labels, fine : ndarray of shape (n,)
        Clusters and fine clusters.
    sketches : ndarray of shape (n, 256), uint8
        See `skdiec.report.thumbnails.sketch`.

    Returns
    -------
    list of ndarray
        The rows of each group, in order; the largest group first.
    """
    groups = fine if len(labels) and np.bincount(labels).max() > _MOST_AT_ONCE else labels
    found = [_neighbors(z, np.flatnonzero(groups == group)) for group in np.unique(groups)]
    heads, tails, distances, nearest = (np.concatenate(parts) for parts in zip(*found, strict=True))
    if not len(heads):
        return []
    close = distances <= ALIKE_DISTANCE * np.median(nearest)
    heads, tails = heads[close], tails[close]
    alike = np.zeros(len(heads), dtype=bool)
    for start in range(0, len(heads), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        alike[block] = _correlation(sketches[heads[block]], sketches[tails[block]]) > ALIKE_PIXELS
    pairs = sparse.coo_array((np.ones(alike.sum()), (heads[alike], tails[alike])), shape=(len(z), len(z)))
    count, component = connected_components(pairs, directed=False)
    sizes = np.bincount(component, minlength=count)
    largest = sorted(np.flatnonzero(sizes > 1), key=lambda group: -sizes[group])
    rows = np.argsort(component, kind="stable")
    ends = np.cumsum(sizes)
    return [rows[ends[group] - sizes[group] : ends[group]] for group in largest]


def _neighbors(z: NDArray[np.floating], rows: NDArray[np.integer]) -> Sequence[NDArray]:
    """Return pairs of neighbours among some rows, their distances, and each row's distance to its nearest one."""
    if len(rows) < 2:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0), np.empty(0)
    n_neighbors = min(_CANDIDATES, len(rows) - 1)
    distances, indices = NearestNeighbors(n_neighbors=n_neighbors, algorithm="brute").fit(z[rows]).kneighbors()
    return np.repeat(rows, n_neighbors), rows[indices].ravel(), distances.ravel(), distances[:, 0]


def _correlation(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the correlation of pairs of vectors: 1 for blank ones that are equal, 0 for others that are blank."""
    centred = [vectors - vectors.mean(axis=1, keepdims=True) for vectors in (one.astype(float), other.astype(float))]
    norms = np.prod([np.linalg.norm(vectors, axis=1) for vectors in centred], axis=0)
    products = (centred[0] * centred[1]).sum(axis=1)
    blank = np.where((one == other).all(axis=1), 1.0, 0.0)
    return np.where(norms > 0, products / np.where(norms > 0, norms, 1), blank)
