"""What must be done before a third-party library can be imported on every machine."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from threading import Lock

import torch

_TORCHVISION_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

_DECLARING = Lock()


def declare_torchvision_operators() -> torch.library.Library | None:
    """Make ``import torchvision`` work where its native operators cannot be loaded.

    torchvision's binary wheels are built for one build of torch. Beside another (a CPU
    build, say) the native library does not load, and torchvision's own Python code then
    fails on two operators that it takes for declared. Declaring their schemas is enough
    for everything but detection. Call it before the first import of torchvision or timm,
    from whatever thread; it does nothing where torchvision is absent or its native library
    loads.

    Returns:
        The declarations, which last as long as this object: here, as long as the process.
    """
    with _DECLARING:
        return _declare()


@cache
def _declare() -> torch.library.Library | None:
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None or _native_library_loads(Path(found.origin).parent):
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema in _TORCHVISION_SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]
    return library


def _native_library_loads(folder: Path) -> bool:
    for path in sorted((*folder.glob("_C*.so"), *folder.glob("_C*.pyd"))):
        try:
            torch.ops.load_library(str(path))  # type: ignore[no-untyped-call]
        except (ImportError, OSError):
            continue
        return True
    return False
