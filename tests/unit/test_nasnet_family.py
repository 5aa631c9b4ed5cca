"""The NASNet blocks: what operations and cells compute, against PyTorch by hand and timm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.auxiliary import AuxiliaryHead
from nas.spaces.nasnet import NASNET_A, NasnetSpace
from serving.runners.onnx_export import export_onnx
from zoo.builders import build, build_chain, operations
from zoo.compat import declare_torchvision_operators
from zoo.errors import IncompatibleShapeError, InvalidInputError, UnknownNameError
from zoo.families.drop_path import DropPath
from zoo.families.nasnet import Cell, Wiring, cell_spec, head_spec, stem_spec
from zoo.families.nasnet_operations import OPERATIONS, operation, same_padding
from zoo.spec import BlockSpec, TensorSpec


def image(*shape: int | None) -> TensorSpec:
    return TensorSpec(shape=shape)


def shaken(module: nn.Module) -> nn.Module:
    """Give every parameter and statistic a value of its own, in float64."""
    generator = torch.Generator().manual_seed(0)
    module = module.double().eval()
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_(drawn + 0.5 if name.endswith(("var", "bn.weight")) else drawn - 0.5)
    return module


def padded_same(x: Tensor, kernel: int, stride: int, value: float) -> Tensor:
    """Pad by the definition: enough for ceil(size / stride) windows, the odd pixel behind."""
    pads = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads, value=value)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("stride", [1, 2])
def test_an_operation_sets_the_width_and_divides_the_size_rounding_up(
    name: str, stride: int
) -> None:
    for size in ((8, 8), (7, 5), (6, 3), (1, 2)):
        for in_chans in (4, 6):
            module = operation(name, in_chans, 4, stride=stride).eval()
            out = module(torch.randn(2, in_chans, *size))
            assert out.shape == (2, 4, *(-(-side // stride) for side in size))


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (6, 5), (2, 1), (3, 2)])
@pytest.mark.parametrize("stride", [1, 2])
def test_pools_and_convolutions_pad_as_same_and_averages_leave_padding_out(
    size: tuple[int, int], stride: int
) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    for kernel in (3, 5, 7):
        pooled = operation(f"max_pool_{kernel}x{kernel}", 3, 3, stride=stride)(x)
        expected = F.max_pool2d(padded_same(x, kernel, stride, -1e9), kernel, stride)
        assert torch.equal(pooled, expected)
    sums = F.avg_pool2d(padded_same(x, 3, stride, 0), 3, stride)
    counts = F.avg_pool2d(padded_same(torch.ones_like(x), 3, stride, 0), 3, stride)
    averaged = operation("avg_pool_3x3", 3, 3, stride=stride)(x)
    torch.testing.assert_close(averaged, sums / counts)
    conv = shaken(operation("conv_3x3", 3, 4, stride=stride))
    by_hand = F.conv2d(padded_same(F.relu(x), 3, stride, 0), conv[1].weight, stride=stride)
    torch.testing.assert_close(conv(x), conv[2](by_hand))
    dilated = shaken(operation("dil_conv_3x3", 3, 4, stride=stride))
    by_hand = F.conv2d(
        padded_same(F.relu(x), 5, stride, 0), dilated[1].weight, stride=stride, dilation=2
    )
    torch.testing.assert_close(dilated(x), dilated[2](by_hand))


def test_an_even_side_is_padded_behind_only_and_an_odd_one_on_both_sides() -> None:
    assert same_padding(8, 3, 2) == (0, 1)
    assert same_padding(7, 3, 2) == (1, 1)
    assert same_padding(8, 3, 1) == (1, 1)
    assert same_padding(8, 7, 2) == (2, 3)
    assert same_padding(8, 1, 2) == (0, 0)


def test_a_separable_convolution_is_two_rounds_of_which_the_first_strides() -> None:
    module = shaken(operation("sep_conv_5x5", 6, 4, stride=2))
    x = torch.randn(2, 6, 7, 7, dtype=torch.float64)
    one = F.conv2d(F.relu(x), module[1].weight, stride=2, padding=2, groups=6)
    one = module[3](F.conv2d(one, module[2].weight))
    two = F.conv2d(F.relu(one), module[5].weight, padding=2, groups=4)
    torch.testing.assert_close(module(x), module[7](F.conv2d(two, module[6].weight)))


def test_a_factorised_convolution_runs_along_rows_then_columns() -> None:
    module = shaken(operation("conv_1x7_7x1", 3, 4))
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    assert module[1].weight.shape == (4, 3, 1, 7)
    assert module[4].weight.shape == (4, 4, 7, 1)
    along = module[2](F.conv2d(F.relu(x), module[1].weight, padding=(0, 3)))
    expected = module[5](F.conv2d(F.relu(along), module[4].weight, padding=(3, 0)))
    torch.testing.assert_close(module(x), expected)


def test_pools_that_widen_have_no_relu_but_identities_do() -> None:
    x = -torch.rand(2, 6, 4, 4, dtype=torch.float64)
    pool = shaken(operation("max_pool_3x3", 6, 4))
    expected = pool[2](F.conv2d(F.max_pool2d(x, 3, 1, 1), pool[1].weight))
    torch.testing.assert_close(pool(x), expected)
    skip = shaken(operation("identity", 4, 4, stride=2))
    torch.testing.assert_close(skip(x[:, :4]), skip[2](torch.zeros(2, 4, 2, 2).double()))
    assert operation("identity", 4, 4)(x) is x


def test_an_unknown_operation_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"conv_9x9.*sep_conv_7x7"):
        operation("conv_9x9", 4, 4)


def a_cell(
    inputs: tuple[TensorSpec, ...], wiring: Wiring = NASNET_A.normal, **changes: Any
) -> BlockSpec:
    settings: dict[str, Any] = {
        "channels": 4, "wiring": wiring, "reduction": False, "skip": False, "last": False,
        "position": 2, "total": 5, "eps": 1e-3,
    }  # fmt: skip
    return cell_spec(inputs, **(settings | changes))


def test_the_normal_cell_of_nasnet_a_is_the_published_one() -> None:
    cell = shaken(build(a_cell((image(6, 7, 7), image(8, 7, 7)), last=True)))
    assert isinstance(cell, Cell)
    prev, cur = torch.randn(2, 6, 7, 7).double(), torch.randn(2, 8, 7, 7).double()
    h0, h1 = cell.current(cur), cell.previous(prev)
    path = cell.paths
    average = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
    expected = torch.cat(
        [
            h1,
            path[0](h0) + path[1](h1),
            path[2](h1) + path[3](h1),
            average(h0) + h1,
            average(h1) + average(h1),
            path[8](h0) + h0,
        ],
        dim=1,
    )
    torch.testing.assert_close(cell(prev, cur), expected)
    kernels = [path[at][0][1].kernel_size[0] for at in (0, 1, 2, 3, 8)]
    assert kernels == [5, 3, 5, 3, 3]


def test_the_reduction_cell_of_nasnet_a_is_the_published_one() -> None:
    spec = a_cell((image(4, 9, 9), image(8, 9, 9)), NASNET_A.reduce, reduction=True, last=True)
    cell = shaken(build(spec))
    assert isinstance(cell, Cell)
    prev, cur = torch.randn(2, 4, 9, 9).double(), torch.randn(2, 8, 9, 9).double()
    h0, h1 = cell.current(cur), prev
    path = cell.paths
    average = partial(F.avg_pool2d, kernel_size=3, padding=1, count_include_pad=False)
    h2 = path[0](h0) + path[1](h1)
    h3 = F.max_pool2d(h0, 3, 2, 1) + path[3](h1)
    h4 = average(h0, stride=2) + path[5](h1)
    h5 = h3 + average(h2, stride=1)
    h6 = path[8](h2) + F.max_pool2d(h0, 3, 2, 1)
    torch.testing.assert_close(cell(prev, cur), torch.cat([h3, h4, h5, h6], dim=1))
    kernels = [path[at][0][1].kernel_size[0] for at in (0, 1, 3, 5, 8)]
    assert kernels == [5, 7, 7, 5, 3]


def test_the_previous_input_is_reduced_widened_or_raw() -> None:
    cur = image(8, 4, 4)
    reduced = build(a_cell((image(6, 7, 7), cur)))
    widened = build(a_cell((image(6, 4, 4), cur)))
    raw = build(a_cell((image(4, 4, 4), cur)))
    absent = build(a_cell((cur,)))
    assert type(reduced.previous).__name__ == "FactorizedReduction"
    assert [type(part) for part in widened.previous][0] is nn.ReLU
    assert isinstance(raw.previous, nn.Identity)
    assert isinstance(absent.previous, nn.Identity)
    x = torch.randn(2, 8, 4, 4)
    passed, new = absent(x)
    assert passed is x
    assert new.shape == (2, 24, 4, 4)
    with pytest.raises(IncompatibleShapeError, match="neither the size"):
        a_cell((image(6, 9, 9), cur))
    with pytest.raises(IncompatibleShapeError, match="fixed size"):
        a_cell((image(6, None, 4), cur))


def test_a_factorised_reduction_shifts_its_second_half_by_one_pixel() -> None:
    module = shaken(build(a_cell((image(6, 7, 8), image(8, 4, 4)), channels=5))).previous
    x = torch.randn(2, 6, 7, 8, dtype=torch.float64)
    rectified = F.relu(x)
    shifted = F.pad(rectified, (0, 1, 0, 1))[:, :, 1:, 1:]
    halves = [
        F.conv2d(rectified, module.conv_1.weight, stride=2),
        F.conv2d(shifted, module.conv_2.weight, stride=2),
    ]
    assert [half.shape[1] for half in halves] == [2, 3]
    torch.testing.assert_close(module(x), module.bn(torch.cat(halves, dim=1)))


def test_a_cell_with_skip_passes_its_previous_input_on() -> None:
    prev, cur = torch.randn(2, 6, 8, 8), torch.randn(2, 8, 8, 8)
    inputs = (image(6, 8, 8), image(8, 8, 8))
    for skip, expected in ((True, prev), (False, cur)):
        spec = a_cell(inputs, NASNET_A.reduce, reduction=True, skip=skip)
        passed, new = build(spec)(prev, cur)
        assert passed is expected
        assert new.shape == (2, 16, 4, 4)


def test_inputs_that_a_cell_returns_are_fitted_to_its_output() -> None:
    wiring = Wiring(((("max_pool_3x3", 1), ("conv_1x1", 1), "concat"),), (0, 2))
    spec = a_cell((image(8, 8, 8),), wiring, reduction=True, last=True)
    cell = build(spec)
    assert cell(torch.randn(2, 8, 8, 8)).shape == (2, 8, 4, 4)
    fit = cell.outputs[0]
    assert type(fit).__name__ == "FactorizedReduction"
    assert isinstance(fit.relu, nn.Identity)
    assert isinstance(cell.joins[0][0], nn.ReLU)
    assert cell.joins[0][1].weight.shape == (4, 8, 1, 1)


def test_every_operation_but_the_identity_drops_paths_at_the_depth_of_its_cell() -> None:
    space = NasnetSpace(preset="cifar", cells=3, channels=4, outputs="free")
    specs = space.blocks(space.encode(NASNET_A), inputs=image(3, 16, 16), num_classes=10)
    network = build_chain(specs)
    cells = [block for block in network if isinstance(block, Cell)]
    assert len(cells) == 5
    for position, cell in enumerate(cells):
        drops = [part for part in cell.modules() if isinstance(part, DropPath)]
        kept = [side[0] for *sides, _ in cell.wiring.blocks for side in sides]
        assert len(drops) == 10 - kept.count("identity")
        assert {drop.depth for drop in drops} == {(position + 1) / 5}


@pytest.mark.parametrize(
    ("preset", "size", "classes", "count"),
    [
        ("cifar", 32, 10, 3_346_538),
        ("mobile", 224, 1000, 5_289_978),
        ("large", 331, 1000, 88_753_150),
    ],
)
def test_nasnet_a_has_the_published_number_of_parameters(
    preset: str, size: int, classes: int, count: int
) -> None:
    space = NasnetSpace(preset=preset, outputs="free")
    with torch.device("meta"):
        network = space.build(
            space.encode(NASNET_A), inputs=image(3, size, size), num_classes=classes
        )
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_the_auxiliary_head_has_the_published_number_of_parameters_and_place() -> None:
    space = NasnetSpace(preset="cifar", outputs="free")
    specs = space.blocks(space.encode(NASNET_A), inputs=image(3, 32, 32), num_classes=10)
    (place,) = [at for at, spec in enumerate(specs) if spec.params.get("feeds_auxiliary")]
    # Stem, six normal cells, a reduction, six normal cells: the 2N-1st normal cell from 0.
    assert place == 1 + 6 + 1 + 6 - 1
    assert specs[place + 1].params["reduction"] is True
    channels, *size = specs[place].outputs[-1].shape
    assert (channels, *size) == (384, 16, 16)
    head = AuxiliaryHead(384, (16, 16), 10)
    assert sum(parameter.numel() for parameter in head.parameters()) == 1_631_498
    assert head.eval()(torch.zeros(2, 384, 16, 16)).shape == (2, 10)


def tensors(module: nn.Module, *names: str) -> list[Tensor]:
    """Return all tensors of a timm cell's submodules whose names begin so, in this order."""
    children = dict(module.named_children())
    return [
        tensor
        for name in names
        for child in sorted(key for key in children if key.startswith(name))
        for tensor in children[child].state_dict().values()
    ]


