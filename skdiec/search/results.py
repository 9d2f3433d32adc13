"""What a search found, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from skdiec.activations import Cell


@dataclass(frozen=True)
class SearchStage:
    """One round of a search: what was scored, and at what cost.

    Attributes
    ----------
    n_images : int
        Images that cells were scored on.
    n_draws : int
        Noise draws that scores are averaged over.
    cells : tuple of Cell
        What was scored.
    scores : dict of str to ndarray of shape (n_layers, n_timesteps, n_poolings)
        As in `SearchResult`; NaN where a cell was not scored.
    n_forward : int
        Images that went through the network, noise draws counted.
    n_evaluations : float
        The same in whole passes: an image counts as the share of the network's work up to the deepest layer that
        was wanted.
    seconds : float
        Wall time.
    """

    n_images: int
    n_draws: int
    cells: tuple[Cell, ...]
    scores: Mapping[str, NDArray[np.float64]]
    n_forward: int
    n_evaluations: float
    seconds: float


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes
    ----------
    best : Cell
        COL, COT and the pooling: the cell with the highest criterion in `final`, or in the last stage without one.
    layers : tuple of str
        First axis of the scores, in order of execution.
    timesteps : tuple of int
        Second axis of the scores.
    poolings : tuple of int
        Third axis of the scores.
    criterion : str
        The key of `scores` that chose.
    stages : tuple of SearchStage
        One for the grid; those of halving score fewer cells each, on more images.
    final : SearchStage, default=None
        The best cells of the last stage at its best timestep, compared on more images. None where there is nothing
        more to see.
    beside : sparse array of shape (n_images, n_images), default=None
        The neighbourhood graphs, on the subset, of the three cells that come after the best one, added up. None where
        there are no others, for other criteria than the consensus, and once an estimator has used it.
    """

    best: Cell
    layers: tuple[str, ...]
    timesteps: tuple[int, ...]
    poolings: tuple[int, ...]
    criterion: str
    stages: tuple[SearchStage, ...]
    final: SearchStage | None = None
    beside: sparse.csr_array | None = field(default=None, repr=False, compare=False)

    @property
    def scores(self) -> Mapping[str, NDArray[np.float64]]:
        """``"scott"`` and the criterion's values, each of shape (n_layers, n_timesteps, n_poolings).

        Higher is better throughout (cuts with their sign turned). NaN where a layer's map has fewer pixels than the
        pooling has cells, and where a cell was dropped before the last stage, whose scores these are. Those of `final`
        are not among them.
        """
        return self.stages[-1].scores

    @property
    def n_images(self) -> int:
        """Images of the subset."""
        return self.stages[-1].n_images

    @property
    def n_forward(self) -> int:
        """Images that went through the network, noise draws counted."""
        return sum(stage.n_forward for stage in self._all_stages)

    @property
    def n_evaluations(self) -> float:
        """The same in whole passes; see `SearchStage`."""
        return sum(stage.n_evaluations for stage in self._all_stages)

    @property
    def seconds(self) -> float:
        """Wall time."""
        return sum(stage.seconds for stage in self._all_stages)

    def position(self, cell: Cell) -> tuple[int, int, int]:
        """Return the place of a cell in the tables of scores.

        Parameters
        ----------
        cell : Cell
            One of the grid.

        Returns
        -------
        tuple of int
            Along layers, timesteps and poolings.
        """
        return (
            self.layers.index(cell.layer),
            self.timesteps.index(cell.timestep),
            self.poolings.index(cell.pooling),
        )

    @property
    def _all_stages(self) -> tuple[SearchStage, ...]:
        return self.stages if self.final is None else (*self.stages, self.final)
