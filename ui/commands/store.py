"""``blockyard zoo …``: what is kept, whether it is whole, and clearing up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from ui.cards import accuracy
from ui.formats import count, metric, short, size
from ui.terminal import Group, Terminal, pass_terminal

if TYPE_CHECKING:
    from zoo.client import Zoo
    from zoo.spec import Block, Chain, Profile


@click.group(cls=Group)
def zoo() -> None:
    """Stored blocks and chains."""


@zoo.command("list")
@click.option("--blocks", is_flag=True, help="Blocks instead of chains.")
@click.option("--task", help="Chains for this data set.")
@click.option("--op", help="Blocks of this operation.")
@click.option("--block", help="Chains that use this block.")
@click.option("--min-accuracy", type=float)
@click.option("--max-latency-ms", type=float, help="Needs --device.")
@click.option("--max-size-bytes", type=int)
@click.option("--max-params", type=int)
@click.option("--device", help="Device of the latency.")
@click.option("--order", default="created", show_default=True)
@click.option("--descending/--ascending", default=True, show_default=True)
@click.option("--limit", "-n", "number", type=click.IntRange(1), default=50, show_default=True)
@pass_terminal
def zoo_list(terminal: Terminal, /, *, blocks: bool, number: int, **filters: Any) -> None:
    """List chains, or blocks, that meet limits."""
    given = {name: value for name, value in filters.items() if value is not None}
    fields = BLOCK_FILTERS if blocks else CHAIN_FILTERS
    wrong = sorted(set(given) - fields)
    if wrong:
        kind = "blocks" if blocks else "chains"
        names = ", ".join(f"--{name.replace('_', '-')}" for name in wrong)
        raise click.UsageError(f"{kind} have no filter {names}")
    with terminal.zoo() as store:
        if blocks:
            _list_blocks(terminal, list(islice(store.blocks(**given), number)))
        else:
            _list_chains(terminal, store, list(islice(store.chains(**given), number)))


BLOCK_FILTERS = {"op", "max_params", "max_size_bytes", "order", "descending"}
CHAIN_FILTERS = {
    "task",
    "block",
    "min_accuracy",
    "max_latency_ms",
    "max_size_bytes",
    "max_params",
    "device",
    "order",
    "descending",
}


def _list_blocks(terminal: Terminal, found: Sequence[Block]) -> None:
    rows = [
        (short(item.id), item.spec.op, count(item.num_params), size(item.size_bytes))
        for item in found
    ]
    terminal.table(
        ("BLOCK", "OPERATION", "PARAMETERS", "SIZE"),
        rows,
        values=[item.to_json() for item in found],
        ids=[item.id for item in found],
    )


def _list_chains(terminal: Terminal, store: Zoo, found: Sequence[Chain]) -> None:
    names: dict[str, list[str]] = {}
    for alias, chain_id in store.aliases().items():
        names.setdefault(chain_id, []).append(alias)
    rows = [
        (
            short(item.id),
            ", ".join(names.get(item.id, [])),
            str(item.card.get("task") or ""),
            metric("accuracy", accuracy(item)),
            str(len(item.blocks)),
            count(item.num_params),
            size(item.size_bytes),
        )
        for item in found
    ]
    terminal.table(
        ("CHAIN", "ALIASES", "TASK", "ACCURACY", "BLOCKS", "PARAMETERS", "SIZE"),
        rows,
        values=[item.to_json() for item in found],
        ids=[item.id for item in found],
    )


@zoo.command("show")
@click.argument("reference")
@pass_terminal
def zoo_show(terminal: Terminal, reference: str) -> None:
    """Show a chain (id, prefix or alias) or a block (id): card, profiles, lineage."""
    from zoo.errors import NotFoundError

    with terminal.zoo() as store:
        try:
            show_chain(terminal, store, store.chain(reference))
        except NotFoundError:
            try:
                found = store.block(reference)
            except NotFoundError:
                raise NotFoundError(
                    f"no chain, alias or block {reference!r}; blockyard zoo list shows them"
                ) from None
            _show_block(terminal, store, found)


def show_chain(terminal: Terminal, store: Zoo, chain: Chain) -> None:
    """Print all that is known of a chain."""
    profiles = store.profiles(chain.id)
    value = {
        **chain.to_json(),
        "profiles": [item.to_json() for item in profiles],
        "lineage": [edge.to_json() for edge in store.lineage(chain.id)],
    }
    facts = {
        "chain": chain.id,
        "blocks": ", ".join(f"{item.spec.op} {short(item.id)}" for item in chain.blocks),
        "parameters": count(chain.num_params),
        "size": size(chain.size_bytes),
        **{str(name): _brief(fact) for name, fact in chain.card.items()},
        **_profile_facts(profiles),
    }
    terminal.facts(facts, value=value)


def _show_block(terminal: Terminal, store: Zoo, block: Block) -> None:
    profiles = store.profiles(block.id)
    used = list(store.chains(block=block.id))
    value = {
        **block.to_json(),
        "profiles": [item.to_json() for item in profiles],
        "chains": [item.id for item in used],
        "lineage": [edge.to_json() for edge in store.lineage(block.id)],
    }
    facts = {
        "block": block.id,
        "operation": block.spec.op,
        "settings": _brief(dict(block.spec.params)),
        "inputs": ", ".join(_tensor(item) for item in block.spec.inputs),
        "outputs": ", ".join(_tensor(item) for item in block.spec.outputs),
        "parameters": count(block.num_params),
        "size": size(block.size_bytes),
        "weights": block.weights,
        "used by": ", ".join(short(item.id) for item in used) or "no chain",
        **_profile_facts(profiles),
    }
    terminal.facts(facts, value=value)


def _tensor(tensor: Any) -> str:
    return f"{tensor.dtype}{list(tensor.shape)}"


def _brief(fact: object) -> str:
    return fact if isinstance(fact, str) else json.dumps(fact, ensure_ascii=False)


def _profile_facts(profiles: Sequence[Profile]) -> dict[str, str]:
    return {
        f"on {item.device}, {item.runtime}, batch {item.batch}": (
            f"{metric('latency_ms', item.median_ms)} median, "
            f"{metric('latency_ms', item.p95_ms)} p95"
        )
        for item in profiles
    }


@zoo.command("verify")
@pass_terminal
def zoo_verify(terminal: Terminal) -> None:
    """Read every stored file and compare it with its digest; name those that are lost, too."""
    with terminal.zoo() as store:
        corrupt = store.verify()
    terminal.facts(
        dict.fromkeys(corrupt, "corrupt or missing") or {"every file is whole": ""},
        value={"corrupt": corrupt},
    )
    if corrupt:
        raise click.ClickException(
            f"{len(corrupt)} of the files are corrupt or missing and will not be served; "
            "restore them from a copy, or store their blocks again"
        )


@zoo.command("gc")
@pass_terminal
def zoo_gc(terminal: Terminal) -> None:
    """Count blocks that no chain uses and files that nothing refers to; with --yes delete them."""
    delete = terminal.yes
    with terminal.zoo() as store:
        blocks, files = store.gc(dry_run=not delete)
    verb = "deleted" if delete else "would be deleted; say --yes to delete them"
    terminal.facts(
        {f"{blocks} blocks and {files} files {verb}": ""},
        value={"blocks": blocks, "files": files, "deleted": delete},
    )
