"""``blockyard search run``: submit a search, or only ask what it would cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ui.following import follow, hint
from ui.formats import count, duration, label, metric, short
from ui.terminal import Group, Terminal, pass_terminal

if TYPE_CHECKING:
    from zoo.client import Zoo
    from zoo.jobs import Job


@click.group(cls=Group)
def search() -> None:
    """Searches."""


@search.command("run")
@click.option("--method", "-m", help="Search method; see: blockyard method list.")
@click.option("-p", "params", multiple=True, metavar="NAME=VALUE", help="Setting of the method.")
@click.option("--space", help="Search space; see: blockyard space list.")
@click.option(
    "-s", "space_params", multiple=True, metavar="NAME=VALUE", help="Setting of the space."
)
@click.option("--data", help="Data set; see: blockyard data list.")
@click.option("--evaluator", "-e", help="How candidates are scored: training, tabular, your own.")
@click.option(
    "-E", "evaluator_params", multiple=True, metavar="NAME=VALUE", help="Setting of the evaluator."
)
@click.option("--objective", "-o", "objectives", multiple=True, help="Metric to optimise; repeat.")
@click.option(
    "--limit", "-l", "limits", multiple=True, metavar="LIMIT", help="latency_ms<=3; repeat."
)
@click.option("--device", help="Device to measure on: auto, cpu, cuda:0, a name.")
@click.option("--batch", type=int, help="Batch size at which latency is measured.")
@click.option("--runtime", type=click.Choice(["torch", "onnx"]), help="Runtime of the latency.")
@click.option(
    "--latency-table",
    metavar="FILE|JOB",
    help="Price candidates from it (blockyard cost table build); winners are still measured.",
)
@click.option(
    "--predict-latency", is_flag=True, help="Let a model of the table price what it lacks."
)
@click.option("--seed", type=int, help="Seed of everything random.")
@click.option("--winners", type=int, help="How many winners to train and store.")
@click.option("--baseline/--no-baseline", default=None, help="Equal-budget random search too.")
@click.option(
    "--reuse/--no-reuse", default=None, help="Take evaluations that equal candidates had."
)
@click.option(
    "--max-duplicates",
    type=int,
    help="Evaluations of one function before their mean answers for it.  [default: 1; 3 if noisy]",
)
@click.option("--forget", type=float, help="Probability that such an answer is the last.")
@click.option(
    "--max-proposal-attempts", type=int, help="Proposals among which a new function is sought."
)
@click.option("--tabu", type=int, help="How many of the latest functions are not new; else all.")
@click.option("--evaluation-seed", type=int, help="Seed of the candidates; else that of the job.")
@click.option("--epochs", type=int, help="Epochs a candidate; short for -r epochs=N.")
@click.option("-r", "recipe", multiple=True, metavar="NAME=VALUE", help="Training of candidates.")
@click.option("-f", "final", multiple=True, metavar="NAME=VALUE", help="Training of winners.")
@click.option("--max-candidate-s", type=float, help="Time limit of one candidate, in seconds.")
@click.option("--max-memory-bytes", type=int, help="Memory limit of one trainer, in bytes.")
@click.option(
    "--spec", type=click.Path(path_type=Path), help="Request in JSON or YAML; options win."
)
@click.option("--name", default="", help="Name of the job.")
@click.option("--idempotency-key", help="Submitting again with it returns the same job.")
@click.option("--preview", is_flag=True, help="Only tell size, cost and feasibility.")
@click.option("--detach", "-d", is_flag=True, help="Submit and return at once.")
@pass_terminal
def search_run(terminal: Terminal, /, *, preview: bool, detach: bool, **options: Any) -> None:
    """Search SPACE with METHOD on DATA, store the winners in the zoo.

    \b
    blockyard search run --method nsga2 --space darts --data digits -l 'latency_ms<=3'
    """
    from zoo.jobs import JobKind
    from zoo.schemas import parse_request

    spec = request(options)
    checked = parse_request(JobKind.SEARCH, spec)
    with terminal.zoo() as zoo:
        if preview:
            body: dict[str, Any] = {"search": spec}
            job = zoo.submit(JobKind.PREVIEW, body)
            show_preview(terminal, follow(terminal, zoo, job))
            return
        job = zoo.submit(
            JobKind.SEARCH,
            checked.model_dump(mode="json"),
            idempotency_key=options["idempotency_key"],
            name=options["name"],
        )
        if detach:
            terminal.facts({job.id: ""}, value=job.to_json())
            terminal.say(f"watch it with: {hint('job watch', job.id, terminal)}")
            return
        terminal.say(f"job {job.id}")
        show_search(terminal, zoo, follow(terminal, zoo, job))


def request(options: dict[str, Any]) -> dict[str, Any]:
    """Put a request together from a spec file and options; options win.

    Raises:
        InvalidInputError: A setting or limit cannot be read, or a part is missing.
    """
    from ui.request_text import latency_source, limits, read_spec, settings
    from zoo.client import named
    from zoo.errors import InvalidInputError

    spec = named(read_spec(options["spec"])) if options["spec"] else {}
    for kind, params in (
        ("method", "params"),
        ("space", "space_params"),
        ("evaluator", "evaluator_params"),
    ):
        chosen = _part(spec, kind)
        if options[kind] and options[kind] != chosen.get("name"):
            chosen = {"name": options[kind]}
        if options[params]:
            chosen["params"] = {**(chosen.get("params") or {}), **settings(options[params])}
        if chosen:
            spec[kind] = chosen
    for name in ("data", "device", "batch", "runtime", "seed", "winners", "baseline", "reuse"):
        if options[name] is not None:
            spec[name] = options[name]
    for name in (
        "max_duplicates",
        "forget",
        "max_proposal_attempts",
        "tabu",
        "evaluation_seed",
        "max_candidate_s",
        "max_memory_bytes",
    ):
        if options[name] is not None:
            spec[name] = options[name]
    if (source := latency_source(options["latency_table"], options["predict_latency"])) is not None:
        spec["latency"] = source
    if options["objectives"]:
        spec["objectives"] = list(options["objectives"])
    if options["limits"]:
        spec["limits"] = limits(options["limits"])
    epochs = [f"epochs={options['epochs']}"] if options["epochs"] is not None else []
    for name, pairs, default in (
        ("recipe", [*options["recipe"], *epochs], 3),
        ("final_recipe", options["final"], 12),
    ):
        if given := settings(pairs):
            # A preset that is asked for is not overruled by the file's recipe.
            part = given if "preset" in given else {**_part(spec, name), **given}
            spec[name] = part if "preset" in part else {"epochs": default, **part}
    missing = [f"--{name}" for name in ("method", "space", "data") if not spec.get(name)]
    if missing:
        raise InvalidInputError(f"a search needs {', '.join(missing)}, or --spec with a file")
    return spec


def _part(spec: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a copy of a part of a request that has parts of its own."""
    from zoo.errors import InvalidInputError

    part = spec.get(name) or {}
    if not isinstance(part, dict):
        raise InvalidInputError(f"{name} is {part!r:.100}; give it as a mapping")
    return dict(part)


