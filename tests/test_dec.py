import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skdiec.dec import entropy_loss, graph_loss, kl_loss, log_soft_assign, soft_assign, target_distribution

SEEDS = st.integers(0, 2**32 - 1)
float64 = torch.float64


def rows_and_centers(seed, n=7, k=3, d=4):
    generator = torch.Generator().manual_seed(seed)
    return tuple(3 * torch.randn(count, d, dtype=float64, generator=generator) for count in (n, k))


def log_assignments(seed, n=7, k=3):
    return torch.randn(n, k, dtype=float64, generator=torch.Generator().manual_seed(seed)).log_softmax(1)


# Soft assignment


def test_soft_assign_closed_forms():
    z, centers = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0]])
    torch.testing.assert_close(soft_assign(z, centers), torch.tensor([[2 / 3, 1 / 3], [1 / 3, 2 / 3]]))
    kernel = (1 + 1 / 3) ** -2  # nu = 3: (1 + 1 / 3) ** (-(3 + 1) / 2)
    expected = torch.tensor([[1 / (1 + kernel), kernel / (1 + kernel)]])
    torch.testing.assert_close(soft_assign(z[:1], centers, nu=3.0), expected)
    gauss = torch.softmax(-0.5 * torch.tensor([[0.0, 1.0]]), 1)
    torch.testing.assert_close(soft_assign(z[:1], centers, nu=1e6), gauss)  # the limit of many degrees of freedom


@given(SEEDS, st.sampled_from([0.5, 1.0, 4.0]))
def test_soft_assign_agrees_with_a_loop(seed, nu):
    z, centers = rows_and_centers(seed)
    expected = np.empty((7, 3))
    for i, row in enumerate(z.numpy()):
        for k, center in enumerate(centers.numpy()):
            expected[i, k] = (1 + sum((row - center) ** 2) / nu) ** (-(nu + 1) / 2)
        expected[i] /= expected[i].sum()
    q = soft_assign(z, centers, nu=nu)
    np.testing.assert_allclose(q, expected, rtol=1e-9)
    np.testing.assert_allclose(log_soft_assign(z, centers, nu=nu), np.log(expected), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(q.sum(1), 1, rtol=1e-12)


@given(SEEDS)
def test_soft_assign_follows_permuted_rows_and_clusters_and_sees_no_shift(seed):
    z, centers = rows_and_centers(seed)
    q = soft_assign(z, centers)
    generator = torch.Generator().manual_seed(seed)
    rows, clusters = torch.randperm(7, generator=generator), torch.randperm(3, generator=generator)
    torch.testing.assert_close(soft_assign(z[rows], centers[clusters]), q[rows][:, clusters])
    torch.testing.assert_close(soft_assign(z + 5, centers + 5), q)


def test_soft_assign_of_a_row_does_not_depend_on_its_batch():
    z, centers = (x.float() for x in rows_and_centers(0, n=33))
    q = soft_assign(z, centers)
    assert torch.equal(torch.cat([soft_assign(batch, centers) for batch in z.split(8)]), q)


@pytest.mark.parametrize("dtype", [torch.float32, float64])
def test_soft_assign_keeps_the_type_and_its_arguments(dtype):
    z, centers = (x.to(dtype) for x in rows_and_centers(0))
    before = z.clone(), centers.clone()
    assert soft_assign(z, centers).dtype == dtype
    assert torch.equal(z, before[0])
    assert torch.equal(centers, before[1])


def test_log_form_is_finite_where_the_assignment_underflows():
    z, centers = torch.zeros(1, 1), torch.tensor([[0.0], [1e3]])
    assert soft_assign(z, centers, nu=100.0)[0].tolist() == [1.0, 0.0]
    expected = -50.5 * math.log1p(1e6 / 100)
    assert log_soft_assign(z, centers, nu=100.0)[0].tolist() == pytest.approx([0.0, expected])


# Target


def test_target_closed_form():
    q = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    # q ** 2 / column sums (1.5, 0.5): 1/6 and 1/2, then 2/3 and 0
    torch.testing.assert_close(target_distribution(q), torch.tensor([[0.25, 0.75], [1.0, 0.0]]))


@given(SEEDS)
def test_target_agrees_with_a_loop_and_follows_permutations(seed):
    q = log_assignments(seed).exp()
    expected = np.empty((7, 3))
    for i in range(7):
        for k in range(3):
            expected[i, k] = q[i, k] ** 2 / q[:, k].sum()
        expected[i] /= expected[i].sum()
    p = target_distribution(q)
    np.testing.assert_allclose(p, expected, rtol=1e-12)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-12)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(target_distribution(q.flip(0)[:, order]), p.flip(0)[:, order])


