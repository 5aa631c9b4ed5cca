"""A trainer's duties for cost models: list operations, time each, time whole networks."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nas.cost.operations import Operation, Replay, operations_of, trace
from nas.data import DataSet
from nas.protocols import SearchSpace
from serving.runners.measure import measure
from serving.runners.meters import EnergyMeter, clocks, energy_meter
from serving.runners.protocols import BlockRunner
from serving.runners.torch_runner import TorchRunner
from workers.wire import Message
from zoo.builders import build_chain
from zoo.errors import NotFoundError
from zoo.rng import derive_seed
from zoo.spec import Architecture, TensorSpec

CALLS = 8
"""Calls in a row that make one sample: operations are shorter than the clock is fine."""

METERED_S = 0.5
"""How long a network runs for its energy to be read."""

Json = dict[str, Any]


class OperationRunner:
    """Executes one operation on tensors of its own; the shape of a ``BlockRunner``."""

    runtime = "torch"

    def __init__(
        self, operation: Operation, *, device: torch.device, precision: str, calls: int
    ) -> None:
        self.device, self.precision = str(device), precision
        self._calls = calls
        # As the runner has it: channels-last on the CPU, as given elsewhere.
        self._replay = Replay(
            operation,
            device=device,
            dtype=getattr(torch, precision),
            channels_last=device.type == "cpu",
        )

    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        for _ in range(self._calls):
            self._replay()
        return ()

    def close(self) -> None:
        """Nothing is held beyond the object's life."""


def operations(space: SearchSpace, data: DataSet, args: Json) -> Message:
    """List distinct operations: of given architectures, or of the whole space.

    The answer's ``networks`` are, for each architecture looked at one by one, positions
    in ``operations``; for a whole space, those of ``networks`` random architectures.
    """
    batch = args["batch"]
    if args.get("architectures") is None:
        found = operations_of(
            space,
            data.inputs,
            data.num_classes,
            batch=batch,
            samples=args["samples"],
            seed=args["seed"],
        )
        rng = random.Random(derive_seed(args["seed"], "additivity"))
        architectures = [space.sample(rng) for _ in range(args["networks"])]
    else:
        found = {}
        architectures = [Architecture.from_json(item) for item in args["architectures"]]
    networks = []
    for architecture in architectures:
        module = space.build(architecture, inputs=data.inputs, num_classes=data.num_classes)
        executed = trace(module, data.inputs, batch=batch)
        for operation in executed:
            found.setdefault(operation.key, operation)
        networks.append([operation.key for operation in executed])
    places = {key: number for number, key in enumerate(found)}
    head = {
        "kind": "operations",
        "operations": [operation.to_json() for operation in found.values()],
        "architectures": [architecture.to_json() for architecture in architectures],
        "networks": [[places[key] for key in keys] for keys in networks],
    }
    return Message(head)


def priced(module: nn.Module, inputs: TensorSpec, batch: int, prices: Mapping[str, float]) -> float:
    """Return the sum of the prices of what a module executes.

    Raises:
        NotFoundError: An operation has no price.
    """
    keys = [operation.key for operation in trace(module, inputs, batch=batch)]
    missing = [key for key in keys if key not in prices]
    if missing:
        raise NotFoundError(
            f"operation {missing[0]} of a layer alone is in no whole network, and has no price; "
            "measure the layers instead of taking them from a table"
        )
    return math.fsum(prices[key] for key in keys)


def time_operations(args: Json) -> Message:
    """Time operations one after another, each on its own."""
    device = torch.device(args["device"])
    entries = {}
    for item in args["operations"]:
        operation = Operation.from_json(item)
        runner: BlockRunner = OperationRunner(
            operation, device=device, precision=args["precision"], calls=CALLS
        )
        timing = measure(runner, (), batch=1, repeats=args["repeats"])
        each = sorted(sample / CALLS for sample in timing.samples)
        entries[operation.key] = {
            "median_ms": timing.median_ms / CALLS,
            "spread_ms": each[(3 * len(each)) // 4] - each[len(each) // 4],
            "count": len(each),
            "macs": operation.macs,
            "moved_bytes": operation.moved_bytes,
        }
    return Message({"kind": "entries", "entries": entries, "clocks": clocks(device)})


def time_network(space: SearchSpace, data: DataSet, args: Json) -> Message:
    """Time a whole untrained network, and meter its energy where there is a meter."""
    device = torch.device(args["device"])
    architecture = Architecture.from_json(args["architecture"])
    specs = space.blocks(architecture, inputs=data.inputs, num_classes=data.num_classes)
    runner = TorchRunner(
        build_chain(specs, seed=0),
        specs[0].inputs,
        specs[-1].outputs,
        device=device,
        precision=args["precision"],
    )
    try:
        timing = measure(runner, specs[0].inputs, batch=args["batch"], repeats=args["repeats"])
        meter = energy_meter(device)
        used = None if meter is None else _joules(runner, specs[0].inputs, args["batch"], meter)
    finally:
        runner.close()
    head: Mapping[str, Any] = {
        "kind": "network",
        "median_ms": timing.median_ms,
        "p95_ms": timing.p95_ms,
        "joules": used,
        "meter": meter.source if meter is not None else None,
    }
    return Message(head)


def _joules(
    runner: BlockRunner, inputs: Sequence[TensorSpec], batch: int, meter: EnergyMeter
) -> float | None:
    """Return the energy of one call, idle power included; None if the counter stood still."""
    calls, started, before = 0, time.perf_counter(), meter.joules()
    while time.perf_counter() - started < METERED_S:
        measure(runner, inputs, batch=batch, warmup=0, repeats=10)
        calls += 10
    used = (meter.joules() - before) / calls
    return used if used > 0 else None
