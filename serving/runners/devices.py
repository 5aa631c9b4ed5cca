"""The devices of this machine, each with a fingerprint of what determines its speed."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from zoo.canonical import Json
from zoo.errors import UnknownNameError
from zoo.spec import Device

SERVING_THREADS = 1
"""Threads that compute one batch on a CPU, where it is measured as where it is served.

Networks and batches are small: other cores do more for the next batch than for this one,
and a number that all processes agree on makes their measurements comparable.
"""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_CPU_INFO = Path("/proc/cpuinfo")
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def local_devices() -> tuple[Device, ...]:
    """Return the CPU and every CUDA device of this machine.

    A device's ``info`` holds what latency depends on and nothing that changes between
    two starts of the same machine, so equal machines share profiles. ``threads`` is how
    many compute a measured batch. ``place`` is this machine's processor, or the one GPU.
    """
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return (_cpu(), *(_gpu(index) for index in gpus))


def resolve(name: str) -> torch.device:
    """Return the device called ``name``; ``"auto"`` is the first GPU, else the CPU.

    Raises:
        UnknownNameError: This machine has no such device; the message lists what it has.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda:0" if count else "cpu")
    known = ["cpu", *(f"cuda:{index}" for index in range(count))]
    if name == "cuda" and count:
        name = "cuda:0"
    if name not in known:
        raise UnknownNameError("device", name, ["auto", *known])
    return torch.device(name)


def settle_threads() -> int:
    """Leave a core to others: set how many threads of this process train, and return it.

    Two threads that wait for each other at every operation crawl where something else
    needs a core. A process calls this once where it starts; ``OMP_NUM_THREADS`` and other
    limits that hold already are kept.
    """
    threads = min(torch.get_num_threads(), max(1, usable_cores() - 1))
    torch.set_num_threads(threads)
    return threads


@contextmanager
def serving_threads() -> Iterator[None]:
    """Compute with as many threads as a server does, for the length of the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(SERVING_THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _machine() -> str:
    """Name this machine: processes in different containers on it get the same answer."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return platform.node()


def _cpu() -> Device:
    info: dict[str, Json] = {
        "model": _cpu_model(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": usable_cores(),
        "threads": SERVING_THREADS,
        "memory_gib": _memory_gib(),
        "platform": f"{platform.system()}-{platform.machine()}",
        **_versions(),
    }
    return Device(name="cpu", kind="cpu", info=info, place=f"{_machine()}/cpu")


def _gpu(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    info: dict[str, Json] = {
        "model": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "cores": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30),
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": _cudnn(),
        "platform": f"{platform.system()}-{platform.machine()}",
        "host": _cpu_model(),
        **_versions(),
    }
    place = f"{_machine()}/{getattr(properties, 'uuid', index)}"
    return Device(name=f"cuda:{index}", kind="cuda", info=info, place=place)


def _cudnn() -> int | None:
    return torch.backends.cudnn.version()  # type: ignore[no-untyped-call]


def _versions() -> dict[str, Json]:
    return {"torch": torch.__version__, "onnxruntime": _onnxruntime_version()}


def _onnxruntime_version() -> str | None:
    for package in ("onnxruntime-gpu", "onnxruntime"):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


def _cpu_model() -> str:
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    pairs = (line.partition(":") for line in lines)
    fields = {key.strip(): value.strip() for key, _, value in pairs}
    name = fields.get("model name") or platform.processor() or platform.machine()
    numbers = [fields[key] for key in ("cpu family", "model", "stepping") if key in fields]
    return f"{name} ({'.'.join(numbers)})" if numbers else name


def _memory_gib() -> int | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (AttributeError, OSError, ValueError):
        return None


def _driver() -> str | None:
    try:
        first = _NVIDIA_DRIVER.read_text().splitlines()[0]
    except (OSError, IndexError):
        return None
    words = first.split()
    return next((word for word in words if word[0].isdigit() and "." in word), first)
