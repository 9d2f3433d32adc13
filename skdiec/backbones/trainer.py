"""One training run of a compact DDPM: network, optimizer, moving average, position, and its checkpoints."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from skdiec.backbones.checkpoints import Position, read_checkpoint, write_checkpoint
from skdiec.backbones.importing import ONE_AT_A_TIME
from skdiec.backbones.pixel import PixelBackbone
from skdiec.backbones.pixel_transformer import PixelTransformerBackbone
from skdiec.backbones.replay import ReplayedPass
from skdiec.backbones.settings import NUM_TRAIN_TIMESTEPS, Settings, untrained_network
from skdiec.images import ImageSource
from skdiec.seeding import drawing_from_seed

logger = logging.getLogger(__name__)

Report = Callable[[int, int, float], bool | None]
"""Told of the steps done, of those in all and of the last epoch's loss; returns True to end the training there."""

_WARMUP_FRACTION = 0.05
_EMA_WARMUP_POWER = 0.75  # as diffusers warms up its average: early weights are soon forgotten
_MOMENTS = ("exp_avg", "exp_avg_sq")  # as Adam calls them


class Trainer:
    """One training run.

    Parameters
    ----------
    source : ImageSource
    settings : Settings
    device : torch.device
    """

    def __init__(self, source: ImageSource, settings: Settings, device: torch.device) -> None:
        self.source, self.settings, self.device = source, settings, device
        self.backbone = new_backbone(source.shape, settings).to(device)
        self.parameters = list(self.backbone.network.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=settings.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=0.0,
            fused=True,
        )
        self.averages = [parameter.detach().clone() for parameter in self.parameters]
        self.steps_per_epoch = math.ceil(len(source) / settings.batch_size)
        self.total_steps = settings.epochs * self.steps_per_epoch
        self.step, self.loss_sum, self.seconds = 0, 0.0, 0.0
        self.losses: list[float] = []
        self.is_warned = self.is_stopped = False
        self.replayed: ReplayedPass | None = None  # of full batches, on CUDA

    def run(
        self,
        folder: Path | None = None,
        request: dict[str, Any] | None = None,
        checkpoint_seconds: float = math.inf,
        report: Report | None = None,
    ) -> PixelBackbone | PixelTransformerBackbone:
        """Train to the end, or until `report` says True, and return the network with its averaged weights."""
        network = self.backbone.network
        # Nothing in it learns in another way in training mode, but a transformer's embedding of classes would then
        # draw from torch's global generator.
        network.eval()
        started = saved = time.monotonic()
        before = self.seconds
        while self._progress(self.step) < 1 and not self.is_stopped:
            self._take_step()
            now = time.monotonic()
            self.seconds = before + now - started
            progress = self._progress(self.step)
            if report is not None:
                in_all = max(self.step, min(self.total_steps, round(self.step / progress)))
                self.is_stopped = bool(report(self.step, in_all, self._recent_loss()))
            # The last one lets a kill while the pipeline is written cost nothing.
            is_due = now - saved > checkpoint_seconds or progress >= 1 or self.is_stopped
            if folder is not None and request is not None and is_due:
                self.save(folder, request)
                saved = time.monotonic()
        if self.step < self.total_steps and not self.is_stopped:
            gone = f"max_minutes={self.settings.max_minutes:g} are over"
            logger.info("%s: the training ends after %d of %d steps", gone, self.step, self.total_steps)
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            parameter.data.copy_(average)
        if not all(bool(parameter.isfinite().all()) for parameter in self.parameters):
            raise self._diverged("weights became infinite")
        network.eval().requires_grad_(False)
        for parameter in self.parameters:
            parameter.data = parameter.data.to(getattr(torch, self.settings.dtype)).float()
        self.backbone.recipe = json_of(
            {
                "settings": asdict(self.settings),
                "images": len(self.source),
                "steps": self.step,
                "parameters": sum(parameter.numel() for parameter in self.parameters),
                "seconds": round(self.seconds, 1),
                "loss": [round(loss, 6) for loss in self.losses],
            }
        )
        return self.backbone

    def _progress(self, step: float) -> float:
        """Return the share of the steps, or of the time where that is higher, that is gone after so many steps."""
        limit = 60 * self.settings.max_minutes if self.settings.max_minutes is not None else math.inf
        return max(step / self.total_steps, self.seconds / limit)

    def _recent_loss(self) -> float:
        """Return the mean loss of the last epoch, or, in the first one, of its steps so far."""
        return self.losses[-1] if self.losses else self.loss_sum / (self.step * self.settings.batch_size)

    def _take_step(self) -> None:
        settings = self.settings
        epoch, batch = divmod(self.step, self.steps_per_epoch)
        # Order and noise depend on the seed and the position only, so a resumed run repeats nothing and skips nothing.
        order = np.random.default_rng((settings.seed, epoch)).permutation(len(self.source))
        rows = np.sort(order[batch * settings.batch_size : (batch + 1) * settings.batch_size])
        x0 = self.backbone.prepare(torch.from_numpy(self.source.read(rows)).to(self.device))
        # Mixed, since on a CPU the generator looks at 32 bits of its seed alone.
        mixed = int(np.random.SeedSequence((settings.seed, self.step)).generate_state(1, np.uint64)[0])
        generator = torch.Generator(self.device).manual_seed(mixed)
        noise = torch.randn(x0.shape, generator=generator, device=self.device, dtype=x0.dtype)
        timesteps = torch.randint(settings.max_timestep + 1, (len(x0),), generator=generator, device=self.device)
        found = self._loss_and_gradients(x0, noise, timesteps)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * _schedule(min(1.0, self._progress(self.step + 0.5)))
        self.optimizer.step()
        get_ema_multi_avg_fn(min(settings.ema_decay, 1 - (1 + self.step) ** -_EMA_WARMUP_POWER))(
            self.averages, self.parameters, None
        )
        loss = float(found)
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
        for index, (parameter, average) in enumerate(zip(self.parameters, self.averages, strict=True)):
            tensors[f"weight.{index}"] = parameter.detach()
            tensors[f"average.{index}"] = average
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
        state = {}
        with torch.no_grad():
            for index, parameter in enumerate(self.parameters):
                parameter.copy_(tensors[f"weight.{index}"])
                self.averages[index].copy_(tensors[f"average.{index}"])
                moments = {name: tensors[f"{name}.{index}"] for name in _MOMENTS}
                state[index] = {"step": torch.tensor(float(self.step)), **moments}
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        logger.info("resuming at step %d of %d", self.step, self.total_steps)


