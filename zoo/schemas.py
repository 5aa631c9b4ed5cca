"""What crosses a process border as JSON: requests for jobs, checked once, at the edge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from zoo import networks, recipes
from zoo.canonical import plain
from zoo.errors import InvalidInputError
from zoo.jobs import JobKind
from zoo.names import check_alias
from zoo.recipes import SCHEDULES
from zoo.spec import METRICS as METRICS


class Schema(BaseModel):
    """A frozen message in which an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Choice(Schema):
    """A registered plug-in by name, with its parameters."""

    name: str
    params: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Choice:
        try:
            plain(self.params)
        except InvalidInputError as error:
            raise ValueError(f"a setting of {self.name!r} is no JSON: {error}") from error
        return self


class Limit(Schema):
    """A bound on one metric; a candidate outside it is infeasible."""

    metric: str
    max: float | None = None
    min: float | None = None

    @model_validator(mode="after")
    def _check(self) -> Limit:
        if self.metric not in METRICS:
            raise ValueError(f"unknown metric {self.metric!r}; choose one of: {', '.join(METRICS)}")
        if self.max is None and self.min is None:
            raise ValueError(f"the limit on {self.metric} has neither max nor min; give one")
        return self

    def holds(self, value: float) -> bool:
        """Say whether ``value`` lies within the bound."""
        return (self.max is None or value <= self.max) and (self.min is None or value >= self.min)


def _expanded(fields: Any, expand: Callable[[Mapping[str, object]], dict[str, object]]) -> Any:
    """Replace names in a message's fields by what they stand for; what is no message stays."""
    if not isinstance(fields, dict):
        return fields
    try:
        return expand(fields)
    except InvalidInputError as error:
        raise ValueError(str(error)) from error


class Recipe(Schema):
    """A fixed training budget; every field changes the evaluation's identity.

    ``preset`` names a published recipe (``zoo.recipes``) whose fields the others overrule.
    """

    epochs: int = Field(ge=1)
    batch_size: int = Field(default=64, ge=2)
    lr: float = Field(default=0.05, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=3e-4, ge=0)
    clip_norm: float | None = Field(default=5.0, gt=0, description="null: gradients as they are")
    augment: bool = True
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    schedule: str = Field(default="cosine", description="of the learning rate; nas.learning_rates")
    warmup_epochs: int | None = Field(default=None, ge=0, description="null: the schedule's own")
    lr_min: float = Field(default=0.0, ge=0, description="where the schedule ends")
    power: float = Field(default=2.0, ge=1, description="of the schedule cosine-power")
    gamma: float = Field(default=0.97, gt=0, le=1, description="of the schedule exponential")
    nesterov: bool = True
    no_decay: tuple[Literal["norms", "biases"], ...] = Field(
        default=(), description="parameters that weight decay leaves alone"
    )
    crop: Literal["padded", "resized"] = "padded"
    color_jitter: tuple[float, ...] = Field(
        default=(), description="of brightness, contrast, saturation, hue; empty: none"
    )
    auto_augment: bool = Field(default=False, description="AutoAugment's policy for CIFAR-10")
    cutout: int = Field(default=0, ge=0, description="side of the square cut out; 0: none")
    drop_path: float = Field(default=0.0, ge=0, lt=1, description="rate at the end of training")
    drop_path_schedule: Literal["linear", "scheduled"] = "linear"
    dropout: float = Field(default=0.0, ge=0, lt=1, description="before the classifier")
    auxiliary: float = Field(default=0.0, ge=0, description="weight of an auxiliary head's loss")
    ema: float = Field(default=0.0, ge=0, lt=1, description="decay of averaged weights; 0: none")
    precision: Literal["float32", "bfloat16", "auto"] = "float32"

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, fields: Any) -> Any:
        return _expanded(fields, recipes.expand)

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule {self.schedule!r}; choose one of: {', '.join(SCHEDULES)}")
        jitter = self.color_jitter
        if jitter and (len(jitter) != 4 or min(jitter) < 0 or jitter[3] > 0.5):
            raise ValueError(
                f"color_jitter {list(jitter)}; give four strengths of at least 0, of brightness, "
                "contrast, saturation and hue (at most 0.5), e.g. [0.4, 0.4, 0.4, 0.2]"
            )
        if self.lr_min > self.lr:
            raise ValueError(f"lr_min {self.lr_min} is above lr {self.lr}; lower it")
        if self.warmup_epochs is not None and self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs} are more than the {self.epochs} epochs; "
                "train longer or warm up less"
            )
        if self.schedule == "cosine-power" and (self.warmup_epochs or 0) >= self.epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs} must be below the {self.epochs} epochs with "
                "schedule cosine-power"
            )
        return self


