"""Blocks computed by ONNX Runtime, on the CPU or one CUDA device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from serving.runners.checks import DTYPES, row_checker
from zoo.errors import (
    BlockyardError,
    CorruptArtifactError,
    EnvironmentUnfitError,
    InvalidInputError,
    NotReadyError,
    RunnerError,
)
from zoo.spec import TensorSpec

_QUIET = 3
_NUMPY: dict[str, type[np.generic]] = {
    "float16": np.float16,
    "float32": np.float32,
    "float64": np.float64,
    "uint8": np.uint8,
    "int32": np.int32,
    "int64": np.int64,
    "bool": np.bool_,
}


class OnnxRunner:
    """Computes one ONNX file in ONNX Runtime.

    On CUDA, inputs and outputs are bound to torch's memory, so nothing passes through
    the host. ``threads`` is the intra-operator thread count; 0 leaves it to the runtime.

    Raises:
        CorruptArtifactError: ``data`` is not a model with this interface.
        EnvironmentUnfitError: ONNX Runtime cannot use ``device`` here.
    """

    runtime = "onnx"

    def __init__(
        self,
        data: bytes,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        device: torch.device | str,
        threads: int = 0,
    ) -> None:
        self._device = _indexed(torch.device(device))
        self.device = str(self._device)
        self._session: Any = _session(data, self._device, threads)
        self._input_names = [item.name for item in self._session.get_inputs()]
        self._output_names = [item.name for item in self._session.get_outputs()]
        if (len(self._input_names), len(self._output_names)) != (len(inputs), len(outputs)):
            raise CorruptArtifactError(
                f"the ONNX model has {len(self._input_names)} inputs and "
                f"{len(self._output_names)} outputs; its block has {len(inputs)} and "
                f"{len(outputs)}; export it again"
            )
        self._check = row_checker(inputs, "this block")
        self._types_in = [_numpy_type(spec) for spec in inputs]
        self._types_out = [_numpy_type(spec) for spec in outputs]
        self._outputs = outputs
        self.precision = next(
            (spec.dtype for spec in inputs if DTYPES[spec.dtype].is_floating_point), "float32"
        )

    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute a batch; see ``BlockRunner.run``."""
        if self._session is None:
            raise NotReadyError("this runner is closed; load its block again")
        self._check(inputs)
        try:
            if self._device.type == "cuda":
                return self._run_bound(inputs)
            arrays = [tensor.detach().cpu().numpy() for tensor in inputs]
            feed = dict(zip(self._input_names, arrays, strict=True))
            results = self._session.run(self._output_names, feed)
        except BlockyardError:
            raise
        except Exception as error:
            raise RunnerError(f"ONNX Runtime failed on {self.device}: {error}") from error
        return tuple(torch.from_numpy(result) for result in results)

    def _run_bound(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        binding = self._session.io_binding()
        index = self._device.index
        held = [tensor.to(self._device).contiguous() for tensor in inputs]
        for name, tensor, kind in zip(self._input_names, held, self._types_in, strict=True):
            binding.bind_input(name, "cuda", index, kind, tuple(tensor.shape), tensor.data_ptr())
        results = self._allocate(held[0].shape[0])
        for name, result, kind in zip(self._output_names, results, self._types_out, strict=True):
            binding.bind_output(name, "cuda", index, kind, tuple(result.shape), result.data_ptr())
        if not results:
            for name in self._output_names:
                binding.bind_output(name)
        torch.cuda.current_stream(self._device).synchronize()
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        if results:
            return tuple(results)
        arrays = binding.copy_outputs_to_cpu()
        return tuple(torch.from_numpy(array).to(self._device) for array in arrays)

    def _allocate(self, rows: int) -> list[Tensor]:
        """Return empty outputs, or none at all where a shape is only known afterwards."""
        if any(size is None for spec in self._outputs for size in spec.shape):
            return []
        return [
            torch.empty(
                (rows, *(size or 1 for size in spec.shape)),
                dtype=DTYPES[spec.dtype],
                device=self._device,
            )
            for spec in self._outputs
        ]

    def close(self) -> None:
        """Release the session and its memory."""
        self._session = None


def _numpy_type(spec: TensorSpec) -> type[np.generic]:
    if spec.dtype not in _NUMPY:
        raise InvalidInputError(
            f"ONNX Runtime exchanges no {spec.dtype} tensors; choose the torch runtime or one of: "
            f"{', '.join(_NUMPY)}"
        )
    return _NUMPY[spec.dtype]


def _indexed(device: torch.device) -> torch.device:
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", 0)
    return device


def _session(data: bytes, device: torch.device, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _QUIET
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index}))
    try:
        session = onnxruntime.InferenceSession(data, options, providers=providers)
    except Exception as error:
        raise CorruptArtifactError(
            f"ONNX Runtime cannot load the model ({error}); export it again"
        ) from error
    if device.type == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise EnvironmentUnfitError(
            f"ONNX Runtime cannot use {device}: the session runs on {session.get_providers()}; "
            "install onnxruntime-gpu with matching CUDA libraries, or choose the torch runtime"
        )
    return session
