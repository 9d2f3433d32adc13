"""What a process shares, and what the caller had: fits in threads, settings of libraries, fits that fail."""

import copy
import functools
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import sklearn
import torch
from joblib import Parallel, delayed, parallel_config
from numpy.testing import assert_array_equal
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_info, threadpool_limits

from skdiec import DiffusionEmbeddedClustering, Pretraining, pretrain
from skdiec._estimator import setup, stages, training
from skdiec.training import ResidualHead

PARAMETERS = {
    "layer": "mid_block",
    "timestep": (25, 50),
    "pooling": (1, 2),
    "n_init": 2,
    "max_epochs": 3,
    "warmup_epochs": 1,
}
AUTO = {"backbone": Pretraining(epochs=2, channels=(8,), precision="fp32")}


@pytest.fixture(scope="module")
def images(planted):
    return planted()[0]


@pytest.fixture(scope="module")
def alone(images):
    """Gives fits to the images of one seed, in no threads and no settings: each is made once."""
    return functools.cache(lambda seed=0: fit(images, seed))


@pytest.fixture
def fitted(fitted_once):
    """A model that is fitted to the images. Fits replace attributes, so a plain copy is like a new one."""
    return copy.copy(fitted_once)


@pytest.fixture(scope="module")
def fitted_once(make_model, images):
    return make_model(3).fit(images)


def weights(backbone):
    return backbone.network.state_dict().values()


def fit(X, seed=0, **parameters):
    return DiffusionEmbeddedClustering(3, random_state=seed, **{**AUTO, **PARAMETERS, **parameters}).fit(X)


@contextmanager
def two_threads():
    """What has two threads gets them. MKL, which is inside torch, would keep them: their waiting for each other makes
    a fit ten times as long on a busy machine."""
    with threadpool_limits(limits=2):
        yield
    torch.set_num_threads(torch.get_num_threads())


def thread_limits():
    return [(pool["filepath"], pool["num_threads"]) for pool in threadpool_info()], torch.get_num_threads()


# Threads


def test_heads_of_one_seed_are_the_same_in_every_thread(rng_untouched):
    def draw(seed):
        return list(ResidualHead(4, 8, seed=seed).state_dict().values())

    expected = [draw(0), draw(1)]
    assert not torch.equal(expected[0][0], expected[1][0])
    with rng_untouched(), ThreadPoolExecutor(4) as pool:
        found = list(pool.map(draw, [0, 1] * 100))
    assert all(all(map(torch.equal, one, expected[place % 2])) for place, one in enumerate(found))


def test_fits_in_threads_are_those_of_fits_alone(images, alone, rng_untouched):
    expected = [alone(seed) for seed in (0, 1)]
    with rng_untouched(), ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: fit(images, seed), [0, 1] * 2))
    for place, model in enumerate(found):
        one = expected[place % 2]
        assert all(map(torch.equal, weights(model.backbone_), weights(one.backbone_)))
        assert_array_equal(model.embedding_, one.embedding_)
        assert_array_equal(model.labels_, one.labels_)


def test_fits_by_joblib_in_threads_are_those_of_fits_alone(images, alone):
    expected = alone()
    with parallel_config(backend="threading", n_jobs=3):
        found = Parallel()(delayed(fit)(images) for _ in range(3))
    assert all(np.array_equal(model.embedding_, expected.embedding_) for model in found)


def test_threads_that_share_a_memory_keep_the_right_backbone(images, alone, tmp_path):
    expected = alone()
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: fit(images, memory=str(tmp_path)), range(3)))
    found.append(fit(images, memory=str(tmp_path)))
    for model in found:
        assert all(map(torch.equal, weights(model.backbone_), weights(expected.backbone_)))
        assert_array_equal(model.embedding_, expected.embedding_)


def test_trainings_of_one_seed_are_the_same_in_every_thread(images, rng_untouched):
    settings = {"epochs": 1, "channels": (8,), "random_state": 3, "precision": "fp32"}
    expected = pretrain(images, **settings)
    with rng_untouched(), ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: pretrain(images, **settings), range(8)))
    assert all(all(map(torch.equal, weights(one), weights(expected))) for one in found)


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_fits_in_threads_leave_limits_and_filters_as_they_were(n_jobs, images, make_unet, make_model):
    with two_threads():
        before, filters = thread_limits(), list(warnings.filters)
        # Attention is what takes long with two threads for so few numbers.
        models = [
            make_model(timestep=(25, 50), n_jobs=n_jobs, backbone=unet)
            for unet in [make_unet(sample_size=8, add_attention=False)] * 5
        ]
        models.pop().fit(images)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda model: model.fit(images), models))
        assert thread_limits() == before
        with ThreadPoolExecutor(1) as pool:  # a thread that is new to torch
            assert pool.submit(torch.get_num_threads).result() == before[1]
        assert warnings.filters == filters


