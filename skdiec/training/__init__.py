"""Training of the clustering embedding: a residual head over cached features, or the dual branch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn

from skdiec import dec
from skdiec.messages import warn
from skdiec.training.embedders import BackboneEmbedder, BackboneFeatures, Embedder, FrozenEmbedder
from skdiec.training.modules import EmbeddingModel, Projection, ResidualHead
from skdiec.training.records import Snapshots, Tracker

__all__ = [
    "BackboneEmbedder",
    "BackboneFeatures",
    "Embedder",
    "EmbeddingModel",
    "FrozenEmbedder",
    "Projection",
    "ResidualHead",
    "TrainingConfig",
    "TrainingResult",
    "TrainingState",
    "train",
]

_BLOCK_EDGES = 2**18


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training; `DiffusionEmbeddedClustering` explains them."""

    alpha: float = 1.0
    beta: float = 3.0
    gamma: float = 1.0
    nu: float = 1.0
    max_epochs: int = 20
    warmup_epochs: int = 5
    batch_size: int = 128
    learning_rate: float = 3e-3
    backbone_learning_rate: float = 1e-4
    tol: float = 1e-4
    update_interval: int = 1
    n_snapshots: int = 0
    seed: int = 0


@dataclass(frozen=True)
class TrainingResult:
    """What a training ended with; the embedder holds the best state.

    Attributes
    ----------
    centers : ndarray of shape (k, d), float64
        Cluster centres in the embedding.
    history : dict of str to ndarray
        One entry an epoch, the start before any training first. ``"cluster_sizes"`` has shape (epochs + 1, k); the
        others have shape (epochs + 1,): ``"loss"``, ``"kl"``, ``"graph"``, ``"entropy"``, ``"denoising"`` (NaN where
        there is none), ``"cut"`` (balanced, of the assignment on the graph) and ``"changed"`` (share of rows that
        changed cluster).
    n_epochs : int
        Epochs trained.
    best_epoch : int
        Epoch whose state was kept.
    snapshots : dict of int to ndarray of shape (n_kept, d), float32
        Embeddings of some rows after `n_snapshots` epochs, evenly spaced from 0, before any training, to the last.
    snapshot_rows : ndarray of shape (n_kept,), int64
        Which rows, in ascending order; none where there are no snapshots.
    """

    centers: NDArray[np.float64]
    history: Mapping[str, NDArray[np.float64]]
    n_epochs: int
    best_epoch: int
    snapshots: Mapping[int, NDArray[np.float32]]
    snapshot_rows: NDArray[np.int64]


@dataclass(frozen=True)
class TrainingState:
    """Where a training stands at the end of an epoch.

    Attributes
    ----------
    epoch : int
    centers : ndarray of shape (k, d), float64
    labels : ndarray of shape (n,), int64
        Cluster of each row.
    is_last : bool
        Whether the training ends here.
    """

    epoch: int
    centers: NDArray[np.float64]
    labels: NDArray[np.int64]
    is_last: bool


