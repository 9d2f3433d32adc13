"""Features: matrices of pooled activations of a backbone, for chosen layers, timesteps and poolings."""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import joblib
import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from skdiec import activations
from skdiec.activations import Cell
from skdiec.backbones import Backbone
from skdiec.images import ImageSource
from skdiec.parallel import in_order, torch_pool, torch_threads

logger = logging.getLogger(__name__)

ROW_MULTIPLE = 32
"""Every forward pass has a multiple of this many rows. Matrix kernels treat the rows of a remainder
differently, in the last bits; full groups make a row's features independent of the batch it is in."""

BLOCK_ROWS = 4096
"""Rows whose features `map_features` holds at a time."""

BATCH_SIZE = 64
"""Images per forward pass on a CPU, whose caches larger batches only overflow."""

MAX_PASSES = 8
"""Forward passes side by side on a CPU at most: Python takes its part of each, and serves one at a time."""

PIXELS_AT_ONCE = 2**20
"""Pixels of all images in passes side by side: large images keep all threads busy in one pass, and need memory."""

LARGEST_BATCH = 1024
"""Images per forward pass of a GPU at most: more keep no GPU busier."""

MEMORY_MAP_ABOVE = 2**31
"""Bytes above which a matrix is a memory map of a temporary file, which goes with it, instead of an array in memory."""

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_T = TypeVar("_T")
_R = TypeVar("_R")
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1))


class Draw(NamedTuple):
    """What one pass sees of the images.

    Attributes
    ----------
    noise : Tensor of shape input_shape
        Shared by all images.
    offset : tuple of int
        Pixels to the right and down by which they are moved.
    """

    noise: Tensor
    offset: tuple[int, int]


