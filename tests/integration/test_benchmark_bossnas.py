"""The benchmarks of BossNAS run in their small forms and end with their JSON objects."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nas.correlation import correlations
from nas.data import load_dataset
from nas.methods.bossnas.supernets import blockwise
from nas.plugins import make_space
from nas.tabular import open_table

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"

Run = Callable[..., list[str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a benchmark in this process and return the lines that it prints, or its error's."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def call(name: str, *arguments: str, code: int = 0) -> list[str]:
        monkeypatch.setattr("sys.argv", [name, *arguments, "--threads=1", "--device=cpu"])
        capsys.readouterr()
        ended = import_module(name).main()
        printed = capsys.readouterr()
        assert ended == code, printed.err
        return (printed.err if code else printed.out).splitlines()

    return call


def test_the_trie_runs_a_third_of_the_layers_of_the_loop_and_ranks_alike(run: Run) -> None:
    report: dict[str, Any] = json.loads(
        run("bossnas_ranking", "--json", "--quick", "--space=nats-bench-size")[-1]
    )
    assert report["name"] == "bossnas_ranking"
    assert set(report["results"]) == {"trie_vs_naive", "layer_forwards"}
    assert report["results"]["layer_forwards"]["ratio"] < 0.4
    assert all(item["largest_difference"] < 1e-4 for item in report["details"]["runs"].values())


def test_a_data_set_made_smaller_keeps_its_averages_and_no_test_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    data = load_dataset("digits", root=None, seed=0)
    small = import_module("support.shrunk").shrunk(data, images=5, held_out=3, pixels=8)
    assert small.inputs.shape == (1, 8, 8)
    assert [len(part) for part in (small.train, small.val, small.test)] == [5, 3, 0]
    blocks = data.train.images[:5].float().reshape(5, 1, 8, 2, 8, 2).mean((3, 5))
    assert torch.equal(small.train.images, blocks.round().to(torch.uint8))
    assert torch.equal(small.val.labels, data.val.labels[:3])


@pytest.mark.slow
def test_the_correlation_is_measured_in_parts(run: Run, data_root: Path, tmp_path: Path) -> None:
    options = (
        "--preset=tiny",
        "--space=nas-bench-macro",
        f"--state={tmp_path / 'state'}",
        f"--data={data_root}",
    )
    assert "run it again" in run("bossnas_correlation", *options, "--part-s=0")[-1]
    refused = run("bossnas_correlation", *options, "--seed=1", code=1)[-1]
    assert "'seed': 0" in refused
    assert "'seed': 1" in refused
    report: dict[str, Any] = json.loads(run("bossnas_correlation", *options, "--json")[-1])
    assert report["details"]["networks"] == 6561
    by_flops = report["details"]["by_cost"]["flops"]
    assert by_flops["kendall"] == pytest.approx(0.556, abs=1e-3)
    assert by_flops["kendall_like_flops"] == pytest.approx(0.146, abs=1e-3)
    assert set(report["results"]) == {"kendall", "spearman", "pearson", "true_rank"}
    assert 1 <= report["results"]["true_rank"]["value"] <= 6561


def test_paths_that_score_the_better_the_more_they_compute_agree_with_the_table(
    monkeypatch: pytest.MonkeyPatch, data_root: Path
) -> None:
    """More operations that are no identity are better in NAS-Bench-Macro; a wrong sign shows."""
    monkeypatch.syspath_prepend(str(FOLDER))
    space = make_space("nas-bench-macro")
    table, cut = open_table(space, data_root), blockwise(space)
    ranked: list[dict[Any, float]] = [{} for _ in cut.split(table.architecture(0))]
    for row in range(len(table)):
        for known, path in zip(ranked, cut.split(table.architecture(row)), strict=True):
            known[path] = -sum(choice != 0 for choice in path)
    scores = import_module("bossnas_correlation").scores(SimpleNamespace(scores=ranked), cut, table)
    assert correlations([-score for score in scores], table.truth).kendall > 0.5
