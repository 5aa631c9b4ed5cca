"""``blockyard cost …``: latency tables of devices, and fronts recomputed for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ui.following import follow
from ui.formats import label, metric, short
from ui.references import find_job
from ui.terminal import Group, Terminal, pass_terminal

if TYPE_CHECKING:
    from zoo.jobs import Job

SLOWEST = 20
"""Operations that ``cost table show`` lists."""


@click.group(cls=Group)
def cost() -> None:
    """Cost of architectures on devices."""


@cost.group("table", cls=Group)
def table() -> None:
    """Latency tables: every operation of a space, measured once."""


output_option = click.option(
    "--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="File to write."
)


@table.command("build")
@click.option("--space", required=True, help="Search space; see: blockyard space list.")
@click.option("-s", "space_params", multiple=True, metavar="NAME=VALUE", help="Its settings.")
@click.option("--data", required=True, help="Data set: the input's shape and the classes.")
@click.option("--device", default="auto", show_default=True)
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True)
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
)
@click.option("--samples", type=int, default=64, show_default=True, help="Architectures seen.")
@click.option("--networks", type=int, default=20, show_default=True, help="Measured whole.")
@click.option("--repeats", type=int, default=50, show_default=True, help="Samples of each.")
@click.option("--seed", type=int, default=0, show_default=True)
@output_option
@click.option("--detach", "-d", is_flag=True, help="Submit and return at once.")
@pass_terminal
def table_build(
    terminal: Terminal,
    /,
    *,
    space: str,
    space_params: tuple[str, ...],
    output: Path | None,
    detach: bool,
    **options: Any,
) -> None:
    """Measure every distinct operation of SPACE once on DEVICE, and check the sums.

    \b
    blockyard cost table build --space darts --data digits --device cpu -o cpu.json
    """
    from ui.request_text import settings
    from zoo.jobs import JobKind
    from zoo.schemas import parse_request

    spec = {**options, "space": {"name": space, "params": settings(space_params)}}
    checked = parse_request(JobKind.COST_TABLE, spec).model_dump(mode="json")
    with terminal.zoo() as zoo:
        job = zoo.submit(JobKind.COST_TABLE, checked)
        if detach:
            terminal.facts({job.id: ""}, value=job.to_json())
            return
        show_table_job(terminal, follow(terminal, zoo, job), output)


def show_table_job(terminal: Terminal, job: Job, output: Path | None) -> None:
    """Print what a finished job measured, and write its table."""
    result: dict[str, Any] = dict(job.result or {})
    if output is not None:
        _write(output, result["table"])
    _show(terminal, result["table"], output)


@table.command("import")
@click.argument("path", metavar="FILE.yaml", type=click.Path(exists=True, path_type=Path))
@click.option("--device", required=True, help="What it was measured on, e.g. pixel1.")
@output_option
@pass_terminal
def table_import(terminal: Terminal, path: Path, device: str, output: Path | None) -> None:
    """Read a table in the YAML form of ProxylessNAS and write it in Blockyard's."""
    from zoo.errors import InvalidInputError

    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path} is not text: {error}") from error
    found = (
        import_module("nas.cost.proxyless_yaml").from_proxyless_yaml(text, device=device).to_json()
    )
    target = output if output is not None else path.with_suffix(".json")
    _write(target, found)
    _show(terminal, found, target)


@table.command("show")
@click.argument("path", metavar="FILE.json", type=click.Path(exists=True, path_type=Path))
@pass_terminal
def table_show(terminal: Terminal, path: Path) -> None:
    """Show what a table was measured on, how far its sums are off, and what is slowest."""
    _show(terminal, import_module("nas.cost.table").LatencyTable.load(path).to_json(), None)


def _write(path: Path, found: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(found, indent=1), encoding="utf-8")


def _show(terminal: Terminal, found: Mapping[str, Any], output: Path | None) -> None:
    entries: dict[str, Any] = found["entries"]
    facts = {
        "operations": str(len(entries)),
        "device": str(found["device"].get("name") or found["device"].get("id")),
        "conditions": f"{found['runtime']}, {found['precision']}, batch {found['batch']}",
    }
    if found["additivity"]:
        checked = found["additivity"]
        facts["sums against whole networks"] = (
            f"median error {checked['median_error']:.1%} on {len(checked['errors'])} networks, "
            f"with an overhead of {found['overhead_ms'] * 1e3:.3g} µs an operation"
        )
    facts["energy"] = (
        f"fitted to {found['energy']['fitted_to']}, median error {found['energy']['error']:.1%}"
        if found["energy"]
        else "no meter: not known"
    )
    if output is not None:
        facts["file"] = str(output)
    terminal.facts(facts, value=found)
    if not terminal.json:
        slow = sorted(entries.items(), key=lambda item: -item[1]["median_ms"])[:SLOWEST]
        for key, entry in slow:
            spread = metric("latency_ms", entry["spread_ms"])
            click.echo(f"{metric('latency_ms', entry['median_ms'])}  ± {spread}  {key}")


@cost.command("fronts")
@click.option("--device", required=True, help="Device to recompute the fronts for.")
@click.option("--job", "references", multiple=True, help="Search; all that succeeded if omitted.")
@click.option("--repeats", type=int, default=50, show_default=True, help="Samples of each.")
@click.option("--detach", "-d", is_flag=True, help="Submit and return at once.")
@pass_terminal
def cost_fronts(
    terminal: Terminal, device: str, references: tuple[str, ...], repeats: int, detach: bool
) -> None:
    """Recompute the fronts of finished searches for DEVICE; nothing is trained."""
    from zoo.jobs import JobKind

    with terminal.zoo() as zoo:
        jobs = [find_job(zoo, reference).id for reference in references]
        spec = {"device": device, "jobs": jobs, "repeats": repeats}
        job = zoo.submit(JobKind.FRONTS, spec)
        if detach:
            terminal.facts({job.id: ""}, value=job.to_json())
            return
        _show_fronts(terminal, follow(terminal, zoo, job))


def _show_fronts(terminal: Terminal, job: Job) -> None:
    result: dict[str, Any] = dict(job.result or {})
    rows = [
        (short(item["job"]), str(row["candidate"]), row["metrics"])
        for item in result["fronts"]
        for row in item["front"]
    ]
    names = list(dict.fromkeys(name for _, _, metrics in rows for name in metrics))
    terminal.table(
        ("JOB", "CANDIDATE", *(label(name).upper() for name in names)),
        [
            (job_id, number, *(metric(name, metrics.get(name)) for name in names))
            for job_id, number, metrics in rows
        ],
        values=result["fronts"],
        ids=[f"{job_id} {number}" for job_id, number, _ in rows],
    )
    terminal.say(f"{result['measured']} operations or networks measured on {result['device'][:12]}")
