"""What the displays share: checks, axes and the colours of clusters."""

from __future__ import annotations

import importlib.util
import math
from numbers import Integral
from typing import TYPE_CHECKING, Any

from sklearn.utils.validation import check_is_fitted

from skdiec._estimator import DiffusionEmbeddedClustering
from skdiec.messages import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

MARKERS = ("o", "s", "^", "D", "v", "P")
"""Shapes of the points: each ten clusters have one, so that sixty can be told apart."""

MIDDLE_GREY = "0.5"
"""For what belongs to no cluster: seen on light and on dark backgrounds alike."""


def check_matplotlib(caller: str) -> None:
    """Raise ImportError, with the line that installs it, where matplotlib is missing.

    Parameters
    ----------
    caller : str
        What needs it.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(f'{caller} needs matplotlib: pip install "skdiec[plot]"')


def check_estimator(caller: str, estimator: Any) -> None:
    """Raise ImportError without matplotlib, TypeError for another estimator, NotFittedError before its fit.

    Parameters
    ----------
    caller : str
    estimator : DiffusionEmbeddedClustering
    """
    check_matplotlib(caller)
    if not isinstance(estimator, DiffusionEmbeddedClustering):
        raise TypeError(f"estimator must be a DiffusionEmbeddedClustering; got {shown(estimator)}")
    check_is_fitted(estimator)


def check_int(name: str, value: Any, least: int) -> None:
    """Raise ValueError for what is no integer, or less than there has to be.

    Parameters
    ----------
    name : str
        The parameter.
    value : object
    least : int
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an int of at least {least}; got {shown(value)}")


def check_axes(ax: Any) -> None:
    """Raise TypeError for what cannot be drawn on.

    Parameters
    ----------
    ax : object
    """
    from matplotlib.axes import Axes

    if not isinstance(ax, Axes):
        raise TypeError(f"ax must be Axes of matplotlib, or None; got {shown(ax)}")


def axes_or_new(ax: Axes | None, figsize: tuple[float, float]) -> tuple[Figure | SubFigure, Axes]:
    """Return the figure and the axes to draw on: those of the caller, or new ones.

    Parameters
    ----------
    ax : Axes or None
    figsize : tuple of float
        Width and height, in inches, of a new figure.

    Returns
    -------
    figure : Figure or SubFigure
    ax : Axes
    """
    if ax is not None:
        check_axes(ax)
        return ax.figure, ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=figsize, layout="constrained")


def colors() -> list[Any]:
    """Return ten colours that people with any colour vision tell apart.

    Returns
    -------
    list of colours
        Those of Petroff (https://arxiv.org/abs/2107.02270); before matplotlib 3.10, which lacks them, "tab10".
    """
    from matplotlib import color_sequences

    return list(color_sequences["petroff10" if "petroff10" in color_sequences else "tab10"])


def cluster_style(cluster: int) -> tuple[Any, str]:
    """Return the colour and the marker of a cluster, the same in every display.

    Parameters
    ----------
    cluster : int

    Returns
    -------
    color : colour of matplotlib
    marker : str
        See `MARKERS`.
    """
    palette = colors()
    return palette[cluster % len(palette)], MARKERS[cluster // len(palette) % len(MARKERS)]


def every_nth(count: int, inches: float, size: float) -> range:
    """Return the positions of tick labels that do not overlap: all of them, or every second, third and so on.

    Parameters
    ----------
    count : int
        How many there would be, evenly spaced.
    inches : float
        Room for all of them.
    size : float
        What one of them takes.

    Returns
    -------
    range

    Examples
    --------
    >>> list(every_nth(6, 2.0, 0.5))
    [0, 2, 4]
    """
    return range(0, count, max(1, math.ceil(count * size / inches)))


def size_in_inches(ax: Axes) -> tuple[float, float]:
    """Return the width and height of axes.

    Parameters
    ----------
    ax : Axes

    Returns
    -------
    width, height : float
    """
    box = ax.get_window_extent().transformed(ax.figure.dpi_scale_trans.inverted())
    return box.width, box.height
