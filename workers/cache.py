"""The evaluations that a job takes and gives: each key once, whoever asks for it first.

A key is the content of all that determines a score: what is computed, the task and its data,
the recipe, the seed and the number of the repeat, the code's version, and the scope. Whoever
does not share has a scope, and so keys of its own: nothing that others evaluate or wait for
can be seen there, neither by a count nor by the time that an answer takes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from workers.confirmation import Known
from workers.context import JobContext
from zoo.canonical import Json, content_id, plain
from zoo.errors import StaleTokenError
from zoo.jobs import Job
from zoo.spec import Evaluation
from zoo.store.protocols import Claimed


class UnconfirmedError(Exception):
    """What was found under a signature is not surely of the same network."""


@dataclass(frozen=True)
class Found:
    """An evaluation, and whether it was there: made before, or by somebody waited for.

    ``own`` says that it was made of the very architecture that asked.
    """

    evaluation: Evaluation
    reused: bool
    own: bool = True

    def by(self, job: str) -> bool:
        """Say whether ``job`` paid for it."""
        return self.evaluation.job == job


class Cache:
    """What one job knows of all evaluations.

    Args:
        context: The job; while it waits for another one, it helps and can be stopped.
        scope: Who alone finds what is made here; everybody if None.
    """

    def __init__(self, context: JobContext, *, scope: str | None = None) -> None:
        self._context = context
        self._scope = scope
        self._evaluations = context.store.evaluations

    def key(self, terms: Mapping[str, Json]) -> str:
        """Return the key of an evaluation; ``terms`` are all that determines its scores."""
        scope: dict[str, Json] = {} if self._scope is None else {"scope": self._scope}
        return content_id(plain({**terms, **scope}))

    def get(self, terms: Mapping[str, Json]) -> Evaluation | None:
        """Return an evaluation if it is there."""
        return self._evaluations.get(self.key(terms))

    def signature(self, known: Known) -> str:
        """Return the hash under which a candidate is kept: its own, or one next door."""
        return known.found_in(self._evaluations, scope=self._scope)

    def once(
        self,
        terms: Mapping[str, Json],
        info: Mapping[str, Any],
        known: Known | None,
        compute: Callable[[], Evaluation],
    ) -> Found:
        """Return an evaluation: the one that is there, or made now, or awaited.

        Args:
            terms: All that determines its scores.
            info: What is kept with it.
            known: Whose hit must be confirmed; None where the key is an identity.
            compute: Makes it.

        Raises:
            UnconfirmedError: It is there, but not surely of the same network.
            JobStoppedError: The job was told to stop.
            StaleTokenError: The job was taken over, and with it what it had claimed.
        """
        key, session = self.key(terms), self._context.session
        while True:
            found = self._evaluations.claim(
                key, job=session.job.id, token=session.token, lease_s=session.timing.lease_s
            )
            if isinstance(found, Evaluation):
                own = known is None or self._confirm(known, key)
                return Found(found, reused=True, own=own)
            if isinstance(found, Claimed):
                made = self._make(found, info, compute)
                if made is not None:
                    return Found(made, reused=False)
            else:
                self._context.help()
                session.pause(session.timing.poll_s)
            session.check()

    def _make(
        self, claim: Claimed, info: Mapping[str, Any], compute: Callable[[], Evaluation]
    ) -> Evaluation | None:
        """Evaluate what was claimed; None if another job took the claim over meanwhile."""
        with self._context.session.claim(claim.key, claim.token):
            try:
                made = compute()
            except BaseException:
                with contextlib.suppress(StaleTokenError):
                    self._evaluations.abandon(claim.key, claim.token)
                raise
            kept = {**info, "scope": self._scope}
            with contextlib.suppress(StaleTokenError):
                self._evaluations.finish(claim.key, claim.token, made, info=kept)
                return made
        return None

    def _confirm(self, known: Known, key: str) -> bool:
        """Say whether a hit is of the same architecture; another's must be confirmed."""
        certificate = known.matches(self._evaluations, key)
        if certificate is None or certificate.confirmed:
            return certificate is None
        self._context.session.log(
            f"a hit of the functional hash is not confirmed: {certificate.reason}; "
            f"architecture {known.architecture_id} is evaluated by itself",
            data={"evaluation": key, "certificate": certificate.to_json()},
        )
        raise UnconfirmedError


def scope_of(job: Job, *, reuse: bool) -> str | None:
    """Return who alone finds what a job evaluates: itself, its owner, or everybody (None)."""
    if not reuse:
        return f"job:{job.id}"
    return None if job.shares else f"owner:{job.owner}"
