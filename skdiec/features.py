"""Features: matrices of pooled activations of a backbone, for chosen layers, timesteps and poolings."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import joblib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skdiec import activations
from skdiec.activations import Cell
from skdiec.backbones import PixelBackbone
from skdiec.images import ImageSource

ROW_MULTIPLE = 32
"""Every forward pass has a multiple of this many rows. Matrix kernels treat the rows of a remainder
differently, in the last bits; full groups make a row's features independent of the batch it is in."""

BLOCK_ROWS = 4096
"""Rows whose features `map_features` holds at a time."""


@dataclass(frozen=True)
class FeatureExtractor:
    """Extract pooled activations of noisy images.

    An image x_0 is noised to x_t, a forward pass yields the activations h(l, t), which are averaged over
    ``pooling x pooling`` cells and over noise draws (sections 3.1 and 3.2 of DiEC, https://arxiv.org/abs/2512.20905).
    Departing from the paper, each draw is one noise tensor shared by all images (common random numbers): features
    do not depend on batch or row order, and noise does not blur the comparison of images.

    Parameters
    ----------
    backbone : PixelBackbone
        On the device that computes.
    n_draws : int, default=2
        Noise draws that are averaged.
    seed : int, default=0
        Seeds the draws.
    batch_size : int, default=128
        Images per forward pass, rounded up to a multiple of 32.
    memory : joblib.Memory, default=no caching
        Caches the matrices by images, weights and all that they depend on.
    """

    backbone: PixelBackbone
    n_draws: int = 2
    seed: int = 0
    batch_size: int = 128
    memory: joblib.Memory = field(default_factory=lambda: joblib.Memory(location=None, verbose=0))

    def noise(self) -> Tensor:
        """Return the noise draws, shape (n_draws, *input_shape), on the backbone's device."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.n_draws, *self.backbone.input_shape)
        return torch.randn(shape, generator=generator).to(self.backbone.device)

    def layer_shapes(self, names: Sequence[str] | None = None) -> dict[str, tuple[int, int, int]]:
        """Return ``(channels, height, width)`` of the layers' maps, in order of execution; see `activations`."""
        backbone = self.backbone
        probe = torch.zeros((1, *backbone.input_shape), device=backbone.device)
        timesteps = torch.zeros(1, dtype=torch.long, device=backbone.device)
        return activations.layer_shapes(backbone.network, lambda: backbone.predict(probe, timesteps), names)

    def extract(
        self,
        source: ImageSource,
        cells: Sequence[Cell],
        *,
        rows: NDArray[np.integer] | None = None,
        draw: int | None = None,
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
            return self._extract(source, cells, rows, draw)
        key = (
            source.fingerprint(),
            self.backbone.fingerprint(),
            tuple(cells),
            None if rows is None else hashlib.sha256(np.ascontiguousarray(rows, dtype=np.int64)).hexdigest(),
            (self.n_draws, self.seed, draw),
        )
        cached = self.memory.cache(_extract_cached, ignore=["extractor", "arguments"], verbose=0)
        return cached(key, self, (source, cells, rows, draw))

    def _extract(
        self,
        source: ImageSource,
        cells: Sequence[Cell],
        rows: NDArray[np.integer] | None,
        draw: int | None,
    ) -> dict[Cell, NDArray[np.float32]]:
        rows = np.arange(len(source)) if rows is None else np.asarray(rows)
        noise = self.noise() if draw is None else self.noise()[draw : draw + 1]
        features: dict[Cell, NDArray[np.float32]] = {}
        batch_size = ROW_MULTIPLE * math.ceil(self.batch_size / ROW_MULTIPLE)
        network = self.backbone.network
        with activations.evaluating(network), torch.inference_mode():
            for start in range(0, len(rows), batch_size):
                batch = rows[start : start + batch_size]
                images = torch.from_numpy(source.read(batch)).to(self.backbone.device)
                for cell, values in self.forward(images, cells, noise).items():
                    if cell not in features:
                        features[cell] = np.empty((len(rows), values.shape[1]), dtype=np.float32)
                    features[cell][start : start + len(batch)] = values.cpu().numpy()
        for cell, matrix in features.items():
            with np.errstate(invalid="ignore"):  # infinities of both signs
                total = matrix.sum(dtype=np.float64)
            if not np.isfinite(total):  # one sum tells: it is finite only if all values are
                raise ValueError(f"the backbone's activations at {cell} are not finite")
        return features

    def forward(self, images: Tensor, cells: Sequence[Cell], noise: Tensor) -> dict[Cell, Tensor]:
        """Compute the features of one batch, differentiable where gradients are enabled.

        Parameters
        ----------
        images : Tensor of shape (n, channels, height, width)
            In [-1, 1], on the backbone's device.
        cells : sequence of Cell
            All of one timestep.
        noise : Tensor of shape (r, *input_shape)
            Draws to average over.

        Returns
        -------
        dict of Cell to Tensor of shape (n, channels * pooling**2), float32
        """
        backbone = self.backbone
        x0 = backbone.prepare(images)
        n = len(x0)
        missing = -n % ROW_MULTIPLE
        if missing:
            x0 = torch.cat([x0, x0[:1].expand(missing, *x0.shape[1:])])
        timesteps = torch.full((len(x0),), cells[0].timestep, dtype=torch.long, device=x0.device)
        wanted: dict[str, list[Cell]] = {}
        for cell in cells:
            wanted.setdefault(cell.layer, []).append(cell)

        def reduce(layer: str, activation: Tensor) -> dict[Cell, Tensor]:
            return {cell: activations.pool(activation, cell.pooling) for cell in wanted[layer]}

        totals: dict[Cell, Tensor] = {}
        for draw in noise:
            x_t = backbone.add_noise(x0, draw.expand_as(x0), timesteps)
            maps = activations.capture(
                backbone.network, lambda x_t=x_t: backbone.predict(x_t, timesteps), list(wanted), reduce
            )
            for pooled in maps.values():
                for cell, values in pooled.items():
                    totals[cell] = totals[cell] + values if cell in totals else values
        return {cell: total[:n] / len(noise) for cell, total in totals.items()}


def _extract_cached(key: tuple, extractor: FeatureExtractor, arguments: tuple) -> dict[Cell, NDArray[np.float32]]:
    # A function of its own, since joblib hashes what it does not ignore and `key` says it all.
    return extractor._extract(*arguments)


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

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the features of some rows, shape (m, d), on the backbone's device."""
        return self.extractor.forward(self._images(rows), [self.cell], self.extractor.noise())[self.cell]

    def denoising_loss(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Return the denoising loss of some rows at random timesteps (L_Re)."""
        backbone = self.extractor.backbone
        x0 = backbone.prepare(self._images(rows))
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
            result = np.empty((len(source), *block.shape[1:]), dtype=block.dtype)
        result[rows] = block
    if result is None:
        raise ValueError("source holds no image")
    return result
