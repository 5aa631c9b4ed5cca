"""The hybrid space cut into its stages: a path is a stage's width and its string.

A path is what the stage's choices are: the index of the width's multiple, then a letter a
place. Its first layer does nothing but choose the width; strings of one width share the
blocks of their places, widths share nothing. The interface says which width the stage
leaves, and what the constraint remembers of the stages so far: after it come exactly the
strings with which the network can still be completed.

Where the constraint is ``asymmetric`` the first number also says whether a stage up to this
one is mixed (the number of widths is added), since the string alone does not. It runs the same
either way, and has one score (``computed``).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import islice

from torch import Tensor, nn

from nas.blockwise import Blockwise, Path, SearchBlock, cut, rankable
from nas.spaces.hybrid import NOTHING, HybridSpace
from nas.spaces.hybrid_strings import (
    ASYMMETRIC,
    ATTENTION,
    START,
    Memory,
    remembered,
    ways,
)
from zoo.builders import build, build_chain
from zoo.families.interfaces import widened
from zoo.spec import Architecture, BlockSpec, TensorSpec


class HybridBlock(SearchBlock):
    """All paths of one stage.

    Args:
        space: What C and T are.
        stage: Which stage, from 0.
        inputs: What the stage takes.
        letters: What each place may be.
    """

    def __init__(
        self,
        space: HybridSpace,
        stage: int,
        inputs: TensorSpec,
        letters: Sequence[Sequence[str]],
    ) -> None:
        super().__init__()
        self.chosen = nn.Identity()
        self.widths = nn.ModuleList()
        for channels in space.channels[stage]:
            places = nn.ModuleList()
            given, stride = inputs, space.strides[stage]
            for options in letters:
                specs = [
                    None if letter == NOTHING else space.place(letter, given, channels, stride)
                    for letter in options
                ]
                places.append(
                    nn.ModuleList(nn.Identity() if spec is None else build(spec) for spec in specs)
                )
                given, stride = widened(given, channels, stride=stride), 1
            self.widths.append(places)

    def part(self, path: Path, depth: int) -> nn.Module:
        if depth == 0:
            return self.chosen
        places = self.widths[path[0] % len(self.widths)]
        assert isinstance(places, nn.ModuleList)
        options = places[depth - 1]
        assert isinstance(options, nn.ModuleList)
        return options[path[depth]]

    def layer(self, x: Tensor, path: Path, depth: int) -> Tensor:
        return self.part(path, depth)(x)


class HybridBlockwise(Blockwise):
    """One block a stage."""

    def __init__(self, space: HybridSpace) -> None:
        self._space = space
        self._widths = len(space.multipliers)

    @property
    def num_blocks(self) -> int:
        return len(self._space.stages)

    @cached_property
    def _letters(self) -> tuple[tuple[tuple[str, ...], ...], ...]:
        """What each place of each stage may be."""
        letters = iter(self._space.letters)
        return tuple(tuple(islice(letters, rule.most)) for rule in self._space.stages)

    @cached_property
    def _memories(self) -> tuple[Memory, ...]:
        """All that the constraint may remember, the start first."""
        start = START[self._space.constraint]
        kinds = {kind for rule in self._space.stages for kind in rule.classes()}
        found = {remembered(self._space.constraint, start, *kind) for kind in kinds}
        return tuple(sorted({start, *(item for item in found if item is not None)}))

    def paths(self, block: int, interface: int) -> tuple[Path, ...]:
        memory = self._memories[interface // self._widths]
        heads = range(self._widths)
        rule = self._space.stages[block]
        depths = range(rule.least, rule.most + 1)
        rankable(self._widths * sum(len(rule.letters) ** depth for depth in depths))
        found = []
        for string in rule.strings():
            after = self._after(memory, string)
            if after is not None and ways(
                self._space.stages, self._space.constraint, block + 1, after
            ):
                found += [self._path(block, width, string, after) for width in heads]
        return tuple(sorted(found))

    def interface(self, block: int, path: Path) -> int:
        width, string = path[0] % self._widths, self._string(block, path)
        if self._space.constraint == ASYMMETRIC:
            return path[0]
        after = self._after(START[self._space.constraint], string)
        assert after is not None
        return self._memories.index(after) * self._widths + width

    def computed(self, block: int, path: Path) -> Path:
        return (path[0] % self._widths, *path[1:])

    def join(self, paths: Sequence[Path]) -> Architecture:
        architecture = self._space.architecture(
            [choice for path in paths for choice in (path[0] % self._widths, *path[1:])]
        )
        self._space.check(architecture)
        return architecture

    def split(self, architecture: Architecture) -> tuple[Path, ...]:
        strings = self._space.strings(architecture)
        plain = cut(architecture.choices, [1 + rule.most for rule in self._space.stages])
        memory: Memory = START[self._space.constraint]
        paths = []
        for block, (string, path) in enumerate(zip(strings, plain, strict=True)):
            after = self._after(memory, string)
            assert after is not None
            memory = after
            paths.append(self._path(block, path[0], string, memory))
        return tuple(paths)

    def stem(self, inputs: TensorSpec) -> nn.Module:
        return build_chain(self._space.stem_specs(inputs))

    def block(self, block: int, interface: int, inputs: TensorSpec) -> HybridBlock:
        given = self._space.stem_specs(inputs)[-1].outputs[0]
        for stage in range(block):
            given = widened(given, given.shape[0] or 1, stride=self._space.strides[stage])
        if block:
            channels = self._space.channels[block - 1][interface % self._widths]
            given = widened(given, channels)
        return HybridBlock(self._space, block, given, self._letters[block])

    def output(self, block: int, interface: int) -> tuple[int, int]:
        return self._space.channels[block][interface % self._widths], 1

    def specs(
        self, block: int, interface: int, path: Path, inputs: TensorSpec
    ) -> tuple[BlockSpec, ...]:
        before = () if block else self._space.stem_specs(inputs)
        given = before[-1].outputs[0] if before else inputs
        channels = self._space.channels[block][path[0] % self._widths]
        return (
            *before,
            *self._space.stage_specs(block, self._string(block, path), channels, given),
        )

    def tail(self, inputs: TensorSpec, *, num_classes: int) -> tuple[BlockSpec, ...]:
        return self._space.head_specs(inputs, num_classes=num_classes)

    def _path(self, block: int, width: int, string: str, after: Memory) -> Path:
        written = string.ljust(len(self._letters[block]), NOTHING)
        word = (
            options.index(letter)
            for options, letter in zip(self._letters[block], written, strict=True)
        )
        mixed = self._space.constraint == ASYMMETRIC and bool(after)
        return (width + self._widths * mixed, *word)

    def _string(self, block: int, path: Path) -> str:
        pairs = zip(self._letters[block], path[1:], strict=True)
        return "".join(options[choice] for options, choice in pairs).rstrip(NOTHING)

    def _after(self, memory: Memory, string: str) -> Memory | None:
        return remembered(self._space.constraint, memory, len(string), string.count(ATTENTION))
