"""One job, live: its front, candidates, progress, log and request, and stopping it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import streamlit as st

from ui.charts import front_figure, progress_figure
from ui.connection import Connection
from ui.following import fraction, progress_text
from ui.formats import age, duration, label, metric, short, title
from ui.request_text import changed, search_command
from ui.series import Row, origin, was_reused
from ui.views.jobs import job_savings, origins_of
from ui.website import Site, choose, connect, guarded, job_title, state_badge
from zoo.canonical import plain

if TYPE_CHECKING:
    from zoo.jobs import Job
    from zoo.store.protocols import Event

METRICS = ("latency_ms", "accuracy", "flops", "num_params", "size_bytes", "peak_bytes")
VIEWS = ("Front", "Candidates", "Progress", "Log", "Request")
COMPARABLE = 50
"""How many of the newest searches can be picked for comparison."""


def draw(site: Site) -> None:
    """Draw the page of the job that the address names."""
    job_id = st.query_params.get("job")
    if not job_id:
        st.info("No job is chosen.", icon=":material/info:")
        site.link("jobs", "All jobs", icon=":material/list:")
        return
    job = site.zoo.job(job_id)
    live = not job.state.final
    st.fragment(guarded(_header), run_every=2 if live else None)(site, job_id)
    _winners(site, job)
    views = VIEWS[{"search": 0, "train": 2}.get(job.kind, 3) :]
    view = st.segmented_control(
        "View",
        views,
        default=views[0],
        key="view",
        required=True,
        bind="query-params",
        label_visibility="collapsed",
    )
    body = {
        "Front": _front,
        "Candidates": _candidates,
        "Progress": _progress,
        "Log": _log,
        "Request": _request,
    }[str(view)]
    st.fragment(guarded(body), run_every=3 if live and view != "Request" else None)(site, job_id)


def _header(site: Site, job_id: str) -> None:
    job = site.zoo.job(job_id)
    if st.session_state.get(f"state-{job_id}", job.state) != job.state:
        st.session_state[f"state-{job_id}"] = job.state
        st.rerun()
    st.session_state[f"state-{job_id}"] = job.state
    heading, actions = st.columns([3, 2], vertical_alignment="center")
    with heading:
        st.header(job_title(job), anchor=False)
        with st.container(horizontal=True, vertical_alignment="center"):
            state_badge(job.state)
            st.caption(f"{job.kind} · {job.owner} · {job.id}")
    with actions:
        _actions(site, job)
    if not job.state.final:
        st.progress(fraction(job), text=progress_text(job))
    if job.state == "failed":
        st.error(job.reason or "failed without a reason", icon=":material/error:")
    _numbers(site, job)


def _numbers(site: Site, job: Job) -> None:
    saved = job_savings(site, job)
    end = job.finished_at or datetime.now(UTC)
    took = (end - job.started_at).total_seconds() if job.started_at else None
    facts = [
        ("Submitted", age(job.created_at, datetime.now(UTC))),
        ("Running time", duration(took)),
    ]
    if job.kind == "search":
        facts += [
            ("Candidates", f"{saved['candidates']:,.0f}"),
            ("Reused", f"{saved['hits']:,.0f}"),
            ("Device time spent", duration(saved["spent_s"])),
            ("Saved by the cache", duration(saved["saved_s"])),
        ]
    for column, (name, fact) in zip(st.columns(len(facts)), facts, strict=True):
        column.metric(name, fact)
    if saved["hits"]:
        with st.expander("Where the reused evaluations came from"):
            origins_of(site, site.zoo.origins(job.id))


def _actions(site: Site, job: Job) -> None:
    with st.container(horizontal=True, horizontal_alignment="right"):
        if job.request:
            st.caption(f"asked to {job.request} at its next step")
        can_pause = job.state in ("queued", "running") and not job.request
        if can_pause and st.button("Pause", icon=":material/pause:"):
            site.zoo.pause(job.id)
            st.rerun()
        if job.state == "paused" and st.button("Resume", icon=":material/play_arrow:"):
            site.zoo.resume(job.id)
            st.rerun()
        if not job.state.final and st.button("Cancel", icon=":material/close:"):
            _confirm_cancel(site, job)
        if job.state in ("failed", "cancelled") and st.button("Retry", icon=":material/replay:"):
            site.go("job", job=site.zoo.clone(job.id).id)
        if job.kind == "search" and st.button("Clone", icon=":material/content_copy:"):
            _clone(site, job)
        if job.state.final and st.button("Delete", icon=":material/delete:"):
            _confirm_delete(site, job)


@st.dialog("Cancel this job?")
@guarded
def _confirm_cancel(site: Site, job: Job) -> None:
    st.write(
        f"“{job_title(job)}” stops at its next step and cannot go on afterwards. "
        "What it has evaluated stays known to later searches."
    )
    with st.container(horizontal=True, horizontal_alignment="right"):
        if st.button("Keep it"):
            st.rerun()
        if st.button("Cancel the job", type="primary"):
            site.zoo.cancel(job.id)
            st.rerun()


@st.dialog("Delete this job?")
@guarded
def _confirm_delete(site: Site, job: Job) -> None:
    st.write(
        f"“{job_title(job)}” goes for good, with its candidates and its log. Models that it "
        "stored stay in the zoo, and what it has evaluated stays known to later searches."
    )
    with st.container(horizontal=True, horizontal_alignment="right"):
        if st.button("Keep it"):
            st.rerun()
        if st.button("Delete the job", type="primary"):
            site.zoo.delete_job(job.id)
            site.go("jobs")


@st.dialog("Clone this search", width="medium")
@guarded
def _clone(site: Site, job: Job) -> None:
    st.write("Equal candidates are not evaluated again, so a clone starts at the difference.")
    spec: dict[str, Any] = dict(plain(job.spec))  # type: ignore[arg-type]
    seed = st.number_input("Seed", min_value=0, value=int(spec.get("seed") or 0))
    text = st.text_area(
        "Changes, one a line",
        placeholder="method.params.candidates=40\nrecipe.epochs=5",
        help="Dotted names of the request's fields.",
    )
    if st.button("Submit the clone", type="primary"):
        changes = changed(spec, [line for line in text.splitlines() if line.strip()])
        clone = site.zoo.clone(job.id, **(changes | {"seed": int(seed)}))
        site.go("job", job=clone.id)


def candidates_of(site: Site, job: Job) -> Sequence[Row]:
    """Return a job's candidates as plain rows, read again only when its progress changed."""
    told = ("phase", "step", "message")
    step = "" if job.state.final else json.dumps([job.progress.get(name) for name in told])
    return _known_candidates(site.connection, job.id, job.state, job.attempt, step)


