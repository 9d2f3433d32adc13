"""What a fit is about to work with, checked before any expensive work."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import check_random_state

from skdiec._parameters import as_memory, check_init, search_space
from skdiec.backbones import Backbone, Pretraining, default_device, is_emulated, load_backbone, untrained_backbone
from skdiec.cluster_number import MAX_IMAGES
from skdiec.features import FeatureExtractor
from skdiec.images import FileImages, ImageSource, distinct_rows
from skdiec.messages import warn
from skdiec.storage import check_space

if TYPE_CHECKING:
    from skdiec._estimator import DiffusionEmbeddedClustering


@dataclass(frozen=True)
class Seeds:
    """One seed for each use of randomness."""

    pretrain: int
    noise: int
    subset: int
    search: int
    start: int
    head: int

    @classmethod
    def draw(cls, random_state: int | np.random.RandomState | None) -> Seeds:
        """Draw them all from the state that the user gave."""
        return cls(*(int(seed) for seed in check_random_state(random_state).randint(2**31 - 1, size=6)))


@dataclass(frozen=True)
class Setup:
    """What `fit` is about to work with."""

    source: ImageSource
    files: Sequence[Path] | None
    backbone: Backbone
    """Untrained where `pretraining` is not None."""
    pretraining: Pretraining | None
    layers: Mapping[str, tuple[int, int, int]]
    costs: Mapping[str, float]
    """Share of a whole pass, up to each layer."""
    multiplications: int
    """Of a whole pass."""
    timesteps: Sequence[int]
    poolings: Sequence[int]
    device: torch.device
    memory: joblib.Memory
    seeds: Seeds
    distinct: NDArray[np.integer] | None
    """Images to estimate the number of clusters on, where it is to be found."""


def set_up(model: DiffusionEmbeddedClustering, X: Any) -> Setup:
    """Check the images and all that is to be done with them, before any expensive work."""
    device = default_device(model.device)
    if is_emulated(model.precision, device):
        warn(
            f"precision={model.precision!r} is many times slower than 'fp32' on this {device.type}, which has no "
            "instructions for it"
        )
    memory = as_memory(model.memory)
    seeds = Seeds.draw(model.random_state)
    pretraining = _as_pretraining(model.backbone, model.random_state, seeds.pretrain)
    # Loaded when first needed: wrong input is told of before a download.
    load = functools.cache(lambda: load_backbone(model.backbone))
    file_shape = (lambda: load().image_shape) if pretraining is None else None
    source = model._image_source(model._check_input(X, reset=True), file_shape=file_shape)
    if model.n_clusters != "auto" and len(source) < model.n_clusters:
        raise ValueError(f"n_samples={len(source)} should be >= n_clusters={model.n_clusters}.")
    if len(source) < 2:
        raise ValueError("X must hold at least 2 images to tell what they vary in; got n_samples=1")
    backbone = load() if pretraining is None else untrained_backbone(source, pretraining, device)
    backbone.check_channels(source.shape[0])
    layers, timesteps, poolings = search_space(model, backbone)
    widths = [
        channels * pooling**2 for channels, *sides in layers.values() for pooling in poolings if pooling <= min(sides)
    ]
    check_init(model.init, model.n_components, len(source), widths)
    check_space(4 * len(source) * max(widths))
    if model.shift is not None and model.shift >= min(source.shape[1:]):
        raise ValueError(
            f"shift must be less than the images' sides, {source.shape[1:]} (height, width); got {model.shift}"
        )
    files = source.paths if isinstance(source, FileImages) else None
    source, distinct = source.in_memory(), None
    if model.n_clusters == "auto":
        order = np.random.default_rng(seeds.subset).permutation(len(source))
        distinct = distinct_rows(source, order[:MAX_IMAGES])
    outlined = FeatureExtractor(backbone)
    return Setup(
        source=source,
        files=files,
        backbone=backbone,
        pretraining=pretraining,
        layers=layers,
        costs=outlined.layer_costs(layers),
        multiplications=outlined.multiplications(),
        timesteps=timesteps,
        poolings=poolings,
        device=device,
        memory=memory,
        seeds=seeds,
        distinct=distinct,
    )


def _as_pretraining(
    backbone: object, random_state: int | np.random.RandomState | None, seed: int
) -> Pretraining | None:
    """Return how to train the backbone, with the seed to take where it names none; None for one that exists."""
    if isinstance(backbone, str) and backbone == "auto":
        backbone = Pretraining()
    if not isinstance(backbone, Pretraining):
        return None
    pretraining = copy.copy(backbone)
    # Any backbone in the folder will do where no seed is asked for.
    any_seed = random_state is None and pretraining.folder is not None
    if pretraining.random_state is None and not any_seed:
        pretraining.random_state = seed
    return pretraining
