"""Search of the layer x timestep x pooling space for the cell that clusters best, without labels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from skdiec.activations import Cell
from skdiec.search.components import principal_components, reduce_features
from skdiec.search.halving import halve
from skdiec.search.results import SearchResult, SearchStage
from skdiec.search.scoring import CRITERIA, MIN_TRUSTED, TRUSTED_SHARE, Criterion, score
from skdiec.search.stages import Extract, Stages, highest_first

__all__ = [
    "MIN_TRUSTED",
    "TRUSTED_SHARE",
    "SearchResult",
    "SearchStage",
    "principal_components",
    "reduce_features",
    "search_cells",
]

logger = logging.getLogger(__name__)

SUBSET_FRACTION = 3
"""Stages of the halving before the last one see one in so many images: fewer of them prefer late timesteps."""

IMAGES_PER_CLUSTER = 40
"""On fewer images for each cluster than this, nothing is dropped."""

N_FINALISTS = MIN_TRUSTED
"""Cells that are compared on more images in the end, so few that the graphs of all are trusted."""


def search_cells(
    extract: Extract,
    *,
    strategy: str = "grid",
    n_images: int,
    n_draws: int,
    n_final: int = 0,
    layers: Mapping[str, tuple[int, int, int]],
    timesteps: Sequence[int],
    poolings: Sequence[int],
    n_clusters: int,
    costs: Mapping[str, float] | None = None,
    criterion: Criterion = "consensus",
    n_components: int = 32,
    n_neighbors: int = 10,
    n_init: int = 3,
    n_final_init: int = 10,
    balance: float = 1.0,
    n_jobs: int | None = None,
    seed: int = 0,
    report: Callable[[int, int], object] | None = None,
) -> SearchResult:
    """Score cells on a subset of the images, and find the best one.

    ``"grid"`` scores every cell (Algorithm A1 of the paper): for every timestep, one pass for each noise draw yields
    all layers. The features of each cell are reduced by PCA to the same number of dimensions and clustered by k-means,
    which gives the Scott score; for other criteria, by the partition with the lowest balanced cut of their
    neighbourhood graph. Scores are averaged over draws.

    ``"halving"`` answers the paper's question whether that can be cheaper. The best layer hardly changes with the
    timestep (the paper's weak coupling), so layers and poolings come first: they are scored at two timesteps, on a
    third of the images and one draw, and the best third stays. Then the timesteps, whose neighbours score alike: one
    of each of four groups of neighbours is scored on as many images, then each of the best group; and the cells of the
    best timestep on all images and draws. Each time the better half of layers and poolings stays, at least four. No
    stage sees fewer than 40 images for each cluster, so that for many clusters all may see all images: then only
    draws, timesteps and layers are saved. Passes end at the deepest layer that is left.

    A timestep is as good as the mean of its cells, and so is a layer with a pooling: their noise averages out. Few
    images and one draw prefer late timesteps: so the earliest one is taken whose mean is within one standard error of
    the highest.

    What few images say of cells that are nearly alike is left to chance. So by ``"consensus"``, the best four cells of
    the best timestep are compared again on `n_final` images and one draw, on the sum of their graphs.

    In other stages, the partition of a cell that was scored before, on fewer images or with another draw, is where
    k-means starts from.

    A partition's cut or modularity on its own graph says as much of the graph as of the partition, so that graphs which
    are easy to cut win. The criterion ``"consensus"`` judges all partitions of a stage on one graph: the sum of the
    neighbourhood graphs of the tenth of the cells, at least four, whose normalised cut is lowest beside that of noise
    (k-means clusters of Gaussian noise with the same variances). Its value is the modularity there
    (`skdiec.scores.modularity`). This departs from the paper, which chooses by the Scott score alone.

    Parameters
    ----------
    extract : callable
        ``extract(cells, draw, n)`` returns the features of the first n images, `n_final` at most if these are more than
        the subset, for cells of one timestep and one noise draw, as a mapping of cells to (n, d) matrices.
    strategy : {"grid", "halving"}, default="grid"
    n_images : int
        Size of the subset.
    n_draws : int
        Noise draws.
    n_final : int, default=0
        Images that the best cells are compared on in the end. Up to `n_images`, or by another criterion than the
        consensus, they are not.
    layers : mapping of str to tuple of int
        Candidate layers with the ``(channels, height, width)`` of their maps.
    timesteps, poolings : sequence of int
        Candidates.
    n_clusters : int
    costs : mapping of str to float, default=None
        Share of the network's work up to each layer; None counts every pass as a whole one.
    criterion : {"consensus", "relative_cut", "normalized_cut", "scott"} or callable, default="consensus"
        A callable gets ``(features, labels)`` and returns a float, higher is better, as scikit-learn's
        unsupervised metrics do.
    n_components : int, default=32
        Dimensions that the Scott score is computed in ("PCA alignment"); fewer where the narrowest cell has fewer. The
        neighbourhood graph uses up to four times as many.
    n_neighbors, n_init, n_jobs
        See `DiffusionEmbeddedClustering`.
    n_final_init : int, default=10
        Runs of k-means for each cell that is compared in the end: these few partitions must be good ones.
    balance : float, default=1.0
        Weight of cluster sizes in the choice of partitions; see `skdiec.scores.balanced_cut`.
    seed : int, default=0
    report : callable, default=None
        Called as ``report(done, total)`` after each timestep and draw of a stage. A comparison in the end is one more
        step of each total, and itself a stage of one.

    Returns
    -------
    SearchResult
    """
    key = criterion if isinstance(criterion, str) else getattr(criterion, "__name__", "criterion")
    if callable(criterion) and key in CRITERIA:  # whose scores are others
        key = "criterion"
    pairs = [
        (layer, pooling)
        for layer in layers
        for pooling in poolings
        if pooling <= min(layers[layer][1:])  # more cells than pixels would only repeat values
    ]
    if not pairs:
        raise ValueError(
            f"pooling must be at most the side of a layer's map; got {list(poolings)} "
            f"for maps (channels, height, width) of {dict(layers)}"
        )
    scoring = partial(
        score,
        n_clusters=n_clusters,
        criterion=criterion,
        n_components=min(n_components, n_images, *(layers[layer][0] * pooling**2 for layer, pooling in pairs)),
        n_neighbors=n_neighbors,
        n_init=n_init,
        balance=balance,
        seed=seed,
    )
    names = list(layers)
    position = {
        Cell(layer, timestep, pooling): (names.index(layer), column, poolings.index(pooling))
        for column, timestep in enumerate(timesteps)
        for layer, pooling in pairs
    }
    shape = (len(names), len(timesteps), len(poolings))
    compares = criterion == "consensus" and n_final > n_images and len(pairs) > 1
    stages = Stages(extract, scoring, position, shape, criterion, key, costs, n_jobs, report, n_later=int(compares))
    cells = list(position)
    if strategy == "halving":
        size = min(n_images, max(n_images // SUBSET_FRACTION, IMAGES_PER_CLUSTER * n_clusters))
        cells = halve(lambda cells: stages.run(cells, size, 1), pairs, timesteps)
    values = stages.run(cells, n_images, n_draws)
    ranked, final = highest_first(values), None
    best, beside = ranked[0], stages.graph_beside(ranked)
    logger.info("best by %s: %s, timestep %d, pooling %d", key, best.layer, best.timestep, best.pooling)
    finalists = [cell for cell in ranked if cell.timestep == best.timestep][:N_FINALISTS]  # they share its passes
    if compares and len(finalists) > 1:
        # No partition starts from what few images have led to.
        thorough = partial(scoring, n_init=n_final_init, is_trusted=True)
        anew = Stages(extract, thorough, position, shape, criterion, key, costs, n_jobs, report)
        best = highest_first(anew.run(finalists, n_final, 1))[0]
        (final,) = anew.done
        shown = (f"{n_final:,}", len(finalists), best.layer, best.timestep, best.pooling)
        logger.info("on %s images, the best of %d is %s, timestep %d, pooling %d", *shown)
    return SearchResult(
        best=best,
        layers=tuple(layers),
        timesteps=tuple(timesteps),
        poolings=tuple(poolings),
        criterion=key,
        stages=tuple(stages.done),
        final=final,
        beside=beside,
    )
