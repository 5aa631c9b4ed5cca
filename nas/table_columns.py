"""What is in the columns of each published table, and how its rows are found."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nas.protocols import SearchSpace
from nas.spaces.nasbench101 import Cell, NasBench101Space
from nas.spaces.nats_size import WIDTHS
from zoo.errors import UnknownNameError
from zoo.families.nasbench101 import OPERATIONS as NB101_OPERATIONS
from zoo.spec import Architecture

Columns: TypeAlias = Mapping[str, NDArray[Any]]
Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Content:
    """Metrics, each ``(rows,)``, the choices of each row, and the row of each key."""

    metrics: Mapping[str, Floats]
    truth: Floats
    choices: tuple[tuple[int, ...], ...]
    rows: Mapping[Hashable, int]


class Reader(Protocol):
    """Makes metrics of columns."""

    def __call__(
        self, columns: Columns, *, data: str, accuracy: str | None, device: str | None
    ) -> Content:
        """Return what a search may see.

        Raises:
            UnknownNameError: There is no such data, accuracy or device in the table.
            KeyError: A column is missing.
        """


@dataclass(frozen=True, kw_only=True)
class Source:
    """One table: its file, the parameters of its space, and how to read and key its rows."""

    file: str
    published: Mapping[str, Sequence[object]]
    content: Reader
    key: Callable[[SearchSpace, Architecture], Hashable]


def nasbench201(
    columns: Columns, *, data: str, accuracy: str | None, device: str | None
) -> Content:
    """Read NAS-Bench-201; accuracies on three data sets, latency of 27 device settings."""
    name = _one_of("data", data, {"cifar10", "cifar100", "imagenet16-120"}).replace("-", "_")
    accuracies = {
        "validation-12": f"valacc_{name}_ep12",
        "test-12": f"testacc_{name}_ep12",
        "test-200": f"testacc_{name}_ep200",
    }
    metrics = {
        "accuracy": _floats(columns[_accuracy(accuracies, accuracy)]) / 100,
        "flops": _floats(columns[f"flops_{name}"]),
        "num_params": _floats(columns[f"params_{name}"]),
    }
    if device is not None:
        devices = {key.removeprefix("lat_") for key in columns if key.startswith("lat_")}
        metrics["latency_ms"] = _floats(columns[f"lat_{_one_of('device', device, devices)}"])
    choices = _digits(columns["ops"])
    return Content(
        metrics=metrics,
        truth=_floats(columns[accuracies["test-200"]]) / 100,
        choices=choices,
        rows=_numbered(choices),
    )


def nats_size(columns: Columns, *, data: str, accuracy: str | None, device: str | None) -> Content:
    """Read the NATS-Bench size space; multiply-adds and parameters are counted here."""
    _only_cifar10(data, device)
    _accuracy({"test": "testacc_cifar10"}, accuracy)
    widths = np.stack([columns[f"c{layer}"] for layer in range(5)], axis=1).astype(np.int64)
    flops, num_params = count_nats_size(widths)
    test = _floats(columns["testacc_cifar10"]) / 100
    index = {width: at for at, width in enumerate(WIDTHS)}
    choices = tuple(tuple(index[width] for width in row) for row in widths.tolist())
    return Content(
        metrics={"accuracy": test, "flops": flops, "num_params": num_params},
        truth=test,
        choices=choices,
        rows=_numbered(choices),
    )


def nasbench_macro(
    columns: Columns, *, data: str, accuracy: str | None, device: str | None
) -> Content:
    """Read NAS-Bench-Macro; the accuracy is the mean of three trainings."""
    _only_cifar10(data, device)
    _accuracy({"test": "mean_acc"}, accuracy)
    test = _floats(columns["mean_acc"]) / 100
    choices = _digits(columns["arch"])
    return Content(
        metrics={
            "accuracy": test,
            "flops": _floats(columns["flops"]),
            "num_params": _floats(columns["params"]),
        },
        truth=test,
        choices=choices,
        rows=_numbered(choices),
    )


def ecnas(columns: Columns, *, data: str, accuracy: str | None, device: str | None) -> Content:
    """Read the EC-NAS table: one row a cell, the means of its trainings."""
    _only_cifar10(data, device)
    chosen = _accuracy({"validation-4": "val_acc", "test-4": "test_acc"}, accuracy)
    hashes, first, row = np.unique(
        columns["model_hash"].astype(str), return_index=True, return_inverse=True
    )
    repeats = np.bincount(row)

    def mean(name: str) -> Floats:
        sums = np.bincount(row, weights=_floats(columns[name]))
        return _floats(sums / repeats)

    space = NasBench101Space()
    choices = tuple(
        space.encode(_cell(columns["adjacency"][at], columns["labels"][at])).choices for at in first
    )
    return Content(
        metrics={
            "accuracy": mean(chosen),
            "num_params": mean("trainable_params"),
            "training_energy_kwh": mean("energy_kwh"),
        },
        truth=mean("test_acc"),
        choices=choices,
        rows={str(value): at for at, value in enumerate(hashes)},
    )


def count_nats_size(widths: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Return multiply-adds and parameters of networks of the size space on 32x32 images.

    Args:
        widths: Shape ``(networks, 5)``.
    """
    c0, c1, c2, c3, c4 = widths.T
    convs: list[tuple[Any, Any, int, int, Any]] = [(3, c0, 3, 32, 1)]
    normed: list[Any] = [c0, c4]
    for given, made, side in ((c0, c0, 32), (c1, c2, 16), (c3, c4, 8)):
        projected = given != made
        convs += [(given, made, 3, side, 2), (made, made, 3, side, 3)]
        convs += [(given, made, 1, side, projected)]
        normed += [5 * made, projected * made]
    for given, made, side in ((c0, c1, 16), (c2, c3, 8)):
        convs += [(given, made, 3, side, 1), (made, made, 3, side, 1), (given, made, 1, side, 1)]
        normed += [2 * made]
    weights = [times * given * made * kernel**2 for given, made, kernel, _, times in convs]
    sides = [side for _, _, _, side, _ in convs]
    flops = sum(count * side**2 for count, side in zip(weights, sides, strict=True)) + 10 * c4
    num_params = sum(weights) + 2 * sum(normed) + 10 * c4 + 10
    return _floats(flops), _floats(num_params)


