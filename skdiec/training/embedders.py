"""What training knows of a model: features that were computed once, or a backbone that trains too."""

from __future__ import annotations

import copy
from typing import Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skdiec.training.modules import BLOCK_ROWS, Projection, ResidualHead

_DRIFT_IMAGES = 512


class Embedder(Protocol):
    """What `train` needs to know of a model."""

    @property
    def module(self) -> nn.Module:
        """What holds all that is trained; its state is what a best epoch keeps."""

    @property
    def backbone(self) -> nn.Module | None:
        """The part of it that has the backbone's learning rate; None where the backbone does not train."""

    def embed(self, rows: Tensor) -> Tensor:
        """Return z of some rows, shape (m, d), with gradient."""

    def embed_all(self) -> Tensor:
        """Return z of all rows, shape (n, d), without gradient."""

    def denoising_loss(self, rows: Tensor, generator: torch.Generator) -> Tensor | None:
        """Return L_Re of some rows at random timesteps, or None where the backbone does not train."""

    def drift(self) -> float:
        """Return the denoising loss on fixed images, timesteps and noise; NaN where the backbone does not train."""


class FrozenEmbedder:
    """A head over features that were computed once: training takes seconds, and generation is untouched.

    Parameters
    ----------
    h : ndarray of shape (n, d)
        Projected features of all rows.
    head : ResidualHead
        Trained in place, in float32.
    device : torch.device
    """

    def __init__(self, h: NDArray, head: ResidualHead, device: torch.device) -> None:
        self.module, self.backbone = head.float().to(device), None
        self._h = torch.as_tensor(h, dtype=torch.float32, device=device)

    def embed(self, rows: Tensor) -> Tensor:
        """Return z of some rows."""
        h = self._h[rows]
        return self.module(h, h)

    def embed_all(self) -> Tensor:
        """Return z of all rows."""
        with torch.no_grad():
            return torch.cat([self.module(block, block) for block in self._h.split(BLOCK_ROWS)])

    def denoising_loss(self, rows: Tensor, generator: torch.Generator) -> None:
        """Return None: the backbone is frozen."""
        return

    def drift(self) -> float:
        """Return the denoising loss of fixed images, NaN where the backbone is frozen."""
        return float("nan")


class BackboneFeatures(Protocol):
    """What `BackboneEmbedder` needs of images and a trainable backbone."""

    @property
    def network(self) -> nn.Module:
        """The network that yields the features."""

    @property
    def batch_size(self) -> int:
        """Images per pass where no gradient is kept."""

    @property
    def n_draws(self) -> int:
        """Draws that features are averaged over."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __call__(self, rows: Tensor, draw: int | None = None) -> Tensor:
        """Return pooled activations of some rows, with gradient: of one draw, or the mean of all."""

    def denoising_loss(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Return the denoising loss of some rows at random timesteps."""


class BackboneEmbedder:
    """The paper's dual branch: the backbone trains with the head, held to denoising by L_Re.

    A step sees one draw, chosen at random, where `embed_all` averages all of them: a gradient through every draw would
    cost as many times more.

    Parameters
    ----------
    features : BackboneFeatures
        Its network is trained in place.
    projection : Projection
        From pooled activations to h.
    h0 : ndarray of shape (n, d)
        Projected features of the frozen backbone.
    head : ResidualHead or None
        None is direct fine-tuning: z = h.
    denoising_weight : float
        Weight of L_Re; 0 leaves it out.
    device : torch.device
    seed : int
        Seeds the choice of draws, and the noise that drift is measured with.
    """

    def __init__(
        self,
        features: BackboneFeatures,
        projection: Projection,
        h0: NDArray,
        head: ResidualHead | None,
        denoising_weight: float,
        device: torch.device,
        seed: int,
    ) -> None:
        self._features = features
        self._projection = copy.deepcopy(projection).float().to(device)
        self._head = head.float().to(device) if head is not None else None
        self._h0 = torch.as_tensor(h0, dtype=torch.float32, device=device)
        self._denoising_weight = denoising_weight
        self._device, self._seed = device, seed
        self._choice = torch.Generator().manual_seed(seed)
        self.backbone = features.network.requires_grad_(True)
        self.module = nn.ModuleList([self.backbone] if self._head is None else [self.backbone, self._head])

    def embed(self, rows: Tensor) -> Tensor:
        """Return z of some rows."""
        draw = int(torch.randint(self._features.n_draws, (), generator=self._choice))
        return self._embed(rows, self._features(rows, draw))

    def embed_all(self) -> Tensor:
        """Return z of all rows."""
        with torch.no_grad():
            blocks = torch.arange(len(self._features)).split(self._features.batch_size)
            return torch.cat([self._embed(rows, self._features(rows)) for rows in blocks])

    def _embed(self, rows: Tensor, features: Tensor) -> Tensor:
        h = self._projection(features)
        return h if self._head is None else self._head(self._h0[rows], h)

    def denoising_loss(self, rows: Tensor, generator: torch.Generator) -> Tensor | None:
        """Return the weighted L_Re of some rows."""
        if self._denoising_weight == 0:
            return None
        return self._denoising_weight * self._features.denoising_loss(rows, generator)

    def drift(self) -> float:
        """Return the denoising loss of fixed images, NaN where the backbone is frozen."""
        generator = torch.Generator(self._device).manual_seed(self._seed)
        # Smaller ones than of features: the loss is that of whole passes, which are not cut to the memory that is left.
        batches = torch.arange(min(len(self._features), _DRIFT_IMAGES)).split(min(self._features.batch_size, 128))
        with torch.no_grad():
            losses = [float(self._features.denoising_loss(rows, generator)) * len(rows) for rows in batches]
        return sum(losses) / sum(len(rows) for rows in batches)
