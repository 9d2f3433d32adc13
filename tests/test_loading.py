"""Which backbones load, as what, and which are refused by which words."""

import copy
import inspect
import json
import os
import pickle
import re
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import diffusers
import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from skdiec.backbones import load_backbone, networks
from skdiec.backbones.config_files import MAX_JSON_BYTES, read_header, read_json
from skdiec.backbones.schedules import SCHEDULERS, training_scheduler

WEIGHTS = "diffusion_pytorch_model.safetensors"
COSINE_V = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "num_train_timesteps": 50}


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def equal_weights(one, two):
    one, two = one.state_dict(), two.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def refused(folder, *words):
    """Load what must be refused, at once, by an error that has some words; return the error's text."""
    began = time.process_time()
    with pytest.raises(ValueError, match=re.escape(str(words[0]))) as caught:
        load_backbone(folder)
    assert time.process_time() - began < 5  # a hang, not a slow machine
    for word in words[1:]:
        assert str(word) in str(caught.value)
    assert len(str(caught.value)) < 1500
    return str(caught.value)


@pytest.fixture
def pipeline_folder(make_unet, tmp_path):
    folder = tmp_path / "pipeline"
    diffusers.DDPMPipeline(make_unet(), diffusers.DDPMScheduler(**COSINE_V)).save_pretrained(folder)
    return folder


@pytest.fixture
def model_folder(make_unet, tmp_path):
    folder = tmp_path / "model"
    make_unet().save_pretrained(folder)
    return folder


# The noise schedule


CONFIGS = [
    {},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 100},
    {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 60},
    {"beta_schedule": "sigmoid"},
    {"trained_betas": [0.01, 0.02, 0.05, 0.1], "num_train_timesteps": 4},
    {"rescale_betas_zero_snr": True},
    {"use_karras_sigmas": True},
]


def samplers():
    """Every sampler that can be made here, in every configuration that it takes."""
    for name in sorted(SCHEDULERS):
        cls = getattr(diffusers, name)
        known = inspect.signature(cls.__init__).parameters
        for config in CONFIGS:
            # One that needs another package has no parameters; RePaint takes no list, and few know "sigmoid".
            knows = {"num_train_timesteps", *config} <= known.keys()
            if name == "RePaintScheduler" and "trained_betas" in config:
                continue
            if config.get("beta_schedule") == "sigmoid" and name not in ("DDPMScheduler", "RePaintScheduler"):
                continue
            if knows:
                yield pytest.param(cls, config, id=f"{name}-{next(iter(config.values()), 'default')}")


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")  # KDPM2 in diffusers
@pytest.mark.parametrize(("cls", "config"), list(samplers()))
def test_schedule_is_what_the_sampler_was_made_for(cls, config):
    expected = cls(**config)
    stored = json.loads(expected.to_json_string())
    sparse = {"_class_name": cls.__name__, **config}  # without what is the class's default
    for found in (stored, sparse):
        scheduler = training_scheduler(found, "it")
        torch.testing.assert_close(scheduler.alphas_cumprod, expected.alphas_cumprod, rtol=1e-6, atol=1e-7)
        assert scheduler.config.prediction_type == "epsilon"
        assert len(scheduler.alphas_cumprod) == scheduler.config.num_train_timesteps


def test_schedule_that_only_one_sampler_knows():
    heun = diffusers.HeunDiscreteScheduler(beta_schedule="exp")
    found = training_scheduler(json.loads(heun.to_json_string()), "it")
    torch.testing.assert_close(found.alphas_cumprod, heun.alphas_cumprod, rtol=1e-6, atol=1e-7)


def test_early_configuration_of_a_network_that_predicts_images():
    config = {"_class_name": "DDPMScheduler", "predict_epsilon": False}
    assert training_scheduler(config, "it").config.prediction_type == "sample"
    assert training_scheduler({**config, "predict_epsilon": True}, "it").config.prediction_type == "epsilon"


