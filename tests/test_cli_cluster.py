"""``skdiec cluster`` and its companions: a folder in, an answer out."""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from sklearn.metrics import adjusted_rand_score
from typer.testing import CliRunner

import skdiec
from skdiec._estimator.stages import seconds_of_passes
from skdiec.activations import Cell
from skdiec.cli import app, searching
from skdiec.cli.clustering import LABELS_FILE, PARQUET_FILE, SUMMARY_FILE
from skdiec.cli.console import Console
from skdiec.cli.fitting import _split
from skdiec.cli.reading import find_files, read_images
from skdiec.cli.tables import rows_of as rows_of_table
from skdiec.messages import duration
from skdiec.report.words import number_found
from skdiec.sampling import sample_images
from skdiec.search import SearchResult, SearchStage

parquet = pytest.importorskip("pyarrow.parquet", reason="the command line writes Parquet")

QUICK = ("--epochs", "2", "--quiet")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "400"})


def succeed(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return result


def rows_of(path):
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def content_of(folder):
    return {path: path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def make_folder(planted):
    """Makes folders of 24 images of three clusters, some of them in a subfolder and with the names of others."""

    def make(folder):
        (folder / "sub").mkdir(parents=True)
        for number, pixels in enumerate(planted(size=8)[0]):
            place = folder / "sub" if number >= 20 else folder
            Image.fromarray(pixels).save(place / f"{number % 20:02}.png")
        return folder

    return make


@pytest.fixture(scope="module")
def truth(planted):
    return planted(size=8)[1]


@pytest.fixture(scope="module")
def done(make_folder, tmp_path_factory):
    """A folder that has been clustered, and the results."""
    folder = make_folder(tmp_path_factory.mktemp("done") / "photos")
    result = succeed("cluster", folder, "-k", 3, *QUICK)
    return folder, folder.with_name("photos-clusters"), result


@pytest.fixture
def folder(make_folder, tmp_path):
    return make_folder(tmp_path / "photos")


@pytest.fixture
def backbone(make_unet, tmp_path):
    """The folder of a network that is trained on nothing, but on all timesteps."""
    from diffusers import DDPMPipeline, DDPMScheduler

    DDPMPipeline(make_unet(sample_size=8), DDPMScheduler()).save_pretrained(tmp_path / "backbone")
    return tmp_path / "backbone"


# What is written


def test_labels_are_those_of_the_model(done, truth):
    folder, out, _ = done
    model, rows = skdiec.load(out / "model"), rows_of(out / LABELS_FILE)
    assert list(rows[0]) == ["path", "cluster", "name", "probability", "distance", "uncertainty", "problem"]
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    assert [row["path"] for row in rows] == names
    assert_array_equal([int(row["cluster"]) for row in rows], model.labels_)
    assert adjusted_rand_score(truth, model.labels_) == 1
    assert_allclose([float(row["probability"]) for row in rows], model.probabilities_, rtol=1e-5)
    distances = np.linalg.norm(model.embedding_ - model.cluster_centers_[model.labels_], axis=1)
    assert_allclose([float(row["distance"]) for row in rows], distances, rtol=1e-4)
    soft = np.sort(model.predict_proba(folder), axis=1)
    assert_allclose([float(row["uncertainty"]) for row in rows], soft[:, -2] / soft[:, -1], rtol=1e-4)
    assert {(row["name"], row["problem"]) for row in rows} == {("", "")}
    assert_array_equal(model.predict(folder), model.labels_)
    assert [str(path) for path in model.files_] == [str(folder / name) for name in names]


def test_parquet_holds_the_same_table(done):
    _, out, _ = done
    table = parquet.read_table(out / PARQUET_FILE)
    rows = rows_of(out / LABELS_FILE)
    assert {field.name: str(field.type) for field in table.schema} == {
        "path": "string",
        "cluster": "int32",
        **dict.fromkeys(["name", "problem"], "string"),
        **dict.fromkeys(["probability", "distance", "uncertainty"], "double"),
    }
    found = table.to_pylist()
    assert [(row["path"], str(row["cluster"])) for row in found] == [(row["path"], row["cluster"]) for row in rows]
    for column in ("probability", "distance", "uncertainty"):
        assert_allclose([row[column] for row in found], [float(row[column]) for row in rows], rtol=1e-5)
    assert {(row["name"], row["problem"]) for row in found} == {(None, None)}


def test_summary_says_what_was_found(done):
    folder, out, result = done
    model, summary = skdiec.load(out / "model"), json.loads((out / SUMMARY_FILE).read_text())
    assert (summary["images"], summary["unreadable"]) == (24, [])
    assert summary["folder"] == str(folder)
    assert [found["images"] for found in summary["clusters"]] == [8, 8, 8]
    surest = np.flatnonzero(model.labels_ == 1)[model.probabilities_[model.labels_ == 1].argmax()]
    assert summary["clusters"][1]["typical"][0] == str(model.files_[surest].relative_to(folder))
    assert summary["representation"] == {
        "layer": model.layer_,
        "timestep": model.timestep_,
        "pooling": model.pooling_,
    }
    assert summary["scores"]["cut_over_noise"] == model.cut_over_noise_
    assert summary["epochs"] == {"backbone": 2, "head": model.n_iter_}
    assert {"reading", "backbone", "search", "features", "partition", "training", "writing", "total"} == set(
        summary["seconds"]
    )
    assert summary["parameters"]["n_clusters"] == 3
    assert summary["parameters"]["backbone__epochs"] == 2
    assert any("denoises these images worse than a straight line" in text for text in summary["warnings"])
    assert "3 clusters of 24 images" in result.stdout
    assert summary["clusters"][1]["typical"][0] in result.stdout


@pytest.mark.parametrize("n", [3, 20])
def test_too_few_images_for_a_number_and_equal_ones_are_one_cluster(n, backbone, tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(n):
        Image.new("L", (8, 8), 10 * number if n == 3 else 7).save(tmp_path / "photos" / f"{number}.png")
    result = succeed("cluster", tmp_path / "photos", "--backbone", backbone, "--quiet")
    out = tmp_path / "photos-clusters"
    assert "model.1" not in result.stderr
    assert skdiec.load(out / "model").n_clusters_ == 1
    assert (out / "report.html").exists()
    assert json.loads((out / SUMMARY_FILE).read_text())["number"] is None


def test_number_is_found_where_none_is_asked_for(folder, backbone, done):
    result = succeed("cluster", folder, "--backbone", backbone, "--quiet")
    out = folder.with_name("photos-clusters")
    model, summary = skdiec.load(out / "model"), json.loads((out / SUMMARY_FILE).read_text())
    verdict = number_found(model).verdict
    assert summary["number"]["verdict"] == verdict
    assert summary["number"]["scores"]["n_clusters"] == [2, 3]  # of 24 images
    assert_allclose(summary["number"]["scores"]["silhouette"], model.n_clusters_scores_["silhouette"])
    assert verdict in result.stdout
    assert verdict in (out / "report.html").read_text("utf-8")
    assert json.loads((done[1] / SUMMARY_FILE).read_text())["number"] is None
    assert "their number" not in done[2].stdout


def test_names_of_files_are_found_once(folder):
    files = find_files(folder, Console(quiet=True))
    assert files.names[0] == "00.png"
    assert files.names is files.names  # of many files, that takes seconds


def test_another_run_trains_nothing_anew_and_replaces_what_it_wrote(done):
    _, out, _ = done
    labels = (out / LABELS_FILE).read_bytes()
    weights = next((out / ".work").rglob("diffusion_pytorch_model.safetensors"))
    before = weights.stat().st_mtime_ns
    (out / SUMMARY_FILE).unlink()
    succeed("cluster", done[0], "-k", 3, *QUICK)
    assert (out / LABELS_FILE).read_bytes() == labels
    assert weights.stat().st_mtime_ns == before
    assert {path.name for path in out.iterdir()} == {
        ".skdiec-files.json", ".work", LABELS_FILE, PARQUET_FILE, SUMMARY_FILE, "model", "report.html"
    }  # fmt: skip


# How long it takes


@pytest.mark.parametrize(
    ("budget", "gone", "passes", "training", "is_kept"),
    [
        (600, 10, 100, 390, True),  # the rest takes as long as the passes
        (600, 10, 5, 525, True),  # but at least a tenth
        (60, 10, 30, 12, False),  # at least a fifth
        (0.6, 10, 30, 0.12, False),
    ],
)
def test_training_gets_what_is_left_of_the_minutes(budget, gone, passes, training, is_kept, capsys):
    console = Console()
    assert_allclose(_split(budget, gone, passes, console), training)
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(f"of {duration(budget)}, 10 s are gone, {duration(training)} train the backbone, about ")
    assert len(said) == 1 + (not is_kept)
    assert bool(console.warnings) is not is_kept
    if not is_kept:
        assert "more than the" in said[1]


def test_minutes_are_those_of_the_run_and_stay_when_it_goes_on(folder, monkeypatch):
    asked = []

    def seconds_of_passes(model, X):
        asked.append((len(X), model.n_clusters))
        return 60.0

    monkeypatch.setattr("skdiec._estimator.stages.seconds_of_passes", seconds_of_passes)
    out = folder.with_name("photos-clusters")
    command = ["cluster", folder, "--epochs", 2, "--json", "--minutes"]
    first = succeed(*command, 10, "-k", 3)
    minutes = json.loads(first.stdout)["parameters"]["backbone__max_minutes"]
    assert 6 < minutes < 8  # less what reading took, and importing
    assert first.stderr.count("of 10 min, ") == 1
    assert f"training a backbone on the images, for at most {duration(60 * minutes)}" in first.stderr
    weights = next((out / ".work").rglob("diffusion_pytorch_model.safetensors"))
    again = succeed(*command, 10, "-k", 2)
    assert json.loads(again.stdout)["parameters"]["backbone__max_minutes"] == minutes
    assert "of 10 min, " not in again.stderr
    assert "going on with the backbone of an earlier run, for at most " in again.stderr
    assert list((out / ".work").rglob("diffusion_pytorch_model.safetensors")) == [weights]
    other = succeed(*command, 20, "-k", 3)
    assert json.loads(other.stdout)["parameters"]["backbone__max_minutes"] > 16
    assert asked == [(24, 3), (24, 3)]


def test_minutes_of_search_are_those_of_its_training_which_the_clustering_takes(folder):
    options = ["-k", 3, "--epochs", 2, "--minutes", 7]
    searched = succeed("search", folder, *options)
    assert "training a backbone on the images, for at most 7 min\n" in searched.stderr
    clustered = succeed("cluster", folder, *options, "--json")
    assert "going on with the backbone of an earlier run, for at most 7 min\n" in clustered.stderr
    assert json.loads(clustered.stdout)["parameters"]["backbone__max_minutes"] == 7


def test_passes_are_those_that_a_fit_tells_of(planted, monkeypatch, caplog, make_model):
    images, _ = planted(size=8)
    model = make_model(backbone=skdiec.Pretraining(epochs=1, channels=(8,)), search="grid", n_draws=3)
    before = vars(model).copy()
    ticks = iter(range(100))
    monkeypatch.setattr("skdiec._estimator.stages.time.perf_counter", lambda: float(next(ticks)))
    seconds = seconds_of_passes(model, images)  # 24 images in a second
    assert vars(model) == before
    monkeypatch.undo()
    with caplog.at_level("INFO", logger="skdiec.passes"):
        model.fit(images)
    told = re.search(r"at most ([\d,]+) passes for the search and ([\d,]+) for", caplog.text)
    assert_allclose(seconds, sum(int(number.replace(",", "")) for number in told.groups()) / 24)


# Folders of clusters


def test_links_and_copies_lie_in_one_folder_a_cluster(done, tmp_path):
    folder, out, _ = done
    originals = content_of(folder)
    (tmp_path / "names.csv").write_text("cluster,name\n0,cats/dogs\n2,birds\n")
    command = ["cluster", folder, "-k", 3, *QUICK]
    succeed(*command, "--link", "--names", tmp_path / "names.csv")
    assert sorted(path.name for path in (out / "clusters").iterdir()) == ["1", "birds", "cats_dogs"]
    rows = rows_of(out / LABELS_FILE)
    names = {"0": ("cats/dogs", "cats_dogs"), "1": ("", "1"), "2": ("birds", "birds")}
    links = {path.resolve(): path for path in (out / "clusters").rglob("*.png")}
    assert len(links) == 24  # files of one name among them
    for row in rows:
        assert row["name"] == names[row["cluster"]][0]
        link = links[(folder / row["path"]).resolve()]
        assert link.is_symlink()
        assert link.parent.name == names[row["cluster"]][1]
    assert json.loads((out / SUMMARY_FILE).read_text())["clusters"][2]["name"] == "birds"

    mine = out / "clusters" / "birds" / "mine.txt"
    mine.write_text("of the user")
    succeed(*command, "--copy")
    assert sorted(path.name for path in (out / "clusters").iterdir()) == ["0", "1", "2", "birds"]
    copies = [path for path in (out / "clusters").rglob("*.png") if not path.is_symlink()]
    assert sorted(path.read_bytes() for path in copies) == sorted(originals.values())
    changed = copies[0]
    changed.write_bytes(b"changed by the user")

    result = succeed(*command)
    left = content_of(out / "clusters")
    assert left == {changed: b"changed by the user", mine: b"of the user"}
    assert "Warning: 1 files in" in result.stderr
    assert content_of(folder) == originals
    mine.unlink()
    changed.unlink()


def test_results_inside_of_the_folder_are_no_images_of_it(folder, backbone):
    out = folder / "results"
    for _ in range(2):
        succeed("cluster", folder, "-k", 3, "--backbone", backbone, "--out", out, "--copy", "--quiet")
        assert len(rows_of(out / LABELS_FILE)) == 24
    assert len(list((out / "clusters").rglob("*.png"))) == 24


# Labels by hand


def test_fit_starts_from_edited_labels(done, tmp_path):
    folder, out, _ = done
    rows = rows_of(out / LABELS_FILE)
    # Two images change places, one is marked wrong, one is not known, and a cluster gets a name.
    by_cluster = {cluster: [row for row in rows if row["cluster"] == cluster] for cluster in "012"}
    by_cluster["0"][0]["cluster"], by_cluster["1"][0]["cluster"] = "1", "0"
    by_cluster["0"][1]["cluster"], by_cluster["0"][2]["cluster"] = "-1", ""
    by_cluster["2"][3]["name"] = "third"
    edited = out / LABELS_FILE  # as people do
    with edited.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    result = succeed("cluster", folder, "--labels", edited, *QUICK)
    model = skdiec.load(out / "model")
    given = np.array([int(row["cluster"] or -1) for row in rows])
    assert_array_equal(model.init, given)
    assert_array_equal(model.initial_labels_[given >= 0], given[given >= 0])
    assert {row["name"] for row in rows_of(out / LABELS_FILE) if row["cluster"] == "2"} == {"third"}
    summary = json.loads((out / SUMMARY_FILE).read_text())
    assert summary["parameters"]["init"] == "labels"
    n_given, n_kept = (given >= 0).sum(), (given == model.labels_).sum()
    assert summary["labels"] == {"given": n_given, "kept": n_kept}
    assert f"Labels that the training kept: {n_kept} of {n_given}\n" in result.stdout
    assert "How stable" not in result.stdout  # nothing was searched for
    kept = out / "labels.1.csv"
    assert f"{edited} was changed since it was written: it is kept as labels.1.csv" in result.stderr
    assert rows_of(kept) == rows
    kept.unlink()


def test_labels_may_be_names_in_a_file_of_a_spreadsheet(done, tmp_path):
    folder, _, _ = done
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    lines = [f"{name};{['oak', 'ash'][number % 2]}" for number, name in enumerate(names[:20])]
    (tmp_path / "labels.csv").write_text("\n".join(["path;label", *lines, "elsewhere.png;elm"]))
    result = succeed("cluster", folder, "--labels", tmp_path / "labels.csv", "--out", tmp_path / "out", *QUICK)
    model = skdiec.load(tmp_path / "out" / "model")
    assert_array_equal(model.init, [1, 0] * 10 + [-1] * 4)
    rows = rows_of(tmp_path / "out" / LABELS_FILE)
    assert {(row["cluster"], row["name"]) for row in rows} == {("0", "ash"), ("1", "oak")}
    assert "labels.csv does not name 4 images: such images get one from their neighbours" in result.stderr
    assert "labels.csv names 1 that are not there, such as elsewhere.png" in result.stderr


# What is broken, and what is refused


def test_broken_files_are_listed_and_left_out(folder, backbone, tmp_path):
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "new\nline.png").write_bytes((folder / "00.png").read_bytes()[:-30])
    strange = os.fsencode(folder) + b"/caf\xe9.png"
    Path(os.fsdecode(strange)).write_bytes((folder / "00.png").read_bytes())
    out = tmp_path / "out"
    result = succeed("cluster", folder, "-k", 3, "--backbone", backbone, "--out", out, "--quiet", "--json")
    rows = {row["path"]: row for row in rows_of(out / LABELS_FILE)}
    assert len(rows) == 27
    assert rows["empty.jpg"]["cluster"] == rows["new\nline.png"]["cluster"] == ""
    assert rows["empty.jpg"]["problem"] == "its content is no image of a known format"
    assert "truncated" in rows["new\nline.png"]["problem"]
    assert rows[os.fsdecode(b"caf\xe9.png")]["cluster"] == rows["00.png"]["cluster"]
    summary = json.loads(result.stdout)
    assert summary["images"] == 25
    assert [found["path"] for found in summary["unreadable"]] == ["empty.jpg", "new\nline.png"]
    assert "Warning: 2 files cannot be read and left out, such as" in result.stderr
    found = parquet.read_table(out / PARQUET_FILE).to_pylist()
    assert found[[row["path"] for row in found].index("empty.jpg")]["cluster"] is None
    assert r"caf\xe9.png" in [row["path"] for row in found]


def test_images_past_memory_are_mapped(folder, tmp_path, monkeypatch):
    (folder / "05.png").write_bytes((folder / "05.png").read_bytes()[:-30])
    files = find_files(folder, Console(quiet=True))
    small = read_images(files, Console(quiet=True), map_file=tmp_path / "work" / "images.npy")
    monkeypatch.setattr("skdiec.cli.reading.MAX_BYTES", 23 * 64)
    large = read_images(files, Console(quiet=True), map_file=tmp_path / "work" / "images.npy")
    assert [type(found.pixels) for found in (small, large)] == [np.ndarray, np.memmap]
    assert_array_equal(large.pixels, small.pixels)
    assert large.pixels.shape == (23, 8, 8)
    assert list(large.files.problems) == [5]
    assert_array_equal(small.rows, [row for row in range(24) if row != 5])


def test_too_few_images_that_can_be_read_are_an_error(folder, tmp_path):
    for path in list(folder.rglob("*.png"))[4:]:
        path.write_bytes(b"")
    result = run("cluster", folder, "-k", 5, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert f"Error: 5 clusters need at least 5 images; {folder} has 4 (20 cannot be read)\n" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-k", "many"], "-k must be a whole number of at least 1; got 'many'"),
        (["-k", "25"], "25 clusters need at least 25 images; "),
        (["-k", "3", "--copy", "--link"], "--copy and --link exclude each other"),
        (
            ["-k", "3", "--image-shape", "8"],
            "--image-shape must be (height, width) or three numbers with the channels; got",
        ),
        (["-k", "3", "--image-shape", "8,8,3"], "with 1 or 3 channels, for image files; got 8 channels"),
        (["-k", "3", "--image-shape", "70000,8"], "--image-shape must have sides of at most 65,536"),
        (["-k", "3", "--image-shape", "8,x"], "--image-shape must be whole numbers with commas between; got '8,x'"),
        (["-k", "3", "--epochs", "0"], "--epochs must be a whole number of at least 1; got '0'"),
        (["-k", "3", "--minutes", "-1"], "--minutes must be a number above 0; got '-1'"),
        (["-k", "3", "--backbone", "nowhere"], "there is no folder 'nowhere'"),
        (["-k", "3", "--names", "{here}/four.csv"], "four.csv names cluster 3; there are 3, from 0 to 2"),
        (
            ["-k", "3", "--names", "{here}/none.csv"],
            "--names must be a CSV file with the columns cluster and name; got {here}/none.csv",
        ),
        (["-k", "3", "--names", "{here}/nowhere.csv"], "nowhere.csv cannot be read: No such file or directory"),
        (["-k", "3", "--names", "{here}/twice.csv"], "twice.csv, row 3: cluster 1 has two names, 'oak' and 'ash'"),
        (["-k", "3", "--names", "{here}/comma.csv"], "line 2 has more values than there are columns"),
        (["-k", "3", "--names", "{here}/long.csv"], "long.csv, row 2: cluster must be a number; got"),
        (["-k", "3", "--labels", "{here}/two.csv"], "-k is 3, and "),
        (["--labels", "{here}/nowhere.csv"], "nowhere.csv cannot be read: No such file or directory"),
        (
            ["--labels", "{here}/none.csv"],
            "--labels must be a CSV file with the columns path and cluster, or path and label; got",
        ),
        (["-k", "3", "--out", "{here}"], "--out must be a folder that is new, empty or of earlier results; "),
        (["-k", "3", "--out", "{here}/two.csv"], "--out must be a folder; "),
        (["-k", "3", "--out", "{photos}"], "--out must be another folder than that of the images; got {photos}"),
        (["-k", "3", "--device", "abacus"], "--device must be one that torch knows, such as 'cpu' or 'cuda'; got 'ab"),
        (["-k", "3", "--value-range", "9,5"], "two numbers with a comma between, the lower one first; got '9,5'"),
    ],
)
def test_wrong_arguments_are_told_of_in_one_line(options, message, done, tmp_path):
    (tmp_path / "two.csv").write_text("path,cluster\n00.png,0\n01.png,1\n")
    (tmp_path / "four.csv").write_text("cluster,name\n3,oak\n")
    (tmp_path / "none.csv").write_text("cluster\n0\n")
    (tmp_path / "comma.csv").write_text("cluster,name\n0,oak, ash\n")
    (tmp_path / "long.csv").write_text(f"cluster,name\n{'9' * 5000},oak\n")
    (tmp_path / "twice.csv").write_text("Cluster; Name\n1;oak\n1.0;ash\n")
    before = content_of(tmp_path)
    options = [option.format(here=tmp_path, photos=done[0]) for option in options]
    if "--out" not in options:
        options += ["--out", str(tmp_path / "out")]
    result = run("cluster", done[0], "--quiet", *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message.format(here=tmp_path, photos=done[0]) in result.stderr
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert {path: content for path, content in content_of(tmp_path).items() if "out" not in path.parts} == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "there is no folder "),
        ("empty", "has no file with a suffix such as .jpg, .png or .tif"),
        ("list.txt", "no line of it is the path of a file, such as '{here}/nowhere.png'"),
        ("blank.txt", " is neither a folder nor a text file of paths"),
        ("image.png", " is neither a folder nor a text file of paths"),
    ],
)
def test_what_holds_no_images_is_told_of(name, message, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("nowhere.png\n")
    (tmp_path / "blank.txt").write_text("\n")
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    result = run("cluster", tmp_path / name, "-k", 2, "--quiet")
    assert (result.exit_code, result.stdout) == (2, "")
    assert message.format(here=tmp_path) in result.stderr
    assert result.stderr.count("\n") == 1


def test_files_that_skdiec_did_not_write_are_not_replaced(folder, tmp_path):
    out = tmp_path / "out"
    assert run("search", folder, "-k", 3, *QUICK, "--out", out).exit_code == 0
    (out / SUMMARY_FILE).write_text("of the user")
    result = run("cluster", folder, "-k", 3, *QUICK, "--out", out)
    assert result.exit_code == 2
    assert f"{out / SUMMARY_FILE} was not written by skdiec: move it, or choose another folder" in result.stderr
    assert (out / SUMMARY_FILE).read_text() == "of the user"


def test_list_of_files_is_read_in_its_order(folder, backbone, tmp_path):
    names = ["photos/05.png", "photos/sub/01.png", "photos/00.png", "nowhere.png"]
    (tmp_path / "some.txt").write_text("\n".join(names))
    succeed("cluster", tmp_path / "some.txt", "-k", 2, "--backbone", backbone, "--quiet")
    rows = rows_of(tmp_path / "some-clusters" / LABELS_FILE)
    assert [row["path"] for row in rows] == names
    assert [bool(row["problem"]) for row in rows] == [False, False, False, True]


# The other commands


def test_predict_writes_tables_of_new_images(done, folder, tmp_path):
    _, out, _ = done
    (folder / "broken.png").write_bytes(b"")
    Image.new("RGB", (30, 20), (9, 9, 9)).save(folder / "colour.jpg")
    (tmp_path / "names.csv").write_text("cluster,name\n1.0,oak\n")
    result = succeed("predict", out, folder, "--names", tmp_path / "names.csv", "--quiet")
    (tmp_path / "told.csv").write_text(result.stdout)
    rows = rows_of(tmp_path / "told.csv")
    model = skdiec.load(out / "model")
    readable = [folder / row["path"] for row in rows if not row["problem"]]
    assert len(readable) == 25
    expected = iter(model.predict(readable))
    for row in rows:
        assert row["cluster"] == ("" if row["path"] == "broken.png" else str(next(expected)))
        assert row["name"] == ("oak" if row["cluster"] == "1" else "")
    for name in ("new.csv", "new.parquet"):
        command = ["predict", out / "model", folder, "--out", tmp_path / name, "--quiet"]
        assert "25 images in" in succeed(*command).stdout
        again = run(*command)
        assert (again.exit_code, again.stdout) == (2, "")
        assert f"Error: {tmp_path / name} is there already: --overwrite replaces it\n" in again.stderr
        as_json = json.loads(succeed(*command, "--overwrite", "--json").stdout)
        assert [str(row["cluster"] if row["cluster"] is not None else "") for row in as_json] == [
            row["cluster"] for row in rows
        ]
    assert [row["cluster"] for row in rows_of(tmp_path / "new.csv")] == [row["cluster"] for row in rows]
    assert parquet.read_table(tmp_path / "new.parquet").to_pylist() == as_json


def test_predict_reads_files_for_models_of_arrays(make_model, planted, tmp_path, folder):
    images = planted(size=8)[0]
    cheap = skdiec.Pretraining(epochs=1, channels=(8,), batch_size=8)
    model = make_model(value_range=(0, 1), backbone=cheap).fit(images / 255.0)
    model.save(tmp_path / "model")
    rows = json.loads(succeed("predict", tmp_path / "model", folder, "--quiet", "--json").stdout)
    assert_array_equal([row["cluster"] for row in rows], model.labels_)


def test_full_disk_leaves_the_table_that_was_there(done, tmp_path, monkeypatch):
    (tmp_path / "labels.csv").write_text("before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("skdiec.backbones.folders.os.fsync", full)
    result = run("predict", done[1], done[0], "--out", tmp_path / "labels.csv", "--overwrite", "--quiet")
    assert result.exit_code == 1
    assert f"{tmp_path / 'labels.csv'} cannot be written: No space left on device" in result.stderr
    assert (tmp_path / "labels.csv").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["labels.csv"]


def test_report_reads_files_for_models_of_arrays(make_model, planted, tmp_path, folder):
    cheap = skdiec.Pretraining(epochs=1, channels=(8,), batch_size=8)
    make_model(value_range=(0, 16), backbone=cheap).fit(planted(size=8)[0] / 16.0).save(tmp_path / "model")
    succeed("report", tmp_path / "model", folder, "--out", tmp_path / "my.html", "--quiet")
    page = (tmp_path / "my.html").read_text()
    assert re.search(r"<dt>value_range</dt><dd>.*\(0, 16\)", page)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{done}", "{photos}", "--out", "labels.txt"], "--out must end in .csv or .parquet; got labels.txt"),
        (["{photos}", "{photos}"], "MODEL must be the folder of a saved model; "),
        (["{done}", "nowhere"], "there is no folder nowhere"),
        (["{done}/nowhere", "{photos}"], "MODEL must be the folder of a saved model; there is no folder"),
        (["nowhere", "{photos}"], "MODEL must be the folder of a saved model; there is no folder nowhere"),
        (["", "{photos}"], "MODEL must be a path; got ''"),
        (["{done}", ""], "FOLDER must be a path; got ''"),
        (["{done}", "{photos}", "--out", "nowhere/labels.csv"], "there is no folder nowhere for labels.csv"),
    ],
)
def test_wrong_arguments_of_predict_are_told_of_in_one_line(arguments, message, done):
    result = run("predict", *(part.format(photos=done[0], done=done[1]) for part in arguments), "--quiet")
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_info_of_a_model_that_labels_began_stays_short(make_model, planted, tmp_path):
    images, labels = planted(size=40)
    cheap = skdiec.Pretraining(epochs=1, channels=(8,), batch_size=32)
    make_model(init=labels, backbone=cheap).fit(images).save(tmp_path / "model")
    lines = succeed("info", tmp_path / "model").stdout.splitlines()
    assert "stability: unknown" in lines
    (init,) = [line for line in lines if line.startswith("  init: array([")]
    assert len(init) < 250


