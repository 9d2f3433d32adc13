"""Transformers over pixels: trained, saved, loaded, and compared with diffusers' own forward pass."""

import copy
import hashlib
import json
import logging
import math
import pickle
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from backbone_checks import (
    assert_features_of_a_row_are_the_same_in_any_batch,
    assert_map_changes_most_where_the_image_does,
    maps_of,
    noise,
)
from PIL import Image
from sklearn.base import clone
from typer.testing import CliRunner

import skdiec
from skdiec import DiffusionEmbeddedClustering, Pretraining, load_backbone, pretrain
from skdiec.activations import capture
from skdiec.backbones import settings as settings_module
from skdiec.backbones import untrained_backbone
from skdiec.backbones.base import Backbone
from skdiec.backbones.pixel_transformer import PixelTransformerBackbone
from skdiec.cli import app
from skdiec.features import FeatureExtractor
from skdiec.images import as_image_source

IMAGES = np.repeat(np.arange(20, dtype=np.uint8) * 12, 16).reshape(20, 4, 4)
SMALL = {"architecture": "transformer", "channels": (8,), "layers_per_block": 2, "batch_size": 8, "precision": "fp32"}


def train(X=IMAGES, folder=None, **changes):
    return pretrain(X, folder, **{**SMALL, "epochs": 2, "random_state": 0, "device": "cpu", **changes})


def untrained(shape, **changes):
    X = np.zeros((2, *shape), dtype=np.uint8)
    wanted = Pretraining(architecture="transformer", random_state=0, **changes)
    return untrained_backbone(as_image_source(X, channel_axis=1), wanted, torch.device("cpu"))


def result(backbone):
    recipe = {name: value for name, value in backbone.recipe.items() if name not in ("seconds", "request")}
    return backbone.fingerprint(), recipe


def loosened(backbone):
    """The same with weights that are far from zero, so that what a layer does shows."""
    generator = torch.Generator().manual_seed(1)
    for parameter in backbone.network.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return backbone


# The network


