"""``blockyard space|method|data list`` and ``space show``: what searches can be made of."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from ui.catalogue import Entry, catalogue
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
