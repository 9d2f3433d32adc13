import re

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import sparse
from sklearn.neighbors import kneighbors_graph

from skdiec.graph import knn_graph
from skdiec.scores import balanced_cut, modularity, normalized_cut, relative_cut, scott_score

SEEDS = st.integers(0, 2**32 - 1)
PATH = np.diag([1.0, 1, 1], 1) + np.diag([1.0, 1, 1], -1)


def blobs(seed, n=40, q=3, k=3):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    return rng.normal(size=(n, q)) + 2 * rng.normal(size=(k, q))[labels], labels


def naive_scott(X, labels, ridge):
    total, within = np.zeros((2, X.shape[1], X.shape[1]))
    for row, label in zip(X, labels, strict=True):
        total += np.outer(row - X.mean(axis=0), row - X.mean(axis=0))
        center = X[labels == label].mean(axis=0)
        within += np.outer(row - center, row - center)
    between = total - within
    within = within + ridge * total
    return np.log(np.linalg.det(within + between) / np.linalg.det(within))


# Scott


def test_scott_closed_forms():
    X, labels = [[0.0], [2.0], [10.0], [12.0]], [0, 0, 1, 1]
    assert scott_score(X, labels, ridge=0) == pytest.approx(np.log(104 / 4))
    assert scott_score(X, labels, ridge=0.5) == pytest.approx(np.log((104 + 52) / (4 + 52)))
    square = [[-1.0, 0], [1, 0], [-1, 4], [1, 4]]  # T = diag(4, 16), W = diag(4, 0)
    assert scott_score(square, labels, ridge=0.1) == pytest.approx(np.log((0.4 + 4) / (0.4 + 4) * (1.6 + 16) / 1.6))


@given(SEEDS, st.integers(1, 5), st.integers(1, 6), st.sampled_from([0.0, 1e-6, 0.1]))
def test_scott_is_the_ratio_of_full_determinants(seed, q, k, ridge):
    X, labels = blobs(seed, q=q, k=k)
    assert scott_score(X, labels, ridge=ridge) == pytest.approx(naive_scott(X, labels, ridge), rel=1e-8, abs=1e-10)


@given(SEEDS, st.sampled_from([0.0, 1e-6]))
def test_scott_is_invariant_to_affine_maps(seed, ridge):
    X, labels = blobs(seed)
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(3, 3)))[0] for _ in range(2))
    mapped = X @ left @ np.diag(10.0 ** rng.uniform(-1, 1, 3)) @ right + 10 * rng.normal(size=3)
    assert scott_score(mapped, labels, ridge=ridge) == pytest.approx(scott_score(X, labels, ridge=ridge), rel=1e-6)


def test_scott_is_invariant_to_units_of_very_different_size():
    X, labels = blobs(0)
    assert scott_score(X * [1, 1e-9, 1e9], labels) == pytest.approx(scott_score(X, labels), rel=1e-9)


@given(SEEDS)
def test_scott_is_invariant_to_the_order_of_rows_and_the_names_of_clusters(seed):
    X, labels = blobs(seed)
    order = np.random.default_rng(seed).permutation(len(X))
    names = np.array(["b", "c", "a"])
    assert scott_score(X[order], names[labels[order]]) == pytest.approx(scott_score(X, labels), rel=1e-9)


def test_scott_ignores_features_that_add_nothing():
    X, labels = blobs(0)
    constant = np.full((len(X), 2), [0.0, 0.1])  # the mean of many 0.1 is not quite 0.1
    wide = np.hstack([X, X @ np.random.default_rng(0).normal(size=(3, 4)), constant])
    assert scott_score(wide, labels) == pytest.approx(scott_score(X, labels), rel=1e-6)


def test_scott_of_more_features_than_rows_is_finite():
    X, labels = blobs(0, n=10, q=50)
    # Within each of 2 directions, all is between: 1 + B / (ridge T) = 1 + 1 / ridge.
    assert scott_score(X, labels, ridge=1e-3) == pytest.approx(2 * np.log(1 + 1e3), rel=1e-6)


