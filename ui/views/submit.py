"""A new search: what to search, a preview of its cost, and the same as a command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import streamlit as st

from ui.catalogue import Entry
from ui.formats import count, duration, label, metric
from ui.request_text import limits, search_command, value
from ui.website import Site, job_title
from zoo.errors import BlockyardError, InvalidInputError
from zoo.jobs import JobKind, JobState
from zoo.schemas import METRICS, parse_request

PREVIEW_TIMEOUT_S = 300.0


def draw(site: Site) -> None:
    """Draw the page."""
    st.title("New search")
    form, summary = st.columns([3, 2], gap="large")
    with form:
        name, spec, problem = _form(site)
    with summary:
        _summary(site, name, spec, problem)


def _form(site: Site) -> tuple[str, dict[str, Any], str | None]:
    """Draw the form; return the job's name, the request and what is wrong with it."""
    known = site.catalogue()
    spec: dict[str, Any] = {}
    problem = None
    name = st.text_input("Name", placeholder="optional", key="name")
    with st.container(border=True):
        st.subheader("What is searched", anchor=False)
        spec["space"] = _choice("Search space", known["spaces"], key="space", usual="darts")
        spec["method"] = _choice("Method", known["methods"], key="method", usual="nsga2")
        names = [entry["name"] for entry in known["data"]]
        spec["data"] = st.selectbox(
            "Data",
            names,
            key="data",
            accept_new_options=True,
            help="Your own data: folder:PATH or npz:PATH, on the machine of the worker.",
        )
    with st.container(border=True):
        st.subheader("What is wanted", anchor=False)
        spec["objectives"] = st.multiselect(
            "Objectives",
            list(METRICS),
            default=["accuracy", "latency_ms"],
            format_func=lambda item: f"{METRICS[item]} {label(item)}",
            key="objectives",
        )
        text = st.text_area(
            "Limits, one a line",
            key="limits",
            height=88,
            placeholder="latency_ms<=3\naccuracy>=0.9",
            help=f"Metrics: {', '.join(METRICS)}. Candidates outside are infeasible.",
        )
        try:
            spec["limits"] = limits(line for line in text.splitlines() if line.strip())
        except InvalidInputError as error:
            problem = str(error)
        left, middle, right = st.columns(3)
        devices = ["auto", *dict.fromkeys(device.name for device in site.zoo.devices())]
        spec["device"] = left.selectbox("Latency measured on", devices, key="device")
        spec["runtime"] = middle.selectbox("with", ["torch", "onnx"], key="runtime")
        spec["batch"] = int(right.number_input("at batch size", min_value=1, value=1, key="batch"))
        spec |= _latency(site)
    with st.container(border=True):
        st.subheader("Budget", anchor=False)
        spec |= _budget()
    return name or "", spec, problem


def _latency(site: Site) -> dict[str, Any]:
    """Draw where candidates' latency comes from, if there is a choice."""
    tables = {
        job.id: job_title(job)
        for job in site.zoo.jobs(kind=JobKind.COST_TABLE, state=JobState.SUCCEEDED)
    }
    if not tables:
        return {}
    job = st.selectbox(
        "Candidates' latency",
        ["", *tables],
        format_func=lambda item: f"from table {tables[item]}" if item else "measured",
        key="latency",
        help="A table of the device prices candidates without measuring; winners are measured.",
    )
    return {"latency": {"kind": "table", "job": job}} if job else {}


def _choice(title: str, entries: Sequence[Entry], *, key: str, usual: str) -> dict[str, Any]:
    """Draw a plug-in's choice and its settings; only those changed enter the request."""
    names = [entry["name"] for entry in entries]
    chosen = st.selectbox(title, names, index=names.index(usual) if usual in names else 0, key=key)
    entry = next((entry for entry in entries if entry["name"] == chosen), None)
    if entry is None:
        return {"name": chosen or ""}
    if entry.get("summary"):
        st.caption(entry["summary"])
    params = {}
    if entry.get("params"):
        with st.expander(f"Settings of {chosen}"):
            types = entry.get("types") or {}
            for name, default in entry["params"].items():
                kind = types.get(name, "")
                setting = _setting(name, default, kind, key=f"{key}-{chosen}-{name}")
                if setting != default:
                    params[name] = setting
    return {"name": chosen, "params": params} if params else {"name": chosen}


def _setting(name: str, default: object, kind: str, *, key: str) -> object:
    """Draw a field that fits a setting's type; ``kind`` is that as written, or empty."""
    optional = "None" in kind
    if isinstance(default, bool) and not optional:
        return st.toggle(name, value=default, key=key)
    if isinstance(default, int | float) and not isinstance(default, bool) and not optional:
        if kind == "float" or isinstance(default, float):
            # A whole default is an integer in JSON, its setting none.
            number = st.number_input(name, value=float(default), format="%g", key=key)
            return float(number)
        return int(st.number_input(name, value=default, step=1, key=key))
    if isinstance(default, list) and default and all(isinstance(item, str) for item in default):
        return st.multiselect(name, default, default=default, key=key)
    plain = default if isinstance(default, str) else json.dumps(default)
    text = st.text_input(
        name, value="" if default is None else plain, key=key, placeholder=kind or None
    )
    return value(text) if text else None


