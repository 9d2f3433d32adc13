import itertools
import subprocess
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from sklearn.exceptions import NotFittedError
from sklearn.manifold import trustworthiness

from skdiec import Pretraining
from skdiec.plotting import (
    ClusterDisplay,
    EmbeddingDisplay,
    HistoryDisplay,
    SearchDisplay,
    TreeDisplay,
    clusters,
    common,
    embedding,
)

SEARCHED = {"layer": ["conv_in", "mid_block"], "timestep": (50, 20, 300), "pooling": (2, 1)}
KEPT = {"n_snapshots": 3, "max_epochs": 4, "warmup_epochs": 4, "tol": 0.0}


@pytest.fixture(autouse=True)
def open_figures():
    """Counts figures that a test opened in pyplot, and closes them."""
    before = set(plt.get_fignums())
    yield lambda: len(set(plt.get_fignums()) - before)
    for number in set(plt.get_fignums()) - before:
        plt.close(number)


@pytest.fixture(scope="module")
def images(planted):
    return planted()[0]


@pytest.fixture(scope="module")
def fitted(make_model, images):
    return make_model(**SEARCHED, **KEPT).fit(images)


@pytest.fixture
def draw(fitted, images):
    """Draws a display of the fitted estimator, by its class."""

    def draw(display, **keywords):
        images_too = (images,) if display is ClusterDisplay else ()
        if display is EmbeddingDisplay:
            keywords = {"method": "pca", **keywords}
        return display.from_estimator(fitted, *images_too, **keywords)

    return draw


DISPLAYS = [ClusterDisplay, EmbeddingDisplay, HistoryDisplay, SearchDisplay, TreeDisplay]


# All displays


@pytest.mark.parametrize("display", DISPLAYS)
def test_axes_of_the_caller_are_used(display, draw, open_figures):
    figure = Figure()
    ax = figure.add_subplot()
    drawn = draw(display, ax=ax)
    assert drawn.ax_ is ax
    assert drawn.figure_ is figure
    assert open_figures() == 0


@pytest.mark.parametrize("display", DISPLAYS)
def test_without_axes_there_is_one_new_figure_and_settings_stay(display, draw, open_figures):
    settings = dict(matplotlib.rcParams)
    drawn = draw(display)
    assert open_figures() == 1
    assert plt.gcf() is drawn.figure_
    assert drawn.figure_.axes[0] is drawn.ax_
    assert drawn.plot() is drawn  # anew
    assert open_figures() == 2
    assert dict(matplotlib.rcParams) == settings


@pytest.mark.parametrize("display", DISPLAYS)
def test_estimators_that_cannot_be_drawn_are_refused(display, make_model, open_figures):
    with pytest.raises(NotFittedError, match="not fitted yet"):
        display.from_estimator(make_model())
    with pytest.raises(TypeError, match=r"estimator must be a DiffusionEmbeddedClustering; got KMeans\("):
        display.from_estimator(KMeans())
    assert open_figures() == 0


@pytest.mark.parametrize("display", DISPLAYS)
def test_what_cannot_be_drawn_on_is_told_of(display, fitted, images, open_figures, monkeypatch):
    monkeypatch.setattr(embedding, "_maps", lambda *arguments: pytest.fail("mapped before ax was looked at"))
    given = (fitted, images) if display is ClusterDisplay else (fitted,)
    with pytest.raises(TypeError, match="ax must be Axes of matplotlib, or None; got 'axes'"):
        display.from_estimator(*given, ax="axes")
    assert open_figures() == 0


def test_keywords_of_points_that_are_none_are_told_of(fitted, monkeypatch):
    monkeypatch.setattr(embedding, "_maps", lambda *arguments: pytest.fail("mapped before them"))
    for draw in (EmbeddingDisplay.from_estimator, EmbeddingDisplay.from_history):
        with pytest.raises(TypeError, match="scatter_kw must be a dict or None; got 4"):
            draw(fitted, scatter_kw=4)


@pytest.mark.parametrize("display", DISPLAYS)
def test_missing_matplotlib_is_told_of(display, draw, monkeypatch):
    drawn = draw(display)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=rf'{display.__name__}.from_estimator needs .* pip install "skdiec\[plot\]"'):
        draw(display)
    with pytest.raises(ImportError, match=rf'{display.__name__}.plot needs matplotlib: pip install "skdiec\[plot\]"'):
        drawn.plot()


