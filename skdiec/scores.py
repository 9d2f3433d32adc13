"""Label-free scores of a clustering: Scott, normalised cut, modularity."""

from __future__ import annotations

import sys
from numbers import Integral, Real
from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from skdiec.graph import leading_eigenpairs
from skdiec.messages import shortened, shown

__all__ = ["balanced_cut", "modularity", "normalized_cut", "relative_cut", "scott_score"]


def scott_score(X: ArrayLike, labels: ArrayLike, *, ridge: float = 1e-6) -> float:
    r"""Compute the Scott score of a partition, higher for better separated clusters.

    .. math:: \log\det T - \log\det W = \log\det(I + W^{-1} B)

    with total scatter T, within-cluster scatter W and B = T - W (section 3.2 of DiEC,
    https://arxiv.org/abs/2512.20905). B has rank below the number K of clusters, so the determinant is
    taken of a K x K matrix. NbClust's index of the same name is n times this value.

    Parameters
    ----------
    X : array-like of shape (n, q)
        Features.
    labels : array-like of shape (n,)
        Cluster of each row.
    ridge : float, default=1e-6
        W is regularised by this share of T: then no direction without variance within clusters yields infinity, and the
        score stays invariant to every invertible affine map of X.

    Returns
    -------
    float
        At least 0; 0 for one cluster.

    Raises
    ------
    ValueError
        Where lengths differ, X is not finite or not two-dimensional, or `ridge` is negative.

    Examples
    --------
    >>> round(scott_score([[0.0], [2.0], [10.0], [12.0]], [0, 0, 1, 1], ridge=0), 4)  # log(104 / 4)
    3.2581
    """
    _check_weight("ridge", ridge)
    X = _as_array("X", X)
    if X.dtype.kind not in "buif" or X.size == 0:
        raise ValueError(f"X must hold real numbers; got {X.size} of dtype {X.dtype}")
    X = X.astype(np.float64)
    if X.ndim != 2:
        raise ValueError(f"X must have shape (n, q); got {X.shape}")
    codes, counts = _codes(labels, len(X))
    if not np.isfinite(X).all():
        raise ValueError("X must not contain NaN or infinity")
    # At unit scale: the solver's cutoff would drop features far smaller than the largest. Rounding is no spread.
    largest = np.abs(X).max(axis=0)
    X = X / np.where(largest > 0, largest, 1.0)  # squares of the largest and smallest numbers are none
    centered = X - X.mean(axis=0)
    spread = np.sqrt(np.square(centered).mean(axis=0))
    centered = centered / np.where(spread > 16 * np.finfo(float).eps, spread, np.inf)
    total = centered.T @ centered
    sums = np.zeros((len(counts), X.shape[1]))
    np.add.at(sums, codes, centered)
    directions = sums / np.sqrt(counts)[:, None]  # B = directions.T @ directions
    within = total - directions.T @ directions + ridge * total
    solved = np.linalg.lstsq(_symmetric(within), directions.T, rcond=1e-12)[0]
    sign, value = np.linalg.slogdet(np.eye(len(counts)) + _symmetric(directions @ solved))
    return float(max(value, 0.0)) if sign > 0 else 0.0


def normalized_cut(graph: sparse.spmatrix | sparse.sparray, labels: ArrayLike) -> float:
    r"""Compute the normalised cut of a graph partition, lower for better separated clusters.

    .. math:: \sum_k \mathrm{cut}(C_k, \bar C_k) / \mathrm{vol}(C_k)

    from 0 (no edge between clusters) to the number of clusters (Shi and Malik, 2000).

    Parameters
    ----------
    graph : sparse matrix of shape (n, n)
        Symmetric, non-negative edge weights.
    labels : array-like of shape (n,)
        Cluster of each node.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        Where shapes differ, or the graph is not symmetric or has negative weights.

    Examples
    --------
    >>> path = sparse.csr_array(np.diag([1.0, 1, 1], 1) + np.diag([1.0, 1, 1], -1))
    >>> round(normalized_cut(path, [0, 0, 1, 1]), 4)  # 1/3 + 1/3
    0.6667
    """
    return _cut(*_inside_and_volume(graph, labels))


