"""Diffusion backbones: loading, adapting and pretraining them. The only room that imports diffusers."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import torch

from skdiec.backbones.devices import default_device, is_emulated
from skdiec.backbones.pixel import RECIPE_FILE, PixelBackbone
from skdiec.backbones.pretraining import pretrain, untrained_backbone

__all__ = ["PixelBackbone", "default_device", "is_emulated", "load_backbone", "pretrain", "untrained_backbone"]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})


def load_backbone(backbone: str | os.PathLike | Any) -> PixelBackbone:
    """Load a pretrained diffusion model, or wrap one that is loaded.

    Parameters
    ----------
    backbone : path, str, diffusers.UNet2DModel, pipeline or PixelBackbone
        - a folder with a diffusers pipeline (``model_index.json``) whose denoiser is a ``UNet2DModel``, or with
          such a model alone (``config.json``; its noise schedule is then taken to be diffusers' default DDPM one);
        - a Hugging Face Hub id, ``"owner/name"``, of either;
        - a loaded ``UNet2DModel``, or a pipeline with ``unet`` and ``scheduler``: copied, and left as it is.

        Only safetensors weights are read: unpickling a checkpoint can run anything.

    Returns
    -------
    PixelBackbone
        In evaluation mode and float32, with weights of its own; a `PixelBackbone` is returned as it is.

    Raises
    ------
    ValueError
        Where nothing is found, the weights are missing, damaged or pickled, or the model is of another kind.
    TypeError
        For an object that is no diffusion model.
    """
    if isinstance(backbone, PixelBackbone):
        return backbone
    if isinstance(backbone, (str, os.PathLike)):
        return _load(backbone)
    return _wrap(backbone)


def _load(name: str | os.PathLike) -> PixelBackbone:
    path = Path(name)
    if path.is_file():
        if path.suffix.lower() in _PICKLE_SUFFIXES:
            raise ValueError(_pickle_message(path))
        raise ValueError(f"backbone must be the folder of a diffusers pipeline or model; {path} is a file")
    if path.is_dir():
        return _load_folder(path)
    if not isinstance(name, str) or not _HUB_ID.fullmatch(name):
        raise ValueError(
            f"backbone must be 'auto', a folder, a Hub id 'owner/name' or a loaded model: "
            f"there is no folder {str(name)!r}"
        )
    return _load_hub(name)


def _load_folder(folder: Path) -> PixelBackbone:
    from diffusers import DDPMScheduler

    if (folder / "model_index.json").is_file():
        index = _read_json(folder / "model_index.json")
        _check_pipeline(index, str(folder))
        # Early pipelines, such as google/ddpm-cat-256, have all files in one folder; diffusers reads both.
        unet, schedule = (each if each.is_dir() else folder for each in (folder / "unet", folder / "scheduler"))
        network = _load_network(unet)
        scheduler = _training_scheduler(_read_json(schedule / "scheduler_config.json"))
    elif (folder / "config.json").is_file():
        network = _load_network(folder)
        scheduler = DDPMScheduler()
    else:
        raise ValueError(
            f"backbone folder {folder} has neither model_index.json (a pipeline) nor config.json (a model)"
        )
    recipe = _read_json(folder / RECIPE_FILE) if (folder / RECIPE_FILE).is_file() else {}
    shape = recipe.pop("image_shape", None)
    patch_size = recipe.pop("patch_size", 1)
    return PixelBackbone(
        network, scheduler, image_shape=tuple(shape) if shape else None, patch_size=patch_size, recipe=recipe
    )


def _load_hub(name: str) -> PixelBackbone:
    """Fetch the few files that are needed from the Hub, then read them as a folder."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            name,
            allow_patterns=["*.json", "*.safetensors", "unet/*", "scheduler/*"],
            ignore_patterns=["*.bin", "*.ckpt"],
        )
    except Exception as error:  # the client raises its own, httpx's and the operating system's errors
        raise ValueError(
            f"backbone {name!r} is neither a local folder nor could it be fetched from the Hub: {error}"
        ) from error
    return _load_folder(Path(folder))


def _check_pipeline(index: dict[str, Any], name: str) -> None:
    if "unet" not in index or index["unet"][1] != "UNet2DModel":
        kind = index.get("_class_name", "unknown")
        raise ValueError(
            f"backbone {name} is a {kind}; "
            "only pipelines of a pixel-space UNet2DModel (such as DDPMPipeline) can be used"
        )


def _load_network(folder: Path) -> Any:
    from diffusers import UNet2DModel

    config = _read_json(folder / "config.json")
    if config.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise ValueError(f"backbone {folder} is a {config['_class_name']}; only UNet2DModel can be used")
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(path for path in folder.glob("*") if path.suffix.lower() in _PICKLE_SUFFIXES)
        raise ValueError(_pickle_message(pickled[0]) if pickled else f"backbone {folder} has no .safetensors weights")
    try:
        with torch.random.fork_rng(devices=[]):  # without accelerate, diffusers draws weights before it reads them
            network, report = UNet2DModel.from_pretrained(
                str(folder),
                use_safetensors=True,
                local_files_only=True,
                low_cpu_mem_usage=False,  # True needs accelerate, which is not otherwise needed
                output_loading_info=True,
            )
    except Exception as error:  # safetensors, diffusers and torch each have their own
        raise ValueError(
            f"backbone {folder} has damaged or truncated weights, or some of another model: {error}"
        ) from error
    if report["missing_keys"] or report["unexpected_keys"]:
        raise ValueError(
            f"backbone {folder} has weights of another architecture: {len(report['missing_keys'])} missing, "
            f"{len(report['unexpected_keys'])} unexpected"
        )
    return network.float().eval().requires_grad_(False)


def _wrap(backbone: Any) -> PixelBackbone:
    from diffusers import DDPMScheduler, UNet2DModel

    network = getattr(backbone, "unet", backbone)
    if not isinstance(network, UNet2DModel):
        raise TypeError(
            "backbone must be 'auto', a path, a Hub id, a UNet2DModel, a pipeline that has one, or a PixelBackbone; "
            f"got {type(backbone).__name__}"
        )
    # Rebuilt from its configuration rather than deep-copied: hooks and modes of the caller's model stay behind.
    with torch.random.fork_rng(devices=[]):  # diffusers draws weights that are then replaced
        copied = UNet2DModel.from_config(network.config)
    copied.load_state_dict({name: tensor.float() for name, tensor in network.state_dict().items()})
    scheduler = getattr(backbone, "scheduler", None)
    scheduler = DDPMScheduler() if scheduler is None else _training_scheduler(dict(scheduler.config))
    return PixelBackbone(copied.eval().requires_grad_(False), scheduler)


def _training_scheduler(config: dict[str, Any]) -> Any:
    """Return the forward process of any scheduler: samplers share their betas with the DDPM they were made for."""
    from diffusers import DDPMScheduler

    prediction = config.get("prediction_type", "epsilon")
    if "beta_schedule" not in config or prediction not in ("epsilon", "sample", "v_prediction"):
        raise ValueError(
            "backbone must have a scheduler with betas and prediction_type 'epsilon', 'sample' or 'v_prediction'; "
            f"got beta_schedule={config.get('beta_schedule')!r}, prediction_type={prediction!r}"
        )
    return DDPMScheduler.from_config({key: value for key, value in config.items() if not key.startswith("_")})


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"backbone file {path} is missing or no JSON: {error}") from error


def _pickle_message(path: Path) -> str:
    return (
        f"backbone {path} is in pickle format, which can run code when it is loaded; save the model with "
        "save_pretrained(..., safe_serialization=True) and pass that folder"
    )
