"""Requests as text: what is read, what is refused, and that writing inverts reading."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ui.commands.search import request, search_run
from ui.request_text import (
    changed,
    limit,
    limit_texts,
    limits,
    read_spec,
    recipe,
    search_command,
    settings,
)
from zoo.errors import InvalidInputError, MissingDataError
from zoo.jobs import JobKind
from zoo.schemas import METRICS, parse_request


def test_settings_are_json_where_they_can_be() -> None:
    assert settings(["a=3", "b=[1, 2]", "c=text", "d=null", "e=x=y"]) == {
        "a": 3,
        "b": [1, 2],
        "c": "text",
        "d": None,
        "e": "x=y",
    }


@pytest.mark.parametrize("text", ["nothing", "=3", ""])
def test_a_setting_without_name_or_value_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="name=value"):
        settings([text])


def test_limits_read_as_people_write_them() -> None:
    assert limit("latency_ms<=3") == {"metric": "latency_ms", "max": 3.0}
    assert limit(" accuracy >= 0.9 ") == {"metric": "accuracy", "min": 0.9}
    assert limit("flops<=1e6") == {"metric": "flops", "max": 1e6}


@pytest.mark.parametrize("text", ["latency_ms<3", "latency_ms", "<=3", "latency_ms<=e", "a<=1<=2"])
def test_a_limit_that_reads_otherwise_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidInputError, match="latency_ms<=3"):
        limit(text)


@given(st.sampled_from(list(METRICS)), st.floats(0, 1e12), st.sampled_from(["max", "min"]))
def test_writing_a_limit_inverts_reading_it(metric: str, bound: float, kind: str) -> None:
    (text,) = limit_texts({"metric": metric, kind: bound})
    assert limit(text) == {"metric": metric, kind: bound}


def test_two_bounds_on_one_metric_are_one_limit_and_a_third_is_refused() -> None:
    assert limits(["flops>=1", "flops<=2"]) == [{"metric": "flops", "min": 1.0, "max": 2.0}]
    with pytest.raises(InvalidInputError, match="second max"):
        limits(["flops<=1", "flops<=2"])


def test_changes_reach_into_a_request_and_leave_it_as_it_was() -> None:
    spec = {"method": {"name": "nsga2", "params": {"candidates": 24}}, "seed": 0}
    assert changed(spec, ["method.params.candidates=40", "recipe.epochs=5", "seed=1"]) == {
        "method": {"name": "nsga2", "params": {"candidates": 40}},
        "recipe": {"epochs": 5},
        "seed": 1,
    }
    assert spec["method"] == {"name": "nsga2", "params": {"candidates": 24}}
    with pytest.raises(InvalidInputError, match=r"seed\.deep"):
        changed(spec, ["seed.deep=1"])


def test_a_preset_replaces_a_recipe_but_for_what_is_changed_beside_it() -> None:
    spec = {"recipe": {"epochs": 3, "lr": 0.5}, "final_recipe": {"epochs": 12}}
    assert changed(spec, ["recipe.preset=darts-cifar"]) == {"recipe": {"preset": "darts-cifar"}}
    pairs = ["final_recipe.preset=darts-cifar", "final_recipe.epochs=5"]
    expected = {"final_recipe": {"preset": "darts-cifar", "epochs": 5}}
    assert changed(spec, pairs) == changed(spec, pairs[::-1]) == expected
    mbconv = {"space": {"name": "mbconv", "params": {"stem": 4}}}
    params = {"stem": 4, "preset": "cifar"}  # of a space a preset is a setting among others
    assert changed(mbconv, ["space.params.preset=cifar"])["space"]["params"] == params


def test_specs_are_read_from_json_and_yaml(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"data": "digits"}')
    (tmp_path / "a.yaml").write_text("data: digits\n")
    assert read_spec(tmp_path / "a.json") == read_spec(tmp_path / "a.yaml") == {"data": "digits"}


@pytest.mark.parametrize(
    ("name", "text"), [("a.json", "{"), ("a.json", "[]"), ("a.yaml", "a: [1"), ("a.yaml", "- 1")]
)
def test_a_spec_that_is_no_object_names_its_file(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InvalidInputError, match=name):
        read_spec(tmp_path / name)


def test_a_missing_spec_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="absent"):
        read_spec(tmp_path / "absent.json")


SPECS: list[dict[str, Any]] = [
    {"method": {"name": "random"}, "space": {"name": "darts"}, "data": "digits"},
    {
        "method": {"name": "nsga2", "params": {"candidates": 40, "note": "12", "text": "a b"}},
        "space": {"name": "darts", "params": {"ops": ["none", "skip_connect"], "cells": 2}},
        "data": "npz:my data.npz",
        "objectives": ["accuracy", "flops"],
        "limits": [{"metric": "latency_ms", "max": 2.5, "min": 0.25}],
        "device": "cuda:0",
        "batch": 8,
        "runtime": "onnx",
        "recipe": {"epochs": 2, "lr": 0.1, "augment": False},
        "final_recipe": {"epochs": 30},
        "winners": 3,
        "baseline": True,
        "reuse": False,
        "seed": 7,
        "max_candidate_s": 60.0,
        "max_memory_bytes": 1_000_000_000,
    },
]


@pytest.mark.parametrize("spec", SPECS)
def test_the_command_line_that_is_shown_submits_the_same_request(spec: dict[str, Any]) -> None:
    words = shlex.split(search_command(spec))
    assert words[:3] == ["blockyard", "search", "run"]
    with search_run.make_context("run", words[3:]) as context:
        again = request(context.params)
    wanted = parse_request(JobKind.SEARCH, spec)
    assert parse_request(JobKind.SEARCH, again) == wanted
    full = wanted.model_dump(mode="json")
    assert shlex.split(search_command(full)) == words


def test_a_preset_stands_for_all_fields_but_those_that_are_given_with_it() -> None:
    assert recipe(None, {"lr": 0.1}, epochs=12) == {"epochs": 12, "lr": 0.1}
    filed = {"preset": "pc-darts-cifar"}
    assert recipe(filed, {"lr": 0.1}, epochs=12) == {"preset": "pc-darts-cifar", "lr": 0.1}
    given = {"preset": "nasnet-cifar", "epochs": 3}
    assert recipe({"epochs": 9, "lr": 1.0}, given, epochs=12) == given
    with pytest.raises(InvalidInputError, match="'pc-darts-cifar'; give a mapping"):
        recipe("pc-darts-cifar", {"lr": 0.1}, epochs=12)


def test_a_setting_that_has_no_json_form_is_refused_and_does_not_become_null() -> None:
    spec = SPECS[0] | {"method": {"name": "snas", "params": settings(["tau_min=NaN"])}}
    with pytest.raises(InvalidInputError, match="setting of 'snas' is no JSON: nan"):
        parse_request(JobKind.SEARCH, spec)
