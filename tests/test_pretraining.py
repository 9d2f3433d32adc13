import inspect
import json
import logging
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.testing import assert_allclose
from PIL import Image
from torch.nn.utils import vector_to_parameters

import skdiec
from skdiec.backbones import (
    PixelBackbone,
    Pretraining,
    load_backbone,
    pretrain,
    settings,
    trainer,
    untrained_backbone,
)
from skdiec.backbones.settings import resolve_settings
from skdiec.images import FileImages, as_image_source

# Twenty plain images, each of its own brightness: three steps an epoch, the last one ragged.
IMAGES = np.repeat(np.arange(20, dtype=np.uint8) * 12, 16).reshape(20, 4, 4)
SETTINGS = {
    "channels": (8,),
    "epochs": 4,
    "batch_size": 8,
    "learning_rate": 2e-3,
    "precision": "fp32",
    "device": "cpu",
    "random_state": 0,
}
STEPS = 12
ONE_EPOCH = {**SETTINGS, "epochs": 1}


def train(X=IMAGES, folder=None, **settings):
    return pretrain(X, folder, **{**SETTINGS, **settings})


def untrained(source, **settings):
    parameters = {name: value for name, value in settings.items() if name != "device"}
    return untrained_backbone(source, Pretraining(**parameters), torch.device("cpu"))


def result(backbone):
    """All that a training yields but its duration."""
    recipe = {name: value for name, value in backbone.recipe.items() if name not in ("seconds", "request")}
    return backbone.fingerprint(), recipe


def run_script(script):
    environment = {**os.environ, "PYTHONPATH": str(Path(skdiec.__file__).parents[1])}
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def contents(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def uninterrupted():
    return result(train())


@pytest.fixture
def steps(monkeypatch):
    """Records what each step of a training saw; a step listed in `steps.stop` is cut off half-way."""
    log = SimpleNamespace(batches=[], lr=[], weights=[], autocast=[], stop=set())
    denoising_loss, step = PixelBackbone.denoising_loss, torch.optim.AdamW.step

    def watched_loss(backbone, x0, noise, timesteps):
        log.batches.append((x0, noise, timesteps))
        log.autocast.append(torch.is_autocast_enabled(x0.device.type))
        if len(log.batches) in log.stop:
            raise KeyboardInterrupt
        return denoising_loss(backbone, x0, noise, timesteps)

    def watched_step(optimizer, *args, **kwargs):
        done = step(optimizer, *args, **kwargs)
        log.lr.append(optimizer.param_groups[0]["lr"])
        log.weights.append([parameter.detach().clone() for parameter in optimizer.param_groups[0]["params"]])
        return done

    monkeypatch.setattr(PixelBackbone, "denoising_loss", watched_loss)
    monkeypatch.setattr(torch.optim.AdamW, "step", watched_step)
    return log


@pytest.fixture
def saves(monkeypatch):
    """Lists the step of each checkpoint that is written."""
    found, save_file = [], safetensors.torch.save_file

    def watched(tensors, path, metadata):
        if "position" in metadata:  # diffusers saves its weights with it too
            found.append(json.loads(metadata["position"])["step"])
        save_file(tensors, path, metadata=metadata)

    monkeypatch.setattr(safetensors.torch, "save_file", watched)
    return found


@pytest.fixture
def clock(monkeypatch):
    """Each look at the clock of pretraining takes a second."""
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=count().__next__))


# Training


def test_loss_falls_on_images_that_can_be_learnt():
    images = np.zeros((32, 4, 4), dtype=np.uint8)
    images[::2, :, :2] = images[1::2, :, 2:] = 255
    backbone = train(images, epochs=30, learning_rate=1e-2, ema_decay=0.9)
    loss = backbone.recipe["loss"]
    assert len(loss) == 30
    assert np.mean(loss[-5:]) < 0.3 < 0.7 < loss[0]
    x0 = backbone.prepare(torch.from_numpy(as_image_source(images).read(slice(None))))
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(x0.shape, generator=generator)
    before = untrained(as_image_source(images), **SETTINGS)
    for timestep in (300, 600, 999):
        timesteps = torch.full((32,), timestep)
        assert backbone.denoising_loss(x0, noise, timesteps).item() < 0.25  # of the average that is kept
        assert before.denoising_loss(x0, noise, timesteps).item() > 0.7


def test_every_epoch_sees_every_image_once_in_an_order_of_its_own(steps):
    train(max_timestep=999)
    assert [len(x0) for x0, _, _ in steps.batches] == [8, 8, 4] * 4
    values = torch.cat([x0[:, 0, 0, 0] for x0, _, _ in steps.batches]).reshape(4, 20).double()
    expected = IMAGES[:, 0, 0] / 127.5 - 1
    for epoch in values:
        assert_allclose(np.sort(epoch.numpy()), expected, atol=1e-6)
    assert len({frozenset(epoch[:8].tolist()) for epoch in values}) == 4
    noise = torch.cat([noise for _, noise, _ in steps.batches])
    assert len(noise.unique()) > 0.99 * noise.numel()
    assert noise.mean().item() == pytest.approx(0, abs=0.1)
    assert noise.std().item() == pytest.approx(1, abs=0.1)
    timesteps = torch.cat([timesteps for _, _, timesteps in steps.batches])
    assert 0 <= timesteps.min() < 100
    assert 900 <= timesteps.max() < 1000


