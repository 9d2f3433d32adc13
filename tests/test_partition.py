from functools import partial
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from scipy.cluster.hierarchy import fcluster, is_monotonic, is_valid_linkage
from sklearn.cluster import KMeans
from sklearn.datasets import make_circles
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score

from skdiec import partition
from skdiec.graph import knn_graph, spectral_embedding
from skdiec.metrics import clustering_accuracy
from skdiec.partition import (
    STRONG_LINK,
    best_partition,
    cluster_tree,
    co_association_graph,
    cut_over_noise,
    cut_tree,
    ensemble_partition,
    initial_partition,
    kmeans_labels,
    merge_tree,
    merged_partition,
    split_and_merge,
    strongest_link,
    unit_rows,
)
from skdiec.scores import balanced_cut, normalized_cut


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
    candidates = seen[: 4 * n_init - n_init // 2]  # further cuts are those of clusters split and merged
    for (value, labels), (_, expected) in zip(candidates, first + second, strict=True):
        np.testing.assert_array_equal(labels, expected)
        assert value == normalized_cut(graph, labels)  # that of the graph itself, in the second round too
    assert found.cut == normalized_cut(graph, found.labels) <= min(value for value, _ in candidates)
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


# Merges


def naive_links(graph, labels):
    """Links of all pairs of clusters, edge by edge."""
    weights = graph.toarray()
    names = np.unique(labels)
    volume = {k: weights[labels == k].sum() for k in names}
    return {
        (k, m): weights[np.ix_(labels == k, labels == m)].sum() / np.sqrt(volume[k] * volume[m])
        for k in names
        for m in names
        if k < m
    }


def random_graph(seed, n=40):
    return knn_graph(np.random.default_rng(seed).normal(size=(n, 3)), 5)


@given(st.integers(0, 2**32 - 1), st.integers(2, 8))
def test_strongest_link_is_that_of_all_pairs(seed, n_clusters):
    graph = random_graph(seed % 1000)
    labels = np.random.default_rng(seed).integers(n_clusters, size=40)
    links = naive_links(graph, labels)
    assert strongest_link(graph, labels) == pytest.approx(max(links.values(), default=0.0))
    assert strongest_link(2.5 * graph, 10 * labels + 3) == pytest.approx(strongest_link(graph, labels))


def test_clusters_without_edges_between_them_have_no_link():
    graph = sparse.csr_array(np.kron(np.eye(2), np.ones((3, 3)) - np.eye(3)))
    assert strongest_link(graph, np.array([0, 0, 0, 1, 1, 1])) == 0.0
    assert strongest_link(graph, np.zeros(6, dtype=int)) == 0.0
    assert strongest_link(sparse.csr_array((6, 6)), np.arange(6)) == 0.0


def naive_merges(graph, fine):
    """Partitions into m, m - 1, ... clusters, and the links of the merges between them."""
    labels, partitions, merged = fine.copy(), [fine.copy()], []
    while len(set(labels)) > 1:
        links = naive_links(graph, labels)
        (k, m), link = max(links.items(), key=lambda item: item[1])
        labels[labels == m] = k
        partitions.append(labels.copy())
        merged.append(link)
    return partitions, merged


@pytest.mark.parametrize("seed", range(6))
def test_merges_are_those_of_a_loop(seed):
    graph = random_graph(seed)
    fine = np.random.default_rng(seed).permutation(np.arange(40) % 9)
    tree = merge_tree(graph, fine)
    partitions, links = naive_merges(graph, fine)
    for count, expected in zip(range(9, 0, -1), partitions, strict=True):
        for found in (cut_tree(tree, count)[fine], merged_partition(graph, 5 * fine + 2, count)):
            assert len(set(found)) == count
            assert adjusted_rand_score(expected, found) == 1.0
    np.testing.assert_allclose(tree[:, 2], np.maximum.accumulate(1 - np.array(links)))
    assert is_valid_linkage(tree)
    assert is_monotonic(tree)
    assert tree[-1, 3] == 9
    for first, second, _, size in tree:  # sizes of leaves, or of earlier merges
        parts = [1 if node < 9 else tree[int(node) - 9, 3] for node in (first, second)]
        assert size == sum(parts)


def test_the_tree_of_a_path_is_the_closed_form():
    # Six nodes in a row, the middle edge thin: pairs first by their links, then the halves.
    weights = np.diag([4.0, 2, 1, 2, 4], 1)
    tree = merge_tree(sparse.csr_array(weights + weights.T), np.arange(6))
    # 4 / sqrt(4 * 6) twice; then 2 / sqrt(10 * 3) twice, of volumes 10 and 3; then 1 / sqrt(13 * 13)
    np.testing.assert_allclose(
        tree[:, 2], [1 - 4 / 24**0.5, 1 - 4 / 24**0.5, 1 - 2 / 30**0.5, 1 - 2 / 30**0.5, 1 - 1 / 13]
    )
    assert cut_tree(tree, 2).tolist() == [0, 0, 0, 1, 1, 1]
    assert cut_tree(tree, 4).tolist() == [0, 0, 1, 2, 3, 3]
    assert cut_tree(tree, 99).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("seed", range(4))
def test_trees_are_cut_as_scipy_cuts_them(seed):
    graph = random_graph(seed, 60)
    fine = np.random.default_rng(seed).permutation(np.arange(60) % 12)
    tree = merge_tree(graph, fine)
    for count in range(1, 13):
        expected = fcluster(tree, count, "maxclust")
        if len(set(expected)) == count:  # scipy does not part merges of one height
            assert adjusted_rand_score(expected, cut_tree(tree, count)) == 1.0


def test_a_coarser_partition_is_made_whole_first():
    graph = random_graph(0, 60)
    fine = np.random.default_rng(1).permutation(np.arange(60) % 12)
    coarse = np.array([0, 1, 2] * 4)[fine]  # not what the links say
    tree = merge_tree(graph, fine, coarse)
    assert adjusted_rand_score(coarse, cut_tree(tree, 3)[fine]) == 1.0
    assert is_valid_linkage(tree)
    assert is_monotonic(tree)
    for count in range(3, 13):  # nested
        labels = cut_tree(tree, count)[fine]
        assert all(len(set(coarse[labels == k])) == 1 for k in range(count))
    links = naive_links(graph, coarse)
    first, second = (set(coarse[np.isin(fine, np.flatnonzero(cut_tree(tree, 2) == k))]) for k in (0, 1))
    together = max((first, second), key=len)
    assert tuple(sorted(together)) == max(links, key=links.get)


def test_a_cluster_tree_leads_over_the_clusters():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [200, 60, 7])
    X = 20.0 * np.eye(3)[labels] + rng.normal(size=(len(labels), 3))
    fine, tree = cluster_tree(X, knn_graph(X), labels, seed=3)
    assert len(tree) == fine.max() == 4 + 4 + 1 - 1  # 7 images are not split
    np.testing.assert_array_equal(cut_tree(tree, 3)[fine], labels)
    again = cluster_tree(X, knn_graph(X), labels, seed=3)
    np.testing.assert_array_equal(again[0], fine)
    np.testing.assert_array_equal(again[1], tree)
    one, nothing = cluster_tree(X[:3], knn_graph(X[:3]), np.zeros(3, dtype=int))
    assert (one.tolist(), nothing.shape) == ([0, 0, 0], (0, 4))


