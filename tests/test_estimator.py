import copy
import functools
import inspect
import logging
import shutil
import time
import warnings
from collections import Counter, defaultdict
from operator import attrgetter
from types import SimpleNamespace

import diffusers
import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from scipy import sparse
from scipy.cluster.hierarchy import is_valid_linkage
from scipy.spatial.distance import cdist
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import adjusted_rand_score, silhouette_score

import skdiec.features
import skdiec.storage
from skdiec import DiffusionEmbeddedClustering, Pretraining, _estimator, initialization
from skdiec._estimator import setup, stages, training
from skdiec.activations import Cell
from skdiec.backbones import PixelBackbone, load_backbone, trainer
from skdiec.features import FeatureExtractor, small_motions
from skdiec.graph import knn_graph, moved_knn_graph
from skdiec.images import as_image_source
from skdiec.partition import Partition, initial_partition
from skdiec.search import SearchResult
from skdiec.training import BackboneEmbedder

AUTO = {"backbone": Pretraining(epochs=2, channels=(8,), precision="fp32")}
GRID = {"layer": ["mid_block", "conv_in"], "timestep": (300, 50, 20), "pooling": (2, 1)}
FIXED_STEPS = {"tol": 0.0, "max_epochs": 3, "warmup_epochs": 3}
"""An end that no image's change of cluster decides."""


@pytest.fixture
def images(planted):
    return planted()[0]


@pytest.fixture
def labels(planted):
    return planted()[1]


@pytest.fixture(scope="module")
def fitted(make_model, planted):
    """A fit of the images with nothing but defaults. Tests only look at it."""
    return make_model().fit(planted()[0])


def same_partition(one, two):
    return adjusted_rand_score(one, two) == 1


def weights(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def hook_count(network):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())


def soft_assign(z, centers, nu):
    q = (1 + cdist(z, centers, "sqeuclidean") / nu) ** (-(nu + 1) / 2)
    return q / q.sum(axis=1, keepdims=True)


# Input


def memory_map(X, folder):
    np.save(folder / "X.npy", X)
    return np.load(folder / "X.npy", mmap_mode="r")


def files(X, folder):
    paths = [folder / f"{row:03}.png" for row in range(len(X))]
    for image, path in zip(X, paths, strict=True):
        Image.fromarray(image).save(path)
    return paths


def folder_of_files(X, folder):
    files(X, folder)
    return folder


LAYOUTS = {
    "channels first": (lambda X, _: X[:, None], {}),
    "channels last": (lambda X, _: X[..., None], {}),
    "flat rows": (lambda X, _: X.reshape(len(X), -1), {"image_shape": (8, 8)}),
    "flat rows with a channel": (lambda X, _: X.reshape(len(X), -1), {"image_shape": (1, 8, 8)}),
    "data frame": (lambda X, _: pd.DataFrame(X.reshape(len(X), -1)).add_prefix("pixel"), {"image_shape": (8, 8)}),
    "torch": (lambda X, _: torch.from_numpy(X), {}),
    "memory map": (memory_map, {}),
    "list": (lambda X, _: X.tolist(), {"value_range": (0, 255)}),
    "floats": (lambda X, _: X.astype(np.float64), {"value_range": (0, 255)}),
    "strides": (lambda X, _: np.asfortranarray(X)[:, ::-1][:, ::-1], {}),
    "files": (files, {}),
    "names of files": (lambda X, folder: [str(path) for path in files(X, folder)], {}),
    "folder": (folder_of_files, {}),
    "name of a folder": (lambda X, folder: str(folder_of_files(X, folder)), {}),
}


