"""What commands say, and when."""

import io
import json
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import typer

from skdiec.cli import console as module
from skdiec.cli.console import Console, StageProgress, command, command_line, json_of, shown_path
from skdiec.cli.options import limits, number_of_clusters, numbers
from skdiec.cli.output import OutputFolder, default_output, folder_names


@pytest.fixture
def clock(monkeypatch):
    """Time, which tests move."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: now.seconds)
    return now


def test_lines_of_progress_come_now_and_then_with_the_time_left(clock, capsys):
    with Console().bar("reading") as report:
        for second in range(1, 31):
            clock.seconds = second
            report(50 + second, 100)  # the first half was there already
    assert capsys.readouterr().err.splitlines() == [
        "reading: 60 %, 00:40 left",
        "reading: 70 %, 00:30 left",
        "reading: 80 %, 00:20 left",
    ]


def test_no_estimate_is_made_from_the_first_small_step(clock, capsys):
    with Console().bar("reading") as report:
        clock.seconds = 30  # loading, say
        for done in range(1, 5):
            report(done, 100)
            clock.seconds += 6
    assert capsys.readouterr().err == "reading: 3 %, 22:38 left\n"
    with Console().bar("reading") as report:
        clock.seconds += 30
        report(1, 4)
    assert capsys.readouterr().err == "reading: 25 %, 01:30 left\n"


def test_errors_of_the_library_name_the_option(capsys):
    said = {
        "max_minutes must be a number": "--minutes must be a number",
        "image_shape must have sides": "--image-shape must have sides",
        "backbone folder x has neither": "backbone folder x has neither",
        "X must be images": "X must be images",
    }
    for message, told in said.items():
        with pytest.raises(typer.Exit), module.command():
            raise ValueError(message)
        assert capsys.readouterr().err == f"Error: {told}\n"


def test_quick_work_and_quiet_consoles_show_no_progress(clock, capsys):
    for console, seconds in ((Console(), 1.9), (Console(quiet=True), 99.0)):
        with console.bar("reading") as report:
            clock.seconds += seconds
            report(1, 2)
        console.say("") if console.quiet else None
    assert capsys.readouterr().err == ""


def test_terminals_have_a_bar(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(module, "QUIET_SECONDS", 0)
    with Console().bar("reading") as report:
        report(3, 4)
        report(4, 4)
    first, *_, last = terminal.getvalue().strip("\r").split("\r")
    assert first.startswith("reading   0 % ")
    assert first.endswith("? left")
    assert last.strip() == ""  # nothing stays


def test_each_warning_of_the_library_is_told_of_once(capsys):
    with command() as console:
        for _ in range(2):
            warnings.warn("X: something\n is odd", stacklevel=1)
        warnings.warn("of developers", DeprecationWarning, stacklevel=1)
    assert console.warnings == ["something is odd"]
    assert capsys.readouterr().err == "Warning: something is odd\n"


def test_stages_of_a_fit_are_told_of_with_their_steps(clock, capsys):
    def context(name, parent=None, steps=0):
        return SimpleNamespace(task_name=name, parent=parent, max_subtasks=steps)

    progress = StageProgress(Console(), {"search": "searching", "partition": "partitioning"})
    fit = context("fit")
    search = context("search", fit, 4)
    progress.setup(None, fit)
    for task in (fit, search):
        progress.on_fit_task_begin(None, task)
    for step in range(4):
        clock.seconds = 10.0 * step
        progress.on_fit_task_begin(None, context("step", search))
        progress.on_fit_task_end(None, context("step", search))
    progress.on_fit_task_end(None, search)
    progress.on_fit_task_begin(None, context("partition", fit))
    progress.on_fit_task_end(None, context("partition", fit))
    progress.on_fit_task_end(None, fit)
    progress.teardown(None, fit)
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "searching"
    assert told[1] == "searching: 50 %, 00:20 left"
    assert told[-2:] == ["searching: 100 %, 00:00 left", "partitioning"]


def test_json_is_strict_and_ascii():
    value = {"a": np.float32("nan"), "b": np.arange(2), 3: float("inf"), "c": (None, True, "é\udce9"), "d": module}
    text = json_of(value)
    assert text.isascii()
    found = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert found == {"a": None, "b": [0, 1], "3": None, "c": [None, True, "é\udce9"], "d": str(module)}


def test_names_of_files_stay_in_one_line():
    assert shown_path("a\nb\t猫\udce9.png") == "a\\nb\\t猫\\udce9.png"


def test_line_that_goes_on_is_one_that_a_shell_takes():
    token = module.arguments.set(("cluster", "my photos", "-k", "3"))
    assert command_line() == "skdiec cluster 'my photos' -k 3"
    module.arguments.reset(token)


def test_numbers_of_options():
    assert numbers("x", None, int) is None
    assert numbers("x", "3,4", int) == (3, 4)
    assert numbers("x", "0,0.5", float) == (0.0, 0.5)
    assert number_of_clusters("12") == 12
    with pytest.raises(ValueError, match="--x must be numbers with commas between; got ''"):
        numbers("x", "", float)


def test_limits_are_two_numbers():
    assert limits("x", None) is None
    assert limits("x", "0,0.5") == (0.0, 0.5)
    with pytest.raises(ValueError, match=r"--x must be two numbers with a comma .* got '0,1,2'"):
        limits("x", "0,1,2")
    for text in ("1,0", "1,1", "nan,1", "0,inf"):
        with pytest.raises(ValueError, match=f"--x must be two numbers .* the lower one first; got '{text}'"):
            limits("x", text)


# Folders of results


def test_results_lie_beside_the_images(tmp_path, monkeypatch):
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    (tmp_path / "some.txt").touch()
    monkeypatch.chdir(tmp_path / "photos")
    assert default_output(tmp_path / "photos") == tmp_path / "photos-clusters"
    assert default_output(tmp_path / "some.txt") == tmp_path / "some-clusters"
    for name in (".", "sub/.."):
        assert default_output(tmp_path / "photos" / name).resolve() == tmp_path / "photos-clusters"
    assert default_output(Path(".")) == tmp_path / "photos-clusters"
    assert default_output(Path("sub")) == Path("sub-clusters")
    with pytest.raises(ValueError, match="--out must say where results go, since nothing can be beside /"):
        default_output(Path("/"))


def test_names_of_folders_differ_and_suit_any_disk():
    names = {0: "1", 1: "a/b", 2: "A_B", 3: "..", 4: "x" * 300, 5: "tab\there", 6: "a_b 2"}
    found = folder_names(8, names)
    assert found == ["1 0", "a_b", "A_B 2", "3", "x" * 100, "tab_here", "a_b 2 6", "7"]
    assert len({name.casefold() for name in found}) == 8


def test_damaged_record_of_a_folder_is_told_of(tmp_path):
    for content in ("{", "3"):
        (tmp_path / ".skdiec-files.json").write_text(content)
        with pytest.raises(ValueError, match=r"skdiec-files.json is damaged: .* Choose another folder with --out"):
            OutputFolder(tmp_path, Console())


def test_folder_that_cannot_be_made_is_told_of(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ValueError, match="out cannot be written to: Permission denied; --out says where results go"):
        OutputFolder(tmp_path / "out", Console())


def test_copies_that_fail_leave_nothing_behind(tmp_path, monkeypatch):
    paths = [tmp_path / name for name in ("a.png", "b.png")]
    for path in paths:
        path.write_text(path.name)
    out = OutputFolder(tmp_path / "out", Console())

    def copy(path, target):
        target.write_text("half")
        if path.name == "b.png":
            raise OSError(28, "No space left on device")
        target.write_text(path.read_text())

    monkeypatch.setattr("skdiec.cli.output.shutil.copy2", copy)
    with pytest.raises(OSError, match="No space left"):
        out.lay_out({"0": paths}, copy=True)
    assert [path.name for path in (tmp_path / "out" / "clusters" / "0").iterdir()] == ["a.png"]
    again = OutputFolder(tmp_path / "out", Console())  # what was copied is known to another call
    again.clear_layout()
    assert not (tmp_path / "out" / "clusters").exists()
