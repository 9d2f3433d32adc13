"""Deep embedded clustering: soft assignment, target distribution and the terms of the loss."""

from __future__ import annotations

import torch
from torch import Tensor


def soft_assign(z: Tensor, centers: Tensor, *, nu: float = 1.0) -> Tensor:
    r"""Assign embedded rows softly to cluster centres by a Student t kernel.

    .. math:: q_{ik} \propto (1 + |z_i - \mu_k|^2 / \nu)^{-(\nu + 1) / 2}

    (section 3.3 of DiEC, https://arxiv.org/abs/2512.20905; Xie et al., 2016).

    Parameters
    ----------
    z : Tensor of shape (n, d)
    centers : Tensor of shape (k, d)
    nu : float, default=1.0
        Degrees of freedom.

    Returns
    -------
    Tensor of shape (n, k)
        Rows sum to 1; dtype and device of `z`.

    Examples
    --------
    >>> soft_assign(torch.tensor([[0.0]]), torch.tensor([[0.0], [1.0]]))
    tensor([[0.6667, 0.3333]])
    """
    return log_soft_assign(z, centers, nu=nu).exp()


def log_soft_assign(z: Tensor, centers: Tensor, *, nu: float = 1.0, expanded: bool = False) -> Tensor:
    r"""Return the logarithm of `soft_assign`, finite also where the assignment underflows.

    Parameters
    ----------
    z, centers, nu
        As in `soft_assign`.
    expanded : bool, default=False
        Expand :math:`|z - \mu|^2` into :math:`|z|^2 - 2 z \mu + |\mu|^2`: one matrix product instead of n k d
        differences, several times faster. But distances near 0 are rounded, and the last bits of a row depend on the
        batch that it is in.

    Returns
    -------
    Tensor of shape (n, k)
    """
    if expanded:
        middle = centers.detach().mean(0)  # what is left to cancel is small
        z, centers = z - middle, centers - middle
        squared = torch.addmm(centers.square().sum(1), z, centers.T, alpha=-2) + z.square().sum(1, keepdim=True)
        squared = squared.clamp_min(0)
    else:
        squared = (z[:, None, :] - centers[None, :, :]).square().sum(-1)
    return torch.log_softmax(-0.5 * (nu + 1.0) * torch.log1p(squared / nu), dim=1)


def target_distribution(q: Tensor) -> Tensor:
    r"""Sharpen soft assignments into DEC's target, computed over the whole data set.

    .. math:: p_{ik} \propto q_{ik}^2 / \sum_i q_{ik}

    Parameters
    ----------
    q : Tensor of shape (n, k)
        Soft assignments.

    Returns
    -------
    Tensor of shape (n, k)
        Rows sum to 1; without gradient.
    """
    q = q.detach()
    weight = q.square() / q.sum(0).clamp_min(torch.finfo(q.dtype).tiny)
    return weight / weight.sum(1, keepdim=True)


def kl_loss(log_q: Tensor, p: Tensor) -> Tensor:
    """Compute L_KL = KL(P || Q), averaged over rows.

    Parameters
    ----------
    log_q : Tensor of shape (n, k)
        See `log_soft_assign`.
    p : Tensor of shape (n, k)
        See `target_distribution`.

    Returns
    -------
    Tensor of shape ()
        At least 0.
    """
    return (torch.xlogy(p, p) - p * log_q).sum(1).mean()


def graph_loss(log_q_i: Tensor, log_q_j: Tensor, weight: Tensor | None = None) -> Tensor:
    r"""Compute the graph term over edges (i, j), which asks neighbours to be assigned alike.

    .. math:: L_{graph} = - \sum_{ij} w_{ij} \log \langle q_i, q_j \rangle / \sum_{ij} w_{ij}

    The paper leaves the form open; this one is zero only where both ends are surely in the same cluster.

    Parameters
    ----------
    log_q_i, log_q_j : Tensor of shape (m, k)
        Log assignments of the edges' ends.
    weight : Tensor of shape (m,), default=None
        Edge weights; None is 1.

    Returns
    -------
    Tensor of shape ()
        At least 0.
    """
    values = -torch.logsumexp(log_q_i + log_q_j, dim=1)
    return values.mean() if weight is None else (weight * values).sum() / weight.sum().clamp_min(1e-12)


def entropy_loss(q: Tensor) -> Tensor:
    r"""Compute L_ent, the negative entropy of the mean assignment, which keeps clusters from emptying.

    .. math:: L_{ent} = \sum_k \bar q_k \log \bar q_k

    Parameters
    ----------
    q : Tensor of shape (n, k)

    Returns
    -------
    Tensor of shape ()
        From -log k (clusters of equal size) to 0 (all rows in one).
    """
    mean = q.mean(0)
    # Bounded below: where a cluster's assignments underflow to 0, the gradient of log would make NaN of it.
    return torch.xlogy(mean, mean.clamp_min(torch.finfo(mean.dtype).tiny)).sum()
