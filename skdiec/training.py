"""Training of the clustering embedding: a residual head over cached features, or the dual branch."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn

from skdiec import dec
from skdiec.messages import warn
from skdiec.scores import balanced_cut
from skdiec.seeding import drawing_from_seed

logger = logging.getLogger(__name__)

DRIFT_TOLERANCE = 0.1
"""Relative rise of the denoising loss past which a warning says that generation suffers."""

CUT_TOLERANCE = 0.1
"""How far above the lowest cut seen, relatively, an epoch may be for its state to be kept. Collapse raises the cut many
times over; within this range the later epochs were the more accurate ones (USPS: 0.983 against 0.981)."""

SNAPSHOT_ROWS = 2000
"""Rows, at most, whose embeddings are kept: as many as a map can show."""

_DRIFT_IMAGES = 512
_BLOCK_ROWS = 1024
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


class ResidualHead(nn.Module):
    """z = h0 + g(h), where the MLP g starts at zero (section 3.3 of DiEC).

    Parameters
    ----------
    n_features : int
        Dimensions of h0, h and z.
    hidden : int, default=256
        Width of the hidden layer.
    seed : int, default=0
        Seeds the weights of the first layer; those of the second are zero.
    """

    def __init__(self, n_features: int, hidden: int = 256, *, seed: int = 0) -> None:
        super().__init__()
        with drawing_from_seed(seed):
            first, last = nn.Linear(n_features, hidden), nn.Linear(hidden, n_features)
        self.g = nn.Sequential(first, nn.GELU(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, h0: Tensor, h: Tensor) -> Tensor:
        """Return z for frozen features h0 and the head's input h, all of shape (n, n_features)."""
        return h0 + self.g(h)


class Projection(nn.Module):
    """The fixed affine map from pooled activations to h: PCA, then division by one scale.

    Parameters
    ----------
    mean : ndarray of shape (d,)
    components : ndarray of shape (q, d)
    scale : float
    """

    mean: Tensor
    components: Tensor

    def __init__(self, mean: NDArray, components: NDArray, scale: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float64))
        self.register_buffer("components", torch.as_tensor(components / scale, dtype=torch.float64))

    def forward(self, features: Tensor) -> Tensor:
        """Return h of shape (n, q) in the dtype of this module (float64 unless converted)."""
        return (features.to(self.mean.dtype) - self.mean) @ self.components.T

    def project(self, features: NDArray) -> NDArray[np.float64]:
        """Return h as an array; the module must be on the CPU."""
        with torch.inference_mode():
            blocks = torch.from_numpy(features).split(_BLOCK_ROWS)
            return torch.cat([self(block) for block in blocks]).numpy()


class Embedder(Protocol):
    """What `train` needs to know of a model."""

    @property
    def module(self) -> nn.Module:
        """What holds all that is trained; its state is what a best epoch keeps."""

    @property
    def backbone(self) -> nn.Module | None:
        """The part of it that has the backbone's learning rate; None where the backbone does not train."""

    def embed(self, rows: Tensor) -> Tensor:
        """Return z of some rows, shape (m, d), with gradient."""

    def embed_all(self) -> Tensor:
        """Return z of all rows, shape (n, d), without gradient."""

    def denoising_loss(self, rows: Tensor, generator: torch.Generator) -> Tensor | None:
        """Return L_Re of some rows at random timesteps, or None where the backbone does not train."""

    def drift(self) -> float:
        """Return the denoising loss on fixed images, timesteps and noise; NaN where the backbone does not train."""


class FrozenEmbedder:
    """A head over features that were computed once: training takes seconds, and generation is untouched.

    Parameters
    ----------
    h : ndarray of shape (n, d)
        Projected features of all rows.
    head : ResidualHead
        Trained in place, in float32.
    device : torch.device
    """

    def __init__(self, h: NDArray, head: ResidualHead, device: torch.device) -> None:
        self.module, self.backbone = head.float().to(device), None
        self._h = torch.as_tensor(h, dtype=torch.float32, device=device)

    def embed(self, rows: Tensor) -> Tensor:
        """Return z of some rows."""
        h = self._h[rows]
        return self.module(h, h)

    def embed_all(self) -> Tensor:
        """Return z of all rows."""
        with torch.no_grad():
            return torch.cat([self.module(block, block) for block in self._h.split(_BLOCK_ROWS)])

    def denoising_loss(self, rows: Tensor, generator: torch.Generator) -> None:
        """Return None: the backbone is frozen."""
        return

    def drift(self) -> float:
        """Return the denoising loss of fixed images, NaN where the backbone is frozen."""
        return float("nan")


class BackboneFeatures(Protocol):
    """What `BackboneEmbedder` needs of images and a trainable backbone."""

    @property
    def network(self) -> nn.Module:
        """The network that yields the features."""

    @property
    def batch_size(self) -> int:
        """Images per pass where no gradient is kept."""

    @property
    def n_draws(self) -> int:
        """Draws that features are averaged over."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __call__(self, rows: Tensor, draw: int | None = None) -> Tensor:
        """Return pooled activations of some rows, with gradient: of one draw, or the mean of all."""

    def denoising_loss(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Return the denoising loss of some rows at random timesteps."""


