import dataclasses
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.model_selection import GridSearchCV, KFold

from skdiec.metrics import (
    ClusteringReport,
    accuracy_scorer,
    clustering_accuracy,
    clustering_report,
)


def best_by_trying_all_matches(y_true, y_pred):
    classes, clusters = sorted(set(y_true)), sorted(set(y_pred))
    classes += [None] * (len(clusters) - len(classes))  # clusters that no class is left for
    best = 0
    for match in permutations(classes, len(clusters)):
        of = dict(zip(clusters, match, strict=True))
        best = max(best, sum(of[cluster] == label for label, cluster in zip(y_true, y_pred, strict=True)))
    return best / len(y_true)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=25))
def test_accuracy_is_that_of_the_best_match(pairs):
    y_true, y_pred = (list(column) for column in zip(*pairs, strict=True))
    assert clustering_accuracy(y_true, y_pred) == pytest.approx(best_by_trying_all_matches(y_true, y_pred))


@pytest.mark.parametrize(
    ("y_true", "y_pred", "expected"),
    [
        ([0, 0, 1, 1], [1, 1, 0, 1], 0.75),
        ([0, 0, 1, 1], [0, 1, 2, 3], 0.5),  # more clusters than classes
        ([0, 1, 2, 3], [5, 5, 5, 5], 0.25),  # fewer
        # The greedy match, of the 3 first, would leave 3 of 7.
        ([0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0, 0], 4 / 7),
        (["cat", "cat", "dog"], ["b", "b", "a"], 1.0),
        (["cat", "cat", "dog"], [-1, 7, 7], 2 / 3),
        (np.array([[0], [1]]).ravel(), (3, 4), 1.0),
        ([0], [9], 1.0),
    ],
)
def test_accuracy_closed_forms(y_true, y_pred, expected):
    assert clustering_accuracy(y_true, y_pred) == pytest.approx(expected)
    assert clustering_accuracy(y_pred, y_true) == pytest.approx(expected)  # the match is one to one


def test_accuracy_does_not_see_the_names_of_clusters():
    rng = np.random.default_rng(0)
    y_true, y_pred = rng.integers(0, 6, (2, 100))
    renamed = rng.permutation(6)[y_pred]
    assert clustering_accuracy(y_true, renamed) == clustering_accuracy(y_true, y_pred)


def test_wrong_lengths_are_told_of():
    with pytest.raises(ValueError, match="y_true and y_pred must be of one length; got 2 and 1"):
        clustering_accuracy([0, 1], [0])
    with pytest.raises(ValueError, match="y_true and y_pred must not be empty"):
        clustering_accuracy([], [])


def test_report_holds_the_three_figures():
    y_true, y_pred = np.random.default_rng(0).integers(0, 4, (2, 50))
    report = clustering_report(y_true, y_pred)
    assert report.acc == clustering_accuracy(y_true, y_pred)
    assert report.nmi == normalized_mutual_info_score(y_true, y_pred)
    assert report.ari == adjusted_rand_score(y_true, y_pred)
    assert str(ClusteringReport(0.5, 0.25, -0.125)) == "ACC 0.500  NMI 0.250  ARI -0.125"
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.acc = 1.0


@pytest.mark.parametrize(
    ("scorer", "metric"),
    [
        (accuracy_scorer, clustering_accuracy),
        ("normalized_mutual_info_score", normalized_mutual_info_score),
        ("adjusted_rand_score", adjusted_rand_score),
    ],
)
def test_scorers_choose_in_a_grid_search(scorer, metric):
    X, y = make_blobs(60, centers=[[0, 0], [9, 0], [0, 9]], cluster_std=0.5, random_state=0)
    folds = KFold(3)
    grid = {"n_clusters": [2, 3, 6]}
    search = GridSearchCV(KMeans(n_init=3, random_state=0), grid, scoring=scorer, cv=folds).fit(X, y)
    assert search.best_params_ == {"n_clusters": 3}
    assert search.best_score_ == 1.0
    for n_clusters, found in zip(grid["n_clusters"], search.cv_results_["mean_test_score"], strict=True):
        by_hand = [
            metric(y[test], KMeans(n_clusters, n_init=3, random_state=0).fit(X[train]).predict(X[test]))
            for train, test in folds.split(X)
        ]
        assert found == pytest.approx(np.mean(by_hand))


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_labels_that_are_no_numbers_are_told_of(odd):
    with pytest.raises(ValueError, match="y_true must not contain NaN or infinity"):
        clustering_accuracy([0, odd], [0, 1])
    with pytest.raises(ValueError, match="y_pred must not contain NaN or infinity"):
        clustering_accuracy([0, 1], [0, odd])


@pytest.mark.parametrize(
    "labels",
    [
        np.array([0, np.nan, 1], dtype=object),
        np.array([0, np.inf, 1], dtype=object),
        ["a", np.nan, "b"],
        (0, np.nan, 1),
        [[0], [np.nan], [1]],
        np.array(["2026-01-01", "NaT", "2026-01-02"], dtype="datetime64[D]"),
    ],
    ids=["objects", "infinite", "texts", "tuple", "rows", "dates"],
)
def test_missing_labels_are_no_class_of_their_own(labels):
    with pytest.raises(ValueError, match="y_true must not contain NaN or infinity"):
        clustering_accuracy(labels, [0, 1, 2])


@pytest.mark.parametrize("wrong", [None, "abc", 3, np.zeros((2, 2)), [[1], [2, 3]], [None, "a"], [1j, 2j]], ids=str)
def test_what_are_no_labels_is_told_of(wrong):
    for metric in (clustering_accuracy, clustering_report):
        with pytest.raises(ValueError, match="y_true must be integers or strings"):
            metric(wrong, [0, 1])
        with pytest.raises(ValueError, match="y_pred must be integers or strings"):
            metric([0, 1], wrong)


def test_columns_are_labels_too():
    column = np.array([[0], [0], [1], [1]])
    assert clustering_report(column, [1, 1, 0, 0]) == ClusteringReport(1.0, 1.0, 1.0)
