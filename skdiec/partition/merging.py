"""Links between clusters, and the tree of clusters that merges along the strongest links make."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

_TINY = np.finfo(float).tiny
_SEPARATE = 2.0  # more than a link can be


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
    links = links_between(graph, np.unique(labels, return_inverse=True)[1])
    return max(0.0, float(links.max()))


def links_between(graph: sparse.csr_array, labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the link of each two clusters.

    Parameters
    ----------
    graph : sparse array of shape (n, n)
    labels : integer array of shape (n,)
        Clusters, from 0.

    Returns
    -------
    ndarray of shape (m, m)
        See `strongest_link`; minus infinity on the diagonal.
    """
    return _links(_between(graph, labels))


def merged_partition(
    graph: sparse.csr_array, fine: NDArray[np.integer], n_clusters: int, *, least: int = 1
) -> NDArray[np.int32]:
    """Merge the two clusters with the strongest link, again and again, until some number is left.

    Single images that lie apart have weak links, so that they would be left as clusters. So clusters of few images are
    first joined with what they have the strongest link to, the smallest one first.

    Parameters
    ----------
    graph : sparse array of shape (n, n)
    fine : integer array of shape (n,)
        A partition into more clusters.
    n_clusters : int
    least : int, default=1
        Clusters of fewer images than this are joined first.

    Returns
    -------
    ndarray of shape (n,), int32
        From 0. Fewer clusters only where `fine` has fewer.
    """
    codes = _without_small(graph, np.unique(fine, return_inverse=True)[1], n_clusters, least)
    return cut_tree(merge_tree(graph, codes), n_clusters)[codes]


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
    return in_order(top[:n_leaves])


def in_order(labels: NDArray[np.integer]) -> NDArray[np.int32]:
    """Renumber clusters from 0 in the order of their first rows, so that equal partitions have equal labels.

    Parameters
    ----------
    labels : integer array of shape (n,)

    Returns
    -------
    ndarray of shape (n,), int32
    """
    _, first_rows, codes = np.unique(labels, return_index=True, return_inverse=True)
    return first_rows.argsort().argsort()[codes].astype(np.int32)


def _without_small(
    graph: sparse.csr_array, codes: NDArray[np.integer], n_clusters: int, least: int
) -> NDArray[np.integer]:
    """Join clusters of fewer images than `least` with others, while more than some number are left."""
    sizes = np.bincount(codes).astype(float)
    if sizes.min() >= least:
        return codes
    weights = _between(graph, codes)
    volume, target = weights.sum(axis=1), np.arange(len(sizes))
    for _ in range(max(0, len(sizes) - n_clusters)):
        small = int(sizes.argmin())
        if sizes[small] >= least:
            break
        links = weights[small] / np.sqrt(np.maximum(volume, _TINY))
        links[[small, *np.flatnonzero(np.isinf(sizes))]] = -np.inf
        other = int(links.argmax())
        weights[other] += weights[small]
        weights[:, other] += weights[:, small]
        weights[small] = weights[:, small] = 0.0
        volume[other] += volume[small]
        sizes[other] += sizes[small]
        sizes[small] = np.inf  # gone
        target[target == small] = other
    return np.unique(target[codes], return_inverse=True)[1]


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
