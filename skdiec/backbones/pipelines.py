"""Pipelines read part by part, and only those parts that are needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from skdiec.backbones.autoencoders import CLASSES
from skdiec.backbones.base import Backbone
from skdiec.backbones.config_files import exists, opened_tensors, read_json
from skdiec.backbones.families import network_class
from skdiec.backbones.importing import ONE_AT_A_TIME
from skdiec.backbones.models import check_model_config, config_of, copied_model, read_model
from skdiec.backbones.parts import Parts
from skdiec.backbones.repository import Index, Repository
from skdiec.backbones.schedules import scheduler_of, training_scheduler
from skdiec.backbones.writing import CONDITION_FILE, RECIPE_FILE
from skdiec.messages import shown

SCHEDULER_FILE = "scheduler/scheduler_config.json"

_INSTALL = 'pip install "skdiec[text]"'
_LARGE_TEXT_ENCODER = 2**30


def read_pipeline(
    family: type[Backbone], name: str, repository: Repository, index: Index, *, variant: str | None, **asked: Any
) -> Backbone:
    """Read a backbone from the folder of a pipeline.

    Parameters
    ----------
    family : type
        What the pipeline is of.
    name : str
        Class of its network.
    repository : Repository
    index : Index
    variant : str or None
        Which weights to take.
    **asked
        As in `Parts`.

    Returns
    -------
    Backbone

    Raises
    ------
    ValueError
        Where a part is missing, unreadable, damaged or of another kind, or parts do not fit each other.
    ImportError
        Where the empty prompt takes a library that is not installed.
    """
    autoencoder = _autoencoder_part(index)
    # Configurations first: what cannot be used is told of before weights are fetched.
    names = [family.network_part] + ([autoencoder[0]] if autoencoder else [])
    folder = repository.fetch(SCHEDULER_FILE, RECIPE_FILE, CONDITION_FILE, *(f"{part}/config.json" for part in names))
    for part in names:
        file = folder / part / "config.json"
        check_model_config(read_json(file), f"backbone file {file}")
    schedule = repository.json(SCHEDULER_FILE)
    if schedule is None:
        raise ValueError(f"{index.where} has no {SCHEDULER_FILE}: the noise it was trained with is not known")
    kind = index.parts.get("scheduler", ("", None))[1]
    scheduler = training_scheduler(schedule, f"backbone file {folder / SCHEDULER_FILE}", kind)
    record = repository.json(RECIPE_FILE) or {}
    if asked["condition"] is None and exists(folder / CONDITION_FILE):
        asked["condition"] = _read_condition(folder / CONDITION_FILE)
    network = read_model(network_class(family, name), repository.weights(family.network_part, variant), variant=variant)
    parts = Parts(
        network,
        scheduler,
        None if autoencoder is None else _read_autoencoder(repository, *autoencoder, variant),
        options=index.options,
        record=record,
        prompt=_prompt(family, repository, index, network),
        **asked,
    )
    return _from_parts(family, parts, index.where)


def wrap_pipeline(
    family: type[Backbone], pipeline: Any, index: Index, components: Mapping[str, Any], **asked: Any
) -> Backbone:
    """Make a backbone of a loaded pipeline, whose weights are copied.

    Parameters
    ----------
    family : type
    pipeline : object
    index : Index
        What the pipeline has.
    components : mapping of str to object
        Its parts.
    **asked
        As in `Parts`.

    Returns
    -------
    Backbone
    """
    autoencoder = _autoencoder_part(index)
    has_text = bool(family.text_parts) and all(components.get(part) is not None for part in family.text_parts)
    network = components[family.network_part]
    parts = Parts(
        copied_model(network, "backbone"),
        scheduler_of(components.get("scheduler"), "the backbone's scheduler"),
        None if autoencoder is None else copied_model(components[autoencoder[0]], "backbone", torch.float32),
        options=index.options,
        record=record_beside(network) if autoencoder is None else {},
        prompt=(lambda: pipeline) if has_text and hasattr(pipeline, "encode_prompt") else None,
        **asked,
    )
    return _from_parts(family, parts, index.where)


def record_beside(network: Any) -> dict[str, Any]:
    """Return what the folder that diffusers has read a network from says of how images enter it.

    Parameters
    ----------
    network : diffusers.ModelMixin

    Returns
    -------
    dict
        Nothing where there is no such folder any more, or it was not written by this library.
    """
    name = config_of(network).get("_name_or_path")
    if not isinstance(name, str) or not name:
        return {}
    folder = Path(name)
    record = next((file for place in (folder, folder.parent) if exists(file := place / RECIPE_FILE)), None)
    return {} if record is None else read_json(record)


def _from_parts(family: type[Backbone], parts: Parts, where: str) -> Backbone:
    try:
        return family.from_parts(parts)
    except (AttributeError, KeyError, TypeError) as error:  # of a configuration that is not one of the family's
        raise ValueError(f"{where} has a configuration that {family.title} cannot have: {error!r}") from error


def _autoencoder_part(index: Index) -> tuple[str, str] | None:
    """Return the name and the class of a pipeline's autoencoder."""
    return next(((name, kind) for name, (_, kind) in index.parts.items() if kind in CLASSES), None)


