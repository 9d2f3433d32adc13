"""The embedding as a map in two dimensions."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state

from skdiec.messages import shown
from skdiec.plotting.common import (
    MARKERS,
    axes_or_new,
    check_axes,
    check_estimator,
    check_int,
    check_matplotlib,
    cluster_style,
    colors,
    size_in_inches,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection

    from skdiec._estimator import DiffusionEmbeddedClustering

METHODS = {"tsne": "t-SNE", "umap": "UMAP", "pca": "PCA"}

_PERPLEXITY = 30.0  # scikit-learn's default, which few images do not allow
_NEIGHBORS = 15  # umap-learn's
_LEGEND_ROW = 0.19  # inches


class EmbeddingDisplay:
    """Map of the embedding in two dimensions, coloured by cluster; one panel, or one for each of several epochs.

    Use `from_estimator` or `from_history` to make one. Parameters are stored as attributes.

    Ten clusters have ten colours; each ten more have another marker.

    Parameters
    ----------
    points : ndarray of shape (n, 2), or (n_epochs, n, 2) with `epochs`
        The map. Panels are drawn within the same limits.
    labels : array-like of shape (n,)
        What colours the points: numbers or names of clusters.
    epochs : sequence of int, default=None
        The epoch of each panel. None is a single map, without a title.
    method : {"tsne", "umap", "pca"}, default="tsne"
        What made the map, for the label of the axis.

    Attributes
    ----------
    ax_ : Axes, or ndarray of Axes of shape (n_epochs,)
    figure_ : Figure
    scatters_ : list of PathCollection, or list of such lists
        One for each cluster, in the order of the sorted labels; with `epochs`, such a list for each panel.
    legend_ : Legend or None
        On the right of the last panel. None where it was not asked for, or where there are more clusters than colours
        and markers (60).

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdiec import DiffusionEmbeddedClustering, Pretraining
    >>> from skdiec.plotting import EmbeddingDisplay
    >>> X = load_digits().data[:60]
    >>> model = DiffusionEmbeddedClustering(
    ...     n_clusters=3,
    ...     layer="mid_block",
    ...     timestep=50,
    ...     pooling=1,
    ...     n_snapshots=3,
    ...     backbone=Pretraining(epochs=2),
    ...     random_state=0,
    ... ).fit(X)
    >>> EmbeddingDisplay.from_estimator(model, method="pca").points.shape
    (60, 2)
    >>> EmbeddingDisplay.from_history(model, method="pca").points.shape
    (3, 60, 2)
    """

    def __init__(
        self,
        points: NDArray[np.floating],
        labels: ArrayLike,
        *,
        epochs: Sequence[int] | None = None,
        method: Literal["tsne", "umap", "pca"] = "tsne",
    ) -> None:
        self.points = points
        self.labels = labels
        self.epochs = epochs
        self.method = method

    @classmethod
    def from_estimator(
        cls,
        estimator: DiffusionEmbeddedClustering,
        *,
        labels: ArrayLike | None = None,
        method: Literal["tsne", "umap", "pca"] = "tsne",
        max_samples: int = 2000,
        random_state: int | np.random.RandomState | None = None,
        legend: bool = True,
        scatter_kw: Mapping[str, Any] | None = None,
        ax: Axes | None = None,
    ) -> EmbeddingDisplay:
        """Draw a map of a fitted estimator's embedding.

        Parameters
        ----------
        estimator : DiffusionEmbeddedClustering
            Fitted.
        labels : array-like of shape (n_samples,), default=None
            What colours the images of `fit`, such as classes. None is ``estimator.labels_``.
        method : {"tsne", "umap", "pca"}, default="tsne"
            How the embedding is mapped: t-SNE and PCA of scikit-learn, or UMAP, which needs ``umap-learn``.
        max_samples : int, default=2000
            Images, drawn at random from more.
        random_state : int, RandomState or None, default=None
            Seeds the draw and the map.
        legend : bool, default=True
        scatter_kw : dict, default=None
            Keywords for `matplotlib.axes.Axes.scatter`, such as ``{"s": 4}``.
        ax : Axes, default=None
            None makes a figure.

        Returns
        -------
        EmbeddingDisplay

        Raises
        ------
        ImportError
            Without matplotlib, or for ``"umap"`` without umap-learn.
        NotFittedError
            Before the fit.
        ValueError
            For another method, fewer than two images, or labels that are not one for each image.
        """
        check_estimator(f"{cls.__name__}.from_estimator", estimator)
        _check_method(method)
        check_int("max_samples", max_samples, 2)
        labels = _checked_labels(labels, estimator)
        if ax is not None:
            check_axes(ax)
        _check_keywords(scatter_kw)
        generator = _generator(random_state)
        rows = _drawn(np.arange(len(labels)), max_samples, generator)
        (points,) = _maps([estimator.embedding_[rows]], method, generator)
        display = cls(points, labels[rows], method=method)
        return display.plot(ax, legend=legend, scatter_kw=scatter_kw)

    @classmethod
    def from_history(
        cls,
        estimator: DiffusionEmbeddedClustering,
        *,
        epochs: Sequence[int] | None = None,
        labels: ArrayLike | None = None,
        method: Literal["pca", "umap", "tsne"] = "pca",
        max_samples: int = 500,
        random_state: int | np.random.RandomState | None = None,
        legend: bool = True,
        scatter_kw: Mapping[str, Any] | None = None,
        ax: Sequence[Axes] | NDArray[Any] | None = None,
    ) -> EmbeddingDisplay:
        """Draw how clusters form: a panel for each epoch that a fit with `n_snapshots` kept.

        The panels have one layout, that of the last epoch. PCA, the default, shows best what moves: all panels have
        the same axes, so that distances in different panels can be compared. UMAP places earlier epochs in the map of
        the last one, where each image goes to its neighbours. t-SNE has no map to place others in: each earlier epoch
        is mapped by itself, from the layout of the one after it. It shows how far clusters are apart within a panel.
        All epochs in one t-SNE would show less: the nearest neighbours of an image are itself in other epochs.

        Parameters
        ----------
        estimator : DiffusionEmbeddedClustering
            Fitted with `n_snapshots`.
        epochs : sequence of int, default=None
            Some of ``estimator.snapshots_``, in the order of the panels. None is all of them.
        labels : array-like of shape (n_samples,), default=None
            What colours the images of `fit` in all panels. None is ``estimator.labels_``, the clusters of the end.
        method : {"pca", "umap", "tsne"}, default="pca"
            As in `from_estimator`.
        max_samples : int, default=500
            Images in each panel, drawn at random from those that were kept.
        random_state : int, RandomState or None, default=None
            Seeds the draw and the map.
        legend : bool, default=True
        scatter_kw : dict, default=None
            As in `from_estimator`.
        ax : sequence of Axes, default=None
            One for each epoch. None makes a figure with a row of panels.

        Returns
        -------
        EmbeddingDisplay

        Raises
        ------
        ImportError
            Without matplotlib, or for ``"umap"`` without umap-learn.
        NotFittedError
            Before the fit.
        ValueError
            For an estimator without snapshots, epochs that were not kept, another method, fewer than two images, or
            labels that are not one for each image.
        """
        check_estimator(f"{cls.__name__}.from_history", estimator)
        _check_method(method)
        check_int("max_samples", max_samples, 2)
        kept = estimator.snapshots_
        if not kept:
            raise ValueError(
                "estimator must have been fitted with n_snapshots, such as n_snapshots=5; got one without snapshots"
            )
        asked = list(kept) if epochs is None else epochs
        epochs = list(asked) if isinstance(asked, Iterable) else []
        if not epochs or not all(isinstance(epoch, Integral) and epoch in kept for epoch in epochs):
            raise ValueError(f"epochs must be some of {list(kept)}, which fit kept; got {shown(asked)}")
        labels = _checked_labels(labels, estimator)
        _check_panels(ax, len(epochs))
        _check_keywords(scatter_kw)
        generator = _generator(random_state)
        # Positions among the rows that were kept.
        rows = _drawn(np.arange(len(estimator.snapshot_rows_)), max_samples, generator)
        points = np.stack(_maps([kept[epoch][rows] for epoch in epochs], method, generator))
        display = cls(points, labels[estimator.snapshot_rows_[rows]], epochs=epochs, method=method)
        return display.plot(ax, legend=legend, scatter_kw=scatter_kw)

    def plot(
        self,
        ax: Axes | Sequence[Axes] | NDArray[Any] | None = None,
        *,
        legend: bool = True,
        scatter_kw: Mapping[str, Any] | None = None,
    ) -> EmbeddingDisplay:
        """Draw the map.

        Parameters
        ----------
        ax : Axes or sequence of Axes, default=None
            With `epochs`, one for each of them. None makes a figure.
        legend : bool, default=True
        scatter_kw : dict, default=None
            Keywords for `matplotlib.axes.Axes.scatter`.

        Returns
        -------
        EmbeddingDisplay
        """
        check_matplotlib(f"{type(self).__name__}.plot")
        self.ax_: Any
        if self.epochs is None:
            self.figure_, self.ax_ = axes_or_new(cast("Axes | None", ax), (6, 5))
            panels = [self.ax_]
        else:
            self.figure_, self.ax_ = _row_of_axes(ax, len(self.epochs))
            panels = list(self.ax_)
        points = np.reshape(self.points, (len(panels), -1, 2))
        names, codes = np.unique(np.asarray(self.labels), return_inverse=True)
        # Numbers keep their style where a cluster has no image in the map.
        styles = [int(name) if names.dtype.kind in "iu" and names[0] >= 0 else code for code, name in enumerate(names)]
        scatter_kw = {
            "s": float(np.clip(20_000 / len(codes), 10, 30) / (1 if self.epochs is None else 3)),
            "linewidths": 0,
            "alpha": 0.9,
            **(scatter_kw or {}),
        }
        limits = _square_around(points)
        scatters: list[list[PathCollection]] = []
        for panel, layer in zip(panels, points, strict=True):
            scatters.append([])
            for code, (name, style) in enumerate(zip(names, styles, strict=True)):
                color, marker = cluster_style(style)
                own = {"color": color, "marker": marker, "label": str(name), **scatter_kw}
                scatters[-1].append(panel.scatter(*layer[codes == code].T, **own))
            panel.set(xlim=limits[0], ylim=limits[1], xticks=[], yticks=[])
            panel.set_aspect("equal")
        for panel, epoch in zip(panels, self.epochs or (), strict=False):
            panel.set_title("before training" if epoch == 0 else f"epoch {epoch}")
        panels[0].set_xlabel(f"{METHODS.get(self.method, self.method)} of {len(codes):,} images")
        self.scatters_ = scatters if self.epochs is not None else scatters[0]
        self.legend_ = None
        if legend and len(names) <= len(colors()) * len(MARKERS):
            n_rows = max(1, int(size_in_inches(panels[-1])[1] / _LEGEND_ROW))
            beside: dict[str, Any] = {
                "loc": "center left",
                "bbox_to_anchor": (1, 0.5),
                "ncols": math.ceil(len(names) / n_rows),
            }
            tight: dict[str, Any] = {
                "fontsize": "small",
                "handletextpad": 0.1,
                "labelspacing": 0.25,
                "columnspacing": 0.8,
            }
            self.legend_ = panels[-1].legend(frameon=False, **beside, **tight)
            for handle in self.legend_.legend_handles:
                handle.set(sizes=[30], alpha=1)
        return self


def _check_method(method: str) -> None:
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"method must be one of {list(METHODS)}; got {shown(method)}")
    if method == "umap" and importlib.util.find_spec("umap") is None:
        raise ImportError('method="umap" needs umap-learn: pip install umap-learn')


def _checked_labels(labels: ArrayLike | None, estimator: DiffusionEmbeddedClustering) -> NDArray:
    n_samples = len(estimator.labels_)
    try:
        checked = np.asarray(estimator.labels_ if labels is None else labels)
    except ValueError as error:  # rows of several lengths
        raise ValueError(f"labels must be one for each of the {n_samples} images of fit: {error}") from error
    if checked.shape != (n_samples,):
        raise ValueError(f"labels must be one for each of the {n_samples} images of fit; got shape {checked.shape}")
    try:
        np.unique(checked)
    except TypeError as error:
        raise ValueError(f"labels must be all integers or all strings, without None: {error}") from error
    return checked


def _check_panels(ax: Any, count: int) -> None:
    """Raise for axes that are none, or not as many as panels; before the map, which takes its time."""
    if ax is None:
        return
    panels = ax.ravel() if isinstance(ax, np.ndarray) else ax if isinstance(ax, Sequence) else [ax]
    if len(panels) != count:
        raise ValueError(f"ax must be None or {count} axes, one for each epoch; got {len(panels)}")
    for panel in panels:
        check_axes(panel)


def _check_keywords(scatter_kw: Any) -> None:
    if scatter_kw is not None and not isinstance(scatter_kw, Mapping):
        raise TypeError(f"scatter_kw must be a dict or None; got {shown(scatter_kw)}")


def _generator(random_state: Any) -> np.random.RandomState:
    try:
        return check_random_state(random_state)
    except Exception as error:  # of values that cannot be shown, too
        expected = "random_state must be an int from 0 to 2**32 - 1, a RandomState or None"
        raise ValueError(f"{expected}; got {shown(random_state)}") from error


def _row_of_axes(ax: Any, count: int) -> tuple[Any, NDArray[Any]]:
    _check_panels(ax, count)
    if ax is not None:
        panels = np.ravel(np.asarray(ax, dtype=object))
        return panels[0].figure, panels
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, count, figsize=(2.6 * count + 1, 3.1), squeeze=False, layout="constrained")
    return figure, panels[0]


def _drawn(rows: NDArray[np.integer], max_samples: int, generator: np.random.RandomState) -> NDArray[np.integer]:
    return rows if len(rows) <= max_samples else np.sort(generator.choice(rows, max_samples, replace=False))


def _maps(snapshots: Sequence[NDArray], method: str, generator: np.random.RandomState) -> list[NDArray[np.floating]]:
    """Return two coordinates of each row of each snapshot, in one layout: that of the last one."""
    seed = int(generator.randint(2**31 - 1))
    if snapshots[0].shape[1] < 2:  # which none of the methods maps to two dimensions
        return [np.column_stack([z, np.zeros(len(z))]) for z in snapshots]
    if method == "tsne":
        maps = [_tsne(snapshots[-1], seed, None)]
        for z in snapshots[-2::-1]:
            maps.append(_tsne(z, seed, maps[-1]))
        return maps[::-1]
    if method == "pca":
        from sklearn.decomposition import PCA

        fitted = PCA(2, random_state=seed).fit(snapshots[-1])
        return [fitted.transform(z) for z in snapshots]
    from umap import UMAP

    # One job, which is all that seeded ones can have.
    fitted = UMAP(n_neighbors=min(_NEIGHBORS, len(snapshots[-1]) - 1), n_jobs=1, random_state=seed)
    last = fitted.fit_transform(snapshots[-1])
    return [*(np.asarray(fitted.transform(z)) for z in snapshots[:-1]), np.asarray(last)]


def _tsne(z: NDArray, seed: int, init: NDArray | None) -> NDArray[np.floating]:
    from sklearn.manifold import TSNE

    if (z == z[0]).all():  # t-SNE starts from principal components divided by their spread
        return np.zeros((len(z), 2))
    perplexity = min(_PERPLEXITY, (len(z) - 1) / 3)
    if init is None:
        return TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(z)
    # Exaggeration would tear apart the layout that it is to start from.
    return TSNE(2, perplexity=perplexity, init=init, early_exaggeration=1.0, random_state=seed).fit_transform(z)


def _square_around(points: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return limits of x and of y, equally wide, that hold all points of all panels."""
    low, high = points.min(axis=(0, 1)), points.max(axis=(0, 1))
    half = 0.54 * (float((high - low).max()) or 1.0)
    middle = (low + high) / 2
    return np.column_stack([middle - half, middle + half])
