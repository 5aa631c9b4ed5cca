"""What every block operation of every family promises, over all that are registered.

A block is tried on its family's own examples and on what architectures of the registered
spaces are made of, so that a new family is held to this by being registered.
"""

from __future__ import annotations

import copy
import inspect
import json
import random
from collections import defaultdict
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from nas.cost.blocks import block_cost, traced_cost
from nas.cost.operations import Replay, distinct, trace
from serving.runners.inputs import random_input
from serving.runners.onnx_export import export_onnx
from tests.contracts.test_contract_search import IMAGE, SPACES, example, space_named
from zoo.builders import build, build_chain, operation, operations, placed
from zoo.canonical import canonical_json
from zoo.errors import IncompatibleShapeError
from zoo.signature import block_signature
from zoo.spec import BlockSpec, TensorSpec
from zoo.weights import pack, unpack

FREE = 6
"""The size given to a dimension that may vary."""


def from_spaces(count: int = 2) -> dict[str, list[BlockSpec]]:
    """Return, for each operation, a few of the blocks that small architectures consist of."""
    found: defaultdict[str, list[BlockSpec]] = defaultdict(list)
    for name in SPACES:
        space, rng = space_named(name), random.Random(0)
        for _ in range(3):
            for spec in space.blocks(space.sample(rng), inputs=IMAGE, num_classes=3):
                if spec not in found[spec.op] and len(found[spec.op]) < count:
                    found[spec.op].append(spec)
    return found


example("recurrent", "block_spec")  # a user's own block, as if its package were installed
SPACED = from_spaces()
BLOCKS = [
    pytest.param(spec, id=f"{op}-{number}")
    for op in sorted({*operations(), *SPACED})
    for number, spec in enumerate(operation(op).examples or SPACED[op])
]


def own(op: str) -> bool:
    """Say whether an operation is no toy of the tests, which may break on purpose."""
    return not operation(op).build.__module__.startswith(("blockyard_toys", "tests."))


def test_every_operation_is_held_to_the_contract() -> None:
    tried = {param.values[0].op for param in BLOCKS}  # type: ignore[union-attr]
    assert {op for op in operations() if own(op)} <= tried


@pytest.fixture(params=BLOCKS)
def spec(request: pytest.FixtureRequest) -> BlockSpec:
    block: BlockSpec = request.param
    return block


def sized(tensor: TensorSpec) -> TensorSpec:
    shape = tuple(FREE if size is None else size for size in tensor.shape)
    return TensorSpec(shape=shape, dtype=tensor.dtype)


