"""Energy counters and clock rates, read from files as Linux keeps them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from serving.runners.meters import clocks, energy_meter

CPU = torch.device("cpu")


def package(root: Path, name: str, energy: int) -> Path:
    folder = root / name
    folder.mkdir()
    (folder / "energy_uj").write_text(f"{energy}\n")
    (folder / "max_energy_range_uj").write_text("1000000\n")
    return folder


def test_energy_is_the_packages_sum_and_goes_on_when_a_counter_turns(tmp_path: Path) -> None:
    first = package(tmp_path, "intel-rapl:0", 900_000)
    package(tmp_path, "intel-rapl:1", 100_000)
    package(tmp_path, "intel-rapl:0:0", 50_000)  # a part of the first package
    meter = energy_meter(CPU, powercap=tmp_path)
    assert meter is not None
    assert meter.source == "rapl"
    before = meter.joules()
    assert before == pytest.approx(1.0)
    (first / "energy_uj").write_text("100000\n")
    assert meter.joules() - before == pytest.approx(0.2)


def test_without_a_counter_there_is_no_meter(tmp_path: Path) -> None:
    assert energy_meter(CPU, powercap=tmp_path / "none") is None
    assert energy_meter(torch.device("cuda:0"), library="no-such-library.so") is None


def test_clock_rates_are_told_where_they_are_known(tmp_path: Path) -> None:
    assert clocks(CPU, cpufreq=tmp_path / "none") == {}
    for name, value in (("scaling_cur_freq", "2100000"), ("scaling_max_freq", "3000000")):
        (tmp_path / name).write_text(value)
    (tmp_path / "scaling_governor").write_text("performance\n")
    found = clocks(CPU, cpufreq=tmp_path)
    assert found == {"cur_mhz": 2100.0, "max_mhz": 3000.0, "governor": "performance"}