def test_info_says_what_a_folder_is(done, backbone, folder):
    photos, out, _ = done
    model = skdiec.load(out / "model")
    for path in (out, out / "model"):
        found = json.loads(succeed("info", path, "--json", "--quiet").stdout)
        assert (found["kind"], found["clusters"], found["sizes"]) == ("model", 3, [8, 8, 8])
        assert found["representation"]["layer"] == model.layer_
        assert found["saved by"] == f"skdiec {skdiec.__version__}, format 1"
        assert found["backbone"]["can draw new images"] is False
        assert found["parameters"]["n_clusters"] == "3"
    found = json.loads(succeed("info", backbone, "--json").stdout)
    assert (found["kind"], found["image shape"], found["can draw new images"]) == ("backbone", [1, 8, 8], True)
    (folder / "empty.jpg").write_bytes(b"")
    Image.new("RGB", (8, 8)).save(folder / "colour.png")
    result = run("info", folder, "--json")
    found = json.loads(result.stdout)
    assert (found["kind"], found["images"]) == ("images", 25)
    assert found["unreadable"] == {"empty.jpg": "its content is no image of a known format"}
    assert found["colours"] == {"grey": 24, "colour": 1}
    assert found["formats"] == {".png": 25, ".jpg": 1}
    assert found["suggested --image-shape"] == "8,8"
    assert result.stderr.startswith("looking for images in")
    text = succeed("info", photos).stdout.splitlines()
    assert text[0] == "kind: images"
    assert "  8 x 8: 24" in text
    assert run("info", folder / "nowhere").exit_code == 2


