"""Requests to image networks that share blocks: Blockyard against itself and LitServe.

Six networks of the DARTS space (``support/vision.py``) get requests of one image each, in turn,
from many connections that each wait for an answer before they send again. Every answer
is checked against PyTorch. Measured over HTTP with binary bodies, requests per second:

- ``batched_vs_single``: Blockyard, against the same server computing one request at a
  time (batch cap 1).
- ``vs_litserve``: Blockyard, against one LitServe server that holds all variants, with
  the best settings of a small grid (batch size, batch timeout, workers, threads). LitServe
  gets the cheapest form it offers: raw bytes, the same runners, batches grouped by variant.

The systems are measured in turns, round by round, and the medians are reported; whoever
is not measured is paused. Run: ``python benchmarks/serving_vision.py [--json]``.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import report
import torch
from support import blockyard_vision, vision
from support.load import Call, Load, drive
from support.processes import ServerProcess, http_request

from serving.runners.devices import local_devices, resolve
from serving.runners.inputs import random_input

WARMUP_S = 1.0
IMAGES = 16

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One server to measure: what it is called, how it is asked and where it runs."""

    name: str
    process: ServerProcess
    calls: tuple[Call, ...]


def main() -> int:
    options = parse(sys.argv[1:])
    say: Say = (lambda line: None) if options.json else (lambda line: print(line, flush=True))
    plain, binary = calls(options.cells, options.seed)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = f"sqlite:///{folder / 'zoo.db'}"
        blockyard_vision.fill(url, cells=options.cells, seed=options.seed)
        grid = try_litserve(options, plain, folder, say)
        best = max(grid, key=lambda settings: grid[settings])
        say(f"best LitServe settings: {best}")
        common = shared_options(options) | {"db": url, "lanes": max(1, options.threads // 2)}
        systems = [
            start(stack, "batched", "blockyard_vision", common | {"max_batch": 64}, binary, folder),
            start(stack, "single", "blockyard_vision", common | {"max_batch": 1}, binary, folder),
            start(stack, "litserve", "litserve_vision", json.loads(best), plain, folder),
        ]
        rounds = measure(systems, options, say)
    show(options, rounds, grid, best)
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runtime", choices=("torch", "onnx"), default="torch")
    parser.add_argument(
        "--threads",
        type=int,
        default=os.cpu_count() or 1,
        help="cores: LitServe may use all for workers, Blockyard half of them for lanes",
    )
    parser.add_argument("--cells", type=int, default=3, help="of each network")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=4.0, help="per measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="only see that it works")
    options = parser.parse_args(arguments)
    options.warmup_s = WARMUP_S
    if options.quick:
        options.seconds, options.rounds, options.warmup_s = 0.5, 1, 0.1
    options.device = str(resolve(options.device))
    return options


def shared_options(options: argparse.Namespace) -> dict[str, object]:
    return {"device": options.device, "runtime": options.runtime}


def calls(cells: int, seed: int) -> tuple[tuple[Call, ...], tuple[Call, ...]]:
    """Return the same questions for LitServe (raw bytes) and for Blockyard (KServe V2)."""
    generator = torch.Generator().manual_seed(seed)
    images = [random_input(vision.INPUT, 1, generator) for _ in range(IMAGES)]
    plain, binary = [], []
    networks = vision.networks(cells=cells, seed=seed)
    for image, (number, name) in itertools.product(images, enumerate(networks)):
        with torch.inference_mode():
            logits = networks[name][1](image)
        assert isinstance(logits, torch.Tensor)
        expected, data = logits.numpy().ravel(), image.numpy().tobytes()
        plain.append(
            Call(request=http_request("/predict", [bytes([number]), data], {}), expected=expected)
        )
        binary.append(Call(request=kserve_request(name, data), expected=expected))
    return tuple(plain), tuple(binary)


def kserve_request(model: str, data: bytes) -> bytes:
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": "input_0",
                    "shape": [1, *vision.INPUT.shape],
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": len(data)},
                }
            ],
            "parameters": {"binary_data_output": True},
        },
        separators=(",", ":"),
    ).encode()
    header += b" " * (-len(header) % 8)
    length = {"Inference-Header-Content-Length": str(len(header))}
    return http_request(f"/v2/models/{model}/infer", [header, data], length)


