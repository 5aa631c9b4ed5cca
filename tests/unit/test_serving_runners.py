"""Export, measurement, precision and devices."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import onnx
import pytest
import torch
from onnx.external_data_helper import set_external_data
from torch import Tensor, nn

from serving.runners import onnx_export
from serving.runners.devices import local_devices, resolve, settle_threads, usable_cores
from serving.runners.measure import measure
from serving.runners.onnx_export import check_onnx, export_onnx
from serving.runners.onnx_runner import OnnxRunner
from serving.runners.torch_runner import TorchRunner, prepared
from zoo.errors import (
    CorruptArtifactError,
    EnvironmentUnfitError,
    InvalidInputError,
    RunnerError,
    UnknownNameError,
)
from zoo.spec import Device, TensorSpec

IMAGE = (TensorSpec(shape=(3, 8, 8)),)
LOGITS = (TensorSpec(shape=(5,)),)


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)
        ).eval()


class Fails(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        raise ValueError("no such luck")


class BatchBakedIn(nn.Module):
    """A trace of this module answers only at the batch size it was traced with."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([image[row : row + 1].sum((2, 3)) for row in range(len(image))])


def clock(*steps_s: float) -> Callable[[], float]:
    times = itertools.accumulate(itertools.cycle(steps_s), initial=0.0)
    return lambda: next(times)


def test_an_exported_file_is_whole_valid_and_has_a_dynamic_batch() -> None:
    model = onnx.load_model_from_string(export_onnx(network(), IMAGE, LOGITS))
    onnx.checker.check_model(model, full_check=True)
    (given,) = model.graph.input
    assert given.type.tensor_type.shape.dim[0].dim_param
    assert [size.dim_value for size in given.type.tensor_type.shape.dim[1:]] == [3, 8, 8]


def test_export_changes_neither_module_nor_its_mode() -> None:
    module = network().train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    export_onnx(module, IMAGE, LOGITS)
    assert module.training
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


def test_a_variable_dimension_stays_variable_in_the_file() -> None:
    spec = (TensorSpec(shape=(None, 4)),)
    data = export_onnx(nn.Linear(4, 2), spec, (TensorSpec(shape=(None, 2)),))
    runner = OnnxRunner(data, spec, (TensorSpec(shape=(None, 2)),), device="cpu")
    assert runner.run((torch.zeros(2, 9, 4),))[0].shape == (2, 9, 2)


@pytest.mark.slow
def test_a_module_that_cannot_run_is_not_exported() -> None:
    with pytest.raises(CorruptArtifactError, match=r"trace: no such luck.*torch\.export"):
        export_onnx(Fails(), IMAGE, LOGITS)


def test_a_file_that_computes_something_else_is_refused() -> None:
    module = network()
    data = export_onnx(module, IMAGE, LOGITS)
    with torch.no_grad():
        module[4].bias[2] += 0.5
    with pytest.raises(CorruptArtifactError, match=r"output 0 at batch 2.*differs"):
        check_onnx(data, module, IMAGE, LOGITS, [(torch.zeros(2, 3, 8, 8),)])


def test_a_trace_with_the_batch_size_baked_in_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(*args: object) -> bytes:
        raise RuntimeError("switched off")

    monkeypatch.setattr(onnx_export, "_torch_export", unavailable)
    with pytest.raises(CorruptArtifactError, match=r"trace: .*switched off"):
        export_onnx(BatchBakedIn(), IMAGE, (TensorSpec(shape=(3,)),))


@pytest.mark.slow
def test_the_second_exporter_takes_over_where_tracing_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gone(*args: object) -> bytes:
        raise TypeError("dynamo=False was removed")

    monkeypatch.setattr(onnx_export, "_trace", gone)
    data = export_onnx(network(), IMAGE, LOGITS)
    runner = OnnxRunner(data, IMAGE, LOGITS, device="cpu")
    assert runner.run((torch.zeros(5, 3, 8, 8),))[0].shape == (5, 5)


def test_external_data_is_refused() -> None:
    model = onnx.load_model_from_string(export_onnx(network(), IMAGE, LOGITS))
    set_external_data(model.graph.initializer[0], location="weights.bin")
    with pytest.raises(CorruptArtifactError, match="other files"):
        check_onnx(model.SerializeToString(), network(), IMAGE, LOGITS, [])


def test_bytes_that_are_no_model_are_a_clear_error() -> None:
    with pytest.raises(CorruptArtifactError, match="export it again"):
        OnnxRunner(b"not onnx", IMAGE, LOGITS, device="cpu")


