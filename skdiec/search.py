"""Search of the layer x timestep x pooling space for the cell that clusters best, without labels."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy import sparse
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits

from skdiec.activations import Cell
from skdiec.graph import best_partition, kmeans_labels, knn_graph
from skdiec.scores import balanced_cut, modularity, normalized_cut, relative_cut, scott_score

logger = logging.getLogger(__name__)

Extract = Callable[[Sequence[Cell], int], Mapping[Cell, NDArray[np.float32]]]
Criterion = str | Callable[[NDArray, NDArray], float]

TRUSTED_SHARE = 0.25
"""Share of the cells, those with the highest Scott scores, whose graphs make the consensus graph."""


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes
    ----------
    best : Cell
        The cell with the highest criterion: COL, COT and the pooling.
    layers : tuple of str
        First axis of the scores, in order of execution.
    timesteps : tuple of int
        Second axis of the scores.
    poolings : tuple of int
        Third axis of the scores.
    scores : dict of str to ndarray of shape (n_layers, n_timesteps, n_poolings)
        ``"scott"`` and the criterion's values, higher is better throughout (cuts with their sign
        turned). NaN where a layer's map has fewer pixels than the pooling has cells.
    criterion : str
        The key of `scores` that chose.
    n_images : int
        Images of the subset.
    n_forward : int
        Images that went through the network, noise draws counted.
    seconds : float
        Wall time.
    """

    best: Cell
    layers: tuple[str, ...]
    timesteps: tuple[int, ...]
    poolings: tuple[int, ...]
    scores: Mapping[str, NDArray[np.float64]]
    criterion: str
    n_images: int
    n_forward: int
    seconds: float


def grid_search(
    extract: Extract,
    *,
    n_images: int,
    n_draws: int,
    layers: Mapping[str, tuple[int, int, int]],
    timesteps: Sequence[int],
    poolings: Sequence[int],
    n_clusters: int,
    criterion: Criterion = "consensus",
    n_components: int = 32,
    n_neighbors: int = 10,
    n_init: int = 3,
    balance: float = 1.0,
    n_jobs: int | None = None,
    seed: int = 0,
) -> SearchResult:
    """Score every cell of the grid on a subset of the images (Algorithm A1 of the paper).

    For every timestep, one pass for each noise draw yields all layers. The features of each cell are reduced by
    PCA to the same number of dimensions and clustered by k-means, which gives the Scott score; for other
    criteria, by the partition with the lowest balanced cut of their neighbourhood graph. Scores are averaged over
    draws.

    A partition's cut or modularity on its own graph says as much of the graph as of the partition, so that graphs which
    are easy to cut win. The criterion ``"consensus"`` judges all partitions on one graph: the sum of the
    neighbourhood graphs of the quarter of the cells with the highest Scott scores. Its value is the modularity there
    (`skdiec.scores.modularity`). This departs from the paper, which chooses by the Scott score alone.

    Parameters
    ----------
    extract : callable
        ``extract(cells, draw)`` returns the features of all images of the subset for cells of one timestep and one
        noise draw, as a mapping of cells to (m, d) matrices.
    n_images : int
        Size m of the subset.
    n_draws : int
        Noise draws.
    layers : mapping of str to tuple of int
        Candidate layers with the ``(channels, height, width)`` of their maps.
    timesteps, poolings : sequence of int
        Candidates.
    n_clusters : int
    criterion : {"consensus", "relative_cut", "normalized_cut", "scott"} or callable, default="consensus"
        A callable gets ``(features, labels)`` and returns a float, higher is better, as scikit-learn's
        unsupervised metrics do.
    n_components : int, default=32
        Dimensions that the Scott score is computed in ("PCA alignment"); fewer where the narrowest cell has fewer. The
        neighbourhood graph uses up to four times as many.
    n_neighbors, n_init, n_jobs
        See `DiffusionEmbeddedClustering`.
    balance : float, default=1.0
        Weight of cluster sizes in the choice of partitions; see `skdiec.scores.balanced_cut`.
    seed : int, default=0

    Returns
    -------
    SearchResult
    """
    started = time.monotonic()
    key = criterion if isinstance(criterion, str) else getattr(criterion, "__name__", "criterion")
    names = list(layers)
    shape = (len(names), len(timesteps), len(poolings))
    scores = {name: np.full(shape, np.nan) for name in ("scott", key)}
    pairs = [
        (layer, pooling)
        for layer in names
        for pooling in poolings
        if pooling <= min(layers[layer][1:])  # more cells than pixels would only repeat values
    ]
    if not pairs:
        raise ValueError(
            f"pooling must be at most the side of a layer's map; got {list(poolings)} "
            f"for maps (channels, height, width) of {dict(layers)}"
        )
    n_components = min(n_components, n_images, *(layers[layer][0] * pooling**2 for layer, pooling in pairs))
    consensus = _Consensus(n_graphs=max(1, round(TRUSTED_SHARE * len(pairs) * len(timesteps))))
    for column, timestep in enumerate(timesteps):
        cells = [Cell(layer, timestep, pooling) for layer, pooling in pairs]
        draws: list[list[_Scored]] = []
        for draw in range(n_draws):
            features = extract(cells, draw)
            draws.append(
                Parallel(n_jobs=n_jobs)(
                    delayed(_score)(
                        features[cell], n_clusters, criterion, n_components, n_neighbors, n_init, balance, seed
                    )
                    for cell in cells
                )
            )
        for cell, scored in zip(cells, zip(*draws, strict=True), strict=True):
            position = (names.index(cell.layer), column, poolings.index(cell.pooling))
            scores["scott"][position] = np.mean([draw.scott for draw in scored])
            if criterion == "consensus":
                consensus.add(position, scores["scott"][position], scored)
            else:
                scores[key][position] = np.mean([draw.value for draw in scored])
        shown = "scott" if criterion == "consensus" else key
        values = scores[shown][:, column]
        logger.info("timestep %d: best %s %.4f", timestep, shown, values[np.isfinite(values)].max(initial=-np.inf))
    for position, value in consensus.values():
        scores[key][position] = value
    if not np.isfinite(scores[key]).any():
        raise ValueError(f"criterion {key!r} gave no finite value for any cell")
    row, column, depth = np.unravel_index(np.nanargmax(scores[key]), shape)
    return SearchResult(
        best=Cell(names[row], timesteps[column], poolings[depth]),
        layers=tuple(names),
        timesteps=tuple(timesteps),
        poolings=tuple(poolings),
        scores=scores,
        criterion=key,
        n_images=n_images,
        n_forward=n_images * len(timesteps) * n_draws,
        seconds=time.monotonic() - started,
    )


