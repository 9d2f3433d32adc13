import copy
import json
import pickle
import re
from pathlib import Path
from types import SimpleNamespace

import diffusers
import huggingface_hub
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from skdiec.backbones import PixelBackbone, load_backbone

COSINE = {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 50}
WEIGHTS = "diffusion_pytorch_model.safetensors"


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def equal_weights(one, two):
    one, two = one.state_dict(), two.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def cosine_pipeline(unet):
    return diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(**COSINE))


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def pipeline_folder(make_unet, tmp_path):
    folder = tmp_path / "pipeline"
    cosine_pipeline(make_unet()).save_pretrained(folder)
    return folder


@pytest.fixture
def model_folder(make_unet, tmp_path):
    folder = tmp_path / "model"
    make_unet().save_pretrained(folder)
    return folder


@pytest.fixture
def constant_backbone(make_backbone):
    """Makes backbones whose network says the same everywhere: `bias`, one value for each channel."""

    def make(bias, prediction_type="epsilon"):
        scheduler = diffusers.DDPMScheduler(prediction_type=prediction_type)
        backbone = make_backbone(scheduler=scheduler, out_channels=len(bias))
        with torch.no_grad():
            backbone.network.conv_out.weight.zero_()
            backbone.network.conv_out.bias.copy_(torch.tensor(bias))
        return backbone

    return make


# Loading


@pytest.mark.parametrize("as_path", [str, lambda path: path])
def test_folder_of_a_pipeline(as_path, make_unet, pipeline_folder, rng_untouched):
    with rng_untouched():
        backbone = load_backbone(as_path(pipeline_folder))
    assert equal_weights(backbone.network, make_unet())
    assert torch.equal(backbone.scheduler.alphas_cumprod, diffusers.DDPMScheduler(**COSINE).alphas_cumprod)
    assert backbone.num_train_timesteps == 50
    assert backbone.image_shape == backbone.input_shape == (1, 4, 4)
    assert backbone.patch_size == 1
    assert backbone.recipe == {}
    assert not any(module.training for module in backbone.network.modules())
    assert not any(parameter.requires_grad for parameter in backbone.network.parameters())


def test_folder_of_a_model_alone_has_the_default_schedule(make_unet, model_folder):
    with pytest.warns(
        UserWarning, match=f"backbone {model_folder} has no noise schedule beside it: diffusers' default"
    ):
        backbone = load_backbone(model_folder)
    assert equal_weights(backbone.network, make_unet())
    expected = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    assert_allclose(backbone.scheduler.alphas_cumprod.numpy(), expected, rtol=1e-5)


def test_folder_as_early_diffusers_saved_it(make_unet, tmp_path):
    """All files side by side, attention under its former names: the layout of google/ddpm-cat-256."""
    unet = make_unet(block_out_channels=(8, 8), down_block_types=("DownBlock2D", "AttnDownBlock2D"))
    pipeline = cosine_pipeline(unet)
    pipeline.save_pretrained(tmp_path)
    for folder in (tmp_path / "unet", tmp_path / "scheduler"):
        for path in folder.iterdir():
            path.rename(tmp_path / path.name)
        folder.rmdir()
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(tmp_path / WEIGHTS)
    for new, old in former.items():
        weights = {name.replace(f".{new}.", f".{old}."): tensor for name, tensor in weights.items()}
    assert weights.keys() != unet.state_dict().keys()
    save_file(weights, tmp_path / WEIGHTS, {"format": "pt"})
    backbone = load_backbone(tmp_path)
    assert equal_weights(backbone.network, unet)
    assert backbone.num_train_timesteps == 50


def test_folder_in_half_precision_is_read_as_float32(make_unet, tmp_path):
    half = make_unet().half()
    cosine_pipeline(half).save_pretrained(tmp_path)
    assert equal_weights(load_backbone(tmp_path).network, half.float())