@pytest.mark.parametrize("from_folder", [False, True])
@pytest.mark.parametrize(
    ("scheduler", "word"),
    [
        (diffusers.CogVideoXDDIMScheduler(), "CogVideoXDDIMScheduler"),
        (diffusers.IPNDMScheduler(), "IPNDMScheduler"),
        (diffusers.UniPCMultistepScheduler(use_flow_sigmas=True), "use_flow_sigmas"),
        (diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True), "use_flow_sigmas"),
        (diffusers.DEISMultistepScheduler(use_flow_sigmas=True), "use_flow_sigmas"),
        (diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction"), "prediction_type"),
        (
            diffusers.EulerDiscreteScheduler(prediction_type="v_prediction", timestep_type="continuous"),
            "timestep_type",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_kinds_of_noise_are_refused_by_name(scheduler, word, from_folder, make_unet, tmp_path):
    pipeline = diffusers.DDPMPipeline(make_unet(), diffusers.DDPMScheduler())
    if from_folder:
        pipeline.save_pretrained(tmp_path)
        scheduler.save_pretrained(tmp_path / "scheduler")
        refused(tmp_path, tmp_path / "scheduler" / "scheduler_config.json", word)
    else:
        pipeline = SimpleNamespace(unet=pipeline.unet, scheduler=scheduler)
        refused(pipeline, "the backbone's scheduler", word)


@pytest.mark.parametrize("name", ["ScoreSdeVeScheduler", "EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_known_noise_is_refused_where_the_index_has_another(name, pipeline_folder):
    getattr(diffusers, name)().save_pretrained(pipeline_folder / "scheduler")
    refused(pipeline_folder, f"is of a {name}, but its pipeline's index has a DDPMScheduler, of other noise")


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"_class_name": "KarrasVeScheduler", "sigma_max": 100}, "KarrasVeScheduler"),
        ({"_class_name": "ScoreSdeVpScheduler", "beta_min": 0.1, "beta_max": 20}, "ScoreSdeVpScheduler"),
        ({"_class_name": "DDPMScheduler", "sigma_data": 0.5}, "sigma_data"),
        ({"_class_name": "DDPMScheduler", "snr_shift_scale": 3.0}, "snr_shift_scale"),
        ({"num_train_timesteps": 1000}, "neither _class_name nor beta_schedule"),
        ({"_class_name": "DDPMScheduler", "beta_start": 0, "beta_end": 0}, "beta_end and beta_schedule make no noise"),
    ],
)
def test_configuration_of_another_noise_is_refused(config, word):
    with pytest.raises(ValueError, match=f"^it.*{word}"):
        training_scheduler(config, "it")


def test_class_of_the_index_counts_as_diffusers_has_it(pipeline_folder):
    edit_json(pipeline_folder / "model_index.json", scheduler=["diffusers", "EDMEulerScheduler"])
    refused(pipeline_folder, "is of a DDPMScheduler, but its pipeline's index has a EDMEulerScheduler, of other noise")
    edit_json(pipeline_folder / "model_index.json", scheduler=["diffusers", "HeunDiscreteScheduler"])
    (pipeline_folder / "scheduler" / "scheduler_config.json").write_text("{}")
    found = load_backbone(pipeline_folder).scheduler.alphas_cumprod
    torch.testing.assert_close(found, diffusers.HeunDiscreteScheduler().alphas_cumprod, rtol=1e-6, atol=1e-7)


def test_scheduler_whose_levels_are_not_those_of_its_configuration_is_refused(make_unet):
    class Shifted(diffusers.DDPMScheduler):
        def __init__(self):
            super().__init__()
            self.alphas_cumprod = self.alphas_cumprod**2

    pipeline = SimpleNamespace(unet=make_unet(), scheduler=Shifted())
    refused(pipeline, "the backbone's scheduler has other alphas_cumprod than its configuration makes")
    pipeline.scheduler = object()
    refused(pipeline, "the backbone's scheduler must be a scheduler of diffusers; got a object")


@pytest.mark.parametrize("place", ["model", "model/scheduler", "scheduler"])
def test_scheduler_beside_a_model_alone_is_used(place, make_unet, tmp_path):
    folder = tmp_path / ("unet" if place == "scheduler" else "model")
    make_unet().save_pretrained(folder)
    diffusers.DDPMScheduler(**COSINE_V).save_pretrained(tmp_path / place)
    backbone = load_backbone(folder)
    assert backbone.scheduler.config.prediction_type == "v_prediction"
    torch.testing.assert_close(backbone.scheduler.alphas_cumprod, diffusers.DDPMScheduler(**COSINE_V).alphas_cumprod)


def test_unet_folder_of_a_pipeline_is_the_pipeline(make_backbone, tmp_path, monkeypatch):
    backbone = make_backbone(
        in_channels=4, scheduler=diffusers.DDPMScheduler(**COSINE_V), image_shape=(1, 7, 8), patch_size=2
    )
    backbone.save_pretrained(tmp_path)
    assert load_backbone(tmp_path / "unet").fingerprint() == backbone.fingerprint()
    monkeypatch.chdir(tmp_path / "unet")
    assert load_backbone(".").fingerprint() == backbone.fingerprint()


# Networks that are none of a DDPM of pixels


@pytest.mark.parametrize("beside", ["text_encoder", "image_encoder", "tokenizer", "bert"])
@pytest.mark.parametrize("part", [".", "unet"])
def test_pipeline_of_more_than_pixels_is_refused(beside, part, pipeline_folder):
    edit_json(pipeline_folder / "model_index.json", _class_name="Mine", **{beside: ["transformers", "CLIPTextModel"]})
    refused(pipeline_folder / part, f"is a Mine of the network UNet2DModel, beside {beside}: none of the families")


@pytest.mark.parametrize("beside", ["vae", "vqvae", "movq", "vqmodel"])
@pytest.mark.parametrize("part", [".", "unet"])
def test_pixels_are_not_taken_for_latents_nor_latents_for_pixels(beside, part, pipeline_folder):
    edit_json(pipeline_folder / "model_index.json", _class_name="Mine", **{beside: ["diffusers", "VQModel"]})
    refused(pipeline_folder / part, pipeline_folder / beside / "config.json", "is missing")
    diffusers.VQModel(block_out_channels=(8,), norm_num_groups=4).save_pretrained(pipeline_folder / beside)
    refused(pipeline_folder / part, "the network of LDM must take the 3 channels of its autoencoder's latents")


@pytest.mark.parametrize("kind", ["LDMPipeline", "KarrasVePipeline"])
def test_pipeline_that_is_no_ddpm_is_refused_by_its_class(kind, pipeline_folder):
    edit_json(pipeline_folder / "model_index.json", _class_name=kind)
    refused(pipeline_folder, f"backbone {pipeline_folder} is a {kind} of the network UNet2DModel: none of the families")


def test_absent_parts_and_options_of_a_pipeline_do_not_matter(pipeline_folder):
    edit_json(pipeline_folder / "model_index.json", vqvae=[None, None], requires_safety_checker=False, _note={"a": 1})
    assert load_backbone(pipeline_folder).num_train_timesteps == 50


def test_loaded_pipeline_of_more_than_pixels_is_refused(make_unet):
    duck = SimpleNamespace(unet=make_unet(), scheduler=diffusers.DDIMScheduler(), first_stage=torch.nn.Linear(1, 1))
    refused(duck, "is a SimpleNamespace of the network UNet2DModel, beside first_stage: none of the families")


@pytest.mark.parametrize("as_folder", [False, True])
@pytest.mark.parametrize("with_scheduler", [False, True])
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"time_embedding_type": "fourier"}, "time_embedding_type 'fourier' is that of score-based networks"),
        ({"center_input_sample": True}, "with center_input_sample the network wants images in [0, 1]"),
        ({"class_embed_type": "timestep"}, "the network wants more of each image than its class"),
        ({"in_channels": 6, "out_channels": 3}, "out_channels must be 6 or 12; got 3"),
        ({"down_block_types": ("KDownBlock2D",)}, "down_block_types must be 'DownBlock2D' or"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_networks_of_other_kinds_are_refused(config, message, with_scheduler, as_folder, make_unet, tmp_path):
    unet = make_unet(**config)
    model = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()) if with_scheduler else unet
    if as_folder:
        model.save_pretrained(tmp_path)
        refused(tmp_path, message, f"{tmp_path}")
    else:
        refused(model, message)


