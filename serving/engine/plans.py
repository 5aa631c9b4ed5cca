"""Which blocks fuse into which segments, and what is resident because of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from serving.engine.requests import Key, Piece, Plan, Segment
from serving.engine.types import EngineBlock, Runtime
from serving.runners.checks import row_checker
from serving.runners.inputs import random_input
from serving.runners.protocols import BlockRunner
from serving.runners.torch_runner import TorchRunner, prepared
from serving.scheduler import SegmentQueue, VirtualTime
from zoo.builders import ChainModule
from zoo.spec import TensorSpec

_END = ""


def partition(chains: Mapping[str, Sequence[str]]) -> dict[str, tuple[Key, ...]]:
    """Cut every chain into segments: the longest runs of blocks that always go together.

    Two blocks go together if, in all chains, the one is always followed by the other and
    the other always preceded by the one. So whoever runs a part of a segment runs all of
    it, and chains meet exactly at the segments that they share.

    Args:
        chains: Block ids of every chain, none empty.
    """
    after: dict[str, set[str]] = {}
    before: dict[str, set[str]] = {}
    for blocks in chains.values():
        for left, right in itertools.pairwise([_END, *blocks, _END]):
            after.setdefault(left, set()).add(right)
            before.setdefault(right, set()).add(left)
    paths: dict[str, tuple[Key, ...]] = {}
    for name, blocks in chains.items():
        runs: list[list[str]] = []
        for position, block in enumerate(blocks):
            last = blocks[position - 1] if position else _END
            if last != _END and after[last] == {block} and before[block] == {last}:
                runs[-1].append(block)
            else:
                runs.append([block])
        paths[name] = tuple(tuple(run) for run in runs)
    return paths


@dataclass(slots=True, kw_only=True)
class _Resident:
    block: EngineBlock
    module: nn.Module
    segments: int = 0


@dataclass(slots=True, kw_only=True)
class Residents:
    """The blocks and segments held on the device, each once, for as long as a plan needs it."""

    device: torch.device
    runtime: Runtime
    precision: str
    threads: int
    virtual: VirtualTime
    clock: Callable[[], float]
    segments: dict[Key, Segment] = field(default_factory=dict)
    _blocks: dict[str, _Resident] = field(default_factory=dict)

    @property
    def num_blocks(self) -> int:
        return len(self._blocks)

    @property
    def size_bytes(self) -> int:
        """Bytes of the resident blocks' parameters and buffers."""
        tensors = {
            (tensor.data_ptr(), tensor.nbytes)
            for resident in self._blocks.copy().values()
            for tensor in resident.module.state_dict(keep_vars=True).values()
        }
        return sum(size for _, size in tensors)

    def plan(
        self, chains: Mapping[str, tuple[EngineBlock, ...]], old: Mapping[str, Plan]
    ) -> dict[str, Plan]:
        """Return a plan for every chain, the old one where its path stays the same.

        New segments are built and run once before anything is handed out; if one fails,
        everything built for this call is released.

        Raises:
            RunnerError: A block fails on a sample of its declared input.
            CorruptArtifactError: A segment cannot be exported for ONNX Runtime.
        """
        paths = partition({name: [block.id for block in chains[name]] for name in chains})
        blocks = {block.id: block for chain in chains.values() for block in chain}
        plans: dict[str, Plan] = {}
        made: list[Plan] = []
        try:
            for number, name in enumerate(sorted(paths, key=lambda name: sum(paths[name], ()))):
                keys = paths[name]
                known = old.get(name)
                if known is None or tuple(segment.key for segment in known.path) != keys:
                    known = self._make(name, chains[name], [[blocks[i] for i in k] for k in keys])
                    made.append(known)
                known.number = number
                plans[name] = known
        except Exception:
            for plan in made:
                self.release(plan)
            raise
        return plans

    def release(self, plan: Plan) -> None:
        """Let go of a plan's segments; those that no plan needs are closed."""
        for segment in plan.path:
            segment.plans -= 1
            if segment.plans:
                continue
            del self.segments[segment.key]
            segment.runner.close()
            for block in set(segment.key):
                self._blocks[block].segments -= 1
                if not self._blocks[block].segments:
                    del self._blocks[block]

    def _make(
        self, name: str, chain: tuple[EngineBlock, ...], runs: Sequence[Sequence[EngineBlock]]
    ) -> Plan:
        check = row_checker(chain[0].inputs, f"model {name}")
        plan = Plan(name=name, blocks=chain, path=(), check=check)
        try:
            for run in runs:
                key = tuple(block.id for block in run)
                if key not in self.segments:
                    self.segments[key] = self._build(key, run)
                self.segments[key].plans += 1
                plan.path = (*plan.path, self.segments[key])
        except Exception:
            self.release(plan)
            raise
        return plan

    def _build(self, key: Key, run: Sequence[EngineBlock]) -> Segment:
        first, last = run[0], run[-1]
        modules = [self._module(block) for block in run]
        chain = ChainModule(*modules).eval()
        runner = self._runner(chain, first.inputs, last.outputs)
        queue = SegmentQueue[Piece](self.virtual, cost_s=0.0)
        segment = Segment(
            key=key,
            runner=runner,
            queue=queue,
            outputs=len(last.outputs),
            variable=any(None in spec.shape for spec in first.inputs),
        )
        queue.cost_s = self._warm(segment, first, last)
        for block, module in zip(run, modules, strict=True):
            self._blocks.setdefault(block.id, _Resident(block=block, module=module))
        for block_id in set(key):
            self._blocks[block_id].segments += 1
        return segment

    def _runner(
        self, chain: nn.Module, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> BlockRunner:
        if self.runtime == "torch":
            return TorchRunner(chain, inputs, outputs, device=self.device, precision=self.precision)
        # A host without ONNX still serves with PyTorch.
        from serving.runners.onnx_export import export_onnx
        from serving.runners.onnx_runner import OnnxRunner

        data = export_onnx(chain, inputs, outputs)
        return OnnxRunner(data, inputs, outputs, device=self.device, threads=self.threads)

    def _module(self, block: EngineBlock) -> nn.Module:
        resident = self._blocks.get(block.id)
        if resident is not None:
            return resident.module
        device = self.device if self.runtime == "torch" else torch.device("cpu")
        return prepared(block.module, device=device, precision=self.precision)

    def _warm(self, segment: Segment, first: EngineBlock, last: EngineBlock) -> float:
        """Run a sample twice; check it against the interface and return seconds per row."""
        generator = torch.Generator().manual_seed(0)
        sample = tuple(random_input(spec, 1, generator) for spec in first.inputs)
        check = row_checker(last.outputs, "the next block")
        check(segment.run(sample))
        start = self.clock()
        outputs = segment.run(sample)
        tuple(tensor.cpu() for tensor in outputs)
        return self.clock() - start
