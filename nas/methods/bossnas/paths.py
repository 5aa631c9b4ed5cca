"""Which paths of a block one step trains."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch

from nas.blockwise import Path


def fair_paths(options: Sequence[int], generator: torch.Generator) -> tuple[Path, ...]:
    """Return as many paths as a layer has operations, each operation once in every layer.

    Every layer's operations are permuted at random; path i takes the i-th of each.

    Args:
        options: The number of operations of each layer; all are equal.
        generator: Source of the permutations.

    Source:
        Chu et al. (2021), "FairNAS", arXiv:1907.01845.
    """
    orders = [torch.randperm(count, generator=generator).tolist() for count in options]
    return tuple(zip(*orders, strict=True))


def random_paths(paths: Sequence[Path], count: int, generator: torch.Generator) -> tuple[Path, ...]:
    """Return ``count`` distinct paths, or all if there are fewer; every set is as likely."""
    drawn = torch.randperm(len(paths), generator=generator)[:count].tolist()
    return tuple(paths[at] for at in drawn)


def fair_options(paths: Sequence[Path]) -> tuple[int, ...] | None:
    """Return the options of each layer if paths are all tuples of equally many; else None."""
    if len({len(path) for path in paths}) != 1:
        return None
    options = tuple(max(column) + 1 for column in zip(*paths, strict=True))
    # All lie within the product of the options, which may be too large to be listed.
    if len(set(options)) == 1 and prod(options) == len(set(paths)):
        return options
    return None
