"""Neighbourhood graphs: sparse k-NN graph, and the spectral embedding of graphs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.neighbors import NearestNeighbors

_DENSE_BELOW = 300
_EXACT_BELOW = 4096


def knn_graph(
    X: ArrayLike,
    n_neighbors: int = 10,
    *,
    metric: str = "euclidean",
    algorithm: str = "exact",
    n_jobs: int | None = None,
    seed: int = 0,
) -> sparse.csr_array:
    """Build the symmetric k-nearest-neighbour graph of some rows.

    Parameters
    ----------
    X : array-like of shape (n, d), or (n, n)
        Features, or distances where `metric` says so.
    n_neighbors : int, default=10
        Neighbours of each row, itself left out; at most n - 1 are used.
    metric : {"euclidean", "precomputed"}, default="euclidean"
        ``"precomputed"``: X are distances, whose diagonal is 0. Their search is exact.
    algorithm : {"exact", "nndescent"}, default="exact"
        ``"exact"`` is scikit-learn's search, whose time grows with the square of n; ``"nndescent"`` is pynndescent's,
        which finds nearly all of the nearest neighbours in time that grows about in proportion to n, after half a
        minute of compilation. Fewer than 4,096 rows are searched exactly in any case.
    n_jobs : int, default=None
        As in scikit-learn.
    seed : int, default=0
        Seeds the approximate search.

    Returns
    -------
    csr_array of shape (n, n), float64
        Weight 1 between mutual neighbours, 0.5 between others, 0 on the diagonal.

    Examples
    --------
    >>> knn_graph([[0.0], [1.0], [5.0]], 1).toarray()
    array([[0. , 1. , 0. ],
           [1. , 0. , 0.5],
           [0. , 0.5, 0. ]])
    """
    X = np.asarray(X)
    n_neighbors = min(n_neighbors, len(X) - 1)
    if n_neighbors < 1:
        return sparse.csr_array((len(X), len(X)), dtype=np.float64)
    if algorithm == "nndescent" and metric == "euclidean" and len(X) >= _EXACT_BELOW:
        directed = _approximate_neighbors(X, n_neighbors, n_jobs, seed)
    else:
        search = NearestNeighbors(n_neighbors=n_neighbors, metric=metric, n_jobs=n_jobs).fit(X)
        directed = sparse.csr_array(search.kneighbors_graph())
    return sparse.csr_array((directed + directed.T) / 2)


def moved_knn_graph(views: Sequence[ArrayLike], n_neighbors: int = 10) -> sparse.csr_array:
    r"""Build the symmetric k-nearest-neighbour graph of images that may be moved before they are compared.

    .. math:: d_{ij} = \min_v \min(\lVert x_i - x_j^v \rVert, \lVert x_i^v - x_j \rVert)

    Parameters
    ----------
    views : sequence of array-like of shape (n, d)
        Features of the images as they are, x, then of the images as each motion v has moved them.
    n_neighbors : int, default=10
        Neighbours of each row, itself left out; at most n - 1 are used.

    Returns
    -------
    csr_array of shape (n, n), float64
        As of `knn_graph`. It takes two dense matrices of n x n on the way.

    Examples
    --------
    The first and the last one are alike, once the last one is moved:

    >>> moved_knn_graph([[[0.0], [1.0], [3.0]], [[5.0], [6.0], [0.0]]], 1).toarray()
    array([[0. , 0.5, 1. ],
           [0.5, 0. , 0. ],
           [1. , 0. , 0. ]])
    """
    still = np.asarray(views[0], dtype=np.float64)
    nearest = np.full((len(still), len(still)), np.inf)
    for view in views:
        distances = euclidean_distances(still, np.asarray(view, dtype=np.float64))
        np.minimum(nearest, distances, out=nearest)
        np.minimum(nearest, distances.T, out=nearest)
    np.fill_diagonal(nearest, 0.0)  # an image is not its own neighbour, whatever its moved views are
    return knn_graph(nearest, n_neighbors, metric="precomputed")


def _approximate_neighbors(X: NDArray, n_neighbors: int, n_jobs: int | None, seed: int) -> sparse.csr_array:
    """Return the directed neighbourhood graph that pynndescent finds."""
    from pynndescent import NNDescent  # an optional dependency, and slow to import

    jobs = 1 if n_jobs is None else n_jobs  # as scikit-learn reads None; pynndescent takes all cores
    # One more: a row is its own neighbour there.
    index = NNDescent(X, n_neighbors=n_neighbors + 1, n_jobs=jobs, random_state=seed)
    found = index.neighbor_graph[0]
    others = (found != np.arange(len(X))[:, None]) & (found >= 0)  # -1 stands for one that was not found
    others &= others.cumsum(axis=1) <= n_neighbors
    indptr = np.concatenate([[0], others.sum(axis=1).cumsum()])
    return sparse.csr_array((np.ones(indptr[-1]), found[others], indptr), shape=(len(X), len(X)))


def spectral_embedding(graph: sparse.csr_array, n_vectors: int, *, seed: int = 0) -> NDArray[np.float64]:
    """Compute the leading eigenvectors of D^-1/2 A D^-1/2, the normalised adjacency matrix.

    Parameters
    ----------
    graph : sparse array of shape (n, n)
        Symmetric, non-negative weights A.
    n_vectors : int
        At most n are returned.
    seed : int, default=0
        Seeds the start of the iteration.

    Returns
    -------
    ndarray of shape (n, n_vectors)
        Orthonormal columns, largest eigenvalue first; each column's largest entry is positive.
    """
    vectors = leading_eigenpairs(graph, n_vectors, seed=seed)[1]
    largest = np.abs(vectors).argmax(axis=0)
    return vectors * np.sign(vectors[largest, np.arange(vectors.shape[1])])


def leading_eigenpairs(
    graph: sparse.csr_array, count: int, *, complete: bool = False, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the largest eigenvalues of D^-1/2 A D^-1/2, and their eigenvectors.

    Those of the normalised Laplacian are one minus these, the smallest first. Each connected component is solved by
    itself: the largest eigenvalue, 1, repeats for every component, and Lanczos misses repeated ones.

    Parameters
    ----------
    graph : sparse array of shape (n, n)
        Symmetric, non-negative weights A. A node without edges has the eigenvalue 0.
    count : int
        At most n are computed.
    complete : bool, default=False
        Look again for eigenvalues that repeat within a component, such as those of a ring of nodes. Neighbourhood
        graphs of images have none, so that an embedding saves the time.
    seed : int, default=0
        Seeds the start of the iteration (Lanczos; the matrix is never made dense, but for small components).

    Returns
    -------
    values : ndarray of shape (count,)
        From 1 downwards, counted with their multiplicity.
    vectors : ndarray of shape (n, count)
        Orthonormal columns.

    Examples
    --------
    >>> pairs = sparse.csr_array(np.kron(np.eye(2), [[0.0, 1.0], [1.0, 0.0]]))  # two nodes with an edge, twice
    >>> leading_eigenpairs(pairs, 3)[0].round(4) + 0.0
    array([ 1.,  1., -1.])
    """
    n = graph.shape[0]
    count = min(count, n)
    degree = np.asarray(graph.sum(axis=1)).ravel()
    scale = sparse.diags_array(1.0 / np.sqrt(np.where(degree > 0, degree, 1.0)))
    normalized = sparse.csr_array(scale @ graph @ scale)
    n_components, member = connected_components(normalized, directed=False)
    volume = np.bincount(member, weights=degree, minlength=n_components)
    # Each component with edges has the eigenvalue 1, so that no other one can hold more than the rest of them.
    wanted = max(1, count - int(np.sum(volume > 0)) + 1)
    values, vectors = [], []
    for component in np.argsort(-volume, kind="stable")[:count]:
        rows = np.flatnonzero(member == component)
        block = normalized if n_components == 1 else normalized[rows][:, rows]
        found, columns = _component_eigenpairs(block, degree[rows], min(wanted, len(rows)), complete, seed)
        spread = np.zeros((n, len(found)))
        spread[rows] = columns
        values.append(found)
        vectors.append(spread)
    all_values = np.concatenate(values)
    largest = np.argsort(-all_values, kind="stable")[:count]
    return all_values[largest], np.hstack(vectors)[:, largest]


