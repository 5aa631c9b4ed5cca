"""Seeds derived per use, so that adding one use never shifts another."""

from __future__ import annotations

import hashlib

from zoo.canonical import canonical_json


def derive_seed(seed: int, *labels: str | int) -> int:
    """Return a 63-bit seed for one use, a pure function of ``seed`` and ``labels``.

    >>> derive_seed(0, "data") != derive_seed(0, "weights")
    True
    """
    data = canonical_json([seed, *labels])
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") >> 1