def _choices(space: SearchSpace, architecture: Architecture) -> Hashable:
    return architecture.choices


def _model_hash(space: SearchSpace, architecture: Architecture) -> Hashable:
    assert isinstance(space, NasBench101Space)
    return space.model_hash(architecture)


def _cell(adjacency: str, labels: str) -> Cell:
    matrix = json.loads(adjacency)
    return Cell(
        operations=tuple(NB101_OPERATIONS[label] for label in json.loads(labels)[1:-1]),
        edges=tuple(
            (source, target)
            for source, row in enumerate(matrix)
            for target, edge in enumerate(row)
            if edge
        ),
    )


def _only_cifar10(data: str, device: str | None) -> None:
    _one_of("data", data, {"cifar10"})
    if device is not None:
        _one_of("device", device, ())


def _accuracy(columns: Mapping[str, str], name: str | None) -> str:
    if name is None:
        return next(iter(columns.values()))
    return columns[_one_of("accuracy", name, columns)]


def _one_of(kind: str, name: str, choices: Any) -> str:
    if name not in choices:
        raise UnknownNameError(f"{kind} of this table", name, choices)
    return name


def _digits(texts: NDArray[Any]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(map(int, text)) for text in texts)


def _numbered(choices: Sequence[tuple[int, ...]]) -> dict[Hashable, int]:
    return {row: at for at, row in enumerate(choices)}


def _floats(values: NDArray[Any]) -> Floats:
    return values.astype(np.float64)


SOURCES: Mapping[str, Source] = {
    "nas-bench-201": Source(
        file="nasbench201.parquet",
        published={"channels": (16,), "cells": (5,)},
        content=nasbench201,
        key=_choices,
    ),
    "nats-bench-size": Source(
        file="natsbench_size_cifar10.parquet",
        published={"widths": (list(WIDTHS),)},
        content=nats_size,
        key=_choices,
    ),
    "nas-bench-macro": Source(
        file="nasbench_macro_cifar10.parquet",
        published={"channels": (32,)},
        content=nasbench_macro,
        key=_choices,
    ),
    "nas-bench-101": Source(
        file="ecnas_nb101_4v5v_4epochs.parquet",
        published={"vertices": (5,), "edges": (9,), "channels": (128,), "cells": (3,)},
        content=ecnas,
        key=_model_hash,
    ),
}
"""The tables by the name of their space."""
