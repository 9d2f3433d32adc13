import base64
import hashlib
import io
import json
import re
import shutil
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from scipy.spatial.distance import cdist
from sklearn.exceptions import NotFittedError

import skdiec
from skdiec.images import as_image_source
from skdiec.report import content, findings, maps, read_labels, thumbnails, words, write_report, writing
from skdiec.report.paths import short_names

GRID = {"layer": ["down_blocks.0", "mid_block"], "timestep": [50, 100], "pooling": [1, 2], "n_snapshots": 3}
EVIL = ["<script>alert(1)</script>.png", "</script><img src=x onerror=alert(2)>.png", '"; drop & "quote, comma.png']


class Page(HTMLParser):
    """The elements of a page, and the text of those that have an id."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.texts, self._open = [], {}, []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style", "title", "h1"):
            self._open.append(dict(attrs).get("id") or tag)

    def handle_endtag(self, tag):
        if tag in ("script", "style", "title", "h1"):
            self._open.pop()

    def handle_data(self, data):
        for name in self._open[-1:]:
            self.texts[name] = self.texts.get(name, "") + data

    @property
    def data(self):
        return json.loads(self.texts["data"])


def unpack(packed):
    return np.frombuffer(base64.b64decode(packed["data"]), dtype=f"<{packed['type']}").astype(np.int64)


def thumbnail(page, row, level=0):
    """The pixels of an image, cut out as the page does."""
    described = page.data["levels"][level]
    number, place = divmod(row, described["perSheet"])
    down, across = divmod(place, described["columns"])
    sheet = Image.open(io.BytesIO(base64.b64decode(page.texts[f"sheet-{level}-{number}"])))
    height, width = described["height"], described["width"]
    return np.asarray(sheet)[down * height : (down + 1) * height, across * width : (across + 1) * width]


@pytest.fixture(scope="module")
def images(planted):
    return planted(size=24)[0]


@pytest.fixture(scope="module")
def model(make_model, images):
    return make_model(**GRID).fit(images)


@pytest.fixture(scope="module")
def page(model, images, tmp_path_factory):
    return Page(write_report(model, images, tmp_path_factory.mktemp("report") / "report.html"))


@pytest.fixture
def folder(images, tmp_path):
    """Image files, some of them with names that are markup."""
    folder = tmp_path / "photos & <b>more</b>"
    (folder / "sub").mkdir(parents=True)
    names = [name.replace("/", "\u2215") for name in EVIL] + [
        f"sub/{row:02}.png" for row in range(len(EVIL), len(images))
    ]
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image).save(folder / name)
    return folder


# The file


def test_file_loads_nothing_and_runs_only_its_own_script(page):
    attributes = [(tag, name, value) for tag, found in page.elements for name, value in found.items()]
    assert [value for _, name, value in attributes if name in ("src", "srcset", "action", "style")] == []
    links = [value for _, name, value in attributes if name == "href"]
    assert links
    assert all(value.startswith("#") for value in links)
    assert [name for _, name, _ in attributes if name.startswith("on")] == []
    (policy,) = [found["content"] for tag, found in page.elements if found.get("http-equiv")]
    hashes = {
        name: "sha256-" + base64.b64encode(hashlib.sha256(page.texts[name].encode()).digest()).decode()
        for name in ("script", "style")
    }
    assert policy == (
        f"default-src 'none'; img-src data: blob:; style-src '{hashes['style']}'; script-src '{hashes['script']}'"
    )
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|import\(", page.texts["style"] + page.texts["script"])


def test_ids_are_unique_and_are_those_that_the_script_asks_for(page):
    ids = [found["id"] for _, found in page.elements if "id" in found]
    assert len(ids) == len(set(ids))
    asked = set(re.findall(r'\$\("([\w-]+)"\)', page.texts["script"]))
    assert len(asked) > 30
    assert asked <= set(ids)
    controls = {found["for"] for tag, found in page.elements if tag in ("label", "output") and "for" in found}
    assert controls <= set(ids)
    assert {found["href"][1:] for tag, found in page.elements if tag == "a"} <= set(ids)


def test_headline_says_how_many(page):
    assert re.sub(r"\s+", " ", page.texts["headline"]).strip() == "3 clusters in 72 images"
    assert page.texts["title"] == "Report · clusters"


def test_same_model_gives_the_same_file(model, images, page, tmp_path):
    one, other = (write_report(model, images, tmp_path / name) for name in ("one.html", "sub/other.html"))
    assert one.read_bytes() == other.read_bytes()
    assert Page(one).data["id"] == page.data["id"]
    renamed = write_report(model, images, tmp_path / "one.html", names=["a", "b", "c"])
    assert Page(renamed).data["id"] != page.data["id"]  # edits in the browser are kept by it


def test_global_generators_are_left_alone(model, images, tmp_path, rng_untouched):
    with rng_untouched():
        write_report(model, images, tmp_path / "report.html")


def test_arrays_of_the_fit_come_back(page, model):
    data = page.data
    assert_array_equal(unpack(data["leaf"]), model.fine_labels_)
    assert_array_equal(unpack(data["rivals"]).reshape(-1, 3)[:, 0], model.labels_)
    shares = unpack(data["shares"]).reshape(-1, 3) / 65535
    assert_allclose(shares[:, 0], model.probabilities_, atol=1e-5)
    assert_allclose(shares.sum(axis=1), 1, atol=3e-5)  # of three clusters, all are kept
    assert_allclose([height for *_, height in data["tree"]["merges"]], model.linkage_[:, 2], rtol=1e-4)
    assert_array_equal([merge[:2] for merge in data["tree"]["merges"]], model.linkage_[:, :2])
    assert_array_equal(np.array(data["tree"]["clusters"])[model.fine_labels_], model.labels_)
    distances = np.linalg.norm(model.embedding_ - model.cluster_centers_[model.labels_], axis=1)
    medians = np.array([np.median(distances[model.labels_ == cluster]) for cluster in range(3)])
    assert_allclose(unpack(data["distance"]) / 256, distances / medians[model.labels_], atol=0.003)


def test_places_on_the_map_come_back(page, model):
    expected = maps.draw_map(model.embedding_)
    packed = page.data["map"]
    found = np.array(packed["low"]) + unpack(packed).reshape(-1, 2) / 65535 * packed["width"]
    assert_allclose(found, expected, atol=1e-3 * np.ptp(expected))
    epochs = page.data["epochs"]
    assert epochs["epochs"] == list(model.snapshots_)
    assert_array_equal(unpack(epochs["rows"]), model.snapshot_rows_)
    moved = maps.project_epochs(model.embedding_, expected, model.snapshots_.values())
    packed = epochs["places"]
    found = np.array(packed["low"]) + unpack(packed).reshape(-1, 2) / 65535 * packed["width"]
    assert_allclose(found, moved.reshape(-1, 2), atol=1e-3 * np.ptp(moved))


def test_thumbnails_are_the_images(page, images):
    for row in (0, 1, 50, len(images) - 1):
        found = thumbnail(page, row).astype(float)
        assert found.shape == (8, 8, 3)
        assert np.abs(found.mean(axis=2) - images[row]).mean() < 12  # compressed


def test_page_says_on_what_the_best_representations_were_compared(make_model, model, images, tmp_path):
    mark = "the frame mark the chosen one"
    page = write_report(model, images, tmp_path / "plain.html").read_text("utf-8")
    assert f"{mark}.</p>" in page
    compared = make_model(**GRID, max_search_samples=20).fit(images)
    page = write_report(compared, images, tmp_path / "compared.html").read_text("utf-8")
    assert f"{mark}, the best of 4 at its timestep on {len(images)} images.</p>" in page


def test_scores_and_history_come_back(page, model):
    search, best = page.data["search"], model.search_result_.best
    row, column, pooling = search["best"]
    assert (search["layers"][row], search["timesteps"][column]) == (best.layer, best.timestep)
    assert search["poolings"][pooling] == best.pooling
    (round_,) = search["rounds"]
    assert round_["images"] == model.search_result_.n_images
    assert_allclose(np.array(round_["scores"]["scott"], dtype=float), model.search_result_.scores["scott"], rtol=1e-4)
    terms = page.data["history"]["terms"]
    assert terms["loss"][0] is None  # no epoch yet
    assert_allclose(terms["loss"][1:], model.history_["loss"][1:], rtol=1e-4)
    assert set(terms) == {"loss", "kl", "graph", "entropy", "denoising", "changed"}


def test_fit_without_snapshots_or_training_has_a_report(make_model, images, tmp_path):
    model = make_model(head=None).fit(images)
    page = Page(write_report(model, images, tmp_path / "report.html"))
    assert page.data["epochs"] is None
    assert page.data["history"]["terms"]["loss"] == [None]


def test_one_cluster_has_a_report(make_model, images, tmp_path):
    model = make_model(1).fit(images[:4])
    page = Page(write_report(model, images[:4], tmp_path / "report.html"))
    assert re.sub(r"\s+", " ", page.texts["headline"]).strip() == "1 cluster in 4 images"
    assert page.data["tree"] == {"merges": [], "clusters": [0]}
    assert_array_equal(unpack(page.data["shares"]), [65535] * 4)


# Names


def test_names_of_files_and_clusters_are_text_whatever_they_hold(make_model, folder, tmp_path):
    model = make_model().fit(folder)
    names = ["</script><script>alert(3)</script>", "<!--", "a & b"]
    path = write_report(model, folder, tmp_path / "report.html", names=names)
    page = Page(path)
    assert [found.get("id") for tag, found in page.elements if tag == "script"] == ["data", "sheet-0-0", None]
    assert {tag for tag, _ in page.elements}.isdisjoint({"img", "b>more<", "iframe"})
    assert page.data["paths"] == [file.relative_to(folder).as_posix() for file in model.files_]
    assert any("<script>" in name for name in page.data["paths"])
    assert page.data["names"] == names
    assert page.data["title"] == page.texts["title"].removesuffix(" · clusters") == folder.name
    assert "alert" not in page.texts["script"]
    assert "<b>more" not in path.read_text("utf-8")


def test_files_are_found_without_images(make_model, folder, tmp_path):
    model = make_model().fit(folder)
    page = Page(write_report(model, None, tmp_path / "report.html", title="Mine"))
    assert page.data["paths"] == short_names(model.files_)
    assert page.data["title"] == "Mine"
    with pytest.raises(ValueError, match=r"paths must be one for each of the 72 images; got \['a'\]"):
        write_report(model, folder, tmp_path / "report.html", paths=["a"])


def test_images_of_an_array_may_have_names(model, images, page, tmp_path):
    assert page.data["paths"] is None
    paths = [Path(f"a/{row}.png") for row in range(len(images))]
    named = Page(write_report(model, images, tmp_path / "report.html", paths=paths, names={1: "ones"}))
    assert named.data["paths"][5] == "a/5.png"
    assert named.data["names"] == ["", "ones", ""]


@pytest.mark.parametrize(
    ("files", "folder", "expected"),
    [
        (["/data/a/1.png", "/data/b/c/2.png"], None, ["a/1.png", "b/c/2.png"]),
        (["/data/a/1.png", "/data/a/2.png"], "/data", ["a/1.png", "a/2.png"]),
        (["/data/a/1.png", "/data/a/2.png"], None, ["1.png", "2.png"]),
        (["/data/1.png", "/else/2.png"], "/data", ["1.png", "/else/2.png"]),
        (["1.png", "/data/2.png"], None, ["1.png", "/data/2.png"]),
    ],
)
def test_short_names(files, folder, expected):
    assert short_names(files, folder) == expected


# Errors


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"X": None}, ValueError, "X must be the images of fit, since the model keeps none of them; got None"),
        ({"names": ["a"]}, ValueError, "names must be one for each of the 3 clusters; got 1"),
        ({"names": "abc"}, ValueError, "names must be strings, one for each of the 3 clusters; got 'abc'"),
        ({"names": {3: "a"}}, ValueError, "names must have clusters from 0 to 2 as keys; got 3"),
        ({"names": {"a": "b"}}, ValueError, "names must have clusters from 0 to 2 as keys; got 'a'"),
        ({"title": 3}, TypeError, "title must be a str or None; got 3"),
        ({"path": ""}, ValueError, "path must be the path of a file; got an empty one"),
        ({"path": 5}, TypeError, "path must be the path of a file; got 5"),
        ({"model": "m"}, TypeError, "model must be a DiffusionEmbeddedClustering; got 'm'"),
        ({"model": skdiec.DiffusionEmbeddedClustering()}, NotFittedError, "not fitted"),
    ],
)
def test_wrong_arguments_are_told_of_by_name(arguments, error, message, model, images, tmp_path):
    given = {"model": model, "X": images, "path": tmp_path / "report.html", **arguments}
    with pytest.raises(error, match=message):
        write_report(given.pop("model"), given.pop("X"), given.pop("path"), **given)
    assert list(tmp_path.iterdir()) == []


def test_other_images_and_tables_are_refused(model, make_model, images, tmp_path):
    with pytest.raises(ValueError, match="X must be the 72 images of fit; got 71"):
        write_report(model, images[1:], tmp_path / "report.html")
    with pytest.raises(ValueError, match="path must be the path of a file; got that of a folder, "):
        write_report(model, images, tmp_path)
    table = make_model().fit(images.reshape(len(images), -1))
    with pytest.raises(ValueError, match="X must be images to be shown; the model was fitted on a table"):
        write_report(table, images.reshape(len(images), -1), tmp_path / "report.html")


def test_files_of_another_fit_or_in_another_order_are_refused(make_model, folder, tmp_path):
    model = make_model().fit(folder)
    moved = folder.rename(tmp_path / "elsewhere")
    assert write_report(model, moved, tmp_path / "report.html").exists()
    model.files_ = ["C:\\photos\\" + Path(path).name for path in model.files_]  # fitted on Windows
    assert write_report(model, moved, tmp_path / "report.html").exists()
    with pytest.raises(
        ValueError, match=r"X must be the files of fit, in their order; file 0 is '.*', that of fit was"
    ):
        write_report(model, sorted(moved.rglob("*.png"), reverse=True), tmp_path / "other.html")
    first = sorted(moved.rglob("*.png"))[0]
    first.rename(first.with_name("zzz.png"))
    with pytest.raises(ValueError, match="X must be the files of fit"):
        write_report(model, moved, tmp_path / "other.html")
    assert not (tmp_path / "other.html").exists()


def test_place_that_cannot_be_written_is_told_of_before_the_work(model, images, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "gather", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"report.html cannot be written: "):
        write_report(model, images, tmp_path / "file" / "report.html")


def test_missing_jinja2_is_told_of_with_the_line_that_installs_it(model, images, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r'write_report needs jinja2: pip install "skdiec\[report\]"'):
        write_report(model, images, tmp_path / "report.html")


def test_report_that_cannot_be_written_leaves_what_was_there(model, images, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("skdiec.backbones.folders.os.fsync", full)
    with pytest.raises(OSError, match=r"report.html cannot be written: No space left on device"):
        write_report(model, images, path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


# Words


def test_warnings_are_explained_as_the_documentation_does():
    page = (Path(skdiec.__file__).parents[1] / "docs/warnings.md").read_text()
    page = re.sub(r"^## Of the command line\n.*?(?=^## )", "", page, flags=re.M | re.S)
    rows = re.findall(r'^\| "(.+?)" \| (.+?) \| (.+?) \|$', page, re.M)
    plain = {phrase: tuple(re.sub(r"\[(.+?)\]\(.+?\)|`", r"\1", text) for text in texts) for phrase, *texts in rows}
    assert {phrase: plain[phrase] for phrase in words.WARNINGS} == words.WARNINGS
    not_of_fit = {"these parameters are not saved", "images of the table of labels are not in X"}
    assert set(plain) - set(words.WARNINGS) == not_of_fit


def test_warnings_of_the_fit_are_shown_with_what_to_do(model, images, tmp_path):
    told = [
        "clusters have images: " + 500 * "1, ",
        "training collapsed <in epoch 3>",
        "something of another library",
        "training collapsed <in epoch 3>",
    ]
    changed = skdiec.DiffusionEmbeddedClustering()
    changed.__dict__ = {**vars(model), "warnings_": told}
    text = write_report(changed, images, tmp_path / "report.html").read_text("utf-8")
    assert text.count("Warning of the fit.") == 3
    assert 80 * "1, " in text
    assert 100 * "1, " not in text
    assert "training collapsed &lt;in epoch 3&gt;" in text
    assert text.count("What to do.</b> Raise gamma or lower alpha.") == 1


def fitted(**attributes):
    defaults = {"stability_": 0.95, "cut_over_noise_": 0.2, "probabilities_": np.array([0.5]), "n_clusters": 2}
    return SimpleNamespace(**{**defaults, "labels_": np.array([0, 1]), **attributes})


def members(shares):
    shares = np.array(shares, dtype=float)
    none = np.zeros((len(shares), 2), dtype=np.int64)
    return findings.Membership(np.tile(np.arange(shares.shape[1]), (len(shares), 1)), shares, none, none.astype(float))


def test_figures_are_graded():
    clear, unclear = [0.6, 0.3, 0.1], [0.4, 0.35, 0.25]
    found = words.figures(fitted(stability_=0.97), members([clear] * 9 + [unclear]))
    assert [(figure.name, figure.value, figure.grade) for figure in found] == [
        ("Clear images", "90 %", "good"),
        ("Stability", "0.97", "good"),
        ("Overlap", "0.20", "good"),
    ]
    assert "The mean probability is 0.50" in found[0].explanation
    found = words.figures(fitted(stability_=0.95, cut_over_noise_=0.91), members([clear, unclear, unclear]))
    assert [figure.grade for figure in found] == ["poor", "poor", "poor"]
    found = words.figures(fitted(stability_=np.nan, cut_over_noise_=0.7), members([clear] * 7 + [unclear] * 3))
    assert [figure.grade for figure in found] == ["fair", "fair"]
    (only,) = words.figures(fitted(stability_=np.nan, cut_over_noise_=np.nan), members([[1.0]]))
    assert (only.value, only.grade) == ("100 %", "good")


def scored(silhouette, modularity, n_clusters=(2, 3, 4, 5, 6, 7, 8, 9, 10)):
    counts = np.array(n_clusters)
    peaks = {"silhouette": silhouette, "modularity": modularity, "score": min(silhouette, modularity)}
    return {"n_clusters": counts, **{name: 1.0 / (1 + abs(counts - peak)) for name, peak in peaks.items()}}


@pytest.mark.parametrize(
    ("silhouette", "modularity", "cut", "grade", "verdict"),
    [
        (5, 6, 0.4, "good", "Two scores agree on it."),
        (8, 5, 0.4, "fair", "Two scores agree roughly: compare it with up to 8."),
        (3, 7, 0.4, "poor", "Two scores disagree, and point to numbers from 3 to 7; "),
        (10, 10, 0.4, "poor", "There may be more: no higher number was looked at"),
        (5, 5, 0.95, "poor", "There may be no clusters"),
        (5, 5, np.nan, "good", "Two scores agree on it."),
    ],
)
def test_number_that_was_found_is_graded(silhouette, modularity, cut, grade, verdict):
    chosen = min(silhouette, modularity)
    model = fitted(n_clusters_=chosen, n_clusters_scores_=scored(silhouette, modularity), cut_over_noise_=cut)
    found = words.figures(model, members([[0.6, 0.3, 0.1]]))[0]
    assert (found.name, found.value, found.grade) == ("Number of clusters", str(chosen), grade)
    assert found.verdict.startswith(verdict)
    assert f"silhouette is highest at {silhouette} clusters, modularity at {modularity}" in found.explanation


def test_number_that_was_not_found_is_not_graded():
    assert words.number_found(fitted()) is None
    nothing = {name: np.empty(0) for name in ("n_clusters", "silhouette", "modularity", "score")}
    assert words.number_found(fitted(n_clusters_=1, n_clusters_scores_=nothing)) is None


def test_progress_that_cannot_be_called_is_refused(model, images, tmp_path):
    with pytest.raises(ValueError, match="progress must be a callable or None; got 5"):
        write_report(model, images, tmp_path / "report.html", progress=5)
    assert not list(tmp_path.iterdir())


def test_progress_counts_the_thumbnails(model, images, tmp_path):
    told = []
    path = write_report(model, images, tmp_path / "report.html", progress=lambda *counts: told.append(counts))
    drawn = len(images) + sum(len(unpack(level["rows"])) for level in Page(path).data["levels"][1:])
    assert told == [(done, drawn) for done in range(1, drawn + 1)]


def test_curve_of_the_number_is_what_the_fit_has_found(page, make_model, images, tmp_path):
    assert page.data["number"] is None
    model = make_model("auto").fit(images)
    written = Page(write_report(model, images, tmp_path / "report.html"))
    number = written.data["number"]
    assert number["chosen"] == model.n_clusters_ == 3
    assert_array_equal(number["counts"], model.n_clusters_scores_["n_clusters"])
    for name in ("score", "silhouette", "modularity"):
        assert_allclose(number["scores"][name], model.n_clusters_scores_[name], rtol=1e-4)
    text = (tmp_path / "report.html").read_text("utf-8")
    assert text.count(words.number_found(model).verdict) == 2  # in the headline, and beside the curves


def test_lead_says_where_the_number_is_from():
    assert words.lead(fitted(), 0, 0) == "As many as were asked for; the tree below has every other number."
    assert words.lead(fitted(n_clusters="auto"), 1, 4).startswith("The fit has found this number itself")
    assert words.lead(fitted(n_clusters=5), 1, 4) == (
        "5 were asked for, but too few images differ. One image fits nowhere. 4 images have a near-duplicate."
    )


# Findings


def test_likeliness_of_a_cluster_is_its_probability_and_of_several_their_sum(model):
    found = findings.membership(model)
    probabilities = model._model.assign(model.embedding_)
    n_leaves = len(model.linkage_) + 1
    leaf_clusters = np.empty(n_leaves, dtype=int)
    leaf_clusters[model.fine_labels_] = model.labels_
    for chosen in ([0], [1, 2], [0, 1, 2]):
        whole = np.isin(np.arange(3), chosen)
        rows = np.flatnonzero(whole[model.labels_])
        inside, rival = found.likeliness(whole[leaf_clusters], whole, rows)
        assert_allclose(inside, probabilities[rows][:, whole].sum(axis=1), rtol=1e-9)
        others = probabilities[rows][:, ~whole]
        assert_allclose(rival, others.max(axis=1) if others.size else 0)


def test_likeliness_of_a_part_is_split_by_the_same_kernel(model):
    found = findings.membership(model)
    leaf = int(model.fine_labels_[0])
    cluster = model.labels_[0]
    own = np.unique(model.fine_labels_[model.labels_ == cluster])
    assert len(own) > 2
    means = np.stack([model.embedding_[model.fine_labels_ == one].mean(axis=0) for one in own])
    rows = np.flatnonzero(model.fine_labels_ == leaf)
    weights = 1 / (1 + cdist(model.embedding_[rows], means) ** 2)  # Student's kernel, nu = 1
    parts = weights / weights.sum(axis=1, keepdims=True)
    place = np.flatnonzero(own == leaf)[0]
    inside, rival = found.likeliness(np.arange(len(model.linkage_) + 1) == leaf, np.zeros(3, dtype=bool), rows)
    assert_allclose(inside, model.probabilities_[rows] * parts[:, place], rtol=1e-5)
    second = model.probabilities_[rows] * np.delete(parts, place, axis=1).max(axis=1)
    third = np.delete(model._model.assign(model.embedding_[rows]), cluster, axis=1).max(axis=1)
    assert_allclose(rival, np.maximum(second, third), rtol=1e-5)


def test_far_images_lie_beyond_the_outer_fence():
    rng = np.random.default_rng(0)
    z = np.concatenate([rng.normal(size=(200, 4)), rng.normal(size=(200, 4)) + 20]).astype(np.float32)
    labels = np.repeat([0, 1], 200)
    z[[3, 250]] = [[0, 0, 0, -30], [20, 20, 20, 40]]
    z[300] = [20, 20, 20, 70]
    probabilities = np.where(np.arange(400) == 300, 0.6, 0.4)  # one is far, but surely in its cluster
    model = SimpleNamespace(
        embedding_=z,
        labels_=labels,
        cluster_centers_=np.array([[0.0] * 4, [20.0] * 4]),
        probabilities_=probabilities,
    )
    rows, relative = findings.far_images(model)
    assert rows.tolist() == [3, 250]
    own = np.linalg.norm(z[:200], axis=1)
    assert_allclose(relative[3], 30 / np.median(own), rtol=1e-5)
    assert_allclose(np.median(relative[200:]), 1, rtol=1e-5)
    model.embedding_ = np.repeat([[0.0] * 4, [20.0] * 4], 200, axis=0)  # all in their centres
    assert len(findings.far_images(model)[0]) == 0


def test_near_duplicates_are_close_in_features_and_in_pixels():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(300, 8))
    sketches = rng.integers(0, 256, (300, 256), dtype=np.uint8)
    labels = np.repeat([0, 1, 2], 100)
    z[[50, 51]], sketches[[50, 51]] = z[10] + 1e-3, sketches[10]  # three alike
    sketches[51] = np.clip(sketches[10].astype(int) + rng.integers(-5, 6, 256), 0, 255)
    z[120], sketches[120] = z[130], 255 - sketches[130]  # only in features
    z[150], sketches[150] = z[160] + 10, sketches[160]  # only in pixels
    z[[210, 211]], sketches[[210, 211]] = z[220] + 1e-4, 7  # blank
    groups = findings.alike_images(z, labels, labels, sketches)
    assert [group.tolist() for group in groups] == [[10, 50, 51], [210, 211]]
    assert findings.alike_images(z[:1], labels[:1], labels[:1], sketches[:1]) == []


# Maps


def test_most_images_of_many_go_between_their_nearest_landmarks(monkeypatch):
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 60)
    z = (10 * np.eye(3)[labels] + rng.normal(size=(180, 3))).astype(np.float32)
    monkeypatch.setattr(maps, "MAX_LANDMARKS", 90)
    places = maps.draw_map(z, seed=3)
    rows = np.sort(np.random.default_rng(3).choice(180, 90, replace=False))
    monkeypatch.setattr(maps, "MAX_LANDMARKS", 1000)
    landmarks = places[rows]
    others = np.setdiff1d(np.arange(180), rows)
    distances = cdist(z[others], z[rows])
    near = np.argsort(distances, axis=1)[:, :3]
    weights = 1 / np.take_along_axis(distances, near, axis=1) ** 2
    expected = (weights[:, :, None] * landmarks[near]).sum(axis=1) / weights.sum(axis=1, keepdims=True)
    assert_allclose(places[others], expected, rtol=1e-3, atol=1e-3)
    centres = np.stack([places[labels == cluster].mean(axis=0) for cluster in range(3)])
    assert_array_equal(cdist(places, centres).argmin(axis=1), labels)


def test_epochs_are_mapped_linearly_and_come_close_to_the_map():
    rng = np.random.default_rng(0)
    z, directions = rng.normal(size=(200, 5)), rng.normal(size=(5, 2))
    first = rng.normal(size=(30, 5))
    moved = maps.project_epochs(z, z @ directions + 3, [first, z[:30]])
    assert moved.shape == (2, 30, 2)
    assert_allclose(moved[1], z[:30] @ directions + 3, atol=0.05)
    assert_allclose(moved[0], first @ directions + 3, atol=0.1)


@pytest.mark.parametrize("shape", [(2, 5), (3, 5), (9, 1), (5, 5), (1, 3)])
def test_few_rows_or_columns_have_a_map(shape):
    places = maps.draw_map(np.random.default_rng(0).normal(size=shape).astype(np.float32))
    assert places.shape == (shape[0], 2)
    assert np.isfinite(places).all()


@pytest.mark.parametrize("n", [60, maps.MAX_LANDMARKS + 10])
def test_equal_rows_lie_at_one_place(n):
    assert_array_equal(maps.draw_map(np.full((n, 5), 0.3, dtype=np.float32)), np.zeros((n, 2)))


# Thumbnails


@pytest.mark.parametrize(
    ("n", "side", "expected"),
    [(100, 64, 64), (100, 400, 128), (2000, 400, 128), (70_000, 28, 28), (70_000, 64, 28), (10_000_000, 64, 16)],
)
def test_thumbnails_are_as_large_as_all_together_allow(n, side, expected):
    source = as_image_source(np.zeros((2, side, side), dtype=np.uint8))
    pixels = max(thumbnails.MIN_PIXELS, min(thumbnails.MAX_SIDE**2, thumbnails.PIXELS / n))
    found, size = thumbnails.thumbnail_source(source, pixels)
    assert size == (expected, expected)
    assert found is source


def test_oblong_thumbnails_keep_their_form():
    source = as_image_source(np.zeros((2, 100, 400), dtype=np.uint8))
    assert thumbnails.thumbnail_source(source, 10_000)[1] == (50, 200)
    assert thumbnails.thumbnail_source(as_image_source(np.zeros((2, 2, 5000), dtype=np.uint8)), 16384)[1] == (1, 1024)


def test_files_are_shown_sharper_than_fit_has_seen_them(tmp_path):
    for name, size in (("a.png", (40, 40)), ("b.png", (60, 50)), ("c.png", (10, 10))):
        Image.new("RGB", size, "navy").save(tmp_path / name)
    source = as_image_source(tmp_path, image_shape=(8, 8))
    sharp, size = thumbnails.thumbnail_source(source, 128**2)
    assert size == (40, 40)  # most files are not enlarged
    images = list(thumbnails.images_of(sharp))
    assert [image.size for image in images] == [(40, 40)] * 3
    assert images[1].getpixel((20, 20)) == (0, 0, 128)


def test_deep_files_are_shown_within_their_range(tmp_path):
    values = np.linspace(0, 4095, 32 * 32).reshape(32, 32).astype(np.uint16)
    for name in ("a.png", "b.png"):
        Image.fromarray(values).save(tmp_path / name)
    source = as_image_source(tmp_path, image_shape=(8, 8), value_range=(0, 4095))
    sharp, _ = thumbnails.thumbnail_source(source, 128**2)
    for image in thumbnails.images_of(sharp):
        assert_allclose(np.asarray(image), values / 4095 * 255, atol=0.51)


def test_sheets_have_each_image_in_its_place(monkeypatch):
    monkeypatch.setattr(thumbnails, "_SHEET_SIDE", 32)
    colors = np.linspace(0, 250, 37).astype(np.uint8)
    sheets = thumbnails.Sheets(8, 10)
    for color in colors:
        sheets.add(Image.new("L", (20, 16), int(color)))
    sheets.close()
    assert (sheets.columns, sheets.per_sheet, len(sheets.pictures)) == (3, 12, 4)
    sizes = [Image.open(io.BytesIO(picture)).size for picture in sheets.pictures]
    assert sizes == [(30, 32)] * 3 + [(10, 8)]
    for row in (0, 13, 36):
        sheet = Image.open(io.BytesIO(sheets.pictures[row // 12])).convert("L")
        down, across = divmod(row % 12, 3)
        assert abs(sheet.getpixel((10 * across + 5, 8 * down + 4)) - int(colors[row])) <= 4


def test_of_too_many_images_some_have_thumbnails_and_those_shown_first_are_sharp(model, images, tmp_path, monkeypatch):
    monkeypatch.setattr(content, "PIXELS", 20 * 64)
    monkeypatch.setattr(content, "MIN_PIXELS", 64)
    monkeypatch.setattr(content, "_TYPICAL", 2)
    page = Page(write_report(model, images, tmp_path / "report.html"))
    small, sharp = page.data["levels"]
    assert len(unpack(small["rows"])) == 20
    shown = unpack(sharp["rows"])
    for cluster in range(3):
        rows = np.flatnonzero(model.labels_ == cluster)
        surest = rows[np.argsort(-np.rint(65535 * model.probabilities_[rows]), kind="stable")[:2]]
        assert set(surest) <= set(shown)
    row = int(np.flatnonzero(shown == surest[0])[0])
    assert np.abs(thumbnail(page, row, level=1).mean(axis=2) - images[surest[0]]).mean() < 12


def test_without_webp_sheets_are_jpeg(monkeypatch):
    monkeypatch.setattr(thumbnails.features, "check", lambda name: False)
    sheets = thumbnails.Sheets(8, 8)
    sheets.add(Image.new("L", (8, 8), 200))
    sheets.close()
    assert Image.open(io.BytesIO(sheets.pictures[0])).format == "JPEG"


# Labels


def write_table(path, *lines):
    path.write_text("path,cluster,name\n" + "".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_labels_of_an_array_keep_their_order(tmp_path):
    labels, names = read_labels(
        write_table(tmp_path / "t.csv", "0,2,dogs", "1,,", '2,0,"cats, small"', "3,2,", "4,-1,")
    )
    assert_array_equal(labels, [1, -1, 0, 1, -1])
    assert labels.dtype == np.int32
    assert names == ("cats, small", "dogs")


def test_labels_are_those_of_the_files(folder, tmp_path):
    lines = ['"""; drop & ""quote, comma.png",1,', "sub/04.png,0,first", f"{folder / 'sub/05.png'},1,", "sub/06.png,,"]
    table = write_table(tmp_path / "t.csv", *lines)
    labels, names = read_labels(table, folder)
    files = sorted(folder.rglob("*.png"), key=str)
    known = {file.name: label for file, label in zip(files, labels, strict=True) if label >= 0}
    assert known == {'"; drop & "quote, comma.png': 1, "04.png": 0, "05.png": 1}
    assert names == ("first", "")
    assert_array_equal(read_labels(table, files)[0], labels)
    moved = shutil.copytree(folder, tmp_path / "moved")
    labels = read_labels(write_table(tmp_path / "t.csv", *lines[:2]), moved)[0]
    assert np.sum(labels >= 0) == 2


