"""What the hardware says of itself while it computes: energy used and clock rates.

Energy comes from counters that the hardware keeps: NVML's for NVIDIA GPUs, RAPL's for
CPUs. Where there is none, or it may not be read, there is no meter and nothing is guessed.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import torch

from zoo.canonical import Json

POWERCAP = Path("/sys/class/powercap")
CPUFREQ = Path("/sys/devices/system/cpu/cpu0/cpufreq")
NVML = "libnvidia-ml.so.1"

_GRAPHICS, _MEMORY = 0, 2


class EnergyMeter(Protocol):
    """A counter of energy."""

    source: str

    def joules(self) -> float:
        """Return the energy used since some fixed moment; it never falls."""


def energy_meter(
    device: torch.device, *, powercap: Path = POWERCAP, library: str = NVML
) -> EnergyMeter | None:
    """Return the meter of a device, or None where it has none that can be read."""
    with suppress(OSError, ValueError, AttributeError):
        return NvmlMeter(device, library) if device.type == "cuda" else RaplMeter(powercap)
    return None


def clocks(
    device: torch.device, *, cpufreq: Path = CPUFREQ, library: str = NVML
) -> dict[str, Json]:
    """Return the clock rates in MHz that are known now; empty where none is."""
    with suppress(OSError, ValueError, AttributeError):
        if device.type == "cuda":
            return NvmlMeter(device, library).clocks()
        names = ("scaling_cur_freq", "scaling_max_freq")
        return {
            f"{name.split('_')[1]}_mhz": int((cpufreq / name).read_text()) / 1000 for name in names
        } | {"governor": (cpufreq / "scaling_governor").read_text().strip()}
    return {}


class RaplMeter:
    """Energy of all CPU packages, from Linux's powercap files.

    Raises:
        OSError: There are no packages, or their counters may not be read.
    """

    source = "rapl"

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self._packages = sorted(
            folder
            for folder in powercap.glob("*-rapl:*")
            if folder.name.count(":") == 1 and (folder / "energy_uj").exists()
        )
        if not self._packages:
            raise OSError(f"no RAPL counters under {powercap}")
        self._ranges = [int((p / "max_energy_range_uj").read_text()) for p in self._packages]
        self._last = self._read()
        self._turns = [0] * len(self._packages)

    def joules(self) -> float:
        """Return the packages' energy; a counter that began again is carried on."""
        now = self._read()
        for number, (before, after) in enumerate(zip(self._last, now, strict=True)):
            self._turns[number] += after < before
        self._last = now
        turned = sum(turn * span for turn, span in zip(self._turns, self._ranges, strict=True))
        return (sum(now) + turned) / 1e6

    def _read(self) -> list[int]:
        return [int((package / "energy_uj").read_text()) for package in self._packages]


class NvmlMeter:
    """Energy and clock rates of one NVIDIA GPU, from the driver's management library.

    Raises:
        OSError: The library is missing or refuses.
    """

    source = "nvml"

    def __init__(self, device: torch.device, library: str = NVML) -> None:
        self._nvml = ctypes.CDLL(library)
        self._call("nvmlInit_v2")
        self._handle = ctypes.c_void_p()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
        self._call("nvmlDeviceGetHandleByUUID", uuid, ctypes.byref(self._handle))

    def joules(self) -> float:
        energy = ctypes.c_ulonglong()
        self._call("nvmlDeviceGetTotalEnergyConsumption", self._handle, ctypes.byref(energy))
        return energy.value / 1e3

    def clocks(self) -> dict[str, Json]:
        """Return the present clock rates of the cores and of the memory."""
        return {"sm_mhz": self._clock(_GRAPHICS), "memory_mhz": self._clock(_MEMORY)}

    def _clock(self, kind: int) -> int:
        rate = ctypes.c_uint()
        self._call("nvmlDeviceGetClockInfo", self._handle, kind, ctypes.byref(rate))
        return rate.value

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._nvml, name)(*arguments)
        if code:
            raise OSError(f"{name} failed with code {code}")
