"""torchvision imports, and detects nothing, where its native operators cannot be loaded."""

from __future__ import annotations

import subprocess
import sys

CODE = """
from zoo.compat import declare_torchvision_operators
first = declare_torchvision_operators()
assert declare_torchvision_operators() is first
import torchvision
from torchvision.models import resnet18
print(sum(p.numel() for p in resnet18().parameters()))
"""


def test_torchvision_and_its_networks_can_be_imported_on_any_machine() -> None:
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "11689512"
