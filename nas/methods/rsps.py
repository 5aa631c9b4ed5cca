"""RSPS: random search with parameter sharing.

Source:
    Li and Talwalkar (2019), "Random Search and Reproducibility for Neural Architecture
    Search", arXiv:1902.07638; the form on NAS-Bench-201 is Dong and Yang's (2020),
    arXiv:2001.00326.

Every batch trains one path, drawn uniformly an edge at a time. Afterwards random distinct
architectures are scored with the shared weights, and the best is kept. There are no
architecture parameters.

Differs from the official code, on purpose:

- Candidates are scored by successive halving on the validation set, which took no part in
  training; the original gives each a single batch. Batch norms use the statistics of the
  scored batch, since running ones mix all paths.
- Only operations that a derived architecture may have are drawn: on the DARTS space never
  ``none``, which the original draws like the others.
- A path trains all edges of a cell, as splitting at any of them needs; on the DARTS space the
  original draws two edges into every node, as many as a derived cell keeps.
- A space of fewer networks than candidates is scored whole; the original waits forever for
  more distinct ones.
- On NAS-Bench-201 a path may be cut off by its ``none`` edges (2 % of all are); the code of
  arXiv:2203.15207 draws again until one is connected.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nas.cuda_graphs import Step
from nas.masks import distinct
from nas.methods.bilevel import BilevelSearch
from nas.methods.bilevel_settings import BilevelSettings
from nas.methods.halving import Contender, Halving, num_steps
from nas.methods.held_out import HeldOut
from nas.plugins import MethodContext
from nas.protocols import StepReport
from nas.supernet import ArchParameters
from zoo.errors import ConflictError, InvalidInputError
from zoo.rng import derive_seed
from zoo.spec import Architecture


class UniformPaths(ArchParameters):
    """Mixtures of one operation an edge, drawn uniformly among the allowed ones.

    What is allowed must be said (``restrict``) before the first draw. The alphas of the base
    class take no part.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._drawn = {kind: [0] * sum(self.inputs) for kind in self.kinds}

    def draw(self, rng: random.Random) -> None:
        """Draw the path of the next mixtures."""
        for kind in self.kinds:
            self._drawn[kind] = [rng.choice(row) for row in self._active[kind]]

    def weights(self, kind: str) -> Tensor:
        found = torch.tensor(self._drawn[kind], device=next(self.parameters()).device)
        return torch.nn.functional.one_hot(found, self.num_ops).float()

    def active(self, kind: str) -> tuple[tuple[int, ...], ...]:
        return tuple((op,) for op in self._drawn[kind])


class Rsps(BilevelSearch):
    """Random search with shared weights: trains random paths, then picks among random cells.

    Args:
        context: A ``DartsSpace``, ``NasBench201Space`` or ``MBConvSpace``, data, device, seed.
        epochs: Passes over the first part of the training set.
        batch_size: Images of a step.
        candidates: Distinct random architectures to choose from.
        lr: Learning rate of the weights in the first epoch; falls along a cosine.
        lr_min: Where the cosine ends.
        momentum: Of the weights' SGD.
        nesterov: Whether it is Nesterov's.
        weight_decay: Of the weights.
        clip_norm: Largest norm of the weights' gradient.
        weight_share: Share of the training set that trains the weights.
        augment: Whether to crop and mirror.
        report_every: Steps between two reports with metrics; 0 is the default of the device.

    Raises:
        InvalidInputError: The space is another one, the data too few, or a number is
            out of range.
    """

    name = "RSPS"
    arch: UniformPaths
    _arch = UniformPaths

    def __init__(
        self,
        context: MethodContext,
        *,
        epochs: int = 100,
        batch_size: int = 64,
        candidates: int = 200,
        lr: float = 0.025,
        lr_min: float = 0.001,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 1e-4,
        clip_norm: float = 5.0,
        weight_share: float = 0.5,
        augment: bool = True,
        report_every: int = 0,
    ) -> None:
        if isinstance(candidates, bool) or not isinstance(candidates, int) or candidates < 1:
            raise InvalidInputError(f"candidates is {candidates!r}; it must be an integer >= 1")
        settings = BilevelSettings(
            epochs=epochs,
            warmup_epochs=epochs,
            batch_size=batch_size,
            k=1,
            order=1,
            lr=lr,
            lr_min=lr_min,
            lr_warmup_epochs=0,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            arch_lr=1.0,
            arch_weight_decay=0.0,
            arch_clip_norm=None,
            weight_share=weight_share,
            arch_share=1 - weight_share,
            augment=augment,
            fused=False,
            precision="float32",
            report_every=report_every,
            edge_normalisation=False,
        )
        super().__init__(context, settings)
        self._candidates = candidates
        self._held_out = HeldOut(self._data)
        self._contest: Halving | None = None
        self._selected = 0

    def _build(self) -> None:
        super()._build()
        if self._mask is None:
            self.arch.restrict(self.options())

    def _capture(self) -> None:
        # Every step runs other operations, which one graph cannot.
        self._update_weights: Step = self.updates.weights

    def _update(self, epoch: int, index: int, *, warm: bool) -> dict[str, Tensor]:
        return super()._update(epoch, index, warm=True)

    def _draw(self, epoch: int, index: int, *, part: int) -> None:
        self.arch.draw(random.Random(derive_seed(self._seed, "rsps", epoch, index, part)))

    @property
    def total(self) -> int:
        """Number of steps of training and selection."""
        return self._trained + num_steps(self._candidates, self._held_out.batches)

    @property
    def _trained(self) -> int:
        return self.settings.epochs * self.steps_per_epoch

    def step(self) -> StepReport:
        """Train one path on one batch; after the last batch score some candidates."""
        if self._step < self._trained:
            return super().step()
        if self._step + self._selected >= self.total:
            raise ConflictError(f"the search is over: all {self.total} steps are done")
        if self._contest is None:
            self._contest = self._fresh_contest()
        contest = self._contest
        if not contest.done:
            contest.step(lambda contender, batch: self._held_out.score(self, contender, batch))
        self._selected += 1
        leader = contest.ranking()[0]
        return StepReport(
            step=self._step + self._selected,
            total=self.total,
            message=f"choosing among {len(contest.contenders)} cells",
            metrics={"held_out_accuracy": leader.accuracy},
        )

    def best(self, k: int) -> list[Architecture]:
        """Return the best candidates so far; before the selection, candidates unranked."""
        contest = self._fresh_contest() if self._contest is None else self._contest
        found = contest.ranking()[: max(k, 0)]
        return [self.cells.architecture(contender.choices) for contender in found]

    def propose(self, count: int, rng: random.Random) -> list[Architecture]:
        """Return random distinct architectures of the present mask, all of them if fewer."""
        mask = self.options() if self._mask is None else self._mask
        found = distinct(self.cells.parts(mask), count, rng)
        return [self.cells.architecture(choices) for choices in found]

    def restart(self) -> None:
        self._contest, self._selected = None, 0
        super().restart()

    def state_dict(self) -> dict[str, Any]:
        contest = None if self._contest is None else self._contest.state_dict()
        return super().state_dict() | {"selected": self._selected, "contest": contest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._selected = int(state["selected"])
        kept = state["contest"]
        self._contest = None if kept is None else Halving.from_state(kept)

    def _fresh_contest(self) -> Halving:
        rng = random.Random(derive_seed(self._seed, "rsps", "candidates"))
        found = self.propose(self._candidates, rng)
        contenders = [Contender(net=0, choices=item.choices) for item in found]
        return Halving(contenders, self._held_out.batches)
