import json
import logging
import math
import os
import re
import shutil
import signal
import stat
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock
import numpy as np
import pytest
import safetensors.torch
import torch

from skdiec.backbones import checkpoints, folders, load_backbone, pretrain
from skdiec.backbones.checkpoints import Position, read_checkpoint, write_checkpoint
from skdiec.backbones.folders import PARTIAL_FOLDER, replacing, write_whole

IMAGES = np.repeat(np.arange(20, dtype=np.uint8) * 12, 16).reshape(20, 4, 4)
SETTINGS = {"channels": (8,), "epochs": 2, "batch_size": 8, "precision": "fp32", "device": "cpu", "random_state": 0}
STEPS = 6
REQUEST = {"settings": {}, "data": "images"}
TENSORS = {"weight.0": torch.arange(3.0), "average.0": torch.ones(2, 2)}
PIPELINE = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "skdiec.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
]


def train(folder=None, **settings):
    return pretrain(IMAGES, folder, **{**SETTINGS, "checkpoint_seconds": 0, **settings})


def names(folder):
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return [name for name in found if name != ".lock"]


@pytest.fixture(scope="module")
def expected():
    return train().fingerprint()


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory):
    """A folder with a training that was stopped after its third step. Tests get copies."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        write = checkpoints.write_checkpoint

        def stop(folder, request, position, tensors):
            write(folder, request, position, tensors)
            if position.step == 3:
                raise KeyboardInterrupt

        patch.setattr("skdiec.backbones.trainer.write_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            train(folder)
    return folder


@pytest.fixture
def stopped(stopped_once, tmp_path):
    return Path(shutil.copytree(stopped_once, tmp_path, dirs_exist_ok=True))


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory):
    """A folder with a finished training. Tests get copies."""
    folder = tmp_path_factory.mktemp("finished")
    train(folder)
    return folder


@pytest.fixture
def finished(finished_once, tmp_path):
    return Path(shutil.copytree(finished_once, tmp_path, dirs_exist_ok=True))


# What is written


def test_checkpoint_comes_back_as_it_was(tmp_path):
    position = Position(5, (0.5, 0.25), 1.5, 2.0)
    write_checkpoint(tmp_path, REQUEST, position, TENSORS)
    assert names(tmp_path) == ["training.safetensors"]
    assert checkpoints.read_request(tmp_path) == REQUEST
    like = {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()}
    found, tensors = read_checkpoint(tmp_path, like, steps_per_epoch=2, total_steps=5)
    assert found == position
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


def test_files_come_whole_and_the_last_one_last(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_text("old")
    (tmp_path / "index").write_text("old")
    (tmp_path / "mine").write_text("mine")
    order = []
    replace = Path.replace

    def watched(path, target):
        order.append(target.name)
        assert not (tmp_path / "index").exists()
        assert target.parent == tmp_path or (tmp_path / "sub" / "a").read_text() == "old" or target.name != "a"
        replace(path, target)

    monkeypatch.setattr(Path, "replace", watched)
    with replacing(tmp_path, last="index") as partial:
        for name in ("index", "z", "sub/a"):
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_text("new")
        assert (tmp_path / "index").read_text() == (tmp_path / "sub" / "a").read_text() == "old"
    assert sorted(order) == ["a", "index", "z"]
    assert order[-1] == "index"
    assert names(tmp_path) == ["index", "mine", "sub/a", "z"]
    assert [(tmp_path / name).read_text() for name in names(tmp_path)] == ["new", "mine", "new", "new"]
    assert not (tmp_path / PARTIAL_FOLDER).exists()


def test_file_that_is_written_whole_keeps_its_mode_and_links(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "file").chmod(0o640)
    (tmp_path / "link").symlink_to("file")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path) == ["file", "link"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are not everywhere")
def test_pipe_is_written_to_as_it_is(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit((tmp_path / "pipe").read_bytes)
        write_whole(tmp_path / "pipe", b"new")
        assert read.result(timeout=60) == b"new"
    assert (tmp_path / "pipe").is_fifo()


def test_failed_writing_leaves_the_folder_as_it_was(tmp_path):
    (tmp_path / "a").write_text("old")

    def fail():
        with replacing(tmp_path, last="a") as partial:
            (partial / "a").write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"
    assert not (tmp_path / PARTIAL_FOLDER).exists()


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_files_have_the_mode_of_all_new_files(umask, tmp_path, make_backbone):
    before = os.umask(umask)
    try:
        make_backbone().save_pretrained(tmp_path)
        write_checkpoint(tmp_path, REQUEST, Position(), TENSORS)
    finally:
        os.umask(before)
    files = [tmp_path / name for name in (*PIPELINE, "training.safetensors")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~umask}


def test_saving_over_a_backbone_replaces_it(tmp_path, make_backbone):
    first, second = make_backbone(0, sample_size=8, in_channels=4, patch_size=2), make_backbone(1)
    first.save_pretrained(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    second.save_pretrained(tmp_path)
    assert load_backbone(tmp_path).fingerprint() == second.fingerprint()
    assert names(tmp_path) == sorted([*PIPELINE, "notes.txt"])
    for folder, message in ((tmp_path / "notes.txt", "is a file"), (3, "folder must be a path or None; got int")):
        with pytest.raises(ValueError, match=message):
            second.save_pretrained(folder)
    with pytest.raises(ValueError, match="dtype must be 'float32' or 'bfloat16'; got 'int8'"):
        second.save_pretrained(tmp_path, dtype="int8")


# Kills


class Killed(BaseException):
    """A stop that nothing cleans up after."""


def kill_at(monkeypatch, number):
    """Let the process die before the given call that changes the disk; return the list of calls."""
    calls = []

    def dying(function):
        def call(*args, **kwargs):
            if len(calls) >= number:
                raise Killed
            calls.append(function.__name__)
            return function(*args, **kwargs)

        return call

    for name in ("mkdir", "open", "unlink", "replace", "chmod", "write_text", "touch"):
        monkeypatch.setattr(Path, name, dying(getattr(Path, name)))
    monkeypatch.setattr(safetensors.torch, "save_file", dying(safetensors.torch.save_file))
    monkeypatch.setattr(folders.shutil, "rmtree", dying(folders.shutil.rmtree))
    return calls


SHORT = {"epochs": 1, "batch_size": 10, "channels": (2,)}


def calls_of_a_training(folder, monkeypatch):
    """The calls that change the disk while a short training runs."""
    train(**SHORT)  # what is imported by the first one opens files too
    with monkeypatch.context() as patch:
        calls = kill_at(patch, 10**9)
        train(folder, **SHORT)
    return calls


def check_kills(numbers, tmp_path, monkeypatch):
    """A short training is killed before each of these calls, and then ends as one that was not."""
    expected = train(**SHORT).fingerprint()
    for number in numbers:
        folder = tmp_path / str(number)
        with monkeypatch.context() as patch:
            kill_at(patch, number)
            with pytest.raises(Killed):
                train(folder, **SHORT)
        assert train(folder, **SHORT).fingerprint() == expected
        assert names(folder) == PIPELINE
        assert not (folder / PARTIAL_FOLDER).exists()
        assert load_backbone(folder).fingerprint() == expected


def test_training_goes_on_from_a_kill_before_each_kind_of_call(tmp_path, monkeypatch):
    """Before the last call of each kind, when most is there. The soak tests kill it before every call."""
    calls = calls_of_a_training(tmp_path / "whole", monkeypatch)
    assert len(calls) > 20
    last = {call: number for number, call in enumerate(calls)}
    assert last.keys() >= {"mkdir", "open", "unlink", "replace", "save_file", "rmtree"}
    check_kills(last.values(), tmp_path, monkeypatch)


@pytest.mark.parametrize("name", [f"{PARTIAL_FOLDER}/training.safetensors", f"{PARTIAL_FOLDER}/unet/.tmpA1b2C3"])
def test_training_killed_in_the_middle_of_writing_is_resumed(name, tmp_path, expected, monkeypatch):
    """The first checkpoint, or with unet/ the pipeline, is written by half. The soak tests kill a process there."""
    with monkeypatch.context() as patch:
        calls = kill_at(patch, 10**6)
        save_file = safetensors.torch.save_file

        def killed(tensors, path, metadata=None):
            if ("unet" in str(path)) == ("unet" in name):
                (tmp_path / name).write_bytes(b"half")
                calls.extend([None] * 10**6)  # nothing changes the disk any more
                raise Killed
            save_file(tensors, path, metadata=metadata)

        patch.setattr(safetensors.torch, "save_file", killed)
        with pytest.raises(Killed):
            train(tmp_path)
    assert name in names(tmp_path)
    assert train(tmp_path).fingerprint() == expected
    assert names(tmp_path) == PIPELINE
    assert not (tmp_path / PARTIAL_FOLDER).exists()


def test_leftovers_beside_a_finished_backbone_are_removed(finished, tmp_path, expected):
    (tmp_path / "training.safetensors").write_bytes(b"half")
    (tmp_path / PARTIAL_FOLDER).mkdir()
    (tmp_path / PARTIAL_FOLDER / "a").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    assert train(tmp_path).fingerprint() == expected
    assert names(tmp_path) == sorted([*PIPELINE, "notes.txt"])
    assert not (tmp_path / PARTIAL_FOLDER).exists()


# Folders that cannot be written to


@pytest.fixture
def read_only(monkeypatch):
    """Nothing can be written, as it is for those who are not root in a folder of mode 0555."""

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    for name in ("mkdir", "unlink", "replace", "touch", "write_text"):
        monkeypatch.setattr(Path, name, refuse)
    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)


def test_finished_backbone_in_a_read_only_folder_is_loaded(finished, tmp_path, expected, request):
    (tmp_path / "training.safetensors").write_bytes(b"half")
    request.getfixturevalue("read_only")
    assert train(tmp_path).fingerprint() == expected


def test_folder_that_cannot_be_written_to_is_told_of_before_training(tmp_path, read_only, monkeypatch):
    monkeypatch.setattr("skdiec.backbones.trainer.Trainer.run", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(ValueError, match=f"folder {tmp_path} cannot be written to: Permission denied"):
        train(tmp_path)


def test_folder_that_gives_its_lock_but_takes_no_files_is_told_of_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("skdiec.backbones.trainer.Trainer.run", lambda *_, **__: pytest.fail("trained"))
    mkdir = Path.mkdir

    def refuse(path, *args, **kwargs):
        if path.name == PARTIAL_FOLDER:
            raise PermissionError(13, "Permission denied")
        mkdir(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ValueError, match=f"folder {tmp_path} cannot be written to: Permission denied"):
        train(tmp_path)


def test_folder_below_a_file_is_told_of(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="folder cannot be used: Not a directory"):
        train(tmp_path / "file" / "folder")


def small_disk(monkeypatch, size, *, files):
    """No space for files of tensors above a size, of the given kinds."""
    save_file = safetensors.torch.save_file

    def save(tensors, path, metadata=None):
        kind = "pipeline" if "unet" in str(path) else "checkpoint"
        if kind in files and sum(tensor.nbytes for tensor in tensors.values()) > size:
            raise safetensors.SafetensorError("No space left on device (os error 28)")
        save_file(tensors, path, metadata=metadata)

    monkeypatch.setattr(safetensors.torch, "save_file", save)


def test_full_disk_at_a_checkpoint_is_told_of_once_and_the_training_goes_on(tmp_path, monkeypatch, expected, caplog):
    small_disk(monkeypatch, 0, files=["checkpoint"])
    assert train(tmp_path).fingerprint() == expected
    assert names(tmp_path) == PIPELINE
    (message,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert message == (
        f"no checkpoint: {tmp_path} cannot be written to: No space left on device (os error 28); the training goes "
        "on, but a stop would lose its latest steps"
    )


@pytest.mark.parametrize("files", [["pipeline"], ["pipeline", "checkpoint"]])
def test_full_disk_at_the_end_says_what_is_kept(files, tmp_path, monkeypatch, expected):
    state = "the last checkpoint of its training is kept there" if files == ["pipeline"] else "its training is lost"
    message = f"not saved: {tmp_path} cannot be written to: No space left on device .*; {state}. Make room or"
    with monkeypatch.context() as patch:
        small_disk(patch, 0, files=files)
        with pytest.raises(OSError, match=message):
            train(tmp_path)
    assert names(tmp_path) == (["training.safetensors"] if files == ["pipeline"] else [])
    assert train(tmp_path).fingerprint() == expected
    assert names(tmp_path) == PIPELINE


def test_full_disk_keeps_the_former_checkpoint(stopped, monkeypatch, expected):
    before = (stopped / "training.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        small_disk(patch, 0, files=["checkpoint", "pipeline"])
        with pytest.raises(OSError, match="the last checkpoint of its training is kept there"):
            train(stopped)
    assert names(stopped) == ["training.safetensors"]
    assert (stopped / "training.safetensors").read_bytes() == before
    assert train(stopped).fingerprint() == expected


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are POSIX")
def test_file_that_grows_too_large_is_an_error_that_names_the_folder(tmp_path):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # or the system ends the process
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        message = f"the trained backbone was not saved: {re.escape(str(tmp_path))} cannot be written to: "
        with pytest.raises(OSError, match=f"^{message}"):
            train(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert names(tmp_path) == []


# The lock


def test_waiting_for_another_call_is_told_of(tmp_path, monkeypatch, caplog, expected):
    monkeypatch.setattr(folders, "_PATIENCE_SECONDS", 0.05)
    with filelock.FileLock(tmp_path / ".lock"):
        found = []
        waiting = threading.Thread(target=lambda: found.append(train(tmp_path).fingerprint()))
        waiting.start()
        for _ in range(600):
            if caplog.records or not waiting.is_alive():
                break
            waiting.join(timeout=0.1)
        waiting.join(timeout=0.5)  # it would have been told of again
        assert waiting.is_alive()
    waiting.join()
    assert found == [expected]
    messages = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert messages == [f"waiting for another call that trains a backbone in {tmp_path}"]


def test_lock_excludes_threads_of_one_process(tmp_path):
    inside, most = 0, 0

    def work():
        nonlocal inside, most
        with folders.locked(tmp_path):
            inside += 1
            most = max(most, inside)
            threading.Event().wait(0.02)
            inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


# Damaged files


def rewrite(path, *, tensors=None, position=None, metadata=None):
    """Write a checkpoint again with something changed."""
    with safetensors.safe_open(path, framework="pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        texts = file.metadata()
    if position is not None:
        texts["position"] = json.dumps({**json.loads(texts["position"]), **position})
    texts |= metadata or {}
    safetensors.torch.save_file(tensors(found) if tensors else found, path, metadata=texts)


def without_one(tensors):
    return {name: tensor for name, tensor in tensors.items() if name != "exp_avg.1"}


POSITIONS = [
    *(({"step": value}, "its step should be from 1 to 6") for value in (0, -1, 7, 10**9, 10**30, 2.0, "3", None, True)),
    *(({"losses": value}, "it should have the losses of 1 epochs")
      for value in ([], [1.0, 1.0], None, 3, ["1"], [math.nan], [math.inf], [-1.0], {"a": 1})),
    *(({name: value}, "its loss_sum and seconds should be numbers of at least 0")
      for name in ("loss_sum", "seconds") for value in (None, "1", math.nan, -1.0, [1.0])),
    ({"more": 1}, "its position should have loss_sum, losses, seconds, step"),
]  # fmt: skip
TEXTS = [
    *(({name: value}, "") for name in ("position", "request") for value in ("", "{", "[" * 200_000, "nan", "[]", "1")),
    ({"request": "{}"}, "it does not say which training it is of"),
    ({"request": '{"settings": [], "data": "x"}'}, "it does not say which training it is of"),
]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({"position": position}, message) for position, message in POSITIONS),
        *(({"metadata": metadata}, message) for metadata, message in TEXTS),
        ({"tensors": without_one}, "1 tensors are missing, 0 unexpected"),
        ({"tensors": lambda found: {**found, "more": torch.zeros(1)}}, "0 tensors are missing, 1 unexpected"),
        ({"tensors": lambda found: {**found, "weight.1": torch.zeros(3)}}, r"weight\.1 should be .* got \(3,\)"),
        ({"tensors": lambda found: {name: tensor.double() for name, tensor in found.items()}}, "in F32; got .* in F64"),
    ],
    ids=lambda value: None if isinstance(value, str) else "",
)  # fmt: skip
def test_checkpoint_with_something_else_in_it_is_told_of(change, message, stopped):
    path = stopped / "training.safetensors"
    rewrite(path, **change)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"the training checkpoint {path} is damaged: .*{message}.*Delete it to start"):
        train(stopped)
    assert path.read_bytes() == before


def write_garbage(path):
    path.write_bytes(b"\xff" * 100)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:3000]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "garbage": write_garbage,
    "huge": lambda path: os.truncate(path, 2**40),
    "of something else": lambda path: safetensors.torch.save_file({"weight": torch.zeros(1)}, path),
    "pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "device": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
}


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and devices are POSIX")
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_is_told_of_and_can_be_deleted(damage, stopped, expected):
    path = stopped / "training.safetensors"
    DAMAGES[damage](path)
    with pytest.raises(ValueError, match=f"the training checkpoint {path} is damaged: .*Delete it to start again"):
        train(stopped)
    folders.remove(path)
    assert train(stopped).fingerprint() == expected


def test_checkpoint_that_may_not_be_read_is_told_of(stopped, monkeypatch):
    def refuse(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    path = stopped / "training.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(ValueError, match=f"the training checkpoint {path} cannot be read: Permission denied$"):
            train(stopped)


def test_seed_and_precision_of_a_strange_record_are_not_taken(stopped):
    path = stopped / "training.safetensors"
    request = checkpoints.read_request(stopped)
    for name, value in (("seed", "x"), ("seed", -1), ("precision", ["fp32"])):
        strange = {**request, "settings": {**request["settings"], name: value}}
        rewrite(path, metadata={"request": json.dumps(strange)})
        with pytest.raises(ValueError, match=rf"holds an unfinished training, .* with other settings \({name}"):
            train(stopped, random_state=None, precision="auto" if name == "precision" else "fp32")


def test_damaged_record_is_told_of(finished, tmp_path):
    (tmp_path / "skdiec.json").write_text("{")
    with pytest.raises(ValueError, match=r"skdiec\.json is no JSON"):
        train(tmp_path)
    (tmp_path / "skdiec.json").write_text('{"request": [1, 2]}')
    with pytest.raises(ValueError, match="holds a backbone trained elsewhere: choose another folder"):
        train(tmp_path)
