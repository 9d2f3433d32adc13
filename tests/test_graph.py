import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.datasets import make_circles
from sklearn.exceptions import ConvergenceWarning

from skdiec import graph as graph_module
from skdiec.graph import (
    best_partition,
    co_association_graph,
    ensemble_partition,
    kmeans_labels,
    knn_graph,
    spectral_embedding,
)
from skdiec.metrics import clustering_accuracy
from skdiec.scores import normalized_cut


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


# Partitions


def recorded_cut(seen):
    def cut(graph, labels):
        seen.append((normalized_cut(graph, labels), labels.copy()))
        return seen[-1][0]

    return cut


def test_best_partition_finds_rings_that_k_means_cannot():
    X, y = make_circles(200, factor=0.3, noise=0.03, random_state=0)
    seen = []
    best = best_partition(X, knn_graph(X, 8), 2, recorded_cut(seen), n_init=3, seed=5)
    assert clustering_accuracy(y, best.labels) == 1.0
    assert best.source == "spectral"
    assert best.cut == min(value for value, _ in seen) == pytest.approx(0)
    assert best.labels.dtype == np.int32


def test_best_partition_is_the_first_with_the_lowest_cut_of_all_candidates():
    X = np.random.default_rng(0).uniform(size=(90, 2))
    graph = knn_graph(X, 8)
    seen = []
    best = best_partition(X, graph, 5, recorded_cut(seen), n_init=4, seed=7)
    # k-means on X, then on 5, 6 and 8 eigenvectors (5 more by 60 percent)
    assert len(seen) == 4 * (1 + 3)
    for start, (_, labels) in enumerate(seen[:4]):
        np.testing.assert_array_equal(labels, KMeans(5, n_init=1, random_state=7 + start).fit(X).labels_)
    rows = spectral_embedding(graph, 8, seed=7)[:, :5]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_array_equal(seen[4][1], KMeans(5, n_init=1, random_state=7).fit(rows).labels_)
    values = [value for value, _ in seen]
    assert len(set(values)) > 1
    assert best.cut == min(values) == normalized_cut(graph, best.labels)
    np.testing.assert_array_equal(best.labels, seen[int(np.argmin(values))][1])


def test_best_partition_chooses_among_given_partitions_too():
    X = np.random.default_rng(0).uniform(size=(90, 2))
    graph = knn_graph(X, 8)
    given = [np.arange(90) % 3, (X[:, 0] * 2.999).astype(int)]
    seen = []
    best = best_partition(None, graph, 3, recorded_cut(seen), n_init=2, given=given, seed=7)
    assert len(seen) == 2 + 2 * 3  # and k-means on 3, 4 and 5 eigenvectors
    for (_, labels), each in zip(seen, given, strict=False):
        np.testing.assert_array_equal(labels, each)
    only = best_partition(None, graph, 3, lambda graph, labels: -float((labels == given[1]).all()), given=given)
    np.testing.assert_array_equal(only.labels, given[1])
    assert (only.source, only.labels.dtype) == ("given", np.int32)
    assert best.cut == min(value for value, _ in seen)


def test_warm_start_takes_the_place_of_all_but_one_random_start():
    X = np.random.default_rng(0).uniform(size=(90, 2))
    graph = knn_graph(X, 8)
    before = KMeans(5, n_init=1, random_state=3).fit(X[:60]).labels_
    seen = []
    best_partition(None, graph, 5, recorded_cut(seen), n_init=4, warm_start=before, seed=7)
    assert len(seen) == 2 * 3
    rows = spectral_embedding(graph, 8, seed=7)[:, :5]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    means = np.array([rows[:60][before == cluster].mean(axis=0) for cluster in range(5)])
    np.testing.assert_array_equal(seen[0][1], KMeans(5, init=means, n_init=1).fit(rows).labels_)
    np.testing.assert_array_equal(seen[1][1], KMeans(5, n_init=1, random_state=7).fit(rows).labels_)


def test_best_partition_finds_planted_clusters_in_a_graph_of_many_components():
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(11), 30)
    X = 50.0 * np.eye(11)[y] + rng.normal(size=(330, 11))
    best = best_partition(X, knn_graph(X, 8), 11, normalized_cut, n_init=2)
    assert clustering_accuracy(y, best.labels) == 1.0
    assert best.cut == pytest.approx(0, abs=1e-12)


def test_best_partition_follows_the_objective_it_is_given():
    X = np.random.default_rng(0).normal(size=(30, 2))
    best = best_partition(X, knn_graph(X), 3, lambda graph, labels: -np.bincount(labels).max(), n_init=5)
    assert best.cut == -np.bincount(best.labels).max()


def test_best_partition_is_the_same_each_time():
    X = np.random.default_rng(0).uniform(size=(60, 2))
    first, second = (best_partition(X, knn_graph(X), 4, normalized_cut, n_init=2, seed=1) for _ in range(2))
    np.testing.assert_array_equal(first.labels, second.labels)
    assert (first.cut, first.source) == (second.cut, second.source)


def test_candidates_can_be_found_in_any_order():
    X = np.random.default_rng(0).uniform(size=(60, 2))
    graph = knn_graph(X)
    counts = []

    def call_all(calls):
        counts.append(len(calls))
        return [call() for call in reversed(calls)][::-1]

    one = best_partition(X, graph, 4, normalized_cut, n_init=2, seed=1)
    other = best_partition(X, graph, 4, normalized_cut, n_init=2, seed=1, call_all=call_all)
    assert counts == [2 * (1 + 3)]
    np.testing.assert_array_equal(other.labels, one.labels)
    assert (other.cut, other.source) == (one.cut, one.source)


