"""Requests as people write them: options, spec files, and the command line that says the same."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from zoo.canonical import Json, plain
from zoo.errors import InvalidInputError, MissingDataError

NUMBERS = (
    "device",
    "batch",
    "runtime",
    "winners",
    "seed",
    "max_candidate_s",
    "max_memory_bytes",
    "max_duplicates",
    "forget",
    "max_proposal_attempts",
    "tabu",
    "evaluation_seed",
)
"""Fields of a search that the command line takes as options of the same name."""

RECIPES = ("recipe", "final_recipe")
"""Fields of requests that may name a preset."""

LIMIT = re.compile(r"\s*([a-z_]+)\s*(<=|>=)\s*([0-9.eE+-]+)\s*")


def value(text: str) -> Json:
    """Read a setting: JSON where it is JSON, otherwise the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def settings(pairs: Iterable[str]) -> dict[str, Json]:
    """Read ``key=value`` pairs.

    Raises:
        InvalidInputError: A pair has no ``=`` or no key.
    """
    result: dict[str, Json] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise InvalidInputError(f"{pair!r} is no setting; write it as name=value")
        result[key.strip()] = value(text.strip())
    return result


def limit(text: str) -> dict[str, Json]:
    """Read one limit such as ``latency_ms<=3`` or ``accuracy>=0.9``.

    Raises:
        InvalidInputError: It reads otherwise.
    """
    match = LIMIT.fullmatch(text)
    try:
        bound = float(match[3]) if match else None
    except ValueError:
        bound = None
    if match is None or bound is None:
        raise InvalidInputError(
            f"{text!r} is no limit; write it as metric<=number or metric>=number, "
            "for example 'latency_ms<=3'"
        )
    return {"metric": match[1], "max" if match[2] == "<=" else "min": bound}


def limits(texts: Iterable[str]) -> list[dict[str, Json]]:
    """Read limits; an upper and a lower bound on one metric are one limit.

    Raises:
        InvalidInputError: One of them reads otherwise, or a bound is given twice.
    """
    merged: dict[str, dict[str, Json]] = {}
    for text in texts:
        item = limit(text)
        known = merged.setdefault(str(item["metric"]), {"metric": item["metric"]})
        if twice := (item.keys() & known.keys()) - {"metric"}:
            raise InvalidInputError(f"{text!r} gives {item['metric']} a second {twice.pop()}")
        known |= item
    return list(merged.values())


def limit_texts(item: Mapping[str, Any]) -> list[str]:
    """Write a limit the way ``limit`` reads it; one with two bounds gives two texts."""
    signs = (("max", "<="), ("min", ">="))
    return [
        f"{item['metric']}{sign}{json.dumps(plain(item[name]))}"
        for name, sign in signs
        if item.get(name) is not None
    ]


def changed(spec: Mapping[str, Any], pairs: Iterable[str]) -> dict[str, Any]:
    """Return the top-level fields of ``spec`` that ``dotted.name=value`` pairs change.

    A recipe's preset replaces all of its fields but those that another pair gives.

    Raises:
        InvalidInputError: A name leads through something that has no fields.
    """
    given = settings(pairs)
    # A stored recipe is complete, so that beside its fields a preset would have no say.
    result: dict[str, Any] = {
        name: {"preset": given.pop(f"{name}.preset")}
        for name in RECIPES
        if f"{name}.preset" in given
    }
    for name, new in given.items():
        first, *rest = name.split(".")
        if not rest:
            result[first] = new
            continue
        root = json.loads(json.dumps(result.get(first, spec.get(first, {}))))
        inner = root
        for part in rest[:-1]:
            inner = inner.setdefault(part, {}) if isinstance(inner, dict) else None
        if not isinstance(inner, dict):
            raise InvalidInputError(f"{name!r} names no field of the request")
        inner[rest[-1]] = new
        result[first] = root
    return result