def balanced_cut(
    graph: sparse.spmatrix | sparse.sparray, labels: ArrayLike, n_clusters: int, *, balance: float = 1.0
) -> float:
    r"""Add to the normalised cut what cluster sizes lack in entropy, lower is better.

    .. math:: \sum_k \mathrm{cut}(C_k, \bar C_k) / \mathrm{vol}(C_k) + \gamma (\log K - H(n_1 / n, \dots, n_K / n))

    The second term is the entropy term of the training loss, for a partition. It turns down partitions that split a
    class into its ways of being written and merge two others, which a cut alone may prefer.

    Parameters
    ----------
    graph, labels
        As in `normalized_cut`.
    n_clusters : int
        K, which may be more than the clusters in `labels`; each empty one costs as much as one without inner edge.
    balance : float, default=1.0
        Weight gamma; 0 expects nothing of sizes.

    Returns
    -------
    float

    Examples
    --------
    >>> path = sparse.csr_array(np.diag([1.0, 1, 1], 1) + np.diag([1.0, 1, 1], -1))
    >>> round(balanced_cut(path, [0, 0, 1, 1], 2), 4)  # balanced: the normalised cut
    0.6667
    """
    inside, volume = _inside_and_volume(graph, labels)
    _, counts = _codes(labels, len(np.asarray(labels)))
    if isinstance(n_clusters, bool) or not isinstance(n_clusters, Integral) or n_clusters < len(counts):
        raise ValueError(
            f"n_clusters must be an int of at least the {len(counts)} clusters in labels; got {shown(n_clusters)}"
        )
    _check_weight("balance", balance)
    shares = counts / counts.sum()
    deficit = max(0.0, np.log(n_clusters) + float(np.sum(shares * np.log(shares))))
    return float(_cut(inside, volume) + (n_clusters - len(counts)) + balance * deficit)


def relative_cut(
    graph: sparse.spmatrix | sparse.sparray, labels: ArrayLike, n_clusters: int, *, balance: float = 0.0
) -> float:
    r"""Compare the cost of a graph's clusters with what further clusters would cost, lower is better.

    .. math:: \mathrm{cut} / \sum_{j=K+1}^{2K} \lambda_j

    with the balanced cut of the K clusters and the eigenvalues of the normalised Laplacian in ascending order. The K
    smallest add up to a lower bound of the normalised cut into K clusters; each further one adds the least cost of one
    cluster more. The cut alone is low wherever features vary along few dimensions, with or without clusters (the
    brightness of images, say): there, every cut is cheap. This ratio is low only where the found clusters stand out.

    Parameters
    ----------
    graph, labels
        As in `normalized_cut`.
    n_clusters, balance
        As in `balanced_cut`; by default sizes do not count.

    Returns
    -------
    float
        At least 0.

    Examples
    --------
    >>> path = sparse.csr_array(np.diag([1.0, 1, 1], 1) + np.diag([1.0, 1, 1], -1))
    >>> round(relative_cut(path, [0, 0, 1, 1], 2), 4)  # (2/3) / (3/2 + 2)
    0.1905
    """
    cost = balanced_cut(graph, labels, n_clusters, balance=balance)
    graph = sparse.csr_array(graph)
    further = np.maximum(1.0 - leading_eigenpairs(graph, 2 * n_clusters, complete=True)[0][n_clusters:], 0.0)
    return float(cost / max(further.sum(), 1e-12)) if len(further) else cost


