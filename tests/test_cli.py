import hashlib
import json
import os
import re
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from typer.testing import CliRunner

from skdiec.backbones import load_backbone
from skdiec.cli import app
from skdiec.datasets import DATASETS

LOADING = "loading torch and diffusers, which takes longest the first time"


@pytest.fixture
def run():
    def run(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "400"})
        return result.exit_code, re.sub(r"\s+", " ", result.output)

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


def test_pretrain_tells_how_far_it_is(tmp_path, images, run, monkeypatch):
    monkeypatch.setattr("skdiec.cli.console.LINE_SECONDS", 0)
    monkeypatch.setattr("skdiec.cli.console.QUIET_SECONDS", 0)
    options = ["--epochs", 3, "--batch-size", 3, "--channels", "8"]
    code, output = run("pretrain", images, tmp_path / "backbone", *options)
    assert code == 0, output
    shares = [int(share) for share in re.findall(r"pretraining: (\d+) %, \d\d:\d\d left", output)]
    assert shares[-1] == 100
    assert len(shares) == 6  # steps
    assert shares == sorted(shares)
    assert "pretraining" not in run("pretrain", images, tmp_path / "other", *options, "--quiet")[1]


def test_pretrain_leaves_out_broken_files_and_tells_of_them(tmp_path, images, run):
    options = ["--epochs", 2, "--batch-size", 3, "--channels", "8", "--quiet"]
    assert run("pretrain", images, tmp_path / "whole", *options)[0] == 0
    (images / "0a.png").write_bytes(b"")
    (images / "5a.png").write_bytes((images / "5.png").read_bytes()[:-30])  # of which the header can be read
    code, output = run("pretrain", images, tmp_path / "backbone", *options)
    assert code == 0, output
    assert f"Warning: 2 files cannot be read and left out, such as {images / '0a.png'}: its content is no" in output
    assert json.loads((tmp_path / "backbone" / "skdiec.json").read_text())["images"] == 6
    weights = [tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors" for name in ("whole", "backbone")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--architecture", "mixer"], "--architecture must be 'unet' or 'transformer'; got 'mixer'"),
        (["--max-timestep", "1000"], "--max-timestep must be"),
        (["--device", "abacus"], "--device must be one that torch knows"),
        (["--value-range", "0,1"], "--value-range is (0, 1), but {images}/0.png has values from "),
        (["--value-range", "0,4095"], "--value-range is (0, 4095), but images such as {images}/0.png have 8 bits"),
    ],
)
def test_pretrain_tells_of_settings_that_do_not_fit_before_it_reads_all_images(
    options, message, tmp_path, images, run, monkeypatch
):
    monkeypatch.setattr("skdiec.cli.reading._room", None)  # where they would go
    code, output = run("pretrain", images, tmp_path / "backbone", *options, "--quiet")
    assert code == 2
    assert message.format(images=images) in output


def test_pretrain_of_images_of_several_sizes_asks_for_one(tmp_path, images, run):
    Image.new("L", (5, 4)).save(images / "wide.png")
    code, output = run("pretrain", images, tmp_path / "backbone", "--quiet")
    assert code == 2
    assert f"--image-shape must be stated for images of several sizes (height, width): {images / '0.png'} has" in output


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
        ([""], "must be a path; got ''"),
        (["usps", "--data", "nowhere"], "folder must hold usps.npz or usps_jpeg.npz"),
        (["digits", "--channels", "8,x"], "--channels must be whole numbers with commas between; got '8,x'"),
        (["nowhere", "--data", "."], "--data goes with a data set (digits, usps, mnist, fashion_mnist, cifar10, umist"),
        (["digits", "--epochs", "0"], "--epochs must be a whole number of at least 1; got '0'"),
        (["digits", "--batch-size", "many"], "--batch-size must be a whole number of at least 1; got 'many'"),
        (["digits", "--learning-rate", "inf"], "--learning-rate must be a number above 0; got 'inf'"),
        (["digits", "--seed", "-1"], "--seed must be a whole number between 0 and 4294967295; got '-1'"),
        (["digits", "--patch-size", "0"], "--patch-size must be a whole number of at least 1; got '0'"),
        (["digits", "--dtype", "int8"], "--dtype must be 'float32' or 'bfloat16'; got 'int8'"),
    ],
)
def test_wrong_arguments_are_told_of_in_one_line(tmp_path, arguments, message):
    arguments = [arguments[0], str(tmp_path / "backbone"), *arguments[1:]]
    result = CliRunner().invoke(app, ["pretrain", *arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    told = result.stderr.splitlines()
    assert told[-1].startswith("Error: ")
    assert told[:-1] in ([], [LOADING], ["looking for images in nowhere"])
    assert not (tmp_path / "backbone" / "skdiec.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["paint"], "No such command 'paint'"),
        (["--paint"], "No such option: --paint"),
        (["cluster"], "Missing argument 'FOLDER'"),
        (["cluster", "here", "there"], "Got unexpected extra argument"),
        (["cluster", "here", "--paint"], "No such option: --paint"),
        (["cluster", "here", "--out"], "Option '--out' requires an argument"),
        (["cluster", "here", "--json=yes"], "Option '--json' does not take a value"),
        (["cluster", "here", "--minutes", "nan"], "--minutes must be a number above 0; got 'nan'"),
        (["search", "here", "--minutes", "soon"], "--minutes must be a number above 0; got 'soon'"),
        (["search", "here", "--epochs", "1.5"], "--epochs must be a whole number of at least 1; got '1.5'"),
        (["sample", "here", "-n", "0"], "-n must be a whole number of at least 1; got '0'"),
        (["sample", "here", "--seed", "4294967296"], "--seed must be a whole number between 0 and 4294967295; got"),
    ],
)
def test_usage_errors_are_one_line_in_place_of_a_box(arguments, message):
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"Error: {message}")
    assert result.stderr.count("\n") == 1
    assert " must be " in message or result.stderr.rstrip().endswith(" --help")


