"""Latency predicted for networks that were never measured, on published tables of devices.

The tables are NAS-Bench-201 (27 settings of device and batch size), FBNet (27) and
Once-for-all (12). In every setting a fifth of the networks is held back before anything is
fitted, in each of several splits; a setting is right if the medians over the splits are
within 10 % for at least 90 % of the held-back networks and Spearman at least 0.95.

- ``within_10_percent``, ``spearman``: the median setting's, of the table where it is
  lowest, against a line through the multiply-accumulates (``baseline``). The prediction
  is of the network alone.
- ``details`` lists every setting, and the noisy ones that are not right. There, the rows
  err together with the rows around them: the machine's state, not the network. ``series``
  repeats every number with that drift, which is estimated from the networks fitted on
  only, added to the prediction of a held-back network by its place in the series.

Run: ``python benchmarks/latency_predictor.py [--json]``, with ``BLOCKYARD_DATA`` set.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import report
from numpy.typing import NDArray

from nas.cost import encodings
from nas.cost.accuracy import Accuracy
from nas.cost.predictor import Features, LatencyPredictor
from serving.runners.devices import local_devices

HELD_BACK = 0.2
WITHIN, SPEARMAN = 0.90, 0.95

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well held-back networks of one setting were predicted."""

    within_10_percent: float
    spearman: float

    @property
    def right(self) -> bool:
        return self.within_10_percent >= WITHIN and self.spearman >= SPEARMAN


def main() -> int:
    options = parse(sys.argv[1:])
    scores = {name: table_scores(name, encode, options) for name, encode in TABLES.items()}
    show(options, scores)
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--data", type=Path, default=os.environ.get("BLOCKYARD_DATA"))
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one split, a third of the settings")
    options = parser.parse_args(arguments)
    if options.data is None:
        parser.error("say where the tables are: --data, or set BLOCKYARD_DATA")
    if options.quick:
        options.splits = 1
    return options


def nasbench201(table: pd.DataFrame) -> Features:
    return encodings.nasbench201([[int(op) for op in text] for text in table["ops"]])


def fbnet(table: pd.DataFrame) -> Features:
    return encodings.fbnet([[int(op) for op in text] for text in table["ops"]])


def ofa(table: pd.DataFrame) -> Features:
    parts = ([json.loads(text) for text in table[name]] for name in ("ks", "e", "d"))
    return encodings.ofa(*parts, table["r"].tolist())


TABLES: dict[str, Callable[[pd.DataFrame], Features]] = {
    "nasbench201": nasbench201,
    "fbnet_latency": fbnet,
    "ofa_mbv3_latency": ofa,
}


def table_scores(
    name: str, encode: Callable[[pd.DataFrame], Features], options: argparse.Namespace
) -> dict[str, dict[str, Score]]:
    """Return for every setting the scores of ``network``, ``series`` and ``baseline``."""
    table = pd.read_parquet(Path(options.data) / "tables" / f"{name}.parquet")
    features = encode(table)
    settings = [column for column in table if column.startswith("lat_")]
    if options.quick:
        settings = settings[2::3]
    found = {}
    for setting in settings:
        latency = table[setting].to_numpy(dtype=np.float64)
        splits = [split_scores(features, latency, seed) for seed in range(options.splits)]
        found[setting.removeprefix("lat_")] = {
            kind: Score(
                within_10_percent=median(split[kind].within_10_percent for split in splits),
                spearman=median(split[kind].spearman for split in splits),
            )
            for kind in splits[0]
        }
        if not options.json:
            print(f"{name} {setting}: {found[setting.removeprefix('lat_')]}", flush=True)
    return found


def split_scores(features: Features, latency: Floats, seed: int) -> dict[str, Score]:
    """Hold networks back, fit on the others, and score the prediction of those held back."""
    shuffled = np.random.default_rng(seed).permutation(len(latency))
    count = round(HELD_BACK * len(latency))
    held, kept = shuffled[:count], shuffled[count:]
    line = {"analytic": features["analytic"][:, :1]}
    baseline = LatencyPredictor.fit(_rows(line, kept), latency[kept])
    model = LatencyPredictor.fit(_rows(features, kept), latency[kept], order=kept)
    return {
        "network": score(latency[held], model.predict(_rows(features, held))),
        "series": score(latency[held], model.predict(_rows(features, held), order=held)),
        "baseline": score(latency[held], baseline.predict(_rows(line, held))),
    }


def score(measured: Floats, predicted: Floats) -> Score:
    found = Accuracy.of(measured, predicted)
    return Score(within_10_percent=found.within_10_percent, spearman=found.spearman)


def _rows(features: Features, rows: NDArray[np.int64]) -> Features:
    return {name: group[rows] for name, group in features.items()}


def show(options: argparse.Namespace, scores: Mapping[str, dict[str, dict[str, Score]]]) -> None:
    def lowest(metric: str, kind: str) -> float:
        return min(
            median(getattr(found[kind], metric) for found in table.values())
            for table in scores.values()
        )

    results = {
        metric: report.result(lowest(metric, "network"), lowest(metric, "baseline"))
        for metric in ("within_10_percent", "spearman")
    }
    tables = {name: table_details(table) for name, table in scores.items()}
    if not options.json:
        header = ("table", "settings", "right", "right in series", "within 10 %", "Spearman")
        rows = [
            (
                name,
                len(scores[name]),
                found["right"],
                found["right_in_series"],
                found["median_within_10_percent"],
                found["median_spearman"],
            )
            for name, found in tables.items()
        ]
        report.print_table("held-back networks, median setting", header, rows)
        for name, found in tables.items():
            print(f"  noisy in {name}: {found['noisy']}")
        for key, item in results.items():
            print(f"  {key}: {item['value']:.4f} (multiply-accumulates: {item['baseline']:.4f})")
        return
    report.print_json(
        "latency_predictor",
        device=next(item for item in local_devices() if item.name == "cpu").to_json(),
        versions=report.versions("blockyard", "numpy", "scipy", "pandas"),
        results=results,
        details={"splits": options.splits, "held_back": HELD_BACK, "tables": tables},
    )


def table_details(table: dict[str, dict[str, Score]]) -> dict[str, object]:
    """Return counts, medians, the noisy settings, and every setting's numbers."""

    def number(score: Score) -> list[float]:
        return [round(score.within_10_percent, 4), round(score.spearman, 4)]

    return {
        "settings": len(table),
        "right": sum(found["network"].right for found in table.values()),
        "right_in_series": sum(found["series"].right for found in table.values()),
        "median_within_10_percent": round(
            median(found["network"].within_10_percent for found in table.values()), 4
        ),
        "median_spearman": round(median(found["network"].spearman for found in table.values()), 4),
        "noisy": [name for name, found in table.items() if not found["network"].right],
        "each": {
            name: {kind: number(score) for kind, score in found.items()}
            for name, found in table.items()
        },
    }


if __name__ == "__main__":
    sys.exit(main())
