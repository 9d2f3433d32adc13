"""Loading: from a folder, a Hub id or a loaded model to a backbone."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from skdiec.backbones.base import Backbone
from skdiec.backbones.config_files import exists, read_json
from skdiec.backbones.families import class_name, find_family, network_parts
from skdiec.backbones.importing import ONE_AT_A_TIME
from skdiec.backbones.models import PICKLE_SUFFIXES, copied_model, pickle_message, read_weights
from skdiec.backbones.networks import check_network_config, outline_network
from skdiec.backbones.pipelines import SCHEDULER_FILE, read_pipeline, record_beside, wrap_pipeline
from skdiec.backbones.pixel import PixelBackbone, check_time_embedding
from skdiec.backbones.repository import INDEX_FILE, Index, Repository
from skdiec.backbones.schedules import scheduler_of, training_scheduler
from skdiec.backbones.writing import RECIPE_FILE
from skdiec.messages import shown, warn

if TYPE_CHECKING:
    from diffusers import DDPMScheduler

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SUBFOLDER = re.compile(r"(?!\.\.?(/|$))[\w.-]+(/(?!\.\.?(/|$))[\w.-]+)*")


def load_backbone(
    backbone: str | os.PathLike | Any,
    *,
    image_size: int | tuple[int, int] | None = None,
    condition: Mapping[str, Tensor] | None = None,
    null_class: int | None = None,
    variant: str | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
) -> Backbone:
    """Load a pretrained diffusion model, or wrap one that is loaded.

    Parameters
    ----------
    backbone : path, str, network, pipeline or Backbone
        - the folder of a diffusers pipeline (``model_index.json``) of one of the families in
          :doc:`/backbones`, or of a ``UNet2DModel`` over pixels alone (``config.json``);
        - a Hugging Face Hub id, ``"owner/name"``, of either. Only the files that are needed are fetched, and from the
          Hub's cache where there is no network;
        - a loaded pipeline, or a loaded ``UNet2DModel``: copied, and left as it is.

        The noise schedule is the pipeline's. For a model alone it is that of a ``scheduler_config.json`` beside it, in
        its folder ``scheduler``, or, for a folder named ``unet``, in ``../scheduler``. Where there is none, it is taken
        to be diffusers' default DDPM one, and a warning says so.

        Only safetensors weights are read: unpickling a checkpoint can run anything. No code of a checkpoint is run.

    image_size : int or tuple of int, default=None
        ``(height, width)``, or one number for both, that images are scaled to for a model of latents. None is what it
        was trained on. Half the size takes a quarter of the time.

    condition : mapping of str to Tensor, default=None
        What a model of latents is told in place of a prompt: the arguments of its network, each of shape ``(1, ...)``,
        such as ``{"encoder_hidden_states": ...}``. None encodes the empty prompt once, with the pipeline's own text
        encoder, which takes the extra ``text``; Stable Diffusion XL is told zeros.

    null_class : int, default=None
        For a ``UNet2DModel`` that is told the class of each image: the class that stands for none. None is the mean of
        all classes' embeddings.

    variant : str, default=None
        Which weights to read where there are several, such as ``"fp16"``. None is those without a name, or the only
        ones.

    revision : str, default=None
        Branch, tag or commit of the Hub.

    subfolder : str, default=None
        Folder of the repository, or below the folder, that holds the pipeline or model.

    Returns
    -------
    Backbone
        In evaluation mode, with weights of its own; a `Backbone` is returned as it is. The weights of pixel models are
        float32. Those of others stay in half precision, where they are stored in it, until they are moved to a
        device that does not compute with it.

    Raises
    ------
    ValueError
        Where nothing is found, a file is unreadable, damaged or pickled, a configuration has wrong or missing values,
        the model is of no family that can be used, or a parameter does not fit it.
    TypeError
        For an object that is no diffusion model.
    ImportError
        Where an empty prompt is to be encoded, and transformers is not installed.

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
    asked = {"image_size": image_size, "condition": condition, "null_class": null_class}
    if variant is not None and not isinstance(variant, str):
        raise ValueError(f"variant must be a name such as 'fp16', or None; got {shown(variant)}")
    if isinstance(backbone, (str, os.PathLike)):
        repository = _repository(backbone, revision, subfolder)
        return _load(repository, variant, asked)
    return _wrap(backbone, asked)