# Splitting and merging


def one_split_and_two_together(y):
    """Return blobs from 0 on with the first one split, at random, and the last two together."""
    wrong = np.minimum(y, y.max() - 1)
    wrong[(y == 0) & (np.arange(len(y)) % 2 == 1)] = y.max()
    return wrong


def halves_by_kmeans(X, asked=None):
    def halves(members):
        if asked is not None:
            asked.append(members)
        return kmeans_labels(X[members], 2, n_init=3)

    return halves


def cut_of(labels, value, others):
    """Return a cut that has one value for a partition, and another for all others."""
    return lambda each: value if adjusted_rand_score(each, labels) == 1.0 else others


@pytest.mark.parametrize("n_blobs", [3, 6])
def test_a_class_that_is_split_and_two_that_are_together_are_mended(n_blobs):
    X, y = blobs([80] * n_blobs, 0.3, 1)
    graph = knn_graph(X)
    wrong = one_split_and_two_together(y)
    found = split_and_merge(graph, wrong, partial(normalized_cut, graph), halves_by_kmeans(X))
    assert clustering_accuracy(y, wrong) < 0.85
    np.testing.assert_array_equal(found, y)  # blobs are numbered in the order of their first rows too
    assert found.dtype == np.int32
    assert 1.2 * strongest_link(graph, found) <= strongest_link(graph, wrong)