@pytest.mark.parametrize(("lay_out", "parameters"), LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_of_the_same_images_gives_the_same_clusters(
    lay_out, parameters, make_model, fitted, images, labels, tmp_path
):
    expected = fitted
    X = lay_out(images, tmp_path)
    model = make_model(**parameters).fit(X)
    assert_array_equal(model.labels_, expected.labels_)
    assert_array_equal(model.embedding_, expected.embedding_)
    assert_array_equal(model.predict(X), model.labels_)
    assert_array_equal(model.predict(images), model.labels_)
    assert same_partition(model.labels_, labels)
    assert (model.image_shape_, model.value_range_, model.n_features_in_) == ((1, 8, 8), (0, 255), 64)


COLOR_LAYOUTS = {
    "channels last": (lambda X, _: np.moveaxis(X, 1, -1), {}),
    "flat, channels first": (lambda X, _: X.reshape(len(X), -1), {"image_shape": (3, 8, 8)}),
    "flat, channels last": (lambda X, _: np.moveaxis(X, 1, -1).reshape(len(X), -1), {"image_shape": (8, 8, 3)}),
    "files": (lambda X, folder: files(np.moveaxis(X, 1, -1), folder), {}),
}


@pytest.mark.parametrize(("lay_out", "parameters"), COLOR_LAYOUTS.values(), ids=COLOR_LAYOUTS)
def test_every_layout_of_color_images_gives_the_same_clusters(
    lay_out, parameters, make_model, make_unet, planted, tmp_path
):
    X, labels = planted((3, 8, 8))
    backbone = make_unet(sample_size=8, in_channels=3)
    expected = make_model(backbone=backbone).fit(X)
    model = make_model(backbone=backbone, **parameters).fit(lay_out(X, tmp_path))
    assert_array_equal(model.labels_, expected.labels_)
    assert_array_equal(model.embedding_, expected.embedding_)
    assert same_partition(model.labels_, labels)
    assert (model.image_shape_, model.n_features_in_) == ((3, 8, 8), 192)


@pytest.mark.parametrize(("axis", "shape"), [(1, (3, 8, 3)), (-1, (3, 3, 8))])
def test_channel_axis_settles_where_the_channels_are(axis, shape, make_model, planted):
    assert make_model(channel_axis=axis, pooling=1).fit(planted((3, 8, 3))[0]).image_shape_ == shape


def test_value_range_does_not_change_the_clusters_of_scaled_images(make_model, fitted, images):
    expected = fitted
    for X, value_range in ((images / 255, (0, 1)), (images / 127.5 - 1, (-1, 1)), (images.astype(int), (0, 255))):
        model = make_model(value_range=value_range).fit(X)
        assert_array_equal(model.labels_, expected.labels_)
        assert_allclose(model.embedding_, expected.embedding_, atol=1e-3)
        assert model.value_range_ == value_range


def test_table_takes_its_range_from_the_training_rows_and_new_rows_may_leave_it(make_model, images, labels):
    table = images.reshape(len(images), -1)[:, :50] * 3.0 - 7
    model = make_model().fit(table)
    assert same_partition(model.labels_, labels)
    assert model.value_range_ == (table.min(), table.max())
    assert (model.image_shape_, model.n_features_in_) == ((1, 8, 8), 50)
    assert_array_equal(model.predict(table + 1), model.labels_)


def test_files_are_read_at_the_size_of_the_backbone_or_at_the_one_stated(make_model, planted, tmp_path):
    X, labels = planted((16, 12))
    paths = files(X, tmp_path)
    for parameters, shape in (({}, (1, 8, 8)), ({"image_shape": (16, 12)}, (1, 16, 12))):
        model = make_model(**parameters).fit(paths)
        assert same_partition(model.labels_, labels)
        assert model.image_shape_ == shape


def test_images_of_another_size_and_number_of_channels_are_adapted_to_the_backbone(make_model, planted):
    X, labels = planted((12, 10, 3))
    assert same_partition(make_model().fit(X).labels_, labels)


# What is learned


def test_fitted_attributes(make_model, images, labels):
    model = make_model(**GRID, n_components=6).fit(images)
    assert same_partition(model.labels_, labels)
    assert same_partition(model.initial_labels_, labels)
    for found in (model.labels_, model.initial_labels_):
        assert (found.dtype, found.shape) == (np.int32, (48,))
        assert set(found) == {0, 1, 2}
    assert (model.embedding_.dtype, model.embedding_.shape) == (np.float32, (48, 6))
    assert (model.cluster_centers_.dtype, model.cluster_centers_.shape) == (np.float64, (3, 6))
    assert model.n_components_ == 6
    assert_array_equal(model.labels_, cdist(model.embedding_, model.cluster_centers_).argmin(axis=1))
    assert isinstance(model.backbone_, PixelBackbone)
    assert (model.image_shape_, model.value_range_, model.n_features_in_) == ((1, 8, 8), (0, 255), 64)
    assert not hasattr(model, "feature_names_in_")


@pytest.mark.parametrize("poolings", [(4, 8, 2), (2, 8, 4)])  # wherever the chosen one is
def test_attributes_of_the_search(poolings, make_model, make_unet, images):
    backbone = make_unet(sample_size=8, block_out_channels=(8, 8))
    space = {"layer": ["up_blocks.1", "mid_block"], "timestep": (300, 50, 20), "pooling": poolings}
    model = make_model(backbone=backbone, **space).fit(images)
    result = model.search_result_
    assert isinstance(result, SearchResult)
    assert result.best == Cell(model.layer_, model.timestep_, model.pooling_)
    assert model.layers_ == result.layers == ("mid_block", "up_blocks.1")  # as they are executed
    assert model.timesteps_ == result.timesteps == (300, 50, 20)
    assert result.poolings == poolings
    depth = result.poolings.index(model.pooling_)
    assert_array_equal(model.scott_scores_, result.scores["scott"][:, :, depth])
    assert (model.scott_scores_.dtype, model.scott_scores_.shape) == (np.float64, (2, 3))
    assert_array_equal(np.isnan(result.scores["scott"][0, 0]), [False, True, False])  # the middle's map is 4 x 4
    assert (result.criterion, result.n_images, result.n_forward) == ("consensus", 48, 3 * 48)


def test_scott_scores_are_nan_where_a_map_is_smaller_than_the_chosen_pooling(make_model, make_unet, images):
    backbone = make_unet(sample_size=8, block_out_channels=(8, 8))
    space = {"layer": ["up_blocks.1", "mid_block"], "timestep": (20, 50), "pooling": 8}
    model = make_model(backbone=backbone, **space).fit(images)
    assert_array_equal(np.isnan(model.scott_scores_), [[True, True], [False, False]])
    assert model.layer_ == "up_blocks.1"


def test_seconds_of_every_stage_add_up_to_what_fit_took(make_model, images):
    started = time.perf_counter()
    model = make_model().fit(images)
    elapsed = time.perf_counter() - started
    assert list(model.fit_seconds_) == ["backbone", "search", "features", "partition", "training"]
    assert all(seconds > 0 for seconds in model.fit_seconds_.values())
    assert sum(model.fit_seconds_.values()) <= elapsed


def test_history_tells_of_every_epoch_and_of_the_start(make_model, images):
    # One batch of all: losses of parts differ by which images are in them.
    model = make_model(max_epochs=4, warmup_epochs=4, learning_rate=1e-3, batch_size=48).fit(images)
    assert model.n_iter_ == 4
    names = {"loss", "kl", "graph", "entropy", "denoising", "cut", "changed", "cluster_sizes"}
    assert set(model.history_) == names
    assert {len(values) for values in model.history_.values()} == {5}
    assert_array_equal(model.history_["cluster_sizes"], np.full((5, 3), 16))
    assert_array_equal(model.history_["changed"], np.zeros(5))
    assert np.isnan(model.history_["denoising"]).all()  # the backbone is frozen
    assert np.isfinite(model.history_["loss"][1:]).all()
    assert model.history_["loss"][4] < model.history_["loss"][1]


def test_probabilities_are_those_of_the_student_t_kernel(make_model, images):
    model = make_model(nu=3.0).fit(images)
    q = model.predict_proba(images)
    assert_allclose(q, soft_assign(model.embedding_, model.cluster_centers_, 3.0), rtol=1e-5)
    assert_allclose(q.sum(axis=1), 1, rtol=1e-12)
    assert_array_equal(q.argmax(axis=1), model.predict(images))
    assert (q.dtype, q.shape) == (np.float64, (48, 3))
    own = soft_assign(model.embedding_, model.cluster_centers_, 3.0)[np.arange(48), model.labels_]
    assert_allclose(model.probabilities_, own, rtol=1e-5)
    assert model.probabilities_.dtype == np.float64


@pytest.mark.parametrize("train_backbone", [False, True])
def test_snapshots_lead_from_the_projected_features_to_the_embedding(train_backbone, make_model, images):
    parameters = {"max_epochs": 4, "n_snapshots": 3, "tol": 0.0, "train_backbone": train_backbone}
    model = make_model(**parameters, warmup_epochs=4).fit(images)
    assert list(model.snapshots_) == [0, 2, 4]
    assert_array_equal(model.snapshot_rows_, np.arange(48))
    assert {rows.dtype for rows in model.snapshots_.values()} == {np.dtype(np.float32)}
    frozen = make_model(head=None).fit(images).embedding_
    assert_allclose(model.snapshots_[0], frozen, rtol=1e-4, atol=1e-4)
    assert_allclose(model.snapshots_[4], model.embedding_, rtol=1e-4, atol=1e-4)
    assert np.abs(model.snapshots_[4] - model.snapshots_[0]).max() > 0.01


def test_without_snapshots_nothing_is_kept(fitted):
    assert fitted.snapshots_ == {}
    assert fitted.snapshot_rows_.shape == (0,)


def test_results_on_the_training_images_are_those_of_fit(make_model, fitted, images):
    model = fitted
    assert_array_equal(model.predict(images), model.labels_)
    assert_array_equal(model.transform(images), model.embedding_)
    assert model.predict(images).dtype == np.int32
    assert model.transform(images).dtype == np.float32
    assert_array_equal(make_model().fit_predict(images), model.labels_)
    assert_array_equal(make_model().fit_transform(images), model.embedding_)


def test_fit_transform_gives_an_array_of_its_own(make_model, images):
    model = make_model()
    model.fit_transform(images)[:] = 0
    assert_array_equal(model.transform(images), model.embedding_)


def test_new_images_go_to_the_cluster_of_their_prototype(make_model, planted):
    X, labels = planted(size=32)
    model = make_model().fit(X[:48])
    assert same_partition(model.predict(X[48:]), labels[48:])


def test_results_do_not_depend_on_the_rows_beside_or_on_the_batch(make_model, fitted, images):
    order = np.random.default_rng(0).permutation(len(images))
    expected = fitted
    for batch_size in (1, 13, 1000):
        model = make_model(inference_batch_size=batch_size).fit(images)
        assert_array_equal(model.embedding_, expected.embedding_)
        assert_array_equal(model.predict(images[order]), expected.labels_[order])
        assert_array_equal(model.transform(images[order]), expected.embedding_[order])
        assert_array_equal(model.transform(images[7:8]), expected.embedding_[7:8])
        assert_allclose(model.predict_proba(images[:9]), expected.predict_proba(images)[:9], rtol=1e-12)


def test_fits_of_one_random_state_are_the_same(make_model, images):
    one, two, other = (make_model(**GRID, random_state=seed).fit(images) for seed in (0, 0, 1))
    assert one.search_result_.best == two.search_result_.best
    for name in ("labels_", "embedding_", "cluster_centers_", "scott_scores_"):
        assert_array_equal(getattr(one, name), getattr(two, name))
    assert not np.array_equal(one.scott_scores_, other.scott_scores_)
    again = copy.deepcopy(one).fit(images)
    assert_array_equal(one.embedding_, again.embedding_)


def test_random_states_may_be_generators(make_model, images):
    state = np.random.RandomState(0)
    expected = make_model(random_state=0).fit(images)
    first, second = (make_model(random_state=state).fit(images) for _ in range(2))
    assert_array_equal(first.embedding_, expected.embedding_)
    assert not np.array_equal(second.embedding_, expected.embedding_)


def test_results_do_not_depend_on_the_number_of_jobs(make_model, images):
    with joblib.parallel_config("threading"):  # of processes, which take seconds to start, the search has a test
        one, two = (make_model(**GRID, n_jobs=n_jobs).fit(images) for n_jobs in (None, 2))
    assert_array_equal(one.embedding_, two.embedding_)
    assert_array_equal(one.scott_scores_, two.scott_scores_)
    assert one.score(images) == two.score(images)


@pytest.mark.parametrize("parameters", [{}, {"train_backbone": True, "max_epochs": 2}, AUTO], ids=str)
def test_global_random_states_are_left_alone(parameters, make_model, images, rng_untouched):
    with rng_untouched():
        model = make_model(**parameters, verbose=False).fit(images)
        model.predict(images)
        model.score(images)


@pytest.mark.parametrize("train_backbone", [False, True])
@pytest.mark.parametrize("wrap", [lambda unet: unet, lambda unet: load_backbone(unet)], ids=["model", "PixelBackbone"])
def test_images_model_and_parameters_of_the_caller_are_left_alone(wrap, train_backbone, make_model, make_unet, images):
    backbone = wrap(make_unet(sample_size=8))
    network = getattr(backbone, "network", backbone)
    network.train()
    network.mid_block.eval()
    network.conv_in.requires_grad_(False)
    before = images.copy(), weights(network), [module.training for module in network.modules()]
    needs_gradient = [parameter.requires_grad for parameter in network.parameters()]
    images.setflags(write=False)
    model = make_model(backbone=backbone, train_backbone=train_backbone, max_epochs=2)
    parameters = dict(model.get_params())
    model.fit(images)
    model.predict(images)
    assert_array_equal(images, before[0])
    assert equal(weights(network), before[1])
    assert [module.training for module in network.modules()] == before[2]
    assert [parameter.requires_grad for parameter in network.parameters()] == needs_gradient
    assert hook_count(network) == 0
    assert model.get_params().keys() == parameters.keys()
    assert all(model.get_params()[name] is value for name, value in parameters.items())
    with torch.no_grad():
        network.conv_in.weight.zero_()
    assert_array_equal(model.predict(images), model.labels_)  # the fitted weights are its own


def test_refit_forgets_the_first_fit(make_model, images, planted):
    other = planted(size=10, seed=1)[0]
    model = make_model().fit(images).fit(other)
    assert_array_equal(model.embedding_, make_model().fit(other).embedding_)
    assert len(model.labels_) == 30


# Backbones


def test_backbone_may_be_a_model_a_pipeline_a_folder_or_a_loaded_one(make_model, make_unet, images, tmp_path):
    unet = make_unet(sample_size=8)
    expected = make_model(backbone=unet).fit(images)
    unet.save_pretrained(tmp_path / "model")
    pipeline = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())
    pipeline.save_pretrained(tmp_path / "pipeline")
    loaded = (pipeline, tmp_path / "model", str(tmp_path / "pipeline"), load_backbone(unet))
    for backbone in loaded:
        assert_array_equal(make_model(backbone=backbone).fit(images).embedding_, expected.embedding_)


def test_fitted_backbone_can_be_saved_and_used(make_model, images, tmp_path):
    expected = make_model(**AUTO).fit(images)
    expected.backbone_.save_pretrained(tmp_path)
    model = make_model(backbone=tmp_path).fit(images)
    assert_array_equal(model.embedding_, expected.embedding_)


def test_auto_trains_a_backbone_on_the_images_and_searches_it(make_model, images, labels):
    parameters = {**AUTO, "layer": None, "timestep": (20, 300), "pooling": None}
    model = make_model(**parameters).fit(images)
    assert same_partition(model.labels_, labels)
    assert model.layers_ == ("down_blocks.0", "mid_block", "up_blocks.0")
    assert model.search_result_.poolings == (1, 2, 4)
    assert (model.backbone_.image_shape, model.backbone_.num_train_timesteps) == ((1, 8, 8), 1000)
    assert model.backbone_.recipe["images"] == 48
    assert model.backbone_.recipe["settings"]["epochs"] == 2
    assert model.backbone_.recipe["loss"][1] < model.backbone_.recipe["loss"][0]
    assert_array_equal(model.predict(images), model.labels_)


def test_files_without_a_backbone_are_read_at_the_size_they_share(make_model, images, labels, tmp_path):
    model = make_model(**AUTO).fit(files(images, tmp_path))
    assert model.image_shape_ == (1, 8, 8)
    assert same_partition(model.labels_, labels)


