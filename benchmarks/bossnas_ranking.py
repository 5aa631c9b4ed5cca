"""Rank all paths of a block as a trie, and by the original's loop; both on the same networks.

The original takes batch statistics anew for every batch of validation images, and runs the
frozen blocks and every path from its first layer on. The trie takes statistics once and
runs every shared prefix once. The scores are compared; the run fails if they differ.

Keys of the JSON: ``trie_vs_naive`` (time of the loop / time of the trie, the processor's on a
CPU; baseline 1) and ``layer_forwards`` (layers run: value of the trie, baseline of the loop).

Run: ``python benchmarks/bossnas_ranking.py [--space NAME] [--quick] [--json]``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import report
import torch
from support import naive_ranking

from nas.blockwise import Blockwise
from nas.methods.bossnas import BlockRanking, blockwise
from nas.methods.bossnas.heads import HeadSizes
from nas.methods.bossnas.ranking import Views
from nas.methods.bossnas.siamese import Siamese
from nas.plugins import make_space
from serving.runners.devices import local_devices
from zoo.spec import TensorSpec

SPACES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "hytra": ({"widths": [128, 128, 64, 64], "stem": 16, "head_dim": 8}, (5, 4, 4, 4)),
    "nats-bench-size": ({"widths": [8, 16, 24, 32]}, (0, 3)),
}
"""Parameters of each space, and the path at which its first block is frozen."""

TOLERANCE = 1e-4
"""Largest difference of two scores of one path: rounding of convolutions in other batches."""


@dataclass(frozen=True)
class Measured:
    naive_s: float
    trie_s: float
    naive_layers: int
    trie_layers: int
    difference: float

    @property
    def ratio(self) -> float:
        return self.naive_s / self.trie_s


def main() -> int:
    options = parse(sys.argv[1:])
    torch.set_num_threads(options.threads)
    params, path = SPACES[options.space]
    cut = blockwise(make_space(options.space, params))
    inputs = TensorSpec(shape=(3, options.size, options.size))
    networks = Siamese(
        cut,
        inputs=inputs,
        sizes=HeadSizes(features=256, hidden=512, projection=64),
        seed=0,
        devices=[torch.device(options.device)],
    )
    networks.choose(path)
    jolt(networks)
    calibration = images(options.calibration, options, 0)
    batches = [images(options.batch, options, 1 + number) for number in range(options.batches)]
    found = compare(cut, networks, calibration, batches)
    show(found, options, len(cut.paths(1, networks.interface)))
    worst = max(item.difference for item in found.values())
    if worst > TOLERANCE:
        print(f"bossnas_ranking: scores differ by {worst:.2g}", file=sys.stderr)
        return 1
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--space", choices=SPACES, default="hytra")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--calibration", type=int, default=64, help="images for statistics")
    parser.add_argument("--batch", type=int, default=16, help="images of a validation batch")
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="16 pixels, fewer images")
    options = parser.parse_args(arguments)
    if options.quick:
        options.size, options.calibration, options.batch, options.batches = 16, 16, 8, 2
    return options


def images(count: int, options: argparse.Namespace, seed: int) -> Views:
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(2, count, 3, options.size, options.size, generator=generator)
    return made[0].to(options.device), made[1].to(options.device)


@torch.no_grad()
def jolt(networks: Siamese) -> None:
    """Move every weight, so that no path is an identity and the two networks differ."""
    generator = torch.Generator().manual_seed(1)
    for stage in (networks.online, networks.target):
        for weight in stage.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator).to(weight.device)


def compare(
    cut: Blockwise, networks: Siamese, calibration: Views, batches: Sequence[Views]
) -> dict[int, Measured]:
    """Return what both took after the first batch and after the last one."""
    clock = time.perf_counter if networks.main.device.type == "cuda" else time.process_time
    paths = cut.paths(1, networks.interface)
    frozen = networks.main.frozen
    frozen_layers = len(networks.chosen[0])

    def interface(path: tuple[int, ...]) -> int:
        return cut.interface(1, path)

    def features(views: Views) -> Views:
        return networks.main.features(views[0]), networks.main.features(views[1])

    started = clock()
    ranking = BlockRanking(
        networks.online, networks.target, paths, interface, [features(calibration)]
    )
    trie_s, naive_s, naive_layers = clock() - started, 0.0, 0
    found: dict[int, Measured] = {}
    for number, views in enumerate(batches, 1):
        started = clock()
        shared = ranking.losses(features(views)).cpu()
        trie_s += clock() - started
        started = clock()
        naive, done = naive_ranking.rank(
            networks.online, networks.target, frozen, paths, interface, calibration, [views]
        )
        naive_s += clock() - started
        naive_layers += done.ranked * len(paths[0]) + done.frozen * frozen_layers
        difference = float((shared - naive).abs().max()) / len(views[0])
        found[number] = Measured(
            naive_s=naive_s,
            trie_s=trie_s,
            naive_layers=naive_layers,
            trie_layers=ranking.work.layers + 2 * (1 + number) * frozen_layers,
            difference=max(difference, found[number - 1].difference if number > 1 else 0.0),
        )
        print(
            f"batch {number} of {len(batches)}: loop {naive_s:.0f} s, trie {trie_s:.0f} s so far",
            file=sys.stderr,
        )
    return found


def show(found: dict[int, Measured], options: argparse.Namespace, paths: int) -> None:
    last = found[max(found)]
    if not options.json:
        rows = [
            (
                count,
                f"{item.naive_s:.2f}",
                f"{item.trie_s:.2f}",
                f"{item.ratio:.2f}",
                item.naive_layers,
                item.trie_layers,
                f"{item.difference:.1e}",
            )
            for count, item in found.items()
        ]
        header = ("batches", "loop s", "trie s", "ratio", "loop layers", "trie layers", "differ by")
        report.print_table(f"{options.space}: {paths} paths of the second block", header, rows)
        return
    device = next(item for item in local_devices() if item.name == options.device)
    report.print_json(
        "bossnas_ranking",
        device=device.to_json(),
        versions=report.versions("blockyard", "torch"),
        results={
            "trie_vs_naive": report.result(last.ratio, 1.0),
            "layer_forwards": report.result(last.trie_layers, last.naive_layers),
        },
        details={
            "space": options.space,
            "paths": paths,
            "calibration_images": options.calibration,
            "batch": options.batch,
            "runs": {
                str(count): {
                    "naive_s": round(item.naive_s, 3),
                    "trie_s": round(item.trie_s, 3),
                    "ratio": round(item.ratio, 3),
                    "naive_layers": item.naive_layers,
                    "trie_layers": item.trie_layers,
                    "largest_difference": item.difference,
                }
                for count, item in found.items()
            },
        },
    )


if __name__ == "__main__":
    sys.exit(main())