@pytest.mark.parametrize(("max_timestep", "highest"), [(0, 0), (3, 3), (400, 400)])
def test_timesteps_above_the_highest_are_neither_trained_on_nor_used(max_timestep, highest, steps):
    settings = {} if max_timestep == 400 else {"max_timestep": max_timestep}
    backbone = train(**settings)
    drawn = torch.cat([timesteps for _, _, timesteps in steps.batches])
    assert drawn.min() >= 0
    assert 0.8 * highest <= drawn.max() <= highest
    assert backbone.max_timestep == backbone.recipe["settings"]["max_timestep"] == highest
    backbone.check_timestep(highest)
    with pytest.raises(ValueError, match=f"timestep must be from 0 to {highest}, the last that .* trained on; got"):
        backbone.check_timestep(highest + 1)
    assert untrained(as_image_source(IMAGES), **settings).max_timestep == highest


def test_weights_are_rounded_to_the_type_they_are_saved_in(tmp_path, uninterrupted):
    rounded = train(folder=tmp_path, dtype="bfloat16")
    exact = train()
    for found, expected in zip(rounded.network.parameters(), exact.network.parameters(), strict=True):
        assert found.dtype == torch.float32
        assert torch.equal(found, expected.bfloat16().float())
    assert load_backbone(tmp_path).fingerprint() == rounded.fingerprint() != exact.fingerprint()
    saved = safetensors.torch.load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    assert rounded.recipe["settings"]["dtype"] == "bfloat16"


def test_learning_rate_warms_up_then_falls_as_a_cosine(steps):
    train(epochs=14, learning_rate=0.5, channels=(2,))
    progress = (np.arange(42) + 0.5) / 42  # the middle of each step
    cosine = 0.25 * (1 + np.cos(np.pi * (progress - 0.05) / 0.95))
    assert_allclose(steps.lr, np.where(progress < 0.05, 0.5 * progress / 0.05, cosine), atol=1e-12)


def test_weights_follow_adam_on_clipped_gradients(steps):
    train(learning_rate=0.01)
    backbone = untrained(as_image_source(IMAGES), **SETTINGS)
    parameters = list(backbone.network.parameters())
    states = [flat(weights).detach() for weights in (parameters, *steps.weights)]
    first = second = 0
    norms = []
    for step in range(1, STEPS + 1):
        vector_to_parameters(states[step - 1], parameters)
        loss = backbone.denoising_loss(*steps.batches[step - 1])
        gradient = flat(torch.autograd.grad(loss, parameters))
        norms.append(gradient.norm().item())
        gradient = gradient / max(norms[-1], 1)
        first, second = 0.9 * first + 0.1 * gradient, 0.99 * second + 0.01 * gradient.square()
        scale = (second / (1 - 0.99**step)).sqrt() + 1e-8
        move = -steps.lr[step - 1] * first / (1 - 0.9**step) / scale
        assert (states[step] - states[step - 1] - move).norm() <= 1e-3 * move.norm()
    assert max(norms) > 1.2 > 1 > min(norms)


@pytest.mark.parametrize("ema_decay", [0.0, 0.6, 0.999])
def test_moving_average_of_the_weights_is_kept(ema_decay, steps):
    backbone = train(ema_decay=ema_decay)
    initial = untrained(as_image_source(IMAGES), **SETTINGS)
    average = list(initial.network.parameters())
    for step, weights in enumerate(steps.weights):
        decay = min(ema_decay, 1 - (1 + step) ** -0.75)
        average = [decay * old + (1 - decay) * new for old, new in zip(average, weights, strict=True)]
    for expected, found in zip(average, backbone.network.parameters(), strict=True):
        torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-6)


def test_result_is_ready_for_use():
    backbone = train()
    assert not any(module.training for module in backbone.network.modules())
    assert not any(parameter.requires_grad for parameter in backbone.network.parameters())
    assert (backbone.image_shape, backbone.input_shape, backbone.num_train_timesteps) == ((1, 4, 4), (1, 4, 4), 1000)
    assert backbone.scheduler.config.prediction_type == "epsilon"
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    assert_allclose(backbone.scheduler.alphas_cumprod.numpy(), abar, rtol=1e-5)


def test_record_tells_settings_losses_and_cost(steps):
    recipe = train(learning_rate=0.01, layers_per_block=2, ema_decay=0.5, random_state=7).recipe
    assert recipe["settings"] == {
        "epochs": 4,
        "max_minutes": None,
        "batch_size": 8,
        "learning_rate": 0.01,
        "architecture": "unet",
        "channels": [8],
        "layers_per_block": 2,
        "patch_size": 1,
        "max_timestep": 400,
        "standardize": False,
        "ema_decay": 0.5,
        "precision": "fp32",
        "dtype": "float32",
        "seed": 7,
    }
    assert (recipe["images"], recipe["steps"]) == (20, STEPS)
    assert recipe["parameters"] == sum(parameter.numel() for parameter in steps.weights[0])
    assert 0 <= recipe["seconds"] < 60
    # A loss near 1 in each epoch: the first predictions are close to nothing.
    assert len(recipe["loss"]) == 4
    assert recipe["loss"][0] == pytest.approx(1, abs=0.3)


def test_recorded_loss_is_the_mean_over_the_images_of_an_epoch(monkeypatch):
    # The network's output is multiplied by 0, so the loss of each step is known: that of its batch's rank.
    calls = count()
    monkeypatch.setattr(
        PixelBackbone, "denoising_loss", lambda self, x0, noise, t: 0 * self.predict(x0, t).sum() + next(calls)
    )
    expected = [(8 * step + 8 * (step + 1) + 4 * (step + 2)) / 20 for step in (0, 3, 6, 9)]
    assert train().recipe["loss"] == pytest.approx(expected)


