import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from skdiec import graph as graph_module
from skdiec.graph import knn_graph, moved_knn_graph, spectral_embedding


def naive_knn(X, n_neighbors):
    directed = np.zeros((len(X), len(X)))
    for i, row in enumerate(X):
        distance = [np.inf if i == j else np.linalg.norm(row - other) for j, other in enumerate(X)]
        directed[i, np.argsort(distance)[:n_neighbors]] = 1
    return (directed + directed.T) / 2


def dense_eigenvectors(weights, n_vectors):
    """Leading eigenvectors of D^-1/2 A D^-1/2 and all eigenvalues, in descending order."""
    degree = weights.sum(axis=1)
    values, vectors = np.linalg.eigh(weights / np.sqrt(np.outer(degree, degree)))
    vectors = vectors[:, ::-1][:, :n_vectors]
    largest = np.abs(vectors).argmax(axis=0)
    return values[::-1], vectors * np.sign(vectors[largest, np.arange(n_vectors)])


def separate_components(n_components, size, seed=0):
    rng = np.random.default_rng(seed)
    return knn_graph(np.vstack([rng.normal(loc=1000 * c, size=(size, 2)) for c in range(n_components)]), size // 2)


# Neighbours


@given(st.integers(0, 2**32 - 1), st.integers(2, 15), st.integers(1, 5), st.integers(1, 16))
def test_knn_graph_agrees_with_a_loop(seed, n, d, n_neighbors):
    X = np.random.default_rng(seed).normal(size=(n, d))
    graph = knn_graph(X, n_neighbors)
    np.testing.assert_array_equal(graph.toarray(), naive_knn(X, min(n_neighbors, n - 1)))
    assert graph.dtype == np.float64


def test_more_neighbors_than_rows_join_all_rows():
    X = np.random.default_rng(0).normal(size=(4, 2))
    for n_neighbors in (3, 4, 100):
        np.testing.assert_array_equal(knn_graph(X, n_neighbors).toarray(), 1 - np.eye(4))


def test_single_row_has_no_neighbor():
    assert knn_graph([[1.0, 2.0]]).toarray() == [[0.0]]


@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(1, 4), st.integers(1, 4), st.integers(1, 13))
def test_moved_knn_graph_agrees_with_a_loop(seed, n, d, n_views, n_neighbors):
    views = np.random.default_rng(seed).normal(size=(n_views, n, d))
    distances = np.full((n, n), np.inf)
    for view in views:
        for i in range(n):
            for j in range(n):
                distance = np.linalg.norm(views[0, i] - view[j])
                distances[i, j] = min(distances[i, j], distance)
                distances[j, i] = min(distances[j, i], distance)
    np.fill_diagonal(distances, np.inf)
    nearest = distances.argsort(axis=1)[:, : min(n_neighbors, n - 1)]
    directed = np.zeros((n, n))
    directed[np.arange(n)[:, None], nearest] = 1
    graph = moved_knn_graph(views, n_neighbors)
    np.testing.assert_array_equal(graph.toarray(), (directed + directed.T) / 2)
    assert graph.dtype == np.float64


def test_images_that_never_move_have_the_plain_graph():
    X = np.random.default_rng(0).normal(size=(40, 3))
    np.testing.assert_array_equal(moved_knn_graph([X], 5).toarray(), knn_graph(X, 5).toarray())
    assert moved_knn_graph([X[:1]]).toarray() == [[0.0]]


def test_image_is_not_its_own_neighbour_where_others_are_the_same():
    graph = moved_knn_graph([np.zeros((4, 2)), np.ones((4, 2))], 1).toarray()
    np.testing.assert_array_equal(graph.diagonal(), 0)
    assert graph.sum() == 4


def test_neighbours_of_nndescent_make_the_graph(monkeypatch):
    """What it finds is put in its place: the exact neighbours here. The soak tests compile the real one."""
    X = np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32)
    seen = {}

    class Exact:
        def __init__(self, X, *, n_neighbors, n_jobs, random_state):
            seen.update(n_jobs=n_jobs, seed=random_state)
            found = np.linalg.norm(X[:, None] - X, axis=2).argsort(axis=1)[:, :n_neighbors]
            found[7, 3] = -1  # not found
            found[8, 0] = found[8, 5]  # the row itself is not always among its neighbours
            found[8, 5] = np.setdiff1d(np.arange(100), found[8])[0]
            self.neighbor_graph = found, None

    monkeypatch.setitem(sys.modules, "pynndescent", SimpleNamespace(NNDescent=Exact))
    exact = knn_graph(X, 6)
    assert (knn_graph(X, 6, algorithm="nndescent") != exact).nnz == 0  # too few rows to be worth an approximation
    assert seen == {}
    monkeypatch.setattr(graph_module, "_EXACT_BELOW", 0)
    found = knn_graph(X, 6, algorithm="nndescent", seed=3)
    assert seen == {"n_jobs": 1, "seed": 3}
    assert found.dtype == np.float64
    assert found.diagonal().sum() == 0
    assert (found != found.T).nnz == 0
    assert found.sum() == exact.sum() - 1 == 100 * 6 - 1
    others = np.setdiff1d(np.arange(100), [7, 8])
    np.testing.assert_array_equal(found.toarray()[np.ix_(others, others)], exact.toarray()[np.ix_(others, others)])
    assert knn_graph(X, 6, algorithm="nndescent", n_jobs=2).nnz == found.nnz
    assert seen["n_jobs"] == 2