def test_matplotlib_is_imported_when_used():
    code = "import sys, skdiec, skdiec.plotting; print({'matplotlib', 'umap'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def synthetic(n_clusters):
    """Every display of some clusters, without a fit."""
    rng = np.random.default_rng(0)
    every = np.arange(n_clusters)
    labels = np.repeat(every, 12)
    points = rng.normal(size=(3, len(labels), 2)) + 9 * rng.normal(size=(n_clusters, 2))[labels]
    pixels = rng.integers(0, 256, (min(n_clusters, 20), 6, 8, 8), dtype=np.uint8)
    terms = {name: np.r_[np.nan, rng.random(20)] for name in ("loss", "kl", "graph", "entropy", "denoising")}
    layers = [f"down_blocks.{block}" for block in range(n_clusters)]
    return [
        ClusterDisplay(
            pixels,
            rows=np.arange(pixels[..., 0, 0].size).reshape(pixels.shape[:2]),
            clusters=every[:20],
            sizes=1000 * every[:20],
            names=[f"name of {cluster}" for cluster in every[:20]],
            n_hidden=max(0, n_clusters - 20),
        ),
        EmbeddingDisplay(points[0], labels),
        EmbeddingDisplay(points, labels, epochs=[0, 10, 20]),
        HistoryDisplay({**terms, "changed": rng.random(21)}, warmup_epochs=5),
        SearchDisplay(
            rng.random((n_clusters, n_clusters)),
            layers=layers,
            timesteps=25 * every,
            score_name="consensus modularity",
            pooling=2,
            chosen=(1, 1),
        ),
        TreeDisplay(
            linkage(rng.normal(size=(4 * n_clusters, 2)), "average"),
            leaf_clusters=np.repeat(every, 4),
            leaf_sizes=np.full(4 * n_clusters, 1234),
        ),
    ]


@pytest.mark.parametrize("n_clusters", [3, 10, 40])
def test_no_text_lies_on_another_or_outside_of_the_figure(n_clusters):
    for display in synthetic(n_clusters):
        figure = display.plot().figure_
        figure.canvas.draw()
        texts = [text for text in figure.findobj(matplotlib.text.Text) if text.get_visible() and text.get_text()]
        shown = [text for text in texts if is_within_its_axis(text)]
        boxes = [text.get_window_extent().padded(-1) for text in shown]  # a point of air is in each
        for one, other in itertools.combinations(range(len(boxes)), 2):
            assert not boxes[one].overlaps(boxes[other]), (display, shown[one], shown[other])
        width, height = figure.canvas.get_width_height()
        for box, text in zip(boxes, shown, strict=True):
            assert (box.x0 >= 0, box.y0 >= 0, box.x1 <= width, box.y1 <= height) == (True,) * 4, (display, text)


def is_within_its_axis(text):
    """Whether matplotlib draws a text: tick labels past the limits exist, but are not drawn."""
    for axis in (axis for ax in text.figure.axes for axis in (ax.xaxis, ax.yaxis)):
        labels = [label for tick in [*axis.majorTicks, *axis.minorTicks] for label in (tick.label1, tick.label2)]
        if text in labels:
            return text in [label for tick in axis._update_ticks() for label in (tick.label1, tick.label2)]
    return True


def test_sixty_clusters_have_styles_of_their_own():
    styles = [common.cluster_style(cluster) for cluster in range(61)]
    assert len(set(styles[:60])) == 60
    assert styles[60] == styles[0]
    assert len({color for color, _ in styles[:10]}) == 10
    assert {marker for _, marker in styles[:10]} == {"o"}


def luminance(color):
    """Relative luminance of WCAG 2."""
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in to_rgb(color)]
    return np.dot([0.2126, 0.7152, 0.0722], linear)


@pytest.mark.parametrize("color", [*common.colors(), common.MIDDLE_GREY])
def test_colors_differ_from_dark_and_light_backgrounds(color):
    assert 1.05 / (luminance(color) + 0.05) > 1.5
    assert (luminance(color) + 0.05) / 0.05 > 2.5


# The search


