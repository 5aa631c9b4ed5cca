"""The NASNet family of blocks: stem, cell and head.

A network is the chain ``nasnet.stem`` (x) → (s), ``nasnet.cell`` (s) → (s, c0), then
``nasnet.cell`` (previous, current) → (current, new), …, a last cell → (new), and
``nasnet.head`` → logits. The first cell has no previous one: it reads the raw stem in its
place. A cell with ``skip`` returns (previous, new) instead, so that the cell after it
reads one cell further back, as after the reductions of NASNet-A (large).

State 0 of a cell is its current input after ReLU, 1x1 convolution and batch norm, state 1
its previous input (fitted if need be), state 2 its first block's result. In a reduction
cell operations on states 0 and 1 stride. Every operation but the identity is followed by
``DropPath``, whose depth is (position + 1) / total.

Source:
    Zoph et al. (2018), arXiv:1707.07012; official code github.com/tensorflow/models,
    research/slim/nets/nasnet. Weights start as PyTorch's layers do, not by fan-out, and
    running statistics move by 0.1 a step, also where the original has 0.0003.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from zoo.builders import register
from zoo.errors import IncompatibleShapeError, InvalidInputError, UnknownNameError
from zoo.families.drop_path import DropPath
from zoo.families.interfaces import confirm, image, logits, param, sole_input, widened, width
from zoo.families.nasnet_operations import (
    OPERATIONS,
    conv_norm,
    operation,
    output_fit,
    previous_input,
)
from zoo.spec import BlockSpec, TensorSpec

COMBINES = ("add", "concat")
"""How a block joins its two results; after a concatenation a 1x1 convolution halves the width."""

Side: TypeAlias = tuple[str, int]
"""An operation and the state that it reads."""

Join: TypeAlias = tuple[Side, Side, str]
"""A block of a cell: two sides, and how their results are joined."""


@dataclass(frozen=True)
class Wiring:
    """What is inside a cell: its blocks, and the states that its output concatenates.

    Raises:
        UnknownNameError: An operation or a way of joining does not exist.
        InvalidInputError: A state is read or returned that does not exist (yet), or one that
            nothing reads is not returned.
    """

    blocks: tuple[Join, ...]
    outputs: tuple[int, ...]

    def __post_init__(self) -> None:
        for position, (left, right, combine) in enumerate(self.blocks):
            if combine not in COMBINES:
                raise UnknownNameError("way of joining", str(combine), COMBINES)
            for name, state in (left, right):
                if name not in OPERATIONS:
                    raise UnknownNameError("NASNet operation", str(name), OPERATIONS)
                if not 0 <= state < position + 2:
                    raise InvalidInputError(
                        f"block {position} reads state {state}; "
                        f"it may read states 0 to {position + 1}"
                    )
        if not self.blocks:
            raise InvalidInputError("a cell needs at least one block")
        states = range(len(self.blocks) + 2)
        if list(self.outputs) != sorted(set(self.outputs) & set(states)):
            raise InvalidInputError(
                f"a cell returns states {list(self.outputs)}; "
                f"name states of 0 to {len(states) - 1} in ascending order, each once"
            )
        missing = set(self.unused) - set(self.outputs)
        if missing:
            raise InvalidInputError(
                f"nothing reads states {sorted(missing)}; a cell must return them"
            )

    @cached_property
    def unused(self) -> tuple[int, ...]:
        """The states that no block reads; the output holds at least these."""
        return unused_states(self.blocks)


def unused_states(blocks: Sequence[Join]) -> tuple[int, ...]:
    """Return the states that no block reads, in ascending order."""
    read = {state for left, right, _ in blocks for _, state in (left, right)}
    return tuple(state for state in range(len(blocks) + 2) if state not in read)


class Stem(nn.Sequential):
    """A 3x3 convolution and batch norm; with a stride of 2 unpadded, as for large images."""

    def __init__(self, in_chans: int, out_chans: int, *, stride: int, eps: float) -> None:
        super().__init__(
            nn.Conv2d(in_chans, out_chans, 3, stride, padding=1 if stride == 1 else 0, bias=False),
            nn.BatchNorm2d(out_chans, eps=eps),
        )


class Cell(nn.Module):
    """A cell of the given wiring.

    Maps the current input, or previous and current one, to the new state, or to two states
    (see the module's head) unless ``last``.

    Args:
        in_chans: Widths of the inputs, one or two.
        channels: Width of every state.
        wiring: Blocks and outputs.
        reduction: Whether the cell halves the size.
        halve: Whether the previous input is twice the size of the current one.
        shrinks: Whether states 0 and 1 differ in size from the new states (a reduction of
            images of one pixel does not change it).
        skip: Whether the previous input, not the current one, is passed on.
        last: Whether nothing is passed on.
        depth: Of every ``DropPath``.
        eps: Of every batch norm.
        feeds_auxiliary: Whether an auxiliary head reads the new state in training.
    """

    def __init__(
        self,
        in_chans: Sequence[int],
        channels: int,
        wiring: Wiring,
        *,
        reduction: bool,
        halve: bool,
        shrinks: bool,
        skip: bool,
        last: bool,
        depth: float,
        eps: float,
        feeds_auxiliary: bool,
    ) -> None:
        super().__init__()
        self.wiring, self.skip, self.last = wiring, skip, last
        self.feeds_auxiliary = feeds_auxiliary
        self.current = nn.Sequential(*conv_norm(in_chans[-1], channels, 1, eps=eps))
        widths = [channels] * (len(wiring.blocks) + 2)
        if len(in_chans) == 1:
            self.previous: nn.Module = nn.Identity()
            widths[1] = in_chans[0]
        else:
            self.previous = previous_input(in_chans[0], channels, halve=halve, eps=eps)
        self.paths = nn.ModuleList()
        for *sides, _ in wiring.blocks:
            for name, state in sides:
                stride = 2 if reduction and state < 2 else 1
                path = operation(name, widths[state], channels, stride=stride, eps=eps)
                kept = name == "identity"
                self.paths.append(path if kept else nn.Sequential(path, DropPath(depth=depth)))
        self.joins = nn.ModuleList(
            nn.Sequential(*conv_norm(2 * channels, channels, 1, eps=eps))
            if combine == "concat"
            else nn.Identity()
            for *_, combine in wiring.blocks
        )
        self.outputs = nn.ModuleList(
            output_fit(widths[state], channels, halve=shrinks and state < 2, eps=eps)
            for state in wiring.outputs
        )

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        states = [self.current(inputs[-1]), self.previous(inputs[0])]
        paths = iter(self.paths)
        for (*sides, combine), join in zip(self.wiring.blocks, self.joins, strict=True):
            left, right = (next(paths)(states[state]) for _, state in sides)
            states.append(left + right if combine == "add" else join(torch.cat([left, right], 1)))
        fits = zip(self.outputs, self.wiring.outputs, strict=True)
        out = torch.cat([fit(states[state]) for fit, state in fits], dim=1)
        return out if self.last else (inputs[0] if self.skip else inputs[-1], out)


class Head(nn.Sequential):
    """ReLU, global average pooling, dropout and a linear classifier."""

    def __init__(self, in_chans: int, num_classes: int, *, dropout: float) -> None:
        super().__init__(
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(in_chans, num_classes),
        )


def stem_spec(inputs: TensorSpec, *, channels: int, stride: int, eps: float) -> BlockSpec:
    """Describe the stem: with a stride of 1 for small images, of 2 for large ones.

    Raises:
        IncompatibleShapeError: ``inputs`` is not float ``(channels, height, width)``, or too
            small for a stride of 2.
        InvalidInputError: A number is out of range.
    """
    _, height, long = fixed_image(inputs)
    if stride not in (1, 2):
        raise InvalidInputError(f"the stride of a stem is {stride}; it must be 1 or 2")
    _check_eps(eps)
    out = widened(inputs, channels)
    if stride == 2:
        if min(height, long) < 3:
            raise IncompatibleShapeError(
                f"a stem of stride 2 needs at least 3x3 pixels, not {height}x{long}"
            )
        size = ((height - 3) // 2 + 1, (long - 3) // 2 + 1)
        out = TensorSpec(shape=(channels, *size), dtype=inputs.dtype)
    return BlockSpec(
        op="nasnet.stem",
        params={"channels": channels, "stride": stride, "eps": eps},
        inputs=(inputs,),
        outputs=(out,),
    )


def cell_spec(
    inputs: Sequence[TensorSpec],
    *,
    channels: int,
    wiring: Wiring,
    reduction: bool,
    skip: bool,
    last: bool,
    position: int,
    total: int,
    eps: float,
    feeds_auxiliary: bool = False,
) -> BlockSpec:
    """Describe a cell, the ``position``-th of ``total`` from 0, those of the stem counted.

    ``feeds_auxiliary`` marks the cell whose new state an auxiliary head reads in training.

    Raises:
        IncompatibleShapeError: There are neither one nor two inputs, or they do not fit.
        InvalidInputError: A number is out of range.
    """
    if len(inputs) not in (1, 2):
        raise IncompatibleShapeError(f"a NASNet cell takes one or two states, not {len(inputs)}")
    _check_eps(eps)
    if not 0 <= position < total:
        raise InvalidInputError(f"cell {position} is not one of {total}, counted from 0")
    halves(inputs)
    state = widened(inputs[-1], channels * len(wiring.outputs), stride=2 if reduction else 1)
    widened(inputs[-1], channels)
    return BlockSpec(
        op="nasnet.cell",
        params={
            "channels": channels,
            "blocks": [[list(left), list(right), how] for left, right, how in wiring.blocks],
            "outputs": list(wiring.outputs),
            "reduction": reduction,
            "skip": skip,
            "position": position,
            "total": total,
            "eps": eps,
            "feeds_auxiliary": feeds_auxiliary,
        },
        inputs=tuple(inputs),
        outputs=(state,) if last else (inputs[0] if skip else inputs[-1], state),
    )


def halves(inputs: Sequence[TensorSpec]) -> bool:
    """Return whether the previous input of a cell must be halved to fit its current one.

    Raises:
        IncompatibleShapeError: Halving, rounded up, does not fit it either.
    """
    _, *current = fixed_image(inputs[-1])
    _, *previous = fixed_image(inputs[0])
    if previous == current:
        return False
    if [(size + 1) // 2 for size in previous] != current:
        raise IncompatibleShapeError(
            f"the inputs of a cell do not fit: {list(inputs[0].shape)} is neither the size of "
            f"{list(inputs[-1].shape)} nor twice it"
        )
    return True


def head_spec(inputs: TensorSpec, *, num_classes: int, dropout: float) -> BlockSpec:
    """Describe the classifier on the last cell's state.

    Raises:
        IncompatibleShapeError: ``inputs`` is not float ``(channels, height, width)``.
        InvalidInputError: ``num_classes`` is below 1, or ``dropout`` not in [0, 1).
    """
    if not 0 <= dropout < 1:
        raise InvalidInputError(f"dropout is {dropout}; it must be in [0, 1)")
    return BlockSpec(
        op="nasnet.head",
        params={"dropout": dropout},
        inputs=(inputs,),
        outputs=(logits(inputs, num_classes),),
    )


def fixed_image(tensor: TensorSpec) -> tuple[int, int, int]:
    """Return channels, height and width.

    Raises:
        IncompatibleShapeError: ``tensor`` is no float image, or its size may vary: how a
            cell joins its inputs depends on their sizes.
    """
    channels, height, long = image(tensor)
    if height is None or long is None:
        raise IncompatibleShapeError(
            f"a NASNet block takes images of a fixed size, not {list(tensor.shape)}"
        )
    return channels, height, long


def _check_eps(eps: float) -> None:
    if not eps > 0:
        raise InvalidInputError(f"eps is {eps}; it must be above 0")


def _number(spec: BlockSpec, name: str) -> float:
    """Return a parameter; JSON may have made an integer of it."""
    value = spec.params.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidInputError(f"{spec.op} has {name}={value!r}; it takes a number")
    return float(value)


def _wiring(spec: BlockSpec) -> Wiring:
    try:
        blocks = tuple(
            ((str(a), int(i)), (str(b), int(j)), str(how))
            for (a, i), (b, j), how in param(spec, "blocks", list)
        )
        outputs = tuple(int(state) for state in param(spec, "outputs", list))
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"{spec.op} has blocks={spec.params.get('blocks')!r}; it takes a list of "
            "[[operation, state], [operation, state], add or concat]"
        ) from error
    return Wiring(blocks, outputs)


@register("nasnet.stem")
def build_stem(spec: BlockSpec) -> nn.Module:
    """Build ``nasnet.stem``; its ``params`` are the arguments of ``stem_spec``."""
    settings: dict[str, Any] = {
        "stride": param(spec, "stride", int),
        "eps": _number(spec, "eps"),
    }
    channels, inputs = param(spec, "channels", int), sole_input(spec)
    confirm(spec, stem_spec(inputs, channels=channels, **settings))
    return Stem(fixed_image(inputs)[0], channels, **settings)


@register("nasnet.cell")
def build_cell(spec: BlockSpec) -> nn.Module:
    """Build ``nasnet.cell``; its ``params`` are those of ``cell_spec``."""
    settings: dict[str, Any] = {
        "reduction": param(spec, "reduction", bool),
        "skip": param(spec, "skip", bool),
        "last": len(spec.outputs) == 1,
        "feeds_auxiliary": param(spec, "feeds_auxiliary", bool),
        "eps": _number(spec, "eps"),
    }
    position, total = param(spec, "position", int), param(spec, "total", int)
    channels, wiring = param(spec, "channels", int), _wiring(spec)
    expected = cell_spec(
        spec.inputs, channels=channels, wiring=wiring, position=position, total=total, **settings
    )
    confirm(spec, expected)
    return Cell(
        [fixed_image(tensor)[0] for tensor in spec.inputs],
        channels,
        wiring,
        halve=halves(spec.inputs),
        shrinks=fixed_image(spec.outputs[-1])[1:] != fixed_image(spec.inputs[-1])[1:],
        depth=(position + 1) / total,
        **settings,
    )


@register("nasnet.head")
def build_head(spec: BlockSpec) -> nn.Module:
    """Build ``nasnet.head``; the number of classes is the size of its output."""
    dropout, inputs = _number(spec, "dropout"), sole_input(spec)
    confirm(spec, head_spec(inputs, num_classes=width(spec), dropout=dropout))
    return Head(fixed_image(inputs)[0], width(spec), dropout=dropout)