@dataclass(frozen=True)
class FeatureExtractor:
    """Extract pooled activations of noisy images.

    An image x_0 is noised to x_t, a forward pass yields the activations h(l, t), which are averaged over
    ``pooling x pooling`` cells and over noise draws (sections 3.1 and 3.2 of DiEC, https://arxiv.org/abs/2512.20905).
    Departing from the paper, each draw is one noise tensor shared by all images (common random numbers): features
    do not depend on batch or row order, and noise does not blur the comparison of images. Also departing
    from it, draws after the first can see the images moved by some pixels: like noise, where exactly an image was
    cropped is not to tell images apart.

    Parameters
    ----------
    backbone : Backbone
        On the device that computes.
    n_draws : int, default=1
        Noise draws that are averaged.
    shift : int, default=0
        Pixels by which draws after the first see the images moved: right, left, down and up by turns. Pixels of
        the border are repeated.
    seed : int, default=0
        Seeds the draws.
    batch_size : int, default=64
        Images per forward pass (see `suited_batch_size`), rounded up to a multiple of 32; halved, as often as need be,
        where the device's memory does not suffice. On a CPU, passes over small images run side by side, up to one for
        each of torch's threads.
    precision : {"fp32", "bf16", "fp16"}, default="fp32"
        Number format of the passes of `extract` (autocast where it is not fp32). Features are float32 in any case.
    memory : joblib.Memory, default=no caching
        Caches the matrices by images, weights and all that they depend on.
    """

    backbone: Backbone
    n_draws: int = 1
    shift: int = 0
    seed: int = 0
    batch_size: int = BATCH_SIZE
    precision: str = "fp32"
    memory: joblib.Memory = field(default_factory=lambda: joblib.Memory(location=None, verbose=0))

    def draws(self) -> list[Draw]:
        """Return what each pass sees of the images."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.n_draws, *self.backbone.input_shape)
        noise = torch.randn(shape, generator=generator, dtype=torch.float32).to(self.backbone.device)
        offsets = [(0, 0), *(itertools.islice(itertools.cycle(_DIRECTIONS), self.n_draws - 1))]
        return [Draw(tensor, (self.shift * x, self.shift * y)) for tensor, (x, y) in zip(noise, offsets, strict=True)]

    def layer_shapes(self, names: Sequence[str] | None = None) -> dict[str, tuple[int, int, int]]:
        """Return ``(channels, height, width)`` of the layers' maps, in order of execution; see `activations`."""
        backbone = self.backbone
        probe = torch.zeros((1, *backbone.input_shape), dtype=torch.float32, device=backbone.device)
        timesteps = torch.zeros(1, dtype=torch.long, device=backbone.device)
        return activations.layer_shapes(
            backbone.network,
            lambda: backbone.predict(probe, timesteps),
            names,
            layers=backbone.layers(),
            to_map=backbone.to_map,
        )

    def layer_costs(self, names: Iterable[str]) -> dict[str, float]:
        """Return the share of a whole pass's multiplications that a pass up to each layer takes, above 0 to 1."""
        backbone = self.backbone
        probe = torch.zeros((1, *backbone.input_shape), dtype=torch.float32, device=backbone.device)
        timesteps = torch.zeros(1, dtype=torch.long, device=backbone.device)

        def work(layers: Sequence[str]) -> int:
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                activations.capture(
                    backbone.network,
                    lambda: backbone.predict(probe, timesteps),
                    layers,
                    lambda layer, activation: None,
                    backbone.to_map,
                )
            return counter.get_total_flops()

        whole = max(work([]), 1)
        return {name: max(work([name]), 1) / whole for name in names}

    def extract(
        self,
        source: ImageSource,
        cells: Sequence[Cell],
        *,
        rows: NDArray[np.integer] | None = None,
        draw: int | None = None,
        report: Callable[[int, int], object] | None = None,
    ) -> dict[Cell, NDArray[np.float32]]:
        """Extract the features of one timestep, all cells from the same passes.

        Parameters
        ----------
        source : ImageSource
        cells : sequence of Cell
            All of one timestep.
        rows : integer array of shape (m,), default=None
            Which images; None is all of them.
        draw : int, default=None
            Use this noise draw alone; None averages all.
        report : callable, default=None
            Called as ``report(done, total)``, in images, after each batch.

        Returns
        -------
        dict of Cell to ndarray of shape (m, channels * pooling**2), float32

        Raises
        ------
        ValueError
            Where cells are of several timesteps, `draw` is none of the `n_draws`, or activations are not finite.
        """
        if draw is not None and not 0 <= draw < self.n_draws:
            raise ValueError(f"draw must be from 0 to {self.n_draws - 1}; got {draw}")
        if len({cell.timestep for cell in cells}) != 1:
            raise ValueError(f"cells must be of one timestep; got {sorted({cell.timestep for cell in cells})}")
        if self.memory.location is None:
            return self._extract(source, cells, rows, draw, report)
        key = (
            source.fingerprint(),
            self.backbone.fingerprint(),
            tuple(cells),
            None if rows is None else hashlib.sha256(np.ascontiguousarray(rows, dtype=np.int64)).hexdigest(),
            (self.n_draws, self.shift, self.seed, draw, self.precision),
        )
        cached = self.memory.cache(_extract_cached, ignore=["extractor", "arguments"], verbose=0)
        return cached(key, self, (source, cells, rows, draw, report))

    def _extract(
        self,
        source: ImageSource,
        cells: Sequence[Cell],
        rows: NDArray[np.integer] | None,
        draw: int | None,
        report: Callable[[int, int], object] | None,
    ) -> dict[Cell, NDArray[np.float32]]:
        rows = np.arange(len(source)) if rows is None else np.asarray(rows)
        draws = self.draws() if draw is None else self.draws()[draw : draw + 1]
        features: dict[Cell, NDArray[np.float32]] = {}
        size = ROW_MULTIPLE * math.ceil(min(self.batch_size, len(rows)) / ROW_MULTIPLE)
        network, device = self.backbone.network, self.backbone.device
        batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        first = 0

        def forward(images: Tensor) -> dict[Cell, Tensor]:
            nonlocal size
            # Both are a thread's own: the passes of a CPU are in several.
            with torch.inference_mode(), _computing_in(self.precision, device):
                part, size = self._forward_in_parts(images, cells, draws, size)
            return part

        with activations.evaluating(network):
            for part in _side_by_side(forward, _read_ahead(source, batches, device), self._n_passes(size)):
                count = len(part[cells[0]])
                for cell, values in part.items():
                    if cell not in features:
                        features[cell] = _empty((len(rows), values.shape[1]), np.float32)
                    features[cell][first : first + count] = values.cpu().numpy()
                first += count
                if report is not None:
                    report(first, len(rows))
        for cell, matrix in features.items():
            with np.errstate(invalid="ignore"):  # infinities of both signs
                total = matrix.sum(dtype=np.float64)
            if not np.isfinite(total):  # one sum tells: it is finite only if all values are
                raise ValueError(f"the backbone's activations at {cell} are not finite")
        return features

    def _n_passes(self, size: int) -> int:
        """Return how many passes of so many images should run side by side, which small ones do best on a CPU."""
        if self.backbone.device.type != "cpu":
            return 1
        at_once = PIXELS_AT_ONCE // (size * math.prod(self.backbone.input_shape[1:]))
        return max(1, min(torch_threads(), MAX_PASSES, at_once))

    def _forward_in_parts(
        self, images: Tensor, cells: Sequence[Cell], draws: Sequence[Draw], size: int
    ) -> tuple[dict[Cell, Tensor], int]:
        """Return the features of a batch, and how many images at once the device's memory sufficed for."""
        device = self.backbone.device
        while True:
            try:
                parts = [self.forward(part.to(device, non_blocking=True), cells, draws) for part in images.split(size)]
                return {cell: torch.cat([part[cell] for part in parts]) for cell in cells}, size
            except torch.OutOfMemoryError:
                if size <= ROW_MULTIPLE:
                    raise
            # Not in the handler, where the exception still holds the tensors of the pass that failed.
            size = ROW_MULTIPLE * math.ceil(size / 2 / ROW_MULTIPLE)
            logger.warning("out of memory: going on with %d images per forward pass", size)
            if device.type == "cuda":
                torch.cuda.empty_cache()

    def forward(self, images: Tensor, cells: Sequence[Cell], draws: Sequence[Draw]) -> dict[Cell, Tensor]:
        """Compute the features of one batch, differentiable where gradients are enabled.

        Parameters
        ----------
        images : Tensor of shape (n, channels, height, width)
            In [-1, 1], on the backbone's device.
        cells : sequence of Cell
            All of one timestep.
        draws : sequence of Draw
            What to average over.

        Returns
        -------
        dict of Cell to Tensor of shape (n, channels * pooling**2), float32
        """
        backbone = self.backbone
        n = len(images)
        missing = -n % ROW_MULTIPLE
        if missing:
            images = torch.cat([images, images[:1].expand(missing, *images.shape[1:])])
        timesteps = torch.full((len(images),), cells[0].timestep, dtype=torch.long, device=images.device)
        wanted: dict[str, list[Cell]] = {}
        for cell in cells:
            wanted.setdefault(cell.layer, []).append(cell)

        def reduce(layer: str, activation: Tensor) -> dict[Cell, Tensor]:
            return {cell: activations.pool(activation, cell.pooling) for cell in wanted[layer]}

        totals: dict[Cell, Tensor] = {}
        encoded = {
            offset: backbone.encode(backbone.prepare(_moved(images, *offset)))
            for offset in {draw.offset for draw in draws}
        }
        for draw in draws:
            x0 = encoded[draw.offset]
            x_t = backbone.add_noise(x0, draw.noise.expand_as(x0), timesteps)
            maps = activations.capture(
                backbone.network,
                lambda x_t=x_t: backbone.predict(x_t, timesteps),
                list(wanted),
                reduce,
                backbone.to_map,
            )
            for pooled in maps.values():
                for cell, values in pooled.items():
                    totals[cell] = totals[cell] + values if cell in totals else values
        return {cell: total[:n] / len(draws) for cell, total in totals.items()}


