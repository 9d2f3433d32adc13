import copy
import functools
import inspect
import logging
from collections import Counter, defaultdict
from operator import attrgetter
from pathlib import Path
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
from scipy.spatial.distance import cdist
from sklearn.exceptions import NotFittedError
from sklearn.metrics import adjusted_rand_score, silhouette_score

from skdiec import DiffusionEmbeddedClustering, _estimator
from skdiec.activations import Cell
from skdiec.backbones import PixelBackbone, load_backbone, pretraining
from skdiec.features import FeatureExtractor
from skdiec.search import SearchResult
from skdiec.training import BackboneEmbedder

AUTO = {"backbone": "auto", "pretrain_params": {"epochs": 2, "channels": (8,), "precision": "fp32"}}
GRID = {"layer": ["mid_block", "conv_in"], "timestep": (300, 50, 20), "pooling": (2, 1)}
FIXED_STEPS = {"tol": 0.0, "max_epochs": 3, "warmup_epochs": 3}
"""An end that no image's change of cluster decides."""


@pytest.fixture
def images(planted):
    return planted()[0]


@pytest.fixture
def labels(planted):
    return planted()[1]


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
    lay_out, parameters, make_model, images, labels, tmp_path
):
    expected = make_model().fit(images)
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
    X, labels = planted((3, 8, 3))
    model = make_model(channel_axis=axis, pooling=1).fit(X)
    assert model.image_shape_ == shape


def test_value_range_does_not_change_the_clusters_of_scaled_images(make_model, images):
    expected = make_model().fit(images)
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
    assert_array_equal(model.labels_, cdist(model.embedding_, model.cluster_centers_).argmin(axis=1))
    assert isinstance(model.backbone_, PixelBackbone)
    assert (model.image_shape_, model.value_range_, model.n_features_in_) == ((1, 8, 8), (0, 255), 64)
    assert not hasattr(model, "feature_names_in_")


def test_attributes_of_the_search(make_model, make_unet, images):
    backbone = make_unet(sample_size=8, block_out_channels=(8, 8))
    model = make_model(backbone=backbone, **{**GRID, "layer": ["up_blocks.1", "mid_block"], "pooling": (4, 8, 2)})
    model.fit(images)
    result = model.search_result_
    assert isinstance(result, SearchResult)
    assert result.best == Cell(model.layer_, model.timestep_, model.pooling_)
    assert model.layers_ == result.layers == ("mid_block", "up_blocks.1")  # as they are executed
    assert model.timesteps_ == result.timesteps == (300, 50, 20)
    assert result.poolings == (4, 8, 2)
    depth = result.poolings.index(model.pooling_)
    assert_array_equal(model.scott_scores_, result.scores["scott"][:, :, depth])
    assert (model.scott_scores_.dtype, model.scott_scores_.shape) == (np.float64, (2, 3))
    assert_array_equal(np.isnan(result.scores["scott"][0, 0]), [False, True, False])  # the middle's map is 4 x 4
    assert (result.criterion, result.n_images, result.n_forward) == ("relative_cut", 48, 3 * 48)


def test_scott_scores_are_nan_where_a_map_is_smaller_than_the_chosen_pooling(make_model, make_unet, images):
    backbone = make_unet(sample_size=8, block_out_channels=(8, 8))
    model = make_model(backbone=backbone, layer=["up_blocks.1", "mid_block"], timestep=(20, 50), pooling=8).fit(images)
    assert_array_equal(np.isnan(model.scott_scores_), [[True, True], [False, False]])
    assert model.layer_ == "up_blocks.1"


def test_history_tells_of_every_epoch_and_of_the_start(make_model, images):
    model = make_model(max_epochs=4, warmup_epochs=4).fit(images)
    assert model.n_iter_ == 4
    names = {"loss", "kl", "graph", "entropy", "denoising", "cut", "changed", "cluster_sizes"}
    assert set(model.history_) == names
    assert {len(values) for values in model.history_.values()} == {5}
    assert_array_equal(model.history_["cluster_sizes"], np.full((5, 3), 16))
    assert_array_equal(model.history_["changed"], np.zeros(5))
    assert np.isnan(model.history_["denoising"]).all()  # the backbone is frozen
    assert np.isfinite(model.history_["loss"][1:]).all()
    assert model.history_["kl"][4] < model.history_["kl"][1]


