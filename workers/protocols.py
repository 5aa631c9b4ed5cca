"""The seam between who submits jobs and who runs them."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class JobQueue(Protocol):
    """Tells some worker that a job waits; may lose, repeat or delay what it is told.

    SQL stays the truth: a lost message is sent again by the reaper, a repeated one
    finds the job claimed already.
    """

    def send(self, job_id: str) -> None:
        """Announce a QUEUED job; an unreachable broker is logged, never raised."""

    def close(self) -> None: ...
