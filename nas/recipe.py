"""What a training is given: budget, optimiser, regularisation; and how that is identified.

One recipe serves short evaluations of candidates, the final training of winners and
``blockyard train``. Evaluations are kept by the recipe's description, which names a field
beyond the first eight only where it is not the default: a field that is added changes no key.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Protocol

from zoo.canonical import Json
from zoo.recipes import expand


class Recipe(Protocol):
    """A training budget and its settings; ``zoo.schemas.Recipe`` is one.

    Fields of ``FixedRecipe`` that a recipe lacks have their defaults.
    """

    @property
    def epochs(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def lr(self) -> float: ...

    @property
    def momentum(self) -> float: ...

    @property
    def weight_decay(self) -> float: ...

    @property
    def clip_norm(self) -> float | None: ...

    @property
    def augment(self) -> bool: ...

    @property
    def label_smoothing(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class FixedRecipe:
    """A recipe for use without the HTTP schemas, with their defaults.

    Args:
        epochs: Passes over the training split.
        batch_size: Images a step; an incomplete last batch is left out.
        lr: Peak of the learning rate.
        momentum: Of SGD.
        weight_decay: L2 penalty within the gradient.
        clip_norm: Largest norm of the whole gradient; None leaves it as it is.
        augment: Random crops (see ``crop``) and, where labels allow it, mirroring.
        label_smoothing: Share of the target spread evenly over all classes.
        schedule: Of the learning rate; see ``nas.learning_rates.rate_of``.
        warmup_epochs: Epochs of rising rates; None is the schedule's own choice.
        lr_min: Rate at which the schedule ends.
        power: Of the schedule ``cosine-power``; no other reads it.
        gamma: Of the schedule ``exponential``; no other reads it.
        nesterov: Nesterov's form of momentum.
        no_decay: Parameters without weight decay: ``norms`` (weights and biases of
            normalisations), ``biases`` (of everything else).
        crop: ``padded`` (``DataSet.augment``) or ``resized`` (``DataSet.augment_resized``).
        color_jitter: Strengths of changes of brightness, contrast, saturation and hue of every
            training image; none if empty.
        auto_augment: AutoAugment's policy for CIFAR-10, after crops and mirroring.
        cutout: Side in pixels of the square set to the data's mean in every training image;
            0 for none.
        drop_path: Rate at which paths are dropped at the end of training.
        drop_path_schedule: ``linear`` in epochs, the same for all layers (DARTS), or
            ``scheduled`` in steps and in the layer's depth (NASNet).
        dropout: Before the last linear layer, beside what the network has itself.
        auxiliary: Weight of the loss of an auxiliary head; 0 for none.
        ema: Decay of the moving average of weights that is scored and kept; 0 for none.
        precision: ``float32``, ``bfloat16`` (autocast), or ``auto``: the latter on a GPU.
    """

    epochs: int
    batch_size: int = 64
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 3e-4
    clip_norm: float | None = 5.0
    augment: bool = True
    label_smoothing: float = 0.0
    schedule: str = "cosine"
    warmup_epochs: int | None = None
    lr_min: float = 0.0
    power: float = 2.0
    gamma: float = 0.97
    nesterov: bool = True
    no_decay: tuple[str, ...] = ()
    crop: str = "padded"
    color_jitter: tuple[float, ...] = ()
    auto_augment: bool = False
    cutout: int = 0
    drop_path: float = 0.0
    drop_path_schedule: str = "linear"
    dropout: float = 0.0
    auxiliary: float = 0.0
    ema: float = 0.0
    precision: str = "float32"


ALWAYS_DESCRIBED = 8
"""Fields, from the first on, that a description names whatever their values."""


def fixed(recipe: Recipe) -> FixedRecipe:
    """Return ``recipe`` with every field that there is."""
    values: dict[str, Any] = {
        item.name: getattr(recipe, item.name)
        for item in fields(FixedRecipe)
        if hasattr(recipe, item.name)
    }
    return FixedRecipe(**values)


def preset(name: str, **changes: Any) -> FixedRecipe:
    """Return a published recipe by its name (``zoo.recipes.PRESETS``), with some fields changed.

    Raises:
        UnknownNameError: There is no such recipe.
    """
    values: dict[str, Any] = expand({"preset": name, **changes})
    lists = {name: tuple(values.get(name, ())) for name in ("no_decay", "color_jitter")}
    return FixedRecipe(**values | lists)


def describe_recipe(recipe: Recipe) -> dict[str, Json]:
    """Return every field of ``recipe`` that determines what training does."""
    whole, described = fixed(recipe), {}
    for position, item in enumerate(fields(FixedRecipe)):
        value = getattr(whole, item.name)
        if position < ALWAYS_DESCRIBED or value != item.default:
            described[item.name] = list(value) if isinstance(value, tuple) else value
    return described
