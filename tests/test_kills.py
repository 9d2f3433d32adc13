"""Real processes, killed at real system calls: see `soak/kills.py`, which makes as many kills as it is told to."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import skdiec

SOAK = Path(__file__).parent / "soak"


def answer(script, *arguments):
    """What a script gives as `found`. Only a process with one thread can be copied, and this one may have more."""
    folders = [str(SOAK), str(Path(skdiec.__file__).parents[1])]
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"import json, sys\n{script}\njson.dump(found, sys.stdout)", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module", autouse=True)
def _watchable():
    if reason := answer("from killing import why_not\nfound = why_not()"):
        pytest.skip(reason)


def test_a_process_is_killed_before_a_call_or_in_its_middle(tmp_path):
    script = """
from functools import partial
from pathlib import Path
from threading import Thread
from killing import run

root = Path(sys.argv[1])

def work(folder):
    (folder / "a").write_text("0123456789")
    (root / "beside").touch()
    thread = Thread(target=lambda: (folder / "a").rename(folder / "b"))
    thread.start()
    thread.join()
    (folder / "b").read_text()
    (folder / "b").unlink()
    return 5

found = []
for place in [(0, False), (1, False), (1, True), (2, False), (2, True), (3, False), (4, False)]:
    folder = root / "{}{}".format(*place)
    folder.mkdir()
    done = run(partial(work, folder), folder, kill_at=place[0], half=place[1])
    files = {path.name: path.read_text() for path in folder.iterdir()}
    found.append([done.killed, done.value, done.calls[-1].name, done.calls[-1].paths, files])
"""
    assert answer(script, tmp_path) == [
        [True, None, "openat", ["a"], {}],
        [True, None, "write", ["a"], {"a": ""}],
        [True, None, "write", ["a"], {"a": "01234"}],
        [True, None, "rename", ["a", "b"], {"a": "0123456789"}],
        [True, None, "rename", ["a", "b"], {"a": "0123456789"}],
        [True, None, "unlink", ["b"], {"b": "0123456789"}],
        [False, 5, "unlink", ["b"], {}],
    ]


def test_what_a_run_raises_and_warns_of_is_told(tmp_path):
    script = """
import os, warnings
from pathlib import Path
from killing import run

def work():
    warnings.warn("look")
    return 1 / 0

done, gone = [run(function, Path(sys.argv[1])) for function in (work, lambda: os._exit(0))]
found = [done.killed, done.error.splitlines()[-1], done.warnings, gone.error]
"""
    expected = [False, "ZeroDivisionError: division by zero", ["look"], "the process ended without an answer"]
    assert answer(script, tmp_path) == expected


def test_killed_runs_end_with_the_same_weights_and_labels():
    script = """
from dataclasses import asdict
from kills import cases
found = [{**asdict(case), "text": str(case)} for case in cases(100, seed=1839)]
"""
    # Every kind of kill is among the first of this seed.
    found = answer(script)
    kills = [kill for case in found for kill in case["kills"]]
    assert [case["text"] for case in found if case["outcome"] != "same"] == []
    assert len(kills) >= 100
    expected = {"pretrain(folder=)", "fit(backbone=Pretraining(folder=))", "fit(memory=)"}
    assert {case["what"] for case in found} == expected
    assert {kill["call"] for kill in kills} >= {"mkdir", "openat", "write", "rename", "unlink"}
    assert {kill["half"] for kill in kills} == {True, False}
    # Checkpoints, the weights and record of the finished backbone, and the cache of features, search and partition.
    for name in ("training.safetensors", "diffusion_pytorch_model.safetensors", "skdiec.json", "output.pkl"):
        assert any(name in kill["files"] for kill in kills)
