"""Bring a database to a revision: ``python -m migrations upgrade|downgrade|current|check``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from zoo.errors import BlockyardError
from zoo.store import migrate
from zoo.store.database import connect, parse_url, translated


def run(arguments: Sequence[str]) -> int:
    """Run one command and return the exit status: 0 if the database is as it was asked to be."""
    options = _parser().parse_args(arguments)
    try:
        engine = connect(parse_url(options.db))
        try:
            if options.command == "upgrade":
                migrate.upgrade(engine, options.revision or "head")
            elif options.command == "downgrade":
                migrate.downgrade(engine, options.revision or "-1")
            elif options.command == "check" and (differences := migrate.drift(engine)):
                for difference in differences:
                    sys.stderr.write(f"{difference}\n")
                return 1
            with translated(), engine.connect() as connection:
                revision = migrate.current(connection) or "empty"
        finally:
            engine.dispose()
    except BlockyardError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"{json.dumps({'revision': revision}) if options.json else revision}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m migrations", description=__doc__)
    parser.add_argument(
        "command",
        choices=("upgrade", "downgrade", "current", "check"),
        help="to a revision up or down; print the revision; compare tables with the program",
    )
    parser.add_argument("revision", nargs="?", help="default: head for upgrade, -1 for downgrade")
    url = os.environ.get("BLOCKYARD_URL")
    parser.add_argument(
        "--db",
        default=url,
        required=url is None,
        metavar="URL",
        help="e.g. sqlite:///zoo.db; one with a password belongs in BLOCKYARD_URL",
    )
    parser.add_argument("--json", action="store_true", help="print the revision as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