def timm_cells(network: Any) -> Iterator[nn.Module]:
    yield from (network.cell_stem_0, network.cell_stem_1)
    for cell in range(18):
        if cell in (6, 12):
            yield getattr(network, f"reduction_cell_{cell // 6 - 1}")
        yield getattr(network, f"cell_{cell}")


class AverageSame(nn.Module):
    """TensorFlow's average of stride 2, which leaves padding out; timm's counts it as zeros."""

    def forward(self, x: Tensor) -> Tensor:
        total = padded_same(x, 3, 2, 0)
        counted = padded_same(torch.ones_like(x), 3, 2, 0)
        return F.avg_pool2d(total, 3, 2) / F.avg_pool2d(counted, 3, 2)


@pytest.mark.parametrize("size", [75, 67])
def test_nasnet_a_large_computes_what_timm_s_port_does(size: int) -> None:
    declare_torchvision_operators()
    make = import_module("timm.models.nasnet").NASNetALarge
    theirs: Any = make(num_classes=7, num_features=192, stem_size=12)
    for module in list(theirs.modules()):
        for name, child in module.named_children():
            if type(child).__name__ == "AvgPool2dSame":
                setattr(module, name, AverageSame())
    shaken(theirs).train()
    space = NasnetSpace(preset="large", channels=8, stem_channels=12, outputs="free", dropout=0.0)
    ours = space.build(space.encode(NASNET_A), inputs=image(3, size, size), num_classes=7)
    ours.double().train()
    sources = [list(theirs.conv0.state_dict().values())]
    order = ("conv_1x1", "conv_prev", "path", "final_path", "comb_iter")
    sources += [tensors(cell, *order) for cell in timm_cells(theirs)]
    sources.append(list(theirs.last_linear.state_dict().values()))
    for block, found in zip(ours, sources, strict=True):
        for target, source in zip(block.state_dict().values(), found, strict=True):
            assert target.shape == source.shape
            target.copy_(source)
    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        expected, found_logits = theirs(images), ours(images)
    assert float((expected[0] - expected[1]).abs().max()) > 0.1 * float(expected.std())
    torch.testing.assert_close(found_logits, expected, rtol=1e-9, atol=1e-9)


