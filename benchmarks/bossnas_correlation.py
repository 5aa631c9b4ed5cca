"""How well BossNAS ranks networks whose true accuracy a table holds.

Blocks are trained without labels on CIFAR-10; then every network of the table is scored by
its paths. Printed are the rank correlations with the table's final test accuracy, and the
true rank of the network that BossNAS selects. The table is read only after the search has
ended; the search sees neither test images nor labels.

Presets: ``full`` has the published settings of NATS-Bench (an estimated half an hour on one
H100), ``small`` is for two CPU cores (some ten minutes: few and small images, and with so few
updates a larger η and a target that follows faster), ``tiny`` only shows that everything
runs (on digits). With ``--state FILE`` a search is made in parts of ``--part-s`` seconds,
and saved every minute: run the same command again until it is done.

Beside them stands what costs alone would give: the correlations of multiply-accumulates and
of parameters, more taken as better, and the true rank of the network that has most of them.
As the larger network mostly is the better one, Kendall's correlation is also taken among
networks of like cost: within tenths of the table, cut by multiply-accumulates.

Keys of the JSON: ``kendall``, ``spearman``, ``pearson`` (baseline: the published value on the
size space) and ``true_rank`` (baseline: the published rank 65 of 32,768).

Run: ``BLOCKYARD_DATA=… python benchmarks/bossnas_correlation.py --preset small [--json]``.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import report
import torch
from numpy.typing import NDArray
from support.shrunk import shrunk

from nas.blockwise import Blockwise
from nas.checkpoint import pack, unpack
from nas.correlation import correlations, true_rank
from nas.data import DataSet, load_dataset
from nas.methods.bossnas import BossNAS, network_score
from nas.plugins import MethodContext, make_method, make_space
from nas.protocols import SearchSpace
from nas.tabular import Table, open_table
from serving.runners.devices import local_devices
from zoo.errors import BlockyardError, InvalidInputError

SPACES = ("nats-bench-size", "nas-bench-macro")

PUBLISHED = {"kendall": 0.534, "spearman": 0.734, "pearson": 0.718, "true_rank": 65}
"""Of the published ranking of the size space on CIFAR-10."""

COSTS = ("flops", "num_params")

PARTS = 10
"""Parts of a table within which networks are of like cost."""

SAVE_S = 60.0
"""Seconds of a search that a kill may cost."""

PRESETS: dict[str, dict[str, Any]] = {
    "full": {
        "data": "cifar10", "pixels": None, "images": None,
        "params": {"epochs": 50, "warmup_epochs": 2, "batch_size": 1024, "accumulate": 4},
    },
    "small": {
        "data": "cifar10", "pixels": 16, "images": 1536,
        "params": {
            "epochs": 4, "warmup_epochs": 1, "batch_size": 64, "accumulate": 1,
            "eta": 0.01, "ema": 0.95,
            "features": 256, "hidden": 512, "projection": 64, "ranking_images": 128,
            "calibration_images": 128,
        },
    },
    "tiny": {
        "data": "digits", "pixels": 8, "images": 32,
        "params": {
            "epochs": 1, "warmup_epochs": 0, "batch_size": 16, "accumulate": 1, "features": 16,
            "hidden": 16, "projection": 8, "ranking_images": 16, "calibration_images": 16,
        },
    },
}  # fmt: skip


def main() -> int:
    options = parse(sys.argv[1:])
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    try:
        space = make_space(options.space)
        data = images(options)
        context = MethodContext(space=space, seed=options.seed, data=data, device=device)
        method = make_method("bossnas", PRESETS[options.preset]["params"], context)
        assert isinstance(method, BossNAS)
        spent = search(method, options)
        if spent is None:
            return 0
        show(method, open_table(space, options.data), spent, options)
    except BlockyardError as error:
        print(f"bossnas_correlation: {error}", file=sys.stderr)
        return 1
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--data", type=Path, help="data folder; BLOCKYARD_DATA if omitted")
    parser.add_argument("--space", choices=SPACES, default=SPACES[0])
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--state", type=Path, help="file to go on from, and to save to")
    parser.add_argument("--part-s", type=float, default=450.0, help="seconds of a part")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.data is None and os.environ.get("BLOCKYARD_DATA"):
        options.data = Path(os.environ["BLOCKYARD_DATA"])
    return options


def images(options: argparse.Namespace) -> DataSet:
    """Return the preset's images."""
    preset = PRESETS[options.preset]
    data = load_dataset(preset["data"], root=options.data, seed=options.seed)
    count = preset["images"]
    return shrunk(data, images=count, held_out=count, pixels=preset["pixels"])


