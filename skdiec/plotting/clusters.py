"""A gallery of the clusters."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skdiec._parameters import cluster_names
from skdiec.plotting.common import axes_or_new, check_axes, check_estimator, check_int, check_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from skdiec._estimator import DiffusionEmbeddedClustering
    from skdiec.images import ImageSource

MAX_SIDE = 128
"""Pixels a side, about, that larger images are reduced to: more cannot be seen in a gallery."""

_PITCH = 1.06  # from one image to the next, in heights of an image
_GAP = 0.5  # between the surest and the least sure


class ClusterDisplay:
    """Gallery with a row for each cluster: its surest images on the left, its least sure ones on the right.

    Use `from_estimator` to make one. Parameters are stored as attributes.

    Parameters
    ----------
    images : ndarray of shape (n_rows, n_columns, height, width) or (n_rows, n_columns, height, width, channels), uint8
        The first half of the columns, rounded up, holds the surest images.
    rows : ndarray of shape (n_rows, n_columns)
        The place of each image in X; -1 where a small cluster has no more images.
    clusters : ndarray of shape (n_rows,)
        Number of each row's cluster.
    sizes : ndarray of shape (n_rows,)
        Images of each row's cluster.
    names : sequence of str of length n_rows, default=None
        Names of the rows' clusters.
    n_hidden : int, default=0
        Smaller clusters that are not shown, which a note tells of.

    Attributes
    ----------
    ax_ : Axes
    figure_ : Figure
    images_ : ndarray of AxesImage of shape (n_rows, n_columns)
        None where there is no image.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdiec import DiffusionEmbeddedClustering, Pretraining
    >>> from skdiec.plotting import ClusterDisplay
    >>> X = load_digits().images[:60]
    >>> model = DiffusionEmbeddedClustering(
    ...     n_clusters=3,
    ...     value_range=(0, 16),
    ...     layer="mid_block",
    ...     timestep=50,
    ...     pooling=1,
    ...     backbone=Pretraining(epochs=2),
    ...     random_state=0,
    ... ).fit(X)
    >>> ClusterDisplay.from_estimator(model, X, n_images=6).images.shape
    (3, 6, 8, 8)
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        *,
        rows: NDArray[np.integer],
        clusters: NDArray[np.integer],
        sizes: NDArray[np.integer],
        names: Sequence[str] | None = None,
        n_hidden: int = 0,
    ) -> None:
        self.images = images
        self.rows = rows
        self.clusters = clusters
        self.sizes = sizes
        self.names = names
        self.n_hidden = n_hidden

    @classmethod
    def from_estimator(
        cls,
        estimator: DiffusionEmbeddedClustering,
        X: ArrayLike | str | os.PathLike | Iterable | None = None,
        *,
        n_images: int = 12,
        max_clusters: int = 20,
        names: Sequence[str] | Mapping[int, str] | None = None,
        ax: Axes | None = None,
    ) -> ClusterDisplay:
        """Draw the clusters of a fitted estimator. No image goes through the network again.

        Parameters
        ----------
        estimator : DiffusionEmbeddedClustering
            Fitted on images.
        X : array-like, folder, sequence or iterable of images or of paths, default=None
            The images of `fit`. None reads those of ``estimator.files_``, where X was a folder or paths.
        n_images : int, default=12
            Images in each row, half of them the surest.
        max_clusters : int, default=20
            Rows: those of the largest clusters, in the order of their numbers.
        names : sequence of str of length n_clusters, or dict of int to str, default=None
            Names of the clusters, or of some of them, as `skdiec.naming.name_clusters` returns them.
        ax : Axes, default=None
            None makes a figure.

        Returns
        -------
        ClusterDisplay

        Raises
        ------
        ImportError
            Without matplotlib.
        NotFittedError
            Before the fit.
        ValueError
            For a table, whose rows are no images; without X where the estimator has no files; for an X of another
            length than that of `fit`; and for other numbers of rows, columns or names.
        """
        check_estimator(f"{cls.__name__}.from_estimator", estimator)
        check_int("n_images", n_images, 2)
        check_int("max_clusters", max_clusters, 1)
        n_clusters = len(estimator.cluster_centers_)
        names = None if names is None else cluster_names(names, n_clusters)
        if ax is not None:
            check_axes(ax)
        if estimator._format.is_table:
            raise ValueError("X must be images to be shown; the estimator was fitted on a table, whose rows are none")
        sizes = np.bincount(estimator.labels_, minlength=n_clusters)
        largest = np.argsort(-sizes, kind="stable")[:max_clusters]
        clusters = np.sort(largest[sizes[largest] > 0])
        rows = np.array([_surest_and_least_sure(estimator, cluster, n_images) for cluster in clusters])
        display = cls(
            _read_images(estimator, X, rows),
            rows=rows,
            clusters=clusters,
            sizes=sizes[clusters],
            names=None if names is None else [names[cluster] for cluster in clusters],
            n_hidden=int(np.sum(sizes > 0)) - len(clusters),
        )
        return display.plot(ax)

    def plot(self, ax: Axes | None = None) -> ClusterDisplay:
        """Draw the gallery.

        Parameters
        ----------
        ax : Axes, default=None
            None makes a figure.

        Returns
        -------
        ClusterDisplay
        """
        check_matplotlib(f"{type(self).__name__}.plot")
        n_rows, n_columns = np.shape(self.rows)
        height, width = self.images.shape[2:4]
        aspect = width / height
        n_surest = (n_columns + 1) // 2
        lefts = np.arange(n_columns) * (aspect + _PITCH - 1) + np.where(np.arange(n_columns) < n_surest, 0, _GAP)
        right, bottom = lefts[-1] + aspect, (n_rows - 1) * _PITCH + 1
        inches = min(0.6, 12 / right)
        self.figure_, self.ax_ = axes_or_new(ax, (inches * right + 1.5, inches * bottom + 0.8))
        self.images_ = np.full((n_rows, n_columns), None, dtype=object)
        for row, column in np.argwhere(np.asarray(self.rows) >= 0):
            left, top = lefts[column], row * _PITCH
            self.images_[row, column] = self.ax_.imshow(
                self.images[row, column], cmap="gray", vmin=0, vmax=255, extent=(left, left + aspect, top + 1, top)
            )
        self.ax_.set(xlim=(-0.1, right + 0.1), ylim=(bottom + 0.1, -0.1), aspect="equal")
        names = [""] * n_rows if self.names is None else [f" {name}" if name else "" for name in self.names]
        rows = zip(self.clusters, names, self.sizes, strict=True)
        self.ax_.set_yticks(
            np.arange(n_rows) * _PITCH + 0.5, [f"{cluster}{name} ({size:,})" for cluster, name, size in rows]
        )
        self.ax_.set_ylabel("cluster (images)")
        middles = [lefts[n_surest - 1] + aspect, lefts[n_surest] + right]
        self.ax_.xaxis.tick_top()
        self.ax_.set_xticks(np.array(middles) / 2, ["surest", "least sure"])
        self.ax_.tick_params(length=0)
        self.ax_.spines[:].set_visible(False)
        if self.n_hidden:
            clusters = "cluster is" if self.n_hidden == 1 else "clusters are"
            self.ax_.set_xlabel(f"{self.n_hidden} smaller {clusters} not shown")
        return self