def test_search_ranks_the_representations_and_leaves_its_work_to_the_clustering(folder, backbone):
    out = folder.with_name("photos-clusters")
    options = ["-k", 3, "--backbone", backbone, "--quiet"]
    rows = json.loads(succeed("search", folder, *options, "--json").stdout)
    assert [row["consensus"] for row in rows] == sorted((row["consensus"] for row in rows), reverse=True)
    assert [list(row) for row in rows[:1]] == [["layer", "timestep", "pooling", "consensus", "scott", "chosen"]]
    written = rows_of(out / "search.csv")
    assert [row["layer"] for row in written] == [row["layer"] for row in rows]
    text = succeed("search", folder, *options).stdout
    assert f"All {len(rows)} are in {out / 'search.csv'}" in text
    assert not (out / "model").exists()
    summary = json.loads(succeed("cluster", folder, *options, "--json").stdout)
    (best,) = [row for row in rows if row["chosen"]]
    assert best["consensus"] == rows[0]["consensus"]
    chosen = summary["representation"]
    assert chosen == {name: best[name] for name in chosen}
    assert f"chosen: {best['layer']}, timestep {best['timestep']}, pooling {best['pooling']}\n" in text


def test_search_says_on_what_the_best_representations_were_compared_in_the_end():
    layers, cells = ("early", "late"), (Cell("late", 50, 1), Cell("early", 50, 1))
    scores = {"consensus": np.array([[[0.3], [0.6]], [[0.4], [0.7]]]), "scott": np.ones((2, 2, 1))}
    stage = SearchStage(2000, 1, cells, scores, 4000, 4000.0, 1.0)
    final = SearchStage(10_000, 1, cells, scores, 10_000, 10_000.0, 1.0)
    result = SearchResult(cells[1], layers, (10, 50), (1,), "consensus", (stage,), final)
    table = searching._score_table(result)
    assert table["consensus"] == [0.7, 0.6, 0.4, 0.3]
    assert table["chosen"] == [False, True, False, False]
    text = searching._in_words(rows_of_table(table), result, Path("search.csv"))
    assert "\nchosen: early, timestep 50, pooling 1, of the best 2 at this timestep on 10,000 images\n" in text


