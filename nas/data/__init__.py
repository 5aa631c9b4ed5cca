"""Data by name, as uint8 tensors with seeded stratified splits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nas.data import sources
from nas.data.dataset import DataSet, Images, Split, assemble
from zoo.canonical import Json
from zoo.errors import InvalidInputError, UnknownNameError
from zoo.rng import derive_seed

__all__ = ["DataSet", "Split", "data_catalogue", "load_dataset"]

_NAMED: dict[str, tuple[Callable[[Path | None], Images], str]] = {
    "digits": (lambda root: sources.digits(), "1,797 handwritten digits, 16x16 grey; built in"),
    "cifar10": (sources.cifar10, "60,000 photographs of 10 classes, 32x32 RGB"),
    "cifar100": (sources.cifar100, "60,000 photographs of 100 classes, 32x32 RGB"),
    "fashion-mnist": (sources.fashion_mnist, "70,000 pictures of clothing, 28x28 grey"),
}
_AT_PATH: dict[str, tuple[Callable[[Path], Images], str]] = {
    "folder": (sources.folder, "your own images: one sub-folder a class, all of one size"),
    "npz": (sources.npz, "your own arrays: images uint8 (n, channels, height, width), labels"),
}


def load_dataset(name: str, *, root: Path | None, seed: int) -> DataSet:
    """Read and split the data called ``name``.

    Args:
        name: ``digits``, ``cifar10``, ``cifar100``, ``fashion-mnist``, ``folder:PATH`` or
            ``npz:PATH``; a relative path is taken from ``root``.
        root: Folder of data files, or None.
        seed: Determines the splits; official test sets are kept whole.

    Raises:
        UnknownNameError: There is no such data.
        MissingDataError: Its files are not there; the message says what to put where.
        InvalidInputError: Its files hold something else.
    """
    return assemble(name, _read(name, root), seed=derive_seed(seed, "data", "split"))


def data_catalogue() -> tuple[Json, ...]:
    """Describe the names that ``load_dataset`` takes: ``{"name", "summary", "params"}``."""
    known = {name: summary for name, (_, summary) in _NAMED.items()}
    known |= {f"{scheme}:PATH": summary for scheme, (_, summary) in _AT_PATH.items()}
    return tuple(
        {"name": name, "summary": summary, "params": {}} for name, summary in known.items()
    )


def _read(name: str, root: Path | None) -> Images:
    if name in _NAMED:
        return _NAMED[name][0](root)
    scheme, colon, path = name.partition(":")
    if not colon or scheme not in _AT_PATH:
        choices = (*_NAMED, *(f"{scheme}:PATH" for scheme in _AT_PATH))
        raise UnknownNameError("data", name, choices)
    if not path:
        raise InvalidInputError(f"data {name!r} names no path; write {scheme}:PATH")
    return _AT_PATH[scheme][0]((root or Path()) / path)