def test_of_two_mistakes_the_one_that_stands_out_is_mended_first():
    X, y = blobs([80] * 8, 0.2, 1)
    graph = knn_graph(X)
    wrong = np.concatenate([one_split_and_two_together(y[:320]), 4 + one_split_and_two_together(y[320:] - 4)])
    wrong[(y == 4) & (np.arange(640) % 2 == 1) & (np.arange(640) % 5 > 0)] = 4  # a tenth of this blob is split off
    wrong[(y == 4) & (np.arange(640) % 10 == 5)] = 7
    found = split_and_merge(graph, wrong, partial(normalized_cut, graph), halves_by_kmeans(X))
    np.testing.assert_array_equal(found, y)


def test_clusters_stay_where_nothing_is_to_be_mended():
    X, y = blobs([80] * 6, 0.2, 1)
    graph, asked = knn_graph(X), []
    # No two links of halves stand out here, or the cut would rise.
    np.testing.assert_array_equal(split_and_merge(graph, y, partial(normalized_cut, graph), halves_by_kmeans(X)), y)
    wrong = one_split_and_two_together(y)
    for lower in (1.0, 0.99):  # clearly lower it must be
        kept = split_and_merge(graph, wrong, cut_of(wrong, 1.0, lower), halves_by_kmeans(X))
        assert adjusted_rand_score(kept, wrong) == 1.0
    found = split_and_merge(graph, wrong, cut_of(wrong, 1.0, 0.97), halves_by_kmeans(X))
    assert adjusted_rand_score(found, wrong) < 1.0
    apart = sparse.block_diag([np.ones((4, 4)), np.ones((4, 4))]).tocsr()
    labels = np.repeat([0, 1], 4)
    np.testing.assert_array_equal(split_and_merge(apart, labels, len, halves_by_kmeans(X, asked)), labels)
    np.testing.assert_array_equal(split_and_merge(apart, 0 * labels, len, halves_by_kmeans(X, asked)), 0 * labels)
    assert asked == []  # not a single link
    one = split_and_merge(graph, wrong, partial(normalized_cut, graph), lambda members: np.zeros(len(members)))
    np.testing.assert_array_equal(one, kept)  # of images that are all the same


def test_a_lower_cut_is_not_enough_to_be_preferred():
    # Parts of one cloud: whatever is merged, the next strongest link is nearly as strong.
    X = np.random.default_rng(0).uniform(size=(400, 2))
    graph = knn_graph(X)
    labels = kmeans_labels(X, 9, seed=0)
    tried = []

    def cut(labels):
        tried.append(normalized_cut(graph, labels) - len(tried))  # ever lower
        return tried[-1]

    found = split_and_merge(graph, labels, cut, halves_by_kmeans(X))
    assert adjusted_rand_score(labels, found) == 1.0
    assert len(tried) > 1