def test_search_is_a_map_of_the_scores_at_the_chosen_pooling(fitted):
    display = SearchDisplay.from_estimator(fitted)
    result = fitted.search_result_
    expected = result.scores["consensus"][:, :, result.poolings.index(fitted.pooling_)]
    assert_array_equal(display.im_.get_array(), expected)
    layers = [label.get_text() for label in display.ax_.get_yticklabels()]
    timesteps = [label.get_text() for label in display.ax_.get_xticklabels()]
    (column,), (row,) = display.mark_.get_data()
    assert layers[row] == fitted.layer_
    assert timesteps[column] == str(fitted.timestep_)
    assert expected[row, column] == np.nanmax(result.scores["consensus"])
    assert display.colorbar_.ax.get_ylabel() == "consensus modularity"
    assert display.ax_.get_ylabel() == f"layer (pooling {fitted.pooling_})"


def test_search_shows_other_scores_and_poolings(fitted):
    (other,) = set(SEARCHED["pooling"]) - {fitted.pooling_}
    display = SearchDisplay.from_estimator(fitted, score="scott", pooling=other, cmap="magma")
    result = fitted.search_result_
    assert_array_equal(display.im_.get_array(), result.scores["scott"][:, :, result.poolings.index(other)])
    assert display.mark_ is None  # which has the chosen pooling
    assert display.ax_.get_legend() is None
    assert display.colorbar_.ax.get_ylabel() == "Scott score"
    assert display.im_.get_cmap().name == "magma"


def test_search_shows_what_was_not_scored_as_missing():
    scores = np.array([[1.0, np.nan], [2.0, 3.0]])
    display = SearchDisplay(scores, layers=("a", "b"), timesteps=(10, 20), chosen=(1, 1)).plot()
    assert_array_equal(np.ma.getmaskarray(display.im_.get_array()), np.isnan(scores))
    assert display.im_.cmap.get_bad()[3] == 0  # transparent, so that the hatch is seen
    assert display.ax_.patch.get_hatch() == "////"
    assert display.im_.get_clim() == (1, 3)
    assert [text.get_text() for text in display.ax_.get_legend().get_texts()] == ["chosen", "not scored"]


def test_search_has_only_what_was_searched(fitted, open_figures):
    with pytest.raises(ValueError, match=r"score must be one of \['consensus', 'scott'\]; got 'silhouette'"):
        SearchDisplay.from_estimator(fitted, score="silhouette")
    for pooling in (True, np.array([1, 2])):
        with pytest.raises(ValueError, match=r"pooling must be one of \[2, 1\]; got"):
            SearchDisplay.from_estimator(fitted, pooling=pooling)
    with pytest.raises(ValueError, match=r"pooling must be one of \[2, 1\]; got 4"):
        SearchDisplay.from_estimator(fitted, pooling=4)
    assert open_figures() == 0


# The embedding


def drawn_points(scatters):
    return [np.asarray(scatter.get_offsets()) for scatter in scatters]


def principal_coordinates(z, of=None):
    """Coordinates on the two first principal axes of z, up to their signs; of other rows where they are given."""
    axes = np.linalg.svd(z - z.mean(axis=0), full_matrices=False)[2][:2]
    return ((z if of is None else of) - z.mean(axis=0)) @ axes.T


def test_embedding_is_a_map_of_the_clusters(fitted):
    display = EmbeddingDisplay.from_estimator(fitted, method="pca")
    expected = principal_coordinates(fitted.embedding_.astype(np.float64))
    assert_allclose(np.abs(display.points), np.abs(expected), rtol=1e-3, atol=1e-3)
    assert len(display.scatters_) == 3
    for cluster, (scatter, points) in enumerate(zip(display.scatters_, drawn_points(display.scatters_), strict=True)):
        assert_array_equal(points, display.points[fitted.labels_ == cluster])
        color = common.colors()[cluster]
        assert_allclose(scatter.get_facecolors(), [to_rgba(color, 0.9)])
    assert [text.get_text() for text in display.legend_.get_texts()] == ["0", "1", "2"]
    assert display.ax_.get_xlabel() == "PCA of 48 images"


def test_embedding_is_colored_by_other_labels(fitted):
    names = np.array(["one", "two"])[np.arange(48) % 2]
    display = EmbeddingDisplay.from_estimator(
        fitted, labels=names.tolist(), method="pca", legend=False, scatter_kw={"s": 4, "alpha": 0.5}
    )
    for parity, (scatter, points) in enumerate(zip(display.scatters_, drawn_points(display.scatters_), strict=True)):
        assert_array_equal(points, display.points[parity::2])
        assert_array_equal(scatter.get_sizes(), [4])
        assert scatter.get_alpha() == 0.5
    assert display.legend_ is None