def test_a_single_step_trains():
    source = as_image_source(IMAGES[:8])
    x0 = torch.from_numpy(source.read(np.arange(8)).copy())
    timesteps = torch.arange(0, 400, 50)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    initial = untrained(source, **{**SETTINGS, "epochs": 1})
    trained = train(source, epochs=1)
    assert trained.recipe["steps"] == 1
    pairs = zip(initial.network.parameters(), trained.network.parameters(), strict=True)
    assert all(not torch.equal(before, after) for before, after in pairs)
    losses = [backbone.denoising_loss(x0, noise, timesteps).item() for backbone in (trained, initial)]
    assert losses[0] < losses[1] - 0.01


# Settings


def test_same_seed_gives_the_same_weights_and_another_seed_others(uninterrupted, rng_untouched):
    with rng_untouched():
        assert result(train(random_state=np.int64(0))) == uninterrupted
    assert train(random_state=1).fingerprint() != uninterrupted[0]
    seeds = [train(epochs=1, random_state=None).recipe["settings"]["seed"] for _ in range(2)]
    assert seeds[0] != seeds[1]
    assert train(epochs=1, random_state=seeds[0]).recipe["settings"]["seed"] == seeds[0]


def test_numbers_may_be_numpys(uninterrupted):
    settings = {
        "channels": np.array([8], dtype=np.int16),
        "epochs": np.uint8(4),
        "batch_size": np.int64(8),
        "random_state": np.uint32(0),
        "layers_per_block": np.int8(1),
        "patch_size": np.int32(1),
        "max_timestep": np.int64(400),
        "learning_rate": Fraction(1, 500),
        "ema_decay": np.float64(0.999),
        "checkpoint_seconds": np.float32(60),
        "verbose": np.False_,
    }
    assert result(train(**settings)) == uninterrupted


def test_weights_are_the_same_in_several_threads(tmp_path, uninterrupted, rng_untouched):
    folders = [None, None, tmp_path / "shared", tmp_path / "shared"]
    with rng_untouched(), ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda folder: result(train(folder=folder)), folders))
    assert found == [uninterrupted] * 4


def test_import_loads_neither_diffusers_nor_matplotlib_and_threads_may_be_the_first_to_use_them():
    """Two things of one new process, which takes seconds to start."""
    script = f"""
import sys
import skdiec
print(sorted({{'diffusers', 'matplotlib'}} & set(sys.modules)), skdiec.__version__)

from concurrent.futures import ThreadPoolExecutor
import numpy as np, torch
from skdiec import pretrain
torch.set_num_threads(1)
images = np.repeat(np.arange(20, dtype=np.uint8) * 12, 16).reshape(20, 4, 4)
with ThreadPoolExecutor(4) as pool:
    found = list(pool.map(lambda _: pretrain(images, **{ONE_EPOCH!r}).fingerprint(), range(4)))
print(len(set(found)))
"""
    done = run_script(script)
    assert (done.returncode, done.stdout.splitlines()) == (0, [f"[] {skdiec.__version__}", "1"]), done.stderr


MODES = {
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "device": lambda: torch.device("meta"),
}


@pytest.fixture(scope="module")
def of_one_epoch():
    """Results of one epoch in each precision, outside of any mode."""
    return {precision: result(train(epochs=1, precision=precision)) for precision in ("fp32", "bf16")}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("mode", MODES)
def test_weights_do_not_depend_on_torchs_modes(mode, precision, of_one_epoch):
    with MODES[mode]():
        backbone = train(epochs=1, precision=precision)
    assert result(backbone) == of_one_epoch[precision]


@pytest.mark.parametrize(
    ("change", "config"),
    [
        ({"channels": (8, 4)}, {"block_out_channels": (8, 4), "down_block_types": ("DownBlock2D",) * 2}),
        ({"channels": (6,)}, {"block_out_channels": (6,), "norm_num_groups": 2, "attention_head_dim": 6}),
        ({"channels": np.array([3, 32])}, {"norm_num_groups": 1, "attention_head_dim": 32}),
        ({"layers_per_block": 2}, {"layers_per_block": 2}),
        ({"patch_size": 2}, {"in_channels": 4, "out_channels": 4, "sample_size": (2, 2)}),
        ({"patch_size": 8}, {"in_channels": 64, "out_channels": 64, "sample_size": (2, 2)}),
    ],
)
def test_architecture_follows_the_settings_trained_or_not(change, config):
    settings = {**SETTINGS, **change, "epochs": 1}
    trained, before = train(**settings), untrained(as_image_source(IMAGES), **settings)
    for name, value in config.items():
        assert trained.network.config[name] == value
    assert dict(trained.network.config) == dict(before.network.config)
    assert dict(trained.scheduler.config) == dict(before.scheduler.config)
    for name in ("image_shape", "input_shape", "patch_size"):
        assert getattr(trained, name) == getattr(before, name)
    assert before.device == torch.device("cpu")


@pytest.mark.parametrize(
    ("shape", "patch_size", "input_shape", "channels"),
    [
        ((1, 1, 1), 1, (1, 2, 2), (32,)),
        ((3, 4, 4), 1, (3, 4, 4), (32,)),
        ((1, 5, 7), 1, (1, 6, 8), (32, 64)),
        ((1, 8, 8), 1, (1, 8, 8), (32, 64)),
        ((1, 9, 3), 2, (4, 6, 4), (64, 128)),
        ((1, 16, 16), 2, (4, 8, 8), (64, 128)),
        ((1, 17, 4), 2, (4, 12, 8), (32, 64, 128)),
        ((1, 28, 28), 2, (4, 16, 16), (32, 64, 128)),
        ((3, 32, 32), 2, (12, 16, 16), (32, 64, 128)),
        ((3, 96, 64), 8, (192, 12, 8), (32, 64, 128)),
    ],
)
def test_default_architecture_follows_the_size_of_the_images(shape, patch_size, input_shape, channels):
    source = as_image_source(np.zeros((2, *shape), dtype=np.uint8), channel_axis=1)
    backbone = untrained(source, random_state=0)
    assert (backbone.image_shape, backbone.patch_size, backbone.input_shape) == (shape, patch_size, input_shape)
    assert backbone.network.config.block_out_channels == channels
    assert backbone.network.config.layers_per_block == 1


