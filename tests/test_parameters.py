"""Values of parameters: which kinds of numbers are taken, and which are told of before anything begins."""

import re
import warnings
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV

from skdiec import DiffusionEmbeddedClustering, Pretraining, _parameters
from skdiec._estimator import stages, training

AUTO = {"backbone": Pretraining(epochs=2, channels=(8,), precision="fp32")}
INTEGERS = {
    "n_clusters": 3,
    "max_search_samples": 40,
    "search_draws": 2,
    "n_draws": 2,
    "shift": 1,
    "n_components": 6,
    "n_neighbors": 4,
    "n_init": 2,
    "hidden_size": 16,
    "max_epochs": 2,
    "warmup_epochs": 1,
    "batch_size": 32,
    "update_interval": 1,
    "n_snapshots": 3,
    "inference_batch_size": 32,
    "n_jobs": 1,
    "timestep": 25,
    "pooling": 1,
    "random_state": 5,
}
REALS = {
    "alpha": 0.5,
    "beta": 2.0,
    "gamma": 0.25,
    "denoising_weight": 0.5,
    "nu": 2.0,
    "learning_rate": 0.0078125,
    "backbone_learning_rate": 0.0009765625,
    "tol": 0.5,
}
NUMBERS = {"integers": INTEGERS, "reals": REALS}


@pytest.fixture
def images(planted):
    return planted()[0]


@pytest.fixture
def nothing_begins(monkeypatch):
    def begins(*arguments, **keywords):
        raise AssertionError("something began")

    for owner, name in ((stages, "pretrain"), (stages, "search_cells"), (training, "train")):
        monkeypatch.setattr(owner, name, begins)


def test_every_number_among_the_parameters_is_here():
    numbers = {*INTEGERS, *REALS}
    assert set(_parameters._NUMBERS) == numbers - {"timestep", "pooling", "random_state"}


@pytest.fixture(scope="module")
def plain(make_model, planted):
    """Fits with all integers, and with all reals, as Python has them."""
    return {name: make_model(**values).fit(planted()[0]) for name, values in NUMBERS.items()}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("integers", kind) for kind in (np.int64, np.int32, np.uint8, np.uint64)),
        *(("reals", kind) for kind in (np.float32, np.float64, np.float16, Fraction)),
    ],
)
def test_numbers_of_all_kinds_are_taken(name, kind, make_model, images, plain):
    """All parameters at once: each of them has to be taken, and to mean the same."""
    values, expected = NUMBERS[name], plain[name]
    model = make_model(**{name: kind(value) for name, value in values.items()}).fit(images)
    assert_array_equal(model.embedding_, expected.embedding_)
    assert_array_equal(model.predict(images), expected.predict(images))
    assert {type(model.get_params()[name]) for name in values} == {kind}  # a parameter is never overwritten


def test_all_numbers_may_be_of_numpy_with_a_trained_backbone(make_model, images):
    names = {**INTEGERS, **REALS}
    plain = make_model(train_backbone=True, **names).fit(images)
    numpy = {name: np.array(value)[()] for name, value in names.items()}
    assert_array_equal(make_model(train_backbone=True, **numpy).fit(images).embedding_, plain.embedding_)


@pytest.mark.parametrize("name", ["timestep", "pooling", "layer"])
def test_arrays_without_an_axis_are_single_values(name, make_model, images):
    value = {"timestep": 25, "pooling": 1, "layer": "mid_block"}[name]
    expected = make_model(**{name: value}).fit(images)
    arrays = [np.array(value), np.array([value])]
    if name != "layer":
        arrays += [torch.tensor(value), torch.tensor([value])]
    for array in arrays:
        assert_array_equal(make_model(**{name: array}).fit(images).embedding_, expected.embedding_)


def test_searches_over_arrays_of_numpy_fit(make_model, images):
    search = GridSearchCV(
        make_model(max_epochs=2),
        [{"batch_size": np.array([16, 32]), "alpha": np.array([0.5], np.float32)}, {"n_clusters": np.array([2, 3])}],
        cv=[(np.arange(24), np.arange(24, 48))],
        error_score="raise",
        refit=False,
    ).fit(images)
    assert len(search.cv_results_["mean_test_score"]) == 4
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


