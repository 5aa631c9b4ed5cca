"""The zoo: chains and blocks under filters, where they are used, and downloads."""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import streamlit as st

from ui.cards import accuracy
from ui.export import snippet
from ui.formats import count, label, metric, short, size
from ui.parts import lineage_of, profiles_of
from ui.website import Site
from zoo.canonical import plain

if TYPE_CHECKING:
    from zoo.spec import Block

SHOWN = 200
ORDERS = ("created", "num_params", "size_bytes")


def draw(site: Site) -> None:
    """Draw the page."""
    st.title("Zoo")
    kind = st.segmented_control(
        "Kind",
        ("Chains", "Blocks"),
        default="Chains",
        required=True,
        key="kind",
        bind="query-params",
        label_visibility="collapsed",
    )
    if kind == "Blocks":
        _blocks(site)
    else:
        _chains(site)


def _chains(site: Site) -> None:
    filters: dict[str, Any] = {}
    first, second, third, fourth, fifth = st.columns(5)
    filters["task"] = first.text_input("Task", placeholder="any").strip() or None
    filters["min_accuracy"] = second.number_input(
        "Accuracy at least", min_value=0.0, max_value=1.0, value=None, step=0.01
    )
    devices = [device.name for device in site.zoo.devices()]
    device = third.selectbox("On device", devices, index=None, placeholder="any")
    bound = fourth.number_input(
        "Latency at most (ms)",
        min_value=0.0,
        value=None,
        disabled=device is None,
        help="Choose a device first.",
    )
    if device is not None and bound is not None:
        filters |= {"device": device, "max_latency_ms": bound}
    order = fifth.selectbox(
        "Order", ("created", "accuracy", "num_params", "size_bytes"), format_func=label
    )
    filters |= {"order": order, "descending": order in ("created", "accuracy")}
    given = {name: value for name, value in filters.items() if value is not None}
    chains = list(islice(site.zoo.chains(**given), SHOWN))
    if not chains:
        st.info("No chain passes the filters.", icon=":material/info:")
        return
    names: dict[str, list[str]] = {}
    for alias, chain_id in site.zoo.aliases().items():
        names.setdefault(chain_id, []).append(alias)
    distinct = {block.id: block.size_bytes for chain in chains for block in chain.blocks}
    apart = sum(chain.size_bytes for chain in chains)
    kept = sum(distinct.values())
    columns = st.columns(4)
    columns[0].metric("Chains", f"{len(chains)}", border=True)
    columns[1].metric("Distinct blocks", f"{len(distinct)}", border=True)
    columns[2].metric("Weights kept", size(kept), border=True)
    columns[3].metric("Saved by sharing", f"{1 - kept / apart:.0%}" if apart else "–", border=True)
    rows = [
        {
            "chain": chain.id,
            "aliases": names.get(chain.id, []),
            "task": str(chain.card.get("task") or ""),
            "accuracy": accuracy(chain),
            "blocks": len(chain.blocks),
            "parameters": chain.num_params,
            "size (bytes)": chain.size_bytes,
        }
        for chain in chains
    ]
    chosen: Any = st.dataframe(
        rows,
        hide_index=True,
        key="chains",
        on_select="rerun",
        selection_mode="single-row",
        column_config={
            "accuracy": st.column_config.NumberColumn(format="%.4f"),
            "parameters": st.column_config.NumberColumn(format="compact"),
            "size (bytes)": st.column_config.NumberColumn("size", format="bytes"),
        },
    )
    marked = chosen["selection"]["rows"] or ([0] if len(chains) == 1 else [])
    if not marked:
        st.caption("Mark a row on its left edge to open the chain.")
    for index in marked:
        chain = chains[index]
        site.link("chains", f"Open chain {short(chain.id)}", icon=":material/link:", chain=chain.id)


def _blocks(site: Site) -> None:
    first, second, third = st.columns(3)
    op = first.text_input("Operation", placeholder="any, for example darts.cell").strip() or None
    bound = second.number_input("Parameters at most", min_value=0, value=None, step=1000)
    order = third.selectbox("Order", ORDERS, format_func=label)
    filters: dict[str, Any] = {"order": order, "descending": order == "created"}
    filters |= {"op": op} if op else {}
    filters |= {"max_params": bound} if bound is not None else {}
    blocks = list(islice(site.zoo.blocks(**filters), SHOWN))
    if not blocks:
        st.info("No block passes the filters.", icon=":material/info:")
        return
    signatures: dict[str, int] = {}
    for block in blocks:
        if block.signature:
            signatures[block.signature] = signatures.get(block.signature, 0) + 1
    rows = [
        {
            "block": block.id,
            "operation": block.spec.op,
            "parameters": block.num_params,
            "size (bytes)": block.size_bytes,
            "computes the same": signatures.get(block.signature or "", 1) - 1,
        }
        for block in blocks
    ]
    chosen: Any = st.dataframe(
        rows,
        hide_index=True,
        key="blocks",
        on_select="rerun",
        selection_mode="single-row",
        column_config={
            "parameters": st.column_config.NumberColumn(format="compact"),
            "size (bytes)": st.column_config.NumberColumn("size", format="bytes"),
            "computes the same": st.column_config.NumberColumn(
                help="Other blocks listed here with the same functional signature."
            ),
        },
    )
    marked = chosen["selection"]["rows"] or ([0] if len(blocks) == 1 else [])
    if not marked:
        st.caption("Mark a row on its left edge to see the block.")
    for index in marked:
        _block(site, blocks[index])


def _block(site: Site, block: Block) -> None:
    st.header(f"{block.spec.op} {short(block.id)}", anchor=False)
    left, right = st.columns(2, gap="large")
    with left:
        st.subheader("Settings", anchor=False)
        st.json(plain(block.spec.params), expanded=1)
        st.caption(f"{count(block.num_params)} parameters, {size(block.size_bytes)}")
        st.download_button(
            "safetensors",
            partial(site.zoo.files.get, block.weights),
            file_name=f"{block.id[:12]}.safetensors",
            on_click="ignore",
            icon=":material/download:",
        )
    with right:
        st.subheader("Used by", anchor=False)
        users = list(site.zoo.chains(block=block.id))
        for chain in users:
            site.link("chains", f"chain {short(chain.id)}", icon=":material/link:", chain=chain.id)
        if not users:
            st.caption("No chain.")
        st.code(snippet(site.connection.url, block.id), language="python")
    profiles_of(site, block.id)
    lineage_of(site, block.id)
    if block.signature:
        st.caption("Functional signature")
        st.code(block.signature, language=None)
    st.caption(f"{metric('size_bytes', block.size_bytes)} under the digest")
    st.code(block.weights, language=None)
