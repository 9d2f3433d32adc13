import functools
import itertools
import logging
import threading
import warnings

import numpy as np
import pytest
from joblib import parallel_config
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, silhouette_score
from threadpoolctl import threadpool_info, threadpool_limits

from skdiec.activations import Cell
from skdiec.graph import knn_graph
from skdiec.partition import best_partition, kmeans_labels
from skdiec.scores import balanced_cut, modularity, normalized_cut, relative_cut, scott_score
from skdiec.search import principal_components, reduce_features, scoring, search_cells

CLASSES = np.repeat([0, 1, 2], 20)
LAYERS = {"wide": (2, 8, 8), "flat": (3, 4, 2), "deep": (4, 1, 1)}
TIMESTEPS = (10, 300)
POOLINGS = (1, 2, 4)
GRID = {
    "n_images": 60,
    "n_draws": 2,
    "layers": LAYERS,
    "timesteps": TIMESTEPS,
    "poolings": POOLINGS,
    "n_clusters": 3,
    "n_components": 5,
    "n_neighbors": 6,
}
SMALL = {**GRID, "layers": {"wide": (2, 8, 8)}, "timesteps": (10,), "poolings": (1, 2), "n_draws": 1}


def matrix(cell, draw, separation):
    """Noise of unit variance around three means that lie `separation` apart along each of two axes."""
    rng = np.random.default_rng([list(LAYERS).index(cell.layer), cell.timestep, cell.pooling, draw])
    values = rng.normal(size=(60, LAYERS[cell.layer][0] * cell.pooling**2))
    values[:, :2] += separation * np.array([[0, 0], [0, 1], [1, 0]])[CLASSES]
    return values.astype(np.float32)


def planted(*best, separation=20, elsewhere=0):
    """An extract whose features have clusters in one cell, and say little elsewhere."""

    def extract(cells, draw, count):
        return {cell: matrix(cell, draw, separation if cell in best else elsewhere) for cell in cells}

    return extract


def expected_partitions(matrices, n_components, n_neighbors=6, n_clusters=3, n_init=3, balance=1.0, seed=0):
    """The reduced features, graph and partition of a cell's draws; k-means starts from where the last draw's ended."""
    means = labels = None
    found = []
    for features in matrices:
        reduced = PCA(min(4 * n_components, features.shape[1]), svd_solver="covariance_eigh").fit_transform(features)
        graph = knn_graph(reduced, n_neighbors)
        aligned = reduced[:, :n_components]
        means = kmeans_labels(aligned, n_clusters, n_init=n_init, warm_start=means, seed=seed)
        cut = functools.partial(balanced_cut, n_clusters=n_clusters, balance=balance)
        settings = {"n_init": n_init, "given": [means], "warm_start": labels, "seed": seed}
        labels = best_partition(None, graph, n_clusters, cut, **settings).labels
        found.append((reduced, graph, labels))
    return found


def cut_over_noise(reduced, graph, labels, n_components, n_neighbors=6, n_clusters=3, seed=0):
    """The cut of a partition, over that of k-means clusters of Gaussian noise of the same variances."""
    noise = np.random.default_rng(seed).standard_normal(reduced.shape, dtype=np.float32) * reduced.std(axis=0)
    of_noise = kmeans_labels(noise[:, :n_components], n_clusters, seed=seed)
    return normalized_cut(graph, labels) / normalized_cut(knn_graph(noise, n_neighbors), of_noise)


def mean_distance(features, labels):
    """A criterion of the caller, lower for tighter features."""
    return float(np.linalg.norm(features, axis=1).mean() + labels.max())


# What is found


@pytest.mark.parametrize(
    ("best", "criterion"),
    [
        # The default finds it wherever it is; the others have a place each.
        (Cell("wide", 300, 4), "consensus"),
        (Cell("flat", 10, 2), "consensus"),
        (Cell("deep", 300, 1), "consensus"),
        (Cell("wide", 300, 4), "relative_cut"),
        (Cell("flat", 10, 2), "normalized_cut"),
        (Cell("deep", 300, 1), "scott"),
        (Cell("flat", 10, 2), silhouette_score),
    ],
)
def test_cell_with_clusters_wins_under_every_criterion(best, criterion, rng_untouched):
    with rng_untouched():
        result = search_cells(planted(best), **GRID, criterion=criterion)
    assert result.best == best
    assert result.criterion == (criterion if isinstance(criterion, str) else "silhouette_score")
    others = np.delete(result.scores[result.criterion].ravel(), np.nanargmax(result.scores[result.criterion]))
    margin = {"consensus": 0.02, "relative_cut": 0.05, "normalized_cut": 0.3, "scott": 1.0, "silhouette_score": 0.2}
    assert np.nanmax(result.scores[result.criterion]) > np.nanmax(others) + margin[result.criterion]


def test_consensus_is_the_default():
    result = search_cells(planted(Cell("flat", 10, 2)), **GRID)
    assert (result.criterion, sorted(result.scores)) == ("consensus", ["consensus", "scott"])


