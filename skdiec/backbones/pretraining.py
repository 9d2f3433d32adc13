"""Pretraining: a compact DDPM trained on the user's own, unlabelled images."""

from __future__ import annotations

import inspect
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from skdiec.backbones.checkpoints import (
    CHECKPOINT_FILE,
    Position,
    check_is_ours,
    difference,
    discard_checkpoint,
    is_finished,
    read_checkpoint,
    read_request,
    write_checkpoint,
)
from skdiec.backbones.devices import default_device
from skdiec.backbones.folders import as_folder, locked
from skdiec.backbones.importing import ONE_AT_A_TIME
from skdiec.backbones.pixel import PixelBackbone
from skdiec.backbones.replay import ReplayedPass
from skdiec.backbones.settings import NUM_TRAIN_TIMESTEPS, Settings, as_real, resolve_settings, untrained_network
from skdiec.images import ImageSource, as_image_source
from skdiec.messages import shown
from skdiec.parallel import library_defaults
from skdiec.seeding import drawing_from_seed

logger = logging.getLogger(__name__)

_WARMUP_FRACTION = 0.05
_MOMENTS = ("exp_avg", "exp_avg_sq")  # as Adam calls them

_IMAGE_PARAMETERS = ("image_shape", "channel_axis", "value_range")


