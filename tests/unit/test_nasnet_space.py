"""The NASNet space: its codes, its stack of cells, and the drop-path schedule beside it."""

from __future__ import annotations

import itertools
import random
from math import prod

import pytest
import torch

from nas.drop_path_schedules import SCHEDULES, layer_keep, scheduled_keep
from nas.identity import network_signature
from nas.plugins import make_space
from nas.spaces.nasnet import NASNET_A, NasnetGenotype, NasnetSpace
from nas.spaces.nasnet_settings import reduction_places
from zoo.errors import InvalidInputError, UnknownNameError
from zoo.families.nasnet import Wiring
from zoo.families.nasnet_operations import OPERATIONS
from zoo.spec import TensorSpec

SMALL = TensorSpec(shape=(1, 8, 8))
PAIR = (("conv_1x1", 0), ("max_pool_3x3", 1))


def tiny(**changes: object) -> NasnetSpace:
    settings = {"cells": 2, "channels": 4, "num_blocks": 1, "stem_channels": 4, "reductions": 1}
    space = make_space(
        "nasnet", settings | {"ops": ["identity", *("conv_1x1", "max_pool_3x3")]} | changes
    )
    assert isinstance(space, NasnetSpace)
    return space


def test_the_published_space_has_five_choices_a_block_in_the_paper_s_order() -> None:
    space = NasnetSpace(preset="cifar")
    block = [(block + 2, block + 2, 13, 13, 2) for block in range(5)]
    cell = tuple(options for one in block for options in one)
    assert space.cardinalities() == cell * 2
    assert space.size() == prod(cell) ** 2 == ((2 * 3 * 4 * 5 * 6) ** 2 * 13**10 * 2**5) ** 2
    assert len(OPERATIONS) == 13


def test_nasnet_a_is_coded_and_read_back_where_any_state_may_be_returned() -> None:
    for preset in ("cifar", "mobile", "large"):
        space = NasnetSpace(preset=preset, outputs="free")
        architecture = space.encode(NASNET_A)
        assert architecture.choices[:5] == (0, 1, OPERATIONS.index("sep_conv_5x5"), 10, 0)
        assert space.decode(architecture) == NASNET_A
        assert space.parse(space.summary(architecture)) == architecture
    with pytest.raises(InvalidInputError, match=r"returns states \[1\].*outputs='free'"):
        NasnetSpace(preset="cifar").encode(NASNET_A)
    assert NASNET_A.normal.unused == (2, 3, 4, 5, 6)
    assert NASNET_A.reduce.unused == (4, 5, 6)


def test_every_sample_is_read_back_from_its_genotype_and_its_text() -> None:
    rng = random.Random(0)
    for outputs in ("unused", "free"):
        space = NasnetSpace(outputs=outputs, combines=("add", "concat"))
        for _ in range(50):
            architecture = space.sample(rng)
            genotype = space.decode(architecture)
            assert space.decode(space.parse(space.summary(architecture))) == genotype
            if outputs == "unused":
                assert space.encode(genotype) == architecture


def test_reductions_stand_before_normal_cells_n_and_2n_and_double_the_width() -> None:
    assert reduction_places(18, 2) == (6, 12)
    assert reduction_places(12, 2) == (4, 8)
    sites = NasnetSpace(preset="mobile").settings.sites
    assert [site.channels for site in sites[:3]] == [11, 22, 44]
    assert [at for at, site in enumerate(sites) if site.reduction] == [0, 1, 6, 11]
    assert len(sites) == 16
    large = NasnetSpace(preset="large").settings.sites
    assert [at for at, site in enumerate(large) if site.skip] == [8, 15]
    assert large[-1].channels == 4 * 168


def test_after_a_skipping_reduction_the_previous_input_comes_from_one_cell_further_back() -> None:
    inputs = TensorSpec(shape=(3, 32, 32))
    for skip in (False, True):
        space = NasnetSpace(preset="cifar", channels=4, skip=skip, outputs="free")
        specs = space.blocks(space.encode(NASNET_A), inputs=inputs, num_classes=10)
        # Stem, cells 0 to 5, the reduction at 7, and the first normal cell after it at 8.
        before, reduction, after = specs[6], specs[7], specs[8]
        assert reduction.params["reduction"] is True
        source = reduction.inputs[0] if skip else before.outputs[-1]
        assert after.inputs == (source, reduction.outputs[-1])
        assert specs[9].inputs == after.outputs == (reduction.outputs[-1], after.outputs[-1])


def test_exchanged_sides_are_one_network_and_have_one_canonical_form() -> None:
    space = tiny(combines=["add"])
    keys, forms = [], []
    for sides in (PAIR, PAIR[::-1]):
        cell = Wiring(((*sides, "add"),), (2,))
        architecture = space.encode(NasnetGenotype(cell, cell))
        forms.append(space.canonical(architecture))
        signature = network_signature(space, architecture, inputs=SMALL, num_classes=3)
        keys.append(signature.key)
    other = space.architecture([0, 1, 2, 1, 0] * 2)
    assert forms[0] == forms[1] == space.canonical(forms[0])
    assert keys[0] == keys[1]
    assert keys[0] != network_signature(space, other, inputs=SMALL, num_classes=3).key