def test_a_drop_path_keeps_the_expectation() -> None:
    torch.manual_seed(0)
    drop = DropPath(depth=0.5).train()
    drop.rate = 0.3
    out = drop(torch.ones(40_000, 1, 1, 1))
    assert set(out.flatten().tolist()) == {0.0, float(torch.tensor(1 / 0.7))}
    assert abs(float(out.mean()) - 1) < 0.02


def test_the_family_is_registered_and_its_specs_survive_json() -> None:
    assert {"nasnet.stem", "nasnet.cell", "nasnet.head"} <= set(operations())
    for preset in ("small", "mobile"):
        space = NasnetSpace(preset=preset, cells=3, channels=8, num_blocks=1)
        (architecture,) = [space.architecture([0] * 10)]
        for spec in space.blocks(architecture, inputs=image(3, 64, 64), num_classes=4):
            again = BlockSpec.from_json(spec.to_json())
            assert again.id == spec.id
            build(again)


@pytest.mark.parametrize("size", [8, 5])
def test_every_operation_is_exported_to_onnx_and_computes_the_same_there(size: int) -> None:
    stem = stem_spec(image(3, size, size), channels=4, stride=1, eps=1e-3)
    pairs = tuple(((name, 0), (name, 1), "add") for name in OPERATIONS)
    settings = {"reduction": True, "total": 2}
    states = tuple(range(len(pairs) + 2))
    first = a_cell(stem.outputs, Wiring(pairs, states), position=0, **settings)
    joined = Wiring(((("avg_pool_3x3", 0), ("identity", 1), "concat"),), (0, 1, 2))
    second = a_cell(first.outputs, joined, position=1, last=True, **settings)
    head = head_spec(second.outputs[0], num_classes=3, dropout=0.5)
    network = build_chain([stem, first, second, head], seed=1).eval()
    # Exporting compares the answers of ONNX Runtime and PyTorch.
    assert export_onnx(network, stem.inputs, head.outputs)


