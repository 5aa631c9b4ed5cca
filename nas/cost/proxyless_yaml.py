"""Latency tables in the form of ProxylessNAS: one entry for each layer of a network.

Keys and entries are written and read here alone, for tables on files and for the one that
a search is given (``nas.methods.proxyless``).

Source:
    Cai et al. (2019), arXiv:1812.00332; the official tables have ``count``, ``mean`` and
    ``var`` in milliseconds under keys such as
    ``expanded_conv-input:112x112x16-output:56x56x24-expand:3-kernel:5-stride:2-idskip:0``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import yaml

from nas.cost.table import Entry, LatencyTable
from zoo.errors import InvalidInputError


def mobile_key(
    kind: str,
    inputs: Sequence[int],
    outputs: Sequence[int] | int,
    *,
    expand: int | None = None,
    kernel: int | None = None,
    stride: int | None = None,
    idskip: bool | None = None,
) -> str:
    """Return the key of a layer in ProxylessNAS's tables.

    Args:
        kind: ``Conv``, ``Conv_1``, ``expanded_conv`` or ``Logits``.
        inputs: Height, width and channels.
        outputs: The same, or the number of classes.
        expand: Expansion of an inverted bottleneck; with it go the other three.
        kernel: Its kernel size.
        stride: Its stride.
        idskip: Whether it has a shortcut.
    """
    result = str(outputs) if isinstance(outputs, int) else "x".join(map(str, outputs))
    key = f"{kind}-input:{'x'.join(map(str, inputs))}-output:{result}"
    if expand is None:
        return key
    if kernel is None or stride is None or idskip is None:
        raise InvalidInputError(f"{key} has an expansion; give kernel, stride and idskip too")
    return f"{key}-expand:{expand}-kernel:{kernel}-stride:{stride}-idskip:{int(idskip)}"


_MOBILE_KEY = re.compile(
    r"[A-Za-z_0-9]+-input:\d+x\d+x\d+-output:\d+(x\d+x\d+)?"
    r"(-expand:\d+-kernel:\d+-stride:\d+-idskip:[01])?"
)


def keyed_by_layers(table: LatencyTable) -> bool:
    """Return whether a table is of layers as ProxylessNAS names them, not of operators."""
    return bool(table.entries) and all(map(_MOBILE_KEY.fullmatch, table.entries))


def layer_entry(key: str, fields: object) -> Entry:
    """Read one entry: its mean in ms, or a mapping of ``mean`` and perhaps ``count`` and ``var``.

    The mean stands for the median, the standard deviation of ``var`` gives the spread.

    Raises:
        InvalidInputError: It is neither, or a number is impossible.
    """
    given = fields if isinstance(fields, Mapping) else {"mean": fields}
    try:
        mean, variance = _number(given["mean"]), _number(given.get("var", 0.0))
        count = int(_number(given.get("count", 1)))
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise InvalidInputError(
            f"the latency of {key!r} is {fields!r}; give milliseconds above 0, or a mapping "
            "with numbers under mean, count and var"
        ) from error
    if not (mean > 0 and math.isfinite(mean) and variance >= 0 and count >= 1):
        raise InvalidInputError(
            f"the latency of {key!r} is {fields!r}; the mean must be above 0, var at least 0 "
            "and count at least 1"
        )
    return Entry(median_ms=mean, spread_ms=_NORMAL_IQR * math.sqrt(variance), count=count)


def from_proxyless_yaml(text: str, *, device: str) -> LatencyTable:
    """Read a table in the YAML form of ProxylessNAS: ``key: {count, mean, var}``, in ms.

    Args:
        text: The file's contents; only plain YAML values are read.
        device: What the latencies were measured on, as the author names it.

    Raises:
        InvalidInputError: The text is no such table; the message names the entry.
    """
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidInputError(f"the table is not plain YAML: {error}") from error
    if not isinstance(data, dict) or not data:
        raise InvalidInputError("the table is no YAML mapping of layers to measurements")
    for key, fields in data.items():
        if not isinstance(key, str) or not _MOBILE_KEY.fullmatch(key):
            raise InvalidInputError(f"{key!r} is not a layer key of a ProxylessNAS table")
        if not isinstance(fields, dict) or not {"count", "mean"} <= fields.keys():
            raise InvalidInputError(f"layer {key}: {fields!r} needs count, mean and var")
    return LatencyTable(
        device={"id": None, "name": device, "kind": "imported"},
        runtime="imported",
        precision="float32",
        batch=1,
        entries={key: layer_entry(key, fields) for key, fields in data.items()},
    )


def _number(value: object) -> float:
    """Return a YAML number; its ``no`` is a boolean, and no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


_NORMAL_IQR = 1.349
"""Interquartile range of a normal distribution, in standard deviations."""
