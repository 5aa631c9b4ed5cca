"""What every BlockRunner promises, run over every implementation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from serving.runners.onnx_export import export_onnx
from serving.runners.onnx_runner import OnnxRunner
from serving.runners.protocols import BlockRunner
from serving.runners.torch_runner import TorchRunner
from zoo.errors import IncompatibleShapeError, NotReadyError
from zoo.spec import TensorSpec

INPUTS = (TensorSpec(shape=(3, 6, 6)), TensorSpec(shape=(4,)))
OUTPUTS = (TensorSpec(shape=(4,)), TensorSpec(shape=(5, 6, 6)))


class TwoStates(nn.Module):
    """A cell-like block: two tensors in, two tensors out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.linear = nn.Linear(5, 4)

    def forward(self, image: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        features = self.norm(self.conv(image)).relu()
        return self.linear(features.mean((2, 3))) + vector, features


def block() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return TwoStates().eval()


def torch_runner() -> BlockRunner:
    return TorchRunner(block(), INPUTS, OUTPUTS, device="cpu")


def bfloat16_runner() -> BlockRunner:
    return TorchRunner(block(), INPUTS, OUTPUTS, device="cpu", precision="bfloat16")


def onnx_runner() -> BlockRunner:
    return OnnxRunner(export_onnx(block(), INPUTS, OUTPUTS), INPUTS, OUTPUTS, device="cpu")


IMPLEMENTATIONS = {"torch": torch_runner, "torch-bfloat16": bfloat16_runner, "onnx": onnx_runner}


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def make(request: pytest.FixtureRequest) -> Callable[[], BlockRunner]:
    return IMPLEMENTATIONS[request.param]


@pytest.fixture(scope="module")
def runner(make: Callable[[], BlockRunner]) -> Iterator[BlockRunner]:
    runner = make()
    yield runner
    runner.close()


def batch(rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, 3, 6, 6, generator=generator), torch.randn(
        rows, 4, generator=generator
    )


def tolerance(runner: BlockRunner) -> float:
    return 3e-2 if runner.precision == "bfloat16" else 1e-5


def test_a_runner_is_a_block_runner(runner: BlockRunner) -> None:
    assert isinstance(runner, BlockRunner)
    assert runner.device == "cpu"
    assert runner.runtime in ("torch", "onnx")


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_a_batch_of_any_size_is_computed_as_by_the_module(runner: BlockRunner, rows: int) -> None:
    inputs = batch(rows)
    with torch.inference_mode():
        expected = block()(*inputs)
    results = runner.run(inputs)
    assert isinstance(results, tuple)
    for want, have, spec in zip(expected, results, OUTPUTS, strict=True):
        assert have.shape == (rows, *spec.shape)
        assert have.dtype == torch.float32
        assert have.device == torch.device(runner.device)
        error = (want - have).abs().max() / want.abs().max()
        assert error <= tolerance(runner)


def test_a_row_does_not_depend_on_the_rows_beside_it(runner: BlockRunner) -> None:
    image, vector = batch(6)
    whole = runner.run((image, vector))
    for row in range(6):
        alone = runner.run((image[row : row + 1], vector[row : row + 1]))
        for together, apart in zip(whole, alone, strict=True):
            assert torch.allclose(
                together[row : row + 1], apart, rtol=tolerance(runner), atol=tolerance(runner)
            )


def test_inputs_that_are_views_are_computed_right(runner: BlockRunner) -> None:
    image, vector = batch(8)
    views = runner.run((image[::2], vector[::2]))
    copies = runner.run((image[::2].clone(), vector[::2].clone()))
    for view, copy in zip(views, copies, strict=True):
        assert torch.allclose(view, copy, rtol=tolerance(runner), atol=1e-6)


def test_inputs_are_left_as_they_were(runner: BlockRunner) -> None:
    image, vector = batch(2)
    before = image.clone(), vector.clone()
    runner.run((image, vector))
    assert torch.equal(image, before[0])
    assert torch.equal(vector, before[1])


@pytest.mark.parametrize(
    "wrong",
    [
        (torch.zeros(1, 3, 6, 6),),
        (torch.zeros(1, 3, 6, 5), torch.zeros(1, 4)),
        (torch.zeros(2, 3, 6, 6), torch.zeros(1, 4)),
        (torch.zeros(1, 3, 6, 6, dtype=torch.float64), torch.zeros(1, 4)),
        (torch.zeros(3, 6, 6), torch.zeros(4)),
        (torch.zeros(0, 3, 6, 6), torch.zeros(0, 4)),
    ],
    ids=["number", "shape", "rows", "type", "no batch", "empty"],
)
def test_a_wrong_input_is_refused_with_both_shapes(
    runner: BlockRunner, wrong: tuple[Tensor, ...]
) -> None:
    with pytest.raises(IncompatibleShapeError, match="takes"):
        runner.run(wrong)


def test_a_closed_runner_says_so_and_closes_twice(make: Callable[[], BlockRunner]) -> None:
    runner = make()
    runner.close()
    runner.close()
    with pytest.raises(NotReadyError, match="closed"):
        runner.run(batch(1))
