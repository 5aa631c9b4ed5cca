"""The hybrid space: counts, strings, constraints, corners, costs and hashes."""

from __future__ import annotations

import random
from collections import Counter
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

from nas.cost import cost
from nas.identity import GraphSpace, identify, network_signature
from nas.spaces.hybrid import HybridSpace
from nas.spaces.hybrid_strings import (
    CONSTRAINTS,
    StageRule,
    broken,
    count_strings,
    draw_strings,
    fraction,
)
from zoo.errors import IncompatibleShapeError, InvalidInputError, UnknownNameError
from zoo.spec import Architecture, TensorSpec

TINY: dict[str, Any] = {
    "widths": (8, 16), "depths": ((1, 2), (1, 2)), "strides": (1, 2), "multipliers": (0.5, 1),
    "stem": 8, "stem_stride": 1, "attention_from": 1, "last": 16,
    "conv_settings": {"expand": 2}, "attention_settings": {"head_dim": 4, "expand": 2},
}  # fmt: skip
DIGITS = TensorSpec(shape=(1, 8, 8))


def every(space: HybridSpace) -> list[Architecture]:
    """Return all legal architectures by trying all choices."""
    found = []
    for choices in product(*map(range, space.cardinalities())):
        architecture = Architecture(space=space.describe(), choices=choices)
        try:
            space.check(architecture)
        except InvalidInputError:
            continue
        found.append(architecture)
    return found


def test_the_default_space_counts_as_worked_out_by_hand() -> None:
    strings = 1 * (4 + 8) * (8 + 16 + 32 + 64) * (4 + 8 + 16)
    assert HybridSpace().size() == strings * 3**4 == 3_265_920
    pure = 2 * 4 * 3  # stages of one letter only: by depth, and by letter where T is legal
    without_mixed = 1 * (2 * 2) * (2 * 4) * (2 * 3)
    assert pure == 24
    assert HybridSpace(constraint="asymmetric").size() == (strings - without_mixed) * 81


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize(
    "stages",
    [
        (StageRule(1, 2, True), StageRule(1, 3, True)),
        (StageRule(2, 2, False), StageRule(2, 3, True), StageRule(1, 3, True)),
        (StageRule(1, 4, True),),
        (StageRule(1, 2, True), StageRule(1, 2, False), StageRule(1, 2, True)),
    ],
)
def test_counts_and_draws_equal_brute_force(stages: tuple[StageRule, ...], constraint: str) -> None:
    legal = {
        strings
        for strings in product(*(stage.strings() for stage in stages))
        if broken(strings, constraint) is None
    }
    assert count_strings(stages, constraint) == len(legal)
    rng = random.Random(0)
    drawn = Counter(draw_strings(stages, constraint, rng) for _ in range(40 * len(legal)))
    assert drawn.keys() == legal
    chi_squared = sum((drawn[item] - 40) ** 2 / 40 for item in legal)
    assert chi_squared < 2 * len(legal) + 30


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_size_is_the_number_of_legal_choices(constraint: str) -> None:
    space = HybridSpace(**TINY, constraint=constraint)
    legal = every(space)
    assert space.size() == len(legal)
    assert len({space.summary(item) for item in legal}) == len(legal)
    for architecture in legal:
        assert space.parse(space.summary(architecture)) == architecture


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_neighbours_are_mutual_and_reach_the_whole_space(constraint: str) -> None:
    space = HybridSpace(**TINY, constraint=constraint)
    near = {item: set(space.neighbours(item)) for item in every(space)}
    for item, others in near.items():
        assert len(list(space.neighbours(item))) == len(others)
        assert all(item in near[other] for other in others)
    seen, frontier = set(), [next(iter(near))]
    while frontier:
        item = frontier.pop()
        if item not in seen:
            seen.add(item)
            frontier += near[item]
    assert len(seen) == space.size()


def test_a_neighbour_is_one_edit_or_one_width_away() -> None:
    space = HybridSpace()
    here = space.parse("CC-CCT-CCTTT-TT @ 1,1,1,0.75")
    texts = {space.summary(item) for item in space.neighbours(here)}
    assert "CC-CCT-CCTTT-TT @ 1,1,1.25,0.75" in texts
    assert "CC-CT-CCTTT-TT @ 1,1,1,0.75" in texts  # left out
    assert "CC-CCT-CCTTT-TCT @ 1,1,1,0.75" in texts  # put in
    assert "CC-CCT-CCTCT-TT @ 1,1,1,0.75" in texts  # changed
    assert not any(text.startswith(("CT", "TC", "TT")) for text in texts)
    for _ in range(5):
        assert space.summary(space.mutate(here, random.Random(1))) in texts