@pytest.mark.parametrize("wrap", [lambda unet: unet, cosine_pipeline])
def test_loaded_model_is_copied_and_left_as_it_was(wrap, make_unet, rng_untouched):
    unet, calls = make_unet().bfloat16(), []
    unet.train()
    unet.mid_block.eval()
    unet.conv_in.register_forward_hook(lambda *_: calls.append(1))
    model = wrap(unet)
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    modes = [module.training for module in unet.modules()]
    with rng_untouched():
        backbone = load_backbone(model)
    assert backbone.num_train_timesteps == (1000 if model is unet else 50)
    for name, tensor in backbone.network.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before[name].float())
    backbone.predict(noise(1, 1, 4, 4), torch.tensor([0]))
    with torch.no_grad():
        for parameter in backbone.network.parameters():
            parameter.zero_()
    assert calls == []
    assert not any(module.training for module in backbone.network.modules())
    assert [module.training for module in unet.modules()] == modes
    assert len(unet.conv_in._forward_hooks) == 1
    assert all(parameter.requires_grad for parameter in unet.parameters())
    for name, tensor in unet.state_dict().items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, before[name])


def test_backbone_is_returned_as_it_is(make_backbone):
    backbone = make_backbone()
    assert load_backbone(backbone) is backbone


@pytest.mark.parametrize("from_folder", [False, True])
@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.DDIMScheduler(beta_schedule="scaled_linear", num_train_timesteps=60, prediction_type="v_prediction"),
        diffusers.PNDMScheduler(beta_start=0.001, beta_end=0.03),
        diffusers.EulerDiscreteScheduler(**COSINE, prediction_type="sample"),
        diffusers.DDPMScheduler(trained_betas=np.linspace(0.1, 0.2, 9), num_train_timesteps=9),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_schedulers_of_samplers_give_the_forward_process_they_share(scheduler, from_folder, make_unet, tmp_path):
    pipeline = diffusers.DDPMPipeline(make_unet(), scheduler)
    if from_folder:
        pipeline.save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path if from_folder else pipeline)
    torch.testing.assert_close(backbone.scheduler.alphas_cumprod, scheduler.alphas_cumprod, rtol=0, atol=0)
    assert backbone.num_train_timesteps == len(scheduler.alphas_cumprod)
    assert backbone.scheduler.config.prediction_type == scheduler.config.prediction_type


# Forward process, prediction and loss


def test_noise_is_added_by_the_formula(make_backbone):
    backbone = make_backbone()
    x0, eps, timesteps = noise(4, 1, 4, 4), noise(4, 1, 4, 4, seed=1), torch.tensor([0, 10, 500, 999])
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[timesteps].reshape(4, 1, 1, 1)
    expected = np.sqrt(abar) * x0.numpy() + np.sqrt(1 - abar) * eps.numpy()
    assert_allclose(backbone.add_noise(x0, eps, timesteps).numpy(), expected, atol=1e-5)


def test_prediction_is_what_the_network_says_at_each_timestep(make_backbone):
    backbone = make_backbone()
    x_t = noise(2, 1, 4, 4)
    together = backbone.predict(x_t, torch.tensor([3, 700]))
    for row, timestep in enumerate([3, 700]):
        alone = backbone.network(x_t[row : row + 1], timestep).sample
        torch.testing.assert_close(together[row : row + 1], alone)
    assert (together - backbone.predict(x_t, torch.tensor([700, 3]))).abs().min() > 0


