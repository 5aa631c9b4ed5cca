"""The published schedules of few-shot search by gradient matching, as data.

Epochs of all sub-supernets together: NAS-Bench-201 165 with DARTS and SNAS, 260 with RSPS;
DARTS space 134; ProxylessNAS on ImageNet 400, of which 40 warm up.

Source:
    Hu et al. (2022), arXiv:2203.15207; official code github.com/skhu101/GM-NAS.
    ``edge_rule`` is the published one, taken where the method is told so; its default is
    ``normalised`` everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nas.methods.few_shot.partition import EdgeRule, Sizes
from nas.methods.few_shot.plan import Schedule


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How one base method is split on one space.

    Attributes:
        schedule: Splits and epochs.
        sizes: Which sizes groups may have.
        edge_rule: The published rule by which edges compare.
        hard: Whether the operation that an edge is set to has weight 1, or its own.
        candidates: Architectures that each sub-supernet sends to the contest.
        base_params: Parameters of the base method.
    """

    schedule: Schedule
    sizes: Sizes
    edge_rule: EdgeRule
    hard: bool = True
    candidates: int = 1
    base_params: Mapping[str, Any] = field(default_factory=dict)


_CELL_201 = {"batch_size": 48, "weight_decay": 5e-4, "nesterov": True}

_NB201 = Schedule(
    checkpoints=(15, 30), groups=(2, 2), final_epochs=30, restart=True, fixed_schedule=False
)
_DARTS = Schedule(checkpoints=(2, 4, 6), groups=(2, 2, 2), final_epochs=15, restart=True)

PRESETS: Mapping[tuple[str, str], Preset] = {
    ("nas-bench-201", "darts"): Preset(
        schedule=_NB201, sizes="pair", edge_rule="max-inter", base_params=_CELL_201 | {"order": 2}
    ),
    ("nas-bench-201", "snas"): Preset(
        schedule=_NB201, sizes="pair", edge_rule="max-inter", base_params=_CELL_201
    ),
    ("nas-bench-201", "rsps"): Preset(
        schedule=Schedule(
            checkpoints=(20, 40), groups=(2, 2), final_epochs=50, restart=True, fixed_schedule=False
        ),
        sizes="pair",
        edge_rule="max-inter",
        candidates=200,
        base_params=_CELL_201 | {"weight_decay": 1e-4},
    ),
    ("darts", "darts"): Preset(
        schedule=_DARTS,
        sizes="half",
        edge_rule="min-intra",
        hard=False,
        base_params={"fused": False},
    ),
    ("darts", "snas"): Preset(
        schedule=_DARTS,
        sizes="half",
        edge_rule="min-intra",
        hard=False,
        base_params={"fused": False},
    ),
    ("darts", "pc-darts"): Preset(
        schedule=_DARTS,
        sizes="half",
        edge_rule="min-intra",
        hard=False,
        base_params={"fused": False, "warmup_epochs": 0},
    ),
    ("darts", "rsps"): Preset(
        schedule=_DARTS,
        sizes="half",
        edge_rule="min-intra",
        candidates=200,
        base_params={"weight_decay": 3e-4, "nesterov": False},
    ),
    # Of the published schedule for once-for-all networks: splits, groups and edge rule. There
    # every mask then goes through the whole of progressive shrinking; here it is as long as
    # the three stages before.
    ("mbconv", "rsps"): Preset(
        schedule=Schedule(
            checkpoints=(30, 60, 90), groups=(2, 2, 2), final_epochs=90, restart=True
        ),
        sizes="any",
        edge_rule="max-inter",
        candidates=200,
    ),
    ("mbconv", "proxyless"): Preset(
        schedule=Schedule(checkpoints=(80, 120), groups=(2, 3), final_epochs=40, restart=False),
        sizes="half",
        edge_rule="min-intra",
        base_params={"warmup_epochs": 40, "batch_size": 512, "held_out": 10_000 / 1_281_167},
    ),
}
"""(space, base method) → preset."""

OTHER = Preset(schedule=_NB201, sizes="half", edge_rule="max-inter")
"""For base methods and spaces that were not published."""


def preset(space: str, base: str) -> Preset:
    """Return the preset of a base method on a space."""
    return PRESETS.get((space, base), OTHER)
