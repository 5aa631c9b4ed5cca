"""One-shot, few-shot and gradient matching on NAS-Bench-201 with equal budgets.

Epochs of all supernets together are those of the preset, and so is the number of candidates
that compete in the end. The state of everything is one checkpoint file, written every minute.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import report
import torch

from nas.checkpoint import pack, unpack
from nas.data import DataSet, load_dataset
from nas.methods.few_shot.plan import Schedule
from nas.methods.few_shot.presets import PRESETS as PUBLISHED
from nas.plugins import MethodContext, make_method
from nas.spaces.nasbench201 import NasBench201Space
from nas.tabular import Table, open_table
from support.shrunk import shrunk
from zoo.errors import InvalidInputError
from zoo.spec import Architecture

SAVE_S = 60.0
"""Seconds of a search that a kill may cost."""

TELL_S = 30.0
"""Seconds between two lines of progress."""

METHODS = ("one-shot", "few-shot", "gm-nas")
BASES = ("darts", "snas", "rsps")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Size of the supernet and of the data, and the schedule; None takes the published one."""

    channels: int
    cells: int
    images: int | None
    held_out: int | None
    schedule: Schedule | None
    batches: int
    candidates: int


PRESETS: Mapping[str, Preset] = {
    "full": Preset(
        channels=16, cells=5, images=None, held_out=None, schedule=None, batches=100, candidates=800
    ),
    "reduced": Preset(
        channels=4,
        cells=1,
        images=4000,
        held_out=1024,
        schedule=Schedule(checkpoints=(4, 8), groups=(2, 2), final_epochs=10, restart=True),
        batches=20,
        candidates=60,
    ),
}


def run(options: argparse.Namespace) -> int:
    """Run, or go on with, the comparison; 2 says that it is not finished."""
    if options.state is None:
        raise InvalidInputError("--nasbench201 needs --state FILE, in which it can go on")
    preset = PRESETS[options.nasbench201]
    deadline = time.monotonic() + 60 * options.minutes
    terms = {"preset": options.nasbench201, "version": 3}
    state: dict[str, Any] = {"terms": terms, "runs": {}}
    if options.state.exists():
        state = unpack(options.state.read_bytes())
        if state["terms"] != terms:
            raise InvalidInputError(f"{options.state} is of {state['terms']}, not of {terms}")
    whole = load_dataset("cifar10", root=options.data, seed=0)
    data = shrunk(whole, images=preset.images, held_out=preset.held_out)
    wanted = [
        (f"{method}:{base}@{seed}", method, base, seed)
        for seed in range(options.seeds)
        for base in options.bases
        for method in options.methods
    ]
    for key, method, base, seed in wanted:
        known = state["runs"].setdefault(key, {"state": None, "best": None, "seconds": 0.0})
        if known["best"] is None:
            search = searcher(method, base, seed, preset, data, options.device)
            advance(key, known, search, deadline, lambda: save(options.state, state))
            said = "done" if known["best"] else "to be continued"
            print(f"{key}: {said}, {known['seconds']:.0f} s", file=sys.stderr, flush=True)
        if known["best"] is None:
            print("not finished: run it again to go on", flush=True)
            return 2
    table = open_table(NasBench201Space(), options.data)
    summarise(table, {key: state["runs"][key] for key, *_ in wanted}, options)
    return 0


