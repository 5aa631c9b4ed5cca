"""A training step as one CUDA graph: launched whole, without Python or waiting in between.

Source:
    PyTorch, "CUDA semantics", whole-network capture. Differs: the steps before the capture
    are real ones, so nothing has to be undone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[..., dict[str, Tensor]]
"""Takes tensors, changes its state in place, and returns what it measured."""

WARMUP_STEPS = 3
"""Steps run without a graph first: they create optimiser state and choose kernels."""


class GraphedStep:
    """``step``, captured as a graph after its first calls and replayed from then on.

    A call whose inputs have other shapes than the first runs without the graph. What a
    replay returns is overwritten by the next one.

    Args:
        step: Must not wait for the device, nor read anything but its inputs and tensors
            that are only ever changed in place.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._calls = 0
        self._inputs: tuple[Tensor, ...] = ()
        self._measured: dict[str, Tensor] = {}
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> dict[str, Tensor]:
        if not self._inputs:
            self._inputs = tuple(given.clone() for given in inputs)
        known = [static.shape for static in self._inputs]
        if [given.shape for given in inputs] != known:
            return self._step(*inputs)
        if self._calls < WARMUP_STEPS:
            self._calls += 1
            return self._aside(inputs)
        for static, given in zip(self._inputs, inputs, strict=True):
            static.copy_(given)
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            # Where replays run side by side, each on a stream of its own, it is captured there:
            # graphs captured on one stream share its cuBLAS workspace.
            present = torch.cuda.current_stream()
            own = None if present == torch.cuda.default_stream() else present
            with torch.cuda.graph(self._graph, stream=own):
                self._measured = self._step(*self._inputs)
        self._graph.replay()
        return self._measured

    def _aside(self, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Run the step on a stream of its own, as a later capture demands."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*capturable=True")
            measured = self._step(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        return measured