def test_clusters_keep_their_style_where_others_have_no_image_in_the_map():
    display = EmbeddingDisplay(np.zeros((2, 2)), [2, 13]).plot()
    two, thirteen = display.scatters_
    assert_allclose(two.get_facecolors()[0][:3], to_rgb(common.colors()[2]))
    assert_allclose(thirteen.get_facecolors()[0][:3], to_rgb(common.colors()[3]))
    assert len(two.get_paths()[0].vertices) != len(thirteen.get_paths()[0].vertices)  # a disk and a square


def test_more_clusters_than_styles_have_no_legend():
    assert EmbeddingDisplay(np.zeros((60, 2)), np.arange(60)).plot().legend_ is not None
    assert EmbeddingDisplay(np.zeros((61, 2)), np.arange(61)).plot().legend_ is None


def test_embedding_of_many_images_is_of_some(fitted, rng_untouched):
    with rng_untouched():
        displays = [
            EmbeddingDisplay.from_estimator(
                fitted, labels=np.arange(48), method="pca", max_samples=9, random_state=seed
            )
            for seed in (0, 0, 1)
        ]
    rows = [display.labels.tolist() for display in displays]
    assert rows[0] == rows[1] != rows[2]
    assert len(set(rows[0])) == 9
    expected = principal_coordinates(fitted.embedding_[rows[0]].astype(np.float64))
    assert_allclose(np.abs(displays[0].points), np.abs(expected), rtol=1e-3, atol=1e-3)


def test_tsne_keeps_neighbors_and_repeats(fitted, rng_untouched):
    with rng_untouched():
        one, again = (EmbeddingDisplay.from_estimator(fitted, random_state=0).points for _ in range(2))
    assert trustworthiness(fitted.embedding_, one, n_neighbors=5) > 0.9
    assert_array_equal(one, again)


def test_equal_images_lie_at_one_place_of_the_map(make_model, images):
    with pytest.warns(UserWarning, match="images"):
        model = make_model(n_snapshots=2).fit(np.repeat(images[:1], 30, axis=0))
    assert_array_equal(EmbeddingDisplay.from_estimator(model, random_state=0).points, np.zeros((30, 2)))


@pytest.fixture
def fake_umap(monkeypatch):
    """Stands for umap-learn: notes its settings, and maps to the two first dimensions."""
    made = []

    class UMAP:
        def __init__(self, **settings):
            self.fitted = []
            made.append((settings, self))

        def fit_transform(self, z):
            self.fitted.append(z)
            return z[:, :2]

        def transform(self, z):
            return 2 * z[:, :2]

    module = ModuleType("umap")
    module.__spec__ = ModuleSpec("umap", None)
    module.UMAP = UMAP
    monkeypatch.setitem(sys.modules, "umap", module)
    return made


def test_umap_maps_later_images_as_the_last(fitted, fake_umap):
    display = EmbeddingDisplay.from_estimator(fitted, method="umap", random_state=0)
    assert_array_equal(display.points, fitted.embedding_[:, :2])
    history = EmbeddingDisplay.from_history(fitted, method="umap", random_state=0)
    first, middle, last = fitted.snapshots_.values()
    assert_array_equal(history.points, [2 * first[:, :2], 2 * middle[:, :2], last[:, :2]])
    EmbeddingDisplay.from_estimator(fitted, method="umap", random_state=1)
    ((settings, _), (again, mapped), (other, _)) = fake_umap
    assert settings == again == {**other, "random_state": settings["random_state"]}
    assert settings["random_state"] != other["random_state"]
    assert settings["n_neighbors"] == 15
    assert_array_equal(mapped.fitted, [last])


