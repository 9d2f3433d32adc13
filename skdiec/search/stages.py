"""The stages of a search: cells are extracted and scored, and what was found is kept for the next stage."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from skdiec import parallel
from skdiec.activations import Cell
from skdiec.search.results import SearchStage
from skdiec.search.scoring import N_BESIDE, Criterion, Scored, consensus

logger = logging.getLogger("skdiec.search")  # what verbose fits name

Extract = Callable[[Sequence[Cell], int, int], Mapping[Cell, NDArray[np.float32]]]

AHEAD_BELOW = 1000
"""On fewer images than this, the next features are extracted while cells are scored, by one thread then: that mostly
takes Python's time, which threads do not share well."""


@dataclass
class Stages:
    """Score cells, on more and more images. A cell starts from what was found for it before.

    Parameters
    ----------
    extract : callable
        As in `skdiec.search.search_cells`.
    score : callable
        ``score(features, before)``, as `skdiec.search.scoring.score` with its settings.
    position : mapping of Cell to tuple of int
        The place of each cell in the tables of scores.
    shape : tuple of int
        Of these tables.
    criterion : str or callable
    key : str
        The criterion's name.
    costs : mapping of str to float or None
    n_jobs : int or None
    report : callable, default=None
        As in `skdiec.search.search_cells`.
    n_later : int, default=0
        Passes of other objects, which `report` counts in each stage's total.

    Attributes
    ----------
    done : list of SearchStage
    """

    extract: Extract
    score: Callable[[NDArray[np.float32], Scored | None], Scored]
    position: Mapping[Cell, tuple[int, int, int]]
    shape: tuple[int, int, int]
    criterion: Criterion
    key: str
    costs: Mapping[str, float] | None
    n_jobs: int | None
    report: Callable[[int, int], object] | None = None
    n_later: int = 0
    done: list[SearchStage] = field(default_factory=list)
    _known: dict[tuple[Cell, int], Scored] = field(default_factory=dict)
    """Of cells and draws, on as many images as the last stage had."""
    _latest: dict[Cell, Scored] = field(default_factory=dict)

    def run(self, cells: Sequence[Cell], count: int, draws: int) -> dict[Cell, float]:
        """Score cells on some images and draws, which makes a stage.

        Parameters
        ----------
        cells : sequence of Cell
        count : int
            Images.
        draws : int

        Returns
        -------
        dict of Cell to float
            The finite values.

        Raises
        ------
        ValueError
            Where there are none.
        """
        started = time.monotonic()
        scores = {name: np.full(self.shape, np.nan) for name in ("scott", self.key)}
        if self.done and self.done[-1].n_images != count:
            self._known.clear()
        together: dict[int, list[Cell]] = {}
        for cell in cells:
            together.setdefault(cell.timestep, []).append(cell)
        new = [
            (each, draw) for each in together.values() for draw in range(draws) if (each[0], draw) not in self._known
        ]
        extracted = _extracted(self.extract, new, count)
        n_scored = 0
        for wanted in together.values():
            for draw in range(draws):
                if (wanted[0], draw) in self._known:
                    continue
                self._score_pass(wanted, draw, *next(extracted))
                n_scored += 1
                if self.report is not None:
                    self.report(n_scored, len(new) + self.n_later)
            self._enter(scores, wanted, draws)
        if self.criterion == "consensus":
            runs = {cell: [self._known[cell, draw] for draw in range(draws)] for cell in cells}
            for cell, value in consensus(runs).items():
                scores[self.key][self.position[cell]] = value
        values = {cell: float(scores[self.key][self.position[cell]]) for cell in cells}
        values = {cell: value for cell, value in values.items() if math.isfinite(value)}
        if not values:
            raise ValueError(f"criterion {self.key!r} gave no finite value for any cell")
        n_evaluations = sum((count * self._cost(wanted) for wanted, _ in new), 0.0)
        seconds = time.monotonic() - started
        self.done.append(SearchStage(count, draws, tuple(cells), scores, count * len(new), n_evaluations, seconds))
        return values

    def graph_beside(self, ranked: Sequence[Cell]) -> sparse.csr_array | None:
        """Add up the last stage's graphs of the cells that come after the best one.

        Parameters
        ----------
        ranked : sequence of Cell
            Those of the stage, the best one first.

        Returns
        -------
        sparse array of shape (n_images, n_images) or None
            Each graph is the mean of its draws. None without other cells, and where no graphs are kept.
        """
        after_best = ranked[1 : 1 + N_BESIDE]
        if self.criterion != "consensus" or not after_best:
            return None
        draws = self.done[-1].n_draws
        total: Any = sum(cast("Any", self._known[cell, draw].graph) for cell in after_best for draw in range(draws))
        return sparse.csr_array(total / draws)

    def _score_pass(
        self, wanted: Sequence[Cell], draw: int, features: Mapping[Cell, NDArray[np.float32]], busy: bool
    ) -> None:
        """Score all cells of one timestep and draw."""
        calls = [partial(self.score, features[cell], self._latest.get(cell)) for cell in wanted]
        # Temporary files' maps cannot be sent to other processes, threads share them.
        threads = any(isinstance(features[cell], np.memmap) for cell in wanted)
        scored = parallel.in_parallel(calls, self.n_jobs, threads=threads, busy=busy)
        self._latest.update(zip(wanted, scored, strict=True))
        self._known.update({(cell, draw): self._latest[cell] for cell in wanted})

    def _enter(self, scores: Mapping[str, NDArray[np.float64]], wanted: Sequence[Cell], draws: int) -> None:
        """Enter the means over draws, of the cells of one timestep, into the tables."""
        for cell in wanted:
            known = [self._known[cell, draw] for draw in range(draws)]
            scores["scott"][self.position[cell]] = np.mean([each.scott for each in known])
            scores[self.key][self.position[cell]] = np.mean([each.value for each in known])
        shown = "scott" if self.criterion == "consensus" else self.key
        best = max((scores[shown][self.position[cell]] for cell in wanted), key=lambda value: (value == value, value))
        logger.info("timestep %d: best %s %.4f", wanted[0].timestep, shown, best)

    def _cost(self, cells: Sequence[Cell]) -> float:
        """Return the share of a whole pass that reaches the deepest of some cells."""
        return max(self.costs[cell.layer] if self.costs else 1.0 for cell in cells)


def highest_first(values: Mapping[Cell, float]) -> list[Cell]:
    """Return cells, the one with the highest value first."""
    return sorted(values, key=lambda cell: -values[cell])


def _extracted(
    extract: Extract, passes: Sequence[tuple[Sequence[Cell], int]], count: int
) -> Iterator[tuple[Mapping[Cell, NDArray[np.float32]], bool]]:
    """Yield the features of each pass's cells and draw, and whether those of the next one are being extracted."""

    def run(each: tuple[Sequence[Cell], int]) -> Mapping[Cell, NDArray[np.float32]]:
        return extract(*each, count)

    if count >= AHEAD_BELOW:  # two passes' features would take twice the memory
        yield from ((run(each), False) for each in passes)
        return
    with ThreadPoolExecutor(1) as pool:
        for place, features in enumerate(parallel.in_order(pool, run, passes, ahead=1), start=1):
            yield features, place < len(passes)
