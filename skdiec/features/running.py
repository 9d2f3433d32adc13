"""How forward passes run: on images that are read ahead, side by side, in a number format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skdiec.images import ImageSource
from skdiec.parallel import in_order, torch_pool, torch_threads

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_T = TypeVar("_T")
_R = TypeVar("_R")


class Batch(NamedTuple):
    """Some images of a source."""

    rows: NDArray[np.integer]
    images: Tensor | None  # None where they are not needed

    def split(self, size: int) -> Iterator[Batch]:
        """Yield parts of at most so many images."""
        for start in range(0, len(self.rows), size):
            part = slice(start, start + size)
            yield Batch(self.rows[part], None if self.images is None else self.images[part])


def read_ahead(
    source: ImageSource,
    batches: Sequence[NDArray[np.integer]],
    device: torch.device,
    is_known: Callable[[NDArray[np.integer]], bool] = lambda rows: False,
) -> Iterator[Batch]:
    """Yield the images of each batch, ready to be sent to a device, and read those of the next one meanwhile."""

    def read(rows: NDArray[np.integer]) -> Batch:
        if is_known(rows):
            return Batch(rows, None)
        images = torch.from_numpy(source.read(rows))
        return Batch(rows, images.pin_memory() if device.type == "cuda" else images)

    with ThreadPoolExecutor(1) as reader:
        yield from in_order(reader, read, batches, ahead=1)


def side_by_side(forward: Callable[[_T], _R], batches: Iterable[_T], n_passes: int) -> Iterator[_R]:
    """Yield the results of passes over batches, in order: several at a time, which share torch's threads.

    Two passes of one thread each take less time than two passes, one after the other, of two threads: layers of small
    images are too small to be divided.
    """
    if n_passes == 1:
        yield from map(forward, batches)
        return
    with torch_pool(n_passes, torch_threads() // n_passes) as pool:
        yield from in_order(pool, forward, batches, ahead=n_passes)


def computing_in(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which forward passes compute in a precision."""
    if precision in _AUTOCAST:
        return torch.autocast(device.type, _AUTOCAST[precision])
    if device.type == "cuda":
        # By default, convolutions round their input to 10 bits there, and are of a kind that changes with the batch.
        return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    return nullcontext()
