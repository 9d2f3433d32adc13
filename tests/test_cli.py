import hashlib
import json
import re

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from skdiec.backbones import load_backbone
from skdiec.cli import app


@pytest.fixture
def run():
    def run(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "400"})
        # Errors come in a box, whose lines may break anywhere.
        return result.exit_code, re.sub(r"[\s│]+", " ", result.output)

    return run


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(rng.integers(0, 256, (4, 4), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


def test_pretrain_saves_a_backbone_with_the_settings_that_were_asked_for(tmp_path, images, run):
    folder = tmp_path / "backbone"
    options = ["--epochs", 2, "--batch-size", 3, "--learning-rate", 0.002, "--channels", "8", "--layers-per-block", 2]
    options += ["--patch-size", 2, "--dtype", "bfloat16", "--seed", 7, "--image-shape", "8,8", "--device", "cpu"]
    options += ["--max-timestep", 300]
    code, output = run("pretrain", images, folder, *options, "--quiet")
    assert code == 0, output
    backbone = load_backbone(folder)
    settings = backbone.recipe["settings"]
    expected = {"epochs": 2, "batch_size": 3, "learning_rate": 0.002, "channels": [8], "layers_per_block": 2}
    expected |= {"patch_size": 2, "dtype": "bfloat16", "seed": 7, "max_timestep": 300}
    assert {name: settings[name] for name in expected} == expected
    assert backbone.image_shape == (1, 8, 8)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    assert (folder / "SHA256SUMS").read_text().split()[1] == f"unet/{weights.name}"
    assert f"{hashlib.sha256(weights.read_bytes()).hexdigest()} unet/{weights.name}" in output
    assert f"{backbone.recipe['steps']:,} steps" in output


def test_pretrain_takes_a_known_data_set_from_a_folder(tmp_path, run):
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "usps.npz", X=images, y=np.zeros(5))
    folder = tmp_path / "backbone"
    options = ["--data", tmp_path, "--epochs", 1, "--channels", "8", "--quiet"]
    code, output = run("pretrain", "usps", folder, *options)
    assert code == 0, output
    record = json.loads((folder / "skdiec.json").read_text())
    assert (record["images"], record["image_shape"]) == (5, [1, 16, 16])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no folder nowhere"),
        (["usps", "--data", "nowhere"], "folder must hold usps.npz or usps_jpeg.npz"),
        (["digits", "--channels", "8,x"], "--channels must be whole numbers with commas between; got '8,x'"),
        (["digits", "--epochs", "0"], "epochs must be an int of at least 1; got 0"),
        (["digits", "--dtype", "int8"], "dtype must be 'float32' or 'bfloat16'; got 'int8'"),
    ],
)
def test_wrong_arguments_are_told_of(tmp_path, run, arguments, message):
    code, output = run("pretrain", arguments[0], tmp_path / "backbone", *arguments[1:])
    assert code == 2
    assert message in output
    assert not (tmp_path / "backbone" / "skdiec.json").exists()
