"""A hybrid space of convolutions and transformers, in the manner of AsCAN.

A network is a convolutional stem, stages of blocks C and T, each at half the resolution
of the one before, and pooling with a classifier. A stage is chosen as a string, ``CCT``
say, and a width; see ``nas.spaces.hybrid_strings`` for the strings and what may relate
them. T is not offered at high resolution, where attention is dearest. The string form of an
architecture is ``CC-CCT-CCTTT-TT @ 1,0.75,1,1.25``: strings, and multiples of the widths.

``Architecture.choices`` holds, for each stage, the index of its width's multiple, then for
each place up to the greatest depth an index into ``letters``: C, T where the stage may
attend, and "no block" beyond the least depth, which is followed by nothing else.

Any registered image operation that can be placed by ``channels`` and ``stride`` may be C or
T, by the name of its family: ``fused_mbconv``, ``mbconv``, ``convnext``, ``transformer``,
``bottleneck_attention``, ``biformer``, ``neighbourhood``, ``lightning``, or a user's own.

Source:
    Kag et al. (2024), "AsCAN: Asymmetric Convolution-Attention Networks for Efficient
    Recognition and Generation", arXiv:2411.04967, of which no code was published: stem,
    four stages, C early and T late are the paper's; depths, widths, constraints and the
    head are this space's own. A block that begins a stage changes width and size itself.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from operator import mul
from typing import final

from nas.cost.blocks import chain_cost
from nas.graph import Graph
from nas.spaces.categorical import CategoricalSpace, count
from nas.spaces.chain_graph import chain_graph
from nas.spaces.hybrid_strings import (
    ATTENTION,
    CONSTRAINTS,
    CONV,
    FREE,
    StageRule,
    broken,
    count_strings,
    draw_strings,
)
from zoo.builders import BlockCost, placed
from zoo.canonical import Json, plain
from zoo.errors import IncompatibleShapeError, InvalidInputError, UnknownNameError
from zoo.families.mbconv import classifier_spec, conv_spec
from zoo.spec import Architecture, BlockSpec, TensorSpec

NOTHING = "-"
"""The letter of a place without a block."""


@final
@dataclass(frozen=True, kw_only=True)
class HybridSpace(CategoricalSpace):
    """Stages of convolution and transformer blocks, each a string over C and T, and a width.

    Args:
        widths: Channels of each stage before they are multiplied.
        depths: Least and greatest number of blocks of each stage.
        strides: Stride of each stage's first block, 1 or 2.
        multipliers: What a stage's width may be multiplied by.
        constraint: ``free``, ``non-decreasing`` (fraction of T by stage) or ``asymmetric``
            (at least one stage mixed).
        attention_from: Stages at 1/``attention_from`` of the image's size or less may attend.
        stem: Channels of the stem.
        stem_stride: 1, 2 or 4.
        last: Channels of the 1x1 convolution before the classifier.
        dropout: Before the classifier.
        conv: What C is: an operation, ``.block`` left out.
        attention: What T is.
        conv_settings: Settings of C beside channels and stride, e.g. ``{"expand": 2}``.
        attention_settings: Settings of T, e.g. ``{"head_dim": 16}``.

    Raises:
        UnknownNameError: There is no such constraint, operation or setting.
        InvalidInputError: The stages disagree in number, a number is out of range, a width
            is not whole, or no architecture meets the constraint.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[tuple[int, int], ...] = ((2, 2), (2, 3), (3, 6), (2, 4))
    strides: tuple[int, ...] = (1, 2, 2, 2)
    multipliers: tuple[float, ...] = (0.75, 1, 1.25)
    constraint: str = FREE
    attention_from: int = 8
    stem: int = 64
    stem_stride: int = 4
    last: int = 1024
    dropout: float = 0.0
    conv: str = "fused_mbconv"
    attention: str = "transformer"
    conv_settings: Mapping[str, Json] = field(default_factory=dict, hash=False)
    attention_settings: Mapping[str, Json] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _check_numbers(self)
        for name in ("conv_settings", "attention_settings"):
            for setting, source in (("channels", "widths"), ("stride", "strides")):
                if setting in getattr(self, name):
                    raise InvalidInputError(
                        f"{name} has {setting!r}, which follows from {source}; leave it out"
                    )
        if self.constraint not in CONSTRAINTS:
            raise UnknownNameError("constraint of a hybrid space", self.constraint, CONSTRAINTS)
        if not count_strings(self.stages, self.constraint):
            raise InvalidInputError(
                f"no architecture of depths {self.depths} is {self.constraint}; allow a stage "
                "of two or more blocks to attend"
            )
        for channels in sorted({width for options in self.channels for width in options}):
            self._try(CONV, channels)
        for rule, options in zip(self.stages, self.channels, strict=True):
            for channels in options if rule.attention else ():
                self._try(ATTENTION, channels)

    def _try(self, letter: str, channels: int) -> None:
        """Check that a block of any size can have this width."""
        try:
            self.place(letter, TensorSpec(shape=(channels, None, None)), channels, 1)
        except IncompatibleShapeError:
            return  # it depends on the size, which is not known yet

    @cached_property
    def stages(self) -> tuple[StageRule, ...]:
        """The rule of each stage."""
        scales = list(accumulate((self.stem_stride, *self.strides), mul))[1:]
        return tuple(
            StageRule(least, most, scale >= self.attention_from)
            for (least, most), scale in zip(self.depths, scales, strict=True)
        )

    @cached_property
    def channels(self) -> tuple[tuple[int, ...], ...]:
        """The widths on offer in each stage, in the order of ``multipliers``."""
        return tuple(
            tuple(round(width * multiple) for multiple in self.multipliers) for width in self.widths
        )

    @cached_property
    def _described(self) -> dict[str, Json]:
        params = {name: plain(getattr(self, name)) for name in self.__dataclass_fields__}
        return {"name": "hybrid", "params": params}

    def describe(self) -> dict[str, Json]:
        return self._described

    @cached_property
    def letters(self) -> tuple[tuple[str, ...], ...]:
        """What each place of each stage may be, stage after stage."""
        return tuple(
            (*rule.letters, *([NOTHING] if place >= rule.least else []))
            for rule in self.stages
            for place in range(rule.most)
        )

    @cached_property
    def _written(self) -> tuple[str, ...]:
        """The multiples as text."""
        return tuple(str(plain(multiple)) for multiple in self.multipliers)

    def cardinalities(self) -> tuple[int, ...]:
        letters = iter(self.letters)
        return tuple(
            size
            for rule in self.stages
            for size in (len(self.multipliers), *(len(next(letters)) for _ in range(rule.most)))
        )

    def size(self) -> int:
        return count_strings(self.stages, self.constraint) * len(self.multipliers) ** len(
            self.stages
        )

    def sample(self, rng: random.Random) -> Architecture:
        """Return an architecture drawn uniformly from the legal ones."""
        strings = draw_strings(self.stages, self.constraint, rng)
        return self._encode(strings, [rng.randrange(len(self.multipliers)) for _ in self.stages])

    def neighbours(self, architecture: Architecture) -> Iterator[Architecture]:
        """Yield what is one block (changed, added or left out) or one width away."""
        strings, multiples = self.strings(architecture), self._multiples(architecture)
        for at, rule in enumerate(self.stages):
            for string in rule.edits(strings[at]):
                edited = (*strings[:at], string, *strings[at + 1 :])
                if broken(edited, self.constraint) is None:
                    yield self._encode(edited, multiples)
            for multiple in range(len(self.multipliers)):
                if multiple != multiples[at]:
                    others = (*multiples[:at], multiple, *multiples[at + 1 :])
                    yield self._encode(strings, others)

    def mutate(self, architecture: Architecture, rng: random.Random) -> Architecture:
        """Return a neighbour; all are equally likely.

        Raises:
            InvalidInputError: The architecture has no neighbour.
        """
        others = list(self.neighbours(architecture))
        if not others:
            raise InvalidInputError("this architecture has no neighbour; nothing can be mutated")
        return rng.choice(others)

    def strings(self, architecture: Architecture) -> tuple[str, ...]:
        """Return the string of each stage.

        Raises:
            InvalidInputError: The architecture is not of this space.
        """
        self.check(architecture)
        return self._strings(architecture.choices)

    def summary(self, architecture: Architecture) -> str:
        strings = self.strings(architecture)
        multiples = [self._written[at] for at in self._multiples(architecture)]
        return f"{'-'.join(strings)} @ {','.join(multiples)}"

    def parse(self, text: str) -> Architecture:
        """Return the architecture that ``text`` names; without ``@``, all widths times 1.

        Raises:
            InvalidInputError: A stage or a width is missing or none of this space, or the
                constraint is broken.
        """
        written, _, scales = text.partition("@")
        strings = tuple(part.strip() for part in written.split("-"))
        known = {text: at for at, text in enumerate(self._written)}
        multiples = [part.strip() for part in scales.split(",")] if scales else ["1"] * len(strings)
        for what, found in (("stages", strings), ("widths", multiples)):
            if len(found) != len(self.stages):
                raise InvalidInputError(
                    f"{text!r} has {len(found)} {what}; this space has {len(self.stages)} stages, "
                    "written CC-CT-… @ 1,1,…"
                )
        for at, (string, rule) in enumerate(zip(strings, self.stages, strict=True), 1):
            fault = rule.fault(string)
            if fault is not None:
                raise InvalidInputError(f"stage {at}, {string!r}, {fault}")
        for multiple in multiples:
            if multiple not in known:
                raise InvalidInputError(
                    f"a width times {multiple} is not on offer; choose from {', '.join(known)}"
                )
        fault = broken(strings, self.constraint)
        if fault is not None:
            raise InvalidInputError(f"{text!r}: {fault}")
        return self._encode(strings, [known[multiple] for multiple in multiples])

    def stem_specs(
        self, inputs: TensorSpec, *, channels: int | None = None
    ) -> tuple[BlockSpec, ...]:
        """Return the blocks before the stages: a convolution for each halving, at least one."""
        specs: list[BlockSpec] = []
        for stride in (2, 2) if self.stem_stride == 4 else (self.stem_stride,):
            given = specs[-1].outputs[0] if specs else inputs
            specs.append(conv_spec(given, channels=channels or self.stem, kernel=3, stride=stride))
        return tuple(specs)

    def head_specs(
        self, inputs: TensorSpec, *, num_classes: int, channels: int | None = None
    ) -> tuple[BlockSpec, ...]:
        """Return the blocks after the stages: a 1x1 convolution and the classifier."""
        conv = conv_spec(inputs, channels=channels or self.last, kernel=1, stride=1)
        head = classifier_spec(conv.outputs[0], num_classes=num_classes, dropout=self.dropout)
        return conv, head

    def stage_specs(
        self, stage: int, string: str, channels: int, inputs: TensorSpec
    ) -> tuple[BlockSpec, ...]:
        """Return the blocks of one stage.

        Args:
            stage: Which, from 0; its first block has the stage's stride.
            string: Over C and T.
            channels: Width of the stage.
            inputs: What the stage takes.

        Raises:
            IncompatibleShapeError: A block does not fit images of this size.
        """
        specs: list[BlockSpec] = []
        for place, letter in enumerate(string):
            given = specs[-1].outputs[0] if specs else inputs
            stride = 1 if place else self.strides[stage]
            specs.append(self.place(letter, given, channels, stride))
        return tuple(specs)

    def blocks(
        self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int
    ) -> tuple[BlockSpec, ...]:
        widths = (self.stem, *self._widths(architecture), self.last)
        return self._chain(self.strings(architecture), widths, inputs, num_classes)

    def cost(
        self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int
    ) -> BlockCost:
        """Return multiply-accumulates and parameters of the network, without building it.

        Raises:
            IncompatibleShapeError: A block does not fit images of this size.
            InvalidInputError: The architecture is not of this space.
        """
        return chain_cost(self.blocks(architecture, inputs=inputs, num_classes=num_classes))

    def graph(self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int) -> Graph:
        """Draw the network for ``nas.identity``: every block one vertex."""
        return chain_graph(self.blocks(architecture, inputs=inputs, num_classes=num_classes))

    def _chain(
        self, strings: Sequence[str], widths: Sequence[int], inputs: TensorSpec, num_classes: int
    ) -> tuple[BlockSpec, ...]:
        """Return all blocks; ``widths`` are those of stem, stages and last convolution."""
        specs = list(self.stem_specs(inputs, channels=widths[0]))
        for stage, string in enumerate(strings):
            specs += self.stage_specs(stage, string, widths[stage + 1], specs[-1].outputs[0])
        head = self.head_specs(specs[-1].outputs[0], num_classes=num_classes, channels=widths[-1])
        return (*specs, *head)

    def _widths(self, architecture: Architecture) -> tuple[int, ...]:
        multiples = self._multiples(architecture)
        return tuple(
            options[multiple] for options, multiple in zip(self.channels, multiples, strict=True)
        )

    def place(self, letter: str, inputs: TensorSpec, channels: int, stride: int) -> BlockSpec:
        """Describe one block C or T.

        Raises:
            IncompatibleShapeError: It does not fit images of this size.
            InvalidInputError: It cannot have so many channels.
        """
        name = self.conv if letter == CONV else self.attention
        settings = self.conv_settings if letter == CONV else self.attention_settings
        op = name if "." in name else f"{name}.block"
        return placed(op, inputs, channels=channels, stride=stride, **settings)

    def _split(self, choices: Sequence[int]) -> Iterator[tuple[int, Sequence[int]]]:
        """Yield, for each stage, the index of its multiple and those of its letters."""
        at = 0
        for rule in self.stages:
            yield choices[at], choices[at + 1 : at + 1 + rule.most]
            at += 1 + rule.most

    def _multiples(self, architecture: Architecture) -> tuple[int, ...]:
        return tuple(multiple for multiple, _ in self._split(architecture.choices))

    def _strings(self, choices: Sequence[int]) -> tuple[str, ...]:
        letters = iter(self.letters)
        return tuple(
            "".join(next(letters)[index] for index in indices).rstrip(NOTHING)
            for _, indices in self._split(choices)
        )

    def _encode(self, strings: Sequence[str], multiples: Sequence[int]) -> Architecture:
        letters, choices = iter(self.letters), []
        for rule, string, multiple in zip(self.stages, strings, multiples, strict=True):
            written = string.ljust(rule.most, NOTHING)
            choices += [multiple, *(next(letters).index(letter) for letter in written)]
        return self.architecture(choices)

    def _fault(self, choices: tuple[int, ...]) -> str | None:
        strings = self._strings(choices)
        for at, string in enumerate(strings, 1):
            if NOTHING in string:
                return f"stage {at} has a block after a place without one: {string}"
        return broken(strings, self.constraint)


