"""Names to chains: aliases, canaries, prefixes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.router import Router
from zoo.errors import InvalidInputError, NotFoundError

CHAINS = ("aaaa0000aaaa", "aaaa0000bbbb", "cccc1111cccc")
A, B, C = CHAINS


def test_a_chain_answers_to_its_id_its_alias_and_a_unique_prefix() -> None:
    router = Router(CHAINS, {"digits": C})
    assert router.route(A) == A
    assert router.route("digits") == C
    assert router.route("cccc1111") == C


@pytest.mark.parametrize("name", ["nobody", "aaaa0000", "cccc", ""])
def test_an_unknown_or_ambiguous_name_lists_what_there_is(name: str) -> None:
    with pytest.raises(NotFoundError, match=f"digits, {A}, {B}, {C}"):
        Router(CHAINS, {"digits": C}).route(name)


@given(st.floats(0, 1, exclude_max=True))
def test_a_draw_below_the_share_goes_to_the_canary_and_equal_draws_go_alike(draw: float) -> None:
    router = Router(CHAINS, {"digits": {A: 1, B: 3}})
    assert router.route("digits", draw) == (A if draw < 0.25 else B)


@given(
    st.dictionaries(st.sampled_from(CHAINS), st.floats(0, 1e6), min_size=1).filter(
        lambda shares: sum(shares.values()) > 0
    ),
    st.floats(0, 1, exclude_max=True),
)
def test_only_chains_with_a_share_are_chosen(shares: dict[str, float], draw: float) -> None:
    assert shares[Router(CHAINS, {"m": shares}).route("m", draw)] > 0


def test_wrong_aliases_and_draws_are_refused() -> None:
    with pytest.raises(NotFoundError, match="not there"):
        Router(CHAINS, {"m": "gone"})
    for shares in ({A: -1.0, B: 2.0}, {A: 0.0}, {A: float("nan")}, {}):
        with pytest.raises(InvalidInputError, match="'m'"):
            Router(CHAINS, {"m": shares})
    with pytest.raises(InvalidInputError, match="draw"):
        Router(CHAINS).route(A, 1.0)
