"""A block of one's own: every row of an image is read from left to right by a recurrent unit.

    h_t = (1 - z_t) h_{t-1} + z_t c_t,   z_t = sigmoid(W_z x_t),   c_t = W_c x_t

One file has all that a block needs: what describes it, what it costs, a few examples, and
the builder. The contract suite of the tests holds it to the same promises as the built-in
ones; any space that places blocks by name can use it, ``hybrid`` with
``{"conv": "example.recurrent"}`` say.

Source:
    Feng et al. (2024), "Were RNNs All We Needed?", arXiv:2410.01201 (minGRU).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.builders import BlockCost, register
from zoo.families import costs
from zoo.families.interfaces import at_least_one, image, restored, sides, widened, width
from zoo.spec import BlockSpec, TensorSpec


class RowRecurrence(nn.Module):
    """Gates and candidates by a 1x1 convolution, the recurrence, batch norm and ReLU."""

    def __init__(self, in_chans: int, channels: int, stride: int, steps: int) -> None:
        super().__init__()
        self.stride, self.steps = stride, steps
        self.read = nn.Conv2d(in_chans, 2 * channels, 1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in_chans, height, width)`` to ``(batch, channels, …)``."""
        gates, candidates = self.read(x[:, :, :: self.stride, :: self.stride]).chunk(2, dim=1)
        gates = gates.sigmoid()
        state = torch.zeros_like(candidates[..., 0])
        states = []
        for at in range(self.steps):
            state = torch.lerp(state, candidates[..., at], gates[..., at])
            states.append(state)
        return self.norm(torch.stack(states, dim=-1)).relu()


def block_spec(inputs: TensorSpec, *, channels: int, stride: int = 1) -> BlockSpec:
    """Describe a block.

    Args:
        inputs: Images ``(in_chans, height, width)`` of fixed size.
        channels: Channels of the output.
        stride: Rows and columns are taken every so many pixels.

    Raises:
        IncompatibleShapeError: ``inputs`` are no images of fixed size.
        InvalidInputError: A number is below 1.
    """
    at_least_one(channels=channels, stride=stride)
    sides(inputs)
    return BlockSpec(
        op="example.recurrent",
        params={"stride": stride},
        inputs=(inputs,),
        outputs=(widened(inputs, channels, stride=stride),),
    )


def block_cost(spec: BlockSpec) -> BlockCost:
    """Return what a block costs: its convolution; the recurrence has no products of matrices."""
    channels, pixels = width(spec), costs.area(spec.outputs[0])
    read = costs.conv(image(spec.inputs[0])[0], 2 * channels, 1, pixels, bias=True)
    return read + costs.norm(channels)


@register(
    "example.recurrent",
    describe=block_spec,
    cost=block_cost,
    examples=(
        block_spec(TensorSpec(shape=(3, 4, 5)), channels=6),
        block_spec(TensorSpec(shape=(3, 7, 5)), channels=4, stride=2),
    ),
)
def build_block(spec: BlockSpec) -> nn.Module:
    """Build ``example.recurrent``; its width is that of its output."""
    stride = restored(spec, block_spec, stride=int)["stride"]
    _, steps = sides(spec.outputs[0])
    return RowRecurrence(image(spec.inputs[0])[0], width(spec), stride, steps)
