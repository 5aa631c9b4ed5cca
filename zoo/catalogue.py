"""What can be searched, how and on which data, and whether a request names only that."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from zoo.errors import InvalidInputError, UnknownNameError
from zoo.schemas import (
    AssembleRequest,
    MeasureRequest,
    PreviewRequest,
    ProfileRequest,
    Schema,
    SearchRequest,
    TrainRequest,
)
from zoo.store.protocols import WorkerInfo

PLUGINS = ("spaces", "methods", "evaluators")
CATEGORIES = (*PLUGINS, "data")
ANY_DEVICE = "auto"

_RELATIVE = re.compile(r"[0-9A-Za-z_][0-9A-Za-z_.-]*(/[0-9A-Za-z_][0-9A-Za-z_.-]*){0,15}")


def catalogue(workers: tuple[WorkerInfo, ...]) -> dict[str, list[dict[str, Any]]]:
    """Merge what workers announced, in their order; of entries with one name the first counts."""
    merged: dict[str, dict[str, dict[str, Any]]] = {category: {} for category in CATEGORIES}
    for worker in workers:
        for category in CATEGORIES:
            entries = worker.catalogue.get(category)
            for entry in entries if isinstance(entries, list) else ():
                if isinstance(entry, Mapping) and isinstance(entry.get("name"), str):
                    merged[category].setdefault(str(entry["name"]), dict(entry))
    return {category: list(entries.values()) for category, entries in merged.items()}


def installed() -> dict[str, list[dict[str, Any]]]:
    """Return the names of the plug-ins that are installed here; none of them is imported."""
    return {
        category: [{"name": entry.name} for entry in entry_points(group=f"blockyard.{category}")]
        for category in PLUGINS
    }


def check_names(
    workers: tuple[WorkerInfo, ...], request: Schema, *, device: str | None, trusted: bool
) -> None:
    """Check a request's names against the live workers, without any against what is installed.

    Args:
        workers: Those that live.
        request: A request of some kind, validated.
        device: What the job is restricted to.
        trusted: Whether data may lie anywhere on a worker's disk, not only under its
            data folder.

    Raises:
        UnknownNameError: A method, space, evaluator, data set or device that no live
            worker has.
        InvalidInputError: A data path that leaves the workers' data folder.
    """
    search = request.search if isinstance(request, PreviewRequest) else request
    with_data = SearchRequest | MeasureRequest | TrainRequest
    data = search.data if isinstance(search, with_data) else None
    if data is not None and not trusted:
        _check_path(data)
    known = catalogue(workers) if workers else installed()
    if isinstance(search, SearchRequest):
        _check(known, "spaces", "search space", search.space.name)
        _check(known, "methods", "search method", search.method.name)
        _check(known, "evaluators", "evaluator", search.evaluator.name)
    if isinstance(search, TrainRequest) and search.space is not None:
        _check(known, "spaces", "search space", search.space.name)
    if not workers:
        return
    if data is not None and ":" not in data:
        _check(known, "data", "data set", data)
    wanted = {device} if device is not None else set()
    on_device = SearchRequest | TrainRequest | MeasureRequest | ProfileRequest | AssembleRequest
    if isinstance(search, on_device):
        wanted.add(search.device)
    _check_devices(workers, {name for name in wanted if name and name != ANY_DEVICE})


def _check(known: dict[str, list[dict[str, Any]]], category: str, kind: str, name: str) -> None:
    choices = [entry["name"] for entry in known[category]]
    if choices and name not in choices:
        raise UnknownNameError(kind, name, choices)


def _check_devices(workers: tuple[WorkerInfo, ...], wanted: set[str]) -> None:
    announced = [device for worker in workers for device in worker.devices]
    names = {device.name for device in announced} | {device.id for device in announced}
    for name in wanted - names:
        raise UnknownNameError("device", name, {device.name for device in announced})


def _check_path(data: str) -> None:
    """Refuse a path that could leave the folder that a worker keeps its data in."""
    kind, colon, path = data.partition(":")
    if colon and not _RELATIVE.fullmatch(path):
        raise InvalidInputError(
            f"data {data!r:.200} is no path within the workers' data folder; "
            f"name a folder or file there, such as {kind}:flowers"
        )
