"""Gradient matching in small: distances, partitions, edges, masks, schedules, races, contests."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import combinations, permutations, product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nas.masks import allowed, distinct, full_mask, split_mask, sub_space_size
from nas.methods.few_shot import matching, partition
from nas.methods.few_shot.matching import matching_distances, matching_scores
from nas.methods.few_shot.partition import best_partition, choose_edge, edge_score, local_search
from nas.methods.few_shot.plan import Plan, Schedule
from nas.methods.few_shot.presets import PRESETS
from nas.methods.few_shot.racing import ROUND, Criterion, Race
from nas.methods.halving import CHUNK, Contender, Halving, num_steps, rungs
from nas.methods.snas import gumbel_softmax, temperature
from nas.supernet import masked_softmax
from zoo.errors import ConflictError, InvalidInputError, UnknownNameError


def distances(n: int, seed: int) -> list[list[float]]:
    drawn = torch.rand(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    matrix: list[list[float]] = (drawn + drawn.T).fill_diagonal_(0).tolist()
    return matrix


def test_distances_are_one_minus_the_cosine_of_every_pair() -> None:
    rows = torch.randn(5, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = matching_distances(rows)
    for i, j in product(range(5), repeat=2):
        wanted = 1 - torch.dot(rows[i], rows[j]) / (rows[i].norm() * rows[j].norm())
        torch.testing.assert_close(found[i, j], wanted, rtol=0, atol=1e-14)
    assert torch.equal(found, found.T)
    torch.testing.assert_close(matching_distances(rows.float()).double(), found, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e-4, 1.0, 1e6, 1e30])
def test_identical_gradients_match_and_opposite_ones_do_not_at_any_scale(
    scale: float, dtype: torch.dtype
) -> None:
    row = torch.randn(1000, generator=torch.Generator().manual_seed(1), dtype=dtype)
    scores = matching_scores(torch.stack([row * scale, row * scale, -row * scale, row]))
    wanted = torch.tensor([[1, 1, -1, 1], [1, 1, -1, 1], [-1, -1, 1, -1], [1, 1, -1, 1]])
    torch.testing.assert_close(scores, wanted.to(dtype), rtol=0, atol=2e-6)


def test_a_gradient_of_zeros_agrees_with_none_and_a_broken_one_is_refused() -> None:
    scores = matching_scores(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    assert torch.equal(scores, torch.eye(2))
    assert torch.equal(matching_scores(torch.zeros(3, 0)), torch.eye(3))
    with pytest.raises(InvalidInputError, match="not finite"):
        matching_scores(torch.tensor([[float("nan"), 1.0], [1.0, 1.0]]))


def test_the_other_distances_are_those_of_their_formulas() -> None:
    shapes = [torch.Size([4, 2, 3, 3]), torch.Size([4]), torch.Size([5, 4])]
    size = sum(shape.numel() for shape in shapes)
    rows = torch.randn(3, size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    squared = matching.distance("mse")(rows, shapes)
    by_filter = matching.distance("filter-cosine")(rows, shapes)
    for i, j in combinations(range(3), 2):
        torch.testing.assert_close(squared[i, j], (rows[i] - rows[j]).square().sum())
        total = torch.zeros((), dtype=torch.float64)
        parts = zip(
            *(torch.split(rows[k], [s.numel() for s in shapes]) for k in (i, j)), strict=True
        )
        for (first, second), shape in zip(parts, shapes, strict=True):
            if len(shape) > 1:
                pair = first.reshape(shape[0], -1), second.reshape(shape[0], -1)
                total += (1 - torch.cosine_similarity(*pair, dim=1, eps=0)).sum()
        torch.testing.assert_close(by_filter[i, j], total)
    with pytest.raises(UnknownNameError, match="filter-cosine"):
        matching.distance("l1")


def brute_force(matrix: list[list[float]], groups: int, least: int) -> float:
    """Return the least intra sum over all labellings with groups of ``least`` or more."""
    n, best = len(matrix), math.inf
    for labels in product(range(groups), repeat=n):
        if min(labels.count(group) for group in range(groups)) < least:
            continue
        same = ((i, j) for i, j in combinations(range(n), 2) if labels[i] == labels[j])
        best = min(best, math.fsum(matrix[i][j] for i, j in same))
    return best


@pytest.mark.parametrize(("n", "groups", "sizes"), [
    (5, 2, "half"), (7, 2, "half"), (7, 2, "any"), (6, 3, "half"), (7, 3, "any"), (3, 3, "any"),
])  # fmt: skip
def test_the_partition_is_that_of_brute_force(n: int, groups: int, sizes: Any) -> None:
    least = 1 if sizes == "any" else 2
    for seed in range(10):
        matrix = distances(n, seed)
        found = best_partition(matrix, groups, sizes=sizes)
        assert sorted(op for group in found for op in group) == list(range(n))
        assert len(found) == groups
        assert partition.intra_sum(matrix, found) == pytest.approx(
            brute_force(matrix, groups, least), abs=1e-12
        )


def test_partitions_follow_their_gradients_where_the_official_code_returns_one() -> None:
    """Its cut of once-for-all kernels and its cut in three give one answer for all matrices."""
    kernels = {best_partition(distances(3, seed), 2, sizes="any") for seed in range(40)}
    assert len(kernels) == 3
    thirds = {best_partition(distances(6, seed), 3) for seed in range(60)}
    assert len(thirds) > 10


@given(st.integers(0, 10_000), st.permutations(range(6)), st.sampled_from([2, 3]))
@settings(max_examples=40, deadline=None)
def test_renamed_operations_give_renamed_groups(seed: int, order: list[int], groups: int) -> None:
    matrix = distances(6, seed)
    renamed = [[matrix[order[i]][order[j]] for j in range(6)] for i in range(6)]
    found = {frozenset(group) for group in best_partition(matrix, groups)}
    again = {frozenset(order[op] for op in group) for group in best_partition(renamed, groups)}
    assert again == found


def test_ties_fall_to_the_smaller_then_the_earlier_first_group() -> None:
    flat = [[0.0 if i == j else 1.0 for j in range(4)] for i in range(4)]
    assert best_partition(flat, 2) == ((0, 1), (2, 3))
    assert best_partition(flat, 2, sizes="any") == ((0, 1), (2, 3))
    nothing = [[0.0] * 4 for _ in range(4)]
    assert best_partition(nothing, 2, sizes="any") == ((0,), (1, 2, 3))


def test_sizes_of_groups_are_the_published_ones() -> None:
    assert partition.group_sizes(5, 2, "pair") == [(2, 3)]
    assert partition.group_sizes(7, 2, "half") == [(2, 5), (3, 4)]
    assert partition.group_sizes(3, 2, "any") == [(1, 2)]
    assert partition.group_sizes(3, 2, "half") == [(1, 2)]
    assert partition.group_sizes(2, 2, "pair") == [(1, 1)]
    assert partition.group_sizes(6, 3, "half") == [(2, 2, 2)]
    for n, groups, sizes in ((5, 2, "pair"), (7, 2, "half"), (7, 3, "any"), (6, 3, "half")):
        found = list(partition.partitions(n, groups, sizes))  # type: ignore[arg-type]
        counted = partition.num_partitions(n, groups, sizes)  # type: ignore[arg-type]
        assert len(set(found)) == len(found) == counted
    with pytest.raises(InvalidInputError, match="2 operations cannot be split into 3"):
        best_partition(distances(2, 0), 3)


def test_the_objectives_agree_for_groups_of_fixed_sizes_and_differ_otherwise() -> None:
    fixed, free = 0, 0
    for seed in range(40):
        matrix = distances(5, seed)
        options: dict[str, Any] = {"objective": "cut"}
        fixed += best_partition(matrix, 2) != best_partition(matrix, 2, **options)
        wide = (
            best_partition(matrix, 2, sizes="any"),
            best_partition(matrix, 2, sizes="any", **options),
        )
        free += wide[0] != wide[1]
    assert fixed == 0
    assert free > 0


def test_many_operations_are_grouped_nearly_as_well_as_by_enumeration() -> None:
    gaps = []
    for seed in range(6):
        matrix = distances(9, seed)
        exact = partition.intra_sum(matrix, best_partition(matrix, 3))
        gaps.append(partition.intra_sum(matrix, local_search(matrix, 3)) / exact - 1)
    assert min(gaps) >= -1e-12
    assert max(gaps) < 0.05
    # Three clear clusters of five are beyond enumeration, and found.
    side = range(15)
    far = [[0.0 if i == j else 1.0 if i % 3 != j % 3 else 0.1 for j in side] for i in side]
    assert partition.num_partitions(15, 3, "half") > partition.EXACT_PARTITIONS
    assert set(best_partition(far, 3)) == {tuple(range(k, 15, 3)) for k in range(3)}


def test_edge_rules_disagree_and_the_default_does_not_favour_more_operations() -> None:
    small = [[0.0 if i == j else 0.6 for j in range(6)] for i in range(6)]
    large = [[0.0 if i == j else 0.5 for j in range(7)] for i in range(7)]
    both = {0: small, 1: large}
    assert choose_edge(both, 2)[0] == 0
    assert choose_edge(both, 2, rule="max-inter")[0] == 1
    assert choose_edge(both, 2, rule="min-intra")[0] == 0
    groups = ((0, 1, 2), (3, 4, 5))
    assert edge_score(small, groups) == pytest.approx(0.6)
    assert edge_score(small, groups, "max-inter") == pytest.approx(9 * 0.6)
    assert edge_score(small, groups, "min-intra") == pytest.approx(-6 * 0.6)
    assert choose_edge({4: small, 2: small}, 2)[0] == 4
    with pytest.raises(UnknownNameError, match="max-inter"):
        edge_score(small, groups, "largest")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="no edge is left"):
        choose_edge({}, 2)


def members(mask: Tensor) -> set[tuple[int, ...]]:
    return set(product(*allowed(mask)))


def test_children_are_disjoint_and_cover_their_parent_and_sizes_add_up() -> None:
    parent = full_mask((5, 3, 5))
    assert allowed(parent)[1] == [0, 1, 2]
    children = split_mask(parent, 2, ((0, 3), (1, 2, 4)))
    assert torch.equal(children[0] | children[1], parent)
    assert members(children[0]).isdisjoint(members(children[1]))
    assert members(children[0]) | members(children[1]) == members(parent)
    assert sum(map(sub_space_size, children)) == sub_space_size(parent) == 75
    grandchildren = split_mask(children[0], 0, ((0,), (1, 2), (3, 4)))
    assert sum(map(sub_space_size, grandchildren)) == sub_space_size(children[0])
    for groups in (((0,), (1, 2)), ((0, 3), (1, 2, 3, 4)), ((0, 1, 2, 3, 4), ())):
        with pytest.raises(InvalidInputError, match="do not part"):
            split_mask(parent, 2, groups)


def test_masked_operations_have_weight_zero_exactly_and_no_gradient() -> None:
    alphas = torch.randn(2, 4, requires_grad=True, generator=torch.Generator().manual_seed(3))
    mask = torch.tensor([[True, False, True, True], [False, True, False, False]])
    theta = masked_softmax(alphas, mask)
    assert torch.equal(theta[~mask], torch.zeros(4))
    torch.testing.assert_close(theta.sum(1), torch.ones(2))
    torch.testing.assert_close(theta[0, mask[0]], torch.softmax(alphas[0, mask[0]], 0))
    (gradient,) = torch.autograd.grad((theta * torch.arange(8.0).view(2, 4)).sum(), alphas)
    assert torch.equal(gradient[~mask], torch.zeros(4))
    assert gradient[0, 0] != 0


def test_samples_of_a_sub_space_are_distinct_and_end_where_it_is_small() -> None:
    parts = [[(0,), (1,)], [(0,), (2,)], [(5, 6), (7, 8)]]
    assert len(distinct(parts, 200, random.Random(0))) == 8
    found = distinct(parts, 5, random.Random(0))
    assert len(set(found)) == 5
    assert found == distinct(parts, 5, random.Random(0))


@pytest.mark.parametrize(
    ("key", "nets", "total"),
    [
        (("nas-bench-201", "darts"), 4, 165),
        (("nas-bench-201", "snas"), 4, 165),
        (("nas-bench-201", "rsps"), 4, 260),
        (("darts", "darts"), 8, 134),
        (("mbconv", "proxyless"), 6, 40 + 40 + 80 + 240),
    ],
)
def test_published_schedules_have_the_published_budgets(
    key: tuple[str, str], nets: int, total: int
) -> None:
    schedule = PRESETS[key].schedule
    assert schedule.nets(schedule.splits) == nets
    assert schedule.total_epochs == total


def test_the_few_shot_baseline_has_the_published_budget() -> None:
    schedule = Schedule(checkpoints=(0,), groups=(7,), final_epochs=20, restart=False)
    assert schedule.total_epochs == 140


def test_schedules_anneal_and_freeze_as_published() -> None:
    halfway = PRESETS["nas-bench-201", "darts"].schedule
    assert [halfway.length(stage) for stage in range(3)] == [60, 60, 60]
    assert [halfway.frozen(stage) for stage in range(3)] == [True, True, False]
    assert [halfway.cooling(stage) for stage in range(3)] == [60, 60, 30]
    assert [PRESETS["darts", "darts"].schedule.length(stage) for stage in (0, 3)] == [21, 15]
    kept = PRESETS["mbconv", "proxyless"].schedule
    assert not any(kept.frozen(stage) for stage in range(3))
    with pytest.raises(InvalidInputError, match="ascend"):
        Schedule(checkpoints=(2, 1), groups=(2, 2), final_epochs=1, restart=True)


def test_a_plan_names_every_step_once_and_in_order() -> None:
    schedule = Schedule(checkpoints=(0, 2), groups=(2, 3), final_epochs=1, restart=True)
    plan = Plan(schedule, per_epoch=3, rounds=2, selection=4, together=False)
    moments = [plan.at(step) for step in range(plan.total)]
    assert plan.total == 0 + 2 + 2 * 2 * 3 + 2 * 2 + 6 * 3 + 4
    assert [m.phase for m in moments[:3]] == ["match", "match", "train"]
    assert sum(m.phase == "train" for m in moments) == 3 * schedule.total_epochs
    assert [m.index for m in moments[-4:]] == [0, 1, 2, 3]
    with pytest.raises(ConflictError, match="is over"):
        plan.at(plan.total)
    together = replace(plan, together=True)
    moments = [together.at(step) for step in range(together.total)]
    assert together.total == 0 + 2 + 2 * 3 + 2 + 3 + 4
    assert [len(m.nets) for m in moments] == [1] * 2 + [2] * 8 + [6] * 7


def planted(edge: int, batch: int) -> Tensor:
    """Noisy distances: on edge 2 operations 0, 3 disagree with 1, 2, 4; elsewhere less so."""
    base = torch.full((5, 5), 0.5)
    inside = torch.tensor([op in (0, 3) for op in range(5)])
    apart = inside[:, None] != inside[None]
    base[apart] += 0.3 if edge == 2 else 0.1
    drawn = torch.Generator().manual_seed(1000 * edge + batch)
    noise = 0.05 * torch.randn(5, 5, generator=drawn)
    return (base + (noise + noise.T)).fill_diagonal_(0)


def raced(z: float) -> Race:
    race = Race(criterion=Criterion(groups=2, sizes="pair"), edges=tuple(range(6)), z=z)
    for _ in range(race.rounds):
        race.round(planted)
    assert race.decided
    return race


def test_a_race_decides_as_without_one_at_a_fraction_of_the_passes() -> None:
    whole, race = raced(math.inf), raced(3.0)
    assert whole.passes == 6 * 5 * 100
    assert whole.result() == race.result() == (2, ((0, 3), (1, 2, 4)))
    assert race.passes == 6 * 5 * ROUND


def test_a_race_between_equals_measures_everything() -> None:
    def same(_: int, batch: int) -> Tensor:
        return planted(2, batch)

    race = Race(criterion=Criterion(groups=2), edges=(0, 1), batches=25)
    for _ in range(race.rounds):
        race.round(same)
    assert race.alive == (0, 1)
    assert race.passes == 2 * 5 * 25
    assert race.result()[0] == 0


def test_a_race_goes_on_from_its_state() -> None:
    terms: dict[str, Any] = {"criterion": Criterion(groups=2), "edges": (0, 2, 4), "batches": 30}
    race = Race(**terms)
    race.round(planted)
    again = Race(**terms)
    again.load_state_dict(race.state_dict())
    for item in (race, again):
        while not item.decided:
            item.round(planted)
    assert again.passes == race.passes
    assert torch.equal(again.mean(2), race.mean(2))


def test_halving_spends_all_batches_on_the_last_two_and_finds_the_best() -> None:
    assert [(r.candidates, r.batches) for r in rungs(8, 20)] == [(8, 5), (4, 10), (2, 20)]
    assert rungs(1, 20) == ()
    skill = np.random.default_rng(0).permutation(40) / 40
    contest = Halving([Contender(net=0, choices=(at,)) for at in range(40)], 12)
    seen: dict[int, int] = {}

    def score(contender: Contender, batch: int) -> tuple[int, int]:
        at = contender.choices[0]
        assert batch == seen.get(at, 0)
        seen[at] = batch + 1
        return round(1000 * float(skill[at])), 1000

    steps = 0
    while not contest.done:
        contest.step(score)
        contest = Halving.from_state(contest.state_dict())
        steps += 1
    assert steps == num_steps(40, 12) == -(-40 // CHUNK) + 2 + 1 + 1 + 1 + 1
    order = [c.choices[0] for c in contest.ranking()]
    assert order[0] == int(skill.argmax())
    assert seen[order[0]] == seen[order[1]] == 12
    assert sum(seen.values()) < 40 * 12 / 3
    with pytest.raises(ConflictError, match="is over"):
        contest.step(score)


def test_gumbel_softmax_is_that_of_log_probabilities_and_cools_to_the_maximum() -> None:
    draw = torch.Generator().manual_seed(5)
    alphas, noise = torch.randn(3, 4, generator=draw), torch.randn(3, 4, generator=draw)
    found = gumbel_softmax(alphas, noise, 0.5)
    torch.testing.assert_close(found, torch.softmax((alphas.log_softmax(1) + noise) / 0.5, 1))
    hard = torch.nn.functional.one_hot((alphas + noise).argmax(1), 4).float()
    torch.testing.assert_close(gumbel_softmax(alphas, noise, 1e-4), hard)
    mask = torch.tensor([True, True, False, True]).expand(3, 4)
    assert torch.equal(gumbel_softmax(alphas, noise, 0.5, mask)[:, 2], torch.zeros(3))


def test_the_temperature_falls_as_in_the_few_shot_code() -> None:
    """There a scheduler of T epochs is at step 0 in the first one, and at T - 1 in the last."""
    assert [temperature(e, 5, 1.0, 0.1) for e in range(6)] == pytest.approx(
        [1.0, 0.82, 0.64, 0.46, 0.28, 0.1]
    )
    assert temperature(29, 30, 1.0, 0.1) == pytest.approx(0.13)
    assert temperature(0, 1, 1.0, 0.03) == 1.0


def test_every_partition_of_a_small_set_is_tried() -> None:
    """All renamings of one matrix whose best groups are planted find them."""
    matrix = distances(5, 7)
    for i, j in [(0, 1), (1, 2), (0, 2), (3, 4)]:
        matrix[i][j] = matrix[j][i] = 0.0
    for order in permutations(range(5)):
        renamed = [[matrix[order[i]][order[j]] for j in range(5)] for i in range(5)]
        found = {frozenset(order[op] for op in group) for group in best_partition(renamed, 2)}
        assert found == {frozenset({0, 1, 2}), frozenset({3, 4})}