@pytest.mark.parametrize("bias", [[0.5], [0.5, 9.0]], ids=["mean", "mean and learned variance"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_denoising_loss_compares_the_prediction_with_its_target(prediction_type, bias, constant_backbone):
    backbone = constant_backbone(bias, prediction_type)
    x0, eps, timesteps = noise(3, 1, 4, 4), noise(3, 1, 4, 4, seed=1), torch.tensor([0, 300, 999])
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[timesteps].reshape(3, 1, 1, 1)
    targets = {
        "epsilon": eps.numpy(),
        "v_prediction": np.sqrt(abar) * eps.numpy() - np.sqrt(1 - abar) * x0.numpy(),
        "sample": x0.numpy(),
    }
    loss = backbone.denoising_loss(x0, eps, timesteps)
    assert loss.item() == pytest.approx(np.square(0.5 - targets[prediction_type]).mean(), rel=1e-5)


def test_denoising_loss_predicts_from_the_noisy_images(make_backbone):
    backbone, seen = make_backbone(), []
    backbone.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    x0, eps, timesteps = noise(2, 1, 4, 4), noise(2, 1, 4, 4, seed=1), torch.tensor([5, 600])
    loss = backbone.denoising_loss(x0, eps, timesteps)
    ((x_t, steps),) = seen
    assert torch.equal(steps, timesteps)
    torch.testing.assert_close(x_t, backbone.add_noise(x0, eps, timesteps))
    torch.testing.assert_close(loss, (backbone.predict(x_t, steps) - eps).square().mean())


def test_denoising_loss_is_computed_in_float32(constant_backbone):
    backbone = constant_backbone([0.0])
    backbone.network.half()
    large = torch.full((1, 1, 4, 4), 300.0, dtype=torch.float16)  # its square is past float16
    loss = backbone.denoising_loss(torch.zeros_like(large), large, torch.tensor([0]))
    assert (loss.dtype, loss.item()) == (torch.float32, 90000.0)


# Adapting images


def test_images_of_the_right_shape_enter_as_they_are(make_backbone):
    images = noise(2, 1, 4, 4)
    assert torch.equal(make_backbone().prepare(images), images)


@pytest.mark.parametrize(
    ("found", "wanted", "expected"),
    [
        (1, 3, lambda x: [x[0], x[0], x[0]]),
        (3, 1, lambda x: [0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2]]),
        (4, 3, lambda x: [x[0], x[1], x[2]]),
        (4, 1, lambda x: [0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2]]),
        (2, 2, lambda x: [x[0], x[1]]),
    ],
)
def test_channels_are_repeated_weighted_or_dropped(found, wanted, expected, make_backbone):
    backbone = make_backbone(in_channels=wanted)
    images = noise(2, found, 4, 4, dtype=torch.float64)
    prepared = backbone.prepare(images)
    for before, after in zip(images, prepared, strict=True):
        assert_allclose(after, np.stack(expected(before.numpy())), rtol=1e-12)
    assert prepared.dtype == torch.float64


def test_only_the_channels_that_can_be_adapted_pass(make_backbone):
    for wanted in (1, 2, 3, 4):
        backbone = make_backbone(in_channels=wanted)
        for found in (1, 2, 3, 4, 5):
            if found == wanted or (found, wanted) in [(1, 3), (3, 1), (4, 3), (4, 1)]:
                backbone.check_channels(found)
                assert backbone.prepare(noise(1, found, 4, 4)).shape == (1, wanted, 4, 4)
                continue
            message = f"X has images of {found} channels, which cannot be adapted to the {wanted} of the backbone"
            with pytest.raises(ValueError, match=message):
                backbone.check_channels(found)
            with pytest.raises(ValueError, match=f"images of {found} channels cannot be adapted to {wanted}"):
                backbone.prepare(noise(1, found, 4, 4))


@pytest.mark.parametrize(
    ("shape", "cover", "top", "left"),
    [
        ((8, 8), (4, 4), 0, 0),
        ((4, 6), (4, 6), 0, 1),
        ((7, 4), (7, 4), 1, 0),
        ((3, 5), (4, 7), 0, 1),
        ((1, 1), (4, 4), 0, 0),
    ],
)
def test_other_sizes_are_scaled_to_cover_and_cropped_at_the_centre(shape, cover, top, left, make_backbone):
    images = noise(2, 1, *shape).clamp(-1, 1)
    prepared = make_backbone().prepare(images)
    for before, after in zip(images, prepared, strict=True):
        resized = Image.fromarray(before[0].numpy()).resize(cover[::-1], Image.Resampling.BICUBIC)
        expected = np.clip(np.asarray(resized), -1, 1)[top : top + 4, left : left + 4]
        assert_allclose(after[0], expected, atol=1e-5)


def test_scaling_does_not_leave_the_range(make_backbone):
    images = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])[None, None]
    prepared = make_backbone(sample_size=8).prepare(images)
    assert (prepared.min().item(), prepared.max().item()) == (-1, 1)


