"""The stages of a fit, in their order: backbone, search, features, initial partition, training."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
from numpy.typing import NDArray

from skdiec._callbacks import Stages, Steps
from skdiec._estimator.setup import Setup, set_up
from skdiec._estimator.training import train_head
from skdiec._version import __version__
from skdiec.activations import Cell
from skdiec.backbones import Backbone, check_share_explained, pretrain
from skdiec.cluster_number import MAX_CLUSTERS
from skdiec.features import FeatureExtractor, Motion, small_motions, suited_batch_size
from skdiec.images import ImageSource
from skdiec.initialization import first_number, initialize, projection_of
from skdiec.parallel import in_parallel, library_defaults, one_blas_thread
from skdiec.partition import cluster_tree, cut_over_noise
from skdiec.passes import Passes, search_passes
from skdiec.scores import normalized_cut
from skdiec.search import SearchResult, search_cells
from skdiec.storage import LatentCache
from skdiec.training import Projection

if TYPE_CHECKING:
    from skdiec._estimator import DiffusionEmbeddedClustering

logger = logging.getLogger(__name__)

_SHIFT_FROM_SIDE = 16
"""Sides from which images are moved by default: in smaller ones, a pixel is too much of what they show."""

_MOVED_IMAGES = 3000
"""Images that are compared as they are moved, at most: each is passed thirteen times more."""

_SEARCH_COMPONENTS = 32
_SEARCH_INIT = 2

_FINAL, _MORE = 5, 2
"""The best representations are compared on so many times the images of the search, where there are that many more."""

_FIRST_IMAGES = 1000
"""Images of the first estimate of the number of clusters: the search needs no better one."""

_PRETRAINING_STEPS = _EXTRACTION_STEPS = 100
"""Steps of a stage that callbacks see, whatever the number of batches."""


def seconds_of_passes(model: DiffusionEmbeddedClustering, X: Any) -> float:
    """Measure one batch of images, and return how long all passes of a fit's search and features will take.

    Parameters
    ----------
    model : DiffusionEmbeddedClustering
        Not fitted. Nothing is trained, and it stays as it is.
    X : array-like, folder, sequence or iterable of images or of paths
        As for its `fit`.

    Returns
    -------
    float
        At most, since a search may skip some.
    """
    fitting = model._checked()
    with library_defaults():
        setup = set_up(fitting, X)
        extractor = _extractor(fitting, setup, setup.backbone.copy(setup.device))
        cells = [Cell(layer, setup.timesteps[0], 1) for layer in setup.layers]
        rows = np.arange(min(len(setup.source), extractor.at_once))
        seconds = math.inf
        for _ in range(3):  # the first call takes longer, and others where something else is running
            started = time.perf_counter()
            extractor.extract(setup.source, cells, rows=rows, draw=0)
            seconds = min(seconds, time.perf_counter() - started)
    passes = _passes_ahead(fitting, setup)
    return (passes.n_search + passes.n_features) * seconds / len(rows)


def fit_in_stages(model: DiffusionEmbeddedClustering, X: Any, stages: Stages) -> None:
    """Run all stages, and set what the model learns."""
    setup = set_up(model, X)
    source, seeds, memory = setup.source, setup.seeds, setup.memory
    model._format, model.image_shape_, model.value_range_ = source.format, source.shape, source.format.value_range
    if setup.files is not None:
        model.files_ = setup.files
    if not source.format.is_table:
        model.n_features_in_ = math.prod(source.shape)

    passes = _passes_ahead(model, setup)
    passes.announce()
    with stages.stage("backbone", _PRETRAINING_STEPS if setup.pretraining is not None else 0) as steps:
        extractor = _get_backbone(model, setup, steps)
    n_steps = len(setup.timesteps) * model.search_draws + bool(_n_final(model, setup))
    with stages.stage("search", n_steps if model.search == "grid" else None) as steps:
        model.n_clusters_ = _first_number(model, extractor, setup)
        search = _search(model, extractor, setup, steps, passes)
    model.layer_, model.timestep_, model.pooling_ = search.best.layer, search.best.timestep, search.best.pooling
    model.search_result_ = dataclasses.replace(search, beside=None)
    model.layers_, model.timesteps_ = search.layers, search.timesteps
    model.scott_scores_ = search.scores["scott"][:, :, search.poolings.index(search.best.pooling)]
    model._cell = search.best

    with stages.stage("features", _EXTRACTION_STEPS) as steps:
        cached = dataclasses.replace(extractor, memory=memory)
        motions, rows = _motions(model, source), _moved_rows(source, seeds.start)

        def part(n_before: int, count: int) -> Callable[[int, int], object]:
            """Return what tells callbacks of passes after others, so many for each image."""
            return lambda done, _: steps.report(n_before + count * done, passes.n_features)

        then = part(0, model.n_draws)
        timed = passes.timed(passes.n_features, at_once=extractor.at_once, per_image=model.n_draws, then=then)
        features = cached.extract(source, [search.best], report=timed)[search.best]
        features = np.asarray(features)  # a memory map has another hash, in the cache, than the same numbers
        with one_blas_thread:
            projection = memory.cache(projection_of, ignore=["n_jobs"])(
                __version__, features, model.n_components, seeds.start, model.n_jobs
            )

        def see(number: int, motion: Motion) -> NDArray[np.float32]:
            cells, then = [search.best], part(model.n_draws * len(source) + number * len(rows), 1)
            return extractor.extract(source, cells, rows=rows, draw=0, motion=motion, report=then)[cells[0]]

        key: tuple = (_MOVED_IMAGES, model.n_components, seeds.start, __version__)
        if memory.location is not None:
            key = (source.fingerprint(), extractor.key(), search.best, *key)
        moved = memory.cache(_project_moved, ignore=["see", "projection"])(key, motions, see, projection)
    with stages.stage("partition"), one_blas_thread:
        h = projection.project(features)
        start = memory.cache(initialize, ignore=["n_jobs"])(
            __version__,
            h,
            moved,
            rows,
            search.beside,
            model.n_clusters if setup.distinct is None else setup.distinct,
            model.n_neighbors,
            model.neighbors_algorithm,
            model.init,
            model.n_init,
            model.gamma,
            seeds.start,
            model.n_jobs,
        )
    model.initial_labels_, model.stability_ = start.labels, start.stability
    taken, model.n_clusters_ = model.n_clusters_, start.n_clusters
    if start.number is not None:
        logger.info("%d clusters (the search took %d)", start.n_clusters, taken)
        model.n_clusters_scores_ = {
            "n_clusters": start.number.candidates,
            "silhouette": start.number.silhouettes,
            "modularity": start.number.modularities,
            "score": start.number.scores,
        }
    model.n_components_ = model._n_features_out = h.shape[1]
    with stages.stage("training", 0 if model.head is None else model.max_epochs) as steps:
        train_head(model, extractor, source, projection, h, start, seeds.head, steps)
    model.fit_seconds_ = stages.seconds

    # A trained backbone has other features now.
    model.embedding_ = model._map(source, model._model.embed) if model.train_backbone else model._model.embed(features)
    assigned = model._model.assign(model.embedding_)
    model.labels_, model.probabilities_ = assigned.argmax(axis=1).astype(np.int32), assigned.max(axis=1)
    if (counts := model._labels_kept()) is not None:
        logger.info("labels: %d of the %d that were given are kept", *counts)
    tree = functools.partial(cluster_tree, model.embedding_, start.graph, model.labels_, seed=seeds.start)
    compare = functools.partial(cut_over_noise, h, model.labels_, model.n_neighbors, normalized_cut, seed=seeds.start)
    found: list[Any] = in_parallel([tree, compare], 1)
    (model.fine_labels_, model.linkage_), model.cut_over_noise_ = found


def _get_backbone(model: DiffusionEmbeddedClustering, setup: Setup, steps: Steps) -> FeatureExtractor:
    """Train the backbone, or take the given one, and look whether it fits the images."""
    backbone, source = setup.backbone, setup.source
    if setup.pretraining is not None:
        arguments = setup.pretraining.get_params()
        if arguments["folder"] is None and setup.memory.location is not None:
            # One folder for each training: its settings are those that the untrained backbone was built by.
            key = joblib.hash((source.fingerprint(), backbone.recipe["settings"]))
            arguments["folder"] = Path(setup.memory.location) / "skdiec-backbones" / key
        backbone = pretrain(
            source,
            **arguments,
            device=setup.device,
            verbose=model.verbose,
            report=lambda done, total, loss: steps.report(done, total),
        )
    elif backbone is model.backbone:  # a Backbone of the caller's
        backbone = backbone.copy(setup.device)
    model.backbone_ = backbone.to(setup.device)
    model.share_explained_ = check_share_explained(
        backbone, source, is_trained_on_it=setup.pretraining is not None, seed=setup.seeds.noise
    )
    return _extractor(model, setup, backbone)


def _extractor(model: DiffusionEmbeddedClustering, setup: Setup, backbone: Backbone) -> FeatureExtractor:
    shift = _shift(model, setup.source)
    batch_size = model.inference_batch_size or suited_batch_size(backbone)
    return FeatureExtractor(backbone, model.n_draws, shift, setup.seeds.noise, batch_size, model.precision)


def _shift(model: DiffusionEmbeddedClustering, source: ImageSource) -> int:
    if model.shift is not None:
        return model.shift
    return int(min(source.shape[1:]) >= _SHIFT_FROM_SIDE and not source.format.is_table)


def _motions(model: DiffusionEmbeddedClustering, source: ImageSource) -> list[Motion]:
    """Return by which motions images are compared, if by any: where a graph decides, and shifts are wanted."""
    is_graph = isinstance(model.init, str) and model.init == "graph"
    return small_motions(*source.shape[1:]) if is_graph and _shift(model, source) > 0 else []


def _moved_rows(source: ImageSource, seed: int) -> NDArray[np.integer]:
    """Return which images are compared as they are moved."""
    size = min(len(source), _MOVED_IMAGES)
    return np.sort(np.random.default_rng(seed).choice(len(source), size, replace=False))


def _first_number(model: DiffusionEmbeddedClustering, extractor: FeatureExtractor, setup: Setup) -> int:
    """Return the number of clusters, estimated where it is open before anything was searched.

    What estimates it is the layer with the smallest map.
    """
    if model.n_clusters != "auto":
        return model.n_clusters
    layer = min(setup.layers, key=lambda name: math.prod(setup.layers[name][1:]))
    fitting = [pooling for pooling in setup.poolings if pooling <= min(setup.layers[layer][1:])]
    timestep = setup.timesteps[(len(setup.timesteps) - 1) // 2]
    cell = Cell(layer, timestep, max(fitting, default=min(setup.poolings)))
    extractor = dataclasses.replace(extractor, n_draws=model.search_draws)
    features = extractor.extract(setup.source, [cell], rows=_first_rows(setup))[cell]
    with one_blas_thread:
        found = first_number(features, _SEARCH_COMPONENTS, model.n_neighbors, setup.seeds.search, model.n_jobs)
    return min(found, max(2, min(len(setup.source), model.max_search_samples) // 2))  # the search may see fewer images


def _first_rows(setup: Setup) -> NDArray[np.integer]:
    """Return the rows that the first estimate of the number of clusters sees, if there is one."""
    distinct = setup.distinct
    return np.empty(0, np.int64) if distinct is None else distinct[:: math.ceil(len(distinct) / _FIRST_IMAGES)]


def _passes_ahead(model: DiffusionEmbeddedClustering, setup: Setup) -> Passes:
    searched = search_passes(
        model.search,
        n_images=min(len(setup.source), model.max_search_samples),
        n_draws=model.search_draws,
        n_final=_n_final(model, setup),
        n_timesteps=len(setup.timesteps),
        n_clusters=MAX_CLUSTERS if model.n_clusters == "auto" else model.n_clusters,
    )
    searched += len(_first_rows(setup)) * model.search_draws
    share = max(setup.costs.values())
    n_moved = len(_motions(model, setup.source)) * min(len(setup.source), _MOVED_IMAGES)
    features = len(setup.source) * model.n_draws + n_moved
    return Passes(searched, features, share, setup.multiplications)


def _search(
    model: DiffusionEmbeddedClustering, extractor: FeatureExtractor, setup: Setup, steps: Steps, passes: Passes
) -> SearchResult:
    source, seeds, memory = setup.source, setup.seeds, setup.memory
    size, n_final = min(len(source), model.max_search_samples), _n_final(model, setup)
    rng = np.random.default_rng(seeds.subset)
    order = rng.choice(len(source), size, replace=False)
    if n_final:
        others = np.setdiff1d(np.arange(len(source)), order)
        order = np.concatenate([order, rng.choice(others, n_final - size, replace=False)])
    extractor = dataclasses.replace(extractor, n_draws=model.search_draws, latents=LatentCache())
    n_left = passes.n_search - len(_first_rows(setup)) * model.search_draws + passes.n_features
    key: tuple = ()
    if memory.location is not None:
        settings = (seeds, extractor.shift, extractor.precision, __version__)
        key = (source.fingerprint(), extractor.backbone.fingerprint(), *settings)
    if callable(model.criterion):  # joblib knows functions by their names alone, and some not at all
        memory = joblib.Memory(None)

    def extract(cells: Sequence[Cell], draw: int, count: int) -> Mapping[Cell, NDArray[np.float32]]:
        timed = passes.timed(n_left, at_once=extractor.at_once)
        return extractor.extract(source, cells, rows=order[:count], draw=draw, report=timed)

    found = memory.cache(_run_search, ignore=["extract", "n_jobs", "report"])(
        key,
        extract,
        n_jobs=model.n_jobs,
        report=steps.report,
        strategy=model.search,
        n_images=size,
        n_draws=model.search_draws,
        n_final=n_final,
        layers=setup.layers,
        timesteps=setup.timesteps,
        poolings=setup.poolings,
        costs=setup.costs,
        n_clusters=model.n_clusters_,
        criterion=model.criterion,
        n_components=_SEARCH_COMPONENTS,
        n_neighbors=model.n_neighbors,
        n_init=min(model.n_init, _SEARCH_INIT),
        balance=model.gamma,
        seed=seeds.search,
    )
    if found.beside is None or size < len(source):
        return dataclasses.replace(found, beside=None)
    place = order.argsort()
    return dataclasses.replace(found, beside=found.beside[place][:, place])


def _n_final(model: DiffusionEmbeddedClustering, setup: Setup) -> int:
    """Return on how many images the best representations are compared in the end: none where few more are left.

    Other criteria than the consensus judge each representation by its own features: they stay as they are. So does the
    only one of a timestep.
    """
    n_images = len(setup.source)
    if model.criterion != "consensus" or n_images < _MORE * model.max_search_samples:
        return 0
    if len(setup.layers) * len(setup.poolings) == 1:
        return 0
    return min(n_images, _FINAL * model.max_search_samples)


def _project_moved(
    key: tuple,
    motions: Sequence[Motion],
    see: Callable[[int, Motion], NDArray[np.float32]],
    projection: Projection,
) -> list[NDArray[np.float64]]:
    # One after the other: before they are projected, features are wide. `key` stands for all else that they depend on.
    projected = []
    for number, motion in enumerate(motions):
        seen = see(number, motion)
        with one_blas_thread:  # not around the passes, which have all threads
            projected.append(projection.project(seen))
    return projected


def _run_search(
    key: tuple, extract: Callable, n_jobs: int | None, report: Callable[[int, int], object], **arguments: Any
) -> SearchResult:
    # A function of its own, so that joblib's key holds no closure: `key` stands for images, weights and seeds.
    return search_cells(extract, n_jobs=n_jobs, report=report, **arguments)
