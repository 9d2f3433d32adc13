"""From a folder to a fitted estimator: every value is checked before it is used."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from skdiec.activations import Cell
from skdiec.backbones import Backbone
from skdiec.backbones.config_files import Fields
from skdiec.features import FeatureExtractor
from skdiec.images import ImageFormat
from skdiec.messages import shown
from skdiec.saving import Expected, ModelFolder, check_keys, open_model
from skdiec.search import SearchResult, SearchStage
from skdiec.state.values import FLOATS, MANY, NEVER_SAVED, decoded, read_type
from skdiec.training import EmbeddingModel, Projection, ResidualHead

MAX_FLOAT = 1.7976931348623157e308

_OUTPUTS = (None, "default", "pandas", "polars")


def load_model(
    folder: str | os.PathLike,
    make: Callable[[str, Mapping[str, Any]], Any],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Any:
    """Load what `save_model` saved.

    Parameters
    ----------
    folder, revision, token
        See `skdiec.load`.
    make : callable
        Makes the estimator, not yet fitted, of the name of its class and its parameters. It raises ValueError for wrong
        ones. It is called twice, first with arrays that have no values yet.

    Returns
    -------
    DiffusionEmbeddedClustering

    Raises
    ------
    ValueError
        Where there is no such model, or its files are damaged or contradict each other.
    """
    saved = open_model(folder, revision=revision, token=token)
    made, attributes, arrays = _read(saved, make)
    _add_backbones(attributes, saved)
    model = made(lambda name, wanted: arrays[name])
    vars(model).update(attributes)
    return model


def check_saved(folder: Path) -> None:
    """Raise ValueError for a folder that could not be loaded again, since the model was changed after its fit.

    Parameters
    ----------
    folder : Path
        Just written. Its backbones are not read.
    """
    try:
        _read(open_model(folder), lambda kind, parameters: None)
    except ValueError as error:
        raise ValueError(f"the model has fitted attributes or an output that could not be loaded: {error}") from error


def _read(
    saved: ModelFolder, make: Callable[[str, Mapping[str, Any]], Any]
) -> tuple[Callable[[Callable[[str, Expected], NDArray]], Any], dict[str, Any], dict[str, NDArray]]:
    """Read all but the backbones: what makes the estimator, its fitted attributes, and all arrays."""
    kind = saved.values["class"]
    fitted = Fields({**_LATER, **saved.values["fitted"]}, f"{saved.where}: fitted")
    expected: dict[str, Expected] = {}

    def outline(name: str, wanted: Expected) -> NDArray:
        expected[name] = wanted
        return np.broadcast_to(np.zeros((), wanted[0]), wanted[1])  # takes no memory, whatever the shape

    def made(array_of: Callable[[str, Expected], NDArray]) -> Any:
        try:
            parameters = decoded({"dict": saved.values["parameters"]}, "parameters", array_of, saved.where)
            for name in NEVER_SAVED:
                if parameters.get(name) is not None:
                    raise ValueError(f"parameters must not have {name!r}; got {shown(parameters[name])}")
            return make(kind, parameters)
        except ValueError as error:
            message = str(error)
            raise ValueError(message if saved.where in message else f"{saved.where}: {message}") from error

    made(outline)
    expected |= _expected(fitted)
    arrays = saved.arrays(expected)
    return made, _decoded_state(fitted, arrays, saved.where_arrays), arrays


_NUMBERS = {
    "n_samples": (2, MANY),
    "n_clusters": (1, MANY),
    "n_components_": (1, MANY),
    "n_features_in_": (1, MANY),
    "n_features": (1, MANY),
    "n_fine": (1, MANY),
    "n_snapshot_rows": (0, MANY),
    "n_iter_": (0, 2**63),
}
_OTHERS = {
    "hidden_size",
    "n_candidates",
    "nu",
    "stability_",
    "cut_over_noise_",
    "share_explained_",
    "fit_seconds_",
    "warnings_",
    "snapshots_",
    "history_",
    "image_format",
    "extractor",
    "search_result_",
    "transform_output",
    "files_",
    "feature_names_in_",
}
_LATER: dict[str, Any] = {"warnings_": [], "n_candidates": None}
"""What models have that were saved before these values were kept."""
_NUMBER_SCORES = {"n_clusters": "int64", "silhouette": "float64", "modularity": "float64", "score": "float64"}
_SEARCH = {"layers", "timesteps", "poolings", "best", "criterion", "stages", "final"}
_STAGE = {"n_images", "n_draws", "n_cells", "scores", "n_forward", "n_evaluations", "seconds"}


def _part(fields: Fields, name: str, keys: Iterable[str] | None = None) -> Fields:
    """Return an object of an object, with just these keys."""
    part = Fields(fields.mapping(name), f"{fields.where}.{name}")
    if keys is not None:
        check_keys(part, keys)
    return part


def _expected(fields: Fields) -> dict[str, Expected]:
    """Check the values, and return the types and shapes that the arrays must have by them."""
    check_keys(fields, {*_NUMBERS, *_OTHERS})
    _strings(fields, "warnings_", least=0)
    sizes = {name: fields.integer(name, *bounds) for name, bounds in _NUMBERS.items()}
    n, k, d = (sizes[name] for name in ("n_samples", "n_clusters", "n_components_"))
    expected: dict[str, Expected] = {
        "labels_": ("int32", (n,)),
        "initial_labels_": ("int32", (n,)),
        "fine_labels_": ("int32", (n,)),
        "probabilities_": ("float64", (n,)),
        "embedding_": ("float32", (n, d)),
        "cluster_centers_": ("float64", (k, d)),
        "linkage_": ("float64", (sizes["n_fine"] - 1, 4)),
        "projection.mean": ("float64", (sizes["n_features"],)),
        "projection.components": ("float64", (d, sizes["n_features"])),
    }
    n_rows = sizes["n_snapshot_rows"]
    expected["snapshot_rows_"] = ("int64", (n_rows,))
    if fields.values["n_candidates"] is not None:
        n_candidates = fields.integer("n_candidates", 0, MANY)
        for name, dtype in _NUMBER_SCORES.items():
            expected[f"n_clusters_scores_.{name}"] = (dtype, (n_candidates,))
    for epoch in _epochs(fields):
        expected[f"snapshots_.{epoch}"] = ("float32", (n_rows, d))
    if fields.values["hidden_size"] is not None:
        hidden = fields.integer("hidden_size", 1, 2**16)
        expected["head.g.0.weight"] = ("float64", (hidden, d))
        expected["head.g.0.bias"] = ("float64", (hidden,))
        expected["head.g.2.weight"] = ("float64", (d, hidden))
        expected["head.g.2.bias"] = ("float64", (d,))
    history = _part(fields, "history_")
    for name in history.values:
        dtype, shape = read_type(_part(history, name))
        if shape not in ((sizes["n_iter_"] + 1,), (sizes["n_iter_"] + 1, k)):
            raise ValueError(f"{history.where}: {shown(name)} must have an entry for each epoch; got shape {shape}")
        expected[f"history_.{name}"] = (dtype, shape)
    for name in ("files_", "feature_names_in_"):
        if fields.values[name] is not None:
            expected[name] = ("uint8", (fields.integer(name, 2, MANY),))
    search = _search(fields)
    axes = _axes(search)
    if not isinstance(search.values["criterion"], str):
        raise ValueError(f"{search.where}: criterion must be a string; got {shown(search.values['criterion'])}")
    for number, stage in _stages(search).items():
        scores = _strings(stage, "scores")
        if not {"scott", search.values["criterion"]} <= set(scores):
            raise ValueError(f"{stage.where}: scores must have 'scott' and the criterion; got {shown(scores)}")
        name = f"search_result_.{number}"
        expected[f"{name}.cells"] = ("int64", (stage.integer("n_cells", 0, MANY), 3))
        expected |= {f"{name}.scores.{key}": ("float64", tuple(map(len, axes))) for key in scores}
    return expected


def _search(fields: Fields) -> Fields:
    """Return what was searched; models that were saved before there was a final stage have none."""
    search = Fields({"final": None, **fields.mapping("search_result_")}, f"{fields.where}.search_result_")
    check_keys(search, _SEARCH)
    return search


def _stages(search: Fields) -> dict[str, Fields]:
    """Return the stages of a search by their number, the final one by its name."""
    stages = search.values["stages"]
    if not isinstance(stages, list) or not stages:
        raise ValueError(f"{search.where}: stages must be a list of the search's stages; got {shown(stages)}")
    by_number = Fields({str(number): stage for number, stage in enumerate(stages)}, f"{search.where}.stages")
    found = {number: _part(by_number, number, _STAGE) for number in by_number.values}
    return found if search.values["final"] is None else {**found, "final": _part(search, "final", _STAGE)}


def _axes(search: Fields) -> tuple[tuple[Any, ...], ...]:
    timesteps = search.integers("timesteps", 0, 2**31, range(1, 2**20))
    poolings = search.integers("poolings", 1, 2**31, range(1, 2**20))
    return tuple(_strings(search, "layers")), timesteps, poolings


def _strings(fields: Fields, name: str, *, least: int = 1) -> list[str]:
    texts = fields.values[name]
    if not isinstance(texts, list) or len(texts) < least or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{fields.where}: {name} must be a list of strings; got {shown(texts)}")
    return texts


def _float(fields: Fields, name: str) -> float:
    value = fields.values[name]
    if isinstance(value, str) and value in FLOATS:
        return FLOATS[value]
    return fields.number(name, -MAX_FLOAT, MAX_FLOAT)


def _epochs(fields: Fields) -> tuple[int, ...]:
    """Return the epochs whose embeddings were kept."""
    return fields.integers("snapshots_", 0, fields.values["n_iter_"], range(fields.values["n_iter_"] + 2))


def _decoded_state(fields: Fields, arrays: dict[str, NDArray], where: str) -> dict[str, Any]:
    """Return the attributes of the fitted estimator, but for those of its backbones."""
    _check_arrays(arrays, fields.values["n_clusters"], where)
    search = _decoded_search(_search(fields), arrays, where)
    formatted = _part(fields, "image_format", ("shape", "value_range", "is_table", "kind"))
    low, high = formatted.numbers("value_range", -MAX_FLOAT, MAX_FLOAT, 2)
    if not low < high:
        raise ValueError(f"{formatted.where}: value_range must have the lower value first; got {(low, high)}")
    image_format = ImageFormat(
        formatted.shape("shape", 2**28),
        (low, high),
        formatted.choice("is_table", (True, False)),
        formatted.choice("kind", ("uint8", "bool", "integer", "float", None)),
    )
    if fields.values["n_features_in_"] > math.prod(image_format.shape):
        raise ValueError(f"{fields.where}: n_features_in_ must be what images of {image_format.shape} hold at most")
    shares, seconds = _part(fields, "share_explained_"), _part(fields, "fit_seconds_")
    if not all(name.isascii() and name.isdigit() and len(name) < 20 for name in shares.values):
        raise ValueError(f"{shares.where} must have timesteps as keys; got {shown(list(shares.values))}")
    dimensions = fields.values["n_components_"]
    head = None
    if fields.values["hidden_size"] is not None:
        head = ResidualHead(dimensions, fields.values["hidden_size"]).double()
        state = {name.removeprefix("head."): array for name, array in arrays.items() if name.startswith("head.")}
        head.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    attributes = {
        "labels_": arrays["labels_"],
        "initial_labels_": arrays["initial_labels_"],
        "fine_labels_": arrays["fine_labels_"],
        "probabilities_": arrays["probabilities_"],
        "snapshots_": {epoch: arrays[f"snapshots_.{epoch}"] for epoch in _epochs(fields)},
        "snapshot_rows_": arrays["snapshot_rows_"],
        "embedding_": arrays["embedding_"],
        "linkage_": arrays["linkage_"],
        "_model": EmbeddingModel(
            Projection(arrays["projection.mean"], arrays["projection.components"], 1.0),
            head,
            arrays["cluster_centers_"],
            fields.number("nu", 1e-6, 1e6),
        ),
        "history_": {name: arrays[f"history_.{name}"] for name in fields.values["history_"]},
        "n_iter_": fields.values["n_iter_"],
        "_format": image_format,
        "_cell": search.best,
        "n_components_": dimensions,
        "_n_features_out": dimensions,
        "n_features_in_": fields.values["n_features_in_"],
        "image_shape_": image_format.shape,
        "value_range_": image_format.value_range,
        "layer_": search.best.layer,
        "timestep_": search.best.timestep,
        "pooling_": search.best.pooling,
        "search_result_": search,
        "layers_": search.layers,
        "timesteps_": search.timesteps,
        "scott_scores_": search.scores["scott"][:, :, search.poolings.index(search.best.pooling)],
        "stability_": _float(fields, "stability_"),
        "cut_over_noise_": _float(fields, "cut_over_noise_"),
        "share_explained_": {int(name): _float(shares, name) for name in shares.values},
        "warnings_": fields.values["warnings_"],
        "fit_seconds_": {name: seconds.number(name, 0, MAX_FLOAT) for name in seconds.values},
    }
    attributes["cluster_centers_"] = attributes["_model"].centers
    attributes["n_clusters_"] = len(attributes["cluster_centers_"])
    if fields.values["n_candidates"] is not None:
        attributes["n_clusters_scores_"] = {name: arrays[f"n_clusters_scores_.{name}"] for name in _NUMBER_SCORES}
    if "files_" in arrays:
        attributes["files_"] = [Path(name) for name in _unpacked("files_", arrays, len(arrays["labels_"]), where)]
    if "feature_names_in_" in arrays:
        names = _unpacked("feature_names_in_", arrays, fields.values["n_features_in_"], where)
        attributes["feature_names_in_"] = np.array(names, dtype=object)
    if (output := fields.choice("transform_output", _OUTPUTS)) is not None:
        attributes["_sklearn_output_config"] = {"transform": output}
    return attributes


def _check_arrays(arrays: Mapping[str, NDArray], n_clusters: int, where: str) -> None:
    """Raise ValueError for values that no fit ends with, and that others would stumble over."""
    n_fine = len(arrays["linkage_"]) + 1
    for name, count in (("labels_", n_clusters), ("initial_labels_", n_clusters), ("fine_labels_", n_fine)):
        low, high = arrays[name].min(), arrays[name].max()
        if low < 0 or high >= count:
            raise ValueError(f"{where}: {name} must be from 0 to {count - 1}; got {low} to {high}")
    rows = arrays["snapshot_rows_"]
    if len(rows) and not 0 <= rows.min() <= rows.max() < len(arrays["labels_"]):
        raise ValueError(f"{where}: snapshot_rows_ must be rows of the {len(arrays['labels_'])} images")
    merged = arrays["linkage_"][:, :2]
    highest = n_fine + np.arange(n_fine - 1)[:, None]
    is_tree = ((merged >= 0) & (merged < highest) & (merged == np.floor(merged))).all()
    if not is_tree or len(np.unique(merged)) < merged.size:
        raise ValueError(f"{where}: linkage_ must merge each cluster once, after it was made")
    for name, array in arrays.items():
        is_learned = name.startswith(("projection.", "head.")) or name == "cluster_centers_"
        if is_learned and not np.isfinite(array).all():
            raise ValueError(f"{where}: {shown(name)} has values that are not finite")


def _decoded_search(search: Fields, arrays: Mapping[str, NDArray], where: str) -> SearchResult:
    axes = layers, timesteps, poolings = _axes(search)
    sizes = tuple(map(len, axes))

    def cell(position: Sequence[int]) -> Cell:
        return Cell(*(axis[index] for axis, index in zip(axes, position, strict=True)))

    def stage_of(number: str, stage: Fields) -> SearchStage:
        name = f"search_result_.{number}"
        cells = arrays[f"{name}.cells"]
        if not ((cells >= 0) & (cells < sizes)).all():
            raise ValueError(f"{where}: {name}.cells must have positions in a grid of {sizes}")
        return SearchStage(
            n_images=stage.integer("n_images", 0, MANY),
            n_draws=stage.integer("n_draws", 1, MANY),
            cells=tuple(cell(position) for position in cells),
            scores={key: arrays[f"{name}.scores.{key}"] for key in stage.values["scores"]},
            n_forward=stage.integer("n_forward", 0, 2**63),
            n_evaluations=stage.number("n_evaluations", 0, MAX_FLOAT),
            seconds=stage.number("seconds", 0, MAX_FLOAT),
        )

    stages = {number: stage_of(number, stage) for number, stage in _stages(search).items()}
    final = stages.pop("final", None)
    best = search.integers("best", 0, max(sizes) - 1, range(3, 4))
    if any(index >= size for index, size in zip(best, sizes, strict=True)):
        raise ValueError(f"{search.where}: best must be a position in a grid of {sizes}; got {best}")
    criterion = search.values["criterion"]
    return SearchResult(cell(best), layers, timesteps, poolings, criterion, tuple(stages.values()), final)


def _unpacked(name: str, arrays: Mapping[str, NDArray], count: int, where: str) -> list[str]:
    try:
        texts = json.loads(arrays[name].tobytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: {name} is no JSON: {error}") from error
    if not isinstance(texts, list) or len(texts) != count or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: {name} must have {count} strings")
    return texts


def _add_backbones(attributes: dict[str, Any], saved: ModelFolder) -> None:
    """Load the backbones and check that they fit the rest."""
    where = f"{saved.where}: fitted"
    settings = _part(
        Fields(saved.values["fitted"], where), "extractor", ("n_draws", "shift", "seed", "batch_size", "precision")
    )
    options = {
        "n_draws": settings.integer("n_draws", 1, 10_000),
        "shift": settings.integer("shift", 0, 2**16),
        "seed": settings.integer("seed", 0, 2**32 - 1),
        "batch_size": settings.integer("batch_size", 1, 2**63),
        "precision": settings.choice("precision", ("fp32", "bf16", "fp16")),
    }
    if (attributes["_model"].head is None) and saved.n_backbones == 1:
        raise ValueError(f"{where}.hidden_size must be a number where there is one backbone; got None")
    backbones = saved.backbones()
    for backbone in backbones:
        _check_fit(backbone, attributes, where)
    attributes["_extractors"] = [FeatureExtractor(backbone, **options) for backbone in backbones[::-1]]
    attributes["backbone_"] = backbones[0]


def _check_fit(backbone: Backbone, attributes: Mapping[str, Any], where: str) -> None:
    cell = attributes["_cell"]
    try:
        backbone.check_channels(attributes["image_shape_"][0])
        backbone.check_timestep(cell.timestep)
        channels, *sides = FeatureExtractor(backbone).layer_shapes([cell.layer])[cell.layer]
    except ValueError as error:
        raise ValueError(f"{where} does not fit its backbone: {error}") from error
    width, found = channels * cell.pooling**2, len(attributes["_model"].projection.mean)
    if cell.pooling > min(sides) or width != found:
        raise ValueError(
            f"{where} does not fit its backbone: n_features should be {width}, of {channels} channels of "
            f"{cell.layer} at pooling {cell.pooling}; got {found}"
        )
