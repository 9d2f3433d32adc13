"""Every family over latents: loaded, compared with diffusers' own pipelines, fitted, saved."""

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
from tiny_models import FAMILIES

import skdiec
from skdiec import DiffusionEmbeddedClustering, load_backbone
from skdiec.features import FeatureExtractor

NAMES = list(FAMILIES)
NOT_SQUARE = [name for name in NAMES if name not in ("DiT", "LDM")]  # whose pipelines make squares alone


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory):
    """A saved pipeline of each family, without text encoders."""
    folders = {}
    for name, tiny in FAMILIES.items():
        folders[name] = tmp_path_factory.mktemp("latents")
        make_pipeline(name, tiny.build()).save_pretrained(folders[name])
    return folders


def make_pipeline(name, parts):
    kind = getattr(diffusers, FAMILIES[name].pipeline)
    absent = {part: None for part in kind._get_signature_keys(kind)[0] if part not in parts}
    safety = {"requires_safety_checker": False} if "safety_checker" in absent else {}
    pipeline = kind(**parts, **absent, **safety)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load(name, folders, **options):
    tiny = FAMILIES[name]
    options.setdefault("image_size", tiny.image_size)
    return load_backbone(folders[name], condition=tiny.told() or None, **options)


def arguments(name):
    """What a pipeline calls what its network is told."""
    told = FAMILIES[name].told()
    states, mask = told.get("encoder_hidden_states"), told.get("encoder_attention_mask", told.get("encoder_mask"))
    if name in ("LDM", "DiT"):
        return {}
    if name == "Kandinsky 2.2":
        return {"image_embeds": told["image_embeds"], "negative_image_embeds": told["image_embeds"]}
    call = {"prompt_embeds": states}
    if name == "Stable Diffusion XL":
        call["pooled_prompt_embeds"] = told["text_embeds"]
    if "pooled_projections" in told:
        call["pooled_prompt_embeds"] = told["pooled_projections"]
    if mask is not None:
        call["prompt_attention_mask"] = mask
    if name in ("PixArt", "PixArt at 1024", "Sana"):
        call |= {"negative_prompt": None, "use_resolution_binning": False}
    if name == "AuraFlow":
        call["prompt_attention_mask"] = torch.ones(1, states.shape[1])
    if name == "HunyuanDiT":
        masks = {"prompt_attention_mask": told["text_embedding_mask"]}
        masks["prompt_attention_mask_2"] = told["text_embedding_mask_t5"]
        call |= {**masks, "prompt_embeds_2": told["encoder_hidden_states_t5"], "use_resolution_binning": False}
        call |= {f"negative_{key}": value for key, value in call.items() if key.startswith("prompt")}
    return call


class Recorder:
    """Runs three steps of a pipeline, and keeps what its scheduler and its network's layers saw and said."""

    def __init__(self, name, parts, start, size):
        self.pipeline, self.name = make_pipeline(name, parts), name
        self.network = parts[FAMILIES[name].network_part]
        self.steps, self.outputs = [], []
        scheduler = self.pipeline.scheduler
        step = scheduler.step

        def watched(output, t, sample, *rest, **options):
            self.outputs.append(self.unpacked(output))
            result = step(output, t, sample, *rest, **options)
            after = result[0] if isinstance(result, tuple) else result.prev_sample
            self.steps.append((float(t), self.unpacked(sample), self.unpacked(after)))
            return result

        scheduler.step = watched
        self.size, call = size, arguments(name)
        if name == "DiT":
            call["class_labels"] = [10]
        elif name != "LDM":
            call |= {"height": size[0], "width": size[1], "latents": self.packed(start)}
        if name in ("DiT", "LDM"):  # whose latents cannot be passed
            module = self.pipeline.__class__.__module__
            patch = pytest.MonkeyPatch()
            patch.setattr(f"{module}.randn_tensor", lambda shape, **options: start)
        if name != "LDM":
            call["guidance_scale"] = 0.0 if "Flux" in name else 1.0
        if "Flux" in name:
            call["guidance_scale"] = 1.0
        if type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler":
            scheduler.set_shift(1.0)
            call["sigmas"] = [0.9, 0.6, 0.3]
        with torch.no_grad():
            self.pipeline(num_inference_steps=3, output_type="pt" if name in ("DiT", "LDM") else "latent", **call)
        if name in ("DiT", "LDM"):
            patch.undo()

    def packed(self, latents):
        if "Flux" not in self.name:
            return latents
        return self.pipeline._pack_latents(latents, len(latents), *latents.shape[1:])

    def unpacked(self, latents):
        if "Flux" not in self.name:
            return latents
        return self.pipeline._unpack_latents(latents, *self.size, self.pipeline.vae_scale_factor)