def test_folder_of_the_pretraining_holds_a_pipeline_that_a_second_fit_uses(make_model, images, tmp_path, monkeypatch):
    kept = clone(AUTO["backbone"]).set_params(folder=tmp_path / "deep" / "folder")
    expected = make_model(backbone=kept).fit(images)
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path / "deep" / "folder")
    assert equal(weights(pipeline.unet), weights(expected.backbone_.network))
    monkeypatch.setattr(trainer.Trainer, "run", lambda *_, **__: pytest.fail("trained again"))
    model = make_model(backbone=kept, head=None).fit(images)
    assert equal(weights(model.backbone_.network), weights(expected.backbone_.network))
    assert_array_equal(model.initial_labels_, expected.initial_labels_)
    model.set_params(random_state=None).fit(images)
    assert equal(weights(model.backbone_.network), weights(expected.backbone_.network))


# Memory


@pytest.fixture
def work(monkeypatch):
    """Counts what is worth caching: trainings of a backbone, searches, passes over images, projections and starts."""
    counts = Counter()

    def count(name, owner, attribute):
        function = getattr(owner, attribute)

        @functools.wraps(function)
        def counted(*args, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, attribute, counted)

    count("pretraining", trainer.Trainer, "run")
    count("search", stages, "search_cells")
    count("passes", FeatureExtractor, "_extract")
    count("projection", initialization, "principal_components")
    count("start", initialization, "knn_graph")
    return counts


GRID_WORK = {"search": 1, "passes": 4, "projection": 1, "start": 1}
"""Passes for three timesteps and for the chosen cell."""


@pytest.mark.parametrize("as_memory", [str, lambda path: joblib.Memory(path, verbose=0)], ids=["str", "Memory"])
def test_memory_keeps_pretraining_search_features_and_start(as_memory, make_model, images, work, tmp_path):
    expected = make_model(**{**GRID, **AUTO}).fit(images)
    for known in ({"pretraining": 1, **GRID_WORK}, {}):
        work.clear()
        model = make_model(**{**GRID, **AUTO}, memory=as_memory(tmp_path)).fit(images)
        assert work == known
        for name in ("embedding_", "labels_", "initial_labels_", "scott_scores_"):
            assert_array_equal(getattr(model, name), getattr(expected, name))


def test_memory_tells_images_seeds_and_settings_of_the_backbone_apart(make_model, images, work, tmp_path):
    parameters = {**GRID, **AUTO, "memory": str(tmp_path)}
    other_settings = {"backbone": clone(AUTO["backbone"]).set_params(epochs=3)}
    for X, change in ((images, {}), (255 - images, {}), (images, {"random_state": 1}), (images, other_settings)):
        work.clear()
        make_model(**{**parameters, **change}).fit(X)
        assert work == {"pretraining": 1, **GRID_WORK}


def test_memory_tells_weights_of_loaded_backbones_and_images_apart(make_model, make_unet, images, work, tmp_path):
    for seed, X, expected in ((0, images, GRID_WORK), (0, images, {}), (1, images, GRID_WORK), (0, ~images, GRID_WORK)):
        work.clear()
        make_model(backbone=make_unet(seed, sample_size=8), **GRID, memory=str(tmp_path)).fit(X)
        assert work == expected


@pytest.fixture(scope="module")
def remembered_once(make_model, planted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    make_model(memory=str(folder)).fit(planted()[0])
    return folder


@pytest.fixture
def remembered(remembered_once, tmp_path):
    """The memory of a fit of the images with nothing but defaults: a copy, which tests may write to."""
    return shutil.copytree(remembered_once, tmp_path / "memory")


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ({"head": None}, {}),
        (
            {
                "alpha": 2.0,
                "beta": 0.0,
                "nu": 2.0,
                "hidden_size": 8,
                "learning_rate": 1e-4,
                "batch_size": 20,
                "max_epochs": 4,
                "warmup_epochs": 2,
                "tol": 0.0,
                "update_interval": 2,
                "inference_batch_size": 8,
                "n_jobs": 1,
            },
            {},
        ),
        ({"n_init": 4}, {"start": 1}),
        ({"n_components": 3}, {"projection": 1, "start": 1}),
        ({"n_draws": 3}, {"projection": 1, "start": 1, "passes": 1}),
        ({"shift": 2}, {"search": 1, "projection": 1, "start": 1, "passes": 2 + 13}),  # and images as they are moved
        ({"criterion": "scott"}, {"search": 1, "passes": 1}),
        ({"search": "halving"}, {"search": 1, "passes": 1}),
        ({"search_draws": 2}, {"search": 1, "passes": 2}),
        ({"max_search_samples": 30}, {"search": 1, "passes": 1}),
        ({"gamma": 2.0}, {"search": 1, "start": 1, "passes": 1}),
        ({"n_neighbors": 5}, {"search": 1, "start": 1, "passes": 1}),
        ({"n_clusters": 4}, {"search": 1, "start": 1, "passes": 1}),
        ({"timestep": 60}, {"search": 1, "projection": 1, "start": 1, "passes": 2}),
        ({"train_backbone": True, "max_epochs": 1}, {"passes": 2}),  # an embedding of both backbones
    ],
    ids=str,
)
def test_memory_is_used_for_all_that_a_change_leaves(change, redone, make_model, images, work, remembered):
    expected = make_model(**change).fit(images)
    work.clear()
    model = make_model(**change, memory=str(remembered)).fit(images)
    assert work == redone
    assert_array_equal(model.embedding_, expected.embedding_)
    assert_array_equal(model.labels_, expected.labels_)


def test_memory_tells_functions_of_one_name_apart(make_model, images, work, tmp_path):
    for sign in (1, -1):

        def criterion(X, labels, sign=sign):
            return sign * X.shape[1]

        model = make_model(**GRID, memory=str(tmp_path), criterion=criterion).fit(images)
        assert_array_equal(model.search_result_.scores["criterion"][0, 0] > 0, sign > 0)
    assert work["search"] == 2


def test_memory_keeps_one_backbone_for_each_precision(make_model, images, work, tmp_path, monkeypatch):
    settings = {"backbone": clone(AUTO["backbone"]).set_params(precision="auto")}
    for native in (False, True):  # two machines that share the folder
        monkeypatch.setattr("skdiec.backbones.settings.has_native_bf16", lambda device, native=native: native)
        for _ in range(2):
            make_model(**settings, memory=str(tmp_path)).fit(images)
    assert work["pretraining"] == 2


def test_features_in_temporary_files_go_to_several_jobs_and_into_the_memory(
    make_model, images, work, tmp_path, monkeypatch
):
    expected = make_model(**GRID).fit(images)
    monkeypatch.setattr(skdiec.storage, "MEMORY_MAP_ABOVE", 100)
    for known in (GRID_WORK, {}):
        work.clear()
        model = make_model(**GRID, n_jobs=2, memory=str(tmp_path)).fit(images)
        assert work == known
        assert_array_equal(model.scott_scores_, expected.scott_scores_)
        assert_array_equal(model.labels_, expected.labels_)


# Head and dual branch


def test_dual_branch_trains_a_copy_of_the_backbone(make_model, make_unet, images, labels):
    unet = make_unet(sample_size=8)
    model = make_model(backbone=unet, train_backbone=True, **FIXED_STEPS).fit(images)
    assert same_partition(model.labels_, labels)
    assert not equal(weights(model.backbone_.network), weights(unet))
    denoising = model.history_["denoising"]
    assert denoising.shape == (4,)
    assert np.isfinite(denoising).all()
    assert len(set(denoising)) == 4
    assert_array_equal(model.predict(images), model.labels_)
    assert_array_equal(model.transform(images), model.embedding_)
    other = make_model(backbone=unet, **FIXED_STEPS).fit(images)
    assert equal(weights(other.backbone_.network), weights(unet))
    assert not np.allclose(model.embedding_, other.embedding_, atol=1e-3)


def features_of(backbone, images):
    cell = Cell("mid_block", 50, 2)
    seed = int(np.random.RandomState(0).randint(2**31 - 1, size=2)[1])  # the second seed is that of noise
    return FeatureExtractor(backbone, 5, seed=seed).extract(as_image_source(images), [cell])[cell]


@pytest.mark.parametrize(
    ("shape", "image_shape", "expected"),
    [((16, 17), None, 1), ((15, 20), None, 0), ((256,), None, 0), ((256,), (16, 16), 1)],
    ids=["large", "small", "table", "flat rows"],
)
def test_images_are_moved_by_a_pixel_where_they_are_large_enough(shape, image_shape, expected, make_model, calls):
    X = np.random.default_rng(0).integers(0, 256, (12, *shape), dtype=np.uint8)
    make_model(**AUTO, image_shape=image_shape, max_epochs=1).fit(X)
    assert {call.self.shift for call in calls["extract"]} == {expected}


def scaled_distances(features, frozen):
    """Distances of features in units of a quarter of the frozen ones' spread: whole, a projection keeps them."""
    spread = np.sqrt(frozen.var(axis=0, ddof=1).sum())
    return 4 / spread * cdist(features, features)


def test_embedding_without_a_head_is_the_projection_of_the_features(make_model, make_unet, images):
    model = make_model(head=None).fit(images)
    features = features_of(load_backbone(make_unet(sample_size=8)), images)
    found = cdist(model.embedding_, model.embedding_)
    assert_allclose(found, scaled_distances(features, features), rtol=1e-4, atol=1e-4)


def test_direct_fine_tuning_embeds_by_the_trained_backbone_alone(make_model, make_unet, images, labels):
    unet = make_unet(sample_size=8)
    model = make_model(backbone=unet, head="direct", train_backbone=True, **FIXED_STEPS).fit(images)
    assert same_partition(model.labels_, labels)
    assert not equal(weights(model.backbone_.network), weights(unet))
    assert np.isfinite(model.history_["denoising"]).all()
    assert_array_equal(model.transform(images), model.embedding_)
    trained, frozen = features_of(model.backbone_, images), features_of(load_backbone(unet), images)
    found = cdist(model.embedding_, model.embedding_)
    assert_allclose(found, scaled_distances(trained, frozen), rtol=1e-4, atol=1e-4)


def test_no_head_trains_nothing(make_model, images, labels):
    model = make_model(head=None).fit(images)
    assert same_partition(model.labels_, labels)
    assert model.n_iter_ == 0
    assert {len(values) for values in model.history_.values()} == {1}
    assert_array_equal(model.initial_labels_, model.labels_)
    means = [model.embedding_[model.initial_labels_ == cluster].mean(axis=0) for cluster in range(3)]
    assert_allclose(model.cluster_centers_, means, atol=1e-5)
    assert_array_equal(model.transform(images), model.embedding_)


