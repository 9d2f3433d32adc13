"""Kills of pretraining that take long: before every call that changes the disk, and of whole processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_checkpoints import PARTIAL_FOLDER, PIPELINE, calls_of_a_training, check_kills, names, train

import skdiec


def test_training_goes_on_from_a_kill_anywhere(tmp_path, monkeypatch):
    calls = calls_of_a_training(tmp_path / "whole", monkeypatch)
    check_kills(range(len(calls)), tmp_path, monkeypatch)


@pytest.mark.parametrize("name", [f"{PARTIAL_FOLDER}/training.safetensors", f"{PARTIAL_FOLDER}/unet/.tmpA1b2C3"])
def test_process_killed_in_the_middle_of_writing_is_resumed(name, tmp_path):
    # The first checkpoint, or with unet/ the pipeline, is written by half; nothing of it stays.
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import safetensors.torch, test_checkpoints
def killed(tensors, path, metadata):
    is_last = "unet" in str(path)
    if is_last == {"unet" in name}:
        path = os.path.join({str(tmp_path)!r}, {name!r})
        with open(path, "wb") as file:
            file.write(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    save_file(tensors, path, metadata=metadata)
save_file = safetensors.torch.save_file
safetensors.torch.save_file = killed
import diffusers.models.modeling_utils as diffusers_models
diffusers_models.safetensors.torch.save_file = killed
test_checkpoints.train({str(tmp_path)!r})
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(skdiec.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert name in names(tmp_path)
    assert train(tmp_path).fingerprint() == train().fingerprint()
    assert names(tmp_path) == PIPELINE
    assert not (tmp_path / PARTIAL_FOLDER).exists()
