"""Every kind of network over pixels: loaded, compared with diffusers' own pipelines, fitted, saved."""

import diffusers
import numpy as np
import pytest
import torch

import skdiec
from skdiec import DiffusionEmbeddedClustering, load_backbone
from skdiec.activations import capture
from skdiec.backbones import PixelBackbone
from skdiec.features import FeatureExtractor

SKIP = {
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
    "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
}
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


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


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


def steps_of(backbone, scheduler_steps, x_t):
    """Three steps of DDIM, from the table alone."""
    for timestep, after in scheduler_steps:
        now = torch.tensor([timestep])
        with torch.no_grad():
            x0, e = backbone.levels.at(now).estimates(x_t, backbone.predict(x_t, now.expand(len(x_t))))
        if after is None:
            return x0
        following = backbone.levels.at(torch.tensor([after]))
        x_t = following.signal * x0 + following.noise * e
    return x_t


@pytest.mark.parametrize("name", ["DDIM", "v, zero SNR"])
def test_steps_of_the_table_are_those_of_the_pipeline(name, pixel_folders, monkeypatch):
    pipeline = diffusers.DDIMPipeline.from_pretrained(pixel_folders[name])
    pipeline.scheduler.register_to_config(clip_sample=False, set_alpha_to_one=True)
    pipeline.scheduler.set_timesteps(4)
    timesteps = [int(t) for t in pipeline.scheduler.timesteps[1:]]
    x_t = start = noise(2, 3, 8, 8)
    with torch.no_grad():
        for t in timesteps[:2]:
            x_t = pipeline.scheduler.step(pipeline.unet(x_t, t).sample, t, x_t).prev_sample
    found = steps_of(
        load_backbone(pixel_folders[name]), [(timesteps[0], timesteps[1]), (timesteps[1], timesteps[2])], start
    )
    torch.testing.assert_close(found, x_t, atol=1e-5, rtol=1e-5)


def test_images_of_a_consistency_pipeline_are_the_estimates(pixel_folders):
    pipeline = diffusers.ConsistencyModelPipeline.from_pretrained(pixel_folders["consistency"])
    pipeline.scheduler.register_to_config(clip_denoised=False)
    backbone = load_backbone(pixel_folders["consistency"], null_class=2)
    start = noise(2, 3, 8, 8)
    images = pipeline(batch_size=2, num_inference_steps=1, latents=start, class_labels=[2, 2], output_type="pt").images
    x_t = start * pipeline.scheduler.init_noise_sigma
    last = torch.tensor([len(backbone.levels) - 1])
    with torch.no_grad():
        x0, _ = backbone.levels.at(last).estimates(x_t, backbone.predict(x_t, last.expand(2)))
    torch.testing.assert_close((x0 / 2 + 0.5).clamp(0, 1), images, atol=1e-5, rtol=1e-4)


def test_euler_steps_of_edm_are_those_of_its_scheduler(pixel_folders):
    backbone = load_backbone(pixel_folders["EDM"])
    scheduler = diffusers.EDMEulerScheduler()
    sigmas = scheduler.sigmas[:-1]
    x_t = start = noise(2, 3, 8, 8) * 80
    scheduler.timesteps, scheduler.num_inference_steps = scheduler.timesteps, 1000
    with torch.no_grad():
        for t in scheduler.timesteps[:3]:
            output = backbone.network(scheduler.scale_model_input(x_t, t), t).sample
            x_t = scheduler.step(output, t, x_t).prev_sample
    last = len(sigmas) - 1
    found = steps_of(backbone, [(last - step, last - step - 1) for step in range(3)], start)
    torch.testing.assert_close(found, x_t, atol=1e-4, rtol=1e-5)


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
def test_layers_are_what_a_hook_on_the_network_sees(name, pixel_folders):
    backbone = load_backbone(pixel_folders[name])
    extractor = FeatureExtractor(backbone)
    shapes = extractor.layer_shapes()
    assert list(shapes) == ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"]
    x_t, timesteps, seen = noise(2, 3, 8, 8), torch.tensor([3, 30]), {}

    def watch(layer):
        def hook(module, inputs, output):
            seen.setdefault(layer, output[0] if isinstance(output, tuple) else output)

        backbone.network.get_submodule(layer).register_forward_hook(hook)

    for layer in shapes:
        watch(layer)
    with torch.no_grad():
        level = backbone.levels.at(timesteps)
        backbone.forward(level.scale * x_t, level.time)
        found = capture(
            backbone.network, lambda: backbone.predict(x_t, timesteps), list(shapes), lambda name, x: x, backbone.to_map
        )
    for layer, shape in shapes.items():
        assert torch.equal(found[layer], seen[layer])
        assert tuple(found[layer].shape[1:]) == shape


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
