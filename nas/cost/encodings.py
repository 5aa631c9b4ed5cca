"""Features of the networks of published latency tables, from coarse to fine.

Each function returns groups for ``nas.cost.predictor``: what is counted analytically
(multiply-accumulates, activations moved, operations started), how often each operation
occurs, each operation at its shape, and what depends on its neighbours. Operations that
do the same at the same shape share a feature wherever they sit in the network.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nas.cost.predictor import Features, Floats
from zoo.errors import InvalidInputError

Ints = NDArray[np.int64]

NB201_OPS, NB201_EDGES = 5, 6
NB201_CONVS = {2: 1, 3: 9}
"""Taps of the convolutions by operation."""

FBNET_OPS = ((3, 1, 1), (3, 1, 2), (3, 3, 1), (3, 6, 1), (5, 1, 1), (5, 1, 2), (5, 3, 1), (5, 6, 1))
"""Kernel, expansion and groups of each operation; operation 8 is ``skip``."""
FBNET_STAGES = (
    (16, 1, 1),
    (24, 4, 2),
    (32, 4, 2),
    (64, 4, 2),
    (112, 4, 1),
    (184, 4, 2),
    (352, 1, 1),
)
"""Width, layers and first stride of each stage; the stem leaves 16 channels at 112 pixels."""

OFA_KERNELS, OFA_EXPANDS, OFA_DEPTHS = (3, 5, 7), (3, 4, 6), (2, 3, 4)
OFA_WIDTHS, OFA_STRIDES = (16, 24, 40, 80, 112, 160), (2, 2, 2, 1, 2)
OFA_LAYERS = 4
OFA_RESOLUTIONS = tuple(range(128, 225, 4))


def nasbench201(operations: Sequence[Sequence[int]]) -> Features:
    """Encode cells of NAS-Bench-201.

    Args:
        operations: Six operations a cell, one an edge: 0 none, 1 skip, 2 and 3
            convolutions, 4 average pooling.

    Raises:
        InvalidInputError: A cell has another length or operation.
    """
    ops = _choices(operations, NB201_EDGES, NB201_OPS)
    edges = _one_hot(ops, NB201_OPS)
    counts = edges.sum(axis=1)
    macs = sum(taps * counts[:, [op]] for op, taps in NB201_CONVS.items())
    pairs = [
        np.eye(NB201_OPS**2)[ops[:, first] * NB201_OPS + ops[:, second]]
        for first, second in itertools.combinations(range(NB201_EDGES), 2)
    ]
    return {
        "analytic": np.c_[macs, np.sum(ops != 0, axis=1)],
        "operations": counts,
        "edges": edges.reshape(len(ops), -1),
        "pairs": np.concatenate(pairs, axis=1),
    }


def fbnet(operations: Sequence[Sequence[int]]) -> Features:
    """Encode networks of the FBNet space: 22 operations each, 8 is ``skip``.

    Raises:
        InvalidInputError: A network has another number of layers, or an unknown operation.
    """
    layers = sum(count for _, count, _ in FBNET_STAGES)
    skip = len(FBNET_OPS)
    ops = _choices(operations, layers, skip + 1)
    hot = _one_hot(ops, skip + 1)
    chans, pixels, layer = 16, 112, 0
    macs, moved = np.zeros((2, len(ops)))
    shapes = []
    for width, count, stride in FBNET_STAGES:
        cost = _fbnet_costs(chans, width, pixels, stride)
        again = _fbnet_costs(width, width, pixels // stride, 1)
        first, rest = hot[:, layer], hot[:, layer + 1 : layer + count].sum(axis=1)
        for layers_here, (each_macs, each_moved) in ((first, cost), (rest, again)):
            macs += layers_here @ each_macs
            moved += layers_here @ each_moved
        shapes += [first] if count == 1 else [first, rest]
        chans, pixels, layer = width, pixels // stride, layer + count
    return {
        "analytic": np.c_[macs / 1e8, moved / 1e6, hot[:, :, :skip].sum(axis=(1, 2)) / 10],
        "operations": hot.sum(axis=1),
        "operations at shapes": np.concatenate(shapes, axis=1),
    }


def ofa(
    kernels: Sequence[Sequence[int]],
    expands: Sequence[Sequence[int]],
    depths: Sequence[Sequence[int]],
    resolutions: Sequence[int],
) -> Features:
    """Encode subnets of the Once-for-all MobileNetV3.

    Args:
        kernels: 20 kernel sizes each, four a stage.
        expands: 20 expansions each.
        depths: Layers in use in each of the five stages.
        resolutions: Input size in pixels.

    Raises:
        InvalidInputError: A number is not one of the space's.
    """
    stages = len(OFA_STRIDES)
    kernel = _choices(_positions(kernels, OFA_KERNELS), stages * OFA_LAYERS, len(OFA_KERNELS))
    expand = _choices(_positions(expands, OFA_EXPANDS), stages * OFA_LAYERS, len(OFA_EXPANDS))
    depth = np.asarray(OFA_DEPTHS)[
        _choices(_positions(depths, OFA_DEPTHS), stages, len(OFA_DEPTHS))
    ]
    used = (np.arange(OFA_LAYERS) < depth[:, :, None]).reshape(len(kernel), -1).astype(np.float64)
    size = np.asarray(resolutions, dtype=np.float64)
    area = (size / OFA_RESOLUTIONS[-1])[:, None] ** 2
    options = np.concatenate(
        [
            used[:, :, None],
            _one_hot(kernel, 3)[:, :, 1:] * used[:, :, None],
            _one_hot(expand, 3)[:, :, 1:] * used[:, :, None],
        ],
        axis=2,
    )
    shaped = options.reshape(len(kernel), -1)
    macs, moved = _ofa_costs(kernel, expand, used, size)
    return {
        "analytic": np.c_[
            macs / 1e8, moved / 1e6, used.sum(axis=1) / 10, area, size / OFA_RESOLUTIONS[-1]
        ],
        "operations": options.sum(axis=1),
        "resolution": _one_hot(_positions(resolutions, OFA_RESOLUTIONS), len(OFA_RESOLUTIONS)),
        "operations at shapes": shaped,
        "operations by area": shaped * area,
    }


def _fbnet_costs(chans: int, width: int, pixels: int, stride: int) -> tuple[Floats, Floats]:
    """Return multiply-accumulates and activations moved, of each operation at one shape."""
    macs: list[float] = []
    moved: list[float] = []
    out = pixels // stride
    for kernel, expand, groups in FBNET_OPS:
        middle = chans * expand
        macs.append(
            middle * chans / groups * pixels**2
            + middle * kernel**2 * out**2
            + middle * width / groups * out**2
        )
        moved.append((chans + 2 * middle) * pixels**2 + (2 * middle + width) * out**2)
    plain = chans == width and stride == 1
    macs.append(0.0 if plain else chans * width * out**2)
    moved.append(0.0 if plain else chans * pixels**2 + width * out**2)
    return np.asarray(macs), np.asarray(moved)


def _ofa_costs(kernel: Ints, expand: Ints, used: Floats, size: Floats) -> tuple[Floats, Floats]:
    """Return multiply-accumulates and activations moved, of the searched layers."""
    macs, moved = np.zeros((2, len(kernel)))
    pixels = np.ceil(size / 2)
    taps, ratios = np.asarray(OFA_KERNELS)[kernel] ** 2, np.asarray(OFA_EXPANDS)[expand]
    for stage, stride in enumerate(OFA_STRIDES):
        chans, width = OFA_WIDTHS[stage : stage + 2]
        for position in range(OFA_LAYERS):
            out = np.ceil(pixels / stride) if position == 0 else pixels
            layer = stage * OFA_LAYERS + position
            middle = chans * ratios[:, layer]
            macs += used[:, layer] * (
                middle * chans * pixels**2 + middle * (taps[:, layer] + width) * out**2
            )
            moved += used[:, layer] * (
                (chans + 2 * middle) * pixels**2 + (2 * middle + width) * out**2
            )
            chans, pixels = width, out
    return macs, moved


def _choices(values: Sequence[Sequence[int]] | Ints, length: int, options: int) -> Ints:
    chosen = np.asarray(values, dtype=np.int64)
    if chosen.ndim != 2 or chosen.shape[1] != length:
        raise InvalidInputError(f"choices have shape {chosen.shape}; they must be (n, {length})")
    if chosen.size and not (chosen.min() >= 0 and chosen.max() < options):
        raise InvalidInputError(
            f"choices range from {chosen.min()} to {chosen.max()}; they must be in 0..{options - 1}"
        )
    return chosen


def _positions(values: Sequence[Sequence[int]] | Sequence[int], options: Sequence[int]) -> Ints:
    given = np.asarray(values, dtype=np.int64)
    wrong = sorted(set(np.unique(given)) - set(options))
    if wrong:
        raise InvalidInputError(f"{wrong[0]} is not one of {list(options)}")
    return np.searchsorted(np.asarray(options), given).astype(np.int64)


def _one_hot(choices: Ints, options: int) -> Floats:
    return np.eye(options)[choices]