@pytest.mark.parametrize("as_folder", [False, True])
def test_network_alone_may_not_be_one_of_latents(as_folder, make_unet, tmp_path):
    unet = make_unet(in_channels=4)
    unet.save_pretrained(tmp_path)
    refused(tmp_path if as_folder else unet, "is a network of 4 channels without a noise schedule beside it")
    pipeline = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())
    assert load_backbone(pipeline).image_shape == (4, 4, 4)


def test_network_alone_is_told_of(make_unet, tmp_path):
    make_unet().save_pretrained(tmp_path)
    for model, name in [(make_unet(), "the backbone"), (tmp_path, f"backbone {tmp_path}")]:
        with pytest.warns(
            UserWarning, match=f"^{name} has no noise schedule beside it: .* diffusers.DDPMPipeline\\(unet, sch"
        ):
            backbone = load_backbone(model)
        assert torch.equal(backbone.scheduler.alphas_cumprod, diffusers.DDPMScheduler().alphas_cumprod)


def test_network_with_learned_times_needs_as_many_as_its_schedule(make_unet):
    unet = make_unet(time_embedding_type="learned", num_train_timesteps=50)
    backbone = load_backbone(diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(num_train_timesteps=50)))
    assert backbone.predict(torch.zeros(1, 1, 4, 4), torch.tensor([49])).isfinite().all()
    refused(diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()), "num_train_timesteps must be above the last")


