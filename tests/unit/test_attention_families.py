"""The attention blocks against naive references in float64, pixel by pixel."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo.builders import build_chain
from zoo.errors import IncompatibleShapeError, InvalidInputError
from zoo.families import (
    biformer,
    bottleneck_attention,
    convnext,
    lightning,
    neighbourhood,
    transformer,
)
from zoo.spec import BlockSpec, TensorSpec


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def block(spec: BlockSpec) -> Any:
    """Build in float64 with weights that are all large enough to matter."""
    module = build_chain([spec], seed=0)[0].double().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for item in module.parameters():
            item.copy_(torch.randn(item.shape, generator=generator, dtype=torch.float64) / 2)
    return module


def attend(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Return softmax(q · k scale) v for one query ``(channels,)``."""
    weights = torch.softmax(torch.stack([scale * (query @ key) for key in keys]), 0)
    return sum((weight * value for weight, value in zip(weights, values, strict=True)),
               torch.zeros_like(values[0]))  # fmt: skip


def layer_norm(x: Tensor, norm: Any) -> Tensor:
    mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / torch.sqrt(var + norm.eps) * norm.weight + norm.bias


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def feed_forward(x: Tensor, layers: Any) -> Tensor:
    first, _, last = layers.children()
    return gelu(x @ first.weight.T + first.bias) @ last.weight.T + last.bias


def mapped(x: Tensor, qkv: Any) -> tuple[Tensor, ...]:
    query, key, value = qkv.weight.chunk(3)
    return x @ query.T + qkv.query_bias, x @ key.T, x @ value.T + qkv.value_bias


def heads_of(x: Tensor, head: int, dim: int) -> Tensor:
    return x[..., head * dim : (head + 1) * dim]


def test_the_transformer_block_is_the_pre_norm_formula() -> None:
    spec = transformer.block_spec(TensorSpec(shape=(4, 2, 3)), channels=4, head_dim=2, expand=2)
    module = block(spec)
    (image,) = x = drawn(1, 4, 2, 3)
    tokens = image.flatten(1).T
    parts = mapped(layer_norm(tokens, module.norm1), module.mixer.qkv)
    joined = torch.zeros(6, 4, dtype=torch.float64)
    for head in range(2):
        query, key, value = (heads_of(part, head, 2) for part in parts)
        for at in range(6):
            joined[at, 2 * head : 2 * head + 2] = attend(query[at], key, value, 2**-0.5)
    out = module.mixer.out
    tokens = tokens + joined @ out.weight.T + out.bias
    tokens = tokens + feed_forward(layer_norm(tokens, module.norm2), module.feed_forward)
    close(module(x)[0], tokens.T.reshape(4, 2, 3))


def naive_routing(
    query: Tensor, key: Tensor, value: Tensor, *, heads: int, regions: int, topk: int
) -> Tensor:
    """Pixel by pixel: the means of regions, the best regions, the attention to their pixels."""
    height, breadth, channels = query.shape
    tall, broad = height // regions, breadth // regions

    def pixels(region: tuple[int, int]) -> list[tuple[int, int]]:
        return [
            (region[0] * tall + row, region[1] * broad + column)
            for row in range(tall)
            for column in range(broad)
        ]

    every = [(row, column) for row in range(regions) for column in range(regions)]
    out, dim = torch.zeros_like(query), channels // heads
    for here in every:
        own = torch.stack([query[at] for at in pixels(here)]).mean(0)
        means = [torch.stack([key[at] for at in pixels(there)]).mean(0) for there in every]
        order = sorted(range(len(every)), key=lambda at: -float(own @ means[at]))
        seen = [at for place in order[:topk] for at in pixels(every[place])]
        for at in pixels(here):
            for head in range(heads):
                keys = [heads_of(key[other], head, dim) for other in seen]
                values = [heads_of(value[other], head, dim) for other in seen]
                query_here = heads_of(query[at], head, dim)
                mixed = attend(query_here, torch.stack(keys), torch.stack(values), channels**-0.5)
                out[at][head * dim : (head + 1) * dim] = mixed
    return out


