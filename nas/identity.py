"""The functional hash of an architecture: equal for networks that learn the same function.

The network is given weights by content, is trained for a few steps in float64 on the CPU on
fixed images, and its outputs and their gradients at the images are hashed. Evaluations are
shared between architectures of one hash, once the hit is confirmed (``Proof``).

Weights by content. All weights that have shape and operation in common start alike; one
backward pass then shows which have different parts to play, as their gradients differ.
Those are seeded anew by these gradients, and so on until nothing parts any more. Weights
that still tie are alike but not one: one of them is singled out, the one that gives the
least hash, and the rest is parted again. So weights depend on the function that the network
computes of its weights, and on nothing else: numbering, dead branches, identities, zeros,
nested sums and where a linear operation stands make no difference.

A space that knows the graph of its networks has a method ``graph`` (``GraphSpace``), which
is faster; any other is hashed by the module that it builds.

Not seen: cost; a dead branch is still run by the built module, so networks of one hash may
differ in latency and number of parameters. Training is seen with batch statistics, not with
those kept for evaluation: neither a batch norm's momentum nor whether it tracks statistics.
Of activations behind norms without affine part, what they do to values beyond those that
such a norm returns.

Source:
    Gillard et al. (2023), arXiv:2302.05433. Differs: weights are seeded by content rather
    than drawn in order; a hit is confirmed.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from nas.graph import Graph
from nas.programs import Built, Drawing, Program
from nas.protocols import SearchSpace
from zoo.canonical import content_id
from zoo.certificates import Proof, Signature
from zoo.errors import InvalidInputError
from zoo.rng import derive_seed
from zoo.signature import drawn, hash_tensors, integer_limits, projections, uniform
from zoo.spec import Architecture, TensorSpec

VERSION = 4
"""Raised whenever the same network would get another hash. 3: every space is drawn; dropout
follows its input; buffers start anew with every run; parameters that are not trained count
as what they are; code that casts to float32 runs in float64. 4: one layer stands for a
block of a chain, and for an operation of DARTS and NASNet."""

MANTISSA_BITS = 26
"""A doubled input of a normalised convolution differs from a single one by its eps alone, a
part in 2**18; rounding is about 2**-44."""

BATCH = 4
LEARNING_RATE = 0.1
ORDER = (0, 1)
"""The batches trained on, one step each."""

LOUD = 8.0
"""What inputs, scales and offsets of a module are multiplied by in a last run, so that
activations are told apart that differ in large values only, as ReLU and ReLU6."""

_COLOUR_BITS = 20
_FLOOR = 2.0**-40
_INERT = 2.0**-36
"""Gradients this small beside the largest are rounding noise."""


_REJECTIONS = (RuntimeError, ValueError, IndexError, TypeError, AssertionError)
"""What networks raise that do not run on the inputs given."""


@runtime_checkable
class GraphSpace(Protocol):
    """A search space that can draw its networks."""

    def graph(
        self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int
    ) -> Graph: ...


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a network is known by: its hash, and what confirms a hit."""

    signature: Signature
    proof: Proof


def network_signature(
    space: SearchSpace, architecture: Architecture, *, inputs: TensorSpec, num_classes: int
) -> Signature:
    """Return the functional hash of ``architecture``: ``identify`` without the proof."""
    with _program(space, architecture, inputs, num_classes) as (program, images):
        return _signature(_Settled(program, (images,), seed=0), ORDER)


def graph_signature(graph: Graph) -> Signature:
    """Return the functional hash of a drawing; its vertices may be in any order."""
    with torch.random.fork_rng(devices=[]), closing(Drawing(graph)) as drawing:
        return _signature(_Settled(drawing, (graph.inputs,), seed=0), ORDER)


