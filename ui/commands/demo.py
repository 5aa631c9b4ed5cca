"""``blockyard demo``: the main job in a fresh folder, then its front to look at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

import click

from ui.formats import metric
from ui.terminal import Command, Terminal, pass_terminal

FOLDER = Path("blockyard-demo")


@click.command(cls=Command)
@click.option("--seed", type=int, default=0, show_default=True)
@pass_terminal
def demo(terminal: Terminal, seed: int) -> None:
    """Run the main job on this machine: search, store, assemble, serve."""
    run = _fresh_folder()
    words = [sys.executable, "-m", "workers", "demo", "--dir", str(run), "--seed", str(seed)]
    code = subprocess.call(words, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    if code:
        raise SystemExit(code)
    report = json.loads((run / "demo.json").read_text())
    candidates = _candidates(report)
    _draw(run, candidates, report)
    best = _front(candidates)
    if terminal.json:
        terminal.answer(report | {"front": best})
        return
    terminal.table(
        ["front", "accuracy", "latency", "parameters", "from"],
        [_row(item) for item in best],
        values=best,
    )
    _say_what_next(terminal, run, report)


def _fresh_folder() -> Path:
    """Return the first unused ``blockyard-demo/run-N``; the run makes it."""
    return next(path for n in count(1) if not (path := FOLDER / f"run-{n}").exists())


def _candidates(report: dict[str, Any]) -> list[dict[str, Any]]:
    from zoo.client import Zoo

    with Zoo(report["url"]) as zoo:
        return [item.to_json() for job in report["jobs"].values() for item in zoo.candidates(job)]


def _front(candidates: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the searched candidates that no other beats in both metrics, fastest first."""
    from ui.fronts import costs, front

    scored = [
        item
        for item in candidates
        if item["arm"] == "search" and {"accuracy", "latency_ms"} <= item["metrics"].keys()
    ]
    speed = costs([item["metrics"]["latency_ms"] for item in scored], "minimize")
    errors = costs([item["metrics"]["accuracy"] for item in scored], "maximize")
    best = [scored[index] for index in front(speed, errors)]
    return sorted(best, key=lambda item: item["metrics"]["latency_ms"])


def _row(item: dict[str, Any]) -> tuple[str, ...]:
    metrics = item["metrics"]
    return (
        f"candidate {item['number']}",
        metric("accuracy", metrics["accuracy"]),
        metric("latency_ms", metrics["latency_ms"]),
        metric("num_params", metrics.get("num_params")),
        "an earlier evaluation" if item["reused"] else "its own training",
    )


def _draw(run: Path, candidates: list[dict[str, Any]], report: dict[str, Any]) -> None:
    from ui.charts import write_front_html, write_front_png

    names = {job: name for name, job in report["jobs"].items()}
    limits = [{"metric": "latency_ms", "max": report["limit_ms"]}]
    title = "Accuracy against measured latency on digits"
    for write, name in ((write_front_html, "front.html"), (write_front_png, "front.png")):
        write(run / name, candidates, names=names, limits=limits, title=title)


def _say_what_next(terminal: Terminal, run: Path, report: dict[str, Any]) -> None:
    url = report["url"]
    terminal.say(f"front: {run / 'front.html'} and {run / 'front.png'}")
    terminal.say(
        f"served accuracy {report['served_accuracy']:.3f}; "
        f"the whole run took {report['seconds']:.0f} s"
    )
    terminal.say("\nWhat to try next:")
    terminal.say(f"  blockyard --url {url} zoo list")
    terminal.say(f"  blockyard --url {url} chain export digits --format onnx -o digits.onnx")
    terminal.say(f"  blockyard --url {url} up")