def searcher(method: str, base: str, seed: int, preset: Preset, data: DataSet, device: str) -> Any:
    """Build one search; all of one base have equal budgets."""
    published = PUBLISHED["nas-bench-201", base]
    schedule = preset.schedule or published.schedule
    budget = schedule.total_epochs
    space = NasBench201Space(channels=preset.channels, cells=preset.cells)
    context = MethodContext(space=space, seed=seed, data=data, device=torch.device(device))
    params = dict(published.base_params)
    nets = {"one-shot": 1, "few-shot": 5, "gm-nas": schedule.nets(schedule.splits)}[method]
    share = max(1, preset.candidates // nets) if base == "rsps" else 1
    if method == "one-shot":
        extra = {"candidates": share} if base == "rsps" else {}
        return make_method(base, {**params, **extra, "epochs": budget}, context)
    if method == "few-shot":
        final = budget // 7
        terms: dict[str, Any] = {"checkpoint": budget - 5 * final, "final_epochs": final}
    else:
        terms = {
            "checkpoints": schedule.checkpoints,
            "groups": schedule.groups,
            "final_epochs": schedule.final_epochs,
            "restart": schedule.restart,
            "fixed_schedule": schedule.fixed_schedule,
            "batches": preset.batches,
        }
    terms |= {"base": base, "base_params": params, "candidates": share}
    return make_method(method, terms, context)


def advance(
    key: str, known: dict[str, Any], search: Any, deadline: float, keep: Callable[[], None]
) -> None:
    """Step until the search, or the time of this call, is over; ``keep`` writes ``known``."""
    if known["state"] is not None:
        search.load_state_dict(known["state"])
    told = kept = last = time.monotonic()
    done = False
    while not done and last < deadline:
        step = search.step()
        done, now = step.done, time.monotonic()
        known["seconds"] += now - last
        last = now
        if done:
            known["best"] = list(search.best(1)[0].choices)
            known["decisions"] = list(getattr(search, "decisions", ()))
            known["state"] = None
            keep()
        elif now - kept > SAVE_S or now >= deadline:
            known["state"], kept = search.state_dict(), now
            keep()
        if now - told > TELL_S:
            told = now
            print(f"{key}: {step.step} of {step.total}, {step.message}", file=sys.stderr)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write the state so that a cut leaves the one before."""
    fresh = path.with_suffix(path.suffix + ".new")
    fresh.write_bytes(pack(state))
    fresh.replace(path)


def summarise(table: Table, runs: dict[str, Any], options: argparse.Namespace) -> None:
    """Look up what was chosen, and print it."""
    ranks = np.empty(len(table), dtype=int)
    ranks[np.argsort(-table.truth, kind="stable")] = np.arange(1, len(table) + 1)
    found: dict[str, list[tuple[float, int, float]]] = {}
    for key, known in runs.items():
        name = key.partition("@")[0]
        chosen = Architecture(space=table.space.describe(), choices=tuple(known["best"]))
        row = table.row(chosen)
        found.setdefault(name, []).append(
            (100 * float(table.truth[row]), int(ranks[row]), known["seconds"])
        )
    rows = [
        (
            name,
            f"{mean(accuracy for accuracy, *_ in items):.2f}",
            f"{stdev(accuracy for accuracy, *_ in items) if len(items) > 1 else 0:.2f}",
            ", ".join(f"{accuracy:.2f}" for accuracy, *_ in items),
            ", ".join(str(rank) for _, rank, _ in items),
            f"{mean(seconds for *_, seconds in items):.0f}",
        )
        for name, items in found.items()
    ]
    low, middle, high = (float(at) for at in np.quantile(100 * table.truth, (0.25, 0.5, 0.75)))
    half = f"half of all: {low:.2f}–{high:.2f}"
    rows.append(("median of the table", f"{middle:.2f}", "", half, str(len(table) // 2), ""))
    header = ("method", "test accuracy, %", "±", "each seed", "rank of 15,625", "s/search")
    if not options.json:
        best = 100 * float(table.truth.max())
        title = (
            f"NAS-Bench-201, {options.nasbench201}: what was chosen (the table's best: {best:.2f})"
        )
        report.print_table(title, header, rows)
        return
    results = {
        f"{name}": report.result(
            mean(accuracy for accuracy, *_ in items),
            mean(accuracy for accuracy, *_ in found[f"one-shot:{name.partition(':')[2]}"]),
        )
        for name, items in found.items()
        if not name.startswith("one-shot") and f"one-shot:{name.partition(':')[2]}" in found
    }
    report.print_json(
        "few_shot",
        device={"name": options.device},
        versions=report.versions("blockyard", "torch"),
        results=results,
        details={
            "preset": options.nasbench201,
            "seeds": options.seeds,
            "quartiles_of_the_table": [low, middle, high],
            "each": {name: [list(item) for item in items] for name, items in found.items()},
        },
    )
