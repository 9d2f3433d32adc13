"""Pretraining: a compact DDPM trained on the user's own, unlabelled images."""

from __future__ import annotations

import inspect
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from skdiec.backbones.config_files import read_json
from skdiec.backbones.pixel import RECIPE_FILE, PixelBackbone
from skdiec.images import ImageSource, as_image_source

logger = logging.getLogger(__name__)

CHECKPOINT_FILE = "training.safetensors"
"""State of an unfinished training, beside the pipeline that it will become."""

_NUM_TRAIN_TIMESTEPS = 1000
_WARMUP_FRACTION = 0.05


@dataclass(frozen=True)
class _Settings:
    """All that the trained weights depend on, apart from the images."""

    epochs: int
    batch_size: int
    learning_rate: float
    channels: tuple[int, ...]
    layers_per_block: int
    patch_size: int
    max_timestep: int
    ema_decay: float
    precision: str
    dtype: str
    seed: int


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

    Parameters
    ----------
    X : array-like, folder, sequence of paths, or ImageSource
        The images; with `image_shape`, `channel_axis` and `value_range` as in
        `DiffusionEmbeddedClustering`.
    folder : path, default=None
        Where the diffusers pipeline, the training record and, while training, checkpoints go. None
        keeps the result in memory only.
    image_shape, channel_axis, value_range
        See `DiffusionEmbeddedClustering`.
    epochs : int, default=None
        Passes over X. None is as many as show the network about 400,000 images, but at least 8 and at most 40.
    batch_size : int, default=64
        Images per training step.
    learning_rate : float, default=2e-3
        Peak of the cosine schedule.
    channels : sequence of int, default=None
        Channels of each resolution of the U-Net, from the highest. None is 32, 64, 128 for sides (after
        space-to-depth) of 9 pixels and more; from 5 pixels 64, 128, or 32, 64 without space-to-depth; else 32.
    layers_per_block : int, default=1
        Residual blocks in each resolution.
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
        Least time between two checkpoints in `folder`.
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
        For images or settings that do not fit, and for a `folder` that holds something else.
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
    source = (
        X
        if isinstance(X, ImageSource)
        else as_image_source(X, image_shape=image_shape, channel_axis=channel_axis, value_range=value_range)
    )
    source = source.in_memory()
    if not isinstance(checkpoint_seconds, Real) or not checkpoint_seconds >= 0:
        raise ValueError(f"checkpoint_seconds must be a number of at least 0; got {checkpoint_seconds!r}")
    device = default_device(device)
    settings = _resolve_settings(
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
    if folder is None:
        return _Training(source, settings, device).run(verbose=bool(verbose))

    from filelock import FileLock

    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder must be a folder; {folder} is a file")
    folder.mkdir(parents=True, exist_ok=True)
    _check_folder(folder)
    # Several processes of a parameter search may ask for the same backbone: one trains, the others wait.
    with FileLock(folder / ".lock"):
        found = _settings_in(folder)
        if precision == "auto" and found.get("precision") in ("fp32", "bf16"):
            settings = replace(settings, precision=found["precision"])
        if random_state is None and "seed" in found:
            settings = replace(settings, seed=found["seed"])
        request = {"settings": asdict(settings), "data": source.fingerprint()}
        finished = _finished(folder, request)
        if finished is not None:
            return finished.to(device)
        training = _Training(source, settings, device)
        training.resume(folder, request)
        try:
            backbone = training.run(folder, request, checkpoint_seconds, verbose=bool(verbose))
        except FloatingPointError:
            (folder / CHECKPOINT_FILE).unlink(missing_ok=True)  # going on from it would diverge again
            raise
        training.save(folder, request)  # so that a kill while the pipeline is written costs nothing
        backbone.recipe["request"] = _json(request)
        backbone.save_pretrained(folder, dtype=settings.dtype)
        for name in (CHECKPOINT_FILE, f"{CHECKPOINT_FILE}.partial"):
            (folder / name).unlink(missing_ok=True)
        return backbone


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
        raise ValueError(f"pretrain has no parameter {unknown[0]!r}; it has {', '.join(signature.parameters)}")
    arguments = signature.bind(source, **settings)
    arguments.apply_defaults()
    names = set(inspect.signature(_resolve_settings).parameters) - {"source"}
    wanted = {name: arguments.arguments[name] for name in names}
    return _new_backbone(source.shape, _resolve_settings(source, **wanted))


def _resolve_settings(
    source: ImageSource,
    *,
    epochs: int | None,
    batch_size: int,
    learning_rate: float,
    channels: Sequence[int] | None,
    layers_per_block: int,
    patch_size: int | None,
    max_timestep: int,
    ema_decay: float,
    precision: str,
    dtype: str,
    device: str | torch.device | None,
    random_state: int | None,
) -> _Settings:
    device = default_device(device)
    _, height, width = source.shape
    if patch_size is None:
        patch_size = 1 if max(height, width) <= 8 else 2
        while math.ceil(max(height, width) / patch_size) > 16:
            patch_size *= 2
    if channels is None:
        side = math.ceil(max(height, width) / _positive(patch_size, "patch_size"))
        if side > 8:
            channels = (32, 64, 128)
        elif side > 4:
            channels = (32, 64) if patch_size == 1 else (64, 128)
        else:
            channels = (32,)
    if epochs is None:
        epochs = min(40, max(8, round(400_000 / len(source))))
    known = isinstance(max_timestep, (int, np.integer)) and not isinstance(max_timestep, bool)
    if not known or not 0 <= max_timestep < _NUM_TRAIN_TIMESTEPS:
        raise ValueError(f"max_timestep must be an int from 0 to {_NUM_TRAIN_TIMESTEPS - 1}; got {max_timestep!r}")
    if precision not in ("auto", "fp32", "bf16"):
        raise ValueError(f"precision must be 'auto', 'fp32' or 'bf16'; got {precision!r}")
    if precision == "auto":
        precision = "bf16" if _has_native_bf16(device) else "fp32"
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype must be 'float32' or 'bfloat16'; got {dtype!r}")
    if random_state is not None and not (isinstance(random_state, (int, np.integer)) and 0 <= random_state < 2**32):
        raise ValueError(f"random_state must be an int from 0 to 2**32 - 1, or None; got {random_state!r}")
    if not isinstance(learning_rate, Real) or not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate must be a finite number above 0; got {learning_rate!r}")
    if not isinstance(ema_decay, Real) or not 0 <= ema_decay < 1:
        raise ValueError(f"ema_decay must be in [0, 1); got {ema_decay!r}")
    if np.ndim(channels) != 1 or not len(channels):
        raise ValueError(f"channels must be a sequence of at least one int; got {channels!r}")
    return _Settings(
        epochs=_positive(epochs, "epochs"),
        batch_size=_positive(batch_size, "batch_size"),
        learning_rate=float(learning_rate),
        channels=tuple(_positive(count, "channels") for count in channels),
        layers_per_block=_positive(layers_per_block, "layers_per_block"),
        patch_size=_positive(patch_size, "patch_size"),
        max_timestep=int(max_timestep),
        ema_decay=float(ema_decay),
        precision=precision,
        dtype=dtype,
        seed=int.from_bytes(os.urandom(4), "little") if random_state is None else int(random_state),
    )


def _positive(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} must be an int of at least 1; got {value!r}")
    return int(value)


def default_device(device: str | torch.device | None) -> torch.device:
    """Resolve a device.

    Parameters
    ----------
    device : str, torch.device or None
        None is CUDA where there is one, else the CPU.

    Returns
    -------
    torch.device

    Raises
    ------
    ValueError
        For what torch knows no device by, or what this machine does not have.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be one that torch knows, such as 'cpu' or 'cuda'; got {device!r}") from error
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:  # torch raises either where there is no such device
        raise ValueError(f"device must be one that this machine has; got {str(device)!r} ({error})") from error
    return device


def _computes_in(precision: str, device: torch.device) -> bool | None:
    """Return whether a device has instructions for a number format, None where nothing is known."""
    if device.type == "cuda":
        return precision != "bf16" or torch.cuda.get_device_capability(device)[0] >= 8
    capabilities = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    found = [capabilities[name] for name in (f"avx512_{precision}", f"amx_{precision}") if name in capabilities]
    return any(found) if found else None


def _has_native_bf16(device: torch.device) -> bool:
    return _computes_in("bf16", device) is True


def is_emulated(precision: str, device: torch.device) -> bool:
    """Return whether a device is known to have no instructions for a number format, which makes it many times slower.

    Parameters
    ----------
    precision : {"fp32", "bf16", "fp16"}
    device : torch.device

    Returns
    -------
    bool
        False where nothing is known.
    """
    return _computes_in(precision, device) is False


def _json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _check_folder(folder: Path) -> None:
    """Raise ValueError for a folder with files that no earlier call wrote."""
    own = (".lock", CHECKPOINT_FILE, f"{CHECKPOINT_FILE}.partial")
    strangers = [path.name for path in folder.iterdir() if path.name not in own]
    # A finished pipeline has its record; one that is being written, or was when a kill came, a checkpoint beside it.
    if strangers and not (folder / CHECKPOINT_FILE).exists() and not (folder / RECIPE_FILE).exists():
        raise ValueError(
            f"folder must be new, empty or from an earlier call: {folder} has {', '.join(sorted(strangers)[:3])}"
        )


def _finished(folder: Path, request: dict[str, Any]) -> PixelBackbone | None:
    """Return the backbone that `folder` already holds, if it is the one asked for."""
    from skdiec.backbones.loading import load_backbone

    if (folder / RECIPE_FILE).exists():
        found = read_json(folder / RECIPE_FILE).get("request")
        if found != _json(request):
            raise ValueError(f"{folder} holds a backbone trained {_difference(found, request)}: choose another folder")
        logger.info("loading the backbone that was trained before in %s", folder)
        return load_backbone(folder)
    return None


def _settings_in(folder: Path) -> dict[str, Any]:
    """Return the settings of the training that `folder` holds, finished or not, or nothing."""
    if (folder / RECIPE_FILE).exists():
        request = read_json(folder / RECIPE_FILE).get("request")
    elif (folder / CHECKPOINT_FILE).exists():
        request = _read_checkpoint(folder / CHECKPOINT_FILE)[0]
    else:
        request = None
    return (request or {}).get("settings", {})


def _read_checkpoint(path: Path) -> tuple[dict[str, Any] | None, dict[str, Any], dict[str, Tensor]]:
    """Return what a checkpoint was asked for, its position and its tensors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return json.loads(metadata["request"]), json.loads(metadata["position"]), tensors
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"the training checkpoint {path} is damaged: {error}. Delete it to start again") from error


