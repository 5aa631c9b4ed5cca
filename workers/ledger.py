"""What the candidates of one job have shown so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from nas.dedup import Deduping
from workers.confirmation import Known, compare
from zoo.jobs import Arm, Candidate, CandidateState
from zoo.spec import Architecture

IDENTITIES = 256
"""Candidates whose identity is remembered, lest a proposal be hashed again to be scored."""


@dataclass(frozen=True)
class Ledger:
    """What a job's candidates have shown so far, shared by its arms.

    ``memories`` are what each arm remembers of its scores. ``poison`` is signature → who
    failed, and ``proofs`` is what is known of those. By architecture id, ``signatures`` are
    those under which evaluations are kept, and ``identities`` the latest that were asked for.
    ``costs`` is what was counted of each network that is built.
    """

    memories: dict[Arm, Deduping[Architecture]] = field(default_factory=dict)
    poison: dict[str, Candidate] = field(default_factory=dict)
    proofs: dict[str, Known] = field(default_factory=dict)
    signatures: dict[str, str] = field(default_factory=dict)
    identities: dict[str, Known] = field(default_factory=dict)
    costs: dict[str, Mapping[str, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, candidates: Iterable[Candidate]) -> Ledger:
        """Return what is on record."""
        ledger = cls()
        for candidate in candidates:
            ledger.add(candidate)
        return ledger

    def add(self, candidate: Candidate) -> None:
        """Learn how a candidate ended."""
        if candidate.signature is None:
            return
        self.signatures[candidate.architecture_id] = candidate.signature
        if candidate.state is CandidateState.FAILED:
            self.poison.setdefault(candidate.signature, candidate)

    def identify(self, known: Known) -> None:
        """Remember an identity in place of the oldest."""
        while len(self.identities) >= IDENTITIES:
            del self.identities[next(iter(self.identities))]
        self.identities[known.architecture_id] = known

    def why_refused(self, signature: str, known: Known) -> str | None:
        """Return why a network failed that is surely the same, or None if none did."""
        failed = self.poison.get(signature)
        if failed is None:
            return None
        other = self.proofs.get(signature)
        same = failed.architecture_id == known.architecture_id
        if not same and other is not None and other.proof is not None:
            same = compare(known.proof, other.proof.to_json()).confirmed
        return (failed.reason or "failed") if same else None