def test_missing_umap_is_told_of(fitted, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    for draw in (EmbeddingDisplay.from_estimator, EmbeddingDisplay.from_history):
        with pytest.raises(ImportError, match='method="umap" needs umap-learn: pip install umap-learn'):
            draw(fitted, method="umap")


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"method": ["pca"]}, r"method must be one of .*; got \['pca'\]"),
        ({"method": "lda"}, r"method must be one of \['tsne', 'umap', 'pca'\]; got 'lda'"),
        ({"labels": [0, 1]}, r"labels must be one for each of the 48 images of fit; got shape \(2,\)"),
        ({"max_samples": 1}, "max_samples must be an int of at least 2; got 1"),
        ({"max_samples": 2.5}, r"max_samples must be an int of at least 2; got 2\.5"),
        ({"labels": [[0], [1, 2]]}, "labels must be one for each of the 48 images of fit"),
        ({"labels": ["a", None] * 24}, "labels must be all integers or all strings, without None"),
        ({"random_state": "seed"}, "random_state must be an int from 0 to .*; got 'seed'"),
        ({"random_state": -1}, "random_state must be an int from 0 to .*; got -1"),
    ],
)
def test_embeddings_that_cannot_be_drawn_are_refused(keywords, message, fitted, open_figures):
    for draw in (EmbeddingDisplay.from_estimator, EmbeddingDisplay.from_history):
        with pytest.raises(ValueError, match=message):
            draw(fitted, **keywords)
    assert open_figures() == 0


def test_history_of_the_embedding_has_a_panel_for_each_epoch_on_the_axes_of_the_last(fitted):
    display = EmbeddingDisplay.from_history(fitted)
    last = fitted.snapshots_[4].astype(np.float64)
    assert display.epochs == [0, 2, 4]
    assert [ax.get_title() for ax in display.ax_] == ["before training", "epoch 2", "epoch 4"]
    signs = np.sign(principal_coordinates(last)[0] * display.points[2][0])
    for points, epoch in zip(display.points, display.epochs, strict=True):
        expected = signs * principal_coordinates(last, of=fitted.snapshots_[epoch])
        assert_allclose(points, expected, rtol=1e-3, atol=1e-3)
    for panel, scatters in enumerate(display.scatters_):
        for cluster, points in enumerate(drawn_points(scatters)):
            assert_array_equal(points, display.points[panel][fitted.labels_ == cluster])
    assert len({(*ax.get_xlim(), *ax.get_ylim()) for ax in display.ax_}) == 1
    (low, high), (bottom, top) = display.ax_[0].get_xlim(), display.ax_[0].get_ylim()
    assert (display.points > [low, bottom]).all()
    assert (display.points < [high, top]).all()


def test_history_of_the_embedding_is_of_chosen_epochs_and_some_images(make_model, images, monkeypatch):
    monkeypatch.setattr("skdiec.training.records.SNAPSHOT_ROWS", 20)
    model = make_model(**KEPT).fit(images)
    ax = Figure().subplots(2)
    display = EmbeddingDisplay.from_history(
        model, epochs=[4, 0], labels=np.arange(48), max_samples=9, random_state=0, ax=ax
    )
    assert_array_equal(display.ax_, ax)
    assert len(set(display.labels)) == 9
    assert set(display.labels) <= set(model.snapshot_rows_)
    rows = np.searchsorted(model.snapshot_rows_, display.labels)
    last = model.snapshots_[0][rows].astype(np.float64)
    for points, epoch in zip(display.points, (4, 0), strict=True):
        expected = principal_coordinates(last, of=model.snapshots_[epoch][rows])
        assert_allclose(np.abs(points), np.abs(expected), rtol=1e-3, atol=1e-3)


def test_history_by_tsne_leads_back_from_the_map_of_the_last_epoch(fitted):
    display = EmbeddingDisplay.from_history(fitted, method="tsne", random_state=0)
    fitted_last = EmbeddingDisplay.from_history(fitted, method="tsne", epochs=[4], random_state=0)
    assert_array_equal(display.points[2], fitted_last.points[0])
    for points, epoch in zip(display.points, display.epochs, strict=True):
        assert trustworthiness(fitted.snapshots_[epoch], points, n_neighbors=5) > 0.85
    centers = [[points[fitted.labels_ == cluster].mean(axis=0) for cluster in range(3)] for points in display.points]
    for earlier in centers[:2]:  # clusters are where they are at the end
        assert_array_equal(cdist(earlier, centers[2]).argmin(axis=1), [0, 1, 2])