def test_odd_sizes_are_filled_with_their_border_then_folded(make_backbone):
    backbone = make_backbone(in_channels=8, sample_size=4, image_shape=(2, 5, 7), patch_size=2)
    assert backbone.input_shape == (8, 4, 4)
    images = noise(3, 2, 5, 7)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (1, 2), (0, 1)), mode="edge")
    expected = np.empty((3, 8, 4, 4), dtype=np.float32)
    for channel in range(2):
        for row in range(2):
            for column in range(2):
                expected[:, 4 * channel + 2 * row + column] = padded[:, channel, row::2, column::2]
    np.testing.assert_array_equal(backbone.prepare(images).numpy(), expected)


def test_channels_size_and_folding_go_together(make_backbone):
    backbone = make_backbone(in_channels=12, sample_size=(2, 3), patch_size=2)
    assert backbone.image_shape == (3, 4, 6)
    grey = torch.full((1, 1, 9, 9), 0.25)
    prepared = backbone.prepare(grey)
    assert prepared.shape == (1, 12, 2, 3)
    torch.testing.assert_close(prepared, torch.full_like(prepared, 0.25))


def test_network_without_a_size_takes_that_of_the_images(make_backbone):
    backbone = make_backbone(in_channels=4, sample_size=None, image_shape=(1, 5, 6), patch_size=2)
    assert backbone.input_shape == (4, 3, 3)
    assert backbone.prepare(noise(1, 1, 5, 6)).shape == (1, 4, 3, 3)
    with pytest.raises(ValueError, match="no sample_size, so image_shape must be stated"):
        make_backbone(sample_size=None)


# Saving, pickling, copying


def test_saved_folder_is_read_by_diffusers_and_by_load_backbone(make_backbone, tmp_path):
    backbone = make_backbone(
        in_channels=4,
        scheduler=diffusers.DDPMScheduler(**COSINE),
        image_shape=(1, 7, 8),
        patch_size=2,
        recipe={"settings": {"epochs": 3}},
    )
    backbone.save_pretrained(tmp_path / "new" / "folder")
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path / "new" / "folder")
    assert equal_weights(pipeline.unet, backbone.network)
    assert torch.equal(pipeline.scheduler.alphas_cumprod, backbone.scheduler.alphas_cumprod)
    found = load_backbone(tmp_path / "new" / "folder")
    assert found.fingerprint() == backbone.fingerprint()
    assert (found.image_shape, found.patch_size, found.recipe) == ((1, 7, 8), 2, {"settings": {"epochs": 3}})
    files = [path for path in (tmp_path / "new" / "folder").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x)), PixelBackbone.copy])
@pytest.mark.parametrize("move", [lambda x: x, lambda x: x.to("cpu")])
def test_copies_and_pickles_are_equal_and_independent(duplicate, move, make_backbone, rng_untouched):
    backbone = make_backbone(
        in_channels=4, scheduler=diffusers.DDPMScheduler(**COSINE), image_shape=(1, 7, 8), patch_size=2, recipe={"a": 1}
    )
    backbone = move(backbone)
    x0, timesteps = noise(2, 4, 4, 4), torch.tensor([1, 49])
    expected = backbone.predict(backbone.add_noise(x0, x0, timesteps), timesteps)
    with rng_untouched():
        found = move(duplicate(backbone))
    assert torch.equal(found.predict(found.add_noise(x0, x0, timesteps), timesteps), expected)
    assert found.fingerprint() == backbone.fingerprint()
    assert (found.image_shape, found.input_shape, found.patch_size) == ((1, 7, 8), (4, 4, 4), 2)
    assert found.recipe == {"a": 1}
    assert not any(module.training for module in found.network.modules())
    assert not any(parameter.requires_grad for parameter in found.network.parameters())
    with torch.no_grad():
        for parameter in found.network.parameters():
            parameter.zero_()
    found.recipe["a"] = 2
    assert torch.equal(backbone.predict(backbone.add_noise(x0, x0, timesteps), timesteps), expected)
    assert backbone.recipe == {"a": 1}


def test_moving_returns_the_backbone_itself(make_backbone):
    backbone = make_backbone()
    assert backbone.device == torch.device("cpu")
    assert backbone.to("meta") is backbone
    assert backbone.device == torch.device("meta")


# Fingerprint