@pytest.mark.parametrize(("regions", "topk"), [(2, 1), (2, 3), (3, 4), (1, 1)])
def test_bi_level_routing_equals_its_definition(regions: int, topk: int) -> None:
    query, key, value = (drawn(2, 6, 6, 4, seed=seed) for seed in range(3))
    found = biformer.bi_level_routing_attention(
        query, key, value, heads=2, regions=regions, topk=topk
    )
    for row in range(2):
        close(
            found[row],
            naive_routing(query[row], key[row], value[row], heads=2, regions=regions, topk=topk),
        )


def test_routing_to_all_regions_is_global_attention() -> None:
    query, key, value = (drawn(2, 4, 6, 8, seed=seed) for seed in range(3))
    found = biformer.bi_level_routing_attention(query, key, value, heads=2, regions=2, topk=4)
    parts = (
        part.flatten(1, 2).unflatten(2, (2, 4)).transpose(1, 2) for part in (query, key, value)
    )
    whole = nn.functional.scaled_dot_product_attention(*parts, scale=8**-0.5)
    close(found, whole.transpose(1, 2).flatten(2).reshape(2, 4, 6, 8))


def test_regions_are_put_back_where_they_were() -> None:
    x = drawn(2, 6, 9, 4)
    cut = biformer.partition(x, 3)
    assert cut.shape == (2, 9, 6, 4)
    assert torch.equal(cut[:, 5, 4], x[:, 3, 7])  # region (1, 2), pixel (1, 1) of 2 x 3
    assert torch.equal(biformer.merge(cut, 6, 9, 3), x)


def test_the_biformer_block_adds_position_and_local_context() -> None:
    inputs = TensorSpec(shape=(4, 4, 4))
    module = block(biformer.block_spec(inputs, channels=4, head_dim=2, regions=2, topk=2))
    (x,) = image = drawn(1, 4, 4, 4)
    x = x + nn.functional.conv2d(
        x[None], module.position.weight, module.position.bias, padding=1, groups=4
    )[0]  # fmt: skip
    tokens = x.permute(1, 2, 0)
    mixer = module.mixer
    query, key, value = mapped(layer_norm(tokens, module.norm1), mixer.qkv)
    context = nn.functional.conv2d(
        value.permute(2, 0, 1)[None], mixer.context.weight, mixer.context.bias, padding=2, groups=4
    )[0].permute(1, 2, 0)  # fmt: skip
    mixed = naive_routing(query, key, value, heads=2, regions=2, topk=2) + context
    tokens = tokens + mixed @ mixer.out.weight.T + mixer.out.bias
    tokens = tokens + feed_forward(layer_norm(tokens, module.norm2), module.feed_forward)
    close(module(image)[0], tokens.permute(2, 0, 1))


def test_windows_are_moved_inside_at_borders() -> None:
    assert neighbourhood.windows(6, 3).tolist() == [
        [0, 1, 2], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5], [3, 4, 5],
    ]  # fmt: skip
    assert neighbourhood.windows(5, 5).tolist() == [[0, 1, 2, 3, 4]] * 5