def test_history_of_the_embedding_needs_what_fit_kept(fitted, make_model, images, open_figures):
    with pytest.raises(ValueError, match="estimator must have been fitted with n_snapshots"):
        EmbeddingDisplay.from_history(make_model().fit(images))
    with pytest.raises(ValueError, match=r"epochs must be some of \[0, 2, 4\], which fit kept; got \[0, 3\]"):
        EmbeddingDisplay.from_history(fitted, epochs=[0, 3])
    with pytest.raises(ValueError, match="ax must be None or 3 axes, one for each epoch; got 1"):
        EmbeddingDisplay.from_history(fitted, ax=Figure().add_subplot())
    with pytest.raises(ValueError, match=r"epochs must be some of \[0, 2, 4\], which fit kept; got 2"):
        EmbeddingDisplay.from_history(fitted, epochs=2)
    with pytest.raises(TypeError, match="ax must be Axes of matplotlib, or None; got 'b'"):
        EmbeddingDisplay.from_history(fitted, ax=[*Figure().subplots(1, 2), "b"])
    with pytest.raises(NotFittedError):
        EmbeddingDisplay.from_history(make_model())
    assert open_figures() == 0


@pytest.mark.parametrize("method", ["pca", "tsne"])
@pytest.mark.parametrize(("n", "d"), [(2, 1), (2, 5), (5, 1), (3, 2)])
def test_few_images_and_few_dimensions_are_mapped(n, d, method):
    z = np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)
    one, two = embedding._maps([z, z + 1], method, np.random.RandomState(0))
    assert one.shape == two.shape == (n, 2)
    assert np.isfinite([one, two]).all()
    if d == 1:
        assert_array_equal(one, np.column_stack([z, np.zeros(n)]))


# The clusters


def certainty(model):
    q = (1 + cdist(model.embedding_, model.cluster_centers_, "sqeuclidean") / model.nu) ** (-(model.nu + 1) / 2)
    return (q / q.sum(axis=1, keepdims=True)).max(axis=1)


def surest_first(model, cluster):
    members = [row for row in range(len(model.labels_)) if model.labels_[row] == cluster]
    return sorted(members, key=lambda row: -certainty(model)[row])


def test_gallery_has_the_surest_images_on_the_left_and_the_least_sure_on_the_right(fitted, images):
    display = ClusterDisplay.from_estimator(fitted, images, n_images=5)
    assert display.images_.shape == (3, 5)
    for cluster, row in enumerate(display.images_):
        order = surest_first(fitted, cluster)
        for image, index in zip(row, [*order[:3], *order[-2:]], strict=True):
            assert_array_equal(image.get_array(), images[index])
            assert image.get_clim() == (0, 255)
            assert image.get_cmap().name == "gray"
        lefts = [image.get_extent()[0] for image in row]
        assert lefts == sorted(lefts)
        assert len({tuple(image.get_extent()[2:]) for image in row}) == 1
    tops = [row[0].get_extent()[3] for row in display.images_]
    assert tops == sorted(tops)
    low, high = display.ax_.get_ylim()
    assert low > high  # the first cluster is at the top
    assert [label.get_text() for label in display.ax_.get_yticklabels()] == ["0 (16)", "1 (16)", "2 (16)"]


def test_gallery_of_a_small_cluster_has_each_image_once(make_model, images):
    few = np.concatenate([images[:10], np.full((1, 8, 8), 255, np.uint8)])
    model = make_model(2, init=[*[0] * 10, 1], head=None).fit(few)
    sizes = np.bincount(model.labels_)
    display = ClusterDisplay.from_estimator(model, few, n_images=12)
    for cluster, row in enumerate(display.rows):
        order = surest_first(model, cluster)
        n_right = max(0, len(order) - 6)
        missing = [-1] * (12 - len(order))
        assert row.tolist() == [*order[:6], *missing, *order[len(order) - n_right :]]
    assert sum(image is not None for image in display.images_.ravel()) == sizes.sum()