@pytest.mark.parametrize("n_init", [1, 2, 5])
def test_ensemble_partition_is_the_lowest_cut_of_two_rounds(n_init):
    X = np.random.default_rng(0).uniform(size=(90, 2))
    graph = knn_graph(X, 8)
    seen, first, second = [], [], []
    found = ensemble_partition(X, graph, 5, recorded_cut(seen), n_init=n_init, seed=7)
    # The rounds, each as a search of its own; the second one without k-means on X.
    best_partition(X, graph, 5, recorded_cut(first), n_init=n_init - n_init // 2, seed=7)
    if n_init > 1:
        weighted = co_association_graph(graph, [labels for _, labels in first])
        best_partition(None, weighted, 5, recorded_cut(second), n_init=n_init // 2, seed=7)
    assert len(seen) == 4 * n_init - n_init // 2
    for (value, labels), (_, expected) in zip(seen, first + second, strict=True):
        np.testing.assert_array_equal(labels, expected)
        assert value == normalized_cut(graph, labels)  # that of the graph itself, in the second round too
    assert found.cut == min(value for value, _ in seen) == normalized_cut(graph, found.labels)
    assert found.labels.dtype == np.int32


def test_the_second_round_finds_lower_cuts_than_as_many_more_starts():
    # Overlapping blobs, whose partitions by k-means on eigenvectors are local optima, mostly different ones.
    cuts = {"one round": [], "two rounds": []}
    for seed in range(8):
        rng = np.random.default_rng(seed)
        X = rng.normal(size=(12, 6))[rng.integers(12, size=600)] + 0.8 * rng.normal(size=(600, 6))
        graph = knn_graph(X, 8)
        cuts["one round"].append(best_partition(X, graph, 12, normalized_cut, n_init=4, seed=seed).cut)
        cuts["two rounds"].append(ensemble_partition(X, graph, 12, normalized_cut, n_init=4, seed=seed).cut)
    assert np.mean(cuts["two rounds"]) < np.mean(cuts["one round"])


def test_co_association_graph_is_that_of_each_edge():
    rng = np.random.default_rng(0)
    graph = knn_graph(rng.normal(size=(40, 3)), 5)
    partitions = [rng.integers(4, size=40) for _ in range(3)]
    weighted = co_association_graph(graph, partitions)
    expected = graph.toarray()
    for i, j in np.argwhere(expected):
        expected[i, j] *= ((1 + sum(labels[i] == labels[j] for labels in partitions)) / 4) ** 4
    np.testing.assert_allclose(weighted.toarray(), expected)
    assert (weighted != weighted.T).nnz == 0
    assert weighted.nnz == graph.nnz  # no edge disappears, though no partition keeps it
    assert set(np.unique(graph.data)) == {0.5, 1.0}  # the caller's graph is as it was
    np.testing.assert_array_equal(co_association_graph(graph, []).toarray(), graph.toarray())


@pytest.mark.filterwarnings("ignore:Number of distinct clusters:sklearn.exceptions.ConvergenceWarning")
def test_ensemble_partition_of_degenerate_input():
    X = np.random.default_rng(0).normal(size=(4, 2))
    assert ensemble_partition(X, knn_graph(X, 2), 1, normalized_cut).labels.tolist() == [0, 0, 0, 0]
    assert sorted(ensemble_partition(X, knn_graph(X, 2), 4, normalized_cut).labels) == [0, 1, 2, 3]
    one = ensemble_partition(X[:1], knn_graph(X[:1]), 1, normalized_cut)
    assert one.labels.tolist() == [0]
    same = np.zeros((10, 2))
    assert ensemble_partition(same, knn_graph(same, 3), 3, normalized_cut).labels.shape == (10,)
    with pytest.raises(ValueError, match="n_init must be at least 1; got 0"):
        ensemble_partition(X, knn_graph(X, 2), 2, normalized_cut, n_init=0)


@pytest.mark.filterwarnings("ignore:Number of distinct clusters:sklearn.exceptions.ConvergenceWarning")
def test_best_partition_of_degenerate_input():
    X = np.random.default_rng(0).normal(size=(4, 2))
    one = best_partition(X, knn_graph(X, 2), 1, normalized_cut)
    assert (one.labels.tolist(), one.source) == ([0, 0, 0, 0], "k-means")
    singles = best_partition(X, knn_graph(X, 2), 4, normalized_cut)
    assert sorted(singles.labels) == [0, 1, 2, 3]
    pairs = np.repeat([[0.0], [1.0]], 5, axis=0)  # fewer distinct rows than clusters
    assert best_partition(pairs, knn_graph(pairs, 2), 3, normalized_cut).labels.shape == (10,)
    with pytest.raises(ValueError, match="n_init must be at least 1; got 0"):
        best_partition(X, knn_graph(X, 2), 2, normalized_cut, n_init=0)


def test_kmeans_labels_are_those_of_scikit_learn_with_its_warning_of_duplicates():
    X = np.random.default_rng(0).uniform(size=(50, 2))
    expected = KMeans(4, n_init=3, random_state=9).fit(X).labels_
    np.testing.assert_array_equal(kmeans_labels(X, 4, n_init=3, seed=9), expected)
    empty = np.zeros(50, dtype=int)  # a cluster without rows has no mean: as without a warm start
    np.testing.assert_array_equal(kmeans_labels(X, 4, n_init=3, warm_start=empty, seed=9), expected)
    with pytest.warns(ConvergenceWarning, match="Number of distinct clusters"):
        labels = kmeans_labels(np.repeat([[0.0], [1.0]], 5, axis=0), 3)
    assert (len(set(labels[:5])), len(set(labels[5:])), len(set(labels))) == (1, 1, 2)