@pytest.mark.parametrize(
    ("shape", "patch_size", "input_shape"),
    [
        ((1, 1, 1), 1, (1, 1, 1)),
        ((3, 8, 8), 1, (3, 8, 8)),
        ((1, 16, 16), 2, (1, 16, 16)),
        ((1, 9, 3), 2, (1, 10, 4)),
        ((3, 32, 20), 2, (3, 32, 20)),
        ((3, 96, 61), 8, (3, 96, 64)),
    ],
)
def test_default_transformer_follows_the_size_of_the_images(shape, patch_size, input_shape):
    backbone = untrained(shape)
    assert (backbone.image_shape, backbone.input_shape) == (shape, input_shape)
    assert backbone.grid() == (input_shape[1] // patch_size, input_shape[2] // patch_size)
    config = backbone.network.config
    assert (config.patch_size, config.num_layers, config.sample_size) == (patch_size, 6, max(input_shape[1:]))
    assert (config.num_attention_heads, config.attention_head_dim, config.num_embeds_ada_norm) == (3, 32, 0)
    assert backbone.recipe["settings"]["channels"] == [96]
    assert backbone.layers() == [f"transformer_blocks.{index}" for index in range(6)]
    shapes = FeatureExtractor(backbone).layer_shapes()
    assert shapes == {layer: (96, *backbone.grid()) for layer in backbone.layers()}


@pytest.mark.parametrize(
    ("change", "config"),
    [
        ({"channels": (12,)}, {"num_attention_heads": 1, "attention_head_dim": 12}),
        ({"channels": np.array([40])}, {"num_attention_heads": 2, "attention_head_dim": 20}),
        ({"layers_per_block": 3}, {"num_layers": 3}),
        ({"patch_size": 4}, {"patch_size": 4, "sample_size": 12}),
        ({"patch_size": 1}, {"patch_size": 1, "sample_size": 9}),
    ],
)
def test_transformer_follows_the_settings(change, config):
    found = untrained((1, 9, 9), **{"channels": (8,), "layers_per_block": 2, **change}).network.config
    assert {name: found[name] for name in config} == config


@pytest.mark.parametrize(
    ("shape", "patch_size"), [((1, 8, 8), 2), ((3, 8, 4), 2), ((1, 3, 12), 3), ((1, 16, 4), 2), ((1, 5, 7), 1)]
)
def test_prediction_is_that_of_the_tokens_wherever_they_lie(shape, patch_size):
    """Also where diffusers would take them for those of a square, as 16 x 4, or for none at all."""
    backbone = loosened(untrained(shape, channels=(8,), layers_per_block=2, patch_size=patch_size))
    x, timesteps = noise(3, *backbone.input_shape), torch.tensor([1, 30, 200])
    seen = []
    handle = backbone.network.proj_out_2.register_forward_hook(lambda module, inputs, _: seen.append(inputs[0]))
    with torch.no_grad():
        found = backbone.predict(x, timesteps)
        handle.remove()
        tokens = torch.nn.functional.linear(seen[0], *backbone.network.proj_out_2.parameters())
    expected = torch.full_like(x, math.nan)
    columns = x.shape[3] // patch_size
    for index in range(tokens.shape[1]):
        top, left = patch_size * (index // columns), patch_size * (index % columns)
        square = tokens[:, index].reshape(3, patch_size, patch_size, shape[0]).permute(0, 3, 1, 2)
        expected[:, :, top : top + patch_size, left : left + patch_size] = square
    torch.testing.assert_close(found, expected)
    if shape[1] == shape[2]:
        with torch.no_grad():
            torch.testing.assert_close(
                found, backbone.network(x, timesteps, class_labels=torch.zeros(3, dtype=torch.long)).sample
            )


def test_layers_are_what_a_hook_on_the_network_sees_in_order():
    backbone = loosened(untrained((1, 6, 10), channels=(8,), layers_per_block=3, patch_size=2))
    x, timesteps, seen = noise(2, 1, 6, 10), torch.tensor([5, 50]), {}
    for name, block in backbone.network.transformer_blocks.named_children():
        block.register_forward_hook(lambda module, inputs, output, name=name: seen.setdefault(name, output))
    with torch.no_grad():
        maps = capture(
            backbone.network, lambda: backbone.predict(x, timesteps), backbone.layers(), lambda _, x: x, backbone.to_map
        )
    assert list(seen) == ["0", "1", "2"]
    for name, output in seen.items():
        for index in range(15):
            row, column = divmod(index, 5)
            assert torch.equal(maps[f"transformer_blocks.{name}"][:, :, row, column], output[:, index])
    assert backbone.to_map("pos_embed", noise(2, 15, 8)) is None


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 8, 12)])
def test_map_changes_most_where_the_image_does(shape):
    backbone = untrained(shape, channels=(8,), layers_per_block=1, patch_size=2)
    assert_map_changes_most_where_the_image_does(backbone, 10, tolerance=0)


def test_three_steps_and_all_layers_are_those_of_the_pipeline(tmp_path):
    loosened(untrained((3, 6, 6), channels=(8,), layers_per_block=3, patch_size=2)).save_pretrained(tmp_path)
    pipeline = diffusers.DiTPipeline.from_pretrained(tmp_path, vae=None)
    scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    scheduler.set_timesteps(3)
    backbone, label = load_backbone(tmp_path), torch.tensor([0])
    layers = [f"transformer_blocks.{block}" for block in range(3)]
    assert list(FeatureExtractor(backbone).layer_shapes()) == layers
    seen = []
    for layer in layers:
        pipeline.transformer.get_submodule(layer).register_forward_hook(
            lambda module, inputs, output: seen.append(output)
        )
    x_t = sample = noise(1, 3, 6, 6)
    for t, following in zip(scheduler.timesteps, [*scheduler.timesteps[1:], None], strict=True):
        with torch.no_grad():
            output = pipeline.transformer(sample, t[None], label).sample
            x0, e = backbone.levels.at(t[None]).estimates(x_t, backbone.predict(x_t, t[None]))
        for found, tokens in zip(maps_of(backbone, layers, x_t, int(t)).values(), seen, strict=True):
            expected = tokens.reshape(1, 3, 3, 8).permute(0, 3, 1, 2)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        seen.clear()
        sample = scheduler.step(output, t, sample).prev_sample
        level = None if following is None else backbone.levels.at(following[None])
        x_t = x0 if level is None else level.signal * x0 + level.noise * e
        torch.testing.assert_close(x_t, sample, atol=1e-5, rtol=1e-5)


