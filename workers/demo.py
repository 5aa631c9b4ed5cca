"""The main job from end to end on the embedded default, in one fresh folder.

Search → blocks in the zoo → a chain assembled under a latency limit → one batch of
held-out images classified over HTTP. Nothing is reused between runs. The command
line draws the front afterwards from what ``demo.json`` in the folder names.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from nas.data import DataSet, load_dataset
from workers.duties import SPLIT_SEED
from workers.embedded import EmbeddedWorker
from zoo.client import Zoo
from zoo.errors import EnvironmentUnfitError, InfeasibleError, NotReadyError
from zoo.jobs import Arm, CandidateState, Job
from zoo.store import open_store

DATA = "digits"
OPS = ["none", "skip_connect", "avg_pool_3x3", "sep_conv_3x3", "dil_conv_3x3"]
SPACE = {"name": "darts", "params": {"cells": 3, "channels": 8, "nodes": 2, "ops": OPS}}
MIN_ACCURACY = 0.90
ALIAS = "digits"
SERVER_START_S = 60.0
FINAL = {"epochs": 12, "batch_size": 32, "lr": 0.05}


def gradient_search(seed: int) -> dict[str, Any]:
    """Return the request of the search in a supernet."""
    method = {
        "name": "pc-darts",
        # Short runs need a faster architecture than the published 6e-4 of 50 epochs.
        "params": {"epochs": 12, "warmup_epochs": 4, "batch_size": 64, "k": 2, "arch_lr": 6e-3},
    }
    return {"method": method, "space": SPACE, "data": DATA, "seed": seed, "final_recipe": FINAL}


def pareto_search(seed: int) -> dict[str, Any]:
    """Return the request of the search of accuracy against latency measured here."""
    return {
        "method": {"name": "nsga2", "params": {"candidates": 32}},
        "space": SPACE,
        "data": DATA,
        "seed": seed,
        "objectives": ["accuracy", "latency_ms"],
        "recipe": {"epochs": 2, "batch_size": 32, "lr": 0.05},
        "final_recipe": FINAL,
        "winners": 2,
        "baseline": True,
    }


console = Console(highlight=False, stderr=True)  # stdout is for the answer: the front


def main(argv: Sequence[str]) -> int:
    """Run the demo; the exit code is 0 only if the served model reaches the accuracy."""
    parser = argparse.ArgumentParser(prog="blockyard demo", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="a new folder for this run")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    folder: Path = options.dir
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise EnvironmentUnfitError(f"cannot make {folder}: {error}; name a new folder") from error
    started = time.monotonic()
    url = f"sqlite:///{folder / 'zoo.db'}"
    store = open_store(url)
    worker = EmbeddedWorker(store, data_root=None)
    worker.start()
    try:
        with Zoo(url) as zoo:
            report = _run(zoo, url, seed=options.seed)
    finally:
        worker.stop()
        store.close()
    report |= {"url": url, "seconds": round(time.monotonic() - started, 1)}
    (folder / "demo.json").write_text(json.dumps(report, indent=2))
    return 0


def _run(zoo: Zoo, url: str, *, seed: int) -> dict[str, Any]:
    console.rule("1/4 PC-DARTS: gradient-based search in a supernet")
    gradient = _follow(zoo, zoo.search(**gradient_search(seed)))
    _show_winners(zoo, gradient)
    console.rule("2/4 NSGA-II: accuracy against latency measured here, random search beside it")
    pareto = _follow(zoo, zoo.search(**pareto_search(seed)))
    _show_savings(zoo, pareto)
    _show_winners(zoo, pareto)
    console.rule("3/4 Assemble: the best chain under a latency limit")
    chain, limit_ms = _assemble(zoo)
    console.rule("4/4 Serve: one batch of held-out images over HTTP")
    accuracy, seconds = _serve(url, load_dataset(DATA, root=None, seed=SPLIT_SEED))
    return {
        "jobs": {"pc-darts": gradient.id, "nsga2": pareto.id},
        "chain": chain,
        "limit_ms": limit_ms,
        "served_accuracy": accuracy,
        "request_s": round(seconds, 3),
    }


def _follow(zoo: Zoo, job: Job) -> Job:
    """Show a job's progress until it has ended well."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("waiting for the worker", total=None)
        for state in zoo.watch(job.id):
            shown = state.progress
            progress.update(
                task,
                description=str(shown.get("message") or state.state),
                completed=_number(shown.get("step")),
                total=_number(shown.get("total")),
            )
    return zoo.wait(job.id)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _show_savings(zoo: Zoo, job: Job) -> None:
    evaluated = [item for item in zoo.candidates(job.id) if item.arm != Arm.WINNER]
    failed = sum(item.state == CandidateState.FAILED for item in evaluated)
    saved = zoo.savings(job.id)
    console.print(
        f"{len(evaluated)} candidates ({failed} failed): {saved['evaluations']:.0f} trained, "
        f"{saved['hits']:.0f} duplicates answered from the cache, "
        f"{saved['saved_s']:.1f} s of training saved"
    )