def _difference(found: dict[str, Any] | None, wanted: dict[str, Any]) -> str:
    if found is None:
        return "elsewhere"
    if found["data"] != wanted["data"]:
        return "on other images"
    changed = [name for name, value in _json(wanted["settings"]).items() if found["settings"].get(name) != value]
    return f"with other settings ({', '.join(changed)})"


class _Training:
    """One training run: network, optimizer, moving average and position."""

    def __init__(self, source: ImageSource, settings: _Settings, device: torch.device) -> None:
        from diffusers.training_utils import EMAModel

        self.source, self.settings, self.device = source, settings, device
        self.backbone = _new_backbone(source.shape, settings).to(device)
        self.parameters = list(self.backbone.network.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=0.0
        )
        self.average = EMAModel(
            self.parameters, decay=settings.ema_decay, use_ema_warmup=True, power=0.75, foreach=True
        )
        self.steps_per_epoch = math.ceil(len(source) / settings.batch_size)
        self.total_steps = settings.epochs * self.steps_per_epoch
        self.step, self.losses, self.loss_sum, self.seconds = 0, [], 0.0, 0.0

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
                if folder is not None and now - saved > checkpoint_seconds and self.step < self.total_steps:
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
        noise = torch.randn(x0.shape, generator=generator, device=self.device)
        timesteps = torch.randint(settings.max_timestep + 1, (len(x0),), generator=generator, device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            loss = self.backbone.denoising_loss(x0, noise, timesteps)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * _schedule((self.step + 1) / self.total_steps)
        self.optimizer.step()
        self.average.step(self.parameters)
        if not math.isfinite(float(loss.detach())):
            raise self._diverged(f"denoising loss became {float(loss.detach())}")
        self.step += 1
        self.loss_sum += float(loss.detach()) * len(rows)
        if batch + 1 == self.steps_per_epoch:
            self.losses.append(self.loss_sum / len(self.source))
            self.loss_sum = 0.0
            logger.info("epoch %d of %d: denoising loss %.5f", epoch + 1, settings.epochs, self.losses[-1])

    def _diverged(self, what: str) -> FloatingPointError:
        return FloatingPointError(
            f"pretraining diverged: the {what} at step {self.step} of {self.total_steps}; "
            f"lower learning_rate, which is {self.settings.learning_rate:g}"
        )

    def save(self, folder: Path, request: dict[str, Any] | None) -> None:
        """Write the checkpoint that `resume` reads, in one step."""
        from safetensors.torch import save_file

        tensors: dict[str, Tensor] = {}
        state = self.optimizer.state_dict()["state"]
        for index, (parameter, shadow) in enumerate(zip(self.parameters, self.average.shadow_params, strict=True)):
            tensors[f"weight.{index}"] = parameter.detach()
            tensors[f"average.{index}"] = shadow
            for name, value in state[index].items():
                tensors[f"{name}.{index}"] = value
        position = {"step": self.step, "losses": self.losses, "loss_sum": self.loss_sum, "seconds": self.seconds}
        partial = folder / f"{CHECKPOINT_FILE}.partial"
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(tensors, partial, metadata={"position": json.dumps(position), "request": json.dumps(request)})
        partial.replace(folder / CHECKPOINT_FILE)

    def resume(self, folder: Path, request: dict[str, Any]) -> None:
        """Continue from the checkpoint in `folder`, if there is one."""
        path = folder / CHECKPOINT_FILE
        if not path.exists():
            return
        found, position, tensors = _read_checkpoint(path)
        if found != _json(request):
            raise ValueError(
                f"{folder} holds an unfinished training {_difference(found, request)}: choose another folder"
            )
        self.step, self.losses = position["step"], position["losses"]
        self.loss_sum, self.seconds = position["loss_sum"], position["seconds"]
        self.average.optimization_step = self.step
        state: dict[int, dict[str, Tensor]] = {index: {} for index in range(len(self.parameters))}
        with torch.no_grad():
            for key, tensor in tensors.items():
                name, index = key.rsplit(".", 1)
                if name == "weight":
                    self.parameters[int(index)].copy_(tensor)
                elif name == "average":
                    self.average.shadow_params[int(index)].copy_(tensor)
                else:
                    state[int(index)][name] = tensor
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        logger.info("resuming at step %d of %d", self.step, self.total_steps)


def _new_backbone(image_shape: tuple[int, int, int], settings: _Settings) -> PixelBackbone:
    from diffusers import DDPMScheduler, UNet2DModel

    channels, height, width = image_shape
    divisor = 2 ** (len(settings.channels) - 1)
    # At least two pixels a side at the lowest resolution: group normalisation needs more than one value.
    height, width = (divisor * max(2, math.ceil(side / (settings.patch_size * divisor))) for side in (height, width))
    folded = channels * settings.patch_size**2
    groups = math.gcd(32, *settings.channels)
    # diffusers draws the initial weights from the global generator: keep its state out of it.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)  # not torch.manual_seed, which seeds all GPUs too
        network = UNet2DModel(
            sample_size=(height, width),
            in_channels=folded,
            out_channels=folded,
            layers_per_block=settings.layers_per_block,
            block_out_channels=settings.channels,
            down_block_types=("DownBlock2D",) * len(settings.channels),
            up_block_types=("UpBlock2D",) * len(settings.channels),
            norm_num_groups=groups,
            attention_head_dim=32 if settings.channels[-1] % 32 == 0 else settings.channels[-1],
        )
    scheduler = DDPMScheduler(num_train_timesteps=_NUM_TRAIN_TIMESTEPS)
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
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("pretraining"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} steps, loss {task.fields[loss]:.4f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        task = progress.add_task("pretraining", total=total, completed=completed, loss=math.nan)
        yield lambda loss: progress.update(task, advance=1, loss=loss)
