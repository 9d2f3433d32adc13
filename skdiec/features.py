"""Features: matrices of pooled activations of a backbone, for chosen layers, timesteps and poolings."""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

import joblib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from skdiec import activations
from skdiec.activations import Cell
from skdiec.backbones import Backbone
from skdiec.images import ImageSource
from skdiec.parallel import in_order, torch_pool, torch_threads
from skdiec.storage import LatentCache, empty_array

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
    latents : LatentCache, default=None
        Keeps what images are encoded to, for a backbone of latents: worth it where images are seen again. None keeps
        nothing.
    """

    backbone: Backbone
    n_draws: int = 1
    shift: int = 0
    seed: int = 0
    batch_size: int = BATCH_SIZE
    precision: str = "fp32"
    memory: joblib.Memory = field(default_factory=lambda: joblib.Memory(location=None, verbose=0))
    latents: LatentCache | None = None

    def draws(self) -> list[Draw]:
        """Return what each pass sees of the images."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.n_draws, *self.backbone.input_shape)
        noise = torch.randn(shape, generator=generator, dtype=torch.float32).to(self.backbone.device)
        offsets = [(0, 0), *(itertools.islice(itertools.cycle(_DIRECTIONS), self.n_draws - 1))]
        return [Draw(tensor, (self.shift * x, self.shift * y)) for tensor, (x, y) in zip(noise, offsets, strict=True)]

    def layer_shapes(self, names: Sequence[str] | None = None) -> dict[str, tuple[int, int, int]]:
        """Return ``(channels, height, width)`` of the layers' maps, in order of execution; see `activations`."""
        outline, forward = self._outline()
        return activations.layer_shapes(outline.network, forward, names, layers=outline.layers(), to_map=outline.to_map)

    def layer_costs(self, names: Iterable[str]) -> dict[str, float]:
        """Return the share of a whole pass's multiplications that a pass up to each layer takes, above 0 to 1."""
        names = tuple(names)
        done = self._operations(names)
        whole = max(self._operations(())[None], 1)
        return {name: max(done[name], 1) / whole for name in names}

    def multiplications(self) -> int:
        """Return the multiplications of a whole pass of one image."""
        return self._operations(())[None] // 2  # each has an addition

    @property
    def at_once(self) -> int:
        """How many images are in passes side by side."""
        size = self._rounded_up(self.batch_size)
        return size * self._n_passes(size)

    def _operations(self, layers: Sequence[str]) -> dict[str | None, int]:
        """Count the operations of a pass up to each layer; those of None are up to its end, the deepest layer."""
        outline, forward = self._outline()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            so_far = activations.capture(
                outline.network, forward, layers, lambda *_: counter.get_total_flops(), outline.to_map
            )
        return {None: counter.get_total_flops()} | so_far

    def _outline(self) -> tuple[Backbone, Callable[[], Tensor]]:
        """Return a backbone that computes no numbers, and a pass of one image through it."""
        outline = self.backbone.outline()
        probe = torch.zeros((1, *outline.input_shape), dtype=torch.float32, device=outline.device)
        timesteps = torch.zeros(1, dtype=torch.long, device=outline.device)
        return outline, lambda: outline.predict(probe, timesteps)

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
            None if rows is None else hashlib.sha256(np.ascontiguousarray(rows, dtype=np.int64).data).hexdigest(),
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
        size = self._rounded_up(min(self.batch_size, len(rows)))
        network, device = self.backbone.network, self.backbone.device
        batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        first = 0

        def forward(batch: _Batch) -> dict[Cell, Tensor]:
            nonlocal size
            # Both are a thread's own: the passes of a CPU are in several.
            with torch.inference_mode(), _computing_in(self.precision, device):
                part, size = self._forward_in_parts(source, batch, cells, draws, size)
            return part

        offsets = {draw.offset for draw in draws}
        ahead = _read_ahead(source, batches, device, lambda batch: self._are_encoded(source, batch, offsets))
        with activations.evaluating(network):
            for part in _side_by_side(forward, ahead, self._n_passes(size)):
                count = len(part[cells[0]])
                for cell, values in part.items():
                    if cell not in features:
                        features[cell] = empty_array((len(rows), values.shape[1]), np.float32)
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

    @staticmethod
    def _rounded_up(count: int) -> int:
        return ROW_MULTIPLE * math.ceil(count / ROW_MULTIPLE)

    def _n_passes(self, size: int) -> int:
        """Return how many passes of so many images should run side by side, which small ones do best on a CPU."""
        if self.backbone.device.type != "cpu":
            return 1
        at_once = PIXELS_AT_ONCE // (size * math.prod(self.backbone.input_shape[1:]))
        return max(1, min(torch_threads(), MAX_PASSES, at_once))

    def _forward_in_parts(
        self, source: ImageSource, batch: _Batch, cells: Sequence[Cell], draws: Sequence[Draw], size: int
    ) -> tuple[dict[Cell, Tensor], int]:
        """Return the features of a batch, and how many images at once the device's memory sufficed for."""
        device = self.backbone.device
        while True:
            try:
                parts = []
                for part in batch.split(size):
                    x0 = self.encoded(source, part.rows, draws, part.images)
                    parts.append(self._passes(x0, cells, draws, min(size, ROW_MULTIPLE)))
                return {cell: torch.cat([part[cell] for part in parts]) for cell in cells}, size
            except torch.OutOfMemoryError:
                if size <= 1:
                    raise
            # Not in the handler, where the exception still holds the tensors of the pass that failed.
            size = ROW_MULTIPLE * math.ceil(size / 2 / ROW_MULTIPLE) if size > ROW_MULTIPLE else size // 2
            logger.warning("out of memory: going on with %d images per forward pass", size)
            if device.type == "cuda":
                torch.cuda.empty_cache()

    def encoded(
        self, source: ImageSource, rows: NDArray[np.integer], draws: Sequence[Draw], images: Tensor | None = None
    ) -> dict[tuple[int, int], Tensor]:
        """Return what is noised: images as they are moved in some draws, prepared, and encoded.

        Parameters
        ----------
        source : ImageSource
        rows : integer array of shape (m,)
            Which images.
        draws : sequence of Draw
        images : Tensor of shape (m, channels, height, width), default=None
            What `source` has at these rows, where it was read already.

        Returns
        -------
        dict of tuple to Tensor of shape (m, *input_shape)
            For each offset of `draws`, on the backbone's device.
        """
        backbone, latents = self.backbone, self.latents if self.backbone.encodes else None
        encoded: dict[tuple[int, int], Tensor] = {}
        for offset in {draw.offset for draw in draws}:
            found = None if latents is None else latents.get(source, offset, rows)
            if found is not None:
                encoded[offset] = torch.from_numpy(found).to(backbone.device)
                continue
            if images is None:
                images = torch.from_numpy(source.read(rows))
            images = images.to(backbone.device, non_blocking=True)
            encoded[offset] = backbone.encode(backbone.prepare(_moved(images, *offset)))
            if latents is not None:
                latents.put(source, offset, rows, encoded[offset].cpu().numpy())
        return encoded

    def _are_encoded(self, source: ImageSource, rows: NDArray[np.integer], offsets: Iterable[tuple[int, int]]) -> bool:
        if self.latents is None or not self.backbone.encodes:
            return False
        return all(self.latents.has(source, offset, rows) for offset in offsets)

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
        backbone, offsets = self.backbone, {draw.offset for draw in draws}
        x0 = {offset: backbone.encode(backbone.prepare(_moved(images, *offset))) for offset in offsets}
        return self._passes(x0, cells, draws, ROW_MULTIPLE)

    def _passes(
        self, encoded: Mapping[tuple[int, int], Tensor], cells: Sequence[Cell], draws: Sequence[Draw], multiple: int
    ) -> dict[Cell, Tensor]:
        """Return the features of what was encoded, by passes of a multiple of some number of rows."""
        backbone = self.backbone
        n = len(next(iter(encoded.values())))
        missing = -n % multiple
        if missing:
            encoded = {offset: torch.cat([x0, x0[:1].expand(missing, *x0.shape[1:])]) for offset, x0 in encoded.items()}
        timesteps = torch.full((n + missing,), cells[0].timestep, dtype=torch.long, device=backbone.device)
        wanted: dict[str, list[Cell]] = {}
        for cell in cells:
            wanted.setdefault(cell.layer, []).append(cell)

        def reduce(layer: str, activation: Tensor) -> dict[Cell, Tensor]:
            return {cell: activations.pool(activation, cell.pooling) for cell in wanted[layer]}

        totals: dict[Cell, Tensor] = {}
        for draw in draws:
            x0 = encoded[draw.offset]
            x_t = backbone.add_noise(x0, draw.noise.expand_as(x0), timesteps)
            maps = activations.capture(
                backbone.network,
                functools.partial(backbone.predict, x_t, timesteps),
                list(wanted),
                reduce,
                backbone.to_map,
            )
            for pooled in maps.values():
                for cell, values in pooled.items():
                    totals[cell] = totals[cell] + values if cell in totals else values
        return {cell: total[:n] / len(draws) for cell, total in totals.items()}


