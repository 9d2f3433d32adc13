"""Loading of models of latents: which files are read, in which number format, and what is refused."""

import json
import re

import diffusers
import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from test_latent_families import images, load, make_pipeline, noise, tiny_folders  # noqa: F401 (fixtures)
from test_prompts import text_parts
from tiny_models import FAMILIES, flow, unet

from skdiec import DiffusionEmbeddedClustering, load_backbone
from skdiec.backbones import Backbone, families, models, register
from skdiec.features import FeatureExtractor

WEIGHTS = "diffusion_pytorch_model.safetensors"
TOLD = FAMILIES["Stable Diffusion 1"].told()


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def folder(tmp_path):
    """A saved Stable Diffusion without text encoders."""
    parts = FAMILIES["Stable Diffusion 1"].build()
    make_pipeline("Stable Diffusion 1", parts).save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def refused(folder, *words, **options):
    with pytest.raises(ValueError, match=re.escape(str(words[0]))) as caught:
        load_backbone(folder, condition=TOLD, **options)
    for word in words[1:]:
        assert str(word) in str(caught.value)
    assert len(str(caught.value)) < 1500


# Files and number formats


def test_shards_are_the_same_weights(folder, tmp_path):
    expected = load_backbone(folder, condition=TOLD)
    pipeline = make_pipeline("Stable Diffusion 1", FAMILIES["Stable Diffusion 1"].build())
    pipeline.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert len(list((tmp_path / "shards" / "unet").glob("*-of-*.safetensors"))) > 2
    assert load_backbone(tmp_path / "shards", condition=TOLD).fingerprint() == expected.fingerprint()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_stay_in_half_precision_until_a_cpu_computes(dtype, folder, tmp_path, images):  # noqa: F811
    pipeline = make_pipeline("Stable Diffusion 1", FAMILIES["Stable Diffusion 1"].build()).to(dtype=dtype)
    pipeline.save_pretrained(tmp_path / "half")
    backbone = load_backbone(tmp_path / "half", condition=TOLD)
    assert backbone.dtype == dtype
    assert {parameter.dtype for parameter in backbone.network.parameters()} == {dtype}
    assert backbone.autoencoder.model.dtype == torch.float32
    for name, tensor in backbone.network.state_dict().items():
        assert torch.equal(tensor, pipeline.unet.state_dict()[name])
    x_t, now = noise(2, 4, 8, 8), torch.tensor([50, 100])
    half = backbone.predict(x_t, now)
    assert half.dtype == dtype
    whole = backbone.copy().to("cpu")
    assert {parameter.dtype for parameter in whole.network.parameters()} == {torch.float32}
    assert backbone.dtype == dtype  # the copy alone was moved
    expected = load_backbone(folder, condition=TOLD).predict(x_t, now)
    torch.testing.assert_close(whole.predict(x_t, now), expected, atol=0.02, rtol=0.02)
    torch.testing.assert_close(half.float(), expected, atol=0.06, rtol=0.06)
    model = DiffusionEmbeddedClustering(
        2, backbone=backbone, layer="mid_block", timestep=50, pooling=1, n_init=2, max_epochs=1, warmup_epochs=0,
        random_state=0,
    ).fit(images)  # fmt: skip
    assert model.backbone_.dtype == torch.float32
    assert backbone.dtype == dtype
    assert model.embedding_.dtype == np.float32


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_variant_is_the_one_that_is_asked_for_or_the_only_one(variant, folder, tmp_path):
    pipeline = make_pipeline("Stable Diffusion 1", FAMILIES["Stable Diffusion 1"].build())
    pipeline.to(dtype=torch.float16).save_pretrained(folder, variant="fp16")
    backbone = load_backbone(folder, condition=TOLD, variant=variant)
    assert backbone.dtype == (torch.float32 if variant is None else torch.float16)
    refused(folder, f"variant must be one of those in {folder / 'unet'}, fp16; got 'ema'", variant="ema")
    refused(folder, "variant must be a name such as 'fp16', or None; got ['fp16']", variant=["fp16"])
    for part in ("unet", "vae"):
        (folder / part / WEIGHTS).unlink()
    assert load_backbone(folder, condition=TOLD).dtype == torch.float16


