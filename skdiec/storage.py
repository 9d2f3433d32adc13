"""Large arrays: in memory, or past a limit in temporary files; and what images were encoded to, kept in them."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import threading
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import DTypeLike, NDArray

MEMORY_MAP_ABOVE = 2**31
"""Bytes above which a matrix is a memory map of a temporary file, which goes with it, instead of an array in memory."""

_BLOCK_ROWS = 256


def check_space(n_bytes: int) -> None:
    """Raise ValueError where a matrix would go to a temporary file that its folder has no room for.

    Parameters
    ----------
    n_bytes : int
        Size of the matrix.
    """
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if n_bytes > MEMORY_MAP_ABOVE and n_bytes > free:
        raise ValueError(_no_space(n_bytes, free))


def empty_array(shape: tuple[int, ...], dtype: DTypeLike, *, used: int = 0) -> NDArray:
    """Return an array to fill: in memory, or past `MEMORY_MAP_ABOVE` bytes in a temporary file.

    Parameters
    ----------
    shape : tuple of int
    dtype : dtype
    used : int, default=0
        Bytes of the memory below the limit that are taken already.

    Returns
    -------
    ndarray

    Raises
    ------
    OSError
        Where there is no room for the file.
    """
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    if used + n_bytes <= MEMORY_MAP_ABOVE:
        return np.empty(shape, dtype)
    # Not everywhere is there a call that reserves space.
    reserve = getattr(os, "posix_fallocate", lambda descriptor, start, length: os.truncate(descriptor, length))
    with tempfile.TemporaryFile(prefix="skdiec-") as file:
        try:
            # A file that only seems to have its size would kill the process when the disk is full.
            reserve(file.fileno(), 0, n_bytes)
        except OSError as error:
            raise OSError(error.errno, _no_space(n_bytes, shutil.disk_usage(tempfile.gettempdir()).free)) from error
        return np.memmap(file, dtype, mode="r+", shape=shape)


def _no_space(n_bytes: int, free: int) -> str:
    return (
        f"features of {_gibibytes(n_bytes)} go to a temporary file, but {tempfile.gettempdir()} has "
        f"{_gibibytes(free)} left: set the environment variable TMPDIR to a folder with more room"
    )


def _gibibytes(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GiB"


class LatentCache:
    """What images of some sources were encoded to, from the first time on that each was asked for.

    It may be used by several threads. Past `MEMORY_MAP_ABOVE` bytes it goes on in temporary files. What it has of a
    source goes with that source; a copy or a pickle of it is empty.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stores: WeakKeyDictionary[Any, dict[Any, _Store]] = WeakKeyDictionary()

    def get(self, source: Any, view: Any, rows: NDArray[np.integer]) -> NDArray | None:
        """Return some rows, None unless all of them are there.

        Parameters
        ----------
        source : object
            Whose images were encoded.
        view : hashable
            How they were seen.
        rows : integer array of shape (m,)

        Returns
        -------
        ndarray of shape (m, ...) or None
        """
        with self._lock:
            store = self._stores.get(source, {}).get(view)
            return None if store is None else store.get(rows)

    def has(self, source: Any, view: Any, rows: NDArray[np.integer]) -> bool:
        """Return whether all of some rows are there.

        Parameters
        ----------
        source, view, rows
            As in `get`.

        Returns
        -------
        bool
        """
        with self._lock:
            store = self._stores.get(source, {}).get(view)
            return store is not None and bool((store.places[rows] >= 0).all())

    def put(self, source: Any, view: Any, rows: NDArray[np.integer], values: NDArray) -> None:
        """Keep some rows.

        Parameters
        ----------
        source, view, rows
            As in `get`.
        values : ndarray of shape (m, ...)
        """
        with self._lock:
            stores = self._stores.setdefault(source, {})
            used = sum(store.n_bytes for stores in self._stores.values() for store in stores.values())
            stores.setdefault(view, _Store(len(source))).put(rows, values, used)

    def __reduce__(self) -> tuple[type[LatentCache], tuple[()]]:
        return LatentCache, ()


@dataclass
class _Store:
    """Rows in blocks, in the order in which they came."""

    n_rows: int
    blocks: list[NDArray] = field(default_factory=list)
    count: int = 0

    def __post_init__(self) -> None:
        self.places = np.full(self.n_rows, -1)

    @property
    def n_bytes(self) -> int:
        return sum(block.nbytes for block in self.blocks)

    def get(self, rows: NDArray[np.integer]) -> NDArray | None:
        places = self.places[rows]
        if len(places) == 0 or places.min() < 0:
            return None
        blocks, within = np.divmod(places, _BLOCK_ROWS)
        return np.stack([self.blocks[block][row] for block, row in zip(blocks, within, strict=True)])

    def put(self, rows: NDArray[np.integer], values: NDArray, used: int) -> None:
        for row, value in zip(rows, values, strict=True):
            if self.places[row] >= 0:
                continue
            block, within = divmod(self.count, _BLOCK_ROWS)
            if within == 0:
                self.blocks.append(empty_array((_BLOCK_ROWS, *value.shape), value.dtype, used=used))
                used += self.blocks[-1].nbytes
            self.blocks[block][within] = value
            self.places[row] = self.count
            self.count += 1
