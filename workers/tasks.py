"""The one Celery task: a message names a job, and SQL says everything else."""

from __future__ import annotations

import logging
from typing import Any

from workers.worker import Worker, waits
from zoo.errors import BlockyardError
from zoo.jobs import RUN_JOB

logger = logging.getLogger(__name__)


def register(app: Any, worker: Worker) -> None:
    """Have ``app`` run jobs in ``worker``."""

    @app.task(name=RUN_JOB, shared=False)  # type: ignore[untyped-decorator]
    def run_job(job_id: object) -> None:
        run_message(worker, job_id)


def run_message(worker: Worker, job_id: object) -> None:
    """Run the job that a message names; one that is doubled, late or forged does nothing."""
    try:
        if isinstance(job_id, str) and waits(worker.store, job_id):
            worker.run(job_id)
        else:
            logger.info("message about %.100r: nothing to do", job_id)
    except BlockyardError as error:
        logger.warning("message about %.100r: %s", job_id, error)