class BackboneEmbedder:
    """The paper's dual branch: the backbone trains with the head, held to denoising by L_Re.

    A step sees one draw, chosen at random, where `embed_all` averages all of them: a gradient through every draw would
    cost as many times more.

    Parameters
    ----------
    features : BackboneFeatures
        Its network is trained in place.
    projection : Projection
        From pooled activations to h.
    h0 : ndarray of shape (n, d)
        Projected features of the frozen backbone.
    head : ResidualHead or None
        None is direct fine-tuning: z = h.
    denoising_weight : float
        Weight of L_Re; 0 leaves it out.
    device : torch.device
    seed : int
        Seeds the choice of draws, and the noise that drift is measured with.
    """

    def __init__(
        self,
        features: BackboneFeatures,
        projection: Projection,
        h0: NDArray,
        head: ResidualHead | None,
        denoising_weight: float,
        device: torch.device,
        seed: int,
    ) -> None:
        self._features = features
        self._projection = copy.deepcopy(projection).float().to(device)
        self._head = head.float().to(device) if head is not None else None
        self._h0 = torch.as_tensor(h0, dtype=torch.float32, device=device)
        self._denoising_weight = denoising_weight
        self._device, self._seed = device, seed
        self._choice = torch.Generator().manual_seed(seed)
        self.backbone = features.network.requires_grad_(True)
        self.module = nn.ModuleList([self.backbone] if self._head is None else [self.backbone, self._head])

    def embed(self, rows: Tensor) -> Tensor:
        """Return z of some rows."""
        draw = int(torch.randint(self._features.n_draws, (), generator=self._choice))
        return self._embed(rows, self._features(rows, draw))

    def embed_all(self) -> Tensor:
        """Return z of all rows."""
        with torch.no_grad():
            blocks = torch.arange(len(self._features)).split(self._features.batch_size)
            return torch.cat([self._embed(rows, self._features(rows)) for rows in blocks])

    def _embed(self, rows: Tensor, features: Tensor) -> Tensor:
        h = self._projection(features)
        return h if self._head is None else self._head(self._h0[rows], h)

    def denoising_loss(self, rows: Tensor, generator: torch.Generator) -> Tensor | None:
        """Return the weighted L_Re of some rows."""
        if self._denoising_weight == 0:
            return None
        return self._denoising_weight * self._features.denoising_loss(rows, generator)

    def drift(self) -> float:
        """Return the denoising loss of fixed images, NaN where the backbone is frozen."""
        generator = torch.Generator(self._device).manual_seed(self._seed)
        # Smaller ones than of features: the loss is that of whole passes, which are not cut to the memory that is left.
        batches = torch.arange(min(len(self._features), _DRIFT_IMAGES)).split(min(self._features.batch_size, 128))
        with torch.no_grad():
            losses = [float(self._features.denoising_loss(rows, generator)) * len(rows) for rows in batches]
        return sum(losses) / sum(len(rows) for rows in batches)