def _read_ahead(source: ImageSource, batches: Sequence[NDArray[np.integer]], device: torch.device) -> Iterator[Tensor]:
    """Yield the images of each batch, ready to be sent to a device, and read those of the next one meanwhile."""

    def read(batch: NDArray[np.integer]) -> Tensor:
        images = torch.from_numpy(source.read(batch))
        return images.pin_memory() if device.type == "cuda" else images

    with ThreadPoolExecutor(1) as reader:
        yield from in_order(reader, read, batches, ahead=1)


def _side_by_side(forward: Callable[[_T], _R], batches: Iterable[_T], n_passes: int) -> Iterator[_R]:
    """Yield the results of passes over batches, in order: several at a time, which share torch's threads.

    Two passes of one thread each take less time than two passes, one after the other, of two threads: layers of small
    images are too small to be divided.
    """
    if n_passes == 1:
        yield from map(forward, batches)
        return
    with torch_pool(n_passes, torch_threads() // n_passes) as pool:
        yield from in_order(pool, forward, batches, ahead=n_passes)


def _computing_in(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which forward passes compute in a precision."""
    if precision in _AUTOCAST:
        return torch.autocast(device.type, _AUTOCAST[precision])
    if device.type == "cuda":
        # By default, convolutions round their input to 10 bits there, and are of a kind that changes with the batch.
        return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    return nullcontext()


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


def _no_space(n_bytes: int, free: int) -> str:
    return (
        f"features of {_gibibytes(n_bytes)} go to a temporary file, but {tempfile.gettempdir()} has "
        f"{_gibibytes(free)} left: set the environment variable TMPDIR to a folder with more room"
    )


def _gibibytes(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GiB"


def _empty(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray:
    """Return an array to fill: in memory, or past `MEMORY_MAP_ABOVE` bytes in a temporary file."""
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    if n_bytes <= MEMORY_MAP_ABOVE:
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


def _moved(images: Tensor, right: int, down: int) -> Tensor:
    """Move images by some pixels, repeating those of the border."""
    if right == down == 0:
        return images
    height, width = images.shape[2:]
    rows = (torch.arange(height, device=images.device) - down).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) - right).clamp(0, width - 1)
    return images[:, :, rows[:, None], columns]


def _extract_cached(key: tuple, extractor: FeatureExtractor, arguments: tuple) -> dict[Cell, NDArray[np.float32]]:
    # A function of its own, since joblib hashes what it does not ignore and `key` says it all.
    return extractor._extract(*arguments)


def suited_batch_size(backbone: Backbone) -> int:
    """Return how many images a forward pass should take: on a GPU as many as half of its free memory suffices for.

    Parameters
    ----------
    backbone : Backbone
        On the device that computes. On a GPU, one pass measures what an image needs.

    Returns
    -------
    int
        64 on a CPU; a multiple of 32 from 32 to 1,024 on a GPU.
    """
    if backbone.device.type != "cuda":
        return BATCH_SIZE
    free, needed = _gpu_bytes(backbone)
    return ROW_MULTIPLE * max(1, min(free // 2 // max(needed, 1), LARGEST_BATCH) // ROW_MULTIPLE)


def _gpu_bytes(backbone: Backbone) -> tuple[int, int]:
    """Return the bytes that are free on the backbone's GPU, and those that a forward pass takes for each image."""
    device = backbone.device
    torch.cuda.empty_cache()  # what the allocator holds back is free too
    free, _ = torch.cuda.mem_get_info(device)
    images = torch.zeros((ROW_MULTIPLE, *backbone.input_shape), device=device)
    timesteps = torch.zeros(ROW_MULTIPLE, dtype=torch.long, device=device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with activations.evaluating(backbone.network), torch.inference_mode():
        backbone.predict(images, timesteps)
    return free, (torch.cuda.max_memory_allocated(device) - before) // ROW_MULTIPLE


@dataclass(frozen=True)
class CellFeatures:
    """The features of one cell for rows of one source, differentiable: what a trained backbone is fed by.

    Parameters
    ----------
    extractor : FeatureExtractor
    source : ImageSource
    cell : Cell
    """

    extractor: FeatureExtractor
    source: ImageSource
    cell: Cell

    def __len__(self) -> int:
        return len(self.source)

    @property
    def network(self) -> torch.nn.Module:
        """The network that yields the features."""
        return self.extractor.backbone.network

    @property
    def batch_size(self) -> int:
        """Images per pass where no gradient is kept."""
        return self.extractor.batch_size

    @property
    def n_draws(self) -> int:
        """Draws that features are averaged over."""
        return self.extractor.n_draws

    def __call__(self, rows: Tensor, draw: int | None = None) -> Tensor:
        """Return the features of some rows, shape (m, d), on the backbone's device: of one draw, or of all."""
        draws = self.extractor.draws()
        chosen = draws if draw is None else [draws[draw]]
        images = self._images(rows)
        if torch.is_grad_enabled():
            return self.extractor.forward(images, [self.cell], chosen)[self.cell]
        return self.extractor._forward_in_parts(images, [self.cell], chosen, len(images))[0][self.cell]

    def denoising_loss(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Return the denoising loss of some rows at random timesteps (L_Re)."""
        backbone = self.extractor.backbone
        x0 = backbone.encode(backbone.prepare(self._images(rows)))
        noise = torch.randn(x0.shape, generator=generator, device=x0.device)
        timesteps = torch.randint(backbone.max_timestep + 1, (len(x0),), generator=generator, device=x0.device)
        return backbone.denoising_loss(x0, noise, timesteps)

    def _images(self, rows: Tensor) -> Tensor:
        return torch.from_numpy(self.source.read(rows.cpu().numpy())).to(self.extractor.backbone.device)


def map_features(
    extractors: Sequence[FeatureExtractor],
    source: ImageSource,
    cell: Cell,
    function: Callable[..., NDArray],
) -> NDArray:
    """Apply a function to features block by block, so that memory holds its results and one block only.

    Parameters
    ----------
    extractors : sequence of FeatureExtractor
        Each yields one argument of `function`.
    source : ImageSource
    cell : Cell
    function : callable
        From one (m, d) matrix for each extractor to an array of length m.

    Returns
    -------
    ndarray of length n
        The results, one after the other.
    """
    result: NDArray | None = None
    for start in range(0, len(source), BLOCK_ROWS):
        rows = np.arange(start, min(start + BLOCK_ROWS, len(source)))
        block = function(*(extractor.extract(source, [cell], rows=rows)[cell] for extractor in extractors))
        if result is None:
            result = _empty((len(source), *block.shape[1:]), block.dtype)
        result[rows] = block
    if result is None:
        raise ValueError("source holds no image")
    return result
