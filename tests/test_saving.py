"""Saved models: what comes back, what a kill leaves, what is refused, and what goes to the Hub."""

import dataclasses
import json
import os
import pickle
import re
import shutil
import stat
import struct
import threading
import warnings
from fractions import Fraction
from pathlib import Path, PurePosixPath

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image
from safetensors.numpy import load_file, save_file
from sklearn.base import BaseEstimator
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.metrics import silhouette_score

import skdiec
from skdiec import DiffusionEmbeddedClustering, Pretraining, saving
from skdiec.backbones import folders
from skdiec.state import values

DATA = Path(__file__).parent / "data"
LEFT_OUT = "these parameters are not saved"


@pytest.fixture
def images(planted):
    return planted()[0]


@pytest.fixture(scope="module")
def backbone_folder(make_unet, tmp_path_factory):
    from diffusers import DDPMPipeline, DDPMScheduler

    folder = tmp_path_factory.mktemp("backbone")
    DDPMPipeline(make_unet(sample_size=8), DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def make(make_model, backbone_folder):
    """Makes small estimators all of whose parameters a file can hold."""
    return lambda **parameters: make_model(**{"backbone": str(backbone_folder), "hidden_size": 8, **parameters})


@pytest.fixture(scope="module")
def model(make, planted):
    return make(max_epochs=2).fit(planted()[0])


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the saved model, for a test to do with what it likes."""
    return shutil.copytree(saved, tmp_path / "model")


def assert_same(found, expected):
    """Equal, of the same type and dtype, down to what containers and records hold."""
    assert type(found) is type(expected)
    if isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        assert_array_equal(found, expected)
    elif dataclasses.is_dataclass(expected):
        for field in dataclasses.fields(expected):
            assert_same(getattr(found, field.name), getattr(expected, field.name))
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for name in expected:
            assert_same(found[name], expected[name])
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, Pretraining):
        assert_same(found.get_params(), expected.get_params())
    elif isinstance(expected, float) and np.isnan(expected):
        assert np.isnan(found)
    else:
        assert found == expected


def assert_is_copy(found, expected, X):
    assert set(vars(found)) == set(vars(expected))
    attributes = [name for name in vars(expected) if name.endswith("_") and name != "backbone_"]
    for name in [*attributes, "_format", "_cell", "_n_features_out"]:
        assert_same(getattr(found, name), getattr(expected, name))
    assert found.backbone_.fingerprint() == expected.backbone_.fingerprint()
    assert found.backbone_.recipe == expected.backbone_.recipe
    for name in ("predict", "predict_proba", "transform"):
        assert_same(np.asarray(getattr(found, name)(X)), np.asarray(getattr(expected, name)(X)))
    assert found.score(X) == expected.score(X)
    for n_clusters in range(1, len(expected.linkage_) + 2):
        assert_same(found.labels_at(n_clusters), expected.labels_at(n_clusters))


def siblings(folder):
    return sorted(path.name for path in folder.parent.iterdir())


# What comes back


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"backbone": Pretraining(epochs=1, channels=(8,)), "n_snapshots": 3},
        {"train_backbone": True, "max_epochs": 1},
        {"train_backbone": True, "max_epochs": 1, "head": "direct"},
        {"head": None},
        {"n_clusters": 1},
        {"init": "k-means++"},  # stability_ is NaN
        {"layer": None, "timestep": [10, 50, 100], "pooling": (1, 8), "search": "halving"},
        {"pooling": (1, 2), "max_search_samples": 10},  # with a final stage
        {"criterion": "normalized_cut", "search_draws": 2, "n_draws": 2, "shift": 1, "nu": 2.5},
    ],
    ids=str,
)
def test_loaded_model_is_the_saved_one(parameters, make, images, tmp_path, rng_untouched):
    model = make(**parameters).fit(images)
    with rng_untouched():
        model.save(tmp_path / "model")
        loaded = skdiec.load(tmp_path / "model")
    assert_is_copy(loaded, model, images[::-1])
    assert_same(loaded.get_params(), model.get_params())
    assert loaded.cluster_centers_ is loaded._model.centers
    assert loaded.backbone_ is loaded._extractors[-1].backbone
    assert_array_equal(loaded.fit(images).embedding_, model.embedding_)


def test_trained_backbone_and_the_frozen_one_both_come_back(make, images, tmp_path):
    model = make(train_backbone=True, max_epochs=1, backbone_learning_rate=0.01).fit(images)
    model.save(tmp_path / "model")
    loaded = skdiec.load(str(tmp_path / "model"))
    found, expected = ([extractor.backbone.fingerprint() for extractor in m._extractors] for m in (loaded, model))
    assert found == expected
    assert found[0] != found[1]
    from_folder = [skdiec.load_backbone(tmp_path / "model" / name) for name in ("frozen_backbone", "backbone")]
    assert [backbone.fingerprint() for backbone in from_folder] == expected


def test_table_keeps_its_names_and_its_output(make, images, tmp_path):
    table = pd.DataFrame(images.reshape(len(images), -1)).add_prefix("pixel ☃")
    model = make().set_output(transform="pandas").fit(table)
    model.save(tmp_path / "model")
    loaded = skdiec.load(tmp_path / "model")
    assert_is_copy(loaded, model, table)
    pd.testing.assert_frame_equal(loaded.transform(table), model.transform(table))
    assert list(loaded.get_feature_names_out()) == list(model.get_feature_names_out())
    with pytest.raises(ValueError, match="feature names"):
        loaded.predict(table.add_prefix("other "))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.set_output(transform="nonsense"), "transform_output must be None or .*; got 'nonsense'"),
        (lambda model: setattr(model, "labels_", model.labels_ + 7), "labels_"),
        (lambda model: setattr(model, "labels_", model.labels_.astype(np.int64)), "'labels_' must be I32"),
    ],
    ids=["output", "clusters", "type"],
)
def test_what_could_not_be_loaded_replaces_nothing(change, message, model, images, folder):
    changed = pickle.loads(pickle.dumps(model))
    change(changed)
    with pytest.raises(ValueError, match=rf"the model has fitted .* that could not be loaded: .*{message}"):
        changed.save(folder, overwrite=True)
    assert_is_copy(skdiec.load(folder), model, images)
    assert siblings(folder) == [folder.name]


def test_files_keep_their_paths(make, images, tmp_path):
    paths = [tmp_path / "images" / f"ä {number}.png" for number in range(len(images))]
    paths[0].parent.mkdir()
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    paths[0] = paths[0].rename(os.fsdecode(os.fsencode(tmp_path / "images") + b"/ no text \xff.png"))
    model = make().fit(tmp_path / "images")
    model.save(tmp_path / "model")
    loaded = skdiec.load(tmp_path / "model")
    assert_is_copy(loaded, model, paths)
    assert set(loaded.files_) == set(paths)


def test_layout_of_arrays_is_kept(model, images, tmp_path):
    # Matrix products of other strides may differ in the last bits.
    model = pickle.loads(pickle.dumps(model))
    projection = model._model.projection
    projection.components = projection.components.T.contiguous().T
    model.save(tmp_path / "model")
    loaded = skdiec.load(tmp_path / "model")
    assert (
        loaded._model.projection.components.stride()
        == projection.components.stride()
        == (1, len(projection.components))
    )
    assert_array_equal(loaded.transform(images), model.transform(images))


def test_values_that_are_not_finite_come_back_bit_by_bit(model, tmp_path):
    model = pickle.loads(pickle.dumps(model))
    odd = np.array([0x7FF8000000000001, 0xFFF0000000000000, 0x7FF0000000000000], dtype=np.uint64)  # NaN, -inf, inf
    model.history_["loss"][:] = odd.view(np.float64)
    model.share_explained_ = {50: np.nan, 60: -np.inf, 70: np.inf}
    model.stability_ = np.nan
    model.warnings_ = ["one", "two"]
    model.save(tmp_path / "model")
    loaded = skdiec.load(tmp_path / "model")
    assert loaded.warnings_ == ["one", "two"]
    assert_array_equal(loaded.history_["loss"].view(np.uint64), odd)
    assert_same(loaded.share_explained_, model.share_explained_)
    assert np.isnan(loaded.stability_)
    json.loads((tmp_path / "model/model.json").read_text(), parse_constant=pytest.fail)  # no NaN in it


def test_models_that_are_loaded_in_inference_mode_can_be_trained(folder, images, model):
    with torch.inference_mode():
        loaded = skdiec.load(folder)
    assert not any(tensor.is_inference() for tensor in loaded.backbone_.network.parameters())
    assert_array_equal(loaded.set_params(backbone=loaded.backbone_).fit(images).embedding_, model.embedding_)


def test_loaded_arrays_can_be_written_to(folder):
    loaded = skdiec.load(folder)
    for name, value in vars(loaded).items():
        if isinstance(value, np.ndarray):
            assert value.flags.writeable, name


def test_models_are_still_pickled(folder, images, tmp_path):
    loaded = skdiec.load(folder)
    joblib.dump(loaded, tmp_path / "model.joblib")
    for copied in (pickle.loads(pickle.dumps(loaded)), joblib.load(tmp_path / "model.joblib")):
        assert_is_copy(copied, loaded, images)


def test_model_can_be_saved_again(folder, tmp_path):
    skdiec.load(folder).save(tmp_path / "again")
    for name in ("model.json", "model.safetensors", "backbone/unet/diffusion_pytorch_model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


# Parameters


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("n_clusters", np.int64(3), 3),
        ("alpha", np.float32(0.5), 0.5),
        ("alpha", Fraction(1, 4), 0.25),
        ("train_backbone", np.False_, False),
        ("timestep", (50, 100), (50, 100)),
        ("timestep", [50, 100], [50, 100]),
        ("timestep", [np.int32(50)], [50]),
        ("timestep", np.array([50, 100]), np.array([50, 100])),
        ("timestep", torch.tensor([50, 100]), np.array([50, 100])),
        ("layer", np.array(["mid_block"]), ["mid_block"]),
        ("layer", ("mid_block", "down_blocks.0"), ("mid_block", "down_blocks.0")),
        ("value_range", (0, 255.0), (0, 255.0)),
        ("backbone", PurePosixPath("some/where"), "some/where"),
        ("device", torch.device("cpu"), "cpu"),
        ("random_state", 2**32 - 1, None),
        ("n_neighbors", 10**40, None),
        ("init", np.arange(6.0).reshape(3, 2).astype(">f4"), np.arange(6, dtype=np.float32).reshape(3, 2)),
        ("init", np.arange(6.0).reshape(2, 3).T, np.arange(6.0).reshape(2, 3).T),
        ("init", pd.Series([0, 1, 2]), np.array([0, 1, 2])),
        ("init", [[0.5, 1.0]] * 3, None),
        ("verbose", 2, None),
    ],
    ids=lambda value: re.sub(r"\W+", " ", str(value))[:30],
)
def test_parameters_come_back(name, value, expected, model, tmp_path):
    model = pickle.loads(pickle.dumps(model)).set_params(**{name: value})
    model.save(tmp_path / "model")
    assert_same(skdiec.load(tmp_path / "model").get_params()[name], value if expected is None else expected)


def test_parameters_that_a_file_cannot_hold_are_told_of_once(model, make_unet, images, tmp_path):
    model = pickle.loads(pickle.dumps(model)).set_params(
        backbone=make_unet(),
        criterion=silhouette_score,
        memory=joblib.Memory(tmp_path / "cache"),
        random_state=np.random.RandomState(0),
    )
    message = (
        LEFT_OUT + r", and a loaded model has their defaults: backbone \(UNet2DModel\), criterion \(function\), memory "
        r"\(Memory\), random_state \(RandomState\)\. What was learned"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        model.save(tmp_path / "model")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    loaded, defaults = skdiec.load(tmp_path / "model"), DiffusionEmbeddedClustering().get_params()
    for name in ("backbone", "criterion", "memory", "random_state"):
        assert_same(loaded.get_params()[name], defaults[name])
    assert_array_equal(loaded.transform(images), model.transform(images))


def test_pretraining_comes_back_without_its_folder(model, images, tmp_path):
    pretraining = Pretraining(tmp_path / "kept", epochs=3, channels=(8, 16), learning_rate=1e-3)
    model = pickle.loads(pickle.dumps(model)).set_params(backbone=pretraining)
    with pytest.warns(UserWarning, match=LEFT_OUT + r".*backbone__folder \(PosixPath\)"):
        model.save(tmp_path / "model")
    loaded = skdiec.load(tmp_path / "model").backbone
    assert loaded.get_params() == {**pretraining.get_params(), "folder": None}
    path = tmp_path / "model" / "model.json"
    values = json.loads(path.read_text())
    values["parameters"]["backbone"]["object"]["parameters"]["folder"] = "/somewhere"
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"parameters.backbone must not have 'folder'; got '/somewhere'"):
        skdiec.load(tmp_path / "model")


def test_cache_of_pickles_is_neither_saved_nor_loaded(model, folder, tmp_path):
    model = pickle.loads(pickle.dumps(model)).set_params(memory=str(tmp_path / "cache"))
    with pytest.warns(UserWarning, match=LEFT_OUT + r".*memory \(str\)"):
        model.save(tmp_path / "other")
    assert skdiec.load(tmp_path / "other").memory is None
    change(folder, lambda record: record["parameters"].update(memory="/somebody/else"))
    with pytest.raises(ValueError, match=r"model\.json: parameters must not have 'memory'; got '/somebody/else'"):
        skdiec.load(folder)


class Recipe(BaseEstimator):
    """A parameter with parameters, which may stand where a backbone does."""

    def __init__(self, epochs=1, channels=(8,), precision=None):
        self.epochs = epochs
        self.channels = channels
        self.precision = precision

    def save_pretrained(self):
        """Make scikit-learn's check of the parameter pass."""


def test_parameters_with_parameters_are_known_by_their_class(model, tmp_path, monkeypatch):
    model = pickle.loads(pickle.dumps(model)).set_params(backbone=Recipe(epochs=5, channels=(8, 16)))
    with pytest.warns(UserWarning, match=LEFT_OUT + r".*: backbone \(Recipe\)\."):
        model.save(tmp_path / "unknown")
    monkeypatch.setitem(values.PARAMETER_CLASSES, "Recipe", Recipe)
    model.save(tmp_path / "model")
    found = skdiec.load(tmp_path / "model").backbone
    assert type(found) is Recipe
    assert_same(found.get_params(), {"channels": (8, 16), "epochs": 5, "precision": None})

    change(tmp_path / "model", lambda r: r["parameters"]["backbone"]["object"]["parameters"].update(depth=3))
    with pytest.raises(ValueError, match=r"model\.json: parameters\.backbone is no Recipe: .*'depth'"):
        skdiec.load(tmp_path / "model")
    monkeypatch.delitem(values.PARAMETER_CLASSES, "Recipe")
    with pytest.raises(ValueError, match=r"parameters\.backbone is of a class that is not loaded: 'Recipe'"):
        skdiec.load(tmp_path / "model")


# References


def test_backbone_can_be_referred_to(make, images, backbone_folder, tmp_path):
    mine = shutil.copytree(backbone_folder, tmp_path / "mine")
    model = make(backbone=mine).fit(images)
    model.save(tmp_path / "model", backbone="reference")
    assert siblings(tmp_path / "model/model.json") == ["README.md", "model.json", "model.safetensors"]
    assert str(mine) in (tmp_path / "model/README.md").read_text()
    assert_is_copy(skdiec.load(tmp_path / "model"), model, images)

    weights = load_file(mine / "unet/diffusion_pytorch_model.safetensors")
    weights["conv_in.bias"][0] += 1e-3
    save_file(weights, mine / "unet/diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match=r"model\.json: its backbone is a reference to .*mine', which has other"):
        skdiec.load(tmp_path / "model")
    with pytest.raises(ValueError, match=r"backbone='reference': .*mine' has other weights now than when fit"):
        model.save(tmp_path / "model", backbone="reference", overwrite=True)
    shutil.rmtree(mine)
    with pytest.raises(ValueError, match=r"model\.json: its backbone is a reference, which cannot .*no folder"):
        skdiec.load(tmp_path / "model")


def test_reference_notices_another_noise_schedule(model, backbone_folder, make_backbone):
    from diffusers import DDPMScheduler

    backbone = skdiec.load_backbone(backbone_folder)
    assert saving.weights_hash(backbone) == saving.weights_hash(model.backbone_)
    backbone.scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    assert saving.weights_hash(backbone) != saving.weights_hash(model.backbone_)


def test_what_cannot_be_referred_to_is_told_of(make, model, images, make_unet, tmp_path):
    trained = make(train_backbone=True, max_epochs=1).fit(images)
    auto, loaded = (pickle.loads(pickle.dumps(model)).set_params(backbone=other) for other in ("auto", make_unet()))
    for one, message in [
        (auto, "backbone='reference' needs a model whose parameter backbone is a path or a Hub id; its is 'auto'"),
        (loaded, "backbone='reference' needs a model whose parameter backbone is a path or a Hub id"),
        (trained, "but fit has trained it"),
    ]:
        with pytest.raises(ValueError, match=message):
            one.save(tmp_path / "model", backbone="reference")
    with pytest.raises(ValueError, match="backbone must be 'copy' or 'reference'; got 'link'"):
        model.save(tmp_path / "model", backbone="link")
    assert siblings(tmp_path / "model") == []


# Folders


def test_unfitted_models_and_those_of_others_are_not_saved(make, model, tmp_path):
    with pytest.raises(NotFittedError):
        make().save(tmp_path / "model")
    with pytest.raises(NotFittedError):
        make().push_to_hub("some/one")

    class Mine(DiffusionEmbeddedClustering):
        pass

    mine = pickle.loads(pickle.dumps(model))
    mine.__class__ = Mine
    with pytest.raises(TypeError, match="save writes models of skdiec's own classes; Mine would not"):
        mine.save(tmp_path / "model")
    with pytest.raises(ValueError, match="'alpha' parameter"):
        pickle.loads(pickle.dumps(model)).set_params(alpha=-1).save(tmp_path / "model")
    assert siblings(tmp_path / "model") == []


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        (None, "folder must be a path; got None"),
        ("", "folder must be a path; got ''"),
        (10**5000, "folder must be a path; got a int"),
        ("a\0b", "cannot be used"),
    ],
    ids=["None", "empty", "int", "null"],
)
def test_what_is_no_path_is_told_of(folder, message, model):
    with pytest.raises(ValueError, match=message):
        model.save(folder)