def test_axes_are_layers_timesteps_and_poolings_with_nan_where_maps_are_too_small():
    result = search_cells(planted(Cell("wide", 300, 4)), **GRID)
    assert (result.layers, result.timesteps, result.poolings) == (("wide", "flat", "deep"), TIMESTEPS, POOLINGS)
    fits = np.array([[True, True, True], [True, True, False], [True, False, False]])
    for scores in result.scores.values():
        assert scores.dtype == np.float64
        assert_array_equal(np.isfinite(scores), np.repeat(fits[:, None], 2, axis=1))
        assert_array_equal(np.isnan(scores), ~np.isfinite(scores))
        assert np.nanargmax(scores) == np.ravel_multi_index((0, 1, 2), scores.shape)


def test_best_is_found_by_the_criterion_and_not_by_scott():
    result = search_cells(planted(Cell("wide", 300, 4)), **GRID, criterion=lambda features, labels: -features.shape[1])
    assert np.nanargmax(result.scores["scott"]) == np.ravel_multi_index((0, 1, 2), (3, 2, 3))
    assert result.best == Cell("wide", 10, 1)  # the narrowest, and the first of equals


def test_each_timestep_and_draw_is_extracted_once_for_all_cells():
    calls = []

    def extract(cells, draw, count):
        calls.append((list(cells), draw))
        return planted(Cell("flat", 10, 2))(cells, draw, count)

    result = search_cells(extract, **{**GRID, "n_draws": 3})
    fits = [("wide", 1), ("wide", 2), ("wide", 4), ("flat", 1), ("flat", 2), ("deep", 1)]
    assert calls == [
        ([Cell(layer, timestep, pooling) for layer, pooling in fits], draw)
        for timestep in (10, 300)
        for draw in range(3)
    ]
    assert (result.n_images, result.n_forward) == (60, 60 * 2 * 3)
    assert 0 <= result.seconds < 60


def test_progress_is_logged(caplog):
    with caplog.at_level(logging.INFO, "skdiec"):
        result = search_cells(planted(), **GRID, criterion="scott")
    best = [np.nanmax(result.scores["scott"][:, column]) for column in range(2)]
    assert [record.message for record in caplog.records] == [
        *(f"timestep {timestep}: best scott {value:.4f}" for timestep, value in zip(TIMESTEPS, best, strict=True)),
        f"best by scott: {result.best.layer}, timestep {result.best.timestep}, pooling {result.best.pooling}",
    ]


# Scores


def test_scott_is_averaged_over_draws_in_as_many_dimensions_as_the_narrowest_cell_has():
    for n_components, dimensions in [(1, 1), (5, 2)]:  # "wide" at pooling 1 has two features
        result = search_cells(planted(elsewhere=4), **{**GRID, "n_components": n_components}, n_init=4, seed=3)
        for row, layer in enumerate(LAYERS):
            for column, timestep in enumerate(TIMESTEPS):
                for depth, pooling in enumerate(POOLINGS):
                    if pooling > min(LAYERS[layer][1:]):
                        continue
                    values = []
                    for draw in range(2):
                        features = matrix(Cell(layer, timestep, pooling), draw, 4)
                        aligned = PCA(dimensions, svd_solver="full").fit_transform(features)
                        if draw == 0:
                            labels = KMeans(3, n_init=4, random_state=3).fit(aligned).labels_
                        else:  # from where the first draw's ended
                            means = [aligned[labels == cluster].mean(axis=0) for cluster in range(3)]
                            labels = KMeans(3, init=means, n_init=1).fit(aligned).labels_
                        values.append(scott_score(aligned, labels))
                    assert result.scores["scott"][row, column, depth] == pytest.approx(np.mean(values), rel=1e-3)


@pytest.mark.parametrize("criterion", ["relative_cut", "normalized_cut", mean_distance])
@pytest.mark.parametrize(
    "change",
    [{}, {"n_neighbors": 3}, {"n_clusters": 4}, {"n_init": 1}, {"balance": 0.0}, {"seed": 5}, {"n_components": 1}],
)
def test_criteria_score_the_partition_with_the_lowest_cut_on_the_graph(change, criterion):
    settings = {"n_neighbors": 6, "n_clusters": 3, "n_init": 3, "balance": 1.0, "seed": 0, "n_components": 5, **change}
    only = {**GRID, **settings, "layers": {"flat": (3, 4, 2)}, "timesteps": [10], "poolings": [2]}
    values = []
    k, balance = settings["n_clusters"], settings["balance"]
    matrices = [matrix(Cell("flat", 10, 2), draw, 2) for draw in range(2)]
    for reduced, graph, labels in expected_partitions(matrices, **settings):
        values.append(
            {
                "relative_cut": -relative_cut(graph, labels, k, balance=balance),
                "normalized_cut": -normalized_cut(graph, labels),
                mean_distance: mean_distance(reduced, labels),
            }[criterion]
        )
    result = search_cells(planted(elsewhere=2), **only, criterion=criterion)
    assert result.scores[result.criterion].item() == pytest.approx(np.mean(values), rel=1e-6)


