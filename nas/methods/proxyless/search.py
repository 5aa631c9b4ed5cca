"""ProxylessNAS: path-level binary gates, trained on the target task for the target device.

Source:
    Cai, Zhu, Han (2019), "ProxylessNAS: Direct Neural Architecture Search on Target Task
    and Hardware", arXiv:1812.00332; official code github.com/mit-han-lab/proxylessnas.

Notation (E searched blocks, O operations; blocks with fewer are padded and masked):

    paper      code               shape     meaning
    α          alphas             (E, O)    architecture parameters, float64
    p          Draw.probs         (E, O)    softmax(α); in mode ``two`` over two of O
    g          gates              (E, O)    one-hot sample
    ∂L/∂g      gates.grad         (E, O)    <∂L/∂y, op(x)>
    F          CostTable.ops      (E, O)    look-up table of latency, or of FLOPs

One step is one batch of the weights (SGD on one sampled path) and, from the second epoch
after warm-up on, the updates of α that fall on this batch: every fifth batch one by
gradient, or 300 an epoch by REINFORCE, on images held out from the training set.

Differs from the official code, on purpose:

- α is one tensor, sampled on its device with one copy to the host a step; the Jacobian
  is ``p (g - <p, g>)`` and the expected cost one dot product. The latency's gradient is
  the same expression with the table in place of g.
- A layer that the look-up table lacks is an error, not 200 ms.
- Where ``zero`` is active the block's α keep value and moments, as in the original under
  the PyTorch of its time (today's would still apply the latency's gradient).
- The baseline of REINFORCE moves by .99 towards each batch's mean before it is used, as
  in the original; its mean gradient is therefore about 1 - .99/n of the exact one.
- A hard cap is met by construction: the likeliest network within it, exactly.
- The number of images held out is a share; the original's is 50,000 of 1,281,167.
- Weights are trained on images cropped after padding; the original stretches random crops
  and changes colours (recipes do so when the derived network is trained).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from nas.masks import allowed, full_mask, restricted
from nas.methods.proxyless.batches import Batches
from nas.methods.proxyless.costs import CostTable, measure_latencies, parse_latencies
from nas.methods.proxyless.derive import likeliest, within
from nas.methods.proxyless.gates import one_hot, reinforce
from nas.methods.proxyless.parameters import ArchParameters
from nas.methods.proxyless.splitting import Splitting, confined
from nas.methods.proxyless.supernet import MODES, Mode, Supernet
from nas.methods.proxyless.target import REFERENCES, Cap, CostKind, CostLoss, LossKind, Pricing
from nas.plugins import MethodContext
from nas.protocols import Limit, StepReport
from nas.spaces.mbconv import MBConvSpace
from zoo.errors import ConflictError, InvalidInputError, TrainerError, UnknownNameError
from zoo.rng import derive_seed
from zoo.spec import Architecture

BASELINE_STEP = 0.99
"""How far the baseline of REINFORCE moves towards each batch's mean reward."""


