"""Features: matrices of pooled activations of a backbone, for chosen layers, timesteps and poolings."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import joblib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skdiec import activations
from skdiec.backbones import PixelBackbone
from skdiec.images import ImageSource

ROW_MULTIPLE = 8
"""Every forward pass has a multiple of this many rows. Matrix kernels treat the rows of a remainder
differently, in the last bits; full groups make a row's features independent of the batch it is in."""


@dataclass(frozen=True)
class Cell:
    """One representation of the search space.

    Attributes
    ----------
    layer : str
        Module path in the network.
    timestep : int
        Timestep of the noise schedule.
    pooling : int
        Cells along each side of the pooled map.
    """

    layer: str
    timestep: int
    pooling: int


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
        Images per forward pass, rounded up to a multiple of 8.
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
            Where cells are of several timesteps, or activations are not finite.
        """
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
            # One sum tells: it is finite only if all values are.
            if not np.isfinite(matrix.sum(dtype=np.float64)):
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