def test_gallery_has_the_largest_clusters_and_tells_how_many_it_has_not(make_model, images):
    model = make_model(5, init=[*[0] * 4, *[1] * 20, *[2] * 6, *[3] * 16, *[4] * 2], head=None).fit(images)
    sizes = np.bincount(model.labels_, minlength=5)
    display = ClusterDisplay.from_estimator(model, images, max_clusters=2, names=list("abcde"))
    largest = sorted(sorted(range(5), key=lambda cluster: (-sizes[cluster], cluster))[:2])
    assert display.clusters.tolist() == largest
    assert display.sizes.tolist() == sizes[largest].tolist()
    labels = [label.get_text() for label in display.ax_.get_yticklabels()]
    assert labels == [f"{cluster} {'abcde'[cluster]} ({sizes[cluster]})" for cluster in largest]
    assert display.ax_.get_xlabel() == f"{(sizes > 0).sum() - 2} smaller clusters are not shown"
    with_one_less = ClusterDisplay.from_estimator(model, images, max_clusters=int((sizes > 0).sum()) - 1)
    assert with_one_less.ax_.get_xlabel() == "1 smaller cluster is not shown"


def test_gallery_takes_names_as_they_are_returned(fitted, images):
    display = ClusterDisplay.from_estimator(fitted, images, names={1: "one"})
    assert [text.get_text().split(" (")[0] for text in display.ax_.get_yticklabels()] == ["0", "1 one", "2"]