@st.cache_resource(max_entries=32, show_spinner="Reading candidates…")
def _known_candidates(connection: Connection, job_id: str, *_at: object) -> Sequence[Row]:
    """Read candidates once for each visitor and each state of the job's progress ``_at``."""
    return [item.to_json() for item in connect(connection).candidates(job_id)]


def _front(site: Site, job_id: str) -> None:
    from zoo.jobs import JobKind

    zoo = site.zoo
    job = zoo.job(job_id)
    others = {
        other.id: other
        for other in islice(zoo.jobs(kind=JobKind.SEARCH), COMPARABLE)
        if other.id != job_id
    }
    first, second, third = st.columns([1, 1, 2], vertical_alignment="bottom")
    with first:
        x = choose("Horizontal", METRICS, key="x", default="latency_ms", format_func=label)
        log_x = st.checkbox("logarithmic", key="log_x", bind="query-params")
    with second:
        y = choose("Vertical", METRICS, key="y", default="accuracy", format_func=label)
        log_y = st.checkbox("logarithmic ", key="log_y", bind="query-params")
    with third:
        compared = st.multiselect(
            "Compare with",
            list(others),
            format_func=lambda key: f"{job_title(others[key])} ({others[key].state})",
            key="compare",
            placeholder="other searches",
        )
        baseline = st.checkbox("random search", value=True, key="baseline")
    rows = list(candidates_of(site, job))
    for key in compared:
        rows += candidates_of(site, others[key])
    if not baseline:
        rows = [row for row in rows if row["arm"] != "baseline"]
    if not any(x in row["metrics"] and y in row["metrics"] for row in rows):
        st.info("No candidate has both metrics yet.", icon=":material/hourglass_empty:")
        return
    titles = {job.id: job_title(job)} | {key: job_title(others[key]) for key in compared}
    limits: Any = plain(job.spec.get("limits") or [])
    figure = front_figure(rows, x=x, y=y, limits=limits, names=titles, log_x=log_x, log_y=log_y)
    chosen: Any = st.plotly_chart(
        figure,
        key="front",
        on_select="rerun",
        selection_mode=("points", "box", "lasso"),
        alt=f"{label(y)} against {label(x)} of {len(rows)} candidates",
        config={"displaylogo": False},
    )
    _selection(site, rows, chosen)


