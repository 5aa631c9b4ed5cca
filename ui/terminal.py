"""What commands have in common: options, tables, JSON, questions and one-line errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ui.connection import DEFAULT_URL, Connection

if TYPE_CHECKING:
    from zoo.client import Zoo


@dataclass
class Terminal:
    """How to reach the store and how to answer; one for each run of the command line."""

    connection: Connection = field(default_factory=Connection)
    json: bool = False
    quiet: bool = False
    yes: bool = False

    def zoo(self) -> AbstractContextManager[Zoo]:
        """Connect to the store or server."""
        return self.connection.open()

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        values: Sequence[object],
        ids: Sequence[str] = (),
    ) -> None:
        """Print rows: JSON ``values``, only ``ids``, a table on a terminal, tabs in a pipe."""
        if self.json:
            self.answer(list(values))
        elif self.quiet:
            for identity in ids or [row[0] for row in rows]:
                click.echo(identity)
        elif sys.stdout.isatty():
            _rich_table(columns, rows)
        else:
            for row in (columns, *rows):
                click.echo("\t".join(row))

    def answer(self, value: object) -> None:
        """Print a value as JSON."""
        click.echo(json.dumps(value, indent=2, ensure_ascii=False))

    def facts(self, facts: Mapping[str, str], *, value: object) -> None:
        """Print named facts, one a line, or ``value`` as JSON."""
        if self.json:
            self.answer(value)
            return
        width = max(map(len, facts), default=0)
        for name, fact in facts.items():
            click.echo(f"{name:<{width}}  {fact}" if fact else name)

    def say(self, message: str) -> None:
        """Tell a person something that is no part of the answer, on stderr."""
        if not self.quiet:
            click.echo(message, err=True)

    def confirm(self, question: str) -> None:
        """Ask before something that cannot be undone, unless ``--yes`` was given.

        Raises:
            click.UsageError: Nobody can answer, since stdin is no terminal.
            click.Abort: The answer was no.
        """
        if self.yes:
            return
        if not sys.stdin.isatty():
            raise click.UsageError(f"{question} Say --yes to go on without being asked.")
        click.confirm(question, abort=True, err=True)


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


_FOLDER = click.Path(file_okay=False, path_type=Path)

_COMMON: tuple[tuple[tuple[str, ...], str, click.ParamType[Any] | None, str], ...] = (
    (("--url",), "BLOCKYARD_URL", None, f"Server or database URL.  [default: {DEFAULT_URL}]"),
    (("--api-key",), "BLOCKYARD_API_KEY", None, "Key for the server."),
    (
        ("--files",),
        "BLOCKYARD_FILES",
        _FOLDER,
        "Folder of weights; needed with PostgreSQL.",
    ),
    (
        ("--data-dir", "--data"),
        "BLOCKYARD_DATA",
        _FOLDER,
        "Folder of data sets, for workers started from here.",
    ),
)


def connection_options() -> list[click.Option]:
    """Return the options of the whole command line that say what to connect to."""
    return [
        click.Option(
            names,
            type=kind,
            envvar=variable,
            show_envvar=True,
            expose_value=False,
            callback=_keep,
            help=text,
        )
        for names, variable, kind, text in _COMMON
    ]


def _repeated_options(taken: set[str]) -> list[click.Option]:
    """Return the same options for use after a command's name, less the names it uses itself."""
    return [
        click.Option(free, type=kind, expose_value=False, callback=_keep, hidden=True)
        for names, _, kind, _ in _COMMON
        if (free := tuple(name for name in names if name not in taken))
    ]


def answer_options() -> list[click.Option]:
    """Return the options that say how a command answers."""

    def flag(*names: str, text: str) -> click.Option:
        return click.Option(names, is_flag=True, expose_value=False, callback=_keep, help=text)

    return [
        flag("--json", text="Answer in JSON."),
        flag("-q", "--quiet", text="Print ids only, and no progress."),
        flag("-y", "--yes", text="Do not ask."),
    ]


def _keep(context: click.Context, parameter: click.Parameter, value: object) -> None:
    terminal = context.find_object(Terminal)
    if terminal is None or not value:
        return
    name = parameter.name or ""
    if name in ("json", "quiet", "yes"):
        setattr(terminal, name, True)
    else:
        field_name = "data" if name in ("data", "data_dir") else name
        terminal.connection = terminal.connection.but(**{field_name: value})


class Command(click.Command):
    """A command that takes the common options after its own name as well."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        taken = {text for parameter in self.params for text in parameter.opts}
        self.params += [*answer_options(), *_repeated_options(taken)]


class Group(click.Group):
    """A noun; its verbs are ``Command``s."""

    command_class = Command
    group_class = type


pass_terminal = click.make_pass_decorator(Terminal)
