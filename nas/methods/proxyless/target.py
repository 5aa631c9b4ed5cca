"""What the search pays attention to beside accuracy: a cost in the loss, and a hard cap."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from torch import Tensor

from nas.methods.proxyless.costs import (
    OVERHEAD,
    CostTable,
    Layer,
    add_linear,
    cost_table,
    latency_tensor,
    macs,
    mul_log,
    named_lookup,
    roofline,
    weights,
)
from nas.methods.proxyless.derive import smallest
from nas.protocols import Limit
from nas.spaces.mbconv import MBConvSpace
from zoo.errors import InfeasibleError, InvalidInputError, UnknownNameError
from zoo.spec import BlockSpec, TensorSpec

CostKind: TypeAlias = Literal["latency", "flops"]
LossKind: TypeAlias = Literal["mul#log", "add#linear", "none"]

REFERENCES: Mapping[CostKind, float] = {"latency": 80.0, "flops": 300e6}
"""Default reference costs: milliseconds of the mobile phone, and multiply-accumulates."""

NOMINAL = {"gmacs": 5.0, "gbytes": 10.0}
"""The nominal device of the roofline, about one core of a phone; an order, not a time."""

_KINDS = {"latency_ms": "latency", "flops": "flops", "num_params": "weights"}


@dataclass(frozen=True, kw_only=True)
class CostLoss:
    """How a cost enters the loss of the architecture step.

    ``mul#log`` is ``alpha * CE * (ln E / ln ref) ** beta``, ``add#linear``
    ``CE + weight * (E - ref) / ref``.
    """

    kind: LossKind
    ref: float
    alpha: float
    beta: float
    weight: float

    def __call__(self, loss: Tensor, cost: Tensor) -> Tensor:
        """Return the loss of cross entropy ``loss`` and expected cost ``cost``."""
        if self.kind == "mul#log":
            return mul_log(loss, cost, ref=self.ref, alpha=self.alpha, beta=self.beta)
        if self.kind == "add#linear":
            return add_linear(loss, cost, ref=self.ref, weight=self.weight)
        return loss

    def check(self, table: CostTable, cardinalities: tuple[int, ...]) -> None:
        """Check that the loss is defined for every network of a space.

        Raises:
            UnknownNameError: There is no such loss.
            InvalidInputError: ``ref`` is not above 0, or a logarithm would not be above 0.
        """
        if self.kind not in get_args(LossKind):
            raise UnknownNameError("loss", str(self.kind), get_args(LossKind))
        if not self.ref > 0:
            raise InvalidInputError(f"ref is {self.ref}; it must be above 0")
        least = table.total(smallest(table, [[0.0] * options for options in cardinalities]))
        if self.kind == "mul#log" and min(self.ref, least) <= 1:
            raise InvalidInputError(
                f"the loss mul#log takes logarithms of ref ({self.ref:g}) and of costs (from "
                f"{least:.4g} on), which must be above 1; use the loss add#linear"
            )


@dataclass(frozen=True, kw_only=True)
class Cap:
    """A hard bound on one metric that is a sum over layers."""

    metric: str
    kind: str
    max: float
    table: CostTable


class Pricing:
    """Makes the tables of one task.

    Args:
        space: Whose layers to price.
        inputs: One image.
        num_classes: Classes of the task.
        latencies: Milliseconds by ``str(layer)``, and by ``overhead`` what a network takes
            beside its layers; None takes the roofline of a nominal device.
    """

    def __init__(
        self,
        space: MBConvSpace,
        *,
        inputs: TensorSpec,
        num_classes: int,
        latencies: Mapping[str, float] | None,
    ) -> None:
        self._space, self._latencies = space, latencies
        self._task: dict[str, Any] = {"inputs": inputs, "num_classes": num_classes}

    def table(self, kind: str) -> CostTable:
        """Return the table of ``latency``, ``flops`` or ``weights``.

        Raises:
            UnknownNameError: ``kind`` is none of them.
            InvalidInputError: A layer's latency is not known.
        """
        counted: dict[str, Callable[[Layer, BlockSpec], float]] = {
            "flops": macs,
            "weights": weights,
        }
        if kind in counted:
            return cost_table(self._space, counted[kind], **self._task)
        if kind != "latency":
            raise UnknownNameError("cost", kind, get_args(CostKind))
        if self._latencies is None:
            return cost_table(self._space, roofline(**NOMINAL), **self._task)
        found = latency_tensor(self._space, named_lookup(self._latencies), **self._task)
        return CostTable(found.fixed + self._latencies.get(OVERHEAD, 0.0), found.ops)

    def cap(self, limits: tuple[Limit, ...]) -> Cap | None:
        """Return the one cap among ``limits`` that a network can be derived under.

        Raises:
            InvalidInputError: There are several.
            InfeasibleError: No network of the space meets it.
        """
        caps = [limit for limit in limits if limit.max is not None and limit.metric in _KINDS]
        if len(caps) > 1:
            raise InvalidInputError(
                f"ProxylessNAS derives under one cap, not {len(caps)} "
                f"({', '.join(limit.metric for limit in caps)}); keep the one that matters"
            )
        if not caps or caps[0].max is None:
            return None
        kind = _KINDS[caps[0].metric]
        cap = Cap(metric=caps[0].metric, kind=kind, max=caps[0].max, table=self.table(kind))
        least = smallest(cap.table, [[0.0] * n for n in self._space.cardinalities()])
        if cap.table.total(least) > cap.max:
            reached = cap.table.total(least)
            raise InfeasibleError(
                f"no network of this space has {cap.metric} of at most {cap.max:g}: the smallest "
                f"reachable is {reached:.6g} "
                f"({self._space.summary(self._space.architecture(least))})",
                nearest={"choices": list(least), cap.metric: reached},
            )
        return cap