@pytest.mark.parametrize("overwrite", ["no", 1, None])
def test_models_are_replaced_where_that_is_said_clearly(overwrite, model, folder):
    before = (folder / "model.json").read_bytes()
    with pytest.raises(ValueError, match="overwrite must be True or False; got"):
        model.save(folder, overwrite=overwrite)
    assert (folder / "model.json").read_bytes() == before


def test_only_saved_models_are_replaced(model, make, images, folder, tmp_path):
    with pytest.raises(ValueError, match=r"folder .*model has a saved model already: overwrite=True replaces it"):
        model.save(folder)
    other = make(n_clusters=2).fit(images)
    other.save(folder, overwrite=True)
    assert_is_copy(skdiec.load(folder), other, images)

    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"a saved model with nothing beside it: .*model has notes\.txt"):
        model.save(folder, overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"
    assert len(skdiec.load(folder).cluster_centers_) == 2

    (folder / "notes.txt").unlink()
    for place in ("backbone/notes.txt", "backbone/unet/mine/notes.txt"):
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text("mine")
        with pytest.raises(ValueError, match=r"a saved model with nothing beside it: .*model has backbone/"):
            model.save(folder, overwrite=True)
        assert (folder / place).read_text() == "mine"
        (folder / place).unlink()
    (folder / "backbone/unet/mine").rmdir()
    model.save(folder, overwrite=True)

    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/model.json").write_text('{"format": 3}')
    with pytest.raises(ValueError, match=r"foreign has no model\.json of a model"):
        model.save(tmp_path / "foreign", overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file"):
        model.save(tmp_path / "file", overwrite=True)


def test_empty_folders_links_and_missing_parents_are_written_to(model, images, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    model.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    model.save(tmp_path / "new/deep")
    for name in ("empty", "new/deep"):
        assert_array_equal(skdiec.load(tmp_path / name).predict(images), model.predict(images))
    assert siblings(tmp_path / "empty") == ["empty", "link", "new"]


def test_odd_names_are_names_too(model, images, tmp_path):
    folder = tmp_path / ".☃ `*[1]'\n(a|b)"
    model.save(folder)
    model.save(folder, overwrite=True)
    assert_array_equal(skdiec.load(folder).predict(images), model.predict(images))
    assert siblings(folder) == [folder.name]


def test_a_relative_folder_is_one_too(model, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.save("model")
    assert_array_equal(skdiec.load(Path("model")).predict(images), model.predict(images))


def test_modes_are_those_of_new_files_and_of_the_former_folder(model, tmp_path):
    former = os.umask(0o027)
    try:
        model.save(tmp_path / "model")
    finally:
        os.umask(former)
    for path in [tmp_path / "model", *(tmp_path / "model").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o750 if path.is_dir() else 0o640), path
    (tmp_path / "model").chmod(0o700)
    model.save(tmp_path / "model", overwrite=True)
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o700


# Kills and full disks

CALLS = [
    *((Path, name) for name in ("mkdir", "touch", "unlink", "chmod", "rename", "replace", "write_text")),
    *((shutil, name) for name in ("copymode", "rmtree")),
    (os, "fsync"),
    (folders, "remove"),
]


class Killed(BaseException):
    """Raised by every call to the system from some one on, those that tidy up included, as after a kill."""


def killing(monkeypatch, at):
    """Have calls from number `at` on not happen; return the list of those that did."""
    done = []

    def counted(name, function):
        def call(*arguments, **keywords):
            if len(done) >= at:
                raise Killed(name)
            done.append(name)
            return function(*arguments, **keywords)

        return call

    for place, name in CALLS:
        monkeypatch.setattr(place, name, counted(name, getattr(place, name)))
    return done


@pytest.mark.parametrize("is_there", [False, True])
def test_a_kill_leaves_the_old_model_or_the_new_one(is_there, model, saved, make, images, tmp_path, monkeypatch):
    new, folder = make(n_clusters=2).fit(images), tmp_path / "model"
    outcomes, put_back = [], 0
    for at in range(1000):
        shutil.rmtree(folder, ignore_errors=True)
        if is_there:
            shutil.copytree(saved, folder)
        with monkeypatch.context() as patch:
            done = killing(patch, at)
            try:
                new.save(folder, overwrite=True)
            except Killed:
                outcomes.append(done[-1:])
            else:
                break
        put_back += is_there and not folder.exists()
        hidden = [name for name in siblings(folder) if name != "model"]
        assert all(re.fullmatch(r"\.model\.skdiec-(new|old)-[0-9a-f]{8}", name) for name in hidden)
        try:
            found = skdiec.load(folder)
        except ValueError as error:
            assert not is_there
            assert "there is no folder" in str(error)  # noqa: PT017
        else:
            assert_array_equal(found.labels_, (new if len(found.cluster_centers_) == 2 else model).labels_)
            assert_array_equal(found.predict(images), found.labels_)
            assert is_there or len(found.cluster_centers_) == 2
        new.save(folder, overwrite=True)
        assert siblings(folder) == ["model"]
    assert len(outcomes) == at > 20
    assert ["rename"] in outcomes
    assert put_back == is_there  # between two calls alone there is no folder, and loading gives the old one its name
    assert len(skdiec.load(folder).cluster_centers_) == 2


def test_a_save_that_fails_leaves_the_old_model_and_nothing_else(model, make, images, folder, monkeypatch):
    new = make(n_clusters=2).fit(images)
    for place, name in CALLS:
        with monkeypatch.context() as patch:

            def fail(*arguments, **keywords):
                raise OSError(28, "No space left on device")

            if name != "rmtree":  # which would leave something
                patch.setattr(place, name, fail)
            if name == "remove":
                continue
            try:
                new.save(folder, overwrite=True)
            except OSError as error:
                assert str(error) == f"{folder} cannot be written to: No space left on device"  # noqa: PT017
                assert len(skdiec.load(folder).cluster_centers_) == 3
            else:
                assert name in ("chmod", "copymode", "rmtree", "unlink")
        new.save(folder, overwrite=True)
        assert siblings(folder) == ["model"]
        model.save(folder, overwrite=True)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_folders_without_permission_are_told_of(model, tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OSError, match=r"model cannot be written to: Permission denied"):
            model.save(tmp_path / "model")
    finally:
        tmp_path.chmod(0o700)


def test_read_only_folder_is_told_of(model, tmp_path, monkeypatch):
    def refuse(path, *arguments, **keywords):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(
        OSError, match=rf"^{re.escape(str(tmp_path / 'model'))} cannot be written to: Permission denied$"
    ):
        model.save(tmp_path / "model")
    assert siblings(tmp_path / "model") == []


def test_models_are_read_from_a_folder_that_cannot_be_written_to(folder, images, model, monkeypatch):
    def refuse(*arguments, **keywords):
        raise PermissionError(30, "Read-only file system")

    for name in ("mkdir", "touch", "unlink", "rename", "replace", "write_text", "chmod"):
        monkeypatch.setattr(Path, name, refuse)
    assert_array_equal(skdiec.load(folder).predict(images), model.predict(images))


def test_saves_of_one_folder_wait_for_each_other(model, make, images, folder):
    pytest.importorskip("fcntl")
    models = [model, make(n_clusters=2).fit(images)]
    errors = []

    def save(one):
        for _ in range(5):
            try:
                one.save(folder, overwrite=True)
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=save, args=(one,)) for one in models for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert siblings(folder) == ["model"]
    found = skdiec.load(folder)
    assert_array_equal(found.predict(images), found.labels_)


def test_folder_that_is_replaced_while_it_is_read_is_told_of(model, folder, monkeypatch):
    read = saving.ModelFolder.arrays

    def replace_first(self, expected):
        monkeypatch.undo()  # a save reads too
        model.save(folder, overwrite=True)
        return read(self, expected)

    monkeypatch.setattr(saving.ModelFolder, "arrays", replace_first)
    with pytest.raises(ValueError, match="was replaced while it was read: load it again"):
        skdiec.load(folder)


# Damaged and hostile folders


def change(folder, edit):
    record = json.loads((folder / "model.json").read_text())
    edit(record)
    (folder / "model.json").write_text(json.dumps(record))


def setting(path, value):
    """An edit of JSON: the value at a path of keys; ... removes it."""

    def edit(record):
        *parents, last = path
        for key in parents:
            record = record[key]
        if value is ...:
            del record[last]
        else:
            record[last] = value

    return edit


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["format"], "1", "format must be an integer from 1"),
        (["format"], True, "format must be an integer from 1"),
        (["format"], 0, "format must be an integer from 1"),
        (["class"], "os.system", "class must be 'DiffusionEmbeddedClustering'; got 'os.system'"),
        (["class"], ["a"], "class must be a string"),
        (["skdiec"], 3, "skdiec must be a string; got 3"),
        (["parameters"], [], "parameters must be a JSON object"),
        (["fitted"], None, "fitted must be a JSON object"),
        (["fitted"], ..., "lacks 'fitted'"),
        (["surprise"], 1, "has an unknown 'surprise'"),
        (["fortran_order"], [3], "fortran_order must be a list of names"),
        (["fortran_order"], ["labels_"], "fortran_order must name matrices; got 'labels_'"),
        (["backbones"], [], "backbones must be folders or a reference"),
        (["backbones"], [{"folder": "../../elsewhere"}], "backbones must be folders or a reference"),
        (["backbones"], [{"reference": 3, "weights": ""}], "backbones must be folders or a reference"),
        (["backbones"], [{"folder": "backbone"}, {"folder": "frozen_backbone"}], "frozen_backbone.* is missing"),
        (["parameters", "surprise"], 1, "parameters has 'surprise', which this version of skdiec does not know"),
        (["parameters", "n_clusters"], "many", "The 'n_clusters' parameter"),
        (["parameters", "alpha"], -1.0, "The 'alpha' parameter"),
        (["parameters", "alpha"], {"number": "five"}, "parameters.alpha must be a value of a known type"),
        (["parameters", "alpha"], {"pickle": "gASV"}, "parameters.alpha must be a value of a known type"),
        (["parameters", "alpha"], {}, "parameters.alpha must be a value of a known type"),
        (["parameters", "backbone"], {"object": {"class": "Popen", "parameters": {}}}, "class that is not loaded"),
        (["parameters", "backbone"], {"object": {"class": ["x"], "parameters": {}}}, "class that is not loaded"),
        (["parameters", "init"], {"array": {"dtype": "object", "shape": [3]}}, "parameters.init: dtype must be"),
        (["parameters", "init"], {"array": {"dtype": "int64", "shape": [3]}}, "1 are missing.*'parameters.init'"),
        (["parameters", "init"], {"array": {"dtype": "int64", "shape": [2**40] * 5}}, "model.json: "),
        (
            ["parameters", "init"],
            {"array": {"dtype": "int64", "shape": [0] * 60}},
            "shape must be a sequence of 0 to 32",
        ),
        (["fitted", "n_samples"], 2**39, "'labels_' must be I32 of shape .549755813888,.; got I32 of shape"),
        (["fitted", "n_samples"], 10**30, "n_samples must be an integer from 2"),
        (["fitted", "n_clusters"], 4, "'cluster_sizes' must have an entry for each epoch; got shape .3, 3."),
        (["fitted", "hidden_size"], 10**9, "hidden_size must be an integer from 1 to 65536"),
        (["fitted", "hidden_size"], None, "4 unexpected, such as 'head.g.0.bias'"),
        (["fitted", "nu"], 0, "nu must be a number from 1e-06"),
        (["fitted", "stability_"], "nil", "stability_ must be a number"),
        (["fitted", "stability_"], ..., "fitted lacks 'stability_'"),
        (["fitted", "surprise"], 1, "fitted has an unknown 'surprise'"),
        (["fitted", "share_explained_"], {"ten": 0.5}, "share_explained_ must have timesteps as keys"),
        (["fitted", "fit_seconds_"], {"search": "long"}, "fit_seconds_: search must be a number"),
        (["fitted", "fit_seconds_"], 3, "fit_seconds_ must be a JSON object"),
        (["fitted", "warnings_"], "none", "warnings_ must be a list of strings"),
        (["fitted", "warnings_"], [1], "warnings_ must be a list of strings"),
        (
            ["fitted", "history_", "loss", "shape"],
            [3, 3, 3],
            "'loss' must have an entry for each epoch; got shape",
        ),
        (["fitted", "history_", "loss", "dtype"], "float32", "'history_.loss' must be F32"),
        (["fitted", "files_"], 5, "1 are missing, 0 unexpected, such as 'files_'"),
        (["fitted", "transform_output"], "excel", "transform_output must be None or 'default'"),
        (["fitted", "image_format", "shape"], [1, 8], "shape must be a sequence of 3 integers"),
        (["fitted", "image_format", "shape"], [1, 2, 2], "n_features_in_ must be what images of .1, 2, 2. hold"),
        (["fitted", "image_format", "shape"], [2, 8, 8], "does not fit its backbone: X has images of 2 channels"),
        (["fitted", "image_format", "value_range"], [1, 0], "value_range must have the lower value first"),
        (["fitted", "image_format", "value_range"], [0, 1e999], "value_range must be a number"),
        (["fitted", "image_format", "kind"], "complex", "kind must be 'uint8' or"),
        (["fitted", "image_format", "is_table"], 1, "is_table must be True or False"),
        (["fitted", "extractor", "n_draws"], 10**9, "n_draws must be an integer from 1 to 10000"),
        (["fitted", "extractor", "seed"], -1, "seed must be an integer from 0"),
        (["fitted", "extractor", "precision"], "int1", "precision must be 'fp32' or"),
        (["fitted", "search_result_", "layers"], ["nowhere"], "does not fit its backbone: unknown layer 'nowhere'"),
        (["fitted", "search_result_", "layers"], [3], "layers must be a list of strings"),
        (
            ["fitted", "search_result_", "timesteps"],
            [10**6],
            "does not fit its backbone: timestep must be from 0 to 999",
        ),
        (["fitted", "search_result_", "poolings"], [1], "n_features should be 8, of 8 channels"),
        (["fitted", "search_result_", "best"], [0, 0, 5], "best must be an integer from 0"),
        (["fitted", "search_result_", "criterion"], {"a": 1}, "criterion must be a string"),
        (["fitted", "search_result_", "criterion"], "other", "scores must have 'scott' and the criterion"),
        (["fitted", "search_result_", "stages"], [], "stages must be a list"),
        (["fitted", "search_result_", "stages"], [3], "0 must be a JSON object"),
        (["fitted", "search_result_", "final"], [3], "final must be a JSON object"),
        (["fitted", "search_result_", "final"], {}, "final lacks .n_cells"),
        (
            ["fitted", "search_result_", "stages", 0, "n_cells"],
            2,
            "'search_result_.0.cells' must be I64 of shape .2, 3.",
        ),
        (["fitted", "search_result_", "stages", 0, "seconds"], -1, "seconds must be a number from 0"),
    ],
    ids=lambda value: re.sub(r"\W+", " ", str(value))[:40],
)
def test_wrong_values_are_told_of(path, value, message, folder):
    change(folder, setting(path, value))
    with pytest.raises(ValueError, match=message) as caught:
        skdiec.load(folder)
    assert str(folder) in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"[1, 2]", "must hold a JSON object"),
        (b'{"a":' * 1000 + b"1" + b"}" * 1000, "is nested more than 32 deep"),
        (b'{"a": ' + b"1" * 5000 + b"}", "is no JSON"),
        (b" " * (2**24 + 1), "is larger than the 16777216 bytes"),
        (None, "is missing"),
    ],
    ids=["empty", "bytes", "list", "deep", "long number", "giant", "missing"],
)
def test_what_is_no_record_is_told_of(text, message, folder):
    (folder / "model.json").unlink()
    if text is not None:
        (folder / "model.json").write_bytes(text)
    with pytest.raises(ValueError, match=rf"^model file .*model\.json {message}"):
        skdiec.load(folder)


