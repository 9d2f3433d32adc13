"""Loading: from a folder, a Hub id or a loaded model to a backbone."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from skdiec.backbones.base import Backbone
from skdiec.backbones.config_files import exists, read_json
from skdiec.backbones.importing import ONE_AT_A_TIME
from skdiec.backbones.networks import (
    PICKLE_SUFFIXES,
    WEIGHTS_NAME,
    check_network_config,
    find_weights,
    new_network,
    outline_network,
    pickle_message,
    read_weights,
)
from skdiec.backbones.pixel import RECIPE_FILE, PixelBackbone, check_time_embedding
from skdiec.backbones.schedules import scheduler_of, training_scheduler
from skdiec.messages import shown, warn

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, SchedulerMixin

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SCHEDULER_FILE = "scheduler_config.json"

_OTHER_PIPELINES = frozenset(
    {
        "KarrasVePipeline",
        "LDMPipeline",
        "LDMSuperResolutionPipeline",
    }
)
"""Pipelines of a ``UNet2DModel`` that is no DDPM of pixels, whatever lies beside it."""


def load_backbone(backbone: str | os.PathLike | Any) -> PixelBackbone:
    """Load a pretrained diffusion model, or wrap one that is loaded.

    Parameters
    ----------
    backbone : path, str, diffusers.UNet2DModel, pipeline or PixelBackbone
        - a folder with a diffusers pipeline (``model_index.json``) whose denoiser is a ``UNet2DModel`` over pixels, or
          with such a model alone (``config.json``);
        - a Hugging Face Hub id, ``"owner/name"``, of either;
        - a loaded ``UNet2DModel``, or a pipeline with ``unet`` and ``scheduler``: copied, and left as it is.

        The noise schedule is the pipeline's. For a model alone it is that of a ``scheduler_config.json`` beside it, in
        its folder ``scheduler``, or, for a folder named ``unet``, in ``../scheduler``. Where there is none, it is taken
        to be diffusers' default DDPM one, and a warning says so. Networks of latents, and of other noise than a DDPM's
        (score-based, EDM, consistency, flow matching), are refused.

        Only safetensors weights are read: unpickling a checkpoint can run anything. A folder that has a single variant
        of them, such as ``fp16``, is read too.

    Returns
    -------
    PixelBackbone
        In evaluation mode and float32, with weights of its own; a `PixelBackbone` is returned as it is.

    Raises
    ------
    ValueError
        Where nothing is found, a file is unreadable, damaged or pickled, a configuration has wrong or missing values,
        or the model is of another kind.
    TypeError
        For an object that is no diffusion model.

    Warns
    -----
    UserWarning
        Where a network has no noise schedule beside it.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from skdiec import pretrain
    >>> images = np.random.default_rng(0).integers(0, 256, (32, 4, 4), dtype=np.uint8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     trained = pretrain(images, folder, epochs=1, random_state=0)
    ...     backbone = load_backbone(folder)
    >>> backbone.image_shape, backbone.fingerprint() == trained.fingerprint()
    ((1, 4, 4), True)
    """
    if isinstance(backbone, Backbone):
        return backbone
    if isinstance(backbone, (str, os.PathLike)):
        return _load(backbone)
    return _wrap(backbone)


def _load(name: str | os.PathLike) -> PixelBackbone:
    if not str(name):
        raise ValueError("backbone must be 'auto', a folder, a Hub id or a loaded model; got an empty name")
    path = Path(name)
    if os.path.isfile(path):
        if path.suffix.lower() in PICKLE_SUFFIXES:
            raise ValueError(pickle_message(path))
        raise ValueError(f"backbone must be the folder of a diffusers pipeline or model; {path} is a file")
    if os.path.isdir(path):
        return _load_folder(path)
    if os.path.lexists(path) or not isinstance(name, str) or not _HUB_ID.fullmatch(name):
        raise ValueError(
            "backbone must be 'auto', a folder, a Hub id 'owner/name' or a loaded model: "
            f"there is no folder {shown(str(name))}"
        )
    return _load_hub(name)


@dataclass(frozen=True)
class _Parts:
    """Where the parts of a backbone are."""

    network: Path
    scheduler: Path | None
    scheduler_kind: str | None
    recipe: Path | None


def _load_folder(folder: Path) -> PixelBackbone:
    parts = _find_parts(folder)
    scheduler, recipe = _read_scheduler(parts), {}
    if parts.recipe is not None:
        recipe = read_json(parts.recipe)
    config = _read_config(parts, scheduler)
    if scheduler is None:
        scheduler = _default_scheduler(config, f"backbone {folder}", has_recipe=parts.recipe is not None)
    network, files = outline_network(parts.network)
    options = {name: recipe.pop(name) for name in ("image_shape", "patch_size", "null_class") if name in recipe}
    try:
        backbone = PixelBackbone(network, scheduler, **options, recipe=recipe)
    except ValueError as error:
        raise ValueError(f"backbone {parts.recipe or folder} does not fit its network: {error}") from error
    read_weights(network, files)
    return backbone


def _find_parts(folder: Path) -> _Parts:
    index = folder / "model_index.json"
    if exists(index):
        kind = _check_index(index)
        # Early pipelines, such as google/ddpm-cat-256, have all files in one folder; diffusers reads both.
        network, schedule = (part if exists(part) else folder for part in (folder / "unet", folder / "scheduler"))
        return _Parts(network, schedule / _SCHEDULER_FILE, kind, _if_exists(folder / RECIPE_FILE))
    if not exists(folder / "config.json"):
        raise ValueError(
            f"backbone folder {folder} has neither model_index.json (a pipeline) nor config.json (a model)"
        )
    around, actual = [folder], folder.resolve()
    if actual.name == "unet":
        if exists(actual.parent / "model_index.json"):
            return _find_parts(actual.parent)
        around.append(actual.parent)
    schedules = [place / name for place in around for name in (_SCHEDULER_FILE, f"scheduler/{_SCHEDULER_FILE}")]
    recipes = [place / RECIPE_FILE for place in around]
    return _Parts(folder, next(filter(exists, schedules), None), None, next(filter(exists, recipes), None))


def _if_exists(path: Path) -> Path | None:
    return path if exists(path) else None


def _check_index(path: Path) -> str | None:
    """Raise ValueError for a pipeline that can't be used; return the class of its scheduler."""
    where = f"backbone file {path}"
    index = read_json(path)
    kind = index.get("_class_name", "unknown")
    parts: dict[str, tuple[str | None, str | None]] = {}
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, (list, dict)):  # others are options of the pipeline
            continue
        if not isinstance(value, list) or len(value) != 2 or not all(isinstance(v, (str, type(None))) for v in value):
            raise ValueError(f"{where}: {name} must be a pair [library, class]; got {shown(value)}")
        parts[name] = (value[0], value[1])
    others = [name for name, (_, found) in parts.items() if name not in ("unet", "scheduler") and found is not None]
    _check_pipeline(f"backbone {path.parent}", str(kind), parts.get("unet", (None, None))[1] or "none", others)
    for name, (library, _) in parts.items():
        if name in ("unet", "scheduler") and library not in ("diffusers", None):
            raise ValueError(f"{where}: {name} must be of the library 'diffusers'; got {shown(library)}")
    return parts.get("scheduler", (None, None))[1]


