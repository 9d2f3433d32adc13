"""The command in a process of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from test_cli import images

import skdiec

__all__ = ["images"]  # a fixture


def start(images, folder, *options):
    environment = {**os.environ, "PYTHONPATH": str(Path(skdiec.__file__).parents[1])}
    command = [sys.executable, "-m", "skdiec.cli", "pretrain", str(images), str(folder), "--channels", "8", *options]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
def test_waiting_and_ctrl_c_are_told_of_without_a_traceback(tmp_path, images):
    folder = tmp_path / "backbone"
    folder.mkdir()
    (folder / "training.safetensors").write_bytes(b"that of another call")
    with FileLock(folder / ".lock"):
        process = start(images, folder)
        waiting = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=60)
    assert waiting == f"waiting for another call that trains a backbone in {folder}\n"
    assert rest == "Error: stopped; the same command goes on from its last checkpoint\n"
    assert process.returncode == 130