def _repository(name: str | os.PathLike, revision: str | None, subfolder: str | None) -> Repository:
    if not str(name):
        raise ValueError("backbone must be 'auto', a folder, a Hub id or a loaded model; got an empty name")
    if subfolder is not None and (not isinstance(subfolder, str) or not _SUBFOLDER.fullmatch(subfolder)):
        raise ValueError(f"subfolder must be a path below the folder, with /; got {shown(subfolder)}")
    if revision is not None and not isinstance(revision, str):
        raise ValueError(f"revision must be a branch, tag or commit; got {shown(revision)}")
    path = Path(name)
    if os.path.isfile(path):
        if path.suffix.lower() in PICKLE_SUFFIXES:
            raise ValueError(pickle_message(path))
        raise ValueError(f"backbone must be the folder of a diffusers pipeline or model; {path} is a file")
    if os.path.isdir(path):
        folder = path / subfolder if subfolder else path
        if not folder.is_dir():
            raise ValueError(f"subfolder must be a folder in {path}; got {shown(subfolder)}")
        return Repository(str(folder), folder)
    if os.path.lexists(path) or not isinstance(name, str) or not _HUB_ID.fullmatch(name):
        raise ValueError(
            "backbone must be 'auto', a folder, a Hub id 'owner/name' or a loaded model: "
            f"there is no folder {shown(str(name))}"
        )
    return Repository(name, None, revision, subfolder or "")


def _load(repository: Repository, variant: str | None, asked: Mapping[str, Any]) -> Backbone:
    index = Index.read(repository)
    if index is None:
        return _load_model_alone(repository, variant, asked)
    part, name, config = _network_of(repository, index)
    family = find_family(index, name, config)
    for each in (part, "scheduler"):
        library, kind = index.parts.get(each, ("", ""))
        # Classes of other libraries are known where they were registered; none is looked up by its name.
        is_registered = each == part and kind in {getattr(own, "__name__", "") for own in family.networks}
        if library not in ("diffusers", "") and not is_registered:
            raise ValueError(f"{index.where}: {each} must be of the library 'diffusers'; got {shown(library)}")
    if family is PixelBackbone:
        return _load_pixels(repository, index, variant, asked)
    return read_pipeline(family, name, repository, index, variant=variant, **asked)


def _network_of(repository: Repository, index: Index) -> tuple[str, str, dict[str, Any]]:
    """Return the part that is a pipeline's network, its class and its configuration."""
    part = next((part for part in network_parts() if part in index.parts), "")
    if not part:
        find_family(index, "none", {})
    config = repository.json(f"{part}/config.json")
    return part, class_name(config or {}, index.parts[part][1]), config or {}


# Models over pixels, whose files have been laid out in several ways


def _load_model_alone(repository: Repository, variant: str | None, asked: Mapping[str, Any]) -> Backbone:
    """Load a folder without the index of a pipeline, or the pipeline that it is a part of."""
    config = repository.json("config.json")
    folder = repository.fetch()
    if config is None:
        inner = folder / "backbone"
        cure = f": it is a saved model, whose backbone is {inner}" if exists(inner / INDEX_FILE) else ""
        raise ValueError(
            f"backbone folder {folder} has neither {INDEX_FILE} (a pipeline) nor config.json (a model){cure}"
        )
    actual = folder.resolve()
    is_part = repository.root is not None and actual.name in network_parts()
    if is_part and exists(actual.parent / INDEX_FILE):
        return _load(Repository(str(actual.parent), actual.parent), variant, asked)
    name = class_name(config)
    if name != "UNet2DModel":
        find_family(Index(f"backbone {folder}", "model without a pipeline", {}, {}), name, {})
        raise ValueError(f"backbone {folder} is a {name} alone: the folder of its pipeline is needed ({INDEX_FILE})")
    return _load_pixels(repository, None, variant, asked)


