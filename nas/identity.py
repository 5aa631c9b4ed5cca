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
those kept for evaluation.

Source:
    Gillard et al. (2023), arXiv:2302.05433. Differs: weights are seeded by content rather
    than drawn in order; a hit is confirmed.
"""

from __future__ import annotations

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
from torch import Tensor

from nas.graph import Graph
from nas.programs import Built, Drawing, Program
from nas.protocols import SearchSpace
from zoo.canonical import content_id
from zoo.certificates import Proof, Signature
from zoo.errors import InvalidInputError
from zoo.rng import derive_seed
from zoo.signature import hash_tensors, projections, uniform
from zoo.spec import Architecture, TensorSpec

VERSION = 2
MANTISSA_BITS = 26
"""A doubled input of a normalised convolution differs from a single one by its eps alone, a
part in 2**18; rounding is about 2**-44."""

BATCH = 4
LEARNING_RATE = 0.1
ORDER = (0, 1)
"""The batches trained on, one step each."""

_COLOUR_BITS = 20
_FLOOR = 2.0**-40
_INERT = 2.0**-36
"""Gradients this small beside the largest are rounding noise."""


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
        return _signature(_Settled(program, images, seed=0), ORDER)


def graph_signature(graph: Graph) -> Signature:
    """Return the functional hash of a drawing; its vertices may be in any order."""
    with torch.random.fork_rng(devices=[]), closing(Drawing(graph)) as drawing:
        return _signature(_Settled(drawing, graph.inputs, seed=0), ORDER)


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


def identify_program(
    program: Program, inputs: TensorSpec, *, seed: int = 0, order: Sequence[int] = ORDER
) -> Identity:
    """Return what a network is known by; its weights are overwritten.

    Args:
        program: The network.
        inputs: Images that it takes.
        seed: Of the images and targets of the hash; the proof has others.
        order: The batches trained on, one step each.

    Raises:
        RuntimeError: The network does not run on such images.
    """
    settled = _Settled(program, inputs, seed=seed)
    outputs, silent = settled.train(order, seed=derive_seed(seed, "proof"))
    values = np.concatenate([projections(item) for item in outputs])
    proof = Proof(
        probe=content_id([VERSION, seed, list(order), inputs.to_json()]),
        values=tuple(np.where(np.abs(values) <= _FLOOR, 0.0, values).tolist()),
        learns_constant=silent,
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
        except (RuntimeError, ValueError) as error:
            raise InvalidInputError(
                f"{space.summary(architecture)} does not run on images of "
                f"{list(inputs.shape)}: {error}"
            ) from error


class _Settled:
    """A network with weights by content."""

    def __init__(self, program: Program, inputs: TensorSpec, *, seed: int) -> None:
        self.seed = seed
        self._program = program
        self._sites = program.sites
        self._inputs = inputs
        self._marks = self._settle()

    def _settle(self) -> list[bytes]:
        """Return a mark for every site, so that sites of one content and mark are exchangeable.

        Sites without effect keep whatever mark they have.
        """
        marks, _, ties = self._part([b""] * len(self._sites))
        while ties:
            tie = min(ties, key=lambda group: (self._sites[group[0]].content, marks[group[0]]))
            trials = []
            for at in tie:
                trial = list(marks)
                trial[at] = _digest(marks[at], b"singled out")
                trials.append(self._part(trial))
            marks, _, ties = min(trials, key=lambda trial: trial[1])
        return marks

    def _part(self, marks: list[bytes]) -> tuple[list[bytes], str, list[list[int]]]:
        """Return finer marks by gradients, the hash of the run, and the groups that still tie."""
        marks = list(marks)
        while True:
            self._fill(marks)
            self._program.forget()
            logits, loss, images = self._forward(0, self.seed)
            image, *gradients = _gradients(loss, [images, *self._tensors()])
            groups: defaultdict[tuple[str, bytes], list[int]] = defaultdict(list)
            largest = max(
                (float(item.abs().max()) for item in gradients if item.numel()), default=0.0
            )
            for at, gradient in enumerate(gradients):
                if gradient.numel() and float(gradient.abs().max()) > _INERT * largest:
                    groups[self._sites[at].content, marks[at]].append(at)
            ties = [group for group in groups.values() if len(group) > 1]
            parted = False
            for group in ties:
                colours = [_colour(gradients[at]) for at in group]
                if len(set(colours)) > 1:
                    parted = True
                    for at, colour in zip(group, colours, strict=True):
                        marks[at] = _digest(marks[at], colour.encode())
            if not parted:
                key, _ = hash_tensors([logits, image], mantissa_bits=_COLOUR_BITS, floor=_FLOOR)
                return marks, key, ties

    def train(self, order: Sequence[int], *, seed: int) -> tuple[list[Tensor], bool]:
        """Return logits and image gradient after training, and whether a constant is learned."""
        self._fill(self._marks)
        self._program.forget()
        for batch in order:
            _, loss, _ = self._forward(batch, seed)
            gradients = _gradients(loss, self._tensors())
            norm = math.sqrt(sum(float(item.square().sum()) for item in gradients))
            if norm > 0 and math.isfinite(norm):
                step = LEARNING_RATE / max(1.0, norm)
                with torch.no_grad():
                    for tensor, gradient in zip(self._tensors(), gradients, strict=True):
                        tensor.sub_(gradient, alpha=step)
        logits, loss, images = self._forward(-1, seed)
        silent = list(self._program.silent)
        image, *offsets = _gradients(loss, [images, *silent])
        return [logits.detach(), image], any(bool(item.any()) for item in offsets)

    def _tensors(self) -> list[torch.nn.Parameter]:
        return [site.tensor for site in self._sites]

    def _fill(self, marks: Sequence[bytes]) -> None:
        with torch.no_grad():
            for site, mark in zip(self._sites, marks, strict=True):
                site.tensor.copy_(_weights(site.content, mark, tuple(site.tensor.shape)))

    def _forward(self, batch: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        images = _images(self._inputs, seed, batch).requires_grad_()
        logits = self._program(images)
        target = _uniform(tuple(logits.shape), derive_seed(seed, "target", batch))
        return logits, (logits - target).square().mean() / 2, images


def _gradients(loss: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    if not loss.requires_grad or not tensors:
        return [torch.zeros_like(tensor) for tensor in tensors]
    found = torch.autograd.grad(loss, list(tensors), allow_unused=True)
    return [
        torch.zeros_like(tensor) if gradient is None else gradient
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


def _images(inputs: TensorSpec, seed: int, batch: int) -> Tensor:
    shape = (BATCH, *(size or 8 for size in inputs.shape))
    return _uniform(shape, derive_seed(seed, "images", batch)).clone()


@lru_cache(maxsize=64)
def _uniform(shape: tuple[int, ...], seed: int) -> Tensor:
    return uniform(shape, seed)


def _digest(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"\0".join(parts), digest_size=16).digest()
