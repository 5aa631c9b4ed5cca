"""One candidate: its architecture, metrics, origin, and for winners the trained model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import streamlit as st

from ui.catalogue import description_of
from ui.formats import duration, label, metric, short, title
from ui.parts import (
    blocks_of,
    chain_graph,
    lineage_of,
    load_and_download,
    profiles_of,
    wiring_of,
)
from ui.series import Row, origin, was_reused
from ui.views.job import candidates_of
from ui.website import Site, job_title
from zoo.spec import BlockSpec

if TYPE_CHECKING:
    from zoo.store.protocols import Event


def draw(site: Site) -> None:
    """Draw the page of the candidate that the address names."""
    query = st.query_params
    job_id, arm = query.get("job"), query.get("arm", "search")
    number = query.get("number", "")
    if not job_id or not number.isdecimal():
        st.info("No candidate is chosen.", icon=":material/info:")
        site.link("jobs", "All jobs", icon=":material/list:")
        return
    job = site.zoo.job(job_id)
    found = [
        row
        for row in candidates_of(site, job)
        if row["arm"] == arm and row["number"] == int(number)
    ]
    site.link("job", job_title(job), icon=":material/arrow_back:", job=job_id)
    if not found:
        st.error(f"This job has no candidate {number} in its {arm} arm.")
        return
    row = found[0]
    st.header(f"Candidate {number}", anchor=False)
    with st.container(horizontal=True):
        _badges(row)
    if row["reason"]:
        show = st.error if row["state"] == "failed" else st.warning
        show(row["reason"], icon=":material/error:")
    _metrics(row)
    left, right = st.columns(2, gap="large")
    with left:
        _learning(site, row)
        _architecture(row)
    with right:
        _origin(site, row)
    if row["chain"]:
        _model(site, str(row["chain"]))


def _badges(row: Row) -> None:
    colours: Any = {"evaluated": "green", "failed": "red", "running": "blue"}
    st.badge(row["state"], color=colours[row["state"]])
    st.badge(row["arm"], color="violet" if row["arm"] == "winner" else "gray")
    if not row["feasible"]:
        st.badge("outside the limits", color="orange")
    if was_reused(row):
        st.badge("reused", color="blue")


def _metrics(row: Row) -> None:
    if row["metrics"]:
        for column, (name, value) in zip(
            st.columns(len(row["metrics"])), row["metrics"].items(), strict=True
        ):
            spread = row["spread"].get(name)
            column.metric(
                title(name),
                metric(name, value),
                f"± {metric(name, spread)}" if spread is not None else None,
                delta_color="off",
                delta_arrow="off",
                border=True,
            )
    if row["repeats"] > 1:
        st.caption(
            f"Means of {row['repeats']} evaluations under as many seeds; "
            "± is their standard deviation."
        )


def _architecture(row: Row) -> None:
    st.subheader("Architecture", anchor=False)
    architecture: dict[str, Any] = dict(row["architecture"])
    space = architecture.get("space") or {}
    st.caption(f"space {space.get('name')} · id {short(row['architecture_id'])}")
    if st.toggle("Draw it", help="Asks the search space; takes a few seconds."):
        known = _described(json.dumps(architecture))
        st.code(known["summary"], language=None, wrap_lines=True)
        specs = [BlockSpec.from_json(item) for item in known["blocks"]]
        st.graphviz_chart(chain_graph(specs), alt="graph of the network")
        wiring_of(specs)
    st.code(json.dumps(architecture), language="json", wrap_lines=True)


@st.cache_data(max_entries=500, show_spinner="Asking the search space…")
def _described(architecture: str) -> dict[str, Any]:
    return description_of(json.loads(architecture))


def _learning(site: Site, row: Row) -> None:
    """Draw how a candidate learned, if it was trained by this job."""
    st.subheader("Learning curve", anchor=False)
    curve = curve_of(site.zoo.events(row["job"]), str(row["arm"]), row["number"])
    if curve is None:
        st.caption("This job did not train it." if was_reused(row) else "None was recorded.")
        return
    for name, values in curve.items():
        if name != "epoch":
            points = {"epoch": curve["epoch"], label(name): values}
            st.line_chart(points, x="epoch", y=label(name), height=200)


def curve_of(events: Iterable[Event], arm: str, number: int) -> dict[str, list[float]] | None:
    """Return the newest learning curve of a candidate: ``{"epoch": …, metric: values}``."""
    curve = None
    for event in events:
        data: Any = event.data
        if data.get("kind") == "curve" and (data.get("arm"), data.get("number")) == (arm, number):
            curve = {name: values for name, values in data.items() if isinstance(values, list)}
    return curve


def _origin(site: Site, row: Row) -> None:
    st.subheader("Origin", anchor=False)
    if was_reused(row):
        st.write(f"The evaluation was reused, which saved {duration(row['saved_s'])}.")
        if row["reused_from"]:
            site.link(
                "job",
                f"evaluated by {origin(row)}",
                icon=":material/recycling:",
                job=row["reused_from"],
            )
        else:
            st.write(f"Evaluated by {origin(row)}.")
    elif row["state"] == "evaluated":
        st.write(f"Evaluated by this job in {duration(row['cost_s'])} of device time.")
    if row["attempt"] > 1:
        st.write(f"It took {row['attempt']} attempts.")
    if row["signature"]:
        st.caption("Candidates that compute the same share this signature:")
        st.code(row["signature"], language=None, wrap_lines=True)


def _model(site: Site, chain_id: str) -> None:
    chain = site.zoo.chain(chain_id)
    st.divider()
    st.header("Trained model", anchor=False)
    site.link("chains", f"chain {short(chain.id)}", icon=":material/link:", chain=chain.id)
    load_and_download(site, chain)
    blocks_of(site, chain)
    profiles_of(site, chain.id)
    lineage_of(site, chain.id)
