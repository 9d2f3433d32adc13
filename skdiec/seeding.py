"""Local randomness: random functions of torch that take their numbers from a seed, not from the global generator."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_METHODS = ("bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_", "normal_", "random_", "uniform_")
_FUNCTIONS = ("bernoulli", "multinomial", "normal", "poisson", "rand", "randint", "randn", "randperm")
_RANDOM = frozenset(
    [
        *(getattr(torch.Tensor, name) for name in _METHODS),
        *(getattr(torch, name) for name in _FUNCTIONS),
        *(
            function
            for _, function in inspect.getmembers(nn.init, inspect.isfunction)
            if "generator" in inspect.signature(function).parameters
        ),
    ]
)
"""Functions with a keyword ``generator``, None for the global one."""


class drawing_from_seed(TorchFunctionMode):  # noqa: N801 - a context, named as a function
    """Let torch's random functions on the CPU draw from a generator of their own, in this thread, in this context.

    Libraries draw initial weights from the process's one generator. Seeding that one would change the caller's random
    state, and another thread that seeds or draws at the same time would change the weights. In here the numbers are
    those that the global generator would give after ``torch.manual_seed(seed)``, and it is left alone.

    Parameters
    ----------
    seed : int

    Examples
    --------
    >>> with drawing_from_seed(0):
    ...     layer = torch.nn.Linear(1, 1)
    >>> round(layer.weight.item(), 4)
    -0.0075
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch, a random one with this generator."""
        kwargs = dict(kwargs or {})
        if func in _RANDOM and kwargs.get("generator") is None:
            kwargs["generator"] = self._generator
        return func(*args, **kwargs)