@pytest.mark.parametrize(
    ("timesteps", "n_graphs"), [((10, 300), 4), ((10,), 4), ((10, 20, 50, 100, 200, 300, 400, 500), 5)]
)
def test_consensus_is_modularity_on_the_graphs_of_the_tenth_of_cells_whose_cut_is_lowest_beside_noise(
    timesteps, n_graphs
):
    better = Cell("wide", 10, 4), Cell("flat", 10, 1)

    def extract(cells, draw, count):
        return {cell: matrix(cell, draw, 8 if cell in better else 3) for cell in cells}

    result = search_cells(extract, **{**GRID, "timesteps": timesteps, "poolings": (1, 2, 4)}, seed=3)
    fits = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0)]
    positions = [(row, column, depth) for column in range(len(timesteps)) for row, depth in fits]
    graphs, partitions, over_noise = {}, {}, {}
    for row, column, depth in positions:
        cell = Cell(list(LAYERS)[row], timesteps[column], POOLINGS[depth])
        matrices = [matrix(cell, draw, 8 if cell in better else 3) for draw in range(2)]
        # The narrowest cell has two features: the graph has up to four times as many.
        found = expected_partitions(matrices, 2, seed=3)
        graphs[row, column, depth] = [graph.toarray() for _, graph, _ in found]
        partitions[row, column, depth] = [labels for _, _, labels in found]
        over_noise[row, column, depth] = np.mean([cut_over_noise(*each, n_components=2, seed=3) for each in found])
    trusted = sorted(positions, key=lambda position: over_noise[position])[:n_graphs]
    consensus = sparse.csr_array(np.sum([np.sum(graphs[position], axis=0) for position in trusted], axis=0))
    for position in positions:
        expected = np.mean([modularity(consensus, labels) for labels in partitions[position]])
        assert result.scores["consensus"][position] == pytest.approx(expected, abs=1e-9)
    assert np.isfinite(result.scores["consensus"]).sum() == len(positions)
    assert result.best == Cell(
        *next(
            (list(LAYERS)[row], timesteps[column], POOLINGS[depth])
            for row, column, depth in positions
            if result.scores["consensus"][row, column, depth] == np.nanmax(result.scores["consensus"])
        )
    )


def test_the_graphs_of_the_three_cells_after_the_best_one_are_added_up():
    better = Cell("wide", 10, 4), Cell("flat", 300, 1), Cell("flat", 10, 2), Cell("wide", 10, 2), Cell("wide", 300, 4)

    def separation(cell):
        return 2 + 2 * better.index(cell) if cell in better else 0

    def extract(cells, draw, count):
        return {cell: matrix(cell, draw, separation(cell)) for cell in cells}

    result = search_cells(extract, **GRID, seed=3)
    values = result.scores["consensus"]
    after = np.argsort(-np.nan_to_num(values, nan=-1).ravel(), kind="stable")[1:4]
    expected = np.zeros((60, 60))
    for row, column, depth in zip(*np.unravel_index(after, values.shape), strict=True):
        cell = Cell(list(LAYERS)[row], TIMESTEPS[column], POOLINGS[depth])
        found = expected_partitions([matrix(cell, draw, separation(cell)) for draw in range(2)], 2, seed=3)
        expected += sum(graph.toarray() for _, graph, _ in found) / 2
    assert_allclose(result.beside.toarray(), expected)


def test_graphs_are_kept_for_the_consensus_alone_and_where_there_are_other_cells():
    assert search_cells(planted(), **GRID, criterion="scott").beside is None
    assert search_cells(planted(), **{**SMALL, "poolings": (2,)}).beside is None
    two = search_cells(planted(), **SMALL)
    (other,) = {Cell("wide", 10, 1), Cell("wide", 10, 2)} - {two.best}
    ((_, graph, _),) = expected_partitions([matrix(other, 0, 0)], 2)
    assert_allclose(two.beside.toarray(), graph.toarray())


def test_callable_gets_reduced_features_and_the_partition():
    seen = []

    def criterion(features, labels):
        seen.append((features, labels))
        return float(features[0, 0])

    result = search_cells(planted(Cell("flat", 10, 2)), **{**GRID, "n_components": 2}, criterion=criterion, n_jobs=1)
    assert [features.shape for features, _ in seen] == [(60, d) for d in (2, 8, 8, 3, 8, 4)] * 4
    assert adjusted_rand_score(seen[4][1], CLASSES) == adjusted_rand_score(seen[10][1], CLASSES) == 1
    # Averaged over draws: cells are scored in turn, for the two draws of a timestep one after the other.
    expected = np.mean([seen[4][0][0, 0], seen[10][0][0, 0]])
    assert result.scores["criterion"][1, 0, 1] == pytest.approx(expected)


@pytest.mark.parametrize(("balance", "sizes"), [(0.0, [12, 48]), (10.0, pytest.approx([24, 36], abs=2))])
def test_balance_weighs_sizes_in_the_choice_of_partitions(balance, sizes):
    # Two groups that touch, and a small one far away, which is the cheapest to cut off.
    rng = np.random.default_rng(0)
    position = np.repeat([0.0, 4.0, 40.0], [24, 24, 12])
    features = np.column_stack([position + rng.uniform(-2, 2, 60), rng.uniform(-1, 1, 60)])
    found = []

    def criterion(features, labels):
        found.extend(sorted(np.bincount(labels)))
        return 0.0

    settings = {**SMALL, "poolings": (1,), "n_clusters": 2, "balance": balance}
    search_cells(lambda cells, draw, count: {cells[0]: features}, **settings, criterion=criterion)
    assert found == sizes