def _check_numbers(space: HybridSpace) -> None:
    """Check the settings that are numbers, and make lists tuples.

    Raises:
        InvalidInputError: One is out of range, or the stages disagree in number.
    """
    for name in ("widths", "strides", "multipliers", "depths"):
        value = getattr(space, name)
        if not isinstance(value, list | tuple) or not value:
            raise InvalidInputError(f"{name} is {value!r}; give a list, not empty")
        object.__setattr__(space, name, tuple(value))
    if not len(space.widths) == len(space.depths) == len(space.strides):
        raise InvalidInputError(
            f"there are {len(space.widths)} widths, {len(space.depths)} depths and "
            f"{len(space.strides)} strides; give one of each for every stage"
        )
    depths = []
    for bounds in space.depths:
        if not isinstance(bounds, list | tuple) or len(bounds) != 2:
            raise InvalidInputError(f"depths has {bounds!r}; give the least and the greatest")
        least = count("the least depth", bounds[0])
        depths.append((least, count("the greatest depth", bounds[1], least=least)))
    object.__setattr__(space, "depths", tuple(depths))
    for stride in space.strides:
        count("a stride", stride, most=2)
    for name in ("stem", "last", "attention_from"):
        count(name, getattr(space, name))
    if space.stem_stride not in (1, 2, 4):
        raise InvalidInputError(f"stem_stride is {space.stem_stride!r}; it must be 1, 2 or 4")
    for multiple in space.multipliers:
        if isinstance(multiple, bool) or not isinstance(multiple, int | float) or multiple <= 0:
            raise InvalidInputError(f"multipliers has {multiple!r}; it must be a positive number")
    if len(set(space.multipliers)) < len(space.multipliers):
        raise InvalidInputError(f"multipliers are {space.multipliers}; name each once")
    for width in space.widths:
        for multiple in space.multipliers:
            if (count("a width", width) * multiple) % 1:
                raise InvalidInputError(
                    f"{width} channels times {multiple:g} is no whole number; change one of them"
                )
    if isinstance(space.dropout, bool) or not 0 <= space.dropout < 1:
        raise InvalidInputError(f"dropout is {space.dropout}; it must be in [0, 1)")