def watch_blocks(network, layers):
    """Keep what layers return, pass by pass."""
    seen = {layer: [] for layer in layers}

    def hook(layer):
        def keep(module, inputs, output):
            seen[layer].append(output)

        return keep

    for layer in layers:
        network.get_submodule(layer).register_forward_hook(hook(layer))
    return seen


def image_tokens(name, layer, output, shape):
    """What a layer says of the image, by what its module is: written down family by family."""
    if isinstance(output, tuple):  # skip connections of U-Nets come second, the image's tokens of joint blocks too
        output = output[1] if "transformer_blocks" in layer else output[0]
    if output.ndim == 4:
        return output
    channels, height, width = shape
    output = output[:, output.shape[1] - height * width :]
    return output.reshape(len(output), height, width, channels).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("name", "is_square"), [*((n, True) for n in NAMES), *((n, False) for n in NOT_SQUARE)])
def test_three_steps_and_all_layers_are_those_of_the_pipeline(name, is_square, tiny_folders):
    square = load(name, tiny_folders)
    side = square.image_shape[1]
    size = (side, side) if is_square else (side, side + side // 2)
    backbone = load(name, tiny_folders, image_size=size)
    assert backbone.image_shape == (3, *size)
    assert backbone.input_shape[1:] == (8, 8 if is_square else 12)
    start = noise(1, *backbone.input_shape)

    parts = FAMILIES[name].build()
    shapes = FeatureExtractor(backbone).layer_shapes()
    seen = watch_blocks(parts[FAMILIES[name].network_part], shapes)
    recorder = Recorder(name, parts, start, size)
    x_t = start
    assert len(recorder.steps) == 3
    for number, (time, sample, after) in enumerate(recorder.steps):
        now = torch.tensor([round(time)])
        torch.testing.assert_close(x_t, sample, atol=1e-5, rtol=1e-5)
        found = maps_of(backbone, shapes, x_t, now.item())
        with torch.no_grad():
            x0, e = backbone.levels.at(now).estimates(x_t, backbone.predict(x_t, now))
        for layer, shape in shapes.items():
            expected = image_tokens(name, layer, seen[layer][number], shape)
            torch.testing.assert_close(found[layer], expected, atol=1e-5, rtol=1e-4)
        following = round(recorder.steps[number + 1][0]) if number < 2 else 0
        level = backbone.levels.at(torch.tensor([following]))
        x_t = level.signal * x0 + level.noise * e
        torch.testing.assert_close(x_t, after, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_noise_and_loss_are_those_of_the_pipeline(name, tiny_folders):
    backbone, parts = load(name, tiny_folders), FAMILIES[name].build()
    scheduler = make_pipeline(name, parts).scheduler  # some pipelines change its configuration
    x0 = backbone.encode(backbone.prepare(noise(1, 3, *backbone.image_shape[1:]).clamp(-1, 1)))
    e = noise(1, *backbone.input_shape, seed=1)
    # What the pipeline begins with is then an image of so much noise, and what it estimates is what the loss is of.
    if isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler):
        timestep = torch.tensor([900])
        unshifted = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
        x_t, target = unshifted.scale_noise(x0, timestep.float(), e), e - x0
    else:
        scheduler.set_timesteps(3)
        timestep = scheduler.timesteps[:1]
        is_v = scheduler.config.prediction_type == "v_prediction"
        x_t = scheduler.add_noise(x0, e, timestep)
        target = scheduler.get_velocity(x0, e, timestep) if is_v else e
    torch.testing.assert_close(backbone.add_noise(x0, e, timestep), x_t, atol=1e-6, rtol=1e-6)
    recorder = Recorder(name, parts, x_t, backbone.image_shape[1:])
    assert recorder.steps[0][0] == pytest.approx(timestep.item(), abs=1e-3)
    torch.testing.assert_close(recorder.steps[0][1], x_t)
    with torch.no_grad():
        loss = backbone.denoising_loss(x0, e, timestep)
    assert loss.item() == pytest.approx((recorder.outputs[0] - target).square().mean().item(), rel=1e-5)


@pytest.mark.parametrize(("name", "is_square"), [*((n, True) for n in NAMES), *((n, False) for n in NOT_SQUARE)])
def test_map_changes_most_where_the_image_does(name, is_square, tiny_folders):
    side = load(name, tiny_folders).image_shape[1]
    backbone = load(name, tiny_folders, image_size=(side, side) if is_square else (side, side + side // 2))
    # A convolution with a stride reaches over the edge of its cell.
    assert_map_changes_most_where_the_image_does(backbone, 200, tolerance="transformer" not in backbone.network_part)


# Encoding


@pytest.mark.parametrize("name", NAMES)
def test_latents_are_those_of_the_autoencoder_in_its_scale(name, tiny_folders):
    backbone, tiny = load(name, tiny_folders), FAMILIES[name]
    model = tiny.build()[tiny.autoencoder_part]
    images = noise(3, 3, *backbone.image_shape[1:]).clamp(-1, 1)
    with torch.no_grad():
        if isinstance(model, diffusers.AutoencoderKL):
            shift = model.config.shift_factor or 0
            expected = (model.encode(images).latent_dist.mean - shift) * model.config.scaling_factor
            again = model.decode(expected / model.config.scaling_factor + shift).sample
        elif isinstance(model, diffusers.VQModel):
            factor = 0.5 if name == "LDM" else 1  # Kandinsky's are as they come
            expected = model.encode(images).latents * factor
            again = model.decode(expected / factor).sample
        else:
            expected = model.encode(images).latent * 0.41
            again = model.decode(expected / 0.41).sample
        x0 = backbone.encode(backbone.prepare(images))
        torch.testing.assert_close(x0, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(backbone.decode(x0), again, atol=1e-4, rtol=1e-4)
    # One by one they are the same, to the bit.
    assert torch.equal(torch.cat([backbone.encode(backbone.prepare(images[row : row + 1])) for row in range(3)]), x0)


def test_latents_have_the_mean_and_deviation_of_their_channels(tiny_folders):
    parts = FAMILIES["Stable Diffusion XL"].build()
    mean, deviation = [0.1, -0.2, 0.3, 0.4], [2.0, 3.0, 4.0, 5.0]
    parts["vae"].register_to_config(latents_mean=mean, latents_std=deviation)
    backbone = load_backbone(make_pipeline("Stable Diffusion XL", parts))
    images = noise(2, 3, 16, 16).clamp(-1, 1)
    z = parts["vae"].encode(images).latent_dist.mean
    by_channel = (np.reshape(mean, (4, 1, 1)), np.reshape(deviation, (4, 1, 1)))
    expected = (z.numpy() - by_channel[0]) * 0.13025 / by_channel[1]
    np.testing.assert_allclose(backbone.encode(images), expected, atol=1e-5)


def test_scale_of_a_codebook_is_one_where_none_is_stated(tiny_folders, tmp_path):
    parts = FAMILIES["LDM"].build()
    plain = diffusers.VQModel(
        **{key: value for key, value in FAMILIES["LDM"].autoencoder().config.items()
           if key != "scaling_factor" and not key.startswith("_")}
    )  # fmt: skip
    backbone = load_backbone(make_pipeline("LDM", {**parts, "vqvae": plain}))
    assert backbone.autoencoder.scale == 1.0
    backbone.save_pretrained(tmp_path)  # where diffusers writes its default down
    assert load_backbone(tmp_path).autoencoder.scale == 1.0
    assert load("LDM", tiny_folders).autoencoder.scale == 0.5


# Fits


@pytest.fixture(scope="session")
def images():
    return np.random.default_rng(0).integers(0, 256, (20, 9, 11, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", NAMES)
def test_fit_predict_save_and_load(name, tiny_folders, images, tmp_path):
    backbone = load(name, tiny_folders)
    backbone.save_pretrained(tmp_path / "backbone")
    layers = list(FeatureExtractor(backbone).layer_shapes())
    model = DiffusionEmbeddedClustering(
        2, backbone=tmp_path / "backbone", layer=layers[:2], pooling=1, n_init=2, max_epochs=2, warmup_epochs=1,
        n_draws=2, random_state=0,
    ).fit(images)  # fmt: skip
    linear = (1 / diffusers.DDPMScheduler().alphas_cumprod - 1).sqrt().numpy()
    ratios = (backbone.levels.noise / backbone.levels.signal).numpy()[list(model.timesteps_)]
    np.testing.assert_allclose(ratios, linear[[10, 25, 50, 100, 150, 200, 300, 400]], rtol=0.25)
    assert len(model.share_explained_) == 3
    np.testing.assert_array_equal(model.predict(images), model.labels_)
    model.save(tmp_path / "model")
    loaded = skdiec.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict_proba(images), model.predict_proba(images))
    assert loaded.backbone_.fingerprint() == model.backbone_.fingerprint() == backbone.fingerprint()


@pytest.mark.parametrize("name", NAMES)
def test_features_of_a_row_are_the_same_in_any_batch(name, tiny_folders, images):
    backbone = load(name, tiny_folders)
    # To the bit in transformers; convolutions of some widths have other kernels for other batches.
    atol = 2e-6 if backbone.network_part == "unet" else 0
    assert_features_of_a_row_are_the_same_in_any_batch(backbone, images, 100, atol=atol)


# What networks are told


def test_prompts_are_refused_as_layers(tiny_folders):
    for name, layer in [
        ("PixArt", "caption_projection"), ("Stable Diffusion 3", "context_embedder"), ("Flux dev", "context_embedder"),
        ("Sana", "caption_projection"),
        ("Stable Diffusion 1", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"),
        ("Kandinsky 2.2", "encoder_hid_proj"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=f"layer '{layer}' yields no map of activations; choose one of "):
            FeatureExtractor(load(name, tiny_folders)).layer_shapes([layer])
    # 49 tokens of a prompt would make a square, and 16 as many as the image has.
    backbone = load("Stable Diffusion 1", tiny_folders)
    for count in (16, 49):
        backbone.condition = {"encoder_hidden_states": noise(1, count, 12)}
        with pytest.raises(ValueError, match="yields no map"):
            FeatureExtractor(backbone).layer_shapes(["mid_block.attentions.0.transformer_blocks.0.attn2.to_k"])
    layer = "down_blocks.0.attentions.0.transformer_blocks.0"
    assert FeatureExtractor(backbone).layer_shapes([layer]) == {layer: (8, 8, 8)}


@pytest.mark.parametrize("name", [name for name in NAMES if FAMILIES[name].condition and name != "Stable Diffusion XL"])
def test_condition_must_be_there_and_whole(name, tiny_folders):
    told = FAMILIES[name].told()
    keys = ", ".join(f"'{key}': ..." for key in told)
    with pytest.raises(ValueError, match=rf"has no text encoder that would .*: pass condition=\{{{keys}\}} to load"):
        load_backbone(tiny_folders[name])
    first = next(iter(told))
    with pytest.raises(ValueError, match=f"condition must have {', '.join(told)} for .*; got 'other'$"):
        load_backbone(tiny_folders[name], condition={"other": told[first]})
    with pytest.raises(ValueError, match=rf"condition: {first} must be a tensor of shape \(1, ...\); got \(2, "):
        load_backbone(tiny_folders[name], condition={**told, first: torch.cat([told[first]] * 2)})


def test_sdxl_is_told_zeros(tiny_folders):
    backbone = load_backbone(tiny_folders["Stable Diffusion XL"])
    assert {name: tuple(value.shape) for name, value in backbone.condition.items()} == {
        "encoder_hidden_states": (1, 77, 12), "text_embeds": (1, 10),
    }  # fmt: skip
    assert not any(value.any() for value in backbone.condition.values())


def test_condition_is_nothing_for_a_network_that_is_told_nothing(tiny_folders):
    for name in ("DiT", "LDM"):
        with pytest.raises(ValueError, match=r"condition must have nothing for .*; got 'encoder_hidden_states'"):
            load_backbone(tiny_folders[name], condition={"encoder_hidden_states": noise(1, 2, 3)})


# Sizes


@pytest.mark.parametrize("size", [17, 0, -16, (16,), (16, 16, 16), "16", 16.0, True, 2**14, (16, 6)])
def test_image_size_must_be_one_that_the_network_can_halve(size, tiny_folders):
    with pytest.raises(ValueError, match=r"image_size must be a multiple of 4, or a pair of them, .*; got "):
        load("Stable Diffusion 1", tiny_folders, image_size=size)


def test_dit_makes_squares_alone(tiny_folders):
    with pytest.raises(ValueError, match=r"image_size must be square for DiT; got \(16, 32\)"):
        load("DiT", tiny_folders, image_size=(16, 32))
    assert load("DiT", tiny_folders, image_size=32).input_shape == (4, 16, 16)


def test_flux_is_of_1024_pixels_by_default(tiny_folders):
    backbone = load_backbone(tiny_folders["Flux dev"], condition=FAMILIES["Flux dev"].told())
    assert backbone.input_shape == (4, 128, 128)


# The guard


@pytest.mark.parametrize("name", NAMES)
def test_share_explained_is_one_of_a_perfect_network_and_negative_of_a_wrong_one(name, tiny_folders, images):
    from skdiec.backbones.guard import share_explained
    from skdiec.images import as_image_source

    backbone, source, seen = load(name, tiny_folders), as_image_source(images), {}
    real = backbone.add_noise

    def remember(x0, e, timesteps):
        seen.update(x0=x0, e=e, timesteps=timesteps)
        return real(x0, e, timesteps)

    backbone.add_noise = remember
    backbone.predict = lambda x_t, timesteps: backbone.target(seen["x0"], seen["e"], timesteps)
    assert list(share_explained(backbone, source).values()) == pytest.approx([1, 1, 1], abs=1e-5)
    np.testing.assert_allclose(seen["x0"], backbone.encode(backbone.prepare(torch.from_numpy(source.read(slice(20))))))
    backbone.predict = lambda x_t, timesteps: -backbone.target(seen["x0"], seen["e"], timesteps)
    assert max(share_explained(backbone, source).values()) < -1


@pytest.mark.filterwarnings("ignore:training collapsed", "ignore:generative drift")
@pytest.mark.parametrize("name", ["Stable Diffusion 1", "DiT", "Flux dev"])
def test_backbone_trains_and_its_autoencoder_does_not(name, tiny_folders, planted, rng_untouched):
    backbone = load(name, tiny_folders)
    layer = list(FeatureExtractor(backbone).layer_shapes())[-1]
    before = {
        part: {key: x.clone() for key, x in module.state_dict().items()} for part, module in backbone.parts().items()
    }
    # Without weights that know images, clusters of moved ones are of unlike size, and their training collapses.
    model = DiffusionEmbeddedClustering(
        2, backbone=backbone, layer=layer, timestep=50, pooling=1, n_init=2, max_epochs=2, warmup_epochs=1,
        train_backbone=True, shift=0, random_state=0,
    )  # fmt: skip
    with rng_untouched():
        model.fit(planted((16, 16), n_clusters=2)[0])
    changed = {
        part: any(not torch.equal(x, before[part][key]) for key, x in module.state_dict().items())
        for part, module in model.backbone_.parts().items()
    }
    assert changed == {backbone.network_part: True, backbone.autoencoder_part: False}
    assert backbone.fingerprint() == load(name, tiny_folders).fingerprint()
    assert np.isfinite(model.history_["denoising"]).all()
