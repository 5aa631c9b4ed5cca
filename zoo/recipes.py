"""Published training recipes by name: what ``Recipe(preset=…)`` and ``--recipe`` stand for.

Fields that a preset leaves out have the defaults of ``zoo.schemas.Recipe``. What a paper does
besides (AutoAugment for ImageNet, averaging of runs) is no part of a recipe here and is said in
``lacks``. On ImageNet papers train on images of all sizes and validate on a central crop; data
here are of one size, so ``crop=resized`` cuts from that and validation sees whole images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from zoo.canonical import Json
from zoo.errors import UnknownNameError

SCHEDULES = ("cosine", "cosine-epoch", "cosine-power", "exponential", "linear")
"""Names of learning-rate schedules; ``nas.learning_rates`` has the formulae."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One published recipe: the ``network`` that it is for, its ``source``, its ``fields``."""

    network: str
    source: str
    fields: Mapping[str, Json] = field(default_factory=dict)
    lacks: str = ""


_DARTS_CIFAR: Mapping[str, Json] = {
    "epochs": 600,
    "batch_size": 96,
    "lr": 0.025,
    "schedule": "cosine-epoch",
    "nesterov": False,
    "weight_decay": 3e-4,
    "clip_norm": 5.0,
    "cutout": 16,
    "drop_path": 0.2,
    "auxiliary": 0.4,
}

_DARTS_IMAGENET: Mapping[str, Json] = {
    "epochs": 250,
    "nesterov": False,
    "weight_decay": 3e-5,
    "clip_norm": 5.0,
    "label_smoothing": 0.1,
    "crop": "resized",
    "color_jitter": [0.4, 0.4, 0.4, 0.2],
    "auxiliary": 0.4,
}

PRESETS: Mapping[str, Preset] = {
    "darts-cifar": Preset(
        network="darts, cells=20, channels=36",
        source="Liu et al. 2019, arXiv:1806.09055",
        fields=_DARTS_CIFAR,
    ),
    "pc-darts-cifar": Preset(
        network="darts, cells=20, channels=36",
        source="Xu et al. 2020, arXiv:1907.05737",
        fields={**_DARTS_CIFAR, "drop_path": 0.3},
    ),
    "darts-imagenet": Preset(
        network="darts, cells=14, channels=48, stem=imagenet, stem_multiplier=1",
        source="Liu et al. 2019, arXiv:1806.09055",
        fields={
            **_DARTS_IMAGENET,
            "batch_size": 128,
            "lr": 0.1,
            "schedule": "exponential",
            "gamma": 0.97,
        },
    ),
    "pc-darts-imagenet": Preset(
        network="darts, cells=14, channels=48, stem=imagenet, stem_multiplier=1",
        source="Xu et al. 2020, arXiv:1907.05737",
        fields={
            **_DARTS_IMAGENET,
            "batch_size": 1024,
            "lr": 0.5,
            "schedule": "linear",
            "warmup_epochs": 5,
        },
    ),
    "proxyless-imagenet": Preset(
        network="mbconv",
        source="Cai et al. 2019, arXiv:1812.00332 (mobile; dropout 0.2 for cpu, 0.3 for gpu)",
        fields={
            "epochs": 300,
            "batch_size": 256,
            "lr": 0.05,
            "schedule": "cosine",
            "warmup_epochs": 0,
            "weight_decay": 4e-5,
            "no_decay": ["norms"],
            "clip_norm": None,
            "label_smoothing": 0.1,
            "crop": "resized",
            "color_jitter": [0.4, 0.4, 0.4, 0.1],
            "dropout": 0.1,
        },
    ),
    "sharpdarts-cifar": Preset(
        network="darts with SharpSepConv, cells=20, channels=36",
        source="Hundt et al. 2019, arXiv:1903.09900",
        fields={
            **_DARTS_CIFAR,
            "epochs": 2000,
            "batch_size": 64,
            "schedule": "cosine-power",
            "warmup_epochs": 5,
            "lr_min": 1e-8,
            "power": 2.0,
            "auto_augment": True,
        },
    ),
    "sharpdarts-imagenet": Preset(
        network="darts with SharpSepConv, cells=14, channels=48, stem=imagenet",
        source="Hundt et al. 2019, arXiv:1903.09900",
        fields={
            "epochs": 300,
            "batch_size": 256,
            "lr": 0.1,
            "schedule": "cosine-power",
            "warmup_epochs": 10,
            "lr_min": 1.6e-4,
            "power": 10.0,
            "nesterov": False,
            "weight_decay": 1e-4,
            "clip_norm": None,
            "crop": "resized",
            "precision": "auto",
        },
        lacks="AutoAugment's policy for ImageNet; float16 (here bfloat16)",
    ),
    "nasnet-cifar": Preset(
        network="nasnet, 18 normal cells, 32 filters",
        source="Zoph et al. 2018, arXiv:1707.07012",
        fields={
            "epochs": 600,
            "batch_size": 32,
            "lr": 0.025,
            "schedule": "cosine",
            "warmup_epochs": 0,
            "nesterov": False,
            "weight_decay": 5e-4,
            "clip_norm": 5.0,
            "cutout": 16,
            "drop_path": 0.4,
            "drop_path_schedule": "scheduled",
            "auxiliary": 0.4,
        },
    ),
}


def preset(name: str) -> Preset:
    """Return the preset of this name.

    Raises:
        UnknownNameError: There is none; the message lists all.
    """
    if name not in PRESETS:
        raise UnknownNameError("training recipe", name, PRESETS)
    return PRESETS[name]


def expand(fields: Mapping[str, object]) -> dict[str, object]:
    """Replace ``preset`` in the fields of a recipe by the fields that it stands for.

    Whatever is given beside it overrules it.

    Raises:
        UnknownNameError: There is no such preset.
    """
    given = dict(fields)
    name = given.pop("preset", None)
    return given if name is None else {**preset(str(name)).fields, **given}
