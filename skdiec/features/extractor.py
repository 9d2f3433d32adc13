"""The extractor: from images to matrices of pooled activations."""

from __future__ import annotations

import functools
import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import joblib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skdiec import activations
from skdiec.activations import Cell
from skdiec.backbones import Backbone
from skdiec.features import outline
from skdiec.features.batch_sizes import BATCH_SIZE, ROW_MULTIPLE, n_passes, rounded_up
from skdiec.features.draws import Draw, Motion, draws_of, moved
from skdiec.features.running import Batch, computing_in, read_ahead, side_by_side
from skdiec.images import ImageSource
from skdiec.storage import LatentCache, empty_array

logger = logging.getLogger(__name__)


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
        return draws_of(self.backbone, self.n_draws, self.shift, self.seed)

    def layer_shapes(self, names: Sequence[str] | None = None) -> dict[str, tuple[int, int, int]]:
        """Return ``(channels, height, width)`` of the layers' maps, in order of execution; see `activations`."""
        return outline.layer_shapes(self.backbone, names)

    def layer_costs(self, names: Iterable[str]) -> dict[str, float]:
        """Return the share of a whole pass's multiplications that a pass up to each layer takes, above 0 to 1."""
        return outline.layer_costs(self.backbone, names)

    def multiplications(self) -> int:
        """Return the multiplications of a whole pass of one image."""
        return outline.multiplications(self.backbone)

    def key(self) -> tuple:
        """Return what features depend on, but for the images and what is asked for."""
        return self.backbone.fingerprint(), self.n_draws, self.shift, self.seed, self.precision

    @property
    def at_once(self) -> int:
        """How many images are in passes side by side."""
        size = rounded_up(self.batch_size)
        return size * n_passes(self.backbone, size)

    def extract(
        self,
        source: ImageSource,
        cells: Sequence[Cell],
        *,
        rows: NDArray[np.integer] | None = None,
        draw: int | None = None,
        motion: Motion | None = None,
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
        motion : Motion, default=None
            See the images moved so, whatever the draws say. None leaves it to them.
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
            return self._extract(source, cells, rows, draw, motion, report)
        which = None if rows is None else hashlib.sha256(np.ascontiguousarray(rows, dtype=np.int64).data).hexdigest()
        key = (source.fingerprint(), self.key(), tuple(cells), which, draw, motion)
        cached = self.memory.cache(_extract_cached, ignore=["extractor", "arguments"], verbose=0)
        return cached(key, self, (source, cells, rows, draw, motion, report))

    def _extract(
        self,
        source: ImageSource,
        cells: Sequence[Cell],
        rows: NDArray[np.integer] | None,
        draw: int | None,
        motion: Motion | None,
        report: Callable[[int, int], object] | None,
    ) -> dict[Cell, NDArray[np.float32]]:
        rows = np.arange(len(source)) if rows is None else np.asarray(rows)
        draws = self.draws() if draw is None else self.draws()[draw : draw + 1]
        if motion is not None:
            draws = [each._replace(motion=motion) for each in draws]
        features: dict[Cell, NDArray[np.float32]] = {}
        size = rounded_up(min(self.batch_size, len(rows)))
        network, device = self.backbone.network, self.backbone.device
        batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        first = 0

        def forward(batch: Batch) -> dict[Cell, Tensor]:
            nonlocal size
            # Both are a thread's own: the passes of a CPU are in several.
            with torch.inference_mode(), computing_in(self.precision, device):
                part, size = self.forward_in_parts(source, batch, cells, draws, size)
            return part

        motions = {draw.motion for draw in draws}
        ahead = read_ahead(source, batches, device, lambda batch: self._are_encoded(source, batch, motions))
        with activations.evaluating(network):
            for part in side_by_side(forward, ahead, n_passes(self.backbone, size)):
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

    def forward_in_parts(
        self, source: ImageSource, batch: Batch, cells: Sequence[Cell], draws: Sequence[Draw], size: int
    ) -> tuple[dict[Cell, Tensor], int]:
        """Return the features of a batch, and how many images at once the device's memory sufficed for."""
        device = self.backbone.device
        while True:
            try:
                parts = []
                for part in batch.split(size):
                    x0 = self.encoded(source, part.rows, draws, part.images)
                    parts.append(self.passes(x0, cells, draws, min(size, ROW_MULTIPLE)))
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
    ) -> dict[Motion, Tensor]:
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
        dict of Motion to Tensor of shape (m, *input_shape)
            For each motion of `draws`, on the backbone's device.
        """
        backbone, latents = self.backbone, self.latents if self.backbone.encodes else None
        encoded: dict[Motion, Tensor] = {}
        for motion in {draw.motion for draw in draws}:
            found = None if latents is None else latents.get(source, motion, rows)
            if found is not None:
                encoded[motion] = torch.from_numpy(found).to(backbone.device)
                continue
            if images is None:
                images = torch.from_numpy(source.read(rows))
            images = images.to(backbone.device, non_blocking=True)
            encoded[motion] = backbone.encode(backbone.prepare(moved(images, motion)))
            if latents is not None:
                latents.put(source, motion, rows, encoded[motion].cpu().numpy())
        return encoded

    def _are_encoded(self, source: ImageSource, rows: NDArray[np.integer], motions: Iterable[Motion]) -> bool:
        if self.latents is None or not self.backbone.encodes:
            return False
        return all(self.latents.has(source, motion, rows) for motion in motions)

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
        backbone, motions = self.backbone, {draw.motion for draw in draws}
        x0 = {motion: backbone.encode(backbone.prepare(moved(images, motion))) for motion in motions}
        return self.passes(x0, cells, draws, ROW_MULTIPLE)

    def passes(
        self, encoded: Mapping[Motion, Tensor], cells: Sequence[Cell], draws: Sequence[Draw], multiple: int
    ) -> dict[Cell, Tensor]:
        """Return the features of what was encoded, by passes of a multiple of some number of rows."""
        backbone = self.backbone
        n = len(next(iter(encoded.values())))
        missing = -n % multiple
        if missing:
            encoded = {motion: torch.cat([x0, x0[:1].expand(missing, *x0.shape[1:])]) for motion, x0 in encoded.items()}
        timesteps = torch.full((n + missing,), cells[0].timestep, dtype=torch.long, device=backbone.device)
        wanted: dict[str, list[Cell]] = {}
        for cell in cells:
            wanted.setdefault(cell.layer, []).append(cell)

        def reduce(layer: str, activation: Tensor) -> dict[Cell, Tensor]:
            return {cell: activations.pool(activation, cell.pooling) for cell in wanted[layer]}

        totals: dict[Cell, Tensor] = {}
        for draw in draws:
            x0 = encoded[draw.motion]
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


def _extract_cached(key: tuple, extractor: FeatureExtractor, arguments: tuple) -> dict[Cell, NDArray[np.float32]]:
    # A function of its own, since joblib hashes what it does not ignore and `key` says it all.
    return extractor._extract(*arguments)
