"""Names for clusters, from a function that looks at their most typical images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from skdiec.images import FileImages
from skdiec.images.decoding import read_image, read_kind
from skdiec.messages import shown

if TYPE_CHECKING:
    from PIL.Image import Image

    from skdiec._estimator import DiffusionEmbeddedClustering

__all__ = ["name_clusters"]

Namer = Callable[[list[Any]], str | None]
"""What is given a cluster's typical images, of PIL, and returns its name."""


def name_clusters(
    model: DiffusionEmbeddedClustering,
    X: ArrayLike | str | os.PathLike | Iterable | None,
    namer: Namer,
    *,
    n_images: int = 9,
) -> dict[int, str]:
    """Name each cluster by what a function makes of its most typical images.

    The function may ask a captioning model, a person or a list. This library sends nothing anywhere.

    Parameters
    ----------
    model : DiffusionEmbeddedClustering
        Fitted.
    X : array-like, folder, sequence or iterable of images or of paths
        The images of `fit`, in the same order. None takes the files that the model was fitted on.
    namer : callable
        Called as ``namer(images)`` once for each cluster that has images, with a list of ``PIL.Image.Image``: those
        that are most surely in the cluster, the surest first. They are grey or RGB; of files, in their own size.
        Returns the name, or None for a cluster without one.
    n_images : int, default=9
        Images at most that `namer` is given.

    Returns
    -------
    dict of int to str
        Name of each cluster that was given one.

    Raises
    ------
    NotFittedError
        Before the fit.
    ValueError
        For an X of another length than that of `fit`, or of a table; without X where the model has no files.
    TypeError
        For another model; where `namer` returns something else than a name or None.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdiec import DiffusionEmbeddedClustering, Pretraining
    >>> from skdiec.naming import name_clusters
    >>> X = load_digits().images[:60]
    >>> cheap = Pretraining(epochs=2)
    >>> model = DiffusionEmbeddedClustering(
    ...     2, value_range=(0, 16), backbone=cheap, layer="mid_block", timestep=50, pooling=1, random_state=0
    ... ).fit(X)
    >>> name_clusters(model, X, lambda images: f"like {len(images)} images of {images[0].size}", n_images=3)
    {0: 'like 3 images of (8, 8)', 1: 'like 3 images of (8, 8)'}
    """
    from skdiec._estimator import DiffusionEmbeddedClustering

    if not isinstance(model, DiffusionEmbeddedClustering):
        raise TypeError(f"model must be a DiffusionEmbeddedClustering; got {shown(model)}")
    check_is_fitted(model)
    if not callable(namer):
        raise ValueError(f"namer must be a callable; got {shown(namer)}")
    if not isinstance(n_images, Integral) or isinstance(n_images, bool) or n_images < 1:
        raise ValueError(f"n_images must be an int of at least 1; got {shown(n_images)}")
    if model._format.is_table:
        raise ValueError("X must be images to be named by; the model was fitted on a table, whose rows are none")
    read = _reader(model, X)
    names = {}
    for cluster in range(len(model.cluster_centers_)):
        rows = typical_rows(model, cluster, n_images)
        name = namer(read(rows)) if len(rows) else None
        if name is not None and not isinstance(name, str):
            raise TypeError(f"namer must return a str or None; got {shown(name)} for cluster {cluster}")
        if name is not None and name.strip():
            names[cluster] = name.strip()
    return names


def typical_rows(model: DiffusionEmbeddedClustering, cluster: int, n_images: int) -> NDArray[np.integer]:
    """Return which images are most surely in a cluster, the surest first.

    Parameters
    ----------
    model : DiffusionEmbeddedClustering
        Fitted.
    cluster : int
    n_images : int
        At most.

    Returns
    -------
    ndarray of shape (n,)
        Rows of the X of `fit`.
    """
    members = np.flatnonzero(model.labels_ == cluster)
    return members[np.argsort(-model.probabilities_[members], kind="stable")][:n_images]


def _reader(model: DiffusionEmbeddedClustering, X: Any) -> Callable[[NDArray[np.integer]], list[Image]]:
    """Return what reads rows of X as images of PIL."""
    low, high = model.value_range_
    if X is None:
        if not hasattr(model, "files_"):
            raise ValueError("X must be the images of fit, since the model keeps none of them; got None")
        return lambda rows: [_picture(model.files_[row], low, high) for row in rows]
    source = model._source_of_fit(X)
    if isinstance(source, FileImages):
        return lambda rows: [_picture(source.paths[row], low, high) for row in rows]
    return lambda rows: [_as_pil((image + 1) / 2) for image in source.read(rows)]


def _picture(path: Path, low: float, high: float) -> Image:
    """Read a file at its own size."""
    kind = read_kind(path)
    pixels = read_image(path, (kind.channels, *kind.size), (low, high))
    return _as_pil((pixels.astype(np.float32) - low) / (high - low))


def _as_pil(values: NDArray) -> Image:
    """Return an image of values from 0 to 1; of channels that are no colours, their mean."""
    from PIL import Image

    pixels = np.rint(255 * values).clip(0, 255).astype(np.uint8)
    if len(pixels) in (3, 4):
        return Image.fromarray(np.ascontiguousarray(np.moveaxis(pixels[:3], 0, -1)))
    return Image.fromarray(pixels.mean(axis=0).round().astype(np.uint8))
