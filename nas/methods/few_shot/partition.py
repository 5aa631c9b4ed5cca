"""From distances to decisions: groups of operations on an edge, and the edge to split.

Source:
    Hu et al. (2022), arXiv:2203.15207; official code github.com/skhu101/GM-NAS.

Notation: D ``(n, n)``, symmetric, is the distance of every two operations. A partition's
intra sum is that of D over pairs within a group, its inter sum over pairs of two groups;
both count every pair once.

Sums are correctly rounded (``math.fsum``), so that they do not depend on the order of
operations: with its operations renamed, a matrix gives the same groups renamed. Of equal
partitions the first wins: smaller first group before larger, then in lexicographic order,
as the official code's strict comparison has it; only such ties depend on the order.

Differs from the official code, on purpose:

- Its cut of once-for-all kernels overwrites the running minimum with the complement, and its
  cut of ProxylessNAS in three never resets its sum: both return one partition whatever the
  gradients are. Here every partition is scored by its own sum.
- Cuts in three leave at least two operations in each group if there are enough; the official
  code, had it counted, would let the last have one (``sizes="any"`` lets all).
- Sums over edges with different numbers of operations cannot be compared: the default edge
  rule divides by the number of pairs. The published rules are options.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Literal, TypeAlias, get_args

from zoo.errors import InvalidInputError, UnknownNameError

Matrix: TypeAlias = Sequence[Sequence[float]]
Partition: TypeAlias = tuple[tuple[int, ...], ...]

Objective: TypeAlias = Literal["intra", "cut"]
Sizes: TypeAlias = Literal["pair", "half", "any"]
EdgeRule: TypeAlias = Literal["normalised", "max-inter", "min-intra"]

EXACT_PARTITIONS = 100_000
"""So many partitions are tried one by one; beyond, ``local_search`` is used."""


def intra_sum(distances: Matrix, partition: Partition) -> float:
    """Return the sum of D over pairs within a group."""
    return math.fsum(
        distances[i][j] for group in partition for i, j in combinations(sorted(group), 2)
    )


def inter_sum(distances: Matrix, partition: Partition) -> float:
    """Return the sum of D over pairs of two groups."""
    return math.fsum(
        distances[min(i, j)][max(i, j)]
        for first, second in combinations(partition, 2)
        for i in first
        for j in second
    )


def num_intra(partition: Partition) -> int:
    """Return the number of pairs within a group."""
    return sum(len(group) * (len(group) - 1) // 2 for group in partition)


def num_inter(partition: Partition) -> int:
    """Return the number of pairs of two groups."""
    return sum(len(first) * len(second) for first, second in combinations(partition, 2))


def cut_similarity(distances: Matrix, partition: Partition) -> float:
    """Return the similarity that a partition cuts: the sum of 1 - D over pairs of two groups."""
    return num_inter(partition) - inter_sum(distances, partition)


OBJECTIVES: Mapping[str, Callable[[Matrix, Partition], float]] = {
    "intra": intra_sum,
    "cut": cut_similarity,
}
"""What the groups minimise: ``intra`` as the official code does, ``cut`` as the paper says.