# Settings of libraries


@pytest.mark.parametrize(
    ("criterion", "search"),
    [
        ("consensus", "grid"),
        ("consensus", "halving"),
        ("relative_cut", "halving"),
        ("normalized_cut", "grid"),
        ("scott", "halving"),
    ],
)
def test_output_in_frames_is_of_the_estimator_alone(criterion, search, make_model, images):
    model = make_model(timestep=(25, 50), pooling=(1, 2), criterion=criterion, search=search)
    expected = model.fit(images).embedding_
    with sklearn.config_context(transform_output="pandas"):
        frame = model.fit(images).transform(images)
        assert isinstance(model.embedding_, np.ndarray)
    assert_array_equal(model.embedding_, expected)
    assert list(frame.columns[:2]) == ["diffusionembeddedclustering0", "diffusionembeddedclustering1"]
    np.testing.assert_allclose(frame, expected, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        lambda: sklearn.config_context(assume_finite=True, skip_parameter_validation=True, working_memory=1),
        lambda: np.errstate(all="raise"),
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.device("meta"),
    ],
)
def test_settings_of_the_program_do_not_change_a_fit(settings, images, alone):
    expected = alone()
    with settings():
        found = fit(images)
        assert_array_equal(found.predict(images), expected.labels_)
    assert_array_equal(found.embedding_, expected.embedding_)


# Fits that fail


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize(
    ("owner", "step"),
    [
        (setup, "load_backbone"),
        (stages, "search_cells"),
        (stages, "initialize"),
        (training, "train"),
        (training, "EmbeddingModel"),
    ],
)
def test_refit_that_fails_leaves_the_first_fit(error, owner, step, fitted, images, planted, monkeypatch):
    model = fitted
    before = dict(vars(model))
    other, _ = planted((8, 8), 4, seed=1)

    def fail(*arguments, **keywords):
        raise error

    monkeypatch.setattr(owner, step, fail)
    with pytest.raises(error):
        model.set_params(n_clusters=4).fit(other.reshape(len(other), -1))
    monkeypatch.undo()
    model.set_params(n_clusters=3)
    assert vars(model).keys() == before.keys()
    assert all(vars(model)[name] is before[name] for name in before if name.endswith("_"))
    assert_array_equal(model.predict(images), before["labels_"])


def test_refit_that_is_interrupted_in_its_last_step_leaves_the_first_fit(fitted, planted, monkeypatch):
    model = fitted
    before = dict(vars(model))

    def interrupt(self, z):  # where labels are computed, when much else is there
        raise KeyboardInterrupt

    monkeypatch.setattr(training.EmbeddingModel, "assign", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.set_params(n_clusters=5).fit(planted((8, 8), 5)[0])
    assert all(vars(model)[name] is before[name] for name in before if name.endswith("_"))
    assert len(model.cluster_centers_) == len(np.unique(model.labels_)) == 3


def test_first_fit_that_fails_leaves_nothing(make_model, images, monkeypatch):
    model = make_model(3)
    monkeypatch.setattr(training, "train", lambda *arguments, **keywords: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.fit(images.reshape(len(images), -1))
    assert vars(model).keys() == model.get_params(deep=False).keys()


def test_fit_in_a_thread_is_seen_by_others_as_a_whole(make_model, images, planted):
    """Attributes of two fits are never mixed, whenever another thread looks."""
    sizes = (3, 5)
    sets = [planted((8, 8), size)[0] for size in sizes]
    model = make_model(3, max_epochs=1).fit(sets[0])
    seen, done = set(), threading.Event()

    def look():
        while not done.is_set():
            state = model.__dict__
            seen.add((len(state["cluster_centers_"]), len(state["labels_"])))
            time.sleep(1e-4)

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(look)
        for place in (1, 0, 1):
            model.set_params(n_clusters=sizes[place]).fit(sets[place])
        done.set()
        watching.result()
    assert seen <= {(size, len(X)) for size, X in zip(sizes, sets, strict=True)}


def test_clusters_of_a_fit_after_a_failed_one_are_right(make_model, images, planted, monkeypatch):
    X, labels = planted()
    model = make_model()
    with pytest.raises(ValueError, match="n_samples=1"):
        model.fit(X[:1])
    assert adjusted_rand_score(model.fit(X).labels_, labels) == 1
