"""What a process shares, and what the caller had: fits in threads, settings of libraries, fits that fail."""

import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import sklearn
import torch
from joblib import Parallel, delayed, parallel_config
from numpy.testing import assert_array_equal
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_info, threadpool_limits

from skdiec import DiffusionEmbeddedClustering, _estimator, pretrain
from skdiec.training import ResidualHead

PARAMETERS = {
    "layer": "mid_block",
    "timestep": (25, 50),
    "pooling": (1, 2),
    "n_init": 2,
    "max_epochs": 3,
    "warmup_epochs": 1,
}
AUTO = {"backbone": "auto", "pretrain_params": {"epochs": 2, "channels": (8,), "precision": "fp32"}}


@pytest.fixture
def images(planted):
    return planted()[0]


def weights(backbone):
    return backbone.network.state_dict().values()


def fit(X, seed=0, **parameters):
    return DiffusionEmbeddedClustering(3, random_state=seed, **{**AUTO, **PARAMETERS, **parameters}).fit(X)


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


def test_fits_in_threads_are_those_of_fits_alone(images, rng_untouched):
    expected = [fit(images, seed) for seed in (0, 1)]
    with rng_untouched(), ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: fit(images, seed), [0, 1] * 3))
    for place, model in enumerate(found):
        alone = expected[place % 2]
        assert all(map(torch.equal, weights(model.backbone_), weights(alone.backbone_)))
        assert_array_equal(model.embedding_, alone.embedding_)
        assert_array_equal(model.labels_, alone.labels_)


def test_fits_by_joblib_in_threads_are_those_of_fits_alone(images):
    expected = fit(images)
    with parallel_config(backend="threading", n_jobs=3):
        found = Parallel()(delayed(fit)(images) for _ in range(3))
    assert all(np.array_equal(model.embedding_, expected.embedding_) for model in found)


def test_threads_that_share_a_memory_keep_the_right_backbone(images, tmp_path):
    expected = fit(images)
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
def test_fits_in_threads_leave_limits_and_filters_as_they_were(n_jobs, images, make_model):
    with threadpool_limits(limits=2):
        before, filters = thread_limits(), list(warnings.filters)
        model = make_model()
        model.fit(images)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: make_model(timestep=(25, 50), n_jobs=n_jobs).fit(images), range(8)))
        assert thread_limits() == before
        with ThreadPoolExecutor(1) as pool:  # a thread that is new to torch
            assert pool.submit(torch.get_num_threads).result() == before[1]
        assert warnings.filters == filters


# Settings of libraries


@pytest.mark.parametrize("criterion", ["consensus", "relative_cut", "normalized_cut", "scott"])
@pytest.mark.parametrize("search", ["grid", "halving"])
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
def test_settings_of_the_program_do_not_change_a_fit(settings, images):
    expected = fit(images)
    with settings():
        found = fit(images)
        assert_array_equal(found.predict(images), expected.labels_)
    assert_array_equal(found.embedding_, expected.embedding_)


# Fits that fail


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("step", ["load_backbone", "search_cells", "_find_start", "train", "EmbeddingModel"])
def test_refit_that_fails_leaves_the_first_fit(error, step, make_model, images, planted, monkeypatch):
    model = make_model(3).fit(images)
    before = dict(vars(model))
    other, _ = planted((8, 8), 4, seed=1)

    def fail(*arguments, **keywords):
        raise error

    monkeypatch.setattr(_estimator, step, fail)
    with pytest.raises(error):
        model.set_params(n_clusters=4).fit(other.reshape(len(other), -1))
    monkeypatch.undo()
    model.set_params(n_clusters=3)
    assert vars(model).keys() == before.keys()
    assert all(vars(model)[name] is before[name] for name in before if name.endswith("_"))
    assert_array_equal(model.predict(images), before["labels_"])


def test_refit_that_is_interrupted_in_its_last_step_leaves_the_first_fit(make_model, images, planted, monkeypatch):
    model = make_model(3).fit(images)
    before = dict(vars(model))

    def interrupt(self, z):  # where labels are computed, when much else is there
        raise KeyboardInterrupt

    monkeypatch.setattr(_estimator.EmbeddingModel, "assign", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.set_params(n_clusters=5).fit(planted((8, 8), 5)[0])
    assert all(vars(model)[name] is before[name] for name in before if name.endswith("_"))
    assert len(model.cluster_centers_) == len(np.unique(model.labels_)) == 3


def test_first_fit_that_fails_leaves_nothing(make_model, images, monkeypatch):
    model = make_model(3)
    monkeypatch.setattr(_estimator, "train", lambda *arguments, **keywords: 1 / 0)
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
