"""What can be searched, how and on which data: asked of live workers, else of a child process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zoo.errors import EnvironmentUnfitError

if TYPE_CHECKING:
    from zoo.client import Zoo

Entry = Mapping[str, Any]
_PRINT = "import json, nas.plugins; print(json.dumps(nas.plugins.catalogue()))"


def of_this_machine() -> dict[str, list[Entry]]:
    """Ask the plug-ins installed here, in a child process, since they import torch.

    Raises:
        EnvironmentUnfitError: The child failed; its last line says why.
    """
    found: dict[str, list[Entry]] = json.loads(_ask(_PRINT))
    return found


def catalogue(zoo: Zoo) -> Mapping[str, Sequence[Entry]]:
    """Return what live workers offer, or what is installed here where none lives."""
    from zoo.catalogue import catalogue as merged

    live = merged(zoo.workers())
    return live if any(live.values()) else of_this_machine()


_DESCRIBE = """
import json, sys, nas.plugins
from zoo.spec import Architecture, TensorSpec
architecture = Architecture.from_json(json.load(sys.stdin))
space = nas.plugins.space_of(architecture)
blocks = space.blocks(architecture, inputs=TensorSpec(shape=(3, 32, 32)), num_classes=10)
blocks = [block.to_json() for block in blocks]
print(json.dumps({"summary": space.summary(architecture), "blocks": blocks}))
"""


def description_of(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Ask the search space, in a child process, what an architecture is.

    Returns:
        ``{"summary": one readable line, "blocks": its block specs for 32×32 images}``.

    Raises:
        EnvironmentUnfitError: The space is not installed here or refuses it.
    """
    found: dict[str, Any] = json.loads(_ask(_DESCRIBE, json.dumps(architecture)))
    return found


def _ask(code: str, text: str = "") -> str:
    """Run a few lines of Python in a child process and return the last line it prints.

    A plug-in may print while it is imported; the answer is the last line.
    """
    result = subprocess.run(
        [sys.executable, "-c", code], input=text, capture_output=True, text=True
    )
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no output"])[-1]
        raise EnvironmentUnfitError(
            f"the plug-ins installed here did not answer: {last}; "
            "repair the installation, or start a worker and ask again"
        )
    return result.stdout.strip().splitlines()[-1]