# Sizes


@pytest.mark.parametrize(
    ("size", "levels", "expected"), [(28, 4, (32, 32)), (28, 3, (28, 28)), ((5, 9), 2, (6, 10)), (7, 1, (7, 7))]
)
def test_sides_that_the_levels_do_not_divide_are_filled_with_their_border(size, levels, expected, make_unet):
    unet = make_unet(sample_size=size, block_out_channels=(4,) * levels, attention_head_dim=4)
    backbone = load_backbone(diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()))
    height, width = (size, size) if isinstance(size, int) else size
    assert backbone.image_shape == (1, height, width)
    assert backbone.input_shape == (1, *expected)
    images = torch.rand(2, 1, height, width)
    prepared = backbone.prepare(images)
    top, left = expected[0] - height, expected[1] - width
    pads = [(0, 0), (0, 0), (top // 2, top - top // 2), (left // 2, left - left // 2)]
    np.testing.assert_array_equal(prepared, np.pad(images, pads, mode="edge"))
    assert backbone.predict(prepared, torch.tensor([5, 5])).shape == prepared.shape


# Weights


def test_weights_and_numbers_are_those_of_diffusers_whatever_is_drawn_meanwhile(
    make_unet, pipeline_folder, rng_untouched
):
    expected = diffusers.UNet2DModel.from_pretrained(pipeline_folder / "unet", low_cpu_mem_usage=False)
    expected.requires_grad_(False)  # kernels for weights that need gradients differ in the last bits
    with rng_untouched(), ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: load_backbone(pipeline_folder), range(8)))
        copies = list(pool.map(lambda backbone: pickle.loads(pickle.dumps(copy.deepcopy(backbone))), found))
        wrapped = list(pool.map(lambda _: load_backbone(expected), range(8)))
    x_t, timesteps = torch.randn(3, 1, 4, 4), torch.tensor([0, 7, 49])
    with torch.no_grad():
        out = expected.eval()(x_t, timesteps).sample
    for backbone in (*found, *copies, *wrapped):
        assert equal_weights(backbone.network, expected)
        assert torch.equal(backbone.predict(x_t, timesteps), out)


def test_weights_do_not_follow_their_file(pipeline_folder):
    backbone = load_backbone(pipeline_folder)
    before = backbone.fingerprint()
    path = pipeline_folder / "unet" / WEIGHTS
    size = path.stat().st_size
    with open(path, "r+b") as file:  # in place, as a mapped file would show
        file.seek(size - 1000)
        file.write(b"\1" * 1000)
    assert backbone.fingerprint() == before


@pytest.mark.parametrize("variant", ["fp16", "bf16", "non_ema", "my-own"])
def test_only_variant_of_the_weights_is_read(variant, make_unet, tmp_path):
    unet = make_unet().half()
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(**COSINE_V)).save_pretrained(tmp_path, variant=variant)
    assert (tmp_path / "unet" / f"diffusion_pytorch_model.{variant}.safetensors").exists()
    assert equal_weights(load_backbone(tmp_path).network, unet.float())


def test_plain_weights_go_before_variants(make_unet, pipeline_folder):
    make_unet(seed=1).save_pretrained(pipeline_folder / "unet", variant="fp16")
    assert equal_weights(load_backbone(pipeline_folder).network, make_unet())


