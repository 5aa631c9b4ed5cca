"""Functional signatures: what a block computes with its weights, whatever its code.

Fixed probes are sent through it in float64 on the CPU; fixed projections of the outputs
are cut to some mantissa bits and hashed. Probes and projections come from integer
arithmetic on counters, the same on every machine. Blocks and chains of the zoo, modules of
other libraries and plain functions on arrays are all probed alike: once as drawn, and once
loud, since activations such as ReLU and ReLU6 differ in large values only.

A signature is an index, never an identity. It does not see: behaviour in training mode (nor
the momentum of a batch norm), inputs unlike the probes (of a large vocabulary, the
tokens that are not drawn; values that nothing reaches even when loud), differences below
``2 ** -mantissa_bits``, cost. A number within rounding of a boundary between two buckets may
fall on either side; ``weight_signature`` therefore names the hashes next door, and
``weight_proof`` has the numbers that confirm a hit.

Source:
    Gillard et al. (2023), "Unified Functional Hashing in Automatic Machine Learning",
    arXiv:2302.05433. Differs: sign, NaN and infinity are told apart; projections are
    hashed, not every value, so that fewer numbers can straddle a boundary; values below
    2**-40 of their tensor's largest are rounding noise and count as zero.
"""

from __future__ import annotations

import copy
import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zoo.canonical import canonical_json, content_id
from zoo.certificates import Proof, Signature
from zoo.errors import IncompatibleShapeError, InvalidInputError
from zoo.rng import derive_seed
from zoo.spec import BlockSpec, TensorSpec
from zoo.widening import Widened

VERSION = 4
"""Raised whenever the same function would get another hash. 3: integers are drawn from all
that a function takes, not from 0 and 1 alone; code that casts to float32 runs in float64.
4: there is a loud run."""

MANTISSA_BITS = 16
NOISE = 2.0**-40

LOUD = 32.0
"""What inputs that are no integers are multiplied by in a second run. Probes are in [-1, 1),
so that a convolution of them, or a norm with the statistics that it kept, seldom reaches 6:
without this run a block with ReLU and one with ReLU6 are one. A power of two: exact."""

ZONE = 2.0**-8
"""Numbers this close to a bucket's edge, as a part of the bucket, are also put next door."""

_NEXT_DOOR = 3
"""At most this many numbers are moved at once: 7 alternates."""

_PROJECTIONS = 16
_CHUNK = 2**13
_BATCH = 3
_VARIABLE = 8
"""The size given to a dimension that may vary."""

_MOST = 2**18
"""Integers are drawn below this at most."""

_UNBOUNDED = ("float16", "bfloat16", "float32", "float64", "bool")

_MASK = (1 << 64) - 1

_REFUSALS = (RuntimeError, ValueError, IndexError, TypeError, AssertionError)

Function = Callable[..., Any]


def block_signature(
    spec: BlockSpec, module: nn.Module, *, mantissa_bits: int = MANTISSA_BITS
) -> str:
    """Return the functional signature of a block on the probes for its interface.

    Raises:
        IncompatibleShapeError: ``module`` rejects the inputs that ``spec`` promises.
    """
    return functional_signature(
        module, probes_for(module, spec.inputs), mantissa_bits=mantissa_bits
    )


def functional_signature(
    function: Function, inputs: Sequence[Tensor], *, mantissa_bits: int = MANTISSA_BITS
) -> str:
    """Return the key of ``weight_signature``, for where alternates are not looked up."""
    return weight_signature(function, inputs, mantissa_bits=mantissa_bits).key


