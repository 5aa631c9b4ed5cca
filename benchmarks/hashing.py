"""The functional hash: does it unite what is equal, keep apart what is not, and how fast?

- ``--pairs N``: N drawings of each space and what rewriting rules make of them, which
  computes the same; and N that differ in one small thing, and in function. Reported are the
  share of equals that were found and the number of near misses that were taken for equal.
  A space without a drawing has its modules rewritten.
- ``--classes``: all 15,625 cells of NAS-Bench-201, against a count by symbols alone.
- ``--search``: candidates that searches see for their evaluations, see ``hashing_search``.
- ``--cost``: hashing beside the shortest evaluation, see ``hashing_cost``.
- ``--throughput``: architectures hashed a second, by one process, for each space.

Without any of these: 200 pairs and throughput. Run:
``python benchmarks/hashing.py [--pairs N] [--classes] [--search] [--cost] [--throughput]
[--data FOLDER] [--json]``.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hashing_cost
import hashing_search
import report
import torch

from nas.hashing import Hasher
from nas.identity import GraphSpace, graph_signature, identify_module, network_signature
from nas.module_rewriting import equal_modules, near_modules
from nas.plugins import catalogue, make_space
from nas.protocols import SearchSpace
from nas.rewriting import equal_pairs, near_misses
from serving.runners.devices import local_devices, usable_cores
from zoo.certificates import Signature
from zoo.errors import BlockyardError, MissingDataError
from zoo.spec import Architecture, TensorSpec

INPUTS = TensorSpec(shape=(3, 32, 32))
NUM_CLASSES = 10

SMALL: dict[str, dict[str, Any]] = {
    "darts": {"cells": 2, "channels": 4, "nodes": 2},
    "nasnet": {"cells": 1, "reductions": 1, "num_blocks": 3},
}
"""Settings under which a space is paired; the others are paired as they are by default."""

CHUNK = 50
SECONDS = 10.0
"""How long each space is timed."""


@dataclass(frozen=True, kw_only=True)
class Count:
    """Of ``pairs`` pairs, how many the hash took for one network."""

    pairs: int
    united: int

    def __add__(self, other: Count) -> Count:
        return Count(pairs=self.pairs + other.pairs, united=self.united + other.united)


def count_pairs(name: str, kind: str, pairs: int, seed: int) -> Count:
    """Hash ``pairs`` pairs of one kind; the seed says which."""
    torch.set_num_threads(1)
    space = make_space(name, SMALL.get(name, {}))
    make: Callable[..., Iterator[tuple[Any, Any]]]
    sign: Callable[[Any], Signature]
    if isinstance(space, GraphSpace):
        make, sign = (equal_pairs if kind == "equal" else near_misses), graph_signature
    else:
        make, sign = (equal_modules if kind == "equal" else near_modules), _module_signature
    found = make(space, pairs, inputs=INPUTS, num_classes=NUM_CLASSES, seed=seed)
    return Count(
        pairs=pairs, united=sum(united(sign(first), sign(other)) for first, other in found)
    )


def _module_signature(module: torch.nn.Module) -> Signature:
    return identify_module(module, (INPUTS,)).signature


def united(one: Signature, other: Signature) -> bool:
    """Return whether a look-up of one would find the other."""
    return one.among({other.key}) == other.key or other.among({one.key}) == one.key


def all_pairs(names: list[str], pairs: int, processes: int) -> dict[str, dict[str, Any]]:
    """Return, for each space, how many equals were found and how many others united."""
    sizes = [CHUNK] * (pairs // CHUNK) + [pairs % CHUNK] * bool(pairs % CHUNK)
    context = multiprocessing.get_context("spawn")
    found: dict[str, dict[str, Any]] = {}
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        for name in names:
            started = time.monotonic()
            counts = {}
            for kind in ("equal", "near"):
                jobs = [
                    pool.submit(count_pairs, name, kind, size, seed)
                    for seed, size in enumerate(sizes)
                ]
                counts[kind] = sum((job.result() for job in jobs), Count(pairs=0, united=0))
            found[name] = {
                "equal": asdict(counts["equal"]),
                "near": asdict(counts["near"]),
                "found": counts["equal"].united / counts["equal"].pairs,
                "false_merges": counts["near"].united,
                "seconds": round(time.monotonic() - started, 1),
            }
    return found


def classes(processes: int, *, memo: bool) -> dict[str, Any]:
    """Hash every cell of NAS-Bench-201 and hold the classes against those found by symbols."""
    from nas.spaces.nasbench201_functions import cell_function

    space = make_space("nas-bench-201")
    cells = itertools.product(*map(range, space.cardinalities()))
    architectures = [Architecture(space=space.describe(), choices=cell) for cell in cells]
    started = time.monotonic()
    with Hasher(
        space, inputs=INPUTS, num_classes=NUM_CLASSES, memo=memo, processes=processes
    ) as hasher:
        hashes = hasher.hashes(architectures)
    seconds = time.monotonic() - started
    functions = [cell_function(_operations(space, item)) for item in architectures]
    return {
        "cells": len(architectures),
        "functions": len(set(functions)),
        "hashes": len(set(hashes)),
        "both": len(set(zip(functions, hashes, strict=True))),
        "seconds": round(seconds, 1),
        "processes": processes,
        "memo": memo,
    }


def _operations(space: SearchSpace, architecture: Architecture) -> tuple[str, ...]:
    named: Any = space
    return tuple(named.operations(architecture))


def throughput(name: str) -> float:
    """Return how many random architectures of a space one process hashes a second."""
    space = make_space(name)
    rng = random.Random(0)
    network_signature(space, space.sample(rng), inputs=INPUTS, num_classes=NUM_CLASSES)
    started = time.monotonic()
    done = 0
    while (elapsed := time.monotonic() - started) < SECONDS:
        network_signature(space, space.sample(rng), inputs=INPUTS, num_classes=NUM_CLASSES)
        done += 1
    return done / elapsed


Results = dict[str, dict[str, float]]
Details = dict[str, object]


def report_pairs(options: argparse.Namespace, results: Results, details: Details) -> None:
    found = all_pairs(options.spaces, options.pairs or 200, options.processes)
    details["pairs"] = found
    for name, item in found.items():
        results[f"equals_found_{name}"] = report.result(item["found"], 0.995)
        results[f"false_merges_{name}"] = {"value": item["false_merges"]}


def report_classes(options: argparse.Namespace, results: Results, details: Details) -> None:
    counted = [classes(options.processes, memo=memo) for memo in (True, False)]
    details["nas_bench_201"] = counted
    for item in counted:
        form = "" if item["memo"] else "_no_memo"
        results[f"nas_bench_201_hashes{form}"] = report.result(item["hashes"], item["functions"])
        results[f"nas_bench_201_seconds{form}"] = report.result(item["seconds"], 120.0)


def report_search(options: argparse.Namespace, results: Results, details: Details) -> None:
    if options.data is None:
        raise MissingDataError("--search replays tables: give --data, or set BLOCKYARD_DATA")
    found = hashing_search.all_ratios(
        options.data, options.seeds, inputs=INPUTS, num_classes=NUM_CLASSES
    )
    details["search"] = found
    for name, item in found.items():
        results[f"candidates_per_evaluation:{name}"] = report.result(
            item["functional"][-1], item["no_cache"][-1]
        )
        results[f"same_front:{name}"] = {"value": float(item["same_front"])}
    results["candidates_per_evaluation"] = results[
        "candidates_per_evaluation:evolution@nas-bench-201"
    ]


def report_cost(options: argparse.Namespace, results: Results, details: Details) -> None:
    data_sets = hashing_cost.data_sets(options.data)
    costs: dict[str, object] = {}
    for name in options.spaces:
        for data_name, data in data_sets.items():
            found = hashing_cost.shares(make_space(name), data)
            costs[f"{name}@{data_name}"] = found
            results[f"hash_share_{name}@{data_name}"] = report.result(found["share"], 0.01)
            results[f"identity_share_{name}@{data_name}"] = report.result(
                found["share_with_proof"], 0.01
            )
    details["cost"] = costs


def report_throughput(options: argparse.Namespace, results: Results, _: Details) -> None:
    for name in options.spaces:
        results[f"hashes_per_s_{name}"] = {"value": round(throughput(name), 2)}


PARTS = {
    "pairs": report_pairs,
    "classes": report_classes,
    "search": report_search,
    "cost": report_cost,
    "throughput": report_throughput,
}


def main() -> int:
    """Run what was asked for and report it."""
    options = _parser().parse_args()
    torch.set_num_threads(1)
    results: Results = {}
    details: Details = {"settings": {**vars(options), "data": options.data is not None}}
    wanted = [name for name in PARTS if getattr(options, name)] or ["pairs", "throughput"]
    try:
        for name in wanted:
            PARTS[name](options, results, details)
    except BlockyardError as error:
        print(f"hashing: {error}", file=sys.stderr)
        return 1
    if options.json:
        report.print_json(
            "hashing",
            device=local_devices()[0].to_json(),
            versions=report.versions("blockyard", "torch", "numpy", "optuna"),
            results=results,
            details=details,
        )
    else:
        columns = ("value", "baseline", "ratio")
        rows = [
            (key, *(f"{item[column]:g}" if column in item else "" for column in columns))
            for key, item in results.items()
        ]
        report.print_table("functional hash", ("what", "value", "wanted", "ratio"), rows)
    wrong = any(item["value"] for key, item in results.items() if key.startswith("false_merges"))
    split = any(not item["value"] for key, item in results.items() if key.startswith("same_front"))
    return 1 if wrong or split else 0


def _parser() -> argparse.ArgumentParser:
    spaces = [item["name"] for item in catalogue()["spaces"]]
    data = os.environ.get("BLOCKYARD_DATA")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=0, help="equal pairs, and near misses")
    parser.add_argument("--classes", action="store_true", help="every cell of NAS-Bench-201")
    parser.add_argument("--search", action="store_true", help="candidates for an evaluation")
    parser.add_argument("--cost", action="store_true", help="beside the shortest evaluation")
    parser.add_argument("--throughput", action="store_true")
    parser.add_argument("--spaces", nargs="+", choices=spaces, default=spaces)
    parser.add_argument("--seeds", type=int, default=10, help="searches of each kind")
    parser.add_argument("--data", type=Path, default=Path(data) if data else None)
    parser.add_argument("--processes", type=int, default=usable_cores())
    parser.add_argument("--json", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
