"""Few-shot search by gradient matching: what a decision costs, and what it finds.

- `gram_vs_pairwise`: milliseconds of processor time from the gradients of seven operations of
  a DARTS supernet (1.7 million shared weights) to the matrix of distances. Baseline is the
  published form, which for every pair concatenates the gradients of both anew; same
  gradients, same matrix.
- `gradient_passes`: forward and backward passes that the decision takes which edge of a
  NAS-Bench-201 supernet to split and how, with racing over edges; baseline measures every
  edge on all batches. Same supernets, same batches (CIFAR-10 at 16 pixels if its folder is
  given, else the digits); the decisions are compared.
- `decision_s`: seconds by the clock of these decisions, gradients included: the race with one
  product a batch; baseline measures everything, pair by pair.
- `together_vs_turns`: seconds by the clock for the gradients of four small sub-supernets of
  NAS-Bench-201, side by side as the search trains them; baseline is one after the other, with
  as many threads (`--cores`). `together_vs_stacked`: baseline is `torch.func.vmap` over their
  stacked weights.

With `--nasbench201` none of them is measured. Instead one supernet, the original few-shot split
and gradient matching search NAS-Bench-201 on CIFAR-10 with equal budgets (epochs and
candidates), over several seeds, and the table says how accurate what they chose truly is.
The table is opened for this report alone: no search sees it, nor the test images. `full` is
the published size on a GPU, `reduced` takes some 20 minutes of one CPU core. A run ends after
`--minutes` with exit status 2 and goes on from `--state`, which is written every minute, when
it is called again.

Run: ``python benchmarks/few_shot.py [--json]``,
``BLOCKYARD_DATA=… python benchmarks/few_shot.py --nasbench201 reduced --state FILE [--json]``.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import report
import torch
from support import few_shot_nasbench201 as contest
from support import few_shot_together
from support.shrunk import shrunk
from torch import Tensor

from nas.data import DataSet, load_dataset
from nas.methods.few_shot.matching import matching_distances
from nas.methods.few_shot.racing import Criterion, Race
from nas.methods.one_shot import OperationGradients
from nas.plugins import MethodContext, make_method
from nas.spaces.darts import DartsSpace
from nas.spaces.nasbench201 import NasBench201Space
from serving.runners.devices import local_devices, resolve
from zoo.errors import BlockyardError
from zoo.families.darts_operations import OPERATIONS

OPS = tuple(op for op in OPERATIONS if op != "none")


def main() -> int:
    options = parse(sys.argv[1:])
    torch.set_num_threads(options.threads)
    try:
        if options.nasbench201:
            return contest.run(options)
        gram = gram_vs_pairwise(options)
        passes = gradient_passes(options)
        torch.set_num_threads(options.cores)
        device = resolve(options.device)
        forms = few_shot_together.seconds(options.channels, device=device, repeats=options.repeats)
    except BlockyardError as error:
        print(f"few_shot: {error}", file=sys.stderr)
        return 1
    if options.json:
        print_json(gram, passes, forms, options)
    else:
        show(gram, passes, forms)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--data", type=Path, help="data folder; BLOCKYARD_DATA if omitted")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="of together_vs_turns")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5, help="timings of gram_vs_pairwise")
    parser.add_argument("--cells", type=int, default=8, help="of the DARTS supernet")
    parser.add_argument("--channels", type=int, default=8, help="of together_vs_turns")
    parser.add_argument("--batches", type=int, default=100, help="of gradient_passes")
    parser.add_argument("--steps", type=int, default=60, help="of training before the decision")
    parser.add_argument("--nasbench201", choices=contest.PRESETS, help="run the comparison")
    parser.add_argument("--bases", nargs="+", choices=contest.BASES, default=["rsps"])
    parser.add_argument("--methods", nargs="+", choices=contest.METHODS, default=contest.METHODS)
    parser.add_argument(
        "--device", default="cpu", help="e.g. cuda:0, for together_vs_turns and the comparison"
    )
    parser.add_argument("--state", type=Path, help="file in which the comparison goes on")
    parser.add_argument("--minutes", type=float, default=8.0, help="of one call")
    options = parser.parse_args(arguments)
    if options.data is None and os.environ.get("BLOCKYARD_DATA"):
        options.data = Path(os.environ["BLOCKYARD_DATA"])
    return options


def pairwise(gradients: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return D as published: both gradients of every ordered pair concatenated."""
    size = len(gradients)
    found = torch.zeros(size, size)
    for i in range(size):
        for j in range(size):
            first = torch.cat([gradient.reshape(-1) for gradient in gradients[i]])
            second = torch.cat([gradient.reshape(-1) for gradient in gradients[j]])
            norms = torch.norm(first) * torch.norm(second)
            found[i, j] = 1 - torch.sum(first * second) / (norms + 1e-6)
    return found


