"""Values of many types in terms of JSON, with the arrays among them apart."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from skdiec.backbones import Pretraining
from skdiec.backbones.config_files import Fields
from skdiec.messages import shown
from skdiec.saving import DTYPES, Expected, check_keys

PARAMETER_CLASSES: dict[str, type] = {"Pretraining": Pretraining}
"""Classes of which a parameter may be an object: their own parameters are plain values, and their ``__init__`` does
nothing but assign them."""

MANY = 2**40
"""What no number of images, values or entries reaches."""

NEVER_SAVED = ("memory", "folder")
"""Parameters that are not saved whatever they are, also those of a parameter that is an object. The files of a `memory`
are pickles, which run code when they are read, and a `folder` is written to: whoever wrote a model must not choose
them."""

FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
"""Those that JSON has no words for."""

_MAX_DIGITS = 1000


def encoded_float(value: float) -> float | str:
    """Return a number in terms of JSON: as a key of `FLOATS` where it is not finite."""
    return float(value) if math.isfinite(value) else str(float(value))


class _CannotHold(Exception):
    """A value that a file cannot hold."""


def encoded_parameters(parameters: Mapping[str, Any], arrays: dict[str, NDArray]) -> tuple[dict[str, Any], list[str]]:
    """Return what JSON holds of parameters.

    Parameters
    ----------
    parameters : mapping
    arrays : dict of str to ndarray
        Arrays among the parameters are added to it.

    Returns
    -------
    encoded : dict
    left_out : list of str
        The names, and the types of the values, of parameters that it cannot hold.
    """
    encoded, left_out = {}, []
    for name, value in parameters.items():
        mine: dict[str, NDArray] = {}
        try:
            if name in NEVER_SAVED and value is not None:
                raise _CannotHold
            if type(value) in PARAMETER_CLASSES.values():
                nested = value.get_params(deep=False)
                never = [own for own in NEVER_SAVED if nested.get(own) is not None]
                left_out += [f"{name}__{own} ({type(nested[own]).__name__})" for own in never]
                value = type(value)(**{**nested, **dict.fromkeys(never)})
            encoded[name] = _encoded(value, f"parameters.{name}", mine)
            arrays.update(mine)
        except _CannotHold:
            left_out.append(f"{name} ({type(value).__name__})")
    return encoded, left_out


def _encoded(value: Any, name: str, arrays: dict[str, NDArray]) -> Any:
    """Return a value in terms of JSON, whose own values stand for themselves.

    An object stands for the rest, and has one key: ``{"tuple": [...]}``, ``{"dict": {...}}``, ``{"number": "nan"}``,
    ``{"array": {"dtype": ..., "shape": ...}}`` or ``{"object": {"class": ..., "parameters": {...}}}``.
    """
    if value is None or isinstance(value, (bool, np.bool_)):
        return value if value is None else bool(value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Integral) and abs(int(value)) < 10**_MAX_DIGITS:
        return int(value)
    if isinstance(value, Real) and not isinstance(value, Integral):
        number = float(value)
        return number if math.isfinite(number) else {"number": str(number)}
    if isinstance(value, os.PathLike):
        return os.fspath(value) if isinstance(os.fspath(value), str) else os.fsdecode(value)
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise _CannotHold
        return {"dict": {key: _encoded(item, f"{name}.{key}", arrays) for key, item in value.items()}}
    if PARAMETER_CLASSES.get(type(value).__name__) is type(value):
        parameters = {
            key: _encoded(item, f"{name}.{key}", arrays)
            for key, item in cast("Any", value).get_params(deep=False).items()
        }
        return {"object": {"class": type(value).__name__, "parameters": parameters}}
    if hasattr(value, "__array__"):  # of numpy, torch or pandas
        array = np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)
        if array.dtype.kind in "OUS":
            return _encoded(array.tolist(), name, arrays)
        if array.dtype.name not in DTYPES or name in arrays:
            raise _CannotHold
        arrays[name] = array.astype(array.dtype.newbyteorder("="), copy=False)
        return {"array": type_of(array)}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        items = [_encoded(item, f"{name}.{index}", arrays) for index, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    raise _CannotHold


def decoded(value: Any, name: str, array_of: Callable[[str, Expected], NDArray], where: str) -> Any:
    """Return the value that was encoded.

    Parameters
    ----------
    value : None, bool, int, float, str, list or dict
    name : str
        What errors, and the arrays in the value, are called by.
    array_of : callable
        Gives the array of a name, type and shape.
    where : str
        What else errors name.

    Returns
    -------
    object

    Raises
    ------
    ValueError
        For what no value is encoded as.
    """
    if isinstance(value, list):
        return [decoded(item, f"{name}.{index}", array_of, where) for index, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    kind, content = next(iter(value.items())) if len(value) == 1 else ("", None)
    if kind == "number" and isinstance(content, str) and content in FLOATS:
        return FLOATS[content]
    if kind == "tuple" and isinstance(content, list):
        return tuple(decoded(content, name, array_of, where))
    if kind == "dict" and isinstance(content, dict):
        return {key: decoded(item, f"{name}.{key}", array_of, where) for key, item in content.items()}
    if kind == "array" and isinstance(content, dict):
        return array_of(name, read_type(Fields(content, f"{where}: {name}")))
    if kind == "object" and isinstance(content, dict):
        fields = Fields(content, f"{where}: {name}")
        check_keys(fields, ("class", "parameters"))
        kind = content["class"]
        if not isinstance(kind, str) or kind not in PARAMETER_CLASSES:
            raise ValueError(f"{where}: {name} is of a class that is not loaded: {shown(kind)}")
        parameters = decoded({"dict": fields.mapping("parameters")}, name, array_of, where)
        for never in NEVER_SAVED:
            if parameters.get(never) is not None:
                raise ValueError(f"{where}: {name} must not have {never!r}; got {shown(parameters[never])}")
        try:
            return PARAMETER_CLASSES[kind](**parameters)
        except TypeError as error:  # unknown names
            raise ValueError(f"{where}: {name} is no {kind}: {error}") from error
    raise ValueError(f"{where}: {name} must be a value of a known type; got {shown(value)}")


def type_of(array: NDArray) -> dict[str, Any]:
    """Return what JSON holds of an array."""
    return {"dtype": array.dtype.name, "shape": list(array.shape)}


def read_type(fields: Fields) -> Expected:
    """Return what `type_of` said of an array."""
    check_keys(fields, ("dtype", "shape"))
    return fields.choice("dtype", list(DTYPES)), fields.integers("shape", 0, MANY, range(33))
