"""Which cells the halving scores: layers and poolings at few timesteps first, then the timesteps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import median_abs_deviation

from skdiec.activations import Cell

MIN_PAIRS = 4
"""Layers with a pooling that the halving keeps at least."""

N_PROBES = 2
"""Timesteps at which the halving compares layers and poolings before it turns to the others."""

N_GROUPS = 4
"""Groups of neighbouring timesteps that the halving compares, each by one of them, before it looks into the best."""


def halve(
    score: Callable[[Sequence[Cell]], Mapping[Cell, float]], pairs: Sequence[tuple[str, int]], timesteps: Sequence[int]
) -> list[Cell]:
    """Return the cells of the last stage: those of one timestep, with the layers and poolings that are left.

    Parameters
    ----------
    score : callable
        Makes a stage of some cells, and returns their values.
    pairs : sequence of tuple
        Layers with poolings.
    timesteps : sequence of int

    Returns
    -------
    list of Cell
    """
    groups = _neighbours(timesteps)
    middles = [group[len(group) // 2] for group in groups]
    if len(pairs) > 1 and len(groups) > N_PROBES:
        probes = [middles[round(place * (len(groups) - 1) / (N_PROBES + 1))] for place in range(1, N_PROBES + 1)]
        pairs = _best_pairs(score(_cells(pairs, probes)), 3)
    left: Sequence[int] = middles
    if len(groups) > 1:
        values = score(_cells(pairs, middles))
        pairs, left = _best_pairs(values, 2), groups[middles.index(_best_timestep(values))]
    if len(left) > 1:
        values = score(_cells(pairs, left))
        pairs, left = _best_pairs(values, 2), [_best_timestep(values)]
    return _cells(pairs, left)


def _neighbours(timesteps: Sequence[int]) -> list[list[int]]:
    """Return groups of neighbouring timesteps."""
    ordered = sorted(timesteps)
    size = max(1, len(ordered) // N_GROUPS)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def _cells(pairs: Sequence[tuple[str, int]], timesteps: Sequence[int]) -> list[Cell]:
    return [Cell(layer, timestep, pooling) for timestep in timesteps for layer, pooling in pairs]


def _best_pairs(values: Mapping[Cell, float], divisor: int) -> list[tuple[str, int]]:
    """Return one in so many of the layers and poolings of some cells, at least four, those with the highest mean."""
    pairs, _, table = _table(values)
    ranked = np.argsort(-np.nanmean(table, axis=1), kind="stable")
    return [pairs[place] for place in ranked[: max(MIN_PAIRS, math.ceil(len(pairs) / divisor))]]


def _best_timestep(values: Mapping[Cell, float]) -> int:
    """Return the earliest timestep whose mean is within one standard error of the highest one.

    The error is that of the best timestep's mean lead, over layers and poolings. It comes from the median deviation:
    the one layer with clusters, where they are in one alone, would raise a standard deviation as much as the lead.
    """
    _, timesteps, table = _table(values)
    best = int(np.nanmean(table, axis=0).argmax())
    for column in range(best):
        lead = table[:, best] - table[:, column]
        lead = lead[np.isfinite(lead)]
        if len(lead) > 1 and lead.mean() <= median_abs_deviation(lead, scale="normal") / math.sqrt(len(lead)):
            return timesteps[column]
    return timesteps[best]


def _table(values: Mapping[Cell, float]) -> tuple[list[tuple[str, int]], list[int], NDArray[np.float64]]:
    """Return layers with poolings, ascending timesteps, and the values of their cells: NaN where there is none."""
    pairs = list(dict.fromkeys((cell.layer, cell.pooling) for cell in values))
    timesteps = sorted({cell.timestep for cell in values})
    table = np.full((len(pairs), len(timesteps)), np.nan)
    for cell, value in values.items():
        table[pairs.index((cell.layer, cell.pooling)), timesteps.index(cell.timestep)] = value
    return pairs, timesteps, table
