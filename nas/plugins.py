"""Search spaces, methods and evaluators by name, from entry points.

A user's own one is a class in a package whose metadata registers it:

    [project.entry-points."blockyard.spaces"]
    my-space = "my_package.my_space:MySpace"

The groups are ``blockyard.spaces`` (constructed ``Cls(**params)``), ``blockyard.methods``
(``Cls(context, **params)`` with a ``MethodContext``) and ``blockyard.evaluators``
(``Cls(context, **params)`` with a ``nas.evaluation.EvaluatorContext``). What a user gives for a
parameter is held to its annotated type before the class is called.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from numbers import Integral, Real
from typing import Any

import torch

from nas.data import DataSet, data_catalogue
from nas.evaluation import EvaluatorContext
from nas.pareto import Direction
from nas.protocols import Evaluator, Limit, SearchMethod, SearchSpace
from zoo.canonical import Json, plain
from zoo.errors import BlockyardError, ConflictError, InvalidInputError, UnknownNameError
from zoo.spec import METRICS, Architecture

SPACES = "blockyard.spaces"
METHODS = "blockyard.methods"
EVALUATORS = "blockyard.evaluators"

Fresh = Callable[[Callable[[], Architecture]], Architecture]
"""Draws proposals until it takes one, and returns that."""

_LIST = ((Iterable,), "a list")
_MAPPING = ((Mapping,), "a mapping")
_TYPES: Mapping[str, tuple[tuple[type, ...], str]] = {
    "bool": ((bool,), "true or false"),
    "int": ((Integral,), "an integer"),
    "float": ((Real,), "a number"),
    "str": ((str,), "a text"),
    "None": ((type(None),), "none"),
    "list": _LIST,
    "tuple": _LIST,
    "Sequence": _LIST,
    "dict": _MAPPING,
    "Mapping": _MAPPING,
}
"""Annotation → what a value of it is, to Python and in words."""

_KINDS = {SPACES: "search space", METHODS: "search method", EVALUATORS: "evaluator"}


@dataclass(frozen=True, kw_only=True)
class MethodContext:
    """What a method is given beside its own parameters.

    ``directions`` defaults to those of ``zoo.spec.METRICS``. ``data`` is set for methods
    that train (``trains = True``), ``evaluator`` for those that sample. ``latencies`` are
    what a class's ``measure_latencies`` returned on the target device, for methods whose
    ``wants_latencies(params, limits)`` is true. (A limit on ``latency_ms`` is checked against
    measured networks where the class's ``caps_latency(params)`` is true.) ``fresh`` is given
    each proposal's source and returns the last architecture that it took from there: it may
    refuse those before (see ``nas.dedup.Deduping.fresh``).
    """

    space: SearchSpace
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    data: DataSet | None = None
    evaluator: Evaluator | None = None
    objectives: tuple[str, ...] = ("accuracy", "latency_ms")
    directions: tuple[Direction, ...] = ()
    limits: tuple[Limit, ...] = ()
    latencies: Mapping[str, float] | None = None
    fresh: Fresh | None = None

    def __post_init__(self) -> None:
        if not self.objectives:
            raise InvalidInputError(f"no objective is given; choose from: {', '.join(METRICS)}")
        if not self.directions:
            unknown = [name for name in self.objectives if name not in METRICS]
            if unknown:
                raise UnknownNameError("objective", unknown[0], METRICS)
            object.__setattr__(self, "directions", tuple(METRICS[n] for n in self.objectives))
        if len(self.directions) != len(self.objectives):
            raise InvalidInputError(
                f"{len(self.directions)} directions for {len(self.objectives)} objectives "
                f"{self.objectives}; give one for each"
            )


def make_space(name: str, params: Mapping[str, Any] | None = None) -> SearchSpace:
    """Build the search space registered as ``name``.

    Raises:
        UnknownNameError: No space has the name.
        InvalidInputError: A parameter is unknown or refused, or the plug-in is broken.
    """
    return _construct(SPACES, name, params or {})


def space_of(architecture: Architecture) -> SearchSpace:
    """Build the space that ``architecture`` was drawn from.

    Raises:
        UnknownNameError: Its plug-in is not installed here.
        InvalidInputError: The architecture does not belong to the space that it names.
    """
    described = architecture.space
    name, params = described.get("name"), described.get("params", {})
    if not isinstance(name, str) or not isinstance(params, Mapping):
        raise InvalidInputError(f"{described!r} does not describe a search space")
    space = make_space(name, params)
    space.check(architecture)
    return space


def make_method(
    name: str, params: Mapping[str, Any] | None, context: MethodContext
) -> SearchMethod:
    """Build the search method registered as ``name`` on ``context``.

    Raises:
        UnknownNameError: No method has the name.
        InvalidInputError: A parameter is unknown or refused, or the context lacks what
            the method needs.
    """
    cls = method_class(name)
    if getattr(cls, "trains", False) and context.data is None:
        raise InvalidInputError(f"search method {name!r} trains a supernet and needs data")
    if not getattr(cls, "trains", False) and context.evaluator is None:
        raise InvalidInputError(f"search method {name!r} samples and needs an evaluator")
    return _construct(METHODS, name, params or {}, context)


def method_class(name: str) -> type:
    """Return the class registered as ``name``; its ``trains`` says where it must run.

    Raises:
        UnknownNameError: No method has the name.
        InvalidInputError: The plug-in is broken.
    """
    return _load(METHODS, name)


def check_method(name: str, params: Mapping[str, Any]) -> None:
    """Check names and types of a method's parameters; its values are checked by ``make_method``.

    Raises:
        UnknownNameError: No method has the name, or the method no such parameter.
        InvalidInputError: A parameter is missing or of another type, or the plug-in is broken.
    """
    _check(METHODS, name, method_class(name), params)


def make_evaluator(
    name: str, params: Mapping[str, Any] | None, context: EvaluatorContext
) -> Evaluator:
    """Build the evaluator registered as ``name`` on ``context``.

    Raises:
        UnknownNameError: No evaluator has the name.
        InvalidInputError: A parameter is unknown or refused, or the plug-in is broken.
    """
    return _construct(EVALUATORS, name, params or {}, context)


def catalogue() -> dict[str, Json]:
    """Describe all that is registered, for ``WorkerInfo.catalogue``.

    An entry has ``name``, ``summary``, ``params`` (name → default) and ``types`` (name →
    annotation: a default of 3 does not say whether 2.5 may be given, nor null whether a list).
    A plug-in that cannot be loaded is listed with ``error`` and takes nothing down.
    """
    return {
        "spaces": [_describe(SPACES, name) for name in _entries(SPACES)],
        "methods": [_describe(METHODS, name) for name in _entries(METHODS)],
        "evaluators": [_describe(EVALUATORS, name) for name in _entries(EVALUATORS)],
        "data": list(data_catalogue()),
    }


@cache
def _entries(group: str) -> dict[str, tuple[EntryPoint, ...]]:
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for entry in entry_points(group=group):
        known = found.get(entry.name, ())
        if entry.value not in (other.value for other in known):
            found[entry.name] = (*known, entry)
    return dict(sorted(found.items()))


def _load(group: str, name: str) -> type:
    entries = _entries(group).get(name)
    if entries is None:
        raise UnknownNameError(_KINDS[group], name, _entries(group))
    if len(entries) > 1:
        values = " and ".join(entry.value for entry in entries)
        raise ConflictError(
            f"{_KINDS[group]} {name!r} is registered by {values}; uninstall all but one"
        )
    try:
        loaded = entries[0].load()
    except Exception as error:
        raise InvalidInputError(
            f"{_KINDS[group]} {name!r} ({entries[0].value}) cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(loaded, type):
        raise InvalidInputError(
            f"{_KINDS[group]} {name!r} ({entries[0].value}) is not a class but {loaded!r}"
        )
    return loaded


def _construct(group: str, name: str, params: Mapping[str, Any], *context: object) -> Any:
    cls = _load(group, name)
    _check(group, name, cls, params)
    make: Callable[..., Any] = cls
    try:
        return make(*context, **params)
    except BlockyardError:
        raise
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"{_KINDS[group]} {name!r} refused {dict(params)!r}: {error}"
        ) from error


def _check(group: str, name: str, cls: type, params: Mapping[str, Any]) -> None:
    """Refuse parameters that ``cls`` does not have, lacks, or that are of another type."""
    legal = _parameters(group, cls)
    for param in params:
        if param not in legal:
            raise UnknownNameError(f"parameter of {_KINDS[group]} {name!r}", param, legal)
    missing = [key for key, default in legal.items() if default is ... and key not in params]
    if missing:
        raise InvalidInputError(f"{_KINDS[group]} {name!r} needs the parameter {missing[0]!r}")
    for param, value in params.items():
        wanted = _misfit(cls, param, value)
        if wanted is not None:
            raise InvalidInputError(
                f"{_KINDS[group]} {name!r}: {param} is {value!r:.100}; it must be {wanted}"
            )


def _parameters(group: str, cls: type) -> dict[str, Any]:
    """Return name → default (``...`` if there is none) of what a user may set."""
    skip = 0 if group == SPACES else 1
    parameters = list(inspect.signature(cls).parameters.values())[skip:]
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = {
        item.name: ... if item.default is inspect.Parameter.empty else item.default
        for item in parameters
        if item.kind not in variadic
    }
    fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    made = {
        item.name: item.default_factory()
        for item in fields
        if item.name in found and item.default_factory is not dataclasses.MISSING
    }
    return found | made


def _annotation(cls: type, param: str) -> str:
    """Return the annotated type of a parameter as it is written, empty if there is none."""
    annotation = inspect.signature(cls).parameters[param].annotation
    if annotation is inspect.Parameter.empty:
        return ""
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _misfit(cls: type, param: str, value: object) -> str | None:
    """Say what a value must be that is not of its parameter's annotated type; None if it is.

    Looks only as deep as a user can mistake text for a number or a switch: at numbers, texts,
    lists and mappings as such, not at what they hold. Text passes for a list: it may be the
    name of one. Other annotations pass.
    """
    parts = _annotation(cls, param).split(" | ")
    kinds = [_TYPES.get(part.partition("[")[0].strip()) for part in parts]
    found = [kind for kind in kinds if kind is not None]
    if len(found) < len(kinds) or any(_is(value, types) for types, _ in found):
        return None
    return " or ".join(words for _, words in found)


def _is(value: object, types: tuple[type, ...]) -> bool:
    return isinstance(value, types) and (bool in types or not isinstance(value, bool))


def _describe(group: str, name: str) -> Json:
    try:
        cls = _load(group, name)
        params = _parameters(group, cls)
    except (BlockyardError, ValueError, TypeError) as error:
        return {"name": name, "summary": "cannot be loaded", "params": {}, "error": str(error)}
    summary = (inspect.getdoc(cls) or "").partition("\n")[0]
    return {
        "name": name,
        "summary": summary,
        "params": {key: _default(value) for key, value in params.items()},
        "types": {key: _annotation(cls, key) for key in params},
    }


def _default(value: Any) -> Json:
    if value is ...:
        return None
    try:
        return plain(value)
    except InvalidInputError:
        return str(value)