def _selection(site: Site, rows: Sequence[Row], chosen: Any) -> None:
    """Show the candidates that were marked in the chart as a table with links."""
    keys = {
        tuple(point["customdata"][:3])
        for point in chosen["selection"]["points"]
        if point.get("customdata")
    }
    if not keys:
        st.caption("Mark points with the box or lasso, or click one, to see them as a table.")
        return
    picked = [row for row in rows if (row["job"], row["arm"], row["number"]) in keys]
    _table(site, picked, key="selected")


def _candidates(site: Site, job_id: str) -> None:
    job = site.zoo.job(job_id)
    rows = candidates_of(site, job)
    failed = sum(row["state"] == "failed" for row in rows)
    arms = sorted({row["arm"] for row in rows})
    with st.container(horizontal=True, vertical_alignment="bottom"):
        arm = st.pills("Arm", arms, selection_mode="multi", key="arm", bind="query-params")
        state = st.pills(
            "Show",
            ("evaluated", "running", "failed", "infeasible", "reused"),
            selection_mode="multi",
            key="show",
            bind="query-params",
        )
    if failed:
        st.warning(f"Failed candidates: {failed}; the table says why.", icon=":material/warning:")
    shown = [
        row
        for row in rows
        if (not arm or row["arm"] in arm) and (not state or kinds_of(row) & set(state))
    ]
    _table(site, shown, key="candidates")


def kinds_of(row: Row) -> set[str]:
    """Return the words under which a candidate is shown."""
    return (
        {str(row["state"])}
        | ({"infeasible"} if not row["feasible"] else set())
        | ({"reused"} if was_reused(row) else set())
    )


def _table(site: Site, rows: Sequence[Row], *, key: str) -> None:
    """Draw candidates as a table; the marked ones can be opened."""
    if not rows:
        st.info("No candidate.", icon=":material/info:")
        return
    names = [name for name in METRICS if any(name in row["metrics"] for row in rows)]
    shown = [
        {
            "number": row["number"],
            "arm": row["arm"],
            "state": row["state"],
            **{label(name): row["metrics"].get(name) for name in names},
            "feasible": row["feasible"],
            "origin": f"reused from {origin(row)}" if was_reused(row) else "measured",
            "evaluations": row["repeats"],
            "cost (s)": row["cost_s"],
            "reason": row["reason"] or "",
        }
        for row in rows
    ]
    chosen: Any = st.dataframe(
        shown,
        hide_index=True,
        key=key,
        on_select="rerun",
        selection_mode="multi-row",
        column_config={
            label("accuracy"): st.column_config.NumberColumn(format="%.4f"),
            label("latency_ms"): st.column_config.NumberColumn(format="%.3f"),
            **{
                label(name): st.column_config.NumberColumn(format="compact")
                for name in ("flops", "num_params", "size_bytes", "peak_bytes")
            },
            "cost (s)": st.column_config.NumberColumn(format="%.1f"),
            "reason": st.column_config.TextColumn(width="large"),
        },
    )
    marked = [rows[index] for index in chosen["selection"]["rows"] if index < len(rows)]
    opened = marked or (rows if len(rows) == 1 else [])
    with st.container(horizontal=True):
        for row in opened[:8]:
            candidate_link(site, row)
    if not opened:
        st.caption("Mark rows on the left edge to open their pages.")


def candidate_link(site: Site, row: Row) -> None:
    """Draw a link to a candidate's page."""
    site.link(
        "candidate",
        f"{row['arm']} {row['number']}",
        icon=":material/deployed_code:",
        job=row["job"],
        arm=row["arm"],
        number=str(row["number"]),
    )


