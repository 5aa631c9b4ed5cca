"""Spaces whose layers choose independently between blocks of one shape, cut by stages.

Every layer holds the operations that it may be as the zoo's own blocks. A layer that may be
left out has an identity there. What goes from block to block has one shape, so there is one
interface.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor, nn

from nas.blockwise import Blockwise, Path, SearchBlock, all_paths, cut, rankable
from nas.spaces.mbconv import MBConvSpace
from nas.spaces.mbconv_se import OPERATIONS as MBCONV_SE
from nas.spaces.mbconv_se import MBConvSESpace
from nas.spaces.nasbench_macro import OPERATIONS, STAGES, NasBenchMacroSpace
from zoo.builders import build, build_chain
from zoo.errors import InvalidInputError
from zoo.families import nasbench_macro as macro
from zoo.spec import Architecture, BlockSpec, TensorSpec

Options = tuple[BlockSpec | None, ...]
"""What one layer may be; None leaves it out."""


class ChoiceBlock(SearchBlock):
    """Layers of blocks to choose from, all of a layer's mapping one shape to one shape."""

    def __init__(self, layers: Sequence[Options]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(nn.Identity() if spec is None else build(spec) for spec in options)
            for options in layers
        )

    def part(self, path: Path, depth: int) -> nn.Module:
        options = self.layers[depth]
        assert isinstance(options, nn.ModuleList)
        return options[path[depth]]

    def layer(self, x: Tensor, path: Path, depth: int) -> Tensor:
        return self.part(path, depth)(x)


@dataclass(frozen=True, kw_only=True)
class FixedBlockwise(Blockwise):
    """Independent layers in blocks.

    Args:
        layers: Number of layers of each block.
        counts: Number of options of each layer.
        architecture: Makes an architecture of all choices.
        check: Refuses architectures of another space.
        before: The specs before the first layer, on images.
        options: What a layer may be, on its input.
        after: The specs after the last layer, on its output, for so many classes.

    Raises:
        InvalidInputError: The blocks have not as many layers together as there are.
    """

    layers: tuple[int, ...]
    counts: tuple[int, ...]
    architecture: Callable[[Sequence[int]], Architecture]
    check: Callable[[Architecture], None]
    before: Callable[[TensorSpec], tuple[BlockSpec, ...]]
    options: Callable[[int, TensorSpec], Options]
    after: Callable[[TensorSpec, int], tuple[BlockSpec, ...]]

    def __post_init__(self) -> None:
        if sum(self.layers) != len(self.counts) or min(self.layers) < 1:
            raise InvalidInputError(
                f"blocks of {list(self.layers)} layers are not {len(self.counts)} together"
            )

    @property
    def num_blocks(self) -> int:
        return len(self.layers)

    def paths(self, block: int, interface: int) -> tuple[Path, ...]:
        first, last = self._range(block)
        rankable(prod(self.counts[first:last]))
        return all_paths(self.counts[first:last])

    def interface(self, block: int, path: Path) -> int:
        return 0

    def join(self, paths: Sequence[Path]) -> Architecture:
        return self.architecture([choice for path in paths for choice in path])

    def split(self, architecture: Architecture) -> tuple[Path, ...]:
        self.check(architecture)
        return cut(architecture.choices, self.layers)

    def stem(self, inputs: TensorSpec) -> nn.Module:
        return build_chain(self.before(inputs))

    def block(self, block: int, interface: int, inputs: TensorSpec) -> ChoiceBlock:
        first, last = self._range(block)
        return ChoiceBlock(self._walk(inputs, last)[first:])

    def output(self, block: int, interface: int) -> tuple[int, int]:
        free = TensorSpec(shape=(3, None, None))
        channels = self._shape(self._walk(free, self._range(block)[1])[-1]).shape[0]
        assert channels is not None
        return channels, 1

    def specs(
        self, block: int, interface: int, path: Path, inputs: TensorSpec
    ) -> tuple[BlockSpec, ...]:
        specs = [] if block else list(self.before(inputs))
        for layer, choice in zip(range(*self._range(block)), path, strict=True):
            given = specs[-1].outputs[0] if specs else inputs
            spec = self.options(layer, given)[choice]
            if spec is not None:
                specs.append(spec)
        return tuple(specs)

    def tail(self, inputs: TensorSpec, *, num_classes: int) -> tuple[BlockSpec, ...]:
        return self.after(inputs, num_classes)

    def _range(self, block: int) -> tuple[int, int]:
        first = sum(self.layers[:block])
        return first, first + self.layers[block]

    def _walk(self, inputs: TensorSpec, last: int) -> list[Options]:
        given, found = self.before(inputs)[-1].outputs[0], []
        for layer in range(last):
            found.append(self.options(layer, given))
            given = self._shape(found[-1])
        return found

    @staticmethod
    def _shape(options: Options) -> TensorSpec:
        return next(spec.outputs[0] for spec in options if spec is not None)


def macro_blockwise(space: NasBenchMacroSpace, layers: Sequence[int] | None = None) -> Blockwise:
    """Cut NAS-Bench-Macro into its three stages: 9, 27 and 27 paths."""
    first = {sum(STAGES[:stage]): stage for stage in range(len(STAGES))}

    def options(layer: int, given: TensorSpec) -> Options:
        channels = given.shape[0] or 0
        return tuple(
            macro.layer_spec(
                given,
                channels=2 * channels if layer in first else channels,
                stride=2 if layer in first else 1,
                operation=name,
            )
            for name in OPERATIONS
        )

    return FixedBlockwise(
        layers=tuple(layers or STAGES),
        counts=space.cardinalities(),
        architecture=space.architecture,
        check=space.check,
        before=lambda inputs: (macro.stem_spec(inputs, channels=space.channels),),
        options=options,
        after=lambda inputs, classes: (macro.head_spec(inputs, num_classes=classes),),
    )


def mbconv_blockwise(space: MBConvSpace, layers: Sequence[int] | None = None) -> Blockwise:
    """Cut an MBConv space into its stages."""

    def options(layer: int, given: TensorSpec) -> Options:
        edge = space.edges[layer]
        return tuple(None if op is None else space.edge_spec(edge, op, given) for op in edge.ops)

    return FixedBlockwise(
        layers=tuple(layers or space.depths),
        counts=space.cardinalities(),
        architecture=space.architecture,
        check=space.check,
        before=space.stem_specs,
        options=options,
        after=lambda inputs, classes: space.head_specs(inputs, num_classes=classes),
    )


def mbconv_se_blockwise(space: MBConvSESpace, layers: Sequence[int] | None = None) -> Blockwise:
    """Cut the MBConv space of BossNAS into its stages: 16 and four times 256 paths."""

    def options(layer: int, given: TensorSpec) -> Options:
        return tuple(space.layer(layer, choice, given) for choice in range(len(MBCONV_SE)))

    return FixedBlockwise(
        layers=tuple(layers or space.layers),
        counts=space.cardinalities(),
        architecture=space.architecture,
        check=space.check,
        before=space.before,
        options=options,
        after=space.after,
    )