def test_several_variants_are_named(make_unet, pipeline_folder):
    for variant in ("fp16", "non_ema"):
        make_unet().save_pretrained(pipeline_folder / "unet", variant=variant)
    (pipeline_folder / "unet" / WEIGHTS).unlink()
    refused(pipeline_folder, pipeline_folder / "unet", "only variants of its weights, fp16, non_ema")


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_weights_in_several_files_are_read(variant, make_unet, pipeline_folder):
    unet = make_unet(seed=1, block_out_channels=(8, 8))
    (pipeline_folder / "unet" / WEIGHTS).unlink()
    unet.save_pretrained(pipeline_folder / "unet", max_shard_size="10KB", variant=variant)
    assert len(list((pipeline_folder / "unet").glob("*.safetensors"))) > 2
    assert equal_weights(load_backbone(pipeline_folder).network, unet)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.pop("weight_map"), "weight_map must be a JSON object; got None"),
        (lambda index: index.update(weight_map={}), "weight_map names no file"),
        (lambda index: index["weight_map"].update(a="../../x.safetensors"), "must name safetensors files beside it"),
        (lambda index: index["weight_map"].update(a=3), "must name safetensors files beside it; got 3"),
        (lambda index: index["weight_map"].update(a="no.safetensors"), "no.safetensors is missing"),
    ],
)
def test_index_of_weights_is_checked(change, message, make_unet, pipeline_folder):
    (pipeline_folder / "unet" / WEIGHTS).unlink()
    make_unet().save_pretrained(pipeline_folder / "unet", max_shard_size="10KB")
    path = pipeline_folder / "unet" / f"{WEIGHTS}.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    refused(pipeline_folder, message, pipeline_folder / "unet")


def test_weights_under_another_name_are_told_of(pipeline_folder):
    (pipeline_folder / "unet" / WEIGHTS).rename(pipeline_folder / "unet" / "model.safetensors")
    refused(pipeline_folder, "has no .safetensors weights, such as", "it has model.safetensors")


@pytest.mark.parametrize("name", [f"unet/{WEIGHTS}", "unet/config.json", "model_index.json"])
def test_unreadable_file_is_called_unreadable(name, pipeline_folder, monkeypatch):
    real = os.open

    def denied(path, *args, **kwargs):
        if str(path) == str(pipeline_folder / name):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", denied)  # a superuser may read all files
    text = refused(pipeline_folder, f"backbone file {pipeline_folder / name} cannot be read: Permission denied")
    assert "damaged" not in text


# Hostile files

HOSTILE = {
    "list": (b"[1, 2]", "must hold a JSON object; got [1, 2]"),
    "number": (b"3", "must hold a JSON object; got 3"),
    "null": (b"null", "must hold a JSON object; got None"),
    "empty": (b"", "is no JSON"),
    "no text": (b"\xff\xfe\x00{", "is no JSON"),
    "deep": (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "is nested more than 32 deep"),
    "somewhat deep": (b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}", "is nested more than 32 deep"),
    "long": (b'{"a": "' + b"x" * MAX_JSON_BYTES + b'"}', "is larger than the 1048576 bytes"),
    "long number": (b'{"a": ' + b"1" * 100_000 + b"}", "is no JSON"),
}


@pytest.mark.parametrize(
    "name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json", "skdiec.json"]
)
@pytest.mark.parametrize("kind", HOSTILE)
def test_json_of_any_file_is_read_with_suspicion(kind, name, pipeline_folder):
    text, message = HOSTILE[kind]
    (pipeline_folder / name).write_bytes(text)
    refused(pipeline_folder, f"backbone file {pipeline_folder / name} {message}")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
@pytest.mark.parametrize(
    "name",
    ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json", "skdiec.json", f"unet/{WEIGHTS}"],
)
@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "loop", "dangling"])
def test_only_regular_files_are_read(kind, name, pipeline_folder):
    path = pipeline_folder / name
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path if kind == "loop" else "nowhere")
    if kind == "dangling":
        if name == "skdiec.json":  # as if it were not there
            assert load_backbone(pipeline_folder).patch_size == 1
        else:
            refused(pipeline_folder, "has neither" if name == "model_index.json" else f"{path} is missing")
        return
    message = "cannot be read: Too many levels" if kind == "loop" else "is no regular file"
    refused(pipeline_folder, f"backbone file {path} {message}")