REFUSED = [
    *[({name: True}, f"{name} must be a number; got True") for name in sorted(_parameters._NUMBERS)],
    *[({name: False}, f"{name}") for name in sorted(_parameters._NUMBERS)],
    *[
        ({name: value}, rf"'{name}' parameter .* must be a float in the range \[0\.0, 1000000\.0\]")
        for name in ("alpha", "beta", "gamma", "denoising_weight")
        for value in (10**30, np.inf, -1e-9)
    ],
    ({"nu": 10**30}, r"'nu' parameter .* range \[1e-06, 1000000\.0\]"),
    ({"nu": 1e-308}, r"'nu' parameter .* range \[1e-06, 1000000\.0\]"),
    ({"learning_rate": 1e38}, r"'learning_rate' parameter .* range \(0\.0, 1000000\.0\]"),
    ({"backbone_learning_rate": 1e38}, r"'backbone_learning_rate' parameter .* range \(0\.0, 1000000\.0\]"),
    ({"hidden_size": 2**31}, r"'hidden_size' parameter .* range \[1, 65536\]"),
    ({"n_draws": 10**9}, r"'n_draws' parameter .* range \[1, 10000\]"),
    ({"shift": 8}, r"shift must be less than the images' sides, \(8, 8\) \(height, width\); got 8"),
    ({"shift": 2**63}, r"shift must be less than the images' sides"),
    ({"device": "meta"}, r"device must be"),
    ({"verbose": np.array([1, 0])}, r"'verbose' parameter"),
    ({"memory": "a\0b"}, r"memory must be a folder that can be written to; got 'a\\x00b'"),
    ({"memory": "a" * 5000}, r"memory must be a folder that can be written to"),
    (
        {"init": np.zeros((3, 2, 2))},
        r"init must be labels of shape \(n_samples,\), -1 for unknown, or centres of shape",
    ),
    ({"init": np.array(1.0)}, r"init must be labels of shape"),
    ({"init": [0, 1, 2, np.nan]}, r"init must be labels of shape \(n_samples,\), -1 for unknown, .* contains NaN"),
    ({"init": [0, 1, 0.5]}, r"init must have integers from 0 to n_clusters - 1 as labels, or -1 for unknown; got 0.5"),
    ({"init": [0, 1, -2]}, r"init must have integers from 0 to n_clusters - 1 as labels, or -1 for unknown; got -2"),
    ({"init": [0, 1, 3]}, r"init must have integers from 0 to n_clusters - 1 as labels, or -1 for unknown; got 3"),
    ({"init": [0, 1, -1]}, r"init must have each of n_clusters=3 labels; got no 2"),
    ({"init": [0, 0, 2]}, r"init must have each of n_clusters=3 labels; got no 1"),
    ({"init": [0, 1, 2]}, r"init must have a label for each of the \d+ images; got 3"),
    ({"init": torch.tensor([0, 1, 2])}, r"init must have a label for each of the \d+ images; got 3"),
    ({"n_clusters": "auto", "max_search_samples": 3}, "max_search_samples must be at least 4 for n_clusters='auto'"),
    ({"timestep": np.array(2.5)}, r"timestep must be one or several integers"),
    ({"pooling": torch.tensor(0.5)}, r"pooling must be one or several integers"),
    ({"layer": torch.tensor(1)}, r"layer must be one or several strings"),
    ({"timestep": np.array(True)}, r"timestep must be one or several integers"),
    ({"criterion": lambda features: 1.0}, r"criterion must return a finite number .*TypeError"),
    ({"criterion": lambda features, labels: "high"}, r"criterion must return a finite number .*could not convert"),
    ({"criterion": lambda features, labels: None}, r"criterion must return a finite number"),
    ({"criterion": lambda features, labels: np.nan}, r"criterion must return a finite number .*; got nan"),
    ({"criterion": lambda features, labels: -np.inf}, r"criterion must return a finite number .*; got -inf"),
]


@pytest.mark.parametrize(
    ("parameters", "message"), REFUSED, ids=lambda value: value[:40] if isinstance(value, str) else ", ".join(value)
)
def test_values_that_cannot_be_are_told_of_before_anything_begins(
    parameters, message, make_model, images, nothing_begins
):
    with pytest.raises(ValueError, match=message):
        make_model(**{**AUTO, **parameters}).fit(images)


@pytest.mark.parametrize(
    "parameters",
    [
        {"n_jobs": 10**6},
        {"n_jobs": -(10**6)},
        {"batch_size": 2**63},
        {"inference_batch_size": 2**63},
        {"n_components": 2**63},
        {"n_neighbors": 2**63},
        {"max_search_samples": 2**63},
        {"warmup_epochs": 2**63},
        {"update_interval": 2**63},
        {"n_snapshots": 2**63},
    ],
)
def test_numbers_past_what_there_is_are_as_good_as_all_there_is(parameters, make_model, images):
    model = make_model(timestep=(25, 50), max_epochs=2, **parameters).fit(images)
    assert np.isfinite(model.embedding_).all()
    assert_array_equal(model.predict(images), model.labels_)