class LatencyChoice(Schema):
    """Where candidates' latency comes from; finalists are measured whatever it says.

    ``table`` prices every candidate by the sum of its operations in a latency table,
    ``predictor`` also those that the table lacks, by a model fitted to it. The table is
    given as its file's content, or by the job that built it.
    """

    kind: Literal["measured", "table", "predictor"] = "measured"
    table: dict[str, Any] | None = None
    job: str | None = None

    @model_validator(mode="after")
    def _check(self) -> LatencyChoice:
        given = [name for name in ("table", "job") if getattr(self, name) is not None]
        if self.kind == "measured" and given:
            raise ValueError(f"latency is measured, but a {given[0]} is given; drop one of them")
        if self.kind != "measured" and len(given) != 1:
            raise ValueError(f"latency from a {self.kind} needs either a table or the job of one")
        return self


class SearchRequest(Schema):
    """A search: what to choose among, how, on which data, for which device."""

    method: Choice
    space: Choice
    data: str
    evaluator: Choice = Choice(name="training")
    objectives: tuple[str, ...] = ("accuracy", "latency_ms")
    limits: tuple[Limit, ...] = ()
    device: str = "auto"
    batch: int = Field(default=1, ge=1, description="batch size at which latency is measured")
    runtime: Literal["torch", "onnx"] = "torch"
    latency: LatencyChoice = LatencyChoice()
    recipe: Recipe = Recipe(epochs=3)
    final_recipe: Recipe = Recipe(epochs=12)
    winners: int = Field(default=1, ge=0, description="trained and stored; 0: only the front")
    baseline: bool = Field(default=False, description="equal-budget random search beside it")
    reuse: bool = Field(default=True, description="take evaluations of equal candidates")
    max_duplicates: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="evaluations of one function, each under a seed of its own, before their "
        "mean answers for it; 1, or 3 where the evaluator is noisy, if omitted",
    )
    forget: float = Field(
        default=0.0, ge=0, le=1, description="probability that such an answer is the last"
    )
    max_proposal_attempts: int = Field(
        default=1, ge=1, le=10_000, description="proposals among which a new function is sought"
    )
    tabu: int | None = Field(
        default=None, ge=0, description="how many of the latest functions are not new; all if null"
    )
    seed: int = 0
    evaluation_seed: int | None = Field(
        default=None,
        description="seed of the candidates' trainings; that of the job if omitted. Searches of "
        "several seeds share evaluations only if they agree in it",
    )
    max_candidate_s: float = Field(default=600.0, gt=0)
    max_memory_bytes: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _check(self) -> SearchRequest:
        unknown = [name for name in self.objectives if name not in METRICS]
        if unknown or not self.objectives:
            raise ValueError(f"objectives {unknown or 'are empty'}; choose from {list(METRICS)}")
        if not self.reuse and (self.deduping or self.max_proposal_attempts > 1):
            raise ValueError(
                "max_duplicates, forget, tabu and max_proposal_attempts say how evaluations are "
                "reused; leave them out, or reuse=false"
            )
        return self

    @property
    def deduping(self) -> bool:
        """Whether it is said how often a function is evaluated."""
        return self.max_duplicates is not None or self.forget > 0 or self.tabu is not None


class TrainRequest(Schema):
    """Train one network to the end and store it: a chain of the zoo, or an architecture.

    The network is one of: ``chain`` (its id or alias; trained on from its weights unless
    ``from_scratch``), ``architecture`` (itself, or the id of one that another job of the
    owner has met), or ``space`` with a ``genotype`` or ``choices`` in it; or ``network``, the
    name of a published one (``zoo.networks``), which stands for its space and genotype.
    """

    chain: str | None = None
    from_scratch: bool = Field(default=False, description="fresh weights instead of the chain's")
    architecture: dict[str, Any] | str | None = None
    space: Choice | None = None
    genotype: str | None = Field(default=None, description="as the space writes it")
    choices: tuple[int, ...] | None = None
    data: str
    recipe: Recipe = Recipe(epochs=12)
    seed: int = 0
    device: str = Field(default="auto", description="where latency is measured")
    batch: int = Field(default=1, ge=1, description="batch size at which latency is measured")
    runtime: Literal["torch", "onnx"] = "torch"
    alias: str | None = Field(default=None, description="name to give the chain")
    max_train_s: float = Field(default=86_400.0, gt=0)
    max_memory_bytes: int | None = Field(default=None, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, fields: Any) -> Any:
        return _expanded(fields, networks.expand)

    @model_validator(mode="after")
    def _check(self) -> TrainRequest:
        named = [name for name in ("chain", "architecture", "space") if getattr(self, name)]
        if len(named) != 1:
            raise ValueError(
                f"the network is named by {' and '.join(named) or 'nothing'}; "
                "name one of chain, architecture, or space with genotype or choices"
            )
        inside = [it for it in ("genotype", "choices") if getattr(self, it) is not None]
        if len(inside) != (self.space is not None):
            raise ValueError(
                f"genotype and choices belong to a space, one of them to each; got {named[0]} "
                f"with {' and '.join(inside) or 'neither'}"
            )
        if self.from_scratch and self.chain is None:
            raise ValueError("from_scratch is for a chain; an architecture has no weights yet")
        if self.alias is not None:
            _check_alias(self.alias)
        return self