def pretrain(
    X: ArrayLike | str | os.PathLike | Sequence[str | os.PathLike] | ImageSource,
    folder: str | os.PathLike | None = None,
    *,
    image_shape: Sequence[int] | None = None,
    channel_axis: int | None = None,
    value_range: Sequence[float] | None = None,
    epochs: int | None = None,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    channels: Sequence[int] | None = None,
    layers_per_block: int = 1,
    patch_size: int | None = None,
    max_timestep: int = 400,
    ema_decay: float = 0.999,
    precision: str = "auto",
    dtype: str = "float32",
    device: str | torch.device | None = None,
    checkpoint_seconds: float = 60.0,
    random_state: int | None = None,
    verbose: bool | int = False,
) -> PixelBackbone:
    """Train a compact denoising diffusion model (DDPM) on unlabelled images.

    A diffusers ``UNet2DModel`` learns to predict the noise in x_t (mean squared error, uniformly random
    timesteps, up to `max_timestep`, of a linear 1,000-step schedule) with AdamW under a cosine schedule with
    warm-up; an exponential moving average of the weights is what is kept. Training is resumed where it was
    stopped, and a finished folder is loaded instead of trained again.

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
        Passes over X. None is as many as show the network about 400,000 images, but at least 8 and at most 40. Fewer
        than 4,000 images are passed over until 160,000 are shown, which takes minutes.
    batch_size : int, default=64
        Images per training step.
    learning_rate : float, default=2e-3
        Peak of the cosine schedule, at most 1. Each step takes the rate of its middle, so a single step trains too.
    channels : sequence of int, default=None
        Channels of each resolution of the U-Net, from the highest. None is 32, 64, 128 for sides (after
        space-to-depth) of 9 pixels and more; from 5 pixels 64, 128, or 32, 64 without space-to-depth; else 32.
        At most 8 resolutions.
    layers_per_block : int, default=1
        Residual blocks in each resolution, at most 16.
    patch_size : int, default=None
        Side of the squares of pixels folded into channels (space-to-depth). None is the smallest power of
        two that leaves no side above 16, and at least 2 for sides above 8.
    max_timestep : int, default=400
        Highest timestep trained on. Clustering needs the lower ones, and learns them faster without the
        others (on USPS about twice as fast). To sample new images from noise, the network needs all: 999.
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

    Returns
    -------
    PixelBackbone
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
    checkpoint_seconds = as_real(checkpoint_seconds, "checkpoint_seconds", "a number of at least 0", lambda x: x >= 0)
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
        batch_size=batch_size,
        learning_rate=learning_rate,
        channels=channels,
        layers_per_block=layers_per_block,
        patch_size=patch_size,
        max_timestep=max_timestep,
        ema_decay=ema_decay,
        precision=precision,
        dtype=dtype,
        device=device,
        random_state=random_state,
    )
    if folder is not None:
        check_is_ours(folder)
    source = source.in_memory()
    if folder is None:
        return _train(source, settings, device, verbose=bool(verbose))

    # A finished backbone is read without a lock, which a read-only folder does not give.
    with nullcontext() if is_finished(folder) else locked(folder):
        found = read_request(folder)
        any_precision = isinstance(precision, str) and precision == "auto"
        settings = _as_found(settings, found, any_precision=any_precision, any_seed=random_state is None)
        request = _json({"settings": asdict(settings), "data": source.fingerprint()})
        finished = is_finished(folder)
        if found != request and (finished or found is not None):
            kind = "a backbone" if finished else "an unfinished training, one"
            raise ValueError(f"{folder} holds {kind} trained {difference(found, request)}: choose another folder")
        if finished:
            backbone = _load(folder).to(device)
            discard_checkpoint(folder)
            return backbone
        try:
            backbone = _train(source, settings, device, folder, request, checkpoint_seconds, verbose=bool(verbose))
        except FloatingPointError:
            discard_checkpoint(folder)  # going on from it would diverge again
            raise
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


def _load(folder: Path) -> PixelBackbone:
    from skdiec.backbones.loading import load_backbone

    logger.info("loading the backbone that was trained before in %s", folder)
    return load_backbone(folder)


def _save(backbone: PixelBackbone, folder: Path, dtype: str) -> None:
    try:
        backbone.save_pretrained(folder, dtype=dtype)
    except OSError as error:
        is_kept = (folder / CHECKPOINT_FILE).exists()
        state = "the last checkpoint of its training is kept there" if is_kept else "its training is lost"
        raise OSError(
            f"the trained backbone was not saved: {error}; {state}. Make room or choose another folder, and call again"
        ) from error


def untrained_backbone(source: ImageSource, **settings: Any) -> PixelBackbone:
    """Build what `pretrain` would train, so that layers and settings can be checked before.

    Parameters
    ----------
    source : ImageSource
    **settings
        Keyword arguments of `pretrain`.

    Returns
    -------
    PixelBackbone
        On the CPU.

    Raises
    ------
    ValueError
        For a setting that is unknown or out of range.
    """
    signature = inspect.signature(pretrain)
    unknown = sorted(set(settings) - set(signature.parameters))
    if unknown:
        known = ", ".join(name for name in signature.parameters if name not in ("X", "folder", *_IMAGE_PARAMETERS))
        raise ValueError(f"pretrain_params: pretrain has no parameter {shown(unknown[0])}; it has {known}")
    elsewhere = [name for name in ("X", "folder", *_IMAGE_PARAMETERS) if name in settings]
    if elsewhere:
        raise ValueError(
            f"pretrain_params cannot have {elsewhere[0]!r}: images and folder are given to the estimator and to fit"
        )
    arguments = signature.bind(source, **settings)
    arguments.apply_defaults()
    names = set(inspect.signature(resolve_settings).parameters) - {"source"}
    wanted = {name: arguments.arguments[name] for name in names}
    return _new_backbone(source.shape, resolve_settings(source, **wanted))


def _json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _train(
    source: ImageSource,
    settings: Settings,
    device: torch.device,
    folder: Path | None = None,
    request: dict[str, Any] | None = None,
    checkpoint_seconds: float = math.inf,
    *,
    verbose: bool,
) -> PixelBackbone:
    with library_defaults():
        training = _Training(source, settings, device)
        if folder is not None and (folder / CHECKPOINT_FILE).exists():
            training.resume(folder)
        return training.run(folder, request, checkpoint_seconds, verbose=verbose)


class _Training:
    """One training run: network, optimizer, moving average and position."""

    def __init__(self, source: ImageSource, settings: Settings, device: torch.device) -> None:
        with ONE_AT_A_TIME:
            from diffusers.training_utils import EMAModel

        self.source, self.settings, self.device = source, settings, device
        self.backbone = _new_backbone(source.shape, settings).to(device)
        self.parameters = list(self.backbone.network.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=settings.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=0.0,
            fused=device.type == "cuda",
        )
        self.average = EMAModel(
            self.parameters, decay=settings.ema_decay, use_ema_warmup=True, power=0.75, foreach=True
        )
        self.steps_per_epoch = math.ceil(len(source) / settings.batch_size)
        self.total_steps = settings.epochs * self.steps_per_epoch
        self.step, self.losses, self.loss_sum, self.seconds = 0, [], 0.0, 0.0
        self.is_warned = False
        self.replayed: ReplayedPass | None = None  # of full batches, on CUDA

    def run(
        self,
        folder: Path | None = None,
        request: dict[str, Any] | None = None,
        checkpoint_seconds: float = math.inf,
        *,
        verbose: bool = False,
    ) -> PixelBackbone:
        network = self.backbone.network
        network.train()
        started = saved = time.monotonic()
        before = self.seconds
        with _progress(verbose, self.total_steps, self.step) as advance:
            while self.step < self.total_steps:
                self._take_step()
                now = time.monotonic()
                self.seconds = before + now - started
                advance(self.losses[-1] if self.losses else math.nan)
                # The last one lets a kill while the pipeline is written cost nothing.
                is_due = now - saved > checkpoint_seconds or self.step == self.total_steps
                if folder is not None and is_due:
                    self.save(folder, request)
                    saved = time.monotonic()
        self.average.copy_to(self.parameters)
        if not all(bool(parameter.isfinite().all()) for parameter in self.parameters):
            raise self._diverged("weights became infinite")
        network.eval().requires_grad_(False)
        for parameter in self.parameters:
            parameter.data = parameter.data.to(getattr(torch, self.settings.dtype)).float()
        self.backbone.recipe = _json(
            {
                "settings": asdict(self.settings),
                "images": len(self.source),
                "steps": self.total_steps,
                "parameters": sum(parameter.numel() for parameter in self.parameters),
                "seconds": round(self.seconds, 1),
                "loss": [round(loss, 6) for loss in self.losses],
            }
        )
        return self.backbone

    def _take_step(self) -> None:
        settings = self.settings
        epoch, batch = divmod(self.step, self.steps_per_epoch)
        # Order and noise depend on the seed and the position only, so a resumed run repeats nothing and skips nothing.
        order = np.random.default_rng((settings.seed, epoch)).permutation(len(self.source))
        rows = np.sort(order[batch * settings.batch_size : (batch + 1) * settings.batch_size])
        x0 = self.backbone.prepare(torch.from_numpy(self.source.read(rows)).to(self.device))
        generator = torch.Generator(self.device).manual_seed((settings.seed << 32) + self.step)
        noise = torch.randn(x0.shape, generator=generator, device=self.device, dtype=x0.dtype)
        timesteps = torch.randint(settings.max_timestep + 1, (len(x0),), generator=generator, device=self.device)
        loss = self._loss_and_gradients(x0, noise, timesteps)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * _schedule((self.step + 0.5) / self.total_steps)
        self.optimizer.step()
        self.average.step(self.parameters)
        loss = float(loss)
        if not math.isfinite(loss):
            raise self._diverged(f"denoising loss became {loss}")
        self.step += 1
        self.loss_sum += loss * len(rows)
        if batch + 1 == self.steps_per_epoch:
            self.losses.append(self.loss_sum / len(self.source))
            self.loss_sum = 0.0
            logger.info("epoch %d of %d: denoising loss %.5f", epoch + 1, settings.epochs, self.losses[-1])

    def _loss(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        is_bf16 = self.settings.precision == "bf16"
        # No cache: it would outlive the step, inside of an outer autocast, and hold the weights of the first one.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=is_bf16, cache_enabled=False):
            return self.backbone.denoising_loss(x0, noise, timesteps)

    def _loss_and_gradients(self, *batch: Tensor) -> Tensor:
        """Return the loss of a batch, with gradients in the parameters."""
        if self.device.type == "cuda":
            if self.replayed is None:
                self.replayed = ReplayedPass(self._loss, self.parameters, batch)
            if self.replayed.fits(batch):
                return self.replayed(*batch)
        loss = self._loss(*batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        return loss.detach()

    def _diverged(self, what: str) -> FloatingPointError:
        return FloatingPointError(
            f"pretraining diverged: the {what} at step {self.step} of {self.total_steps}; "
            f"lower learning_rate, which is {self.settings.learning_rate:g}"
        )

    def save(self, folder: Path, request: dict[str, Any]) -> None:
        """Write the checkpoint that `resume` reads. One that cannot be written is no reason to lose the training."""
        position = Position(self.step, tuple(self.losses), self.loss_sum, self.seconds)
        try:
            write_checkpoint(folder, request, position, self._tensors())
        except OSError as error:
            if not self.is_warned:
                logger.warning("no checkpoint: %s; the training goes on, but a stop would lose its latest steps", error)
            self.is_warned = True

    def _tensors(self) -> dict[str, Tensor]:
        """Return the state of the training, under the names that checkpoints have; Adam's moments are 0 at first."""
        tensors = {}
        for index, (parameter, shadow) in enumerate(zip(self.parameters, self.average.shadow_params, strict=True)):
            tensors[f"weight.{index}"] = parameter.detach()
            tensors[f"average.{index}"] = shadow
            for name in _MOMENTS:
                tensors[f"{name}.{index}"] = self.optimizer.state[parameter].get(name, torch.zeros_like(parameter))
        return tensors

    def resume(self, folder: Path) -> None:
        """Continue from the checkpoint in `folder`."""
        position, tensors = read_checkpoint(
            folder, self._tensors(), steps_per_epoch=self.steps_per_epoch, total_steps=self.total_steps
        )
        self.step, self.losses = position.step, list(position.losses)
        self.loss_sum, self.seconds = position.loss_sum, position.seconds
        self.average.optimization_step = self.step
        state = {}
        with torch.no_grad():
            for index, parameter in enumerate(self.parameters):
                parameter.copy_(tensors[f"weight.{index}"])
                self.average.shadow_params[index].copy_(tensors[f"average.{index}"])
                moments = {name: tensors[f"{name}.{index}"] for name in _MOMENTS}
                state[index] = {"step": torch.tensor(float(self.step)), **moments}
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        logger.info("resuming at step %d of %d", self.step, self.total_steps)