def train(
    embedder: Embedder,
    graph: sparse.csr_array,
    initial_labels: NDArray[np.integer],
    n_clusters: int,
    config: TrainingConfig,
    report: Callable[[TrainingState], bool] | None = None,
) -> TrainingResult:
    r"""Minimise L = L_Re + alpha L_KL + beta L_graph + gamma L_ent (section 3.3 of DiEC).

    Centres start at the mean embedding of each initial cluster. For `warmup_epochs` the target distribution is the
    initial partition itself: unlike the paper's k-means, a graph's partition is not what lies nearest to its means,
    and an earlier head lost its gain without this step. From then on the target distribution is computed over all
    rows every `update_interval` epochs, and with it the weights of the graph's edges: an edge counts as much as the
    soft assignments of its ends agree, so edges between clusters fade ("adaptive" graph). L_graph compares each row
    with one neighbour as it was assigned when the epoch began, held fixed like the target: each is the other's
    neighbour in turn, and a step embeds half as many rows.

    Training ends after `max_epochs`, or when at most a share `tol` of the rows changed cluster in an epoch. The last
    state is kept whose assignment has a balanced cut (`skdiec.scores.balanced_cut`, with weight gamma) of at most 1.1
    times the lowest seen, so that of a collapse nothing stays. The state before training counts with the cut of the
    initial partition where this is higher, and no longer once an epoch agrees better with that partition.

    Parameters
    ----------
    embedder : Embedder
        Ends in the kept state.
    graph : sparse array of shape (n, n)
        Neighbourhood graph of the frozen features.
    initial_labels : integer array of shape (n,)
    n_clusters : int
    config : TrainingConfig
    report : callable, default=None
        Called at the end of each epoch with the state, while the embedder is in it. Where it returns True, the training
        ends.

    Returns
    -------
    TrainingResult

    Warns
    -----
    UserWarning
        Where clusters were emptied, one swallowed most images, or the denoising loss rose.
    """
    device = next(embedder.module.parameters()).device
    labels = np.asarray(initial_labels)
    start = embedder.embed_all()
    centers = nn.Parameter(_means(start, labels, n_clusters))
    optimizer = _optimizer(embedder, centers, config)
    edges = _Edges.of(graph)
    generator = torch.Generator(device).manual_seed(config.seed)
    order = torch.Generator().manual_seed(config.seed)

    log_q = _log_assign(start, centers.detach(), config.nu).cpu()
    initial = torch.nn.functional.one_hot(torch.as_tensor(initial_labels, dtype=torch.long), n_clusters).float()
    tracker = Tracker(embedder, centers, graph, labels, n_clusters, config.gamma)
    tracker.record(log_q.argmax(1).numpy(), labels, {"denoising": embedder.drift()})
    snapshots = Snapshots(config.n_snapshots, len(labels), config.seed)
    snapshots.record(0, start)
    labels = log_q.argmax(1).numpy()
    p, edge_weight = initial, edges.weights(initial)
    for epoch in range(1, config.max_epochs + 1):
        if epoch > config.warmup_epochs and (epoch - 1 - config.warmup_epochs) % config.update_interval == 0:
            q = log_q.exp()
            p, edge_weight = dec.target_distribution(q), edges.weights(q)
        sums: dict[str, Tensor] = {}
        for rows in torch.randperm(len(labels), generator=order).split(config.batch_size):
            neighbors, weight = _sample_neighbors(rows, edges.first, edges.tails, edge_weight, order)
            kept = log_q[neighbors].to(device), weight.to(device), p[rows].to(device)
            terms = _losses(embedder, centers, rows, *kept, config, generator)
            optimizer.zero_grad(set_to_none=True)
            terms["loss"].backward()
            optimizer.step()
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value.detach() * len(rows)
        means = {name: float(total) / len(labels) for name, total in sums.items()}
        z = embedder.embed_all()
        log_q = _log_assign(z, centers.detach(), config.nu).cpu()
        # The loss is that of the weights before the last step, which the assignments and the weights are of.
        if not (np.isfinite(means["loss"]) and _are_finite([log_q, centers, *embedder.module.parameters()])):
            warn(
                f"training diverged in epoch {epoch}, where the loss became {means['loss']:g}: keeping epoch "
                f"{tracker.best_epoch}; lower learning_rate, which is {config.learning_rate:g}"
            )
            break
        snapshots.record(epoch, z)
        previous, labels = labels, log_q.argmax(1).numpy()
        means["denoising"] = embedder.drift()
        changed = tracker.record(labels, previous, means)
        is_last = epoch == config.max_epochs or (changed <= config.tol and epoch > config.warmup_epochs)
        if report is not None:
            is_last |= report(TrainingState(epoch, _as_array(centers), labels, is_last))
        if is_last:
            break
    tracker.restore()
    tracker.warn()
    history = tracker.as_arrays()
    return TrainingResult(
        centers=_as_array(centers),
        history=history,
        n_epochs=len(history["loss"]) - 1,  # without one that ended in a loss that is not finite
        best_epoch=tracker.best_epoch,
        snapshots=snapshots.chosen(),
        snapshot_rows=snapshots.rows,
    )


