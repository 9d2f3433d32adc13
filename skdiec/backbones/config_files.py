"""Configuration files and headers of weights, which may come from anyone: what is read of them, and checked."""

from __future__ import annotations

import json
import math
import os
import reprlib
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, BinaryIO

MAX_JSON_BYTES = 2**20
"""Bytes that a configuration may have. The longest that diffusers writes has some thousand."""

MAX_HEADER_BYTES = 2**22
"""Bytes that the header of a safetensors file may have: some 40,000 tensors."""

MAX_DEPTH = 32
"""How deep a configuration may be nested."""


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself.

    Attributes
    ----------
    shapes : dict of str to tuple of int
        Shape of each tensor.
    metadata : dict of str to str
    """

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]


def exists(path: Path) -> bool:
    """Return whether there is something at a path; raise ValueError where that cannot be told."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:  # such as a folder without permission
        raise ValueError(f"backbone file {path} cannot be read: {error.strerror}") from error
    return True


def read_json(path: Path) -> dict[str, Any]:
    """Read a small JSON object from a regular file.

    Parameters
    ----------
    path : Path

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        Where the file is missing, unreadable, no regular file or larger than `MAX_JSON_BYTES`, or holds anything but a
        JSON object that is nested at most `MAX_DEPTH` deep.
    """
    with _opened(path) as file:
        text = file.read(MAX_JSON_BYTES + 1)
    if len(text) > MAX_JSON_BYTES:
        raise ValueError(f"backbone file {path} is larger than the {MAX_JSON_BYTES} bytes of a configuration")
    return parse_json(text, f"backbone file {path}")


def parse_json(text: str | bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object.

    Parameters
    ----------
    text : str or bytes
    where : str
        What errors name.

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        For anything but a JSON object that is nested at most `MAX_DEPTH` deep.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"{where} is nested more than {MAX_DEPTH} deep") from None
    except ValueError as error:
        raise ValueError(f"{where} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where} must hold a JSON object; got {shown(value)}")
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [item for parent in level for item in (parent.values() if isinstance(parent, dict) else parent)]
        level = [item for item in level if isinstance(item, (dict, list))]
        if not level:
            return value
    raise ValueError(f"{where} is nested more than {MAX_DEPTH} deep")


def read_header(path: Path) -> Header:
    """Read the names and shapes of the tensors of a safetensors file, without the tensors.

    Parameters
    ----------
    path : Path

    Returns
    -------
    Header

    Raises
    ------
    ValueError
        Where the file is missing, unreadable, no regular file, damaged or truncated.
    """
    from safetensors import SafetensorError, safe_open

    with _opened(path) as file:
        length = int.from_bytes(file.read(8), "little")
        size = os.fstat(file.fileno()).st_size
    # Checked before the library sees it, which would allocate what a damaged header asks for.
    if not 0 < length <= min(size - 8, MAX_HEADER_BYTES):
        raise ValueError(f"backbone file {path} has damaged or truncated weights: its header cannot be read")
    try:
        with safe_open(path, framework="pt") as weights:
            names = weights.keys()
            shapes = {name: tuple(weights.get_slice(name).get_shape()) for name in names}
            return Header(shapes, dict(weights.metadata() or {}))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"backbone file {path} has damaged or truncated weights: {error}") from error


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading: a FIFO or a device might never end."""
    try:
        # Without O_NONBLOCK, opening a FIFO waits for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ValueError(f"backbone file {path} is no regular file")
            with open(descriptor, "rb", closefd=False) as file:
                yield file
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        raise ValueError(f"backbone file {path} is missing") from error
    except OSError as error:
        raise ValueError(f"backbone file {path} cannot be read: {error.strerror}") from error


def shown(value: Any) -> str:
    """Return what an error shows of a value, however large it is."""
    return _SHORT.repr(value)


def check_integer(value: Any, name: str, where: str, low: int, high: int) -> int:
    """Return an integer of a configuration; raise ValueError where it is none or out of range."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= value <= high:
        raise ValueError(f"{where}: {name} must be an integer from {low} to {high}; got {shown(value)}")
    return int(value)


def check_integers(value: Any, name: str, where: str, low: int, high: int, counts: range) -> tuple[int, ...]:
    """Return a sequence of integers of a configuration; raise ValueError where it is none, or of another length."""
    length = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    if not _is_sequence(value) or len(value) not in counts:
        raise ValueError(f"{where}: {name} must be a sequence of {length} integers; got {shown(value)}")
    return tuple(check_integer(item, name, where, low, high) for item in value)


def check_number(value: Any, name: str, where: str, low: float, high: float) -> float:
    """Return a number of a configuration; raise ValueError where it is none or out of range."""
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= value <= high:
        raise ValueError(f"{where}: {name} must be a number from {low:g} to {high:g}; got {shown(value)}")
    return float(value)


def check_numbers(value: Any, name: str, where: str, low: float, high: float, count: int) -> list[float]:
    """Return a sequence of numbers of a configuration; raise ValueError where it is none, or of another length."""
    value = value.tolist() if hasattr(value, "tolist") else value  # an array
    if not _is_sequence(value) or len(value) != count:
        raise ValueError(f"{where}: {name} must be a sequence of {count} numbers; got {shown(value)}")
    return [check_number(item, name, where, low, high) for item in value]


def check_choice(value: Any, name: str, where: str, choices: Sequence[Any]) -> Any:
    """Return a value of a configuration; raise ValueError where it is none of the choices."""
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise ValueError(f"{where}: {name} must be {' or '.join(map(repr, choices))}; got {shown(value)}")
    return value


def check_object(value: Any, name: str, where: str) -> Mapping[str, Any]:
    """Return an object within a configuration; raise ValueError where it is none."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: {name} must be a JSON object; got {shown(value)}")
    return value


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def n_elements(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return how many numbers tensors of such shapes hold."""
    return sum(math.prod(shape) for shape in shapes.values())
