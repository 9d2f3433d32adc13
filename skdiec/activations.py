"""Activations of a network's layers: their names, and a forward pass that ends when it has them."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skdiec.messages import shown

ToMap = Callable[[str, Any], Tensor | None]

_HOOKING = threading.Lock()
"""Held while a hook is added: torch numbers hooks in two steps, between which another thread would get the same one."""


@dataclass(frozen=True)
class Cell:
    """One representation of the search space.

    Attributes
    ----------
    layer : str
        Module path in the network.
    timestep : int
        Timestep of the noise schedule.
    pooling : int
        Cells along each side of the pooled map.
    """

    layer: str
    timestep: int
    pooling: int


class _Done(Exception):
    """Raised inside a forward pass when all wanted activations are there."""


def block_names(network: nn.Module) -> list[str]:
    """Name the blocks of a network that may hold representations.

    These are the items of its module lists and its other composite children, such as
    ``down_blocks.0``, ``mid_block`` and ``up_blocks.1`` of a U-Net.

    Parameters
    ----------
    network : nn.Module

    Returns
    -------
    list of str
        In order of definition; `layer_shapes` says which of them yield maps.

    Examples
    --------
    >>> block_names(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Sequential(nn.ReLU())))
    ['1']
    """
    names = []
    for name, child in network.named_children():
        if isinstance(child, nn.ModuleList):
            names += [f"{name}.{index}" for index in range(len(child))]
        elif any(True for _ in child.children()):
            names.append(name)
    return names


def as_map(layer: str, output: Any) -> Tensor | None:
    """Return a layer's output as a map, where it is one.

    Parameters
    ----------
    layer : str
        Its name, which does not matter here.
    output : object
        Of several outputs, the first counts: down blocks also return their skip connections.

    Returns
    -------
    Tensor of shape (n, channels, height, width) or None

    Examples
    --------
    >>> as_map("block", torch.zeros(2, 9, 5)).shape  # tokens of a square image
    torch.Size([2, 5, 3, 3])
    >>> as_map("block", torch.zeros(2, 5)) is None
    True
    """
    if isinstance(output, (tuple, list)):
        output = output[0] if output else None
    if not isinstance(output, Tensor):
        return None
    if output.ndim == 4:
        return output
    if output.ndim == 3 and math.isqrt(output.shape[1]) ** 2 == output.shape[1]:
        side = math.isqrt(output.shape[1])
        return output.transpose(1, 2).unflatten(2, (side, side))
    return None


def layer_shapes(
    network: nn.Module,
    forward: Callable[[], Any],
    names: Sequence[str] | None = None,
    *,
    layers: Sequence[str] | None = None,
    to_map: ToMap = as_map,
) -> dict[str, tuple[int, int, int]]:
    """Find which layers yield maps, in the order in which a forward pass reaches them.

    Parameters
    ----------
    network : nn.Module
    forward : callable
        Runs the network once.
    names : sequence of str, default=None
        Module paths, as `torch.nn.Module.named_modules` gives them; None is `layers`.
    layers : sequence of str, default=None
        Those to choose from. None is `block_names`.
    to_map : callable
        From the name and the output of a layer to its map, or None. By default `as_map`.

    Returns
    -------
    dict of str to tuple of int
        ``(channels, height, width)`` of each layer's map, in order of execution.

    Raises
    ------
    ValueError
        For an unknown name, or a named layer that yields no map.
    """
    layers = block_names(network) if layers is None else layers
    check_layers(network, names or (), layers)
    shapes: dict[str, tuple[int, int, int]] = {}

    def record(name: str, output: Any) -> None:
        activation = to_map(name, output)
        if activation is not None:
            channels, height, width = activation.shape[1:]
            shapes.setdefault(name, (channels, height, width))

    with evaluating(network), torch.inference_mode(), _hooks(network, names or layers, record):
        forward()
    for name in names or ():
        if name not in shapes:
            raise ValueError(f"layer {shown(name)} yields no map of activations; choose one of {', '.join(layers)}")
    return shapes


def check_layers(network: nn.Module, names: Sequence[str], layers: Sequence[str] | None = None) -> None:
    """Raise ValueError, with the layers to choose from, for a name that is no module of the network."""
    known = dict(network.named_modules())
    for name in names:
        if not name or name not in known:
            raise ValueError(
                f"unknown layer {shown(name)}: choose one of {', '.join(layers or block_names(network))}, "
                "or another module path of the network"
            )


def capture(
    network: nn.Module,
    forward: Callable[[], Any],
    layers: Sequence[str],
    reduce: Callable[[str, Tensor], Any],
    to_map: ToMap = as_map,
) -> dict[str, Any]:
    """Run a forward pass and keep what `reduce` makes of the layers' maps.

    The pass ends right after the last wanted layer: what lies deeper is not computed. Hooks
    are removed also where the pass raises. Mode and gradients are the caller's concern
    (see `evaluating`).

    Parameters
    ----------
    network : nn.Module
    forward : callable
        Runs the network once.
    layers : sequence of str
        Module paths.
    reduce : callable
        Called as ``reduce(name, activation)`` with each map of shape (n, channels, height, width), in
        the middle of the pass, so that only its result is kept.
    to_map : callable
        As in `layer_shapes`.

    Returns
    -------
    dict
        The result of `reduce` for each layer.
    """
    wanted = set(layers)
    kept: dict[str, Any] = {}

    def keep(name: str, output: Any) -> None:
        activation = None if name in kept else to_map(name, output)
        if activation is None:  # a module that runs again: as in `layer_shapes`, its first map counts
            return
        kept[name] = reduce(name, activation)
        if len(kept) == len(wanted):
            raise _Done

    with _hooks(network, layers, keep), suppress(_Done):
        forward()
    return kept


def pool(activation: Tensor, size: int) -> Tensor:
    """Average a map over ``size x size`` cells and flatten it.

    Parameters
    ----------
    activation : Tensor of shape (n, channels, height, width)
    size : int
        Cells along each side. Where the map has fewer pixels than cells, pixels are repeated.

    Returns
    -------
    Tensor of shape (n, channels * size * size), float32

    Examples
    --------
    >>> pool(torch.arange(4.0).reshape(1, 1, 2, 2), 1)
    tensor([[1.5000]])
    """
    return F.adaptive_avg_pool2d(activation.float(), size).flatten(1)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and each of its modules back into its own afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _hooks(network: nn.Module, names: Sequence[str], act: Callable[[str, Any], None]) -> Iterator[None]:
    handles = []
    owner = threading.get_ident()  # a network may be shared: the passes of other threads are none of ours
    try:
        for name in names:
            # The name is bound as a default: a closure would see the loop's last one.
            def hook(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                if threading.get_ident() == owner:
                    act(name, output)

            with _HOOKING:
                handles.append(network.get_submodule(name).register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()
