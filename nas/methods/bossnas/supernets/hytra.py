"""HyTra cut into its blocks: operations share weights between the scales that they come from.

The reduction, position code and shortcut of an operation exist once for each scale before it,
as in the official code; its convolution or attention, and expansion once. The interface is
the index of the scale of a block's last operation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from nas.blockwise import Blockwise, Path, SearchBlock, cut
from nas.spaces.hytra import KINDS, NUM_SCALES, SCALES, HytraSpace, legal_paths
from zoo.builders import build
from zoo.families.hytra import Body, Entrance, Layer, head_spec, stem_spec
from zoo.spec import Architecture, BlockSpec, TensorSpec


class HytraBlock(SearchBlock):
    """All paths of one block.

    Args:
        space: Widths, strides and head size.
        paths: The block's legal paths; operations that are on none are not built.
        before: Index of the scale before the block; None for the stem.
    """

    def __init__(self, space: HytraSpace, paths: Sequence[Path], before: int | None) -> None:
        super().__init__()
        self._before = before
        self.bodies = nn.ModuleList()
        self.entrances = nn.ModuleList()
        self.merged: list[Mapping[tuple[int | None, int], Layer]] = []
        for depth in range(len(paths[0])):
            steps = sorted(
                {(self._scale_before(path, depth), path[depth]) for path in paths},
                key=lambda step: (step[1], -1 if step[0] is None else step[0]),
            )
            bodies = nn.ModuleDict()
            entrances = nn.ModuleDict()
            layers: dict[tuple[int | None, int], Layer] = {}
            for scale, op in steps:
                channels = space.widths[SCALES[op]]
                if str(op) not in bodies:
                    bodies[str(op)] = Body(channels, kind=KINDS[op], head_dim=space.head_dim)
                entrance = Entrance(
                    space.stem if scale is None else space.widths[scale],
                    channels,
                    shrink=space.stride(NUM_SCALES - 1 if scale is None else scale, SCALES[op]),
                    patch=scale is None,
                )
                entrances[f"{op} after {scale}"] = entrance
                body = bodies[str(op)]
                assert isinstance(body, Body)
                layers[scale, op] = Layer(entrance, body)
            self.bodies.append(bodies)
            self.entrances.append(entrances)
            self.merged.append(layers)

    def _scale_before(self, path: Path, depth: int) -> int | None:
        return SCALES[path[depth - 1]] if depth else self._before

    def part(self, path: Path, depth: int) -> nn.Module:
        return self.merged[depth][self._scale_before(path, depth), path[depth]]

    def layer(self, x: Tensor, path: Path, depth: int) -> Tensor:
        return self.part(path, depth)(x)


class HytraBlockwise(Blockwise):
    """HyTra in the blocks that its ``layers`` name."""

    start = NUM_SCALES - 1

    def __init__(self, space: HytraSpace) -> None:
        self.space = space

    @property
    def num_blocks(self) -> int:
        return len(self.space.layers)

    def paths(self, block: int, interface: int) -> tuple[Path, ...]:
        return legal_paths(interface + 1, self.space.layers[block])

    def interface(self, block: int, path: Path) -> int:
        return SCALES[path[-1]]

    def join(self, paths: Sequence[Path]) -> Architecture:
        return self.space.architecture([op for path in paths for op in path])

    def split(self, architecture: Architecture) -> tuple[Path, ...]:
        self.space.check(architecture)
        return cut(architecture.choices, self.space.layers)

    def stem(self, inputs: TensorSpec) -> nn.Module:
        return build(stem_spec(inputs, channels=self.space.stem))

    def block(self, block: int, interface: int, inputs: TensorSpec) -> HytraBlock:
        before = interface if block else None
        return HytraBlock(self.space, self.paths(block, interface), before)

    def output(self, block: int, interface: int) -> tuple[int, int]:
        return self.space.widths[interface], self.space.stride(interface, 0)

    def specs(
        self, block: int, interface: int, path: Path, inputs: TensorSpec
    ) -> tuple[BlockSpec, ...]:
        specs = [] if block else [stem_spec(inputs, channels=self.space.stem)]
        before = interface if block else None
        for op in path:
            given = specs[-1].outputs[0] if specs else inputs
            specs.append(self.space.layer(given, op, before))
            before = SCALES[op]
        return tuple(specs)

    def tail(self, inputs: TensorSpec, *, num_classes: int) -> tuple[BlockSpec, ...]:
        return (head_spec(inputs, num_classes=num_classes),)
