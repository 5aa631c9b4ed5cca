"""A module run on the meta device: what it multiplies, and which memory lives when.

Nothing is computed, and nothing twice: what an operator makes of tensors that lie in memory
as known ones did is remembered (``OperatorMemo``), and what a module does is written down so
that runs of modules one after another add up exactly to the run of the whole (``Run``).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nas.cost.counting import check_countable, macs
from zoo.builders import build
from zoo.errors import IncompatibleShapeError
from zoo.spec import BlockSpec, TensorSpec, check_interfaces

WEIGHT = -1
"""Number of the memory of any weight, which is not counted as an activation's."""

_OWN_NAMESPACES = ("aten", "prims")


class Layout(NamedTuple):
    """How a tensor lies in memory.

    ``storage`` numbers the memory, ``nbytes`` long, that it is a view of; tensors of one
    number share it. ``offset`` and ``strides`` are in elements.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    storage: int
    nbytes: int


class Span(NamedTuple):
    """Memory of ``nbytes``, alive from step ``first`` to step ``last``."""

    first: int
    last: int
    nbytes: int


class Watch(Protocol):
    """Is told of every operator that a module executes."""

    def __call__(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        read: Sequence[Tensor],
        written: Sequence[Tensor],
        macs: int,
    ) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one run of a module does; every operator is one step, the first is step 1.

    Memory is numbered: first the inputs', in order of appearance, then what the module
    writes. ``read`` is the last step that used each of the inputs' (0: none), ``spans``
    are the lives of the others, an output's as far as the module itself uses it.
    """

    macs: int
    num_params: int
    size_bytes: int
    steps: int
    read: tuple[int, ...]
    spans: tuple[Span, ...]
    outputs: tuple[Layout, ...]

    @property
    def kept(self) -> tuple[int, ...]:
        """The numbers of the memory that the outputs lie in, in order of appearance."""
        return tuple(dict.fromkeys(out.storage for out in self.outputs if out.storage != WEIGHT))

    @property
    def passed(self) -> tuple[Layout, ...]:
        """The outputs as inputs of the next module: their memory numbered anew from 0."""
        number = {storage: at for at, storage in enumerate(self.kept)} | {WEIGHT: WEIGHT}
        return tuple(out._replace(storage=number[out.storage]) for out in self.outputs)


def sample_layout(inputs: TensorSpec, *, batch: int = 1) -> Layout:
    """Return how a batch lies in memory, which is number 0.

    Raises:
        IncompatibleShapeError: A dimension is free.
    """
    shape = [size for size in inputs.shape if size is not None]
    if len(shape) != len(inputs.shape):
        raise IncompatibleShapeError(f"shape {inputs.shape} has a free dimension; fix its size")
    dtype = getattr(torch, inputs.dtype)
    return _layout(torch.empty(batch, *shape, dtype=dtype, device="meta"), 0)