def _new_backbone(image_shape: tuple[int, int, int], settings: Settings) -> PixelBackbone:
    with ONE_AT_A_TIME:
        from diffusers import DDPMScheduler

    # On the CPU in float32, whatever the caller's defaults are.
    with torch.device("cpu"), drawing_from_seed(settings.seed):
        network = untrained_network(image_shape, settings).float()
        scheduler = DDPMScheduler(num_train_timesteps=NUM_TRAIN_TIMESTEPS)
    return PixelBackbone(
        network,
        scheduler,
        image_shape=image_shape,
        patch_size=settings.patch_size,
        recipe={"settings": _json(asdict(settings))},
    )


def _schedule(progress: float) -> float:
    """Return the share of the peak learning rate: linear warm-up, then half a cosine to zero."""
    if progress < _WARMUP_FRACTION:
        return progress / _WARMUP_FRACTION
    return 0.5 * (1.0 + math.cos(math.pi * (progress - _WARMUP_FRACTION) / (1.0 - _WARMUP_FRACTION)))


@contextmanager
def _progress(verbose: bool, total: int, completed: int) -> Iterator[Any]:
    if not verbose:
        yield lambda loss: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("pretraining"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} steps, loss {task.fields[loss]:.4f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # Its own console: rich's common one shows one progress bar at a time, and other threads may train too.
    with Progress(*columns, console=Console()) as progress:
        task = progress.add_task("pretraining", total=total, completed=completed, loss=math.nan)
        yield lambda loss: progress.update(task, advance=1, loss=loss)