def naive_neighbourhood(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, *, kernel: int
) -> Tensor:
    """Pixel by pixel; ``query`` is ``(height, width, heads, head_dim)``."""
    height, breadth, heads, dim = query.shape
    out = torch.zeros_like(query)

    def start(at: int, length: int) -> int:
        return min(max(at - kernel // 2, 0), length - kernel)

    for row in range(height):
        for column in range(breadth):
            window = [
                (start(row, height) + down, start(column, breadth) + right)
                for down in range(kernel)
                for right in range(kernel)
            ]
            for head in range(heads):
                logits = [
                    dim**-0.5 * (query[row, column, head] @ key[at][head])
                    + bias[head, at[0] - row + kernel - 1, at[1] - column + kernel - 1]
                    for at in window
                ]
                weights = torch.softmax(torch.stack(logits), 0)
                for weight, at in zip(weights, window, strict=True):
                    out[row, column, head] += weight * value[at][head]
    return out


@pytest.mark.parametrize(("height", "breadth", "kernel"), [(5, 7, 3), (5, 5, 5), (6, 8, 5)])
def test_neighbourhood_attention_equals_its_definition(
    height: int, breadth: int, kernel: int
) -> None:
    query, key, value = (drawn(2, height, breadth, 2, 3, seed=seed) for seed in range(3))
    bias = drawn(2, 2 * kernel - 1, 2 * kernel - 1, seed=3)
    found = neighbourhood.neighbourhood_attention(
        *(part.flatten(1, 2) for part in (query, key, value)),
        bias,
        *neighbourhood.neighbours(height, breadth, kernel),
    )
    for row in range(2):
        wanted = naive_neighbourhood(query[row], key[row], value[row], bias, kernel=kernel)
        close(found[row].reshape(wanted.shape), wanted)


def test_a_window_as_large_as_the_image_is_global_attention_with_bias_zero() -> None:
    query, key, value = (drawn(1, 25, 2, 3, seed=seed) for seed in range(3))
    bias = torch.zeros(2, 9, 9, dtype=torch.float64)
    found = neighbourhood.neighbourhood_attention(
        query, key, value, bias, *neighbourhood.neighbours(5, 5, 5)
    )
    parts = (part.transpose(1, 2) for part in (query, key, value))
    close(found, nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2))


def test_the_neighbourhood_block_uses_its_heads_and_bias() -> None:
    inputs = TensorSpec(shape=(4, 4, 5))
    module = block(neighbourhood.block_spec(inputs, channels=4, head_dim=2, kernel=3))
    (image,) = x = drawn(1, 4, 4, 5)
    tokens = image.permute(1, 2, 0)
    mixer = module.mixer
    parts = mapped(layer_norm(tokens, module.norm1), mixer.qkv)
    query, key, value = (part.unflatten(2, (2, 2)) for part in parts)
    mixed = naive_neighbourhood(query, key, value, mixer.bias, kernel=3).flatten(2)
    tokens = tokens + mixed @ mixer.out.weight.T + mixer.out.bias
    tokens = tokens + feed_forward(layer_norm(tokens, module.norm2), module.feed_forward)
    close(module(x)[0], tokens.permute(2, 0, 1))


def naive_linear(
    query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, *, causal: bool
) -> Tensor:
    """Token by token, as the definition says."""
    batch, heads, tokens, _ = query.shape
    out = torch.zeros_like(value)
    for row in range(batch):
        for head in range(heads):
            for at in range(tokens):
                for other in range(at + 1 if causal else tokens):
                    decay = math.exp(-float(slopes[head]) * abs(at - other))
                    affinity = float(query[row, head, at] @ key[row, head, other])
                    out[row, head, at] += decay * affinity * value[row, head, other]
    return out


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("tokens", [1, 4, 7, 12, 13])
@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_block_wise_linear_attention_equals_the_quadratic_form(
    causal: bool, tokens: int, decay: float
) -> None:
    query, key = drawn(2, 3, tokens, 2, seed=0), drawn(2, 3, tokens, 2, seed=1)
    value = drawn(2, 3, tokens, 4, seed=2)
    slopes = decay * torch.tensor(lightning.head_slopes(3), dtype=torch.float64)
    wanted = naive_linear(query, key, value, slopes, causal=causal)
    for block_size in (4, 16):
        found = lightning.lightning_attention(
            query, key, value, slopes, block_size=block_size, causal=causal
        )
        close(found, wanted)


def test_slopes_are_those_of_alibi() -> None:
    assert lightning.head_slopes(8) == [2.0**-power for power in range(1, 9)]
    assert lightning.head_slopes(1) == [2.0**-8]
    six = lightning.head_slopes(6)
    assert six[:4] == [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8]
    assert six[4:] == [2.0**-1, 2.0**-3]


def test_the_lightning_block_norms_and_gates_what_it_attends_to() -> None:
    inputs = TensorSpec(shape=(4, 3, 3))
    module = block(
        lightning.block_spec(inputs, channels=4, head_dim=2, block_size=4, expand=2, causal=True)
    )
    (image,) = x = drawn(1, 4, 3, 3)
    tokens, mixer = image.flatten(1).T, module.mixer
    y = layer_norm(tokens, module.norm1)
    active = y @ mixer.qkv.weight.T
    parts = (active * torch.sigmoid(active)).chunk(3, dim=-1)
    query, key, value = (part.unflatten(1, (2, 2)).transpose(0, 1)[None] for part in parts)
    slopes = torch.tensor(lightning.head_slopes(2))
    mixed = naive_linear(query, key, value, slopes, causal=True)[0].transpose(0, 1).flatten(1)
    narrow, wide = mixer.gate.children()
    gate = torch.sigmoid(y @ narrow.weight.T @ wide.weight.T)
    gated = layer_norm(mixed, mixer.norm) * gate
    tokens = tokens + gated @ mixer.out.weight.T
    y = layer_norm(tokens, module.norm2)
    left, right = (y @ module.feed_forward.widen.weight.T).chunk(2, dim=-1)
    tokens = tokens + (left * right) @ module.feed_forward.narrow.weight.T
    close(module(x)[0], tokens.T.reshape(4, 3, 3))


def test_the_bottleneck_attends_over_keys() -> None:
    inputs = TensorSpec(shape=(8, 3, 5))
    module = block(bottleneck_attention.block_spec(inputs, channels=16, stride=2, head_dim=2))
    x = drawn(1, 8, 3, 5)

    def normed(y: Tensor, norm: Any) -> Tensor:
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        return (y - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[
            :, None, None
        ]

    reduce, norm, _ = module.reduce.children()
    y = torch.einsum("oc,chw->ohw", reduce.weight[:, :, 0, 0], x[0])
    y = normed(y, norm).clamp(min=0)
    y = nn.functional.conv2d(y[None], module.position.weight, stride=2, padding=1, groups=4)[0]
    query, key, value = torch.einsum("oc,chw->ohw", module.qkv.weight[:, :, 0, 0], y).chunk(3)
    mixed = torch.zeros_like(y).flatten(1)
    for head in range(2):
        own = slice(2 * head, 2 * head + 2)
        keys, values = key[own].flatten(1).T, value[own].flatten(1).T
        for at in range(mixed.shape[1]):
            mixed[own, at] = attend(query[own].flatten(1)[:, at], keys, values, 2**-0.5)
    y = normed(mixed.reshape(y.shape), module.norm).clamp(min=0)
    expand, last = module.expand.children()
    y = normed(torch.einsum("oc,chw->ohw", expand.weight[:, :, 0, 0], y), last)
    project, norm = module.shortcut.children()
    short = torch.einsum("oc,chw->ohw", project.weight[:, :, 0, 0], x[0, :, ::2, ::2])
    close(module(x)[0], (y + normed(short, norm)).clamp(min=0))


def test_the_convnext_block_equals_its_formula() -> None:
    module = block(convnext.block_spec(TensorSpec(shape=(4, 5, 6)), channels=4, kernel=3))
    x = drawn(1, 4, 5, 6)
    y = nn.functional.conv2d(x, module.filter.weight, module.filter.bias, padding=1, groups=4)
    y = layer_norm(y.permute(0, 2, 3, 1), module.norm)
    y = feed_forward(y, module.feed_forward) * module.scale
    close(module(x), x + y.permute(0, 3, 1, 2))


def test_settings_that_do_not_fit_are_refused_by_name() -> None:
    inputs = TensorSpec(shape=(8, 6, 6))
    with pytest.raises(InvalidInputError, match="12 channels are not whole heads of 5"):
        transformer.block_spec(inputs, channels=12, head_dim=5)
    with pytest.raises(InvalidInputError, match="topk is 5, but there are only 4 regions"):
        biformer.block_spec(inputs, channels=8, head_dim=4, regions=2, topk=5)
    with pytest.raises(IncompatibleShapeError, match="do not divide into 4 x 4 regions"):
        biformer.block_spec(inputs, channels=8, head_dim=4, regions=4)
    with pytest.raises(InvalidInputError, match="kernel is 4; it must be odd"):
        neighbourhood.block_spec(inputs, channels=8, head_dim=4, kernel=4)
    with pytest.raises(IncompatibleShapeError, match="smaller than a window of 7"):
        neighbourhood.block_spec(inputs, channels=8, head_dim=4)
    with pytest.raises(IncompatibleShapeError, match="must be fixed"):
        lightning.block_spec(TensorSpec(shape=(8, None, 6)), channels=8, head_dim=4)
    with pytest.raises(InvalidInputError, match="stride is 0"):
        convnext.block_spec(inputs, channels=8, stride=0)
    with pytest.raises(InvalidInputError, match="expand is True"):
        convnext.block_spec(inputs, channels=8, expand=True)
    with pytest.raises(InvalidInputError, match="multiple of 4"):
        bottleneck_attention.block_spec(inputs, channels=6, head_dim=1)
