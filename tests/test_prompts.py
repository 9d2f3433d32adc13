"""The empty prompt: encoded once by a pipeline's own text encoders, which are not kept."""

import json
import sys

import diffusers
import pytest
import torch
import transformers
from test_latent_families import make_pipeline, noise
from tiny_models import FAMILIES
from tokenizers import Tokenizer, models, processors
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from skdiec import load_backbone
from skdiec.backbones import pipelines

VOCABULARY = {"<pad>": 0, "<unk>": 1, "</s>": 2, "<s>": 3, "word": 4}
SIZES = {"vocab_size": 5, "hidden_size": 12, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


def tokenizer(length=7):
    made = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", VOCABULARY["<s>"]), ("</s>", VOCABULARY["</s>"])]
    )
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>", "bos_token": "<s>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=length, **names)


def clip(kind=CLIPTextModel, width=12, projection=10, **config):
    tokens = {"bos_token_id": 3, "eos_token_id": 2, "pad_token_id": 0}
    sizes = {**SIZES, "hidden_size": width, "projection_dim": projection}
    return kind(CLIPTextConfig(**{**sizes, "max_position_embeddings": 77, **tokens, **config}))


def t5(kind=T5EncoderModel, config=T5Config, width=12):
    return kind(config(vocab_size=5, d_model=width, d_kv=4, d_ff=8, num_layers=1, num_heads=2))


def gemma():
    return Gemma2Model(
        Gemma2Config(**{**SIZES, "num_key_value_heads": 1, "head_dim": 4, "pad_token_id": 0, "eos_token_id": 2})
    )


def text_parts(name):
    """Text encoders and tokenizers of a family, tiny and random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        if name == "Stable Diffusion 1":
            found = {"text_encoder": clip(), "tokenizer": tokenizer(7)}
        elif name == "Stable Diffusion XL":
            found = {"text_encoder": clip(width=4), "tokenizer": tokenizer(7)}
            found |= {"text_encoder_2": clip(CLIPTextModelWithProjection, width=8), "tokenizer_2": tokenizer(7)}
        elif name == "Stable Diffusion 3":
            found = {"text_encoder": clip(CLIPTextModelWithProjection, width=6, projection=4)}
            found |= {"text_encoder_2": clip(CLIPTextModelWithProjection, width=6, projection=6)}
            found |= {"tokenizer": tokenizer(7), "tokenizer_2": tokenizer(7)}
        elif "Flux" in name:
            found = {"text_encoder": clip(width=10), "tokenizer": tokenizer(7)}
            found |= {"text_encoder_2": t5(), "tokenizer_2": tokenizer(7)}
        elif name == "PixArt":
            found = {"text_encoder": t5(), "tokenizer": tokenizer(7)}
        elif name == "AuraFlow":
            found = {"text_encoder": t5(UMT5EncoderModel, UMT5Config), "tokenizer": tokenizer(7)}
        elif name == "HunyuanDiT":
            found = {"text_encoder": BertModel(BertConfig(**SIZES)), "tokenizer": tokenizer(77)}
            found |= {"text_encoder_2": t5(width=16), "tokenizer_2": tokenizer(256)}
        else:
            found = {"text_encoder": gemma(), "tokenizer": tokenizer(7)}
    return {part: value.eval() if isinstance(value, torch.nn.Module) else value for part, value in found.items()}


WITH_TEXT = [
    "Stable Diffusion 1", "Stable Diffusion XL", "PixArt", "HunyuanDiT", "Sana", "Lumina-Next", "Stable Diffusion 3",
    "Flux dev", "AuraFlow",
]  # fmt: skip


def prompted(name):
    """What the family's network is told by its own pipeline, which is called with an empty prompt."""
    parts = build(name)
    pipeline = make_pipeline(name, {**parts, **text_parts(name)})
    seen = []
    network = parts[FAMILIES[name].network_part]
    network.register_forward_pre_hook(lambda module, inputs, options: seen.append(options), with_kwargs=True)
    call = {"prompt": "", "num_inference_steps": 1, "output_type": "latent", "guidance_scale": 1.0}
    if name in ("Sana", "PixArt", "HunyuanDiT"):
        call["use_resolution_binning"] = False
    if name == "Sana":
        call |= {"guidance_scale": 2.0, "negative_prompt": "", "prompt": "word"}  # its empty prompt is the negative one
    side = 64 if name in ("Sana", "Lumina-Next", "HunyuanDiT") else 16
    with torch.no_grad():
        pipeline(height=side, width=side, **call)
    (told,) = seen
    told = {**told, **(told.get("added_cond_kwargs") or {})}
    return {key: value[:1] for key, value in told.items() if isinstance(value, torch.Tensor)}