def test_fingerprint_tells_weights_architecture_schedule_and_shape(make_backbone):
    betas = np.linspace(0.01, 0.02, 2000)
    other_betas = betas.copy()
    other_betas[1000] *= 1.001  # where a printed array has dots
    nudged = make_backbone()
    with torch.no_grad():
        nudged.network.conv_out.bias += 1e-7
    backbones = [
        make_backbone(),
        make_backbone(seed=1),
        nudged,
        make_backbone(norm_eps=1e-4),
        make_backbone(scheduler=diffusers.DDPMScheduler(beta_end=0.03)),
        make_backbone(scheduler=diffusers.DDPMScheduler(prediction_type="sample")),
        make_backbone(scheduler=diffusers.DDPMScheduler(num_train_timesteps=2000, trained_betas=betas)),
        make_backbone(scheduler=diffusers.DDPMScheduler(num_train_timesteps=2000, trained_betas=other_betas)),
        make_backbone(image_shape=(1, 3, 4)),
        make_backbone(in_channels=4),
        make_backbone(in_channels=4, patch_size=2),
    ]
    assert len({backbone.fingerprint() for backbone in backbones}) == len(backbones)


def test_fingerprint_is_the_same_wherever_the_model_came_from(make_unet, pipeline_folder, model_folder, tmp_path):
    moved = tmp_path / "moved"
    pipeline_folder.rename(moved)
    found = [load_backbone(moved), load_backbone(cosine_pipeline(make_unet()))]
    found[1].network.train()
    assert found[0].fingerprint() == found[1].fingerprint() != load_backbone(model_folder).fingerprint()
    assert load_backbone(model_folder).fingerprint() == load_backbone(make_unet()).fingerprint()


# Errors


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".PTH", ".pkl", ".bin"])
def test_pickled_file_is_refused_unread(suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"never read")
    message = re.escape(f"backbone {path} is in pickle format, which can run code") + ".*safe_serialization=True"
    with pytest.raises(ValueError, match=message):
        load_backbone(path)


@pytest.mark.parametrize("as_pipeline", [True, False])
def test_pickled_weights_in_a_folder_are_refused_unread(as_pipeline, make_unet, tmp_path):
    model = cosine_pipeline(make_unet()) if as_pipeline else make_unet()
    model.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.bin is in pickle format"):
        load_backbone(tmp_path)


def test_other_file_is_refused(model_folder):
    path = model_folder / "config.json"
    with pytest.raises(ValueError, match=f"must be the folder of a diffusers pipeline or model; {path} is a file"):
        load_backbone(path)


@pytest.mark.parametrize("length", [0, 5, 2000])
def test_truncated_weights_are_told_of(length, pipeline_folder):
    path = pipeline_folder / "unet" / WEIGHTS
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=f"backbone file {path} has damaged or truncated weights"):
        load_backbone(pipeline_folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"block_out_channels": (12,)},
            r"another architecture: 0 missing, 0 unexpected, 70 of another shape; conv_in.bias has shape \(8,\), the "
            r"configuration makes it \(12,\)",
        ),
        (
            {"layers_per_block": 2},
            r"layers_per_block=2 and block_out_channels=\(8,\) make 5 residual blocks, the weights have 3",
        ),
        ({"add_attention": False}, "weights of another architecture: 0 missing, 10 unexpected, 0 of another shape"),
    ],
)
def test_weights_of_another_architecture_are_told_of(config, message, make_unet, model_folder, tmp_path):
    make_unet(**config).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "config.json").replace(model_folder / "config.json")
    with pytest.raises(ValueError, match=message):
        load_backbone(model_folder)


def test_missing_weights_are_told_of(pipeline_folder):
    (pipeline_folder / "unet" / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=f"backbone {pipeline_folder / 'unet'} has no .safetensors weights"):
        load_backbone(pipeline_folder)


