"""States that are another method's, or none: refused in words, by all that share a supernet."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nas.data import DataSet, load_dataset
from nas.plugins import MethodContext, make_method
from nas.spaces.nasbench201 import NasBench201Space
from zoo.errors import InvalidInputError

NAMES = ("darts", "snas", "rsps")


@pytest.fixture(scope="module")
def data() -> DataSet:
    whole = load_dataset("digits", root=None, seed=0)
    train = replace(whole.train, images=whole.train.images[:16], labels=whole.train.labels[:16])
    return replace(whole, train=train)


def search(name: str, data: DataSet) -> Any:
    context = MethodContext(space=NasBench201Space(channels=2, cells=1), seed=1, data=data)
    return make_method(name, {"epochs": 1, "batch_size": 4}, context)


@pytest.mark.parametrize("own", NAMES)
@pytest.mark.parametrize("other", NAMES)
def test_a_state_of_another_method_is_refused(own: str, other: str, data: DataSet) -> None:
    first, second = search(other, data), search(own, data)
    first.step()
    if own == other:
        second.load_state_dict(first.state_dict())
        return
    with pytest.raises(InvalidInputError, match=f"not of a {second.name} .* one of {first.name}"):
        second.load_state_dict(first.state_dict())


@pytest.mark.parametrize("state", [None, [], "text", {}, {"step": "x"}])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_state_is_refused(name: str, state: Any, data: DataSet) -> None:
    with pytest.raises(InvalidInputError, match="this state is not of a"):
        search(name, data).load_state_dict(state)


def test_a_state_of_rsps_without_its_contest_is_refused(data: DataSet) -> None:
    made = search("rsps", data)
    state = made.state_dict()
    for broken in ({"selected": None}, {"contest": {"rung": 1}}):
        with pytest.raises(InvalidInputError, match="not of an RSPS search"):
            made.load_state_dict(state | broken)