def _optimizer(embedder: Embedder, centers: nn.Parameter, config: TrainingConfig) -> torch.optim.Optimizer:
    backbone = list(embedder.backbone.parameters()) if embedder.backbone is not None else []
    known = set(backbone)
    groups: list[dict[str, Any]] = [
        {"params": [*(weight for weight in embedder.module.parameters() if weight not in known), centers]},
        {"params": backbone, "lr": config.backbone_learning_rate},
    ]
    return torch.optim.Adam(groups, lr=config.learning_rate, fused=True)


@dataclass(frozen=True)
class _Edges:
    """The edges of a graph, ordered by their heads."""

    heads: Tensor
    tails: Tensor
    first: Tensor
    """The first edge of each row, and one past the last."""
    weight: Tensor

    @classmethod
    def of(cls, graph: sparse.csr_array) -> _Edges:
        edges = sparse.coo_array(graph)
        return cls(
            torch.as_tensor(edges.row, dtype=torch.long),
            torch.as_tensor(edges.col, dtype=torch.long),
            torch.as_tensor(sparse.csr_array(graph).indptr, dtype=torch.long),
            torch.as_tensor(edges.data, dtype=torch.float32),
        )

    def weights(self, q: Tensor) -> Tensor:
        return _edge_weights(self.weight, q, self.heads, self.tails)


def _losses(
    embedder: Embedder,
    centers: Tensor,
    rows: Tensor,
    log_q_neighbors: Tensor,
    weight: Tensor,
    p: Tensor,
    config: TrainingConfig,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Compute each term on one batch, and their weighted sum."""
    log_q = _log_assign(embedder.embed(rows), centers, config.nu)
    terms = {
        "kl": dec.kl_loss(log_q, p),
        "graph": dec.graph_loss(log_q, log_q_neighbors, weight),
        "entropy": dec.entropy_loss(log_q.exp()),
    }
    loss = config.alpha * terms["kl"] + config.beta * terms["graph"] + config.gamma * terms["entropy"]
    denoising = embedder.denoising_loss(rows, generator)
    terms["loss"] = loss if denoising is None else loss + denoising
    return terms


def _edge_weights(base: Tensor, q: Tensor, heads: Tensor, tails: Tensor) -> Tensor:
    """Return the weights of edges, each times how far the soft assignments of its ends agree."""
    # In blocks: all ends' assignments would take the number of edges times that of clusters.
    blocks = zip(heads.split(_BLOCK_EDGES), tails.split(_BLOCK_EDGES), strict=True)
    return base * torch.cat([(q[one] * q[other]).sum(1) for one, other in blocks])


def _sample_neighbors(
    rows: Tensor, first_edge: Tensor, tails: Tensor, edge_weight: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw one neighbour of each row, with the weight of its edge; a row without edges draws itself, at weight 0."""
    degree = first_edge[rows + 1] - first_edge[rows]
    offset = (torch.rand(len(rows), generator=generator) * degree).long().clamp_max((degree - 1).clamp_min(0))
    edge = (first_edge[rows] + offset).clamp_max(max(len(tails) - 1, 0))
    if not len(tails):
        return rows, torch.zeros(len(rows))
    has_edge = degree > 0
    return torch.where(has_edge, tails[edge], rows), edge_weight[edge] * has_edge


def _as_array(centers: Tensor) -> NDArray[np.float64]:
    return centers.detach().cpu().double().numpy().copy()


def _are_finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _log_assign(z: Tensor, centers: Tensor, nu: float) -> Tensor:
    return dec.log_soft_assign(z, centers, nu=nu, expanded=True)


def _means(z: Tensor, labels: NDArray[np.integer], n_clusters: int) -> Tensor:
    index = torch.as_tensor(labels, dtype=torch.long, device=z.device)
    sums = torch.zeros((n_clusters, z.shape[1]), dtype=z.dtype, device=z.device).index_add_(0, index, z)
    counts = torch.bincount(index, minlength=n_clusters).clamp_min(1)
    return sums / counts[:, None]