# Start and search


@pytest.mark.parametrize("init", ["graph", "k-means++"])
def test_start_is_the_planted_partition(init, make_model, images, labels):
    assert same_partition(make_model(init=init, max_epochs=1).fit(images).initial_labels_, labels)


def test_start_may_be_centres_in_the_space_of_the_projected_features(make_model, images, labels):
    h = make_model(head=None).fit(images).embedding_
    for order in ([0, 1, 2], [2, 0, 1]):
        centers = np.array([h[labels == cluster].mean(axis=0) for cluster in order])
        for init in (centers, centers.tolist()) if order[0] else (centers,):
            model = make_model(init=init).fit(images)
            assert_array_equal(model.initial_labels_, np.argsort(order)[labels])
            assert_array_equal(model.labels_, np.argsort(order)[labels])
    rough = h[labels == 0][:3]  # the other images are nearer to one or another by chance
    model = make_model(init=rough, head=None).fit(images)
    assert_array_equal(model.initial_labels_, cdist(h, rough).argmin(axis=1))
    means = np.array([h[model.initial_labels_ == cluster].mean(axis=0) for cluster in range(3)])
    assert_array_equal(model.labels_, cdist(h, means).argmin(axis=1))
    assert not np.array_equal(model.labels_, model.initial_labels_)


def test_one_fit_answers_every_number_of_clusters(make_model, images, labels):
    model = make_model().fit(images)
    assert same_partition(model.labels_at(3), model.labels_)
    n_fine = model.fine_labels_.max() + 1
    assert model.linkage_.shape == (n_fine - 1, 4)
    assert is_valid_linkage(model.linkage_)
    for count in range(1, n_fine + 1):
        cut = model.labels_at(count)
        assert (cut.dtype, len(set(cut))) == (np.int32, count)
        for cluster in set(cut):  # nested: either part of a cluster of the fit, or several whole ones
            inside = cut == cluster
            parts = set(model.labels_[inside])
            assert len(parts) == 1 or np.isin(model.labels_, list(parts)).sum() == inside.sum()
    for wrong in (0, n_fine + 1, 2.0, True, "3", None):
        with pytest.raises(ValueError, match=f"n_clusters must be an int from 1 to {n_fine}; got"):
            model.labels_at(wrong)
    with pytest.raises(NotFittedError):
        make_model().labels_at(2)


def test_stability_is_that_of_the_initial_partition(make_model, images, labels):
    assert make_model().fit(images).stability_ == 1.0  # planted clusters, which every candidate finds
    assert np.isnan(make_model(init="k-means++").fit(images).stability_)
    assert np.isnan(make_model(init=labels).fit(images).stability_)
    noise = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)
    assert make_model(7).fit(noise).stability_ < 0.9


def test_clusters_that_are_none_are_warned_of(make_model, planted):
    X, _ = planted(size=40)
    assert make_model().fit(X).cut_over_noise_ < 0.5
    noise = np.random.default_rng(0).integers(0, 256, (120, *X.shape[1:]), dtype=np.uint8)
    with pytest.warns(UserWarning, match=r"the clusters are hardly better than those of noise: \d\.\d\d of its cut"):
        model = make_model(5).fit(noise)
    assert model.cut_over_noise_ > 0.9
    assert any("the clusters are hardly better than those of noise" in told for told in model.warnings_)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the clusters are hardly better")
        make_model(5).fit(noise[:90])  # too few to tell


def test_start_may_be_labels(make_model, images, labels):
    h = make_model(head=None).fit(images).embedding_
    corrected = labels.copy()
    corrected[:5] = (corrected[:5] + 1) % 3  # not what any start would find
    for init in (corrected, corrected.tolist(), corrected.astype(float)):
        model = make_model(init=init, head=None).fit(images)
        assert_array_equal(model.initial_labels_, corrected)
        assert model.initial_labels_.dtype == np.int32
        means = np.array([h[corrected == cluster].mean(axis=0) for cluster in range(3)])
        np.testing.assert_allclose(model.cluster_centers_, means, rtol=1e-4, atol=1e-5)
    assert_array_equal(make_model(init=labels).fit(images).labels_, labels)  # trained, in their order


def test_images_without_a_label_get_one(make_model, images, labels):
    unknown = np.full_like(labels, -1)
    unknown[[np.flatnonzero(labels == cluster)[0] for cluster in range(3)]] = range(3)
    model = make_model(init=unknown, head=None).fit(images)
    assert_array_equal(model.initial_labels_, labels)  # planted clusters lie far apart


def test_labels_spread_along_the_graph_and_leave_those_given():
    turn = np.linspace(0, np.pi, 40)
    moons = np.concatenate([np.c_[np.cos(turn), np.sin(turn)], np.c_[1 - np.cos(turn), 0.4 - np.sin(turn)]])
    labels = np.full(80, -1, dtype=np.int32)
    labels[[0, 20, 40, 60]] = 0, 0, 1, 1
    found = initialization._labels_along_graph(knn_graph(moons, 4), labels, moons)
    assert_array_equal(found, np.repeat([0, 1], 40))
    assert (initialization._completed(labels, moons) != found).sum() > 5  # the nearest mean does not follow the bends
    labels[10] = 1  # among the first kind, and stays as it was given
    assert initialization._labels_along_graph(knn_graph(moons, 4), labels, moons)[10] == 1


def test_images_that_no_path_leads_to_go_to_the_nearest_mean():
    h = np.array([[0.0], [0.1], [1.0], [1.1], [9.0], [9.1], [10.0], [10.1]])
    labels = np.array([0, -1, -1, -1, -1, -1, 1, 1], dtype=np.int32)
    graph = knn_graph(h, 1)
    assert_array_equal(initialization._labels_along_graph(graph, labels, h), [0, 0, 0, 0, 1, 1, 1, 1])


@pytest.mark.parametrize("criterion", ["consensus", "relative_cut", "normalized_cut", "scott", silhouette_score])
def test_every_criterion_finds_a_cell_that_clusters(criterion, make_model, images, labels):
    model = make_model(**GRID, criterion=criterion).fit(images)
    result = model.search_result_
    assert result.criterion == (criterion if isinstance(criterion, str) else "silhouette_score")
    assert set(result.scores) == {"scott", result.criterion}
    chosen = (model.layers_.index(model.layer_), model.timesteps_.index(model.timestep_))
    depth = result.poolings.index(model.pooling_)
    assert result.scores[result.criterion][(*chosen, depth)] == np.nanmax(result.scores[result.criterion])
    assert same_partition(model.labels_, labels)


def test_silhouette_is_that_of_the_planted_clusters(make_model, images, labels):
    score = make_model(criterion=silhouette_score).fit(images).search_result_.scores["silhouette_score"]
    assert score.shape == (1, 1, 1)
    assert score.item() > 0.5


def test_one_value_is_used_and_several_are_searched(make_model, images):
    fixed = make_model(timestep=np.int64(50)).fit(images)
    assert (fixed.layer_, fixed.timestep_, fixed.pooling_) == ("mid_block", 50, 2)
    assert (fixed.layers_, fixed.timesteps_) == (("mid_block",), (50,))
    assert type(fixed.timestep_) is int
    candidates = {"layer": ("mid_block", "conv_in"), "timestep": np.array([300, 50, 300]), "pooling": [1]}
    model = make_model(**candidates).fit(images)
    assert (model.layers_, model.timesteps_) == (("conv_in", "mid_block"), (300, 50))
    assert model.search_result_.poolings == (1,)
    assert model.scott_scores_.shape == (2, 2)


@pytest.mark.parametrize(
    "schedule", [{}, {"num_train_timesteps": 100}, {"num_train_timesteps": 4}, {"beta_schedule": "squaredcos_cap_v2"}]
)
def test_default_timesteps_have_the_noise_of_those_of_a_linear_schedule(schedule, make_model, make_backbone, images):
    scheduler = diffusers.DDPMScheduler(**schedule)
    backbone = make_backbone(sample_size=8, scheduler=scheduler)
    model = make_model(backbone=backbone, timestep=None, pooling=1).fit(images)
    ratios = [
        ((1 - abar) / abar).sqrt() for abar in (diffusers.DDPMScheduler().alphas_cumprod, scheduler.alphas_cumprod)
    ]
    wanted = [ratios[0][t] for t in (10, 25, 50, 100, 150, 200, 300, 400)]
    assert model.timesteps_ == tuple(sorted({int((ratios[1].log() - ratio.log()).abs().argmin()) for ratio in wanted}))
    if not schedule:
        assert model.timesteps_ == (10, 25, 50, 100, 150, 200, 300, 400)


def test_default_timesteps_are_those_that_the_backbone_was_trained_on(make_model, make_backbone, images):
    backbone = make_backbone(sample_size=8, recipe={"settings": {"max_timestep": 120}})
    assert make_model(backbone=backbone, timestep=None, pooling=1).fit(images).timesteps_ == (10, 25, 50, 100)
    low = make_backbone(sample_size=8, recipe={"settings": {"max_timestep": 5}})
    assert make_model(backbone=low, timestep=None, pooling=1).fit(images).timesteps_ == (5,)


def test_default_layers_and_poolings_are_all_blocks_and_up_to_four(make_model, images):
    model = make_model(layer=None, pooling=None).fit(images)
    assert model.layers_ == ("down_blocks.0", "mid_block", "up_blocks.0")
    assert model.search_result_.poolings == (1, 2, 4)


@pytest.fixture
def extracted(monkeypatch):
    """Rows and draw of every extraction, as they come."""
    seen = []
    extract = FeatureExtractor.extract

    def watched(extractor, source, cells, *, rows=None, draw=None, report=None):
        seen.append((rows, draw))
        return extract(extractor, source, cells, rows=rows, draw=draw, report=report)

    monkeypatch.setattr(FeatureExtractor, "extract", watched)
    return seen


def test_search_looks_at_a_random_subset_and_the_rest_is_clustered_with_it(make_model, images, labels, extracted):
    model = make_model(max_search_samples=20, search_draws=2).fit(images)
    assert same_partition(model.labels_, labels)
    assert (model.search_result_.n_images, model.search_result_.n_forward) == (20, 40)
    (rows, first), (again, second) = extracted[:2]
    assert_array_equal(rows, again)
    assert (first, second) == (0, 1)
    assert len(set(rows)) == len(rows) == 20
    assert rows.max() > 20  # not the first ones


