"""How many multiply-accumulates an operator does; one that cannot be counted is an error.

PyTorch's own formulas cover convolutions, products of matrices and the fused attention of
GPUs. Here are those that it lacks, and the names of operators that multiply and accumulate
without a formula, which would otherwise count as nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from zoo.errors import InvalidInputError

_aten: Any = torch.ops.aten


def _product(matrix: Tensor, *_: object, out_val: object = None, **__: object) -> int:
    """Return the FLOPs of a matrix or vector times a vector: two for each of its elements."""
    return 2 * matrix.numel()


def _added_product(
    _: object, matrix: Tensor, *__: object, out_val: object = None, **___: object
) -> int:
    return 2 * matrix.numel()


def _attention(
    query: Tensor, key: Tensor, value: Tensor, *_: object, out_val: object = None, **__: object
) -> int:
    """Return the FLOPs of both products of attention, ``(batch, heads, tokens, channels)``."""
    *batch, tokens, channels = query.shape
    others, out_chans = value.shape[-2:]
    rows = tokens * others
    for size in batch:
        rows *= size
    return 2 * rows * (channels + out_chans)


FORMULAS: Mapping[Any, Callable[..., int]] = {
    _aten.mv: _product,
    _aten.dot: _product,
    _aten.vdot: _product,
    _aten.addmv: _added_product,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_attention_math: _attention,
}
"""FLOPs (two a multiply-accumulate) of operators that PyTorch has no formula for."""

for _formula in FORMULAS.values():
    setattr(_formula, "_get_raw", True)  # noqa: B010  # PyTorch's mark: takes tensors, not shapes

_UNCOUNTED = frozenset(
    {
        "addr",
        "addbmm",
        "_cdist_forward",
        "_cudnn_rnn",
        "_euclidean_dist",
        "_grouped_mm",
        "_int_mm",
        "_scaled_grouped_mm",
        "_native_multi_head_attention",
        "_scaled_dot_product_attention_math_for_mps",
        "_scaled_dot_product_fused_attention_overrideable",
        "_sparse_mm",
        "_transformer_encoder_layer_fwd",
        "_trilinear",
        "_triton_multi_head_attention",
        "_triton_scaled_dot_attention",
        "_weight_int4pack_mm",
        "_weight_int8pack_mm",
        "miopen_rnn",
        "mkldnn_rnn_layer",
        "quantized_gru",
        "quantized_lstm",
    }
)
_UNCOUNTED_KINDS = ("linalg_", "_linalg_", "_fft_")
_NORMALISING = frozenset({"linalg_vector_norm"})
"""Of those kinds, what only normalises, which counts as nothing like batch norm."""
_KNOWN_NAMESPACES = ("aten", "prim", "prims")


def macs(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], outputs: object) -> int:
    """Return the multiply-accumulates of one call of an operator; 0 for those that do none.

    Raises:
        InvalidInputError: The operator multiplies and accumulates, or is not PyTorch's own,
            and nothing says how much.
    """
    packet = func.overloadpacket
    formula = FORMULAS.get(packet) or flop_registry.get(packet)
    if formula is not None:
        return int(formula(*args, **kwargs, out_val=outputs)) // 2
    check_countable(func)
    return 0


def check_countable(func: Any) -> None:
    """Check that an operator either has a formula or needs none.

    Raises:
        InvalidInputError: As for ``macs``.
    """
    packet = func.overloadpacket
    name = packet.__name__
    foreign = func.namespace not in _KNOWN_NAMESPACES
    multiplies = name.startswith(_UNCOUNTED_KINDS) and name not in _NORMALISING
    lacking = foreign or name in _UNCOUNTED or multiplies
    if lacking and packet not in FORMULAS and packet not in flop_registry:
        raise InvalidInputError(
            f"nothing says how many multiply-accumulates {func.namespace}::{name} does; register "
            "its formula with torch.utils.flop_counter.register_flop_formula"
        )
