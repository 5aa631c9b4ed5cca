"""HyTra and the supernets of BossNAS: counts, legality, attention, weights that are shared."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nas.blockwise import Blockwise, Path
from nas.cost.analytic import cost
from nas.identity import network_signature
from nas.methods.bossnas import blockwise
from nas.methods.bossnas.supernets.nats import CIFAR100_BLOCKS
from nas.plugins import make_space
from nas.spaces.hytra import (
    BOSSNET_T0,
    SCALES,
    HytraSpace,
    completions,
    legal_paths,
    published,
)
from nas.spaces.mbconv_se import MBConvSESpace
from nas.spaces.nats_size import NatsSizeSpace
from zoo.builders import build, build_chain
from zoo.errors import InvalidInputError
from zoo.families.hytra import SelfAttention, attention, layer_spec
from zoo.spec import TensorSpec

TINY = HytraSpace(widths=(16, 16, 8, 8), layers=(2, 2), stem=4, head_dim=2)
IMAGE = TensorSpec(shape=(3, 224, 224))

CUTS: dict[str, tuple[str, dict[str, object], int]] = {
    "hytra": ("hytra", {"widths": [16, 16, 8, 8], "layers": [2, 2], "stem": 4, "head_dim": 2}, 16),
    "nats": ("nats-bench-size", {"widths": [2, 4, 6]}, 8),
    "macro": ("nas-bench-macro", {"channels": 2}, 8),
    "mbconv-se": (
        "mbconv-se",
        {
            "widths": [4, 6], "layers": [2, 1], "strides": [1, 2], "stem": 4, "first": 4,
            "last": 8, "features": 8,
        },
        8,
    ),
    "mbconv": (
        "mbconv",
        {
            "preset": "cifar", "widths": [4, 6], "depths": [2, 1], "strides": [1, 2], "stem": 4,
            "first": 4, "last": 8, "kernels": [3], "expands": [1, 2],
        },
        8,
    ),
}  # fmt: skip


def test_legal_paths_have_the_published_counts() -> None:
    assert [len(legal_paths(k)) for k in (4, 3, 2, 1)] == [51, 99, 80, 16]
    assert legal_paths(3) == tuple(sorted(set(legal_paths(3))))


def test_legal_paths_are_those_that_the_rule_allows() -> None:
    for k in (1, 2, 3, 4):
        expected = [
            path
            for path in product(range(6), repeat=4)
            if SCALES[path[0]] in (k - 1, k - 2)
            and all(SCALES[a] - SCALES[b] in (0, 1) for a, b in zip(path, path[1:], strict=False))
        ]
        assert list(legal_paths(k)) == expected


def test_the_whole_space_has_2818103_networks() -> None:
    assert HytraSpace().size() == 2_818_103
    begun = [SCALES[op] for op in range(6) if SCALES[op] in (2, 3)]
    assert sum(completions(15)[15][scale] for scale in begun) == 1_703_991


def test_the_size_of_a_small_space_is_that_of_its_enumeration() -> None:
    legal = 0
    for choices in product(range(6), repeat=4):
        try:
            TINY.check(TINY.architecture(choices))
        except InvalidInputError:
            continue
        legal += 1
    assert TINY.size() == legal


def test_samples_are_spread_evenly_over_the_first_scale() -> None:
    rng = random.Random(0)
    draws = [TINY.sample(rng).choices[0] for _ in range(2000)]
    ways = [TINY._ways[3][scale] for scale in SCALES]
    for op, way in enumerate(ways):
        assert draws.count(op) / 2000 == pytest.approx(way / sum(ways), abs=0.04)


def test_the_published_networks_have_the_published_cost() -> None:
    """3.4 and 7.9 billion multiply-accumulates at 224 pixels."""
    for name, flops in (("bossnet_t0", 3.4e9), ("bossnet_t1", 7.9e9)):
        space, architecture = published(name)
        assert space.summary(architecture) == BOSSNET_T0
        network = space.build(architecture, inputs=IMAGE, num_classes=1000)
        assert cost(network, IMAGE).flops == pytest.approx(flops, rel=0.015)


def test_attention_is_scaled_dot_product_attention() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 4, generator=generator) for _ in range(3))
    weights = torch.softmax(torch.einsum("bhid,bhjd->bhij", q, k) / 2, dim=-1)
    by_hand = torch.einsum("bhij,bhjd->bhid", weights, v)
    torch.testing.assert_close(attention(q, k, v), by_hand)
    layer = SelfAttention(12, 3)
    x = torch.randn(2, 12, 2, 3, generator=generator)
    q, k, v = (part.reshape(2, 3, 4, 6).mT for part in layer.qkv(x).chunk(3, dim=1))
    expected = F.scaled_dot_product_attention(q, k, v).mT.reshape(2, 12, 2, 3)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("kind", ["attention", "convolution"])
@pytest.mark.parametrize(("shrink", "patch"), [(1, False), (2, False), (4, True)])
def test_a_hytra_layer_is_that_of_the_released_networks(
    kind: str, shrink: int, patch: bool
) -> None:
    spec = layer_spec(
        TensorSpec(shape=(16 if shrink == 1 else 8, 8, 8)),
        channels=16, kind=kind, shrink=shrink, patch=patch, head_dim=2,
    )  # fmt: skip
    layer: Any = build(spec).double().eval()
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(value, 0.5, 2)
    images = torch.randn(2, *spec.inputs[0].shape, dtype=torch.float64)
    entrance, body = layer.entrance, layer.body
    given = images
    if patch:
        dense = F.conv2d(images, entrance.reduce.depthwise.weight, stride=4, groups=8)
        given = entrance.reduce.norm(F.conv2d(dense, entrance.reduce.pointwise.weight))
    reduced = given if patch else F.conv2d(images, entrance.reduce.weight)
    stride = 2 if shrink == 2 else 1
    coded = F.conv2d(reduced, entrance.position.weight, stride=stride, padding=1, groups=4)
    inner = F.relu(entrance.norm(coded))
    if kind == "attention":
        mixed = body.mix(inner)
    else:
        mixed = F.conv2d(inner, body.mix.weight, padding=1)
    inside = body.last_norm(F.conv2d(F.relu(body.mix_norm(mixed)), body.expand.weight))
    shortcut = images
    if shrink > 1:
        pooled = F.avg_pool2d(given, 2) if stride == 2 else given
        shortcut = entrance.project[2](F.conv2d(pooled, entrance.project[1].weight))
    torch.testing.assert_close(layer(images), F.relu(inside + shortcut))


def test_wrong_hytra_settings_are_refused_with_the_value() -> None:
    with pytest.raises(InvalidInputError, match="multiple of 4 times head_dim"):
        HytraSpace(widths=(10, 16, 8, 8), head_dim=2)
    with pytest.raises(InvalidInputError, match="scale goes from 0 to 1"):
        TINY.parse("0200")
    with pytest.raises(InvalidInputError, match="k is 5"):
        legal_paths(5)
    with pytest.raises(InvalidInputError, match="shrink is 4"):
        layer_spec(
            TensorSpec(shape=(8, 8, 8)), channels=8, kind="convolution", shrink=4, patch=False,
            head_dim=2,
        )  # fmt: skip


@pytest.fixture(params=CUTS)
def cut(request: pytest.FixtureRequest) -> tuple[Blockwise, TensorSpec]:
    name, params, side = CUTS[request.param]
    return blockwise(make_space(name, params)), TensorSpec(shape=(3, side, side))


def test_every_path_of_a_cut_space_runs_and_has_the_derived_shapes(
    cut: tuple[Blockwise, TensorSpec],
) -> None:
    space, inputs = cut
    interfaces = {space.start: inputs}
    for block in range(space.num_blocks):
        after: dict[int, TensorSpec] = {}
        for interface, given in interfaces.items():
            searched = space.block(block, interface, inputs)
            stem = space.stem(inputs) if block == 0 else torch.nn.Identity()
            x = torch.randn(2, *(size or 1 for size in given.shape))
            for path in space.paths(block, interface):
                y = searched(stem(x), path)
                left = space.interface(block, path)
                specs = space.specs(block, interface, path, given)
                after[left] = specs[-1].outputs[0] if specs else given
                assert y.shape[1:] == torch.Size([size or 1 for size in after[left].shape])
                assert space.output(block, left)[0] == y.shape[1]
        interfaces = after


def test_paths_join_to_the_architecture_whose_blocks_they_describe(
    cut: tuple[Blockwise, TensorSpec],
) -> None:
    space, inputs = cut
    rng = random.Random(0)
    paths: list[Path] = []
    interface, given, specs = space.start, inputs, []
    for block in range(space.num_blocks):
        paths.append(rng.choice(space.paths(block, interface)))
        described = space.specs(block, interface, paths[-1], given)
        specs += described
        given = described[-1].outputs[0] if described else given
        interface = space.interface(block, paths[-1])
    architecture = space.join(paths)
    assert space.split(architecture) == tuple(paths)
    chain = [*specs, *space.tail(given, num_classes=3)]
    owner = make_space(architecture.space["name"], architecture.space["params"])  # type: ignore[arg-type]
    assert chain == list(owner.blocks(architecture, inputs=inputs, num_classes=3))
    assert build_chain(chain)(torch.zeros(2, *(size or 1 for size in inputs.shape))).shape == (2, 3)


def test_a_slimmable_layer_slices_one_kernel_and_has_a_norm_a_width() -> None:
    cut = blockwise(NatsSizeSpace(widths=(2, 4, 6)))
    block = cut.block(0, cut.start, TensorSpec(shape=(3, 8, 8)))
    block.eval()
    stem = block.layers[0].stem
    x = torch.randn(2, 3, 8, 8)
    narrow, wide = stem(x, 2), stem(x, 6)
    torch.testing.assert_close(narrow, wide[:, :2], rtol=1e-5, atol=1e-6)
    assert {name: norm.num_features for name, norm in stem.norms.items()} == {
        "2": 2, "4": 4, "6": 6,
    }  # fmt: skip
    block(x, (0, 2)).sum().backward()
    assert stem.weight.grad[:2].abs().sum() > 0
    assert stem.weight.grad[2:].abs().sum() == 0


def test_operations_share_all_but_their_entrance_between_scales() -> None:
    cut = blockwise(TINY)
    block = cut.block(1, 1, TensorSpec(shape=(3, 16, 16)))
    same, down = block.part((2, 0), 1), block.part((0, 0), 1)
    assert same.body is down.body
    assert same.entrance is not down.entrance


def test_the_cuts_have_the_published_numbers_of_paths() -> None:
    nats = blockwise(NatsSizeSpace())
    assert [len(nats.paths(block, 0)) for block in range(3)] == [64, 64, 8]
    nats = blockwise(NatsSizeSpace(), CIFAR100_BLOCKS)
    assert [len(nats.paths(block, 0)) for block in range(3)] == [64, 8, 64]
    mbconv = blockwise(MBConvSESpace())
    assert [len(mbconv.paths(block, 0)) for block in range(5)] == [16, 256, 256, 256, 256]
    macro = blockwise(make_space("nas-bench-macro"))
    assert [len(macro.paths(block, 0)) for block in range(3)] == [9, 27, 27]


def test_networks_that_differ_have_different_functional_hashes() -> None:
    inputs = TensorSpec(shape=(3, 16, 16))
    small = MBConvSESpace(
        widths=(4, 6), layers=(1, 1), strides=(1, 2), stem=4, first=4, last=8, features=8
    )
    for space, texts in ((TINY, ("5432", "5433", "5423")), (small, ("00", "01", "20"))):
        hashes = {
            network_signature(space, space.parse(text), inputs=inputs, num_classes=3).key
            for text in texts
        }
        assert len(hashes) == 3


def test_the_mbconv_space_contains_efficientnet_b0() -> None:
    space = MBConvSESpace(layers=(2, 2, 3, 3, 4))
    network = space.build(space.parse("00|11|000|111|1111"), inputs=IMAGE, num_classes=1000)
    assert sum(item.numel() for item in network.parameters()) == 5_288_548


def test_layers_can_be_cut_elsewhere_where_that_makes_blocks() -> None:
    macro = make_space("nas-bench-macro")
    cut = blockwise(macro, (4, 4))
    architecture = macro.sample(random.Random(0))
    assert cut.join(cut.split(architecture)) == architecture
    assert [len(path) for path in cut.split(architecture)] == [4, 4]
    for space, layers in ((macro, (4, 3)), (NatsSizeSpace(), (2, 2)), (macro, (8, 0))):
        with pytest.raises(InvalidInputError, match="layers"):
            blockwise(space, layers)
    with pytest.raises(InvalidInputError, match="cut only as it says itself"):
        blockwise(TINY, (4,))


def test_a_space_that_nobody_cut_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="give it a method blockwise"):
        blockwise(make_space("nas-bench-201"))
