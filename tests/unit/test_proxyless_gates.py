"""Gates on problems small enough to enumerate: estimators, modes, memory, Adam by rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.methods.proxyless.gates import (
    Draw,
    RowAdam,
    draw_one,
    draw_two,
    gumbel,
    keep_others,
    masked,
    mix_full,
    mix_recompute,
    mix_two,
    one_hot,
    reinforce,
    straight_through,
)
from nas.methods.proxyless.parameters import ArchParameters
from nas.methods.proxyless.supernet import MODES, Mode, Supernet
from nas.spaces.mbconv import MBConvSpace
from zoo.spec import TensorSpec

CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


class Toy:
    """Two edges in a row, of three linear operations and of two and zero."""

    def __init__(self) -> None:
        self.mask = torch.tensor([[True, True, True], [True, True, True]])
        self.alphas = randn(2, 3, seed=1)
        matrices = randn(5, 4, 4, seed=2) / 2
        self.x = randn(6, 4, seed=3)
        self.ops: list[list[Callable[[Tensor], Tensor] | None]] = [
            [lambda x, w=w: torch.tanh(x @ w) for w in matrices[:3]],
            [*(lambda x, w=w: x @ w for w in matrices[3:]), None],
        ]
        self.target = randn(6, 4, seed=4)

    def gate_grad(
        self, paths: tuple[int, ...], loss: Callable[[Tensor], Tensor], mode: Mode = "full_v2"
    ) -> Tensor:
        gates = one_hot(torch.tensor(paths), 3, torch.float64)
        x = self.x
        for ops, row, path in zip(self.ops, gates.unbind(), paths, strict=True):
            if ops[path] is None:
                continue
            mix = mix_full if mode == "full" else mix_recompute
            x = mix(x, row, ops, path)
        torch.autograd.backward(loss(x))
        assert gates.grad is not None
        return gates.grad


def expectation(toy: Toy, edge: int, fixed: int, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Return alpha's expected estimate on ``edge`` by enumeration, the other path fixed."""
    probs = torch.softmax(toy.alphas, -1)
    total = torch.zeros(3, dtype=torch.float64)
    for path in range(3):
        paths = (path, fixed) if edge == 0 else (fixed, path)
        total += probs[edge, path] * straight_through(probs, toy.gate_grad(paths, loss))[edge]
    return total


def mixture_grad(toy: Toy, edge: int, fixed: int, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Return alpha's gradient of the loss at the soft mixture of ``edge``."""
    alphas = toy.alphas[edge].clone().requires_grad_()
    weights = torch.softmax(alphas, -1)
    x = toy.x
    for at, ops in enumerate(toy.ops):
        if at == edge:
            outputs = [torch.zeros_like(x) if op is None else op(x) for op in ops]
            x = sum((w * out for w, out in zip(weights, outputs, strict=True)), torch.zeros(()))
        else:
            op = ops[fixed]
            assert op is not None
            x = op(x)
    return torch.autograd.grad(loss(x), alphas)[0]


def test_a_linear_loss_has_the_exact_gradient_in_every_sample() -> None:
    toy = Toy()
    direction = randn(6, 4, seed=5)

    def loss(y: Tensor) -> Tensor:
        return (direction * y).sum()

    exact = mixture_grad(toy, 1, 0, loss)
    probs = torch.softmax(toy.alphas, -1)
    for path in (0, 1):
        found = straight_through(probs, toy.gate_grad((0, path), loss))[1]
        torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12)


def test_a_quadratic_loss_has_the_gradient_at_the_mixture_on_average() -> None:
    toy = Toy()

    def loss(y: Tensor) -> Tensor:
        return (y - toy.target).square().sum()

    # The last block, so that what follows the gates is the loss alone; without zero, whose
    # active samples give no gradient.
    toy.ops[1][2] = lambda x: x.flip(-1)
    found = expectation(toy, 1, 0, loss)
    torch.testing.assert_close(found, mixture_grad(toy, 1, 0, loss), rtol=1e-12, atol=1e-12)