def identify(
    space: SearchSpace, architecture: Architecture, *, inputs: TensorSpec, num_classes: int
) -> Identity:
    """Return the functional hash under which evaluations of ``architecture`` are shared.

    The same on every machine, in every process and with any number of threads.

    Args:
        space: The space of ``architecture``.
        architecture: Any choice of that space.
        inputs: Images ``(channels, height, width)``.
        num_classes: Number of logits.

    Returns:
        The key ``nn<version>-m<bits>-<sha256>``, its alternates, and the proof.

    Raises:
        InvalidInputError: The architecture is not of this space, or its network does not
            run on ``inputs``.
    """
    with _program(space, architecture, inputs, num_classes) as (program, images):
        return identify_program(program, images)


def identify_module(
    module: nn.Module, inputs: Sequence[TensorSpec], *, seed: int = 0, order: Sequence[int] = ORDER
) -> Identity:
    """Return what a module, traced or written by hand, is known by; it is left as it is.

    What it returns may be nested; all floating-point tensors count, side by side.

    Args:
        module: Takes one tensor for each of ``inputs``.
        inputs: Integers, such as tokens, are drawn from all that the module takes.
        seed: As for ``identify_program``.
        order: As for ``identify_program``.

    Raises:
        InvalidInputError: The module cannot be copied, or does not run on ``inputs``.
    """
    name = type(module).__name__
    try:
        copied = copy.deepcopy(module)
    except (RuntimeError, TypeError) as error:
        raise InvalidInputError(f"{name} cannot be copied: {error}") from error
    with torch.random.fork_rng(devices=[]):
        try:
            return identify_program(Built(copied), inputs, seed=seed, order=order)
        except _REJECTIONS as error:
            shapes = ", ".join(f"{item.dtype}{list(item.shape)}" for item in inputs)
            raise InvalidInputError(f"{name} does not run on {shapes}: {error}") from error


def identify_program(
    program: Program,
    inputs: TensorSpec | Sequence[TensorSpec],
    *,
    seed: int = 0,
    order: Sequence[int] = ORDER,
) -> Identity:
    """Return what a network is known by; its weights are overwritten.

    Args:
        program: The network.
        inputs: What it takes.
        seed: Of the inputs and targets of the hash; the proof has others.
        order: The batches trained on, one step each.

    Raises:
        RuntimeError: The network does not run on such inputs.
    """
    specs = (inputs,) if isinstance(inputs, TensorSpec) else tuple(inputs)
    settled = _Settled(program, specs, seed=seed)
    outputs, silent = settled.train(order, seed=derive_seed(seed, "proof"))
    values = np.concatenate([projections(item) for item in outputs])
    probe = content_id([VERSION, seed, list(order), [spec.to_json() for spec in specs]])
    proof = Proof(
        probe=probe,
        values=tuple(np.where(np.abs(values) <= _FLOOR, 0.0, values).tolist()),
        learns_constant=silent,
        diverges=not bool(outputs[0].isfinite().all()),
    )
    return Identity(signature=_signature(settled, order), proof=proof)


def _signature(settled: _Settled, order: Sequence[int]) -> Signature:
    outputs, _ = settled.train(order, seed=settled.seed)
    digest, alternates = hash_tensors(outputs, mantissa_bits=MANTISSA_BITS, floor=_FLOOR)
    prefix = f"nn{VERSION}-m{MANTISSA_BITS}-"
    return Signature(key=prefix + digest, alternates=tuple(prefix + other for other in alternates))


