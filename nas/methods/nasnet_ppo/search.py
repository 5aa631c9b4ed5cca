"""NASNet: a recurrent controller, trained by PPO, that writes cells.

Source:
    Zoph, Vasudevan, Shlens, Le (2018), "Learning Transferable Architectures for Scalable
    Image Recognition", arXiv:1707.07012; the search was not released. Weight sharing:
    Pham et al. (2018), "Efficient Neural Architecture Search via Parameter Sharing",
    arXiv:1802.03268.

Notation (T decisions of an architecture, n architectures of an update):

    paper      code                          shape     meaning
    a          choices                       (n, T)    decisions, in the space's order
    log P(a)   log_probs                     (n,)      sum over decisions of one architecture
    R          rewards                       (n,)      accuracy on held-out images
    b          Policy.baseline               scalar    moving average of earlier rewards
    A          advantages                    (n,)      R - b
    r          exp(log_probs - old)          (n,)      ratio that PPO clips

One step trains the shared weights on one batch, through one child that the controller
draws. From the epoch after warm-up on, every ``controller_every``-th step is followed by an
update of the controller: it draws architectures, each is scored on the same batch of
held-out images with the shared weights, and PPO passes over them a few times. Reports of
such steps, and the last one, say which operations the controller favours: ``share_<op>`` is
the mean of the operation's probability over all sides of all blocks of both cells.

Differs from the paper, on purpose:

- Children share their weights, as ENAS's do, instead of being trained 20 epochs each on
  500 GPUs; so the reward is that of a batch, not of a validation set.
- The controller has the paper's 100 units. Adam at 3.5e-4, an entropy bonus of 1e-5, a
  baseline that decays by 0.95 and weights from [-0.1, 0.1] are what AutoAugment, Cubuk et
  al. (2019), arXiv:1805.09501, states of its controller, trained as NASNet's was. Chosen
  here: 20 architectures an update, the clip of 0.2 and four passes over them, the ratio of
  whole architectures rather than of decisions.
- From ENAS: the shared weights' SGD (Nesterov 0.9, decay 1e-4, clip 5, batches of 160, 150
  epochs); chosen: one cosine instead of restarts, updates of the controller spread over the
  epoch (about as many architectures as ENAS scores), five epochs of warm-up.
- Limits on latency, FLOPs or size enter the reward as in MnasNet, arXiv:1807.11626, whose
  exponent is 0.07.
- Blocks whose sides are exchanged are one child.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nas.data import DataSet
from nas.methods.nasnet_ppo.controller import Controller
from nas.methods.nasnet_ppo.costs import Prices, latency_limit, measure_latencies
from nas.methods.nasnet_ppo.finding import Archive, best_children
from nas.methods.nasnet_ppo.ppo import Policy
from nas.methods.nasnet_ppo.supernet import Supernet
from nas.methods.proxyless.batches import Batches
from nas.plugins import MethodContext
from nas.protocols import Limit, StepReport
from nas.spaces.nasnet import NasnetSpace
from zoo.errors import ConflictError, InvalidInputError, TrainerError
from zoo.rng import derive_seed
from zoo.spec import Architecture

SHARE_DRAWS = 64
"""Architectures drawn to estimate the probabilities of operations."""


class NasnetPPO:
    """Search of NASNet cells by a controller trained with PPO, on a weight-sharing supernet.

    Limits with a maximum on ``latency_ms``, ``flops``, ``num_params``, ``size_bytes`` or
    ``peak_bytes`` lower the reward of what exceeds them, and what keeps them is preferred.

    Args:
        context: A ``NasnetSpace``, the data whose training set is searched on, device,
            seed; ``latencies`` measured on the target device and ``limits`` if any.
        warmup_epochs: Epochs that train shared weights only, first of all.
        epochs: Epochs after those.
        batch_size: Images of a step.
        lr: Learning rate of the shared weights at first; falls along a cosine.
        lr_min: Learning rate at the end.
        momentum: Nesterov momentum of the weights' SGD.
        weight_decay: Of the weights.
        clip_norm: Norm to which the weights' gradient is cut.
        held_out: Share of the training set that children are scored on, equal in every class.
        controller_every: Steps between two updates of the controller.
        samples: Architectures drawn for an update.
        reward_batch_size: Held-out images on which each is scored.
        controller_lr: Adam's learning rate for the controller.
        hidden: Units of the controller.
        ppo_epochs: Passes over the architectures of an update.
        ppo_clip: How far a ratio of probabilities is followed from 1.
        entropy_weight: Of the bonus for an undecided controller.
        baseline_decay: Of the moving average of rewards.
        cost_exponent: Of ``limit / cost`` in the reward.
        final_samples: Architectures drawn at the end, from which the best are taken.
        augment: Whether to crop and mirror the images that train weights.

    Raises:
        InvalidInputError: The space is another one, the data too few, or a number is out
            of range.
    """

    trains = True
    measure_latencies = staticmethod(measure_latencies)

    @classmethod
    def caps_latency(cls, params: Mapping[str, Any]) -> bool:
        """Say whether what is derived promises to keep a limit on latency."""
        return True

    @classmethod
    def wants_latencies(cls, params: Mapping[str, Any], limits: Sequence[Limit]) -> bool:
        """Say whether a search with these limits needs latencies measured for it."""
        return latency_limit(limits)

    def __init__(
        self,
        context: MethodContext,
        *,
        warmup_epochs: int = 5,
        epochs: int = 150,
        batch_size: int = 160,
        lr: float = 0.05,
        lr_min: float = 0.0005,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        clip_norm: float = 5.0,
        held_out: float = 0.1,
        controller_every: int = 20,
        samples: int = 20,
        reward_batch_size: int = 160,
        controller_lr: float = 3.5e-4,
        hidden: int = 100,
        ppo_epochs: int = 4,
        ppo_clip: float = 0.2,
        entropy_weight: float = 1e-5,
        baseline_decay: float = 0.95,
        cost_exponent: float = 0.07,
        final_samples: int = 100,
        augment: bool = True,
    ) -> None:
        if not isinstance(context.space, NasnetSpace):
            raise InvalidInputError(
                f"NASNet's search takes the space 'nasnet', not "
                f"{context.space.describe()['name']!r}"
            )
        if context.data is None or len(context.data.train) < 4:
            raise InvalidInputError("NASNet's search needs a training set of at least 4 images")
        _check(
            ("warmup_epochs", warmup_epochs, warmup_epochs >= 0, "at least 0"),
            ("epochs", epochs, epochs >= 1, "at least 1"),
            ("batch_size", batch_size, batch_size >= 2, "at least 2"),
            ("lr", lr, lr > 0, "above 0"),
            ("lr_min", lr_min, 0 <= lr_min <= lr, "from 0 to lr"),
            ("momentum", momentum, 0 < momentum < 1, "above 0 and below 1"),
            ("clip_norm", clip_norm, clip_norm > 0, "above 0"),
            ("held_out", held_out, 0 < held_out < 1, "above 0 and below 1"),
            ("controller_every", controller_every, controller_every >= 1, "at least 1"),
            ("samples", samples, samples >= 1, "at least 1"),
            ("reward_batch_size", reward_batch_size, reward_batch_size >= 2, "at least 2"),
            ("controller_lr", controller_lr, controller_lr > 0, "above 0"),
            ("hidden", hidden, hidden >= 1, "at least 1"),
            ("ppo_epochs", ppo_epochs, ppo_epochs >= 1, "at least 1"),
            ("ppo_clip", ppo_clip, ppo_clip > 0, "above 0"),
            ("entropy_weight", entropy_weight, entropy_weight >= 0, "at least 0"),
            ("baseline_decay", baseline_decay, 0 <= baseline_decay < 1, "at least 0 and below 1"),
            ("cost_exponent", cost_exponent, cost_exponent >= 0, "at least 0"),
            ("final_samples", final_samples, final_samples >= 0, "at least 0"),
        )
        self.space = context.space
        self.warmup_epochs, self.epochs, self.batch_size = warmup_epochs, epochs, batch_size
        self.lr, self.lr_min, self.controller_every = lr, lr_min, controller_every
        self._clip_norm, self._samples, self._final_samples = clip_norm, samples, final_samples
        self._reward_batch_size = reward_batch_size
        self._seed, self._device = context.seed, context.device
        data = context.data.to(context.device)
        self._batches = Batches(data, held_out=held_out, seed=context.seed, augment=augment)
        self.prices = Prices(
            self.space,
            inputs=data.inputs,
            num_classes=data.num_classes,
            limits=context.limits,
            latencies=context.latencies,
            exponent=cost_exponent,
        )
        self.supernet = self._shared(data)
        self._optimizer = torch.optim.SGD(
            self.supernet.parameters(),
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            nesterov=True,
            foreach=True,
        )
        # On the CPU wherever the children run: it is small, and its draws go to the host.
        self.policy = Policy(
            Controller(
                self.space.cardinalities(), hidden=hidden, generator=self._generator("controller")
            ),
            lr=controller_lr,
            clip=ppo_clip,
            entropy_weight=entropy_weight,
            decay=baseline_decay,
            epochs=ppo_epochs,
        )
        self._archive = Archive()
        self._drawn: tuple[tuple[str, int], list[list[int]]] | None = None
        self._step = 0

    def _shared(self, data: DataSet) -> Supernet:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self._seed, "nasnet-ppo", "weights"))
            supernet = Supernet(self.space, inputs=data.inputs, num_classes=data.num_classes)
        # Depthwise convolutions run several times faster with channels last.
        supernet.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return supernet.train()

    @property
    def steps_per_epoch(self) -> int:
        return self._batches.per_epoch(self.batch_size)

    @property
    def total(self) -> int:
        """Number of steps of warm-up and search."""
        return (self.warmup_epochs + self.epochs) * self.steps_per_epoch

    def updates_controller(self, step: int) -> bool:
        """Say whether an update of the controller follows ``step``, counted from 0."""
        after = step + 1 - self.warmup_epochs * self.steps_per_epoch
        return after > 0 and after % self.controller_every == 0

    def learning_rate(self, step: int) -> float:
        """Return the rate of the shared weights at ``step``, counted from 0."""
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.total))
        return self.lr_min + (self.lr - self.lr_min) * cosine

    def step(self) -> StepReport:
        """Train one drawn child on one batch, then the controller if it is its turn.

        Raises:
            ConflictError: The search is over.
            TrainerError: A loss is not finite, or the device ran out of memory.
        """
        if self._step >= self.total:
            raise ConflictError(f"the search is over: all {self.total} steps are done")
        epoch, index = divmod(self._step, self.steps_per_epoch)
        try:
            metrics = self._weight_step(epoch, index)
            if self.updates_controller(self._step):
                metrics |= self._controller_step(epoch)
            shares: dict[str, float] = {}
            if self.updates_controller(self._step) or self._step + 1 == self.total:
                shares = self.operation_shares()
        except torch.OutOfMemoryError as error:
            raise TrainerError(
                f"{self._device} ran out of memory at batch size {self.batch_size}; "
                f"use a smaller one: {error}"
            ) from error
        if not math.isfinite(metrics["loss"]):
            raise TrainerError(
                f"the loss became {metrics['loss']} in epoch {epoch + 1}; "
                f"lower the learning rate ({self.learning_rate(self._step):g})"
            )
        metrics["lr"] = self.learning_rate(self._step)
        metrics |= {f"share_{name}": share for name, share in shares.items()}
        self._step += 1
        phase = "weights only" if epoch < self.warmup_epochs else "weights and controller"
        if shares:
            leader = max(shares, key=shares.__getitem__)
            phase += f", {leader} leads with {shares[leader]:.0%}"
        return StepReport(
            step=self._step,
            total=self.total,
            message=f"epoch {epoch + 1} of {self.warmup_epochs + self.epochs}, {phase}",
            metrics=metrics,
        )

    def operation_shares(self) -> dict[str, float]:
        """Return each operation's probability, averaged over all choices of an operation.

        They add up to 1. Estimated from draws, derived from the seed and the steps done.
        """
        controller = self.policy.controller
        drawn = controller.sample(SHARE_DRAWS, self._generator("shares", self._step))
        chosen = list(self.space.operation_choices())
        ops = self.space.settings.ops
        shares = controller.marginals(drawn)[chosen, : len(ops)].mean(0)
        return dict(zip(ops, shares.tolist(), strict=True))

    def best(self, k: int) -> list[Architecture]:
        """Return the children that do best on all held-out images with the shared weights.

        They are sought among the likeliest one, those that were rewarded best of late, and
        fresh draws. Those within the limits come first.
        """
        drawn = self.policy.controller.sample(
            self._final_samples, self._generator("best", self._step)
        )
        choices = [self.policy.controller.greedy().tolist(), *drawn.tolist()]
        pool = [self._child(found) for found in choices] + self._archive.best(self.space)
        return best_children(
            pool,
            k,
            space=self.space,
            prices=self.prices,
            accuracy=self._held_out_accuracy,
            seed=derive_seed(self._seed, "nasnet-ppo", "shrink"),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of all state; generators are none of it, being derived per use."""
        return {
            "step": self._step,
            "supernet": {k: v.detach().clone() for k, v in self.supernet.state_dict().items()},
            "momenta": [
                None if (kept := self._momentum(item)) is None else kept.clone()
                for item in self.supernet.parameters()
            ],
            "policy": self.policy.state_dict(),
            "archive": self._archive.state_dict(),
            "latency": self.prices.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state`` was taken.

        Raises:
            InvalidInputError: ``state`` is of another space or method.
        """
        try:
            self.supernet.load_state_dict(state["supernet"])
            for item, kept in zip(self.supernet.parameters(), state["momenta"], strict=True):
                if kept is None:
                    self._optimizer.state.pop(item, None)
                else:
                    buffer = kept.to(item.device, copy=True)
                    self._optimizer.state[item] = {"momentum_buffer": buffer}
            self.policy.load_state_dict(state["policy"])
            self._archive.load_state_dict(state["archive"])
            self.prices.load_state_dict(state["latency"])
            self._drawn = None
            self._step = int(state["step"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise InvalidInputError(
                f"this state is not of a NASNet search over {self.space.describe()}: {error}"
            ) from error

    def _momentum(self, parameter: Tensor) -> Tensor | None:
        kept = self._optimizer.state.get(parameter, {}).get("momentum_buffer")
        return kept if isinstance(kept, Tensor) else None

    def _weight_step(self, epoch: int, index: int) -> dict[str, float]:
        """Take one SGD step on the weights of one child; no other weight has a gradient."""
        child = self._next_child()
        images, labels = self._batches.train(epoch, index, self.batch_size)
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate(self._step)
        self._optimizer.zero_grad(set_to_none=True)
        logits = self.supernet(images, self.space.decode(child))
        loss = F.cross_entropy(logits, labels)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.supernet.parameters(), self._clip_norm, foreach=True)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        measured = torch.stack([loss.detach(), _correct(logits, labels).float() / len(labels)])
        return dict(zip(("loss", "train_accuracy"), measured.tolist(), strict=True))

    def _next_child(self) -> Architecture:
        """Return the child whose weights are trained at this step.

        As many as there are steps between two updates of the controller are drawn at once:
        it does not change meanwhile, and one draw takes as long as twenty.
        """
        warm = self.warmup_epochs * self.steps_per_epoch
        phase, at = ("warm-up", self._step) if self._step < warm else ("search", self._step - warm)
        block, offset = divmod(at, self.controller_every)
        if self._drawn is None or self._drawn[0] != (phase, block):
            drawn = self.policy.controller.sample(
                self.controller_every, self._generator("weights", phase, block)
            )
            self._drawn = (phase, block), drawn.tolist()
        return self._child(self._drawn[1][offset])

    def _controller_step(self, epoch: int) -> dict[str, float]:
        """Draw architectures, score them on one batch of held-out images, and learn from it."""
        choices = self.policy.controller.sample(
            self._samples, self._generator("controller", self._step)
        )
        children = [self._child(row) for row in choices.tolist()]
        batch = self._batches.held_out(epoch, self._turn(), self._reward_batch_size)
        accuracies = self._accuracies(children, *batch)
        rewards = [
            self.prices.reward(accuracy, child)
            for accuracy, child in zip(accuracies, children, strict=True)
        ]
        for child, reward in zip(children, rewards, strict=True):
            self._archive.put(child, reward)
        learned = self.policy.learn(choices, torch.tensor(rewards, dtype=torch.float64))
        count = len(children)
        return {
            "reward": sum(rewards) / count,
            "arch_accuracy": sum(accuracies) / count,
        } | learned

    def _turn(self) -> int:
        """Return how many updates of the controller came before this one in its epoch."""
        first = self._step - self._step % self.steps_per_epoch
        return sum(self.updates_controller(earlier) for earlier in range(first, self._step))

    def _child(self, choices: Sequence[int]) -> Architecture:
        return self.space.canonical(self.space.architecture(choices))

    @torch.no_grad()
    def _accuracies(
        self, children: Sequence[Architecture], images: Tensor, labels: Tensor
    ) -> list[float]:
        """Return each child's accuracy on the same images, normalised by their statistics."""
        correct = [
            _correct(self.supernet(images, self.space.decode(child)), labels) for child in children
        ]
        return [count / len(labels) for count in torch.stack(correct).tolist()]

    def _held_out_accuracy(
        self, children: Sequence[Architecture], *, all_images: bool
    ) -> list[float]:
        """Return each child's accuracy on all held-out images, or on one batch of them."""
        held_out = len(self._batches.parts[1])
        size = min(self._reward_batch_size, held_out)
        turns = held_out // size if all_images else 1
        found = [
            self._accuracies(
                children,
                *self._batches.held_out(self.warmup_epochs + self.epochs, turn, size),
            )
            for turn in range(turns)
        ]
        return [sum(each) / turns for each in zip(*found, strict=True)]

    def _generator(self, *labels: str | int) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self._seed, "nasnet-ppo", *labels))


def _correct(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.detach().argmax(1) == labels).sum()


def _check(*rules: tuple[str, float, bool, str]) -> None:
    for name, value, holds, wanted in rules:
        if not holds:
            raise InvalidInputError(f"{name} is {value}; it must be {wanted}")
