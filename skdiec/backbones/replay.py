"""Forward and backward passes as CUDA graphs: one launch in place of some thousand, for which small networks wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_CAPTURING = threading.Lock()
"""Held while a graph is captured: the memory of graphs is set up for the whole process."""


class ReplayedPass:
    """A loss and its gradients, computed by replaying a CUDA graph.

    Parameters
    ----------
    loss : callable
        Returns a scalar tensor of the inputs. It must launch the same kernels in each call.
    parameters : sequence of Tensor
        What to compute gradients of. Their ``grad`` belongs to the graph from now on.
    inputs : sequence of Tensor
        On a CUDA device. All calls take tensors of these shapes and types.
    """

    def __init__(self, loss: Callable[..., Tensor], parameters: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
        self._inputs = [tensor.clone() for tensor in inputs]
        device = self._inputs[0].device
        with _CAPTURING, torch.cuda.device(device):
            # Libraries choose their kernels in the first calls, which a graph could not hold.
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for _ in range(3):
                    torch.autograd.grad(loss(*self._inputs), parameters)
            torch.cuda.current_stream(device).wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._loss = loss(*self._inputs)
                gradients = torch.autograd.grad(self._loss, parameters)
        self._loss = self._loss.detach()
        self._parameters, self._gradients = parameters, gradients

    def fits(self, inputs: Sequence[Tensor]) -> bool:
        """Whether a call can take these tensors."""
        return all(ours.shape == theirs.shape for ours, theirs in zip(self._inputs, inputs, strict=True))

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return the loss, and leave the gradients in the parameters; both are overwritten by the next call."""
        for ours, theirs in zip(self._inputs, inputs, strict=True):
            ours.copy_(theirs)
        self._graph.replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return self._loss