@contextmanager
def _program(
    space: SearchSpace, architecture: Architecture, inputs: TensorSpec, num_classes: int
) -> Iterator[tuple[Program, TensorSpec]]:
    """Make what is to be run, and the images that it takes."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(VERSION, "buffers"))
        try:
            if isinstance(space, GraphSpace):
                graph = space.graph(architecture, inputs=inputs, num_classes=num_classes)
                with closing(Drawing(graph)) as drawing:
                    yield drawing, graph.inputs
            else:
                module = space.build(architecture, inputs=inputs, num_classes=num_classes)
                yield Built(module), inputs
        except _REJECTIONS as error:
            raise InvalidInputError(
                f"{space.summary(architecture)} does not run on images of "
                f"{list(inputs.shape)}: {error}"
            ) from error


class _Settled:
    """A network with weights by content."""

    def __init__(self, program: Program, inputs: Sequence[TensorSpec], *, seed: int) -> None:
        self.seed = seed
        self._program = program
        self._sites = program.sites
        self._inputs = inputs
        self._limits = [2] * len(inputs)
        if any(spec.dtype.startswith(("int", "uint")) for spec in inputs):
            with torch.no_grad():
                self._limits = integer_limits(lambda items: program(*items), inputs)
        self._marks = self._settle()

    def _settle(self) -> list[bytes]:
        """Return a mark for every site, so that sites of one content and mark are exchangeable.

        Sites without effect keep whatever mark they have.
        """
        marks, _, ties = self._part([b""] * len(self._sites), keyed=False)
        while ties:
            tie = min(ties, key=lambda group: (self._sites[group[0]].content, marks[group[0]]))
            trials = []
            for at in tie:
                trial = list(marks)
                trial[at] = _digest(marks[at], b"singled out")
                trials.append(self._part(trial, keyed=True))
            marks, _, ties = min(trials, key=lambda trial: trial[1])
        return marks

    def _part(
        self, marks: Sequence[bytes], *, keyed: bool
    ) -> tuple[list[bytes], str, list[list[int]]]:
        """Return finer marks by gradients, the hash of the run, and the groups that still tie.

        Nothing is run where no two sites are alike, unless the hash is asked for (``keyed``).
        """
        marks = list(marks)
        while True:
            groups: defaultdict[tuple[str, bytes], list[int]] = defaultdict(list)
            for at, site in enumerate(self._sites):
                groups[site.content, marks[at]].append(at)
            alike = [group for group in groups.values() if len(group) > 1]
            if not alike and not keyed:
                return marks, "", []
            self._fill(marks)
            self._program.restart(settling=True)
            logits, loss, inputs = self._forward(0, self.seed)
            gradients = _gradients(loss, [*self._tensors(), *inputs])
            active = _active(gradients[: len(self._sites)])
            ties = [kept for group in alike if len(kept := [at for at in group if active[at]]) > 1]
            parted = False
            for group in ties:
                colours = [_colour(gradients[at]) for at in group]
                if len(set(colours)) > 1:
                    parted = True
                    for at, colour in zip(group, colours, strict=True):
                        marks[at] = _digest(marks[at], colour.encode())
            if not parted:
                outputs = [logits, *gradients[len(self._sites) :]]
                key, _ = hash_tensors(outputs, mantissa_bits=_COLOUR_BITS, floor=_FLOOR)
                return marks, key, ties

    def train(self, order: Sequence[int], *, seed: int) -> tuple[list[Tensor], bool]:
        """Return what there is to hash after training, and whether a constant is learned.

        That is the logits and their gradients at the inputs; integers have none, and there
        it is the size of the gradient of all weights. Of an opaque network it is the logits
        of a loud run, too.
        """
        self._fill(self._marks)
        self._program.restart()
        for batch in order:
            _, loss, _ = self._forward(batch, seed)
            gradients = _gradients(loss, self._tensors())
            norm = _norm(gradients)
            if norm > 0 and math.isfinite(norm):
                step = LEARNING_RATE / max(1.0, norm)
                with torch.no_grad():
                    torch._foreach_add_(self._tensors(), gradients, alpha=-step)
        logits, loss, inputs = self._forward(-1, seed)
        silent = list(self._program.silent)
        tensors = [] if len(inputs) == len(self._inputs) else self._tensors()
        found = _gradients(loss, [*silent, *inputs, *tensors])
        offsets, found = found[: len(silent)], found[len(silent) :]
        sizes = [torch.tensor([_norm(found[len(inputs) :])])] if tensors else []
        loud = [self._loud(seed)] if self._program.opaque else []
        outputs = [logits.detach(), *found[: len(inputs)], *sizes, *loud]
        return outputs, any(bool(item.any()) for item in offsets)

    def _loud(self, seed: int) -> Tensor:
        with torch.no_grad():
            for tensor in self._tensors():
                if tensor.ndim < 2:
                    tensor.mul_(LOUD)
            given = (
                item * LOUD if item.is_floating_point() else item for item in self._given(-1, seed)
            )
            return self._program(*given)

    def _tensors(self) -> list[Tensor]:
        return [site.tensor for site in self._sites]

    def _fill(self, marks: Sequence[bytes]) -> None:
        with torch.no_grad():
            values = [
                _weights(site.content, mark, tuple(site.tensor.shape))
                for site, mark in zip(self._sites, marks, strict=True)
            ]
            if values:  # there is no list of no tensors
                torch._foreach_copy_(self._tensors(), values)

    def _forward(self, batch: int, seed: int) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return logits, loss, and those of the inputs that have a gradient."""
        given = self._given(batch, seed)
        smooth = [item.requires_grad_() for item in given if item.is_floating_point()]
        logits = self._program(*given)
        target = _uniform(tuple(logits.shape), seed, "target", batch)
        return logits, (logits - target).square().mean() / 2, smooth

    def _given(self, batch: int, seed: int) -> list[Tensor]:
        return [
            _input(spec, position, limit, seed, batch)
            for position, (spec, limit) in enumerate(zip(self._inputs, self._limits, strict=True))
        ]


