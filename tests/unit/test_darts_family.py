"""The DARTS blocks: what the operations compute, and what their specs promise."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zoo.builders import build, operations
from zoo.errors import IncompatibleShapeError, InvalidInputError, UnknownNameError
from zoo.families.darts import cell_spec, head_spec, imagenet_stem_spec, stem_spec
from zoo.families.darts_operations import OPERATIONS, FactorizedReduce, operation
from zoo.spec import BlockSpec, TensorSpec

NODES = ((("sep_conv_3x3", 0), ("skip_connect", 1)), (("max_pool_3x3", 2), ("dil_conv_5x5", 0)))


def image(*shape: int | None, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(shape=shape, dtype=dtype)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 2)])
def test_an_operation_keeps_the_width_and_divides_the_size_rounding_up(
    name: str, stride: int, size: tuple[int, int]
) -> None:
    module = operation(name, 4, stride=stride, affine=True).eval()
    out = module(torch.randn(2, 4, *size))
    assert out.shape == (2, 4, *(-(-side // stride) for side in size))


def test_none_gives_zeros_and_a_plain_skip_gives_its_input() -> None:
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(operation("none", 4, stride=2, affine=True)(x), torch.zeros(2, 4, 3, 3))
    assert operation("skip_connect", 4, stride=1, affine=True)(x) is x


def test_an_average_pool_leaves_the_padding_out() -> None:
    ones = torch.ones(1, 4, 5, 5)
    assert torch.equal(operation("avg_pool_3x3", 4, stride=1, affine=True)(ones), ones)


@pytest.mark.parametrize(("name", "reach"), [("dil_conv_3x3", 2), ("dil_conv_5x5", 4)])
def test_a_dilated_convolution_reads_every_second_pixel_within_its_reach(
    name: str, reach: int
) -> None:
    module = operation(name, 2, stride=1, affine=True).double().eval()
    x = torch.rand(1, 2, 13, 13, dtype=torch.float64, requires_grad=True)
    module(x)[0, :, 6, 6].sum().backward()
    assert x.grad is not None
    rows = x.grad[0].abs().sum((0, 2)).nonzero().flatten().tolist()
    assert rows == list(range(6 - reach, 7 + reach, 2))


def test_a_factorized_reduction_equals_two_strided_convolutions() -> None:
    module = FactorizedReduce(6, 8, affine=True).double().eval()
    x = torch.randn(2, 6, 8, 6, dtype=torch.float64)
    rectified = F.relu(x)
    halves = [
        F.conv2d(rectified, module.conv_1.weight, stride=2),
        F.conv2d(rectified[:, :, 1:, 1:], module.conv_2.weight, stride=2),
    ]
    torch.testing.assert_close(module(x), module.bn(torch.cat(halves, dim=1)))


def test_a_factorized_reduction_to_an_odd_width_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="5 channels needs an even number"):
        FactorizedReduce(4, 5, affine=True)


def test_an_unknown_operation_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="conv_9x9.*sep_conv_5x5"):
        operation("conv_9x9", 4, stride=1, affine=True)


def test_the_family_is_registered() -> None:
    assert {"darts.stem", "darts.cell", "darts.head"} <= set(operations())


@pytest.mark.parametrize("size", [(16, 16), (7, 9)])
@pytest.mark.parametrize("reduction", [False, True])
@pytest.mark.parametrize("reduction_prev", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_every_block_returns_what_its_spec_says(
    size: tuple[int, int], reduction: bool, reduction_prev: bool, last: bool
) -> None:
    before = tuple(2 * side - 1 for side in size) if reduction_prev else size
    spec = cell_spec(
        (image(6, *before), image(8, *size)),
        channels=4,
        nodes=NODES,
        reduction=reduction,
        reduction_prev=reduction_prev,
        last=last,
    )
    module = build(spec).eval()
    outputs = module(torch.randn(2, 6, *before), torch.randn(2, 8, *size))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert [tuple(out.shape) for out in outputs] == [(2, *t.shape) for t in spec.outputs]
    assert len(outputs) == (1 if last else 2)


def test_a_cell_adds_its_edges_and_sets_its_nodes_side_by_side() -> None:
    spec = cell_spec(
        (image(4, 6, 6), image(4, 6, 6)),
        channels=4,
        nodes=NODES,
        reduction=False,
        reduction_prev=False,
        last=True,
    )
    cell = build(spec).double().eval()
    s0, s1 = torch.randn(2, 2, 4, 6, 6, dtype=torch.float64)
    a, b = cell.preprocess0(s0), cell.preprocess1(s1)
    first = cell.edges[0](a) + b
    second = F.max_pool2d(first, 3, stride=1, padding=1) + cell.edges[3](a)
    torch.testing.assert_close(cell(s0, s1), torch.cat([first, second], dim=1))


def test_stem_and_head_return_what_their_specs_say() -> None:
    stem = stem_spec(image(1, 9, 9), channels=12)
    s0, s1 = build(stem)(torch.randn(2, 1, 9, 9))
    assert s0 is s1
    assert stem.outputs == (image(12, 9, 9), image(12, 9, 9))
    head = head_spec(image(12, 9, 9), num_classes=7)
    assert build(head)(s0).shape == (2, 7)
    assert head.outputs == (image(7),)


def test_a_size_that_may_vary_stays_variable() -> None:
    state = image(4, None, None)
    spec = cell_spec(
        (state, state), channels=4, nodes=NODES, reduction=True, reduction_prev=False, last=True
    )
    assert spec.outputs == (image(8, None, None),)
    assert build(spec).eval()(*torch.randn(2, 1, 4, 6, 10)).shape == (1, 8, 3, 5)


def test_a_spec_survives_json_and_builds_the_same_interface() -> None:
    spec = cell_spec(
        (image(4, 6, 6), image(4, 6, 6)),
        channels=4,
        nodes=NODES,
        reduction=False,
        reduction_prev=False,
        last=False,
    )
    again = BlockSpec.from_json(spec.to_json())
    assert again == spec
    assert isinstance(build(again), nn.Module)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (image(3, 8), "takes float tensors of shape"),
        (image(None, 8, 8), "fixed number of channels"),
        (image(3, 8, 8, dtype="uint8"), "not uint8"),
    ],
)
def test_inputs_that_are_no_images_are_refused(tensor: TensorSpec, message: str) -> None:
    with pytest.raises(IncompatibleShapeError, match=message):
        stem_spec(tensor, channels=4)


def test_a_head_without_classes_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="num_classes is 0"):
        head_spec(image(4, 2, 2), num_classes=0)


@pytest.mark.parametrize(
    ("nodes", "error", "message"),
    [
        (((("sep_conv_3x3", 2),),), InvalidInputError, "node 2 reads state 2"),
        (((("conv", 0),),), UnknownNameError, "conv"),
        ((), InvalidInputError, "at least one node"),
        (((),), InvalidInputError, "every node one edge"),
    ],
)
def test_impossible_wiring_is_refused(
    nodes: tuple[tuple[tuple[str, int], ...], ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        cell_spec(
            (image(4, 6, 6), image(4, 6, 6)),
            channels=4,
            nodes=nodes,
            reduction=False,
            reduction_prev=False,
            last=True,
        )


def test_inputs_of_unlike_sizes_are_refused() -> None:
    with pytest.raises(IncompatibleShapeError, match="after a reduction"):
        cell_spec(
            (image(4, 6, 6), image(4, 6, 6)),
            channels=4,
            nodes=NODES,
            reduction=False,
            reduction_prev=True,
            last=True,
        )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"channels": "four"}, InvalidInputError, "channels='four'"),
        ({"reduction": 1}, InvalidInputError, "reduction=1"),
        ({"nodes": [["skip_connect"]]}, InvalidInputError, "list of .operation, state. pairs"),
        ({"nodes": [[["skip_connect", 0]]]}, IncompatibleShapeError, "but its spec says"),
    ],
)
def test_a_tampered_spec_is_never_built(
    change: dict[str, object], error: type[Exception], message: str
) -> None:
    spec = cell_spec(
        (image(4, 6, 6), image(4, 6, 6)),
        channels=4,
        nodes=NODES,
        reduction=False,
        reduction_prev=False,
        last=True,
    )
    with pytest.raises(error, match=message):
        build(replace(spec, params=dict(spec.params) | change))


@pytest.mark.slow
def test_threads_odd_batches_and_channels_last_corrupt_nothing() -> None:
    # A strided 1x1 convolution aborts here (oneDNN 3.12), so the child must end well.
    code = (
        "import torch; torch.set_num_threads(2); torch.manual_seed(0)\n"
        "from zoo.families.darts_operations import FactorizedReduce\n"
        "module = FactorizedReduce(8, 8, affine=True)\n"
        "for _ in range(40):\n"
        "    x = torch.randn(27, 8, 16, 16).to(memory_format=torch.channels_last)\n"
        "    x.requires_grad_(); out = module(x); out.backward(torch.randn_like(out))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_imagenet_stem_shrinks_large_images_eightfold() -> None:
    inputs = TensorSpec(shape=(3, 41, None))
    spec = imagenet_stem_spec(inputs, channels=6)
    assert [state.shape for state in spec.outputs] == [(6, 11, None), (6, 6, None)]
    s0, s1 = build(spec)(torch.randn(2, 3, 41, 64))
    assert s0.shape == (2, 6, 11, 16)
    assert s1.shape == (2, 6, 6, 8)
    with pytest.raises(InvalidInputError, match="at least 2"):
        imagenet_stem_spec(inputs, channels=1)
