"""Cost counted, not measured: operations, parameters, bytes, and memory while running."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from nas.cost.counting import FORMULAS, check_countable, macs
from zoo.errors import IncompatibleShapeError
from zoo.spec import TensorSpec


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of one network for a batch of one.

    ``flops`` counts multiply-accumulates of convolutions and matrix products (attention
    included), as the field's tables do: one MAC is one. ``num_params`` counts parameters,
    ``size_bytes`` the bytes of parameters and buffers, shared ones once. ``peak_bytes``
    is ``size_bytes`` plus the largest set of activations alive at once.
    """

    flops: int
    num_params: int
    size_bytes: int
    peak_bytes: int

    def metrics(self) -> dict[str, float]:
        """Return the cost under the names of ``zoo.spec.METRICS``."""
        return {
            "flops": float(self.flops),
            "num_params": float(self.num_params),
            "size_bytes": float(self.size_bytes),
            "peak_bytes": float(self.peak_bytes),
        }


def cost(module: nn.Module, inputs: TensorSpec) -> Cost:
    """Count what one sample costs, without computing anything.

    ``module`` is traced in eval mode on the meta device and left as it was. An activation
    is alive from the operator that writes it to the last operator that reads it, in the
    order of ``forward``; views share their bytes, the input and the output count, an
    operator's own workspace does not.

    Args:
        module: Takes one tensor ``(batch, *inputs.shape)``.
        inputs: Shape of one sample; every dimension must be known.

    Raises:
        IncompatibleShapeError: ``inputs`` has a free dimension or ``module`` rejects it.
        InvalidInputError: ``module`` executes an operator that cannot be counted.
    """
    shape = [size for size in inputs.shape if size is not None]
    if len(shape) != len(inputs.shape):
        raise IncompatibleShapeError(f"shape {inputs.shape} has a free dimension; fix its size")
    sample = torch.empty(1, *shape, dtype=getattr(torch, inputs.dtype), device="meta")
    tensors = dict(itertools.chain(module.named_parameters(), module.named_buffers()))
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    weights = _on_meta(module)
    counter = FlopCounterMode(display=False, custom_mapping=dict(FORMULAS))
    trace = _Liveness(sample, weights)
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad(), counter, trace:
            output = functional_call(module, weights, (sample,))
    except RuntimeError as error:
        raise IncompatibleShapeError(
            f"the network rejects an input of shape {tuple(shape)}: {error}"
        ) from error
    finally:
        for part, training in modes.items():
            part.training = training
    return Cost(
        flops=counter.get_total_flops() // 2,
        num_params=sum(parameter.numel() for parameter in module.parameters()),
        size_bytes=size,
        peak_bytes=size + trace.peak_bytes(output),
    )


def count_macs(module: nn.Module, inputs: Sequence[TensorSpec]) -> int:
    """Return the multiply-accumulates of one sample, for a module of one or several inputs.

    Args:
        module: Takes tensors ``(batch, *shape)``; left as it was.
        inputs: Shapes of one sample; every dimension must be known.

    Raises:
        IncompatibleShapeError: A dimension is free, or ``module`` rejects the inputs.
        InvalidInputError: ``module`` executes an operator that cannot be counted.
    """
    if any(size is None for spec in inputs for size in spec.shape):
        raise IncompatibleShapeError(
            f"shapes {[spec.shape for spec in inputs]} have a free dimension; fix its size"
        )
    samples = [
        torch.empty(1, *spec.shape, dtype=getattr(torch, spec.dtype), device="meta")  # type: ignore[arg-type]
        for spec in inputs
    ]
    counter = _Counter()
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.inference_mode(False), torch.no_grad(), counter:
            functional_call(module, _on_meta(module), tuple(samples))
    except RuntimeError as error:
        raise IncompatibleShapeError(
            f"the network rejects inputs of {[spec.shape for spec in inputs]}: {error}"
        ) from error
    finally:
        for part, training in modes.items():
            part.training = training
    return counter.macs


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums the multiply-accumulates of all operators."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        self.macs += macs(func, args, kwargs or {}, outputs)
        return outputs


def _on_meta(module: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer on the meta device; tied ones stay one tensor."""
    moved: dict[int, Tensor] = {}
    named = itertools.chain(
        module.named_parameters(remove_duplicate=False),
        module.named_buffers(remove_duplicate=False),
    )
    return {
        name: moved.setdefault(id(tensor), tensor.detach().to("meta")) for name, tensor in named
    }


class _Liveness(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records for every storage but the weights' when it is first written and last read."""

    def __init__(self, sample: Tensor, weights: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._step = 0
        self._kept: list[Tensor] = []  # keeps storages apart: a freed one's address is reused
        self._spans: dict[int, list[int]] = {}
        self._bytes: dict[int, int] = {}
        self._weights = {tensor.untyped_storage()._cdata for tensor in weights.values()}
        self._write(sample)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        check_countable(func)
        outputs = func(*args, **(kwargs or {}))
        self._step += 1
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self._read(tensor)
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, Tensor):
                self._write(tensor)
        return outputs

    def peak_bytes(self, output: object) -> int:
        """Return the largest sum of sizes of storages alive at one step."""
        self._step += 1
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._read(tensor)
        change = [0] * (self._step + 2)
        for key, (first, last) in self._spans.items():
            change[first] += self._bytes[key]
            change[last + 1] -= self._bytes[key]
        return max(itertools.accumulate(change))

    def _read(self, tensor: Tensor) -> None:
        key = tensor.untyped_storage()._cdata
        if key in self._spans:
            self._spans[key][1] = self._step

    def _write(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._spans:
            self._spans[key][1] = self._step
        if key in self._spans or key in self._weights:
            return
        self._kept.append(tensor)
        self._spans[key] = [self._step, self._step]
        self._bytes[key] = storage.nbytes()
