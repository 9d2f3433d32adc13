"""The estimator's parameters: what each may be, and what they must be together."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, cast

import joblib
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn import get_config
from sklearn.utils import check_array
from sklearn.utils._param_validation import (
    HasMethods,
    Interval,
    InvalidParameterError,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils.validation import check_memory

from skdiec.backbones import Backbone, Pretraining, linear_ratio
from skdiec.features import FeatureExtractor
from skdiec.messages import MAX_LENGTH, shortened, shown

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator

DEFAULT_TIMESTEPS = (10, 25, 50, 100, 150, 200, 300, 400)
"""Timesteps searched by default, of a DDPM's linear schedule; of others, those with the nearest noise to signal."""

DEFAULT_POOLINGS = (1, 2, 4)
"""Poolings searched by default."""

CONSTRAINTS: dict[str, list[Any]] = {
    "n_clusters": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
    "backbone": [str, os.PathLike, HasMethods(["parameters"]), HasMethods(["save_pretrained"]), Pretraining],
    "image_shape": ["array-like", None],
    "channel_axis": [Integral, None],
    "value_range": ["array-like", None],
    "layer": [str, "array-like", None],
    "timestep": [Integral, "array-like", None],
    "pooling": [Interval(Integral, 1, None, closed="left"), "array-like", None],
    "search": [StrOptions({"grid", "halving"})],
    "criterion": [StrOptions({"consensus", "relative_cut", "normalized_cut", "scott"}), callable],
    "max_search_samples": [Interval(Integral, 2, None, closed="left")],
    "search_draws": [Interval(Integral, 1, 10_000, closed="both")],
    "n_draws": [Interval(Integral, 1, 10_000, closed="both")],
    "shift": [Interval(Integral, 0, None, closed="left"), None],
    "n_components": [Interval(Integral, 1, None, closed="left")],
    "n_neighbors": [Interval(Integral, 1, None, closed="left")],
    "neighbors_algorithm": [StrOptions({"exact", "nndescent"})],
    "init": [StrOptions({"graph", "k-means++"}), "array-like"],
    "n_init": [Interval(Integral, 1, 10_000, closed="both")],
    "head": [StrOptions({"residual", "direct"}), None],
    "train_backbone": ["boolean"],
    "alpha": [Interval(Real, 0, 1e6, closed="both")],
    "beta": [Interval(Real, 0, 1e6, closed="both")],
    "gamma": [Interval(Real, 0, 1e6, closed="both")],
    "denoising_weight": [Interval(Real, 0, 1e6, closed="both")],
    "nu": [Interval(Real, 1e-6, 1e6, closed="both")],
    "hidden_size": [Interval(Integral, 1, 2**16, closed="both")],
    "max_epochs": [Interval(Integral, 1, None, closed="left")],
    "warmup_epochs": [Interval(Integral, 0, None, closed="left")],
    "batch_size": [Interval(Integral, 1, None, closed="left"), None],
    "learning_rate": [Interval(Real, 0, 1e6, closed="right"), None],
    "backbone_learning_rate": [Interval(Real, 0, 1e6, closed="right")],
    "tol": [Interval(Real, 0, 1, closed="both")],
    "update_interval": [Interval(Integral, 1, None, closed="left")],
    "n_snapshots": [Interval(Integral, 0, None, closed="left")],
    "memory": [str, joblib.Memory, None],
    "inference_batch_size": [Interval(Integral, 1, None, closed="left"), None],
    "precision": [StrOptions({"fp32", "bf16", "fp16"})],
    "device": [str, torch.device, None],
    "n_jobs": [Interval(Integral, None, None, closed="neither"), None],
    "random_state": ["random_state"],
    "verbose": ["verbose"],
}

_FEWEST_FOR_AUTO = 4
"""Images that the search needs to look at numbers of clusters."""

_NUMBERS: dict[str, type[int] | type[float]] = {
    name: int if constraints[0].type is Integral else float
    for name, constraints in CONSTRAINTS.items()
    if isinstance(constraints[0], Interval) and "array-like" not in constraints
}
"""Parameters that are one number, and its type."""


