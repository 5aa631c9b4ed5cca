"""Functional signatures: what a block computes, whatever its parametrisation.

Fixed probes are sent through the block in float64 on the CPU, and the outputs are hashed
after their mantissas are cut, so that rounding does not show. Probes and everything else
drawn here come from integer arithmetic on counters, the same on every machine.

A signature is an index, never an identity. It does not see: behaviour in training mode,
inputs unlike the probes, differences below ``2 ** -mantissa_bits``, cost. A value within
rounding of a boundary between two cut mantissas may, with a probability of about one in
ten million a signature, differ between machines: a missed match, never a false one.

Source:
    Gillard et al. (2023), "Unified Functional Hashing in Automatic Machine Learning",
    arXiv:2302.05433. Differs: sign, NaN and infinity are told apart; values below
    2**-40 of their tensor's largest are rounding noise and count as zero.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zoo.canonical import canonical_json
from zoo.errors import IncompatibleShapeError, InvalidInputError
from zoo.rng import derive_seed
from zoo.spec import BlockSpec, TensorSpec

VERSION = 1
MANTISSA_BITS = 16
NOISE = 2.0**-40

_BATCH = 3
_VARIABLE = 8
"""The size given to a dimension that may vary."""

_MASK = (1 << 64) - 1


def block_signature(
    spec: BlockSpec, module: nn.Module, *, mantissa_bits: int = MANTISSA_BITS
) -> str:
    """Return the functional signature of a block on the probes for its interface.

    Raises:
        IncompatibleShapeError: ``module`` rejects the inputs that ``spec`` promises.
    """
    return functional_signature(module, probes(spec.inputs), mantissa_bits=mantissa_bits)


def functional_signature(
    module: nn.Module, inputs: Sequence[Tensor], *, mantissa_bits: int = MANTISSA_BITS
) -> str:
    """Describe what ``module`` computes in eval mode, whatever its parametrisation.

    The module itself is left as it is; a copy in float64 on the CPU is run.

    Args:
        module: Block or chain; takes ``inputs``, returns a tensor or a tuple of tensors.
        inputs: Batch first; those in floating point are used as float64.
        mantissa_bits: Bits kept before hashing, 1 to 52; part of the result.

    Returns:
        ``fs<version>-m<bits>-<sha256>``: equality is necessary, not sufficient, for
        equivalence.

    Raises:
        IncompatibleShapeError: ``module`` rejects ``inputs``.
        InvalidInputError: ``mantissa_bits`` is out of range.

    Source:
        Gillard et al. (2023), arXiv:2302.05433; see the module's head.
    """
    exact = copy.deepcopy(module).to("cpu", torch.float64).eval()
    wide = [item.detach().to("cpu") for item in inputs]
    wide = [item.double() if item.is_floating_point() else item for item in wide]
    try:
        with torch.no_grad():
            outputs = exact(*wide)
    except RuntimeError as error:
        shapes = ", ".join(str(list(item.shape)) for item in wide)
        raise IncompatibleShapeError(f"the block rejects inputs of {shapes}: {error}") from error
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return f"fs{VERSION}-m{mantissa_bits}-{hash_tensors(outputs, mantissa_bits=mantissa_bits)}"


def probes(specs: Sequence[TensorSpec], *, batch: int = _BATCH) -> tuple[Tensor, ...]:
    """Return fixed inputs for ``specs``: uniform in [-1, 1), zeros and ones where integral."""
    made = []
    for position, spec in enumerate(specs):
        shape = (batch, *(_VARIABLE if size is None else size for size in spec.shape))
        value = uniform(shape, derive_seed(VERSION, "probe", position))
        if spec.dtype.startswith(("float", "bfloat")):
            made.append(value)
        else:
            made.append((value >= 0).to(getattr(torch, spec.dtype)))
    return tuple(made)


def uniform(shape: Sequence[int], seed: int) -> Tensor:
    """Return float64 values in [-1, 1) that depend on ``seed`` and position alone.

    SplitMix64 (Steele et al. 2014) on the position: 53 bits each, exact on any machine.
    """
    count = int(np.prod(shape, dtype=np.int64))
    state = np.arange(1, count + 1, dtype=np.uint64)
    state *= np.uint64(0x9E3779B97F4A7C15)
    state += np.uint64(seed & _MASK)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    values = (state >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0
    return torch.from_numpy(values).reshape(tuple(shape))


def hash_tensors(tensors: Iterable[Tensor], *, mantissa_bits: int) -> str:
    """Return the sha256 over shapes and cut values, as 64 hex digits.

    Raises:
        InvalidInputError: ``mantissa_bits`` is not within 1 to 52.
    """
    if not 1 <= mantissa_bits <= 52:
        raise InvalidInputError(f"mantissa_bits is {mantissa_bits}; it must be 1 to 52")
    result = hashlib.sha256()
    for tensor in tensors:
        result.update(canonical_json(list(tensor.shape)))
        values = tensor.detach().to(torch.float64).contiguous().numpy().reshape(-1)
        result.update(_cut(values, mantissa_bits).astype("<u8").tobytes())
    return result.hexdigest()


def _cut(values: NDArray[np.float64], mantissa_bits: int) -> NDArray[np.uint64]:
    """Return the bits of ``values`` without the low end of the mantissa."""
    finite = np.isfinite(values)
    largest = np.abs(values[finite]).max(initial=0.0)
    cleaned = np.where(finite & (np.abs(values) <= largest * NOISE), 0.0, values)
    bits = cleaned.view(np.uint64) & np.uint64(_MASK << (52 - mantissa_bits) & _MASK)
    bits[np.isnan(values)] = np.uint64(_MASK)
    return bits
