import numpy as np
import pytest
from sklearn.metrics import silhouette_score

from skdiec import load
from skdiec.cluster_number import candidate_numbers, estimate_n_clusters
from skdiec.graph import knn_graph, spectral_embedding
from skdiec.images import as_image_source, distinct_rows
from skdiec.partition import kmeans_labels, strongest_link, unit_rows
from skdiec.scores import modularity, normalized_cut


def blobs(sizes, *, distance=12.0, d=10, seed=0):
    rng = np.random.default_rng(seed)
    centers = distance * np.linalg.qr(rng.normal(size=(max(d, len(sizes)), max(d, len(sizes)))))[0][: len(sizes)]
    return np.concatenate(
        [center + rng.normal(size=(size, centers.shape[1])) for center, size in zip(centers, sizes, strict=True)]
    )


def test_candidates_are_every_number_up_to_30_and_steps_above():
    assert candidate_numbers(3).tolist() == []
    assert candidate_numbers(4).tolist() == [2]
    assert candidate_numbers(80).tolist() == list(range(2, 11))
    assert candidate_numbers(30 * 8 + 39).tolist() == [*range(2, 31), 32, 34]
    many = candidate_numbers(10**6)
    assert many[-1] <= 150 < np.ceil(1.06 * many[-1])
    assert (np.diff(many) > 0).all()


@pytest.mark.parametrize("sizes", [[50] * 2, [40] * 7, [200, 100, 50, 25, 25], [20] * 24], ids=len)
def test_blobs_are_counted(sizes):
    assert estimate_n_clusters(blobs(sizes), 10).n_clusters == len(sizes)


def test_scores_are_those_of_the_best_spectral_partition():
    X = blobs([30, 30, 40], distance=4.0)
    found = estimate_n_clusters(X, 10, seed=3)
    graph = knn_graph(X, 10)
    vectors = spectral_embedding(graph, int(found.candidates[-1]), seed=3)
    for place in (1, 4):
        count = found.candidates[place]
        rows = unit_rows(vectors[:, :count])
        labels = min(
            (kmeans_labels(rows, count, seed=3 + start) for start in range(3)),
            key=lambda labels: normalized_cut(graph, labels),
        )
        assert found.silhouettes[place] == pytest.approx(silhouette_score(X, labels), abs=1e-6)
        assert found.modularities[place] == pytest.approx(modularity(graph, labels), abs=1e-12)
        score = silhouette_score(X, labels) * modularity(graph, labels) ** 4
        assert found.scores[place] == pytest.approx(score / np.sqrt(1 + 10 * strongest_link(graph, labels)), abs=1e-6)
    best = found.candidates[[found.scores.argmax(), found.silhouettes.argmax(), found.modularities.argmax()]]
    assert (found.n_clusters, found.at_most) == (best[0], best.max())


def test_one_group_far_from_all_others_is_not_half_of_the_answer():
    X = np.concatenate([blobs([100] * 5, distance=5.0), [60.0] * 10 + blobs([60])])
    found = estimate_n_clusters(X, 10)
    assert found.candidates[found.silhouettes.argmax()] == 2
    assert found.n_clusters == 6


def test_calls_may_be_made_in_any_order():
    X = blobs([20, 20, 20])
    one = estimate_n_clusters(X, 10)
    other = estimate_n_clusters(X, 10, call_all=lambda calls: [call() for call in calls[::-1]][::-1])
    assert one.n_clusters == other.n_clusters == 3
    np.testing.assert_array_equal(one.silhouettes, other.silhouettes)


def test_far_higher_numbers_are_not_looked_at():
    X = blobs([100] * 12)
    found = estimate_n_clusters(X, 10)
    assert found.n_clusters == 12
    assert found.candidates[[0, -1]].tolist() == [2, 52]  # 30 and eight more, of which the last is past three times 12
    assert len(found.silhouettes) == len(found.modularities) == len(found.candidates)


def test_few_and_equal_rows():
    assert estimate_n_clusters(np.zeros((3, 2)), 10).n_clusters == 1
    equal = estimate_n_clusters(np.zeros((40, 2)), 10)
    assert equal.n_clusters in equal.candidates


def test_equal_images_are_left_out():
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4), dtype=np.uint8)[[3, 0, 3, 1, 0, 2]]
    assert distinct_rows(as_image_source(images), np.array([5, 4, 3, 2, 0])).tolist() == [0, 3, 4, 5]


def test_the_estimator_finds_the_number(make_model, planted, tmp_path):
    X, _ = planted(n_clusters=4, size=24)
    model = make_model("auto").fit(X)
    assert model.n_clusters == "auto"
    assert model.n_clusters_ == 4 == len(model.cluster_centers_) == model.labels_.max() + 1
    scores = model.n_clusters_scores_
    assert scores["n_clusters"][scores["score"].argmax()] == 4
    assert set(scores) == {"n_clusters", "silhouette", "modularity", "score"}
    again = make_model(4).fit(X)
    assert again.n_clusters_ == 4
    assert not hasattr(again, "n_clusters_scores_")
    with pytest.warns(UserWarning, match="parameters are not saved.*: backbone"):
        model.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert (loaded.n_clusters, loaded.n_clusters_) == ("auto", 4)
    assert loaded.n_clusters_scores_.keys() == scores.keys()
    for name, values in scores.items():
        np.testing.assert_array_equal(loaded.n_clusters_scores_[name], values)


def test_images_that_are_too_few_for_a_number_are_one_cluster(make_model, planted, tmp_path):
    model = make_model("auto").fit(planted()[0][:3])
    assert model.n_clusters_ == 1
    with pytest.warns(UserWarning, match="parameters are not saved.*: backbone"):
        model.save(tmp_path / "model")
    scores = load(tmp_path / "model").n_clusters_scores_
    assert [len(values) for values in scores.values()] == [0, 0, 0, 0]


def test_copies_of_images_are_no_clusters(make_model, planted):
    X, _ = planted(n_clusters=3, size=24)
    copied = np.concatenate([X, X[:20].repeat(12, axis=0)])
    assert make_model("auto").fit(copied).n_clusters_ == 3


def test_labels_to_start_from_say_the_number(make_model, planted):
    X, labels = planted(n_clusters=3, size=8)
    with pytest.raises(ValueError, match=r"n_clusters must be an int where init has labels .*; got 'auto'"):
        make_model("auto", init=labels).fit(X)
    with pytest.raises(ValueError, match=r"'n_clusters' parameter .* must be an int .* a str among {'auto'}\. Got 'x'"):
        make_model("x").fit(X)