def test_of_two_operations_the_gap_to_the_expected_loss_is_known() -> None:
    first, second = randn(7, seed=1), randn(7, seed=2)
    alphas = torch.tensor([[0.3, -0.4]], dtype=torch.float64)
    probs = torch.softmax(alphas, -1)[0]
    outputs, target = torch.stack([first, second]), randn(7, seed=3)
    losses = 0.5 * (outputs - target).square().sum(-1)
    exact = straight_through(probs, losses)
    estimates = [
        straight_through(probs, (outputs * (outputs[j] - target)).sum(-1)) for j in range(2)
    ]
    mean = sum(p * e for p, e in zip(probs, estimates, strict=True))
    gap = probs[0] * probs[1] * (probs[0] - 0.5) * (first - second).square().sum()
    torch.testing.assert_close(mean[0] - exact[0], gap, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("paths", list(itertools.product(range(3), range(2))))
def test_full_and_full_v2_give_one_gradient(paths: tuple[int, int]) -> None:
    toy = Toy()

    def loss(y: Tensor) -> Tensor:
        return (y - toy.target).square().sum()

    full, recomputed = (toy.gate_grad(paths, loss, mode) for mode in ("full", "full_v2"))  # type: ignore[arg-type]
    torch.testing.assert_close(full, recomputed, rtol=1e-13, atol=1e-13)
    assert full[1, 2] == 0


def test_recomputing_passes_the_gradient_on_to_the_input() -> None:
    toy = Toy()
    grads = []
    for mix in (mix_full, mix_recompute):
        x = toy.x.clone().requires_grad_()
        gates = one_hot(torch.tensor([1]), 3, torch.float64)
        torch.autograd.backward(mix(x, gates[0], toy.ops[0], 1).square().sum())
        grads.append(x.grad)
    torch.testing.assert_close(grads[0], grads[1])


def test_draws_follow_the_softmax_and_never_take_what_an_edge_lacks() -> None:
    alphas = torch.tensor([[0.5, -0.2, 1.0], [0.3, 0.0, 9.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    rounds, source = 4000, generator()
    counts = torch.zeros(2, 3, dtype=torch.float64)
    for _ in range(rounds):
        draw = draw_one(alphas, mask, gumbel((2, 3), source))
        counts[torch.arange(2), draw.active] += 1
        assert draw.paths == draw.active.tolist()
    probs = torch.softmax(masked(alphas, mask), -1)
    torch.testing.assert_close(counts / rounds, probs, atol=0.025, rtol=0)
    assert counts[1, 2] == 0
    assert probs[1, 2] == 0


def test_two_are_drawn_without_replacement_in_proportion_and_one_of_them_is_active() -> None:
    alphas = torch.tensor([[0.5, -0.2, 1.0]], dtype=torch.float64)
    mask = torch.ones(1, 3, dtype=torch.bool)
    probs = torch.softmax(alphas, -1)[0].tolist()
    rounds, source = 4000, generator()
    pairs: dict[tuple[int, ...], int] = {}
    active = 0
    for _ in range(rounds):
        draw = draw_two(alphas, mask, gumbel((1, 3), source), gumbel((1, 2), source))
        assert draw.pairs is not None
        pair = tuple(sorted(draw.pairs[0]))
        assert draw.paths[0] in pair
        assert draw.probs[0, [i for i in range(3) if i not in pair]] == 0
        pairs[pair] = pairs.get(pair, 0) + 1
        active += pair == (0, 1) and draw.paths[0] == 0
    for pair, count in pairs.items():
        i, j = pair
        wanted = probs[i] * probs[j] / (1 - probs[i]) + probs[j] * probs[i] / (1 - probs[j])
        assert count / rounds == pytest.approx(wanted, abs=0.025)
    share = probs[0] / (probs[0] + probs[1])
    assert active / pairs[(0, 1)] == pytest.approx(share, abs=0.05)


def parameters(space: MBConvSpace | None = None) -> ArchParameters:
    return ArchParameters(space or MBConvSpace(), seed=0, device=CPU, lr=0.1)


def test_in_mode_two_other_probabilities_stay_and_the_gradient_sums_to_nothing() -> None:
    arch = parameters()
    arch.alphas.copy_(randn(21, 7) * arch.mask)
    for step in range(5):
        draw = arch.draw(step, two=True)
        assert draw.pairs is not None
        before = arch.probabilities()
        gate_grad = randn(21, 7, seed=step)
        gradient = straight_through(draw.probs, gate_grad)
        assert gradient.sum(-1).abs().max() < 1e-14
        arch.descend_gates(draw, gate_grad)
        moved = (arch.probabilities() - before).abs()
        inside = torch.zeros_like(arch.mask).scatter(-1, torch.tensor(draw.pairs), True)
        assert moved[~inside].max() < 1e-12
        active = draw.active != arch.zeros
        assert (moved.max(-1).values[active] > 1e-4).all()
        assert (moved[~active] == 0).all()


def test_rescaling_keeps_the_sum_of_exponentials_of_the_pair() -> None:
    before, after = randn(3, 4, seed=1), randn(3, 4, seed=2)
    pair = torch.tensor([[0, 2], [1, 3], [3, 0]])
    kept = keep_others(before, after, pair)
    for row in range(3):
        chosen = pair[row]
        assert kept[row, chosen].exp().sum() == pytest.approx(
            float(before[row, chosen].exp().sum()), rel=1e-14
        )
        difference = kept[row, chosen[0]] - kept[row, chosen[1]]
        assert difference == pytest.approx(float(after[row, chosen[0]] - after[row, chosen[1]]))


def test_an_edge_whose_active_operation_is_zero_is_not_updated() -> None:
    arch = parameters()
    draw = next(
        draw
        for draw in (arch.draw(step) for step in range(50))
        if 0 < int((draw.active == arch.zeros).sum()) < 15
    )
    skipped = draw.active == arch.zeros
    before = arch.alphas.clone()
    arch.descend_gates(draw, torch.ones_like(before).cumsum(-1))
    assert torch.equal(arch.alphas[skipped], before[skipped])
    assert (arch.alphas[~skipped] != before[~skipped]).any(-1).all()
    steps = arch.state_dict()["optimizer"]["steps"].squeeze(-1)
    assert torch.equal(steps == 0, skipped)


def test_alphas_an_edge_cannot_have_never_move() -> None:
    arch = parameters()
    for step in range(3):
        arch.descend_gates(arch.draw(step), randn(21, 7, seed=step))
        arch.descend(arch.probabilities() * randn(21, 7, seed=step))
    assert (arch.alphas[~arch.mask] == 0).all()
    assert (arch.probabilities()[~arch.mask] == 0).all()


@pytest.mark.parametrize("betas", [(0.0, 0.999), (0.5, 0.9)])
def test_adam_by_rows_is_adam_on_each_row(betas: tuple[float, float]) -> None:
    ours = randn(3, 4)
    theirs = [nn.Parameter(row.clone()) for row in ours]
    adams = [torch.optim.Adam([p], lr=1e-2, betas=betas, weight_decay=0.1) for p in theirs]
    rows = RowAdam(ours, lr=1e-2, betas=betas, weight_decay=0.1)
    for step in range(6):
        grad = randn(3, 4, seed=step)
        chosen = torch.tensor([True, step % 2 == 0, step == 4])
        rows.step(grad, chosen)
        for at, (parameter, adam) in enumerate(zip(theirs, adams, strict=True)):
            if chosen[at]:
                parameter.grad = grad[at].clone()
                adam.step()
    torch.testing.assert_close(ours, torch.stack(theirs).detach(), rtol=1e-12, atol=1e-12)


def test_the_mean_of_reinforce_is_the_exact_gradient() -> None:
    alphas = randn(2, 3, seed=1)
    probs = torch.softmax(alphas, -1)
    table = randn(3, 3, seed=2)
    total = torch.zeros(2, 3, dtype=torch.float64)
    for actions in itertools.product(range(3), repeat=2):
        chance = probs[0, actions[0]] * probs[1, actions[1]]
        reward = table[actions].view(1)
        total += chance * reinforce(probs, torch.tensor([actions]), reward, baseline=0.7)
    leaf = alphas.clone().requires_grad_()
    soft = torch.softmax(leaf, -1)
    (exact,) = torch.autograd.grad(-(soft[0].unsqueeze(1) * soft[1] * table).sum(), leaf)
    torch.testing.assert_close(total, exact, rtol=1e-12, atol=1e-12)


def test_many_draws_of_reinforce_come_close_to_it() -> None:
    alphas = randn(1, 4, seed=1)
    mask = torch.ones_like(alphas, dtype=torch.bool)
    probs = torch.softmax(alphas, -1)
    rewards = torch.tensor([0.1, 0.9, 0.4, 0.3], dtype=torch.float64)
    noise = gumbel((20000, 4), generator())
    actions = draw_one(alphas.expand(20000, 4), mask.expand(20000, 4), noise).active.unsqueeze(-1)
    found = reinforce(probs, actions, rewards[actions.squeeze(-1)], baseline=0.4)
    torch.testing.assert_close(found, -straight_through(probs, rewards), atol=5e-3, rtol=0)


SPACE = MBConvSpace(preset="cifar", depths=(2, 2, 1, 1, 1, 1))


def saved_bytes(net: nn.Module, run: Callable[[], Tensor]) -> int:
    """Return the bytes of distinct tensors that autograd keeps, parameters and buffers aside."""
    known = {t.untyped_storage()._cdata for t in (*net.parameters(), *net.buffers())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in known:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("seed", range(2))
def test_memory_rises_from_one_path_over_two_to_all_and_full_v2_needs_one(seed: int) -> None:
    with torch.device("meta"):
        inputs = TensorSpec(shape=(3, 32, 32))
        net = Supernet(SPACE, inputs=inputs, num_classes=10).train()
    images = torch.empty(4, 3, 32, 32, device="meta")
    labels = torch.empty(4, dtype=torch.int64, device="meta")
    arch = parameters(SPACE)
    two, one = arch.draw(seed, two=True), arch.draw(seed)
    two = Draw(two.probs, one.active, one.paths, two.pair, [
        [path, second if path != second else first]
        for path, (first, second) in zip(one.paths, two.pairs or [], strict=True)
    ])  # fmt: skip

    def gated(mode: Mode) -> int:
        gates = torch.zeros(len(SPACE.edges), 7, device="meta", requires_grad=True)
        draw = two if mode == "two" else one
        return saved_bytes(
            net, lambda: F.cross_entropy(net.gated(images, gates, draw, mode), labels)
        )

    single = saved_bytes(net, lambda: F.cross_entropy(net(images, one.paths), labels))
    modes = {mode: gated(mode) for mode in MODES}
    assert single < modes["two"] < modes["full"]
    assert modes["full_v2"] < 1.05 * single
    # As the search runs it: weights ask for no gradient in an update of alpha.
    net.requires_grad_(False)
    assert gated("full_v2") < 0.9 * single


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_runs_the_network_of_the_active_path(mode: Mode) -> None:
    torch.manual_seed(0)
    space = MBConvSpace(
        preset="cifar", widths=(4, 6), depths=(3, 2), strides=(1, 2), stem=4, first=4, last=8,
        kernels=(3, 5), expands=(2,),
    )  # fmt: skip
    net = Supernet(space, inputs=TensorSpec(shape=(1, 8, 8)), num_classes=3).eval()
    arch, images = parameters(space), torch.randn(2, 1, 8, 8)
    zeros = 0
    for step in range(6):
        draw = arch.draw(step, two=mode == "two")
        gates = one_hot(draw.active, 3, torch.float32)
        logits = net.gated(images, gates, draw, mode)
        torch.testing.assert_close(logits, net(images, draw.paths))
        torch.autograd.backward(F.cross_entropy(logits, torch.tensor([0, 1])))
        assert gates.grad is not None
        skipped = draw.active == arch.zeros
        zeros += int(skipped.sum())
        assert (gates.grad[skipped] == 0).all()
        assert (gates.grad[~skipped] != 0).any()
    assert zeros


def test_two_runs_only_its_pair() -> None:
    called: list[int] = []

    def op(at: int) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            called.append(at)
            return x * (at + 1)

        return run

    gates = one_hot(torch.tensor([2]), 4, torch.float64)
    out = mix_two(randn(2), gates[0], [op(at) for at in range(4)], 2, [0, 2])
    assert sorted(called) == [0, 2]
    torch.autograd.backward(out.sum())
    assert gates.grad is not None
    assert (gates.grad[0] != 0).tolist() == [True, False, True, False]