def remake(folder, edit):
    arrays = load_file(folder / "model.safetensors")
    edit(arrays)
    save_file(arrays, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("labels_", lambda x: None, "1 are missing, 0 unexpected, such as 'labels_'"),
        ("surprise", lambda x: np.zeros(3), "0 are missing, 1 unexpected, such as 'surprise'"),
        ("labels_", lambda x: x.astype(np.int64), "'labels_' must be I32 of shape .48,.; got I64"),
        ("labels_", lambda x: x[1:], r"'labels_' must be I32 of shape .48,.; got I32 of shape .47,."),
        ("labels_", lambda x: x + 1, "labels_ must be from 0 to 2; got 1 to 3"),
        ("initial_labels_", lambda x: x - 1, "initial_labels_ must be from 0 to 2; got -1 to 1"),
        ("fine_labels_", lambda x: x + 100, "fine_labels_ must be from 0 to"),
        ("linkage_", lambda x: x * 0, "linkage_ must merge each cluster once"),
        ("linkage_", lambda x: x + 0.5, "linkage_ must merge each cluster once"),
        ("linkage_", lambda x: x * np.nan, "linkage_ must merge each cluster once"),
        ("linkage_", lambda x: x[::-1].copy(), "linkage_ must merge each cluster once"),
        ("cluster_centers_", lambda x: x * np.inf, "'cluster_centers_' has values that are not finite"),
        ("head.g.0.weight", lambda x: x * np.nan, "'head.g.0.weight' has values that are not finite"),
        ("projection.mean", lambda x: x[:1], "'projection.mean' must be F64"),
        ("search_result_.0.cells", lambda x: x + 1, "cells must have positions in a grid of"),
        ("search_result_.0.scores.scott", lambda x: x[0], "'search_result_.0.scores.scott' must be F64"),
    ],
)
def test_wrong_arrays_are_told_of(name, edit, message, folder):
    def apply(arrays):
        found = edit(arrays.get(name))
        if found is None:
            del arrays[name]
        else:
            arrays[name] = found

    remake(folder, apply)
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match=message) as caught:
        skdiec.load(folder)
    assert str(caught.value).startswith(f"model file {folder / 'model.safetensors'}")