class Proxyless(Splitting):
    """Gradient or REINFORCE search of an MBConv network, one path in memory at a time.

    A limit on ``latency_ms``, ``flops`` or ``num_params`` is a hard cap on what is derived.

    Args:
        context: An ``MBConvSpace``, the data whose training set is searched on, device,
            seed; ``latencies`` measured on the target device and ``limits`` if any.
        warmup_epochs: Epochs that train weights only, under almost uniform gates.
        epochs: Epochs after those; α moves from the second one on.
        batch_size: Images of a step, and of an update of α by gradient.
        gates: ``full``, ``full_v2`` (memory of one path) or ``two`` (two paths of the paper).
        arch_update: ``gradient`` or ``reinforce``.
        arch_every: Batches between two updates of α by gradient.
        warmup_lr: Learning rate at the start of warm-up; falls along a cosine to 0.
        lr: Learning rate at the start of the search; falls along a cosine to 0.
        momentum: Nesterov momentum of the weights' SGD.
        weight_decay: Of the weights.
        label_smoothing: In the weights' loss only.
        arch_lr: Adam's learning rate for α.
        held_out: Share of the training set that α is trained on, equal in every class.
        cost: ``latency`` or ``flops``; what the loss is given beside the cross entropy.
        loss: ``mul#log``, ``add#linear`` or ``none``.
        ref: Reference cost, in ms or multiply-accumulates; None takes the cap, or else
            80 ms or 300 million.
        alpha: Factor of ``mul#log``.
        beta: Exponent of ``mul#log``.
        weight: Factor of ``add#linear``.
        table: Milliseconds by key of the ProxylessNAS tables (numbers, or ``{"mean": …}``);
            None takes what was measured on the target device, or else a roofline.
        rl_updates: Updates of α an epoch by REINFORCE, at most one a batch.
        rl_samples: Networks sampled for each.
        rl_batch_size: Held-out images on which each is scored.
        rl_exponent: Of ``ref / cost`` in the reward.
        augment: Whether to crop and mirror the images that train weights.

    Raises:
        InvalidInputError: The space is another one, the data too few, or a number is
            out of range, or a layer's latency is unknown.
        InfeasibleError: No network of the space meets the cap.
    """

    trains = True
    measure_latencies = staticmethod(measure_latencies)

    @classmethod
    def caps_latency(cls, params: Mapping[str, Any]) -> bool:
        """Say whether what is derived promises to keep a limit on latency."""
        return True

    @classmethod
    def wants_latencies(cls, params: Mapping[str, Any], limits: Sequence[Limit]) -> bool:
        """Say whether a search with these parameters needs latencies measured for it."""
        capped = any(item.metric == "latency_ms" and item.max is not None for item in limits)
        in_loss = params.get("cost", "latency") == "latency" and params.get("loss") != "none"
        return params.get("table") is None and (capped or in_loss)

    def __init__(
        self,
        context: MethodContext,
        *,
        warmup_epochs: int = 40,
        epochs: int = 120,
        batch_size: int = 256,
        gates: Mode = "full_v2",
        arch_update: str = "gradient",
        arch_every: int = 5,
        warmup_lr: float = 0.05,
        lr: float = 0.025,
        momentum: float = 0.9,
        weight_decay: float = 4e-5,
        label_smoothing: float = 0.1,
        arch_lr: float = 1e-3,
        held_out: float = 0.1,
        cost: CostKind = "latency",
        loss: LossKind = "mul#log",
        ref: float | None = None,
        alpha: float = 0.2,
        beta: float = 0.3,
        weight: float = 0.1,
        table: Mapping[str, Any] | None = None,
        rl_updates: int = 300,
        rl_samples: int = 10,
        rl_batch_size: int = 1000,
        rl_exponent: float = 0.1,
        augment: bool = True,
    ) -> None:
        if not isinstance(context.space, MBConvSpace):
            raise InvalidInputError(
                f"ProxylessNAS searches the space 'mbconv', not "
                f"{context.space.describe()['name']!r}"
            )
        if context.data is None or len(context.data.train) < 4:
            raise InvalidInputError("ProxylessNAS needs a training set of at least 4 images")
        _choose("gates", gates, MODES)
        _choose("arch_update", arch_update, ("gradient", "reinforce"))
        _choose("cost", cost, get_args(CostKind))
        _check(
            ("warmup_epochs", warmup_epochs, warmup_epochs >= 0, "at least 0"),
            ("epochs", epochs, epochs >= 1, "at least 1"),
            ("batch_size", batch_size, batch_size >= 2, "at least 2"),
            ("arch_every", arch_every, arch_every >= 1, "at least 1"),
            ("warmup_lr", warmup_lr, warmup_lr > 0, "above 0"),
            ("lr", lr, lr > 0, "above 0"),
            ("momentum", momentum, 0 < momentum < 1, "above 0 and below 1"),
            ("arch_lr", arch_lr, arch_lr > 0, "above 0"),
            ("held_out", held_out, 0 < held_out < 1, "above 0 and below 1"),
            ("rl_updates", rl_updates, rl_updates >= 1, "at least 1"),
            ("rl_samples", rl_samples, rl_samples >= 1, "at least 1"),
            ("rl_batch_size", rl_batch_size, rl_batch_size >= 2, "at least 2"),
        )
        self.space = context.space
        self.warmup_epochs, self.epochs, self.batch_size = warmup_epochs, epochs, batch_size
        self.warmup_lr, self.lr = warmup_lr, lr
        self._gates: Mode = gates
        self._by_gradient, self._arch_every = arch_update == "gradient", arch_every
        self._rl = (rl_updates, rl_samples, rl_batch_size, rl_exponent)
        self._smoothing = label_smoothing
        self._seed, self._device = context.seed, context.device
        data = context.data.to(context.device)
        self._batches = Batches(data, held_out=held_out, seed=context.seed, augment=augment)
        self._inputs, self._num_classes = data.inputs, data.num_classes
        self._price(
            context.latencies if table is None else parse_latencies(table), context.limits, cost
        )
        if ref is None:
            capped = self.cap is not None and self.cap.kind == cost
            ref = self.cap.max if self.cap is not None and capped else REFERENCES[cost]
        self.cost_loss = CostLoss(kind=loss, ref=ref, alpha=alpha, beta=beta, weight=weight)
        self.cost_loss.check(self.table, self.space.cardinalities())
        self._rates = (arch_lr, momentum, weight_decay)
        self._data, self._held_out, self._augment = data, held_out, augment
        self._mask, self._frozen = full_mask(self.space.cardinalities()), False
        self._start()

    def _start(self) -> None:
        """Draw weights and alphas, and forget all steps."""
        arch_lr, momentum, weight_decay = self._rates
        self.arch = ArchParameters(self.space, seed=self._seed, device=self._device, lr=arch_lr)
        self.arch.confine(self._mask, seed=self._seed)
        self.supernet = self._supernet()
        self._weight_optimizer = torch.optim.SGD(
            self.supernet.parameters(),
            lr=self.lr,
            momentum=momentum,
            weight_decay=weight_decay,
            nesterov=True,
            foreach=True,
        )
        self._baseline: float | None = None
        self._step = 0

    def _price(
        self, latencies: Mapping[str, float] | None, limits: tuple[Limit, ...], cost: CostKind
    ) -> None:
        pricing = Pricing(
            self.space, inputs=self._inputs, num_classes=self._num_classes, latencies=latencies
        )
        self.cap: Cap | None = pricing.cap(limits)
        self.table: CostTable = pricing.table(cost)

    def _supernet(self) -> Supernet:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self._seed, "proxyless", "weights"))
            supernet = Supernet(self.space, inputs=self._inputs, num_classes=self._num_classes)
        # Depthwise convolutions run several times faster with channels last.
        supernet.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return supernet.train()

    @property
    def total(self) -> int:
        """Number of steps of warm-up and search."""
        return (self.warmup_epochs + self.epochs) * self.steps_per_epoch

    def step(self) -> StepReport:
        """Train one sampled path on one batch, then α if it is its turn.

        Raises:
            ConflictError: The search is over.
            TrainerError: A loss is not finite, or the device ran out of memory.
        """
        if self._step >= self.total:
            raise ConflictError(f"the search is over: all {self.total} steps are done")
        epoch, index = divmod(self._step, self.steps_per_epoch)
        try:
            measured = self._weight_step(epoch, index)
            for update in range(self.arch_updates(epoch, index)):
                arch_step = self._gradient_step if self._by_gradient else self._reinforce_step
                measured |= arch_step(epoch, index, update)
        except torch.OutOfMemoryError as error:
            raise TrainerError(
                f"{self._device} ran out of memory at batch size {self.batch_size}; "
                f"use a smaller one: {error}"
            ) from error
        values = torch.stack([value.double() for value in measured.values()]).tolist()
        metrics = dict(zip(measured, values, strict=True)) | {"lr": self.learning_rate(self._step)}
        if not all(math.isfinite(value) for value in values):
            raise TrainerError(
                f"the loss became {metrics['loss']} in epoch {epoch + 1}; "
                f"lower the learning rate ({self.learning_rate(self._step):g})"
            )
        self._step += 1
        warm = epoch < self.warmup_epochs
        phase = "weights only" if warm else "weights and architecture"
        return StepReport(
            step=self._step,
            total=self.total,
            message=f"epoch {epoch + 1} of {self.warmup_epochs + self.epochs}, {phase}",
            metrics=metrics,
        )

    def arch_updates(self, epoch: int, index: int) -> int:
        """Return how many updates of α follow batch ``index`` of ``epoch``, both from 0.

        There are none in warm-up and in the first epoch after it.
        """
        if self._frozen or epoch <= self.warmup_epochs:
            return 0
        batches = self.steps_per_epoch
        if self._by_gradient:
            return int((index + 1) % min(self._arch_every, batches) == 0)
        # The last batches of as many runs of batches, the first of which are one longer.
        length, longer = divmod(batches, min(self._rl[0], batches))
        done = index + 1
        if done <= longer * (length + 1):
            return int(done % (length + 1) == 0)
        return int((done - longer) % length == 0)

    def learning_rate(self, step: int) -> float:
        """Return the rate of the weights at ``step``, counted from 0: a cosine each phase."""
        warm = self.warmup_epochs * self.steps_per_epoch
        peak, done, length = (
            (self.warmup_lr, step, warm)
            if step < warm
            else (self.lr, step - warm, self.epochs * self.steps_per_epoch)
        )
        return 0.5 * peak * (1 + math.cos(math.pi * done / length))

    def expected_cost(self) -> float:
        """Return the expected latency in ms, or multiply-accumulates, of a sampled network."""
        return float(self.table.expected(self.arch.probabilities()))

    def best(self, k: int) -> list[Architecture]:
        """Return the likeliest networks; under a cap the likeliest within it.

        Under a cap some of falling cost, down to the smallest network, come after the best.
        """
        rows = allowed(self._mask)
        scores = restricted(self.arch.scores(), self._mask)
        if self.cap is None:
            found = likeliest(scores)
        else:
            found = within(scores, confined(self.cap.table, rows), self.cap.max)
        return [
            self.space.architecture([row[at] for row, at in zip(rows, choices, strict=True)])
            for choices in islice(found, max(k, 0))
        ]

    def check_measurable(self) -> None:
        """Accept every network: paths are modules of their own."""

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of all state, measured latencies included; generators are none of it."""
        return {
            "step": self._step,
            "supernet": {k: v.detach().clone() for k, v in self.supernet.state_dict().items()},
            "momenta": [
                None if (kept := self._momentum(item)) is None else kept.clone()
                for item in self.supernet.parameters()
            ],
            "arch": self.arch.state_dict(),
            "baseline": self._baseline,
            "table": _table_state(self.table),
            "cap": None if self.cap is None else _table_state(self.cap.table),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state`` was taken.

        Raises:
            InvalidInputError: ``state`` is of another space, limit or method.
        """
        try:
            if (state["cap"] is None) != (self.cap is None):
                raise ValueError("one of them has a cap and the other has none")
            self.supernet.load_state_dict(state["supernet"])
            for item, kept in zip(self.supernet.parameters(), state["momenta"], strict=True):
                if kept is None:
                    self._weight_optimizer.state.pop(item, None)
                else:
                    buffer = kept.to(item.device, copy=True)
                    self._weight_optimizer.state[item] = {"momentum_buffer": buffer}
            self.arch.load_state_dict(state["arch"])
            self._baseline, self._step = state["baseline"], int(state["step"])
            self.table = _load_table(state["table"])
            if self.cap is not None:
                self.cap = replace(self.cap, table=_load_table(state["cap"]))
        except (KeyError, RuntimeError, ValueError) as error:
            raise InvalidInputError(
                f"this state is not of a ProxylessNAS search over {self.space.describe()}: {error}"
            ) from error

    def _momentum(self, parameter: Tensor) -> Tensor | None:
        kept = self._weight_optimizer.state.get(parameter, {}).get("momentum_buffer")
        return kept if isinstance(kept, Tensor) else None

    def _weight_step(self, epoch: int, index: int) -> dict[str, Tensor]:
        """Take one SGD step on the weights of one sampled path; no other weight has a gradient."""
        draw = self.arch.draw("weights", epoch, index)
        images, labels = self._batches.train(epoch, index, self.batch_size)
        self.supernet.requires_grad_(True)
        for group in self._weight_optimizer.param_groups:
            group["lr"] = self.learning_rate(self._step)
        self._weight_optimizer.zero_grad(set_to_none=True)
        logits = self.supernet(images, draw.paths)
        loss = F.cross_entropy(logits, labels, label_smoothing=self._smoothing)
        torch.autograd.backward(loss)
        self._weight_optimizer.step()
        self._weight_optimizer.zero_grad(set_to_none=True)
        return {"loss": loss.detach(), "train_accuracy": _accuracy(logits, labels)}

    def _gradient_step(self, epoch: int, index: int, update: int) -> dict[str, Tensor]:
        """Move alpha along the gradient of its gates and of the expected cost."""
        draw = self.arch.draw("alphas", epoch, index, update, two=self._gates == "two")
        images, labels = self._batches.held_out(
            epoch, self._turn(epoch, index, update), self.batch_size
        )
        self.supernet.requires_grad_(False)
        gates = one_hot(draw.active, draw.probs.shape[-1], images.dtype)
        logits = self.supernet.gated(images, gates, draw, self._gates)
        entropy = F.cross_entropy(logits, labels)
        cost = self.table.expected(draw.probs).requires_grad_()
        loss = self.cost_loss(entropy, cost)
        if loss.requires_grad:  # not so without a cost where ``zero`` is active everywhere
            torch.autograd.backward(loss)
        gate_grad = torch.zeros_like(draw.probs) if gates.grad is None else gates.grad.double()
        if cost.grad is not None:
            gate_grad = gate_grad + cost.grad * self.table.ops.to(self._device)
        self.arch.descend_gates(draw, gate_grad)
        return {
            "arch_loss": loss.detach(),
            "arch_accuracy": _accuracy(logits, labels),
            "expected_cost": cost.detach(),
        }

    @torch.no_grad()
    def _reinforce_step(self, epoch: int, index: int, update: int) -> dict[str, Tensor]:
        """Score sampled networks on one held-out batch and move alpha towards the better ones."""
        _, samples, batch_size, exponent = self._rl
        images, labels = self._batches.held_out(epoch, self._turn(epoch, index, update), batch_size)
        draws = [self.arch.draw("alphas", epoch, index, update, n) for n in range(samples)]
        accuracy = torch.stack(
            [_accuracy(self.supernet(images, draw.paths), labels) for draw in draws]
        ).double()
        rewards = accuracy
        if self.cost_loss.kind != "none":
            costs = torch.tensor([self.table.total(tuple(draw.paths)) for draw in draws])
            rewards = accuracy * (self.cost_loss.ref / costs.to(accuracy)).pow(exponent)
        mean = float(rewards.mean())
        last = mean if self._baseline is None else self._baseline
        self._baseline = last + BASELINE_STEP * (mean - last)
        actions = torch.stack([draw.active for draw in draws])
        probs = draws[0].probs
        self.arch.descend(reinforce(probs, actions, rewards, self._baseline))
        return {
            "reward": rewards.mean(),
            "arch_accuracy": accuracy.mean(),
            "expected_cost": self.table.expected(probs),
        }

    def _turn(self, epoch: int, index: int, update: int) -> int:
        """Return how many updates of alpha came before this one in its epoch."""
        return sum(self.arch_updates(epoch, earlier) for earlier in range(index)) + update


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.detach().argmax(1) == labels).float().mean()


def _choose(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UnknownNameError(name, str(value), choices)


def _check(*rules: tuple[str, float, bool, str]) -> None:
    for name, value, holds, wanted in rules:
        if not holds:
            raise InvalidInputError(f"{name} is {value}; it must be {wanted}")


def _table_state(table: CostTable) -> dict[str, Any]:
    return {"fixed": table.fixed, "ops": table.ops.clone()}


def _load_table(state: Mapping[str, Any]) -> CostTable:
    return CostTable(float(state["fixed"]), state["ops"].cpu())
