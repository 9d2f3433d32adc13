"""Neighbourhood graphs: sparse k-NN graph, spectral embedding, and the partition with the lowest cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from sklearn import config_context
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors

AGREEMENT_POWER = 4
"""How steeply the weight of an edge falls with the share of partitions that put its ends into the same cluster."""

_DENSE_BELOW = 300
_EXACT_BELOW = 4096


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
        ``"spectral"``, ``"k-means"`` or ``"given"``.
    """

    labels: NDArray[np.int32]
    cut: float
    source: str


CallAll = Callable[[Sequence[Callable[[], Partition]]], Sequence[Partition]]
"""Calls functions without arguments, perhaps several at the same time; returns their results in order."""


def knn_graph(
    X: ArrayLike, n_neighbors: int = 10, *, algorithm: str = "exact", n_jobs: int | None = None, seed: int = 0
) -> sparse.csr_array:
    """Build the symmetric k-nearest-neighbour graph of some rows.

    Parameters
    ----------
    X : array-like of shape (n, d)
        Features; Euclidean distance.
    n_neighbors : int, default=10
        Neighbours of each row, itself left out; at most n - 1 are used.
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
    if algorithm == "nndescent" and len(X) >= _EXACT_BELOW:
        directed = _approximate_neighbors(X, n_neighbors, n_jobs, seed)
    else:
        search = NearestNeighbors(n_neighbors=n_neighbors, n_jobs=n_jobs).fit(X)
        directed = sparse.csr_array(search.kneighbors_graph())
    return sparse.csr_array((directed + directed.T) / 2)


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
    """
    second = n_init // 2
    value = partial(cut, graph)
    found = _find(_candidates(X, graph, n_clusters, n_init - second, (), None, seed), value, call_all)
    if second > 0:
        weighted = co_association_graph(graph, [partition.labels for partition in found])
        found += _find(_candidates(None, weighted, n_clusters, second, (), None, seed), value, call_all)
    return _lowest(found, n_init)


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
    vectors = spectral_embedding(graph, n_clusters + max(2, round(0.6 * n_clusters)), seed=seed)
    for width in sorted({n_clusters, (n_clusters + vectors.shape[1]) // 2, vectors.shape[1]}):
        rows = vectors[:, :width]
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        cluster = partial(kmeans_labels, rows, n_clusters)
        if warm_start is not None:
            found.append(("spectral", partial(cluster, warm_start=warm_start, seed=seed)))
        starts = range(n_init if warm_start is None else 1)
        found += [("spectral", partial(cluster, seed=seed + start)) for start in starts]
    return found