def _component_eigenpairs(
    normalized: sparse.csr_array, degree: NDArray, count: int, complete: bool, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the largest eigenvalues of one connected component's normalised adjacency matrix, and eigenvectors."""
    n = len(degree)
    if degree.sum() == 0:
        return np.zeros(1), np.ones((1, 1))
    # The first one is known, square roots of the degrees: the iteration is left with the others.
    first = np.sqrt(degree / degree.sum())
    if count == 1:
        return np.ones(1), first[:, None]
    if n <= _DENSE_BELOW or count >= n - 1:
        values, vectors = np.linalg.eigh(normalized.toarray() - 2.0 * np.outer(first, first))  # the first one is last
        return np.append(1.0, values[:0:-1][: count - 1]), np.column_stack([first, vectors[:, :0:-1][:, : count - 1]])
    values, vectors = _lanczos(normalized, first[:, None], count - 1, seed)
    while complete:  # an eigenvalue that repeats may have been found once: is one left that belongs among these?
        known = np.column_stack([first, vectors])
        value, vector = _lanczos(normalized, known, 1, seed + 1)
        if value[0] <= values.min() + 1e-8:
            break
        keep = values > values.min()
        values, vectors = np.append(values[keep], value), np.column_stack([vectors[:, keep], vector])
    order = np.argsort(-values)
    return np.append(1.0, values[order]), np.column_stack([first, vectors[:, order]])


def _lanczos(normalized: sparse.csr_array, known: NDArray, count: int, seed: int) -> tuple[NDArray, NDArray]:
    """Return the largest eigenvalues, and their eigenvectors, that are orthogonal to some known eigenvectors."""
    n = normalized.shape[0]
    # The shift by 1 makes the spectrum non-negative, since Lanczos finds the ends of a spectrum first; the known ones
    # go to its lower end.
    rest = LinearOperator((n, n), matvec=lambda x: normalized @ x + x - 2.0 * (known @ (known.T @ x)), dtype=np.float64)
    start = np.random.default_rng(seed).uniform(-1, 1, n)
    n_basis = 2 * count + 20
    while True:
        try:
            values, vectors = eigsh(rest, k=count, which="LA", v0=start, tol=1e-6, ncv=min(n, n_basis))
            return values - 1.0, vectors
        except ArpackNoConvergence:
            if n_basis >= n:
                raise
            n_basis *= 2  # a larger basis needs fewer restarts
