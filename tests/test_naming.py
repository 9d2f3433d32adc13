"""Names for clusters."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from sklearn.cluster import KMeans
from sklearn.exceptions import NotFittedError

from skdiec.naming import name_clusters, typical_rows


@pytest.fixture(scope="module")
def images(planted):
    return planted()[0]


@pytest.fixture
def model(make_model, images):
    return make_model(max_epochs=2).fit(images)


def test_namer_sees_the_surest_images_of_each_cluster(model, images):
    seen = []

    def namer(pictures):
        seen.append(np.array([np.asarray(picture) for picture in pictures]))
        return [" first ", None, ""][len(seen) - 1]

    assert name_clusters(model, images, namer, n_images=4) == {0: "first"}
    for cluster, found in enumerate(seen):
        members = np.flatnonzero(model.labels_ == cluster)
        surest = sorted(members, key=lambda row: -model.probabilities_[row])[:4]
        assert_array_equal(found, images[surest])
        assert_array_equal(typical_rows(model, cluster, 4), surest)


def test_files_are_shown_in_their_own_size(make_model, tmp_path):
    rng = np.random.default_rng(0)
    large = rng.integers(0, 256, (20, 16, 20, 3), dtype=np.uint8)
    for number, pixels in enumerate(large):
        Image.fromarray(pixels).save(tmp_path / f"{number:02}.png")
    model = make_model(2, image_shape=(8, 8)).fit(tmp_path)
    expected = {cluster: large[typical_rows(model, cluster, 1)[0]].tobytes().hex() for cluster in (0, 1)}
    for X in (tmp_path, None):
        assert name_clusters(model, X, lambda pictures: pictures[0].tobytes().hex(), n_images=1) == expected


def test_clusters_without_images_are_not_asked_for(model, images):
    model.labels_ = np.where(model.labels_ == 1, 0, model.labels_)
    assert list(name_clusters(model, images, lambda pictures: "some")) == [0, 2]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"namer": "cats"}, ValueError, "namer must be a callable; got 'cats'"),
        ({"namer": lambda pictures: 3}, TypeError, "namer must return a str or None; got 3 for cluster 0"),
        ({"n_images": 0}, ValueError, "n_images must be an int of at least 1; got 0"),
        ({"X": np.zeros((2, 8, 8), dtype=np.uint8)}, ValueError, "X must be the 48 images of fit; got 2"),
        ({"X": None}, ValueError, "X must be the images of fit, since the model keeps none of them; got None"),
    ],
)
def test_what_does_not_fit_is_told_of(arguments, error, message, model, images):
    with pytest.raises(error, match=message):
        name_clusters(model, **{"X": images, "namer": lambda pictures: "name", **arguments})


@pytest.mark.parametrize("other", [None, "model", KMeans()], ids=str)
def test_what_is_no_model_is_told_of(other, images):
    with pytest.raises(TypeError, match="model must be a DiffusionEmbeddedClustering; got"):
        name_clusters(other, images, lambda pictures: "name")


def test_tables_and_models_before_their_fit_have_nothing_to_show(make_model):
    with pytest.raises(NotFittedError):
        name_clusters(make_model(), None, lambda pictures: "name")
    table = np.random.default_rng(0).normal(size=(40, 64))
    with pytest.raises(ValueError, match="X must be images to be named by; the model was fitted on a table"):
        name_clusters(make_model().fit(table), table, lambda pictures: "name")
