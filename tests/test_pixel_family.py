"""Every kind of network over pixels: loaded, compared with diffusers' own pipelines, fitted, saved."""

import sys
from contextlib import suppress
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

import skdiec
from skdiec import DiffusionEmbeddedClustering, load_backbone
from skdiec.backbones import PixelBackbone
from skdiec.features import FeatureExtractor

SKIP = {
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
    "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
}
LAYERS = ("down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1")
TWO = {"block_out_channels": (8, 8), "in_channels": 3, "sample_size": 8}
FOURIER = {**TWO, **SKIP, "time_embedding_type": "fourier", "block_out_channels": (32, 32), "norm_num_groups": 32}

KINDS = {
    "DDPM": (diffusers.DDPMPipeline, TWO, diffusers.DDPMScheduler()),
    "DDIM": (diffusers.DDIMPipeline, TWO, diffusers.DDIMScheduler(beta_schedule="scaled_linear")),
    "cosine": (diffusers.DDPMPipeline, TWO, diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")),
    "v, zero SNR": (
        diffusers.DDIMPipeline, TWO,
        diffusers.DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True),
    ),
    "learned variance": (
        diffusers.DDPMPipeline, {**TWO, "out_channels": 6}, diffusers.DDPMScheduler(variance_type="learned_range"),
    ),
    "NCSN++": (diffusers.ScoreSdeVePipeline, FOURIER, diffusers.ScoreSdeVeScheduler()),
    "EDM": (diffusers.DDPMPipeline, TWO, diffusers.EDMEulerScheduler()),
    "consistency": (
        diffusers.ConsistencyModelPipeline,
        {**TWO, "num_class_embeds": 5, "resnet_time_scale_shift": "scale_shift"},
        diffusers.CMStochasticIterativeScheduler(),
    ),
}  # fmt: skip


@pytest.fixture(scope="session")
def pixel_folders(make_unet, tmp_path_factory):
    """A saved pipeline of each kind."""
    folders = {}
    for name, (pipeline, config, scheduler) in KINDS.items():
        folders[name] = tmp_path_factory.mktemp("pixels")
        pipeline(make_unet(**config), scheduler).save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="session")