def _surest_and_least_sure(estimator: DiffusionEmbeddedClustering, cluster: int, n_images: int) -> NDArray[np.integer]:
    """Return the surest images of a cluster, then its least sure ones; each image once, and -1 between them."""
    members = np.flatnonzero(estimator.labels_ == cluster)
    members = members[np.argsort(-estimator.probabilities_[members], kind="stable")]
    n_surest = (n_images + 1) // 2
    surest, others = members[:n_surest], members[n_surest:]
    least = others[max(0, len(others) - (n_images - n_surest)) :]
    return np.concatenate([surest, np.full(n_images - len(surest) - len(least), -1), least])


def _read_images(
    estimator: DiffusionEmbeddedClustering,
    X: ArrayLike | str | os.PathLike | Iterable | None,
    rows: NDArray[np.integer],
) -> NDArray[np.uint8]:
    """Read only the images that are shown, shape (n_rows, n_columns, height, width[, channels])."""
    wanted = np.unique(rows[rows >= 0])
    if X is None:
        if not hasattr(estimator, "files_"):
            raise ValueError("X must be the images of fit, since the estimator keeps none of them; got None")
        # As a list of these alone: the others are not even opened.
        source, places = estimator._fitted_source([estimator.files_[row] for row in wanted]), np.arange(len(wanted))
    else:
        source, places = estimator._source_of_fit(X), wanted
    pictures = np.concatenate([_thumbnails(source, block) for block in np.array_split(places, len(rows))])
    gallery = np.zeros((*rows.shape, *pictures.shape[1:]), dtype=np.uint8)
    gallery[rows >= 0] = pictures[np.searchsorted(wanted, rows[rows >= 0])]
    return gallery


def _thumbnails(source: ImageSource, rows: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Read images as matplotlib takes them: grey of two dimensions, or with 3 or 4 channels last."""
    images = source.read(rows)
    n, channels, height, width = images.shape
    step = max(1, max(height, width) // MAX_SIDE)
    down, across = min(step, height), min(step, width)
    images = images[:, :, : height // down * down, : width // across * across]
    images = images.reshape(n, channels, height // down, down, width // across, across).mean(axis=(3, 5))
    pixels = np.rint((images + 1) * 127.5).clip(0, 255).astype(np.uint8)
    return np.moveaxis(pixels, 1, -1) if channels in (3, 4) else pixels.mean(axis=1).astype(np.uint8)
