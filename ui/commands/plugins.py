"""``blockyard space|method|data list`` and ``space show``: what searches can be made of."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from ui.catalogue import Entry, catalogue
from ui.commands.process import become
from ui.request_text import settings
from ui.terminal import Group, Terminal, pass_terminal


@click.group(cls=Group)
def space() -> None:
    """Search spaces."""


@click.group(cls=Group)
def method() -> None:
    """Search methods."""


@click.group(cls=Group)
def data() -> None:
    """Data sets."""


def _entries(terminal: Terminal, kind: str) -> Sequence[Entry]:
    with terminal.zoo() as zoo:
        return catalogue(zoo)[kind]


def _list(terminal: Terminal, entries: Sequence[Entry]) -> None:
    rows = [
        (
            entry["name"],
            " ".join(f"{name}={json.dumps(default)}" for name, default in _params(entry)),
            entry.get("summary") or "",
        )
        for entry in entries
    ]
    terminal.table(("NAME", "PARAMETERS", "SUMMARY"), rows, values=entries)


def _params(entry: Entry) -> list[tuple[str, object]]:
    return list((entry.get("params") or {}).items())


@space.command("list")
@pass_terminal
def space_list(terminal: Terminal) -> None:
    """List the search spaces and their parameters."""
    _list(terminal, _entries(terminal, "spaces"))


@space.command("show")
@click.argument("name")
@pass_terminal
def space_show(terminal: Terminal, name: str) -> None:
    """Show one search space and the default of each parameter."""
    _show(terminal, "search space", name, _entries(terminal, "spaces"))


@space.command("hash")
@click.argument("name", metavar="SPACE")
@click.option("--stdin", is_flag=True, required=True, help="Read architectures, one a line.")
@click.option("-p", "params", multiple=True, metavar="NAME=VALUE", help="Setting of the space.")
@click.option("--inputs", default="3,32,32", show_default=True, help="Channels, height, width.")
@click.option("--classes", type=int, default=10, show_default=True, help="Number of classes.")
@click.option("--processes", type=int, default=0, help="How many to use; every core if not given.")
@click.option("--no-memo", is_flag=True, help="Run every network, also those drawn alike.")
def space_hash(
    name: str,
    stdin: bool,
    params: tuple[str, ...],
    inputs: str,
    classes: int,
    processes: int,
    no_memo: bool,
) -> None:
    """Print one functional hash a line: equal where networks compute the same.

    A line is what the space writes of an architecture (of NAS-Bench-201 the usual string), or
    its choices as a JSON list.
    """
    words = ["hash", name, "--params", json.dumps(settings(params)), "--inputs", inputs]
    words += ["--classes", str(classes), "--processes", str(processes)]
    become("workers", [*words, *(["--no-memo"] if no_memo else [])])


@method.command("list")
@pass_terminal
def method_list(terminal: Terminal) -> None:
    """List the search methods and their parameters."""
    _list(terminal, _entries(terminal, "methods"))


@method.command("show")
@click.argument("name")
@pass_terminal
def method_show(terminal: Terminal, name: str) -> None:
    """Show one search method and the default of each parameter."""
    _show(terminal, "search method", name, _entries(terminal, "methods"))


@data.command("list")
@pass_terminal
def data_list(terminal: Terminal) -> None:
    """List the data sets that can be named."""
    _list(terminal, _entries(terminal, "data"))


def _show(terminal: Terminal, kind: str, name: str, entries: Sequence[Entry]) -> None:
    from zoo.errors import UnknownNameError

    found = [entry for entry in entries if entry["name"] == name]
    if not found:
        raise UnknownNameError(kind, name, [entry["name"] for entry in entries])
    entry = found[0]
    facts = {"name": name, "summary": entry.get("summary") or ""}
    facts |= {f"  {key}": json.dumps(default) for key, default in _params(entry)}
    terminal.facts(facts, value=entry)
