import importlib
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
DOCUMENTS = [FOLDER.parent / "README.md", *sorted((FOLDER.parent / "docs").rglob("*.md"))]


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a module of the benchmarks."""
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module
    for path in FOLDER.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def common(benchmark):
    return benchmark("common")


def double(value):
    return 2 * value


def test_a_stopped_run_finds_what_it_measured(common, tmp_path):
    results = common.Results("table", ("method", "seed"), ("acc", "machine"), tmp_path)
    results.add(method="ours", seed=0, acc=0.123456789, machine="a, b")
    results.add(method="ours", seed=1, acc=0.5, machine="")
    again = common.Results("table", ("method", "seed"), ("acc", "machine"), tmp_path)
    assert again.rows == results.rows
    assert again.find(method="ours", seed=0) == [{"method": "ours", "seed": "0", "acc": "0.123457", "machine": "a, b"}]
    assert again.find(method="ours", seed=2) == []
    again.add(method="ours", seed=2, acc=0.7, machine="")
    assert len(common.Results("table", ("method", "seed"), ("acc", "machine"), tmp_path).rows) == 3


def test_means_are_of_the_rows_asked_for(common, tmp_path):
    results = common.Results("table", ("method", "seed"), ("acc",), tmp_path)
    for seed, acc in enumerate([0.5, 0.7, ""]):
        results.add(method="ours", seed=seed, acc=acc)
    results.add(method="theirs", seed=0, acc=0.1)
    assert results.mean("acc", 2, method="ours") == f"0.60 ± {np.std([0.5, 0.7], ddof=1):.2f}"
    assert results.mean("acc", 2, method="theirs") == "0.10"
    assert results.mean("acc", 2, method="nobody") == "-"


def test_rows_and_files_with_other_columns_are_refused(common, tmp_path):
    results = common.Results("table", ("seed",), ("acc",), tmp_path)
    with pytest.raises(ValueError, match="row of table"):
        results.add(seed=0)
    results.add(seed=0, acc=1.0)
    with pytest.raises(ValueError, match="has other columns"):
        common.Results("table", ("seed",), ("nmi",), tmp_path)


def test_tables_replace_what_documents_had_in_their_place(common):
    document = "a\n<!-- results: one -->\nold\n<!-- end -->\nb\n<!-- results: two -->\n<!-- end -->\n"
    replaced = common.with_table(document, "one", "| new |")
    assert replaced == document.replace("old", "| new |")
    assert common.with_table(document, "three", "| new |") == document


def test_measured_functions_run_in_a_process_of_their_own(common):
    result, seconds, peak = common.in_new_process(double, 21)
    assert result == 42
    assert seconds >= 0
    assert 0 < peak < 100


@pytest.mark.parametrize(
    "name",
    [
        "ablations", "architectures", "criteria", "files", "fit", "guard", "latents", "partition", "pretrained",
        "pretraining", "report", "scale", "search",
    ],
)  # fmt: skip
def test_tables_are_made_of_the_measured_rows(benchmark, common, name):
    module = benchmark(name)
    written = (FOLDER / "results" / f"{name}.md").read_text()
    assert common.table_text(module.table(module.results_of())) == written.strip()


@pytest.mark.parametrize("name", ["accuracy", "headline"])
def test_tables_of_accuracy_are_made_of_the_measured_rows(benchmark, common, name):
    module = benchmark("accuracy")
    written = (FOLDER / "results" / f"{name}.md").read_text()
    assert common.table_text(module.tables(module.all_results())[name]) == written.strip()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_tables_in_documents_are_those_that_were_measured(common, document):
    text = document.read_text()
    for path in sorted((FOLDER / "results").glob("*.md")):
        assert common.with_table(text, path.stem, path.read_text().strip()) == text


@pytest.mark.parametrize("folder", sorted((FOLDER / "backbones").glob("*/")), ids=lambda path: path.name)
def test_backbones_are_what_their_record_says(folder):
    import hashlib

    from skdiec.backbones import load_backbone

    digest, _, name = (folder / "SHA256SUMS").read_text().strip().partition("  ")
    weights = folder / name
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == digest
    assert weights.stat().st_size <= 20 * 2**20
    backbone = load_backbone(folder)
    recipe = backbone.recipe
    assert recipe["parameters"] == sum(parameter.numel() for parameter in backbone.network.parameters())
    assert len(recipe["loss"]) == recipe["settings"]["epochs"]
    assert recipe["seconds"] > 0


# Pretrained models: tiny ones in place of those of the Hub


@pytest.fixture
def encoder_folders(tmp_path):
    """A DINOv2 and a CLIP of a few weights, in folders as the Hub has them."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    clip = {**sizes, "intermediate_size": 16, "projection_dim": 6}
    models = {
        "dino": transformers.Dinov2Model(transformers.Dinov2Config(**sizes, mlp_ratio=1)),
        "clip": transformers.CLIPModel(
            transformers.CLIPConfig(
                vision_config=clip,
                text_config={**clip, "vocab_size": 9, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0},
                projection_dim=6,
            )
        ),
    }
    processor = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}}
    for name, kind in (("dino", "BitImageProcessorPil"), ("clip", "CLIPImageProcessorPil")):
        models[name].save_pretrained(tmp_path / name)
        config = {"image_processor_type": kind.removesuffix("Pil"), "do_resize": True, "do_center_crop": True}
        statistics = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "do_normalize": True}
        scales = {"do_rescale": True, "rescale_factor": 1 / 255, "resample": 3}
        (tmp_path / name / "preprocessor_config.json").write_text(
            json.dumps({**processor, **config, **statistics, **scales})
        )
    return {name: tmp_path / name for name in models}


