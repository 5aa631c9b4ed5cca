"""``python -m workers hash SPACE``: architectures on stdin, one functional hash a line."""

from __future__ import annotations

import argparse
import json
import sys

from nas.hashing import Hasher
from nas.plugins import make_space
from serving.runners.devices import usable_cores
from zoo.errors import BlockyardError, InvalidInputError
from zoo.spec import TensorSpec

FAILED, WRONG_INPUT = 1, 2


def main(argv: list[str]) -> int:
    """Hash stdin and return the exit code."""
    options = _parser().parse_args(argv)
    try:
        params = json.loads(options.params)
        space = make_space(options.space, params)
        shape = tuple(int(size) for size in options.inputs.split(","))
        with Hasher(
            space,
            inputs=TensorSpec(shape=shape),
            num_classes=options.classes,
            memo=not options.no_memo,
            processes=options.processes or usable_cores(),
        ) as hasher:
            for line in hasher.lines(line for line in sys.stdin if line.strip()):
                sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
    except (BlockyardError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return WRONG_INPUT if isinstance(error, InvalidInputError | ValueError) else FAILED
    except BrokenPipeError:
        sys.stderr.close()
        return FAILED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m workers hash", description=__doc__)
    parser.add_argument("space")
    parser.add_argument("--params", default="{}", help="the space's parameters, as JSON")
    parser.add_argument("--inputs", default="3,32,32", help="channels,height,width of images")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--processes", type=int, default=0, help="0 takes every core")
    parser.add_argument("--no-memo", action="store_true")
    return parser