def test_sample_draws_a_grid(backbone, tmp_path):
    out = tmp_path / "new.png"
    command = ["sample", backbone, "--out", out, "-n", 3, "--steps", 2, "--seed", 1, "--quiet"]
    assert "3 images in" in succeed(*command).stdout
    grid = np.asarray(Image.open(out))
    assert grid.shape == (17, 17, 3)
    images = sample_images(skdiec.load_backbone(backbone), 3, n_steps=2, seed=1)
    expected = np.rint(images[:, 0] * 127.5 + 127.5)
    for number, (top, left) in enumerate([(0, 0), (0, 9), (9, 0)]):
        assert_array_equal(grid[top : top + 8, left : left + 8, 0], expected[number])
    assert (grid[9:, 9:] == 255).all()
    assert "is there already: --overwrite replaces it" in run(*command).stderr
    assert run(*command, "--overwrite").exit_code == 0


def test_sample_says_what_it_takes(tmp_path):
    result = run("sample", "nowhere", "--out", tmp_path / "new.png", "--quiet")
    assert result.exit_code == 2
    expected = "BACKBONE_OR_MODEL must be the folder of a diffusion model or of a saved model; there is no folder"
    assert result.stderr == f"Error: {expected} nowhere\n"


def test_sample_says_how_to_get_a_backbone_that_can(done, tmp_path):
    result = run("sample", done[1], "--out", tmp_path / "new.png", "--quiet")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: the backbone was trained up to timestep 400 of 999")
    assert "skdiec pretrain IMAGES FOLDER --max-timestep 999" in result.stderr
    assert not (tmp_path / "new.png").exists()