def run(
    module: nn.Module,
    inputs: Sequence[Layout],
    memo: OperatorMemo | None = None,
    watch: Watch | None = None,
) -> Run:
    """Run ``module`` in eval mode on the meta device; it is left as it was.

    Args:
        module: Takes tensors of ``inputs`` and returns one tensor or several.
        inputs: Layouts, their memory numbered from 0 in order of appearance, or ``WEIGHT``.
        memo: What is known of operators; it learns.
        watch: Is told of every operator.

    Raises:
        IncompatibleShapeError: The module rejects the inputs.
        InvalidInputError: It executes an operator that cannot be counted.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    tensors = parameters | dict(module.named_buffers(remove_duplicate=False))
    unique = {id(tensor): tensor for tensor in tensors.values()}
    moved = {key: tensor.detach().to("meta") for key, tensor in unique.items()}
    weights = {name: moved[id(tensor)] for name, tensor in tensors.items()}
    samples = _samples(inputs)
    mode = _Trace(memo or OperatorMemo(), watch, weights.values(), inputs, samples)
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.inference_mode(False), torch.no_grad(), mode:
            outputs = functional_call(module, weights, samples, tie_weights=False)
    except RuntimeError as error:
        shapes = " and ".join(str(layout.shape[1:]) for layout in inputs)
        raise IncompatibleShapeError(
            f"the network rejects an input of shape {shapes}: {error}"
        ) from error
    finally:
        for part, training in modes.items():
            part.training = training
    return Run(
        macs=mode.macs,
        num_params=sum(unique[key].numel() for key in {*map(id, parameters.values())}),
        size_bytes=sum(tensor.numel() * tensor.element_size() for tensor in unique.values()),
        steps=mode.step,
        read=tuple(span.last for span in mode.spans[: mode.taken]),
        spans=tuple(mode.spans[mode.taken :]),
        outputs=mode.layouts(outputs),
    )


class BlockRuns:
    """Runs chains of blocks, each distinct block only once for as long as the object lives.

    A block is run anew if its inputs lie in memory in another way, for then it may do other
    things; ``watch`` is told of what is run.
    """

    def __init__(self, watch: Watch | None = None) -> None:
        self._watch = watch
        self._memo = OperatorMemo()
        self._known: dict[tuple[str, tuple[Layout, ...]], Run] = {}

    def of(self, specs: Sequence[BlockSpec], sample: Layout) -> list[Run]:
        """Return the run of each block of a chain that starts with ``sample``.

        Raises:
            BlockyardError: As for ``run`` and ``zoo.builders.build_chain``.
        """
        check_interfaces(specs)
        inputs: tuple[Layout, ...] = (sample,)
        runs = []
        for spec in specs:
            found = self._known.get((spec.id, inputs))
            if found is None:
                found = run(build(spec), inputs, self._memo, self._watch)
                self._known[spec.id, inputs] = found
            runs.append(found)
            inputs = found.passed
        return runs


class OperatorMemo:
    """What operators make of tensors on the meta device, by operator and arguments.

    Only PyTorch's own operators whose results are new tensors, or arguments left as they
    lay, are remembered; every other one is run each time.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[_Results, int]] = {}

    def run(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Any, int, list[Tensor]]:
        """Return an operator's result, its multiply-accumulates, and the tensors it reads.

        Raises:
            InvalidInputError: Its multiply-accumulates cannot be counted.
        """
        given = _Arguments(args, kwargs)
        key = func, torch.get_default_dtype(), given.key
        known = self._known.get(key)
        if known is not None:
            return known[0].make(given.tensors), known[1], given.tensors
        check_countable(func)
        outputs = func(*args, **kwargs)
        count = macs(func, args, kwargs, outputs)
        if func.namespace in _OWN_NAMESPACES and all(item.is_meta for item in given.tensors):
            changed = func._schema.is_mutable and given.key != _Arguments(args, kwargs).key
            results = None if changed else _Results.of(outputs, given)
            if results is not None:
                self._known[key] = results, count
        return outputs, count, given.tensors


class _Arguments:
    """An operator's arguments written down, numbers with their types, and their tensors."""

    def __init__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.tensors: list[Tensor] = []
        self.memory: dict[int, int] = {}
        self.key = (
            self._written(args),
            tuple((name, self._written(kwargs[name])) for name in kwargs),
        )

    def _written(self, item: Any) -> Hashable:
        if isinstance(item, Tensor):
            self.tensors.append(item)
            key = item.untyped_storage()._cdata
            return _layout(item, self.memory.setdefault(key, len(self.memory))), item.device
        if isinstance(item, list | tuple):
            return type(item), *map(self._written, item)
        return type(item), item


_Made = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
"""Shape, strides and type of a new tensor."""


