"""Live workers, what they run, and the devices they own."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING

import streamlit as st

from ui.following import progress_text
from ui.formats import age
from ui.website import Site, guarded

if TYPE_CHECKING:
    from zoo.jobs import Job

HOUR = timedelta(hours=1)
RECENT = 500
"""How many of the newest jobs are looked at to see what kept a worker busy."""


def draw(site: Site) -> None:
    """Draw the page."""
    st.title("Workers")
    _live(site)


@st.fragment(run_every=5)
@guarded
def _live(site: Site) -> None:
    from zoo.jobs import JobState

    zoo = site.zoo
    workers = zoo.workers()
    running = {job.worker: job for job in zoo.jobs(state=JobState.RUNNING)}
    if not workers:
        st.info(
            "No worker lives. Start one with `blockyard worker`; jobs wait until then.",
            icon=":material/info:",
        )
    now = datetime.now(UTC)
    for worker in workers:
        with st.container(border=True):
            left, middle, right = st.columns([3, 4, 1.2], vertical_alignment="center")
            left.markdown(f"**{worker.id}**")
            left.caption(", ".join(device.name for device in worker.devices) or "no device")
            with middle:
                job = running.get(worker.id)
                if job:
                    site.job_link(job, icon=":material/play_arrow:")
                    st.caption(progress_text(job))
                else:
                    st.caption("idle")
            right.caption(f"seen {age(worker.seen_at, now)}")
    st.subheader("Devices")
    shares = busy_shares(islice(zoo.jobs(), RECENT), now)
    live = {device.id for worker in workers for device in worker.devices}
    busy = {device.id for worker in workers if worker.id in running for device in worker.devices}
    rows = [
        {
            "name": device.name,
            "kind": device.kind,
            "now": "busy" if device.id in busy else "idle" if device.id in live else "away",
            "busy in the last hour": max(
                (
                    shares.get(worker.id, 0.0)
                    for worker in workers
                    if device.id in {owned.id for owned in worker.devices}
                ),
                default=None,
            ),
            "id": device.id,
            "what it is": json.dumps(dict(device.info), ensure_ascii=False),
        }
        for device in zoo.devices()
    ]
    if rows:
        percent = st.column_config.NumberColumn(
            format="percent", help="Share of the time in which its worker ran a job."
        )
        st.dataframe(rows, hide_index=True, column_config={"busy in the last hour": percent})
    else:
        st.caption("No device was ever announced.")


def busy_shares(jobs: Iterable[Job], now: datetime) -> dict[str, float]:
    """Return worker → the share of the last hour in which it ran at least one job."""
    spans: dict[str, list[tuple[datetime, datetime]]] = {}
    for job in jobs:
        start, end = max(job.started_at or now, now - HOUR), job.finished_at or now
        if job.worker is not None and start < end:
            spans.setdefault(job.worker, []).append((start, end))
    return {worker: _covered(found) / HOUR for worker, found in spans.items()}


def _covered(spans: list[tuple[datetime, datetime]]) -> timedelta:
    """Return the length of the union of spans; a worker may run a short job within a long one."""
    total = timedelta()
    reached = datetime.min.replace(tzinfo=UTC)
    for start, end in sorted(spans):
        total += max(end - max(start, reached), timedelta())
        reached = max(reached, end)
    return total