def _load_pixels(
    repository: Repository, index: Index | None, variant: str | None, asked: Mapping[str, Any]
) -> Backbone:
    """Load a ``UNet2DModel`` over pixels."""
    _refuse(asked, "image_size", "condition")
    schedules = ("scheduler_config.json", SCHEDULER_FILE)
    folder = repository.fetch(*(f"{place}config.json" for place in ("", "unet/")), *schedules, RECIPE_FILE)
    # Early pipelines, such as google/ddpm-cat-256, have all files in one folder; diffusers reads both.
    part = "unet" if index is not None and exists(folder / "unet") else ""
    around = [folder]
    schedule: Path | None
    if index is not None:
        schedule = folder / (SCHEDULER_FILE if exists(folder / "scheduler") else "scheduler_config.json")
    else:
        around += [folder.resolve().parent] if folder.resolve().name == "unet" else []
        schedule = next((file for place in around for name in schedules if exists(file := place / name)), None)
    recipe_file = next((file for place in around if exists(file := place / RECIPE_FILE)), None)
    recipe = {} if recipe_file is None else read_json(recipe_file)
    kind = None if index is None else index.parts.get("scheduler", ("", None))[1]
    scheduler = None if schedule is None else training_scheduler(read_json(schedule), f"backbone file {schedule}", kind)
    config_file = folder / part / "config.json"
    config = check_network_config(read_json(config_file), f"backbone file {config_file}")
    if scheduler is None:
        scheduler = _default_scheduler(config, f"backbone {folder}", has_recipe=recipe_file is not None)
    check_time_embedding(config, scheduler, f"backbone file {config_file}")
    network, files = outline_network(repository.weights(part, variant), variant)
    options = _options_of(recipe, asked)
    try:
        backbone = PixelBackbone(network, scheduler, **options, recipe=recipe)
    except ValueError as error:
        raise ValueError(f"backbone {recipe_file or folder} does not fit its network: {error}") from error
    read_weights(network, files)
    return backbone


def _options_of(recipe: dict[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Take out of a record what a `PixelBackbone` is given by name."""
    names = ("image_shape", "patch_size", "null_class")
    options: dict[str, Any] = {name: recipe.pop(name) for name in names if name in recipe}
    return options if asked["null_class"] is None else {**options, "null_class": asked["null_class"]}


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


def _refuse(asked: Mapping[str, Any], *names: str) -> None:
    """Raise ValueError for what a family takes nothing of."""
    for name in names:
        if asked[name] is not None:
            raise ValueError(f"{name} is for models of latents; got {shown(asked[name])} and a UNet2DModel over pixels")


# Models that are loaded already


def _wrap(backbone: Any, asked: Mapping[str, Any]) -> Backbone:
    with ONE_AT_A_TIME:
        from diffusers import UNet2DModel

    if isinstance(backbone, UNet2DModel):
        return _wrap_pixels(backbone, None, asked)
    components = _components(backbone)
    part = next((part for part in network_parts() if components.get(part) is not None), None)
    if part is None or not isinstance(getattr(components[part], "config", None), Mapping):
        raise TypeError(
            "backbone must be 'auto', a path, a Hub id, a pipeline of diffusers, a UNet2DModel or a Backbone; "
            f"got {type(backbone).__name__}"
        )
    network = components[part]
    kinds = {name: ("", type(value).__name__) for name, value in components.items() if value is not None}
    index = Index("backbone", type(backbone).__name__, kinds, dict(getattr(backbone, "config", {})))
    family = find_family(index, type(network).__name__, network.config)
    if family is PixelBackbone:
        return _wrap_pixels(network, components.get("scheduler"), asked)
    return wrap_pipeline(family, backbone, index, components, **asked)


def _wrap_pixels(network: Any, scheduler: Any, asked: Mapping[str, Any]) -> Backbone:
    _refuse(asked, "image_size", "condition")
    config = check_network_config(network.config, "the backbone's configuration")
    if scheduler is None:
        scheduler = _default_scheduler(config, "the backbone")
    else:
        scheduler = scheduler_of(scheduler, "the backbone's scheduler")
    # Rebuilt from its configuration rather than deep-copied: hooks and modes of the caller's model stay behind.
    copied = copied_model(network, "the backbone", torch.float32)
    recipe = record_beside(network)
    options = _options_of(recipe, asked)
    return PixelBackbone(copied, scheduler, **options, recipe=recipe)


def _components(pipeline: Any) -> Mapping[str, Any]:
    """Return the parts of a pipeline by name, or of an object that has some as one has."""
    found = getattr(pipeline, "components", None)
    if isinstance(found, Mapping):
        return found
    return {
        name: value
        for name, value in getattr(pipeline, "__dict__", {}).items()
        if isinstance(value, nn.Module) or name == "scheduler"
    }
