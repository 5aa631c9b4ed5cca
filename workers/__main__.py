"""``python -m workers worker|serve|up|run|demo``: the processes that do the work."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from zoo.errors import BlockyardError

FAILED, USAGE, INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str]) -> int:
    """Run one process to its end and return its exit code."""
    try:
        if argv and argv[0] == "demo":  # it has options of its own
            return int(importlib.import_module("workers.demo").main(list(argv[1:])))
        if argv and argv[0] == "hash":
            return int(importlib.import_module("workers.hash_command").main(list(argv[1:])))
        options = parser().parse_args(argv)
        logging.basicConfig(
            level=options.log_level.upper(),
            format="%(asctime)s %(levelname)s %(name)s: %(message)s",
            stream=sys.stderr,
        )
        return int(importlib.import_module("workers.commands").run(options))
    except BlockyardError as error:
        sys.stderr.write(f"error: {error}\n")
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def parser() -> argparse.ArgumentParser:
    """Return the parser; defaults come from ``BLOCKYARD_*`` in the environment."""
    top = argparse.ArgumentParser(prog="python -m workers", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    worker = _command(commands, "worker", "claim jobs and run them until stopped")
    _add_broker(worker)
    run = _command(commands, "run", "run one job here, to its end")
    run.add_argument("job_id")
    for name, text in (
        ("serve", "start the HTTP server"),
        ("up", "start server and worker in one process"),
    ):
        server = _command(commands, name, text)
        _add_broker(server)
        server.add_argument("--host", default="127.0.0.1")
        server.add_argument("--port", type=int, default=8000, help="0 takes a free one")
        server.add_argument("--device", default="auto", help="where models are served")
    commands.choices["serve"].add_argument("--with-worker", action="store_true")
    commands.choices["up"].add_argument("--ui", action="store_true", help="start the pages too")
    commands.choices["up"].add_argument("--ui-port", type=int, default=8501)
    commands.add_parser("demo", help="run the main job from end to end")
    commands.add_parser("hash", help="hash architectures by what they compute")
    return top


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text)
    environment = os.environ
    command.add_argument(
        "--db",
        default=environment.get("BLOCKYARD_URL"),
        help="database URL; every user can read a command line, so one with a password belongs "
        "in BLOCKYARD_URL",
    )
    command.add_argument("--files", type=Path, default=_path(environment.get("BLOCKYARD_FILES")))
    command.add_argument(
        "--data",
        type=Path,
        default=_path(environment.get("BLOCKYARD_DATA")),
        help="folder of data sets",
    )
    command.add_argument("--log-level", default="warning", choices=["debug", "info", "warning"])
    return command


def _add_broker(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--broker",
        default=os.environ.get("BLOCKYARD_BROKER"),
        help="Redis URL, with a password in BLOCKYARD_BROKER; without it workers poll the database",
    )


def _path(value: str | None) -> Path | None:
    return Path(value) if value else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