def weight_signature(
    function: Function, inputs: Sequence[Tensor], *, mantissa_bits: int = MANTISSA_BITS
) -> Signature:
    """Describe what ``function`` computes in eval mode, whatever its parametrisation.

    Args:
        function: A module, run as a float64 copy on the CPU and itself left as it is; or a
            function, which takes and returns NumPy arrays. What it returns may be nested in
            tuples, lists and mappings; their structure is not hashed.
        inputs: Batch first; those in floating point are used as float64. Where any are no
            integers, ``function`` is run on ``LOUD`` times these, too; that it refuses them
            is part of what is hashed.
        mantissa_bits: Bits kept before hashing, 1 to 52; part of the result.

    Returns:
        Key ``fs<version>-m<bits>-<sha256>``: equality is necessary, not sufficient, for
        equivalence.

    Raises:
        IncompatibleShapeError: ``function`` rejects ``inputs``.
        InvalidInputError: ``mantissa_bits`` is out of range, or something returned is
            neither tensor nor array.

    Source:
        Gillard et al. (2023), arXiv:2302.05433; see the module's head.
    """
    outputs, loud = _outputs(function, inputs)
    digest, alternates = hash_tensors([*outputs, *loud], mantissa_bits=mantissa_bits)
    prefix = f"fs{VERSION}-m{mantissa_bits}-"
    return Signature(key=prefix + digest, alternates=tuple(prefix + other for other in alternates))


def weight_proof(function: Function, specs: Sequence[TensorSpec]) -> Proof:
    """Return what confirms a hit of ``weight_signature``, on a second set of probes.

    What the loud run returns is scaled down, by ``LOUD`` or to what the other run returns if
    that is less: a proof is compared by its largest value, which a loud exponential would be.

    Raises:
        IncompatibleShapeError: ``function`` rejects inputs of ``specs``.
    """
    inputs = probes_for(function, specs, probe_set=1)
    quiet, loud = (
        np.concatenate([np.zeros(0), *(projections(item) for item in outputs)])
        for outputs in _outputs(function, inputs)
    )
    peaks = [float(np.abs(part[np.isfinite(part)]).max(initial=0.0)) for part in (quiet, loud)]
    growth = peaks[1] / peaks[0] if peaks[0] > 0 else 0.0
    values = np.concatenate([quiet, loud / min(max(LOUD, growth), sys.float_info.max)])
    described = [VERSION, 1, _PROJECTIONS, [spec.to_json() for spec in specs]]
    return Proof(probe=content_id(described), values=tuple(values.tolist()))