def try_litserve(
    options: argparse.Namespace, plain: tuple[Call, ...], folder: Path, say: Say
) -> dict[str, float]:
    """Return requests per second of every LitServe setting, keyed by the setting as JSON."""
    found = {}
    cores = options.threads
    workers = sorted({(1, 1), (1, cores), (cores, 1)})
    grid = list(itertools.product((8, 32), (0.002, 0.01), workers))
    for batch, timeout_s, (count, threads) in grid[-1:] if options.quick else grid:
        settings = shared_options(options) | {
            "cells": options.cells,
            "seed": options.seed,
            "workers": count,
            "threads": threads,
            "max_batch": batch,
            "batch_timeout_s": timeout_s,
        }
        with ServerProcess("litserve_vision", settings, folder / "litserve.log") as server:
            server.wait_until(plain[0].request)
            asyncio.run(
                drive(server.port, plain, clients=options.clients, seconds=options.warmup_s)
            )
            load = asyncio.run(
                drive(server.port, plain, clients=options.clients, seconds=options.seconds / 2)
            )
        found[json.dumps(settings)] = load.requests_per_s
        say(
            f"LitServe batch {batch}, timeout {timeout_s}, workers {count}, threads {threads}: "
            f"{load.requests_per_s:.0f} requests/s"
        )
    return found


def start(
    stack: ExitStack,
    name: str,
    script: str,
    settings: dict[str, object],
    questions: tuple[Call, ...],
    folder: Path,
) -> System:
    process = stack.enter_context(ServerProcess(script, settings, folder / f"{name}.log"))
    for question in questions[:IMAGES]:
        process.wait_until(question.request)
    process.pause()
    return System(name=name, process=process, calls=questions)


def measure(systems: list[System], options: argparse.Namespace, say: Say) -> dict[str, list[Load]]:
    """Measure every system once a round, in turns, after a warm-up in each turn."""
    rounds: dict[str, list[Load]] = {system.name: [] for system in systems}
    for number in range(options.rounds):
        for system in systems[number % len(systems) :] + systems[: number % len(systems)]:
            system.process.resume()
            for seconds in (options.warmup_s, options.seconds):
                load = asyncio.run(
                    drive(
                        system.process.port,
                        system.calls,
                        clients=options.clients,
                        seconds=seconds,
                    )
                )
            system.process.pause()
            rounds[system.name].append(load)
            say(f"round {number + 1}: {system.name} {load.requests_per_s:.0f} requests/s")
    return rounds


def show(
    options: argparse.Namespace, rounds: dict[str, list[Load]], grid: dict[str, float], best: str
) -> None:
    rate = {
        name: statistics.median(load.requests_per_s for load in loads)
        for name, loads in rounds.items()
    }
    results = {
        "batched_vs_single": report.result(rate["batched"], rate["single"]),
        "vs_litserve": report.result(rate["batched"], rate["litserve"]),
    }
    if not options.json:
        rows = [
            (
                name,
                f"{rate[name]:.0f}",
                f"{min(load.requests_per_s for load in loads):.0f}",
                f"{max(load.requests_per_s for load in loads):.0f}",
                f"{statistics.median(load.p50_ms for load in loads):.1f}",
                f"{statistics.median(load.p99_ms for load in loads):.1f}",
            )
            for name, loads in rounds.items()
        ]
        header = ("system", "requests/s", "lowest", "highest", "p50 ms", "p99 ms")
        report.print_table(f"{options.clients} clients, {options.runtime}", header, rows)
        for key, found in results.items():
            print(f"  {key}: {found['ratio']:.2f} times")
        return
    device = next(item for item in local_devices() if item.name == options.device)
    report.print_json(
        "serving_vision",
        device=device.to_json(),
        versions=report.versions("blockyard", "torch", "onnxruntime-gpu", "litserve", "uvicorn"),
        results=results,
        details={
            "settings": vars(options),
            "litserve_grid": [json.loads(key) | {"requests_per_s": grid[key]} for key in grid],
            "litserve_best": json.loads(best),
            "rounds": {
                name: [round(load.requests_per_s, 1) for load in loads]
                for name, loads in rounds.items()
            },
            "p99_ms": {
                name: round(statistics.median(load.p99_ms for load in loads), 2)
                for name, loads in rounds.items()
            },
        },
    )


if __name__ == "__main__":
    sys.exit(main())