def _read_autoencoder(repository: Repository, part: str, kind: str, variant: str | None) -> nn.Module:
    with ONE_AT_A_TIME:
        import diffusers

    folder = repository.weights(part, variant)
    # In float32, whatever it is stored in: it runs once for each image, and some overflow in half precision.
    return read_model(getattr(diffusers, kind), folder, variant=variant, dtype=torch.float32)


def _read_condition(file: Path) -> dict[str, Tensor]:
    with opened_tensors(file, framework="pt") as tensors:
        return {name: tensors.get_tensor(name).clone() for name in tensors.keys()}  # noqa: SIM118 (it is no mapping)


def _prompt(family: type[Backbone], repository: Repository, index: Index, network: nn.Module) -> Any:
    """Return what makes a pipeline of the text parts, None where the pipeline has none."""
    parts = {name: index.parts[name] for name in family.text_parts if name in index.parts}
    if not parts or len(parts) < len(family.text_parts):
        return None

    def load() -> Any:
        with ONE_AT_A_TIME:
            import diffusers

        transformers = _transformers(family)
        components = {name: _read_text_part(repository, name, kind, transformers) for name, (_, kind) in parts.items()}
        kind = index.kind if index.kind in family.pipelines else family.pipelines[0]
        return _text_pipeline(getattr(diffusers, kind), {**components, family.network_part: network})

    return load


def _transformers(family: type[Backbone]) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            f"{family.title} is told what its text encoder makes of an empty prompt, which needs transformers: "
            f"{_INSTALL}, or pass condition to load_backbone"
        ) from error
    return transformers


def _text_pipeline(cls: Any, components: Mapping[str, Any]) -> Any:
    """Make a pipeline that can encode prompts, and nothing else."""
    import inspect

    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    absent: dict[str, Any] = {
        parameter.name: None for parameter in parameters if parameter.default is inspect.Parameter.empty
    }
    if any(parameter.name == "requires_safety_checker" for parameter in parameters):
        absent["requires_safety_checker"] = False
    return cls(**{**absent, **components})


def _read_text_part(repository: Repository, part: str, kind: str, transformers: Any) -> Any:
    """Read a text encoder or a tokenizer. Nothing but transformers' own classes is run."""
    cls = getattr(transformers, kind, None)
    bases = (transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase)
    if not isinstance(cls, type) or not issubclass(cls, bases):
        raise ValueError(f"backbone {repository.name}: {part} must be of a class of transformers; got {shown(kind)}")
    is_model = issubclass(cls, transformers.PreTrainedModel)
    patterns = ("*.json", "model*.safetensors") if is_model else ("*.json", "*.model", "*.txt")
    folder = repository.fetch(*(f"{part}/{pattern}" for pattern in patterns)) / part
    options = {"use_safetensors": True, "dtype": "auto"} if is_model else {}
    try:
        found = cast("Any", cls).from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # transformers, tokenizers and safetensors each have their own
        raise ValueError(f"backbone {folder} cannot be read as a {kind}: {error}") from error
    if not is_model:
        return found
    # T5 overflows in float16; large encoders take less memory in bfloat16, and run once.
    is_large = sum(parameter.numel() for parameter in found.parameters()) > _LARGE_TEXT_ENCODER
    return found.to(torch.bfloat16 if is_large else torch.float32).eval()