@pytest.mark.parametrize(("size", "n_final"), [(8, 40), (12, 48), (24, 48), (25, 0), (48, 0), (99, 0)])
def test_best_representations_are_compared_on_five_times_the_images_of_the_search(
    size, n_final, make_model, images, extracted
):
    model = make_model(max_search_samples=size, pooling=(1, 2)).fit(images)
    result = model.search_result_
    assert (0 if result.final is None else result.final.n_images) == n_final
    assert Cell(model.layer_, model.timestep_, model.pooling_) == result.best
    searched = [rows for rows, draw in extracted if draw == 0]
    assert len(searched[0]) == min(size, len(images))
    if n_final:
        assert_array_equal(searched[1][:size], searched[0])
        assert len(set(searched[1])) == n_final


def test_other_criteria_have_no_final_comparison(make_model, images):
    assert make_model(max_search_samples=8, pooling=(1, 2), criterion="scott").fit(images).search_result_.final is None


@pytest.fixture
def partitioned(monkeypatch):
    """The features and the graph of every search for an initial partition, as they come."""
    seen = []

    def watched(h, graph, *args, **kwargs):
        seen.append((h, graph))
        return initial_partition(h, graph, *args, **kwargs)

    monkeypatch.setattr(initialization, "_RUNS", 1)
    monkeypatch.setattr(initialization, "initial_partition", watched)
    return seen


def test_where_the_search_saw_all_images_other_representations_help_to_find_the_partition(
    make_model, images, partitioned
):
    model = make_model(pooling=(2, 4), random_state=5).fit(images)
    (h, own), (_, graph) = partitioned
    assert_array_equal(own.toarray(), knn_graph(h, model.n_neighbors).toarray())
    (pooling,) = {2, 4} - {model.pooling_}
    other = make_model(pooling=pooling, n_draws=1, random_state=5, n_components=128).fit(images)
    beside = knn_graph(partitioned[-1][0], model.n_neighbors)
    assert other.pooling_ == pooling
    assert_allclose(graph.toarray(), (2 * own + beside).toarray())
    assert model.search_result_.beside is None


def initialize_at(h, moved=(), beside=None, rows=None, n_init=4):
    rows = np.arange(len(h)) if rows is None else rows
    return initialization.initialize("", h, moved, rows, beside, 2, 10, "exact", "graph", n_init, 1.0, 0, 1)


@pytest.mark.parametrize(("n_init", "few", "n_runs"), [(4, 30, 3), (2, 30, 2), (4, 29, 1)])
def test_of_few_images_the_most_stable_of_several_partitions_is_taken(n_init, few, n_runs, monkeypatch):
    h, seeds = np.random.default_rng(0).normal(size=(30, 2)), []
    stabilities = (0.7, 0.9, 0.8)

    def partition(h, graph, n_clusters, cut, *, seed, **options):
        seeds.append(seed)
        return Partition(np.full(30, len(seeds)), 1.0, "spectral", stabilities[len(seeds) - 1])

    monkeypatch.setattr(initialization, "initial_partition", partition)
    monkeypatch.setattr(initialization, "_FEW_IMAGES", few)
    found = initialize_at(h, n_init=n_init)
    assert len(set(seeds)) == len(seeds) == n_runs
    assert found.stability == max(stabilities[:n_runs])
    assert set(found.labels) == {1 + stabilities.index(found.stability)}


def test_of_several_partitions_trusted_merges_come_before_a_lowest_cut(monkeypatch):
    h = np.random.default_rng(0).normal(size=(30, 2))
    found = [("merged", 0.9), ("spectral", 0.99), ("merged", 0.95)]

    def partition(h, graph, n_clusters, cut, *, seed, **options):
        source, stability = found[seed // initialization._APART]
        return Partition(np.full(30, seed), 1.0, source, stability)

    monkeypatch.setattr(initialization, "initial_partition", partition)
    assert initialize_at(h).stability == 0.95


def test_images_are_compared_as_they_are_moved_where_their_clusters_lie_as_far_apart_then():
    rng = np.random.default_rng(0)
    kinds, place = np.repeat([0, 1], 60), rng.uniform(-10, 10, size=120)
    h = np.stack([place, kinds + rng.normal(scale=0.05, size=120)], axis=1)
    moved = [h, *(h + np.array([step, 0]) for step in (-8, -4, -2, 2, 4, 8))]
    plain, found = initialize_at(h), initialize_at(h, moved)
    assert adjusted_rand_score(kinds, plain.labels) < 0.1  # by their places
    assert same_partition(kinds, found.labels)
    assert_array_equal(plain.graph.toarray(), knn_graph(h, 10).toarray())
    assert_array_equal(found.graph.toarray(), moved_knn_graph(moved, 10).toarray())


def test_images_are_not_compared_so_where_motions_join_what_lies_apart():
    rng = np.random.default_rng(0)
    kinds = np.repeat([0, 1], 60)
    h = np.stack([rng.normal(size=120), 4 * kinds + rng.normal(size=120)], axis=1)
    found = initialize_at(h, [h, *(h[rng.permutation(120)] for _ in range(6))])
    assert_array_equal(found.labels, initialize_at(h).labels)
    assert_array_equal(found.graph.toarray(), knn_graph(h, 10).toarray())


@pytest.mark.parametrize(
    ("cuts", "stabilities", "taken"),
    [
        ((1.09, 1.0), {"beside": 0.8, "moved": 0.81}, "moved"),
        ((1.09, 1.0), {"beside": 0.9, "moved": 0.89}, "beside"),
        ((1.11, 1.0), {"own": 0.9, "beside": 0.8, "moved": 0.85}, "own"),
        ((1.11, 1.0), {"own": 0.8, "beside": 0.9, "moved": 0.85}, "beside"),
        ((1.11, 1.0), {"own": 0.8, "beside": 0.8, "moved": 0.83}, "moved"),
        ((1.11, 1.0), {"own": 0.8, "beside": 0.8, "moved": 0.81}, "own"),
    ],
)
def test_cut_and_then_stability_say_how_images_are_compared(cuts, stabilities, taken, monkeypatch, caplog):
    h = np.random.default_rng(0).normal(size=(30, 2))
    moved, beside = [h, h[::-1]], knn_graph(h[:, :1], 5)
    coming, lowest, seen = iter(stabilities.values()), iter(cuts), []

    def partition(h, graph, *_, **__):
        seen.append(graph.toarray())
        return Partition(np.full(30, len(seen)), 1.0, "spectral", next(coming))

    monkeypatch.setattr(initialization, "_RUNS", 1)
    monkeypatch.setattr(initialization, "initial_partition", partition)
    monkeypatch.setattr(initialization, "best_partition", lambda *_, **__: Partition(None, next(lowest), "spectral"))
    with caplog.at_level(logging.INFO, "skdiec"):
        found = initialize_at(h, moved, beside)
    told = {
        "own": "images as they are",
        "beside": "several representations",
        "moved": "images compared as they are moved",
    }
    assert caplog.messages[-1].startswith(f"initial partition: of {told[taken]}")
    own, alike = knn_graph(h, 10).toarray(), moved_knn_graph(moved, 10).toarray()
    graphs = {"own": own, "beside": 2 * own + beside.toarray(), "moved": alike}
    assert_allclose(seen, [graphs[name] for name in stabilities])
    assert found.stability == stabilities[taken]
    assert set(found.labels) == {1 + list(stabilities).index(taken)}
    assert_array_equal(found.graph.toarray(), alike if taken == "moved" else own)


@pytest.mark.parametrize(
    ("parameters", "are_moved"),
    [({"shift": 1}, True), ({}, False), ({"shift": 0}, False), ({"shift": 1, "init": "k-means++"}, False)],
)
def test_who_sees_images_as_they_are_moved(parameters, are_moved, make_model, images, calls):
    model = make_model(head=None, **parameters).fit(images)
    seen = [call.motion for call in calls["extract"] if call.motion is not None]
    assert seen == (small_motions(8, 8) if are_moved else [])
    assert all((call.draw, call.cells) == (0, [model._cell]) for call in calls["extract"] if call.motion is not None)
    (call,) = calls["initialize"]
    assert len(call.moved) == len(seen)
    if are_moved:
        (extractor,) = model._extractors
        matrix = extractor.extract(as_image_source(images), [model._cell], draw=0, motion=seen[-1])[model._cell]
        assert_allclose(call.moved[-1], model._model.projection.project(matrix), atol=1e-5)


def test_of_many_images_some_are_compared_as_they_are_moved(make_model, images, calls, monkeypatch):
    monkeypatch.setattr(stages, "_MOVED_IMAGES", 20)
    make_model(head=None, shift=1, random_state=3).fit(images)
    seen = [call.rows for call in calls["extract"] if call.motion is not None]
    (call,) = calls["initialize"]
    assert len(seen) == 13
    for rows in seen:
        assert_array_equal(rows, call.moved_rows)
    assert len(np.unique(rows)) == 20
    assert rows.max() >= 20  # not the first ones
    assert {matrix.shape[0] for matrix in call.moved} == {20}


@pytest.mark.parametrize(("stabilities", "taken"), [((0.8, 0.9), "moved"), ((0.9, 0.8), "own"), ((0.9, 0.9), "own")])
def test_partition_of_some_images_is_spread_over_all_where_it_is_more_stable(stabilities, taken, monkeypatch):
    rng = np.random.default_rng(0)
    kinds = np.tile([0, 1], 60)
    h = np.stack([rng.normal(size=120), 9 * kinds + rng.normal(size=120)], axis=1)
    rows = np.arange(0, 120, 3)
    moved = [h[rows], h[rows] + 1]
    coming, seen = iter(stabilities), []

    def partition(h, graph, *args, **options):
        seen.append((h, graph.toarray()))
        return Partition(initial_partition(h, graph, *args, **options).labels, 1.0, "spectral", next(coming))

    monkeypatch.setattr(initialization, "_RUNS", 1)
    monkeypatch.setattr(initialization, "initial_partition", partition)
    found = initialize_at(h, moved, rows=rows)
    graphs = knn_graph(h, 10).toarray(), moved_knn_graph(moved, 10).toarray()
    for (x, graph), expected, expected_graph in zip(seen, (h, h[rows]), graphs, strict=True):
        assert_array_equal(x, expected)
        assert_array_equal(graph, expected_graph)
    assert found.stability == stabilities[("own", "moved").index(taken)]
    assert same_partition(kinds, found.labels)
    assert found.labels.dtype == np.int32
    assert_array_equal(found.graph.toarray(), graphs[0])


def test_labels_spread_to_the_nearest_mean_and_then_by_votes_of_neighbours():
    # A chain: means alone put each image where it belongs.
    h = np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0], [13.0]])
    path = sparse.csr_array(np.diag(np.ones(6), 1) + np.diag(np.ones(6), -1))
    rows, labels = np.array([0, 6]), np.array([0, 1], dtype=np.int32)
    assert_array_equal(initialization._spread(labels, rows, h, path), [0, 0, 0, 1, 1, 1, 1])
    # A vote of two neighbours against one image that its mean misled.
    odd = np.array([[0.0], [1.0], [9.0], [2.0], [10.0]])
    ring = sparse.csr_array(
        np.array([[0, 1, 1, 1, 0], [1, 0, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0.0]])
    )
    rows, labels = np.array([0, 4]), np.array([0, 1], dtype=np.int32)
    assert_array_equal(initialization._completed(np.array([0, -1, -1, -1, 1], dtype=np.int32), odd), [0, 0, 1, 0, 1])
    assert_array_equal(initialization._spread(labels, rows, odd, ring), [0, 0, 0, 0, 1])


