"""Derivation: the stated rule, its ties, and the ranking beyond the first."""

from __future__ import annotations

import math
from itertools import islice, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nas.derivation import derive, ranked
from nas.spaces.darts import DartsSpace, Genotype
from nas.supernet import Mixture, num_edges
from zoo.spec import Architecture

TINY = DartsSpace(cells=3, channels=4, nodes=2, ops=("none", "max_pool_3x3", "skip_connect"))
FULL = DartsSpace(nodes=4)


def mixtures(space: DartsSpace, alphas: Tensor, betas: Tensor) -> dict[str, Mixture]:
    """Return mixtures of kinds ``normal`` and ``reduce`` from stacked alphas and betas."""
    segments = [node + 2 for node in range(space.nodes)]
    return {
        kind: Mixture(
            ops=alphas[at].softmax(-1),
            edges=torch.cat([part.softmax(-1) for part in betas[at].split(segments)]),
        )
        for at, kind in enumerate(("normal", "reduce"))
    }


def zeros(space: DartsSpace) -> tuple[Tensor, Tensor]:
    edges = num_edges(space.nodes)
    return torch.zeros(2, edges, len(space.ops)), torch.zeros(2, edges)


def literal(space: DartsSpace, mixture: Mixture) -> tuple[tuple[tuple[str, int], ...], ...]:
    """Apply the rule edge by edge, with nothing clever."""
    nodes, first = [], 0
    for node in range(space.nodes):
        scored = []
        for state in range(node + 2):
            best_op, best = "", -math.inf
            for op, share in zip(space.ops, mixture.ops[first + state], strict=True):
                score = float(share * mixture.edges[first + state])
                if op != "none" and score > best:
                    best_op, best = op, score
            scored.append((best, best_op, state))
        kept: list[tuple[float, str, int]] = []
        for _ in range(2):
            top = scored[0]
            for item in scored[1:]:
                if item[0] > top[0]:
                    top = item
            kept.append(top)
            scored.remove(top)
        nodes.append(tuple((op, state) for _, op, state in kept))
        first += node + 2
    return tuple(nodes)