def unflattened(found: OperationGradients) -> list[list[Tensor]]:
    """Return the gradients as a backward pass leaves them, a tensor for each parameter."""
    sizes = [shape.numel() for shape in found.shapes]
    return [
        [
            part.clone().view(shape)
            for part, shape in zip(row.split(sizes), found.shapes, strict=True)
        ]
        for row in found.rows
    ]


def by_gram(gradients: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return D by one product of the rows, the copying into rows included."""
    rows = gradients[0][0].new_empty(len(gradients), sum(g.numel() for g in gradients[0]))
    for row, parts in zip(rows, gradients, strict=True):
        torch.cat([part.reshape(-1) for part in parts], out=row)
    return matching_distances(rows)


def gram_vs_pairwise(options: argparse.Namespace) -> dict[str, Any]:
    """Time both on the gradients of a DARTS supernet, in turns."""
    data = load_dataset("digits", root=None, seed=0)
    space = DartsSpace(cells=options.cells, ops=OPS)
    made: Any = make_method(
        "darts",
        {"fused": False, "batch_size": 4},
        MethodContext(space=space, seed=0, data=data),
    )
    found: OperationGradients = made.operation_gradients(0, 0, hard=False)
    gradients = unflattened(found)
    times: dict[str, list[float]] = {"gram": [], "pairwise": []}
    for _ in range(options.repeats):
        for name, form in (("gram", by_gram), ("pairwise", pairwise)):
            started = time.process_time()
            matrix = form(gradients)
            times[name].append(1e3 * (time.process_time() - started))
            if name == "gram":
                mine = matrix
    # Only the published form's 1e-6 beside the norms keeps the two apart.
    smallest = float(
        torch.stack([torch.cat([g.reshape(-1) for g in row]).norm() for row in gradients]).min()
    )
    return {
        "gram_ms": median(times["gram"]),
        "pairwise_ms": median(times["pairwise"]),
        "operations": len(gradients),
        "weights": found.rows.shape[1],
        "tensors": len(found.shapes),
        "largest_difference": float((mine - matrix).fill_diagonal_(0).abs().max()),
        "least_norm": smallest,
    }


def gradient_passes(options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything once, then let the race take from it what it asks for."""
    data = images(options)
    space = NasBench201Space(channels=4, cells=1)
    runs = []
    for seed in range(options.seeds):
        made: Any = make_method(
            "darts",
            {"batch_size": 48, "weight_decay": 5e-4, "nesterov": True, "warmup_epochs": 50},
            MethodContext(space=space, seed=seed, data=data),
        )
        for _ in range(options.steps):
            made.step()
        known: dict[tuple[int, int], Tensor] = {}
        ours, naive = {}, 0.0
        for edge, batch in product(range(6), range(options.batches)):
            started = time.perf_counter()
            found = made.operation_gradients(edge, batch, hard=True)
            taken = time.perf_counter()
            known[edge, batch] = matching_distances(found.rows)
            multiplied = time.perf_counter()
            ours[edge, batch] = multiplied - started
            parts = unflattened(found)
            concatenating = time.perf_counter()
            pairwise(parts)
            naive += taken - started + time.perf_counter() - concatenating
        races = [decided(known, options.batches, z) for z in (math.inf, 3.0)]
        print(f"decision {seed + 1} of {options.seeds}: {races[1].passes} passes", file=sys.stderr)
        runs.append(
            {
                "passes": races[1].passes,
                "raced_s": sum(
                    ours[edge, batch]
                    for edge, measured in races[1].samples.items()
                    for batch in range(len(measured))
                ),
                "naive_s": naive,
                "all": races[0].passes,
                "same": races[0].result() == races[1].result(),
                "decision": races[0].result(),
                "raced": races[1].result(),
            }
        )
    return {"data": data.name, "runs": runs}


def decided(known: dict[tuple[int, int], Tensor], batches: int, z: float) -> Race:
    race = Race(
        criterion=Criterion(groups=2, sizes="pair"), edges=tuple(range(6)), batches=batches, z=z
    )
    while not race.decided:
        race.round(lambda edge, batch: known[edge, batch])
    return race


def images(options: argparse.Namespace) -> DataSet:
    """Return CIFAR-10 at 16 pixels if it is there, or else the digits, which have as many."""
    if options.data is not None and (options.data / "cifar10").is_dir():
        whole = load_dataset("cifar10", root=options.data, seed=0)
        return shrunk(whole, images=12_000, held_out=0, pixels=16)
    return load_dataset("digits", root=None, seed=0)


def show(gram: dict[str, Any], passes: dict[str, Any], forms: dict[str, float]) -> None:
    title = (
        f"distances of {gram['operations']} gradients of {gram['weights']:,} weights in "
        f"{gram['tensors']} tensors"
    )
    ratio = gram["pairwise_ms"] / gram["gram_ms"]
    rows = [
        ("one product", f"{gram['gram_ms']:.1f}", ""),
        ("pair by pair", f"{gram['pairwise_ms']:.1f}", f"{ratio:.1f} times as long"),
    ]
    report.print_table(title, ("form", "ms", ""), rows)
    print(f"  largest difference {gram['largest_difference']:.1e}")
    report.print_table(
        f"gradient passes of one decision on NAS-Bench-201, {passes['data']}",
        ("seed", "race", "all", "race s", "all s", "edge and groups", "same decision"),
        [
            (
                seed,
                run["passes"],
                run["all"],
                f"{run['raced_s']:.1f}",
                f"{run['naive_s']:.1f}",
                run["decision"],
                "yes" if run["same"] else run["raced"],
            )
            for seed, run in enumerate(passes["runs"])
        ],
    )

    report.print_table(
        "gradients of four sub-supernets of NAS-Bench-201",
        ("form", "s"),
        [(name, f"{seconds:.3f}") for name, seconds in forms.items()],
    )


def print_json(
    gram: dict[str, Any],
    passes: dict[str, Any],
    forms: dict[str, float],
    options: argparse.Namespace,
) -> None:
    device = next(item for item in local_devices() if item.name == str(resolve(options.device)))
    runs = passes["runs"]
    raced = report.result(
        sum(run["passes"] for run in runs) / len(runs), sum(run["all"] for run in runs) / len(runs)
    )
    # As elsewhere a ratio says how many times better: here, less time and fewer passes.
    speed = report.result(gram["gram_ms"], gram["pairwise_ms"])
    speed["ratio"] = round(gram["pairwise_ms"] / gram["gram_ms"], 4)
    raced["ratio"] = round(raced["baseline"] / raced["value"], 4)
    seconds = report.result(
        sum(run["raced_s"] for run in runs) / len(runs),
        sum(run["naive_s"] for run in runs) / len(runs),
    )
    seconds["ratio"] = round(seconds["baseline"] / seconds["value"], 4)
    against = {"decision_s": seconds}
    for key, form in (("together_vs_turns", "in turns"), ("together_vs_stacked", "stacked")):
        against[key] = report.result(forms["together"], forms[form])
        against[key]["ratio"] = round(forms[form] / forms["together"], 4)
    report.print_json(
        "few_shot",
        device=device.to_json(),
        versions=report.versions("blockyard", "torch"),
        results={"gram_vs_pairwise": speed, "gradient_passes": raced, **against},
        details={
            "threads": options.threads,
            "cores": options.cores,
            "channels": options.channels,
            **{key: gram[key] for key in ("operations", "weights", "tensors", "least_norm")},
            "largest_difference": gram["largest_difference"],
            "data": passes["data"],
            "batches": options.batches,
            "same_decision": [run["same"] for run in runs],
        },
    )


if __name__ == "__main__":
    sys.exit(main())
