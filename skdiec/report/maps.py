"""The embedding as a map: two coordinates of each image, and of some of them over the epochs."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors

MAX_LANDMARKS = 3000
"""Images that t-SNE maps; of more, the others go between their nearest ones of these."""

_PERPLEXITY = 30.0  # scikit-learn's default, which few images do not allow
_NEAREST = 3
_BLOCK_ROWS = 20_000


def draw_map(z: NDArray[np.floating], *, seed: int = 0) -> NDArray[np.float64]:
    """Map rows by t-SNE.

    Of many rows, some drawn at random are mapped. Each other one goes to the mean of its three nearest ones of these,
    weighted by the inverse of the squared distance.

    Parameters
    ----------
    z : ndarray of shape (n, d)
    seed : int, default=0

    Returns
    -------
    ndarray of shape (n, 2)
        All 0 where the rows are equal.
    """
    if len(z) < 2:
        return np.zeros((len(z), 2))
    if z.shape[1] < 2 or len(z) < 4:
        return np.pad(PCA().fit_transform(z), ((0, 0), (0, 2)))[:, :2]
    rows = np.arange(len(z))
    if len(z) > MAX_LANDMARKS:
        rows = np.sort(np.random.default_rng(seed).choice(len(z), MAX_LANDMARKS, replace=False))
    if (z[rows] == z[0]).all():  # t-SNE starts from principal components divided by their spread
        return np.zeros((len(z), 2))
    perplexity = min(_PERPLEXITY, (len(rows) - 1) / 3)
    landmarks = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(z[rows]).astype(float)
    if len(rows) == len(z):
        return landmarks
    near = NearestNeighbors(n_neighbors=_NEAREST).fit(z[rows])
    places = np.empty((len(z), 2))
    for start in range(0, len(z), _BLOCK_ROWS):
        distances, indices = near.kneighbors(z[start : start + _BLOCK_ROWS])
        weights = 1 / np.maximum(distances, 1e-6) ** 2
        weights /= weights.sum(axis=1, keepdims=True)
        places[start : start + _BLOCK_ROWS] = np.einsum("nk,nkd->nd", weights, landmarks[indices])
    places[rows] = landmarks
    return places


def project_epochs(
    z: NDArray[np.floating], places: NDArray[np.floating], snapshots: Iterable[NDArray[np.floating]]
) -> NDArray[np.float64]:
    """Map embeddings of several epochs by one linear map: that which comes closest to a map of the last one.

    What is linear keeps distances comparable: an image that does not move in the embedding does not move in the map.

    Parameters
    ----------
    z : ndarray of shape (n, d)
        The embedding.
    places : ndarray of shape (n, 2)
        Its map.
    snapshots : iterable of ndarray of shape (m, d)

    Returns
    -------
    ndarray of shape (n_epochs, m, 2)
    """
    # In float64: the dimensions of an embedding may differ in spread by far.
    linear = Ridge(alpha=1.0).fit(z.astype(np.float64), places)
    return np.stack([linear.predict(snapshot.astype(np.float64)) for snapshot in snapshots])
