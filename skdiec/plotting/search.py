"""The scores of the search as a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skdiec.messages import shown
from skdiec.plotting.common import (
    MIDDLE_GREY,
    axes_or_new,
    check_estimator,
    check_matplotlib,
    every_nth,
    size_in_inches,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

    from skdiec._estimator import DiffusionEmbeddedClustering

SCORE_NAMES = {
    "consensus": "consensus modularity",
    "scott": "Scott score",
    "relative_cut": "relative cut, sign turned",
    "normalized_cut": "normalised cut, sign turned",
}
"""What the colour bar calls a score; a callable criterion has its own name."""


class SearchDisplay:
    """Heat map of what the search gave for each layer and timestep, with the chosen representation marked.

    Use `from_estimator` to make one. Parameters are stored as attributes.

    Parameters
    ----------
    scores : ndarray of shape (n_layers, n_timesteps)
        Higher is better; NaN where there is none.
    layers : sequence of str
    timesteps : sequence of int
    score_name : str, default="score"
        For the colour bar.
    pooling : int, default=None
        Pooling of the scores, for the label of the axis.
    chosen : tuple of int, default=None
        Row and column of the chosen cell. None marks none.

    Attributes
    ----------
    ax_ : Axes
        Layers downwards in the order of execution, timesteps to the right.
    figure_ : Figure
    im_ : AxesImage
    mark_ : Line2D or None
        The star on the chosen cell.
    colorbar_ : Colorbar

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdiec import DiffusionEmbeddedClustering, Pretraining
    >>> from skdiec.plotting import SearchDisplay
    >>> X = load_digits().data[:60]
    >>> model = DiffusionEmbeddedClustering(
    ...     n_clusters=3, timestep=(50, 100), pooling=1, backbone=Pretraining(epochs=2), random_state=0
    ... ).fit(X)
    >>> display = SearchDisplay.from_estimator(model, score="scott")
    >>> display.colorbar_.ax.get_ylabel()
    'Scott score'
    """

    def __init__(
        self,
        scores: NDArray[np.floating],
        *,
        layers: Sequence[str],
        timesteps: Sequence[int],
        score_name: str = "score",
        pooling: int | None = None,
        chosen: tuple[int, int] | None = None,
    ) -> None:
        self.scores = scores
        self.layers = layers
        self.timesteps = timesteps
        self.score_name = score_name
        self.pooling = pooling
        self.chosen = chosen

    @classmethod
    def from_estimator(
        cls,
        estimator: DiffusionEmbeddedClustering,
        *,
        score: str | None = None,
        pooling: int | None = None,
        cmap: str | Colormap = "viridis",
        ax: Axes | None = None,
    ) -> SearchDisplay:
        """Draw the scores of a fitted estimator's search.

        Parameters
        ----------
        estimator : DiffusionEmbeddedClustering
            Fitted.
        score : str, default=None
            A key of ``estimator.search_result_.scores``, such as ``"scott"``. None is the criterion that chose.
        pooling : int, default=None
            One of those searched. None is the chosen one.
        cmap : str or Colormap, default="viridis"
        ax : Axes, default=None
            None makes a figure.

        Returns
        -------
        SearchDisplay

        Raises
        ------
        ImportError
            Without matplotlib.
        NotFittedError
            Before the fit.
        ValueError
            For a score or a pooling that the search has not.
        """
        check_estimator(f"{cls.__name__}.from_estimator", estimator)
        result = estimator.search_result_
        score = result.criterion if score is None else score
        if not isinstance(score, str) or score not in result.scores:
            raise ValueError(f"score must be one of {sorted(result.scores)}; got {shown(score)}")
        pooling = result.best.pooling if pooling is None else pooling
        if not isinstance(pooling, Integral) or isinstance(pooling, bool) or pooling not in result.poolings:
            raise ValueError(f"pooling must be one of {list(result.poolings)}; got {shown(pooling)}")
        display = cls(
            result.scores[score][:, :, result.poolings.index(pooling)],
            layers=result.layers,
            timesteps=result.timesteps,
            score_name=SCORE_NAMES.get(score, score.replace("_", " ")),
            pooling=int(pooling),
            chosen=result.position(result.best)[:2] if pooling == result.best.pooling else None,
        )
        return display.plot(ax, cmap=cmap)

    def plot(self, ax: Axes | None = None, *, cmap: str | Colormap = "viridis") -> SearchDisplay:
        """Draw the heat map.

        Parameters
        ----------
        ax : Axes, default=None
            None makes a figure.
        cmap : str or Colormap, default="viridis"

        Returns
        -------
        SearchDisplay
        """
        check_matplotlib(f"{type(self).__name__}.plot")
        n_layers, n_timesteps = np.shape(self.scores)
        width = max(4.5, 0.5 * n_timesteps + 3)
        self.figure_, self.ax_ = axes_or_new(ax, (min(width, 16), min(max(3.0, 0.3 * n_layers + 1.5), 16)))
        self.im_ = self.ax_.imshow(self.scores, aspect="auto", interpolation="nearest", cmap=cmap)
        self.colorbar_ = self.figure_.colorbar(self.im_, ax=self.ax_, label=self.score_name)
        handles: list[Any] = []
        self.mark_ = None
        if self.chosen is not None:
            row, column = self.chosen
            # White with a black edge: seen on every colour of the map.
            style: dict[str, Any] = {
                "marker": "*",
                "markersize": 15,
                "markerfacecolor": "white",
                "markeredgecolor": "black",
            }
            (self.mark_,) = self.ax_.plot([column], [row], linestyle="none", label="chosen", **style)
            handles.append(self.mark_)
        if np.isnan(self.scores).any():
            from matplotlib.patches import Patch

            # What is missing is transparent: there the background shows.
            self.ax_.patch.set(hatch="////", edgecolor=MIDDLE_GREY, linewidth=0)
            handles.append(Patch(hatch="////", facecolor="none", edgecolor=MIDDLE_GREY, label="not scored"))
        if handles:
            above: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 2, "borderaxespad": 0.2}
            self.ax_.legend(handles=handles, frameon=False, **above)
        across, down = size_in_inches(self.ax_)
        longest = max(len(str(timestep)) for timestep in self.timesteps)
        columns = every_nth(n_timesteps, across, 0.1 * (longest + 1))
        rows = every_nth(n_layers, down, 0.17)
        self.ax_.set_xticks(columns, [str(self.timesteps[column]) for column in columns])
        self.ax_.set_yticks(rows, [self.layers[row] for row in rows])
        self.ax_.set_xlabel("timestep")
        self.ax_.set_ylabel("layer" if self.pooling is None else f"layer (pooling {self.pooling})")
        return self
