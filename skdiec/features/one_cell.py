"""The features of one representation: of some rows with gradients, and of all images block by block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skdiec.activations import Cell
from skdiec.features.batch_sizes import ROW_MULTIPLE
from skdiec.features.draws import Motion
from skdiec.features.extractor import FeatureExtractor
from skdiec.features.running import Batch
from skdiec.images import ImageSource
from skdiec.storage import LatentCache, empty_array

BLOCK_ROWS = 4096
"""Rows whose features `map_features` holds at a time."""


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
        images = Batch(rows.cpu().numpy(), None)
        if torch.is_grad_enabled():
            x0 = self.extractor.encoded(self.source, images.rows, chosen)
            return self.extractor.passes(x0, [self.cell], chosen, ROW_MULTIPLE)[self.cell]
        size = max(len(rows), ROW_MULTIPLE)
        return self.extractor.forward_in_parts(self.source, images, [self.cell], chosen, size)[0][self.cell]

    def denoising_loss(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Return the denoising loss of some rows at random timesteps (L_Re)."""
        backbone = self.extractor.backbone
        x0 = self.extractor.encoded(self.source, rows.cpu().numpy(), self.extractor.draws()[:1])[Motion()]
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
