"""Binary gates: which path runs, and what the loss says about the architecture parameters.

One step draws a one-hot gate vector for every edge. ``mix_*`` run an edge under its
gates so that the loss's gradient with respect to the gates, ``g_j = <dL/dy, op_j(x)>``,
falls out of ``backward``; ``straight_through`` turns it into one for alpha. They take
any callables, and an edge's operations that are None add nothing (``zero``).

The gradient of a gate needs every operation's output, but only the active path need keep
its inner activations:

- ``mix_full`` keeps the active path and all outputs;
- ``mix_recompute`` (``full_v2``) keeps the active path alone and computes the other
  outputs again, without a graph, while the gradient passes back;
- ``mix_two`` keeps the active path and one other output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Ops = Sequence[Callable[[Tensor], Tensor] | None]


@dataclass(frozen=True)
class Draw:
    """One sample of all gates.

    ``probs`` are the probabilities ``(edges, operations)`` under which ``active`` was
    drawn, differentiable in alpha; in mode ``two`` they are those of each edge's
    ``pair``. ``active`` and ``pair`` are also given on the host: ``paths``, ``pairs``.
    """

    probs: Tensor
    active: Tensor
    paths: list[int]
    pair: Tensor | None = None
    pairs: list[list[int]] | None = None


def gumbel(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw standard Gumbel noise, float64, on the device of ``generator``."""
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64, device=generator.device)
    tiny = torch.finfo(torch.float64).tiny
    return -torch.log((-torch.log(uniform.clamp_min(tiny))).clamp_min(tiny))


def masked(alphas: Tensor, mask: Tensor) -> Tensor:
    """Return ``alphas`` with operations that an edge cannot have at minus infinity."""
    return alphas.masked_fill(~mask, float("-inf"))


def draw_one(alphas: Tensor, mask: Tensor, noise: Tensor) -> Draw:
    """Draw one operation an edge in proportion to softmax(alpha); one copy to the host.

    Args:
        alphas: ``(edges, operations)``.
        mask: True where an edge has the operation.
        noise: Gumbel noise of the same shape, on the same device.
    """
    logits = masked(alphas, mask)
    active = (logits.detach() + noise).argmax(-1)
    return Draw(torch.softmax(logits, -1), active, active.tolist())


def draw_two(alphas: Tensor, mask: Tensor, noise: Tensor, second: Tensor) -> Draw:
    """Draw two distinct operations an edge in proportion to softmax(alpha), then one of them.

    The two largest of perturbed logits are a draw without replacement. The active one is
    drawn by the softmax over the two. Edges need two operations or more.

    Args:
        alphas: ``(edges, operations)``.
        mask: True where an edge has the operation.
        noise: Gumbel noise ``(edges, operations)`` for the pair.
        second: Gumbel noise ``(edges, 2)`` for the active one.
    """
    logits = masked(alphas, mask)
    pair = (logits.detach() + noise).topk(2, dim=-1).indices
    chosen = logits.gather(-1, pair)
    active = pair.gather(-1, (chosen.detach() + second).argmax(-1, keepdim=True)).squeeze(-1)
    probs = torch.zeros_like(logits).scatter(-1, pair, torch.softmax(chosen, -1))
    host = torch.cat([active.unsqueeze(-1), pair], -1).tolist()
    return Draw(probs, active, [row[0] for row in host], pair, [[row[1], row[2]] for row in host])


def one_hot(active: Tensor, num_ops: int, dtype: torch.dtype) -> Tensor:
    """Return the gates ``(edges, operations)`` as a leaf whose gradient will be asked for."""
    gates = torch.nn.functional.one_hot(active, num_ops).to(dtype)
    return gates.requires_grad_()


def straight_through(probs: Tensor, gate_grad: Tensor) -> Tensor:
    """Return alpha's gradient from the gates': ``p_i (g_i - sum_j p_j g_j)``, edge by edge.

    With probabilities that are 0 outside a pair of operations (mode ``two``) it is the
    same over the two, sums to 0, and is 0 elsewhere.
    """
    return probs * (gate_grad - (probs * gate_grad).sum(-1, keepdim=True))


def reinforce(probs: Tensor, actions: Tensor, rewards: Tensor, baseline: float) -> Tensor:
    """Return the gradient, for descent, of minus the expected reward.

    It is the mean of ``(R - baseline) (p - onehot(action))``.

    Args:
        probs: ``(edges, operations)``.
        actions: ``(samples, edges)``, drawn under ``probs``.
        rewards: ``(samples,)``.
        baseline: Independent of the samples if the mean is to be exact.
    """
    hot = torch.nn.functional.one_hot(actions, probs.shape[-1]).to(probs.dtype)
    advantage = (rewards.to(probs.dtype) - baseline).view(-1, 1, 1)
    return (advantage * (probs - hot)).mean(0)


