"""Modules as ONNX files: one file, any batch size, checked against PyTorch before use."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence

import onnx
import torch
from onnx.external_data_helper import uses_external_data
from torch import Tensor, nn

from serving.runners.checks import DTYPES
from serving.runners.inputs import random_input
from serving.runners.onnx_runner import OnnxRunner
from serving.runners.torch_runner import prepared
from zoo.errors import CorruptArtifactError
from zoo.spec import TensorSpec

_OPSET = 18
_BATCHES = (2, 1, 5)
_VARIABLE = 4
_TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 2e-2, "bfloat16": 2e-2}

_Exporter = Callable[[nn.Module, tuple[Tensor, ...], list[str], list[str], "_Axes"], bytes]
_Axes = dict[str, dict[int, str]]


def export_onnx(
    module: nn.Module, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> bytes:
    """Export ``module`` with a dynamic batch dimension, weights inside the file.

    The tracing exporter goes first because it is some twenty times faster than the one
    built on ``torch.export``; the latter takes over where tracing is gone, fails, or gives
    a file that does not compute the same. A file is returned only if ONNX Runtime
    answers as PyTorch does at the batch size traced, a smaller and a larger one.

    Args:
        module: Takes and returns ``(batch, *shape)`` tensors as the specs say.
        inputs: One spec per argument; a ``None`` dimension stays variable.
        outputs: One spec per result.

    Raises:
        CorruptArtifactError: No exporter gave a correct file; the message has each reason.
    """
    module = prepared(module, device=torch.device("cpu"), precision=_precision(module, inputs))
    samples = [_sample(inputs, batch, seed) for seed, batch in enumerate(_BATCHES)]
    names_in = [f"input_{index}" for index in range(len(inputs))]
    names_out = [f"output_{index}" for index in range(len(outputs))]
    axes = _axes(names_in, inputs) | _axes(names_out, outputs)
    reasons = []
    exporters: dict[str, _Exporter] = {"trace": _trace, "torch.export": _torch_export}
    for name, exporter in exporters.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                data = exporter(module, samples[0], names_in, names_out, axes)
            check_onnx(data, module, inputs, outputs, samples)
        except Exception as error:
            reasons.append(f"{name}: {error}")
        else:
            return data
    raise CorruptArtifactError("no ONNX exporter gave a correct file; " + "; ".join(reasons))


def check_onnx(
    data: bytes,
    module: nn.Module,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    samples: Sequence[tuple[Tensor, ...]],
) -> None:
    """Check that ONNX Runtime computes from ``data`` what ``module`` does on ``samples``.

    Raises:
        CorruptArtifactError: External data, an invalid file, or answers that differ.
    """
    model = onnx.load_model_from_string(data)
    tensors = list(model.graph.initializer)
    if any(uses_external_data(tensor) for tensor in tensors):
        raise CorruptArtifactError(
            "the ONNX file keeps weights in other files; store them inside (external_data=False)"
        )
    onnx.checker.check_model(model)
    runner = OnnxRunner(data, inputs, outputs, device="cpu", threads=1)
    for sample in samples:
        with torch.inference_mode():
            answer = module(*sample)
        expected = answer if isinstance(answer, tuple) else (answer,)
        for index, (want, have) in enumerate(zip(expected, runner.run(sample), strict=True)):
            _check_close(f"output {index} at batch {sample[0].shape[0]}", want, have)


def _check_close(where: str, want: Tensor, have: Tensor) -> None:
    if want.shape != have.shape or want.dtype != have.dtype:
        raise CorruptArtifactError(
            f"{where}: ONNX Runtime returns {have.dtype}{list(have.shape)}, "
            f"PyTorch {want.dtype}{list(want.shape)}"
        )
    tolerance = _TOLERANCE.get(str(want.dtype).removeprefix("torch."), 0.0)
    scale = float(want.abs().max()) if want.dtype.is_floating_point else 0.0
    error = float((want.double() - have.double()).abs().max())
    if not error <= tolerance * max(scale, 1e-6):
        raise CorruptArtifactError(
            f"{where}: ONNX Runtime differs from PyTorch by {error:.3g} (largest value {scale:.3g})"
        )


def _trace(
    module: nn.Module,
    sample: tuple[Tensor, ...],
    names_in: list[str],
    names_out: list[str],
    axes: _Axes,
) -> bytes:
    buffer = io.BytesIO()
    torch.onnx.export(
        module,
        sample,
        buffer,  # type: ignore[arg-type]  # the tracing exporter writes to any binary file
        input_names=names_in,
        output_names=names_out,
        dynamic_axes=axes,
        opset_version=_OPSET,
        dynamo=False,
    )
    return buffer.getvalue()


def _torch_export(
    module: nn.Module,
    sample: tuple[Tensor, ...],
    names_in: list[str],
    names_out: list[str],
    axes: _Axes,
) -> bytes:
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.onnx.export(
        module,
        sample,
        input_names=names_in,
        output_names=names_out,
        dynamic_shapes=tuple(dict.fromkeys(axes[name], dynamic) for name in names_in),
        opset_version=_OPSET,
        dynamo=True,
        verbose=False,
    )
    if program is None:
        raise CorruptArtifactError("torch.onnx.export returned nothing")
    return program.model_proto.SerializeToString()


def _axes(names: Sequence[str], specs: Sequence[TensorSpec]) -> _Axes:
    return {
        name: {0: "batch"}
        | {axis: f"{name}_{axis}" for axis, size in enumerate(spec.shape, 1) if size is None}
        for name, spec in zip(names, specs, strict=True)
    }


def _sample(specs: Sequence[TensorSpec], batch: int, seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(random_input(spec, batch, generator, variable=_VARIABLE + seed) for spec in specs)


def _precision(module: nn.Module, inputs: Sequence[TensorSpec]) -> str:
    kinds = {str(part.dtype) for part in module.parameters() if part.is_floating_point()}
    if len(kinds) == 1:
        return kinds.pop().removeprefix("torch.")
    return next((spec.dtype for spec in inputs if DTYPES[spec.dtype].is_floating_point), "float32")
