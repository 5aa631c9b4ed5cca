"""A toy search space whose networks train in milliseconds, and fail on request."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from nas.methods.ranking import Ranked
from nas.methods.stepping import Sampling
from nas.plugins import MethodContext
from nas.protocols import StepReport
from zoo.builders import build_chain, register
from zoo.canonical import Json
from zoo.errors import InvalidInputError
from zoo.spec import Architecture, BlockSpec, TensorSpec


class ToySpace:
    """One hidden layer of a chosen width; a second variable changes nothing at all.

    Args:
        widths: What may be chosen.
        twins: Options of the variable that changes nothing.
        faults: Width → what training that network does: segfault, hang, memory, nan, raise.
        delay_s: How long each training step sleeps.
    """

    def __init__(
        self,
        widths: tuple[int, ...] = (4, 8, 16, 32),
        twins: int = 2,
        faults: Mapping[str, str] | None = None,
        delay_s: float = 0.0,
    ) -> None:
        self.widths = tuple(widths)
        self.twins = twins
        self.faults = dict(faults or {})
        self.delay_s = delay_s

    def describe(self) -> dict[str, Json]:
        return {
            "name": "toy",
            "params": {
                "widths": list(self.widths),
                "twins": self.twins,
                "faults": dict(self.faults),
                "delay_s": self.delay_s,
            },
        }

    def cardinalities(self) -> tuple[int, ...]:
        return len(self.widths), self.twins

    def size(self) -> int:
        return len(self.widths) * self.twins

    def sample(self, rng: random.Random) -> Architecture:
        return self._make(rng.randrange(len(self.widths)), rng.randrange(self.twins))

    def mutate(self, architecture: Architecture, rng: random.Random) -> Architecture:
        return rng.choice(list(self.neighbours(architecture)))

    def neighbours(self, architecture: Architecture) -> Iterator[Architecture]:
        width, twin = architecture.choices
        yield from (self._make(i, twin) for i in range(len(self.widths)) if i != width)
        yield from (self._make(width, i) for i in range(self.twins) if i != twin)

    def check(self, architecture: Architecture) -> None:
        limits = self.cardinalities()
        fits = len(architecture.choices) == 2 and all(
            0 <= choice < limit for choice, limit in zip(architecture.choices, limits, strict=True)
        )
        if not fits:
            raise InvalidInputError(f"choices {architecture.choices} are not below {limits}")

    def blocks(
        self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int
    ) -> tuple[BlockSpec, ...]:
        width = self.widths[architecture.choices[0]]
        hidden = TensorSpec(shape=(width,))
        params: dict[str, Json] = {"delay_s": self.delay_s}
        if str(width) in self.faults:
            params["fault"] = self.faults[str(width)]
        return (
            BlockSpec(op="toy.stem", params=params, inputs=(inputs,), outputs=(hidden,)),
            BlockSpec(op="toy.head", inputs=(hidden,), outputs=(TensorSpec(shape=(num_classes,)),)),
        )

    def build(
        self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int
    ) -> nn.Module:
        return build_chain(self.blocks(architecture, inputs=inputs, num_classes=num_classes))

    def summary(self, architecture: Architecture) -> str:
        return f"width {self.widths[architecture.choices[0]]}"

    def _make(self, width: int, twin: int) -> Architecture:
        return Architecture(space=self.describe(), choices=(width, twin))


class ToyListed(Sampling):
    """Proposes the architectures that it is given, in order.

    Args:
        context: The space they are of.
        choices: What each of them chooses.
    """

    def __init__(self, context: MethodContext, choices: Sequence[Sequence[int]]) -> None:
        super().__init__(context, len(choices))
        self._choices = choices

    def _ask(self, seed: int) -> tuple[int, ...]:
        return tuple(self._choices[len(self._records)])

    def _tell(self, ranked: Ranked | None) -> None:
        """Nothing is learnt."""

    def _forget(self) -> None:
        """Nothing was kept."""


class ToyDescent:
    """A method that lives in the trainer, and kills it once at each point that is named.

    Args:
        context: The space to sample.
        steps: How long it takes.
        crashes: ``"open"``, ``"step"``, ``"state"``, ``"best"`` → a path; where nothing is
            there yet, something is made and the process ends.
    """

    trains = True

    def __init__(
        self, context: MethodContext, steps: int = 3, crashes: Mapping[str, str] | None = None
    ) -> None:
        self._space = context.space
        self._steps = steps
        self._crashes = dict(crashes or {})
        self._done = 0
        self._crash("open")

    def step(self) -> StepReport:
        self._crash("step")
        self._done += 1
        time.sleep(0.3)
        return StepReport(
            step=self._done, total=self._steps, message="down", metrics={"loss": 1 / self._done}
        )

    def best(self, k: int) -> list[Architecture]:
        self._crash("best")
        if self._done < self._steps:
            raise InvalidInputError("asked for the best too early")
        return [self._space.sample(random.Random(0))]

    def state_dict(self) -> dict[str, int]:
        self._crash("state")
        return {"done": self._done}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._done = state["done"]

    def _crash(self, point: str) -> None:
        path = self._crashes.get(point)
        if path is not None and not Path(path).exists():
            Path(path).touch()
            os.kill(os.getpid(), signal.SIGKILL)


class Stem(nn.Module):
    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        features = 1
        for size in spec.inputs[0].shape:
            features *= size or 1
        self.linear = nn.Linear(features, spec.outputs[0].shape[0] or 1)
        self.fault = spec.params.get("fault")
        self.delay_s = float(spec.params.get("delay_s", 0.0))

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.linear(images.flatten(1)))
        if self.training and not hidden.is_meta and hidden.dtype == torch.float32:
            time.sleep(self.delay_s)
            hidden = self._misbehave(hidden)
        return hidden

    def _misbehave(self, hidden: Tensor) -> Tensor:
        if self.fault == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.fault == "hang":
            time.sleep(3600)
        if self.fault == "memory":
            kept = []
            while True:
                kept.append(torch.ones(4_000_000))
        if self.fault == "raise":
            raise ValueError("this candidate cannot be trained")
        return hidden * float("nan") if self.fault == "nan" else hidden


@register("toy.stem")
def build_stem(spec: BlockSpec) -> nn.Module:
    return Stem(spec)


@register("toy.head")
def build_head(spec: BlockSpec) -> nn.Module:
    return nn.Linear(spec.inputs[0].shape[0] or 1, spec.outputs[0].shape[0] or 1)
