"""Multiply-accumulates that PyTorch's counter would miss are counted, or are an error."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nas.cost import cost
from nas.cost.blocks import block_cost, chain_cost, traced_cost
from nas.cost.counting import FORMULAS
from nas.cost.operations import trace
from zoo.builders import BlockCost, operation, placed, register
from zoo.errors import ConflictError, IncompatibleShapeError, InvalidInputError, UnknownNameError
from zoo.spec import BlockSpec, TensorSpec

INPUTS = TensorSpec(shape=(4, 6))


class Does(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "macs"),
    [
        (lambda x: torch.mv(x[0], x[0, 0]), 24),
        (lambda x: torch.dot(x[0, 0], x[0, 1]), 6),
        (lambda x: torch.addmv(x[0, :, 0], x[0], x[0, 0]), 24),
        (lambda x: functional.scaled_dot_product_attention(x, x, x[..., :5]), 4 * 4 * 11),
        (lambda x: torch.einsum("btc,bsc->bts", x, x), 4 * 4 * 6),
        (lambda x: x.softmax(-1).relu().mean(), 0),
    ],
)
def test_products_without_a_formula_of_pytorch_are_counted(
    function: Callable[[Tensor], Tensor], macs: int
) -> None:
    module = Does(function)
    assert cost(module, INPUTS).flops == macs
    assert sum(item.macs for item in trace(module, INPUTS)) == macs


def test_fused_attention_of_a_cpu_is_counted() -> None:
    formula = FORMULAS[torch.ops.aten._scaled_dot_product_flash_attention_for_cpu]
    query, value = torch.zeros(2, 3, 5, 8), torch.zeros(2, 3, 7, 4)
    assert formula(query, torch.zeros(2, 3, 7, 8), value) == 2 * 2 * 3 * 5 * 7 * (8 + 4)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: torch.cdist(x, x), "_cdist_forward"),
        (lambda x: torch.linalg.inv(x[0, :, :4]), "linalg_inv_ex"),
        (lambda x: torch.fft.fft(x).real, "_fft_r2c"),
    ],
)
def test_what_cannot_be_counted_is_an_error_not_nothing(
    function: Callable[[Tensor], Tensor], name: str
) -> None:
    for count in (cost, trace):
        with pytest.raises(InvalidInputError, match=f"aten::{name} does; register its formula"):
            count(Does(function), INPUTS)


def test_normalising_vectors_counts_as_nothing_like_batch_norm() -> None:
    assert cost(Does(lambda x: functional.normalize(x, dim=-1)), INPUTS).flops == 0
    assert trace(Does(lambda x: functional.normalize(x, dim=-1)), INPUTS)


def test_an_operator_that_is_not_pytorchs_own_needs_a_formula() -> None:
    library = torch.library.Library("blockyard_test", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x + x, "CompositeExplicitAutograd")
    with pytest.raises(InvalidInputError, match="blockyard_test::twice"):
        cost(Does(torch.ops.blockyard_test.twice), INPUTS)


def test_costs_of_blocks_add() -> None:
    inputs = TensorSpec(shape=(3, 9, 9))
    first = placed("fused_mbconv.block", inputs, channels=4, stride=2)
    second = placed("mbconv.classifier", first.outputs[0], num_classes=5)
    assert chain_cost([first, second]) == block_cost(first) + block_cost(second)
    assert chain_cost([]) == BlockCost()
    # 3x3 convolution from 3 to 12 channels on 25 pixels, projection to 4, norms of both.
    assert block_cost(first) == BlockCost(
        macs=25 * (27 * 12 + 12 * 4), num_params=27 * 12 + 48 + 24 + 8
    )


def test_a_family_without_a_formula_is_traced() -> None:
    (stem,) = operation("darts.stem_imagenet").examples
    assert operation(stem.op).cost is None
    assert block_cost(stem) == traced_cost(stem)
    assert block_cost(stem).macs > 0


def test_what_cannot_be_placed_or_priced_is_refused_by_name() -> None:
    with pytest.raises(UnknownNameError, match="unknown block operation 'conv'"):
        placed("conv", INPUTS)
    with pytest.raises(UnknownNameError, match="unknown setting .* 'width'"):
        placed("convnext.block", TensorSpec(shape=(3, 9, 9)), width=4)
    with pytest.raises(InvalidInputError, match="no describe function"):
        placed("darts.cell", INPUTS)
    with pytest.raises(InvalidInputError, match="needs the setting 'num_classes'"):
        placed("mbconv.classifier", TensorSpec(shape=(3, 9, 9)))
    free = placed("convnext.block", TensorSpec(shape=(4, None, None)), channels=4)
    for price in (block_cost, traced_cost):
        with pytest.raises(IncompatibleShapeError, match="fixed|fix"):
            price(free)


def test_an_operation_is_not_taken_over_by_a_builder_of_another_module() -> None:
    def build_block(spec: BlockSpec) -> nn.Module:
        return nn.Identity()

    build_block.__qualname__ = "build_block"
    with pytest.raises(ConflictError, match="already built by zoo.families.convnext"):
        register("convnext.block")(build_block)
