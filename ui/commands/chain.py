"""``blockyard chain …``: assemble a model under limits, show it, take it away."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ui.commands.store import show_chain
from ui.following import follow, hint
from ui.formats import label, metric
from ui.terminal import Group, Terminal, pass_terminal

if TYPE_CHECKING:
    from zoo.jobs import Job


@click.group(cls=Group)
def chain() -> None:
    """Chains of blocks: models."""


@chain.command("assemble")
@click.option("--task", help="Data set that the chain is for.")
@click.option(
    "--limit", "-l", "limits", multiple=True, metavar="LIMIT", help="latency_ms<=3; repeat."
)
@click.option("--objective", default="accuracy", show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--runtime", type=click.Choice(["torch", "onnx"]), default="torch", show_default=True)
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True)
@click.option("--name", help="Alias to give the chain.")
@click.option("--idempotency-key", help="Submitting again with it returns the same job.")
@click.option("--detach", "-d", is_flag=True, help="Submit and return at once.")
@pass_terminal
def chain_assemble(
    terminal: Terminal,
    /,
    *,
    limits: tuple[str, ...],
    idempotency_key: str | None,
    detach: bool,
    **options: Any,
) -> None:
    """Choose the best chain of the zoo under limits, measured whole on a device."""
    from ui import request_text
    from zoo.jobs import JobKind
    from zoo.schemas import parse_request

    spec = {**options, "limits": request_text.limits(limits)}
    checked = parse_request(JobKind.ASSEMBLE, spec).model_dump(mode="json")
    with terminal.zoo() as zoo:
        job = zoo.submit(JobKind.ASSEMBLE, checked, idempotency_key=idempotency_key)
        if detach:
            terminal.facts({job.id: ""}, value=job.to_json())
            return
        _show_assembly(terminal, follow(terminal, zoo, job))


def _show_assembly(terminal: Terminal, job: Job) -> None:
    result: dict[str, Any] = dict(job.result or {})
    if terminal.quiet:
        click.echo(result["chain"])
        return
    facts = {"chain": result["chain"]}
    facts |= {label(name): metric(name, value) for name, value in result["metrics"].items()}
    explanation = result.get("explanation") or {}
    if explanation.get("considered") is not None:
        facts["considered"] = f"{explanation['considered']} chains"
    if explanation.get("chosen"):
        facts["chosen"] = str(explanation["chosen"])
    terminal.facts(facts, value=result)
    if not terminal.json:
        for refused in explanation.get("refused") or ():
            subject = refused.get("chain") or refused.get("blocks")
            click.echo(f"refused  {subject}: {refused['why']}")
        terminal.say(f"next: {hint('chain export', result['chain'][:12], terminal)}")


@chain.command("show")
@click.argument("reference", metavar="CHAIN")
@pass_terminal
def chain_show(terminal: Terminal, reference: str) -> None:
    """Show a chain, named by id, unique prefix or alias."""
    with terminal.zoo() as zoo:
        show_chain(terminal, zoo, zoo.chain(reference))


@chain.command("export")
@click.argument("reference", metavar="CHAIN")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["onnx", "safetensors"]),
    help="By default as the output's name ends, else onnx.",
)
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Overwrite a file.")
@pass_terminal
def chain_export(
    terminal: Terminal, reference: str, kind: str | None, output: Path | None, force: bool
) -> None:
    """Write a chain as an ONNX model or as safetensors weights."""
    from ui.export import chain_weights, write

    ending = output.suffix.removeprefix(".") if output else ""
    kind = kind or (ending if ending in ("onnx", "safetensors") else "onnx")
    with terminal.zoo() as zoo:
        found = zoo.chain(reference)
        path = output or Path(f"{found.id[:12]}.{kind}")
        if path.exists() and not force:
            raise click.UsageError(f"{path} exists; name another file or say --force")
        data = zoo.onnx(found.id) if kind == "onnx" else chain_weights(zoo, found)
    write(path, data)
    value = {"chain": found.id, "path": str(path), "format": kind, "size_bytes": len(data)}
    terminal.facts({str(path): ""}, value=value)