NETWORK = {
    "layers_per_block": [10**9, -1, 0, "1", None, 1.5, True, [1]],
    "block_out_channels": [[8] * 100_000, [], 8, "88", [8, "8"], [0], [10**12], None, {"a": 1}],
    "down_block_types": [[], "DownBlock2D", [["DownBlock2D"]], ["os.system"], None, 5],
    "up_block_types": [["UpBlock2D"] * 2, [None], {}],
    "mid_block_type": ["UNetMidBlock2DCrossAttn", 3, []],
    "sample_size": [[10**9, 1], 10**9, 0, -4, "4", [4], [4, 4, 4], [4, None], {}, 4.0, True],
    "in_channels": [0, 10**9, "1", None, [1]],
    "out_channels": [0, 3, "1", None, True],
    "norm_num_groups": [0, 3, 10**9, None, "4"],
    "attn_norm_num_groups": [0, 3, "4", [4]],
    "attention_head_dim": [0, -8, "8", [8]],
    "time_embedding_type": ["fourier", "other", None, 4],
    "time_embedding_dim": ["a", -1, 10**9],
    "act_fn": ["tanh", None, 3, []],
    "norm_eps": ["a", -1, 10**400, None],
    "dropout": [-1, 2, "a", None],
    "downsample_padding": [10**6, -1, "1"],
    "downsample_type": ["x", None, 3],
    "resnet_time_scale_shift": ["ada_group", None, []],
    "mid_block_scale_factor": [0, "1", None, float("nan"), float("inf")],
    "freq_shift": ["0", -1, 10**9],
    "add_attention": ["yes", 1, None],
    "center_input_sample": ["no", 0, None],
    "num_class_embeds": [10**9, "a"],
    "class_embed_type": ["timestep", 3],
    "_class_name": ["os.system", 3, None, ["UNet2DModel"]],
}
SCHEDULE = {
    "num_train_timesteps": [10**9, 0, -1, "1000", 1.5, True, [1]],
    "beta_schedule": ["other", 3, ["linear"]],
    "beta_start": [-1, 2, "a", float("nan"), float("inf"), 10**400, []],
    "beta_end": [1, 10, "0.02", {}],
    "trained_betas": [[], [0.1], [0.1] * 49 + [2], [0.1] * 49 + ["a"], "a" * 50, 3, {}],
    "prediction_type": ["flow_prediction", "x", 3, ["epsilon"]],
    "rescale_betas_zero_snr": ["yes", 1],
    "clip_sample": ["yes", 1],
    "variance_type": ["other", 3, []],
    "use_flow_sigmas": [True, "yes"],
    "_class_name": ["KarrasVeScheduler", 3, ["DDPMScheduler"], "os.system"],
}
RECIPE = {
    "patch_size": [0, -1, 2, 10**9, "1", 1.5, None, [1], True],
    "image_shape": [
        [10**9, 1, 1],
        [1, 4],
        [1, 4, 4, 4],
        "144",
        4,
        [1, 0, 4],
        [1, 5, 4],
        [3, 4, 4],
        [1, 4, None],
        {},
        [],
    ],
    "settings": [3, [], "a", {"max_timestep": 50}, {"max_timestep": -1}, {"max_timestep": "a"}, {"max_timestep": None}],
}


@pytest.mark.parametrize(
    ("name", "key", "values"),
    [
        *(("unet/config.json", key, values) for key, values in NETWORK.items()),
        *(("scheduler/scheduler_config.json", key, values) for key, values in SCHEDULE.items()),
        *(("skdiec.json", key, values) for key, values in RECIPE.items()),
    ],
    ids=lambda value: "" if isinstance(value, list) else value,
)
def test_value_that_cannot_be_is_refused_by_its_name(name, key, values, pipeline_folder):
    path = pipeline_folder / name
    good = json.loads(path.read_text()) if path.exists() else {}
    for value in values:
        path.write_text(json.dumps({**good, key: value}))
        words = [key]
        if key == "_class_name" and name.startswith("unet"):
            refused(pipeline_folder, "none of the families" if value else "only UNet2DModel can be used")
            continue
        if key == "settings" and isinstance(value, dict):
            words = ["max_timestep"]
        if name.startswith("scheduler") and key == "_class_name":
            words = ["whose noise is not known"]
        refused(pipeline_folder, path, *words)


def test_pipeline_entry_must_be_a_pair(pipeline_folder):
    for name in ("unet", "scheduler", "more"):
        for value in ({}, [], ["diffusers"], [["a"], "b"], ["diffusers", "UNet2DModel", "x"], {"a": {"b": 1}}):
            good = (pipeline_folder / "model_index.json").read_text()
            edit_json(pipeline_folder / "model_index.json", **{name: value})
            refused(pipeline_folder, f"{pipeline_folder / 'model_index.json'}: {name} must be a pair [library, class]")
            (pipeline_folder / "model_index.json").write_text(good)
    edit_json(pipeline_folder / "model_index.json", unet=["mine", "UNet2DModel"])
    refused(pipeline_folder, "unet must be of the library 'diffusers'; got 'mine'")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: struct.pack("<Q", 2**62) + data[8:], "its header cannot be read"),
        (lambda data: struct.pack("<Q", 0) + data[8:], "its header cannot be read"),
        (lambda data: struct.pack("<Q", 2**22 + 1) + data[8:] + b"\0" * 2**23, "its header cannot be read"),
        (lambda data: data + b"\0", "damaged or truncated weights"),
        (lambda data: data[:-1], "damaged or truncated weights"),
        (lambda data: struct.pack("<Q", 2) + b"[]" + data, "damaged or truncated weights"),
        (lambda data: struct.pack("<Q", 200_000) + b"[" * 200_000, "damaged or truncated weights"),
        (lambda data: b"", "its header cannot be read"),
    ],
)
def test_damaged_header_is_told_of(change, message, pipeline_folder):
    path = pipeline_folder / "unet" / WEIGHTS
    path.write_bytes(change(path.read_bytes()))
    refused(pipeline_folder, f"backbone file {path} has damaged or truncated weights", message)