def test_ensemble_partition_mends_what_no_candidate_has_right(monkeypatch):
    X, y = blobs([80] * 6, 0.3, 1)
    graph, wrong = knn_graph(X), one_split_and_two_together(y)
    other = wrong[::-1]  # another mistake
    monkeypatch.setattr(
        "skdiec.partition.candidates._candidates",
        lambda *args: [("spectral", lambda: np.int32(wrong))] * 3 + [("spectral", lambda: np.int32(5 - other))],
    )
    found = ensemble_partition(X, graph, 6, balanced(6), n_init=2)
    np.testing.assert_array_equal(found.labels, y)
    assert (found.cut, found.source) == (balanced_cut(graph, y, 6), "spectral")
    assert found.stability == 1.0  # all of its rivals become the same


# Choice

UNEVEN = [800, 300, 100, 60, 40, 30, 20, 15, 12, 10]


def blobs(sizes, spread, seed):
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(sizes)), sizes)
    return rng.normal(size=(len(sizes), 8))[y] + spread * rng.normal(size=(len(y), 8)), y


def balanced(n_clusters):
    return partial(balanced_cut, n_clusters=n_clusters)


@pytest.mark.parametrize("seed", range(3))
def test_uneven_classes_are_found_by_merges(seed):
    X, y = blobs(UNEVEN, 0.45, seed)
    graph = knn_graph(X)
    lowest = ensemble_partition(X, graph, 10, balanced(10), n_init=4)
    found = initial_partition(X, graph, 10, balanced(10), n_init=4)
    assert clustering_accuracy(y, lowest.labels) < 0.75  # what the cut alone prefers
    assert clustering_accuracy(y, found.labels) > 0.95
    assert (found.source, found.labels.dtype) == ("merged", np.int32)
    assert found.stability > 0.9
    assert found.cut == balanced_cut(graph, found.labels, 10)
    assert 1.2 * strongest_link(graph, found.labels) <= strongest_link(graph, lowest.labels)


def test_few_images_that_lie_apart_are_no_clusters_of_their_own():
    X, y = blobs([200, 200], 0.2, 0)
    X = np.concatenate([X, 40.0 + 20 * np.arange(8)[:, None] * np.eye(8)])  # eight images, far from each other too
    graph = knn_graph(X)
    fine = np.concatenate([2 * y + np.tile([0, 1], 200), [4, 4, 4, 5, 6, 7, 8, 9]])
    assert np.bincount(merged_partition(graph, fine, 4)).min() < 5
    found = merged_partition(graph, fine, 4, least=5)
    assert (len(np.unique(found)), found.dtype) == (4, np.int32)
    assert np.bincount(found).min() >= 5
    np.testing.assert_array_equal(merged_partition(graph, fine, 10, least=5), np.unique(fine, return_inverse=True)[1])
    assert len(np.unique(merged_partition(graph, fine, 9, least=5))) == 9  # not fewer than were asked for


@pytest.mark.parametrize(
    ("sizes", "taken", "other"), [(UNEVEN, 40, 80), ([1200, 500, 200, 80, 40, 20, 12, 8, 6, 6], 80, 40)]
)
def test_of_two_finenesses_the_one_whose_merges_agree_better_is_taken(sizes, taken, other):
    X, y = blobs(sizes, 0.45, 3)
    graph = knn_graph(X)
    rows = unit_rows(spectral_embedding(graph, 16))
    merges = {
        n: [merged_partition(graph, kmeans_labels(rows, n, seed=start), 10, least=5) for start in range(3)]
        for n in (40, 80)
    }
    agreement = {
        n: np.mean([adjusted_rand_score(*pair) for pair in combinations(labels, 2)]) for n, labels in merges.items()
    }
    assert agreement[taken] > max(0.9, agreement[other])
    found = initial_partition(X, graph, 10, balanced(10), n_init=4)
    assert found.source == "merged"
    assert any(np.array_equal(found.labels, labels) for labels in merges[taken])
    assert clustering_accuracy(y, found.labels) > 0.95


