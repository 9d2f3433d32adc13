"""Pretraining: a compact DDPM trained on the user's own, unlabelled images."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, replace
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator

from skdiec.backbones.checkpoints import (
    CHECKPOINT_FILE,
    check_is_ours,
    difference,
    discard_checkpoint,
    is_finished,
    read_request,
)
from skdiec.backbones.devices import default_device
from skdiec.backbones.folders import as_folder, locked
from skdiec.backbones.pixel import PixelBackbone
from skdiec.backbones.pixel_transformer import PixelTransformerBackbone
from skdiec.backbones.settings import Settings, as_real, resolve_settings
from skdiec.backbones.trainer import Report, Trainer, json_of, new_backbone
from skdiec.images import ImageSource, as_image_source
from skdiec.messages import shown
from skdiec.parallel import library_defaults

logger = logging.getLogger(__name__)

Trained = PixelBackbone | PixelTransformerBackbone
"""What `pretrain` returns."""


class Pretraining(BaseEstimator):
    """How `fit` trains a backbone on the images that it clusters.

    Given as the `backbone` of `DiffusionEmbeddedClustering`. It is a set of parameters, which searches of scikit-learn
    reach as ``backbone__epochs`` and so on. `skdiec.pretrain` trains by the same ones, without clustering.

    Parameters
    ----------
    folder : path, default=None
        Where the diffusers pipeline, the training record and, while training, checkpoints go; see `skdiec.pretrain`. A
        training that was stopped goes on there, and a finished one is loaded, with any seed where `random_state` is
        None here and on the estimator. A backbone that was trained on other images or with other settings is an
        error. So for cross-validation, whose folds differ, train it beforehand (`skdiec.pretrain`) and pass the folder
        itself as `backbone`. None keeps the backbone in `memory` where the estimator has that, else only in
        `backbone_`.
    epochs : int, default=None
        Passes over the images; see `skdiec.pretrain` for None.
    max_minutes : float, default=None
        Minutes of training at most; see `skdiec.pretrain`.
    batch_size : int, default=16
        Images per training step.
    learning_rate : float, default=1e-3
        Peak of the cosine schedule, at most 1.
    architecture : {"unet", "transformer"}, default="unet"
        What is trained: a U-Net, or a diffusion transformer (DiT).
    channels : sequence of int, default=None
        Channels of each resolution of the U-Net, from the highest, or of the transformer's tokens, such as ``(96,)``;
        see `skdiec.pretrain` for None.
    layers_per_block : int, default=None
        Residual blocks in each resolution of the U-Net, or blocks of the transformer, at most 16. None is 1 and 6.
    patch_size : int, default=None
        Side of the squares of pixels folded into channels, or made tokens; see `skdiec.pretrain` for None.
    max_timestep : int, default=400
        Highest timestep trained on. To sample new images from noise, the network needs all: 999.
    standardize : bool, default=None
        Whether the network sees all images at the same brightness and contrast; see `skdiec.pretrain` for None.
    ema_decay : float, default=0.999
        Decay of the weights' moving average.
    precision : {"auto", "fp32", "bf16"}, default="auto"
        Number format of the training; see `skdiec.pretrain`.
    dtype : {"float32", "bfloat16"}, default="float32"
        What the trained weights are rounded to, and saved as.
    checkpoint_seconds : float, default=60.0
        Least time between two checkpoints in `folder`.
    random_state : int, default=None
        Seeds weights, batches and noise. None takes the estimator's.

    See Also
    --------
    skdiec.pretrain : Train a backbone beforehand.

    Examples
    --------
    >>> from skdiec import DiffusionEmbeddedClustering, Pretraining
    >>> model = DiffusionEmbeddedClustering(n_clusters=3, backbone=Pretraining(epochs=2))
    >>> model.set_params(backbone__epochs=5).backbone
    Pretraining(epochs=5)
    """

    def __init__(
        self,
        folder: str | os.PathLike | None = None,
        *,
        epochs: int | None = None,
        max_minutes: float | None = None,
        batch_size: int = 16,
        learning_rate: float = 1e-3,
        architecture: str = "unet",
        channels: Sequence[int] | None = None,
        layers_per_block: int | None = None,
        patch_size: int | None = None,
        max_timestep: int = 400,
        standardize: bool | None = None,
        ema_decay: float = 0.999,
        precision: Literal["auto", "fp32", "bf16"] = "auto",
        dtype: Literal["float32", "bfloat16"] = "float32",
        checkpoint_seconds: float = 60.0,
        random_state: int | None = None,
    ) -> None:
        self.folder = folder
        self.epochs = epochs
        self.max_minutes = max_minutes
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.architecture = architecture
        self.channels = channels
        self.layers_per_block = layers_per_block
        self.patch_size = patch_size
        self.max_timestep = max_timestep
        self.standardize = standardize
        self.ema_decay = ema_decay
        self.precision = precision
        self.dtype = dtype
        self.checkpoint_seconds = checkpoint_seconds
        self.random_state = random_state


def pretrain(
    X: ArrayLike | str | os.PathLike | Sequence[str | os.PathLike] | ImageSource,
    folder: str | os.PathLike | None = None,
    *,
    image_shape: Sequence[int] | None = None,
    channel_axis: int | None = None,
    value_range: Sequence[float] | None = None,
    epochs: int | None = None,
    max_minutes: float | None = None,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    architecture: str = "unet",
    channels: Sequence[int] | None = None,
    layers_per_block: int | None = None,
    patch_size: int | None = None,
    max_timestep: int = 400,
    standardize: bool | None = None,
    ema_decay: float = 0.999,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    dtype: Literal["float32", "bfloat16"] = "float32",
    device: str | torch.device | None = None,
    checkpoint_seconds: float = 60.0,
    random_state: int | None = None,
    verbose: bool | int = False,
    report: Report | None = None,
) -> Trained:
    """Train a compact denoising diffusion model (DDPM) on unlabelled images.

    A diffusers ``UNet2DModel`` or ``DiTTransformer2DModel`` learns to predict the noise in x_t (mean squared error,
    uniformly random timesteps, up to `max_timestep`, of a linear 1,000-step schedule) with AdamW under a cosine
    schedule with warm-up; an exponential moving average of the weights is what is kept. Training is resumed where it
    was stopped, and a finished folder is loaded instead of trained again.

    Numbers may be numpy's. Weights depend on the images, the settings and the number of threads that torch computes
    with, not on the thread or on torch's modes and random state, which stay as they are.

    Parameters
    ----------
    X : array-like, folder, sequence of paths, or ImageSource
        The images; with `image_shape`, `channel_axis` and `value_range` as in
        `DiffusionEmbeddedClustering`.
    folder : path, default=None
        Where the diffusers pipeline, the training record and, while training, checkpoints go. It must be new, empty
        or from an earlier call. One call trains, others of any thread or process wait. A finished one is only read,
        so it may be read-only. None keeps the result in memory only.
    image_shape, channel_axis, value_range
        See `DiffusionEmbeddedClustering`.
    epochs : int, default=None
        Passes over X. None is as many as show the network 80,000 images, which takes minutes, but at least 8. Images
        that are harder to tell apart than digits and faces, such as photos, need more.
    max_minutes : float, default=None
        Minutes of training at most. The schedule of the learning rate is shortened to them, so that the training ends
        as a whole one does. How far it comes, and so its weights, depend on the machine. None sets no limit.
    batch_size : int, default=16
        Images per training step. Many small steps learn more of as many images than few large ones. On a GPU, 64 with
        a `learning_rate` of 2e-3 takes less time for each image.
    learning_rate : float, default=1e-3
        Peak of the cosine schedule, at most 1. Each step takes the rate of its middle, so a single step trains too.
    architecture : {"unet", "transformer"}, default="unet"
        What is trained: a U-Net (``UNet2DModel``), or a diffusion transformer (DiT, ``DiTTransformer2DModel``) over
        patches of pixels. The transformer is told one class alone, the one that stands for none.
    channels : sequence of int, default=None
        Channels of each resolution of the U-Net, from the highest. None is 32, 64, 128 for sides (after
        space-to-depth) of 9 pixels and more; from 5 pixels 64, 128, or 32, 64 without space-to-depth; else 32.
        At most 8 resolutions. Of the transformer, channels of its tokens: one multiple of 4, by default 96.
    layers_per_block : int, default=None
        Residual blocks in each resolution of the U-Net, by default 1, or blocks of the transformer, by default 6. At
        most 16.
    patch_size : int, default=None
        Side of the squares of pixels that the U-Net has folded into channels (space-to-depth), or the transformer
        takes as tokens. None is the smallest power of two that leaves no side above 16, and at least 2 for sides
        above 8.
    max_timestep : int, default=400
        Highest timestep trained on. Clustering needs the lower ones, and learns them faster without the
        others (on USPS about twice as fast). To sample new images from noise, the network needs all: 999.
    standardize : bool, default=None
        Whether the network sees all images at the same brightness and contrast: ``0.4 (x - mean) / (std + 1/16)``, of
        all pixels and channels of an image in [-1, 1]. Clusters then follow shapes rather than light. It is part of the
        backbone: all that uses it does the same, and images that it draws look so. The paper has no such step. None
        does so for images of three channels and more: how bright a grey one is can be what tells it from others.
    ema_decay : float, default=0.999
        Decay of the weights' moving average, reached by diffusers' warm-up.
    precision : {"auto", "fp32", "bf16"}, default="auto"
        "auto" is that of the training found in `folder`, else bfloat16 autocast where the hardware multiplies it
        natively (CUDA from compute capability 8.0, CPUs with AVX512-BF16 or AMX), else float32.
    dtype : {"float32", "bfloat16"}, default="float32"
        What the trained weights are rounded to, and saved as; "bfloat16" halves the files. They are computed with in
        float32 either way.
    device : str or torch.device, default=None
        None is CUDA where there is one, else the CPU.
    checkpoint_seconds : float, default=60.0
        Least time between two checkpoints in `folder`. One that cannot be written is told of in the log, and the
        training goes on.
    random_state : int, default=None
        Seeds weights, batches and noise. None is the seed of the training found in `folder`, else a random one.
    verbose : bool or int, default=False
        Show a progress bar.
    report : callable, default=None
        Called after each step as ``report(done, total, loss)``, with numbers of steps and the mean loss of the last
        epoch, or of the first one so far. Where it returns True, the training ends there, and what was trained so far
        is returned. A `folder` then holds a checkpoint, from which the next call goes on.

    Returns
    -------
    PixelBackbone or PixelTransformerBackbone
        On `device`, in evaluation mode; ``recipe`` holds the settings, the loss of every epoch and the seconds.

    Raises
    ------
    ValueError
        For images or settings that do not fit, and for a `folder` that holds something else, is damaged or cannot be
        written to.
    OSError
        Where the trained backbone cannot be saved, for instance for want of space.
    FloatingPointError
        Where training diverges. Nothing is saved then.

    Examples
    --------
    >>> import numpy as np
    >>> images = np.random.default_rng(0).integers(0, 256, (32, 4, 4), dtype=np.uint8)
    >>> backbone = pretrain(images, epochs=1, random_state=0)
    >>> backbone.image_shape, backbone.num_train_timesteps
    ((1, 4, 4), 1000)
    """
    checkpoint_seconds = _check_checkpoint_seconds(checkpoint_seconds)
    if not isinstance(verbose, (Integral, np.bool_)) or verbose < 0:
        raise ValueError(f"verbose must be a bool or an int of at least 0; got {shown(verbose)}")
    folder = None if folder is None else as_folder(folder)
    source = (
        X
        if isinstance(X, ImageSource)
        else as_image_source(X, image_shape=image_shape, channel_axis=channel_axis, value_range=value_range)
    )
    device = default_device(device)
    settings = resolve_settings(
        source,
        epochs=epochs,
        max_minutes=max_minutes,
        batch_size=batch_size,
        learning_rate=learning_rate,
        architecture=architecture,
        channels=channels,
        layers_per_block=layers_per_block,
        patch_size=patch_size,
        max_timestep=max_timestep,
        standardize=standardize,
        ema_decay=ema_decay,
        precision=precision,
        dtype=dtype,
        device=device,
        random_state=random_state,
    )
    if folder is not None:
        check_is_ours(folder)
    if report is not None and not callable(report):
        raise ValueError(f"report must be a callable or None; got {shown(report)}")
    source = source.in_memory()
    with _progress_bar(report, is_shown=bool(verbose)) as report:
        return _pretrain(source, settings, device, folder, checkpoint_seconds, report, precision, random_state)


def _pretrain(
    source: ImageSource,
    settings: Settings,
    device: torch.device,
    folder: Path | None,
    checkpoint_seconds: float,
    report: Report | None,
    precision: str,
    random_state: int | None,
) -> Trained:
    """Train, or go on with what `folder` holds."""
    if folder is None:
        return _train(source, settings, device, report)[0]

    # A finished backbone is read without a lock, which a read-only folder does not give.
    with nullcontext() if is_finished(folder) else locked(folder):
        found = read_request(folder)
        if found is not None:  # earlier ones were all of one kind, and do not say so
            found = {**found, "settings": {"architecture": "unet", "standardize": False, **found["settings"]}}
        any_precision = isinstance(precision, str) and precision == "auto"
        settings = _as_found(settings, found, any_precision=any_precision, any_seed=random_state is None)
        request = json_of({"settings": asdict(settings), "data": source.fingerprint()})
        finished = is_finished(folder)
        if found != request and (finished or found is not None):
            kind = "a backbone" if finished else "an unfinished training, one"
            raise ValueError(f"{folder} holds {kind} trained {difference(found, request)}: choose another folder")
        if finished:
            backbone = _load(folder).to(device)
            discard_checkpoint(folder)
            return backbone
        try:
            backbone, is_whole = _train(source, settings, device, report, folder, request, checkpoint_seconds)
        except FloatingPointError:
            discard_checkpoint(folder)  # going on from it would diverge again
            raise
        if not is_whole:
            return backbone
        backbone.recipe["request"] = request
        _save(backbone, folder, settings.dtype)
        discard_checkpoint(folder)
        return backbone


def _as_found(settings: Settings, found: dict[str, Any] | None, *, any_precision: bool, any_seed: bool) -> Settings:
    """Take the precision and the seed of the training that a folder holds, where none was asked for."""
    known = {} if found is None else found["settings"]
    if any_precision and known.get("precision") in ("fp32", "bf16"):
        settings = replace(settings, precision=known["precision"])
    if any_seed and type(known.get("seed")) is int and 0 <= known["seed"] < 2**32:
        settings = replace(settings, seed=known["seed"])
    return settings


def _load(folder: Path) -> Trained:
    from skdiec.backbones.loading import load_backbone

    logger.info("loading the backbone that was trained before in %s", folder)
    return cast("Trained", load_backbone(folder))  # `_save` writes no others


def _save(backbone: Trained, folder: Path, dtype: Literal["float32", "bfloat16"]) -> None:
    try:
        backbone.save_pretrained(folder, dtype=dtype)
    except OSError as error:
        is_kept = (folder / CHECKPOINT_FILE).exists()
        state = "the last checkpoint of its training is kept there" if is_kept else "its training is lost"
        raise OSError(
            f"the trained backbone was not saved: {error}; {state}. Make room or choose another folder, and call again"
        ) from error


def untrained_backbone(source: ImageSource, pretraining: Pretraining, device: torch.device) -> Trained:
    """Build what a pretraining would train, so that its parameters and the layers can be checked before.

    Parameters
    ----------
    source : ImageSource
    pretraining : Pretraining
    device : torch.device
        Where it would be trained.

    Returns
    -------
    PixelBackbone or PixelTransformerBackbone
        On the CPU.

    Raises
    ------
    ValueError
        For a parameter that is out of range, and a folder that holds something else.
    """
    parameters = pretraining.get_params()
    _check_checkpoint_seconds(parameters.pop("checkpoint_seconds"))
    folder = parameters.pop("folder")
    settings = resolve_settings(source, device=device, **parameters)
    if folder is not None:
        check_is_ours(as_folder(folder))
    return new_backbone(source.shape, settings)


def _check_checkpoint_seconds(value: float) -> float:
    return as_real(value, "checkpoint_seconds", "a number of at least 0", lambda seconds: seconds >= 0)


def _train(
    source: ImageSource,
    settings: Settings,
    device: torch.device,
    report: Report | None,
    folder: Path | None = None,
    request: dict[str, Any] | None = None,
    checkpoint_seconds: float = math.inf,
) -> tuple[Trained, bool]:
    """Return what was trained, and whether to the end."""
    with library_defaults():
        trainer = Trainer(source, settings, device)
        if folder is not None and (folder / CHECKPOINT_FILE).exists():
            trainer.resume(folder)
        return trainer.run(folder, request, checkpoint_seconds, report), not trainer.is_stopped


@contextmanager
def _progress_bar(report: Report | None, *, is_shown: bool) -> Iterator[Report | None]:
    """Yield `report`, or one that moves a bar too."""
    if not is_shown:
        yield report
        return
    from tqdm import tqdm

    with ExitStack() as stack:
        bar: tqdm | None = None  # until there is something to show: this call may have to wait for another

        def move(done: int, total: int, loss: float) -> bool:
            nonlocal bar
            if bar is None:
                bar = stack.enter_context(tqdm(desc="pretraining", unit="step", total=total, initial=done - 1))
            bar.total = total  # which is a guess where time is limited
            bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
            bar.update()
            return report is not None and bool(report(done, total, loss))

        yield move