def recipe(before: object, given: Mapping[str, Json], *, epochs: int) -> dict[str, Json]:
    """Return a recipe with some fields changed; a preset that is given replaces all others.

    Args:
        before: The recipe so far; None if there is none.
        given: What changes.
        epochs: Of a recipe that neither states them nor names a preset.

    Raises:
        InvalidInputError: ``before`` is no mapping.
    """
    if before is not None and not isinstance(before, Mapping):
        raise InvalidInputError(
            f"recipe is {before!r:.100}; give a mapping, such as {{preset: NAME}}"
        )
    merged = {**({} if "preset" in given else before or {}), **given}
    return merged if "preset" in merged else {"epochs": epochs, **merged}


def read_spec(path: Path) -> dict[str, Any]:
    """Read a request from a JSON or YAML file.

    Raises:
        MissingDataError: There is no such file.
        InvalidInputError: It holds neither, or no object.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise MissingDataError(f"cannot read {path}: {error.strerror}; name a file") from error
    if path.suffix.lower() in (".yaml", ".yml"):
        import yaml

        try:
            content = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InvalidInputError(f"{path} is no YAML: {error}") from error
    else:
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise InvalidInputError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise InvalidInputError(f"{path} holds {type(content).__name__}, not a request's fields")
    return content


def latency_source(table: str | None, predict: bool) -> dict[str, Json] | None:
    """Return the latency source of a search: a table's file, or the job that built one.

    Raises:
        InvalidInputError: A model is wanted without a table, or the file holds no object.
        MissingDataError: There is no such file, and it is no job's id.
    """
    if table is None:
        if predict:
            raise InvalidInputError("a model needs a table to be fitted to; give --latency-table")
        return None
    kind = "predictor" if predict else "table"
    if table.startswith("job_"):
        return {"kind": kind, "job": table}
    return {"kind": kind, "table": read_spec(Path(table))}


def search_command(spec: Mapping[str, Any]) -> str:
    """Return the ``blockyard search run`` that submits ``spec``, defaults left out."""
    from zoo.schemas import Choice, SearchRequest

    # The defaults come from the schema itself, so that the line cannot fall behind it.
    plain = SearchRequest(method=Choice(name="-"), space=Choice(name="-"), data="-").model_dump(
        mode="json"
    )
    words = ["blockyard", "search", "run"]
    for kind in ("method", "space"):
        words += [f"--{kind}", spec[kind]["name"]]
        short = "-p" if kind == "method" else "-s"
        for name, chosen in (spec[kind].get("params") or {}).items():
            words += [short, f"{name}={_text(chosen)}"]
    words += ["--data", spec["data"]]
    if tuple(spec.get("objectives", plain["objectives"])) != tuple(plain["objectives"]):
        words += [word for name in spec["objectives"] for word in ("--objective", name)]
    for item in spec.get("limits", ()):
        words += [word for text in limit_texts(item) for word in ("--limit", text)]
    for recipe, prefix in (("recipe", "-r"), ("final_recipe", "-f")):
        for name, chosen in (spec.get(recipe) or {}).items():
            if chosen != plain[recipe][name]:
                words += [prefix, f"{name}={_text(chosen)}"]
    for name in NUMBERS:
        if spec.get(name, plain[name]) != plain[name]:
            words += [f"--{name.replace('_', '-')}", str(spec[name])]
    latency = spec.get("latency") or {}
    if latency.get("kind", "measured") != "measured":
        words += ["--latency-table", latency.get("job") or "TABLE.json"]
        words += ["--predict-latency"] if latency["kind"] == "predictor" else []
    words += ["--baseline"] if spec.get("baseline") else []
    words += ["--no-reuse"] if spec.get("reuse") is False else []
    return shlex.join(words)


def _text(chosen: object) -> str:
    """Write a setting so that ``value`` reads it back."""
    if isinstance(chosen, str) and value(chosen) == chosen:
        return chosen
    return json.dumps(chosen)
