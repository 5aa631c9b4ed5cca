"""``blockyard train``: train one network to the end and put it into the zoo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ui.following import follow, hint
from ui.formats import label, metric, short
from ui.references import find_job
from ui.terminal import Command, Terminal, pass_terminal

if TYPE_CHECKING:
    from zoo.client import Zoo
    from zoo.jobs import Job

NAMING = ("chain", "candidate", "architecture", "network", "space")
"""Options of which one names the network."""

EPOCHS = 12
"""Of a training whose recipe names no number of epochs."""


@click.command(cls=Command)
@click.option("--chain", help="Chain of the zoo, by id, prefix or alias: trained on from there.")
@click.option("--from-scratch", is_flag=True, default=None, help="Fresh weights for the chain.")
@click.option("--candidate", metavar="JOB:NUMBER", help="Candidate of a search.")
@click.option("--network", metavar="NAME", help="Published network, such as darts-cifar.")
@click.option("--architecture", metavar="ID", help="Architecture that a job of yours has met.")
@click.option("--space", help="Search space; see: blockyard space list.")
@click.option("-s", "space_params", multiple=True, metavar="NAME=VALUE", help="Its settings.")
@click.option("--genotype", help="Architecture in the space, as the space writes it.")
@click.option("--choices", metavar="N,N,…", help="Architecture in the space, as numbers.")
@click.option("--data", help="Data set; see: blockyard data list.")
@click.option("--recipe", "preset", metavar="NAME", help="Published recipe; -r overrules it.")
@click.option("-r", "recipe", multiple=True, metavar="NAME=VALUE", help="Setting of the recipe.")
@click.option("--epochs", type=int, help="Short for -r epochs=N.")
@click.option("--seed", type=int, help="Seed of everything random.")
@click.option("--device", help="Device to measure on: auto, cpu, cuda:0, a name.")
@click.option("--batch", type=int, help="Batch size at which latency is measured.")
@click.option("--runtime", type=click.Choice(["torch", "onnx"]), help="Runtime of the latency.")
@click.option("--alias", help="Name to give the chain.")
@click.option("--max-train-s", type=float, help="Time limit of the training, in seconds.")
@click.option("--max-memory-bytes", type=int, help="Memory limit of the trainer, in bytes.")
@click.option(
    "--spec", type=click.Path(path_type=Path), help="Request in JSON or YAML; options win."
)
@click.option("--name", default="", help="Name of the job.")
@click.option("--idempotency-key", help="Submitting again with it returns the same job.")
@click.option("--detach", "-d", is_flag=True, help="Submit and return at once.")
@pass_terminal
def train(terminal: Terminal, /, *, detach: bool, **options: Any) -> None:
    """Train a chain or an architecture to the end and put it into the zoo.

    \b
    blockyard train --chain mine --data digits --epochs 20
    blockyard train --candidate last:7 --data cifar10 --recipe pc-darts-cifar
    blockyard train --network pc-darts-cifar --data cifar10 --recipe pc-darts-cifar
    """
    from zoo.jobs import JobKind
    from zoo.schemas import parse_request

    with terminal.zoo() as zoo:
        checked = parse_request(JobKind.TRAIN, request(zoo, options)).model_dump(mode="json")
        job = zoo.submit(
            JobKind.TRAIN,
            checked,
            name=options["name"],
            idempotency_key=options["idempotency_key"],
        )
        if detach:
            terminal.facts({job.id: ""}, value=job.to_json())
            terminal.say(f"watch it with: {hint('job watch', job.id, terminal)}")
            return
        terminal.say(f"job {job.id}")
        show_training(terminal, follow(terminal, zoo, job))


def request(zoo: Zoo, options: dict[str, Any]) -> dict[str, Any]:
    """Put a request together from a spec file and options; options win.

    Raises:
        InvalidInputError: A setting, number or candidate cannot be read.
    """
    from ui.request_text import read_spec, recipe, settings
    from zoo.client import named
    from zoo.errors import InvalidInputError

    spec = named(read_spec(options["spec"])) if options["spec"] else {}
    if any(options[name] for name in NAMING):
        for name in ("chain", "architecture", "network", "space", "genotype", "choices"):
            spec.pop(name, None)
    plain = ("chain", "from_scratch", "architecture", "network", "genotype", "data", "seed")
    for name in (*plain, "device", "batch", "runtime", "alias", "max_train_s", "max_memory_bytes"):
        if options[name] is not None:
            spec[name] = options[name]
    if options["space"]:
        spec["space"] = {"name": options["space"], "params": settings(options["space_params"])}
    elif options["space_params"]:
        given = options["space_params"][0]
        raise InvalidInputError(f"-s {given} is a parameter of --space; name the space")
    if options["genotype"]:
        spec.pop("choices", None)
    if options["choices"]:
        spec.pop("genotype", None)
        spec["choices"] = _numbers(options["choices"])
    if options["candidate"]:
        spec["architecture"] = _candidate(zoo, options["candidate"])
    pairs = settings(options["recipe"])
    pairs |= {"preset": options["preset"]} if options["preset"] else {}
    pairs |= {"epochs": options["epochs"]} if options["epochs"] is not None else {}
    if pairs:
        spec["recipe"] = recipe(spec.get("recipe"), pairs, epochs=EPOCHS)
    _check(spec, [f"--{name}" for name in NAMING if options[name]])
    return spec


def _check(spec: Mapping[str, Any], naming: Sequence[str]) -> None:
    """Say in the command's own words which network or data it lacks.

    Raises:
        InvalidInputError: The request names no network, more than one, or no data.
    """
    from zoo.errors import InvalidInputError

    if len(naming) > 1:
        raise InvalidInputError(f"the network is named by {' and '.join(naming)}; name it by one")
    missing = []
    if not any(spec.get(name) for name in ("chain", "architecture", "network", "space")):
        inside = [f"--{name}" for name in ("genotype", "choices") if spec.get(name)]
        if inside:
            raise InvalidInputError(f"{inside[0]} is read by a space; name it, as --space darts")
        missing.append("a network (--chain, --candidate, --architecture, --network or --space)")
    elif spec.get("space") and not (spec.get("genotype") or spec.get("choices")):
        raise InvalidInputError(
            "--space alone names no network; say which one by --genotype or --choices, "
            "or take --candidate JOB:NUMBER of a search"
        )
    if not spec.get("data"):
        missing.append("--data (see: blockyard data list)")
    if missing:
        raise InvalidInputError(
            f"a training needs {' and '.join(missing)}, or --spec with a file; for example: "
            "blockyard train --network darts-cifar --data cifar10 --recipe darts-cifar"
        )


def _numbers(text: str) -> list[int]:
    from zoo.errors import InvalidInputError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidInputError(f"choices {text!r}; write whole numbers as 0,2,1") from error


def _candidate(zoo: Zoo, text: str) -> dict[str, Any]:
    """Return the architecture of ``JOB:NUMBER``, a candidate of a search."""
    from zoo.errors import InvalidInputError, NotFoundError
    from zoo.jobs import Arm

    reference, colon, number = text.rpartition(":")
    if not colon or not number.isdecimal():
        raise InvalidInputError(f"candidate {text!r}; write it as JOB:NUMBER, such as last:7")
    job = find_job(zoo, reference)
    for item in zoo.candidates(job.id, arm=Arm.SEARCH):
        if item.number == int(number):
            return dict(item.architecture)
    raise NotFoundError(f"{job.id} has no candidate {number}; see: blockyard job show")


def show_training(terminal: Terminal, job: Job) -> None:
    """Print the chain that a training put into the zoo, and what it scores."""
    result: dict[str, Any] = dict(job.result or {})
    if terminal.quiet:
        click.echo(result["chain"])
        return
    facts = {"chain": result["chain"]}
    if result.get("summary"):
        facts["genotype"] = str(result["summary"])
    facts |= {label(name): metric(name, value) for name, value in result["metrics"].items()}
    terminal.facts(facts, value=job.to_json())
    if not terminal.json:
        rest = f"{short(result['chain'])} --output model.onnx"
        terminal.say(f"next: {hint('chain export', rest, terminal)}")