def new_backbone(image_shape: tuple[int, int, int], settings: Settings) -> PixelBackbone | PixelTransformerBackbone:
    """Build the network of some settings, untrained.

    Parameters
    ----------
    image_shape : tuple of int
        ``(channels, height, width)``
    settings : Settings

    Returns
    -------
    PixelBackbone or PixelTransformerBackbone
        On the CPU, in float32.
    """
    with ONE_AT_A_TIME:
        from diffusers import DDPMScheduler

    # On the CPU in float32, whatever the caller's defaults are.
    with torch.device("cpu"), drawing_from_seed(settings.seed):
        network = untrained_network(image_shape, settings).float()
        scheduler = DDPMScheduler(num_train_timesteps=NUM_TRAIN_TIMESTEPS)
    recipe = {"settings": json_of(asdict(settings))}
    if settings.architecture == "transformer":
        return PixelTransformerBackbone(network, scheduler, image_shape=image_shape, recipe=recipe)
    return PixelBackbone(network, scheduler, image_shape=image_shape, patch_size=settings.patch_size, recipe=recipe)


def _schedule(progress: float) -> float:
    """Return the share of the peak learning rate: linear warm-up, then half a cosine to zero."""
    if progress < _WARMUP_FRACTION:
        return progress / _WARMUP_FRACTION
    return 0.5 * (1.0 + math.cos(math.pi * (progress - _WARMUP_FRACTION) / (1.0 - _WARMUP_FRACTION)))


def json_of(value: Any) -> Any:
    """Return a value as it is after being written as JSON and read again.

    Parameters
    ----------
    value : object

    Returns
    -------
    object
    """
    return json.loads(json.dumps(value))