def search(method: BossNAS, options: argparse.Namespace) -> float | None:
    """Step to the end and return the seconds that it took; None if a part ended before."""
    terms = {name: getattr(options, name) for name in ("space", "preset", "seed")}
    spent, step = 0.0, 0
    if options.state is not None and options.state.is_file():
        saved = unpack(options.state.read_bytes())
        if (of := saved.get("terms")) != terms:
            raise InvalidInputError(f"{options.state} is of {of}, not of {terms}; name another")
        method.load_state_dict(saved["method"])
        spent, step = float(saved["spent_s"]), int(saved["method"]["step"])
    started = time.perf_counter()
    told = kept = started
    while step < method.total:
        done = method.step()
        step = done.step
        now = time.perf_counter()
        if now - told > 30:
            told = now
            print(f"{step} of {method.total}: {done.message} {dict(done.metrics)}", file=sys.stderr)
        over = now - started > options.part_s or done.done
        if options.state is not None and (over or now - kept > SAVE_S):
            kept = now
            state = {"method": method.state_dict(), "spent_s": spent + now - started}
            save(options.state, pack({"terms": terms, **state}))
            if over and not done.done:
                print(f"{done.message}; {step} of {method.total} steps: run it again to go on")
                return None
    return spent + time.perf_counter() - started


def save(path: Path, content: bytes) -> None:
    """Replace the file at once, so that a kill leaves the old one or the new one."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(content)
    fresh.replace(path)


def scores(method: BossNAS, cut: Blockwise, table: Table) -> list[float]:
    """Return the score of every network of the table; lower is better."""
    return [
        network_score(
            [
                ranked[path]
                for ranked, path in zip(
                    method.scores, cut.split(table.architecture(row)), strict=True
                )
            ]
        )
        for row in range(len(table))
    ]


def judged(predicted: NDArray[np.float64], chosen: int, table: Table) -> dict[str, float]:
    """Return how well ``predicted`` orders the table, and the true rank of row ``chosen``.

    ``kendall_like_flops`` is the mean of Kendall's correlation within ``PARTS`` parts of
    equally many networks, cut by multiply-accumulates.
    """
    parts = np.array_split(np.argsort(table.metrics["flops"], kind="stable"), PARTS)
    within = [correlations(predicted[rows], table.truth[rows]).kendall for rows in parts]
    return {
        **correlations(predicted, table.truth).to_json(),
        "true_rank": float(true_rank(table.truth, chosen)),
        "kendall_like_flops": float(np.mean(within)),
    }


def show(method: BossNAS, table: Table, spent: float, options: argparse.Namespace) -> None:
    space: SearchSpace = method.space
    (selected,) = method.best(1)
    row = table.row(selected)
    values = judged(-np.asarray(scores(method, method.cut, table)), row, table)
    costs = {
        name: judged(table.metrics[name], int(table.metrics[name].argmax()), table)
        for name in COSTS
    }
    judgements, accuracy = (values, *costs.values()), float(table.truth[row])
    if not options.json:
        report.print_table(
            f"{options.space}, preset {options.preset}: {len(table)} networks, {spent:.0f} s",
            ("", "here", "by FLOPs", "by parameters", "published (size space)"),
            [
                (name, *(f"{found[name]:.3f}" for found in judgements), PUBLISHED.get(name, ""))
                for name in values
            ],
        )
        print(
            f"selected {space.summary(selected)}: {100 * accuracy:.2f} %, true rank "
            f"{values['true_rank']:.0f} of {len(table)} (best {100 * table.truth.max():.2f} %)"
        )
        return
    device = next(item for item in local_devices() if item.name.startswith(options.device))
    report.print_json(
        "bossnas_correlation",
        device=device.to_json(),
        versions=report.versions("blockyard", "torch", "scipy"),
        results={name: report.result(values[name], PUBLISHED[name]) for name in PUBLISHED},
        details={
            "space": options.space,
            "preset": options.preset,
            "seed": options.seed,
            "seconds": round(spent, 1),
            "networks": len(table),
            "kendall_like_flops": values["kendall_like_flops"],
            "by_cost": costs,
            "selected": space.summary(selected),
            "selected_accuracy": accuracy,
            "best_accuracy": float(table.truth.max()),
        },
    )


if __name__ == "__main__":
    sys.exit(main())
