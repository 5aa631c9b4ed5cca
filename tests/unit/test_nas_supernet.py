"""The partial-channel supernet against its formulae and the original's counts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.spaces.darts import DartsSpace
from nas.supernet import (
    ArchParameters,
    MixedOp,
    Mixture,
    SearchCell,
    Supernet,
    channel_shuffle,
    num_edges,
)
from zoo.errors import InvalidInputError
from zoo.families.darts_operations import OPERATIONS

PUBLISHED = DartsSpace(cells=8, channels=16, nodes=4)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def arch(nodes: int, num_ops: int = len(OPERATIONS), scale: float = 1e3) -> ArchParameters:
    """Return parameters of the size of a finished search, in float64."""
    made = ArchParameters(nodes, num_ops, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(scale)
    return made


@pytest.mark.parametrize(
    ("k", "params"), [(1, 1_930_618), (2, 671_482), (4, 299_578), (8, 178_042)]
)
def test_the_cifar_supernet_has_the_originals_number_of_weights(k: int, params: int) -> None:
    with torch.device("meta"):
        supernet = Supernet(PUBLISHED, in_chans=3, num_classes=10, k=k)
    assert sum(weight.numel() for weight in supernet.parameters()) == params


def test_the_cifar_supernet_has_252_architecture_parameters_near_zero() -> None:
    made = ArchParameters(4, 8, generator=torch.Generator().manual_seed(0))
    values = torch.cat([parameter.flatten() for parameter in made.parameters()])
    assert values.numel() == 252
    assert 0.5e-3 < values.std() < 2e-3
    assert made.alphas_normal.shape == (14, 8)
    assert made.betas_reduce.shape == (14,)


def test_the_shuffle_sends_channel_g_c_plus_q_to_q_k_plus_g() -> None:
    x = torch.arange(12.0).view(1, 12, 1, 1)
    k, part = 4, 3
    out = channel_shuffle(x, k).flatten()
    for g in range(k):
        for q in range(part):
            assert out[q * k + g] == g * part + q
    assert torch.equal(channel_shuffle(x, 1), x)


def test_edge_shares_sum_to_one_over_every_node_and_op_shares_over_every_edge() -> None:
    for mixture in arch(4)().values():
        sums = [segment.sum().item() for segment in mixture.edges.split([2, 3, 4, 5])]
        assert sums == pytest.approx([1.0] * 4)
        torch.testing.assert_close(mixture.ops.sum(1), torch.ones(14, dtype=torch.float64))


@pytest.mark.parametrize("k", [2, 4])
def test_bypassed_channels_arrive_bit_for_bit_at_their_shuffled_places(k: int) -> None:
    x = torch.randn(2, 16, 6, 6)
    out = MixedOp(OPERATIONS, 16, stride=1, k=k)(x, torch.rand(8))
    part = 16 // k
    for g in range(1, k):
        for q in range(part):
            assert torch.equal(out[:, q * k + g], x[:, g * part + q])


@pytest.mark.parametrize("size", [6, 7])
def test_a_strided_edge_pools_the_bypassed_channels(size: int) -> None:
    x = torch.randn(2, 8, size, size)
    out = MixedOp(OPERATIONS, 8, stride=2, k=4)(x, torch.rand(8))
    assert out.shape == (2, 8, 3 if size == 6 else 4, 3 if size == 6 else 4)
    assert torch.equal(out[:, 1, 0, 0], x[:, 2, :2, :2].amax((1, 2)))


@pytest.mark.parametrize("stride", [1, 2])
def test_without_partial_channels_a_mixed_operation_is_that_of_darts(stride: int) -> None:
    module = MixedOp(OPERATIONS, 8, stride=stride, k=1).double().train()
    x = torch.randn(3, 8, 6, 6, dtype=torch.float64)
    weights = torch.rand(8, dtype=torch.float64)
    terms = [weight * op(x) for weight, op in zip(weights, module.ops, strict=True)]
    torch.testing.assert_close(module(x, weights), torch.stack(terms).sum(0))


def test_with_equal_edges_a_node_is_the_sum_of_darts_divided_by_its_inputs() -> None:
    space = DartsSpace(nodes=1, ops=("none", "skip_connect"))
    cell = SearchCell(space, (4, 4), 4, k=1, reduction=False, reduction_prev=False).double()
    s0, s1 = torch.randn(2, 2, 4, 5, 5, dtype=torch.float64)
    mixture = Mixture(ops=torch.ones(2, 2).double(), edges=torch.full((2,), 0.5).double())
    expected = (cell.preprocess0(s0) + cell.preprocess1(s1)) / 2
    torch.testing.assert_close(cell(s0, s1, mixture), expected)


def test_pools_are_normalised_in_search_and_no_batch_norm_in_a_cell_has_weights() -> None:
    supernet = Supernet(DartsSpace(), in_chans=1, num_classes=10, k=4)
    pool = supernet.cells[0].edges[0].ops[1]
    assert [type(layer) for layer in pool] == [nn.MaxPool2d, nn.BatchNorm2d]
    for cell in supernet.cells:
        assert not any(m.affine for m in cell.modules() if isinstance(m, nn.BatchNorm2d))


def _naive_edge(edge: MixedOp, x: Tensor, weights: Tensor, k: int) -> Tensor:
    part = x.shape[1] // k
    mixed = torch.stack([w * op(x[:, :part]) for w, op in zip(weights, edge.ops, strict=True)])
    rest = [x[:, part:]] if k > 1 else []
    if edge.stride == 2:
        rest = [F.max_pool2d(item, 2) for item in rest]
    joined = torch.cat([mixed.sum(0), *rest], dim=1)
    order = [g * part + q for q in range(part) for g in range(k)]
    return joined[:, order]


def _naive_logits(
    net: Supernet, x: Tensor, params: dict[str, Tensor], k: int, nodes: int
) -> Tensor:
    """Follow the formulae literally: softmax by exponentials, shuffle by an index list."""
    s0 = s1 = net.stem(x)[0]
    for cell, kind in zip(net.cells, net.kinds, strict=True):
        states = [cell.preprocess0(s0), cell.preprocess1(s1)]
        edge = 0
        for node in range(nodes):
            beta = params[f"betas_{kind}"][edge : edge + node + 2].exp()
            total = torch.zeros(())
            for source in range(node + 2):
                alpha = params[f"alphas_{kind}"][edge].exp()
                out = _naive_edge(cell.edges[edge], states[source], alpha / alpha.sum(), k)
                total = total + beta[source] / beta.sum() * out
                edge += 1
            states.append(total)
        s0, s1 = s1, torch.cat(states[2:], dim=1)
    return net.classifier(s1.mean((2, 3)))


@pytest.mark.parametrize(("cells", "channels", "k"), [(3, 4, 4), (3, 4, 1), (4, 8, 2)])
def test_logits_and_all_gradients_equal_the_formulae(cells: int, channels: int, k: int) -> None:
    space = DartsSpace(cells=cells, channels=channels, nodes=2)
    net = Supernet(space, in_chans=3, num_classes=5, k=k).double().train()
    made = arch(2)
    x = torch.randn(4, 3, 12, 12, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 4])
    wanted = [*net.parameters(), *made.parameters()]
    logits = net(x, made())
    naive = _naive_logits(net, x, dict(made.named_parameters()), k, 2)
    torch.testing.assert_close(logits, naive, rtol=0, atol=1e-10)
    ours, theirs = (
        torch.autograd.grad(F.cross_entropy(out, labels), wanted) for out in (logits, naive)
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_odd_images_pass() -> None:
    net = Supernet(DartsSpace(channels=4, nodes=2), in_chans=1, num_classes=3, k=4).eval()
    mixtures = ArchParameters(2, 8, generator=torch.Generator().manual_seed(0))()
    assert net(torch.randn(2, 1, 9, 7), mixtures).shape == (2, 3)


@pytest.mark.parametrize("k", [0, 3, 32])
def test_a_k_that_does_not_divide_the_channels_is_refused(k: int) -> None:
    with pytest.raises(InvalidInputError, match=f"k is {k}"):
        Supernet(DartsSpace(), in_chans=1, num_classes=10, k=k)


def test_a_cell_has_an_edge_from_every_earlier_state() -> None:
    assert [num_edges(nodes) for nodes in (1, 2, 3, 4)] == [2, 5, 9, 14]