def test_noise_and_loss_are_those_of_the_pipeline(tmp_path):
    loosened(untrained((3, 6, 6), channels=(8,), layers_per_block=2, patch_size=2)).save_pretrained(tmp_path)
    pipeline = diffusers.DiTPipeline.from_pretrained(tmp_path, vae=None)
    backbone, timesteps = load_backbone(tmp_path), torch.tensor([20, 300])
    x0, e = backbone.prepare(noise(2, 3, 6, 6).clamp(-1, 1)), noise(2, 3, 6, 6, seed=1)
    x_t = pipeline.scheduler.add_noise(x0, e, timesteps)
    assert torch.equal(backbone.add_noise(x0, e, timesteps), x_t)
    with torch.no_grad():
        output = pipeline.transformer(x_t, timesteps, torch.tensor([0, 0])).sample
        loss = backbone.denoising_loss(x0, e, timesteps)
    assert loss.item() == pytest.approx((output - e).square().mean().item(), rel=1e-5)


def test_untrained_transformer_estimates_nothing_and_its_blocks_are_identities():
    backbone = untrained((1, 4, 4), channels=(8,), layers_per_block=2)
    x, timesteps = noise(3, 1, 4, 4), torch.tensor([1, 30, 200])
    with torch.no_grad():
        assert not backbone.predict(x, timesteps).any()
        tokens = backbone.network.pos_embed(x)
        maps = capture(
            backbone.network, lambda: backbone.predict(x, timesteps), backbone.layers(), lambda _, x: x, backbone.to_map
        )
    for found in maps.values():
        assert torch.equal(found.flatten(2).transpose(1, 2), tokens)


def test_images_are_filled_to_whole_patches_and_decoded_without():
    backbone = untrained((1, 5, 7), channels=(8,), patch_size=4)
    images = noise(2, 1, 5, 7)
    prepared = backbone.prepare(images)
    expected = np.pad(images.numpy(), ((0, 0), (0, 0), (1, 2), (0, 1)), mode="edge")
    np.testing.assert_array_equal(prepared.numpy(), expected)
    assert torch.equal(backbone.decode(prepared), images)


# Training


def test_loss_falls_on_images_that_can_be_learnt():
    images = np.zeros((32, 3, 8), dtype=np.uint8)
    images[::2, :, :4] = images[1::2, :, 4:] = 255
    backbone = train(images, epochs=30, learning_rate=1e-2, ema_decay=0.9)
    loss = backbone.recipe["loss"]
    assert np.mean(loss[-5:]) < 0.45 < 0.8 < loss[0]
    assert not any(module.training for module in backbone.network.modules())
    assert not any(parameter.requires_grad for parameter in backbone.network.parameters())


def test_training_is_seeded_and_leaves_global_random_states_alone(rng_untouched):
    with rng_untouched():
        first, second = train(), train()
    assert result(first) == result(second)
    assert train(random_state=1).fingerprint() != first.fingerprint()
    assert first.recipe["settings"]["architecture"] == "transformer"


def test_every_weight_is_trained():
    before, after = untrained((1, 4, 4), channels=(8,), layers_per_block=2), train()
    for (name, old), new in zip(before.network.named_parameters(), after.network.parameters(), strict=True):
        # The same number added to all keys of a query changes no attention.
        assert torch.equal(old, new) == name.endswith("to_k.bias"), name