class EmbeddingModel:
    """The fitted map from features to the embedding and to soft assignments, in float64 on the CPU.

    In float64 the result of a row does not depend, to float32's precision, on the rows beside it.

    Parameters
    ----------
    projection : Projection
    head : ResidualHead or None
    centers : ndarray of shape (k, d)
    nu : float
    """

    def __init__(self, projection: Projection, head: ResidualHead | None, centers: NDArray, nu: float) -> None:
        self.projection = projection.double().cpu()
        self.head = head.double().cpu().requires_grad_(False) if head is not None else None
        self.centers = np.asarray(centers, dtype=np.float64)
        self.nu = nu

    def embed(self, *features: NDArray) -> NDArray[np.float32]:
        """Return z, shape (n, d), of the frozen backbone's features and, where there is one, the trained backbone's."""
        blocks = zip(*(torch.from_numpy(matrix).split(_BLOCK_ROWS) for matrix in features), strict=True)
        with torch.inference_mode():
            return torch.cat([self._embed(*block) for block in blocks]).numpy()

    def _embed(self, *features: Tensor) -> Tensor:
        h = [self.projection(matrix) for matrix in features]
        z = h[-1] if self.head is None else self.head(h[0], h[-1])
        return z.float()

    def assign(self, z: NDArray) -> NDArray[np.float64]:
        """Return the soft assignments of embedded rows, shape (n, k)."""
        centers = torch.from_numpy(self.centers)
        # In blocks: the differences of rows and centres are held for one block only.
        blocks = torch.from_numpy(np.asarray(z, dtype=np.float64)).split(_BLOCK_ROWS)
        return torch.cat([dec.soft_assign(block, centers, nu=self.nu) for block in blocks]).numpy()


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
    times the lowest seen, so that of a collapse nothing stays.

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
    backbone = list(embedder.backbone.parameters()) if embedder.backbone is not None else []
    known = set(backbone)
    groups: list[dict[str, Any]] = [
        {"params": [*(weight for weight in embedder.module.parameters() if weight not in known), centers]},
        {"params": backbone, "lr": config.backbone_learning_rate},
    ]
    optimizer = torch.optim.Adam(groups, lr=config.learning_rate, fused=True)
    edges = sparse.coo_array(graph)
    heads = torch.as_tensor(edges.row, dtype=torch.long)
    tails = torch.as_tensor(edges.col, dtype=torch.long)
    first_edge = torch.as_tensor(sparse.csr_array(graph).indptr, dtype=torch.long)
    base_weight = torch.as_tensor(edges.data, dtype=torch.float32)
    generator = torch.Generator(device).manual_seed(config.seed)
    order = torch.Generator().manual_seed(config.seed)

    log_q = _log_assign(start, centers.detach(), config.nu).cpu()
    initial = torch.nn.functional.one_hot(torch.as_tensor(initial_labels, dtype=torch.long), n_clusters).float()
    tracker = _Tracker(embedder, centers, graph, n_clusters, config.gamma)
    tracker.record(log_q.argmax(1).numpy(), labels, {"denoising": embedder.drift()})
    snapshots = _Snapshots(config.n_snapshots, len(labels), config.seed)
    snapshots.record(0, start)
    labels = log_q.argmax(1).numpy()
    p, edge_weight = initial, _edge_weights(base_weight, initial, heads, tails)
    for epoch in range(1, config.max_epochs + 1):
        if epoch > config.warmup_epochs and (epoch - 1 - config.warmup_epochs) % config.update_interval == 0:
            q = log_q.exp()
            p, edge_weight = dec.target_distribution(q), _edge_weights(base_weight, q, heads, tails)
        sums: dict[str, Tensor] = {}
        for rows in torch.randperm(len(labels), generator=order).split(config.batch_size):
            neighbors, weight = _sample_neighbors(rows, first_edge, tails, edge_weight, order)
            terms = _losses(
                embedder,
                centers,
                rows,
                log_q[neighbors].to(device),
                weight.to(device),
                p[rows].to(device),
                config,
                generator,
            )
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


class _Tracker:
    """Keeps the history, and the best state seen."""

    def __init__(
        self, embedder: Embedder, centers: nn.Parameter, graph: sparse.csr_array, n_clusters: int, balance: float
    ) -> None:
        self._embedder, self._centers, self._graph = embedder, centers, graph
        self._n_clusters, self._balance = n_clusters, balance
        self._rows: list[dict[str, float]] = []
        self._sizes: list[NDArray] = []
        self._lowest_cut = np.inf
        self.best_epoch = 0

    def record(self, labels: NDArray, previous: NDArray, means: dict[str, float]) -> float:
        """Add an epoch and return the share of rows that changed cluster."""
        sizes = np.bincount(labels, minlength=self._n_clusters)
        cut = balanced_cut(self._graph, labels, self._n_clusters, balance=self._balance)
        changed = float(np.mean(labels != previous))
        self._lowest_cut = min(self._lowest_cut, cut)
        if cut <= (1 + CUT_TOLERANCE) * self._lowest_cut:
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

    def restore(self) -> None:
        self._embedder.module.load_state_dict(self._state[0])
        self._centers.data.copy_(self._state[1])

    def as_arrays(self) -> dict[str, NDArray[np.float64]]:
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


class _Snapshots:
    """Keeps embeddings of some rows after epochs that are evenly spaced, wherever training ends."""

    def __init__(self, count: int, n_rows: int, seed: int) -> None:
        rows = np.random.default_rng(seed).permutation(n_rows)[: SNAPSHOT_ROWS if count else 0]
        self.rows = np.sort(rows).astype(np.int64)
        self._count, self._stride = count, 1
        self._kept: dict[int, NDArray[np.float32]] = {}

    def record(self, epoch: int, z: Tensor) -> None:
        if not self._count:
            return
        # Which epochs are evenly spaced shows when training has ended: until then, one of `stride` is kept, and the
        # last. At most four times as many as are asked for, so that long trainings take no more memory.
        self._kept = {kept: rows for kept, rows in self._kept.items() if kept % self._stride == 0}
        self._kept[epoch] = z[torch.as_tensor(self.rows, device=z.device)].float().cpu().numpy()
        if len(self._kept) > 4 * self._count:
            self._stride *= 2

    def chosen(self) -> dict[int, NDArray[np.float32]]:
        epochs = np.array(list(self._kept), dtype=np.int64)
        if not len(epochs):
            return {}
        # From the last one back: a single snapshot is of the end.
        wanted = np.linspace(epochs[-1], 0, min(self._count, len(epochs)))
        nearest = {int(epochs[np.abs(epochs - epoch).argmin()]) for epoch in wanted}
        return {epoch: self._kept[epoch] for epoch in sorted(nearest)}
