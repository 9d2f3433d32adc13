"""The report in a real browser: Chromium without a window, driven by playwright."""

import os
import re
import shutil

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from test_report import EVIL, GRID, Page, unpack

from skdiec.report import read_labels, write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"no browser is installed: none of {', '.join(NAMES)}")

WIDE = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def folder(planted, tmp_path_factory):
    """Image files of three clusters, some of them with names that are markup."""
    folder = tmp_path_factory.mktemp("files") / "photos"
    folder.mkdir()
    images, _ = planted(size=24)
    names = [name.replace("/", "\u2215") for name in EVIL]
    names += [f"image {row:02}.png" for row in range(len(EVIL), len(images))]
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def model(make_model, folder):
    return make_model(**GRID).fit(folder)


@pytest.fixture(scope="module")
def report(model, folder, tmp_path_factory):
    names = ["</script><script>alert(3)</script>", "", ""]
    return write_report(model, folder, tmp_path_factory.mktemp("report") / "report.html", names=names)


@pytest.fixture(scope="module")
def data(report):
    return Page(report).data


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as driver:
        # Chromium has no sandbox for root, which containers and CI mostly run as.
        arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def open_report(browser, report):
    """Opens a report, by default that of `model`; keywords are those of a browser's context.

    Nothing may be told of in its console.
    """
    told, contexts = [], []

    def open_report(file=report, *, before="", **settings):
        context = browser.new_context(**{"viewport": WIDE, "reduced_motion": "reduce", **settings})
        contexts.append(context)
        if before:
            context.add_init_script(before)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("dialog", lambda dialog: (told.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: None if request.url.startswith(("file:", "data:", "blob:")) else
                told.append(request.url))  # fmt: skip
        page.goto(file.as_uri())
        page.locator("html[data-ready]").wait_for()
        return page

    yield open_report
    for context in contexts:
        context.close()
    assert told == []


@pytest.fixture
def page(open_report):
    return open_report()


def sizes(page):
    return page.locator(".card").evaluate_all("cards => cards.map((card) => Number(card.dataset.size))")


def labels_of(page, tmp_path, X):
    """What "Download labels" saves, as the next fit reads it."""
    with page.expect_download() as download:
        page.locator(".dock [data-do=download]").click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    assert path.name == "labels.csv"
    return read_labels(path, X)


def pixels(canvas):
    """The grey values of a canvas."""
    canvas.and_(canvas.page.locator("[data-drawn]")).wait_for()
    found = canvas.evaluate(
        "(c) => [c.width, c.height, ...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    )
    return np.array(found[2:]).reshape(found[1], found[0], 4)[:, :, :3].mean(axis=2)


def assert_shows(canvas, file):
    assert np.abs(pixels(canvas) - np.asarray(Image.open(file)).astype(float)).mean() < 12  # compressed


def lonely_row(data):
    """The image whose point is the furthest from all others."""
    places = unpack(data["map"]).reshape(-1, 2)
    distances = np.linalg.norm(places[:, None] - places[None], axis=2) + np.diag(np.full(len(places), np.inf))
    return int(distances.min(axis=1).argmax())


def show_map(page):
    page.evaluate("document.getElementById('canvas').scrollIntoView({block: 'center'})")
    page.wait_for_timeout(100)  # scrolling hides the hint


def point_at(page, row):
    show_map(page)
    x, y = page.evaluate("(row) => document.getElementById('canvas').placeOf(row)", row)
    page.mouse.move(x, y)


def test_report_opens_with_the_clusters_of_the_fit(page, model):
    assert sizes(page) == np.bincount(model.labels_).tolist()
    assert page.locator("#count").inner_text() == "3 clusters"
    assert page.locator("#undo").is_disabled()
    assert page.locator(".figure").count() == 3


def test_sheets_show_typical_and_borderline_images(page, model):
    card = page.locator(".card").nth(1)
    rows = np.flatnonzero(model.labels_ == 1)
    typical, borderline = (
        card.locator(f".strip >> nth={place} >> .thumb").evaluate_all(
            "all => all.map((one) => Number(one.dataset.row))"
        )
        for place in (0, 1)
    )
    assert len(typical) == 12
    surest = np.sort(model.probabilities_[rows])[::-1]
    assert_allclose(model.probabilities_[typical], surest[:12], atol=2e-5)
    probabilities = model._model.assign(model.embedding_)
    margin = probabilities[:, 1] - np.delete(probabilities, 1, axis=1).max(axis=1)
    assert set(borderline).isdisjoint(typical)
    assert_allclose(
        np.sort(margin[borderline]), np.sort(margin[np.setdiff1d(rows, typical)])[: len(borderline)], atol=5e-5
    )
    thumb = card.locator(".thumb").first
    thumb.scroll_into_view_if_needed()
    assert_shows(thumb.locator("canvas"), model.files_[typical[0]])


def test_slider_cuts_the_tree_and_sheets_and_map_follow(page, model, folder, tmp_path):
    page.locator("#k").focus()
    page.keyboard.press("End")
    n_leaves = len(model.linkage_) + 1
    assert len(sizes(page)) == n_leaves
    page.keyboard.press("Home")
    assert sizes(page) == [72]
    for count in (2, 3, 4, 5):
        page.keyboard.press("ArrowRight")
        expected = model.labels_at(count)
        assert sizes(page) == np.bincount(expected).tolist()
        assert page.locator("#legend button").count() == count
        assert page.locator("#count").inner_text() == f"{count} clusters"
        assert_array_equal(labels_of(page, tmp_path, folder)[0], expected)
        page.locator("#k").focus()
    page.locator("#undo").click()  # moves in a row are one step
    assert len(sizes(page)) == 3


def test_tree_is_cut_where_it_is_pointed_at(page):
    tree = page.locator("#tree")
    tree.scroll_into_view_if_needed()
    tree.click(position={"x": 100, "y": 3})
    assert sizes(page) == [72]
    assert tree.get_attribute("aria-label") == "Tree of clusters, cut at 1 cluster"
    assert page.locator("#tree-note").inner_text() == "All images in one cluster."


def test_hover_shows_the_image_its_name_and_its_cluster(page, model, data):
    row = lonely_row(data)
    point_at(page, row)
    tip = page.locator("#tip")
    tip.wait_for()
    assert tip.get_attribute("data-row") == str(row)
    assert data["paths"][row] in tip.inner_text()
    assert_shows(tip.locator("canvas").first, model.files_[row])
    cluster = model.labels_[row]
    assert (data["names"][cluster] or f"Cluster {cluster}") in tip.inner_text()
    page.mouse.move(5, 5)
    tip.wait_for(state="hidden")


def test_points_lie_as_in_the_map_after_zoom_too(page, data):
    show_map(page)
    places = unpack(data["map"]).reshape(-1, 2)
    page.locator("#canvas").focus()
    for _ in range(2):
        found = np.array(
            page.evaluate("Array.from({length: 72}, (_, row) => document.getElementById('canvas').placeOf(row))")
        )
        a, b = places[:, 0].argmin(), places[:, 0].argmax()
        scale = (found[b, 0] - found[a, 0]) / (places[b, 0] - places[a, 0])
        assert_allclose(found[:, 0] - found[a, 0], scale * (places[:, 0] - places[a, 0]), atol=0.2)
        assert_allclose(found[:, 1] - found[a, 1], -scale * (places[:, 1] - places[a, 1]), atol=0.2)
        page.mouse.move(*found[a])
        page.mouse.wheel(0, -400)
        page.wait_for_timeout(100)
        assert_allclose(
            page.evaluate("(row) => document.getElementById('canvas').placeOf(row)", int(a)), found[a], atol=1
        )


def test_wheel_scrolls_past_the_map_until_it_is_clicked(page):
    show_map(page)
    box = page.locator("#canvas").bounding_box()
    apart = """() => {
      const [a, b] = [0, 1].map((row) => document.getElementById("canvas").placeOf(row));
      return a[0] - b[0];
    }"""
    before, top = page.evaluate(apart), page.evaluate("scrollY")
    page.mouse.move(box["x"] + 4, box["y"] + 4)
    page.mouse.wheel(0, 60)
    page.wait_for_timeout(200)
    assert page.evaluate(apart) == pytest.approx(before)
    assert page.evaluate("scrollY") > top
    page.mouse.click(box["x"] + 4, box["y"] + 4)
    top = page.evaluate("scrollY")
    page.mouse.wheel(0, -200)
    page.wait_for_timeout(200)
    assert abs(page.evaluate(apart)) > 1.2 * abs(before)
    assert page.evaluate("scrollY") == top


def test_map_is_dragged(page):
    show_map(page)
    before = page.evaluate("document.getElementById('canvas').placeOf(0)")
    box = page.locator("#canvas").bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    page.mouse.move(box["x"] + 45, box["y"] + 25, steps=4)
    page.mouse.up()
    assert_allclose(page.evaluate("document.getElementById('canvas').placeOf(0)"), np.add(before, [40, 20]), atol=0.5)
    assert not page.locator("#viewer").is_visible()
    page.locator("#zoom-all").click()
    assert_allclose(page.evaluate("document.getElementById('canvas').placeOf(0)"), before, atol=0.5)


def test_epochs_move_the_points(page, model, data):
    page.get_by_text("Over the epochs").click()
    epochs, last = data["epochs"], len(data["epochs"]["epochs"]) - 1
    assert page.locator("#epoch-value").inner_text() == "0, before training"
    places = unpack(epochs["places"]).reshape(last + 1, -1, 2)
    page.locator("#epoch").focus()
    for key, shown in (("Home", 0), ("End", last)):
        page.keyboard.press(key)
        found = np.array(
            page.evaluate("Array.from({length: 72}, (_, row) => document.getElementById('canvas').placeOf(row))")
        )
        spread = np.ptp(found, axis=0) / np.ptp(places[shown], axis=0)
        assert_allclose(spread, spread[0], rtol=1e-3)
        wanted = places[shown] * [spread[0], -spread[0]]
        assert_allclose(found - found[0], wanted - wanted[0], atol=0.3)
    assert page.locator("#epoch-value").inner_text() == str(list(model.snapshots_)[-1])


def test_search_finds_files_by_name(page, data):
    page.locator("#query").fill("IMAGE 1")
    wanted = [name for name in data["paths"] if "image 1" in name]
    assert page.locator("#hits").inner_text() == f"{len(wanted)} images"
    assert page.locator("#results li").count() == len(wanted) == 10
    page.locator("#query").fill("<script>")
    assert page.locator("#hits").inner_text() == "1 image"
    assert page.locator("#results button").get_attribute("title") == EVIL[0].replace("/", "\u2215")
    page.keyboard.press("Enter")
    assert page.locator("#tip").get_attribute("data-row") == str(data["paths"].index(EVIL[0].replace("/", "\u2215")))
    page.locator("#query").fill("nothing of that name")
    assert page.locator("#hits").inner_text() == "0 images"
    assert page.locator("#results").is_hidden()


def test_edits_come_back_as_the_start_of_the_next_fit(page, model, make_model, folder, tmp_path):
    names = page.locator(".name")
    assert names.first.input_value() == "</script><script>alert(3)</script>"
    names.nth(1).fill('dogs, "big"')
    names.nth(1).press("Enter")
    others = page.locator(".card").nth(1).locator("select")
    others.focus()
    others.select_option(label="Cluster 2")
    expected = np.minimum(model.labels_, 1)
    labels, found = labels_of(page, tmp_path, folder)
    assert_array_equal(labels, expected)
    assert found == ("</script><script>alert(3)</script>", 'dogs, "big"')

    page.locator(".card").first.get_by_role("button", name="Split").click()
    first_leaves = np.unique(model.fine_labels_[model.labels_ == 0])
    top = max(node for node in range(len(model.linkage_)) if set(leaves(model, node)) <= set(first_leaves))
    children = [set(leaves(model, int(node) - len(model.linkage_) - 1)) for node in model.linkage_[top, :2]]
    children.sort(key=min)
    split = np.select([np.isin(model.fine_labels_, list(child)) for child in children], [0, 1], 2)
    assert_array_equal(labels_of(page, tmp_path, folder)[0], split)

    thumb = page.locator(".card").nth(2).locator(".thumb").nth(3)
    row = int(thumb.get_attribute("data-row"))
    thumb.focus()
    page.keyboard.press("x")
    assert "marked as wrong" in thumb.get_attribute("aria-label")
    assert page.locator("#wrong .thumb").count() == 1
    split[row] = -1
    labels, found = labels_of(page, tmp_path, folder)
    assert_array_equal(labels, split)
    again = make_model(len(found), init=labels, head=None).fit(folder)
    assert_array_equal(np.delete(again.initial_labels_, row), np.delete(split, row))

    for left in (split.clip(0), expected, model.labels_):
        page.locator("#undo").click()
        found = labels_of(page, tmp_path, folder)[0]
        assert_array_equal(found, np.where(np.arange(72) == row, found[row], left))
    assert page.locator(".card").count() == 3


def leaves(model, merge):
    """The fine clusters below a merge; of a leaf, which has a negative number, itself."""
    n_leaves = len(model.linkage_) + 1
    if merge < 0:
        return [merge + n_leaves]
    return [leaf for node in model.linkage_[merge, :2] for leaf in leaves(model, int(node) - n_leaves)]


def test_edits_survive_a_reload_until_all_is_reset(page):
    page.locator("#k").focus()
    page.keyboard.press("ArrowRight")
    page.locator(".name").first.fill("kept")
    page.locator(".name").first.press("Enter")
    page.reload()
    page.locator("html[data-ready]").wait_for()
    assert page.locator(".card").count() == 4
    assert page.locator(".name").first.input_value() == "kept"
    page.get_by_role("button", name="Start over").click()
    assert page.locator(".card").count() == 3
    page.keyboard.press("Control+z")
    assert page.locator(".name").first.input_value() == "kept"


@pytest.mark.parametrize(
    "before",
    [
        "Object.defineProperty(window, 'localStorage', { get() { throw new Error('none') } })",
        'Storage.prototype.getItem = () => \'{"groups": [[0, 1]], "names": [], "wrong": []}\'',
        "Storage.prototype.getItem = () => 'no JSON'",
    ],
)
def test_report_opens_where_nothing_is_kept_or_what_is_kept_does_not_fit(before, open_report):
    assert open_report(before=before).locator(".card").count() == 3


def test_keyboard_reaches_everything(page, data):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('thumb')"):
            break
    thumbs = page.locator(".card").first.locator(".strip").first.locator(".thumb")
    assert thumbs.nth(0).evaluate("(own) => own === document.activeElement")
    assert thumbs.nth(0).evaluate("(own) => getComputedStyle(own).outlineStyle") == "solid"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert thumbs.nth(7).evaluate("(own) => own === document.activeElement")  # rows of six
    page.keyboard.press("Enter")
    viewer = page.locator("#viewer")
    name = viewer.locator("h3")
    row = int(thumbs.nth(7).get_attribute("data-row"))
    assert name.inner_text() == data["paths"][row]
    page.keyboard.press("ArrowRight")
    assert name.inner_text() == data["paths"][int(thumbs.nth(8).get_attribute("data-row"))]
    page.keyboard.press("Escape")
    viewer.wait_for(state="hidden")
    assert thumbs.nth(7).evaluate("(own) => own === document.activeElement")
    page.keyboard.press("Tab")  # leaves the strip
    assert not thumbs.nth(8).evaluate("(own) => own === document.activeElement")


def test_map_is_walked_by_keyboard(page, data):
    canvas = page.locator("#canvas")
    canvas.focus()
    page.keyboard.press("ArrowRight")
    first = int(page.locator("#tip").get_attribute("data-row"))
    page.keyboard.press("ArrowRight")
    second = int(page.locator("#tip").get_attribute("data-row"))
    places = unpack(data["map"]).reshape(-1, 2)
    assert places[second, 0] > places[first, 0]
    assert data["paths"][second] in page.locator("#live").inner_text()
    page.keyboard.press("Enter")
    assert page.locator("#viewer h3").inner_text() == data["paths"][second]


def test_all_images_of_a_cluster_are_listed_in_each_order(page, model):
    page.locator(".card").first.get_by_role("button", name="All").click()
    rows = page.locator("#all-strip .thumb").evaluate_all("all => all.map((one) => Number(one.dataset.row))")
    members = np.flatnonzero(model.labels_ == 0)
    assert sorted(rows) == members.tolist()
    assert np.all(np.diff(model.probabilities_[rows]) <= 2e-5)
    page.locator("#all-order").select_option("far")
    rows = page.locator("#all-strip .thumb").evaluate_all("all => all.map((one) => Number(one.dataset.row))")
    distances = np.linalg.norm(model.embedding_ - model.cluster_centers_[model.labels_], axis=1)[rows]
    assert np.all(np.diff(distances) <= 0.005 * distances.max())


def test_heat_map_marks_the_chosen_representation(page, model):
    best, scores = model.search_result_.best, model.search_result_.scores["consensus"]
    cell = page.locator("#heat td.best")
    row, column, pooling = model.search_result_.position(best)
    assert cell.get_attribute("title").startswith(f"{best.layer}, timestep {best.timestep}: ")
    assert float(re.search(r"[\d.]+", cell.inner_text()).group()) == pytest.approx(
        scores[row, column, pooling], rel=0.01
    )
    page.locator("#pooling").select_option(index=1 - pooling)
    assert page.locator("#heat td.best").count() == 0
    assert page.locator("#curves .curve").count() == 5


def test_curves_of_the_number_mark_the_chosen_one(open_report, make_model, folder, tmp_path):
    model = make_model("auto").fit(folder)
    page = open_report(write_report(model, folder, tmp_path / "report.html"))
    scores = model.n_clusters_scores_
    curves = page.locator("#number .curve")
    assert [curve.is_visible() for curve in curves.all()] == [True, True, True]
    titles = {"score": "score of both", "silhouette": "silhouette", "modularity": "modularity"}
    for curve, (name, title) in zip(curves.all(), titles.items(), strict=True):
        best = scores["n_clusters"][scores[name].argmax()]
        label = curve.locator("svg").get_attribute("aria-label")
        assert label.lower().startswith(f"{title} of 2 to {scores['n_clusters'][-1]} clusters, highest at {best};")
        assert label.endswith(f"; {model.n_clusters_} were chosen")
        points = curve.locator("circle")
        assert points.count() == len(scores["n_clusters"])
        said = points.locator("title").first.text_content().removeprefix("2 clusters: ")
        assert float(said) == pytest.approx(scores[name][0], rel=5e-3, abs=5e-4)
        # The line stands at the point of the chosen number, the mark on the highest one.
        chosen = points.nth(int(np.flatnonzero(scores["n_clusters"] == model.n_clusters_)[0]))
        line = curve.locator(".mark-line")
        assert float(line.get_attribute("x1")) == pytest.approx(float(chosen.get_attribute("cx")), abs=0.1)
        heights = [float(point.get_attribute("cy")) for point in points.all()]
        assert heights[scores[name].argmax()] == min(heights) == float(curve.locator(".best").get_attribute("cy"))
    assert page.locator(".figure", has_text="Number of clusters").locator("strong").inner_text() == "3"


def test_no_curve_of_a_number_that_was_asked_for(page):
    assert page.locator("#number").is_hidden()
    assert page.locator("#number").inner_html().strip() == ""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_on_a_phone(scheme, open_report):
    page = open_report(viewport=PHONE, color_scheme=scheme, has_touch=True, is_mobile=True)
    page.locator("#query").fill("image")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.locator(".card .thumb").first.tap()
    box = page.locator("#viewer").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    page.keyboard.press("Escape")
    small = page.locator("button:visible:not(.thumb), select:visible").evaluate_all(
        "all => all.filter((one) => one.getBoundingClientRect().height < 28).map((one) => one.outerHTML)"
    )
    assert small == []  # for fingers


CONTRASTS = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  const luminance = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const own = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || !own.checkVisibility() || own.closest(":disabled, script, option, .hidden, svg")) continue;
    let ground = own;
    while (ground && (parse(getComputedStyle(ground).backgroundColor)[3] ?? 1) < 1) ground = ground.parentElement;
    const colors = [getComputedStyle(own).color, getComputedStyle(ground ?? document.body).backgroundColor].map(parse);
    const [one, other] = colors.map(luminance).sort((a, b) => b - a);
    const isLarge = parseFloat(getComputedStyle(own).fontSize) >= 24;
    found.push([text, (one + 0.05) / (other + 0.05) / (isLarge ? 3 : 4.5)]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(scheme, open_report):
    page = open_report(color_scheme=scheme)
    page.locator("summary").click()
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert np.mean([int(value) for value in re.findall(r"\d+", ground)[:3]]) > 200 or scheme == "dark"
    assert np.mean([int(value) for value in re.findall(r"\d+", ground)[:3]]) < 50 or scheme == "light"
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 100
    assert [(text, ratio) for text, ratio in contrasts if ratio < 1] == []  # AA


def test_controls_have_names_and_images_have_texts(page):
    unnamed = page.locator("button, input, select, canvas, svg").evaluate_all(
        """all => all.filter((one) => !one.closest("[aria-hidden=true], .thumb canvas, .view, .tip")
            && !(one.getAttribute("aria-label") || one.textContent.trim() || one.labels?.length
                || one.closest("button")?.getAttribute("aria-label") || one.getAttribute("aria-labelledby")))
            .map((one) => one.outerHTML)"""
    )
    assert unnamed == []
    assert page.locator("h1").count() == 1
    roles = page.locator("#canvas").get_attribute("role"), page.locator("#live").get_attribute("role")
    assert roles == ("application", "status")


def test_printed_page_has_the_sheets_and_no_controls(page):
    page.emulate_media(media="print")
    assert page.locator(".dock").is_hidden()
    assert page.locator(".card .buttons").first.is_hidden()
    assert page.locator(".card").count() == 3
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.locator(".thumb canvas[data-drawn]").last.wait_for(state="attached")
    drawn = page.locator(".cards .thumb canvas[data-drawn]").count()
    assert drawn == page.locator(".cards .thumb").count()
    assert page.pdf().startswith(b"%PDF")