def test_gallery_reads_the_files_of_fit(make_model, images, tmp_path, monkeypatch):
    colored = np.stack([images, 255 - images, images // 2], axis=-1)
    for row, image in enumerate(colored):
        Image.fromarray(image).save(tmp_path / f"{row:02}.png")
    model = make_model(backbone=Pretraining(epochs=2, channels=(8,)), layer="mid_block").fit(tmp_path)
    given = ClusterDisplay.from_estimator(model, tmp_path, n_images=4)
    for row in range(48):  # what is not shown is not read
        if row not in given.rows:
            (tmp_path / f"{row:02}.png").unlink()
    display = ClusterDisplay.from_estimator(model, n_images=4)
    assert_array_equal(display.rows, given.rows)
    for image, index in zip(display.images_.ravel(), display.rows.ravel(), strict=True):
        assert_array_equal(image.get_array(), colored[index])
    assert_array_equal(given.images, display.images)


def test_large_images_are_reduced_to_means_of_blocks(monkeypatch, make_backbone):
    monkeypatch.setattr(clusters, "MAX_SIDE", 4)
    rng = np.random.default_rng(0)

    class Source:
        def read(self, rows):
            return pictures[rows]

    pictures = rng.uniform(-1, 1, (3, 2, 9, 4)).astype(np.float32)
    small = clusters._thumbnails(Source(), np.array([2, 0]))
    blocks = np.rint((pictures + 1) * 127.5)
    for thumbnail, row in zip(small, (2, 0), strict=True):
        for i, j in np.ndindex(4, 2):  # channels that are no colours are averaged
            mean = blocks[row, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean()
            assert abs(thumbnail[i, j] - mean) <= 1.5
    assert small.shape == (2, 4, 2)
    pictures = pictures[:, :1, :1].repeat(4, axis=1).repeat(2, axis=2)
    assert clusters._thumbnails(Source(), np.arange(3)).shape == (3, 2, 4, 4)


def test_galleries_that_cannot_be_drawn_are_refused(fitted, make_model, images, open_figures):
    for keywords, message in [
        ({"n_images": 1}, "n_images must be an int of at least 2; got 1"),
        ({"n_images": 2.0}, r"n_images must be an int of at least 2; got 2\.0"),
        ({"max_clusters": 0}, "max_clusters must be an int of at least 1; got 0"),
        ({"names": ["a"]}, "names must be one for each of the 3 clusters; got 1"),
        ({"names": "abc"}, "names must be strings, one for each of the 3 clusters; got 'abc'"),
        ({"names": 3}, "names must be strings, one for each of the 3 clusters; got 3"),
        ({"names": {3: "a"}}, "names must have clusters from 0 to 2 as keys; got 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            ClusterDisplay.from_estimator(fitted, images, **keywords)
    with pytest.raises(ValueError, match="X must be the images of fit, since the estimator keeps none of them; got No"):
        ClusterDisplay.from_estimator(fitted)
    with pytest.raises(ValueError, match="X must be the 48 images of fit; got 47"):
        ClusterDisplay.from_estimator(fitted, images[1:])
    with pytest.raises(ValueError, match="X has images of shape"):
        ClusterDisplay.from_estimator(fitted, images[:, :7])
    table = images.reshape(48, 64)
    with pytest.raises(ValueError, match="X must be images to be shown; the estimator was fitted on a table"):
        ClusterDisplay.from_estimator(make_model().fit(table), table)
    assert open_figures() == 0


# The training


def test_history_has_a_line_for_each_term_and_for_what_changed(fitted):
    display = HistoryDisplay.from_estimator(fitted)
    assert set(display.lines_) == {"loss", "kl", "graph", "entropy", "changed"}  # the backbone is frozen
    for name, line in display.lines_.items():
        assert_array_equal(line.get_xdata(), np.arange(5))
        assert_array_equal(line.get_ydata(), fitted.history_[name])
        assert line.axes is (display.changed_ax_ if name == "changed" else display.ax_)
    assert len({line.get_color() for line in display.lines_.values()}) == 5
    assert "changed cluster" in [text.get_text() for text in display.ax_.get_legend().get_texts()]


def test_history_shows_where_the_warm_up_ends():
    history = {name: np.arange(6.0) for name in ("loss", "kl", "graph", "entropy", "denoising", "changed")}
    for warmup_epochs, ends in [(2, [2.5, 2.5]), (5, None), (None, None)]:
        display = HistoryDisplay(history, warmup_epochs=warmup_epochs).plot()
        found = [list(line.get_xdata()) for line in display.ax_.lines if line.get_label() == "end of warm-up"]
        assert found == ([] if ends is None else [ends])
        assert "denoising" in display.lines_


def test_history_without_training_has_the_start_alone(make_model, images):
    display = HistoryDisplay.from_estimator(make_model(head=None).fit(images))
    assert set(display.lines_) == {"changed"}
    assert len(display.lines_["changed"].get_ydata()) == 1


# The tree


def test_tree_is_the_dendrogram_of_the_fine_clusters(fitted):
    display = TreeDisplay.from_estimator(fitted)
    expected = dendrogram(fitted.linkage_, no_plot=True)
    assert_array_equal(display.leaves_, expected["leaves"])
    sizes = np.bincount(fitted.fine_labels_)
    owners = [fitted.labels_[fitted.fine_labels_ == fine] for fine in range(len(sizes))]
    assert all(len(set(owner)) == 1 for owner in owners)
    names = [label.get_text() for label in display.ax_.get_yticklabels()]
    assert names == [f"{owners[fine][0]}: {fine} ({sizes[fine]})" for fine in expected["leaves"]]
    assert_array_equal(display.ax_.get_yticks(), np.arange(len(sizes)))


@pytest.mark.parametrize("seed", range(5))
def test_links_join_the_children_at_their_height_in_the_color_of_their_cluster(seed):
    rng = np.random.default_rng(seed)
    centers = 100 * rng.permutation(4)[:, None]
    tree = linkage(np.repeat(centers, 5, axis=0) + rng.normal(size=(20, 1)), "average")
    owners = np.repeat([0, 1, 2, 13], 5)
    display = TreeDisplay(tree, leaf_clusters=owners, leaf_sizes=np.arange(20)).plot()
    members = {leaf: [leaf] for leaf in range(20)}
    places = {leaf: (0.0, float(np.flatnonzero(display.leaves_ == leaf)[0])) for leaf in range(20)}
    for merge, (path, color) in enumerate(
        zip(display.links_.get_segments(), display.links_.get_colors(), strict=True), start=20
    ):
        one, other = tree[merge - 20, :2].astype(int)
        height = tree[merge - 20, 2]
        ends = sorted([(places[one]), (places[other])], key=lambda place: place[1])
        assert_allclose(path, [ends[0], (height, ends[0][1]), (height, ends[1][1]), ends[1]])
        members[merge], places[merge] = members[one] + members[other], (height, (ends[0][1] + ends[1][1]) / 2)
        inside = {int(owners[leaf]) for leaf in members[merge]}
        expected = common.cluster_style(inside.pop())[0] if len(inside) == 1 else common.MIDDLE_GREY
        assert_allclose(color, to_rgba(expected))
    root, leaves = display.ax_.get_xlim()
    assert root > tree[-1, 2]
    assert 0 <= leaves < tree[0, 2]


def test_tree_of_one_leaf_has_no_link():
    display = TreeDisplay(np.empty((0, 4)), leaf_clusters=np.array([0]), leaf_sizes=np.array([7])).plot()
    assert len(display.links_.get_segments()) == 0
    assert [label.get_text() for label in display.ax_.get_yticklabels()] == ["0: 0 (7)"]
