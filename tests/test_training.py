import dataclasses
import logging
import warnings
from itertools import chain

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from scipy.special import erf, rel_entr
from sklearn.metrics import adjusted_rand_score
from torch import nn

from skdiec import dec, training
from skdiec.graph import knn_graph
from skdiec.scores import balanced_cut
from skdiec.training import (
    BackboneEmbedder,
    EmbeddingModel,
    FrozenEmbedder,
    Projection,
    ResidualHead,
    TrainingConfig,
    train,
)

CPU = torch.device("cpu")
CLASSES = np.repeat([0, 1, 2], 20)
LATER = 1000
"""More epochs than any test trains."""


def blobs(seed=0, n_features=4):
    """Three groups that touch, of 20 rows each."""
    rng = np.random.default_rng(seed)
    return 3 * np.eye(n_features)[CLASSES] + rng.normal(size=(60, n_features))


def frozen(h, seed=0, hidden=16):
    return FrozenEmbedder(h, ResidualHead(h.shape[1], hidden, seed=seed), CPU)


def matching(n, seed=0):
    """A graph in which every row has one neighbour, so that no draw decides which is sampled."""
    weight = np.repeat(np.random.default_rng(seed).uniform(0.5, 1, n // 2), 2)
    rows = np.arange(n)
    return sparse.csr_array((weight, (rows, rows ^ 1)), shape=(n, n)), weight


def means(h, labels):
    return np.array([h[labels == k].mean(axis=0) for k in range(3)])


def soft_assign(z, centers, nu=1.0):
    q = np.array([[(1 + np.sum((row - center) ** 2) / nu) ** (-(nu + 1) / 2) for center in centers] for row in z])
    return q / q.sum(axis=1, keepdims=True)


def target(q):
    p = q**2 / q.sum(axis=0)
    return p / p.sum(axis=1, keepdims=True)


def terms(q, p, edge_weight, held=None):
    """The three terms of the loss over all rows, on the graph of `matching`; neighbours' assignments may be held."""
    agreement = np.sum(q * (q if held is None else held)[np.arange(len(q)) ^ 1], axis=1)
    mean = q.mean(axis=0)
    return {
        "kl": np.mean(rel_entr(p, q).sum(axis=1)),
        "graph": np.sum(-edge_weight * np.log(agreement)) / edge_weight.sum(),
        "entropy": np.sum(mean * np.log(mean)),
    }


class Scripted:
    """An embedder whose rows lie, epoch by epoch, where a script says; its state counts the epochs.

    `labels` and `drifts` have an entry for the start and for each epoch; the last one holds on.
    """

    corners = 5 * torch.eye(3)

    def __init__(self, labels, drifts=(float("nan"),), nan_from=LATER):
        self.module, self.backbone = nn.Linear(1, 1), None
        self.module.register_buffer("epoch", torch.tensor(-1))
        self.labels, self.drifts, self.nan_from = labels, drifts, nan_from

    def at(self, script):
        return script[min(int(self.module.epoch), len(script) - 1)]

    def embed(self, rows):
        scale = float("nan") if self.module.epoch + 1 >= self.nan_from else 0
        return self.corners[torch.as_tensor(self.at(self.labels))][rows] + scale * self.module.weight.sum()

    def embed_all(self):
        self.module.epoch += 1
        return self.corners[torch.as_tensor(self.at(self.labels))]

    def denoising_loss(self, rows, generator):
        return None

    def drift(self):
        return self.at(self.drifts)


SCRIPTED = TrainingConfig(learning_rate=1e-12, warmup_epochs=0, tol=-1.0)


def run_script(embedder, max_epochs, graph=None, n_clusters=3, **changes):
    labels = np.asarray(embedder.labels[0])
    graph = knn_graph(3 * np.eye(3)[labels], 3) if graph is None else graph
    return train(embedder, graph, labels, n_clusters, dataclasses.replace(SCRIPTED, max_epochs=max_epochs, **changes))


# Head and projection


def test_head_starts_at_the_identity_of_the_frozen_features(rng_untouched):
    with rng_untouched():
        head = ResidualHead(4, 16, seed=3)
    h0, h = torch.from_numpy(blobs()).float(), torch.from_numpy(blobs(seed=1)).float()
    assert torch.equal(head(h0, h), h0)
    assert head.g[0].weight.shape == (16, 4)
    assert torch.equal(head.g[0].weight, ResidualHead(4, 16, seed=3).g[0].weight)
    assert not torch.equal(head.g[0].weight, ResidualHead(4, 16, seed=4).g[0].weight)
    assert ResidualHead(4).g[0].out_features == 256


def test_head_adds_an_mlp_of_its_second_input():
    head = ResidualHead(4, 16).double()
    with torch.no_grad():
        head.g[2].weight.normal_(generator=torch.Generator().manual_seed(0))
        head.g[2].bias.fill_(0.5)
    h0, h = blobs(), blobs(seed=1)
    (w1, b1), (w2, b2) = [
        (layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in (head.g[0], head.g[2])
    ]
    hidden = h @ w1.T + b1
    expected = h0 + (0.5 * hidden * (1 + erf(hidden / np.sqrt(2)))) @ w2.T + b2
    assert_allclose(head(torch.from_numpy(h0), torch.from_numpy(h)).detach(), expected, rtol=1e-10)


def test_projection_is_affine(monkeypatch):
    monkeypatch.setattr("skdiec.training.modules.BLOCK_ROWS", 7)
    rng = np.random.default_rng(0)
    features, mean, components = (
        rng.normal(size=(60, 5)).astype(np.float32),
        rng.normal(size=5),
        rng.normal(size=(2, 5)),
    )
    projection = Projection(mean, components, 0.25)
    expected = (features - mean) @ components.T / 0.25
    found = projection.project(features)
    assert found.dtype == np.float64
    assert_allclose(found, expected, rtol=1e-12)
    assert_allclose(projection(torch.from_numpy(features)), expected, rtol=1e-12)
    single = projection.float()(torch.from_numpy(features))
    assert single.dtype == torch.float32
    assert_allclose(single, expected, rtol=1e-4, atol=1e-5)


# Embedders


def test_frozen_embedder_applies_its_head_to_the_features(monkeypatch):
    monkeypatch.setattr("skdiec.training.embedders.BLOCK_ROWS", 7)
    h = blobs()
    embedder = frozen(h)
    with torch.no_grad():
        embedder.module.g[2].weight.fill_(0.1)
    everything = torch.from_numpy(h).float()
    expected = embedder.module(everything, everything)
    found = embedder.embed_all()
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad
    rows = torch.tensor([59, 3, 3])
    torch.testing.assert_close(embedder.embed(rows), expected[rows])
    assert embedder.embed(rows).requires_grad
    assert embedder.denoising_loss(rows, torch.Generator()) is None
    assert np.isnan(embedder.drift())


class LinearFeatures:
    """A backbone of one linear layer, whose denoising loss is the mean of (network(x) - x - noise)^2.

    Draw k sees x + k; the mean of all draws is taken as that of draw 0.
    """

    def __init__(self, n=60, batch_size=8, noise=0.0, n_draws=1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = nn.Linear(4, 4, bias=False).requires_grad_(False)
        self.x = torch.from_numpy(blobs()[:n]).float()
        self.batch_size, self.noise, self.n_draws, self.passes = batch_size, noise, n_draws, []

    def __len__(self):
        return len(self.x)

    def __call__(self, rows, draw=None):
        self.passes.append(len(rows))
        return self.network(self.x[rows] + (draw or 0))

    def denoising_loss(self, rows, generator):
        noise = self.noise * torch.randn((len(rows), 4), generator=generator)
        return (self.network(self.x[rows]) - self.x[rows] - noise).square().mean()


def dual(features, *, head=True, denoising_weight=1.0, seed=0):
    """The dual branch over `features`, with its projection and frozen features h0."""
    projection = Projection(np.full(4, 0.5), np.eye(4)[:3], 0.5)
    h0 = projection.project(features(torch.arange(len(features))).detach().numpy())
    features.passes.clear()
    head = ResidualHead(3, 16, seed=seed) if head else None
    return BackboneEmbedder(features, projection, h0, head, denoising_weight, CPU, seed), projection, h0


def test_dual_branch_starts_at_the_frozen_features_and_trains_backbone_and_head():
    features = LinearFeatures()
    embedder, projection, h0 = dual(features)
    assert projection.mean.dtype == torch.float64  # the given one is left as it is
    assert_allclose(embedder.embed_all(), h0, rtol=1e-5, atol=1e-5)
    assert features.passes == [8] * 7 + [4]
    assert not embedder.embed_all().requires_grad
    assert all(parameter.requires_grad for parameter in features.network.parameters())
    assert {id(parameter) for parameter in embedder.module.parameters()} > {id(features.network.weight)}
    with torch.no_grad():
        embedder._head.g[2].weight.fill_(0.1)
        features.network.weight.mul_(1.5)
    rows = torch.tensor([7, 0, 7])
    h = torch.from_numpy(projection.project((features.x @ features.network.weight.T).detach().numpy())).float()
    expected = embedder._head(torch.from_numpy(h0).float()[rows], h[rows])
    torch.testing.assert_close(embedder.embed(rows), expected)
    embedder.embed(rows).sum().backward()
    assert features.network.weight.grad[:3].abs().min() > 0  # the projection drops the fourth
    assert embedder._head.g[2].weight.grad.abs().max() > 0


def test_a_step_of_the_dual_branch_sees_one_draw_chosen_at_random_and_embedding_all_of_them(rng_untouched):
    embedder, projection, h0 = dual(features := LinearFeatures(n_draws=3), head=False)
    rows = torch.tensor([7, 0])
    with rng_untouched(), torch.no_grad():
        seen = torch.stack([embedder.embed(rows) for _ in range(30)])
        again = torch.stack([dual(features, head=False)[0].embed(rows) for _ in range(2)])
    h = [projection.project(features(rows, draw).detach().numpy()) for draw in range(3)]
    chosen = [next(draw for draw in range(3) if np.allclose(z, h[draw], atol=1e-4)) for z in seen]
    assert set(chosen) == {0, 1, 2}
    assert_allclose(again[0], again[1])  # seeded
    assert_allclose(embedder.embed_all(), h0, rtol=1e-5, atol=1e-5)


def test_direct_fine_tuning_embeds_by_the_backbone_alone():
    features = LinearFeatures()
    embedder, projection, h0 = dual(features, head=False)
    assert [id(parameter) for parameter in embedder.module.parameters()] == [id(features.network.weight)]
    assert_allclose(embedder.embed_all(), h0, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        features.network.weight.mul_(2)
    h = projection.project(features(torch.arange(60)).detach().numpy())
    assert_allclose(embedder.embed_all(), h, rtol=1e-5, atol=1e-5)


def test_denoising_loss_is_weighted_and_left_out_at_weight_zero(monkeypatch):
    features = LinearFeatures(noise=1.0)
    rows = torch.arange(5)
    plain = features.denoising_loss(rows, torch.Generator().manual_seed(3))
    for weight in (1.0, 0.25):
        embedder, _, _ = dual(features, denoising_weight=weight)
        torch.testing.assert_close(embedder.denoising_loss(rows, torch.Generator().manual_seed(3)), weight * plain)
    embedder, _, _ = dual(features, denoising_weight=0)
    monkeypatch.setattr(features, "denoising_loss", None)
    assert embedder.denoising_loss(rows, torch.Generator()) is None


def test_drift_is_the_loss_on_fixed_images_and_noise(monkeypatch, rng_untouched):
    monkeypatch.setattr("skdiec.training.embedders._DRIFT_IMAGES", 20)
    features = LinearFeatures(noise=1.0)
    embedder, _, _ = dual(features, denoising_weight=0.25, seed=5)
    generator = torch.Generator().manual_seed(5)
    squares = []
    for rows in torch.arange(20).split(8):
        noise = torch.randn((len(rows), 4), generator=generator)
        squares.append((features.network(features.x[rows]) - features.x[rows] - noise).detach().square())
    with rng_untouched():
        drifts = [embedder.drift(), embedder.drift()]
    assert drifts == [pytest.approx(torch.cat(squares).mean().item(), rel=1e-5)] * 2
    assert drifts[0] == drifts[1] != dual(features, seed=6)[0].drift()
    few = LinearFeatures(n=5)
    expected = (few.network(few.x) - few.x).square().mean().item()
    assert dual(few)[0].drift() == pytest.approx(expected, rel=1e-5)


# The loss


def one_step(config, nu_z=None):
    """One epoch of one batch from the start, and what the loss is made of there."""
    h = blobs(n_features=3)[::5]
    labels = CLASSES[::5].copy()
    labels[[0, 5]] = 2
    graph, base = matching(12)
    result = train(frozen(h), graph, labels, 3, dataclasses.replace(config, max_epochs=1, batch_size=64, tol=-1.0))
    centers = means(h, labels)
    q = soft_assign(h, centers, config.nu)
    p, held = (np.eye(3)[labels],) * 2 if config.warmup_epochs else (target(q), q)
    weight = base * np.sum(held * held[np.arange(12) ^ 1], axis=1)
    return result, h, centers, p, weight


@pytest.mark.parametrize("warmup_epochs", [0, 1])
@pytest.mark.parametrize("nu", [1.0, 3.0])
def test_terms_of_the_loss_are_those_of_the_formulas(warmup_epochs, nu):
    config = TrainingConfig(alpha=0.5, beta=2.0, gamma=3.0, nu=nu, warmup_epochs=warmup_epochs)
    result, h, centers, p, weight = one_step(config)
    expected = terms(soft_assign(h, centers, nu), p, weight)
    for name, value in expected.items():
        assert result.history[name][1] == pytest.approx(value, rel=1e-4)
    loss = 0.5 * expected["kl"] + 2 * expected["graph"] + 3 * expected["entropy"]
    assert result.history["loss"][1] == pytest.approx(loss, rel=1e-4)
    for name in (*expected, "loss"):
        assert np.isnan(result.history[name][0])
    assert np.isnan(result.history["denoising"]).all()


@pytest.mark.parametrize("warmup_epochs", [0, 1])
@pytest.mark.parametrize("weights", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (0.5, 5, 0.1)])
@pytest.mark.parametrize("learning_rate", [1e-3, 1e-4])
def test_centres_step_against_the_gradient_of_the_weighted_loss(weights, learning_rate, warmup_epochs):
    config = TrainingConfig(*weights, learning_rate=learning_rate, warmup_epochs=warmup_epochs)
    result, h, centers, p, edge_weight = one_step(config)

    held = soft_assign(h, centers)  # neighbours are compared with as they were when the epoch began

    def loss(moved):
        found = terms(soft_assign(h, moved), p, edge_weight, held)
        return sum(weight * found[name] for weight, name in zip(weights, ("kl", "graph", "entropy"), strict=True))

    gradient = np.zeros_like(centers)
    for index in np.ndindex(centers.shape):
        nudge = np.zeros_like(centers)
        nudge[index] = 1e-5
        gradient[index] = (loss(centers + nudge) - loss(centers - nudge)) / 2e-5
    clear = np.abs(gradient) > 1e-4
    assert clear.sum() >= 6
    # The first step of Adam has the length of the learning rate in every coordinate.
    assert_allclose((result.centers - centers)[clear], -learning_rate * np.sign(gradient[clear]), rtol=0.02)


@pytest.mark.parametrize("denoising_weight", [0.0, 2.0])
def test_denoising_term_is_added_with_its_weight(denoising_weight):
    features = LinearFeatures()
    before = (features.network(features.x) - features.x).square().mean().item()
    embedder, _, h0 = dual(features, denoising_weight=denoising_weight)
    config = TrainingConfig(alpha=0.5, beta=2, gamma=3, max_epochs=1, batch_size=64)
    history = train(embedder, knn_graph(h0, 4), CLASSES, 3, config).history
    rest = 0.5 * history["kl"][1] + 2 * history["graph"][1] + 3 * history["entropy"][1]
    assert history["loss"][1] - rest == pytest.approx(denoising_weight * before, rel=1e-4, abs=1e-4)
    assert history["denoising"][0] == pytest.approx(before, rel=1e-5)
    after = (features.network(features.x) - features.x).square().mean().item()
    assert history["denoising"][1] == pytest.approx(after, rel=1e-5)


def test_denoising_term_holds_the_backbone_to_denoising():
    drifts = {}
    for weight in (0.0, 1.0):
        embedder, _, h0 = dual(LinearFeatures(), denoising_weight=weight)
        config = TrainingConfig(max_epochs=15, learning_rate=0.05, backbone_learning_rate=0.05, tol=-1.0)
        history = train(embedder, knn_graph(h0, 4), CLASSES, 3, config).history
        drifts[weight] = history["denoising"][-1] / history["denoising"][0]
    assert drifts[1.0] < 0.3
    assert drifts[0.0] > 0.8


# Epochs


@pytest.fixture
def watched(monkeypatch):
    """Lists p and the graph's weights as the losses get them, each with rows in ascending order of their values."""
    calls = {"p": [], "weight": [], "targets": []}
    kl_loss, graph_loss, target_distribution = dec.kl_loss, dec.graph_loss, dec.target_distribution

    def watched_kl(log_q, p):
        calls["p"].append(np.sort(p.numpy(), axis=None))
        return kl_loss(log_q, p)

    def watched_graph(log_q_i, log_q_j, weight):
        calls["weight"].append(np.sort(weight.numpy()))
        return graph_loss(log_q_i, log_q_j, weight)

    def watched_target(q):
        calls["targets"].append(q.numpy())
        return target_distribution(q)

    monkeypatch.setattr(dec, "kl_loss", watched_kl)
    monkeypatch.setattr(dec, "graph_loss", watched_graph)
    monkeypatch.setattr(dec, "target_distribution", watched_target)
    return calls


@pytest.mark.parametrize(
    ("warmup_epochs", "update_interval", "updates"), [(2, 3, [3, 6, 9]), (0, 4, [1, 5, 9]), (3, 1, [4, 5, 6, 7, 8, 9])]
)
def test_target_and_graph_weights_are_those_of_the_start_then_updated_together(
    warmup_epochs, update_interval, updates, watched
):
    graph, base = matching(60)
    labels = np.roll(CLASSES, 3)
    config = TrainingConfig(
        warmup_epochs=warmup_epochs,
        update_interval=update_interval,
        max_epochs=9,
        batch_size=64,
        tol=-1.0,
        learning_rate=0.01,
    )
    train(frozen(blobs()), graph, labels, 3, config)
    assert len(watched["targets"]) == len(updates)
    same = labels == labels[np.arange(60) ^ 1]
    for epoch in range(1, 10):
        p, weight = watched["p"][epoch - 1], watched["weight"][epoch - 1]
        if epoch <= warmup_epochs:
            assert_array_equal(p, np.sort(np.eye(3)[labels], axis=None))
            assert_allclose(weight, np.sort(base * same), rtol=1e-6)
            continue
        q = watched["targets"][sum(update <= epoch for update in updates) - 1]
        assert_allclose(p, np.sort(target(q), axis=None), rtol=1e-4, atol=1e-6)
        assert_allclose(weight, np.sort(base * np.sum(q * q[np.arange(60) ^ 1], axis=1)), rtol=1e-5)
    assert all(
        np.abs(one - two).max() > 1e-4 for one, two in zip(watched["targets"], watched["targets"][1:], strict=False)
    )


@pytest.mark.parametrize(("learning_rate", "backbone_learning_rate"), [(1e-3, 1e-4), (1e-4, 1e-2)])
@pytest.mark.parametrize("head", [True, False])
def test_backbone_has_a_learning_rate_of_its_own(head, learning_rate, backbone_learning_rate):
    features = LinearFeatures()
    embedder, _, h0 = dual(features, head=head)
    before = features.network.weight.detach().clone()
    config = TrainingConfig(
        max_epochs=1,
        batch_size=64,
        tol=-1.0,
        learning_rate=learning_rate,
        backbone_learning_rate=backbone_learning_rate,
    )
    result = train(embedder, knn_graph(h0, 4), CLASSES, 3, config)
    # The first step of Adam has the length of the learning rate.
    assert (features.network.weight - before).abs().max().item() == pytest.approx(backbone_learning_rate, rel=0.01)
    assert np.abs(result.centers - means(h0, CLASSES)).max() == pytest.approx(learning_rate, rel=0.01)
    if head:
        assert embedder._head.g[2].weight.abs().max().item() == pytest.approx(learning_rate, rel=0.01)


class Recording(FrozenEmbedder):
    """Lists the rows that it embeds in training."""

    def __init__(self, h):
        super().__init__(h, ResidualHead(h.shape[1], 16), CPU)
        self.seen = []

    def embed(self, rows):
        self.seen.append(rows.tolist())
        return super().embed(rows)


@pytest.fixture
def neighbors(monkeypatch):
    """Lists the neighbours that each step draws."""
    drawn = []
    sample = training._sample_neighbors

    def watched(*arguments):
        rows, weight = sample(*arguments)
        drawn.append(rows.tolist())
        return rows, weight

    monkeypatch.setattr(training, "_sample_neighbors", watched)
    return drawn


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_every_epoch_has_every_row_once_in_batches_with_a_neighbour_for_each(beta, neighbors):
    h = blobs()
    graph = knn_graph(h, 4)
    embedder = Recording(h)
    train(embedder, graph, CLASSES, 3, TrainingConfig(beta=beta, max_epochs=3, batch_size=16, seed=5))
    assert [len(rows) for rows in embedder.seen] == [16, 16, 16, 12] * 3
    for epoch in range(3):
        assert sorted(chain(*embedder.seen[4 * epoch : 4 * epoch + 4])) == list(range(60))
    assert len({tuple(batch) for batch in embedder.seen}) == 12
    for rows, others in zip(embedder.seen, neighbors, strict=True):
        assert all(graph[row, other] > 0 for row, other in zip(rows, others, strict=True))
    other = Recording(h)
    train(other, graph, CLASSES, 3, TrainingConfig(beta=beta, max_epochs=3, batch_size=16, seed=6))
    assert other.seen[0] != embedder.seen[0]


def test_rows_are_compared_with_neighbours_as_they_were_when_the_epoch_began(monkeypatch):
    h = blobs(n_features=3)
    embedder = frozen(h)
    began, held = [], []
    log_assign, graph_loss = training._log_assign, dec.graph_loss

    def watched_assign(z, centers, nu):
        log_q = log_assign(z, centers, nu)
        if not z.requires_grad:
            began.append(log_q)
        return log_q

    def watched_loss(log_q_i, log_q_j, weight):
        held.append((len(began) - 1, log_q_j))
        return graph_loss(log_q_i, log_q_j, weight)

    monkeypatch.setattr(training, "_log_assign", watched_assign)
    monkeypatch.setattr(dec, "graph_loss", watched_loss)
    config = TrainingConfig(max_epochs=3, warmup_epochs=1, batch_size=32, learning_rate=0.1, tol=-1.0)
    train(embedder, knn_graph(h, 4), CLASSES, 3, config)
    assert [epoch for epoch, _ in held] == [0, 0, 1, 1, 2, 2]
    for epoch, log_q_j in held:
        assert not log_q_j.requires_grad
        rows = {tuple(row) for row in began[epoch].tolist()}
        assert all(tuple(row) in rows for row in log_q_j.tolist())


def test_neighbours_are_drawn_alike(neighbors):
    graph = sparse.csr_array(np.ones((5, 5)) - np.eye(5))
    embedder = Recording(blobs()[:5])
    train(embedder, graph, np.array([0, 0, 1, 1, 1]), 2, TrainingConfig(max_epochs=400, tol=-1.0, learning_rate=1e-9))
    drawn = np.zeros((5, 5))
    for rows, others in zip(embedder.seen, neighbors, strict=True):
        np.add.at(drawn, (rows, others), 1)
    assert_array_equal(np.diag(drawn), 0)
    assert_allclose(drawn[~np.eye(5, dtype=bool)], 100, atol=40)


@pytest.mark.parametrize("warmup_epochs", [0, 4])
def test_training_ends_when_few_rows_change_cluster_but_not_in_the_warm_up(warmup_epochs):
    # One row of six changes in each epoch, two in the third.
    labels = [[0, 0, 1, 1, 2, 2], [1, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], [0, 1, 2, 1, 2, 2], [0, 1, 1, 1, 2, 2]]
    for tol, n_epochs in [(0.34, 1), (0.17, 1), (0.16, 5), (-1.0, 7)]:
        result = run_script(Scripted(labels), 7, tol=tol, warmup_epochs=warmup_epochs)
        assert result.n_epochs == max(n_epochs, min(warmup_epochs + 1, 7))
        assert_allclose(result.history["changed"], [0, 1 / 6, 1 / 6, 1 / 3, 1 / 6, 0, 0, 0][: result.n_epochs + 1])


def test_no_epoch_gives_the_start():
    h = blobs()
    embedder = frozen(h)
    result = train(embedder, knn_graph(h, 4), CLASSES, 3, TrainingConfig(max_epochs=0))
    assert (result.n_epochs, result.best_epoch) == (0, 0)
    assert_allclose(result.centers, means(h, CLASSES), rtol=1e-5)
    assert result.centers.dtype == np.float64
    assert_allclose(embedder.embed_all(), h, rtol=1e-6)


# History and the kept state


def test_history_tells_of_every_epoch_and_of_the_start(caplog):
    h, labels = blobs(), CLASSES.copy()
    labels[::7] = 1
    graph = knn_graph(h, 4)
    embedder = frozen(h)
    states = []
    embed_all = embedder.embed_all
    embedder.embed_all = lambda: states.append(embed_all()) or states[-1]
    config = TrainingConfig(gamma=0.7, nu=2.0, max_epochs=6, warmup_epochs=2, tol=-1.0, learning_rate=0.02)
    with caplog.at_level(logging.INFO, "skdiec"):
        result = train(embedder, graph, labels, 3, config)
    assert len(caplog.records) == len(states) == result.n_epochs + 1 == 7
    assert {name: values.shape for name, values in result.history.items()} == {
        **dict.fromkeys(("loss", "kl", "graph", "entropy", "denoising", "cut", "changed"), (7,)),
        "cluster_sizes": (7, 3),
    }
    centers = means(h, labels)
    first = soft_assign(h, centers, 2.0).argmax(axis=1)
    assert_array_equal(result.history["cluster_sizes"][0], np.bincount(first, minlength=3))
    assert result.history["changed"][0] == pytest.approx(np.mean(first != labels))
    assert result.history["changed"][0] > 0
    assert result.history["cut"][0] == pytest.approx(balanced_cut(graph, first, 3, balance=0.7))
    assert_array_equal(result.history["cluster_sizes"].sum(axis=1), 60)
    # The state that is kept is the one that its cut and sizes are told of.
    kept = soft_assign(embed_all().double().numpy(), result.centers, 2.0).argmax(axis=1)
    assert torch.equal(embed_all(), states[result.best_epoch])
    assert result.history["cut"][result.best_epoch] == pytest.approx(balanced_cut(graph, kept, 3, balance=0.7))
    assert_array_equal(result.history["cluster_sizes"][result.best_epoch], np.bincount(kept, minlength=3))


def test_training_mends_a_start_with_wrong_labels():
    h, labels = blobs(), CLASSES.copy()
    labels[::4] = (labels[::4] + 1) % 3
    embedder = frozen(h)
    graph = knn_graph(h, 6)
    result = train(embedder, graph, labels, 3, TrainingConfig(max_epochs=30, warmup_epochs=0, learning_rate=0.01))
    found = soft_assign(embedder.embed_all().numpy(), result.centers).argmax(axis=1)
    assert adjusted_rand_score(CLASSES, labels) < 0.5
    assert adjusted_rand_score(CLASSES, found) > 0.85
    assert result.history["cut"][result.best_epoch] < balanced_cut(graph, labels, 3) - 0.5


def test_last_state_near_the_lowest_cut_is_kept():
    # Rows 0 and 1 go astray and come back; the cut says so, and the state is that of the last good epoch.
    good, poor, worst = [0, 0, 0, 1, 1, 1, 2, 2, 2], [1, 0, 0, 1, 1, 1, 2, 2, 2], [1, 1, 0, 1, 1, 1, 2, 2, 2]
    graph = sparse.csr_array(knn_graph(3 * np.eye(3)[good], 2) + 0.01 * (np.ones((9, 9)) - np.eye(9)))
    for script, best in [
        ([poor, worst, poor, worst], 2),
        ([poor, good, worst, poor], 1),
        ([good, poor, good, worst], 2),
        ([good, good, good, good], 3),
        ([worst, poor, good, poor], 2),
    ]:
        embedder = Scripted(script)
        result = run_script(embedder, 3, graph, warmup_epochs=9)
        cuts = [balanced_cut(graph, labels, 3) for labels in script]
        assert_allclose(result.history["cut"], cuts)
        assert result.best_epoch == best == embedder.module.epoch


@pytest.mark.parametrize(("share", "best"), [(0.99, 0), (1.01, 2)])
def test_states_near_the_lowest_cut_are_those_within_the_tolerance(share, best, monkeypatch):
    lowest, later = [0, 0, 0, 1, 1, 1, 2, 2, 2], [1, 0, 0, 1, 1, 1, 2, 2, 2]
    graph = sparse.csr_array(knn_graph(3 * np.eye(3)[lowest], 2) + 0.2 * (np.ones((9, 9)) - np.eye(9)))
    rise = balanced_cut(graph, later, 3) / balanced_cut(graph, lowest, 3) - 1
    monkeypatch.setattr("skdiec.training.records.CUT_TOLERANCE", share * rise)
    embedder = Scripted([lowest, later])
    assert run_script(embedder, 2, graph, warmup_epochs=9).best_epoch == best == embedder.module.epoch


def test_the_state_before_training_does_not_outdo_the_initial_partition_that_training_learns():
    # Nearest means split rows 0 to 5 evenly, at a lower cut than that of the initial partition, which epochs 1 and 2
    # have learned; in epoch 3 a cluster is empty.
    even, uneven, emptied = [0, 0, 0, 1, 1, 1, 2, 2, 2], [0, 0, 0, 0, 1, 1, 2, 2, 2], [0, 0, 0, 0, 0, 0, 2, 2, 2]
    graph = sparse.csr_array(knn_graph(3 * np.eye(3)[even], 2) + 0.2 * (np.ones((9, 9)) - np.eye(9)))
    cuts = [balanced_cut(graph, labels, 3) for labels in (even, uneven, emptied)]
    assert 1.1 * cuts[0] < cuts[1]
    assert 1.1 * cuts[1] < cuts[2]
    config = dataclasses.replace(SCRIPTED, max_epochs=3, warmup_epochs=9)
    embedder = Scripted([even, uneven, uneven, emptied])
    with pytest.warns(UserWarning, match="The state of epoch 2 is kept"):
        result = train(embedder, graph, np.array(uneven), 3, config)
    assert result.best_epoch == 2 == embedder.module.epoch
    with pytest.warns(UserWarning, match="The state of epoch 0 is kept"):  # nothing worse than the initial partition
        train(Scripted([even, uneven, uneven, emptied]), graph, np.array(even), 3, config)


def test_training_that_loses_a_tiny_cluster_is_kept_where_it_has_learned_the_others():
    # Nearest means mix up the two large clusters. Training tells them apart, and loses row 16. With an empty one the
    # cut is higher, and yet these labels are nearer to the initial partition.
    initial, learned = [0] * 8 + [1] * 8 + [2], [0] * 8 + [1] * 9
    mixed = [0] * 6 + [1] * 8 + [0] * 2 + [2]
    pairs = np.arange(17) // 2
    graph = sparse.csr_array(3 * (pairs == pairs[:, None]) + 0.1 * (1 - np.eye(17)))
    cuts = [balanced_cut(graph, labels, 3) for labels in (initial, mixed, learned)]
    assert 1.1 * max(cuts[:2]) < cuts[2]
    config = dataclasses.replace(SCRIPTED, max_epochs=2, warmup_epochs=9)
    for script, best in [([mixed, learned, learned], 2), ([initial, learned, learned], 0)]:
        embedder = Scripted(script)
        with pytest.warns(UserWarning, match=f"1 clusters were emptied .* The state of epoch {best} is kept"):
            result = train(embedder, graph, np.array(initial), 3, config)
        assert result.best_epoch == best == embedder.module.epoch


# What goes wrong


def messages(record):
    assert {warning.filename for warning in record} == {__file__}  # the line that called is the one told of
    return [str(warning.message) for warning in record]


def test_emptied_clusters_are_told_of_and_not_kept():
    start, emptied = [0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 1]
    embedder = Scripted([start, start, emptied, [0] * 6])
    graph = knn_graph(3 * np.eye(3)[start], 1)
    with pytest.warns(UserWarning, match="collapsed") as record:
        result = train(embedder, graph, np.array(start), 3, dataclasses.replace(SCRIPTED, max_epochs=3))
    assert messages(record) == [
        "training collapsed: 2 clusters were emptied (sizes [6, 0, 0], at the start [2, 2, 2]). "
        "The state of epoch 1 is kept; a larger gamma or a smaller alpha helps"
    ]
    assert result.best_epoch == embedder.module.epoch == 1
    assert_array_equal(result.history["cluster_sizes"], [[2, 2, 2], [2, 2, 2], [3, 3, 0], [6, 0, 0]])


@pytest.mark.parametrize(("largest", "warned"), [(5, False), (8, False), (9, True)])
def test_cluster_that_takes_most_images_is_told_of(largest, warned):
    start = np.repeat([0, 1, 2], 4)
    last = np.repeat([0, 1, 2], [largest, 11 - largest, 1])
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        run_script(Scripted([start, start, last]), 2)
    assert [str(warning.message).partition(" (")[0] for warning in record] == [
        "training collapsed: one cluster took most images"
    ] * warned


def test_uneven_start_is_no_collapse():
    start = np.repeat([0, 1, 2], [9, 2, 1])
    assert_array_equal(run_script(Scripted([start]), 2).history["cluster_sizes"], [[9, 2, 1]] * 3)
    # An empty cluster at the start is none that was emptied.
    two = np.repeat([0, 1], 3)
    assert_array_equal(run_script(Scripted([two]), 2).history["cluster_sizes"], [[3, 3, 0]] * 3)


def test_loss_that_is_not_finite_ends_the_training():
    labels = [0, 0, 1, 1, 2, 2]
    embedder = Scripted([labels], nan_from=3)
    with pytest.warns(UserWarning, match="the loss became") as record:
        result = train(embedder, knn_graph(3 * np.eye(3)[labels], 1), np.array(labels), 3, SCRIPTED)
    assert messages(record) == [
        "training diverged in epoch 3, where the loss became nan: keeping epoch 2; "
        f"lower learning_rate, which is {SCRIPTED.learning_rate:g}"
    ]
    assert (result.n_epochs, result.best_epoch, int(embedder.module.epoch)) == (2, 2, 2)
    assert {len(values) for values in result.history.values()} == {3}
    assert np.isfinite(result.centers).all()
    assert_allclose(result.centers, 5 * np.eye(3), atol=1e-5)


def test_steps_that_are_far_too_long_leave_a_finite_state():
    h = blobs()
    embedder = frozen(h)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        result = train(embedder, knn_graph(h, 4), CLASSES, 3, TrainingConfig(learning_rate=1e30, batch_size=8))
    assert any("the loss became" in str(warning.message) for warning in record)
    assert np.isfinite(result.centers).all()
    assert embedder.embed_all().isfinite().all()


@pytest.mark.parametrize(("n_clusters", "n_rows"), [(1, 60), (1, 2), (2, 3), (3, 60)])
@pytest.mark.parametrize("max_epochs", [1, 3])
def test_last_step_that_is_far_too_long_is_undone(n_clusters, n_rows, max_epochs):
    h = blobs()[:n_rows]
    embedder, labels = frozen(h), np.arange(n_rows) % n_clusters
    config = TrainingConfig(learning_rate=1e38, batch_size=n_rows, max_epochs=max_epochs)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        result = train(embedder, knn_graph(h, 4), labels, n_clusters, config)
    assert any("training diverged in epoch" in str(warning.message) for warning in record)
    assert np.isfinite(result.centers).all()
    assert embedder.embed_all().isfinite().all()
    assert result.best_epoch == 0
    assert_allclose(embedder.embed_all(), h, rtol=1e-6)


@pytest.mark.parametrize(("last", "warned"), [(1.05, False), (1.15, True)])
def test_rise_of_the_denoising_loss_is_told_of(last, warned):
    embedder = Scripted([[0, 0, 1, 1, 2, 2]], drifts=[2.0, 9.0, 2 * last])
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        labels = np.array(embedder.labels[0])
        result = train(
            embedder, knn_graph(np.eye(3)[labels], 1), labels, 3, dataclasses.replace(SCRIPTED, max_epochs=2)
        )
    assert_allclose(result.history["denoising"], [2.0, 9.0, 2 * last])
    if not warned:
        assert record == []
        return
    assert messages(record) == [
        "generative drift: the denoising loss rose from 2.0000 to 2.3000; "
        "lower alpha or backbone_learning_rate, or raise denoising_weight"
    ]


def test_rows_without_edges_train_all_the_same(watched, neighbors):
    h = blobs()
    lonely = knn_graph(h, 4).tolil()
    lonely[5] = lonely[:, 5] = 0
    lonely = sparse.csr_array(lonely)
    lonely.eliminate_zeros()
    for graph in (lonely, sparse.csr_array((60, 60))):
        embedder = Recording(h)
        watched["weight"].clear()
        neighbors.clear()
        result = train(embedder, graph, CLASSES, 3, TrainingConfig(max_epochs=2, warmup_epochs=0, batch_size=64))
        for weight in watched["weight"]:
            assert np.sum(weight == 0) == (1 if graph is lonely else 60)
        for rows, others in zip(embedder.seen, neighbors, strict=True):
            assert others[rows.index(5)] == 5  # its own neighbour, at weight 0
        assert np.isfinite(result.history["loss"][1:]).all()
    assert_array_equal(result.history["graph"][1:], 0)  # no edge at all


# Randomness


def test_training_depends_on_its_seed_and_on_nothing_else(rng_untouched):
    h, results = blobs(), []
    for seed in (0, 0, 1):
        for embedder, data in ((frozen(h), h), (dual(LinearFeatures(noise=1.0))[0], h[:, :3])):
            with rng_untouched():
                result = train(
                    embedder, knn_graph(data, 4), CLASSES, 3, TrainingConfig(max_epochs=3, batch_size=16, seed=seed)
                )
            results.append((result.centers, embedder.embed_all().numpy(), result.history["loss"]))
    for first, again, other in ((results[0], results[2], results[4]), (results[1], results[3], results[5])):
        for one, two, three in zip(first, again, other, strict=True):
            assert_array_equal(one, two)
            assert np.nanmax(np.abs(one - three)) > 0


def test_every_setting_has_a_test_of_its_wiring():
    assert {setting.name for setting in dataclasses.fields(TrainingConfig)} == {
        *("alpha", "beta", "gamma", "nu", "learning_rate", "backbone_learning_rate", "batch_size", "tol"),
        *("update_interval", "max_epochs", "warmup_epochs", "n_snapshots", "seed"),
    }


# Snapshots


TURNS = [np.roll(CLASSES, 20 * turn) for turn in range(3)]
"""Labels that differ in each of three epochs."""


@pytest.mark.parametrize(
    ("max_epochs", "n_snapshots", "epochs"),
    [
        (10, 3, [0, 5, 10]),
        (10, 4, [0, 3, 7, 10]),
        (10, 2, [0, 10]),
        (10, 1, [10]),
        (10, 0, []),
        (4, 5, [0, 1, 2, 3, 4]),
        (4, 2**63, [0, 1, 2, 3, 4]),
        (0, 5, [0]),
    ],
)
def test_snapshots_are_embeddings_of_evenly_spaced_epochs(max_epochs, n_snapshots, epochs):
    result = run_script(Scripted([TURNS[epoch % 3] for epoch in range(11)]), max_epochs, n_snapshots=n_snapshots)
    assert list(result.snapshots) == epochs
    assert_array_equal(result.snapshot_rows, np.arange(60 if n_snapshots else 0))
    for epoch, rows in result.snapshots.items():
        assert_array_equal(rows, 5 * np.eye(3)[TURNS[epoch % 3]])
        assert rows.dtype == np.float32


def test_snapshots_of_long_trainings_are_few_at_all_times(monkeypatch):
    held = []
    record = training.Snapshots.record

    def watched(snapshots, epoch, z):
        record(snapshots, epoch, z)
        held.append(len(snapshots._kept))

    monkeypatch.setattr(training.Snapshots, "record", watched)
    result = run_script(Scripted([CLASSES]), 200, n_snapshots=5)
    assert max(held) <= 21
    assert len(held) == 201
    assert_allclose(list(result.snapshots), [0, 50, 100, 150, 200], atol=8)
    assert (min(result.snapshots), max(result.snapshots)) == (0, 200)


def test_last_snapshot_is_the_end_wherever_that_is():
    settled = run_script(Scripted([TURNS[1], TURNS[2], TURNS[0]]), 10, n_snapshots=3, tol=0.0)
    assert settled.n_epochs == 3
    assert list(settled.snapshots) == [0, 1, 3]
    assert_array_equal(settled.snapshots[3], 5 * np.eye(3)[TURNS[0]])
    with pytest.warns(UserWarning, match="training diverged in epoch 5"):
        diverged = run_script(Scripted([CLASSES], nan_from=5), 10, n_snapshots=3)
    assert list(diverged.snapshots) == [0, 2, 4]


def test_snapshots_are_of_rows_drawn_by_the_seed(monkeypatch):
    monkeypatch.setattr("skdiec.training.records.SNAPSHOT_ROWS", 7)
    h, drawn = blobs().astype(np.float32), []
    for seed in (0, 0, 1):
        result = train(frozen(h), knn_graph(h, 4), CLASSES, 3, TrainingConfig(max_epochs=1, n_snapshots=2, seed=seed))
        assert_array_equal(result.snapshots[0], h[result.snapshot_rows])
        assert np.abs(result.snapshots[1] - h[result.snapshot_rows]).max() > 1e-4
        assert (np.diff(result.snapshot_rows) > 0).all()
        drawn.append(result.snapshot_rows.tolist())
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 7


def test_snapshots_change_nothing_in_the_training(rng_untouched):
    results = []
    for n_snapshots in (0, 3):
        embedder = dual(LinearFeatures(noise=1.0))[0]
        with rng_untouched():
            config = TrainingConfig(max_epochs=3, batch_size=16, n_snapshots=n_snapshots)
            result = train(embedder, knn_graph(blobs()[:, :3], 4), CLASSES, 3, config)
        results.append((result.centers, embedder.embed_all().numpy(), result.history["loss"]))
    for without, with_some in zip(*results, strict=True):
        assert_array_equal(without, with_some)


# The fitted map


@pytest.fixture
def fitted():
    """Makes a model with a head that does something, and the arrays it is made of."""

    def make(head=True):
        rng = np.random.default_rng(0)
        mean, components, centers = rng.normal(size=5), rng.normal(size=(3, 5)), rng.normal(size=(4, 3))
        head = ResidualHead(3, 8, seed=1) if head else None
        if head is not None:
            with torch.no_grad():
                head.g[2].weight.normal_(generator=torch.Generator().manual_seed(0))
        features = [rng.normal(size=(20, 5)).astype(np.float32) for _ in range(2)]
        h = [torch.from_numpy((matrix - mean) @ components.T / 2.0) for matrix in features]
        return EmbeddingModel(Projection(mean, components, 2.0), head, centers, 2.5), head, features, h

    return make


def test_model_embeds_frozen_and_trained_features(fitted, monkeypatch):
    monkeypatch.setattr("skdiec.training.modules.BLOCK_ROWS", 7)
    model, head, (frozen_features, trained), (h0, h) = fitted()
    for found, expected in [
        (model.embed(frozen_features), head(h0, h0)),
        (model.embed(frozen_features, trained), head(h0, h)),
    ]:
        assert found.dtype == np.float32
        assert_allclose(found, expected.detach(), rtol=1e-6, atol=1e-6)
    model, _, _, _ = fitted(head=False)
    assert_allclose(model.embed(frozen_features), h0, rtol=1e-6)
    assert_allclose(model.embed(frozen_features, trained), h, rtol=1e-6)


def test_model_assigns_by_the_kernel_in_double_precision(fitted, monkeypatch):
    monkeypatch.setattr("skdiec.training.modules.BLOCK_ROWS", 7)
    model, _, (features, _), _ = fitted()
    z = model.embed(features)
    found = model.assign(z)
    expected = dec.soft_assign(torch.from_numpy(z).double(), torch.from_numpy(model.centers), nu=2.5).numpy()
    assert found.dtype == np.float64
    assert_allclose(found, expected, rtol=1e-12)
    assert_allclose(found, soft_assign(z.astype(np.float64), model.centers, 2.5), rtol=1e-10)
    assert_allclose(found.sum(axis=1), 1, rtol=1e-12)


def test_rows_do_not_depend_on_those_beside_them(fitted):
    model, _, (features, trained), _ = fitted()
    together = model.embed(features, trained)
    assigned = model.assign(together)
    for rows in ([4], [19, 3], list(range(7)), np.random.default_rng(0).permutation(20)):
        assert_allclose(model.embed(features[rows], trained[rows]), together[rows], rtol=2e-7, atol=1e-7)
        assert_allclose(model.assign(together[rows]), assigned[rows], rtol=1e-14)


def test_model_gives_what_the_trained_embedder_gives():
    features = blobs().astype(np.float32)
    projection = Projection(features.mean(axis=0), np.eye(4)[:3], 0.5)
    h = projection.project(features)
    head = ResidualHead(3, 16)
    embedder = FrozenEmbedder(h, head, CPU)
    result = train(embedder, knn_graph(h, 4), CLASSES, 3, TrainingConfig(max_epochs=3, learning_rate=0.02))
    expected = embedder.embed_all().numpy()
    model = EmbeddingModel(projection, head, result.centers, 1.0)
    assert_allclose(model.embed(features), expected, rtol=1e-4, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in model.head.parameters())


def test_weights_of_edges_are_those_of_the_graph_where_ends_agree(monkeypatch):
    monkeypatch.setattr(training, "_BLOCK_EDGES", 2)
    q = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    heads, tails = torch.tensor([0, 0, 1, 2, 1]), torch.tensor([1, 2, 2, 2, 1])
    weights = training._edge_weights(torch.tensor([1.0, 1.0, 1.0, 0.5, 1.0]), q, heads, tails)
    assert weights.tolist() == [0.5, 0.0, 0.5, 0.5, 0.5]
    none = torch.zeros(0, dtype=torch.long)
    assert training._edge_weights(torch.zeros(0), q, none, none).shape == (0,)
