"""The search step of PC-DARTS: fused against the original's, and the whole search on a GPU.

Steps, on the CIFAR supernet (8 cells, 16 channels, K = 4), architecture then weights:

- ``fused_vs_unfused``: steps per second of Blockyard's fused step, against the original's
  (every mixed edge on its own, all gradients computed, one optimiser update per tensor).
- ``peak_memory``: highest resident memory of the two, in MiB, over that before the network
  was built.

Each form runs in a process of its own; they step in turns, and medians are compared.
On a GPU the fused step is bfloat16 and captured in graphs, at batch 256.

The search, ``--search STATE``: 50 epochs on CIFAR-10 as published, in parts. Each run
goes on from the file STATE, stops after ``--part-s`` seconds at the latest, and says
how far it is; the last one ends with ``search_minutes``. Without a GPU it prints what it
would measure; with ``--quick`` it runs in a small form on any device.

Run: ``python benchmarks/search_step.py [--json]``, and on a GPU, until it is done,
``BLOCKYARD_DATA=… python benchmarks/search_step.py --search search.state [--json]``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import report
import torch

from nas import checkpoint
from nas.data import load_dataset
from nas.methods.pc_darts import PCDarts
from nas.plugins import MethodContext
from nas.spaces.darts import DartsSpace
from serving.runners.devices import local_devices, resolve

FORMS = ("reference", "unfused", "fused")
SAVE_S = 60.0

Say = Callable[[str], None]


def main() -> int:
    options = parse(sys.argv[1:])
    say: Say = (lambda line: None) if options.json else (lambda line: print(line, flush=True))
    if options.search is None:
        compare(options, say)
    else:
        search(options, say)
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--device", default="cpu", help="cpu, cuda:0 or auto")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--batch", type=int, help="images of a step; 16, or 256 on a GPU")
    parser.add_argument("--cells", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7, help="steps of each form, in turns")
    parser.add_argument("--search", type=Path, metavar="STATE", help="do a part of the search")
    parser.add_argument("--part-s", type=float, default=450.0, help="of one run of --search")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="only see that it works")
    options = parser.parse_args(arguments)
    if options.search is not None:
        options.device = "auto"
    options.device = str(resolve(options.device))
    gpu = options.device != "cpu"
    if options.quick:
        options.cells, options.rounds, options.batch = 3, 2, 4
    options.batch = options.batch or (256 if gpu else 16)
    return options


class Form:
    """One form of the step, waiting in its process."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        passed = {name: getattr(options, name) for name in ("device", "batch", "cells", "threads")}
        self._process = subprocess.Popen(
            [
                sys.executable,
                *("-m", "support.search_step_form", name),
                *(f"--{key}={value}" for key, value in passed.items()),
            ],
            cwd=Path(__file__).resolve().parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def step(self) -> float:
        """Let it take one step; return the seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._line())

    def finish(self) -> dict[str, float]:
        """Return its memory and end it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        found: dict[str, float] = json.loads(self._line())
        self._process.wait()
        return found

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a form of the step died; see its message above")
        return line


def compare(options: argparse.Namespace, say: Say) -> None:
    """Measure all forms in turns and report."""
    forms = {name: Form(name, options) for name in FORMS}
    warmup = 1 if options.device == "cpu" else 6
    for form in forms.values():
        for _ in range(warmup):
            form.step()
    times: dict[str, list[float]] = {name: [] for name in FORMS}
    for number in range(options.rounds):
        for name in (*FORMS[number % 3 :], *FORMS[: number % 3]):
            times[name].append(forms[name].step())
            say(f"round {number + 1}: {name} {times[name][-1]:.3f} s")
    memory = {name: form.finish() for name, form in forms.items()}
    median = {name: statistics.median(found) for name, found in times.items()}
    results = {
        "fused_vs_unfused": report.result(1 / median["fused"], 1 / median["reference"]),
        "peak_memory": report.result(memory["fused"]["peak"], memory["reference"]["peak"]),
    }
    if options.json:
        seconds = {name: [round(value, 4) for value in found] for name, found in times.items()}
        finish_json(options, results, {"step_s": seconds, "memory_mib": memory})
        return
    rows = [
        (
            name,
            f"{median[name]:.3f}",
            f"{min(times[name]):.3f}",
            f"{max(times[name]):.3f}",
            f"{memory[name]['peak']:.0f}",
            f"{memory[name]['saved']:.0f}",
        )
        for name in FORMS
    ]
    header = ("form", "s/step", "lowest", "highest", "peak MiB", "saved MiB")
    report.print_table(f"{options.cells} cells, batch {options.batch}", header, rows)
    for key, result in results.items():
        print(f"  {key}: {result['ratio']:.2f} times")


def search(options: argparse.Namespace, say: Say) -> None:
    """Go on with the search for one part, and report if it is done."""
    if options.device == "cpu" and not options.quick:
        print(
            "no GPU here. On one, this measures search_minutes: the whole 50-epoch PC-DARTS "
            "search on CIFAR-10 (8 cells, 16 channels, K = 4, batch 256), in parts of at "
            f"most {options.part_s:g} s; the aim is 5 minutes on an H100. "
            "--quick runs a small form here."
        )
        return
    method = searched(options)
    done, spent = False, 0.0
    if options.search.exists():
        state = checkpoint.unpack(options.search.read_bytes())
        method.load_state_dict(state["search"])
        done, spent = bool(state["done"]), float(state["seconds"])
    if not done:
        done, spent = advance(method, options, spent, say)
    if not done:
        say(f"not done yet after {spent:.0f} s: run it again")
        return
    results = {"search_minutes": report.result(spent / 60, 5.0)}
    if options.json:
        finish_json(options, results, {"genotype": str(method.genotype())})
    else:
        print(f"searched in {spent / 60:.2f} minutes: {method.genotype()}")


def searched(options: argparse.Namespace) -> PCDarts:
    root = os.environ.get("BLOCKYARD_DATA")
    name = "digits" if options.quick else "cifar10"
    data = load_dataset(name, root=Path(root) if root else None, seed=options.seed)
    space = DartsSpace(cells=options.cells, channels=16, nodes=1 if options.quick else 4)
    context = MethodContext(
        space=space, seed=options.seed, device=torch.device(options.device), data=data
    )
    small: dict[str, Any] = {"epochs": 2, "warmup_epochs": 1, "batch_size": 256}
    return PCDarts(context, **(small if options.quick else {}))


def advance(
    method: PCDarts, options: argparse.Namespace, before: float, say: Say
) -> tuple[bool, float]:
    """Step until the end or the end of this part; return whether it is over, and the seconds."""
    started = saved = time.perf_counter()
    while True:
        report_ = method.step()
        now = time.perf_counter()
        spent = before + now - started
        ends = report_.done or now - started >= options.part_s
        if report_.metrics:
            say(f"{report_.step}/{report_.total} {spent:.0f} s {report_.message}")
        if ends or now - saved >= SAVE_S:
            state = {"search": method.state_dict(), "seconds": spent, "done": report_.done}
            part = options.search.with_suffix(".part")
            part.write_bytes(checkpoint.pack(state))
            part.replace(options.search)
            saved = time.perf_counter()
        if ends:
            return report_.done, spent


def finish_json(
    options: argparse.Namespace, results: dict[str, dict[str, float]], details: dict[str, object]
) -> None:
    device = next(item for item in local_devices() if item.name == options.device)
    settings = {key: str(value) for key, value in vars(options).items()}
    report.print_json(
        "search_step",
        device=device.to_json(),
        versions=report.versions("blockyard", "torch"),
        results=results,
        details={"settings": settings} | details,
    )


if __name__ == "__main__":
    sys.exit(main())