def modularity(graph: sparse.spmatrix | sparse.sparray, labels: ArrayLike) -> float:
    r"""Compute Newman's modularity of a graph partition, higher for better separated clusters.

    .. math:: \sum_k \mathrm{inside}(C_k)/\mathrm{vol} - (\mathrm{vol}(C_k)/\mathrm{vol})^2

    Unlike the normalised cut it does not grow with the number of clusters, so it compares partitions
    into different numbers of them.

    Parameters
    ----------
    graph, labels
        As in `normalized_cut`.

    Returns
    -------
    float
        From -0.5 to 1; 0 for one cluster.

    Examples
    --------
    >>> path = sparse.csr_array(np.diag([1.0, 1, 1], 1) + np.diag([1.0, 1, 1], -1))
    >>> round(modularity(path, [0, 0, 1, 1]), 4)  # 2 (2/6 - (3/6)**2)
    0.1667
    """
    inside, volume = _inside_and_volume(graph, labels)
    total = max(volume.sum(), np.finfo(float).tiny)
    return float(np.sum(inside / total - (volume / total) ** 2))


def _cut(inside: NDArray, volume: NDArray) -> float:
    # Rounding must not put clusters without an edge between them below 0.
    return float(np.sum(np.maximum(1.0 - inside / np.where(volume > 0, volume, 1.0), 0.0)))


def _inside_and_volume(graph: sparse.spmatrix | sparse.sparray, labels: ArrayLike) -> tuple[NDArray, NDArray]:
    """Return, for each cluster, the weight inside it and the sum of its nodes' degrees."""
    try:
        graph = sparse.csr_array(graph)
    except (TypeError, ValueError) as error:
        raise ValueError(f"graph must be a matrix of numbers: {shortened(str(error))}") from error
    if graph.dtype.kind not in "buif":
        raise ValueError(f"graph must be a matrix of real numbers; got dtype {graph.dtype}")
    if graph.ndim != 2 or graph.shape[0] != graph.shape[1]:
        raise ValueError(f"graph must be square; got shape {graph.shape}")
    # The sum is finite only if all weights are.
    with np.errstate(over="ignore", invalid="ignore"):
        is_finite = np.isfinite(graph.data.sum())
    if graph.nnz and not (is_finite and graph.data.min() >= 0):
        raise ValueError("graph must have finite weights of at least 0")
    # Products with a random vector tell a graph from its transpose, at a small part of what the transpose costs.
    vector = np.random.default_rng(0).random(graph.shape[0])
    if not np.allclose(graph @ vector, graph.T @ vector, rtol=1e-6, atol=0):
        raise ValueError(
            "graph must be symmetric: of a graph of nearest neighbours, which is not, take graph.maximum(graph.T)"
        )
    codes, counts = _codes(labels, graph.shape[0])
    tails, heads = np.repeat(codes, np.diff(graph.indptr)), codes[graph.indices]
    inside = np.bincount(tails, graph.data * (tails == heads), minlength=len(counts))
    return inside, np.bincount(tails, graph.data, minlength=len(counts))


def _codes(labels: ArrayLike, n: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return labels as 0, 1, ... and the size of each cluster."""
    labels = _as_array("labels", labels)
    if labels.shape != (n,):
        raise ValueError(f"labels must have shape ({n},), one for each row; got {labels.shape}")
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise ValueError("labels must not contain NaN or infinity")
    try:
        _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    except TypeError as error:
        raise ValueError(f"labels must be integers or strings: {error}") from error
    return codes, counts


def _as_array(name: str, values: ArrayLike) -> NDArray:
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:  # rows of several lengths
        raise ValueError(f"{name} must be an array: {shortened(str(error))}") from error


def _check_weight(name: str, value: object) -> None:
    if not isinstance(value, Real) or not 0 <= cast("float", value) <= sys.float_info.max:
        raise ValueError(f"{name} must be a finite number of at least 0; got {shown(value)}")


def _symmetric(matrix: NDArray) -> NDArray:
    return (matrix + matrix.T) / 2