def test_scott_of_degenerate_partitions():
    X = blobs(0)[0]
    assert scott_score(X, np.zeros(len(X))) == 0.0
    assert scott_score(np.full((4, 2), 0.1), [0, 0, 1, 1]) == 0.0
    assert scott_score([[0.0], [0.0], [1.0], [1.0]], [0, 0, 1, 1]) == pytest.approx(np.log(1 + 1e6))
    assert scott_score(X[:5], np.arange(5)) == pytest.approx(3 * np.log(1 + 1e6))


def test_scott_rises_as_clusters_move_apart():
    X, labels = blobs(0)
    scores = [scott_score(X + distance * labels[:, None], labels) for distance in (10, 20, 40)]
    assert scores == sorted(scores)


def test_scott_leaves_its_input_alone():
    X, labels = blobs(0)
    before = X.copy(), labels.copy()
    scott_score(X, labels)
    np.testing.assert_array_equal(X, before[0])
    np.testing.assert_array_equal(labels, before[1])


@pytest.mark.parametrize(
    ("X", "labels", "message"),
    [
        (np.zeros(3), [0, 0, 1], "X must have shape (n, q); got (3,)"),
        (np.zeros((3, 2)), [0, 1], "labels must have shape (3,), one for each row; got (2,)"),
        (np.zeros((3, 2)), [[0], [0], [1]], "labels must have shape (3,), one for each row; got (3, 1)"),
        ([[np.nan], [1.0]], [0, 1], "X must not contain NaN or infinity"),
        ([[np.inf], [1.0]], [0, 1], "X must not contain NaN or infinity"),
    ],
)
def test_scott_tells_of_wrong_input(X, labels, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        scott_score(X, labels)


# Graph scores


def random_graph(seed, n=12, k=4):
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.uniform(size=(n, n)) * (rng.uniform(size=(n, n)) < 0.5), 1)
    return upper + upper.T, rng.integers(0, k, n)


def naive_cut(weights, labels):
    total = 0.0
    for cluster in set(labels):
        cut = volume = 0.0
        for i, j in np.ndindex(weights.shape):
            if labels[i] == cluster:
                volume += weights[i, j]
                cut += weights[i, j] * (labels[j] != cluster)
        total += cut / volume
    return total


def naive_modularity(weights, labels):
    degree, total = weights.sum(axis=1), weights.sum()
    same = [(i, j) for i, j in np.ndindex(weights.shape) if labels[i] == labels[j]]
    return sum(weights[i, j] - degree[i] * degree[j] / total for i, j in same) / total


def test_graph_scores_closed_forms():
    assert normalized_cut(sparse.csr_array(PATH), [0, 0, 1, 1]) == pytest.approx(2 / 3)
    assert modularity(sparse.csr_array(PATH), [0, 0, 1, 1]) == pytest.approx(2 * (2 / 6 - 1 / 4))
    assert normalized_cut(sparse.csr_array(PATH), [0, 1, 0, 1]) == pytest.approx(2)
    assert modularity(sparse.csr_array(PATH), [0, 1, 0, 1]) == pytest.approx(-0.5)


@given(SEEDS, st.integers(1, 6))
def test_graph_scores_agree_with_loops_over_pairs(seed, k):
    weights, labels = random_graph(seed, k=k)
    assume((weights.sum(axis=1) > 0).all())
    cut, quality = normalized_cut(sparse.csr_array(weights), labels), modularity(sparse.csr_array(weights), labels)
    assert cut == pytest.approx(naive_cut(weights, labels), abs=1e-9)
    assert quality == pytest.approx(naive_modularity(weights, labels), abs=1e-9)
    assert -1e-9 <= cut <= len(set(labels)) + 1e-9
    assert -0.5 - 1e-9 <= quality <= 1


@pytest.mark.parametrize("score", [normalized_cut, modularity])
@given(seed=SEEDS)
def test_graph_scores_do_not_see_node_order_cluster_names_or_the_unit_of_weight(score, seed):
    weights, labels = random_graph(seed)
    order = np.random.default_rng(seed).permutation(len(labels))
    mapped = sparse.csr_array(3.0 * weights[np.ix_(order, order)])
    renamed = np.array(["d", "b", "a", "c"])[labels[order]]
    assert score(mapped, renamed) == pytest.approx(score(sparse.csr_array(weights), labels), abs=1e-9)


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.coo_matrix, sparse.coo_array, sparse.csc_array])
def test_graph_scores_take_every_sparse_format(kind):
    assert normalized_cut(kind(PATH), [0, 0, 1, 1]) == pytest.approx(2 / 3)
    assert modularity(kind(PATH), [0, 0, 1, 1]) == pytest.approx(1 / 6)