def test_without_widths_a_text_means_the_plain_ones() -> None:
    space = HybridSpace()
    assert space.parse(" CC - CCT-CCTTTT-TT ") == space.parse("CC-CCT-CCTTTT-TT@1,1, 1,1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("CC-CCT-CCC", "has 3 stages; this space has 4 stages"),
        ("CC-CCT-CCC-TT @ 1,1", "has 2 widths; this space has 4 stages"),
        ("CC-CXT-CCC-TT", "stage 2, 'CXT', has the letter 'X'"),
        ("CCC-CCT-CCC-TT", "stage 1, 'CCC', has 3 blocks; it takes 2 to 2"),
        ("CT-CCT-CCC-TT", "stage 1, 'CT', may not attend at this resolution"),
        ("CC-CCT-CCC-", "stage 4, '', has 0 blocks"),
        ("CC-CCT-CCC-TT @ 1,1,2,1", "times 2 is not on offer; choose from 0.75, 1, 1.25"),
    ],
)
def test_a_text_of_no_architecture_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        HybridSpace().parse(text)


def test_a_broken_constraint_is_named() -> None:
    falling = HybridSpace(constraint="non-decreasing")
    with pytest.raises(InvalidInputError, match="falls from 1/3 to 0 in stage 3"):
        falling.parse("CC-CCT-CCC-TT")
    assert fraction("CCT") < fraction("CT")
    with pytest.raises(InvalidInputError, match="no stage has both C and T"):
        HybridSpace(constraint="asymmetric").parse("CC-CC-TTT-TT")
    space = HybridSpace(**TINY | {"depths": ((1, 3), (1, 2))})
    with pytest.raises(InvalidInputError, match="after a place without one"):
        space.check(Architecture(space=space.describe(), choices=(0, 0, 2, 1, 0, 0, 2)))


@pytest.mark.parametrize("text", ["CC-CCC-CCCCCC-CCCC", "CC-TTT-TTTTTT-TTTT", "CC-CCT-CTTC-TCT"])
def test_both_corners_build_and_cost_what_their_formula_says(text: str) -> None:
    space = HybridSpace(widths=(32, 32, 64, 64), multipliers=(1,))
    inputs = TensorSpec(shape=(3, 64, 96))
    architecture = space.parse(text + " @ 1,1,1,1")
    with torch.device("meta"):
        network = space.build(architecture, inputs=inputs, num_classes=7)
    counted = cost(network, inputs)
    priced = space.cost(architecture, inputs=inputs, num_classes=7)
    assert (counted.flops, counted.num_params) == (priced.macs, priced.num_params)