def test_criterion_is_named_after_the_callable():
    silhouette = functools.partial(silhouette_score, metric="cosine")  # has no name of its own
    assert search_cells(planted(), **SMALL, criterion=silhouette).criterion == "criterion"
    assert sorted(search_cells(planted(), **SMALL, criterion=mean_distance).scores) == ["mean_distance", "scott"]


def test_processes_give_what_one_gives_and_leave_the_number_of_threads():
    one = search_cells(planted(Cell("flat", 10, 2)), **GRID)
    with threadpool_limits(limits=2):
        before = [pool["num_threads"] for pool in threadpool_info()]
        with parallel_config("loky"):
            two = search_cells(planted(Cell("flat", 10, 2)), **GRID, n_jobs=2)
        assert [pool["num_threads"] for pool in threadpool_info()] == before
    assert one.best == two.best
    for name, scores in one.scores.items():
        assert_array_equal(two.scores[name], scores)


@pytest.mark.parametrize("threads", [1, 2])
def test_cells_are_scored_by_as_many_threads_as_libraries_use(threads):
    together = threading.Barrier(threads, timeout=60)

    def criterion(features, labels):
        together.wait()  # passed by so many at a time only
        return float(threading.current_thread() is threading.main_thread())

    with threadpool_limits(limits=threads):
        scores = search_cells(planted(), **SMALL, criterion=criterion).scores["criterion"]
    assert scores[0, 0, :2].tolist() == [float(threads == 1)] * 2


def test_threads_leave_the_filters_of_warnings_as_they_were():
    coinciding = np.repeat(np.eye(2, 8, dtype=np.float32), 30, axis=0)  # two places for three clusters
    before = list(warnings.filters)
    with threadpool_limits(limits=2):
        search_cells(lambda cells, draw, count: dict.fromkeys(cells, coinciding), **SMALL)
    assert warnings.filters == before


def test_the_number_of_threads_is_as_it_was_after_a_search():
    with threadpool_limits(limits=2):
        before = [pool["num_threads"] for pool in threadpool_info()]
        with parallel_config("threading"):
            search_cells(planted(Cell("flat", 10, 2)), **GRID, n_jobs=2)
        assert [pool["num_threads"] for pool in threadpool_info()] == before


# Dimensions


def test_dimensions_are_reduced_by_pca():
    features = np.random.default_rng(0).normal(size=(30, 8)) @ np.diag([9.0, 7, 5, 3, 1, 1, 1, 1])
    expected = PCA(3, svd_solver="full").fit(features)
    found = reduce_features(features, 3)
    assert_allclose(np.abs(found.transform(features)), np.abs(expected.transform(features)), atol=1e-8)
    assert_allclose(found.explained_variance_, expected.explained_variance_)
    assert reduce_features(features[:5], 100).n_components_ == 5
    assert reduce_features(features, 100).n_components_ == 8


def test_wide_features_are_reduced_by_the_randomised_solver():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(30, 2)) @ rng.normal(size=(2, 8))
    wide = np.hstack([features, np.zeros((30, 249))])
    exact, fast = reduce_features(wide[:, :256], 2), reduce_features(wide, 2, seed=4)
    assert (exact.svd_solver, fast.svd_solver, fast.random_state) == ("covariance_eigh", "randomized", 4)
    assert_allclose(fast.explained_variance_, exact.explained_variance_)
    space = {"layers": {"wide": (300, 1, 1)}, "timesteps": [10], "poolings": [1], "n_draws": 1, "n_components": 2}
    cloud = rng.normal(size=(60, 4)) @ rng.normal(size=(4, 300)) + 40 * np.eye(3)[CLASSES] @ rng.normal(size=(3, 300))
    result = search_cells(lambda cells, draw, count: {cells[0]: cloud}, **{**GRID, **space}, criterion=silhouette_score)
    assert result.scores["silhouette_score"].item() == pytest.approx(silhouette_score(cloud, CLASSES), abs=1e-3)


@pytest.mark.parametrize(("n", "n_components"), [(300, 3), (300, 12), (5, 12), (1, 1)])
def test_principal_components_are_those_of_the_full_solver(n, n_components, monkeypatch):
    monkeypatch.setattr("skdiec.search.components._BLOCK_ROWS", 128)
    features = 100 + np.random.default_rng(0).normal(size=(n, 12)).astype(np.float32) @ np.diag(np.arange(12.0, 0, -1))
    mean, components, variances = principal_components(features, n_components)
    assert len(components) == len(variances) == min(n, n_components)
    assert_allclose(mean, features.mean(axis=0), rtol=1e-6)
    assert_allclose(components @ components.T, np.eye(len(components)), atol=1e-6)
    assert (components.max(axis=1) == np.abs(components).max(axis=1)).all()
    if n > 1:
        expected = PCA(svd_solver="full").fit(features)
        found = min(n - 1, n_components)  # so many have a variance
        assert_allclose(variances[:found], expected.explained_variance_[:found], rtol=1e-5)
        assert_allclose(variances[found:], 0, atol=1e-3)
        alike = np.abs(np.sum(components[:found] * expected.components_[:found], axis=1))
        assert_allclose(alike, 1, atol=1e-5)
    else:
        assert variances.tolist() == [0]


