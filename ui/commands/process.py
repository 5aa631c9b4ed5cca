"""``blockyard serve|worker|ui|up`` and ``db``: processes that this one turns into.

The command line must start at once, so it never imports what these need: it replaces
itself by a Python that runs the module in question.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click

from ui.terminal import Command, Group, Terminal, pass_terminal


def become(module: str, arguments: list[str], environment: dict[str, str] | None = None) -> None:
    """Run ``python -m module`` in place of this process and exit as it exits.

    What is secret travels in ``environment``: every user of a machine can read command lines.
    """
    command = [sys.executable, "-m", module, *arguments]
    variables = os.environ | (environment or {})
    sys.stdout.flush()
    if os.name == "posix":
        os.execve(sys.executable, command, variables)
    sys.exit(subprocess.call(command, env=variables))


def _workers(terminal: Terminal, broker: str | None, command: str, *options: str) -> None:
    """Become a process of ``workers`` on the database."""
    data = terminal.connection.data
    become(
        "workers",
        [command, *(["--data", str(data)] if data else []), *options],
        terminal.connection.database_environment()
        | ({"BLOCKYARD_BROKER": broker} if broker else {}),
    )


broker_option = click.option(
    "--broker", envvar="BLOCKYARD_BROKER", help="Redis URL; without it workers poll the database."
)
port_option = click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
device_option = click.option(
    "--device", default="auto", show_default=True, help="Where models are served."
)
host_option = click.option("--host", default="127.0.0.1", show_default=True)


@click.command(cls=Command)
@host_option
@port_option
@device_option
@broker_option
@click.option("--with-worker", is_flag=True, help="Run jobs in this process too.")
@pass_terminal
def serve(
    terminal: Terminal, host: str, port: int, device: str, broker: str | None, with_worker: bool
) -> None:
    """Start the HTTP server: models, jobs and the zoo."""
    options = ["--host", host, "--port", str(port), "--device", device]
    options += ["--with-worker"] if with_worker else []
    _workers(terminal, broker, "serve", *options)


@click.command(cls=Command)
@broker_option
@pass_terminal
def worker(terminal: Terminal, broker: str | None) -> None:
    """Start a worker: it runs jobs and measures on its devices."""
    _workers(terminal, broker, "worker")


@click.command(cls=Command)
@host_option
@port_option
@device_option
@broker_option
@click.option("--ui", "pages", is_flag=True, help="Start the pages too.")
@click.option("--ui-port", type=click.IntRange(0, 65535), default=8501, show_default=True)
@pass_terminal
def up(
    terminal: Terminal,
    host: str,
    port: int,
    device: str,
    broker: str | None,
    pages: bool,
    ui_port: int,
) -> None:
    """Start server and worker on this machine, and the pages with --ui."""
    options = ["--host", host, "--port", str(port), "--device", device]
    options += ["--ui", "--ui-port", str(ui_port)] if pages else []
    _workers(terminal, broker, "up", *options)


@click.command(cls=Command)
@host_option
@click.option("--port", type=click.IntRange(0, 65535), default=8501, show_default=True)
@click.option("--open/--no-open", "browser", default=True, help="Open a browser.")
@pass_terminal
def ui(terminal: Terminal, host: str, port: int, browser: bool) -> None:
    """Start the pages; beyond this machine they ask every visitor for an API key."""
    connection = terminal.connection
    connection.check_pages(host)
    connection.make_folder()
    options = {
        "server.address": host,
        "server.port": str(port),
        "server.headless": "false" if browser else "true",
        "browser.gatherUsageStats": "false",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    page = Path(__file__).parents[1] / "app.py"
    environment = {"BLOCKYARD_URL": connection.url}
    environment |= {"BLOCKYARD_FILES": str(connection.files)} if connection.files else {}
    environment |= {"BLOCKYARD_API_KEY": connection.api_key} if connection.api_key else {}
    become("streamlit", ["run", str(page), *words], environment)


@click.group(cls=Group)
def db() -> None:
    """The database's schema."""


@db.command("upgrade")
@click.argument("revision", default="head")
@pass_terminal
def db_upgrade(terminal: Terminal, revision: str) -> None:
    """Bring the schema to a revision; data is kept."""
    _migrations(terminal, "upgrade", revision)


@db.command("downgrade")
@click.argument("revision")
@pass_terminal
def db_downgrade(terminal: Terminal, revision: str) -> None:
    """Take the schema back to a revision; what it has no place for is dropped."""
    terminal.confirm(f"Take {terminal.connection.url} back to revision {revision}?")
    _migrations(terminal, "downgrade", revision)


@db.command("current")
@pass_terminal
def db_current(terminal: Terminal) -> None:
    """Show the schema's revision."""
    _migrations(terminal, "current")


def _migrations(terminal: Terminal, *words: str) -> None:
    answer = ["--json"] if terminal.json else []
    become("migrations", [*words, *answer], terminal.connection.database_environment())
