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


_SUMMARISE = """
import json, sys, nas.plugins
from zoo.spec import Architecture
architecture = Architecture.from_json(json.load(sys.stdin))
print(nas.plugins.space_of(architecture).summary(architecture))
"""


def summary_of(architecture: Mapping[str, Any]) -> str:
    """Ask the search space, in a child process, how it writes an architecture.

    Raises:
        EnvironmentUnfitError: The space is not installed here or refuses it.
    """
    return _ask(_SUMMARISE, json.dumps(architecture))


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