def check_parameters(estimator: BaseEstimator) -> None:
    """Raise for parameters that no images could be clustered with; set numbers of any library as Python's own.

    Parameters
    ----------
    estimator : DiffusionEmbeddedClustering
        A copy that may be changed.

    Raises
    ------
    ValueError
        For a parameter that is of another kind, out of range, or does not go with another one.
    ImportError
        Where a parameter needs a package that is not installed.
    """
    for name, kind in _NUMBERS.items():
        setattr(estimator, name, _as_plain_number(name, getattr(estimator, name), kind))
    if not get_config()["skip_parameter_validation"]:
        check_constraints(estimator)
    if estimator.head == "direct" and not estimator.train_backbone:
        raise ValueError("head='direct' trains the backbone: it needs train_backbone=True")
    if estimator.head is None and estimator.train_backbone:
        raise ValueError("train_backbone=True needs a head to train; got head=None")
    if estimator.neighbors_algorithm == "nndescent" and importlib.util.find_spec("pynndescent") is None:
        raise ImportError(
            "neighbors_algorithm='nndescent' needs pynndescent, which is not installed: pip install pynndescent"
        )
    is_open = isinstance(estimator.n_clusters, str)
    if not is_open and estimator.max_search_samples < estimator.n_clusters:
        raise ValueError(
            f"max_search_samples must be at least n_clusters={estimator.n_clusters}; got {estimator.max_search_samples}"
        )
    if is_open and estimator.max_search_samples < _FEWEST_FOR_AUTO:
        raise ValueError(
            f"max_search_samples must be at least {_FEWEST_FOR_AUTO} for n_clusters='auto'; "
            f"got {estimator.max_search_samples}"
        )
    if estimator.n_jobs == 0:  # joblib would say so too, after the backbone was trained
        raise ValueError("n_jobs must be None, positive or negative, as in scikit-learn; got 0")
    if not isinstance(estimator.init, str):
        if is_open:
            raise ValueError(
                "n_clusters must be an int where init has labels or centres, which say how many clusters there are; "
                "got 'auto'"
            )
        _check_init_values(estimator.init, estimator.n_clusters)
    if callable(estimator.criterion):
        _check_criterion(estimator.criterion)


def as_memory(memory: str | joblib.Memory | None) -> joblib.Memory:
    """Return where results of a fit are kept. Its folder is made.

    Parameters
    ----------
    memory : str, joblib.Memory or None

    Returns
    -------
    joblib.Memory

    Raises
    ------
    ValueError
        For a folder that cannot be written to.
    """
    try:
        return check_memory(memory)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"memory must be a folder that can be written to; got {shown(memory)} ({shortened(str(error))})"
        ) from error


def search_space(
    estimator: BaseEstimator, backbone: Backbone
) -> tuple[dict[str, tuple[int, int, int]], tuple[int, ...], tuple[int, ...]]:
    """Return the candidates of the search, checked against the backbone.

    Parameters
    ----------
    estimator : DiffusionEmbeddedClustering
    backbone : Backbone

    Returns
    -------
    layers : dict of str to tuple of int
        With the ``(channels, height, width)`` of their maps.
    timesteps : tuple of int
    poolings : tuple of int

    Raises
    ------
    ValueError
        For a layer, timestep or pooling that the backbone does not have.
    """
    nearest = backbone.nearest_timesteps(map(linear_ratio, DEFAULT_TIMESTEPS), backbone.num_train_timesteps - 1)
    default = [t for t in nearest if t <= backbone.max_timestep] or [backbone.max_timestep]
    timesteps = candidates("timestep", estimator.timestep, default, Integral)
    for timestep in timesteps:
        backbone.check_timestep(timestep)
    poolings = candidates("pooling", estimator.pooling, DEFAULT_POOLINGS, Integral)
    names = candidates("layer", estimator.layer, (), str)
    layers = FeatureExtractor(backbone).layer_shapes(names or None)
    if min(poolings) < 1 or not any(min(poolings) <= min(shape[1:]) for shape in layers.values()):
        sides = {name: shape[1:] for name, shape in layers.items()}
        raise ValueError(
            f"pooling must be from 1 to the side of a layer's map, (height, width) {sides}; "
            f"got {shown(estimator.pooling)}"
        )
    return layers, timesteps, poolings


def check_init(init: str | ArrayLike, n_components: int, n_samples: int, widths: Sequence[int]) -> None:
    """Raise ValueError for labels of other images, or centres of dimensions that the embedding cannot have.

    Parameters
    ----------
    init : str or array-like
    n_components : int
        Dimensions of the embedding that are asked for.
    n_samples : int
    widths : sequence of int
        Features that each candidate of the search has.
    """
    if isinstance(init, str):
        return
    if np.ndim(init) == 1:
        n_labels = np.shape(init)[0]
        if n_labels != n_samples:
            raise ValueError(f"init must have a label for each of the {n_samples} images; got {n_labels}")
        return
    possible = sorted({min(n_components, n_samples, width) for width in widths})
    if np.shape(init)[1] not in possible:
        raise ValueError(
            f"init must have {' or '.join(map(str, possible))} columns, the dimensions of the embedding; "
            f"got {np.shape(init)[1]}"
        )


def cluster_names(names: Any, n_clusters: int) -> list[str]:
    """Return a name for each cluster, "" where there is none.

    Parameters
    ----------
    names : sequence or mapping of int to str, or None
        As a user gave them. A mapping may leave clusters out, and None leaves out all.
    n_clusters : int

    Returns
    -------
    list of str

    Raises
    ------
    ValueError
        For what are no strings, not one for each cluster, or of clusters that there are not.
    """
    if names is None:
        return [""] * n_clusters
    if isinstance(names, Mapping):
        if unknown := [cluster for cluster in names if cluster not in range(n_clusters)]:
            raise ValueError(f"names must have clusters from 0 to {n_clusters - 1} as keys; got {shown(unknown[0])}")
        names = [names.get(cluster, "") for cluster in range(n_clusters)]
    is_sequence = isinstance(names, (Sequence, np.ndarray)) and not isinstance(names, (str, bytes))
    if not is_sequence or not all(isinstance(name, str) for name in names):
        raise ValueError(f"names must be strings, one for each of the {n_clusters} clusters; got {shown(names)}")
    if len(names) != n_clusters:
        raise ValueError(f"names must be one for each of the {n_clusters} clusters; got {len(names)}")
    return [str(name) for name in names]