@pytest.fixture
def reports(monkeypatch):
    """What the report was asked for."""
    calls = []
    fake = ModuleType("skdiec.report")

    def write_report(model, X, path, *, paths, names, progress):
        calls.append((len(model.labels_), [Path(image).read_bytes() for image in X], paths, names))
        Path(path).write_text("the report")

    fake.write_report = write_report
    monkeypatch.setitem(sys.modules, "skdiec.report", fake)
    monkeypatch.setattr(skdiec, "report", fake, raising=False)
    return calls


def test_reports_are_given_images_with_their_paths_and_names(reports, done, folder, backbone, tmp_path):
    (tmp_path / "names.csv").write_text("cluster,name\n1,oak\n")
    (folder / "broken.png").write_bytes(b"")
    command = ["cluster", folder, "-k", 3, "--backbone", backbone, "--names", tmp_path / "names.csv", "--quiet"]
    succeed(*command)
    out = folder.with_name("photos-clusters")
    assert (out / "report.html").read_text() == "the report"
    command = ["report", out, folder, "--names", tmp_path / "names.csv", "--out", tmp_path / "my.html", "--quiet"]
    assert succeed(*command).stdout == f"{tmp_path / 'my.html'}\n"
    paths = [row["path"] for row in rows_of(out / LABELS_FILE) if not row["problem"]]
    content = [(folder / name).read_bytes() for name in paths]
    assert reports == [(24, content, paths, {1: "oak"})] * 2
    assert run(*command).exit_code == 2
    (folder / "00.png").unlink()
    result = run(*command, "--overwrite")
    assert f"{folder} must hold the 24 images that the model was fitted on; it has 23" in result.stderr


