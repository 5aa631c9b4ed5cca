"""HyTra and the hybrid space of C/T strings, searched by one ranker at one budget.

For each space: BossNAS with the same settings on the same images without labels (as many
blocks, so as many updates), all networks within one cap on multiply-accumulates derived from
its scores, the best one and others at even distances down the ranking trained with one
recipe. Reported are the accuracy of the one chosen, that of a random network within the cap,
and how the ranking agrees with accuracies (Kendall, Spearman). Unless it is given, the cap is
the smaller of the two spaces' median costs, or as much as a quarter of both needs.

Keys of the JSON: ``accuracy`` (of the network chosen; value hybrid, baseline HyTra),
``over_random_<space>`` (accuracy chosen; baseline mean of the random ones) and
``kendall_<space>``, each a mean over seeds. A tiny form that fits two cores:

    python benchmarks/hybrid_vs_hytra.py [--seeds N] [--epochs N] [--json]
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import report
import torch
from scipy.stats import kendalltau, spearmanr
from support.shrunk import shrunk

from nas.cost.blocks import chain_cost
from nas.data import DataSet, load_dataset
from nas.evaluation import train_and_score
from nas.methods.bossnas import BossNAS
from nas.plugins import MethodContext, make_space
from nas.protocols import SearchSpace
from nas.training import FixedRecipe
from serving.runners.devices import local_devices
from zoo.rng import derive_seed
from zoo.schemas import Limit
from zoo.spec import Architecture

SPACES: dict[str, dict[str, Any]] = {
    "hybrid": {
        "widths": [32, 64],
        "depths": [[2, 3], [2, 4]],
        "strides": [1, 2],
        "multipliers": [0.75, 1],
        "stem": 16,
        "last": 128,
        "conv_settings": {"expand": 2},
        "attention_settings": {"head_dim": 8, "expand": 2},
    },
    "hytra": {"widths": [512, 256, 256, 128], "layers": [3, 3], "stem": 32, "head_dim": 16},
}
"""Two blocks each. HyTra shrinks images 32 times at most, the hybrid always 8 times."""

QUICK: dict[str, dict[str, Any]] = {
    "hybrid": SPACES["hybrid"] | {"widths": [16, 32], "depths": [[2, 2], [1, 2]], "last": 16},
    "hytra": SPACES["hytra"] | {"widths": [256, 128, 128, 64], "layers": [1, 2]},
}
"""Of few paths, to see that all runs."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What one search of one space came to."""

    space: str
    seed: int
    networks: int
    chosen: str
    accuracy: float
    macs: int
    random_accuracy: float
    kendall: float
    spearman: float
    search_s: float


def main() -> int:
    """Search both spaces with every seed and report."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    root = os.environ.get("BLOCKYARD_DATA")
    data = load_dataset(options.data, root=Path(root) if root else None, seed=0)
    if options.images:
        data = shrunk(data, images=options.images, held_out=options.images // 4)
    spaces = {name: make_space(name, params) for name, params in chosen(options).items()}
    cap = options.cap or common_cap(list(spaces.values()), data)
    found = [
        compare(name, space, data, cap, seed, options)
        for seed in range(options.seeds)
        for name, space in spaces.items()
    ]
    show(found, cap, options)
    return 0


def chosen(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the parameters of both spaces."""
    return QUICK if options.quick else SPACES


def macs(space: SearchSpace, architecture: Architecture, data: DataSet) -> int:
    """Return what an architecture costs on the data's images."""
    specs = space.blocks(architecture, inputs=data.inputs, num_classes=data.num_classes)
    return chain_cost(specs).macs


def common_cap(spaces: list[SearchSpace], data: DataSet, samples: int = 64) -> int:
    """Return the smaller median cost of random networks; more if few of a space are within."""
    quartiles = []
    for space in spaces:
        rng = random.Random(0)
        costs = [macs(space, space.sample(rng), data) for _ in range(samples)]
        quartiles.append(statistics.quantiles(costs, n=4, method="inclusive"))
    return int(max(min(middle for _, middle, _ in quartiles), max(low for low, *_ in quartiles)))