def test_a_network_of_nothing_but_attention_maps_digits_to_classes() -> None:
    space = HybridSpace(**TINY)
    network = space.build(space.parse("TT-T @ 1,0.5"), inputs=DIGITS, num_classes=10)
    assert not any(
        isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3) and part.groups > 1
        for part in network.modules()
    )
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("conv", "attention", "settings"),
    [
        ("mbconv", "bottleneck_attention", {"head_dim": 2}),
        ("convnext", "neighbourhood", {"head_dim": 4, "kernel": 3}),
        ("fused_mbconv.block", "biformer", {"head_dim": 4, "regions": 2, "topk": 2}),
        ("convnext.block", "lightning", {"head_dim": 4, "block_size": 16}),
    ],
)
def test_other_families_can_be_c_and_t(conv: str, attention: str, settings: Any) -> None:
    changes = {"conv": conv, "attention": attention, "attention_settings": settings}
    space = HybridSpace(**TINY | changes | {"conv_settings": {}, "multipliers": (1, 2)})
    for text in ("CT-TC @ 1,1", "TT-TT @ 2,1"):
        architecture = space.parse(text)
        network = space.build(architecture, inputs=DIGITS, num_classes=3).eval()
        assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
        counted = cost(network, DIGITS)
        priced = space.cost(architecture, inputs=DIGITS, num_classes=3)
        assert (counted.flops, counted.num_params) == (priced.macs, priced.num_params)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"constraint": "rising"}, UnknownNameError, "unknown constraint .* 'rising'"),
        ({"widths": (8,)}, InvalidInputError, "1 widths, 2 depths and 2 strides"),
        ({"depths": ((2, 1), (1, 2))}, InvalidInputError, "greatest depth is 1"),
        ({"depths": (2, 3)}, InvalidInputError, "give the least and the greatest"),
        ({"strides": (1, 3)}, InvalidInputError, "a stride is 3"),
        ({"multipliers": (0.3,)}, InvalidInputError, "8 channels times 0.3 is no whole"),
        ({"multipliers": (1, 1)}, InvalidInputError, "name each once"),
        ({"multipliers": ([1],)}, InvalidInputError, r"multipliers has \[1\]"),
        ({"conv_settings": {"channels": 8}}, InvalidInputError, "follows from widths; leave it"),
        ({"attention_settings": {"stride": 2}}, InvalidInputError, "follows from strides"),
        ({"attention_settings": {"op": "x"}}, UnknownNameError, "setting .* 'op'"),
        (
            {"attention": "mbconv", "attention_settings": {"expand": "x"}},
            InvalidInputError,
            "expand is 'x'",
        ),
        ({"stem_stride": 3}, InvalidInputError, "stem_stride is 3"),
        ({"dropout": 1}, InvalidInputError, "dropout is 1"),
        ({"conv": "conv7"}, UnknownNameError, "unknown block operation 'conv7.block'"),
        ({"conv_settings": {"heads": 2}}, UnknownNameError, "unknown setting .* 'heads'"),
        ({"attention_settings": {"head_dim": 3}}, InvalidInputError, "not whole heads of 3"),
        ({"depths": ((1, 1), (1, 1)), "constraint": "asymmetric"}, InvalidInputError,
         "no architecture of depths"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        HybridSpace(**TINY | changes)


def test_an_image_that_a_block_does_not_fit_is_named() -> None:
    space = HybridSpace(**TINY | {"attention": "neighbourhood", "attention_settings": {
        "head_dim": 4, "kernel": 5}})  # fmt: skip
    with pytest.raises(IncompatibleShapeError, match="smaller than a window of 5"):
        space.blocks(space.parse("C-T @ 1,1"), inputs=DIGITS, num_classes=3)


def signature(space: HybridSpace, text: str) -> str:
    return network_signature(space, space.parse(text), inputs=DIGITS, num_classes=3).key


def test_the_hash_tells_strings_and_widths_apart_and_repeats() -> None:
    space = HybridSpace(**TINY)
    texts = ("CT-T @ 1,1", "TC-T @ 1,1", "CT-C @ 1,1", "CT-TT @ 1,1", "CT-T @ 0.5,1")
    hashes = [signature(space, text) for text in texts]
    assert len(set(hashes)) == len(texts)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        assert signature(HybridSpace(**TINY), texts[0]) == hashes[0]
    finally:
        torch.set_num_threads(threads)


class Shuffled(HybridSpace):  # type: ignore[misc]
    """The same networks without a drawing, their modules held in another order."""

    graph = None  # type: ignore[assignment]
    seed = 0

    def build(self, architecture: Architecture, **task: Any) -> nn.Module:
        network = super().build(architecture, **task)
        order = random.Random(self.seed)
        for part in network.modules():
            if not isinstance(part, nn.Sequential):
                for kept in (part._modules, part._parameters):
                    items: list[Any] = list(kept.items())
                    order.shuffle(items)
                    kept.clear()
                    kept.update(items)
        return network


@pytest.mark.parametrize("attention", ["transformer", "lightning", "neighbourhood", "biformer"])
def test_a_transformer_module_hashes_alike_whatever_holds_its_parts(attention: str) -> None:
    settings: dict[str, Any] = {"head_dim": 4}
    settings |= {"neighbourhood": {"kernel": 3}, "biformer": {"regions": 2}}.get(attention, {})
    found = set()
    for seed in (0, 1):
        space = Shuffled(**TINY | {"attention": attention, "attention_settings": settings})
        object.__setattr__(space, "seed", seed)
        assert not isinstance(space, GraphSpace)
        architecture = space.parse("CT-TT @ 1,1")
        identity = identify(space, architecture, inputs=DIGITS, num_classes=3)
        found.add(identity.signature.key)
    assert len(found) == 1