def _active(gradients: Sequence[Tensor]) -> list[bool]:
    """Return which gradients are more than rounding noise beside the largest."""
    peaks = [float(item.abs().max()) if item.numel() else 0.0 for item in gradients]
    largest = max((peak for peak in peaks if math.isfinite(peak)), default=0.0)
    return [not peak <= _INERT * largest for peak in peaks]


def _norm(gradients: Sequence[Tensor]) -> float:
    return float(nn.utils.get_total_norm(gradients))


def _gradients(loss: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    if not loss.requires_grad or not tensors:
        return [torch.zeros_like(tensor) for tensor in tensors]
    found = torch.autograd.grad(loss, list(tensors), allow_unused=True)
    return [
        torch.zeros_like(tensor) if gradient is None else gradient.to_dense()
        for tensor, gradient in zip(tensors, found, strict=True)
    ]


def _colour(gradient: Tensor) -> str:
    values = torch.from_numpy(projections(gradient, 2))
    return hash_tensors([values], mantissa_bits=_COLOUR_BITS)[0]


@lru_cache(maxsize=4096)
def _weights(content: str, mark: bytes, shape: tuple[int, ...]) -> Tensor:
    values = uniform(shape, derive_seed(VERSION, content, mark.hex()))
    if len(shape) > 1:
        return values * math.sqrt(6 / math.prod(shape[1:]))
    # A scale or an offset, which a shape does not tell: never zero, so that what an offset
    # adds to a path of zeros is seen.
    return values / 2 + 0.75


def _input(spec: TensorSpec, position: int, limit: int, seed: int, batch: int) -> Tensor:
    shape = (BATCH, *(size or 8 for size in spec.shape))
    labels: tuple[str | int, ...] = ("images", batch, *((position,) if position else ()))
    if spec.dtype.startswith(("float", "bfloat")):
        return _uniform(shape, seed, *labels).clone()
    return drawn(shape, spec.dtype, derive_seed(seed, *labels), limit)


@lru_cache(maxsize=64)
def _uniform(shape: tuple[int, ...], seed: int, *labels: str | int) -> Tensor:
    return uniform(shape, derive_seed(seed, *labels))


def _digest(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"\0".join(parts), digest_size=16).digest()
