"""What a child costs beside its errors, and what its reward loses by that.

Counted costs are exact. Latency is a line in the time of a nominal device's roofline,
fitted to whole networks measured on the target device; outside a job, and for another
worker's device, the roofline itself stands in.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from nas.cost.analytic import cost
from nas.cost.operations import trace
from nas.cost.roofline import Roofline
from nas.methods.nasnet_ppo.ppo import constrained_reward
from nas.protocols import Limit
from nas.spaces.nasnet import NasnetSpace
from zoo.builders import ChainModule, build_chain
from zoo.errors import InvalidInputError
from zoo.families.nasnet import Cell, fixed_image
from zoo.rng import derive_seed
from zoo.spec import Architecture, BlockSpec, TensorSpec

NOMINAL = Roofline(macs_per_ms=5e6, bytes_per_ms=1e7, launch_ms=0.005)
"""About one core of a phone; an order, not a time."""

MEASURED = 8
"""Networks that the line of latency is fitted to."""

COUNTED = ("flops", "num_params", "size_bytes", "peak_bytes")


def latency_limit(limits: Sequence[Limit]) -> bool:
    """Return whether one of the limits caps latency."""
    return any(item.metric == "latency_ms" and item.max is not None for item in limits)


class Prices:
    """The costs of children that limits name, each counted once.

    Args:
        space: Whose children.
        inputs: One image.
        num_classes: Classes of the task.
        limits: Those on a cost with a maximum are heeded, others are not.
        latencies: What ``measure_latencies`` returned; None takes the nominal device.
        exponent: Of ``limit / cost`` in the reward.

    Raises:
        InvalidInputError: A limit is not above 0.
    """

    def __init__(
        self,
        space: NasnetSpace,
        *,
        inputs: TensorSpec,
        num_classes: int,
        limits: Sequence[Limit],
        latencies: Mapping[str, float] | None,
        exponent: float,
    ) -> None:
        self._space, self._inputs, self._num_classes = space, inputs, num_classes
        self._line = latencies or {"scale": 1.0, "overhead": 0.0}
        self._exponent = exponent
        self.limits: dict[str, float] = {
            item.metric: item.max
            for item in limits
            if item.max is not None and item.metric in (*COUNTED, "latency_ms")
        }
        for metric, most in self.limits.items():
            if not most > 0:
                raise InvalidInputError(f"the limit on {metric} is {most:g}; it must be above 0")
        self._known: dict[tuple[int, ...], dict[str, float]] = {}

    def of(self, architecture: Architecture) -> dict[str, float]:
        """Return the costs that the limits name."""
        if not self.limits:
            return {}
        found = self._known.get(architecture.choices)
        if found is None:
            found = self._known[architecture.choices] = self._count(architecture)
        return found

    def reward(self, accuracy: float, architecture: Architecture) -> float:
        """Return the accuracy times ``(limit / cost) ** exponent`` for every limit."""
        for metric, value in self.of(architecture).items():
            accuracy = constrained_reward(
                accuracy, value, ref=self.limits[metric], exponent=self._exponent
            )
        return accuracy

    def excess(self, architecture: Architecture) -> float:
        """Return the largest ratio of a cost to its limit; up to 1 all are met."""
        costs = self.of(architecture)
        return max((value / self.limits[name] for name, value in costs.items()), default=0.0)

    def state_dict(self) -> dict[str, float]:
        """Return the fitted line, which a resumed search must not measure again."""
        return dict(self._line)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on with the line of an earlier start."""
        self._line = {name: float(state[name]) for name in ("scale", "overhead")}
        self._known.clear()

    def _count(self, architecture: Architecture) -> dict[str, float]:
        specs = self._space.blocks(architecture, inputs=self._inputs, num_classes=self._num_classes)
        network = _build(specs)
        found: dict[str, float] = {}
        if "peak_bytes" in self.limits:
            found = cost(network, self._inputs).metrics()
        elif any(name in self.limits for name in COUNTED):
            found = count(network, specs)
        if "latency_ms" in self.limits:
            nominal_ms = NOMINAL.latency_ms(trace(network, self._inputs))
            found["latency_ms"] = self._line["scale"] * nominal_ms + self._line["overhead"]
        return {name: found[name] for name in self.limits}


def measure_latencies(
    space: NasnetSpace,
    measure: Callable[[Sequence[BlockSpec]], float],
    *,
    inputs: TensorSpec,
    num_classes: int,
) -> dict[str, float]:
    """Measure some networks and fit the line from the nominal device's time to theirs.

    Args:
        space: Whose networks to measure.
        measure: Returns the milliseconds of a chain of blocks with fresh weights.
        inputs: One image.
        num_classes: Classes of the task.

    Returns:
        ``scale`` and ``overhead`` (in ms), neither below 0.
    """
    from scipy.optimize import nnls  # takes long to import

    rng = random.Random(derive_seed(0, "nasnet-ppo", "latencies"))
    drawn = [
        space.blocks(space.sample(rng), inputs=inputs, num_classes=num_classes)
        for _ in range(MEASURED)
    ]
    nominal = [NOMINAL.latency_ms(trace(_build(specs), inputs)) for specs in drawn]
    measured = [measure(specs) for specs in drawn]
    (scale, overhead), _ = nnls(np.c_[nominal, np.ones(len(nominal))], np.asarray(measured))
    return {"scale": float(scale), "overhead": float(overhead)}


def count(network: ChainModule, specs: Sequence[BlockSpec]) -> dict[str, float]:
    """Return ``flops``, ``num_params`` and ``size_bytes`` as ``nas.cost.analytic`` counts them.

    From shapes alone, which is a hundred times faster than tracing every operator: a layer
    multiplies and adds each of its weights once for every pixel of its output.

    Args:
        network: Of ``NasnetSpace``.
        specs: Its blocks.
    """
    stem, *cells, head = network
    flops = _weights(stem) * _area(specs[0].outputs[0]) + _weights(head)
    for cell, spec in zip(cells, specs[1:-1], strict=True):
        assert isinstance(cell, Cell)
        flops += _cell_flops(cell, spec)
    kept = [*network.parameters(), *network.buffers()]
    return {
        "flops": float(flops),
        "num_params": float(sum(parameter.numel() for parameter in network.parameters())),
        "size_bytes": float(sum(tensor.numel() * tensor.element_size() for tensor in kept)),
    }


def _cell_flops(cell: Cell, spec: BlockSpec) -> int:
    before, after = spec.inputs[-1], spec.outputs[-1]
    inputs = (_weights(cell.current) + _weights(cell.previous)) * _area(before)
    inside = sum(_weights(part) for part in (cell.paths, cell.joins, cell.outputs)) * _area(after)
    # The first half of a factorised convolution that strides keeps the height.
    tall = sum(
        layer.weight.numel()
        for layer in cell.paths.modules()
        if isinstance(layer, nn.Conv2d) and layer.stride == (1, 2)
    )
    (_, height, _), (_, lower, width) = fixed_image(before), fixed_image(after)
    return inputs + inside + tall * (height - lower) * width


def _weights(module: nn.Module) -> int:
    return sum(
        layer.weight.numel()
        for layer in module.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    )


def _area(tensor: TensorSpec) -> int:
    _, height, width = fixed_image(tensor)
    return height * width


def _build(specs: Sequence[BlockSpec]) -> ChainModule:
    """Build a network without memory for its weights."""
    with torch.device("meta"):
        return build_chain(specs)