@pytest.mark.parametrize("text", [b"", b"[" * 10**6, b'["a"]', b"[1, 2]", b"\xff"], ids=lambda text: str(text[:5]))
def test_wrong_texts_among_the_arrays_are_told_of(text, make, images, tmp_path):
    make().fit(pd.DataFrame(images.reshape(len(images), -1)).add_prefix("p")).save(tmp_path / "model")
    text = text or b"{}"
    change(tmp_path / "model", setting(["fitted", "feature_names_in_"], len(text)))
    remake(tmp_path / "model", lambda arrays: arrays.update(feature_names_in_=np.frombuffer(text, np.uint8)))
    with pytest.raises(
        ValueError, match=r"model\.safetensors: feature_names_in_ (is no JSON|must have 64 strings)|names_in_ must"
    ):
        skdiec.load(tmp_path / "model")


def with_header(header, size=0):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 100,
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 2**22) + b"{}",
        with_header({"labels_": {"dtype": "I32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
        with_header({"labels_": {"dtype": "I32", "shape": [2**62, 0], "data_offsets": [0, 0]}}),
        with_header({"labels_": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, 1),
        pickle.dumps({"labels_": 1}),
    ],
    ids=["empty", "zeros", "giant header", "long header", "giant array", "giant and empty", "unknown type", "pickle"],
)
def test_damaged_arrays_are_told_of(content, folder):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"^model file .*model\.safetensors (has damaged|must have)"):
        skdiec.load(folder)


def test_truncated_files_are_told_of(folder):
    for name in ("model.safetensors", "backbone/unet/diffusion_pytorch_model.safetensors", "backbone/unet/config.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=re.escape(str(folder / name))):
            skdiec.load(folder)
        (folder / name).unlink()
        with pytest.raises(ValueError, match=re.escape(str((folder / name).parent))):
            skdiec.load(folder)
        (folder / name).write_bytes(content)
    skdiec.load(folder)


def test_files_that_never_end_are_not_waited_for(folder):
    for name in ("model.json", "model.safetensors"):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(ValueError, match=rf"{name} is no regular file"):
            skdiec.load(folder)
        (folder / name).unlink()
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    "name", ["model.json", "model.safetensors", "backbone", "backbone/unet", "backbone/unet/config.json"]
)
def test_links_out_of_the_folder_are_refused(name, folder, tmp_path):
    outside = (folder / name).rename(tmp_path / "outside")
    (folder / name).symlink_to(outside)
    with pytest.raises(ValueError, match=rf"model file .*{name} is a link that leads out of the model's folder"):
        skdiec.load(folder)


def test_folder_of_too_many_files_is_refused(folder, monkeypatch):
    monkeypatch.setattr(saving, "_MAX_BACKBONE_FILES", 5)
    with pytest.raises(ValueError, match="has more files in backbone than a backbone has"):
        skdiec.load(folder)


def test_nothing_big_is_read_before_the_values_are_checked(folder, monkeypatch):
    def read(*arguments, **keywords):
        raise AssertionError("something was read")

    monkeypatch.setattr(saving, "opened_tensors", read)
    monkeypatch.setattr(saving, "load_backbone", read)
    change(folder, setting(["parameters", "alpha"], "much"))
    with pytest.raises(ValueError, match="'alpha' parameter"):
        skdiec.load(folder)


def test_nothing_is_unpickled(folder, images, monkeypatch):
    def unpickle(*arguments, **keywords):
        raise AssertionError("something was unpickled")

    for place, name in [(pickle, "load"), (pickle, "loads"), (torch, "load"), (joblib, "load"), (np, "load")]:
        monkeypatch.setattr(place, name, unpickle)
    skdiec.load(folder).predict(images)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (3, "folder must be the path of a saved model or a Hub id 'owner/name'; got 3"),
        ("", "folder must be the path of a saved model"),
        ("no/such/folder", "there is no folder 'no/such/folder'"),
        (Path("no/folder"), "there is no folder 'no/folder'"),
        ("a\0b", "folder cannot be used"),
        ("x" * 5000, "folder cannot be used|there is no folder"),
        (__file__, "is a file"),
        ("backbone", "folder must be that of a saved model; .*backbone is a backbone: skdiec.load_backbone loads it"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_model_is_told_of(name, message, folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=message):
        skdiec.load(name)


# Formats


def test_model_of_format_1_is_read():
    model = skdiec.load(DATA / "model_v1")
    images = load_digits().images
    assert model.predict(images[:100]).tolist() == json.loads((DATA / "model_v1.json").read_text())
    assert_array_equal(model.predict(images[:60]), model.labels_)
    assert model.get_params()["value_range"] == (0, 16)
    assert model.get_params()["layer"] == ["down_blocks.0", "mid_block"]
    assert sum(path.stat().st_size for path in (DATA / "model_v1").rglob("*")) < 300_000


def test_later_format_is_told_of(folder):
    change(folder, lambda record: record.update(format=7, skdiec="9.1.0", surprise=1))
    message = (
        rf"model\.json has format 7, written by skdiec 9\.1\.0; this is skdiec {re.escape(skdiec.__version__)}, which "
        "reads formats up to 1: pip install --upgrade skdiec"
    )
    with pytest.raises(ValueError, match=message):
        skdiec.load(folder)


def test_earlier_formats_are_upgraded_one_after_the_other(folder, model, images, monkeypatch):
    def renamed(former, present):
        def upgrade(record):
            record["fitted"][present] = record["fitted"].pop(former)
            return record

        return upgrade

    monkeypatch.setattr(saving, "FORMAT", 3)
    monkeypatch.setattr(saving, "_UPGRADES", {1: renamed("old", "between"), 2: renamed("between", "nu")})
    change(folder, renamed("nu", "old"))
    assert_array_equal(skdiec.load(folder).predict_proba(images), model.predict_proba(images))


def test_every_former_format_has_an_upgrade_and_a_folder():
    assert list(saving._UPGRADES) == list(range(1, saving.FORMAT))
    assert sorted(path.name for path in DATA.glob("model_v*[0-9]")) == [
        f"model_v{n}" for n in range(1, saving.FORMAT + 1)
    ]


def test_parameters_that_an_earlier_version_did_not_have_are_the_defaults(folder):
    change(folder, setting(["parameters", "n_draws"], ...))
    assert skdiec.load(folder).n_draws == DiffusionEmbeddedClustering().n_draws


# The card and the Hub


def test_card_says_what_the_model_is(model, folder):
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    assert front.startswith("library_name: skdiec\ntags:\n- clustering\n")
    sizes = np.bincount(model.labels_)
    for line in (
        "into one of 3 clusters",
        "import skdiec\n\nmodel = skdiec.load('model')\nlabels = model.predict(images)\n",
        "| representation | layer `mid_block`, timestep 50, pooling 2 |",
        "| images of the fit | 48 |",
        *(f"| {label} | {size} |" for label, size in enumerate(sizes)),
    ):
        assert line in text
    assert str(folder.parent) not in text


class FakeHub:
    """The functions of huggingface_hub that are used, over a folder."""

    def __init__(self, root):
        self.root = root
        self.calls = []

    def create_repo(self, repo_id, **options):
        self.calls.append(("create_repo", repo_id, options))
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path, **options):
        self.calls.append(("upload_folder", repo_id, options))
        for pattern in options["delete_patterns"]:
            shutil.rmtree(self.root / repo_id / pattern.removesuffix("/*"), ignore_errors=True)
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)

    def snapshot_download(self, repo_id, *, revision, token, allow_patterns):
        """Make the files of a snapshot links to blobs, as the Hub's cache does."""
        from fnmatch import fnmatch

        self.calls.append(("snapshot_download", repo_id, {"revision": revision, "token": token}))
        if not (self.root / repo_id).exists():
            raise FileNotFoundError("404 Not Found")
        cache = self.root / "cache" / f"models--{repo_id.replace('/', '--')}"
        snapshot = cache / "snapshots" / "0123"
        shutil.rmtree(cache, ignore_errors=True)
        (cache / "blobs").mkdir(parents=True)
        snapshot.mkdir(parents=True)
        for number, path in enumerate(sorted((self.root / repo_id).rglob("*"))):
            name = str(path.relative_to(self.root / repo_id))
            if path.is_file() and any(fnmatch(name, pattern) for pattern in allow_patterns):
                shutil.copy(path, cache / "blobs" / str(number))
                (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
                (snapshot / name).symlink_to(os.path.relpath(cache / "blobs" / str(number), (snapshot / name).parent))
        return str(snapshot)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    import huggingface_hub

    fake = FakeHub(tmp_path / "hub")
    for name in ("create_repo", "upload_folder", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, getattr(fake, name))
    return fake


def test_model_goes_to_the_hub_and_back(hub, model, make, images):
    trained = make(train_backbone=True, max_epochs=1).fit(images)
    assert trained.push_to_hub("some-one/my.model", private=True, token="t", commit_message="Mine") == (
        "https://hub.example/some-one/my.model"
    )
    loaded = skdiec.load("some-one/my.model", revision="main", token="t")
    assert_is_copy(loaded, trained, images)
    assert "skdiec.load('some-one/my.model')" in (hub.root / "some-one/my.model/README.md").read_text()
    assert hub.calls == [
        ("create_repo", "some-one/my.model", {"private": True, "token": "t", "exist_ok": True}),
        (
            "upload_folder",
            "some-one/my.model",
            {"token": "t", "commit_message": "Mine", "delete_patterns": ["backbone/*", "frozen_backbone/*"]},
        ),
        *[("snapshot_download", "some-one/my.model", {"revision": "main", "token": "t"})] * 2,
    ]
    # A model in place of another one: nothing of the former stays.
    model.push_to_hub("some-one/my.model")
    assert not (hub.root / "some-one/my.model/frozen_backbone").exists()
    assert_is_copy(skdiec.load("some-one/my.model"), model, images)


def test_only_files_of_models_are_fetched(hub, model, tmp_path):
    model.push_to_hub("some/one")
    for name in ("pytorch_model.bin", "backbone/unet/diffusion_pytorch_model.bin", "backbone/extra.py", "other/a.json"):
        (hub.root / "some/one" / name).parent.mkdir(exist_ok=True)
        (hub.root / "some/one" / name).write_bytes(b"no")
    skdiec.load("some/one")
    snapshot = hub.root / "cache/models--some--one/snapshots/0123"
    assert sorted(str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if path.is_file()) == [
        "backbone/model_index.json",
        "backbone/scheduler/scheduler_config.json",
        "backbone/skdiec.json",
        "backbone/unet/config.json",
        "backbone/unet/diffusion_pytorch_model.safetensors",
        "model.json",
        "model.safetensors",
    ]
    change(hub.root / "some/one", lambda record: record.update(format=2))
    hub.calls.clear()
    with pytest.raises(ValueError, match="reads formats up to 1"):
        skdiec.load("some/one")
    assert len(hub.calls) == 1  # that of the small file


def test_local_folder_wins_over_the_hub(hub, model, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.save("some/one")
    assert_array_equal(skdiec.load("some/one").predict(images), model.predict(images))
    assert hub.calls == []


def test_failures_of_the_hub_are_told_of(hub, model, monkeypatch):
    import huggingface_hub

    with pytest.raises(ValueError, match=r"'no/where' is neither a local folder nor could it be fetched.*404"):
        skdiec.load("no/where")
    hub.create_repo("no/model")
    with pytest.raises(ValueError, match=r"model\.json is missing"):
        skdiec.load("no/model")
    for repo_id in ("model", "a/b/c", 3, "", "a/ b"):
        with pytest.raises(ValueError, match="repo_id must be a Hub id, 'owner/name'; got"):
            model.push_to_hub(repo_id)

    def refuse(*arguments, **keywords):
        raise RuntimeError("401 Unauthorized")

    monkeypatch.setattr(huggingface_hub, "create_repo", refuse)
    with pytest.raises(OSError, match="some/one could not be uploaded to the Hub: 401 Unauthorized"):
        model.push_to_hub("some/one")


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"private": "no"}, "private must be True or False; got 'no'"),
        ({"token": 3}, "token must be a str, a bool or None; got a int"),
        ({"commit_message": None}, "commit_message must be a str; got None"),
    ],
)
def test_wrong_parameters_reach_no_hub(keywords, message, hub, model):
    with pytest.raises(ValueError, match=message):
        model.push_to_hub("some/one", **keywords)
    assert hub.calls == []


@pytest.mark.parametrize(
    ("keywords", "message"),
    [({"revision": 3}, "revision must be a branch, tag or commit; got 3"), ({"token": 3}, "token must be a str")],
)
def test_wrong_parameters_of_load_reach_no_hub(keywords, message, hub):
    with pytest.raises(ValueError, match=message):
        skdiec.load("some/one", **keywords)
    assert hub.calls == []


def test_pushing_tells_of_parameters_that_are_left_out(hub, model):
    model = pickle.loads(pickle.dumps(model)).set_params(random_state=np.random.RandomState(0))
    with pytest.warns(UserWarning, match=LEFT_OUT) as caught:
        model.push_to_hub("some/one")
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_backbone_of_a_saved_model_is_found(folder):
    with pytest.raises(ValueError, match=rf"it is a saved model, whose backbone is {folder}/backbone"):
        skdiec.load_backbone(folder)
    assert skdiec.load_backbone(folder / "backbone").image_shape == (1, 8, 8)


def test_load_is_reached_lazily():
    assert "load" in dir(skdiec)
    assert skdiec.load.__module__ == "skdiec._load"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from skdiec import load
    assert load is skdiec.load
