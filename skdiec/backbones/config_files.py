"""Configuration files and headers of weights, which may come from anyone: what is read of them, and checked."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, BinaryIO, cast

from skdiec.messages import shown

MAX_JSON_BYTES = 2**20
"""Bytes that a configuration may have. The longest that diffusers writes has some thousand."""

MAX_HEADER_BYTES = 2**22
"""Bytes that the header of a safetensors file may have: some 40,000 tensors."""

_WEIGHT_TYPES = ("F16", "BF16", "F32", "F64")

MAX_DEPTH = 32
"""How deep a configuration may be nested."""


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself.

    Attributes
    ----------
    shapes : dict of str to tuple of int
        Shape of each tensor.
    dtypes : dict of str to str
        Number format of each tensor, as safetensors names it.
    metadata : dict of str to str
    """

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    metadata: dict[str, str]


def exists(path: Path) -> bool:
    """Return whether there is something at a path.

    Parameters
    ----------
    path : Path

    Returns
    -------
    bool

    Raises
    ------
    ValueError
        Where that cannot be told, such as in a folder without permission.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise ValueError(f"backbone file {path} cannot be read: {error.strerror}") from error
    return True


def read_json(path: Path, *, what: str = "backbone file", max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a small JSON object from a regular file.

    Parameters
    ----------
    path : Path
    what : str, default="backbone file"
        What errors call the file.
    max_bytes : int
        By default `MAX_JSON_BYTES`.

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        Where the file is missing, unreadable, no regular file or larger than `max_bytes`, or holds anything but a
        JSON object that is nested at most `MAX_DEPTH` deep.
    """
    with _opened(path, what) as file:
        text = file.read(max_bytes + 1)
    if len(text) > max_bytes:
        raise ValueError(f"{what} {path} is larger than the {max_bytes} bytes of a configuration")
    return parse_json(text, f"{what} {path}")


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
    with opened_tensors(path, framework="pt") as weights:
        slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118 (it is no mapping)
        for name, part in slices.items():
            if part.get_dtype() not in _WEIGHT_TYPES:
                raise ValueError(
                    f"backbone file {path} has {shown(name)} of type {part.get_dtype()}, where weights are "
                    f"{', '.join(_WEIGHT_TYPES)}"
                )
        shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
        dtypes = {name: part.get_dtype() for name, part in slices.items()}
        return Header(shapes, dtypes, dict(weights.metadata() or {}))


@contextmanager
def opened_tensors(path: Path, *, framework: str, what: str = "backbone file") -> Iterator[Any]:
    """Open a safetensors file, whatever it holds.

    Parameters
    ----------
    path : Path
    framework : {"pt", "numpy"}
        Whose tensors it gives.
    what : str, default="backbone file"
        What errors call the file.

    Returns
    -------
    context manager
        Of what `safetensors.safe_open` gives.

    Raises
    ------
    ValueError
        Where the file is missing, unreadable, no regular file, damaged or truncated.
    """
    from safetensors import SafetensorError, safe_open

    with _opened(path, what) as file:
        length = int.from_bytes(file.read(8), "little")
        size = os.fstat(file.fileno()).st_size
    # Checked before the library sees it, which would allocate what a damaged header asks for.
    if not 0 < length <= min(size - 8, MAX_HEADER_BYTES):
        raise ValueError(f"{what} {path} has damaged or truncated weights: its header cannot be read")
    try:
        with safe_open(path, framework=framework) as tensors:
            yield tensors
    except (SafetensorError, OSError, RuntimeError) as error:  # the last where the file cannot be mapped
        raise ValueError(f"{what} {path} has damaged or truncated weights: {error}") from error


@contextmanager
def _opened(path: Path, what: str) -> Iterator[BinaryIO]:
    """Open a regular file for reading: a FIFO or a device might never end."""
    try:
        # Without O_NONBLOCK, opening a FIFO waits for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ValueError(f"{what} {path} is no regular file")
            with open(descriptor, "rb", closefd=False) as file:
                yield file
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        raise ValueError(f"{what} {path} is missing") from error
    except OSError as error:
        raise ValueError(f"{what} {path} cannot be read: {error.strerror}") from error


class Fields:
    """Values of a configuration, checked one by one.

    Each method returns a value, and raises ValueError where it is missing, of another type or out of range.

    Parameters
    ----------
    values : mapping
    where : str
        What errors name.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def integer(self, name: str, low: int, high: int) -> int:
        """Return an integer from `low` to `high`."""
        return self._integer(name, self.values.get(name), low, high)

    def integers(self, name: str, low: int, high: int, counts: range) -> tuple[int, ...]:
        """Return a sequence of integers from `low` to `high`, of a length in `counts`."""
        length = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        value = self._sequence(name, f"{length} integers", counts)
        return tuple(self._integer(name, item, low, high) for item in value)

    def shape(self, name: str, high: int) -> tuple[int, int, int]:
        """Return three integers from 1 to `high`: channels, height and width."""
        channels, height, width = self.integers(name, 1, high, range(3, 4))
        return channels, height, width

    def number(self, name: str, low: float, high: float) -> float:
        """Return a number from `low` to `high`."""
        return self._number(name, self.values.get(name), low, high)

    def numbers(self, name: str, low: float, high: float, count: int) -> list[float]:
        """Return a sequence of so many numbers from `low` to `high`."""
        value = self._sequence(name, f"{count} numbers", range(count, count + 1))
        return [self._number(name, item, low, high) for item in value]

    def choice(self, name: str, choices: Sequence[Any]) -> Any:
        """Return one of some values."""
        return self._choice(name, self.values.get(name), choices)

    def choices(self, name: str, choices: Sequence[Any], count: int) -> tuple[Any, ...]:
        """Return a sequence of so many values, each one of some."""
        value = self._sequence(name, f"{count} names", range(count, count + 1))
        return tuple(self._choice(name, item, choices) for item in value)

    def mapping(self, name: str) -> Mapping[str, Any]:
        """Return an object."""
        value = self.values.get(name)
        if not isinstance(value, Mapping):
            raise self._error(name, "a JSON object", value)
        return value

    def _integer(self, name: str, value: Any, low: int, high: int) -> int:
        if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
            raise self._error(name, f"an integer from {low} to {high}", value)
        return int(value)

    def _number(self, name: str, value: Any, low: float, high: float) -> float:
        if isinstance(value, bool) or not isinstance(value, Real) or not low <= cast("float", value) <= high:
            raise self._error(name, f"a number from {low:g} to {high:g}", value)
        return float(value)

    def _choice(self, name: str, value: Any, choices: Sequence[Any]) -> Any:
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise self._error(name, " or ".join(map(repr, choices)), value)
        return value

    def _sequence(self, name: str, what: str, counts: range) -> Sequence[Any]:
        value: Any = self.values.get(name)
        value = value.tolist() if hasattr(value, "tolist") else value  # an array
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or len(value) not in counts:
            raise self._error(name, f"a sequence of {what}", value)
        return value

    def _error(self, name: str, expected: str, value: Any) -> ValueError:
        return ValueError(f"{self.where}: {name} must be {expected}; got {shown(value)}")