@pytest.mark.parametrize("count", [2**32, 2**40])
def test_sparse_weights_allocate_nothing(count, pipeline_folder):
    path = pipeline_folder / "unet" / WEIGHTS
    header = json.dumps({"a": {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}}).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 4 * count)
    refused(pipeline_folder, pipeline_folder / "unet", "weights")


def test_configuration_larger_than_its_weights_is_not_built(pipeline_folder, monkeypatch):
    edit_json(
        pipeline_folder / "unet" / "config.json",
        layers_per_block=16,
        block_out_channels=[8] * 10,
        down_block_types=["DownBlock2D"] * 10,
        up_block_types=["UpBlock2D"] * 10,
    )
    monkeypatch.setattr(networks, "build_model", None)  # would raise TypeError
    refused(pipeline_folder, "make 330 residual blocks, the weights have 3")


def test_weights_of_several_mistakes_name_one(make_unet, pipeline_folder):
    path = pipeline_folder / "unet" / WEIGHTS
    weights = load_file(path)
    weights["extra"] = weights.pop("conv_in.bias")
    save_file(weights, path, {"format": "pt"})
    refused(pipeline_folder, "1 missing, 1 unexpected, 0 of another shape; such as 'conv_in.bias'")


def test_network_without_values_is_refused(make_unet):
    refused(make_unet().to("meta"), "weights on the device 'meta'")


def test_reader_gives_what_is_there(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, {"b": -Infinity}], "c": null}')
    assert read_json(path) == {"a": [1, {"b": float("-inf")}], "c": None}
    save_file({"x": torch.zeros(2, 3), "y": torch.zeros(())}, tmp_path / "b.safetensors", {"format": "pt"})
    header = read_header(tmp_path / "b.safetensors")
    assert (header.shapes, header.metadata) == ({"x": (2, 3), "y": ()}, {"format": "pt"})


def test_backbone_that_is_something_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "a" / "b")
        refused("a/b", "there is no folder 'a/b'")
    refused("a\0b", "there is no folder")
    refused("x" * 5000, "there is no folder")


# The Hub


@pytest.fixture
def hub(monkeypatch):
    """Gives a stand-in for the Hub: a folder as the repository, one to download to, and what was fetched, in order."""

    def make(repository, cache):
        fetched = []

        def snapshot_download(name, *, allow_patterns, **options):
            assert options == {}
            assert name == "some-one/a.model_1"
            files = sorted(str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file())
            for file in filter_repo_objects(files, allow_patterns=allow_patterns):
                if file not in fetched:
                    fetched.append(file)
                    (cache / file).parent.mkdir(parents=True, exist_ok=True)
                    (cache / file).write_bytes((repository / file).read_bytes())
            return str(cache)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return fetched

    return make


@pytest.fixture
def repository(pipeline_folder):
    """A repository with much that is not needed."""
    unet = pipeline_folder / "unet"
    for name in ("diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.bin"):
        (unet / name).write_bytes((unet / WEIGHTS).read_bytes())
    for name in ("README.md", "model.ckpt", "model.safetensors", "vqvae/model.safetensors", "images/1.png", "run.py"):
        (pipeline_folder / name).parent.mkdir(exist_ok=True)
        (pipeline_folder / name).write_bytes(b"not needed")
    return pipeline_folder


def test_only_what_is_needed_is_fetched(repository, hub, make_unet, tmp_path):
    fetched = hub(repository, tmp_path / "cache")
    backbone = load_backbone("some-one/a.model_1")
    assert equal_weights(backbone.network, make_unet())
    assert backbone.scheduler.config.prediction_type == "v_prediction"
    assert fetched == [
        "model_index.json",
        "unet/config.json",
        "scheduler/scheduler_config.json",
        f"unet/{WEIGHTS}",
    ]


