"""The fused inverted bottleneck: one dense convolution expands and filters, a second projects.

Source:
    Tan and Le (2021), "EfficientNetV2", arXiv:2104.00298 (without squeeze and excitation,
    as in its fused stages); as block C of Kag et al. (2024), "AsCAN", arXiv:2411.04967.
    Batch norms with eps 1e-3, SiLU. Odd sizes are halved upwards.
"""

from __future__ import annotations

from torch import Tensor, nn

from zoo.builders import BlockCost, register
from zoo.families import costs
from zoo.families.drop_path import DropPath
from zoo.families.interfaces import at_least_one, image, odd, restored, widened, width
from zoo.families.tokens import changes
from zoo.spec import BlockSpec, TensorSpec

EPS = 1e-3


class FusedMBConv(nn.Module):
    """Convolution to ``expand`` times the input's width, projection; added where shapes agree.

    With ``expand`` 1 one convolution does both.
    """

    def __init__(
        self, in_chans: int, channels: int, *, stride: int, expand: int, kernel: int
    ) -> None:
        super().__init__()
        hidden = channels if expand == 1 else in_chans * expand
        conv = nn.Conv2d(in_chans, hidden, kernel, stride, kernel // 2, bias=False)
        layers: list[nn.Module] = [conv, nn.BatchNorm2d(hidden, eps=EPS), nn.SiLU()]
        if expand != 1:
            project = nn.Conv2d(hidden, channels, 1, bias=False)
            layers += [project, nn.BatchNorm2d(channels, eps=EPS)]
        self.layers = nn.Sequential(*layers)
        self.shortcut = not changes(in_chans, channels, stride)
        self.drop_path = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        """Map images of ``in_chans`` to images of ``channels``."""
        y = self.layers(x)
        return x + self.drop_path(y) if self.shortcut else y


def block_spec(
    inputs: TensorSpec, *, channels: int, stride: int = 1, expand: int = 4, kernel: int = 3
) -> BlockSpec:
    """Describe a fused inverted bottleneck; it has a shortcut where it keeps the shape.

    Args:
        inputs: Images ``(in_chans, height, width)``.
        channels: Channels of the output.
        stride: Of the first convolution; sizes are divided by it, rounding up.
        expand: Hidden width, in channels of the input.
        kernel: Size of the first convolution, odd.

    Raises:
        IncompatibleShapeError: ``inputs`` are no float images.
        InvalidInputError: A number is below 1, or ``kernel`` is even.
    """
    at_least_one(channels=channels, stride=stride, expand=expand)
    odd(kernel=kernel)
    return BlockSpec(
        op="fused_mbconv.block",
        params={"stride": stride, "expand": expand, "kernel": kernel},
        inputs=(inputs,),
        outputs=(widened(inputs, channels, stride=stride),),
    )


def block_cost(spec: BlockSpec) -> BlockCost:
    """Return what a block costs."""
    settings = _settings(spec)
    in_chans, channels = image(spec.inputs[0])[0], width(spec)
    pixels = costs.area(spec.outputs[0])
    expand = settings["expand"]
    hidden = channels if expand == 1 else in_chans * expand
    first = costs.conv(in_chans, hidden, settings["kernel"], pixels) + costs.norm(hidden)
    if expand == 1:
        return first
    return costs.total(first, costs.conv(hidden, channels, 1, pixels), costs.norm(channels))


def _settings(spec: BlockSpec) -> dict[str, int]:
    return restored(spec, block_spec, stride=int, expand=int, kernel=int)


@register(
    "fused_mbconv.block",
    describe=block_spec,
    cost=block_cost,
    examples=(
        block_spec(TensorSpec(shape=(4, 5, 6)), channels=4),
        block_spec(TensorSpec(shape=(4, 7, 5)), channels=6, stride=2, kernel=5, expand=2),
        block_spec(TensorSpec(shape=(4, None, None)), channels=4, expand=1),
    ),
)
def build_block(spec: BlockSpec) -> nn.Module:
    """Build ``fused_mbconv.block``; its width is that of its output."""
    return FusedMBConv(image(spec.inputs[0])[0], width(spec), **_settings(spec))