def test_labels_of_images_that_are_gone_are_warned_of(folder, tmp_path):
    table = write_table(tmp_path / "t.csv", "sub/04.png,0,", "gone.png,1,", "sub/05.png,1,")
    message = r"1 images of the table of labels are not in X, such as 'gone.png'"
    with pytest.warns(UserWarning, match=message):
        labels, _ = read_labels(table, folder)
    assert np.sum(labels >= 0) == 2


def test_tables_of_spreadsheets_and_with_other_columns_are_read(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbfcluster;probability;path\r\n1.0;0,5;a\r\n 0 ;0,25;b\r\n;;c\r\n")
    labels, names = read_labels(path)
    assert_array_equal(labels, [1, 0, -1])
    assert names == ("", "")


def test_empty_values_after_the_last_column_are_none(tmp_path):
    (tmp_path / "t.csv").write_text("path,cluster\na,0,,\nb,1,\n")
    assert_array_equal(read_labels(tmp_path / "t.csv")[0], [0, 1])


def test_cluster_is_called_as_most_of_its_rows_have_it(tmp_path):
    table = write_table(tmp_path / "t.csv", "a,1,oak", "b,0,oak", "c,0,ash", "d,0,ash", "e,1,oak")  # b was moved
    assert read_labels(table)[1] == ("ash", "oak")
    rows = [f"{row},0," for row in range(20)]
    assert read_labels(write_table(tmp_path / "t.csv", *rows, "a,1,oak", "b,0,oak", "c,1,oak"))[1] == ("", "oak")
    assert read_labels(write_table(tmp_path / "t.csv", "a,0,oak", "b,1,oak", "c,1,oak"))[1] == ("oak", "oak")


def test_numbers_of_any_length_and_columns_that_are_not_read_will_do(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(f"path,label,note,Note\na,{'9' * 5000},x,y\nb,07,,\nc,10,,\n")
    labels, _ = read_labels(path)
    assert_array_equal(labels, [2, 0, 1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", r"the columns path and cluster, or path and label; got .* with \['a', 'b'\]"),
        ("", "path must be a CSV file with the columns path and cluster"),
        ("path,cluster\na,0\nb,x\n", "whole numbers from 0 as clusters, .*; line 3 of .* has 'x'"),
        ('path,cluster\na,"0\n', "path must be a CSV file; .* is none: unexpected end of data"),
        ("path,cluster\na,\0\n", "path must be a CSV file; .* is none: it has bytes that are no text"),
        ("path,cluster\na,-2\n", "line 2 of .* has '-2'"),
        ("path,cluster\na,0.5\n", "line 2 of .* has '0.5'"),
        ("path,label\nx,y.png,cats\n", "line 2 has more values than there are columns; quote those with a ','"),
        ("path,cluster,Cluster\na,0,1\n", "it has two columns 'cluster'"),
        ("path,cluster\na,\n", "path must be a table with a cluster for some image; .* has none"),
    ],
)
def test_tables_that_are_none_are_refused(text, message, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_labels(path)


def test_labels_of_other_images_are_refused(folder, tmp_path):
    table = write_table(tmp_path / "t.csv", "one.png,0,")
    with pytest.raises(ValueError, match="path must name images of X; none of the 72 files is in"):
        read_labels(table, folder)
    with pytest.raises(ValueError, match="X must be a folder or a sequence of paths, or None for images of an array"):
        read_labels(table, np.zeros((3, 8, 8)))


def test_an_image_has_one_cluster(folder, tmp_path):
    lines = ["sub/04.png,0,", "sub/04.png,0,", "sub/05.png,1,"]
    assert np.sum(read_labels(write_table(tmp_path / "t.csv", *lines), folder)[0] >= 0) == 2
    table = write_table(tmp_path / "t.csv", *lines, "sub/./05.png,0,")
    with pytest.raises(ValueError, match=r"each image one cluster; .* has 'sub/./05.png' in '1' and in '0'"):
        read_labels(table, folder)
    with pytest.raises(ValueError, match=r"each image one cluster; .* has 'sub/./05.png' in '1' and in '0'"):
        read_labels(table)


@pytest.mark.parametrize("path", [None, 3])
def test_labels_are_read_from_a_file(path, tmp_path):
    with pytest.raises(ValueError, match=f"path must be a CSV file; got {path}"):
        read_labels(path)
    with pytest.raises(ValueError, match="path must be a CSV file; got"):
        read_labels(tmp_path)


def test_clusters_may_be_names(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(" Path ;Label\na;oak\nb;ash\nc;-1\nd;7\n")
    labels, names = read_labels(path)
    assert_array_equal(labels, [2, 1, -1, 0])
    assert names == ("7", "ash", "oak")
    path.write_text("path,cluster,name\na,oak,Oak\nb,ash,\n")
    labels, names = read_labels(path)
    assert_array_equal(labels, [1, 0])
    assert names == ("ash", "Oak")


def test_labels_start_the_next_fit(make_model, folder, tmp_path):
    model = make_model().fit(folder)
    names = short_names(model.files_, folder)
    clusters = [str(label) for label in (model.labels_ + 1) % 3]
    clusters[7] = ""
    table = tmp_path / "t.csv"
    quoted = ['"' + name.replace('"', '""') + '"' for name in names]
    write_table(table, *(f"{name},{cluster}," for name, cluster in zip(quoted, clusters, strict=True)))
    labels, found = read_labels(table, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = make_model(len(found), init=labels, head=None).fit(folder)
    assert_array_equal(np.delete(again.initial_labels_, 7), np.delete((model.labels_ + 1) % 3, 7))
    assert again.initial_labels_[7] == (model.labels_[7] + 1) % 3