def test_the_functional_hash_knows_exactly_the_exchanged_sides_of_all_cells_of_one_block() -> None:
    space = tiny(cells=1, combines=["add", "concat"])
    classes: dict[str, set[tuple[int, ...]]] = {}
    for cell in itertools.product(*map(range, space.cardinalities()[:5])):
        architecture = space.architecture([*cell, 0, 1, 2, 1, 0])
        key = network_signature(space, architecture, inputs=SMALL, num_classes=3).key
        classes.setdefault(key, set()).add(space.canonical(architecture).choices[:5])
    # 21 pairs of the six (operation, state), joined in two ways.
    assert len(classes) == 42
    assert all(len(forms) == 1 for forms in classes.values())


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_blocks_in_another_order_are_one_network_and_other_operations_are_not(stem: str) -> None:
    space = NasnetSpace(
        cells=1, channels=8, num_blocks=3, reductions=1, stem=stem, combines=("add", "concat")
    )
    last = ("identity(2) & identity(3) -> 1 4", "identity(3) & identity(2) -> 1 4")
    one = "sep_conv_3x3(0) + identity(0)", "avg_pool_3x3(0) + conv_1x1(0)"
    other = one[0], one[1].replace("avg", "max")
    reduce = (
        "; reduce: max_pool_3x3(0)+identity(1) | conv_1x1(0)+identity(2) | identity(3)+identity(0)"
    )
    inputs = TensorSpec(shape=(1, 40, 40))

    def key(blocks: tuple[str, ...], end: str) -> str:
        architecture = space.parse(f"normal: {' | '.join(blocks)} | {end}{reduce} -> 4")
        return network_signature(space, architecture, inputs=inputs, num_classes=3).key

    assert key(one, last[0]) == key(one[::-1], last[0]) == key(one, last[1])
    assert key(other, last[0]) != key(one, last[0])


def test_describe_does_not_depend_on_how_a_space_was_named() -> None:
    named = NasnetSpace(preset="cifar")
    assert NasnetSpace(**named.describe()["params"]).describe() == named.describe()  # type: ignore[arg-type]
    assert NasnetSpace(preset="large", skip=False).settings.skip is False


def test_settings_that_make_no_network_are_refused() -> None:
    for wrong, said in (
        ({"reductions": 3}, "reductions is 3; it must be an integer from 1 to 2"),
        ({"cells": 0}, "cells is 0"),
        ({"ops": []}, "ops are empty"),
        ({"ops": ["identity", "identity"]}, "each once"),
        ({"ops": "identity"}, "give a list of names"),
        ({"dropout": 1}, "dropout is 1"),
        ({"eps": 0}, "eps is 0"),
        ({"skip": 1}, "skip is 1"),
        ({"skip": True, "reductions": 2}, "cells is 2, but must be at least 3"),
        ({"stem": "imagenet"}, "channels is 4; the first cell"),
    ):
        with pytest.raises(InvalidInputError, match=said):
            tiny(**wrong)
    for wrong in ({"preset": "huge"}, {"ops": ["conv_9x9"]}, {"stem": "x"}, {"combines": ["mul"]}):
        with pytest.raises(UnknownNameError):
            tiny(**wrong)
    space = tiny()
    for text in ("normal: identity(0) -> 1; reduce: x", "identity(0)", "normal: ; reduce: "):
        with pytest.raises(InvalidInputError, match="form"):
            space.parse(text)
    with pytest.raises(InvalidInputError, match="2 blocks; this space has 1"):
        space.parse(
            "normal: identity(0)+identity(1) | identity(0)+identity(1) -> 2 3;"
            "reduce: identity(0)+identity(1) -> 2"
        )
    with pytest.raises(UnknownNameError, match="sep_conv_3x3"):
        space.parse("normal: sep_conv_3x3(0)+identity(1)->2; reduce: identity(0)+identity(1)->2")


def test_networks_learn_and_share_no_state_between_passes() -> None:
    space = NasnetSpace(combines=("add", "concat"), outputs="free")
    rng = random.Random(3)
    for _ in range(4):
        architecture = space.sample(rng)
        network = space.build(architecture, inputs=TensorSpec(shape=(1, 8, 8)), num_classes=3)
        loss = network(torch.randn(4, 1, 8, 8)).square().sum()
        torch.autograd.backward(loss)
        assert all(parameter.grad is not None for parameter in network.parameters())


def test_keep_probabilities_follow_the_published_formula() -> None:
    for name, (base, steps, cells) in {
        "cifar": (0.6, 937_500, 20),
        "large": (0.7, 250_000, 22),
        "mobile": (1.0, 250_000, 16),
    }.items():
        schedule = SCHEDULES[name]
        for cell in (0, 7, cells - 1):
            for step in (0, 1000, steps // 2, steps, 2 * steps):
                layer = 1 - ((cell + 1) / cells) * (1 - base)
                expected = 1 - min(1, step / steps) * (1 - layer)
                assert schedule.keep(cell, step) == pytest.approx(expected, abs=1e-15)
        assert len(NasnetSpace(preset=name).settings.sites) == schedule.cells
    assert SCHEDULES["cifar"].keep(19, 937_500) == pytest.approx(0.6)
    assert SCHEDULES["cifar"].keep(19, 0) == 1
    assert layer_keep(0.6, cell=9, cells=20) == pytest.approx(0.8)
    with pytest.raises(InvalidInputError, match="cell 20 is not one of 20"):
        scheduled_keep(0.6, cell=20, cells=20, step=0, steps=1)
    with pytest.raises(InvalidInputError, match="base_keep is 0"):
        layer_keep(0, cell=0, cells=1)
    with pytest.raises(InvalidInputError, match="step -1"):
        scheduled_keep(0.6, cell=0, cells=1, step=-1, steps=1)