def test_report_tells_of_other_images_before_it_reads_them(done, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("skdiec.cli.reading.decode_files", None)
    command = ["report", done[1], folder, "--out", tmp_path / "my.html", "--quiet"]
    (folder / "00.png").rename(folder / "other.png")
    others = run(*command)
    assert f"{folder} must hold the 24 images that the model was fitted on; it has 24, and no 00.png\n" in others.stderr
    assert others.exit_code == 2
    Image.new("L", (8, 8)).save(folder / "more.png")
    more = run(*command)
    assert f"{folder} must hold the 24 images that the model was fitted on; it has 25, and no 00.png\n" in more.stderr
    for name in ("other.png", "more.png"):
        (folder / name).write_bytes(b"")
    fewer = run(*command)
    assert f"{folder} must hold the 24 images that the model was fitted on; it has 23\n" in fewer.stderr
    assert (more.exit_code, fewer.exit_code) == (2, 2)


def test_one_file_in_the_range_of_values_is_enough_to_go_on(folder):
    files = find_files(folder, Console(quiet=True))
    limits = [np.asarray(Image.open(path)).max() for path in files.paths]
    Image.new("L", (8, 8)).save(folder / "00.png")
    found = read_images(files, Console(quiet=True), value_range=(0, 1))
    assert min(limits) > 1
    assert found.rows.tolist() == [0]
    assert len(found.files.problems) == 23


# In a process of its own


def start(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(Path(skdiec.__file__).parents[1])}
    command = [sys.executable, "-m", "skdiec", *map(str, arguments)]
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Jobs in the background of a shell inherit that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def test_command_line_is_there_before_what_takes_long_to_import():
    code = "import sys, skdiec.cli; print([name for name in ('torch', 'sklearn', 'pyarrow') if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(folder):
    out = folder.with_name("photos-clusters")
    process = start("cluster", folder, "-k", 3, "--epochs", 2)
    told = []
    for line in process.stderr:
        told.append(line)
        if line.startswith("searching"):
            process.send_signal(signal.SIGINT)
            break
    stdout, rest = process.communicate(timeout=120)
    assert told[0] == f"looking for images in {folder}\n"
    assert (process.returncode, stdout) == (130, "")
    command = f"skdiec cluster {folder} -k 3 --epochs 2"
    last = rest.splitlines()[-1]  # what was said of the search's speed may come before
    assert last == f"Error: stopped; what is done is kept in {out / '.work'}; go on with: {command}"
    weights = next((out / ".work").rglob("diffusion_pytorch_model.safetensors"))
    before = weights.stat().st_mtime_ns

    process = start(*shlex.split(command)[1:], "--json")
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0
    assert json.loads(stdout) == json.loads((out / SUMMARY_FILE).read_text())
    assert "training the head\n" in stderr
    assert stderr.count("ahead: at most ") == stderr.count("at the speed of the first 24 images, they take about ") == 1
    assert (
        stderr.index("ahead: at most ") < stderr.index("going on with the backbone") < stderr.index("at the speed of")
    )
    assert weights.stat().st_mtime_ns == before


# The documentation


def test_every_command_and_option_is_documented():
    page = (Path(skdiec.__file__).parents[1] / "docs" / "command-line.md").read_text()
    for name in ("cluster", "predict", "search", "report", "sample", "info", "pretrain"):
        assert f"\n## skdiec {name}\n" in page
        assert run(name, "--help").exit_code == 0
    options = set(re.findall(r"--[a-z-]+", run("cluster", "--help").stdout)) - {"--help", "--clusters"}
    assert len(options) > 12
    assert [option for option in sorted(options) if option not in page] == []
    assert run("--version").stdout == f"skdiec {skdiec.__version__}\n"