def test_a_model_with_another_interface_is_refused() -> None:
    data = export_onnx(network(), IMAGE, LOGITS)
    with pytest.raises(CorruptArtifactError, match="1 inputs and 1 outputs"):
        OnnxRunner(data, IMAGE * 2, LOGITS, device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to use")
def test_onnx_on_a_gpu_that_is_not_there_is_an_unfit_environment() -> None:
    data = export_onnx(network(), IMAGE, LOGITS)
    with pytest.raises(EnvironmentUnfitError, match="torch runtime"):
        OnnxRunner(data, IMAGE, LOGITS, device="cuda:0")


def test_onnx_refuses_a_type_that_it_cannot_exchange() -> None:
    data = export_onnx(network(), IMAGE, LOGITS)
    with pytest.raises(InvalidInputError, match="bfloat16"):
        OnnxRunner(data, (TensorSpec(shape=(3, 8, 8), dtype="bfloat16"),), LOGITS, device="cpu")


def test_a_failing_module_is_a_runner_error() -> None:
    runner = TorchRunner(Fails(), IMAGE, LOGITS, device="cpu")
    with pytest.raises(RunnerError, match="no such luck"):
        runner.run((torch.zeros(1, 3, 8, 8),))


def test_float64_is_computed_in_float64() -> None:
    specs = (TensorSpec(shape=(3, 8, 8), dtype="float64"),)
    module = network().double()
    runner = TorchRunner(
        module, specs, (TensorSpec(shape=(5,), dtype="float64"),), device="cpu", precision="float64"
    )
    image = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    (result,) = runner.run((image,))
    assert result.dtype == torch.float64
    assert torch.allclose(result, module(image), rtol=1e-12, atol=1e-12)


def test_a_module_that_is_ready_is_shared_and_any_other_is_copied() -> None:
    module = network().requires_grad_(False).to(memory_format=torch.channels_last)
    assert prepared(module, device=torch.device("cpu"), precision="float32") is module
    module.train()
    copy = prepared(module, device=torch.device("cpu"), precision="float32")
    assert copy is not module
    assert module.training
    assert not copy.training


def test_an_unknown_precision_lists_the_known_ones() -> None:
    with pytest.raises(InvalidInputError, match="float32, float64, bfloat16, float16"):
        TorchRunner(network(), IMAGE, LOGITS, device="cpu", precision="int4")


def test_measure_reports_milliseconds_of_every_timed_call() -> None:
    runner = TorchRunner(network(), IMAGE, LOGITS, device="cpu")
    timing = measure(runner, IMAGE, batch=2, warmup=1, repeats=4, clock=clock(0.002, 1.0))
    assert timing.samples == pytest.approx((2.0,) * 4)
    assert timing.median_ms == pytest.approx(2.0)
    assert timing.p95_ms == pytest.approx(2.0)
    assert timing.peak_bytes is None


def test_the_quantiles_lie_between_the_samples() -> None:
    runner = TorchRunner(network(), IMAGE, LOGITS, device="cpu")
    ticks = clock(0.001, 0.0, 0.002, 0.0, 0.003, 0.0, 0.011, 0.0)
    timing = measure(runner, IMAGE, batch=1, warmup=0, repeats=4, clock=ticks)
    assert timing.median_ms == pytest.approx(2.5)
    assert timing.p95_ms == pytest.approx(3 + 0.85 * 8)


@pytest.mark.parametrize(("batch", "repeats", "named"), [(0, 5, "batch"), (1, 0, "repeats")])
def test_measure_refuses_counts_below_one(batch: int, repeats: int, named: str) -> None:
    runner = TorchRunner(network(), IMAGE, LOGITS, device="cpu")
    with pytest.raises(InvalidInputError, match=f"{named} is 0"):
        measure(runner, IMAGE, batch=batch, repeats=repeats)


def test_measure_wants_every_size() -> None:
    spec = (TensorSpec(shape=(None,)),)
    runner = TorchRunner(nn.Identity(), spec, spec, device="cpu")
    with pytest.raises(InvalidInputError, match="variable dimension"):
        measure(runner, spec, batch=1)


def test_the_devices_of_this_machine_start_with_its_cpu_and_keep_their_ids() -> None:
    first, again = local_devices(), local_devices()
    assert first[0].name == "cpu"
    assert [device.id for device in first] == [device.id for device in again]
    assert Device.from_json(first[0].to_json()).id == first[0].id
    assert first[0].info["torch"] == torch.__version__


def test_the_fingerprint_does_not_depend_on_this_process_s_threads() -> None:
    before = torch.get_num_threads()
    ids = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            ids.append([device.id for device in local_devices()])
    finally:
        torch.set_num_threads(before)
    assert ids[0] == ids[1]


def test_devices_of_one_machine_are_in_different_places() -> None:
    places = [device.place for device in local_devices()]
    assert len(set(places)) == len(places)
    assert places == [device.place for device in local_devices()]
    assert places[0] != local_devices()[0].id


def test_training_leaves_a_core_to_others_and_keeps_a_lower_limit() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(64)
        settled = settle_threads()
        assert settled == torch.get_num_threads() == max(1, usable_cores() - 1)
        torch.set_num_threads(1)
        assert settle_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_device_is_found_by_name_and_auto_is_one_of_them() -> None:
    assert resolve("cpu") == torch.device("cpu")
    assert str(resolve("auto")) in {device.name for device in local_devices()}
    with pytest.raises(UnknownNameError, match="cuda:99.*cpu"):
        resolve("cuda:99")
