"""The NATS-Bench size space as a slimmable network: slices of one kernel, a norm a width.

A convolution of width c uses the first c output channels of its kernel, and as many input
channels as its input has; batch norms exist once for each width. The stem has the width of
the first layer and belongs to it. The interface is the index of the last layer's width.

Source:
    Yu et al. (2019), "Slimmable Neural Networks", arXiv:1812.08928.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from nas.blockwise import Blockwise, Path, SearchBlock, all_paths, cut, rankable
from nas.spaces.nats_size import CELL, LAYERS, REDUCTIONS, NatsSizeSpace
from zoo.errors import InvalidInputError
from zoo.families.interfaces import image
from zoo.families.nasbench201 import EDGES, cell_spec, head_spec, reduction_spec, stem_spec
from zoo.spec import Architecture, BlockSpec, TensorSpec

CIFAR10_BLOCKS = (2, 2, 1)
"""Layers of each block on CIFAR-10."""

CIFAR100_BLOCKS = (2, 1, 2)
"""Layers of each block on CIFAR-100."""


class SlimConv(nn.Module):
    """A convolution of which the first channels are used, with a batch norm a width, or none.

    Args:
        in_chans: Most input channels.
        widths: Numbers of output channels, ascending.
        kernel: Odd kernel size.
        stride: 1 or 2.
        norm: Whether batch norms follow.
    """

    def __init__(
        self,
        in_chans: int,
        widths: Sequence[int],
        kernel: int,
        *,
        stride: int = 1,
        norm: bool = True,
    ) -> None:
        super().__init__()
        full = nn.Conv2d(in_chans, widths[-1], kernel, stride, kernel // 2, bias=False)
        self.weight = full.weight
        self.stride, self.padding = stride, kernel // 2
        self.norms = nn.ModuleDict(
            {str(width): nn.BatchNorm2d(width) for width in widths} if norm else {}
        )

    def forward(self, x: Tensor, width: int) -> Tensor:
        weight = self.weight[:width, : x.shape[1]]
        y = functional.conv2d(x, weight, stride=self.stride, padding=self.padding)
        return self.norms[str(width)](y) if len(self.norms) else y


class SlimCell(nn.Module):
    """The cell of NATS-Bench size at any width; a skip that changes the width is a 1x1."""

    def __init__(self, in_chans: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.edges = nn.ModuleDict()
        for name, (source, target) in zip(CELL, EDGES, strict=True):
            kernel = 1 if name == "skip_connect" else 3
            given = widths[-1] if source else in_chans
            if name == "skip_connect" and source:
                continue
            self.edges[f"{source}_{target}"] = SlimConv(given, widths, kernel)

    def forward(self, x: Tensor, width: int) -> Tensor:
        states = [x]
        for node in range(1, 4):
            terms = [
                self._edge(name, states[source], width, f"{source}_{target}")
                for name, (source, target) in zip(CELL, EDGES, strict=True)
                if target == node
            ]
            total = terms[0]
            for term in terms[1:]:
                total = total + term
            states.append(total)
        return states[-1]

    def _edge(self, name: str, x: Tensor, width: int, key: str) -> Tensor:
        if name != "skip_connect":
            return self.edges[key](functional.relu(x), width)
        return x if x.shape[1] == width else self.edges[key](x, width)


class SlimReduction(nn.Module):
    """The residual block that halves the size, at any width."""

    def __init__(self, in_chans: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.first = SlimConv(in_chans, widths, 3, stride=2)
        self.second = SlimConv(widths[-1], widths, 3)
        self.shortcut = SlimConv(in_chans, widths, 1, norm=False)

    def forward(self, x: Tensor, width: int) -> Tensor:
        y = self.second(functional.relu(self.first(functional.relu(x), width)), width)
        pooled = functional.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
        return self.shortcut(pooled, width) + y


class SlimStemCell(nn.Module):
    """The 3x3 convolution on the images, and the first cell, of one width."""

    def __init__(self, in_chans: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.stem = SlimConv(in_chans, widths, 3)
        self.cell = SlimCell(widths[-1], widths)

    def forward(self, x: Tensor, width: int) -> Tensor:
        return self.cell(self.stem(x, width), width)


class NatsBlock(SearchBlock):
    """All widths of consecutive layers."""

    def __init__(self, widths: Sequence[int], layers: Sequence[int], in_chans: int) -> None:
        super().__init__()
        self._widths = tuple(widths)
        self.layers = nn.ModuleList()
        for layer in layers:
            kind = (
                SlimStemCell if layer == 0 else SlimReduction if layer in REDUCTIONS else SlimCell
            )
            self.layers.append(kind(in_chans, widths))
            in_chans = widths[-1]

    def part(self, path: Path, depth: int) -> nn.Module:
        return self.layers[depth]

    def layer(self, x: Tensor, path: Path, depth: int) -> Tensor:
        return self.layers[depth](x, self._widths[path[depth]])


class NatsBlockwise(Blockwise):
    """The five layers in blocks of ``layers``.

    Raises:
        InvalidInputError: They are not five together.
    """

    def __init__(self, space: NatsSizeSpace, layers: Sequence[int] = CIFAR10_BLOCKS) -> None:
        if sum(layers) != LAYERS or min(layers) < 1:
            raise InvalidInputError(f"blocks of {list(layers)} layers are not {LAYERS} together")
        self.space, self.layers = space, tuple(layers)

    @property
    def num_blocks(self) -> int:
        return len(self.layers)

    def paths(self, block: int, interface: int) -> tuple[Path, ...]:
        rankable(len(self.space.widths) ** self.layers[block])
        return all_paths((len(self.space.widths),) * self.layers[block])

    def interface(self, block: int, path: Path) -> int:
        return path[-1]

    def join(self, paths: Sequence[Path]) -> Architecture:
        return self.space.architecture([choice for path in paths for choice in path])

    def split(self, architecture: Architecture) -> tuple[Path, ...]:
        self.space.check(architecture)
        return cut(architecture.choices, self.layers)

    def stem(self, inputs: TensorSpec) -> nn.Module:
        return nn.Identity()

    def block(self, block: int, interface: int, inputs: TensorSpec) -> NatsBlock:
        widths = self.space.widths
        in_chans = widths[interface] if block else image(inputs)[0]
        return NatsBlock(widths, self._members(block), in_chans)

    def output(self, block: int, interface: int) -> tuple[int, int]:
        return self.space.widths[interface], 1

    def specs(
        self, block: int, interface: int, path: Path, inputs: TensorSpec
    ) -> tuple[BlockSpec, ...]:
        widths = [self.space.widths[choice] for choice in path]
        specs = [] if block else [stem_spec(inputs, channels=widths[0])]
        for layer, channels in zip(self._members(block), widths, strict=True):
            given = specs[-1].outputs[0] if specs else inputs
            if layer in REDUCTIONS:
                specs.append(reduction_spec(given, channels=channels))
            else:
                specs.append(cell_spec(given, channels=channels, operations=CELL))
        return tuple(specs)

    def tail(self, inputs: TensorSpec, *, num_classes: int) -> tuple[BlockSpec, ...]:
        return (head_spec(inputs, num_classes=num_classes),)

    def _members(self, block: int) -> range:
        first = sum(self.layers[:block])
        return range(first, first + self.layers[block])