def test_probabilities_are_those_of_the_student_t_kernel(make_model, images):
    model = make_model(nu=3.0).fit(images)
    q = model.predict_proba(images)
    assert_allclose(q, soft_assign(model.embedding_, model.cluster_centers_, 3.0), rtol=1e-5)
    assert_allclose(q.sum(axis=1), 1, rtol=1e-12)
    assert_array_equal(q.argmax(axis=1), model.predict(images))
    assert (q.dtype, q.shape) == (np.float64, (48, 3))


def test_results_on_the_training_images_are_those_of_fit(make_model, images):
    model = make_model().fit(images)
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


def test_results_do_not_depend_on_the_rows_beside_or_on_the_batch(make_model, images):
    order = np.random.default_rng(0).permutation(len(images))
    expected = make_model().fit(images)
    for batch_size in (1, 5, 13, 1000):
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
    state = np.random.RandomState(0)  # noqa: NPY002
    expected = make_model(random_state=0).fit(images)
    first, second = (make_model(random_state=state).fit(images) for _ in range(2))
    assert_array_equal(first.embedding_, expected.embedding_)
    assert not np.array_equal(second.embedding_, expected.embedding_)


def test_processes_give_what_one_gives(make_model, images):
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
def test_images_model_and_parameters_of_the_caller_are_left_alone(
    wrap, train_backbone, make_model, make_unet, images
):
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


def test_backbone_folder_holds_a_pipeline_that_a_second_fit_uses(make_model, images, tmp_path, monkeypatch):
    expected = make_model(**AUTO, backbone_folder=tmp_path / "deep" / "folder").fit(images)
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path / "deep" / "folder")
    assert equal(weights(pipeline.unet), weights(expected.backbone_.network))
    monkeypatch.setattr(pretraining._Training, "run", lambda *_, **__: pytest.fail("trained again"))
    model = make_model(**AUTO, backbone_folder=tmp_path / "deep" / "folder", head=None).fit(images)
    assert equal(weights(model.backbone_.network), weights(expected.backbone_.network))
    assert_array_equal(model.initial_labels_, expected.initial_labels_)


# Memory


@pytest.fixture
def work(monkeypatch):
    """Counts what is worth caching: trainings of a backbone, searches, passes over images and starts."""
    counts = Counter()

    def count(name, owner, attribute):
        function = getattr(owner, attribute)

        @functools.wraps(function)
        def counted(*args, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, attribute, counted)

    count("pretraining", pretraining._Training, "run")
    count("search", _estimator, "grid_search")
    count("passes", FeatureExtractor, "_extract")
    count("start", _estimator, "best_partition")
    return counts


def cached(make_model, images, memory, **parameters):
    return make_model(**{**AUTO, **GRID, "memory": memory, "max_epochs": 12, **parameters}).fit(images)


ALL = {"pretraining": 1, "search": 1, "passes": 5, "start": 1}  # three timesteps, the chosen cell, the embedding
EMBEDDING_ONLY = {"passes": 1}


@pytest.mark.parametrize("as_memory", [str, lambda path: joblib.Memory(path, verbose=0)], ids=["str", "Memory"])
def test_memory_keeps_pretraining_search_features_and_start(as_memory, make_model, images, work, tmp_path):
    expected = cached(make_model, images, None)
    first = cached(make_model, images, as_memory(tmp_path))
    assert work == {name: 2 * count for name, count in ALL.items()}
    work.clear()
    second = cached(make_model, images, as_memory(tmp_path))
    assert work == EMBEDDING_ONLY
    for model in (first, second):
        assert_array_equal(model.embedding_, expected.embedding_)
        assert_array_equal(model.labels_, expected.labels_)
        assert_array_equal(model.scott_scores_, expected.scott_scores_)


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ({"alpha": 2.0}, {}),
        ({"beta": 0.0}, {}),
        ({"nu": 2.0}, {}),
        ({"head": None}, {}),
        ({"hidden_size": 8}, {}),
        ({"learning_rate": 1e-4}, {}),
        ({"batch_size": 20}, {}),
        ({"max_epochs": 2}, {}),
        ({"inference_batch_size": 8}, {}),
        ({"n_jobs": 1}, {}),
        ({"init": "k-means++"}, {}),
        ({"n_init": 4}, {"start": 1}),
        ({"n_components": 3}, {"start": 1}),
        ({"n_neighbors": 5}, {"search": 1, "start": 1, "passes": 3}),
        ({"n_clusters": 4}, {"search": 1, "start": 1, "passes": 3}),
        ({"criterion": "scott"}, {"search": 1, "passes": 3}),
    ],
    ids=str,
)
def test_memory_is_used_as_far_as_it_applies(change, redone, make_model, images, work, tmp_path):
    cached(make_model, images, str(tmp_path), layer="mid_block", pooling=2)
    work.clear()
    fresh = cached(make_model, images, None, layer="mid_block", pooling=2, **change)
    work.clear()
    model = cached(make_model, images, str(tmp_path), layer="mid_block", pooling=2, **change)
    cell_changed = model.search_result_.best.timestep  # the features of another cell are no part of the cache
    assert cell_changed
    assert work["pretraining"] == 0
    assert {name: count for name, count in work.items() if name != "passes"} == {
        name: count for name, count in redone.items() if name != "passes"
    }
    assert_array_equal(model.embedding_, fresh.embedding_)