def test_graph_scores_of_separate_components_and_of_one_cluster():
    cliques = sparse.csr_array(sparse.block_diag([np.ones((4, 4)) - np.eye(4)] * 3))
    labels = np.repeat([0, 1, 2], 4)
    assert normalized_cut(cliques, labels) == pytest.approx(0, abs=1e-12)
    assert modularity(cliques, labels) == pytest.approx(2 / 3)
    assert normalized_cut(cliques, np.zeros(12)) == pytest.approx(0, abs=1e-12)
    assert modularity(cliques, np.zeros(12)) == pytest.approx(0, abs=1e-12)


def test_isolated_nodes_change_no_cluster_but_their_own():
    weights = np.zeros((6, 6))
    weights[:4, :4] = PATH
    graph = sparse.csr_array(weights)
    assert normalized_cut(graph, [0, 0, 1, 1, 0, 1]) == pytest.approx(2 / 3)
    assert modularity(graph, [0, 0, 1, 1, 0, 1]) == pytest.approx(1 / 6)
    # A cluster of isolated nodes alone is the worst, not the best, that a cluster can be.
    assert normalized_cut(graph, [0, 0, 1, 1, 2, 2]) == pytest.approx(2 / 3 + 1)
    assert modularity(graph, [0, 0, 1, 1, 2, 2]) == pytest.approx(1 / 6)
    empty = sparse.csr_array((3, 3))
    assert normalized_cut(empty, [0, 1, 1]) == 2.0
    assert modularity(empty, [0, 1, 1]) == 0.0


@pytest.mark.parametrize("score", [normalized_cut, modularity])
def test_graph_scores_tell_of_wrong_shapes(score):
    with pytest.raises(ValueError, match=re.escape("graph must be square; got shape (2, 3)")):
        score(sparse.csr_array((2, 3)), [0, 1])
    with pytest.raises(ValueError, match=re.escape("labels must have shape (4,), one for each row; got (3,)")):
        score(sparse.csr_array(PATH), [0, 0, 1])


def disconnected(n_components, size, n_neighbors=5):
    rng = np.random.default_rng(0)
    return sparse.csr_array(
        sparse.block_diag([knn_graph(rng.normal(size=(size, 3)), n_neighbors) for _ in range(n_components)])
    )


def ring(n):
    step = np.roll(np.eye(n), 1, axis=0)
    return sparse.csr_array(step + step.T)


@pytest.mark.parametrize(
    ("graph", "n_clusters"),
    [
        (disconnected(6, 60), 8),
        (disconnected(20, 60), 24),
        (disconnected(3, 400), 2),
        (disconnected(2, 350), 4),
        (ring(600), 5),  # eigenvalues that repeat within a component
        (sparse.csr_array(np.ones((400, 400)) - np.eye(400)), 3),
        (sparse.csr_array(sparse.block_diag([ring(310), np.zeros((4, 4))])), 3),
    ],
)
def test_relative_cut_counts_every_eigenvalue_of_a_large_graph(graph, n_clusters):
    labels = np.arange(graph.shape[0]) % n_clusters
    degree = graph.sum(axis=1)
    scale = 1 / np.sqrt(np.where(degree > 0, degree, 1))
    laplacian = np.eye(len(degree)) - scale[:, None] * graph.toarray() * scale
    further = np.linalg.eigvalsh(laplacian)[n_clusters : 2 * n_clusters].sum()
    expected = balanced_cut(graph, labels, n_clusters, balance=0) / further
    assert relative_cut(graph, labels, n_clusters) == pytest.approx(expected, rel=1e-6)