# Steps that are far too long, and clusters that cannot be


@pytest.mark.parametrize(("n_clusters", "n_images"), [(1, 48), (1, 2), (2, 3), (3, 48)])
def test_steps_that_are_far_too_long_keep_a_finite_state(n_clusters, n_images, make_model, images):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a collapse, or of a loss that is not finite
        model = make_model(n_clusters, learning_rate=1e6, tol=0.0).fit(images[:n_images])
    assert np.isfinite(model.embedding_).all()
    assert np.isfinite(model.cluster_centers_).all()
    np.testing.assert_allclose(model.predict_proba(images).sum(axis=1), 1)


@pytest.mark.parametrize("init", ["graph", "k-means++"])
def test_fewer_different_images_than_clusters_are_told_of(init, make_model, planted):
    X = planted(n_clusters=3, size=1)[0].repeat(20, axis=0)
    with pytest.warns(ConvergenceWarning, match="only 3 of n_clusters=5 clusters .* 60 images .* 3 different embed"):
        model = make_model(5, init=init).fit(X)
    assert len(np.unique(model.labels_)) == 3
    assert len(np.unique(model.labels_.reshape(3, 20))) == 3


def test_images_that_are_all_the_same_are_told_of(make_model):
    with pytest.warns(ConvergenceWarning, match="only 1 of n_clusters=3 clusters"):
        model = make_model(3).fit(np.zeros((20, 8, 8), dtype=np.uint8))
    assert set(model.labels_) == {model.labels_[0]}
    assert np.isfinite(model.embedding_).all()


def test_parameters_are_checked_before_results_too(make_model, images):
    model = make_model().fit(images)
    with pytest.raises(ValueError, match="'inference_batch_size' parameter"):
        model.set_params(inference_batch_size=0).predict(images)


def test_results_need_no_memory(make_model, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = make_model().fit(images)
    for folder in ("cache", "/dev/null"):
        model.set_params(memory=folder)
        assert_array_equal(model.predict(images), model.labels_)
    assert list(tmp_path.iterdir()) == []


def test_device_that_holds_no_numbers_is_refused():
    with pytest.raises(ValueError, match="device must be"):
        DiffusionEmbeddedClustering(2, device=torch.device("meta")).fit(np.zeros((4, 8, 8), np.uint8))


class NoRepr:
    def __repr__(self):
        raise RuntimeError("no representation")


class Odd:
    """Has attributes of its own kind, as networks of diffusers have."""

    def __getattr__(self, name):
        raise KeyError(name)


ANY_INTEGER = {
    *("n_components", "n_neighbors", "max_search_samples", "max_epochs", "warmup_epochs", "batch_size"),
    *("update_interval", "n_snapshots", "inference_batch_size", "n_jobs", "verbose"),
}


@pytest.mark.parametrize(
    "value",
    ["a" * 5000, list(range(9999)), NoRepr(), [NoRepr()], 10**5000, Odd()],
    ids=["str", "list", "NoRepr", "list of NoRepr", "int", "Odd"],
)
@pytest.mark.parametrize("name", DiffusionEmbeddedClustering._parameter_constraints)
def test_messages_name_the_parameter_and_stay_short_whatever_the_value(name, value, make_model, images, nothing_begins):
    if name in ("backbone", "memory", "device") and isinstance(value, str):
        return  # a name, which may be long
    if name in ANY_INTEGER and isinstance(value, int):
        return
    with pytest.raises((ValueError, TypeError)) as caught:
        make_model(**{**AUTO, name: value}).fit(images)
    assert re.search(rf"\b{name}\b", str(caught.value))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "X",
    [
        [[10**400] * 4] * 4,
        [[{}]],
        pd.DataFrame(),
        np.zeros((9, 8, 8), complex),
        np.full((9, 8, 8), "a" * 50),
        np.array([["1"] * 4] * 4),
        "a" * 5000,
        ["a" * 5000],
        Odd(),
        NoRepr(),
    ],
    ids=lambda X: type(X).__name__,
)
def test_messages_name_x_and_stay_short_whatever_it_is(X, make_model, nothing_begins):
    with pytest.raises((ValueError, TypeError), match=r"\bX\b") as caught:
        make_model(**AUTO).fit(X)
    assert len(str(caught.value)) < 1000