def test_moved_images_are_seen_once_where_there_is_a_cache(make_model, images, calls, tmp_path):
    first = make_model(head=None, shift=1, memory=str(tmp_path)).fit(images)
    n_calls = len(calls["extract"])
    again = make_model(head=None, shift=1, memory=str(tmp_path)).fit(images)
    assert_array_equal(again.labels_, first.labels_)
    assert not any(call.motion for call in calls["extract"][n_calls:])


@pytest.mark.parametrize(("stabilities", "taken"), [((0.8, 0.9), 1), ((0.9, 0.8), 0), ((1.0, 1.0), 0)])
def test_the_more_stable_partition_is_taken(stabilities, taken, make_model, images, labels, monkeypatch):
    found = [
        Partition(np.int32((labels + place) % 3), 1.0, "spectral", stability)
        for place, stability in enumerate(stabilities)
    ]
    coming = iter(found)
    monkeypatch.setattr(initialization, "_RUNS", 1)
    monkeypatch.setattr(initialization, "initial_partition", lambda *args, **kwargs: next(coming))
    model = make_model(pooling=(2, 4), head=None).fit(images)
    assert_array_equal(model.initial_labels_, found[taken].labels)
    assert model.stability_ == found[taken].stability


@pytest.mark.parametrize(
    "parameters", [{"pooling": 2}, {"max_search_samples": 47}, {"criterion": "scott"}], ids=["one", "subset", "scott"]
)
def test_elsewhere_the_partition_is_found_on_the_graph_of_the_features(parameters, make_model, images, partitioned):
    model = make_model(**{"pooling": (2, 4), **parameters}).fit(images)
    ((h, graph),) = partitioned
    assert_array_equal(graph.toarray(), knn_graph(h, model.n_neighbors).toarray())


def test_halving_looks_at_few_of_the_images_first(make_model, images, labels, extracted, monkeypatch):
    monkeypatch.setattr("skdiec.search.IMAGES_PER_CLUSTER", 4)
    layers = ["down_blocks.0", "mid_block", "up_blocks.0"]
    space = {"layer": layers, "timestep": (20, 50, 100, 150, 200, 300), "pooling": (1, 2)}
    model = make_model(search="halving", **space).fit(images)
    result = model.search_result_
    assert [stage.n_images for stage in result.stages] == [16, 16, 48]
    assert [len(stage.cells) for stage in result.stages] == [12, 24, 4]
    few, _ = extracted[0]
    assert all(np.array_equal(rows, few) for rows, _ in extracted[:6])
    assert len(few) == 16
    assert few.max() > 16  # not the first ones
    rows, _ = extracted[6]
    assert_array_equal(rows[:16], few)
    assert len(set(rows)) == len(rows) == 48
    assert result.n_evaluations < result.n_forward == 6 * 16 + 48
    assert same_partition(model.labels_, labels)
    dropped = np.isnan(result.scores["scott"]).all(axis=(0, 2))
    assert dropped.sum() == 5
    assert_array_equal(
        np.isnan(model.scott_scores_), np.isnan(result.scores["scott"][:, :, result.poolings.index(model.pooling_)])
    )


def test_centres_that_fit_another_candidate_than_the_chosen_one_are_told_of(make_model, images):
    model = make_model(pooling=(1, 2), head=None).fit(images)
    other = {1: 32, 2: 8}[model.pooling_]
    with pytest.raises(ValueError, match=f"init must have {40 - other} columns, .*; got {other}"):
        make_model(pooling=(1, 2), init=np.zeros((3, other))).fit(images)


def test_first_number_of_clusters_is_one_that_the_images_of_the_search_can_have(make_model, planted, monkeypatch):
    monkeypatch.setattr(stages, "first_number", lambda *_: 15)
    X, labels = planted(n_clusters=3, size=40)
    model = make_model("auto", max_search_samples=8, pooling=(1, 2)).fit(X)
    assert model.search_result_.n_images == 8
    assert same_partition(model.labels_, labels)


# Score


def test_score_is_highest_for_the_right_number_of_clusters_and_sees_no_label(make_model, planted):
    X, labels = planted(n_clusters=4, size=24)
    scores = {n_clusters: make_model(n_clusters).fit(X).score(X) for n_clusters in (3, 4, 5)}
    assert max(scores, key=scores.get) == 4
    assert scores[4] == pytest.approx(0.75, abs=1e-6)  # no edge between clusters of one size
    model = make_model(4).fit(X)
    assert model.score(X, labels) == model.score(X, labels[::-1]) == model.score(X) == scores[4]
    assert type(scores[4]) is float


def test_score_is_the_modularity_on_features_and_pixels(make_model, planted):
    X, _ = planted(n_clusters=3, size=8)
    model = make_model(4, head=None, n_neighbors=4).fit(X)  # which do not count here
    labels = model.predict(X)
    weight = np.zeros((24, 24))
    for rows in (model.embedding_, X.reshape(24, 64) / 255):
        order = np.argsort(cdist(rows, rows), axis=1)[:, 1:11]  # after each row itself
        directed = np.zeros((24, 24))
        np.put_along_axis(directed, order, 1.0, axis=1)
        weight += (directed + directed.T) / 2
    degree, total = weight.sum(axis=1), weight.sum()
    same = labels[:, None] == labels
    expected = np.sum((weight - np.outer(degree, degree) / total) * same) / total
    assert model.score(X) == pytest.approx(expected, rel=1e-9)


# Log


@pytest.mark.parametrize("level", [logging.NOTSET, logging.ERROR])
def test_verbose_tells_of_search_and_training_and_leaves_the_logger_as_it_was(level, make_model, images, capsys):
    logger = logging.getLogger("skdiec")
    before, handlers = logger.level, list(logger.handlers)
    logger.setLevel(level)
    try:
        make_model(verbose=True).fit(images)
        assert (logger.level, logger.handlers) == (level, handlers)
        shown = capsys.readouterr().err
        assert "[skdiec.search] timestep 50: best scott" in shown
        assert "[skdiec.passes] ahead: at most " in shown
        assert "[skdiec.passes] at the speed of the first " in shown
        assert "[skdiec.training] epoch 1: " in shown
        with pytest.raises(ValueError, match="value_range"):
            make_model(verbose=True).fit(images / 255)
        assert (logger.level, logger.handlers) == (level, handlers)
        make_model().fit(images)
        assert capsys.readouterr() == ("", "")
    finally:
        logger.setLevel(before)


def test_verbose_shows_the_progress_of_pretraining(make_model, images, capsys):
    make_model(**AUTO, verbose=True).fit(images)
    shown = capsys.readouterr()
    assert "pretraining" in shown.err
    lines = shown.err.replace("\r", "\n").splitlines()
    assert any(line.startswith("[skdiec.backbones.trainer] epoch 2 of 2: denoising loss") for line in lines)
    assert not any("pretraining" in line and "[skdiec" in line for line in lines)  # above the bar
    make_model(**AUTO).fit(images)
    assert capsys.readouterr() == ("", "")


# Wiring


@pytest.fixture
def calls(monkeypatch):
    """Records the arguments with which collaborators are called; they run all the same."""
    recorded = defaultdict(list)

    def watch(name, owner):
        function = getattr(owner, name)
        signature = inspect.signature(function)

        @functools.wraps(function)
        def watched(*args, **kwargs):
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            recorded[name].append(SimpleNamespace(**bound.arguments))
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)

    for owner, names in {
        _estimator: ("_logging", "as_image_source", "knn_graph"),
        setup: ("as_memory", "default_device", "load_backbone"),
        stages: ("initialize", "pretrain", "projection_of", "search_cells"),
        training: ("BackboneEmbedder", "EmbeddingModel", "ResidualHead", "train"),
    }.items():
        for name in names:
            watch(name, owner)
    watch("extract", FeatureExtractor)
    watch("to", PixelBackbone)
    return recorded


def reaches(value, *destinations, expected=None, **others):
    """A value of a parameter, where it is to arrive, as what if not as itself, and what other parameters it needs."""
    expected = value if expected is None else expected
    return value, dict.fromkeys(destinations, expected), others


