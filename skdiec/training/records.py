"""What is kept of a training: its history, the best state, and embeddings on the way."""

from __future__ import annotations

import copy
import logging

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.metrics import adjusted_rand_score
from torch import Tensor, nn

from skdiec.messages import warn
from skdiec.scores import balanced_cut
from skdiec.training.embedders import Embedder

logger = logging.getLogger("skdiec.training")  # what verbose fits name

DRIFT_TOLERANCE = 0.1
"""Relative rise of the denoising loss past which a warning says that generation suffers."""

CUT_TOLERANCE = 0.1
"""How far above the lowest cut seen, relatively, an epoch may be for its state to be kept. Collapse raises the cut many
times over; within this range the later epochs were the more accurate ones (USPS: 0.983 against 0.981)."""

SNAPSHOT_ROWS = 2000
"""Rows, at most, whose embeddings are kept: as many as a map can show."""


class Tracker:
    """Keeps the history, and the best state seen."""

    def __init__(
        self,
        embedder: Embedder,
        centers: nn.Parameter,
        graph: sparse.csr_array,
        initial_labels: NDArray[np.integer],
        n_clusters: int,
        balance: float,
    ) -> None:
        self._embedder, self._centers, self._graph = embedder, centers, graph
        self._n_clusters, self._balance = n_clusters, balance
        self._initial_labels = initial_labels
        self._first_cut = self._cut(initial_labels)  # of the state before training
        self._first_agreement = 1.0
        self._rows: list[dict[str, float]] = []
        self._sizes: list[NDArray] = []
        self._lowest_cut = np.inf
        self.best_epoch = 0

    def record(self, labels: NDArray, previous: NDArray, means: dict[str, float]) -> float:
        """Add an epoch and return the share of rows that changed cluster."""
        sizes = np.bincount(labels, minlength=self._n_clusters)
        cut = self._cut(labels)
        changed = float(np.mean(labels != previous))
        # Before training, rows are with the nearest mean. Of classes of unlike size that can have a lower cut than the
        # initial partition, and be worse: it must not outdo the epochs that have learned this partition, be it without
        # a tiny cluster, whose loss raises the cut.
        agreement = adjusted_rand_score(self._initial_labels, labels)
        if not self._rows:
            self._first_cut, self._first_agreement = max(cut, self._first_cut), agreement
        else:
            self._lowest_cut = min(self._lowest_cut, cut)
            if agreement > self._first_agreement:
                self._first_cut = np.inf
        if cut <= (1 + CUT_TOLERANCE) * min(self._first_cut, self._lowest_cut):
            self.best_epoch = len(self._rows)
            self._state = copy.deepcopy(self._embedder.module.state_dict()), self._centers.detach().clone()
        self._sizes.append(sizes)
        self._rows.append({**means, "cut": cut, "changed": changed})
        loss = means.get("loss", float("nan"))
        if len(self._rows) == 1:
            logger.info("before training: cut %.4f, %.2f %% changed", cut, 100 * changed)
        else:
            logger.info("epoch %d: loss %.4f, cut %.4f, %.2f %% changed", len(self._rows) - 1, loss, cut, 100 * changed)
        return changed

    def _cut(self, labels: NDArray) -> float:
        return balanced_cut(self._graph, labels, self._n_clusters, balance=self._balance)

    def restore(self) -> None:
        """Put embedder and centres into the best state."""
        self._embedder.module.load_state_dict(self._state[0])
        self._centers.data.copy_(self._state[1])

    def as_arrays(self) -> dict[str, NDArray[np.float64]]:
        """Return the history; see `skdiec.training.TrainingResult`."""
        names = ("loss", "kl", "graph", "entropy", "denoising", "cut", "changed")
        arrays = {name: np.array([row.get(name, np.nan) for row in self._rows]) for name in names}
        return {**arrays, "cluster_sizes": np.array(self._sizes)}

    def warn(self) -> None:
        """Tell the user of what went wrong on the way."""
        first, last = self._sizes[0], self._sizes[-1]
        if np.sum(last == 0) > np.sum(first == 0):
            problem = f"{int(np.sum(last == 0))} clusters were emptied"
        elif last.max() > max(0.5 * last.sum(), 2 * first.max()):
            problem = "one cluster took most images"
        else:
            problem = ""
        if problem:
            warn(
                f"training collapsed: {problem} (sizes {last.tolist()}, at the start {first.tolist()}). "
                f"The state of epoch {self.best_epoch} is kept; a larger gamma or a smaller alpha helps"
            )
        drift = np.array([row["denoising"] for row in self._rows])
        if drift[-1] > (1 + DRIFT_TOLERANCE) * drift[0]:
            warn(
                f"generative drift: the denoising loss rose from {drift[0]:.4f} to {drift[-1]:.4f}; "
                "lower alpha or backbone_learning_rate, or raise denoising_weight"
            )


class Snapshots:
    """Keeps embeddings of some rows after epochs that are evenly spaced, wherever training ends."""

    def __init__(self, count: int, n_rows: int, seed: int) -> None:
        rows = np.random.default_rng(seed).permutation(n_rows)[: SNAPSHOT_ROWS if count else 0]
        self.rows = np.sort(rows).astype(np.int64)
        self._count, self._stride = count, 1
        self._kept: dict[int, NDArray[np.float32]] = {}

    def record(self, epoch: int, z: Tensor) -> None:
        """Keep the embeddings after an epoch, of shape (n, d) for all rows."""
        if not self._count:
            return
        # Which epochs are evenly spaced shows when training has ended: until then, one of `stride` is kept, and the
        # last. At most four times as many as are asked for, so that long trainings take no more memory.
        self._kept = {kept: rows for kept, rows in self._kept.items() if kept % self._stride == 0}
        self._kept[epoch] = z[torch.as_tensor(self.rows, device=z.device)].float().cpu().numpy()
        if len(self._kept) > 4 * self._count:
            self._stride *= 2

    def chosen(self) -> dict[int, NDArray[np.float32]]:
        """Return the embeddings after epochs that are evenly spaced."""
        epochs = np.array(list(self._kept), dtype=np.int64)
        if not len(epochs):
            return {}
        # From the last one back: a single snapshot is of the end.
        wanted = np.linspace(epochs[-1], 0, min(self._count, len(epochs)))
        nearest = {int(epochs[np.abs(epochs - epoch).argmin()]) for epoch in wanted}
        return {epoch: self._kept[epoch] for epoch in sorted(nearest)}