def candidates(name: str, value: Any, default: Sequence[Any], kind: type) -> tuple[Any, ...]:
    """Return one value, several or the default ones as a tuple.

    Parameters
    ----------
    name : str
        Of the parameter, for the message.
    value : object
        What the user gave.
    default : sequence
        Taken where `value` is None.
    kind : type
        Of each value: ``str`` or ``numbers.Integral``.

    Returns
    -------
    tuple

    Raises
    ------
    ValueError
        For what is not one or several values of that kind.
    """
    if value is None:
        return tuple(default)
    if isinstance(value, (np.ndarray, torch.Tensor)):
        value = value.tolist()  # a number where it has no axis
    values = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)
    if not values or not all(isinstance(item, kind) and not isinstance(item, bool) for item in values):
        word = "strings" if kind is str else "integers"
        raise ValueError(f"{name} must be one or several {word}; got {shown(value)}")
    return tuple(item if kind is str else int(item) for item in dict.fromkeys(values))


def _as_plain_number(name: str, value: Any, kind: type[int] | type[float]) -> Any:
    """Return a number of any library as Python's own; leave what is none for the check that follows."""
    if isinstance(value, (bool, np.bool_)):  # which Python counts among the integers
        raise ValueError(f"{name} must be a number; got {shown(value)}")
    if not isinstance(value, Integral if kind is int else Real):
        return value
    try:
        number: Any = kind(cast("float", value))
    except OverflowError:  # an integer past all floats
        return value
    # What takes any number of them takes these for all there are; longer ones cannot even be shown.
    return number if kind is float else max(-(2**63), min(number, 2**63 - 1))


def check_constraints(estimator: BaseEstimator) -> None:
    """Check each parameter by itself, by scikit-learn's rules, whose messages show values at any length.

    Parameters
    ----------
    estimator : DiffusionEmbeddedClustering

    Raises
    ------
    ValueError
        For a parameter that is of another kind or out of range.
    """
    for name, value in estimator.get_params(deep=False).items():
        rules = {name: CONSTRAINTS[name]}
        try:
            validate_parameter_constraints(rules, {name: value}, caller_name=type(estimator).__name__)
        except InvalidParameterError as error:
            expected, _, found = str(error).partition(" Got ")
            if len(found) > MAX_LENGTH:
                raise InvalidParameterError(f"{expected} Got {shown(value)} instead.") from None
            raise
        except Exception as error:  # of values that cannot be compared or shown
            raise InvalidParameterError(
                f"The {name!r} parameter of {type(estimator).__name__} cannot be {shown(value)}."
            ) from error


def _check_init_values(init: ArrayLike, n_clusters: int) -> None:
    """Raise ValueError for an array that can be neither labels nor centres of `n_clusters`."""
    try:
        values = check_array(init, dtype=np.float64, ensure_2d=False, input_name="init")
        if values.ndim not in (1, 2):
            raise ValueError(f"got shape {values.shape}")
    except (TypeError, ValueError) as error:
        expected = "labels of shape (n_samples,), -1 for unknown, or centres of shape (n_clusters, n_components_)"
        raise ValueError(f"init must be {expected}: {error}") from error
    if values.ndim == 2 and len(values) != n_clusters:
        raise ValueError(f"init must have n_clusters={n_clusters} rows; got shape {values.shape}")
    if values.ndim == 1:
        wrong = values[(values != np.floor(values)) | (values < -1) | (values >= n_clusters)]
        if len(wrong):
            raise ValueError(
                f"init must have integers from 0 to n_clusters - 1 as labels, or -1 for unknown; got {wrong[0]:g}"
            )
        missing = np.setdiff1d(np.arange(n_clusters), values)
        if len(missing):
            raise ValueError(f"init must have each of n_clusters={n_clusters} labels; got no {missing[0]}")


def _check_criterion(criterion: Callable[[NDArray, NDArray], float]) -> None:
    """Raise ValueError for a criterion that is not one, which else would show after the backbone was trained."""
    labels = np.repeat(np.arange(3), 10)
    features = np.random.default_rng(0).normal(size=(len(labels), 2)) + labels[:, None]
    expected = "criterion must return a finite number for features of shape (n, d) and labels of shape (n,)"
    try:
        value = float(criterion(features, labels))
    except Exception as error:
        raise ValueError(f"{expected}: {error!r}") from error
    if not math.isfinite(value):
        raise ValueError(f"{expected}; got {value} for three clusters of 30 random rows")
