"""The shape rules that every runner applies to what it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zoo.errors import IncompatibleShapeError
from zoo.spec import TensorSpec

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
    "uint8": torch.uint8,
    "int32": torch.int32,
    "int64": torch.int64,
    "bool": torch.bool,
}


def row_checker(specs: Sequence[TensorSpec], what: str) -> Callable[[Sequence[Tensor]], int]:
    """Return a function that checks a batch against ``specs`` and returns its rows.

    The function takes one ``(batch, *shape)`` tensor per spec and raises
    ``IncompatibleShapeError`` naming ``what``, the shape expected and the one given.
    """
    wanted = [(DTYPES[spec.dtype], tuple(spec.shape), len(spec.shape) + 1) for spec in specs]
    exact = all(size is not None for spec in specs for size in spec.shape)

    def check(tensors: Sequence[Tensor]) -> int:
        if len(tensors) != len(wanted):
            raise IncompatibleShapeError(
                f"{what} takes {len(wanted)} tensors, but {len(tensors)} were given"
            )
        rows = tensors[0].shape[0] if tensors[0].ndim else 0
        for tensor, (dtype, shape, ndim) in zip(tensors, wanted, strict=True):
            given = tensor.shape
            fits = tensor.dtype == dtype and len(given) == ndim and given[0] == rows
            if fits:
                fits = given[1:] == shape if exact else _fits(given[1:], shape)
            if not fits or rows < 1:
                raise IncompatibleShapeError(
                    f"{what} takes {_expected(specs)} with one batch size of at least 1, "
                    f"but was given {_given(tensors)}"
                )
        return rows

    return check


def _fits(given: Sequence[int], shape: Sequence[int | None]) -> bool:
    return all(size is None or size == other for size, other in zip(shape, given, strict=True))


def _expected(specs: Sequence[TensorSpec]) -> str:
    shapes = [", ".join(["batch", *(str(size or "any") for size in spec.shape)]) for spec in specs]
    return ", ".join(f"{spec.dtype}[{shape}]" for spec, shape in zip(specs, shapes, strict=True))


def _given(tensors: Sequence[Tensor]) -> str:
    return ", ".join(
        f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}" for tensor in tensors
    )