They agree where all partitions have groups of the same sizes."""


def group_sizes(n: int, groups: int, sizes: Sizes) -> list[tuple[int, ...]]:
    """Return the ascending sizes that the groups of ``n`` operations may have.

    ``pair`` is two operations and the rest (NAS-Bench-201), ``half`` at least two in each
    group (2 <= |S| <= n/2 for two groups, as on the DARTS space), ``any`` at least one.
    Where the operations are too few for two in each group, one is enough.

    Raises:
        UnknownNameError: There is no such rule.
        InvalidInputError: There are fewer operations than groups.
    """
    if sizes not in get_args(Sizes):
        raise UnknownNameError("rule of group sizes", sizes, get_args(Sizes))
    if groups < 2 or n < groups:
        raise InvalidInputError(f"{n} operations cannot be split into {groups} groups")
    least = 1 if sizes == "any" else min(2, n // groups)
    found = list(_ascending(n, groups, least))
    if sizes == "pair":
        if groups != 2:
            raise InvalidInputError(f"the rule 'pair' makes 2 groups, not {groups}")
        wanted = tuple(sorted((min(2, n - 1), n - min(2, n - 1))))
        found = [item for item in found if item == wanted]
    return found


def partitions(n: int, groups: int, sizes: Sizes) -> Iterator[Partition]:
    """Yield every partition of ``range(n)``, each once, in the order in which ties are decided.

    Groups are ascending, and stand in the order of their size, then of their first member.
    """
    for shape in group_sizes(n, groups, sizes):
        yield from _shaped(tuple(range(n)), shape)


def num_partitions(n: int, groups: int, sizes: Sizes) -> int:
    """Return how many partitions ``partitions`` yields, without making them."""
    total = 0
    for shape in group_sizes(n, groups, sizes):
        ways = math.factorial(n)
        for size in shape:
            ways //= math.factorial(size)
        for size in set(shape):
            ways //= math.factorial(shape.count(size))
        total += ways
    return total


def best_partition(
    distances: Matrix, groups: int, *, sizes: Sizes = "half", objective: Objective = "intra"
) -> Partition:
    """Return the groups of operations that minimise ``objective``; operations are 0 to n - 1.

    Exact by enumeration up to ``EXACT_PARTITIONS`` partitions; beyond that ``local_search``.

    Raises:
        UnknownNameError: There is no such objective or rule of sizes.
        InvalidInputError: D is not square, symmetric and finite, or too small.
    """
    n = _check(distances)
    if objective not in OBJECTIVES:
        raise UnknownNameError("objective of a partition", objective, OBJECTIVES)
    if num_partitions(n, groups, sizes) > EXACT_PARTITIONS:
        return local_search(distances, groups, sizes=sizes, objective=objective)
    score = OBJECTIVES[objective]
    return min(partitions(n, groups, sizes), key=lambda item: score(distances, item))


def local_search(
    distances: Matrix, groups: int, *, sizes: Sizes = "half", objective: Objective = "intra"
) -> Partition:
    """Return good groups of many operations: descents from n starts, the best of their ends.

    Each start gathers around another operation the ones nearest to it, then around the one
    farthest from what is gathered, and so on, in groups as equal as is legal; a descent then
    moves single operations and swaps pairs, the best change first, while that lowers the
    objective and sizes stay legal.
    """
    n, score = _check(distances), OBJECTIVES[objective]
    shapes = group_sizes(n, groups, sizes)
    legal = set(shapes)
    ends: list[tuple[float, Partition]] = []
    for seed in range(n):
        # The last shape is the most equal one: sizes ascend.
        at = _gathered(distances, seed, shapes[-1])
        value = score(distances, at)
        while True:
            options = [(score(distances, item), item) for item in _changes(at, legal)]
            best = min(options, default=(value, at))
            if not best[0] < value:
                break
            value, at = best
        ends.append((value, at))
    return min(ends)[1]


def edge_score(distances: Matrix, partition: Partition, rule: EdgeRule = "normalised") -> float:
    """Return by how much an edge asks to be split so; the largest wins.

    ``normalised`` is the mean distance between operations of two groups: the cut divided by
    its pairs. ``max-inter`` is its sum (official code, NAS-Bench-201 and once-for-all),
    ``min-intra`` minus the sum within groups (official code, DARTS and ProxylessNAS).

    Raises:
        UnknownNameError: There is no such rule.
    """
    if rule == "normalised":
        return inter_sum(distances, partition) / num_inter(partition)
    if rule == "max-inter":
        return inter_sum(distances, partition)
    if rule == "min-intra":
        return -intra_sum(distances, partition)
    raise UnknownNameError("rule of the edge", rule, get_args(EdgeRule))


def choose_edge(
    distances: Mapping[int, Matrix],
    groups: int,
    *,
    sizes: Sizes = "half",
    objective: Objective = "intra",
    rule: EdgeRule = "normalised",
) -> tuple[int, Partition]:
    """Return the edge to split and its groups; of equal edges the first given.

    Args:
        distances: Edge → D of its operations.
        groups: How many groups to make.
        sizes: Which sizes they may have.
        objective: What the groups minimise.
        rule: How edges compare.

    Raises:
        InvalidInputError: There is no edge, or one has too few operations.
    """
    if not distances:
        raise InvalidInputError("no edge is left to split; split fewer times")
    found = {
        edge: best_partition(matrix, groups, sizes=sizes, objective=objective)
        for edge, matrix in distances.items()
    }
    best = max(found, key=lambda edge: edge_score(distances[edge], found[edge], rule))
    return best, found[best]


def _check(distances: Matrix) -> int:
    n = len(distances)
    if any(len(row) != n for row in distances):
        raise InvalidInputError("the distances are no square matrix")
    for i, j in combinations(range(n), 2):
        if not math.isfinite(distances[i][j]) or distances[i][j] != distances[j][i]:
            raise InvalidInputError(
                f"the distances of operations {i} and {j} are {distances[i][j]} and "
                f"{distances[j][i]}; they must be finite and equal"
            )
    return n


def _ascending(n: int, groups: int, least: int) -> Iterator[tuple[int, ...]]:
    if groups == 1:
        yield (n,)
        return
    for first in range(least, n // groups + 1):
        for rest in _ascending(n - first, groups - 1, first):
            yield (first, *rest)


def _shaped(members: tuple[int, ...], shape: tuple[int, ...]) -> Iterator[Partition]:
    """Yield partitions of ``members`` into groups of these ascending sizes."""
    size, rest = shape[0], shape[1:]
    if not rest:
        yield (members,)
        return
    for group in combinations(members, size):
        others = tuple(item for item in members if item not in group)
        for following in _shaped(others, rest):
            # Groups of one size come in the order of their first members.
            if len(following[0]) > size or group[0] < following[0][0]:
                yield (group, *following)


def _gathered(distances: Matrix, seed: int, shape: tuple[int, ...]) -> Partition:
    free, centre, groups = set(range(len(distances))), seed, []
    taken: list[int] = []
    for size in shape:
        near = sorted(free - {centre}, key=lambda item: (distances[centre][item], item))
        group = sorted((centre, *near[: size - 1]))
        groups.append(tuple(group))
        taken += group
        free -= set(group)
        if free:
            gaps = {item: math.fsum(distances[item][other] for other in taken) for item in free}
            centre = max(sorted(gaps), key=gaps.__getitem__)
    return _canonical(groups)


def _changes(partition: Partition, legal: set[tuple[int, ...]]) -> Iterator[Partition]:
    """Yield what moving one operation, or swapping two, makes of a partition."""
    for a, b in combinations(range(len(partition)), 2):
        rest = [group for at, group in enumerate(partition) if at not in (a, b)]
        first, second = set(partition[a]), set(partition[b])
        moves: list[tuple[set[int], set[int]]] = [({item}, set()) for item in first]
        moves += [(set(), {item}) for item in second]
        swaps = [({item}, {other}) for item in first for other in second]
        for out, back in [*moves, *swaps]:
            changed = [(first - out) | back, (second - back) | out]
            candidate = _canonical([*rest, *(tuple(sorted(group)) for group in changed)])
            if tuple(len(group) for group in candidate) in legal:
                yield candidate


def _canonical(groups: Sequence[tuple[int, ...]]) -> Partition:
    return tuple(sorted(groups, key=lambda group: (len(group), group)))