@pytest.mark.parametrize("stop", [1, 4])
def test_resumed_training_equals_an_uninterrupted_one(stop, tmp_path):
    def at(done, total, loss):
        return done == stop

    part = train(folder=tmp_path, report=at)
    assert part.recipe["steps"] == stop
    assert (tmp_path / "training.safetensors").exists()
    assert result(train(folder=tmp_path)) == result(train())
    assert not (tmp_path / "training.safetensors").exists()


def test_finished_folder_is_loaded_by_us_and_by_diffusers(tmp_path, caplog):
    X = np.random.default_rng(0).integers(0, 256, (20, 6, 6, 3), dtype=np.uint8)
    backbone = train(X, tmp_path)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*") if path.name != ".lock")
    assert files == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "skdiec.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
    ]
    with caplog.at_level(logging.INFO, "skdiec"):
        assert train(X, tmp_path).fingerprint() == backbone.fingerprint()
    assert "loading the backbone that was trained before" in caplog.text
    for path in (tmp_path, tmp_path / "transformer"):
        assert result(load_backbone(path)) == result(backbone)
    x, timesteps, classes = noise(2, 3, 6, 6), torch.tensor([3, 300]), torch.tensor([0, 0])
    pipeline = diffusers.DiTPipeline.from_pretrained(tmp_path, vae=None)
    alone = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path, subfolder="transformer")
    for network in (pipeline.transformer, alone):
        with torch.no_grad():
            assert torch.equal(network(x, timesteps, classes).sample, backbone.predict(x, timesteps))
    assert load_backbone(pipeline).fingerprint() == backbone.fingerprint()
    assert dict(pipeline.scheduler.config)["num_train_timesteps"] == 1000


def test_other_architecture_is_another_training(tmp_path):
    train(folder=tmp_path)
    with pytest.raises(ValueError, match=r"trained with other settings \(architecture\)"):
        pretrain(IMAGES, tmp_path, **{**SMALL, "architecture": "unet", "epochs": 2, "random_state": 0})


def test_folder_of_before_there_were_transformers_is_one_of_a_unet(tmp_path):
    unet = {**SMALL, "architecture": "unet", "epochs": 1, "random_state": 0}
    first = pretrain(IMAGES, tmp_path, **unet)
    record = json.loads((tmp_path / "skdiec.json").read_text())
    del record["request"]["settings"]["architecture"], record["settings"]["architecture"]
    (tmp_path / "skdiec.json").write_text(json.dumps(record))
    assert pretrain(IMAGES, tmp_path, **unet).fingerprint() == first.fingerprint()


def test_weights_are_rounded_to_the_type_they_are_saved_in(tmp_path):
    backbone = train(folder=tmp_path, dtype="bfloat16")
    for parameter in backbone.network.parameters():
        assert torch.equal(parameter, parameter.bfloat16().float())
    loaded = load_backbone(tmp_path)
    assert loaded.dtype == torch.float32
    assert loaded.fingerprint() == backbone.fingerprint() != train().fingerprint()
    size = (tmp_path / "transformer" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert size < 3 * sum(parameter.numel() for parameter in backbone.network.parameters())
    with pytest.raises(ValueError, match="dtype must be 'float32' or 'bfloat16'; got 'float16'"):
        backbone.save_pretrained(tmp_path, dtype="float16")


def test_bf16_trains_in_autocast(monkeypatch):
    seen, loss = [], Backbone.denoising_loss

    def watched(backbone, *arguments):
        seen.append(torch.is_autocast_enabled("cpu"))
        return loss(backbone, *arguments)

    monkeypatch.setattr(Backbone, "denoising_loss", watched)
    assert train(precision="bf16").recipe["loss"] == pytest.approx(train().recipe["loss"], rel=0.05)
    assert seen == [True] * 6 + [False] * 6


def test_timesteps_up_to_the_last_can_be_trained_on_and_sampled_from(tmp_path):
    backbone = train(folder=tmp_path, max_timestep=999)
    assert (backbone.max_timestep, train().max_timestep) == (999, 400)
    assert load_backbone(tmp_path).max_timestep == 999
    from skdiec.backbones import make_sampler

    sampler, x = make_sampler(backbone, 3), noise(2, 1, 4, 4)
    for timestep in sampler.timesteps:
        x = sampler.step(backbone.predict(x, timestep), timestep, x).prev_sample
    assert backbone.decode(x).isfinite().all()


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 3, 5)])
def test_copies_and_pickles_predict_the_same(shape):
    backbone = loosened(untrained(shape, channels=(8,), layers_per_block=2, patch_size=1))
    x, timesteps = noise(2, *shape), torch.tensor([1, 100])
    with torch.no_grad():
        expected = backbone.predict(x, timesteps)
        for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone)), backbone.copy()):
            assert torch.equal(twin.predict(x, timesteps), expected)
            assert twin.fingerprint() == backbone.fingerprint()
        outlined = backbone.outline().predict(x.to("meta"), timesteps.to("meta"))
    assert (outlined.device.type, outlined.shape) == ("meta", x.shape)


# Errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "dit"}, "architecture must be 'unet' or 'transformer'; got 'dit'"),
        ({"architecture": None}, "architecture must be 'unet' or 'transformer'; got None"),
        ({"channels": (8, 16)}, r"channels must be one multiple of 4 for architecture='transformer', .* got \(8, 16\)"),
        ({"channels": (10,)}, r"channels must be one multiple of 4 for architecture='transformer', .* got \(10,\)"),
        ({"layers_per_block": 17}, "layers_per_block must be at most 16; got 17"),
        ({"channels": (2**20,)}, r"channels=\(1048576,\), .* make a network of .* parameters"),
    ],
)
def test_wrong_settings_are_told_of_before_anything_is_written(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(folder=tmp_path / "new", **changes)
    assert not (tmp_path / "new").exists()


def test_step_that_does_not_fit_into_memory_is_told_of(monkeypatch):
    monkeypatch.setattr(settings_module, "total_memory", lambda device: 2**22)
    train(epochs=1)
    with pytest.raises(ValueError, match=r"batch_size=500 with channels=.* takes more than 0 GiB for a step; cpu"):
        train(np.zeros((500, 16, 16), dtype=np.uint8), batch_size=500, patch_size=1)


def network(**config):
    sizes = {"num_attention_heads": 1, "attention_head_dim": 8, "num_layers": 1, "num_embeds_ada_norm": 3}
    return diffusers.DiTTransformer2DModel(**{**sizes, "sample_size": 4, "in_channels": 1, **config})


def test_transformer_from_elsewhere_is_told_the_class_that_stands_for_none():
    model = network(out_channels=2).eval()
    found = load_backbone(SimpleNamespace(transformer=model, scheduler=diffusers.DDIMScheduler()))
    assert (type(found), found.image_shape, found.max_timestep) == (PixelTransformerBackbone, (1, 4, 4), 999)
    x, timesteps = noise(2, 1, 4, 4), torch.tensor([1, 100])
    with torch.no_grad():
        expected = model(x, timesteps, torch.tensor([3, 3])).sample[:, :1]
        torch.testing.assert_close(found.predict(x, timesteps), expected)


@pytest.mark.parametrize(
    ("config", "scheduler", "options", "message"),
    [
        ({"in_channels": 4}, diffusers.DDPMScheduler(), {}, "DiT of 4 channels without an autoencoder: whether"),
        ({"out_channels": 5}, diffusers.DDPMScheduler(), {}, r"out_channels must be one of \[1, 2\]|out_channels"),
        ({}, diffusers.FlowMatchEulerDiscreteScheduler(), {}, "scheduler of DiT over pixels must be a DDPMScheduler"),
        ({}, diffusers.DDPMScheduler(), {"image_size": 8}, "image_size is not for DiT over pixels; got 8"),
        ({}, diffusers.DDPMScheduler(), {"null_class": 1}, "null_class is not for DiT over pixels; got 1"),
    ],
)
def test_what_does_not_fit_is_refused(config, scheduler, options, message):
    pipeline = SimpleNamespace(transformer=network(**config), scheduler=scheduler)
    with pytest.raises(ValueError, match=message):
        load_backbone(pipeline, **options)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"image_shape": [1, 9, 4]}, r"image_shape \(1, 9, 4\) does not fit the network, .* of 1 channels .* is 4"),
        ({"image_shape": [3, 4, 4]}, r"image_shape \(3, 4, 4\) does not fit the network"),
        ({"image_shape": "4"}, "image_shape must be"),
        ({"settings": {"max_timestep": 1000}}, "max_timestep must be .* 0 to 999; got 1000"),
    ],
)
def test_record_that_does_not_fit_is_refused(record, message, tmp_path):
    backbone = train(folder=tmp_path)
    (tmp_path / "skdiec.json").write_text(json.dumps({**backbone.record(), **record}))
    with pytest.raises(ValueError, match=message):
        load_backbone(tmp_path)