def test_no_arguments_show_the_help():
    result = CliRunner().invoke(app, [])
    assert result.exit_code in (0, 2)  # of typer's older and newer versions
    assert "Train a compact diffusion model" in result.output


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(28, "No space left on device"), 1, "Error: [Errno 28] No space left on device"),
        (FloatingPointError("pretraining diverged"), 1, "Error: pretraining diverged"),
        (ImportError("needs\n\nsomething"), 2, "Error: needs something"),
        (TypeError("of another kind"), 2, "Error: of another kind"),
        (KeyboardInterrupt(), 130, "Error: stopped; the same command begins again"),
    ],
)
def test_failures_are_told_of_in_one_line(error, code, message, tmp_path, images, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("skdiec.backbones.pretrain", fail)
    result = CliRunner().invoke(app, ["pretrain", str(images), str(tmp_path / "backbone")])
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.replace(f"{LOADING}\n", "") == f"looking for images in {images}\n{message}\n"


def test_mistakes_of_ours_are_not_hidden(tmp_path, images, monkeypatch):
    monkeypatch.setattr("skdiec.backbones.pretrain", lambda *_, **__: {}["missing"])
    result = CliRunner().invoke(app, ["pretrain", str(images), str(tmp_path / "backbone")])
    assert isinstance(result.exception, KeyError)


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("kind", [Path.mkdir, Path.touch])
def test_data_set_beside_a_file_or_folder_of_its_name_is_ambiguous(name, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kind(tmp_path / name)
    result = CliRunner().invoke(app, ["pretrain", name, "backbone"])
    assert result.exit_code == 2
    assert result.stderr == (
        f"Error: {name} is a data set, and there is a file or folder of that name: write ./{name} for the file or "
        "folder, or add --data for the data set\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_ambiguous_name_can_be_said_either_way(tmp_path, images, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images.rename(tmp_path / "usps")
    np.savez(tmp_path / "usps.npz", X=np.zeros((5, 16, 16), dtype=np.uint8), y=np.zeros(5))
    options = ["--epochs", 1, "--channels", "8", "--quiet"]
    for arguments, expected in ((["./usps", "a"], [1, 4, 4]), (["usps", "b", "--data", "."], [1, 16, 16])):
        code, output = run("pretrain", *arguments, *options)
        assert code == 0, output
        assert json.loads((tmp_path / arguments[1] / "skdiec.json").read_text())["image_shape"] == expected


def test_finished_folder_that_is_read_only_is_no_error(tmp_path, images, run, monkeypatch):
    options = ["--epochs", 1, "--channels", "8", "--quiet"]
    first = run("pretrain", images, tmp_path / "backbone", *options)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    for name in ("mkdir", "unlink", "replace", "touch", "write_text"):
        monkeypatch.setattr(Path, name, refuse)
    assert run("pretrain", images, tmp_path / "backbone", *options) == first
    assert first[0] == 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
def test_waiting_and_ctrl_c_are_told_of_without_a_traceback(tmp_path, images, monkeypatch, caplog):
    """The soak tests do the same to the command in a process of its own."""
    folder = tmp_path / "backbone"
    folder.mkdir()
    (folder / "training.safetensors").write_bytes(b"that of another call")
    monkeypatch.setattr("skdiec.backbones.folders._PATIENCE_SECONDS", 0.05)
    held, done = threading.Event(), threading.Event()
    # Jobs in the background of a shell inherit that Ctrl-C is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def hold_and_press():
        with FileLock(folder / ".lock"):
            held.set()
            while not caplog.records and not done.wait(0.02):
                pass
            if not done.is_set():
                os.kill(os.getpid(), signal.SIGINT)
                done.wait()

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(hold_and_press)
        assert held.wait(60)
        try:
            result = CliRunner().invoke(app, ["pretrain", str(images), str(folder), "--channels", "8"])
        finally:
            done.set()
            signal.signal(signal.SIGINT, before)
        other.result()
    assert caplog.messages == [f"waiting for another call that trains a backbone in {folder}"]
    message = "Error: stopped; the same command goes on from its last checkpoint"
    assert result.stderr == f"looking for images in {images}\n{message}\n"
    assert (result.exit_code, result.stdout) == (130, "")
