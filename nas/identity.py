"""The functional hash of an architecture: equal for networks that compute the same.

The network gets weights that depend on what each operation is and on what it reads, not
on where it stands in the encoding; then fixed images are sent through it in float64 on
the CPU, and the logits and the gradient at the images are hashed. Evaluations are shared
between architectures of one signature.

A space that knows the graph of its networks has a method ``graph`` (``GraphSpace``);
``nas.graph`` says which drawings are then told to be one network. For any other space
the built module is used as it is: its weights are seeded by the kind and shape of the
module that holds them and counted in the order of ``named_modules``; so a dead branch of
another kind or a commuted sum changes nothing, but a changed order of equal modules does.

Not seen: behaviour in training mode other than in eval mode (dropout, batch statistics),
initialisation, and cost: a dead branch is still run by the built module, so networks of
one signature may differ in latency and number of parameters.

Source:
    Gillard et al. (2023), arXiv:2302.05433. Differs: weights are seeded by content
    rather than drawn in order, and no training step is taken.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from functools import reduce
from operator import add
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from nas.graph import CONCAT, INPUT, SUM, CanonicalVertex, Graph, canonical
from nas.protocols import SearchSpace
from zoo.errors import InvalidInputError
from zoo.rng import derive_seed
from zoo.signature import MANTISSA_BITS, hash_tensors, probes, uniform
from zoo.spec import Architecture, TensorSpec

VERSION = 1


@runtime_checkable
class GraphSpace(Protocol):
    """A search space that can draw its networks."""

    def graph(
        self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int
    ) -> Graph: ...


def network_signature(
    space: SearchSpace, architecture: Architecture, *, inputs: TensorSpec, num_classes: int
) -> str:
    """Return the functional hash under which evaluations of ``architecture`` are shared.

    The same on every machine, in every process and with any number of threads.

    Args:
        space: The space of ``architecture``.
        architecture: Any choice of that space.
        inputs: Images ``(channels, height, width)``.
        num_classes: Number of logits.

    Returns:
        ``nn<version>-<sha256>``; equal ones are functionally equal up to rounding on the
        probes, unequal ones may still be equal in ways that the drawing does not show.

    Raises:
        InvalidInputError: The architecture is not of this space, or its network does not
            run on ``inputs``.
    """
    try:
        if isinstance(space, GraphSpace):
            graph = space.graph(architecture, inputs=inputs, num_classes=num_classes)
            images = _images(graph.inputs)
            logits = _run(canonical(graph), images)
        else:
            images = _images(inputs)
            logits = _module(space, architecture, inputs, num_classes)(images)
    except RuntimeError as error:
        raise InvalidInputError(
            f"{space.summary(architecture)} does not run on images of {list(inputs.shape)}: {error}"
        ) from error
    direction = uniform(logits.shape, derive_seed(VERSION, "direction"))
    gradient = torch.zeros_like(images)
    if logits.requires_grad:
        (gradient,) = torch.autograd.grad(logits, images, direction)
    return f"nn{VERSION}-{hash_tensors((logits, gradient), mantissa_bits=MANTISSA_BITS)}"


def _images(inputs: TensorSpec) -> Tensor:
    (images,) = probes([inputs], batch=2)
    return images.requires_grad_()


def _run(vertices: list[CanonicalVertex], images: Tensor) -> Tensor:
    values: list[Tensor] = []
    for item in vertices:
        inputs = [values[at] for at in item.vertex.inputs]
        if item.vertex.make is not None:
            with torch.device("meta"):
                module = item.vertex.make().double()
            values.append(_fill(module.to_empty(device="cpu"), item.key)(*inputs))
        elif item.vertex.op == INPUT:
            values.append(images)
        elif item.vertex.op == SUM:
            values.append(reduce(add, inputs))
        elif item.vertex.op == CONCAT:
            values.append(torch.cat(inputs, dim=1))
        else:
            values.append(torch.zeros_like(inputs[0]))
    return values[-1]


def _module(
    space: SearchSpace, architecture: Architecture, inputs: TensorSpec, num_classes: int
) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(VERSION, "buffers"))
        network = space.build(architecture, inputs=inputs, num_classes=num_classes).double()
    seen: Counter[str] = Counter()
    for module in network.modules():
        content = f"{type(module).__qualname__}({module.extra_repr()})"
        if any(True for _ in _own(module)):
            _fill(module, f"{content}/{seen[content]}", recurse=False)
            seen[content] += 1
    return network.eval().requires_grad_(False)


def _fill(module: nn.Module, key: str, *, recurse: bool = True) -> nn.Module:
    """Overwrite weights and batch statistics by values that depend on ``key`` and the shape."""
    with torch.no_grad():
        for name, tensor in module.named_parameters(recurse=recurse):
            values = uniform(tensor.shape, derive_seed(VERSION, key, name, *tensor.shape))
            if tensor.ndim > 1:
                tensor.copy_(values * math.sqrt(6 / math.prod(tensor.shape[1:])))
            else:
                tensor.copy_(values / 2 + (1 if name.endswith("weight") else 0))
        for name, buffer in module.named_buffers(recurse=recurse):
            if name.endswith("running_mean"):
                buffer.fill_(0.125)
            elif name.endswith("running_var"):
                buffer.fill_(0.75)
    return module.eval().requires_grad_(False)


def _own(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)