SEEDS = np.random.RandomState(7).randint(2**31 - 1, size=6).tolist()
DUAL = {"train_backbone": True, "max_epochs": 1}
WIRING = {
    "n_clusters": reaches(2, "search_cells.n_clusters", "initialize.n_clusters", "train.n_clusters"),
    "backbone": reaches("denoiser", "load_backbone.backbone"),
    "image_shape": reaches((8, 8), "as_image_source.image_shape"),
    "channel_axis": reaches(-1, "as_image_source.channel_axis"),
    "value_range": reaches((-9, 300), "as_image_source.value_range"),
    "layer": reaches("up_blocks.0", "search_cells.layers", expected={"up_blocks.0": (8, 8, 8)}),
    "timestep": reaches(77, "search_cells.timesteps", expected=(77,)),
    "pooling": reaches(3, "search_cells.poolings", expected=(3,)),
    "search": reaches("halving", "search_cells.strategy"),
    "criterion": reaches(silhouette_score, "search_cells.criterion"),
    "max_search_samples": reaches(20, "search_cells.n_images"),
    "search_draws": reaches(3, "search_cells.n_draws"),
    "n_draws": reaches(3, "extract.self.n_draws", search_draws=3),
    "shift": reaches(3, "extract.self.shift"),
    "n_components": reaches(5, "projection_of.n_components"),
    "n_neighbors": reaches(6, "search_cells.n_neighbors", "initialize.n_neighbors"),
    "neighbors_algorithm": reaches("nndescent", "initialize.neighbors_algorithm", "knn_graph.algorithm"),
    "init": reaches("k-means++", "initialize.init"),
    "n_init": reaches(2, "search_cells.n_init", "initialize.n_init"),
    "head": ("direct", {"BackboneEmbedder.head": None}, DUAL),
    "train_backbone": reaches(True, "train.embedder.__class__", expected=BackboneEmbedder, max_epochs=1),
    "alpha": reaches(0.7, "train.config.alpha"),
    "beta": reaches(0.6, "train.config.beta"),
    "gamma": reaches(0.8, "train.config.gamma", "initialize.balance", "search_cells.balance"),
    "denoising_weight": reaches(0.7, "BackboneEmbedder.denoising_weight", **DUAL),
    "nu": reaches(0.9, "train.config.nu", "EmbeddingModel.nu"),
    "hidden_size": reaches(7, "ResidualHead.hidden"),
    "max_epochs": reaches(3, "train.config.max_epochs"),
    "warmup_epochs": reaches(2, "train.config.warmup_epochs"),
    "batch_size": reaches(9, "train.config.batch_size"),
    "learning_rate": reaches(0.01, "train.config.learning_rate"),
    "backbone_learning_rate": reaches(0.02, "train.config.backbone_learning_rate"),
    "tol": reaches(0.5, "train.config.tol"),
    "update_interval": reaches(5, "train.config.update_interval"),
    "n_snapshots": reaches(4, "train.config.n_snapshots"),
    "memory": reaches("memory", "as_memory.memory"),
    "inference_batch_size": reaches(16, "extract.self.batch_size"),
    "precision": reaches("bf16", "extract.self.precision"),
    "device": ("cpu:0", {"default_device.device": "cpu:0", "pretrain.device": torch.device("cpu")}, AUTO),
    "n_jobs": reaches(1, *(f"{name}.n_jobs" for name in ("search_cells", "projection_of", "initialize", "knn_graph"))),
    "random_state": (
        7,
        {
            "pretrain.random_state": SEEDS[0],
            "extract.self.seed": SEEDS[1],
            "search_cells.seed": SEEDS[3],
            "projection_of.seed": SEEDS[4],
            "initialize.seed": SEEDS[4],
            "ResidualHead.seed": SEEDS[5],
            "train.config.seed": SEEDS[5],
        },
        AUTO,
    ),
    "verbose": reaches(True, "_logging.verbose", "pretrain.verbose", **AUTO),
}
"""For each parameter a value that is not the default, where it arrives, as what, and with which other parameters."""


def test_every_parameter_has_a_test_of_its_wiring():
    defaults = DiffusionEmbeddedClustering().get_params()
    assert set(WIRING) == set(defaults)
    same = {name for name, (value, _, _) in WIRING.items() if value == defaults[name]}
    assert same == set()


TOGETHER = [
    (
        *("alpha", "beta", "gamma", "nu", "hidden_size", "max_epochs", "warmup_epochs", "batch_size"),
        *("learning_rate", "backbone_learning_rate", "tol", "update_interval", "n_snapshots", "n_components"),
    ),
    (
        *("layer", "timestep", "pooling", "max_search_samples", "shift", "n_neighbors", "init", "n_init"),
        *("inference_batch_size", "n_jobs"),
    ),
]
"""Parameters whose values are all different, so that one fit tells which of them arrive."""
ALONE = [(name,) for name in WIRING if not any(name in names for names in TOGETHER)]


@pytest.mark.parametrize("names", [*TOGETHER, *ALONE], ids=lambda names: names[0])
def test_parameters_arrive(names, make_model, make_unet, images, calls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)  # no warning of a slow precision
    make_unet(sample_size=8).save_pretrained("denoiser")
    parameters, destinations = {"backbone": "denoiser"}, {}
    for name in names:
        value, arrives, others = WIRING[name]
        parameters |= {**others, name: value}
        destinations |= arrives
    model = make_model(**parameters).fit(images)
    model.score(images)
    for destination, expected in destinations.items():
        collaborator, argument = destination.split(".", 1)
        assert calls[collaborator], f"{collaborator} was not called"
        found = [attrgetter(argument)(call) for call in calls[collaborator]]
        assert found == [expected] * len(found), destination


@pytest.mark.parametrize(
    ("n", "others", "batch_size", "learning_rate"),
    [
        (64, {}, 32, 3e-3),
        (2400, {}, 37, 3e-3),
        (12800, {}, 200, 3e-3 * 200 / 128),
        (33000, {}, 512, 1.2e-2),
        (12800, {"learning_rate": 0.5}, 200, 0.5),
        (64, {"batch_size": 64}, 64, 3e-3),
        (2400, {"train_backbone": True}, 128, 3e-3),
    ],
)
def test_batches_grow_with_the_data_and_the_step_size_with_them(
    n, others, batch_size, learning_rate, make_model, make_unet, images, monkeypatch
):
    def stop(embedder, graph, labels, n_clusters, config, report):
        raise StopIteration(config)

    monkeypatch.setattr(training, "train", stop)
    many = np.resize(images[:, :2, :2], (n, 2, 2))
    cheap = {"n_init": 1, "init": "k-means++", "n_draws": 1, "pooling": 1}
    with pytest.raises(StopIteration) as caught:
        make_model(backbone=make_unet(sample_size=2, add_attention=False), **cheap, **others).fit(many)
    config = caught.value.value
    assert config.batch_size == batch_size
    assert config.learning_rate == pytest.approx(learning_rate)


def test_precision_without_instructions_is_warned_of(make_model, images, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False}, raising=False)
    with pytest.warns(UserWarning, match="precision='bf16' is many times slower than 'fp32' on this cpu") as caught:
        make_model(precision="bf16", head=None).fit(images)
    assert [warning.filename for warning in caught if "precision" in str(warning.message)] == [__file__]


# Wrong moves


def test_nndescent_without_pynndescent_is_told_of_at_once(make_model, images, nothing_begins, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="not installed: pip install pynndescent"):
        make_model(neighbors_algorithm="nndescent").fit(images)


@pytest.fixture
def nothing_begins(monkeypatch):
    """Fails a test in which pretraining, search or training begin."""

    def begin(*args, **kwargs):
        pytest.fail("began with what is wrong")

    for owner, name in ((stages, "pretrain"), (stages, "search_cells"), (training, "train")):
        monkeypatch.setattr(owner, name, begin)


def with_value(value):
    """Images, of which one has a pixel of this value."""

    def change(X):
        X = X.astype(np.float64)
        X[5, 2, 3] = value
        return X

    return change


def flat(X):
    return X.reshape(len(X), -1)


FLOATS = {"value_range": (0, 255)}
WRONG_INPUT = [
    (with_value(np.nan), FLOATS, r"Input X contains NaN"),
    (with_value(np.inf), FLOATS, r"Input X contains infinity"),
    (lambda X: torch.from_numpy(with_value(-np.inf)(X)), FLOATS, r"Input X contains infinity"),
    (lambda X: flat(with_value(np.nan)(X)), {}, r"Input X contains NaN"),
    (lambda X: pd.DataFrame(flat(X)).astype(float).replace(X[0, 0, 0], np.nan), {}, r"Input X contains NaN"),
    (lambda X: X / 255, {}, r"value_range must be stated for images of dtype float64.*values from 0\.\d+ to 0\.9\d*"),
    (lambda X: X.astype(np.int64), {}, r"value_range must be stated for images of dtype int64"),
    (
        lambda X: X,
        {"value_range": (0, 1)},
        r"value_range is \(0, 1\), but X \(dtype uint8\) has values from",
    ),
    (with_value(256), FLOATS, r"value_range is \(0, 255\), but X \(dtype float64\) has values from \d+ to 256"),
    (lambda X: X, {"value_range": (255, 0)}, r"value_range must be two finite numbers, the lower one first"),
    (lambda X: X, {"value_range": ("0", "255x")}, r"value_range must be a pair of numbers"),
    (flat, {"image_shape": (7, 7)}, r"image_shape \(1, 7, 7\).* needs 49 features a row, but X has 64 features"),
    (lambda X: X, {"image_shape": (4, 16)}, r"image_shape \(1, 4, 16\).* does not fit X with images of \(1, 8, 8\)"),
    (flat, {"image_shape": (64,)}, r"image_shape must be \(height, width\) or three numbers"),
    (flat, {"image_shape": ("8", "8")}, r"image_shape must be \(height, width\) or three numbers"),
    (flat, {"image_shape": (4, 4, 4)}, r"image_shape \(4, 4, 4\) does not tell which number is the channels"),
    (lambda X: X.reshape(48, 4, 4, 4), {}, r"both axis 1 and axis -1 could be the channels.*Set channel_axis"),
    (lambda X: X.reshape(6, 8, 8, 8), {}, r"neither axis 1 nor axis -1 could be the channels"),
    (lambda X: X, {"channel_axis": 2}, r"channel_axis must be None, 1 or -1; got 2"),
    (
        lambda X: X.reshape(24, 2, 8, 8),
        {"backbone": "loaded"},
        r"images of 2 channels, which cannot be adapted .*channel_axis says where",
    ),
    (lambda X: X[:1], {"n_clusters": 1}, r"X must hold at least 2 images .* got n_samples=1"),
    (lambda X: X[:1], {}, r"n_samples=1 should be >= n_clusters=3"),
    (lambda X: X[:0], {}, r"Found array with 0 sample\(s\)"),
    (lambda X: X[0, 0], {}, r"Expected 2D array, got 1D array"),
    (lambda X: X, {"n_clusters": 49}, r"n_samples=48 should be >= n_clusters=49"),
    (lambda X: X.astype(str), {}, r"numeric.*strings|strings.*numeric"),
    (lambda X: flat(X).astype(str).tolist(), {}, r"numeric.*strings|strings.*numeric"),
    (lambda X: ["1", "2", "3"], {}, r"X must name image files: there is no file 1"),
    (lambda X: X + 0j, FLOATS, r"Complex data not supported"),
    (lambda X: "no such folder", {}, r"there is no folder no such folder"),
]