def _budget() -> dict[str, Any]:
    spec: dict[str, Any] = {}
    columns = st.columns(4)
    epochs = columns[0].number_input("Epochs a candidate", min_value=1, value=3, key="epochs")
    final = columns[1].number_input("Epochs a winner", min_value=1, value=12, key="final")
    winners = columns[2].number_input("Winners", min_value=0, value=1, key="winners")
    seed = columns[3].number_input("Seed", min_value=0, value=0, key="seed")
    spec["recipe"] = {"epochs": int(epochs)}
    spec["final_recipe"] = {"epochs": int(final)}
    spec["winners"] = int(winners)
    spec["seed"] = int(seed)
    spec["baseline"] = st.toggle(
        "Random search beside it, with an equal budget", value=True, key="with-baseline"
    )
    spec["reuse"] = st.toggle(
        "Reuse evaluations of candidates that compute the same", value=True, key="reuse"
    )
    if spec["reuse"]:
        with st.expander("How often the same function is evaluated"):
            spec |= _deduping()
    return spec


def _deduping() -> dict[str, Any]:
    """Draw the policy for candidates that compute the same; what is usual is left out."""
    columns = st.columns(4)
    repeats = columns[0].number_input(
        "Evaluations, at most",
        min_value=1,
        value=None,
        placeholder="as usual",
        help="Each under a seed of its own; then their mean answers. Usually 1, and 3 where "
        "scores are noisy.",
        key="max-duplicates",
    )
    forget = columns[1].number_input(
        "Forgetting",
        min_value=0.0,
        max_value=1.0,
        value=0.0,
        help="Probability that such an answer is the last, and the function evaluated anew.",
        key="forget",
    )
    attempts = columns[2].number_input(
        "Proposals, at most",
        min_value=1,
        value=1,
        help="Proposals among which a function that is new to the search is sought.",
        key="max-proposal-attempts",
    )
    tabu = columns[3].number_input(
        "Tabu list",
        min_value=0,
        value=None,
        placeholder="all",
        help="How many of the latest functions are not new.",
        key="tabu",
    )
    spec: dict[str, Any] = {
        "max_duplicates": repeats and int(repeats),
        "forget": forget or None,
        "max_proposal_attempts": int(attempts) if attempts > 1 else None,
        "tabu": None if tabu is None else int(tabu),
    }
    return {name: number for name, number in spec.items() if number is not None}


def _summary(site: Site, name: str, spec: dict[str, Any], problem: str | None) -> None:
    """Draw the request as a command line and JSON, its preview, and the submit button."""
    if problem is None:
        try:
            checked = parse_request(JobKind.SEARCH, spec).model_dump(mode="json")
        except InvalidInputError as error:
            problem = str(error)
    if problem is not None:
        st.error(problem, icon=":material/error:")
        return
    with st.container(horizontal=True):
        preview = st.button("Preview the cost", icon=":material/calculate:")
        submit = st.button("Submit the search", type="primary", icon=":material/play_arrow:")
    if submit:
        job = site.zoo.submit(JobKind.SEARCH, checked, name=name)
        site.go("job", job=job.id)
    text = json.dumps(checked, sort_keys=True)
    if preview:
        _ask(site, spec, text)
    result = st.session_state.get("preview", {})
    if result.get("of") == text:
        _preview(result["result"], spec)
    elif result:
        st.caption("The request changed; preview it again to see its cost.")
    st.subheader("The same from the command line", anchor=False)
    named = f" --name {json.dumps(name)}" if name else ""
    st.code(search_command(spec) + named, language="bash", wrap_lines=True)
    with st.expander("As JSON, for --spec or the API"):
        st.code(json.dumps(spec, indent=2), language="json")


def _ask(site: Site, spec: dict[str, Any], text: str) -> None:
    """Run a preview job and keep its answer for as long as the request stays the same."""
    with st.spinner("A worker looks at the space and measures a few candidates…"):
        try:
            job = site.zoo.submit(JobKind.PREVIEW, {"search": spec})
            done = site.zoo.wait(job.id, timeout_s=PREVIEW_TIMEOUT_S)
        except BlockyardError as error:
            st.error(str(error), icon=":material/error:")
            return
    st.session_state["preview"] = {"of": text, "result": dict(done.result or {})}


def _preview(result: dict[str, Any], spec: dict[str, Any]) -> None:
    with st.container(border=True):
        if result.get("feasible"):
            st.success("The limits can be met.", icon=":material/check:")
        else:
            st.warning(
                f"The limits cannot be met: {result.get('reason')}", icon=":material/warning:"
            )
        left, right = st.columns(2)
        if result.get("size") is not None:
            left.metric("Architectures in the space", count(float(result["size"])))
        each = result.get("candidate_s")
        if each is not None:
            number = (spec["method"].get("params") or {}).get("candidates")
            total = f"{duration(each * number)} for {number}" if number else None
            right.metric(
                "One candidate takes", duration(each), total, delta_color="off", delta_arrow="off"
            )
        rows = [
            {
                "cost": label(name),
                **{key: metric(name, cost[key]) for key in ("min", "median", "max")},
            }
            for name, cost in (result.get("cost") or {}).items()
        ]
        if rows:
            st.dataframe(rows, hide_index=True)
