"""Metrics against true labels. They evaluate results; nothing in skdiec learns from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, make_scorer, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from sklearn.utils import column_or_1d

from skdiec.messages import shortened

__all__ = ["ClusteringReport", "accuracy_scorer", "clustering_accuracy", "clustering_report"]


@dataclass(frozen=True)
class ClusteringReport:
    """The field's three figures for a clustering.

    Attributes
    ----------
    acc : float
        Clustering accuracy, 0 to 1; see `clustering_accuracy`.
    nmi : float
        Normalised mutual information, arithmetic mean, 0 to 1.
    ari : float
        Adjusted Rand index, -0.5 to 1.

    Examples
    --------
    >>> print(clustering_report([0, 0, 1, 1], [1, 1, 0, 2]))
    ACC 0.750  NMI 0.800  ARI 0.571
    """

    acc: float
    nmi: float
    ari: float

    def __str__(self) -> str:
        return f"ACC {self.acc:.3f}  NMI {self.nmi:.3f}  ARI {self.ari:.3f}"


def clustering_accuracy(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Compute the share of rows labelled rightly under the best one-to-one match of clusters to classes.

    The match is found by the Hungarian method; rows of clusters that no class is left for count as wrong.

    Parameters
    ----------
    y_true, y_pred : array-like of shape (n,)
        Classes and clusters; any integers or strings.

    Returns
    -------
    float
        From 0 to 1.

    Raises
    ------
    ValueError
        For what is no array of labels, lengths that differ or are zero, and NaN.

    Examples
    --------
    >>> clustering_accuracy([0, 0, 1, 1], [1, 1, 0, 1])
    0.75
    """
    true, predicted = _codes_of_both(y_true, y_pred)
    table = contingency_matrix(true, predicted)
    return float(table[linear_sum_assignment(table, maximize=True)].sum() / len(true))


def clustering_report(y_true: ArrayLike, y_pred: ArrayLike) -> ClusteringReport:
    """Compute ACC, NMI and ARI in one call.

    Parameters
    ----------
    y_true, y_pred : array-like of shape (n,)
        Classes and clusters.

    Returns
    -------
    ClusteringReport

    Raises
    ------
    ValueError
        As in `clustering_accuracy`.

    Examples
    --------
    >>> print(clustering_report([0, 0, 1, 1], [1, 1, 0, 0]))
    ACC 1.000  NMI 1.000  ARI 1.000
    """
    true, predicted = _codes_of_both(y_true, y_pred)
    return ClusteringReport(
        acc=clustering_accuracy(true, predicted),
        nmi=float(normalized_mutual_info_score(true, predicted)),
        ari=float(adjusted_rand_score(true, predicted)),
    )


def _codes_of_both(y_true: ArrayLike, y_pred: ArrayLike) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    true, predicted = _codes("y_true", y_true), _codes("y_pred", y_pred)
    if len(true) != len(predicted):
        raise ValueError(f"y_true and y_pred must be of one length; got {len(true)} and {len(predicted)}")
    if len(true) == 0:
        raise ValueError("y_true and y_pred must not be empty")
    return true, predicted


def _codes(name: str, labels: ArrayLike) -> NDArray[np.intp]:
    """Return labels as 0, 1, ..."""
    try:
        column: NDArray = column_or_1d(labels)
        missing = _has_missing(column, labels)
        codes = np.unique(column, return_inverse=True)[1]
    except (TypeError, ValueError) as error:  # the latter of labels that cannot be compared
        raise ValueError(f"{name} must be integers or strings of shape (n,): {shortened(str(error))}") from error
    if missing:
        raise ValueError(f"{name} must not contain NaN or infinity")
    return codes


def _has_missing(column: NDArray, labels: ArrayLike) -> bool:
    """Say whether labels, and the column that numpy makes of them, have a NaN, an infinity or no time."""
    kind = column.dtype.kind
    if kind == "f":
        return not np.isfinite(column).all()
    if kind in "mM":
        return bool(np.isnat(column).any())
    values: Iterable[Any] = ()
    if kind == "O":
        values = column
    elif kind == "U" and isinstance(labels, list | tuple):  # where a NaN among texts has become one
        values = labels
    # What is not equal to itself is missing, be it of numpy, pandas or Python.
    return any(bool(value != value) or value in (np.inf, -np.inf) for value in values)


accuracy_scorer = make_scorer(clustering_accuracy)
"""Scores a clusterer by `clustering_accuracy`: pass it as ``scoring`` to a search of scikit-learn, whose own strings
``"normalized_mutual_info_score"`` and ``"adjusted_rand_score"`` are the two other figures."""
