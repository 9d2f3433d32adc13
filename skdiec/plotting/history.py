"""The training, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skdiec.plotting.common import MIDDLE_GREY, axes_or_new, check_estimator, check_matplotlib, colors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from skdiec._estimator import DiffusionEmbeddedClustering

TERMS = {
    "loss": "loss",
    "kl": r"$L_\mathrm{KL}$",
    "graph": r"$L_\mathrm{graph}$",
    "entropy": r"$L_\mathrm{ent}$",
    "denoising": r"$L_\mathrm{Re}$",
}
"""Loss terms, and what the legend calls them."""


class HistoryDisplay:
    """Loss terms of each epoch, and the share of images that changed cluster.

    Use `from_estimator` to make one. Parameters are stored as attributes.

    Parameters
    ----------
    history : dict of str to ndarray of shape (n_epochs + 1,)
        As `DiffusionEmbeddedClustering.history_`: epoch 0, before any training, has no losses, and the terms are those
        before they are weighted. Terms that are NaN throughout are not drawn.
    warmup_epochs : int, default=None
        Where a dotted line shows the end of the warm-up: the target distribution is another one from there on. None
        draws none.

    Attributes
    ----------
    ax_ : Axes
        Losses over epochs.
    changed_ax_ : Axes
        Over the same epochs, the share of images that changed cluster; its axis is on the right.
    figure_ : Figure
    lines_ : dict of str to Line2D
        By the key in `history`.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdiec import DiffusionEmbeddedClustering, Pretraining
    >>> from skdiec.plotting import HistoryDisplay
    >>> X = load_digits().data[:60]
    >>> model = DiffusionEmbeddedClustering(
    ...     n_clusters=3, layer="mid_block", timestep=50, pooling=1, backbone=Pretraining(epochs=2), random_state=0
    ... ).fit(X)
    >>> display = HistoryDisplay.from_estimator(model)
    >>> sorted(display.lines_)
    ['changed', 'entropy', 'graph', 'kl', 'loss']
    """

    def __init__(self, history: Mapping[str, NDArray[np.floating]], *, warmup_epochs: int | None = None) -> None:
        self.history = history
        self.warmup_epochs = warmup_epochs

    @classmethod
    def from_estimator(cls, estimator: DiffusionEmbeddedClustering, *, ax: Axes | None = None) -> HistoryDisplay:
        """Draw the training of a fitted estimator.

        Parameters
        ----------
        estimator : DiffusionEmbeddedClustering
            Fitted.
        ax : Axes, default=None
            None makes a figure.

        Returns
        -------
        HistoryDisplay

        Raises
        ------
        ImportError
            Without matplotlib.
        NotFittedError
            Before the fit.
        """
        check_estimator(f"{cls.__name__}.from_estimator", estimator)
        return cls(estimator.history_, warmup_epochs=estimator.warmup_epochs).plot(ax)

    def plot(self, ax: Axes | None = None) -> HistoryDisplay:
        """Draw losses and share.

        Parameters
        ----------
        ax : Axes, default=None
            None makes a figure.

        Returns
        -------
        HistoryDisplay
        """
        check_matplotlib(f"{type(self).__name__}.plot")
        from matplotlib import rcParams
        from matplotlib.ticker import MaxNLocator, PercentFormatter

        changed = self.history["changed"]
        epochs = np.arange(len(changed))
        self.figure_, self.ax_ = axes_or_new(ax, (6.5, 4))
        self.changed_ax_ = self.ax_.twinx()
        self.lines_ = {}
        # The sum in the colour of text, which is never that of the background.
        styles = {"loss": {"color": rcParams["text.color"], "linewidth": 2.5}}
        for (name, label), color in zip(TERMS.items(), [None, *colors()], strict=False):
            values = self.history[name]
            if np.isfinite(values).any():
                style = styles.get(name, {"color": color})
                (self.lines_[name],) = self.ax_.plot(epochs, values, marker=".", label=label, **style)
        (self.lines_["changed"],) = self.changed_ax_.plot(
            epochs, changed, color=MIDDLE_GREY, linestyle="--", marker=".", label="changed cluster"
        )
        if self.warmup_epochs is not None and self.warmup_epochs < epochs[-1]:
            self.ax_.axvline(self.warmup_epochs + 0.5, color=MIDDLE_GREY, linestyle=":", label="end of warm-up")
        self.ax_.set_xlabel("epoch")
        self.ax_.set_ylabel("loss")
        self.ax_.xaxis.set_major_locator(MaxNLocator(integer=True))
        self.changed_ax_.set_ylabel("images that changed cluster")
        self.changed_ax_.set_ylim(0, max(1.05 * float(changed.max()), 0.01))
        self.changed_ax_.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        handles = [*self.ax_.get_legend_handles_labels()[0], self.lines_["changed"]]
        above: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "ncols": 4, "borderaxespad": 0.2}
        self.ax_.legend(handles=handles, frameon=False, **above)
        return self