def keep_others(before: Tensor, after: Tensor, pair: Tensor) -> Tensor:
    """Shift each edge's pair so that the sum of its exponentials is as before.

    Then no update of the two changes the probability of any other operation.
    """
    old = torch.logsumexp(before.gather(-1, pair), -1, keepdim=True)
    new = after.gather(-1, pair)
    shift = torch.logsumexp(new, -1, keepdim=True) - old
    return after.scatter(-1, pair, new - shift)


def mix_full(x: Tensor, gates: Tensor, ops: Ops, active: int) -> Tensor:
    """Return ``sum_j gates_j op_j(x)``; inactive outputs are detached, ``gates`` is one edge's."""
    return _mix(x, gates, ops, active, range(len(ops)))


def mix_two(x: Tensor, gates: Tensor, ops: Ops, active: int, pair: Sequence[int]) -> Tensor:
    """Return the sum over the two operations of ``pair``, one of which is active."""
    return _mix(x, gates, ops, active, pair)


def mix_recompute(x: Tensor, gates: Tensor, ops: Ops, active: int) -> Tensor:
    """Return ``op_active(x)``; other outputs are computed when the gates' gradient is.

    Weights of ``ops`` get no gradient: this is for steps that leave them alone.
    """
    return _Recompute.apply(x, gates, ops, active)  # type: ignore[no-untyped-call]


def _mix(x: Tensor, gates: Tensor, ops: Ops, active: int, among: Sequence[int]) -> Tensor:
    op = ops[active]
    total = torch.zeros_like(x) if op is None else gates[active] * op(x)
    for at in among:
        other = ops[at]
        if at != active and other is not None:
            with torch.no_grad():
                output = other(x)
            total = total + gates[at] * output
    return total


class _Recompute(torch.autograd.Function):
    """One path forward, the others again on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gates: Tensor, ops: Ops, active: int) -> Tensor:
        op = ops[active]
        if op is None:
            raise ValueError(f"operation {active} is zero: run the edge without gates")
        with torch.enable_grad():
            ctx.x = x.detach().requires_grad_(x.requires_grad)
            ctx.y = op(ctx.x)
        ctx.ops, ctx.active, ctx.num_gates = ops, active, len(gates)
        return ctx.y.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        gate_grad = grad.new_zeros(ctx.num_gates)
        for at, op in enumerate(ctx.ops):
            if at == ctx.active:
                gate_grad[at] = (grad * ctx.y.detach()).sum()
            elif op is not None:
                gate_grad[at] = (grad * op(ctx.x.detach())).sum()
        x_grad = None
        if ctx.x.requires_grad:
            (x_grad,) = torch.autograd.grad(ctx.y, ctx.x, grad)
        return x_grad, gate_grad, None, None


class RowAdam:
    """Adam on the rows of one tensor, each with a step count of its own.

    A row that is left out of a step keeps its value and its moments, as a parameter of
    its own would that has no gradient.
    """

    def __init__(
        self,
        parameter: Tensor,
        *,
        lr: float,
        betas: tuple[float, float] = (0.0, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.parameter = parameter
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.first = torch.zeros_like(parameter)
        self.second = torch.zeros_like(parameter)
        self.steps = parameter.new_zeros(len(parameter), 1)

    def step(self, grad: Tensor, rows: Tensor) -> None:
        """Update the rows that are True in ``rows``, shape ``(edges,)``."""
        beta1, beta2 = self.betas
        keep = ~rows.unsqueeze(-1)
        with torch.no_grad():
            grad = grad + self.weight_decay * self.parameter
            self.steps += (~keep).to(self.steps.dtype)
            first = torch.lerp(grad, self.first, beta1)
            second = torch.lerp(grad.square(), self.second, beta2)
            self.first = torch.where(keep, self.first, first)
            self.second = torch.where(keep, self.second, second)
            scale = (1 - beta2**self.steps).sqrt()
            update = self.first / (1 - beta1**self.steps) / (self.second.sqrt() / scale + self.eps)
            self.parameter.sub_(torch.where(keep, 0.0, self.lr * update))

    def state_dict(self) -> dict[str, Tensor]:
        return {name: getattr(self, name).clone() for name in ("first", "second", "steps")}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over moments and counts.

        Raises:
            ValueError: They are of another shape.
        """
        for name in ("first", "second", "steps"):
            if state[name].shape != getattr(self, name).shape:
                raise ValueError(f"{name} has shape {tuple(state[name].shape)}")
            setattr(self, name, state[name].to(self.parameter.device, copy=True))
