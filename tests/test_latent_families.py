"""Every family over latents: loaded, compared with diffusers' own pipelines, fitted, saved."""

import diffusers
import pytest
import torch
from tiny_models import FAMILIES

from skdiec import load_backbone
from skdiec.activations import capture
from skdiec.features import FeatureExtractor

NAMES = list(FAMILIES)
NOT_SQUARE = [name for name in NAMES if name not in ("DiT", "LDM")]  # whose pipelines make squares alone


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


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
    if "Flux" in name:
        options.setdefault("image_size", 16)
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
    if name in ("PixArt", "Sana"):
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
        self.steps, self.layers = [], []
        scheduler = self.pipeline.scheduler
        step = scheduler.step

        def watched(output, t, sample, *rest, **options):
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
        with torch.no_grad():
            found = capture(
                backbone.network, lambda x_t=x_t, now=now: backbone.predict(x_t, now), list(shapes), lambda _, x: x,
                backbone.to_map,
            )  # fmt: skip
            x0, e = backbone.levels.at(now).estimates(x_t, backbone.predict(x_t, now))
        for layer, shape in shapes.items():
            expected = image_tokens(name, layer, seen[layer][number], shape)
            torch.testing.assert_close(found[layer], expected, atol=1e-5, rtol=1e-4)
        following = round(recorder.steps[number + 1][0]) if number < 2 else 0
        level = backbone.levels.at(torch.tensor([following]))
        x_t = level.signal * x0 + level.noise * e
        torch.testing.assert_close(x_t, after, atol=1e-5, rtol=1e-5)
