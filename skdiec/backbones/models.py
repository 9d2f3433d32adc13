"""Models of diffusers in folders: built without drawing weights, which are then read, and nothing else is run."""

from __future__ import annotations

import inspect
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from skdiec.backbones.config_files import Fields, read_header, read_json
from skdiec.messages import shown

logger = logging.getLogger(__name__)

PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})
"""Suffixes of files that can run code when they are read."""

WEIGHTS_NAME = "diffusion_pytorch_model"
"""How the names of files with weights begin."""

_MAX_LAYERS = 512
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float32}
_FORMER_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""What early diffusers called the layers of an attention, and what they are called today."""


def read_model(kind: Any, folder: Path, *, variant: str | None = None, dtype: torch.dtype | None = None) -> nn.Module:
    """Read a model of diffusers from its folder.

    Parameters
    ----------
    kind : type
        A class of models of diffusers.
    folder : Path
        With ``config.json`` and safetensors weights.
    variant : str, default=None
        As in `find_weights`.
    dtype : torch.dtype, default=None
        Number format of the weights. None is that in which most are stored.

    Returns
    -------
    nn.Module
        On the CPU, in evaluation mode, without gradients.

    Raises
    ------
    ValueError
        Where a file is missing, unreadable or damaged, and where weights and configuration are of two architectures.
    """
    file = folder / "config.json"
    config = read_json(file)
    check_model_config(config, f"backbone file {file}")
    files = find_weights(folder, variant)
    model = build_model(kind, config, folder)
    check_shapes(model, weight_shapes(files), folder)
    read_weights(model, files, dtype or stored_dtype(files))
    return model


def check_model_config(config: Mapping[str, Any], where: str) -> None:
    """Raise ValueError for a configuration that would take other libraries, or no end, to build.

    Parameters
    ----------
    config : mapping
        As in ``config.json``.
    where : str
        What errors name.
    """
    if config.get("quantization_config") is not None:
        raise ValueError(f"{where}: quantized weights (quantization_config) cannot be used")
    for name, value in config.items():
        for item in value if isinstance(value, list) else [value]:
            is_number = isinstance(item, (int, float)) and not isinstance(item, bool)
            if "layers" in name and is_number and item > _MAX_LAYERS:
                raise ValueError(f"{where}: {name} must be at most {_MAX_LAYERS}; got {shown(value)}")


def config_of(model: nn.Module) -> Any:
    """Return the configuration of a model of diffusers, a mapping whose items are attributes too.

    Parameters
    ----------
    model : nn.Module

    Returns
    -------
    diffusers.configuration_utils.FrozenDict
    """
    return model.config


def build_model(kind: Any, config: Mapping[str, Any], where: object) -> nn.Module:
    """Build a model whose weights have no values yet.

    Parameters
    ----------
    kind : type
        A class of models of diffusers.
    config : mapping
        As in ``config.json``.
    where : object
        What errors name.

    Returns
    -------
    nn.Module
        On the CPU. Its weights take no memory until they are given values.

    Raises
    ------
    ValueError
        Where no model can be built of the configuration.
    """
    try:
        with torch.device("cpu"), _WithoutValues():
            return kind.from_config({key: value for key, value in config.items() if not key.startswith("_")})
    except Exception as error:  # diffusers and torch each have their own
        raise ValueError(f"backbone {where} has a configuration of which no network can be built: {error}") from error


class _WithoutValues(TorchFunctionMode):
    """Leaves new tensors as they are, in this thread, instead of drawing numbers that are replaced right after.

    Unlike on the device "meta", what is no weight, such as a table of positions, is computed as ever.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init" or getattr(func, "__name__", "") in _DRAWING:
            return args[0] if args else kwargs["tensor"]
        if func in (torch.rand, torch.randn):
            return torch.empty(*args, **kwargs)
        return func(*args, **kwargs)


_DRAWING = frozenset({"bernoulli_", "cauchy_", "exponential_", "normal_", "random_", "uniform_"})


