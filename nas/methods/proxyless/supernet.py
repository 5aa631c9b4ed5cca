"""The over-parameterised MBConv network: every operation on every edge, one path run.

The order of modules is stem, first block, searched blocks (their operations in the order
of ``Edge.ops``), 1x1 convolution, classifier; ``zero`` has no module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from torch import Tensor, nn

from nas.methods.proxyless.gates import Draw, mix_full, mix_recompute, mix_two
from nas.spaces.mbconv import Edge, MBConvSpace
from zoo.builders import build
from zoo.families.mbconv import MBConv
from zoo.spec import TensorSpec

Mode: TypeAlias = Literal["full", "full_v2", "two"]

MODES: tuple[Mode, ...] = ("full", "full_v2", "two")


class SearchBlock(nn.Module):
    """All operations of one searched block, with the shortcut outside the choice."""

    def __init__(self, edge: Edge) -> None:
        super().__init__()
        self.skip = edge.skip
        self.paths = nn.ModuleList(
            MBConv(
                edge.in_chans,
                edge.out_chans,
                expand=op.expand,
                kernel=op.kernel,
                stride=edge.stride,
            )
            for op in edge.ops
            if op is not None
        )
        self.ops: list[Callable[[Tensor], Tensor] | None] = [
            *self.paths,
            *([None] if edge.ops[-1] is None else []),
        ]

    def forward(self, x: Tensor, path: int) -> Tensor:
        """Run one operation; of ``zero`` only the shortcut remains."""
        op = self.ops[path]
        if op is None:
            return x
        return x + op(x) if self.skip else op(x)

    def gated(
        self, x: Tensor, gates: Tensor, path: int, pair: Sequence[int] | None, mode: Mode
    ) -> Tensor:
        """Run one operation so that ``backward`` gives the gradient of this edge's gates.

        Where ``zero`` is active nothing is run and the gates get none.
        """
        if self.ops[path] is None:
            return x
        if mode == "two" and pair is not None:
            mixed = mix_two(x, gates, self.ops, path, pair)
        elif mode == "full":
            mixed = mix_full(x, gates, self.ops, path)
        else:
            mixed = mix_recompute(x, gates, self.ops, path)
        return x + mixed if self.skip else mixed


class Supernet(nn.Module):
    """All networks of an MBConv space at once, sharing weights.

    Maps ``(batch, in_chans, height, width)`` to logits ``(batch, num_classes)``.
    """

    def __init__(self, space: MBConvSpace, *, inputs: TensorSpec, num_classes: int) -> None:
        super().__init__()
        stem, first = space.stem_specs(inputs)
        self.stem = build(stem)
        self.first = build(first)
        self.blocks = nn.ModuleList(SearchBlock(edge) for edge in space.edges)
        width = TensorSpec(shape=(space.edges[-1].out_chans, 1, 1))
        conv, classifier = space.head_specs(width, num_classes=num_classes)
        self.last = build(conv)
        self.classifier = build(classifier)

    def forward(self, images: Tensor, paths: Sequence[int]) -> Tensor:
        """Run the network of one operation a block."""
        x = self.first(self.stem(images))
        for block, path in zip(self.blocks, paths, strict=True):
            x = block(x, path)
        return self.classifier(self.last(x))

    def gated(self, images: Tensor, gates: Tensor, draw: Draw, mode: Mode) -> Tensor:
        """Run the drawn network so that ``gates`` ``(edges, operations)`` get a gradient."""
        x = self.first(self.stem(images))
        pairs: Sequence[Sequence[int] | None] = draw.pairs or [None] * len(self.blocks)
        rows = gates.unbind()
        for block, row, path, pair in zip(self.blocks, rows, draw.paths, pairs, strict=True):
            assert isinstance(block, SearchBlock)
            x = block.gated(x, row, path, pair, mode)
        return self.classifier(self.last(x))
