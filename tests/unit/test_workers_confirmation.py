"""Hits of the functional hash: identity is trusted, a proof is compared, the rest refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.confirmation import Known, compare
from zoo.certificates import Proof, Signature
from zoo.spec import Evaluation
from zoo.store import open_store
from zoo.store.protocols import Claimed, EvaluationStore, Store


def known(architecture: str, *values: float, alternates: tuple[str, ...] = ()) -> Known:
    signature = Signature(key=f"sig-{architecture}", alternates=alternates)
    proof = Proof(probe="p", values=values) if values else None
    return Known(architecture_id=architecture, signature=signature, proof=proof)


@pytest.fixture
def evaluations(store: Store) -> EvaluationStore:
    return store.evaluations


def put(evaluations: EvaluationStore, made_by: Known) -> None:
    claim = evaluations.claim("k", job="job_a", lease_s=60)
    assert isinstance(claim, Claimed)
    result = Evaluation(metrics={"accuracy": 0.5}, cost_s=1.0)
    info = made_by.info(made_by.signature.key)
    evaluations.finish("k", claim.token, result, info=info)


def test_the_same_architecture_needs_no_certificate(evaluations: EvaluationStore) -> None:
    put(evaluations, known("a", 1.0, 2.0))
    assert known("a").matches(evaluations, "k") is None
    assert "certificates" not in evaluations.info("k")


def test_another_architecture_is_confirmed_or_refused_and_the_certificate_kept(
    evaluations: EvaluationStore,
) -> None:
    put(evaluations, known("a", 1.0, 2.0))
    same = known("b", 1.0, 2.0 + 1e-13).matches(evaluations, "k")
    other = known("c", 1.0, 2.001).matches(evaluations, "k")
    unproven = known("d").matches(evaluations, "k")
    assert same is not None
    assert other is not None
    assert unproven is not None
    assert (same.confirmed, other.confirmed, unproven.confirmed) == (True, False, False)
    kept = evaluations.info("k")["certificates"]
    assert kept == {"b": same.to_json(), "c": other.to_json(), "d": unproven.to_json()}
    assert kept["b"]["deviation"] == pytest.approx(5e-14, rel=0.1)
    # Asked again, the store answers.
    assert known("b").matches(evaluations, "k") == same


def test_a_hash_next_door_is_looked_up(evaluations: EvaluationStore) -> None:
    put(evaluations, known("a", 1.0))
    assert known("b", 1.0, alternates=("x", "sig-a")).found_in(evaluations) == "sig-a"
    assert known("b", 1.0, alternates=("x",)).found_in(evaluations) == "sig-b"


def test_a_missing_proof_confirms_nothing() -> None:
    assert not compare(None, Proof(probe="p", values=(1.0,)).to_json()).confirmed
    assert not compare(Proof(probe="p", values=(1.0,)), None).confirmed


def test_the_store_outlives_the_process_that_certified(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/zoo.db"
    first = open_store(url)
    put(first.evaluations, known("a", 1.0))
    certificate = known("b", 1.0).matches(first.evaluations, "k")
    first.close()
    second = open_store(url)
    assert known("b").matches(second.evaluations, "k") == certificate
    second.close()