class _Results(NamedTuple):
    """How to make an operator's results: each a new tensor, an argument's number or None."""

    kind: type | None
    made: tuple[_Made | int | None, ...]

    @classmethod
    def of(cls, outputs: Any, given: _Arguments) -> _Results | None:
        """Return how ``outputs`` came from what was given; None if they cannot be made again."""
        kind = type(outputs) if isinstance(outputs, list | tuple) else None
        taken = set(given.memory)
        made: list[_Made | int | None] = []
        for item in (outputs,) if kind is None else outputs:
            same = [at for at, tensor in enumerate(given.tensors) if tensor is item]
            if item is None or same:
                made.append(same[0] if same else None)
            elif type(item) is Tensor and item.is_meta and item.layout is torch.strided:
                new = tuple(item.shape), item.stride(), item.dtype
                layout = _layout(item, 0)
                memory = item.untyped_storage()._cdata
                if memory in taken or layout != _layout(_empty(new), 0):
                    return None
                taken.add(memory)
                made.append(new)
            else:
                return None
        return cls(kind, tuple(made))

    def make(self, tensors: Sequence[Tensor]) -> Any:
        """Return the results again, ``tensors`` being the arguments."""
        made = [
            tensors[item] if isinstance(item, int) else None if item is None else _empty(item)
            for item in self.made
        ]
        return made[0] if self.kind is None else self.kind(made)


class _Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts, and writes down when each memory but the weights' is first and last used."""

    def __init__(
        self,
        memo: OperatorMemo,
        watch: Watch | None,
        weights: Iterable[Tensor],
        inputs: Sequence[Layout],
        samples: Sequence[Tensor],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = self.step = 0
        self.spans: list[Span] = []
        self._memo, self._watch = memo, watch
        self._kept: list[Tensor] = []  # keeps memory apart: a freed one's address is reused
        self._number = {tensor.untyped_storage()._cdata: WEIGHT for tensor in weights}
        for layout, tensor in zip(inputs, samples, strict=True):
            if layout.storage == WEIGHT:
                self._number[tensor.untyped_storage()._cdata] = WEIGHT
            self._write(tensor)
        self.taken = len(self.spans)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        settings = kwargs or {}
        outputs, count, read = self._memo.run(func, args, settings)
        several = outputs if isinstance(outputs, list | tuple) else (outputs,)
        written = [item for item in several if isinstance(item, Tensor)]
        self.macs += count
        self.step += 1
        for tensor in read:
            self._read(tensor)
        for tensor in written:
            self._write(tensor)
        if self._watch is not None:
            self._watch(func, args, settings, read, written, count)
        return outputs

    def layouts(self, outputs: Any) -> tuple[Layout, ...]:
        """Return how the module's results lie; memory not written here is as a weight's."""
        return tuple(
            _layout(tensor, self._number.get(tensor.untyped_storage()._cdata, WEIGHT))
            for tensor in tree_leaves(outputs)
            if isinstance(tensor, Tensor)
        )

    def _read(self, tensor: Tensor) -> None:
        number = self._number.get(tensor.untyped_storage()._cdata, WEIGHT)
        if number != WEIGHT:
            self.spans[number] = self.spans[number]._replace(last=self.step)

    def _write(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._number:
            self._read(tensor)
            return
        self._kept.append(tensor)
        self._number[storage._cdata] = len(self.spans)
        self.spans.append(Span(self.step, self.step, storage.nbytes()))


def _layout(tensor: Tensor, number: int) -> Layout:
    return Layout(
        tuple(tensor.shape),
        tensor.stride(),
        int(tensor.storage_offset()),
        tensor.dtype,
        number,
        tensor.untyped_storage().nbytes(),
    )


def _samples(inputs: Sequence[Layout]) -> tuple[Tensor, ...]:
    """Return tensors on the meta device that lie as ``inputs`` say."""
    memory: dict[int, torch.UntypedStorage] = {}
    samples = []
    for layout in inputs:
        bare = torch.empty(layout.nbytes, dtype=torch.uint8, device="meta").untyped_storage()
        storage = bare if layout.storage == WEIGHT else memory.setdefault(layout.storage, bare)
        empty = torch.empty(0, dtype=layout.dtype, device="meta")
        samples.append(empty.set_(storage, layout.offset, layout.shape, layout.strides))
    return tuple(samples)


def _empty(made: _Made) -> Tensor:
    shape, strides, dtype = made
    return torch.empty_strided(shape, strides, dtype=dtype, device="meta")