@pytest.mark.parametrize(("sizes", "spread"), [([100] * 6, 0.2), ([100] * 6, 1.5), ([300], 1.0), ([2] * 4, 0.3)])
def test_else_the_partition_is_that_of_the_lowest_cut(sizes, spread):
    # Even classes that lie apart have no strong link; of classes that overlap, or are none, merges disagree.
    X, _ = blobs(sizes, spread, 0)
    k = max(3, len(sizes))
    graph = knn_graph(X)
    lowest = ensemble_partition(X, graph, k, balanced(k), n_init=4)
    found = initial_partition(X, graph, k, balanced(k), n_init=4)
    np.testing.assert_array_equal(found.labels, lowest.labels)
    assert (found.cut, found.source, found.stability) == (lowest.cut, lowest.source, lowest.stability)
    assert (strongest_link(graph, found.labels) < STRONG_LINK) == (sizes == [100] * 6 and spread < 1)


def test_initial_partition_is_the_same_in_any_order_of_calls():
    X, _ = blobs(UNEVEN, 0.45, 0)
    graph = knn_graph(X)
    one = initial_partition(X, graph, 10, balanced(10), n_init=4)
    assert one.source == "merged"
    other = initial_partition(
        X, graph, 10, balanced(10), n_init=4, call_all=lambda calls: [call() for call in reversed(calls)][::-1]
    )
    np.testing.assert_array_equal(other.labels, one.labels)
    assert other.stability == one.stability


def test_stability_is_the_agreement_with_rivals():
    apart, _ = blobs([60] * 3, 0.1, 0)
    found = ensemble_partition(apart, knn_graph(apart), 3, balanced(3), n_init=3)
    assert found.stability == 1.0
    noise = np.random.default_rng(0).uniform(size=(400, 2))  # many ways to cut it that are about as good
    assert ensemble_partition(noise, knn_graph(noise), 7, balanced(7), n_init=6).stability < 0.9
    assert np.isnan(best_partition(apart, knn_graph(apart), 3, normalized_cut, n_init=1).stability)


# Noise


@pytest.mark.parametrize("seed", range(3))
def test_noise_is_as_good_as_noise_and_clusters_are_better(seed):
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(400, 10)) * np.linspace(1, 3, 10)
    found = best_partition(noise, knn_graph(noise), 5, normalized_cut, n_init=2).labels
    assert cut_over_noise(noise, found, 10, normalized_cut, seed=seed) == pytest.approx(1, abs=0.1)
    apart, y = blobs([80] * 5, 0.2, seed)
    apart = PCA().fit_transform(apart)
    assert cut_over_noise(apart, y, 10, normalized_cut, seed=seed) < 0.05
    assert cut_over_noise(apart, rng.permutation(y), 10, normalized_cut, seed=seed) > 1.2
    overlapping, y = blobs([80] * 5, 0.5, seed)
    assert 0.1 < cut_over_noise(PCA().fit_transform(overlapping), y, 10, normalized_cut, seed=seed) < 0.9
    assert np.isnan(cut_over_noise(apart, np.zeros(400, dtype=int), 10, normalized_cut))


def test_noise_is_compared_on_a_subset_of_many_rows(monkeypatch):
    apart, y = blobs([80] * 5, 0.2, 0)
    monkeypatch.setattr(partition, "_NOISE_ROWS", 100)
    sizes = []

    def cut(graph, labels):
        sizes.append(graph.shape[0])
        return normalized_cut(graph, labels)

    assert cut_over_noise(PCA().fit_transform(apart), y, 10, cut, seed=3) < 0.05
    assert set(sizes) == {100}
    # The same each time
    values = {cut_over_noise(apart, y, 10, normalized_cut, seed=seed) for seed in (1, 1, 2)}
    assert len(values) == 2