# Clustering


@pytest.mark.parametrize("shape", [(8, 8), (5, 9, 3)])
def test_fit_predict_save_and_load(shape, planted, tmp_path):
    images, _ = planted(shape)
    model = DiffusionEmbeddedClustering(
        3, backbone=Pretraining(**SMALL, epochs=2), timestep=(50, 100), max_epochs=1, n_init=2, random_state=0
    ).fit(images)
    assert type(model.backbone_) is PixelTransformerBackbone
    assert set(model.search_result_.layers) == {"transformer_blocks.0", "transformer_blocks.1"}
    np.testing.assert_array_equal(model.predict(images), model.labels_)
    model.save(tmp_path / "model")
    loaded = skdiec.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict_proba(images), model.predict_proba(images))
    assert loaded.backbone.architecture == "transformer"
    assert loaded.backbone_.fingerprint() == model.backbone_.fingerprint()


def test_architecture_can_be_searched_for(planted):
    images, _ = planted((4, 4), size=8)
    cheap = Pretraining(channels=(8,), epochs=1)
    base = DiffusionEmbeddedClustering(
        3, backbone=cheap, timestep=50, pooling=1, max_epochs=1, n_init=1, random_state=0
    )
    kinds = {}
    for architecture in ("unet", "transformer"):
        model = clone(base).set_params(backbone__architecture=architecture).fit(images)
        kinds[architecture] = type(model.backbone_.network).__name__
    assert kinds == {"unet": "UNet2DModel", "transformer": "DiTTransformer2DModel"}
    with pytest.raises(ValueError, match="architecture must be 'unet' or 'transformer'; got 'gan'"):
        base.set_params(backbone__architecture="gan").fit(images)


def test_features_of_a_row_are_the_same_in_any_batch():
    backbone = loosened(untrained((1, 6, 10), channels=(8,), layers_per_block=2, patch_size=2))
    images = np.random.default_rng(0).integers(0, 256, (20, 6, 10), dtype=np.uint8)
    assert_features_of_a_row_are_the_same_in_any_batch(backbone, images, 50, atol=2e-6)


# Command line


def test_command_trains_a_transformer(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number, image in enumerate(IMAGES[:6]):
        Image.fromarray(image).save(images / f"{number}.png")
    folder = tmp_path / "backbone"
    options = ["--architecture", "transformer", "--channels", "8", "--layers-per-block", "1", "--epochs", "1"]
    done = CliRunner().invoke(app, ["pretrain", str(images), str(folder), *options, "--quiet"])
    assert done.exit_code == 0, done.output
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert (folder / "SHA256SUMS").read_text() == f"{digest}  transformer/{weights.name}\n"
    assert load_backbone(folder).network.config.num_layers == 1
    done = CliRunner().invoke(app, ["pretrain", str(images), str(tmp_path / "new"), "--architecture", "gan"])
    assert done.exit_code == 2
    assert "architecture must be 'unet' or 'transformer'; got 'gan'" in " ".join(done.output.split())