def test_what_cannot_be_built_is_refused() -> None:
    block = (("conv_1x1", 0), ("identity", 1), "add")
    with pytest.raises(InvalidInputError, match="block 0 reads state 2"):
        Wiring(((("identity", 2), ("identity", 0), "add"),), (1, 2))
    with pytest.raises(InvalidInputError, match=r"nothing reads states \[2\]"):
        Wiring((block,), (0,))
    with pytest.raises(InvalidInputError, match="ascending"):
        Wiring((block,), (2, 1))
    with pytest.raises(UnknownNameError, match="multiply"):
        Wiring(((("identity", 0), ("identity", 1), "multiply"),), (2,))
    spec = a_cell((image(6, 8, 8), image(8, 8, 8)))
    for wrong in (
        replace(spec, outputs=spec.outputs[1:] + spec.outputs[:1]),
        replace(spec, params={**spec.params, "blocks": [["identity", 0]]}),
        replace(spec, params={**spec.params, "eps": "small"}),
        replace(spec, params={**spec.params, "position": 5}),
    ):
        with pytest.raises(InvalidInputError):
            build(wrong)
    with pytest.raises(IncompatibleShapeError, match="3x3"):
        stem_spec(image(3, 2, 8), channels=4, stride=2, eps=1e-3)
    with pytest.raises(InvalidInputError, match=r"dropout is 1\.0"):
        head_spec(image(8, 4, 4), num_classes=10, dropout=1.0)