def new_model(kind: type[nn.Module], config: Mapping[str, Any], weights: Mapping[str, Tensor], where: str) -> nn.Module:
    """Build a model of given weights.

    Parameters
    ----------
    kind : type
        A class of models of diffusers.
    config : mapping
        As in ``config.json``.
    weights : mapping of str to Tensor
        They become the model's own.
    where : str
        What errors name.

    Returns
    -------
    nn.Module
        In evaluation mode, without gradients.

    Raises
    ------
    ValueError
        Where weights and configuration are of two architectures.
    """
    model = build_model(kind, config, where)
    check_shapes(model, {name: tuple(tensor.shape) for name, tensor in weights.items()}, where)
    _fill(model, weights)
    return model


def copied_model(model: nn.Module, where: str, dtype: torch.dtype | None = None) -> nn.Module:
    """Copy a model of diffusers to the CPU, without the hooks and modes that its owner gave it.

    Parameters
    ----------
    model : nn.Module
    where : str
        What errors name.
    dtype : torch.dtype, default=None
        Number format of the copy's weights. None is that of the model's.

    Returns
    -------
    nn.Module
        In evaluation mode, without gradients.

    Raises
    ------
    ValueError
        Where its weights have no values.
    """
    weights = model.state_dict()
    if any(tensor.is_meta for tensor in weights.values()):
        raise ValueError(f"{where} has weights on the device 'meta', which have no values: load them first")
    copies = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None, copy=True)
        for name, tensor in weights.items()
    }
    # What nobody chose, the copy is to know as its class's default too.
    defaults = {
        name: parameter.default for name, parameter in inspect.signature(type(model).__init__).parameters.items()
    }
    config = config_of(model)
    unchosen = {name for name in config.get("_use_default_values", ()) if config[name] == defaults.get(name)}
    config = {name: value for name, value in config.items() if name not in unchosen}
    return new_model(type(model), config, copies, where)


def read_weights(model: nn.Module, files: Sequence[Path], dtype: torch.dtype = torch.float32) -> None:
    """Give a model its weights, and put it into evaluation mode.

    Parameters
    ----------
    model : nn.Module
        As `build_model` returns it.
    files : sequence of Path
        As `find_weights` returns them.
    dtype : torch.dtype
        Number format of the weights. By default float32.

    Raises
    ------
    ValueError
        Where a file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    wanted = model.state_dict().keys()
    weights: dict[str, Tensor] = {}
    for path in files:
        try:
            part = load_file(path)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise ValueError(f"backbone file {path} has damaged or truncated weights: {error}") from error
        # Copies: what the library returns may be the file's own pages, which another process can change.
        part = {_today(name): tensor for name, tensor in part.items()}
        weights |= {name: tensor.to(dtype, copy=True) for name, tensor in part.items() if name in wanted}
    _fill(model, weights)


def weight_shapes(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Read the shapes of weights, without them, under the names that today's diffusers has.

    Parameters
    ----------
    files : sequence of Path

    Returns
    -------
    dict of str to tuple of int
    """
    return {_today(name): shape for path in files for name, shape in read_header(path).shapes.items()}


def stored_dtype(files: Sequence[Path]) -> torch.dtype:
    """Return the number format that most weights are stored in.

    Parameters
    ----------
    files : sequence of Path

    Returns
    -------
    torch.dtype
    """
    counts = Counter(dtype for path in files for dtype in read_header(path).dtypes.values())
    return _DTYPES[counts.most_common(1)[0][0]]


