"""Few-shot search: one supernet split into several, over any one-shot method and space.

Source:
    Zhao et al. (2021), "Few-shot Neural Architecture Search", arXiv:2006.06863, official
    code github.com/aoiang/few-shot-NAS; Hu et al. (2022), "Generalizing Few-Shot NAS with
    Gradient Matching", arXiv:2203.15207, official code github.com/skhu101/GM-NAS.

Notation (E edges, O operations, n of them allowed on an edge):

    paper   code                       shape     meaning
    enc     mask                       (E, O)    what a sub-supernet may use
    θ       nas.supernet.masked_softmax (E, O)   softmax(α) where allowed, else exactly 0
    g_i     OperationGradients.rows    (n, P)    gradient with the edge set to operation i
    D       Race.mean                  (n, n)    1 - cosine of g_i, g_j, mean over batches
    Γ       Partition                            groups of an edge's operations

Small sub-supernets are trained and measured together, side by side on the device (``lanes``;
measuring waits for a GPU, so there only training overlaps). Of large ones one is on the device
at a time, and the others wait as states.

Differs from the official code, on purpose:

- The layer is one for all methods and spaces; a base method needs ``OneShot``.
- Groups are cut by their own gradients in every case, edges compare per pair, gradients are
  compared at any scale: see ``partition`` and ``matching``.
- Edges race (``racing``) instead of all being measured 100 times.
- On the DARTS space the edges of both kinds of cells can be split, not only the normal ones.
- Measuring leaves weights and statistics as they were, and draws no batch from training.
- Across sub-supernets candidates compete on the validation set by successive halving; the
  original asks the benchmark for the test accuracy of all four on NAS-Bench-201.
- A second-order step keeps the momentum of a pruned supernet (the original's bare
  ``except`` zeroes it); data are walked in epochs, not drawn anew each step.
"""

from __future__ import annotations

import abc
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any, TypeVar

import torch
from torch import Tensor

from nas.masks import split_mask, sub_space_size
from nas.methods.few_shot.lanes import Lanes
from nas.methods.few_shot.plan import Moment, Plan, Schedule
from nas.methods.halving import Contender, Halving, num_steps
from nas.methods.held_out import HeldOut
from nas.methods.one_shot import Confinement, OneShot
from nas.methods.proxyless.costs import measure_latencies
from nas.plugins import MethodContext, make_method, method_class
from nas.protocols import Limit, StepReport
from zoo.errors import InvalidInputError
from zoo.rng import derive_seed
from zoo.spec import Architecture

T = TypeVar("T")
Groups = tuple[tuple[int, ...], ...]

SMALL = 1_000_000
"""Weights of a supernet up to which its parts are trained together, unless it is said."""


def one_shot(name: str, params: Mapping[str, Any], context: MethodContext) -> OneShot:
    """Build the registered method ``name`` as one that can be split.

    Raises:
        UnknownNameError: There is no such method.
        InvalidInputError: It refuses its parameters, or cannot be split.
    """
    splits = hasattr(method_class(name), "operation_gradients")
    made: Any = make_method(name, params, context) if splits else None
    if not isinstance(made, OneShot):
        raise InvalidInputError(
            f"method {name!r} trains no supernet that can be split; give one that does, "
            "such as darts, pc-darts, snas, rsps or proxyless"
        )
    return made


@dataclass(frozen=True, kw_only=True)
class Net:
    """A sub-supernet: its mask, the edges that were not split yet, and its state.

    ``state`` is None for one that starts afresh.
    """

    mask: Tensor
    pool: tuple[int, ...]
    state: Mapping[str, Any] | None

    def splittable(self, groups: int) -> tuple[int, ...]:
        """Return the edges of the pool with at least as many operations as groups."""
        counts = self.mask.sum(1).tolist()
        return tuple(edge for edge in self.pool if counts[edge] >= groups)