def test_pipeline_that_cannot_be_used_is_refused_before_weights_are_fetched(repository, hub, tmp_path):
    edit_json(repository / "model_index.json", text_encoder=["transformers", "CLIPTextModel"])
    fetched = hub(repository, tmp_path / "cache")
    refused("some-one/a.model_1", "of the network UNet2DModel, beside text_encoder: none of the families")
    assert fetched == ["model_index.json", "unet/config.json"]


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("unet/config.json", {"time_embedding_type": "fourier"}, "score-based"),
        ("scheduler/scheduler_config.json", {"use_flow_sigmas": True}, "use_flow_sigmas"),
    ],
)
def test_network_and_noise_are_looked_at_before_weights_are_fetched(name, change, word, repository, hub, tmp_path):
    edit_json(repository / name, **change)
    fetched = hub(repository, tmp_path / "cache")
    refused("some-one/a.model_1", word)
    assert all(file.endswith(".json") for file in fetched)


def test_backbone_of_pretrain_comes_with_its_record(make_backbone, hub, tmp_path):
    backbone = make_backbone(in_channels=4, image_shape=(1, 7, 8), patch_size=2, recipe={"settings": {"epochs": 3}})
    backbone.save_pretrained(tmp_path / "repository")
    hub(tmp_path / "repository", tmp_path / "cache")
    found = load_backbone("some-one/a.model_1")
    assert (found.fingerprint(), found.recipe) == (backbone.fingerprint(), backbone.recipe)


@pytest.mark.parametrize("kind", ["alone", "shards", "variant", "flat"])
def test_other_layouts_of_a_repository(kind, make_unet, hub, tmp_path):
    unet, repository = make_unet(), tmp_path / "repository"
    if kind == "alone":
        unet.save_pretrained(repository)
        diffusers.DDPMScheduler(**COSINE_V).save_pretrained(repository)
    else:
        options = {"shards": {"max_shard_size": "10KB"}, "variant": {"variant": "fp16"}}.get(kind, {})
        diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(**COSINE_V)).save_pretrained(repository, **options)
    if kind == "flat":
        for path in [*(repository / "unet").iterdir(), *(repository / "scheduler").iterdir()]:
            path.rename(repository / path.name)
    fetched = hub(repository, tmp_path / "cache")
    backbone = load_backbone("some-one/a.model_1")
    assert equal_weights(backbone.network, unet)
    assert backbone.num_train_timesteps == 50
    assert len(set(fetched)) == len([path for path in repository.rglob("*") if path.is_file()])


def test_repository_without_weights_that_can_be_read(repository, hub, tmp_path):
    for path in (repository / "unet").glob("*.safetensors"):
        path.unlink()
    hub(repository, tmp_path / "cache")
    refused("some-one/a.model_1", "has no .safetensors weights", "pickled ones are not read")


def test_cache_of_the_hub_serves_without_a_network(make_unet, pipeline_folder, tmp_path, monkeypatch):
    """The client itself, offline, over a cache as it lays it out."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    commit = "0" * 40
    storage = tmp_path / "models--some-one--a.model_1"
    (storage / "refs").mkdir(parents=True)
    (storage / "refs" / "main").write_text(commit)
    (storage / "snapshots").mkdir()
    pipeline_folder.rename(storage / "snapshots" / commit)
    offline = partial(huggingface_hub.snapshot_download, cache_dir=str(tmp_path), local_files_only=True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    assert equal_weights(load_backbone("some-one/a.model_1").network, make_unet())
    with pytest.raises(ValueError, match="neither a local folder nor could it be fetched from the Hub"):
        load_backbone("some-one/else")


@pytest.mark.parametrize("kind", [torch.int32, torch.bool, torch.complex64, torch.uint8])
def test_weights_that_are_no_real_numbers_are_told_of(kind, make_unet, tmp_path):
    make_unet().save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = safetensors.torch.load_file(file)
    safetensors.torch.save_file({name: tensor.to(kind) for name, tensor in weights.items()}, file)
    with pytest.raises(ValueError, match=r"backbone file .* of type .*, where weights are F16, BF16, F32, F64"):
        load_backbone(tmp_path)


def test_an_empty_name_is_no_backbone():
    with pytest.raises(ValueError, match=r"backbone must be .*; got an empty name"):
        load_backbone("")