@pytest.mark.parametrize("name", ["dino", "clip"])
def test_features_of_encoders_are_those_of_their_images_prepared_by_hand(name, benchmark, encoder_folders):
    import torch
    import transformers
    from PIL import Image

    images = np.random.default_rng(0).integers(0, 256, (5, 24, 24), dtype=np.uint8)
    found = benchmark("pretrained").encoder_features(str(encoder_folders[name]), images, batch_size=2)
    sized = [np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC)) for image in images]
    scaled = np.stack(sized)[:, None, 2:30, 2:30] / 255
    by_channel = np.reshape([0.5, 0.4, 0.3], (3, 1, 1)), np.reshape([0.2, 0.3, 0.4], (3, 1, 1))
    pixels = torch.tensor((scaled - by_channel[0]) / by_channel[1], dtype=torch.float32)
    model = transformers.AutoModel.from_pretrained(encoder_folders[name]).eval()
    with torch.no_grad():
        if name == "clip":
            pooled = model.vision_model(pixels).pooler_output
            expected = pooled @ model.visual_projection.weight.T
        else:
            expected = model(pixels).pooler_output  # the class token, after the last normalisation
    assert found.shape == (5, {"clip": 6, "dino": 16}[name])
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_pretrained_models_are_measured_beside_encoders(
    benchmark, make_unet, encoder_folders, tmp_path, monkeypatch, capsys
):
    import diffusers
    from sklearn.cluster import KMeans
    from sklearn.datasets import load_digits
    from tiny_models import FAMILIES

    module = benchmark("pretrained")
    calls = []

    def here(function, *arguments):
        function, arguments = pickle.loads(pickle.dumps((function, arguments)))  # as another process gets them
        calls.append(arguments[3])
        return function(*arguments), 0.0, 0.5

    monkeypatch.setattr(module, "in_new_process", here)
    pixels, dit = tmp_path / "ddpm", tmp_path / "dit"
    diffusers.DDPMPipeline(make_unet(sample_size=8), diffusers.DDPMScheduler()).save_pretrained(pixels)
    diffusers.DiTPipeline(**FAMILIES["DiT"].build()).save_pretrained(dit)
    command = ["pretrained.py", "--datasets", "digits", "--images", "80", "--results", str(tmp_path / "results")]
    command += ["--backbones", str(pixels), str(dit), "--image-size", "8"]
    command += ["--encoders", *map(str, encoder_folders.values())]
    monkeypatch.setattr(sys, "argv", [*command[:-2], "--encoders"])
    with pytest.raises(ValueError, match="image_size"):
        module.main()  # which is for models of latents alone
    command = [part for part in command if part not in ("--image-size", "8")]
    monkeypatch.setattr(sys, "argv", command)
    module.main()
    measured = module.results_of(tmp_path / "results")
    models = [str(pixels), str(dit), *map(str, encoder_folders.values())]
    expected = [(model, clustering) for model in models[:2] for clustering in ("skdiec", "KMeans")]
    expected += [(model, each) for model in models[2:] for each in ("KMeans", "skdiec's initial partition")]
    assert [(row["model"], row["clustering"]) for row in measured.rows] == expected
    rows = np.sort(np.random.default_rng(0).permutation(1797)[:80])
    data = load_digits()
    features = module.encoder_features(models[2], module.some_images("digits", None, 80)[0])
    labels = KMeans(10, n_init=10, random_state=0).fit_predict(features)
    acc = module.agreement(data.target[rows], labels)["acc"]
    assert float(measured.find(model=models[2], clustering="KMeans")[0]["acc"]) == pytest.approx(acc, abs=1e-5)
    text = (tmp_path / "results" / "pretrained.md").read_text()
    assert f"| digits | 80 | {models[0]} | its own | skdiec | 1 |" in text
    assert "Not measured: `google/ddpm-cifar10-32`, `facebook/DiT-XL-2-256`," in text
    assert "| 0.728 | 0.799 |" in text
    done = len(calls)
    module.main()
    assert len(calls) == done  # a run goes on where it was
    assert module.results_of(tmp_path / "results").rows == measured.rows
    capsys.readouterr()