@given(st.lists(st.integers(2, 9), min_size=1, max_size=30), SEEDS)
def test_cuts_of_clusters_without_edges_between_them_are_never_below_zero(sizes, seed):
    rng = np.random.default_rng(seed)
    blocks = [np.triu(rng.uniform(0.1, 1, (size, size)), 1) for size in sizes]
    graph = sparse.csr_array(sparse.block_diag([block + block.T for block in blocks]))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    assert normalized_cut(graph, labels) == 0
    assert 0 <= balanced_cut(graph, labels, len(sizes)) <= np.log(len(sizes))


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (np.where(PATH > 0, np.nan, 0), "graph must have finite weights of at least 0"),
        (np.where(PATH > 0, np.inf, 0), "graph must have finite weights"),
        (-PATH, "graph must have finite weights of at least 0"),
        (PATH * 1e308, "graph must have finite weights"),
        (PATH[0], "graph must be square"),
        (PATH[:3], "graph must be square"),
        (None, "graph must be a matrix of numbers"),
        ("graph", "graph must be a matrix of numbers"),
        (PATH * 1j, "graph must be a matrix of real numbers; got dtype complex128"),
        (np.triu(PATH), r"graph must be symmetric: .* take graph\.maximum\(graph\.T\)"),
    ],
)
def test_graphs_that_are_none_are_told_of(graph, message):
    for score in (normalized_cut, modularity, lambda *given: balanced_cut(*given, 2), lambda *g: relative_cut(*g, 2)):
        with np.errstate(invalid="ignore"), pytest.raises(ValueError, match=message):
            score(graph, [0, 0, 1, 1])


@pytest.mark.parametrize("n_clusters", [1, 0, -1, True, 2.5, np.nan, "2", None])
def test_fewer_clusters_than_labels_have_are_told_of(n_clusters):
    for score in (balanced_cut, relative_cut):
        with pytest.raises(ValueError, match="n_clusters must be an int of at least the 2 clusters in labels; got"):
            score(sparse.csr_array(PATH), [0, 0, 1, 1], n_clusters)


@pytest.mark.parametrize("labels", [[0, np.nan, 1, 1], [0, None, "a", 1], [[0], [1, 2]], None], ids=str)
def test_labels_that_are_none_are_told_of(labels):
    for score in (normalized_cut, modularity):
        with pytest.raises(ValueError, match="labels must"):
            score(PATH, labels)
    with pytest.raises(ValueError, match="labels must"):
        scott_score(np.zeros((4, 2)), labels)


def test_graphs_of_nearest_neighbours_are_scored_once_they_are_symmetric():
    graph = kneighbors_graph(np.random.default_rng(0).normal(size=(60, 3)), 5)
    labels = np.arange(60) % 3
    with pytest.raises(ValueError, match="graph must be symmetric"):
        modularity(graph, labels)
    graph = graph.maximum(graph.T)
    assert normalized_cut(graph, labels) == pytest.approx(naive_cut(graph.toarray(), labels))


@pytest.mark.parametrize("balance", [np.nan, -1, np.inf, None, "1", 10**400, [1]])
def test_weights_of_balance_that_cannot_be_are_told_of(balance):
    with pytest.raises(ValueError, match="balance must be a finite number"):
        balanced_cut(sparse.csr_array(PATH), [0, 0, 1, 1], 2, balance=balance)


@pytest.mark.parametrize("change", [1e13, -1e13, 0.0])
@pytest.mark.parametrize("scale", [1.0, 1e-170, 1e155, 1e170])
def test_scott_score_is_the_same_at_any_offset_and_scale(change, scale):
    X = np.array([[0.0], [2.0], [10.0], [12.0]])
    assert scott_score((X + change) * scale, [0, 0, 1, 1], ridge=0) == pytest.approx(np.log(104 / 4), rel=1e-2)


@pytest.mark.parametrize("ridge", [-1, np.nan, np.inf, None, "1", 10**400, [1]])
def test_ridges_that_cannot_be_are_told_of(ridge):
    with pytest.raises(ValueError, match="ridge must be a finite number of at least 0"):
        scott_score([[0.0], [1.0]], [0, 1], ridge=ridge)


@pytest.mark.parametrize("X", [np.zeros((0, 2)), np.ones((2, 2)) * 1j, [["a"], ["b"]]])
def test_scott_score_tells_of_what_holds_no_real_numbers(X):
    with pytest.raises(ValueError, match="X must hold real numbers"):
        scott_score(X, [0] * len(X))