def samples(spec: BlockSpec, batch: int, *, seed: int = 0, double: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = [random_input(item, batch, generator, variable=FREE) for item in spec.inputs]
    return [item.double() if double and item.is_floating_point() else item for item in made]


def fresh(spec: BlockSpec, *, seed: int = 0) -> nn.Module:
    return build_chain([spec], seed=seed)[0]


def run(module: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
    outputs = module(*inputs)
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


def fixed(spec: BlockSpec) -> BlockSpec:
    """Return the block with its free dimensions fixed."""
    if all(None not in item.shape for item in spec.inputs):
        return spec
    settings = dict(spec.params) | {"channels": spec.outputs[0].shape[0]}
    legal = inspect.signature(operation(spec.op).describe).parameters  # type: ignore[arg-type]
    chosen = {name: value for name, value in settings.items() if name in legal}
    return placed(spec.op, sized(spec.inputs[0]), **chosen)


def test_it_is_built_from_its_spec_as_json(spec: BlockSpec) -> None:
    again = BlockSpec.from_json(json.loads(canonical_json(spec.to_json())))
    assert again.id == spec.id
    names = fresh(spec).state_dict().keys()
    assert build(again).state_dict().keys() == names


@pytest.mark.parametrize("batch", [1, 3])
def test_it_returns_what_its_spec_declares(spec: BlockSpec, batch: int) -> None:
    outputs = run(fresh(spec).eval(), samples(spec, batch))
    assert len(outputs) == len(spec.outputs)
    for output, declared in zip(outputs, spec.outputs, strict=True):
        assert output.dtype == getattr(torch, declared.dtype)
        assert output.shape[0] == batch
        assert output.ndim == len(declared.shape) + 1
        for size, wanted in zip(output.shape[1:], declared.shape, strict=True):
            assert wanted in (size, None)


def test_its_weights_are_a_function_of_the_seed(spec: BlockSpec) -> None:
    first, second = fresh(spec, seed=1), fresh(spec, seed=1)
    assert pack(first) == pack(second)
    random_weights = [item for item in first.parameters() if item.ndim > 1]
    assert not random_weights or pack(first) != pack(fresh(spec, seed=2))


def test_a_sample_is_computed_alike_in_any_batch(spec: BlockSpec) -> None:
    module = fresh(spec).double().eval()
    inputs = samples(spec, 4, double=True)
    with torch.no_grad():
        whole = run(module, inputs)
        for row in range(4):
            alone = run(module, [item[row : row + 1] for item in inputs])
            for one, all_rows in zip(alone, whole, strict=True):
                torch.testing.assert_close(one, all_rows[row : row + 1], rtol=1e-9, atol=1e-11)


def test_the_gradient_reaches_every_parameter_by_the_second_step(spec: BlockSpec) -> None:
    """At first a branch may be scaled by zero, so that only its scale has a gradient."""
    module = fresh(spec).double().train()
    named = dict(module.named_parameters())
    reached: set[str] = set()
    for step in range(2):
        outputs = run(module, samples(spec, 4, seed=step, double=True))
        generator = torch.Generator().manual_seed(step)
        loss = torch.zeros((), dtype=torch.float64)
        for item in outputs:
            loss = loss + (torch.randn(item.shape, generator=generator).double() * item).sum()
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True) if named else ()
        sizes = {
            name: 0.0 if gradient is None else float(gradient.abs().max())
            for name, gradient in zip(named, found, strict=True)
        }
        # Smaller ones are rounding, as of an offset that a normalisation takes out again.
        reached |= {name for name in named if sizes[name] > 1e-11 * max(sizes.values())}
        with torch.no_grad():
            for name, gradient in zip(named, found, strict=True):
                if gradient is not None:
                    named[name] -= 0.1 / max(sizes.values()) * gradient
    assert reached == named.keys()


class HookCounter(TorchFunctionMode):
    """Counts the multiply-accumulates of what PyTorch's functions are asked to do."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in ("conv1d", "conv2d"):
            self.macs += output[0].numel() * prod(args[1].shape[1:])
        elif name == "linear":
            self.macs += output[0].numel() * args[0].shape[-1]
        elif name in ("matmul", "__matmul__", "bmm", "mm", "__rmatmul__"):
            self.macs += output.numel() * args[0].shape[-1]
        elif name == "scaled_dot_product_attention":
            query, key, value = args[:3]
            rows = prod(query.shape[:-1]) * key.shape[-2]
            self.macs += rows * (query.shape[-1] + value.shape[-1])
        elif name in ("einsum", "baddbmm", "addmm", "addbmm", "mv", "dot"):
            raise AssertionError(f"teach the counter {name}")
        return output


def test_its_cost_equals_what_hooks_count(spec: BlockSpec) -> None:
    spec = fixed(spec)
    module = fresh(spec).eval()
    with torch.no_grad(), HookCounter() as counter:
        run(module, samples(spec, 1))
    counted = block_cost(spec)
    assert counted.macs == counter.macs
    assert counted.num_params == sum(item.numel() for item in module.parameters())
    assert traced_cost(spec) == counted


def test_a_latency_table_can_measure_all_that_it_executes(spec: BlockSpec) -> None:
    spec = fixed(spec)
    if len(spec.inputs) > 1:
        return  # tables trace whole networks, which take one tensor
    executed = trace(fresh(spec), spec.inputs[0])
    assert sum(item.macs for item in executed) == block_cost(spec).macs
    for item in distinct(executed).values():
        Replay(item, device=torch.device("cpu"), dtype=torch.float32, channels_last=False)()


def test_its_onnx_export_computes_the_same(spec: BlockSpec) -> None:
    module = fresh(spec).eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_(generator=torch.Generator().manual_seed(0))
            part.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(1))
    assert export_onnx(module, spec.inputs, spec.outputs)


def test_its_weights_survive_a_file_and_its_signature_tells_them_from_others(
    spec: BlockSpec,
) -> None:
    module = fresh(spec, seed=1).eval()
    again = fresh(spec, seed=2).eval()
    others = block_signature(spec, again)
    inputs = samples(spec, 2, double=True)
    with torch.no_grad():
        mine, theirs = (run(copy.deepcopy(item).double(), inputs) for item in (module, again))
    apart = any(
        float((one - other).abs().max()) > 1e-3 * float(one.abs().max())
        for one, other in zip(mine, theirs, strict=True)
    )
    again.load_state_dict(unpack(pack(module)), assign=True)
    for one, other in zip(run(module, samples(spec, 2)), run(again, samples(spec, 2)), strict=True):
        assert torch.equal(one, other)
    signature = block_signature(spec, module)
    assert block_signature(spec, again) == signature
    assert block_signature(spec, copy.deepcopy(module)) == signature
    if apart:  # two fresh ConvNeXt blocks are both all but identities
        assert others != signature


PLACED = [op for op in operations() if operation(op).describe is not None and own(op)]


def resized(example: BlockSpec, size: tuple[int, int]) -> BlockSpec | str:
    """Return the block on images of another size, or why there is none."""
    settings = dict(example.params)
    settings["channels"] = settings["num_classes"] = example.outputs[0].shape[0]
    legal = inspect.signature(operation(example.op).describe).parameters  # type: ignore[arg-type]
    chosen = {name: value for name, value in settings.items() if name in legal}
    try:
        return placed(example.op, TensorSpec(shape=(example.inputs[0].shape[0], *size)), **chosen)
    except IncompatibleShapeError as error:
        return str(error)


@pytest.mark.parametrize("size", [(7, 9), (1, 1), (13, 5), (2, 16)])
@pytest.mark.parametrize("op", PLACED)
def test_an_odd_size_works_or_is_refused_by_name(op: str, size: tuple[int, int]) -> None:
    for tried in operation(op).examples:
        spec = resized(tried, size)
        if isinstance(spec, str):
            halved = tuple(-(-side // 2) for side in size)
            assert str(size) in spec or str(halved) in spec
            assert "choose" in spec
            continue
        (output,) = run(fresh(spec).eval(), samples(spec, 2))
        assert output.shape[1:] == spec.outputs[0].shape
        assert np.isfinite(output.detach().numpy()).all()


def test_the_counter_of_this_suite_counts() -> None:
    x = torch.zeros(1, 2, 3, 4)
    with HookCounter() as counter:
        functional.scaled_dot_product_attention(x, x, x)
        functional.linear(x, torch.zeros(5, 4))
        _ = x @ torch.zeros(4, 7)
    assert counter.macs == 2 * 3 * 3 * 8 + 6 * 5 * 4 + 6 * 7 * 4