def _show_winners(zoo: Zoo, job: Job) -> None:
    assert job.result is not None  # a job that succeeded has one
    winners: Any = job.result["winners"]
    for winner in winners:
        chain = zoo.chain(winner["chain"])
        metrics = winner["metrics"]
        console.print(
            f"winner {chain.id[:12]}: {len(chain.blocks)} blocks, accuracy "
            f"{metrics['accuracy']:.3f}, {metrics['latency_ms']:.2f} ms, "
            f"{chain.num_params:,} parameters"
        )


def _assemble(zoo: Zoo) -> tuple[str, float]:
    """Assemble under a limit half-way between the zoo's fastest and slowest chain."""
    latencies = sorted(
        profile.median_ms
        for chain in zoo.chains(task=DATA)
        for profile in zoo.profiles(chain.id)
        if profile.runtime == "torch" and profile.batch == 1
    )
    if not latencies:
        raise InfeasibleError("no chain in the zoo has a measured latency; look at the job's log")
    limit_ms = round((latencies[0] + latencies[-1]) / 2, 3)
    limits = [{"metric": "latency_ms", "max": limit_ms}]
    job = _follow(zoo, zoo.assemble(task=DATA, limits=limits, name=ALIAS))
    assert job.result is not None  # a job that succeeded has one
    result: Any = job.result
    explanation = result["explanation"]
    console.print(f"limit: latency below {limit_ms} ms at batch 1")
    console.print(
        f"chosen {result['chain'][:12]}: accuracy {result['metrics']['accuracy']:.3f}, "
        f"{result['metrics']['latency_ms']:.2f} ms measured whole; "
        f"{explanation['considered']} considered"
    )
    for refused in explanation["refused"][:3]:
        console.print(f"refused {str(refused.get('chain') or 'recombination')[:12]}: ", end="")
        console.print(refused["why"], markup=False)
    return result["chain"], limit_ms


def _serve(url: str, data: DataSet) -> tuple[float, float]:
    """Classify the whole test split in one request to a fresh server; return (accuracy, s)."""
    images, labels = data.test.images, data.test.labels
    body = {
        "inputs": [
            {
                "name": "input_0",
                "shape": list(images.shape),
                "datatype": "UINT8",
                "data": images.flatten().tolist(),
            }
        ]
    }
    with _server(url) as base:
        began = time.monotonic()
        answer = httpx.post(f"{base}/v2/models/{ALIAS}/infer", json=body, timeout=60.0)
        seconds = time.monotonic() - began
    if answer.status_code != httpx.codes.OK:
        raise NotReadyError(f"the server answered {answer.status_code}: {answer.text[:300]}")
    output = answer.json()["outputs"][0]
    scores = output["data"]
    width = output["shape"][1]
    rows = [scores[start : start + width] for start in range(0, len(scores), width)]
    right = sum(
        max(range(width), key=row.__getitem__) == label
        for row, label in zip(rows, labels.tolist(), strict=True)
    )
    accuracy = right / len(labels)
    console.print(
        f"{len(labels)} images classified in {seconds * 1000:.0f} ms: accuracy {accuracy:.3f}"
    )
    if accuracy < MIN_ACCURACY:
        raise NotReadyError(
            f"the served model reached {accuracy:.3f}, below {MIN_ACCURACY}; run again with --seed"
        )
    return accuracy, seconds


@contextmanager
def _server(url: str) -> Iterator[str]:
    """Start ``blockyard serve`` on a free port and yield its address; stop it afterwards."""
    command = [sys.executable, "-m", "workers", "serve", "--db", url, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield _address(process)
    finally:
        process.terminate()
        process.wait(timeout=30)


def _address(process: subprocess.Popen[str]) -> str:
    """Read the server's output until it says where it listens."""
    assert process.stdout is not None  # opened with PIPE
    timer = threading.Timer(SERVER_START_S, process.kill)
    timer.start()
    lines = []
    for line in process.stdout:
        lines.append(line)
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        if found:
            timer.cancel()
            threading.Thread(target=process.stdout.read, daemon=True).start()
            console.print(f"server listens on {found.group()}")
            return found.group()
    timer.cancel()
    raise NotReadyError("the server did not start: " + "".join(lines)[-500:])
