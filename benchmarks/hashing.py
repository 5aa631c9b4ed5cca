"""The functional hash: does it unite what is equal, keep apart what is not, and how fast?

- ``--pairs N``: N drawings of each space and what rewriting rules make of them, which
  computes the same; and N that differ in one small thing, and in function. Reported are the
  share of equals that were found and the number of near misses that were taken for equal.
- ``--classes``: all 15,625 cells of NAS-Bench-201, against a count by symbols alone.
- ``--throughput``: architectures hashed a second, by one process, for each space.

Without any of these: 200 pairs and throughput. Run:
``python benchmarks/hashing.py [--pairs N] [--classes] [--throughput] [--json]``.
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
from typing import Any

import report
import torch

from nas.graph import Graph
from nas.hashing import Hasher
from nas.identity import GraphSpace, graph_signature, network_signature
from nas.plugins import make_space
from nas.protocols import SearchSpace
from nas.rewriting import equal_pairs, near_misses
from serving.runners.devices import local_devices
from zoo.spec import Architecture, TensorSpec

INPUTS = TensorSpec(shape=(3, 32, 32))
NUM_CLASSES = 10

SPACES: dict[str, dict[str, Any]] = {
    "darts": {"cells": 2, "channels": 4, "nodes": 2},
    "nas-bench-101": {},
    "nas-bench-201": {},
}
"""Those that draw their networks; the others are timed only."""

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
    make: Callable[..., Iterator[tuple[Graph, Graph]]]
    make = equal_pairs if kind == "equal" else near_misses
    found = make(
        make_space(name, SPACES[name]), pairs, inputs=INPUTS, num_classes=NUM_CLASSES, seed=seed
    )
    return Count(pairs=pairs, united=sum(itertools.starmap(united, found)))


def united(first: Graph, second: Graph) -> bool:
    """Return whether a look-up of one would find the other."""
    one, other = graph_signature(first), graph_signature(second)
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
    space = make_space(name, SPACES.get(name, {}))
    rng = random.Random(0)
    network_signature(space, space.sample(rng), inputs=INPUTS, num_classes=NUM_CLASSES)
    started = time.monotonic()
    done = 0
    while (elapsed := time.monotonic() - started) < SECONDS:
        network_signature(space, space.sample(rng), inputs=INPUTS, num_classes=NUM_CLASSES)
        done += 1
    return done / elapsed


def main() -> int:
    """Run what was asked for and report it."""
    options = _parser().parse_args()
    names = [
        name
        for name in options.spaces or SPACES
        if isinstance(make_space(name, SPACES.get(name, {})), GraphSpace)
    ]
    everything = not (options.pairs or options.classes or options.throughput)
    torch.set_num_threads(1)
    results: dict[str, dict[str, float]] = {}
    details: dict[str, object] = {"settings": vars(options)}
    if everything or options.pairs:
        found = all_pairs(names, options.pairs or 200, options.processes)
        details["pairs"] = found
        for name, item in found.items():
            results[f"equals_found_{name}"] = report.result(item["found"], 0.995)
            results[f"false_merges_{name}"] = {"value": item["false_merges"]}
    if options.classes:
        counted = [classes(options.processes, memo=memo) for memo in (True, False)]
        details["nas_bench_201"] = counted
        results["nas_bench_201_hashes"] = report.result(
            counted[0]["hashes"], counted[0]["functions"]
        )
        results["nas_bench_201_seconds"] = report.result(counted[0]["seconds"], 120.0)
    if everything or options.throughput:
        for name in options.spaces or SPACES:
            results[f"hashes_per_s_{name}"] = {"value": round(throughput(name), 2)}
    if options.json:
        report.print_json(
            "hashing",
            device=local_devices()[0].to_json(),
            versions=report.versions("blockyard", "torch", "numpy"),
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
    return 1 if wrong else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=0, help="equal pairs, and near misses")
    parser.add_argument("--classes", action="store_true", help="every cell of NAS-Bench-201")
    parser.add_argument("--throughput", action="store_true")
    parser.add_argument("--spaces", nargs="*", help="names; those that draw their networks")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
