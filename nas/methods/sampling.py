"""Search by sampling: NSGA-II, multi-objective TPE, and random search as their baseline.

Papers: Deb et al. (2002), "A fast and elitist multiobjective genetic algorithm: NSGA-II";
Ozaki et al. (2022), "Multiobjective tree-structured Parzen estimator". Both as implemented
by Optuna (https://optuna.org), driven through ask and tell, one candidate a step.

| notation | shape | is |
|---|---|---|
| ``choices`` | (variables,) | what Optuna proposes: one category a variable of the space |
| ``values`` | (objectives,) | the metrics that are objectives |
| ``constraints`` | (bounds,) | relative excess over each bound; feasible if none is above 0 |

Deliberate differences: a proposal that the space refuses is replaced by the nearest of
some legal architectures, always the same one for the same proposal; a fresh sampler with
a seed of its own makes every step, so that the recorded history alone determines what
comes next; the default population is small, since budgets here are tens of candidates.
"""

from __future__ import annotations

import abc
import logging
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isqrt
from typing import Any, final

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState, create_trial

from nas.methods.ranking import Ranked
from nas.methods.stepping import Sampling
from nas.plugins import MethodContext
from zoo.errors import InvalidInputError


@final
class RandomSearch(Sampling):
    """Draws architectures uniformly and independently: the baseline of every front."""

    def __init__(self, context: MethodContext, *, candidates: int = 24) -> None:
        super().__init__(context, candidates)

    def _ask(self, seed: int) -> tuple[int, ...]:
        return self._context.space.sample(random.Random(seed)).choices

    def _tell(self, ranked: Ranked | None) -> None:
        """Nothing is learnt."""

    def _forget(self) -> None:
        """Nothing was kept."""


class OptunaSampling(Sampling):
    """Keeps an Optuna study in memory that can be rebuilt from the state."""

    def __init__(self, context: MethodContext, candidates: int) -> None:
        super().__init__(context, candidates)
        self._distributions: dict[str, BaseDistribution] = {
            f"x{at:04d}": CategoricalDistribution(range(options))
            for at, options in enumerate(context.space.cardinalities())
            if options > 1
        }
        self._open_study()

    @abc.abstractmethod
    def _sampler(self, seed: int) -> BaseSampler:
        """Return a new sampler whose draws are a function of ``seed``."""

    def _check(self) -> None:
        """Raise ``InvalidInputError`` if Optuna refuses the parameters."""
        try:
            self._sampler(0)
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"{type(self).__name__} refused: {error}") from error

    def _open_study(self) -> None:
        self._storage = InMemoryStorage()
        with _quiet():
            self._study = optuna.create_study(
                storage=self._storage, directions=list(self._context.directions)
            )
        self._study_id = self._storage.get_study_id_from_name(self._study.study_name)

    def state_dict(self) -> dict[str, Any]:
        trials = self._study.get_trials(deepcopy=False)
        return super().state_dict() | {
            "trials": [dict(trial.system_attrs) for trial in trials],
            "study": dict(self._storage.get_study_system_attrs(self._study_id)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._rebuild(state["trials"], state["study"])

    def _ask(self, seed: int) -> tuple[int, ...]:
        self._before = dict(self._storage.get_study_system_attrs(self._study_id))
        self._study.sampler = self._sampler(seed % 2**32)
        self._trial = self._study.ask(self._distributions)
        return tuple(
            self._trial.params.get(f"x{at:04d}", 0)
            for at in range(len(self._context.space.cardinalities()))
        )

    def _tell(self, ranked: Ranked | None) -> None:
        if ranked is None:
            self._study.tell(self._trial, state=TrialState.FAIL)
            return
        for name, value in ranked.violations.items():
            self._trial.set_constraint(name, value)
        self._study.tell(self._trial, list(ranked.values))

    def _forget(self) -> None:
        finished = self._study.get_trials(deepcopy=False)[: len(self._records)]
        self._rebuild([trial.system_attrs for trial in finished], self._before)

    def _rebuild(self, attrs: Sequence[Mapping[str, Any]], study: Mapping[str, Any]) -> None:
        """Fill a new study with the records; trial numbers and ids come out as before."""
        self._open_study()
        for record, system_attrs in zip(self._records, attrs, strict=True):
            ranked = self._rank(record)
            params = {name: record.proposal[int(name[1:])] for name in self._distributions}
            self._study.add_trial(
                create_trial(
                    state=TrialState.FAIL if ranked is None else TrialState.COMPLETE,
                    values=None if ranked is None else list(ranked.values),
                    params=params,
                    distributions=self._distributions,
                    system_attrs=dict(system_attrs),
                )
            )
        for name, value in study.items():
            self._storage.set_study_system_attr(self._study_id, name, value)


@final
class Nsga2(OptunaSampling):
    """Evolves a population by non-dominated sorting and crowding, within the limits."""

    def __init__(
        self,
        context: MethodContext,
        *,
        candidates: int = 24,
        population: int | None = None,
        crossover: float = 0.9,
        mutation: float | None = None,
    ) -> None:
        """Open a study.

        Args:
            context: Space, evaluator, objectives, limits and seed.
            candidates: Budget, duplicates included.
            population: Size of a generation; the square root of the budget, at least 4, if None.
            crossover: Probability that a child has two parents.
            mutation: Probability that a variable is drawn anew; one in their number if None.
        """
        super().__init__(context, candidates)
        self._population = max(4, isqrt(candidates)) if population is None else population
        self._crossover = crossover
        self._mutation = mutation
        self._check()

    def _sampler(self, seed: int) -> BaseSampler:
        return NSGAIISampler(
            population_size=self._population,
            crossover_prob=self._crossover,
            mutation_prob=self._mutation,
            seed=seed,
        )


@final
class Tpe(OptunaSampling):
    """Proposes what is likelier among the better half: a tree-structured Parzen estimator."""

    def __init__(
        self, context: MethodContext, *, candidates: int = 24, startup: int | None = None
    ) -> None:
        """Open a study.

        Args:
            context: Space, evaluator, objectives, limits and seed.
            candidates: Budget, duplicates included.
            startup: Random candidates at first; a quarter of the budget, 4 to 10, if None.
        """
        super().__init__(context, candidates)
        self._startup = min(10, max(4, candidates // 4)) if startup is None else startup
        self._check()

    def _sampler(self, seed: int) -> BaseSampler:
        return TPESampler(n_startup_trials=self._startup, multivariate=True, seed=seed)


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what this thread makes Optuna's storage log; nobody else's records are touched."""
    logger = logging.getLogger(InMemoryStorage.__module__)
    thread = threading.get_ident()

    def others(record: logging.LogRecord) -> bool:
        return record.thread != thread

    logger.addFilter(others)
    try:
        yield
    finally:
        logger.removeFilter(others)