def compare(
    name: str,
    space: SearchSpace,
    data: DataSet,
    cap: int,
    seed: int,
    options: argparse.Namespace,
) -> Found:
    """Search a space, train what was chosen and what to compare it with."""
    method = BossNAS(
        MethodContext(
            space=space, seed=seed, data=data, limits=(Limit(metric="flops", max=float(cap)),)
        ),
        epochs=options.epochs,
        warmup_epochs=1,
        batch_size=options.batch_size,
        accumulate=1,
        lr=options.lr,
        features=256,
        hidden=512,
        projection=64,
        ranking_images=256,
    )
    started = time.monotonic()
    while not method.step().done:
        pass
    search_s = time.monotonic() - started
    print(f"{name}, seed {seed}: searched in {search_s:.0f} s", file=sys.stderr, flush=True)
    ranked = [(score, method.cut.join(paths)) for score, paths in method.networks()]
    places = np.linspace(0, len(ranked) - 1, min(options.networks, len(ranked))).round().astype(int)
    scores, accuracies = [], []
    for place in sorted(set(places.tolist())):
        scores.append(ranked[place][0])
        accuracies.append(accuracy(space, ranked[place][1], data, seed, options))
        told = f"network {place + 1} of {len(ranked)}: {accuracies[-1]:.4f}"
        print(f"{name}, seed {seed}: {told}", file=sys.stderr, flush=True)
    rng = random.Random(derive_seed(seed, "random networks"))
    others = [draw(space, rng, lambda item: macs(space, item, data) <= cap)
              for _ in range(options.networks // 2)]  # fmt: skip
    best = ranked[0][1]
    return Found(
        space=name,
        seed=seed,
        networks=len(ranked),
        chosen=space.summary(best),
        accuracy=accuracies[0],
        macs=macs(space, best, data),
        random_accuracy=statistics.mean(
            accuracy(space, item, data, seed, options) for item in others
        ),
        kendall=agreement(kendalltau, scores, accuracies),
        spearman=agreement(spearmanr, scores, accuracies),
        search_s=round(search_s, 1),
    )


def agreement(measure: Callable[..., Any], scores: list[float], accuracies: list[float]) -> float:
    """Return how well low scores go with high accuracies."""
    return float(measure([-score for score in scores], accuracies).statistic)


def accuracy(
    space: SearchSpace,
    architecture: Architecture,
    data: DataSet,
    seed: int,
    options: argparse.Namespace,
) -> float:
    """Train one network and return its accuracy on the validation split."""
    recipe = FixedRecipe(epochs=options.train_epochs, batch_size=options.batch_size)
    device = torch.device("cpu")
    return train_and_score(space, architecture, data, recipe, seed=seed, device=device)["accuracy"]


def draw(
    space: SearchSpace, rng: random.Random, fits: Callable[[Architecture], bool]
) -> Architecture:
    """Return a random architecture that ``fits``."""
    while True:
        architecture = space.sample(rng)
        if fits(architecture):
            return architecture


def show(found: list[Found], cap: int, options: argparse.Namespace) -> None:
    """Print a table, or the JSON object."""

    def mean(space: str, name: str) -> float:
        return statistics.mean(getattr(item, name) for item in found if item.space == space)

    if options.json:
        results = {"accuracy": report.result(*(mean(name, "accuracy") for name in SPACES))}
        for name in SPACES:
            results[f"over_random_{name}"] = report.result(
                mean(name, "accuracy"), mean(name, "random_accuracy")
            )
            results[f"kendall_{name}"] = {"value": round(mean(name, "kendall"), 4)}
        report.print_json(
            "hybrid_vs_hytra",
            device=local_devices()[0].to_json(),
            versions=report.versions("blockyard", "torch", "numpy"),
            results=results,
            details={
                "settings": vars(options),
                "spaces": chosen(options),
                "cap": cap,
                "searches": [asdict(item) for item in found],
            },
        )
        return
    rows = [
        (
            item.space,
            item.seed,
            item.networks,
            item.chosen,
            f"{item.accuracy:.4f}",
            f"{item.random_accuracy:.4f}",
            f"{item.kendall:.3f}",
            f"{item.spearman:.3f}",
            f"{item.macs / 1e6:.2f} M",
            item.search_s,
        )
        for item in found
    ]
    header = ("space", "seed", "networks", "chosen", "accuracy", "random", "Kendall", "Spearman",
              "MACs", "search s")  # fmt: skip
    report.print_table(f"one ranker, at most {cap / 1e6:.2f} M MACs", header, rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default="digits", help="name of a data set")
    parser.add_argument("--images", type=int, help="to train on; a quarter as many to validate")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=6, help="of each block, without labels")
    parser.add_argument("--train-epochs", type=int, default=8, help="of each network compared")
    parser.add_argument("--networks", type=int, default=8, help="trained down the ranking")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.48, help="of LARS, in the search")
    parser.add_argument("--cap", type=int, help="multiply-accumulates")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="spaces of few paths")
    parser.add_argument("--json", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
