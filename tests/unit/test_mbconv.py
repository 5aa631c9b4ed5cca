"""The MBConv blocks and space: sizes, counts, published networks, legal choices."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import torch
from torch import nn

from nas.cost import cost
from nas.identity import network_signature
from nas.methods.proxyless.supernet import Supernet
from nas.spaces.mbconv import ZERO, MBConvSpace
from nas.spaces.mbconv_published import PUBLISHED, published
from zoo.builders import build
from zoo.canonical import canonical_json
from zoo.errors import IncompatibleShapeError, InvalidInputError, UnknownNameError
from zoo.families.mbconv import MBConv, block_spec, classifier_spec, conv_spec
from zoo.spec import BlockSpec, TensorSpec

IMAGENET = TensorSpec(shape=(3, 224, 224))
SMALL: dict[str, Any] = {
    "preset": "cifar", "widths": (4, 6), "depths": (3, 1), "strides": (1, 2), "stem": 4,
    "first": 4, "last": 8, "kernels": (3, 5), "expands": (2,),
}  # fmt: skip


def test_the_imagenet_space_has_21_searched_blocks_and_141_alphas() -> None:
    space = MBConvSpace()
    assert len(space.edges) == 21
    assert sorted(set(space.cardinalities())) == [6, 7]
    assert space.cardinalities().count(7) == 15
    assert sum(space.cardinalities()) == 141
    assert space.size() == 7**15 * 6**6
    names = ("3x3_MB3", "3x3_MB6", "5x5_MB3", "5x5_MB6", "7x7_MB3", "7x7_MB6")
    assert space.edges[0].names == names
    assert space.edges[1].names == (*names, ZERO)
    assert [edge.stride for edge in space.edges].count(2) == 4


def test_zero_is_offered_exactly_where_the_shape_is_kept() -> None:
    for edge in MBConvSpace(preset="cifar").edges:
        keeps = edge.stride == 1 and edge.in_chans == edge.out_chans
        assert (edge.ops[-1] is None) == keeps == edge.skip


def test_the_supernet_has_the_weights_of_the_original() -> None:
    with torch.device("meta"):
        supernet = Supernet(MBConvSpace(), inputs=IMAGENET, num_classes=1000)
    assert sum(parameter.numel() for parameter in supernet.parameters()) == 16_034_168


@pytest.mark.parametrize(
    ("name", "num_params", "million_macs"),
    [
        ("mobile", 4_080_512, 320.4),
        ("cpu", 4_361_648, 439.2),
        ("gpu", 7_119_848, 465.3),
        ("mobile_14", 6_857_568, 580.9),
    ],
)
def test_published_networks_have_their_published_size(
    name: str, num_params: int, million_macs: float
) -> None:
    space, architecture = published(name)
    with torch.device("meta"):
        network = space.build(architecture, inputs=IMAGENET, num_classes=1000)
    counted = cost(network, IMAGENET)
    assert counted.num_params == num_params
    assert counted.flops / 1e6 == pytest.approx(million_macs, abs=0.05)


def test_an_unpublished_network_is_refused_with_those_there_are() -> None:
    with pytest.raises(UnknownNameError, match="cpu, gpu, mobile, mobile_14"):
        published("tpu")
    assert set(PUBLISHED) == {"mobile", "mobile_14", "cpu", "gpu"}


def test_a_summary_can_be_read_again() -> None:
    space = MBConvSpace(preset="cifar")
    for seed in range(5):
        architecture = space.sample(random.Random(seed))
        assert space.parse(space.summary(architecture)) == architecture
    with pytest.raises(InvalidInputError, match="2 names; this space has 21 blocks"):
        space.encode(["3x3_MB3"] * 2)
    with pytest.raises(UnknownNameError, match="'zero'"):
        space.encode([ZERO] * 21)


def test_a_zero_block_is_left_out_of_the_chain_and_its_place_does_not_matter() -> None:
    space = MBConvSpace(**SMALL)
    inputs = TensorSpec(shape=(1, 8, 8))
    here, there = (space.parse(f"{ops} | 3x3_MB2") for ops in (
        "3x3_MB2 zero 5x5_MB2", "3x3_MB2 5x5_MB2 zero"
    ))  # fmt: skip
    specs = space.blocks(here, inputs=inputs, num_classes=3)
    assert [spec.op for spec in specs] == [
        "mbconv.conv", *["mbconv.block"] * 4, "mbconv.conv", "mbconv.classifier"
    ]  # fmt: skip
    assert specs == space.blocks(there, inputs=inputs, num_classes=3)

    def signature(text: str) -> str:
        return network_signature(space, space.parse(text), inputs=inputs, num_classes=3)

    assert signature(space.summary(here)) == signature(space.summary(there))
    others = {"3x3_MB2 zero 3x3_MB2 | 3x3_MB2", "3x3_MB2 zero 5x5_MB2 | 5x5_MB2",
              "5x5_MB2 zero 3x3_MB2 | 3x3_MB2", "3x3_MB2 3x3_MB2 5x5_MB2 | 3x3_MB2"}  # fmt: skip
    seen = {signature(text) for text in others}
    assert len(seen) == len(others)
    assert signature(space.summary(here)) not in seen


def test_the_cifar_preset_keeps_32_pixels_in_the_first_stage() -> None:
    space = MBConvSpace(preset="cifar")
    specs = space.blocks(
        space.encode(["3x3_MB3"] * 21), inputs=TensorSpec(shape=(3, 32, 32)), num_classes=10
    )
    sides = [spec.outputs[0].shape[1] for spec in specs[:-1]]
    assert sides[:6] == [32] * 6
    assert sides[-1] == 4


def test_odd_sizes_are_halved_upwards() -> None:
    spec = block_spec(
        TensorSpec(shape=(4, 7, 9)), channels=6, expand=3, kernel=7, stride=2, skip=False
    )
    assert spec.outputs[0].shape == (6, 4, 5)
    assert build(spec)(torch.zeros(2, 4, 7, 9)).shape == (2, 6, 4, 5)


def test_an_expansion_of_one_has_no_first_convolution() -> None:
    assert len(MBConv(4, 4, expand=1, kernel=3, stride=1)) == 2
    assert len(MBConv(4, 4, expand=2, kernel=3, stride=1)) == 3


def test_a_skip_adds_the_input() -> None:
    inputs = TensorSpec(shape=(4, 6, 6))
    spec = block_spec(inputs, channels=4, expand=2, kernel=3, stride=1, skip=True)
    block = build(spec).eval()
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(block(x), x + block.layers(x))  # type: ignore[operator]
    with pytest.raises(IncompatibleShapeError, match="can have no skip"):
        block_spec(inputs, channels=5, expand=2, kernel=3, stride=1, skip=True)


def test_a_classifier_survives_json_whose_numbers_lost_their_fraction() -> None:
    spec = classifier_spec(TensorSpec(shape=(4, 2, 2)), num_classes=3)
    again = BlockSpec.from_json(json.loads(canonical_json(spec.to_json())))
    assert again.id == spec.id
    assert build(again)(torch.zeros(2, 4, 2, 2)).shape == (2, 3)
    dropped = classifier_spec(TensorSpec(shape=(4, 2, 2)), num_classes=3, dropout=0.25)
    (dropout,) = (part for part in build(dropped).modules() if isinstance(part, nn.Dropout))
    assert dropout.p == 0.25
    wrong = BlockSpec(
        op=spec.op, params={"dropout": "no"}, inputs=spec.inputs, outputs=spec.outputs
    )
    with pytest.raises(InvalidInputError, match="has dropout='no'"):
        build(wrong)


def test_weights_start_with_the_fan_out_of_the_whole_convolution() -> None:
    torch.manual_seed(0)
    block = MBConv(64, 64, expand=6, kernel=5, stride=1)
    depthwise = block[1][0].weight  # type: ignore[index]
    assert float(depthwise.detach().std()) == pytest.approx((2 / (25 * 384)) ** 0.5, rel=0.05)  # type: ignore[operator]
    assert block[1][1].eps == 1e-3  # type: ignore[index]


def test_specs_that_say_something_else_than_they_do_are_refused() -> None:
    inputs = TensorSpec(shape=(4, 6, 6))
    wrong = (TensorSpec(shape=(9, 6, 6)),)
    for spec in (
        conv_spec(inputs, channels=8, kernel=3, stride=1),
        block_spec(inputs, channels=8, expand=2, kernel=3, stride=1, skip=False),
    ):
        with pytest.raises(IncompatibleShapeError, match="but its spec says"):
            build(BlockSpec(op=spec.op, params=spec.params, inputs=spec.inputs, outputs=wrong))
        with pytest.raises(InvalidInputError, match="has kernel='3'"):
            build(
                BlockSpec(
                    op=spec.op, params={**spec.params, "kernel": "3"}, inputs=spec.inputs,
                    outputs=spec.outputs,
                )
            )  # fmt: skip
    with pytest.raises(InvalidInputError, match="kernel is 4"):
        conv_spec(inputs, channels=8, kernel=4, stride=1)
    with pytest.raises(InvalidInputError, match="expand is 0"):
        block_spec(inputs, channels=8, expand=0, kernel=3, stride=1, skip=False)
    with pytest.raises(InvalidInputError, match="dropout is 1"):
        classifier_spec(inputs, num_classes=3, dropout=1.0)
    with pytest.raises(IncompatibleShapeError, match="takes float tensors"):
        conv_spec(TensorSpec(shape=(4,)), channels=8, kernel=3, stride=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "mnist"}, "unknown MBConv preset 'mnist'"),
        ({"widths": (8,)}, "1 widths, 2 depths and 2 strides"),
        ({"strides": (1, 3)}, "each must be 1 or 2"),
        ({"kernels": (3, 4)}, "each must be odd"),
        ({"kernels": (3, 3)}, "name each once"),
        ({"depths": (1, 0)}, "depths has 0"),
        ({"expands": ()}, "give a list of integers"),
        ({"dropout": 1.5}, "dropout is 1.5"),
        ({"stem": True}, "stem has True"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        MBConvSpace(**SMALL | changes)