def test_features_wider_than_a_covariance_should_be_have_the_components_of_a_randomised_solver(monkeypatch):
    features = np.random.default_rng(0).normal(size=(40, 12)) @ np.diag(np.arange(12.0, 0, -1))
    exact = principal_components(features, 3)
    monkeypatch.setattr("skdiec.search.components.WIDEST_COVARIANCE", 11)
    found = principal_components(features, 3, seed=4)
    pca = PCA(3, svd_solver="randomized", random_state=4).fit(features)
    assert_allclose(np.abs(found[1]), np.abs(pca.components_))
    for one, other in zip(found, exact, strict=True):
        assert_allclose(one, other, rtol=1e-3, atol=1e-3)


# Work side by side


def test_the_next_features_are_extracted_while_cells_are_scored():
    scoring, order = threading.Event(), []
    space = planted()

    def extract(cells, draw, count):
        if order:  # the second pass comes to an end only while the first one's cells are scored
            assert scoring.wait(60)
        order.append((cells[0].timestep, draw))
        return space(cells, draw, count)

    def criterion(features, labels):
        scoring.set()
        return 1.0

    search_cells(extract, **{**GRID, "criterion": criterion})
    assert order == [(10, 0), (10, 1), (300, 0), (300, 1)]


@pytest.mark.parametrize(("ahead_below", "ahead"), [(61, 1), (60, 0)])
def test_at_most_one_pass_of_few_images_is_extracted_ahead(ahead_below, ahead, monkeypatch):
    monkeypatch.setattr("skdiec.search.stages.AHEAD_BELOW", ahead_below)
    begun, scored = [], []
    space = planted()

    def extract(cells, draw, count):
        begun.append((cells[0].timestep, draw))
        return space(cells, draw, count)

    def criterion(features, labels):
        scored.append(len(begun))
        return 1.0

    with threadpool_limits(limits=2):
        search_cells(extract, **GRID, criterion=criterion)
    assert begun == [(10, 0), (10, 1), (300, 0), (300, 1)]
    cells = len(scored) // 4
    assert all(count <= place // cells + 1 + ahead for place, count in enumerate(scored))
    assert ahead or scored == sorted(place // cells + 1 for place in range(len(scored)))


def test_one_thread_scores_while_features_are_extracted_and_all_threads_then():
    scored_by = []

    def criterion(features, labels):
        scored_by.append(threading.current_thread() is threading.main_thread())
        return 1.0

    with threadpool_limits(limits=2):
        search_cells(planted(), **GRID, criterion=criterion)
    cells = len(scored_by) // 4  # two timesteps, two draws
    assert scored_by == [True] * 3 * cells + [False] * cells


def test_an_error_of_the_extraction_ends_the_search():
    def extract(cells, draw, count):
        raise ValueError("activations are not finite")

    with pytest.raises(ValueError, match="activations are not finite"):
        search_cells(extract, **GRID)


# Errors


def test_poolings_that_no_map_can_have_are_told_of():
    message = r"pooling must be at most the side of a layer's map; got \[16, 9\] .*'flat': \(3, 4, 2\)"
    with pytest.raises(ValueError, match=message):
        search_cells(planted(), **{**GRID, "poolings": [16, 9]})


def test_cells_without_a_score_are_passed_over():
    for bad, good in [(1, 2), (2, 1)]:

        def criterion(features, labels, width=2 * bad**2):
            return np.nan if features.shape[1] == width else 1.0

        result = search_cells(planted(), **SMALL, criterion=criterion)
        assert result.best == Cell("wide", 10, good)
        assert_array_equal(np.isnan(result.scores["criterion"]), [[[bad == 1, bad == 2]]])
    with pytest.raises(ValueError, match="criterion '<lambda>' gave no finite value for any cell"):
        search_cells(planted(), **SMALL, criterion=lambda features, labels: np.nan)


# Halving

SPACE = {
    "strategy": "halving",
    "n_images": 200,
    "n_draws": 2,
    "layers": {"early": (2, 4, 4), "middle": (3, 2, 2), "late": (2, 4, 4)},
    "timesteps": (5, 10, 20, 40, 80, 160),
    "poolings": (1, 2),
    "n_clusters": 2,
    "n_components": 5,
    "n_neighbors": 6,
}


def two_clusters(best, calls, coupling=3):
    """An extract with two clusters in one cell, less of them at its timestep or in its layer and pooling."""
    layers = list(SPACE["layers"])

    def extract(cells, draw, count):
        calls.append(([*cells], draw, count))
        found = {}
        for cell in cells:
            rng = np.random.default_rng([layers.index(cell.layer), cell.timestep, cell.pooling, draw])
            coupled = (cell.layer, cell.pooling) == (best.layer, best.pooling)
            separation = 3 * (cell.timestep == best.timestep) + coupling * coupled + 20 * (cell == best)
            values = rng.normal(size=(200, SPACE["layers"][cell.layer][0] * cell.pooling**2))
            values[::2, 0] += separation
            found[cell] = values[:count].astype(np.float32)
        return found

    return extract


@pytest.mark.parametrize(
    ("best", "criterion", "coupling"),
    [
        (Cell("early", 160, 2), "consensus", 3),
        (Cell("middle", 20, 1), "consensus", 3),
        (Cell("late", 5, 2), "consensus", 3),
        (Cell("middle", 20, 1), "relative_cut", 3),
        (Cell("late", 5, 2), "scott", 3),
        # Silhouettes, which prefer features of few values, need more of a hint.
        (Cell("early", 160, 2), silhouette_score, 6),
    ],
)
def test_halving_finds_the_cell_with_clusters(best, criterion, coupling, rng_untouched):
    with rng_untouched():
        result = search_cells(two_clusters(best, [], coupling), **SPACE, criterion=criterion)
    assert result.best == best


def means(result, stage, part):
    """Mean value of a stage's cells for each timestep, or layer and pooling, the best first."""
    parts = {}
    for cell in stage.cells:
        parts.setdefault(part(cell), []).append(stage.scores[result.criterion][result.position(cell)])
    return sorted(parts, key=lambda each: -np.mean(parts[each]))


def pair(cell):
    return cell.layer, cell.pooling


def timestep(cell):
    return cell.timestep


def test_halving_scores_fewer_cells_then_on_all_images_and_draws():
    timesteps = (5, 7, 10, 20, 40, 80, 160, 320)
    calls = []
    costs = {"early": 0.25, "middle": 0.5, "late": 1.0}
    space = {**SPACE, "n_images": 150, "timesteps": timesteps, "costs": costs}
    result = search_cells(two_clusters(Cell("middle", 20, 2), calls), **space)
    assert [(stage.n_images, stage.n_draws) for stage in result.stages] == [(80, 1), (80, 1), (80, 1), (150, 2)]
    probed, compared, within, last = result.stages
    assert {cell.timestep for cell in probed.cells} == {20, 80}
    assert {cell.timestep for cell in compared.cells} == {7, 20, 80, 320}
    assert [len(set(map(pair, stage.cells))) for stage in result.stages] == [6, 4, 4, 4]
    assert [len(stage.cells) for stage in result.stages] == [12, 16, 8, 4]
    assert set(map(pair, compared.cells)) == set(means(result, probed, pair)[:4])
    assert set(map(pair, within.cells)) == set(means(result, compared, pair)[:4])
    assert set(map(pair, last.cells)) == set(map(pair, within.cells))
    group = {7: {5, 7}, 20: {10, 20}, 80: {40, 80}, 320: {160, 320}}[means(result, compared, timestep)[0]]
    assert set(map(timestep, within.cells)) == group
    assert set(map(timestep, last.cells)) == {means(result, within, timestep)[0]}
    for stage in result.stages:
        for scores in stage.scores.values():
            assert np.isfinite(scores).sum() == len(stage.cells)
    assert result.n_images == 150
    assert result.scores is result.stages[-1].scores
    # What was scored on as many images is known: two of four timesteps, then one of two.
    assert [count for _, _, count in calls] == [80] * 5 + [150] * 2
    assert [draw for _, draw, _ in calls] == [0] * 6 + [1]
    assert [stage.n_forward for stage in result.stages] == [160, 160, 80, 300]
    assert result.n_forward == 700
    work = [count * max(costs[cell.layer] for cell in cells) for cells, _, count in calls]
    assert [stage.n_evaluations for stage in result.stages] == [
        160 * costs["late"],
        sum(work[2:4]),
        work[4],
        sum(work[5:]),
    ]
    assert result.n_evaluations == sum(work)
    assert result.seconds == pytest.approx(sum(stage.seconds for stage in result.stages))


@pytest.mark.parametrize("best", [10, 60, 110, 200])
def test_neighbouring_timesteps_are_scored_for_each_other_first(best):
    timesteps = tuple(range(200, 0, -10))  # any order

    def extract(cells, draw, count):
        found = {}
        for cell in cells:
            rng = np.random.default_rng([cell.timestep, cell.pooling, draw])
            values = rng.normal(size=(200, SPACE["layers"][cell.layer][0] * cell.pooling**2))
            near = np.exp(-abs(cell.timestep - best) / 30)
            values[::2, 0] += 8 * near + 4 * (cell.layer == "late") * (cell.pooling == 2)
            found[cell] = values[:count].astype(np.float32)
        return found

    result = search_cells(extract, **{**SPACE, "timesteps": timesteps, "n_draws": 1}, criterion="scott")
    probed, compared, within, last = ({cell.timestep for cell in stage.cells} for stage in result.stages)
    assert compared == {30, 80, 130, 180}
    assert probed == {80, 130}
    group = (best - 10) // 50
    assert within == {50 * group + step for step in (10, 20, 30, 40, 50)}
    assert last == {best}
    assert result.best == Cell("late", best, 2)


def test_layers_and_timesteps_are_judged_by_means_not_by_one_lucky_cell():
    def extract(cells, draw, count):
        found = {}
        for cell in cells:
            rng = np.random.default_rng([cell.timestep, cell.pooling])
            values = rng.normal(size=(200, SPACE["layers"][cell.layer][0] * cell.pooling**2))
            lucky = cell == Cell("early", 40, 1)
            values[::2, 0] += 7 if lucky else 6 * (cell.layer == "late") + 4 * (cell.timestep == 10)
            found[cell] = values[:count].astype(np.float32)
        return found

    result = search_cells(extract, **SPACE, criterion="scott")
    probed = result.stages[0]
    assert max(probed.cells, key=lambda cell: probed.scores["scott"][result.position(cell)]) == Cell("early", 40, 1)
    assert (result.best.layer, result.best.timestep) == ("late", 10)


@pytest.mark.parametrize(
    ("leads", "chosen"),
    [
        ([0.03, -0.03, 0.02, 0.01, -0.02, 0.0], 10),  # mean 0.0017, standard error 0.011
        ([0.03, 0.01, 0.02, 0.01, 0.02, 0.03], 20),  # 0.02 and 0.006
        ([0.01, -0.01, 0.0, 0.01, -0.01, 0.3], 20),  # one that stands out is no noise
        ([-0.03, -0.01, -0.02, -0.01, -0.02, -0.03], 10),
    ],
)
def test_earliest_timestep_within_one_standard_error_of_the_best_is_taken(leads, chosen):
    values = dict(zip(itertools.product(SPACE["layers"], SPACE["poolings"]), leads, strict=True))

    def extract(cells, draw, count):
        halves = np.tile([-1.0, 1.0], 100)[:count, None]  # their spread is what the criterion below returns
        return {
            cell: np.float32(halves * (1 + values[pair(cell)] * (cell.timestep == 20)) * np.eye(1, width(cell)))
            for cell in cells
        }

    def width(cell):
        return SPACE["layers"][cell.layer][0] * cell.pooling**2

    result = search_cells(
        extract,
        **{**SPACE, "timesteps": (20, 10)},
        criterion=lambda features, labels: float(features.std(axis=0).sum()),
    )
    compared, last = result.stages
    assert set(map(timestep, compared.cells)) == {10, 20}
    assert set(map(timestep, last.cells)) == {chosen}


@pytest.mark.parametrize(
    ("change", "plan"),
    [
        ({"timesteps": (5,)}, [(200, 2)]),
        ({"timesteps": (5,), "n_draws": 1}, [(200, 1)]),
        ({"timesteps": (5, 10), "n_draws": 1}, [(80, 1), (200, 1)]),
        # From three timesteps on, layers are compared at two of them first, unless there is only one.
        ({"n_clusters": 1}, [(66, 1), (66, 1), (200, 2)]),
        ({"n_clusters": 1, "layers": {"late": (2, 4, 4)}, "poolings": (2,)}, [(66, 1), (200, 2)]),
        ({"n_clusters": 3}, [(120, 1), (120, 1), (200, 2)]),
        ({"n_clusters": 20, "n_draws": 1}, [(200, 1), (200, 1), (200, 1)]),
        # From eight on, one of several neighbours is scored first.
        ({"timesteps": tuple(range(1, 8)), "n_draws": 1, "n_clusters": 1}, [(66, 1), (66, 1), (200, 1)]),
        ({"timesteps": tuple(range(1, 9)), "n_draws": 1, "n_clusters": 1}, [(66, 1), (66, 1), (66, 1), (200, 1)]),
        ({"timesteps": range(1, 81), "n_draws": 1, "n_clusters": 1}, [(66, 1), (66, 1), (66, 1), (200, 1)]),
    ],
)
def test_stages_of_halving(change, plan):
    calls = []
    result = search_cells(two_clusters(Cell("late", 5, 1), calls), **{**SPACE, **change}, criterion="scott")
    assert [(stage.n_images, stage.n_draws) for stage in result.stages] == plan
    assert len({cell.timestep for cell in result.stages[-1].cells}) == 1
    assert len(calls) == len({(cells[0].timestep, draw, count) for cells, draw, count in calls})


def test_grid_is_one_stage_of_all_cells():
    result = search_cells(planted(Cell("flat", 10, 2)), **GRID, costs={"wide": 0.5, "flat": 0.75, "deep": 0.75})
    (stage,) = result.stages
    assert (stage.n_images, stage.n_draws, len(stage.cells)) == (60, 2, 12)
    assert (stage.n_forward, stage.n_evaluations) == (60 * 2 * 2, 60 * 2 * 2 * 0.75)
    assert (result.scores, result.n_evaluations, result.seconds) == (stage.scores, stage.n_evaluations, stage.seconds)


# The final stage

FINAL = {**SPACE, "n_images": 150, "timesteps": (20, 40), "criterion": "consensus"}


def misleading(lasting, passing, calls, few):
    """Features with two clusters in all images at one cell, in the first few alone at another, and nowhere else."""

    def extract(cells, draw, count):
        calls.append((list(cells), draw, count))
        found = {}
        for cell in cells:
            rng = np.random.default_rng([len(cell.layer), cell.timestep, cell.pooling, draw])
            values = rng.normal(size=(1000, 6)).astype(np.float32)[:count]
            distance = {lasting: 5, passing: 20}.get(cell, 0)
            clusters = np.arange(count) % 2 * (np.arange(count) < (few if cell == passing else count))
            values[:, 0] += distance * clusters
            found[cell] = values
        return found

    return extract


@pytest.mark.parametrize("strategy", ["grid", "halving"])
def test_the_best_cells_of_a_timestep_are_compared_on_more_images(strategy, caplog):
    calls, space = [], {**FINAL, "strategy": strategy}
    extract = misleading(Cell("middle", 20, 1), Cell("early", 20, 2), calls, few=150)
    plain = search_cells(extract, **space)
    assert plain.final is None
    n_calls = len(calls)
    with caplog.at_level(logging.INFO, "skdiec"):
        result = search_cells(extract, **space, n_final=600)
    final = result.final
    assert (final.n_images, final.n_draws, final.n_forward) == (600, 1, 600)
    assert calls[2 * n_calls :] == [(list(final.cells), 0, 600)]
    of_timestep = [cell for cell in plain.stages[-1].cells if cell.timestep == 20]
    by_score = sorted(of_timestep, key=lambda cell: -plain.scores["consensus"][plain.position(cell)])
    assert list(final.cells) == by_score[:4]
    assert plain.best == final.cells[0] == Cell("early", 20, 2)
    assert result.best == Cell("middle", 20, 1)
    assert result.best == max(final.cells, key=lambda cell: final.scores["consensus"][result.position(cell)])
    assert np.isfinite(final.scores["consensus"]).sum() == 4
    # All else is as without it.
    assert [stage.n_forward for stage in result.stages] == [stage.n_forward for stage in plain.stages]
    for name in result.scores:
        assert_array_equal(result.scores[name], plain.scores[name])
    assert (result.n_images, result.n_forward) == (150, plain.n_forward + 600)
    assert result.n_evaluations == plain.n_evaluations + final.n_evaluations
    assert result.seconds == pytest.approx(sum(stage.seconds for stage in (*result.stages, final)))
    assert caplog.messages[-1] == "on 600 images, the best of 4 is middle, timestep 20, pooling 1"


def test_the_final_graphs_are_added_up(monkeypatch):
    seen = []

    def watched(runs):
        seen.append(runs)
        return scoring.consensus(runs)

    monkeypatch.setattr("skdiec.search.stages.consensus", watched)
    extract = misleading(Cell("middle", 20, 1), Cell("early", 20, 2), [], few=150)
    result = search_cells(extract, **FINAL, n_final=300)
    runs = seen[-1]
    assert list(runs) == list(result.final.cells)
    assert {run.over_noise for (run,) in runs.values()} == {np.inf}  # all are trusted, so that no noise is cut
    total = sum(run.graph for (run,) in runs.values())
    assert total.shape == (300, 300)
    for cell, (run,) in runs.items():
        value = result.final.scores["consensus"][result.position(cell)]
        assert value == pytest.approx(modularity(total, run.labels), abs=1e-12)


def test_the_final_partitions_start_anew(monkeypatch):
    seen = []

    def watched(X, graph, *arguments, n_init, warm_start, **options):
        seen.append((graph.shape[0], n_init, warm_start is None))
        return best_partition(X, graph, *arguments, n_init=n_init, warm_start=warm_start, **options)

    monkeypatch.setattr("skdiec.search.scoring.best_partition", watched)
    extract = misleading(Cell("middle", 20, 1), Cell("early", 20, 2), [], few=150)
    result = search_cells(extract, **FINAL, n_final=300, n_init=2, n_final_init=7)
    cells = set(result.final.cells)
    assert [each for each in seen if each[0] == 300] == len(cells) * [(300, 7, True)]
    assert (150, 2, False) in seen


def test_criterion_that_is_called_like_a_score_leaves_that_alone():
    def scott(features, labels):
        return 7.0

    extract = misleading(Cell("late", 20, 1), None, [], few=0)
    found = search_cells(extract, **{**FINAL, "criterion": scott})
    assert found.criterion == "criterion"
    assert set(found.scores) == {"scott", "criterion"}
    assert not (found.scores["scott"] == 7.0).any()


@pytest.mark.parametrize(
    "changed",
    [{"n_final": 150}, {"n_final": 0}, {"criterion": "scott"}, {"layers": {"late": (6, 2, 2)}, "poolings": (1,)}],
)
def test_where_there_is_nothing_more_to_see_the_search_ends_with_its_stages(changed):
    calls = []
    extract = misleading(Cell("late", 20, 1), None, calls, few=0)
    result = search_cells(extract, **{**FINAL, "n_final": 600, **changed})
    assert result.final is None
    assert max(count for _, _, count in calls) == 150
