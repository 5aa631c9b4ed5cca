"""Cost counted, not measured: operations, parameters, bytes, and memory while running."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from nas.cost.tracing import BlockRuns, Layout, Run, Span, run, sample_layout
from zoo.spec import BlockSpec, TensorSpec


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of one network for a batch of one.

    ``flops`` counts multiply-accumulates of convolutions and matrix products (attention
    included), as the field's tables do: one MAC is one. ``num_params`` counts parameters,
    ``size_bytes`` the bytes of parameters and buffers, shared ones once. ``peak_bytes``
    is ``size_bytes`` plus the largest set of activations alive at once.
    """

    flops: int
    num_params: int
    size_bytes: int
    peak_bytes: int

    def metrics(self) -> dict[str, float]:
        """Return the cost under the names of ``zoo.spec.METRICS``."""
        return {
            "flops": float(self.flops),
            "num_params": float(self.num_params),
            "size_bytes": float(self.size_bytes),
            "peak_bytes": float(self.peak_bytes),
        }


def cost(module: nn.Module, inputs: TensorSpec) -> Cost:
    """Count what one sample costs, without computing anything.

    ``module`` is traced in eval mode on the meta device and left as it was. An activation
    is alive from the operator that writes it to the last operator that reads it, in the
    order of ``forward``; views share their bytes, the input and the output count, an
    operator's own workspace does not.

    Args:
        module: Takes one tensor ``(batch, *inputs.shape)``.
        inputs: Shape of one sample; every dimension must be known.

    Raises:
        IncompatibleShapeError: ``inputs`` has a free dimension or ``module`` rejects it.
        InvalidInputError: ``module`` executes an operator that cannot be counted.
    """
    sample = sample_layout(inputs)
    return _sum(sample, [run(module, [sample])])


class ChainCosts:
    """Counts chains of blocks exactly as ``cost`` counts them built, each block only once."""

    def __init__(self) -> None:
        self._runs = BlockRuns()

    def cost(self, specs: Sequence[BlockSpec], inputs: TensorSpec) -> Cost:
        """Count what one sample costs.

        Args:
            specs: The chain; its first block takes ``inputs``.
            inputs: Shape of one sample; every dimension must be known.

        Raises:
            IncompatibleShapeError: ``inputs`` has a free dimension, or a block rejects what it
                is given.
            InvalidInputError: A block executes an operator that cannot be counted.
            UnknownNameError: No family registers a block's operation.
        """
        sample = sample_layout(inputs)
        return _sum(sample, self._runs.of(specs, sample))


def count_macs(module: nn.Module, inputs: Sequence[TensorSpec]) -> int:
    """Return the multiply-accumulates of one sample, for a module of one or several inputs.

    Args:
        module: Takes tensors ``(batch, *shape)``; left as it was.
        inputs: Shapes of one sample; every dimension must be known.

    Raises:
        IncompatibleShapeError: A dimension is free, or ``module`` rejects the inputs.
        InvalidInputError: ``module`` executes an operator that cannot be counted.
    """
    samples = [sample_layout(spec)._replace(storage=number) for number, spec in enumerate(inputs)]
    return run(module, samples).macs


def _sum(sample: Layout, runs: Iterable[Run]) -> Cost:
    """Return what modules cost that run one after another, the first on ``sample``."""
    macs = num_params = size_bytes = steps = 0
    spans = [Span(0, 0, sample.nbytes)]
    inputs = [0]  # the spans of the next module's inputs
    for part in runs:
        for number, last in zip(inputs, part.read, strict=True):
            if last:
                spans[number] = spans[number]._replace(last=steps + last)
        numbers = [*inputs, *range(len(spans), len(spans) + len(part.spans))]
        spans += [Span(steps + first, steps + last, nbytes) for first, last, nbytes in part.spans]
        inputs = [numbers[kept] for kept in part.kept]
        macs += part.macs
        num_params += part.num_params
        size_bytes += part.size_bytes
        steps += part.steps
    for number in inputs:  # the result is alive to the end
        spans[number] = spans[number]._replace(last=steps + 1)
    return Cost(
        flops=macs,
        num_params=num_params,
        size_bytes=size_bytes,
        peak_bytes=size_bytes + _peak(spans),
    )


def _peak(spans: Iterable[Span]) -> int:
    """Return the largest sum of what is alive at one step."""
    change: dict[int, int] = {}
    for first, last, nbytes in spans:
        change[first] = change.get(first, 0) + nbytes
        change[last + 1] = change.get(last + 1, 0) - nbytes
    return max(itertools.accumulate(change[step] for step in sorted(change)))
