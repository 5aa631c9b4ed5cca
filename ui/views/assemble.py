"""Chains: assemble one under limits, look at it, export it, load it."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import streamlit as st

from ui.cards import accuracy
from ui.formats import count, label, metric, short, size, title
from ui.parts import blocks_of, lineage_of, load_and_download, profiles_of
from ui.request_text import limits
from ui.website import Site
from zoo.canonical import plain
from zoo.errors import BlockyardError, InvalidInputError
from zoo.jobs import JobKind
from zoo.schemas import METRICS

if TYPE_CHECKING:
    from zoo.jobs import Job
    from zoo.spec import Chain

SHOWN = 200
TIMEOUT_S = 600.0


def draw(site: Site) -> None:
    """Draw the page."""
    st.title("Chains")
    with st.expander("Assemble a chain under limits", expanded="chain" not in st.query_params):
        _assemble(site)
    chain = _pick(site)
    if chain is not None:
        _show(site, chain)


def _assemble(site: Site) -> None:
    with st.form("assemble", border=False):
        first, second, third, fourth = st.columns(4)
        task = first.text_input("Task", placeholder="any, for example digits")
        objective = second.selectbox("Best by", list(METRICS), format_func=label)
        devices = ["auto", *dict.fromkeys(device.name for device in site.zoo.devices())]
        device = third.selectbox("Measured on", devices)
        runtime = fourth.selectbox("with", ["torch", "onnx"])
        left, middle, right = st.columns([2, 1, 1])
        text = left.text_area("Limits, one a line", placeholder="latency_ms<=3", height=88)
        batch = middle.number_input("at batch size", min_value=1, value=1)
        name = right.text_input("Alias", placeholder="optional")
        wanted = st.form_submit_button("Assemble", type="primary", icon=":material/link:")
    if not wanted:
        return
    try:
        bounds = limits(line for line in text.splitlines() if line.strip())
        spec = {
            "task": task.strip() or None,
            "objective": objective,
            "limits": bounds,
            "device": device,
            "runtime": runtime,
            "batch": int(batch),
            "name": name.strip() or None,
        }
        job = site.zoo.submit(JobKind.ASSEMBLE, spec)
        with st.spinner("A worker measures the most promising chains…"):
            done = site.zoo.wait(job.id, timeout_s=TIMEOUT_S)
    except InvalidInputError as error:
        st.error(str(error), icon=":material/error:")
        return
    except BlockyardError as error:
        st.error(str(error), icon=":material/error:")
        site.job_link(job, icon=":material/list:")
        return
    st.session_state["assembled"] = done
    site.go("chains", chain=str((done.result or {})["chain"]))


def _pick(site: Site) -> Chain | None:
    """Return the chain that the address names or that is chosen."""
    chains = list(islice(site.zoo.chains(descending=True), SHOWN))
    if not chains:
        st.info("The zoo has no chain yet; searches store their winners.", icon=":material/info:")
        return None
    named = {chain.id: chain for chain in chains}
    wanted = st.query_params.get("chain")
    if wanted and wanted not in named:
        chain = site.zoo.chain(wanted)
        named = {chain.id: chain, **named}
        wanted = chain.id
    ids = list(named)
    chosen = st.selectbox(
        "Chain",
        ids,
        index=ids.index(wanted) if wanted in ids else None,
        format_func=lambda key: _title(named[key]),
        placeholder="choose a chain",
    )
    if chosen is None:
        return None
    st.query_params["chain"] = chosen
    return named[chosen]


def _title(chain: Chain) -> str:
    task = str(chain.card.get("task") or "no task")
    reached = metric("accuracy", accuracy(chain))
    return f"{short(chain.id)} · {task} · accuracy {reached} · {count(chain.num_params)} parameters"


def _show(site: Site, chain: Chain) -> None:
    done: Job | None = st.session_state.get("assembled")
    if done is not None and (done.result or {}).get("chain") == chain.id:
        _explain(done)
    facts = [
        ("Accuracy", metric("accuracy", accuracy(chain))),
        ("Blocks", str(len(chain.blocks))),
        ("Parameters", count(chain.num_params)),
        ("Size", size(chain.size_bytes)),
    ]
    for column, (name, fact) in zip(st.columns(4), facts, strict=True):
        column.metric(name, fact, border=True)
    aliases = [name for name, target in site.zoo.aliases().items() if target == chain.id]
    if aliases:
        st.caption(f"aliases: {', '.join(aliases)}")
    st.subheader("Take it away", anchor=False)
    load_and_download(site, chain)
    blocks_of(site, chain)
    profiles_of(site, chain.id)
    lineage_of(site, chain.id)
    with st.expander("Card"):
        st.json(plain(chain.card), expanded=2)


def _explain(done: Job) -> None:
    """Say what an assembly chose and what it refused."""
    result: Any = plain(done.result)
    explanation = result.get("explanation") or {}
    numbers = ", ".join(
        f"{title(name)} {metric(name, value)}" for name, value in result["metrics"].items()
    )
    st.success(f"Chosen from {explanation.get('considered', '?')} chains: {numbers}")
    refused = explanation.get("refused") or []
    if refused:
        with st.expander(f"{len(refused)} were refused"):
            st.dataframe(
                [
                    {
                        "chain": short(str(item.get("chain") or "a recombination")),
                        "why": item["why"],
                    }
                    for item in refused
                ],
                hide_index=True,
            )
