"""The ``blockyard`` command: noun, then verb.

Exit codes: 0 done, 1 failed, 2 wrong input, 130 interrupted. Answers go to stdout,
progress and errors to stderr; an error is one line.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from ui.commands import chain, cost, demo, job, key, plugins, process, search, store, train
from ui.terminal import Group, Terminal, answer_options, connection_options
from zoo.errors import BlockyardError, InvalidInputError


@click.group(
    cls=Group,
    params=[*connection_options(), *answer_options()],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="blockyard", prog_name="blockyard")
def cli() -> None:
    """Search neural architectures for your hardware, keep them as blocks, assemble, serve."""


for command in (
    plugins.space,
    plugins.method,
    plugins.data,
    search.search,
    train.train,
    job.job,
    store.zoo,
    chain.chain,
    cost.cost,
    process.serve,
    process.worker,
    process.ui,
    process.up,
    process.db,
    key.key,
    demo.demo,
):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        arguments: Words after the program's name; those of the process if omitted.
    """
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code."""
    try:
        code = cli.main(list(arguments), "blockyard", standalone_mode=False, obj=Terminal())
    except click.UsageError as error:
        hint = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        return _fail(error.format_message() + hint, 2)
    except click.ClickException as error:
        return _fail(error.format_message(), 1)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)
    except BlockyardError as error:
        return _fail(str(error), 2 if isinstance(error, InvalidInputError) else 1)
    except BrokenPipeError:
        # The reader (head, less) went away; Python would complain again at exit.
        sys.stderr.close()
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        return _fail(f"{where}{error.strerror or error}", 1)
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int) -> int:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    return code
