"""What maps features to the embedding and to soft assignments: projection, head and centres."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skdiec import dec
from skdiec.seeding import drawing_from_seed

BLOCK_ROWS = 1024
"""Rows that are embedded at a time."""


class ResidualHead(nn.Module):
    """z = h0 + g(h), where the MLP g starts at zero (section 3.3 of DiEC).

    Parameters
    ----------
    n_features : int
        Dimensions of h0, h and z.
    hidden : int, default=256
        Width of the hidden layer.
    seed : int, default=0
        Seeds the weights of the first layer; those of the second are zero.
    """

    def __init__(self, n_features: int, hidden: int = 256, *, seed: int = 0) -> None:
        super().__init__()
        with drawing_from_seed(seed):
            first, last = nn.Linear(n_features, hidden), nn.Linear(hidden, n_features)
        self.g = nn.Sequential(first, nn.GELU(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, h0: Tensor, h: Tensor) -> Tensor:
        """Return z for frozen features h0 and the head's input h, all of shape (n, n_features)."""
        return h0 + self.g(h)


class Projection(nn.Module):
    """The fixed affine map from pooled activations to h: PCA, then division by one scale.

    Parameters
    ----------
    mean : ndarray of shape (d,)
    components : ndarray of shape (q, d)
    scale : float
    """

    mean: Tensor
    components: Tensor

    def __init__(self, mean: NDArray, components: NDArray, scale: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float64))
        self.register_buffer("components", torch.as_tensor(components / scale, dtype=torch.float64))

    def forward(self, features: Tensor) -> Tensor:
        """Return h of shape (n, q) in the dtype of this module (float64 unless converted)."""
        return (features.to(self.mean.dtype) - self.mean) @ self.components.T

    def project(self, features: NDArray) -> NDArray[np.float64]:
        """Return h as an array; the module must be on the CPU."""
        with torch.inference_mode():
            blocks = torch.from_numpy(features).split(BLOCK_ROWS)
            return torch.cat([self(block) for block in blocks]).numpy()


class EmbeddingModel:
    """The fitted map from features to the embedding and to soft assignments, in float64 on the CPU.

    In float64 the result of a row does not depend, to float32's precision, on the rows beside it.

    Parameters
    ----------
    projection : Projection
    head : ResidualHead or None
    centers : ndarray of shape (k, d)
    nu : float
    """

    def __init__(self, projection: Projection, head: ResidualHead | None, centers: NDArray, nu: float) -> None:
        self.projection = projection.double().cpu()
        self.head = head.double().cpu().requires_grad_(False) if head is not None else None
        self.centers = np.asarray(centers, dtype=np.float64)
        self.nu = nu

    def embed(self, *features: NDArray) -> NDArray[np.float32]:
        """Return z, shape (n, d), of the frozen backbone's features and, where there is one, the trained backbone's."""
        blocks = zip(*(torch.from_numpy(matrix).split(BLOCK_ROWS) for matrix in features), strict=True)
        with torch.inference_mode():
            return torch.cat([self._embed(*block) for block in blocks]).numpy()

    def _embed(self, *features: Tensor) -> Tensor:
        h = [self.projection(matrix) for matrix in features]
        z = h[-1] if self.head is None else self.head(h[0], h[-1])
        return z.float()

    def assign(self, z: NDArray) -> NDArray[np.float64]:
        """Return the soft assignments of embedded rows, shape (n, k)."""
        centers = torch.from_numpy(self.centers)
        # In blocks: the differences of rows and centres are held for one block only.
        blocks = torch.from_numpy(np.asarray(z, dtype=np.float64)).split(BLOCK_ROWS)
        return torch.cat([dec.soft_assign(block, centers, nu=self.nu) for block in blocks]).numpy()