def _check_pipeline(where: str, kind: str, unet: str, others: Sequence[str]) -> None:
    """Raise ValueError for a pipeline whose network does not denoise pixels."""
    if unet == "UNet2DModel" and not others and kind not in _OTHER_PIPELINES:
        return
    beside = f" with {', '.join(others)} beside its network" if unet == "UNet2DModel" and others else ""
    raise ValueError(
        f"{where} is a {kind[:80]}{beside}; "
        "only pipelines of a pixel-space UNet2DModel and a scheduler (such as DDPMPipeline) can be used"
    )


def _read_scheduler(parts: _Parts) -> SchedulerMixin | None:
    if parts.scheduler is None:
        return None
    return training_scheduler(read_json(parts.scheduler), f"backbone file {parts.scheduler}", parts.scheduler_kind)


def _read_config(parts: _Parts, scheduler: SchedulerMixin | None) -> dict[str, Any]:
    """Read the configuration of a network, and check that it goes with its schedule."""
    file = parts.network / "config.json"
    config = check_network_config(read_json(file), f"backbone file {file}")
    if scheduler is not None:
        check_time_embedding(config, scheduler, f"backbone file {file}")
    return config


def _default_scheduler(config: Mapping[str, Any], where: str, *, has_recipe: bool = False) -> DDPMScheduler:
    """Return diffusers' default schedule for a network without one, with a warning."""
    with ONE_AT_A_TIME:
        from diffusers import DDPMScheduler

    check_time_embedding(config, DDPMScheduler(), where)
    if config["in_channels"] not in (1, 3) and not has_recipe:
        raise ValueError(
            f"{where} is a network of {config['in_channels']} channels without a noise schedule beside it: whether "
            "these are of pixels or of latents is not known; for one of pixels pass "
            "diffusers.DDPMPipeline(unet, scheduler)"
        )
    warn(
        f"{where} has no noise schedule beside it: diffusers' default one of a DDPM is taken (1,000 timesteps, linear, "
        "predicting the noise). If the network was trained with another, its features are wrong: then pass "
        "diffusers.DDPMPipeline(unet, scheduler)"
    )
    return DDPMScheduler()


