"""Finding the job that a person means: by id, unique prefix, name, or ``last``."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from zoo.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from zoo.client import Zoo
    from zoo.jobs import Job

FULL = len("job_") + 36
SEARCHED = 10_000
"""How many of the newest jobs are looked through for a prefix or a name."""


def find_job(zoo: Zoo, reference: str) -> Job:
    """Return the job with this id, unique prefix of it, or name; ``last`` is the newest.

    Raises:
        NotFoundError: No job fits.
        InvalidInputError: The prefix fits several jobs.
    """
    if reference.startswith("job_") and len(reference) == FULL:
        return zoo.job(reference)
    if reference == "last":
        for job in islice(zoo.jobs(), 1):
            return job
        raise NotFoundError("there is no job yet; start one with: blockyard search run")
    prefix = reference if reference.startswith("job_") else f"job_{reference}"
    recent = list(islice(zoo.jobs(), SEARCHED))
    named = [job for job in recent if job.name and job.name == reference]
    found = named[:1] or [job for job in recent if job.id.startswith(prefix)]
    if not found:
        raise NotFoundError(f"no job {reference!r}; blockyard job list shows the jobs there are")
    if len(found) > 1:
        raise InvalidInputError(
            f"{reference!r} fits {len(found)} jobs, such as {found[0].id} and {found[1].id}; "
            "give more of the id"
        )
    return found[0]
