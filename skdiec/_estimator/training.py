"""The last stage of a fit: the training of head and backbone."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from skdiec._callbacks import Steps
from skdiec.features import CellFeatures, FeatureExtractor
from skdiec.images import ImageSource
from skdiec.initialization import Initialization
from skdiec.storage import LatentCache
from skdiec.training import (
    BackboneEmbedder,
    Embedder,
    EmbeddingModel,
    FrozenEmbedder,
    Projection,
    ResidualHead,
    TrainingConfig,
    TrainingState,
    train,
)

if TYPE_CHECKING:
    from skdiec._estimator import DiffusionEmbeddedClustering

_BATCH, _SMALLEST, _LARGEST = 128, 32, 512
"""Images of a training step: with the backbone, and of a head alone at least and at most."""

_STEPS = 64
"""Steps that an epoch of the head has at least, where its batches are not the smallest: with fewer, many clusters of
few images are not learned."""


def train_head(
    model: DiffusionEmbeddedClustering,
    extractor: FeatureExtractor,
    source: ImageSource,
    projection: Projection,
    h: NDArray[np.float64],
    start: Initialization,
    seed: int,
    steps: Steps,
) -> None:
    """Train what `head` and `train_backbone` ask for; set the model and its history."""
    model._extractors = [extractor]
    # Untrained, a residual head is the identity, which is what head=None asks for.
    head = None if model.head == "direct" else ResidualHead(h.shape[1], model.hidden_size, seed=seed)
    device = extractor.backbone.device
    if model.train_backbone:
        model.backbone_ = extractor.backbone.copy(device)
        model.backbone_.network.float()  # gradients are too small for half precision
        model._extractors.append(dataclasses.replace(extractor, backbone=model.backbone_))
        embedder: Embedder = BackboneEmbedder(
            CellFeatures(dataclasses.replace(model._extractors[1], latents=LatentCache()), source, model._cell),
            projection,
            h,
            head,
            model.denoising_weight,
            device,
            seed,
        )
    else:
        embedder = FrozenEmbedder(h, cast("ResidualHead", head), device)  # "direct" trains the backbone

    def report(state: TrainingState) -> bool:
        attributes = functools.partial(_attributes_at, model, state, projection, head)
        return steps.report(state.epoch, model.max_epochs, attributes, is_last=state.is_last)

    config = _training_config(model, len(source), seed)
    result = train(embedder, start.graph, start.labels, start.n_clusters, config, report)
    # As a loaded one is: kernels for weights that need gradients differ in the last bits.
    model.backbone_.network.requires_grad_(False)
    model._model = EmbeddingModel(projection, head, result.centers, model.nu)
    model.cluster_centers_ = model._model.centers
    model.history_ = result.history
    model.n_iter_ = result.n_epochs
    model.snapshots_, model.snapshot_rows_ = dict(result.snapshots), result.snapshot_rows


def _training_config(model: DiffusionEmbeddedClustering, n_samples: int, seed: int) -> TrainingConfig:
    batch_size = model.batch_size
    if batch_size is None:
        batch_size = _BATCH if model.train_backbone else min(max(_SMALLEST, n_samples // _STEPS), _LARGEST)
    batch_size = min(batch_size, max(_BATCH, n_samples))
    return TrainingConfig(
        alpha=model.alpha,
        beta=model.beta,
        gamma=model.gamma,
        nu=model.nu,
        max_epochs=0 if model.head is None else model.max_epochs,
        warmup_epochs=model.warmup_epochs,
        batch_size=batch_size,
        learning_rate=3e-3 * max(1, batch_size / _BATCH) if model.learning_rate is None else model.learning_rate,
        backbone_learning_rate=model.backbone_learning_rate,
        tol=model.tol,
        update_interval=model.update_interval,
        n_snapshots=model.n_snapshots,
        seed=seed,
    )


def _attributes_at(
    model: DiffusionEmbeddedClustering, state: TrainingState, projection: Projection, head: ResidualHead | None
) -> dict[str, Any]:
    """Return what a fit would have set that had ended with an epoch of the training."""
    embedding = EmbeddingModel(projection, copy.deepcopy(head), state.centers, model.nu)
    extractors = [dataclasses.replace(extractor, backbone=extractor.backbone.copy()) for extractor in model._extractors]
    extractors[-1].backbone.network.requires_grad_(False)
    return {
        **model._fitted_attributes(),
        "_model": embedding,
        "_extractors": extractors,
        "backbone_": extractors[-1].backbone,
        "cluster_centers_": embedding.centers,
        "labels_": state.labels.astype(np.int32),
        "n_iter_": state.epoch,
    }