def _progress(site: Site, job_id: str) -> None:
    job = site.zoo.job(job_id)
    rows = candidates_of(site, job)
    objectives: Any = plain(job.spec.get("objectives") or ["accuracy", "latency_ms"])
    x = next((name for name in objectives if name != "accuracy"), "latency_ms")
    y = "accuracy" if "accuracy" in objectives else objectives[0]
    searched = [row for row in rows if job.kind == "search"]
    if any(x in row["metrics"] and y in row["metrics"] for row in searched):
        st.subheader("Hypervolume", anchor=False)
        st.plotly_chart(progress_figure(searched, x=x, y=y), key="hypervolume")
        st.caption(
            f"Share of the box between the best and the worst {label(x)} and {label(y)} "
            "that the front dominates, after each candidate."
        )
    curves = curves_of(site.zoo.events(job_id), job.kind)
    if curves:
        told = "Reported by the method" if job.kind == "search" else "Training"
        st.subheader(told, anchor=False)
        shown = st.pills(
            "Curves", list(curves), default=list(curves)[:1], selection_mode="multi", key="curves"
        )
        for name in shown:
            across = "epoch" if job.kind == "train" else "step"
            st.line_chart(curves[name], x="step", y=name, x_label=across, height=240)
    elif not searched:
        st.info("Nothing was reported yet.", icon=":material/hourglass_empty:")


def curves_of(events: Iterable[Event], kind: str) -> dict[str, list[dict[str, float]]]:
    """Collect the numbers that a job reported as curves over steps, or a training's epochs."""
    curves: dict[str, list[dict[str, float]]] = {}
    for event in events:
        data: dict[str, Any] = dict(event.data)
        step, phase, numbers = data.get("step"), data.get("phase"), data.get("metrics")
        if kind == "train" and data.get("kind") == "curve":
            return _whole_curves(data)
        if not isinstance(numbers, dict) or not isinstance(step, int | float):
            continue
        for metric_name, number in numbers.items():
            name = metric_name if phase in (None, kind) else f"{metric_name}, {phase}"
            curves.setdefault(name, []).append({"step": step, name: number})
    return {name: points for name, points in curves.items() if len(points) > 1}


def _whole_curves(data: dict[str, Any]) -> dict[str, list[dict[str, float]]]:
    """Return the curves of a training that is over, which has every epoch."""
    values = {name: them for name, them in data.items() if isinstance(them, list)}
    epochs = values.pop("epoch", [])
    return {
        name: [{"step": at, name: it} for at, it in zip(epochs, them, strict=True)]
        for name, them in values.items()
    }


def _log(site: Site, job_id: str) -> None:
    job = site.zoo.job(job_id)
    levels = st.pills("Level", ("info", "warning", "error"), selection_mode="multi", key="level")
    events = [item for item in site.zoo.events(job_id) if not levels or item.level in levels]
    if not events:
        st.info("The log is empty.", icon=":material/info:")
        return
    text = "\n".join(f"{item.at:%H:%M:%S}  {item.level:<7}  {item.message}" for item in events)
    st.code(text, language=None, height=480, wrap_lines=True)
    st.download_button(
        "Download the log",
        "\n".join(f"{item.at.isoformat()} {item.level} {item.message}" for item in events),
        file_name=f"{job.id}.log",
        on_click="ignore",
        icon=":material/download:",
    )


def _request(site: Site, job_id: str) -> None:
    job = site.zoo.job(job_id)
    spec: Any = plain(job.spec)
    if job.kind == "search":
        st.subheader("The same from the command line", anchor=False)
        st.code(search_command(spec), language="bash", wrap_lines=True)
    st.subheader("Request", anchor=False)
    st.code(json.dumps(spec, indent=2), language="json")
    if job.result is not None:
        st.subheader("Result", anchor=False)
        st.json(plain(job.result), expanded=1)


def _winners(site: Site, job: Job) -> None:
    """Draw where the models of a search or training that succeeded are."""
    result: Any = plain(job.result or {})
    trained = [result] if job.kind == "train" and result.get("chain") else []
    for item in result.get("winners") or trained:
        numbers = " · ".join(
            f"{title(name)} {metric(name, value)}" for name, value in item["metrics"].items()
        )
        with st.container(border=True, horizontal=True, vertical_alignment="center"):
            site.link(
                "chains",
                f"{'Model' if trained else 'Winner'}: chain {short(item['chain'])}",
                icon=":material/star:",
                chain=item["chain"],
            )
            st.caption(numbers)