@pytest.mark.parametrize(
    ("index", "network"),
    [
        ({"unet": ["diffusers", "UNet3DConditionModel"]}, "UNet3DConditionModel"),
        ({"unet": [None, None]}, "none"),
        ({"transformer": ["diffusers", "CogVideoXTransformer3DModel"]}, "CogVideoXTransformer3DModel"),
    ],
)
def test_pipeline_of_another_kind_is_told_of(index, network, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "SomePipeline", **index}))
    message = (
        rf"backbone {tmp_path} is a SomePipeline of the network {network}: none of the families that can be used, "
        r"which are DDPM .*; Stable Diffusion 1 and 2; .*; DiT; .*; Flux schnell and dev; AuraFlow$"
    )
    with pytest.raises(ValueError, match=message):
        load_backbone(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"transformer": ["diffusers", "UVit2DModel"]}, "is a SomePipeline with a UVit2DModel: it is aMUSEd, whose"),
        (
            {"decoder": ["stable_cascade", "StableCascadeUNet"]},
            r"with a StableCascadeUNet: it is Stable Cascade \(Wuerst",
        ),
        ({"prior": ["wuerstchen", "WuerstchenPrior"]}, r"with a WuerstchenPrior: it is Stable Cascade \(Wuerst"),
    ],
)
def test_pipelines_without_levels_of_noise_are_refused_by_name(index, message, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "SomePipeline", **index}))
    with pytest.raises(ValueError, match=message):
        load_backbone(tmp_path)


@pytest.mark.parametrize("kind", ["AutoencoderKL", "UNet3DConditionModel"])
def test_model_of_another_kind_is_told_of(kind, model_folder):
    edit_json(model_folder / "config.json", _class_name=kind)
    message = f"backbone {model_folder} is a model without a pipeline of the network {kind}: none of the families"
    with pytest.raises(ValueError, match=message):
        load_backbone(model_folder)


def test_network_of_latents_alone_is_told_of(model_folder):
    edit_json(model_folder / "config.json", _class_name="UNet2DConditionModel")
    message = f"backbone {model_folder} is a UNet2DConditionModel alone: the folder of its pipeline is needed"
    with pytest.raises(ValueError, match=message):
        load_backbone(model_folder)


@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_damaged_or_missing_configuration_is_told_of(name, pipeline_folder):
    path = pipeline_folder / name
    path.write_text("{")
    with pytest.raises(ValueError, match=f"backbone file {path} is no JSON: Expecting property name"):
        load_backbone(pipeline_folder)
    if name != "model_index.json":
        path.unlink()
        with pytest.raises(ValueError, match=f"backbone file {path} is missing"):
            load_backbone(pipeline_folder)


def test_folder_without_configuration_is_told_of(tmp_path):
    message = f"backbone folder {tmp_path} has neither model_index.json (a pipeline) nor config.json (a model)"
    with pytest.raises(ValueError, match=re.escape(message)):
        load_backbone(tmp_path)


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "/no/where", Path("owner/name")])  # a path is no Hub id
def test_unknown_folder_is_told_of(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = f"'auto', a folder, a Hub id 'owner/name' or a loaded model: there is no folder '{name}'"
    with pytest.raises(ValueError, match=message):
        load_backbone(name)


def test_hub_id_that_cannot_be_fetched_is_told_of(monkeypatch):
    def snapshot_download(name, **options):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    message = "backbone 'owner/name' is neither a local folder nor could it be fetched from the Hub: no network"
    with pytest.raises(ValueError, match=message) as caught:
        load_backbone("owner/name")
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("model", [None, 3, nn.Linear(2, 2), SimpleNamespace(unet=nn.Linear(2, 2))])
def test_objects_of_other_types_are_told_of(model):
    with pytest.raises(TypeError, match=f"backbone must be 'auto', a path, .*; got {type(model).__name__}$"):
        load_backbone(model)


def test_timesteps_past_the_schedule_are_told_of(make_backbone):
    backbone = make_backbone(scheduler=diffusers.DDPMScheduler(**COSINE))
    for timestep in (0, 49):
        backbone.check_timestep(timestep)
    for timestep in (-1, 50):
        message = f"COT must be from 0 to 49, the last that the backbone was trained on; got {timestep}"
        with pytest.raises(ValueError, match=message):
            backbone.check_timestep(timestep, "COT")
    with pytest.raises(ValueError, match=r"^timestep must be from 0 to 49"):
        backbone.check_timestep(1000)