@given(seed=st.integers(0, 2**31), scale=st.sampled_from([1e-3, 0.3, 3.0]), levels=st.booleans())
def test_the_derived_genotype_follows_the_rule(seed: int, scale: float, levels: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    alphas, betas = (torch.randn(t.shape, generator=generator) * scale for t in zeros(FULL))
    if levels:  # few distinct values, so that many scores tie
        alphas, betas = alphas.sign() * scale, betas.sign() * scale
    found = mixtures(FULL, alphas, betas)
    genotype = derive(FULL, found)
    assert genotype.normal == literal(FULL, found["normal"])
    assert genotype.reduce == literal(FULL, found["reduce"])


def test_all_ties_fall_to_the_lower_states_and_the_first_operation_but_none() -> None:
    genotype = derive(FULL, mixtures(FULL, *zeros(FULL)))
    assert genotype.normal == ((("max_pool_3x3", 0), ("max_pool_3x3", 1)),) * 4
    assert genotype.normal == genotype.reduce


def test_edges_are_listed_with_the_stronger_first() -> None:
    alphas, betas = zeros(TINY)
    betas[:, 1] = 1.0
    betas[:, 4] = 2.0
    betas[:, 3] = 1.0
    genotype = derive(TINY, mixtures(TINY, alphas, betas))
    assert [[state for _, state in edges] for edges in genotype.normal] == [[1, 0], [2, 1]]


def test_betas_alone_can_decide_which_edges_stay() -> None:
    alphas, betas = zeros(TINY)
    alphas[:, 2, 1] = 1.0  # the strongest operation of node 3, on state 0
    betas[:, 2] = -3.0
    genotype = derive(TINY, mixtures(TINY, alphas, betas))
    assert {state for _, state in genotype.normal[1]} == {1, 2}


def test_none_is_never_kept_but_weakens_its_edge() -> None:
    alphas, betas = zeros(TINY)
    alphas[:, :, 0] = 5.0
    everywhere = derive(TINY, mixtures(TINY, alphas, betas))
    assert all(op != "none" for edges in everywhere.normal for op, _ in edges)
    alphas, betas = zeros(TINY)
    alphas[:, 2, 0] = 5.0
    weakened = derive(TINY, mixtures(TINY, alphas, betas))
    assert [state for _, state in weakened.normal[1]] == [1, 2]


def test_the_first_of_equal_operations_wins() -> None:
    alphas, betas = zeros(FULL)
    alphas[:, :, 3] = alphas[:, :, 6] = 1.0
    genotype = derive(FULL, mixtures(FULL, alphas, betas))
    assert {op for edges in genotype.normal for op, _ in edges} == {"skip_connect"}


def test_a_space_without_none_derives_alike() -> None:
    space = DartsSpace(nodes=2, ops=("skip_connect", "sep_conv_3x3"))
    alphas, betas = zeros(space)
    alphas[:, :, 1] = 1.0
    genotype = derive(space, mixtures(space, alphas, betas))
    assert genotype.normal == ((("sep_conv_3x3", 0), ("sep_conv_3x3", 1)),) * 2


def _loss(space: DartsSpace, found: dict[str, Mixture], architecture: Architecture) -> float:
    genotype = space.decode(architecture)
    total = 0.0
    for kind, cell in (("normal", genotype.normal), ("reduce", genotype.reduce)):
        first = 0
        for node, edges in enumerate(cell):
            for op, state in edges:
                share = found[kind].ops[first + state, space.ops.index(op)]
                total -= math.log(share * found[kind].edges[first + state])
            first += node + 2
    return total


@pytest.mark.parametrize("seed", range(3))
def test_the_ranking_is_that_of_the_products_of_scores_over_the_whole_space(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(t.shape, generator=generator) for t in zeros(TINY)]
    found = mixtures(TINY, *drawn)
    everything = [
        Architecture(space=TINY.describe(), choices=choices)
        for choices in product(*(range(options) for options in TINY.cardinalities()))
    ]
    result = list(ranked(TINY, found))
    assert set(result) == set(everything)
    assert len(result) == len(everything)
    losses = [_loss(TINY, found, architecture) for architecture in result]
    assert losses == pytest.approx(sorted(losses))
    assert result[0] == TINY.encode(derive(TINY, found))


def test_the_second_best_replaces_the_least_certain_decision() -> None:
    alphas, betas = zeros(TINY)
    alphas[:, :, 1] = 2.0
    betas[:, 2:4] = 2.0
    alphas[1, 0] = torch.tensor([0.0, 2.0, 1.9])
    first, second = islice(ranked(TINY, mixtures(TINY, alphas, betas)), 2)
    genotypes = TINY.decode(first), TINY.decode(second)
    assert genotypes[0].normal == genotypes[1].normal
    assert genotypes[0].reduce[0] == (("max_pool_3x3", 0), ("max_pool_3x3", 1))
    assert genotypes[1].reduce[0] == (("skip_connect", 0), ("max_pool_3x3", 1))


def test_choices_for_cells_that_do_not_exist_are_left_alone() -> None:
    space = DartsSpace(cells=2, channels=4, nodes=1, ops=("max_pool_3x3", "skip_connect"))
    found = mixtures(space, *zeros(space))
    result = list(ranked(space, found))
    assert len(result) == 4
    normal = {space.decode(architecture).normal for architecture in result}
    assert normal == {((("max_pool_3x3", 0), ("max_pool_3x3", 1)),)}


def test_scores_that_vanish_still_rank() -> None:
    alphas, betas = zeros(TINY)
    alphas[:, :, 2] = -500.0
    result = list(islice(ranked(TINY, mixtures(TINY, alphas, betas)), 50))
    assert len(set(result)) == 50


def test_a_derived_genotype_is_an_architecture_of_the_space() -> None:
    genotype = derive(FULL, mixtures(FULL, *zeros(FULL)))
    assert isinstance(genotype, Genotype)
    FULL.check(FULL.encode(genotype))