@pytest.mark.parametrize("d", [1, 30])
def test_duplicates_are_neighbors_and_no_row_is_its_own(d):
    X = np.repeat([[0.0], [1.0]], 6, axis=0) * np.ones(d)
    weights = knn_graph(X, 3).toarray()
    np.testing.assert_array_equal(weights, weights.T)
    assert weights.sum() == 12 * 3
    assert not weights.diagonal().any()
    assert not weights[:6, 6:].any()


def test_knn_graph_takes_lists_and_jobs_and_leaves_its_input_alone():
    X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    before = X.copy()
    expected = knn_graph(X, 5).toarray()
    np.testing.assert_array_equal(knn_graph(X, 5, n_jobs=2).toarray(), expected)
    np.testing.assert_array_equal(knn_graph(X.tolist(), 5).toarray(), expected)
    np.testing.assert_array_equal(X, before)


# Spectral embedding


def test_embedding_of_a_path_is_the_closed_form():
    n = 5
    path = sparse.diags_array([np.ones(n - 1), np.ones(n - 1)], offsets=[-1, 1], format="csr")
    # Of D^-1/2 A D^-1/2: sqrt(degree) cos(pi j i / (n - 1)), eigenvalue cos(pi j / (n - 1)).
    columns = np.sqrt([1, 2, 2, 2, 1])[:, None] * np.cos(np.pi * np.outer(np.arange(n), np.arange(n)) / (n - 1))
    columns /= np.linalg.norm(columns, axis=0)
    embedding = spectral_embedding(path, 2)
    np.testing.assert_allclose(embedding[:, 0], columns[:, 0], atol=1e-12)
    np.testing.assert_allclose(np.abs(embedding[:, 1]), np.abs(columns[:, 1]), atol=1e-12)


@pytest.mark.parametrize("n", [280, 350])
def test_embedding_agrees_with_dense_eigenvectors_in_value_and_scale(n):
    assert 280 < graph_module._DENSE_BELOW < 350
    graph = knn_graph(np.random.default_rng(0).normal(size=(n, 3)), 8)
    values, expected = dense_eigenvectors(graph.toarray(), 5)
    assert np.min(-np.diff(values[:6])) > 1e-3  # else the oracle's own vectors would be arbitrary
    embedding = spectral_embedding(graph, 5)
    np.testing.assert_allclose(embedding, expected, atol=1e-5)
    np.testing.assert_allclose(embedding.T @ embedding, np.eye(5), atol=1e-8)


def test_lanczos_and_dense_path_agree(monkeypatch):
    graph = knn_graph(np.random.default_rng(1).normal(size=(60, 2)), 6)
    dense = spectral_embedding(graph, 4)
    monkeypatch.setattr(graph_module, "_DENSE_BELOW", 0)
    np.testing.assert_allclose(spectral_embedding(graph, 4), dense, atol=1e-5)


@pytest.mark.parametrize("dense_below", [0, 1000])
@pytest.mark.parametrize(("n_components", "size"), [(2, 170), (12, 30)])
def test_embedding_has_a_vector_for_each_component(monkeypatch, dense_below, n_components, size):
    monkeypatch.setattr(graph_module, "_DENSE_BELOW", dense_below)
    graph = separate_components(n_components, size)
    degree = graph.sum(axis=1)
    member = np.arange(len(degree)) // size
    indicators = np.sqrt(degree)[:, None] * (member[:, None] == np.arange(n_components))
    indicators /= np.linalg.norm(indicators, axis=0)
    embedding = spectral_embedding(graph, n_components + 2)
    leading = embedding[:, :n_components]
    # Within a repeated eigenvalue any rotation is right: the spaces must agree.
    np.testing.assert_allclose(leading @ leading.T, indicators @ indicators.T, atol=1e-8)
    normalized = graph.toarray() / np.sqrt(np.outer(degree, degree))
    values, _ = dense_eigenvectors(graph.toarray(), n_components + 2)
    np.testing.assert_allclose(np.diag(embedding.T @ normalized @ embedding), values[: n_components + 2], atol=1e-8)
    np.testing.assert_allclose(embedding.T @ embedding, np.eye(n_components + 2), atol=1e-6)


def test_embedding_of_more_components_than_vectors_shows_the_largest():
    graph = sparse.csr_array(sparse.block_diag([separate_components(5, 62), separate_components(1, 100)]))
    embedding = spectral_embedding(graph, 3)
    degree = graph.sum(axis=1)
    np.testing.assert_allclose(embedding[310:, 0], np.sqrt(degree[310:] / degree[310:].sum()), atol=1e-12)
    np.testing.assert_allclose(embedding.T @ embedding, np.eye(3), atol=1e-12)
    assert np.count_nonzero(embedding[:310], axis=0).tolist() == [0, 62, 62]


def test_isolated_nodes_have_no_part_in_the_leading_vectors():
    graph = sparse.csr_array(sparse.block_diag([separate_components(2, 170), np.zeros((3, 3))]))
    embedding = spectral_embedding(graph, 4)
    np.testing.assert_allclose(embedding[340:], 0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=0), 1)


def test_embedding_is_the_same_each_time_and_leaves_global_seeds_alone():
    graph = knn_graph(np.random.default_rng(0).normal(size=(350, 3)), 8)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first = spectral_embedding(graph, 4, seed=3)
    np.testing.assert_array_equal(spectral_embedding(graph, 4, seed=3), first)
    np.testing.assert_allclose(spectral_embedding(graph, 4, seed=4), first, atol=1e-5)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_embedding_has_at_most_as_many_vectors_as_nodes_and_their_largest_entries_are_positive():
    graph = knn_graph(np.random.default_rng(0).normal(size=(7, 2)), 3)
    embedding = spectral_embedding(graph, 100)
    assert embedding.shape == (7, 7)
    assert (embedding[np.abs(embedding).argmax(axis=0), np.arange(7)] > 0).all()
