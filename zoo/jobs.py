"""Jobs: their states, who may move them where, and the names of the messages about them.

The row in SQL is the truth. A message carries a job id and nothing else, may be lost,
doubled or late, and is only a hint to look at the row.
"""

from __future__ import annotations

import enum
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

from zoo.canonical import Json, plain
from zoo.errors import IllegalTransitionError

RUN_JOB = "workers.run_job"
"""Name of the one message: ``(job_id,)``; the worker finds all else in SQL."""

MAX_ATTEMPTS = 3
"""Attempts after which a job or candidate that keeps killing its worker is quarantined."""


class JobKind(enum.StrEnum):
    """What a job does; ``workers`` has one function for each."""

    SEARCH = "search"
    TRAIN = "train"
    PREVIEW = "preview"
    PROFILE = "profile"
    MEASURE = "measure"
    ASSEMBLE = "assemble"
    COST_TABLE = "cost-table"
    FRONTS = "fronts"


class JobState(enum.StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self in FINAL


FINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})

TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset(
        {JobState.RUNNING, JobState.PAUSED, JobState.CANCELLED, JobState.FAILED}
    ),
    JobState.RUNNING: frozenset(
        {
            JobState.QUEUED,
            JobState.PAUSED,
            JobState.SUCCEEDED,
            JobState.FAILED,
            JobState.CANCELLED,
        }
    ),
    JobState.PAUSED: frozenset({JobState.QUEUED, JobState.CANCELLED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}


def check_transition(job_id: str, present: JobState, wanted: JobState) -> None:
    """Raise unless a job may go from ``present`` to ``wanted``.

    Raises:
        IllegalTransitionError: It may not; the message says where it may go.
    """
    allowed = TRANSITIONS[present]
    if wanted not in allowed:
        choices = ", ".join(sorted(allowed)) or "nothing: this state is final"
        raise IllegalTransitionError(
            f"job {job_id} is {present} and cannot become {wanted}; it can become {choices}"
        )


class JobRequest(enum.StrEnum):
    """What somebody asked of a running job; its worker obeys at the next step."""

    CANCEL = "cancel"
    PAUSE = "pause"


def new_job_id() -> str:
    """Return a fresh id, ``job_`` and a random UUID."""
    return f"job_{uuid.uuid4()}"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One unit of work as SQL knows it; a snapshot, never updated in place.

    ``spec`` is the validated request, ``progress`` what the page shows
    (``{"step", "total", "message", "eta_s"}``), ``token`` the fencing token of the
    present or last claim: results under an older one are refused. ``shares`` says whether
    it takes evaluations from other owners' jobs and gives them its own.
    """

    id: str
    kind: JobKind
    state: JobState
    spec: Mapping[str, Json]
    owner: str = "local"
    shares: bool = True
    name: str = ""
    device: str | None = None
    reason: str | None = None
    request: JobRequest | None = None
    progress: Mapping[str, Json] = field(default_factory=dict)
    result: Mapping[str, Json] | None = None
    attempt: int = 0
    token: int = 0
    worker: str | None = None
    lease_expires_at: datetime | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None

    def to_json(self) -> dict[str, Json]:
        def when(moment: datetime | None) -> str | None:
            return moment.isoformat() if moment else None

        return {
            "id": self.id,
            "kind": str(self.kind),
            "state": str(self.state),
            "spec": plain(self.spec),
            "owner": self.owner,
            "shares": self.shares,
            "name": self.name,
            "device": self.device,
            "reason": self.reason,
            "request": str(self.request) if self.request else None,
            "progress": plain(self.progress),
            "result": plain(self.result),
            "attempt": self.attempt,
            "token": self.token,
            "worker": self.worker,
            "lease_expires_at": when(self.lease_expires_at),
            "created_at": when(self.created_at),
            "started_at": when(self.started_at),
            "finished_at": when(self.finished_at),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        def moment(value: str | None) -> datetime | None:
            return datetime.fromisoformat(value) if value else None

        times = ("lease_expires_at", "created_at", "started_at", "finished_at")
        typed = {
            "kind": JobKind(data["kind"]),
            "state": JobState(data["state"]),
            "request": JobRequest(data["request"]) if data["request"] else None,
        }
        return cls(**(dict(data) | typed | {name: moment(data[name]) for name in times}))


class CandidateState(enum.StrEnum):
    """Where one candidate of a job stands."""

    RUNNING = "running"
    EVALUATED = "evaluated"
    FAILED = "failed"


class Arm(enum.StrEnum):
    """Which side of the comparison a candidate belongs to."""

    SEARCH = "search"
    BASELINE = "baseline"
    WINNER = "winner"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An architecture within a job.

    ``number`` counts from 0 within ``(job, arm)``. ``repeats`` is the number of evaluations
    that ``metrics`` are the mean of, ``spread`` their sample standard deviations, from two on.
    ``reused_from`` names the job whose evaluation was taken instead of training again;
    ``saved_s`` is what that saved. Of another owner's job only ``reused`` is told.
    ``chain`` is set for winners: the id under which the trained network is in the zoo.
    """

    job: str
    number: int
    architecture: Mapping[str, Json]
    architecture_id: str
    arm: Arm = Arm.SEARCH
    state: CandidateState = CandidateState.RUNNING
    signature: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    spread: Mapping[str, float] = field(default_factory=dict)
    repeats: int = 0
    feasible: bool = True
    reason: str | None = None
    attempt: int = 0
    reused_from: str | None = None
    reused: bool = False
    saved_s: float = 0.0
    cost_s: float = 0.0
    chain: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "reused", self.reused or self.reused_from is not None)

    def to_json(self) -> dict[str, Json]:
        return {
            "job": self.job,
            "number": self.number,
            "architecture": plain(self.architecture),
            "architecture_id": self.architecture_id,
            "arm": str(self.arm),
            "state": str(self.state),
            "signature": self.signature,
            "metrics": plain(self.metrics),
            "spread": plain(self.spread),
            "repeats": self.repeats,
            "feasible": self.feasible,
            "reason": self.reason,
            "attempt": self.attempt,
            "reused_from": self.reused_from,
            "reused": self.reused,
            "saved_s": self.saved_s,
            "cost_s": self.cost_s,
            "chain": self.chain,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        typed = {"arm": Arm(data["arm"]), "state": CandidateState(data["state"])}
        return cls(**(dict(data) | typed))
