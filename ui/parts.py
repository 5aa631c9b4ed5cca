"""Parts that several pages show of a chain: blocks, profiles, lineage, downloads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import streamlit as st

from ui.charts import histogram_figure
from ui.export import chain_weights, snippet
from ui.formats import count, metric, short, size
from ui.website import Site
from zoo.canonical import plain

if TYPE_CHECKING:
    from zoo.spec import BlockSpec, Chain, Profile
    from zoo.store.protocols import Edge

GRAPH = 'rankdir=LR; bgcolor="transparent"; node [shape=box style="rounded,filled" fillcolor="#eef3f8" color="#9fb4c7" fontname="sans-serif" fontsize=11]; edge [color="#7b8794" fontname="sans-serif" fontsize=9];'  # noqa: E501


def load_and_download(site: Site, chain: Chain) -> None:
    """Draw the lines that load a chain and buttons that download it."""
    st.code(snippet(site.connection.url, chain.id), language="python")
    zoo = site.zoo
    with st.container(horizontal=True):
        st.download_button(
            "ONNX",
            partial(zoo.onnx, chain.id),
            file_name=f"{chain.id[:12]}.onnx",
            mime="application/octet-stream",
            on_click="ignore",
            icon=":material/download:",
        )
        st.download_button(
            "safetensors",
            partial(chain_weights, zoo, chain),
            file_name=f"{chain.id[:12]}.safetensors",
            mime="application/octet-stream",
            on_click="ignore",
            icon=":material/download:",
        )


def blocks_of(site: Site, chain: Chain) -> None:
    """Draw the blocks of a chain in order, and the wiring of cells."""
    st.subheader("Blocks", anchor=False)
    users = _uses(site, chain)
    rows = [
        {
            "position": position,
            "operation": block.spec.op,
            "in": _shapes(block.spec.inputs),
            "out": _shapes(block.spec.outputs),
            "parameters": count(block.num_params),
            "size": size(block.size_bytes),
            "used by": users[block.id],
            "block": block.id,
        }
        for position, block in enumerate(chain.blocks)
    ]
    st.dataframe(
        rows,
        hide_index=True,
        column_config={"used by": st.column_config.NumberColumn(format="%d chains")},
    )
    wiring_of([block.spec for block in chain.blocks])


def wiring_of(specs: Iterable[BlockSpec]) -> None:
    """Draw the wiring of each distinct cell."""
    wired = [spec for spec in specs if spec.params.get("nodes")]
    distinct = {str(plain(spec.params["nodes"])): spec for spec in wired}
    for spec in distinct.values():
        kind = "reduction cell" if spec.params.get("reduction") else "normal cell"
        with st.expander(f"Wiring of the {kind}", expanded=True):
            st.graphviz_chart(cell_graph(spec), alt=f"graph of the {kind}")


def chain_graph(specs: Iterable[BlockSpec]) -> str:
    """Write the blocks of a network in order, and the shapes between them, for Graphviz."""
    lines = [GRAPH]
    last = None
    for position, spec in enumerate(specs):
        kind = ", reduction" if spec.params.get("reduction") else ""
        lines.append(f'b{position} [label="{spec.op}{kind}"];')
        if last is not None:
            lines.append(f'b{position - 1} -> b{position} [label="{_shapes(last.outputs[-1:])}"];')
        last = spec
    return "digraph {" + " ".join(lines) + "}"


def _uses(site: Site, chain: Chain) -> dict[str, int]:
    ids = {block.id for block in chain.blocks}
    return {block: sum(1 for _ in site.zoo.chains(block=block)) for block in ids}


def _shapes(tensors: Sequence[Any]) -> str:
    return ", ".join(
        "×".join("?" if side is None else str(side) for side in tensor.shape) for tensor in tensors
    )


def cell_graph(spec: BlockSpec) -> str:
    """Write the wiring of a cell in Graphviz's language.

    ``nodes`` in the block's settings lists, for each node, ``[operation, source]`` pairs;
    sources 0 and 1 are the cell's inputs.
    """
    nodes: Any = plain(spec.params["nodes"])
    lines = [GRAPH, 's0 [label="input 0"];', 's1 [label="input 1"];', "out;"]
    for position, edges in enumerate(nodes):
        target = f"s{position + 2}"
        lines.append(f'{target} [label="node {position}"];')
        lines += [f'{_state(source)} -> {target} [label="{name}"];' for name, source in edges]
        lines.append(f"{target} -> out;")
    return "digraph {" + " ".join(lines) + "}"


def _state(source: int) -> str:
    return f"s{source}"


def profiles_of(site: Site, subject: str) -> None:
    """Draw what was measured of a chain or block, and how single runs are distributed."""
    profiles = site.zoo.profiles(subject)
    st.subheader("Latency", anchor=False)
    if not profiles:
        st.caption("Not measured yet.")
        return
    names = {device.id: device.name for device in site.zoo.devices()}
    rows = [
        {
            "device": names.get(item.device, item.device),
            "runtime": item.runtime,
            "precision": item.precision,
            "batch": item.batch,
            "median": metric("latency_ms", item.median_ms),
            "p95": metric("latency_ms", item.p95_ms),
            "peak memory": "–" if item.peak_bytes is None else size(item.peak_bytes),
        }
        for item in profiles
    ]
    st.dataframe(rows, hide_index=True)
    sampled = [item for item in profiles if len(item.samples) > 1]
    if sampled:
        chosen: Profile | None = st.selectbox(
            "Single runs of",
            sampled,
            format_func=lambda item: (
                f"{names.get(item.device, item.device)}, {item.runtime}, batch {item.batch}"
            ),
            key=f"runs-{subject}",
        )
        if chosen:
            figure = histogram_figure(
                chosen.samples, median_ms=chosen.median_ms, p95_ms=chosen.p95_ms
            )
            st.plotly_chart(figure, key=f"histogram-{subject}")


def lineage_of(site: Site, subject: str) -> None:
    """Draw where a chain or block comes from and what was made of it."""
    edges = site.zoo.lineage(subject)
    st.subheader("Lineage", anchor=False)
    if edges:
        st.graphviz_chart(lineage_graph(edges, subject), alt="graph of the lineage")
    else:
        st.caption("Nothing is recorded.")


def lineage_graph(edges: Sequence[Edge], subject: str) -> str:
    """Write lineage in Graphviz's language, parents to the left; ``subject`` stands out."""
    names = dict.fromkeys(name for edge in edges for name in (edge.parent, edge.child))
    lines = [GRAPH]
    for name in names:
        colour = ' fillcolor="#f9e9a1"' if name == subject else ""
        lines.append(f'"{name}" [label="{short(name)}"{colour}];')
    lines += [f'"{edge.parent}" -> "{edge.child}" [label="{edge.relation}"];' for edge in edges]
    return "digraph {" + " ".join(lines) + "}"