def test_target_is_a_constant_and_survives_an_empty_cluster():
    q = torch.tensor([[1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    p = target_distribution(q)
    assert not p.requires_grad
    assert p.tolist() == [[1.0, 0.0], [1.0, 0.0]]


def test_target_keeps_uniform_and_sharpens_the_rest():
    uniform = torch.full((4, 5), 0.2)
    torch.testing.assert_close(target_distribution(uniform), uniform)
    q = torch.tensor([[0.6, 0.4], [0.4, 0.6]])
    torch.testing.assert_close(target_distribution(q), torch.tensor([[36.0, 16], [16, 36]]) / 52)


# Losses


def test_kl_closed_forms():
    log_q = torch.tensor([[0.5, 0.5], [0.25, 0.75]]).log()
    p = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    assert kl_loss(log_q, p).item() == pytest.approx(math.log(2) / 2)
    assert kl_loss(log_q, log_q.exp()).item() == pytest.approx(0, abs=1e-7)


@given(SEEDS)
def test_kl_is_not_negative_and_agrees_with_torch(seed):
    log_q, p = log_assignments(seed), log_assignments(seed + 1).exp()
    value = kl_loss(log_q, p)
    torch.testing.assert_close(value, torch.nn.functional.kl_div(log_q, p, reduction="batchmean"))
    assert value >= 0


def test_graph_loss_closed_forms():
    same, other, half = (
        torch.tensor([[1e-30, 1.0]]).log(),
        torch.tensor([[1.0, 1e-30]]).log(),
        torch.tensor([[0.5, 0.5]]),
    )
    assert graph_loss(same, same).item() == pytest.approx(0)
    assert graph_loss(half.log(), half.log()).item() == pytest.approx(math.log(2))
    assert graph_loss(same, other).item() == pytest.approx(-math.log(2e-30), rel=1e-6)
    edges = torch.cat([same, same]), torch.cat([same, half.log()])
    assert graph_loss(*edges).item() == pytest.approx(math.log(2) / 2)
    assert graph_loss(*edges, torch.tensor([3.0, 1.0])).item() == pytest.approx(math.log(2) / 4)
    assert graph_loss(*edges, torch.tensor([0.0, 0.0])).item() == 0.0


@given(SEEDS)
def test_graph_loss_agrees_with_a_loop_and_has_no_direction(seed):
    log_i, log_j = log_assignments(seed), log_assignments(seed + 1)
    weight = torch.rand(7, dtype=float64, generator=torch.Generator().manual_seed(seed))
    inner = [sum(log_i[m].exp() * log_j[m].exp()).item() for m in range(7)]
    expected = -sum(w * math.log(value) for w, value in zip(weight.tolist(), inner, strict=True)) / weight.sum()
    torch.testing.assert_close(graph_loss(log_i, log_j, weight), expected)
    torch.testing.assert_close(graph_loss(log_j, log_i, 2 * weight), expected)
    torch.testing.assert_close(graph_loss(log_i, log_j), graph_loss(log_i, log_j, torch.ones(7, dtype=float64)))
    assert expected >= 0


def test_entropy_closed_forms():
    assert entropy_loss(torch.eye(4)).item() == pytest.approx(-math.log(4))
    assert entropy_loss(torch.full((3, 4), 0.25)).item() == pytest.approx(-math.log(4))
    assert entropy_loss(torch.tensor([[1.0, 0.0], [1.0, 0.0]])).item() == 0.0
    mixed = 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    assert entropy_loss(torch.tensor([[1.0, 0.0], [0.5, 0.5]])).item() == pytest.approx(mixed)


# Gradients


@pytest.mark.parametrize("nu", [1.0, 3.0])
def test_gradients_of_the_assignments(nu):
    z, centers = (x.requires_grad_() for x in rows_and_centers(0, n=4))
    assert torch.autograd.gradcheck(lambda a, b: soft_assign(a, b, nu=nu), (z, centers))
    assert torch.autograd.gradcheck(lambda a, b: log_soft_assign(a, b, nu=nu), (z, centers))


def test_gradients_of_the_losses():
    z, centers = (x.requires_grad_() for x in rows_and_centers(1, n=4))
    p = log_assignments(0, n=4).exp()
    weight = torch.tensor([1.0, 0.5], dtype=float64)

    def edges(a, b):
        log_q = log_soft_assign(a, b)
        return graph_loss(log_q[:2], log_q[2:], weight)

    for loss in (
        lambda a, b: kl_loss(log_soft_assign(a, b), p),
        edges,
        lambda a, b: entropy_loss(soft_assign(a, b)),
    ):
        assert torch.autograd.gradcheck(loss, (z, centers))


def test_gradients_are_finite_on_a_center_and_where_a_cluster_underflows():
    z = torch.zeros(2, 1, requires_grad=True)
    centers = torch.tensor([[0.0], [1e3]], requires_grad=True)
    q, log_q = soft_assign(z, centers, nu=100.0), log_soft_assign(z, centers, nu=100.0)
    assert q[:, 1].tolist() == [0.0, 0.0]
    for loss in (entropy_loss(q), kl_loss(log_q, target_distribution(q)), graph_loss(log_q[:1], log_q[1:])):
        gradients = torch.autograd.grad(loss, (z, centers), retain_graph=True)
        assert all(gradient.isfinite().all() for gradient in gradients)