def origin_name(origin: str | None, job: Job | None = None) -> str:
    """Name a job whose evaluations were reused, as seen from ``job``."""
    if origin is None:
        return "other users' jobs"
    return "this job itself" if job is not None and origin == job.id else short(origin)


def show_preview(terminal: Terminal, job: Job) -> None:
    """Print what a preview found: the space's size, its costs, and whether limits can hold."""
    result: dict[str, Any] = dict(job.result or {})
    facts = {}
    if result.get("size") is not None:
        facts["size of the space"] = f"{count(float(result['size']))} architectures"
    for name, cost in (result.get("cost") or {}).items():
        values = " / ".join(metric(name, cost[key]) for key in ("min", "median", "max"))
        facts[label(name)] = f"{values} (min / median / max)"
    if result.get("candidate_s") is not None:
        facts["one candidate"] = f"about {duration(result['candidate_s'])}"
    verdict = "yes" if result.get("feasible") else f"no: {result.get('reason')}"
    facts["limits can be met"] = verdict
    terminal.facts(facts, value=result)


def show_search(terminal: Terminal, zoo: Zoo, job: Job) -> None:
    """Print the winners of a search that succeeded, and what the cache saved."""
    result: dict[str, Any] = dict(job.result or {})
    winners = result.get("winners") or []
    names = list(dict.fromkeys(name for item in winners for name in item["metrics"]))
    rows = [
        (
            item["chain"] if terminal.quiet else short(item["chain"]),
            str(item["candidate"]),
            *(metric(name, item["metrics"].get(name)) for name in names),
        )
        for item in winners
    ]
    if terminal.json:
        terminal.answer(job.to_json())
        return
    saved = zoo.savings(job.id)
    terminal.say(
        f"succeeded: {saved['candidates']:.0f} candidates, {saved['hits']:.0f} reused, "
        f"{duration(saved['spent_s'])} of device time spent, {duration(saved['saved_s'])} saved"
    )
    for item in zoo.origins(job.id) if saved["hits"] else ():
        terminal.say(f"  {item.hits} reused from {origin_name(item.job, job)}")
    if not winners:
        numbers = ", ".join(str(number) for number in result.get("front") or [])
        terminal.say(f"no winner was asked for; the front: candidates {numbers or 'none'}")
    else:
        terminal.table(
            ("CHAIN", "CANDIDATE", *(label(name).upper() for name in names)),
            rows,
            values=winners,
            ids=[item["chain"] for item in winners],
        )
        first = short(winners[0]["chain"])
        terminal.say(f"next: {hint('chain export', f'{first} --output model.onnx', terminal)}")
