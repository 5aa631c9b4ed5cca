"""Every job with its state, owner, progress, and device time used and saved."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING

import streamlit as st

from ui.connection import Connection
from ui.following import fraction, progress_text
from ui.formats import age, duration, short
from ui.website import Site, connect, guarded, state_badge

if TYPE_CHECKING:
    from zoo.jobs import Job
    from zoo.store.protocols import Origin

PAGE = 20
ORIGINS = 20
WIDTHS = (2.2, 1.0, 1.5, 3.0, 0.9, 1.2, 1.1, 1.3)
KINDS = ("search", "train", "assemble", "preview", "profile", "measure", "cost-table", "fronts")


def draw(site: Site) -> None:
    """Draw the page."""
    heading, new = st.columns([5, 1], vertical_alignment="bottom")
    heading.title("Jobs")
    with new:
        site.link("submit", "New search", icon=":material/add:")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        kinds = st.pills(
            "Kind",
            KINDS,
            default=("search", "train", "assemble"),
            selection_mode="multi",
            key="kind",
            bind="query-params",
        )
        states = st.pills(
            "State",
            ("queued", "running", "paused", "succeeded", "failed", "cancelled"),
            selection_mode="multi",
            key="state",
            bind="query-params",
        )
    _live(site, tuple(kinds), tuple(states))


@st.fragment(run_every=3)
@guarded
def _live(site: Site, kinds: tuple[str, ...], states: tuple[str, ...]) -> None:
    zoo = site.zoo
    _totals(site)
    wanted = heapq.merge(
        *(
            zoo.jobs(kind=kind, state=state)
            for kind in kinds or [None]
            for state in states or [None]
        ),
        key=lambda job: (job.created_at, job.id),
        reverse=True,
    )
    shown = st.session_state.get("jobs_shown", PAGE)
    jobs = list(islice(wanted, shown + 1))
    if not jobs:
        st.info("No such job. Start one with “New search”.", icon=":material/info:")
        return
    if not zoo.workers() and any(job.state == "queued" for job in jobs):
        st.warning(
            "No worker lives, so queued jobs wait. Start one with `blockyard worker`.",
            icon=":material/warning:",
        )
    columns = st.columns(WIDTHS, gap="small")
    titles = ("Job", "Kind", "State", "Progress", "Owner", "Spent", "Saved", "Submitted")
    for column, title in zip(columns, titles, strict=True):
        column.caption(title)
    now = datetime.now(UTC)
    for job in jobs[:shown]:
        _row(site, job, now)
    if len(jobs) > shown and st.button("Show more"):
        st.session_state["jobs_shown"] = shown + PAGE
        st.rerun(scope="fragment")


def _totals(site: Site) -> None:
    zoo = site.zoo
    saved = zoo.savings()
    columns = st.columns(4)
    columns[0].metric("Candidates", f"{saved['candidates']:,.0f}", border=True)
    columns[1].metric("Reused from the cache", f"{saved['hits']:,.0f}", border=True)
    columns[2].metric("Device time spent", duration(saved["spent_s"]), border=True)
    columns[3].metric("Device time saved", duration(saved["saved_s"]), border=True)
    if saved["hits"]:
        with st.expander("Where the reused evaluations came from"):
            origins_of(site, zoo.origins())


def origins_of(site: Site, origins: Sequence[Origin]) -> None:
    """Draw whose evaluations were reused: jobs, how many each gave and what that saved."""
    for item in origins[:ORIGINS]:
        job, hits, saved = st.columns((2, 1, 1), vertical_alignment="center")
        with job:
            if item.job is None:
                st.write("other users' jobs")
            else:
                site.link("job", short(item.job), icon=":material/recycling:", job=item.job)
        hits.write(f"{item.hits:,} reused")
        saved.write(f"{duration(item.saved_s)} saved")
    if len(origins) > ORIGINS:
        st.caption(f"and {len(origins) - ORIGINS} more: blockyard job savings")


def _row(site: Site, job: Job, now: datetime) -> None:
    name, kind, state, progress, owner, spent, saved, submitted = st.columns(
        WIDTHS, gap="small", vertical_alignment="center"
    )
    with name:
        site.job_link(job)
    kind.write(str(job.kind))
    with state:
        state_badge(job.state)
    with progress:
        if job.state.final:
            st.caption(job.reason or str(job.progress.get("message") or ""))
        else:
            st.progress(fraction(job), text=progress_text(job))
    owner.write(job.owner)
    savings = job_savings(site, job)
    spent.write(duration(savings["spent_s"]) if savings["candidates"] else "–")
    saved.write(duration(savings["saved_s"]) if savings["candidates"] else "–")
    submitted.write(age(job.created_at, now))


def job_savings(site: Site, job: Job) -> Mapping[str, float]:
    """Return what a job spent and saved; asked only once for a job that has ended."""
    if job.state.final:
        return _ended_savings(site.connection, job.id)
    return site.zoo.savings(job.id)


@st.cache_data(max_entries=2000, show_spinner=False)
def _ended_savings(connection: Connection, job_id: str) -> dict[str, float]:
    return dict(connect(connection).savings(job_id))