def images():
    return np.random.default_rng(0).integers(0, 256, (20, 9, 9, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", KINDS)
def test_network_is_called_as_its_scheduler_calls_it(name, pixel_folders, make_unet):
    _, config, _ = KINDS[name]
    backbone, network = load_backbone(pixel_folders[name]), make_unet(**config).eval()
    assert type(backbone) is PixelBackbone
    x_t, timesteps = noise(3, 3, 8, 8), torch.tensor([1, 20, 30])
    level = backbone.levels.at(timesteps)
    if "num_class_embeds" in config:
        mean = network.class_embedding.weight.mean(0)
        network.class_embedding.register_forward_hook(lambda module, inputs, output: mean.expand_as(output))
        labels = torch.zeros(3, dtype=torch.long)
    else:
        labels = None
    with torch.no_grad():
        expected = network(level.scale * x_t, level.time, labels).sample[:, :3]
        found = backbone.predict(x_t, timesteps)
    torch.testing.assert_close(found, expected)
    assert found.isfinite().all()


class Done(Exception):
    """Three steps are enough."""


def three_steps(name, folder, start, monkeypatch):
    """What a pipeline's scheduler and its network's blocks saw and said, without noise between the steps."""
    kind = KINDS[name][0]
    pipeline = kind.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    scheduler, steps, blocks = pipeline.scheduler, [], {}
    for layer in LAYERS:
        blocks[layer] = []
        pipeline.unet.get_submodule(layer).register_forward_hook(
            lambda module, inputs, output, layer=layer: blocks[layer].append(
                output[0] if isinstance(output, tuple) else output
            )
        )
    monkeypatch.setattr(sys.modules[kind.__module__], "randn_tensor", lambda shape, **options: start, raising=False)
    if hasattr(sys.modules[type(scheduler).__module__], "randn_tensor"):
        monkeypatch.setattr(
            sys.modules[type(scheduler).__module__], "randn_tensor", lambda shape, **options: torch.zeros(shape)
        )
    method = "step_pred" if name == "NCSN++" else "step"
    real = getattr(scheduler, method)

    def watched(output, t, sample, *rest, **options):
        result = real(output, t, sample, *rest, **options)
        after = result[0] if isinstance(result, tuple) else result.prev_sample
        steps.append((float(t), sample, after))
        if len(steps) == 3:
            raise Done
        return result

    setattr(scheduler, method, watched)
    scheduler.register_to_config(**{key: False for key in ("clip_sample", "clip_denoised") if key in scheduler.config})
    with torch.no_grad(), suppress(Done):
        if name == "EDM":  # diffusers has its scheduler, but no pipeline of pixels that scales the network's input
            sample = start * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                output = pipeline.unet(scheduler.scale_model_input(sample, t), t).sample
                sample = scheduler.step(output, t, sample).prev_sample
        elif name == "consistency":
            pipeline(class_labels=[2], num_inference_steps=39)
        else:
            pipeline(num_inference_steps=2000 if name == "NCSN++" else 3)
    assert len(steps) == 3
    return steps, blocks


@pytest.mark.parametrize("name", KINDS)
def test_three_steps_and_all_layers_are_those_of_the_pipeline(name, pixel_folders, monkeypatch):
    backbone = load_backbone(pixel_folders[name], **({"null_class": 2} if name == "consistency" else {}))
    assert tuple(FeatureExtractor(backbone).layer_shapes()) == LAYERS
    steps, blocks = three_steps(name, pixel_folders[name], noise(1, 3, 8, 8), monkeypatch)
    last = len(backbone.levels) - 1
    is_vp = type(backbone.scheduler).__name__ == "DDPMScheduler"
    places = [round(step[0]) for step in steps] if is_vp else [last, last - 1, last - 2]
    x_t = steps[0][1]
    for number, (place, (_, sample, after)) in enumerate(zip(places, steps, strict=True)):
        level = backbone.levels.at(torch.tensor([place]))
        spread = level.noise.clamp(min=1)  # of 1,348 to begin with
        torch.testing.assert_close(x_t / spread, sample / spread, atol=1e-5, rtol=1e-5)
        passes = len(blocks["mid_block"]) // 3  # NCSN++ corrects before it predicts
        for layer, found in maps_of(backbone, LAYERS, sample, place).items():
            torch.testing.assert_close(found, blocks[layer][passes * (number + 1) - 1], atol=1e-5, rtol=1e-5)
        with torch.no_grad():
            x0, e = level.estimates(x_t, backbone.predict(x_t, torch.tensor([place])))
        following = places[number + 1] if number < 2 else place - 1 if not is_vp else None
        after_this = backbone.levels.at(torch.tensor([following or 0]))
        signal, sigma = (after_this.signal, after_this.noise) if following is not None else (1.0, 0.0)
        if name in ("DDPM", "cosine", "learned variance"):  # the mean of what comes before
            alpha = (level.signal / signal) ** 2
            x_t = (signal * (1 - alpha) * x0 + alpha**0.5 * (1 - signal**2) * x_t) / (1 - level.signal**2)
        elif name == "NCSN++":
            x_t = x_t - (level.noise**2 - sigma**2) / level.noise * e
        elif name == "consistency":
            x_t = x0
        else:
            x_t = signal * x0 + sigma * e
        torch.testing.assert_close(x_t / spread, after / spread, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_noise_and_loss_are_those_of_the_pipeline(name, pixel_folders):
    pipeline = KINDS[name][0].from_pretrained(pixel_folders[name])
    backbone = load_backbone(pixel_folders[name], **({"null_class": 2} if name == "consistency" else {}))
    network, scheduler = pipeline.unet, pipeline.scheduler
    x0, e = backbone.prepare(noise(2, 3, 8, 8).clamp(-1, 1)), noise(2, 3, 8, 8, seed=1)
    row, place = torch.tensor([30, 30]), len(backbone.levels) - 31
    with torch.no_grad():
        if name == "EDM":
            sigma = scheduler.sigmas[place]
            x_t = x0 + sigma * e
            output = network(scheduler.precondition_inputs(x_t, sigma), scheduler.precondition_noise(sigma)).sample
            wrong = scheduler.precondition_outputs(x_t, output, sigma) - x0
            expected = wrong / (sigma * 0.5 / (sigma**2 + 0.5**2).sqrt())  # as much at each level
        elif name == "consistency":
            scheduler.set_timesteps(39)
            sigma, t = scheduler.sigmas[place], scheduler.timesteps[place]
            x_t = x0 + sigma * e
            output = network(scheduler.scale_model_input(x_t, t), t, torch.tensor([2, 2])).sample
            skip, out = scheduler.get_scalings_for_boundary_condition(sigma)
            expected = (out * output + skip * x_t - x0) / out
        elif name == "NCSN++":
            sigma = scheduler.discrete_sigmas[30]
            x_t = x0 + sigma * e
            expected = sigma * network(x_t, sigma).sample + e  # the score is -e / sigma
        else:
            x_t = scheduler.add_noise(x0, e, row)
            target = scheduler.get_velocity(x0, e, row) if scheduler.config.prediction_type == "v_prediction" else e
            expected = network(x_t, row).sample[:, :3] - target
        torch.testing.assert_close(backbone.add_noise(x0, e, row), x_t, atol=1e-5, rtol=1e-5)
        loss = backbone.denoising_loss(x0, e, row)
    assert loss.item() == pytest.approx(expected.square().mean().item(), rel=1e-4)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("size", [8, (8, 12)])
def test_map_changes_most_where_the_image_does(name, size, make_unet):
    _, config, scheduler = KINDS[name]
    backbone = load_backbone(SimpleNamespace(unet=make_unet(**{**config, "sample_size": size}), scheduler=scheduler))
    assert backbone.image_shape == (3, 8, 8 if size == 8 else 12)
    # A convolution with a stride reaches over the edge of its cell.
    assert_map_changes_most_where_the_image_does(backbone, 20, tolerance=1)


@pytest.mark.parametrize("name", KINDS)
def test_features_of_a_row_are_the_same_in_any_batch(name, pixel_folders, images):
    assert_features_of_a_row_are_the_same_in_any_batch(load_backbone(pixel_folders[name]), images, 20, atol=2e-6)


def test_variance_exploding_wants_images_from_zero_to_one(pixel_folders):
    backbone = load_backbone(pixel_folders["NCSN++"])
    images = noise(2, 3, 8, 8).clamp(-1, 1)
    prepared = backbone.prepare(images)
    torch.testing.assert_close(prepared, (images + 1) / 2)
    torch.testing.assert_close(backbone.decode(prepared), images)
    e, timesteps = noise(2, 3, 8, 8, seed=1), torch.tensor([300, 900])
    # Half the contrast of images in [-1, 1] takes half the noise.
    assert backbone.nearest_timesteps([0.5]) == backbone.levels.nearest([0.25], 1999)
    sigma = backbone.levels.noise[timesteps]
    score = backbone.network(prepared + sigma.reshape(2, 1, 1, 1) * e, sigma).sample
    expected = (sigma.reshape(2, 1, 1, 1) * score + e).square().mean()
    torch.testing.assert_close(backbone.denoising_loss(prepared, e, timesteps), expected)


@pytest.mark.parametrize("name", KINDS)
def test_fit_predict_save_and_load(name, pixel_folders, images, tmp_path):
    model = DiffusionEmbeddedClustering(
        2, backbone=str(pixel_folders[name]), layer=("down_blocks.1", "mid_block"), pooling=1, n_init=2, max_epochs=2,
        warmup_epochs=1, n_draws=2, random_state=0,
    ).fit(images)  # fmt: skip
    backbone = load_backbone(pixel_folders[name])
    ratios = (backbone.levels.noise / backbone.levels.signal).numpy()[list(model.timesteps_)]
    ratios *= 2 / np.diff(backbone.value_range)
    linear = 1 / diffusers.DDPMScheduler().alphas_cumprod - 1
    wanted = linear.sqrt().numpy()[[10, 25, 50, 100, 150, 200, 300, 400]]
    assert len(model.timesteps_) == 8
    np.testing.assert_allclose(ratios, wanted, rtol=0.35)
    assert len(model.share_explained_) == 3
    labels = model.predict(images)
    np.testing.assert_array_equal(labels, model.labels_)
    model.save(tmp_path / "model")
    loaded = skdiec.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict_proba(images), model.predict_proba(images))
    assert loaded.backbone_.fingerprint() == model.backbone_.fingerprint()


def test_features_of_one_cell_are_those_of_a_loop_by_hand(pixel_folders, images):
    """Noised, scaled and timed by diffusers' own objects alone."""
    from skdiec.activations import Cell
    from skdiec.images import as_image_source

    backbone, scheduler = load_backbone(pixel_folders["EDM"]), diffusers.EDMEulerScheduler()
    extractor = FeatureExtractor(backbone, seed=3)
    cell = Cell("mid_block", 300, 1)
    found = extractor.extract(as_image_source(images), [cell])[cell]
    sigma = scheduler.sigmas[:-1].flip(0)[300]
    x0 = backbone.prepare(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1)
    x_t = scheduler.precondition_inputs(x0 + sigma * extractor.draws()[0].noise, sigma)
    seen = []
    backbone.network.mid_block.register_forward_hook(lambda module, inputs, output: seen.append(output.mean((2, 3))))
    with torch.no_grad():
        backbone.network(x_t, scheduler.precondition_noise(sigma))
    np.testing.assert_allclose(found, seen[0], atol=1e-5)


# Classes


def test_null_class_is_the_one_that_is_named_or_the_mean_of_all(make_unet, tmp_path):
    unet, scheduler = make_unet(**TWO, num_class_embeds=5).eval(), diffusers.DDPMScheduler()
    pipeline = diffusers.DDPMPipeline(unet, scheduler)
    x_t, timesteps = noise(4, 3, 8, 8), torch.tensor([0, 10, 20, 500])
    named = load_backbone(pipeline, null_class=4)
    with torch.no_grad():
        torch.testing.assert_close(named.predict(x_t, timesteps), unet(x_t, timesteps, torch.full((4,), 4)).sample)
    mean = load_backbone(pipeline)
    assert mean.null_class is None
    unet.class_embedding.weight.data[:] = unet.class_embedding.weight.mean(0, keepdim=True)
    with torch.no_grad():
        torch.testing.assert_close(mean.predict(x_t, timesteps), unet(x_t, timesteps, torch.full((4,), 1)).sample)
    assert named.fingerprint() != mean.fingerprint()
    named.save_pretrained(tmp_path)
    assert load_backbone(tmp_path).null_class == 4
    assert named.copy().null_class == 4
    assert len(unet.class_embedding._forward_hooks) == 0
    assert len(mean.copy().network.class_embedding._forward_hooks) == 1


@pytest.mark.parametrize("value", [5, -1, 1.0, "a", True])
def test_null_class_must_be_one_of_the_network(value, make_unet):
    pipeline = diffusers.DDPMPipeline(make_unet(**TWO, num_class_embeds=5), diffusers.DDPMScheduler())
    with pytest.raises(ValueError, match="null_class must be an integer from 0 to 4; got"):
        load_backbone(pipeline, null_class=value)
    with pytest.raises(ValueError, match=r"null_class is for networks that are told classes; got"):
        load_backbone(diffusers.DDPMPipeline(make_unet(**TWO), diffusers.DDPMScheduler()), null_class=value)
