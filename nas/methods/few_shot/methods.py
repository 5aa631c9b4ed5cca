"""The two ways to split: one edge into its single operations, and by gradient matching.

Source, notation and differences: ``nas.methods.few_shot.search``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor

from nas.masks import allowed
from nas.methods.few_shot import matching
from nas.methods.few_shot.partition import EdgeRule, Objective, Sizes
from nas.methods.few_shot.plan import Moment, Schedule
from nas.methods.few_shot.presets import preset
from nas.methods.few_shot.racing import Criterion, Race, num_rounds
from nas.methods.few_shot.search import SplitSearch, one_shot
from nas.methods.one_shot import OneShot
from nas.plugins import MethodContext
from zoo.errors import InvalidInputError


class FewShot(SplitSearch):
    """The original few-shot search: one edge is split into its single operations.

    Args:
        context: A space of the base method, data, device, seed.
        base: The one-shot method: ``darts``, ``pc-darts``, ``snas``, ``rsps``, ``proxyless``.
        base_params: Parameters of the base method, beside those of its preset.
        edge: Which edge to split; None takes the first.
        checkpoint: Epochs of the one supernet before the split. Its weights and optimiser
            are inherited; 0 is the baseline of the gradient-matching paper.
        final_epochs: Epochs of every sub-supernet.
        candidates: Architectures that each sends to the contest; None takes the preset's.
        together: Whether sub-supernets are trained and measured side by side; None: if they
            are small.

    Raises:
        InvalidInputError: The base cannot be split, or the edge does not exist.
    """

    def __init__(
        self,
        context: MethodContext,
        *,
        base: str = "darts",
        base_params: Mapping[str, Any] | None = None,
        edge: int | None = None,
        checkpoint: int = 50,
        final_epochs: int = 20,
        candidates: int | None = None,
        together: bool | None = None,
    ) -> None:
        published = preset(str(context.space.describe()["name"]), base)
        make = partial(one_shot, base, {**published.base_params, **(base_params or {})})
        made = make(context)
        edges = made.splittable()
        self.edge = edges[0] if edge is None else edge
        if type(self.edge) is not int or self.edge not in edges:
            raise InvalidInputError(f"edge is {edge!r}; this network has the edges {list(edges)}")
        self._operations = allowed(made.options())[self.edge]
        super().__init__(
            context,
            made,
            make,
            schedule=Schedule(
                checkpoints=(checkpoint,),
                groups=(len(self._operations),),
                final_epochs=final_epochs,
                restart=False,
            ),
            rounds=1,
            candidates=published.candidates if candidates is None else candidates,
            together=together,
        )

    def _decide(self, moment: Moment, bases: Sequence[OneShot]) -> tuple[str, dict[str, float]]:
        groups = tuple((op,) for op in self._operations)
        self._split(moment.stage, 0, self.edge, groups)
        return f"edge {self.edge} is split into its {len(groups)} operations", {}


class GmNas(SplitSearch):
    """Few-shot search by gradient matching: edges and groups by how gradients disagree.

    Without further parameters it is the published schedule of the base method on the space.

    Args:
        context: A space of the base method, data, device, seed.
        base: The one-shot method: ``darts``, ``pc-darts``, ``snas``, ``rsps``, ``proxyless``.
        base_params: Parameters of the base method, beside those of its preset.
        checkpoints: Epochs at which every sub-supernet is split; None takes the preset's,
            as do the parameters after it.
        groups: Sub-supernets made of each at each checkpoint.
        final_epochs: Epochs of every sub-supernet after the last split.
        restart: Whether those start afresh, the architecture frozen until then.
        fixed_schedule: Whether what restarts anneals over its own epochs.
        batches: Batches on which an edge is measured at most.
        racing: Whether edges that cannot win are measured no further.
        z: Standard errors of the race's bound.
        distance: ``cosine``, ``mse`` or ``filter-cosine``.
        hard: Whether the operation that an edge is set to has weight 1, or its own.
        sizes: Sizes of groups: ``pair``, ``half`` or ``any``.
        objective: What groups minimise: ``intra`` (official code) or ``cut`` (paper).
        edge_rule: ``normalised``, ``max-inter``, ``min-intra``, or ``published``: which of
            the last two the official code takes for the base on the space.
        candidates: Architectures that each sub-supernet sends to the contest.
        together: Whether sub-supernets are trained and measured side by side; None: if they
            are small.

    Raises:
        InvalidInputError: The base cannot be split, or not so often, or is fused, or a
            number is out of range.
    """

    def __init__(
        self,
        context: MethodContext,
        *,
        base: str = "darts",
        base_params: Mapping[str, Any] | None = None,
        checkpoints: Sequence[int] | None = None,
        groups: Sequence[int] | None = None,
        final_epochs: int | None = None,
        restart: bool | None = None,
        fixed_schedule: bool | None = None,
        batches: int = 100,
        racing: bool = True,
        z: float = 3.0,
        distance: str = "cosine",
        hard: bool | None = None,
        sizes: Sizes | None = None,
        objective: Objective = "intra",
        edge_rule: EdgeRule | Literal["published"] = "normalised",
        candidates: int | None = None,
        together: bool | None = None,
    ) -> None:
        published = preset(str(context.space.describe()["name"]), base)
        plan = published.schedule
        schedule = Schedule(
            checkpoints=plan.checkpoints if checkpoints is None else tuple(checkpoints),
            groups=plan.groups if groups is None else tuple(groups),
            final_epochs=plan.final_epochs if final_epochs is None else final_epochs,
            restart=plan.restart if restart is None else restart,
            fixed_schedule=plan.fixed_schedule if fixed_schedule is None else fixed_schedule,
        )
        for name, value in (("racing", racing), ("hard", hard)):
            if value not in (True, False, None):
                raise InvalidInputError(f"{name} is {value!r}; give true or false")
        self._batches, self._z = batches, z if racing else math.inf
        self._distance = matching.distance(distance)
        self._hard = published.hard if hard is None else hard
        self._criteria = [
            Criterion(
                groups=count,
                sizes=published.sizes if sizes is None else sizes,
                objective=objective,
                rule=published.edge_rule if edge_rule == "published" else edge_rule,
            )
            for count in schedule.groups
        ]
        self._races: dict[int, Race] = {}
        make = partial(one_shot, base, {**published.base_params, **(base_params or {})})
        super().__init__(
            context,
            make(context),
            make,
            schedule=schedule,
            rounds=num_rounds(batches),
            candidates=published.candidates if candidates is None else candidates,
            together=together,
        )
        # What the first split would refuse, after epochs of training, is refused now.
        self._race_of(0, 0)
        self.base.check_measurable()

    @property
    def passes(self) -> int:
        """Gradient passes that the decisions made so far have taken."""
        return sum(int(decision["passes"]) for decision in self.decisions)

    def state_dict(self) -> dict[str, Any]:
        races = {str(at): race.state_dict() for at, race in self._races.items()}
        return super().state_dict() | {"races": races}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._races = {}
        for at, kept in state["races"].items():
            race = self._race_of(self._plan.at(self._step).stage, int(at))
            race.load_state_dict(kept)
            self._races[int(at)] = race

    def _race_of(self, stage: int, at: int) -> Race:
        criterion = self._criteria[stage]
        edges = self._nets[at].splittable(criterion.groups)
        return Race(criterion=criterion, edges=edges, batches=self._batches, z=self._z)

    def _decide(self, moment: Moment, bases: Sequence[OneShot]) -> tuple[str, dict[str, float]]:
        if not self._races:
            self._races = {at: self._race_of(moment.stage, at) for at in moment.nets}
        races = list(self._races.values())
        self._lanes.run(
            [
                partial(race.round, partial(self._measure, base))
                for race, base in zip(races, bases, strict=True)
            ]
        )
        alive = sum(len(race.alive) for race in races)
        of = sum(len(race.edges) for race in races)
        passes = sum(race.passes for race in races)
        metrics = {"edges": float(alive), "gradient_passes": float(passes)}
        if moment.index + 1 < num_rounds(self._batches):
            return f"measuring {alive} of {of} edges", metrics
        told = []
        for at, race in self._races.items():
            edge, found = race.result()
            operations = allowed(self._nets[at].mask)[edge]
            groups = tuple(tuple(operations[op] for op in group) for group in found)
            self._split(moment.stage, at, edge, groups, passes=race.passes)
            told.append(f"edge {edge} is split into {groups}")
        self._races = {}
        return "; ".join(told), metrics

    def _measure(self, base: OneShot, edge: int, batch: int) -> Tensor:
        found = base.operation_gradients(edge, batch, hard=self._hard)
        return self._distance(found.rows, list(found.shapes))