def build(name):
    tiny = FAMILIES[name]
    if name == "HunyuanDiT":
        parts = tiny.build()
        parts["transformer"] = diffusers.HunyuanDiT2DModel.from_config(
            {**parts["transformer"].config, "text_len": 77, "text_len_t5": 256}
        ).eval()
        return parts
    return tiny.build()


@pytest.fixture
def folder(request, tmp_path):
    """A saved pipeline with its text encoders."""
    name = request.param
    options = {"force_zeros_for_empty_prompt": False} if name == "Stable Diffusion XL" else {}
    pipeline = make_pipeline(name, {**build(name), **text_parts(name)})
    pipeline.register_to_config(**options)
    pipeline.save_pretrained(tmp_path / "pipeline")
    return name, tmp_path / "pipeline"


@pytest.mark.parametrize("folder", WITH_TEXT, indirect=True)
def test_empty_prompt_is_what_the_pipeline_makes_of_it(folder, rng_untouched, tmp_path):
    name, path = folder
    options = {"image_size": 16} if "Flux" in name else {}
    with rng_untouched():
        backbone = load_backbone(path, **options)
    expected = prompted(name)
    for key, value in backbone.condition.items():
        torch.testing.assert_close(value.float(), expected[key].float(), atol=1e-5, rtol=1e-5)
    assert set(backbone.parts()) == {FAMILIES[name].network_part, "vae"}  # no text encoder
    backbone.save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["text_encoder"] == index["tokenizer"] == [None, None]
    again = load_backbone(tmp_path / "saved")
    assert again.fingerprint() == backbone.fingerprint()


@pytest.mark.parametrize("name", ["Stable Diffusion 1", "PixArt"])
def test_loaded_pipeline_encodes_its_own(name):
    backbone = load_backbone(make_pipeline(name, {**build(name), **text_parts(name)}))
    for key, value in backbone.condition.items():
        torch.testing.assert_close(value, prompted(name)[key].to(value.dtype), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("folder", ["Stable Diffusion 1"], indirect=True)
def test_what_is_passed_takes_no_text_encoder(folder, monkeypatch):
    _, path = folder
    monkeypatch.setattr(pipelines, "_transformers", None)  # would raise TypeError
    states = noise(1, 3, 12)
    backbone = load_backbone(path, condition={"encoder_hidden_states": states})
    assert torch.equal(backbone.condition["encoder_hidden_states"], states)


@pytest.mark.parametrize("folder", ["Stable Diffusion 1"], indirect=True)
def test_library_that_is_missing_is_told_of_with_the_line_that_installs_it(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        ImportError, match=r'needs transformers: pip install "skdiec\[text\]", or pass condition to load'
    ):
        load_backbone(folder[1])


@pytest.mark.parametrize("folder", ["Stable Diffusion 1"], indirect=True)
def test_only_classes_of_transformers_are_read(folder):
    _, path = folder
    index = json.loads((path / "model_index.json").read_text())
    for kind in ("os.system", "AutoModel", "pipeline", "CLIPTextConfig"):
        (path / "model_index.json").write_text(json.dumps({**index, "text_encoder": ["mine", kind]}))
        with pytest.raises(ValueError, match="text_encoder must be of a class of transformers; got"):
            load_backbone(path)


@pytest.mark.parametrize("folder", ["Stable Diffusion 1"], indirect=True)
def test_pickled_text_encoder_is_not_read(folder):
    _, path = folder
    weights = path / "text_encoder" / "model.safetensors"
    weights.rename(path / "text_encoder" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=f"backbone {path / 'text_encoder'} cannot be read as a CLIPTextModel: "):
        load_backbone(path)


def test_large_text_encoders_are_in_bfloat16(monkeypatch, tmp_path):
    monkeypatch.setattr(pipelines, "_LARGE_TEXT_ENCODER", 10)
    make_pipeline("PixArt", {**build("PixArt"), **text_parts("PixArt")}).save_pretrained(tmp_path)
    seen = []
    monkeypatch.setattr(transformers.T5EncoderModel, "forward", _watched(transformers.T5EncoderModel.forward, seen))
    backbone = load_backbone(tmp_path)
    assert seen == [torch.bfloat16]
    assert backbone.condition["encoder_hidden_states"].dtype == torch.float32


def _watched(forward, seen):
    def watched(self, *arguments, **options):
        seen.append(self.dtype)
        return forward(self, *arguments, **options)

    return watched
