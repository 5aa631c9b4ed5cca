"""Live workers, what they run, and the devices they own."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import streamlit as st

from ui.following import progress_text
from ui.formats import age
from ui.website import Site, guarded


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
    live = {device.id for worker in workers for device in worker.devices}
    busy = {device.id for worker in workers if worker.id in running for device in worker.devices}
    rows = [
        {
            "name": device.name,
            "kind": device.kind,
            "use": "busy" if device.id in busy else "idle" if device.id in live else "away",
            "id": device.id,
            "what it is": json.dumps(dict(device.info), ensure_ascii=False),
        }
        for device in zoo.devices()
    ]
    if rows:
        st.dataframe(rows, hide_index=True)
    else:
        st.caption("No device was ever announced.")
