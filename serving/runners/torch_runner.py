"""Blocks computed by PyTorch, eagerly, on the CPU or one CUDA device."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from serving.runners.checks import DTYPES, row_checker
from zoo.errors import BlockyardError, InvalidInputError, NotReadyError, RunnerError
from zoo.spec import TensorSpec

PRECISIONS = ("float32", "float64", "bfloat16", "float16")


class TorchRunner:
    """Computes a module in ``precision``; its interface keeps the types of its specs.

    The module is used as it is where it already sits on the device, in the precision and
    in eval mode (so several runners can share it); otherwise a copy is made. The caller's
    module is never changed.

    Raises:
        InvalidInputError: ``precision`` is unknown.
    """

    runtime = "torch"

    def __init__(
        self,
        module: nn.Module,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        device: torch.device | str,
        precision: str = "float32",
    ) -> None:
        self._device = torch.device(device)
        self.device = str(self._device)
        self.precision = precision
        self._dtype = _precision(precision)
        self._module: nn.Module | None = prepared(module, device=self._device, precision=precision)
        self._check = row_checker(inputs, "this block")
        self._casts_in = [
            DTYPES[spec.dtype].is_floating_point and DTYPES[spec.dtype] != self._dtype
            for spec in inputs
        ]
        self._outputs = [DTYPES[spec.dtype] for spec in outputs]
        self._casts = any(self._casts_in) or any(
            dtype.is_floating_point and dtype != self._dtype for dtype in self._outputs
        )

    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute a batch; see ``BlockRunner.run``."""
        if self._module is None:
            raise NotReadyError("this runner is closed; load its block again")
        self._check(inputs)
        try:
            with torch.inference_mode():
                given = [tensor.to(self._device, non_blocking=True) for tensor in inputs]
                if self._casts:
                    given = [
                        tensor.to(self._dtype) if casts else tensor
                        for tensor, casts in zip(given, self._casts_in, strict=True)
                    ]
                answer = self._module(*given)
                results = answer if isinstance(answer, tuple) else (answer,)
                if self._casts:
                    results = tuple(
                        tensor.to(dtype)
                        for tensor, dtype in zip(results, self._outputs, strict=True)
                    )
        except BlockyardError:
            raise
        except Exception as error:
            raise RunnerError(f"PyTorch failed on {self.device}: {error}") from error
        return results

    def close(self) -> None:
        """Let go of the module; its memory is free when no other runner shares it."""
        self._module = None


def prepared(module: nn.Module, *, device: torch.device, precision: str) -> nn.Module:
    """Return ``module`` ready to run there: itself if it is, otherwise a converted copy.

    On the CPU, convolution weights are laid out channels-last, in which batches are up to
    half as fast again.

    Raises:
        InvalidInputError: ``precision`` is unknown.
    """
    dtype = _precision(precision)
    parts = [*module.parameters(), *module.buffers()]
    ready = not any(part.training for part in module.modules()) and all(
        tensor.device == device
        and (tensor.dtype == dtype or not tensor.is_floating_point())
        and (device.type != "cpu" or _is_channels_last(tensor))
        for tensor in parts
    )
    if ready:
        return module
    ours = copy.deepcopy(module).eval().requires_grad_(False).to(device=device, dtype=dtype)
    if device.type == "cpu":
        for tensor in (*ours.parameters(), *ours.buffers()):
            if not _is_channels_last(tensor):
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return ours


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.ndim != 4 or tensor.is_contiguous(memory_format=torch.channels_last)


def _precision(name: str) -> torch.dtype:
    if name not in PRECISIONS:
        raise InvalidInputError(f"precision {name!r} is not one of: {', '.join(PRECISIONS)}")
    return DTYPES[name]