@pytest.mark.parametrize(
    ("shape", "settings", "input_shape"),
    [
        ((28, 28), {"patch_size": None, "channels": (8, 8, 8)}, (4, 16, 16)),
        ((5, 7), {"channels": (8, 8)}, (1, 6, 8)),
        ((5, 7), {"patch_size": 2}, (4, 3, 4)),
        ((1, 1), {}, (1, 2, 2)),
        ((4, 4), {"channels": (4, 4, 4)}, (1, 8, 8)),
    ],
)
def test_odd_sizes_are_padded_trained_on_and_saved(shape, settings, input_shape, steps, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (8, *shape), dtype=np.uint8)
    backbone = train(images, tmp_path, epochs=1, **settings)
    assert backbone.input_shape == input_shape
    ((x0, _, _),) = steps.batches
    assert x0.shape == (8, *input_shape)
    unfolded = torch.nn.functional.pixel_shuffle(x0, backbone.patch_size)
    extra = [full - side for full, side in zip(unfolded.shape[2:], shape, strict=True)]
    widths = [(0, 0), *((more // 2, more - more // 2) for more in extra)]
    padded = np.pad(images / 127.5 - 1, widths, mode="edge")
    assert_allclose(np.sort(unfolded[:, 0].flatten()), np.sort(padded, axis=None), atol=1e-6)
    assert result(load_backbone(tmp_path)) == result(backbone)


def photographs(n=12):
    """Colour images, each of which is also there darker and of less contrast."""
    images = np.random.default_rng(0).integers(0, 256, (n, 8, 8, 3))
    return images.astype(np.uint8), np.round(10 + 0.6 * images).astype(np.uint8)


@pytest.mark.parametrize("architecture", ["unet", "transformer"])
def test_light_makes_no_difference_to_a_standardized_backbone(architecture, tmp_path):
    bright, dark = (as_image_source(images).read(slice(None)) for images in photographs())
    given = {"architecture": architecture, "channels": (8,), "epochs": 1, "patch_size": 2, "standardize": True}
    trained = train(photographs()[0], tmp_path, **given)
    for backbone in (trained, load_backbone(tmp_path), pickle.loads(pickle.dumps(trained))):
        assert backbone.standardize
        seen = [backbone.prepare(torch.from_numpy(images)) for images in (bright, dark)]
        assert_allclose(seen[0], seen[1], atol=0.08)  # up to what 1/16 more of contrast, and rounding, make
    mean, std = bright.mean(axis=(1, 2, 3), keepdims=True), bright.std(axis=(1, 2, 3), keepdims=True)
    expected = np.clip(0.4 * (bright - mean) / (std + 1 / 16), -1, 1)
    pixels = trained.decode(trained.prepare(torch.from_numpy(bright)))
    assert_allclose(pixels, expected, atol=1e-5)
    other = train(photographs()[0], **{**given, "standardize": False})
    assert not other.standardize
    assert other.fingerprint() != trained.fingerprint()
    assert_allclose(other.decode(other.prepare(torch.from_numpy(bright))), bright, atol=1e-6)


def test_pipeline_that_diffusers_has_read_is_used_as_its_folder_says(tmp_path):
    trained = train(photographs()[0], tmp_path, channels=(8, 8), epochs=1, patch_size=2, standardize=True)
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    found = load_backbone(pipeline)
    assert (found.standardize, found.patch_size, found.image_shape) == (True, 2, (3, 8, 8))
    assert found.fingerprint() == trained.fingerprint()
    (tmp_path / "skdiec.json").rename(tmp_path / "elsewhere.json")
    assert not load_backbone(pipeline).standardize


def test_training_sees_standardized_images(steps):
    backbone = train(photographs()[0], epochs=1, batch_size=12, standardize=True)
    ((x0, _, _),) = steps.batches
    assert_allclose(x0.std(dim=(1, 2, 3), correction=0), 0.4 * np.ones(12), atol=0.06)
    assert_allclose(x0.mean(dim=(1, 2, 3)), np.zeros(12), atol=0.02)
    assert backbone.recipe["settings"]["standardize"] is True


def test_folder_of_before_images_were_standardized_has_none_that_are(tmp_path):
    before = train(folder=tmp_path, standardize=False)
    record = json.loads((tmp_path / "skdiec.json").read_text())
    for recorded in (record["settings"], record["request"]["settings"]):
        del recorded["standardize"]
    (tmp_path / "skdiec.json").write_text(json.dumps(record))
    found = load_backbone(tmp_path)
    assert (found.standardize, found.fingerprint()) == (False, before.fingerprint())
    assert train(folder=tmp_path, standardize=False).fingerprint() == before.fingerprint()
    with pytest.raises(ValueError, match=r"with other settings \(standardize\)"):
        train(folder=tmp_path, standardize=True)


@pytest.mark.parametrize(("shape", "is_standardized"), [((3, 4, 4), True), ((1, 20, 15), False), ((4, 9, 9), True)])
def test_images_in_colour_are_standardized_by_default(shape, is_standardized):
    source = as_image_source(np.zeros((2, *shape), dtype=np.uint8), channel_axis=1)
    assert untrained(source).standardize == is_standardized
    assert untrained(source, standardize=np.bool_(not is_standardized)).standardize != is_standardized


@pytest.mark.parametrize("value", [1, "yes", [True]])
def test_standardize_is_yes_or_no(value):
    with pytest.raises(ValueError, match=f"standardize must be a bool, or None; got {re.escape(repr(value))}"):
        train(standardize=value)


@pytest.mark.parametrize("channels", [(32,), (8, 8), (8, 8, 8)])
def test_one_image_of_one_pixel_can_be_trained_on(channels):
    backbone = train(IMAGES[:1, :1, :1], channels=channels)
    assert np.isfinite(backbone.recipe["loss"]).all()
    x0 = torch.zeros((1, *backbone.input_shape))
    assert backbone.predict(x0, torch.tensor([0])).isfinite().all()


@pytest.mark.parametrize(("n_images", "epochs"), [(20, 4000), (1000, 80), (9298, 9), (10_001, 8), (400_000, 8)])
def test_default_epochs_follow_the_number_of_images(n_images, epochs):
    class Many:
        shape = (1, 4, 4)

        def __len__(self):
            return n_images

    names = set(inspect.signature(resolve_settings).parameters) - {"source"}
    defaults = {name: inspect.signature(pretrain).parameters[name].default for name in names}
    found = resolve_settings(Many(), **defaults)
    assert (found.epochs, found.batch_size) == (epochs, 16)
    assert (found.learning_rate, found.ema_decay) == (1e-3, 0.999)


@pytest.mark.parametrize(
    ("precision", "native", "resolved"),
    [("fp32", True, "fp32"), ("bf16", False, "bf16"), ("auto", True, "bf16"), ("auto", False, "fp32")],
)
def test_precision_is_that_of_the_network_in_training(precision, native, resolved, steps, monkeypatch, uninterrupted):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native}, raising=False)
    backbone = train(precision=precision)
    assert backbone.recipe["settings"]["precision"] == resolved
    assert steps.autocast == [resolved == "bf16"] * STEPS
    assert next(backbone.network.parameters()).dtype == torch.float32
    assert (backbone.fingerprint() == uninterrupted[0]) == (resolved == "fp32")
    assert backbone.recipe["loss"] == pytest.approx(uninterrupted[1]["loss"], rel=0.02)


# Images


def test_images_are_the_same_however_they_come(tmp_path, uninterrupted, monkeypatch):
    paths = [tmp_path / f"{index:02}.png" for index in range(len(IMAGES))]
    for path, image in zip(paths, IMAGES, strict=True):
        Image.fromarray(image).save(path)
    assert result(train(tmp_path)) == uninterrupted
    assert result(train([str(path) for path in paths])) == uninterrupted
    assert result(train(as_image_source(IMAGES))) == uninterrupted
    assert result(train(IMAGES.reshape(20, 16), image_shape=(4, 4))) == uninterrupted
    assert result(train(IMAGES / 255, value_range=(0, 1))) == uninterrupted
    assert result(train(IMAGES[:, None], channel_axis=1)) == uninterrupted
    monkeypatch.setattr(FileImages, "in_memory", lambda self: self)  # as where they are too many for memory
    assert result(train(tmp_path)) == uninterrupted


# Folder


def test_finished_folder_is_loaded_and_not_trained_again(tmp_path, uninterrupted, steps, saves, caplog):
    folder = tmp_path / "new" / "folder"
    first = train(folder=folder)
    assert result(first) == uninterrupted
    assert (len(steps.batches), saves) == (STEPS, [STEPS])
    assert sorted(contents(folder)) == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "skdiec.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    before = contents(folder)
    with caplog.at_level(logging.INFO, "skdiec"):
        again = train(IMAGES.copy(), str(folder))
    assert "loading the backbone that was trained before" in caplog.text
    assert len(steps.batches) == STEPS
    assert contents(folder) == before
    assert again.fingerprint() == first.fingerprint()
    assert again.recipe == first.recipe


def test_saved_pipeline_samples_with_diffusers(tmp_path):
    backbone = train(folder=tmp_path)
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    sampled = pipeline(batch_size=2, generator=generator, num_inference_steps=4, output_type="np").images
    generator = torch.Generator().manual_seed(3)
    x = torch.randn((2, 1, 4, 4), generator=generator)
    backbone.scheduler.set_timesteps(4)
    for timestep in backbone.scheduler.timesteps:
        prediction = backbone.predict(x, timestep)
        x = backbone.scheduler.step(prediction, timestep, x, generator=generator).prev_sample
    assert_allclose(sampled, ((x + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).numpy(), atol=1e-5)


@pytest.mark.parametrize("stops", [{1}, {2}, {4}, {STEPS}, {3, 8, 9}])
def test_resumed_training_equals_an_uninterrupted_one(stops, tmp_path, steps, uninterrupted, rng_untouched):
    steps.stop = stops
    with rng_untouched():
        for _ in stops:
            with pytest.raises(KeyboardInterrupt):
                train(folder=tmp_path, checkpoint_seconds=0)
        assert result(train(folder=tmp_path, checkpoint_seconds=0)) == uninterrupted
    assert len(steps.batches) == STEPS + len(stops)  # only the steps that were cut off are taken again
    assert result(load_backbone(tmp_path)) == uninterrupted
    assert "training.safetensors" not in contents(tmp_path)


@pytest.mark.parametrize(("seconds", "expected"), [(0, list(range(1, STEPS + 1))), (2.5, [3, 6, 9, 12]), (1e9, [12])])
def test_checkpoints_are_as_far_apart_as_asked_for(seconds, expected, tmp_path, saves, clock):
    train(folder=tmp_path, checkpoint_seconds=seconds)
    assert saves == expected


def test_seconds_of_all_sessions_add_up(tmp_path, steps, clock):
    steps.stop = {5}
    with pytest.raises(KeyboardInterrupt):
        train(folder=tmp_path, checkpoint_seconds=0)
    recipe = train(folder=tmp_path, checkpoint_seconds=1e9).recipe
    # Two looks at the clock for each of the four steps that were checkpointed, but the last; one for the others.
    assert recipe["seconds"] == 7 + 8


def test_kill_between_checkpoints_costs_the_steps_since_the_last(tmp_path, steps, clock, uninterrupted):
    steps.stop = {6}
    with pytest.raises(KeyboardInterrupt):
        train(folder=tmp_path, checkpoint_seconds=2.5)
    assert result(train(folder=tmp_path, checkpoint_seconds=2.5)) == uninterrupted
    assert len(steps.batches) == 6 + (STEPS - 3)


def test_kill_while_the_pipeline_is_written_costs_nothing(tmp_path, steps, uninterrupted, monkeypatch):
    def killed(self, folder, dtype):
        (folder / "unet").mkdir()
        (folder / "unet" / "config.json").write_text("half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PixelBackbone, "save_pretrained", killed)
        with pytest.raises(KeyboardInterrupt):
            train(folder=tmp_path)
    assert result(train(folder=tmp_path)) == uninterrupted
    assert len(steps.batches) == STEPS
    assert result(load_backbone(tmp_path)) == uninterrupted


def test_two_callers_of_one_folder_train_once(tmp_path, steps, uninterrupted):
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: result(train(folder=tmp_path)), range(2)))
    assert found == [uninterrupted] * 2
    assert len(steps.batches) == STEPS


CHANGES = [
    ({"X": 255 - IMAGES}, "on other images"),
    ({"X": IMAGES[:19]}, "on other images"),
    ({"epochs": 5}, r"with other settings \(epochs\)"),
    (
        {"random_state": 1, "learning_rate": 0.1, "channels": (4, 8)},
        r"with other settings \(learning_rate, channels, seed\)",
    ),
    (
        {"batch_size": 7, "layers_per_block": 2, "patch_size": 2, "ema_decay": 0.5, "precision": "bf16"},
        r"with other settings \(batch_size, layers_per_block, patch_size, ema_decay, precision\)",
    ),
    (
        {"max_timestep": 399, "dtype": "bfloat16"},
        r"with other settings \(max_timestep, dtype\)",
    ),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folders of a training that is finished, and of one that was stopped in its third step. Tests get copies."""
    finished, unfinished = tmp_path_factory.mktemp("finished"), tmp_path_factory.mktemp("unfinished")
    train(folder=finished)
    denoising_loss, calls = PixelBackbone.denoising_loss, count(1)

    def stop(backbone, x0, noise, timesteps):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return denoising_loss(backbone, x0, noise, timesteps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PixelBackbone, "denoising_loss", stop)
        with pytest.raises(KeyboardInterrupt):
            train(folder=unfinished, checkpoint_seconds=0)
    return {True: finished, False: unfinished}


@pytest.mark.parametrize(("change", "difference"), CHANGES)
@pytest.mark.parametrize("finished", [True, False])
def test_folder_of_another_training_is_refused_untouched(change, difference, finished, trained, tmp_path):
    shutil.copytree(trained[finished], tmp_path, dirs_exist_ok=True)
    before = contents(tmp_path)
    assert ("training.safetensors" in before) != finished
    kind = "a backbone" if finished else "an unfinished training"
    with pytest.raises(ValueError, match=f"{tmp_path} holds {kind}.* {difference}: choose another folder"):
        train(**{"folder": tmp_path, "checkpoint_seconds": 0, **change})
    assert contents(tmp_path) == before


@pytest.mark.parametrize("finished", [True, False])
def test_seed_and_precision_are_those_found_unless_asked_for(finished, tmp_path, steps, monkeypatch):
    steps.stop = set() if finished else {7}
    try:
        train(folder=tmp_path, checkpoint_seconds=0, random_state=5)
    except KeyboardInterrupt:
        assert not finished
    monkeypatch.setattr(settings, "has_native_bf16", lambda device: True)
    backbone = train(folder=tmp_path, random_state=None, precision="auto")
    assert backbone.recipe["settings"]["seed"] == 5
    assert backbone.recipe["settings"]["precision"] == "fp32"
    assert result(backbone) == result(train(random_state=5))


@pytest.mark.parametrize("at", [4, STEPS])
def test_training_that_diverges_is_told_of_and_leaves_nothing(at, tmp_path, steps, monkeypatch):
    step = torch.optim.AdamW.step

    def explode(optimizer, *args, **kwargs):
        step(optimizer, *args, **kwargs)
        if len(steps.lr) == at:
            for parameter in optimizer.param_groups[0]["params"]:
                parameter.data.fill_(math.nan)

    monkeypatch.setattr(torch.optim.AdamW, "step", explode)
    what = "denoising loss became nan at step 4" if at < STEPS else f"weights became infinite at step {STEPS}"
    with pytest.raises(FloatingPointError, match=f"diverged: the {what} of {STEPS}; lower learning_rate, .* 0.002"):
        train(folder=tmp_path, checkpoint_seconds=0)
    assert contents(tmp_path) == {}


def test_folder_of_a_backbone_from_elsewhere_is_refused_untouched(tmp_path, make_backbone):
    make_backbone().save_pretrained(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path} holds a backbone trained elsewhere: choose another folder"):
        train(folder=tmp_path)
    assert contents(tmp_path) == before


def test_folder_with_foreign_files_is_refused_untouched(tmp_path):
    for name in ("d.txt", "a.txt", "c.txt", "b.txt"):
        (tmp_path / name).write_text("mine")
    message = rf"folder must be new, empty or from an earlier call: {tmp_path} has a\.txt, b\.txt, c\.txt$"
    with pytest.raises(ValueError, match=message):
        train(folder=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt", "c.txt", "d.txt"]
    assert set(contents(tmp_path).values()) == {b"mine"}
    with pytest.raises(ValueError, match=r"folder must be a folder; .*a\.txt is a file"):
        train(folder=tmp_path / "a.txt")


# Progress


def test_progress_is_shown_when_asked_for(tmp_path, steps, capsys):
    train()
    assert capsys.readouterr() == ("", "")
    steps.batches.clear()
    steps.stop = {3}
    with pytest.raises(KeyboardInterrupt):
        train(folder=tmp_path, checkpoint_seconds=0, verbose=True)
    assert "2/12" in capsys.readouterr().err
    backbone = train(folder=tmp_path, checkpoint_seconds=0, verbose=1)
    shown = capsys.readouterr().err
    assert "12/12" in shown
    assert f"loss {backbone.recipe['loss'][-1]:.4f}" in shown


def test_progress_is_shown_in_several_threads():
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: train(epochs=1, verbose=True).fingerprint(), range(2)))
    assert found == [train(epochs=1).fingerprint()] * 2


def test_epochs_are_logged(caplog):
    with caplog.at_level(logging.INFO, "skdiec"):
        backbone = train()
    loss = backbone.recipe["loss"]
    messages = [f"epoch {epoch} of 4: denoising loss {loss[epoch - 1]:.5f}" for epoch in (1, 2, 3, 4)]
    assert [record.message for record in caplog.records] == messages


# Errors


def _start(value):
    return re.escape(repr(value)[:15])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        *((name, value, f"{name} must be an int of at least 1; got {_start(value)}")
          for name in ("epochs", "batch_size", "layers_per_block", "patch_size")
          for value in (0, -1, 1.5, "2", True, np.True_, np.float64(2), Fraction(2))),
        *((name, value, f"{name} must be at most .*; got {value}")
          for name in ("epochs", "batch_size", "layers_per_block", "patch_size")
          for value in (2**63, 10**30)),
        ("epochs", np.array(2), r"epochs must be an int of at least 1; got array\(2\)"),
        ("channels", (2**31,), "channels must be at most 1048576; got 2147483648"),
        ("channels", (2**20,), r"channels=\(1048576,\), .* make a network of .* parameters, .* GiB"),
        ("channels", (1,) * 9, "channels must be for at most 8 resolutions; got 9"),
        ("channels", [[8], [8, 8]], "channels must be a sequence of at least one int"),
        ("channels", "8", "channels must be a sequence of at least one int; got '8'"),
        ("channels", count(), r"channels must be a sequence of at least one int; got count\(0\)"),
        ("patch_size", 10**9, "patch_size must be at most 1024; got 1000000000"),
        ("channels", (8, 0), "channels must be an int of at least 1; got 0"),
        ("channels", (8, 1.5), "channels must be an int of at least 1; got 1.5"),
        ("channels", (), r"channels must be a sequence of at least one int; got \(\)"),
        ("channels", 8, "channels must be a sequence of at least one int; got 8"),
        *(("learning_rate", value, f"learning_rate must be a number above 0 and at most 1; got {_start(value)}")
          for value in (0, -1e-3, math.nan, math.inf, "0.1", None, 1.5, 1e308, 10**400, True, np.True_, Decimal(1))),
        *(("ema_decay", value, rf"ema_decay must be in \[0, 1\); got {_start(value)}")
          for value in (-0.1, 1, math.nan, "0.1", None, False, np.array(0.5))),
        *(("precision", value, f"precision must be 'auto', 'fp32' or 'bf16'; got {_start(value)}")
          for value in ("fp16", None, torch.bfloat16, np.array("fp32"))),
        *(("dtype", value, f"dtype must be 'float32' or 'bfloat16'; got {value!r}")
          for value in ("float16", None)),
        *(("max_timestep", value, f"max_timestep must be an int from 0 to 999; got {value!r}")
          for value in (-1, 1000, 1.5, True, None)),
        *(("verbose", value, "verbose must be a bool or an int of at least 0; got")
          for value in (-1, 0.5, "yes", None, np.zeros(2))),
        ("device", "meta", "device must be one that this machine computes on; got 'meta'"),
        ("device", 1.5, "device must be one that torch knows, such as 'cpu' or 'cuda'; got 1.5"),
        ("folder", 3, "folder must be a path or None; got int"),
        ("folder", "a\0b", "folder cannot be used: embedded null byte"),
        ("folder", "x" * 5000, "folder cannot be used: File name too long"),
        ("device", "abacus", "device must be one that torch knows, such as 'cpu' or 'cuda'; got 'abacus'"),
        *(("random_state", value, rf"random_state must be an int from 0 to 2\*\*32 - 1, or None; got {value!r}")
          for value in (-1, 2**32, 1.0, "0", True, np.False_)),
        *(("checkpoint_seconds", value, f"checkpoint_seconds must be a number of at least 0; got {_start(value)}")
          for value in (-1, math.nan, "60", None, True, 10**400)),
        ("value_range", (1, 0), "value_range must be two finite numbers"),
        ("channel_axis", 2, "channel_axis must be None, 1 or -1"),
        ("image_shape", (4, 5), r"image_shape \(1, 4, 5\) .*does not fit X"),
        ("X", np.zeros((0, 4, 4)), "X must hold at least one image"),
        ("X", IMAGES / 255, "value_range must be stated"),
    ],
)  # fmt: skip
def test_wrong_settings_are_told_of_before_anything_is_written(name, value, message, tmp_path):
    folder = tmp_path / "folder"
    with pytest.raises(ValueError, match=message):
        train(**{"folder": folder, name: value})
    assert not folder.exists()


def test_number_of_too_many_digits_to_show_is_told_of():
    with pytest.raises(ValueError, match=r"epochs must be at most .*; got a int"):
        train(epochs=10**5000)


def test_step_that_does_not_fit_into_memory_is_told_of(monkeypatch):
    monkeypatch.setattr(settings, "total_memory", lambda device: 2**22)
    train(epochs=1)
    with pytest.raises(ValueError, match=r"batch_size=500 with channels=.* takes more than 0 GiB for a step; cpu"):
        train(np.zeros((500, 16, 16), dtype=np.uint8), batch_size=500, patch_size=1)


def test_pretraining_has_the_parameters_of_pretrain():
    of_pretrain = inspect.signature(pretrain).parameters
    of_fit = {"X", "image_shape", "channel_axis", "value_range", "device", "verbose", "report"}
    expected = {name: parameter.default for name, parameter in of_pretrain.items() if name not in of_fit}
    assert Pretraining().get_params() == expected
    given = {name: object() for name in expected}
    assert Pretraining(**given).get_params() == given


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"epochs": 0}, "epochs must be an int of at least 1; got 0"),
        ({"checkpoint_seconds": -1}, "checkpoint_seconds must be a number of at least 0; got -1"),
        ({"folder": "here"}, "folder must be new, empty or from an earlier call: here has holiday.txt"),
    ],
)
def test_untrained_backbone_tells_of_wrong_parameters(parameters, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "holiday.txt").write_text("mine")
    with pytest.raises(ValueError, match=message):
        untrained_backbone(as_image_source(IMAGES), Pretraining(**parameters), torch.device("cpu"))


def test_untrained_backbone_is_what_is_trained():
    wanted = Pretraining(channels=(8, 16), patch_size=2, epochs=1, random_state=3)
    before = untrained_backbone(as_image_source(IMAGES), wanted, torch.device("cpu"))
    trained = pretrain(IMAGES, **wanted.get_params())
    assert before.network.config == trained.network.config
    assert before.recipe["settings"] == trained.recipe["settings"]
    assert before.fingerprint() != trained.fingerprint()


def test_report_is_told_of_every_step():
    told = []
    backbone = train(epochs=2, batch_size=16, report=lambda *step: told.append(step))
    n_steps = backbone.recipe["steps"]
    assert [(done, total) for done, total, _ in told] == [(step, n_steps) for step in range(1, n_steps + 1)]
    steps_per_epoch = n_steps // 2
    first = [loss for _, _, loss in told[:steps_per_epoch]]
    assert all(math.isfinite(loss) and loss > 0 for loss in first)
    assert len(set(first)) == steps_per_epoch
    assert first[-1] == told[steps_per_epoch][2] == pytest.approx(backbone.recipe["loss"][0], abs=1e-6)
    assert told[-1][2] == pytest.approx(backbone.recipe["loss"][-1], abs=1e-6)


def test_training_that_report_ends_goes_on_in_its_folder(tmp_path):
    whole = train(epochs=2, batch_size=16)
    part = train(epochs=2, batch_size=16, report=lambda done, total, loss: done == 2)
    assert part.recipe["steps"] == 2
    kept = train(folder=tmp_path, epochs=2, batch_size=16, report=lambda done, total, loss: done == 2)
    assert part.fingerprint() == kept.fingerprint()
    assert not (tmp_path / "model_index.json").exists()
    told = []
    resumed = train(folder=tmp_path, epochs=2, batch_size=16, report=lambda done, *_: told.append(done))
    assert told[0] == 3
    assert resumed.fingerprint() == whole.fingerprint()


@pytest.mark.parametrize(("max_minutes", "n_steps"), [(0.1, 6), (np.float64(0.05), 3), (1e-9, 1), (5, STEPS)])
def test_time_ends_the_training_with_its_schedule_at_the_end(max_minutes, n_steps, clock, monkeypatch):
    rates = []
    step = torch.optim.AdamW.step

    def watched(optimizer, *arguments):
        rates.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    told = []
    backbone = train(max_minutes=max_minutes, report=lambda done, total, loss: told.append((done, total)))
    assert backbone.recipe["steps"] == len(rates) == n_steps
    assert told[-1] == (n_steps, n_steps)
    if n_steps == 6:  # after s seconds, half a step more than s steps would be: the later of the two shares
        shares = [max(seconds / 6, (seconds + 0.5) / STEPS) for seconds in range(6)]
        expected = [0.5 * (1 + math.cos(math.pi * (share - 0.05) / 0.95)) if share > 0.05 else share / 0.05
                    for share in shares]  # fmt: skip
        np.testing.assert_allclose(rates, 2e-3 * np.array(expected), rtol=1e-6)


def test_training_whose_time_is_up_is_finished(tmp_path, clock):
    first = train(folder=tmp_path, max_minutes=0.1)
    assert first.recipe["steps"] == 6
    assert result(train(folder=tmp_path, max_minutes=0.1)) == result(first)
    assert not (tmp_path / "training.safetensors").exists()
    with pytest.raises(ValueError, match=r"with other settings \(max_minutes\)"):
        train(folder=tmp_path)


def test_report_that_cannot_be_called_is_told_of():
    with pytest.raises(ValueError, match="report must be a callable or None; got 3"):
        train(epochs=1, report=3)


def test_every_parameter_has_a_test_of_its_wiring():
    tested = {
        *("X", "folder", "image_shape", "channel_axis", "value_range", "epochs", "batch_size", "learning_rate"),
        *("channels", "layers_per_block", "patch_size", "ema_decay", "precision", "device", "checkpoint_seconds"),
        *("max_timestep", "dtype", "max_minutes", "standardize"),
        "architecture",  # in tests/test_pixel_transformer.py
        *("random_state", "verbose", "report"),
    }
    assert set(inspect.signature(pretrain).parameters) == tested