class _Batch(NamedTuple):
    """Some images of a source."""

    rows: NDArray[np.integer]
    images: Tensor | None  # None where they are not needed

    def split(self, size: int) -> Iterator[_Batch]:
        for start in range(0, len(self.rows), size):
            part = slice(start, start + size)
            yield _Batch(self.rows[part], None if self.images is None else self.images[part])


def _read_ahead(
    source: ImageSource,
    batches: Sequence[NDArray[np.integer]],
    device: torch.device,
    is_known: Callable[[NDArray[np.integer]], bool] = lambda rows: False,
) -> Iterator[_Batch]:
    """Yield the images of each batch, ready to be sent to a device, and read those of the next one meanwhile."""

    def read(rows: NDArray[np.integer]) -> _Batch:
        if is_known(rows):
            return _Batch(rows, None)
        images = torch.from_numpy(source.read(rows))
        return _Batch(rows, images.pin_memory() if device.type == "cuda" else images)

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
        64 on a CPU, 32 of large images; on a GPU a multiple of 32 from 32 to 1,024, or fewer than 32 where the memory
        does not suffice.
    """
    if backbone.device.type != "cuda":
        n_pixels = math.prod(backbone.input_shape[1:])
        return BATCH_SIZE if n_pixels <= PIXELS_AT_ONCE // BATCH_SIZE else ROW_MULTIPLE
    free, needed = _gpu_bytes(backbone)
    count = min(free // 2 // max(needed, 1), LARGEST_BATCH)
    return ROW_MULTIPLE * (count // ROW_MULTIPLE) if count >= ROW_MULTIPLE else 2 ** max(0, count.bit_length() - 1)


def _gpu_bytes(backbone: Backbone) -> tuple[int, int]:
    """Return the bytes that are free on the backbone's GPU, and those that a forward pass takes for each image."""
    device = backbone.device
    torch.cuda.empty_cache()  # what the allocator holds back is free too
    free, _ = torch.cuda.mem_get_info(device)
    for count in (ROW_MULTIPLE, 4, 1):
        try:
            return free, _bytes_of_pass(backbone, count) // count
        except torch.OutOfMemoryError:
            if count == 1:
                raise
        torch.cuda.empty_cache()
    raise AssertionError  # of the loop's last round


