"""Latency of operations that a table lacks: a roofline, and what the table adds to it.

The roofline of the device gives the coarsest feature; a residual model, fitted to the
table's own measurements, refines it for each kind of operator. It answers only for kinds
that were measured: what nothing is known of stays an error.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from nas.cost.operations import Operation
from nas.cost.predictor import Features, LatencyPredictor
from nas.cost.roofline import Roofline
from nas.cost.table import LatencyTable
from zoo.errors import InvalidInputError, NotFoundError


@dataclass(frozen=True, kw_only=True)
class OperationModel:
    """A fitted model of one device's operations, ``kinds`` those that were measured."""

    roofline: Roofline
    kinds: tuple[str, ...]
    predictor: LatencyPredictor

    @classmethod
    def fit(cls, table: LatencyTable) -> Self:
        """Fit to a table built on the device.

        Raises:
            InvalidInputError: Too few operations of the table say what they compute.
        """
        roofline = Roofline.fit(table)
        measured = [
            (_named(key, entry.macs, entry.moved_bytes), entry.median_ms)
            for key, entry in table.entries.items()
            if entry.moved_bytes and entry.median_ms > 0
        ]
        operations = [operation for operation, _ in measured]
        kinds = tuple(sorted({operation.name for operation in operations}))
        predictor = LatencyPredictor.fit(
            _features(operations, kinds, roofline), [latency for _, latency in measured]
        )
        return cls(roofline=roofline, kinds=kinds, predictor=predictor)

    def latency_ms(self, operations: Sequence[Operation]) -> float:
        """Return the sum over operations, each predicted.

        Raises:
            NotFoundError: Nothing of that kind was measured.
        """
        unknown = sorted({item.name for item in operations} - set(self.kinds))
        if unknown:
            raise NotFoundError(
                f"no operation of kind {unknown[0]} was measured on this device; "
                f"measured were: {', '.join(self.kinds)}"
            )
        if not operations:
            return 0.0
        features = _features(operations, self.kinds, self.roofline)
        return float(self.predictor.predict(features).sum())


def _named(key: str, macs: int, moved_bytes: int) -> Operation:
    try:
        content = json.loads(key)
        name, arguments, settings = content["op"], content["args"], content["kwargs"]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInputError(f"{key!r} names no operator; fit to a table built here") from error
    return Operation(
        name=name, arguments=arguments, settings=settings, macs=macs, moved_bytes=moved_bytes
    )


def _features(
    operations: Sequence[Operation], kinds: Sequence[str], roofline: Roofline
) -> Features:
    roof = np.array([[roofline.latency_ms([item])] for item in operations])
    kind = np.array([[item.name == name for name in kinds] for item in operations], dtype=float)
    return {
        "roofline": roof,
        "kinds": kind,
        "computed by kind": kind * np.array([[item.macs / 1e6] for item in operations]),
        "moved by kind": kind * np.array([[item.moved_bytes / 1e6] for item in operations]),
    }
