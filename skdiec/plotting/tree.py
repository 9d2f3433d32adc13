"""The tree of clusters as a dendrogram."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from skdiec.plotting.common import (
    MIDDLE_GREY,
    axes_or_new,
    check_estimator,
    check_matplotlib,
    cluster_style,
    size_in_inches,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from skdiec._estimator import DiffusionEmbeddedClustering

_PITCH = 10.0
"""Units between the leaves of scipy's dendrograms, of which the first is at half of it."""


class TreeDisplay:
    """Dendrogram of the fine clusters, whose merges within a cluster have its colour.

    Use `from_estimator` to make one. Parameters are stored as attributes.

    Parameters
    ----------
    linkage : ndarray of shape (n_fine - 1, 4)
        As `DiffusionEmbeddedClustering.linkage_`.
    leaf_clusters : ndarray of shape (n_fine,)
        The cluster that each fine cluster is a part of.
    leaf_sizes : ndarray of shape (n_fine,)
        Images of each fine cluster.

    Attributes
    ----------
    ax_ : Axes
        Leaves downwards, heights to the left.
    figure_ : Figure
    leaves_ : ndarray of shape (n_fine,)
        Fine clusters from the top down.
    links_ : LineCollection
        A merge each, in the order of `linkage`: child, up, across, down to the other child. Grey where it joins
        clusters.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdiec import DiffusionEmbeddedClustering, Pretraining
    >>> from skdiec.plotting import TreeDisplay
    >>> X = load_digits().data[:60]
    >>> model = DiffusionEmbeddedClustering(
    ...     n_clusters=3, layer="mid_block", timestep=50, pooling=1, backbone=Pretraining(epochs=2), random_state=0
    ... ).fit(X)
    >>> display = TreeDisplay.from_estimator(model)
    >>> len(display.leaves_) == len(model.linkage_) + 1
    True
    """

    def __init__(
        self, linkage: NDArray[np.floating], *, leaf_clusters: NDArray[np.integer], leaf_sizes: NDArray[np.integer]
    ) -> None:
        self.linkage = linkage
        self.leaf_clusters = leaf_clusters
        self.leaf_sizes = leaf_sizes

    @classmethod
    def from_estimator(cls, estimator: DiffusionEmbeddedClustering, *, ax: Axes | None = None) -> TreeDisplay:
        """Draw the tree of a fitted estimator's clusters.

        Parameters
        ----------
        estimator : DiffusionEmbeddedClustering
            Fitted.
        ax : Axes, default=None
            None makes a figure, as high as the leaves need.

        Returns
        -------
        TreeDisplay

        Raises
        ------
        ImportError
            Without matplotlib.
        NotFittedError
            Before the fit.
        """
        check_estimator(f"{cls.__name__}.from_estimator", estimator)
        first = np.unique(estimator.fine_labels_, return_index=True)[1]
        display = cls(
            estimator.linkage_,
            leaf_clusters=estimator.labels_[first],
            leaf_sizes=np.bincount(estimator.fine_labels_),
        )
        return display.plot(ax)

    def plot(self, ax: Axes | None = None) -> TreeDisplay:
        """Draw the dendrogram.

        Parameters
        ----------
        ax : Axes, default=None
            None makes a figure, as high as the leaves need.

        Returns
        -------
        TreeDisplay
        """
        check_matplotlib(f"{type(self).__name__}.plot")
        from matplotlib.collections import LineCollection

        n_leaves = len(self.leaf_clusters)
        self.leaves_, paths = _layout(self.linkage)
        self.figure_, self.ax_ = axes_or_new(ax, (6, min(max(2.5, 0.18 * n_leaves + 0.8), 18)))
        link_colors = [
            MIDDLE_GREY if cluster is None else cluster_style(cluster)[0] for cluster in self._link_clusters()
        ]
        self.links_ = LineCollection(list(paths), colors=link_colors, linewidths=1.5)
        self.ax_.add_collection(self.links_, autolim=False)
        heights = self.linkage[:, 2] if n_leaves > 1 else np.array([0.0, 1.0])
        lowest, spread = float(heights.min()), float(np.ptp(heights)) or 1.0
        # From the root, on the left, to the leaves, whose names are on the right. All merges may be far above 0.
        self.ax_.set_xlim(float(heights.max()) + 0.05 * spread, max(0.0, lowest - 0.3 * spread))
        self.ax_.set_ylim(n_leaves - 0.5, -0.5)
        inches = size_in_inches(self.ax_)[1]
        self.ax_.yaxis.tick_right()
        names = [f"{self.leaf_clusters[leaf]}: {leaf} ({self.leaf_sizes[leaf]:,})" for leaf in self.leaves_]
        self.ax_.set_yticks(range(n_leaves), names, fontsize=min(9.0, 0.85 * 72 * inches / n_leaves))
        self.ax_.tick_params(axis="y", length=0)
        self.ax_.yaxis.set_label_position("right")
        self.ax_.set_ylabel("cluster: fine cluster (images)")
        self.ax_.set_xlabel("height: 1 minus the link of the clusters that merge")
        self.ax_.spines[["top", "left", "right"]].set_visible(False)
        return self

    def _link_clusters(self) -> list[int | None]:
        """Return the cluster that each merge lies within, None where it joins several."""
        clusters: list[int | None] = [int(cluster) for cluster in self.leaf_clusters]
        for one, other in self.linkage[:, :2].astype(int):
            clusters.append(clusters[one] if clusters[one] == clusters[other] else None)
        return clusters[len(self.leaf_clusters) :]


def _layout(linkage: NDArray[np.floating]) -> tuple[NDArray[np.integer], NDArray[np.float64]]:
    """Return the order of the leaves, and the path of each merge, shape (n_merges, 4, 2): heights and places."""
    if not len(linkage):  # a single leaf, which scipy takes for no tree
        return np.zeros(1, dtype=np.int64), np.empty((0, 4, 2))
    from scipy.cluster.hierarchy import dendrogram

    n_leaves = len(linkage) + 1
    # The color of a merge is its number here: scipy goes through them in an order of its own.
    found = dendrogram(linkage, no_plot=True, link_color_func=lambda node: str(node - n_leaves))
    order = [int(merge) for merge in found["color_list"]]
    places = np.array(found["icoord"]) / _PITCH - 0.5
    paths = np.empty((len(linkage), 4, 2))
    paths[order] = np.stack([np.array(found["dcoord"]), places], axis=2)
    return np.array(found["leaves"]), paths
