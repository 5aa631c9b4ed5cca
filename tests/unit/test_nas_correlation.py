"""Rank correlations and true ranks: by their formulae, and equal to SciPy's."""

from __future__ import annotations

from itertools import combinations
from math import sqrt

import numpy as np
import pytest
from scipy import stats

from nas.correlation import correlations, true_rank
from zoo.errors import InvalidInputError

PREDICTED = [0.1, 0.4, 0.4, 0.2, 0.9, 0.7, 0.3]
ACTUAL = [70.0, 72.0, 75.0, 71.0, 80.0, 75.0, 75.0]


def test_kendall_counts_pairs_and_accounts_for_ties() -> None:
    signs = [
        (np.sign(PREDICTED[i] - PREDICTED[j]), np.sign(ACTUAL[i] - ACTUAL[j]))
        for i, j in combinations(range(len(ACTUAL)), 2)
    ]
    agreement = sum(a * b for a, b in signs)
    untied = [sum(pair[side] != 0 for pair in signs) for side in (0, 1)]
    found = correlations(PREDICTED, ACTUAL)
    assert found.kendall == pytest.approx(agreement / sqrt(untied[0] * untied[1]))


def test_spearman_is_pearson_of_mean_ranks() -> None:
    ranks = [stats.rankdata(values) for values in (PREDICTED, ACTUAL)]
    found = correlations(PREDICTED, ACTUAL)
    assert found.spearman == pytest.approx(np.corrcoef(ranks[0], ranks[1])[0, 1])
    assert found.pearson == pytest.approx(np.corrcoef(PREDICTED, ACTUAL)[0, 1])


def test_all_three_equal_scipys_on_many_networks() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=3000).round(2)
    guess = truth + rng.normal(size=3000)
    found = correlations(guess, truth)
    assert found.kendall == stats.kendalltau(guess, truth).statistic
    assert found.spearman == stats.spearmanr(guess, truth).statistic
    assert found.pearson == stats.pearsonr(guess, truth).statistic


def test_equal_networks_share_the_better_rank() -> None:
    assert [true_rank(ACTUAL, at) for at in (4, 2, 5, 0)] == [1, 2, 2, 7]


@pytest.mark.parametrize("other", [[1.0], [1.0, 2.0, 3.0], [2.0, 2.0], [1.0, float("nan")]])
def test_what_cannot_be_correlated_is_refused(other: list[float]) -> None:
    with pytest.raises(InvalidInputError):
        correlations([1.0, 2.0], other)