class SplitSearch(abc.ABC):
    """A one-shot search whose supernet is split; subclasses decide edge and groups.

    Args:
        context: What the base method was given.
        base: What is split; its own number of epochs plays no part.
        make: Builds another one like it.
        schedule: Splits and epochs.
        rounds: Steps that a decision takes.
        candidates: Architectures that each sub-supernet sends to the contest.
        together: Whether the sub-supernets of a stage are trained and measured side by side,
            all in a step; None: if the base has at most ``SMALL`` weights.

    Raises:
        InvalidInputError: The base cannot be split so often, or there are no data.
    """

    trains = True
    measure_latencies = staticmethod(measure_latencies)

    @classmethod
    def caps_latency(cls, params: Mapping[str, Any]) -> bool:
        """Say whether the base method promises to keep a limit on latency."""
        asks = _asked_of_base(params, "caps_latency")
        return asks is not None and bool(asks(params.get("base_params") or {}))

    @classmethod
    def wants_latencies(cls, params: Mapping[str, Any], limits: Sequence[Limit]) -> bool:
        """Say whether the base method needs latencies measured for it."""
        asks = _asked_of_base(params, "wants_latencies")
        return asks is not None and bool(asks(params.get("base_params") or {}, limits))

    def __init__(
        self,
        context: MethodContext,
        base: OneShot,
        make: Callable[[MethodContext], OneShot],
        *,
        schedule: Schedule,
        rounds: int,
        candidates: int,
        together: bool | None,
    ) -> None:
        if isinstance(candidates, bool) or not isinstance(candidates, int) or candidates < 1:
            raise InvalidInputError(f"candidates is {candidates!r}; it must be an integer >= 1")
        if context.data is None:
            raise InvalidInputError("a few-shot search needs data, to train on and to select by")
        if together not in (True, False, None):
            raise InvalidInputError(f"together is {together!r}; give true or false")
        self.base, self._bases, self._live = base, [base], [-1]
        self.schedule, self._seed, self._candidates = schedule, context.seed, candidates
        data = context.data.to(context.device)
        self._held_out = HeldOut(data)
        self._make = partial(make, replace(context, data=data))
        weights = sum(weight.numel() for weight in base.supernet.parameters())
        self._together = weights <= SMALL if together is None else together
        self._device, self._lanes = context.device, Lanes(context.device, 1)
        root = Net(mask=base.options(), pool=base.splittable(), state=None)
        for stage, groups in enumerate(schedule.groups):
            if len(root.splittable(groups)) <= stage:
                raise InvalidInputError(
                    f"split {stage + 1} into {groups} groups finds no edge with as many "
                    "operations that was not split before; split fewer times or smaller"
                )
        # A schedule that the base refuses is refused now, not after epochs of training.
        for stage in reversed(range(schedule.splits + 1)):
            base.confine(self._terms(root.mask, stage, 0))
        contest = num_steps(schedule.nets(schedule.splits) * candidates, self._held_out.batches)
        self._plan = Plan(schedule, base.steps_per_epoch, rounds, contest, self._together)
        self._nets = [root]
        self._children: list[Net] = []
        self._contest: Halving | None = None
        self._step = 0
        self.decisions: list[dict[str, Any]] = []

    @property
    def total(self) -> int:
        """Number of steps of training, decisions and the contest."""
        return self._plan.total

    @property
    def masks(self) -> list[Tensor]:
        """Return the masks of the present sub-supernets."""
        return [net.mask for net in self._nets]

    def step(self) -> StepReport:
        """Train on a batch, or measure edges, or score candidates.

        It is one sub-supernet's step, or one of each in the stage if they go together.

        Raises:
            ConflictError: The search is over.
            TrainerError: A loss is not finite, or the device ran out of memory.
        """
        moment = self._plan.at(self._step)
        if moment.phase == "select":
            message, metrics = self._select()
        else:
            nets, of = moment.nets, self.schedule.nets(moment.stage)
            bases = [self._activate(moment.stage, at) for at in nets]
            if moment.phase == "train":
                message, metrics = self._train(bases)
            else:
                message, metrics = self._decide(moment, bases)
            which = f" {nets[0] + 1}" if len(nets) == 1 else f"s {nets[0] + 1} to {nets[-1] + 1}"
            message = f"sub-supernet{which} of {of}: {message}"
        self._step += 1
        return StepReport(step=self._step, total=self.total, message=message, metrics=metrics)

    def best(self, k: int) -> list[Architecture]:
        """Return the winners of the contest, best first; before it, what a sub-supernet proposes.

        If more are asked for than there were, what else the sub-supernets propose follows, the
        winner's first. A supernet may come to the same architecture as another: each is
        returned once.
        """
        if self._contest is None:
            stage = self._plan.at(min(self._step, self.total - 1)).stage
            at = max(self._live[0], 0)
            return self._activate(stage, at).propose(max(k, 0), self._rng(at))
        space, ranking = self.base.space.describe(), self._contest.ranking()
        found = dict.fromkeys(Architecture(space=space, choices=c.choices) for c in ranking)
        for net in dict.fromkeys(contender.net for contender in ranking):
            if len(found) >= k:
                break
            base = self._activate(self.schedule.splits, net)
            found |= dict.fromkeys(base.propose(k, self._rng(net)))
        return list(found)[: max(k, 0)]

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of all state: every sub-supernet's, and how far decisions are."""
        return {
            "method": type(self).__name__,
            "step": self._step,
            "together": self._together,
            "live": list(self._live),
            "nets": [_net_state(net, self._state(at)) for at, net in enumerate(self._nets)],
            "children": [_net_state(net, net.state) for net in self._children],
            "contest": None if self._contest is None else self._contest.state_dict(),
            "decisions": [dict(decision) for decision in self.decisions],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state`` was taken.

        Raises:
            InvalidInputError: ``state`` is of another space, base or method, or of
                sub-supernets trained in the other way.
        """
        try:
            if state["method"] != type(self).__name__:
                raise ValueError(f"it is one of {state['method']}")
            if state["together"] != self._together:
                raise ValueError(f"together was {state['together']}; it is {self._together} now")
            self._nets = [_load_net(item) for item in state["nets"]]
            self._children = [_load_net(item) for item in state["children"]]
            shapes = {net.mask.shape for net in self._nets + self._children}
            if shapes != {self.base.options().shape}:
                raise ValueError(f"its masks have shapes {[tuple(shape) for shape in shapes]}")
            kept = state["contest"]
            self._contest = None if kept is None else Halving.from_state(kept)
            self.decisions = [dict(decision) for decision in state["decisions"]]
            self._step, live = int(state["step"]), [int(at) for at in state["live"]]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InvalidInputError(f"this state is not of a few-shot search: {error}") from error
        self._live = [-1] * len(self._bases)
        for at in live:
            if at >= 0:
                self._activate(self._plan.at(min(self._step, self.total - 1)).stage, at)

    @abc.abstractmethod
    def _decide(self, moment: Moment, bases: Sequence[OneShot]) -> tuple[str, dict[str, float]]:
        """Take a step of a decision; the last one calls ``_split``. Return what to report.

        Args:
            moment: Which nets it is about, and how far it is.
            bases: Hold those nets.
        """

    def _split(self, stage: int, at: int, edge: int, groups: Groups, **facts: Any) -> None:
        """Replace a live sub-supernet by its children; ``groups`` name columns of the mask.

        Those of a stage are split in their order.
        """
        last = self.schedule.restart and stage + 1 == self.schedule.splits
        net = self._nets[at]
        state = None if last else _on_host(self._state(at))
        masks = split_mask(net.mask, edge, groups)
        pool = tuple(other for other in net.pool if other != edge)
        self._children += [Net(mask=mask, pool=pool, state=state) for mask in masks]
        self.decisions.append(
            {
                "stage": stage,
                "net": at,
                "edge": edge,
                "groups": [list(group) for group in groups],
                "sizes": [sub_space_size(mask) for mask in masks],
                **facts,
            }
        )
        if at + 1 == len(self._nets):
            self._nets, self._children = self._children, []
            self._live = [-1] * len(self._bases)

    def _train(self, bases: Sequence[OneShot]) -> tuple[str, dict[str, float]]:
        """Train sub-supernets on a batch each; return what to report, the mean over them."""
        reports = self._side_by_side([base.step for base in bases])
        metrics = {
            name: fmean(report.metrics[name] for report in reports) for name in reports[0].metrics
        }
        return reports[0].message, metrics

    def _side_by_side(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """Make one call for each net of a step, at the same time."""
        if self._lanes.count != len(calls):
            self._lanes = Lanes(self._device, len(calls))
        return self._lanes.run(calls)

    def _lane(self, at: int) -> int:
        """Return which base a sub-supernet is trained in: its own, or that of all."""
        return at if self._together else 0

    def _state(self, at: int) -> Mapping[str, Any] | None:
        lane = self._lane(at)
        live = lane < len(self._live) and self._live[lane] == at
        return self._bases[lane].state_dict() if live else self._nets[at].state

    def _activate(self, stage: int, at: int) -> OneShot:
        """Bring one sub-supernet onto the device; what was in its place goes to its state."""
        lane = self._lane(at)
        while lane >= len(self._bases):
            self._bases.append(self._make())
            self._live.append(-1)
        base, before = self._bases[lane], self._live[lane]
        if before == at:
            return base
        if before >= 0:
            kept = _on_host(base.state_dict())
            self._nets[before] = replace(self._nets[before], state=kept)
        net = self._nets[at]
        base.confine(self._terms(net.mask, stage, at))
        if net.state is None:
            base.restart()
        else:
            base.load_state_dict(net.state)
        self._live[lane] = at
        return base

    def _terms(self, mask: Tensor, stage: int, at: int) -> Confinement:
        return Confinement(
            mask=mask,
            epochs=self.schedule.length(stage),
            cooling=self.schedule.cooling(stage),
            frozen=self.schedule.frozen(stage),
            seed=self._net_seed(stage, at),
        )

    def _net_seed(self, stage: int, at: int) -> int:
        """Return the seed of a sub-supernet: its own once it starts afresh."""
        if self.schedule.restart and stage == self.schedule.splits:
            return derive_seed(self._seed, "few-shot", at)
        return self._seed

    def _select(self) -> tuple[str, dict[str, float]]:
        stage = self.schedule.splits
        if self._contest is None:
            contenders = []
            for at in range(len(self._nets)):
                found = self._activate(stage, at).propose(self._candidates, self._rng(at))
                contenders += [Contender(net=at, choices=item.choices) for item in found]
            self._contest = Halving(contenders, self._held_out.batches)

        def score(contender: Contender, batch: int) -> tuple[int, int]:
            base = self._activate(stage, contender.net)
            return self._held_out.score(base, contender, batch)

        if not self._contest.done:
            self._contest.step(score)
        contest = self._contest
        message = f"choosing among {len(contest.contenders)} candidates"
        return message, {"held_out_accuracy": contest.ranking()[0].accuracy}

    def _rng(self, at: int) -> random.Random:
        return random.Random(derive_seed(self._seed, "few-shot", "candidates", at))


def _asked_of_base(params: Mapping[str, Any], question: str) -> Callable[..., object] | None:
    return getattr(method_class(str(params.get("base", "darts"))), question, None)


def _on_host(state: Any) -> Any:
    """Return a state with its tensors in the host's memory: what waits leaves the device."""
    if isinstance(state, Tensor):
        return state.cpu()
    if isinstance(state, Mapping):
        return {key: _on_host(value) for key, value in state.items()}
    return [_on_host(item) for item in state] if isinstance(state, list) else state


def _net_state(net: Net, state: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"mask": net.mask.clone(), "pool": list(net.pool), "state": state}


def _load_net(state: Mapping[str, Any]) -> Net:
    if not isinstance(state["mask"], Tensor) or state["mask"].dtype != torch.bool:
        raise TypeError("a mask is no Boolean tensor")
    return Net(mask=state["mask"].clone(), pool=tuple(state["pool"]), state=state["state"])