def _outputs(function: Function, inputs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return what ``function`` returns, and what it returns of loud inputs, if it takes them."""
    run = _runner(function)
    try:
        found = run(inputs)
    except _REFUSALS as error:
        shapes = ", ".join(str(list(item.shape)) for item in inputs)
        raise IncompatibleShapeError(f"the block rejects inputs of {shapes}: {error}") from error
    if not any(item.is_floating_point() or item.is_complex() for item in inputs):
        return found, []
    try:
        return found, run([_louder(item) for item in inputs])
    except (*_REFUSALS, ArithmeticError, LookupError):
        return found, []


def _louder(item: Tensor) -> Tensor:
    if item.is_floating_point():
        return item.double() * LOUD
    return item * LOUD if item.is_complex() else item


def _runner(function: Function) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """Return what runs ``function`` on copies of inputs and flattens what it returns."""
    if isinstance(function, nn.Module):
        module = copy.deepcopy(function).cpu().double().eval()
        state = [(buffer, buffer.clone()) for buffer in module.buffers()]

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        # Copies: what works in place must not change the probes of whoever comes next.
        wide = [item.detach().to("cpu", copy=True) for item in inputs]
        wide = [item.double() if item.is_floating_point() else item for item in wide]
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(0)
            if not isinstance(function, nn.Module):
                with np.errstate(all="ignore"):  # what is not finite is hashed as it is
                    return list(flat(function(*(item.numpy() for item in wide))))
            for buffer, value in state:
                buffer.copy_(value)
            with Widened():
                return list(flat(module(*wide)))

    return run


def flat(found: object) -> Iterator[Tensor]:
    """Yield the tensors of what a module or a function returned, whatever holds them.

    Raises:
        InvalidInputError: Something is neither tensor nor array nor made of them.
    """
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, np.ndarray | np.generic | complex | float | int):
        yield torch.as_tensor(np.asarray(found))
    elif isinstance(found, Mapping):
        yield from flat(tuple(found.values()))
    elif isinstance(found, tuple | list):
        for item in found:
            yield from flat(item)
    elif isinstance(found, Iterable) and not isinstance(found, str | bytes):
        yield from flat(tuple(found))  # a cache of keys and values, for one
    elif found is not None:
        raise InvalidInputError(
            f"a {type(found).__name__} cannot be hashed; return tensors or arrays"
        )


def probes(
    specs: Sequence[TensorSpec],
    *,
    batch: int = _BATCH,
    probe_set: int = 0,
    limits: Sequence[int] | None = None,
) -> tuple[Tensor, ...]:
    """Return fixed inputs for ``specs``, uniform in [-1, 1).

    Integers are zeros and ones, as of masks; with ``limits``, one for each of ``specs``, those
    of all samples but the first are spread from 0 up to these.
    """
    made = []
    for position, spec in enumerate(specs):
        shape = (batch, *(_VARIABLE if size is None else size for size in spec.shape))
        limit = limits[position] if limits is not None else 2
        made.append(drawn(shape, spec.dtype, derive_seed(probe_set, "probe", position), limit))
    return tuple(made)


def probes_for(
    function: Function, specs: Sequence[TensorSpec], *, probe_set: int = 0
) -> tuple[Tensor, ...]:
    """Return the probes of ``specs`` with integers from all that ``function`` takes.

    Raises:
        IncompatibleShapeError: ``function`` rejects any inputs of ``specs``.
    """
    if all(spec.dtype in _UNBOUNDED for spec in specs):
        return probes(specs, probe_set=probe_set)
    return probes(specs, probe_set=probe_set, limits=integer_limits(_runner(function), specs))


def integer_limits(
    run: Callable[[Sequence[Tensor]], object], specs: Sequence[TensorSpec]
) -> list[int]:
    """Return, for each input, below which number integers are taken: a vocabulary's size.

    Found by trying, one input after the other, so that it depends on what is computed and
    not on how it is written.
    """
    limits = [2] * len(specs)
    for position, spec in enumerate(specs):
        if spec.dtype in _UNBOUNDED:
            continue
        taken, refused = 2, min(_MOST, torch.iinfo(getattr(torch, spec.dtype)).max + 1) + 1
        middle = refused - 1  # where nothing is refused, one trial tells
        while refused - taken > 1:
            inputs = list(probes(specs, limits=limits))
            inputs[position] = torch.full_like(inputs[position], middle - 1)
            try:
                run(inputs)
            except (RuntimeError, ValueError, IndexError, AssertionError):
                refused = middle
            else:
                taken = middle
            middle = (taken + refused) // 2
        limits[position] = taken
    return limits


def drawn(shape: Sequence[int], dtype: str, seed: int, limit: int = 2) -> Tensor:
    """Return float64 values in [-1, 1), or booleans, or integers as ``probes`` says."""
    value = uniform(shape, seed)
    if dtype.startswith(("float", "bfloat")):
        return value
    kind = getattr(torch, dtype)
    made = (value >= 0).to(kind)
    if limit > 2 and dtype != "bool" and made.numel():
        # One from each of as many equal parts, so that no stretch of a vocabulary is left out.
        rest = made[1:].numel()
        within = (uniform((rest,), derive_seed(seed, "integers")) + 1) / 2
        parts = uniform((rest,), derive_seed(seed, "parts")).argsort()
        made[1:] = ((parts + within) / max(rest, 1) * limit).floor().to(kind).view_as(made[1:])
    return made


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


def hash_tensors(
    tensors: Iterable[Tensor], *, mantissa_bits: int, floor: float = 0.0
) -> tuple[str, tuple[str, ...]]:
    """Return the sha256 over shapes and cut projections, and the hashes next door.

    Args:
        tensors: Of any type and shape; order counts.
        mantissa_bits: Bits of each projection that are kept.
        floor: Projections of at most this size count as zero, beside those that are
            rounding noise in their own tensor.

    Raises:
        InvalidInputError: ``mantissa_bits`` is not within 1 to 52.
    """
    if not 1 <= mantissa_bits <= 52:
        raise InvalidInputError(f"mantissa_bits is {mantissa_bits}; it must be 1 to 52")
    shapes, parts = [], [np.zeros(0)]
    for tensor in tensors:
        shapes.append(list(tensor.shape))
        values = projections(tensor)
        largest = np.abs(values[np.isfinite(values)]).max(initial=0.0)
        noise = np.isfinite(values) & (np.abs(values) <= max(largest * NOISE, floor))
        parts.append(np.where(noise, 0.0, values))
    buckets, moves = _cut(np.concatenate(parts), mantissa_bits)
    head = canonical_json([mantissa_bits, shapes])
    return _hash(head, buckets), tuple(
        _hash(head, _moved(buckets, subset))
        for size in range(1, len(moves) + 1)
        for subset in combinations(moves, size)
    )


def projections(tensor: Tensor, count: int = _PROJECTIONS) -> NDArray[np.float64]:
    """Return a tensor as ``count`` numbers that change with any of its values.

    These are its values themselves if they are no more than ``count``; else inner products
    with fixed directions, and where it is not finite, beside them, products of the places
    of NaN and of both infinities, which are then not finite either.
    """
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.detach().resolve_conj())
    values = tensor.detach().to("cpu", torch.float64).contiguous().numpy().reshape(-1)
    if len(values) <= count:
        return np.where(np.isnan(values), np.nan, values)
    finite = np.isfinite(values)
    if finite.all():
        return _project(values, count)
    places = [np.isnan(values), values == np.inf, values == -np.inf]
    parts = [_project(np.where(finite, values, 0.0), count)]
    parts += [_project(place.astype(np.float64), 1) for place in places]
    return np.concatenate([*parts, [np.nan]])


def _project(values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    result = np.zeros(count)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(values), _CHUNK):
            part = values[start : start + _CHUNK]
            result += _directions(start)[:count, : len(part)] @ part
    return result


@lru_cache(maxsize=32)
def _directions(start: int) -> NDArray[np.float64]:
    """Return the directions' components from ``start`` on."""
    shape = (_PROJECTIONS, _CHUNK)
    drawn: NDArray[np.float64] = uniform(shape, derive_seed(0, "directions", start)).numpy()
    return drawn


def _cut(
    values: NDArray[np.float64], mantissa_bits: int
) -> tuple[NDArray[np.uint64], list[tuple[int, int]]]:
    """Return the buckets of ``values`` and the moves ``(index, by)`` to a near one next door."""
    low = 52 - mantissa_bits
    bits = np.where(values == 0.0, 0.0, values).view(np.uint64)
    buckets = bits >> np.uint64(low)
    buckets[np.isnan(values)] = np.uint64(_MASK)
    inside = (bits & np.uint64((1 << low) - 1)).astype(np.float64) / 2.0**low
    inside[~np.isfinite(values) | (values == 0.0)] = 0.5
    distance = np.minimum(inside, 1.0 - inside)
    near = [int(at) for at in np.argsort(distance, kind="stable") if distance[at] < ZONE]
    return buckets, [(at, -1 if inside[at] < 0.5 else 1) for at in near[:_NEXT_DOOR]]


def _moved(buckets: NDArray[np.uint64], moves: Iterable[tuple[int, int]]) -> NDArray[np.uint64]:
    moved = buckets.copy()
    for at, by in moves:
        moved[at] = np.uint64(int(moved[at]) + by)
    return moved


def _hash(head: bytes, buckets: NDArray[np.uint64]) -> str:
    return hashlib.sha256(head + buckets.astype("<u8").tobytes()).hexdigest()