def _load_hub(name: str) -> PixelBackbone:
    """Fetch the few files that are needed from the Hub, the small ones first, and read them as a folder."""
    patterns = ["model_index.json"]
    folder = _fetch(name, patterns)
    if exists(folder / "model_index.json"):
        _check_index(folder / "model_index.json")
    patterns += [f"{place}config.json" for place in ("", "unet/")]
    patterns += [f"{place}{_SCHEDULER_FILE}" for place in ("", "scheduler/")]
    patterns += [RECIPE_FILE]
    folder = _fetch(name, patterns)
    parts = _find_parts(folder)
    _read_config(parts, _read_scheduler(parts))
    # What else is there, such as weights of half precision beside full ones, is not fetched.
    prefix = "" if parts.network == folder else "unet/"
    plain, index = f"{WEIGHTS_NAME}.safetensors", f"{WEIGHTS_NAME}.safetensors.index.json"
    patterns += [prefix + plain, prefix + index]
    folder = _fetch(name, patterns)
    network = folder / prefix
    if exists(network / index):
        folder = _fetch(name, [*patterns, *(prefix + path.name for path in find_weights(network))])
    elif not exists(network / plain):
        folder = _fetch(name, [*patterns, f"{prefix}{WEIGHTS_NAME}*.safetensors*"])
    return _load_folder(folder)


def _fetch(name: str, patterns: Sequence[str]) -> Path:
    """Return a folder with the files of a Hub repository that match; from its cache where there is no network."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except Exception as error:  # the client raises its own, httpx's and the operating system's errors
        raise ValueError(
            f"backbone {name!r} is neither a local folder nor could it be fetched from the Hub: {error}"
        ) from error


def _wrap(backbone: Any) -> PixelBackbone:
    with ONE_AT_A_TIME:
        from diffusers import UNet2DModel

    network = getattr(backbone, "unet", backbone)
    if not isinstance(network, UNet2DModel):
        raise TypeError(
            "backbone must be 'auto', a path, a Hub id, a UNet2DModel, a pipeline that has one, or a PixelBackbone; "
            f"got {type(backbone).__name__}"
        )
    scheduler = None
    if network is not backbone:
        _check_pipeline("backbone", type(backbone).__name__, "UNet2DModel", _other_parts(backbone))
        scheduler = getattr(backbone, "scheduler", None)
    where = "the backbone's configuration"
    config = check_network_config(network.config, where)
    if scheduler is None:
        scheduler = _default_scheduler(config, "the backbone")
    else:
        scheduler = scheduler_of(scheduler, "the backbone's scheduler")
    # Rebuilt from its configuration rather than deep-copied: hooks and modes of the caller's model stay behind.
    return PixelBackbone(new_network(config, _copies(network), where), scheduler)


def _other_parts(pipeline: Any) -> list[str]:
    """Name what a pipeline has beside its network and its scheduler."""
    found = getattr(pipeline, "components", None)
    if not isinstance(found, Mapping):
        found = {name: value for name, value in vars(pipeline).items() if isinstance(value, nn.Module)}
    return [name for name, value in found.items() if name not in ("unet", "scheduler") and value is not None]


def _copies(network: nn.Module) -> dict[str, Tensor]:
    weights = network.state_dict()
    if any(tensor.is_meta for tensor in weights.values()):
        raise ValueError("backbone has weights on the device 'meta', which have no values: load them first")
    return {name: tensor.detach().to("cpu", torch.float32, copy=True) for name, tensor in weights.items()}