@pytest.mark.parametrize(("change", "parameters", "message"), WRONG_INPUT)
def test_wrong_input_is_told_of_before_anything_begins(
    change, parameters, message, make_model, make_unet, images, nothing_begins
):
    backbone = {"backbone": make_unet(sample_size=8)} if parameters.get("backbone") == "loaded" else {}
    with pytest.raises(ValueError, match=message):
        make_model(**{**AUTO, **parameters, **backbone}).fit(change(images))


def test_sparse_input_is_told_of(make_model, images, nothing_begins):
    with pytest.raises(TypeError, match="Sparse data was passed for X, but dense data is required"):
        make_model(**AUTO).fit(sparse.csr_array(flat(images)))


def test_folder_without_images_is_told_of(make_model, tmp_path, nothing_begins):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"X must be a folder with images, but .* has no file with a suffix such as"):
        make_model(**AUTO).fit(tmp_path)


@pytest.mark.parametrize("parameters", [AUTO, {**AUTO, "image_shape": (8, 8)}, {}], ids=str)
@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "truncated"])
def test_unreadable_image_file_is_named(content, parameters, make_model, images, tmp_path, nothing_begins):
    path = files(images, tmp_path)[17]
    path.write_bytes(path.read_bytes()[:-40] if content is None else content)
    with pytest.raises(ValueError, match=r"cannot read the image file .*017\.png"):
        make_model(**parameters).fit(tmp_path)


WRONG_PARAMETERS = [
    ({"layer": "nowhere"}, r"unknown layer 'nowhere': choose one of .*down_blocks\.0, .*mid_block"),
    ({"layer": ["mid_block", "nowhere"]}, r"unknown layer 'nowhere'"),
    ({"layer": "time_embedding"}, r"layer 'time_embedding' yields no map"),
    ({"layer": []}, r"layer must be one or several strings; got \[\]"),
    ({"layer": [3]}, r"layer must be one or several strings; got \[3\]"),
    ({"timestep": 1000}, r"timestep must be from 0 to 400, .*; got 1000"),
    ({"timestep": -1}, r"timestep must be from 0 to 400, .*; got -1"),
    ({"timestep": (50, 1000)}, r"timestep must be from 0 to 400, .*; got 1000"),
    ({"timestep": 50.0}, r"'timestep' parameter .* Got 50\.0"),
    ({"timestep": "50"}, r"'timestep' parameter .* Got '50'"),
    ({"timestep": ["50"]}, r"timestep must be one or several integers; got \['50'\]"),
    ({"timestep": [True]}, r"timestep must be one or several integers; got \[True\]"),
    ({"pooling": 0}, r"'pooling' parameter .* Got 0"),
    ({"pooling": (1, 0)}, r"pooling must be from 1 to the side of a layer's map.*\(8, 8\).*; got \(1, 0\)"),
    ({"pooling": 9}, r"pooling must be from 1 to the side of a layer's map.*\(8, 8\).*; got 9"),
    ({"n_clusters": "10"}, r"'n_clusters' parameter .* must be an int .* Got '10'"),
    ({"n_clusters": 0}, r"'n_clusters' parameter .* Got 0"),
    ({"n_clusters": 3.0}, r"'n_clusters' parameter .* Got 3\.0"),
    ({"learning_rate": "0.1"}, r"'learning_rate' parameter .* Got '0\.1'"),
    ({"learning_rate": 0}, r"'learning_rate' parameter .* Got 0"),
    ({"backbone_learning_rate": 0}, r"'backbone_learning_rate' parameter .* Got 0"),
    ({"alpha": -1}, r"'alpha' parameter .* Got -1"),
    ({"beta": np.nan}, r"'beta' parameter .* Got nan"),
    ({"max_epochs": 0}, r"'max_epochs' parameter .* Got 0"),
    ({"search": "fastest"}, r"'search' parameter .* Got 'fastest'"),
    ({"criterion": "best"}, r"'criterion' parameter .* Got 'best'"),
    ({"head": "linear"}, r"'head' parameter .* Got 'linear'"),
    ({"head": "direct"}, r"head='direct' trains the backbone: it needs train_backbone=True"),
    ({"head": None, "train_backbone": True}, r"train_backbone=True needs a head to train; got head=None"),
    ({"init": "random"}, r"'init' parameter .* Got 'random'"),
    ({"init": np.zeros((2, 32))}, r"init must have n_clusters=3 rows; got shape \(2, 32\)"),
    ({"init": np.zeros((3, 5))}, r"init must have 32 columns, the dimensions of the embedding; got 5"),
    (
        {"init": np.zeros((3, 5)), **GRID},
        r"init must have 8 or 32 columns, the dimensions of the embedding; got 5",
    ),
    ({"init": np.full((3, 32), np.nan)}, r"Input init contains NaN"),
    ({"init": [["a"] * 32] * 3}, r"could not convert string to float"),
    ({"backbone": Pretraining(epochs="3")}, r"epochs must be an int of at least 1; got '3'"),
    ({"backbone": Pretraining(channels=())}, r"channels must be a sequence of at least one int"),
    ({"backbone": Pretraining(precision="fp8")}, r"precision must be 'auto', 'fp32' or 'bf16'; got 'fp8'"),
    ({"backbone": Pretraining}, r"'backbone' parameter .* Got .*Pretraining"),
    ({"backbone": 3}, r"'backbone' parameter .* Got 3"),
    (
        {"backbone": "no such folder"},
        r"backbone must be 'auto', a folder, .*: there is no folder 'no such folder'",
    ),
    ({"memory": 3}, r"'memory' parameter .* Got 3"),
    ({"memory": SimpleNamespace(cache=None)}, r"'memory' parameter .* Got namespace"),
    ({"max_search_samples": 2}, r"max_search_samples must be at least n_clusters=3; got 2"),
    ({"n_jobs": 0}, r"n_jobs must be None, positive or negative, as in scikit-learn; got 0"),
    ({"random_state": "seed"}, r"'random_state' parameter .* Got 'seed'"),
]


@pytest.mark.parametrize(("parameters", "message"), WRONG_PARAMETERS, ids=lambda value: str(value)[:40])
def test_wrong_parameters_are_told_of_before_anything_begins(parameters, message, make_model, images, nothing_begins):
    with pytest.raises(ValueError, match=message):
        make_model(**{**AUTO, **parameters}).fit(images)


@pytest.mark.parametrize("timestep", [50, -1, (10, 50)])
def test_timestep_past_the_schedule_of_a_loaded_backbone_is_told_of(
    timestep, make_model, make_unet, images, nothing_begins
):
    pipeline = diffusers.DDPMPipeline(make_unet(sample_size=8), diffusers.DDPMScheduler(num_train_timesteps=50))
    with pytest.raises(ValueError, match=r"timestep must be from 0 to 49, the last that the backbone was trained on"):
        make_model(backbone=pipeline, timestep=timestep).fit(images)


def test_model_of_another_kind_is_told_of(make_model, images, nothing_begins):
    with pytest.raises(TypeError, match=r"backbone must be 'auto', .* got Linear"):
        make_model(backbone=torch.nn.Linear(2, 2)).fit(images)


def test_pickled_and_truncated_checkpoints_are_told_of(make_model, make_unet, images, tmp_path, nothing_begins):
    unet = make_unet(sample_size=8)
    pickled = tmp_path / "denoiser.pt"
    torch.save(unet.state_dict(), pickled)
    unet.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    for backbone in (pickled, tmp_path / "pickled"):
        with pytest.raises(ValueError, match=r"is in pickle format, .*safe_serialization=True"):
            make_model(backbone=backbone).fit(images)
    unet.save_pretrained(tmp_path / "truncated")
    weight_file = tmp_path / "truncated" / "diffusion_pytorch_model.safetensors"
    weight_file.write_bytes(weight_file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"backbone file .*truncated.* has damaged or truncated weights"):
        make_model(backbone=tmp_path / "truncated").fit(images)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "transform", "score"])
def test_results_before_fit_are_told_of(method, make_model, images):
    with pytest.raises(NotFittedError, match="This DiffusionEmbeddedClustering instance is not fitted yet"):
        getattr(make_model(), method)(images)


def test_results_after_a_fit_that_failed_are_told_of(make_model, images, monkeypatch):
    model = make_model()
    monkeypatch.setattr(stages, "search_cells", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.fit(flat(images))
    with pytest.raises(NotFittedError, match="This DiffusionEmbeddedClustering instance is not fitted yet"):
        model.predict(flat(images))


@pytest.fixture(scope="module")
def fitted_on_rows(make_model, planted):
    rows = flat(planted()[0])
    return make_model(image_shape=(8, 8)).fit(rows), make_model().fit(rows)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "transform", "score"])
def test_other_images_than_those_of_fit_are_told_of(method, fitted, fitted_on_rows, images, tmp_path):
    on_images, (on_rows, on_table) = fitted, fitted_on_rows
    for model, X, message in (
        (on_images, images[:, :6], r"X has images of shape \(1, 6, 8\) .* fitted on \(1, 8, 8\)"),
        (on_images, images[:, None].repeat(3, axis=1), r"X has images of shape \(3, 8, 8\) .* fitted on \(1, 8, 8\)"),
        (on_images, flat(images), r"X has 2 dimensions, but the estimator was fitted on images"),
        (on_images, flat(images)[:, 1:], r"X has 63 features, but DiffusionEmbeddedClustering is expecting 64"),
        (on_rows, flat(images)[:, 1:], r"X has 63 features, but DiffusionEmbeddedClustering is expecting 64"),
        (on_table, flat(images)[:, 1:], r"X has 63 features, but DiffusionEmbeddedClustering is expecting 64"),
        (on_images, with_value(np.nan)(images), r"Input X contains NaN"),
        (on_images, with_value(300)(images), r"value_range must be stated for this X \(dtype float64, .* to 300\)"),
        (on_images, tmp_path, r"X must be a folder with images"),
    ):
        with pytest.raises(ValueError, match=message):
            getattr(model, method)(X)