def _fill(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    model.load_state_dict(dict(weights), assign=True)
    model.eval().requires_grad_(False)


def _today(name: str) -> str:
    """Return the name that today's diffusers has for a weight."""
    head, _, kind = name.rpartition(".")
    path, _, layer = head.rpartition(".")
    return f"{path}.{_FORMER_NAMES[layer]}.{kind}" if layer in _FORMER_NAMES else name


def check_shapes(model: nn.Module, found: Mapping[str, tuple[int, ...]], where: object) -> None:
    """Raise ValueError where weights are not those of a model.

    Parameters
    ----------
    model : nn.Module
    found : mapping of str to tuple of int
        Shapes of the weights.
    where : object
        What errors name.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    computed = {name for name, _ in model.named_buffers()}  # which some files hold, and today's models do not
    missing, unexpected = wanted.keys() - found.keys(), found.keys() - wanted.keys() - computed
    other = sorted(name for name in wanted.keys() & found.keys() if wanted[name] != found[name])
    if not missing and not unexpected and not other:
        return
    if other:
        example = f"{other[0]} has shape {found[other[0]]}, the configuration makes it {wanted[other[0]]}"
    else:
        example = f"such as {shown(min(missing or unexpected))}"
    raise ValueError(
        f"backbone {where} has weights of another architecture: {len(missing)} missing, {len(unexpected)} unexpected, "
        f"{len(other)} of another shape; {example}"
    )


def find_weights(folder: Path, variant: str | None = None) -> list[Path]:
    """Return the safetensors files that hold a network's weights.

    Parameters
    ----------
    folder : Path
    variant : str, default=None
        Which of several to take, such as ``"fp16"``.

    Returns
    -------
    list of Path
        One, or all that an index names. Without `variant`, plain files are taken first, else those of the only
        variant, such as ``fp16``.

    Raises
    ------
    ValueError
        Where there are none, or only pickled ones, or several variants to choose from.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise ValueError(f"backbone folder {folder} cannot be read: {error.strerror}") from error
    variants: dict[str, Path] = {}
    pattern = re.compile(rf"{WEIGHTS_NAME}(?:\.([\w-]+?))?\.safetensors(\.index(?:\.([\w-]+))?\.json)?")
    for match in filter(None, map(pattern.fullmatch, names)):
        name = match.group(1) or match.group(3) or ""
        # An index first, as in diffusers.
        if name not in variants or match.group(2):
            variants[name] = folder / match.group()
    variants = {name: path for name, path in variants.items() if not re.search(r"-\d+-of-\d+$", name)}
    if variant is not None and variants and variant not in variants:
        raise ValueError(
            f"variant must be one of those in {folder}, {', '.join(filter(None, sorted(variants))) or 'none'}; got "
            f"{shown(variant)}"
        )
    if variant is None and "" not in variants and len(variants) > 1:
        raise ValueError(
            f"backbone {folder} has only variants of its weights, {', '.join(sorted(variants))}: pass one of them as "
            "variant to load_backbone, or keep the files of one of them"
        )
    if not variants:
        raise ValueError(_no_weights(folder, names))
    if variant is None:
        variant = "" if "" in variants else next(iter(variants))
        if variant:
            logger.info("reading the %s variant of the weights in %s", variant, folder)
    path = variants[variant]
    return _shards(path) if path.suffix == ".json" else [path]


def _shards(index: Path) -> list[Path]:
    """Return the files that an index of weights names."""
    where = f"backbone file {index}"
    files = set()
    for name in Fields(read_json(index), where).mapping("weight_map").values():
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise ValueError(f"{where}: weight_map must name safetensors files beside it; got {shown(name)}")
        files.add(index.parent / name)
    if not files:
        raise ValueError(f"{where}: weight_map names no file")
    return sorted(files)


def _no_weights(folder: Path, names: Sequence[str]) -> str:
    pickled = [name for name in names if Path(name).suffix.lower() in PICKLE_SUFFIXES]
    if pickled:
        return pickle_message(folder / pickled[0])
    found = [name for name in names if name.endswith(".safetensors")]
    others = f"; it has {', '.join(found[:3])}" if found else ""
    return (
        f"backbone {folder} has no .safetensors weights, such as {WEIGHTS_NAME}.safetensors "
        f"(pickled ones are not read){others}"
    )


def pickle_message(path: Path) -> str:
    """Say why a pickled file is not read.

    Parameters
    ----------
    path : Path

    Returns
    -------
    str
    """
    return (
        f"backbone {path} is in pickle format, which can run code when it is loaded; save the model with "
        "save_pretrained(..., safe_serialization=True) and pass that folder"
    )
