"""Content ids: equal values give equal ids, and different values different ones."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.canonical import canonical_json, content_id, plain
from zoo.errors import InvalidInputError
from zoo.spec import Architecture, Block, BlockSpec, Chain, TensorSpec

numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(codec="utf-8"), max_size=8)
documents = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def shuffled(value: Any) -> Any:
    """Return an equal document with keys in reverse and tuples for lists."""
    if isinstance(value, Mapping):
        return {key: shuffled(value[key]) for key in reversed(list(value))}
    if isinstance(value, list):
        return tuple(shuffled(item) for item in value)
    return value


@given(documents)
def test_order_and_container_types_do_not_matter(value: Any) -> None:
    assert canonical_json(shuffled(value)) == canonical_json(value)


@given(documents)
def test_a_round_trip_through_json_keeps_the_id(value: Any) -> None:
    assert content_id(json.loads(canonical_json(value))) == content_id(value)
    assert content_id(json.loads(json.dumps(value))) == content_id(value)
    assert content_id(plain(value)) == content_id(value)


def same(left: Any, right: Any) -> bool:
    """Compare as JSON does: true is not 1, and 1.0 is 1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


@given(documents, documents)
def test_ids_are_equal_exactly_where_documents_are(left: Any, right: Any) -> None:
    assert (content_id(left) == content_id(right)) == same(left, right)


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, {1: 2}, {"a": {None: 1}}, object(), b"x", {1}]
)
def test_what_is_not_json_has_no_id(value: object) -> None:
    with pytest.raises(InvalidInputError):
        content_id(value)
    with pytest.raises(InvalidInputError):
        content_id([{"deep": value}])


def test_an_id_is_the_same_in_a_process_with_another_hash_seed() -> None:
    code = "from zoo.canonical import content_id; print(content_id({'b': [1.0, 'ü'], 'a': {}}))"
    ids = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert ids == {content_id({"a": {}, "b": (1, "ü")})}


shapes = st.lists(st.none() | st.integers(1, 64), max_size=4).map(tuple)
tensors = st.builds(
    TensorSpec, shape=shapes, dtype=st.sampled_from(["float32", "float16", "int64"])
)
params = st.dictionaries(texts, documents, max_size=3)
specs = st.builds(
    BlockSpec,
    op=texts,
    params=params,
    inputs=st.lists(tensors, min_size=1, max_size=2).map(tuple),
    outputs=st.lists(tensors, min_size=1, max_size=2).map(tuple),
)


@given(specs)
def test_a_spec_survives_json_with_its_id(spec: BlockSpec) -> None:
    again = BlockSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again.id == spec.id
    assert hash(again) == hash(spec)


@given(specs, st.sampled_from(["op", "params", "inputs", "outputs"]))
def test_every_field_of_a_spec_is_part_of_its_id(spec: BlockSpec, field: str) -> None:
    changed = dict(spec.to_json())
    extra: dict[str, Any] = {
        "op": spec.op + "x",
        "params": {**spec.params, "one more": 1, "and one": 2},
        "inputs": [*changed["inputs"], {"shape": [1], "dtype": "bool"}],  # type: ignore[misc]
        "outputs": [*changed["outputs"], {"shape": [1], "dtype": "bool"}],  # type: ignore[misc]
    }
    changed[field] = extra[field]
    assert BlockSpec.from_json(changed).id != spec.id


@given(st.lists(st.integers(0, 9), max_size=6).map(tuple), params)
def test_an_architecture_survives_json_with_its_id(choices: tuple[int, ...], space: Any) -> None:
    architecture = Architecture(space=space, choices=choices)
    again = Architecture.from_json(json.loads(json.dumps(architecture.to_json())))
    assert again.id == architecture.id


def test_what_is_no_part_of_an_identity_does_not_change_it() -> None:
    interface = (TensorSpec(shape=(4,)),)
    spec = BlockSpec(op="o", inputs=interface, outputs=interface)
    block = Block(spec=spec, weights="a" * 64, num_params=1, size_bytes=4)
    signed = Block(spec=spec, weights="a" * 64, num_params=1, size_bytes=4, signature="s")
    other = Block(spec=spec, weights="b" * 64, num_params=1, size_bytes=4)
    assert block.id == signed.id != other.id
    assert Chain(blocks=(block, other)).id == Chain(blocks=(signed, other), card={"x": 1}).id
    assert Chain(blocks=(block, other)).id != Chain(blocks=(other, block)).id