def _bytes_of_pass(backbone: Backbone, count: int) -> int:
    device = backbone.device
    images = torch.zeros((count, *backbone.input_shape), device=device)
    timesteps = torch.zeros(count, dtype=torch.long, device=device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with activations.evaluating(backbone.network), torch.inference_mode():
        backbone.predict(images, timesteps)
    return torch.cuda.max_memory_allocated(device) - before


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
        images = _Batch(rows.cpu().numpy(), None)
        if torch.is_grad_enabled():
            x0 = self.extractor.encoded(self.source, images.rows, chosen)
            return self.extractor._passes(x0, [self.cell], chosen, ROW_MULTIPLE)[self.cell]
        size = max(len(rows), ROW_MULTIPLE)
        return self.extractor._forward_in_parts(self.source, images, [self.cell], chosen, size)[0][self.cell]

    def denoising_loss(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Return the denoising loss of some rows at random timesteps (L_Re)."""
        backbone = self.extractor.backbone
        x0 = self.extractor.encoded(self.source, rows.cpu().numpy(), self.extractor.draws()[:1])[0, 0]
        noise = torch.randn(x0.shape, generator=generator, device=x0.device)
        timesteps = torch.randint(backbone.max_timestep + 1, (len(x0),), generator=generator, device=x0.device)
        return backbone.denoising_loss(x0, noise, timesteps)


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
        # Where there are several, they see the same images.
        latents = LatentCache() if len(extractors) > 1 else None
        seeing = [replace(extractor, latents=latents) for extractor in extractors]
        block = function(*(extractor.extract(source, [cell], rows=rows)[cell] for extractor in seeing))
        if result is None:
            result = empty_array((len(source), *block.shape[1:]), block.dtype)
        result[rows] = block
    if result is None:
        raise ValueError("source holds no image")
    return result