@pytest.mark.parametrize("change", [{"random_state": 1}, {"X": 255}], ids=str)
def test_memory_tells_other_seeds_and_images_apart(change, make_model, images, work, tmp_path):
    cached(make_model, images, str(tmp_path))
    work.clear()
    other = change.pop("X", 0) - images if "X" in change else images
    model = cached(make_model, other, str(tmp_path), **change)
    assert work == ALL
    assert_array_equal(model.embedding_, cached(make_model, other, None, **change).embedding_)


def test_memory_keeps_what_a_loaded_backbone_yields(make_model, make_unet, images, work, tmp_path):
    parameters = {**GRID, "memory": str(tmp_path)}
    for seed, expected in ((0, {"search": 1, "passes": 5, "start": 1}), (0, EMBEDDING_ONLY)):
        work.clear()
        make_model(backbone=make_unet(seed, sample_size=8), **parameters).fit(images)
        assert work == expected
    work.clear()
    make_model(backbone=make_unet(1, sample_size=8), **parameters).fit(images)
    assert work == {"search": 1, "passes": 5, "start": 1}


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


def test_direct_fine_tuning_embeds_by_the_trained_backbone_alone(make_model, make_unet, images, labels):
    unet = make_unet(sample_size=8)
    model = make_model(backbone=unet, head="direct", train_backbone=True, **FIXED_STEPS).fit(images)
    assert same_partition(model.labels_, labels)
    assert not equal(weights(model.backbone_.network), weights(unet))
    assert np.isfinite(model.history_["denoising"]).all()
    assert_array_equal(model.transform(images), model.embedding_)
    # With the trained weights as the frozen ones and the same projection, nothing is left to the head.
    frozen = make_model(backbone=model.backbone_, head=None).fit(images)
    distances = cdist(model.embedding_, model.embedding_)
    assert_allclose(distances / distances.max(), cdist(frozen.embedding_, frozen.embedding_) / distances.max(), atol=0.5)


def test_no_head_trains_nothing(make_model, images, labels, monkeypatch):
    model = make_model(head=None, init="k-means++").fit(images)
    assert same_partition(model.labels_, labels)
    assert model.n_iter_ == 0
    assert {len(values) for values in model.history_.values()} == {1}
    assert_array_equal(model.initial_labels_, model.labels_)
    means = [model.embedding_[model.initial_labels_ == cluster].mean(axis=0) for cluster in range(3)]
    assert_allclose(model.cluster_centers_, means, atol=1e-5)
    assert_array_equal(model.transform(images), model.embedding_)


def test_embedding_without_a_head_is_the_scaled_pca_of_the_features(make_model, make_unet, images):
    model = make_model(head=None, n_components=64).fit(images)
    extractor = FeatureExtractor(
        load_backbone(make_unet(sample_size=8)), n_draws=2, seed=np.random.RandomState(0).randint(2**31 - 1, size=2)[1]  # noqa: NPY002
    )
    features = extractor.extract(model_source(images), [Cell("mid_block", 50, 2)])[Cell("mid_block", 50, 2)]
    centered = features - features.mean(axis=0)
    expected = cdist(centered, centered) * 4 / np.sqrt((centered**2).sum() / 47)
    assert_allclose(cdist(model.embedding_, model.embedding_), expected, rtol=1e-3, atol=1e-3)
