"""Six ResNets of the CIFAR kind that share blocks, as fine-tuned variants do.

Four variants have the stem and two stages in common and a last stage and head of their
own; one parts after the first stage; one shares nothing. Weights are random and a
function of the seed: they decide what is answered, not how long it takes.

Source:
    He et al. (2016), Deep Residual Learning, arXiv:1512.03385, section 4.2 (n = 3).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.builders import ChainModule, build, register
from zoo.rng import derive_seed
from zoo.spec import BlockSpec, TensorSpec

SIDE = 32
CLASSES = 10
STAGES = ((16, SIDE), (32, SIDE // 2), (64, SIDE // 4))
VARIANTS: dict[str, tuple[str, ...]] = {
    "variant-0": ("shared", "shared", "0", "0"),
    "variant-1": ("shared", "shared", "1", "1"),
    "variant-2": ("shared", "shared", "2", "2"),
    "variant-3": ("shared", "shared", "3", "3"),
    "early-branch": ("shared", "4", "4", "4"),
    "stranger": ("5", "5", "5", "5"),
}
"""Per chain, whose weights its three stages and its head have."""


class Residual(nn.Module):
    """Two 3×3 convolutions around a shortcut."""

    def __init__(self, in_chans: int, out_chans: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, out_chans, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_chans)
        self.conv2 = nn.Conv2d(out_chans, out_chans, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_chans)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_chans != out_chans:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_chans, out_chans, 1, stride, bias=False), nn.BatchNorm2d(out_chans)
            )

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.norm1(self.conv1(image)).relu()
        return (self.norm2(self.conv2(hidden)) + self.shortcut(image)).relu()


@register("benchmark.resnet_stage")
def _stage(spec: BlockSpec) -> nn.Module:
    chans, depth = spec.outputs[0].shape[0], spec.params["depth"]
    assert isinstance(chans, int)
    assert isinstance(depth, int)
    in_chans, side = spec.inputs[0].shape[0], spec.inputs[0].shape[1]
    assert isinstance(in_chans, int)
    stride = 1 if side == spec.outputs[0].shape[1] else 2
    first: list[nn.Module] = []
    if in_chans == 3:
        first = [nn.Conv2d(3, chans, 3, 1, 1, bias=False), nn.BatchNorm2d(chans), nn.ReLU()]
        in_chans = chans
    rest = (Residual(chans, chans, 1) for _ in range(depth - 1))
    return nn.Sequential(*first, Residual(in_chans, chans, stride), *rest)


@register("benchmark.resnet_head")
def _head(spec: BlockSpec) -> nn.Module:
    chans, classes = spec.inputs[0].shape[0], spec.outputs[0].shape[0]
    assert isinstance(chans, int)
    assert isinstance(classes, int)
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(chans, classes))


def specs(depth: int) -> tuple[BlockSpec, ...]:
    """Return the four block specs: three stages of ``depth`` residual blocks, and the head."""
    shapes = [(3, SIDE, SIDE), *((chans, side, side) for chans, side in STAGES)]
    stages = [
        BlockSpec(
            op="benchmark.resnet_stage",
            params={"depth": depth},
            inputs=(TensorSpec(shape=before),),
            outputs=(TensorSpec(shape=after),),
        )
        for before, after in zip(shapes, shapes[1:], strict=False)
    ]
    head = BlockSpec(
        op="benchmark.resnet_head",
        inputs=(TensorSpec(shape=shapes[-1]),),
        outputs=(TensorSpec(shape=(CLASSES,)),),
    )
    return (*stages, head)


def block(spec: BlockSpec, position: int, weights_of: str, seed: int) -> nn.Module:
    """Return one block in eval mode; equal arguments give equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, position, weights_of))
        module = build(spec)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.uniform_(part.weight, 0.5, 1.0)
                nn.init.normal_(part.bias, 0.0, 0.1)
                nn.init.normal_(part.running_mean, 0.0, 0.1)
                nn.init.uniform_(part.running_var, 0.5, 1.5)
    return module.eval().requires_grad_(False)


def networks(depth: int, seed: int) -> dict[str, ChainModule]:
    """Return the six whole networks; shared blocks are shared modules."""
    blocks: dict[tuple[int, str], nn.Module] = {}
    found = {}
    for name, weights in VARIANTS.items():
        parts = []
        for position, (spec, owner) in enumerate(zip(specs(depth), weights, strict=True)):
            key = (position, owner)
            if key not in blocks:
                blocks[key] = block(spec, position, owner, seed)
            parts.append(blocks[key])
        found[name] = ChainModule(*parts).eval()
    return found
