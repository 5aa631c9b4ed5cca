"""What a candidate is known by, and whether a hit of its functional hash may be trusted.

A hash finds; it does not decide. An evaluation that was made of the very same architecture
is taken as it is. One of another architecture is taken if the proofs of both agree; the
certificate of that comparison is kept with the evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from zoo.canonical import Json
from zoo.certificates import Certificate, Proof, Signature
from zoo.store.protocols import EvaluationStore


@dataclass(frozen=True, kw_only=True)
class Known:
    """A candidate's identities: canonical, and functional where there is one.

    ``network`` is the digest of what is built of it. Networks of one signature may differ in
    it, and so in all that they cost.
    """

    architecture_id: str
    signature: Signature
    proof: Proof | None = None
    network: str | None = None

    @classmethod
    def from_json(cls, architecture_id: str, head: Mapping[str, Any]) -> Self:
        """Read the trainer's answer."""
        return cls(
            architecture_id=architecture_id,
            signature=Signature(key=head["signature"], alternates=tuple(head["alternates"])),
            proof=Proof.from_json(head["proof"]),
            network=head["network"],
        )

    def found_in(self, evaluations: EvaluationStore, *, scope: str | None = None) -> str:
        """Return the hash under which the store knows this in a scope, own or next door."""
        keys = (self.signature.key, *self.signature.alternates)
        if len(keys) == 1:
            return keys[0]
        return next((key for key in keys if evaluations.find(key, scope=scope)), keys[0])

    def info(self, signature: str) -> dict[str, Any]:
        """Return what an evaluation keeps of it."""
        proof = self.proof.to_json() if self.proof else None
        return {"signature": signature, "architecture": self.architecture_id, "proof": proof}

    def matches(self, evaluations: EvaluationStore, key: str) -> Certificate | None:
        """Return the certificate of a hit, kept with it; None where identity needs none."""
        info = evaluations.info(key)
        if info.get("architecture") == self.architecture_id:
            return None
        known = info.get("certificates", {}).get(self.architecture_id)
        if known is not None:
            return Certificate(**known)
        certificate = compare(self.proof, info.get("proof"))
        evaluations.certify(key, self.architecture_id, certificate.to_json())
        return certificate


def compare(ours: Proof | None, theirs: Mapping[str, Json] | None) -> Certificate:
    """Compare two proofs; one that is missing confirms nothing."""
    if ours is None or theirs is None:
        return Certificate(
            confirmed=False, probe="", bits=0, deviation=None, reason="a proof is missing"
        )
    return ours.compare(Proof.from_json(theirs))