class PreviewRequest(Schema):
    """A question before a search: the space's size and its smallest, median, largest cost."""

    search: SearchRequest
    samples: int = Field(default=64, ge=4, le=4096)


class ProfileRequest(Schema):
    """Measure blocks or chains on a device, once per runtime and batch size."""

    subjects: tuple[str, ...]
    device: str = "auto"
    runtimes: tuple[Literal["torch", "onnx"], ...] = ("torch",)
    batches: tuple[int, ...] = (1, 8)


class MeasureRequest(Schema):
    """Measure one untrained architecture for a search that runs elsewhere."""

    architecture: dict[str, Any]
    data: str
    device: str
    runtime: Literal["torch", "onnx"] = "torch"
    batch: int = Field(default=1, ge=1)


class AssembleRequest(Schema):
    """Ask the zoo for its best chain under limits, measured whole on a device."""

    task: str | None = Field(default=None, description="data name, e.g. digits; any if omitted")
    limits: tuple[Limit, ...] = ()
    objective: str = "accuracy"
    device: str = "auto"
    runtime: Literal["torch", "onnx"] = "torch"
    batch: int = Field(default=1, ge=1)
    name: str | None = Field(default=None, description="alias to give the chosen chain")

    @model_validator(mode="after")
    def _check(self) -> AssembleRequest:
        if self.objective not in METRICS:
            raise ValueError(f"objective {self.objective!r}; choose one of: {', '.join(METRICS)}")
        if self.name is not None:
            _check_alias(self.name)
        return self


def _check_alias(alias: str) -> None:
    try:
        check_alias(alias)
    except InvalidInputError as error:
        raise ValueError(str(error)) from error


class CostTableRequest(Schema):
    """Measure every distinct operation of a space once on a device, and check the sums."""

    space: Choice
    data: str = Field(description="gives the input's shape and the number of classes")
    device: str = "auto"
    batch: int = Field(default=1, ge=1)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    samples: int = Field(default=64, ge=1, le=4096, description="architectures looked at")
    networks: int = Field(default=20, ge=0, le=256, description="measured whole, to check sums")
    repeats: int = Field(default=50, ge=5, le=10_000)
    seed: int = 0


class FrontsRequest(Schema):
    """Recompute the fronts of finished searches for a device, without training."""

    device: str
    jobs: tuple[str, ...] = Field(default=(), description="searches; all that succeeded if empty")
    repeats: int = Field(default=50, ge=5, le=10_000)


REQUESTS: dict[JobKind, type[Schema]] = {
    JobKind.SEARCH: SearchRequest,
    JobKind.TRAIN: TrainRequest,
    JobKind.PREVIEW: PreviewRequest,
    JobKind.PROFILE: ProfileRequest,
    JobKind.MEASURE: MeasureRequest,
    JobKind.ASSEMBLE: AssembleRequest,
    JobKind.COST_TABLE: CostTableRequest,
    JobKind.FRONTS: FrontsRequest,
}


def parse_request(kind: JobKind, spec: object) -> Schema:
    """Validate the request of a job of ``kind``.

    Raises:
        InvalidInputError: One line per wrong field: where, what value, what is wrong.
    """
    try:
        return REQUESTS[kind].model_validate(spec)
    except ValidationError as error:
        raise InvalidInputError(explain(error)) from error


def explain(error: ValidationError) -> str:
    """Say in one line each what is wrong with which field, and the value that it had."""
    lines = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in item["loc"]) or "request"
        lines.append(f"{where}: {item['msg']} (got {item['input']!r:.200})")
    return "; ".join(lines)