def test_autoencoder_as_early_diffusers_saved_it(folder):
    expected = load_backbone(folder, condition=TOLD)
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(folder / "vae" / WEIGHTS)
    for new, old in former.items():
        weights = {name.replace(f".{new}.", f".{old}."): tensor for name, tensor in weights.items()}
    assert any(".query." in name for name in weights)
    save_file(weights, folder / "vae" / WEIGHTS, {"format": "pt"})
    assert load_backbone(folder, condition=TOLD).fingerprint() == expected.fingerprint()


@pytest.mark.parametrize(("name", "norm"), [("DiT", "ada_norm_zero"), ("PixArt", "ada_norm_single")])
def test_class_that_transformers_had_before(name, norm, tiny_folders, tmp_path):  # noqa: F811
    expected = load(name, tiny_folders)
    make_pipeline(name, FAMILIES[name].build()).save_pretrained(tmp_path)
    edit_json(tmp_path / "transformer" / "config.json", _class_name="Transformer2DModel", norm_type=norm)
    edit_json(tmp_path / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    backbone = load_backbone(tmp_path, condition=FAMILIES[name].told() or None)
    assert type(backbone) is type(expected)
    assert backbone.fingerprint() == expected.fingerprint()


def test_transformer_folder_of_a_pipeline_is_the_pipeline(tiny_folders):  # noqa: F811
    backbone = load_backbone(tiny_folders["DiT"] / "transformer")
    assert backbone.fingerprint() == load_backbone(tiny_folders["DiT"]).fingerprint()


def test_subfolder(folder):
    expected = load_backbone(folder, condition=TOLD).fingerprint()
    assert load_backbone(folder.parent, subfolder="pipeline", condition=TOLD).fingerprint() == expected
    refused(folder.parent, "subfolder must be a folder in", subfolder="nothing")
    for wrong in ("../pipeline", "/etc", "", 3, "a//b", ".."):
        refused(folder.parent, "subfolder must be a path below the folder", subfolder=wrong)


def test_weights_are_drawn_by_nobody(tiny_folders, rng_untouched):  # noqa: F811
    with rng_untouched():
        for name in FAMILIES:
            load(name, tiny_folders)


# The Hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Gives a stand-in for the Hub: a folder as the repository, and what was fetched of it, in order."""

    def make(repository, commit="0" * 40):
        fetched, cache = [], tmp_path / "cache" / commit

        def snapshot_download(name, *, allow_patterns, revision=None):
            assert revision in ("some-branch", commit)
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
def repository(folder):
    """A repository with its text encoder, and much that is not needed."""
    name = "Stable Diffusion 1"
    make_pipeline(name, {**FAMILIES[name].build(), **text_parts(name)}).save_pretrained(folder)
    edit_json(folder / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    for part in ("unet", "vae"):
        for other in ("diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.bin"):
            (folder / part / other).write_bytes((folder / part / WEIGHTS).read_bytes())
    for file in ("safety_checker/model.safetensors", "v1-5.safetensors", "v1-5.ckpt", "text_encoder/model.fp16.bin"):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(b"not needed")
    return folder


def test_only_what_is_needed_is_fetched(repository, hub):
    fetched = hub(repository)
    backbone = load_backbone("some-one/model", revision="some-branch", condition=TOLD)
    assert backbone.fingerprint() == load_backbone(repository, condition=TOLD).fingerprint()
    assert sorted(fetched) == [
        "model_index.json", "scheduler/scheduler_config.json", "unet/config.json", f"unet/{WEIGHTS}",
        "vae/config.json", f"vae/{WEIGHTS}",
    ]  # fmt: skip
    assert fetched[0] == "model_index.json"
    assert all(file.endswith(".json") for file in fetched[:4])


def test_text_encoder_is_fetched_where_the_prompt_takes_it(repository, hub):
    fetched = hub(repository)
    backbone = load_backbone("some-one/model", revision="some-branch")
    assert backbone.fingerprint() == load_backbone(repository).fingerprint()
    of_text = {file for file in fetched if file.startswith(("text_encoder", "tokenizer"))}
    assert {"text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/tokenizer.json"} <= of_text
    assert not any(file.endswith((".bin", ".ckpt", ".fp16.safetensors")) for file in fetched)
    assert not any(file.startswith(("safety_checker", "v1-5")) for file in fetched)


def test_variant_alone_is_fetched(repository, hub):
    fetched = hub(repository)
    load_backbone("some-one/model", revision="some-branch", condition=TOLD, variant="fp16")
    assert f"unet/{WEIGHTS}" not in fetched
    assert {f"{part}/diffusion_pytorch_model.fp16.safetensors" for part in ("unet", "vae")} <= set(fetched)


def test_what_cannot_be_used_is_refused_before_weights_are_fetched(repository, hub):
    edit_json(repository / "scheduler" / "scheduler_config.json", use_flow_sigmas=True)
    fetched = hub(repository)
    refused("some-one/model", "use_flow_sigmas", revision="some-branch")
    assert all(file.endswith(".json") for file in fetched)


# What is refused


def test_parts_that_do_not_fit_each_other(folder, tmp_path):
    flow().save_pretrained(folder / "scheduler")
    refused(folder, "is of a FlowMatchEulerDiscreteScheduler, but its pipeline's index has a DDIMScheduler")
    parts = FAMILIES["DiT"].build()
    make_pipeline("DiT", {**parts, "scheduler": diffusers.ScoreSdeVeScheduler()}).save_pretrained(tmp_path / "ve")
    with pytest.raises(ValueError, match=r"the scheduler of DiT must be a DDPMScheduler or .*; got a ScoreSdeVeSch"):
        load_backbone(tmp_path / "ve")
    inpainting = {**FAMILIES["Stable Diffusion 1"].build(), "unet": unet(in_channels=9)}
    make_pipeline("Stable Diffusion 1", inpainting).save_pretrained(tmp_path / "nine")
    refused(tmp_path / "nine", "must take the 4 channels of its autoencoder's latents; got one of 9, such as for inp")


def test_missing_parts_are_told_of(folder):
    (folder / "scheduler" / "scheduler_config.json").unlink()
    refused(folder, f"backbone {folder} has no scheduler/scheduler_config.json: the noise it was trained with")
    (folder / "vae" / "config.json").unlink()
    refused(folder, f"backbone file {folder / 'vae' / 'config.json'} is missing")
    edit_json(folder / "model_index.json", vae=[None, None])
    diffusers.DDIMScheduler().save_pretrained(folder / "scheduler")
    refused(folder, "a pipeline of Stable Diffusion 1 and 2 must have an autoencoder")


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("unet", {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantized weights"),
        ("unet", {"layers_per_block": 10**6}, "layers_per_block must be at most 512; got 1000000"),
        ("unet", {"layers_per_block": 2}, "has weights of another architecture"),
        ("unet", {"block_out_channels": [8, 24]}, "of another shape"),
        ("unet", {"down_block_types": ["os.system", "DownBlock2D"]}, "of which no network can be built"),
        ("vae", {"latent_channels": 3}, "has weights of another architecture"),
        ("vae", {"scaling_factor": -1}, "autoencoder: scaling_factor must be a number from 1e-12 to 1e+12; got -1"),
        ("vae", {"scaling_factor": "a"}, "autoencoder: scaling_factor must be a number from 1e-12 to 1e+12; got 'a'"),
        ("unet", {"sample_size": "a"}, "sample_size must be a sequence of 2 integers; got 'a'"),
        ("unet", {"sample_size": None}, "has no sample_size, so image_size must be stated"),
        ("unet", {"in_channels": "a"}, "of which no network can be built"),
    ],
)
def test_configurations_that_cannot_be_are_refused(part, changes, words, folder):
    edit_json(folder / part / "config.json", **changes)
    refused(folder, words)


def test_damaged_weights_are_refused(folder):
    for part in ("vae", "unet"):
        path = folder / part / WEIGHTS
        path.write_bytes(path.read_bytes()[:-100])
        refused(folder, "has damaged or truncated weights", path)


def test_pickled_weights_are_refused(folder):
    path = folder / "unet" / WEIGHTS
    path.rename(folder / "unet" / "diffusion_pytorch_model.bin")
    refused(folder, "is in pickle format, which can run code when it is loaded")


def test_libraries_are_not_looked_up_by_name(folder):
    edit_json(folder / "model_index.json", unet=["os", "UNet2DConditionModel"])
    refused(folder, "unet must be of the library 'diffusers'; got 'os'")
    edit_json(
        folder / "model_index.json", unet=["diffusers", "UNet2DConditionModel"], scheduler=["os", "DDIMScheduler"]
    )
    refused(folder, "scheduler must be of the library 'diffusers'; got 'os'")


def test_building_takes_neither_memory_nor_numbers(rng_untouched):
    """The network of SDXL, 2.6 billion weights: without values it takes no memory, and no time to draw any."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    config = {
        "sample_size": 128, "cross_attention_dim": 2048, "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10], "attention_head_dim": [5, 10, 20], "use_linear_projection": True,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }  # fmt: skip
    with rng_untouched():
        network = models.build_model(diffusers.UNet2DConditionModel, config, "it")
    assert sum(parameter.numel() for parameter in network.parameters()) > 2.5e9
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1.5e6  # KiB, of 10 GB


# One's own family


class MyNetwork(diffusers.UNet2DModel):
    """Another class, as of another library."""


@pytest.fixture
def my_family(monkeypatch):
    monkeypatch.setattr(families, "_FAMILIES", list(families._FAMILIES))

    @register
    class MyBackbone(Backbone):
        networks = (MyNetwork,)

        @classmethod
        def from_parts(cls, parts):
            return cls(parts.network, parts.scheduler, image_shape=(1, 8, 8))

        def forward(self, x, time):
            return self.network(x, time, return_dict=False)[0]

    return MyBackbone


def test_own_family_is_loaded_fitted_saved_and_loaded_again(my_family, make_unet, tmp_path, planted):
    import skdiec

    network = MyNetwork.from_config(make_unet(sample_size=8).config)
    pipeline = diffusers.DDPMPipeline(network, diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"))
    pipeline.save_pretrained(tmp_path / "mine")
    edit_json(tmp_path / "mine" / "model_index.json", unet=["my_library", "MyNetwork"])
    backbone = load_backbone(tmp_path / "mine")
    assert type(backbone) is my_family
    assert type(load_backbone(pipeline)) is my_family
    x_t, now = noise(2, 1, 8, 8), torch.tensor([3, 40])
    torch.testing.assert_close(backbone.predict(x_t, now), network.eval()(x_t, now).sample)
    X, _ = planted()
    model = DiffusionEmbeddedClustering(
        3, backbone=tmp_path / "mine", timestep=50, n_init=2, max_epochs=2, warmup_epochs=1, random_state=0
    ).fit(X)
    assert model.layers_ == ("down_blocks.0", "mid_block", "up_blocks.0")
    model.save(tmp_path / "model")
    loaded = skdiec.load(tmp_path / "model")
    assert type(loaded.backbone_) is my_family
    np.testing.assert_array_equal(loaded.predict(X), model.labels_)


def test_own_family_with_a_part_of_its_own_is_saved_over_itself(my_family, make_unet, tmp_path, planted):
    my_family.network_part = "denoiser"
    network = MyNetwork.from_config(make_unet(sample_size=8).config)
    my_family(network, diffusers.DDPMScheduler(), image_shape=(1, 8, 8)).save_pretrained(tmp_path / "mine")
    X, _ = planted()
    model = DiffusionEmbeddedClustering(
        3, backbone=tmp_path / "mine", layer="mid_block", timestep=50, pooling=1, n_init=2, max_epochs=1, random_state=0
    ).fit(X)
    for _ in range(2):
        model.save(tmp_path / "model", overwrite=True)
    assert (tmp_path / "model/backbone/denoiser/config.json").exists()


def test_what_is_no_family_is_told_of():
    class Nameless(Backbone):
        def forward(self, x, time):
            return x

    for wrong in (Nameless, diffusers.UNet2DModel, "Flux", None):
        with pytest.raises(TypeError, match="family must be a subclass of Backbone that names its networks; got"):
            register(wrong)


@pytest.mark.parametrize("networks", [torch.nn.Linear, (torch.nn.Linear,), ["UNet2DModel"], (3,)], ids=str)
def test_networks_that_a_family_cannot_have_are_told_of(networks):
    Family = type("Family", (Backbone,), {"networks": networks, "forward": lambda self, x, time: x})
    with pytest.raises(TypeError, match=r"Family\.networks must be a tuple of classes with from_config and save_pretr"):
        register(Family)


def test_family_that_cannot_be_made_is_told_of():
    Family = type("Family", (Backbone,), {"networks": (diffusers.UNet2DModel,)})
    with pytest.raises(TypeError, match="family must have forward; got Family without"):
        register(Family)


# What is kept


@pytest.mark.filterwarnings("ignore:training collapsed")
def test_images_are_encoded_once_for_all_of_a_search(tiny_folders, images, monkeypatch):  # noqa: F811
    from skdiec.backbones.autoencoders import Autoencoder

    counts = []
    encode = Autoencoder.encode
    monkeypatch.setattr(Autoencoder, "encode", lambda self, x: counts.append(len(x)) or encode(self, x))
    settings = {"pooling": 1, "n_init": 2, "max_epochs": 2, "warmup_epochs": 1, "random_state": 0}
    backbone = load("Stable Diffusion 1", tiny_folders)
    DiffusionEmbeddedClustering(2, backbone=backbone, n_draws=3, shift=1, search_draws=2, **settings).fit(images)
    # The guard, the search's two views of the images, three of the chosen cell, whatever the 8 timesteps are, and 13 to
    # compare images as they are moved.
    assert sum(counts) == 20 + 2 * 20 + 3 * 20 + 13 * 20
    counts.clear()
    trained = {"layer": "mid_block", "timestep": 50, "head": "direct", "train_backbone": True, "max_epochs": 4}
    DiffusionEmbeddedClustering(2, backbone=backbone, n_draws=2, shift=1, **{**settings, **trained}).fit(images)
    # The guard, the search, two views of the cell, the moved ones, both in training, and both once more to embed.
    assert sum(counts) == 20 + 20 + 2 * 20 + 13 * 20 + 2 * 20 + 2 * 20


def test_features_of_kept_latents_are_the_same(tiny_folders, images):  # noqa: F811
    from skdiec.activations import Cell
    from skdiec.images import as_image_source
    from skdiec.storage import LatentCache

    source, backbone = as_image_source(images), load("Flux dev", tiny_folders)
    cells = [Cell("transformer_blocks.1", t, 2) for t in (50, 400)]
    plain = FeatureExtractor(backbone, n_draws=3, shift=1)
    kept = FeatureExtractor(backbone, n_draws=3, shift=1, latents=LatentCache())
    for cell in (*cells, cells[0]):
        rows = None if cell is cells[0] else np.array([3, 1, 15])
        np.testing.assert_array_equal(
            kept.extract(source, [cell], rows=rows)[cell], plain.extract(source, [cell], rows=rows)[cell]
        )


def test_condition_that_is_passed_counts_more_than_the_one_that_was_saved(tiny_folders, tmp_path):  # noqa: F811
    load("Stable Diffusion 1", tiny_folders).save_pretrained(tmp_path)
    assert torch.equal(load_backbone(tmp_path).condition["encoder_hidden_states"], TOLD["encoder_hidden_states"])
    other = {"encoder_hidden_states": noise(1, 3, 12, seed=9)}
    found = load_backbone(tmp_path, condition=other).condition
    assert torch.equal(found["encoder_hidden_states"], other["encoder_hidden_states"])