@dataclass(frozen=True)
class _Scored:
    """Scott score and criterion of one cell and draw; partition and graph where the consensus has yet to judge."""

    scott: float
    value: float = np.nan
    labels: NDArray[np.int32] | None = None
    graph: sparse.csr_array | None = None


class _Consensus:
    """Judges the partitions of all cells on the graphs of those with the highest Scott scores.

    Parameters
    ----------
    n_graphs : int
        Cells whose graphs count; no more are held.
    """

    def __init__(self, n_graphs: int) -> None:
        self._n_graphs = n_graphs
        self._trusted: list[tuple[float, sparse.csr_array]] = []
        self._partitions: dict[tuple[int, int, int], list[NDArray[np.int32]]] = {}

    def add(self, position: tuple[int, int, int], scott: float, draws: Sequence[_Scored]) -> None:
        """Add a cell by its position among the scores, its mean Scott score and what its draws gave."""
        self._partitions[position] = [draw.labels for draw in draws]
        self._trusted.append((scott, sum(draw.graph for draw in draws)))
        self._trusted = sorted(self._trusted, key=lambda entry: -entry[0])[: self._n_graphs]

    def values(self) -> Iterator[tuple[tuple[int, int, int], float]]:
        """Yield each cell's position and the modularity of its partitions, averaged over draws."""
        graph = sum(graph for _, graph in self._trusted)
        for position, partitions in self._partitions.items():
            yield position, float(np.mean([modularity(graph, labels) for labels in partitions]))


def reduce_features(features: NDArray[np.float32], n_components: int, *, max_exact: int = 4096, seed: int = 0) -> PCA:
    """Fit the PCA that brings features to at most `n_components` dimensions.

    Parameters
    ----------
    features : ndarray of shape (n, d)
    n_components : int
        At most min(n, d) are kept.
    max_exact : int, default=4096
        Wider features are reduced by the randomised solver.
    seed : int, default=0
        Used where the solver is a randomised one.

    Returns
    -------
    sklearn.decomposition.PCA
    """
    n_components = min(n_components, *features.shape)
    # The covariance solver is exact and the fastest of them, but its cost grows with the cube of the width.
    solver = "covariance_eigh" if features.shape[1] <= max_exact else "randomized"
    return PCA(n_components, svd_solver=solver, random_state=seed).fit(features)


# Matrices of a subset are small: a second thread costs more than it computes, many times more on a busy machine.
@threadpool_limits.wrap(limits=1)
def _score(
    features: NDArray[np.float32],
    n_clusters: int,
    criterion: Criterion,
    n_components: int,
    n_neighbors: int,
    n_init: int,
    balance: float,
    seed: int,
) -> _Scored:
    """Score the features of one cell and draw."""
    reduced = reduce_features(features, 4 * n_components, max_exact=256, seed=seed).transform(features)
    aligned = reduced[:, :n_components]  # components are nested: the first ones are those of a smaller PCA
    scott = scott_score(aligned, kmeans_labels(aligned, n_clusters, n_init=n_init, seed=seed))
    if criterion == "scott":
        return _Scored(scott, scott)
    graph = knn_graph(reduced, n_neighbors)
    cut = partial(balanced_cut, n_clusters=n_clusters, balance=balance)
    partition = best_partition(reduced, graph, n_clusters, cut, n_init=n_init, seed=seed)
    if criterion == "consensus":
        return _Scored(scott, labels=partition.labels, graph=graph)
    if criterion == "normalized_cut":
        return _Scored(scott, -normalized_cut(graph, partition.labels))
    if criterion == "relative_cut":
        return _Scored(scott, -relative_cut(graph, partition.labels, n_clusters, balance=balance))
    return _Scored(scott, float(criterion(reduced, partition.labels)))  # type: ignore[operator]
