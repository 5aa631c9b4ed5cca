"""``blockyard job …``: what runs, what ran, and stopping or repeating it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from ui.commands.search import origin_name, show_preview, show_search
from ui.commands.train import show_training
from ui.following import follow, hint, progress_text, reporter
from ui.formats import age, duration, short
from ui.references import find_job
from ui.terminal import Group, Terminal, pass_terminal

if TYPE_CHECKING:
    from zoo.client import Zoo
    from zoo.jobs import Job
    from zoo.store.protocols import Event

KINDS = ["search", "train", "preview", "profile", "measure", "assemble", "cost-table", "fronts"]
STATES = ["queued", "running", "paused", "succeeded", "failed", "cancelled"]
POLL_S = 1.0


@click.group(cls=Group)
def job() -> None:
    """Jobs; name one by id, a prefix of it, its name, or "last"."""


job_argument = click.argument("reference", metavar="JOB")


@job.command("list")
@click.option("--kind", type=click.Choice(KINDS))
@click.option("--state", type=click.Choice(STATES))
@click.option("--limit", "-n", "number", type=click.IntRange(1), default=20, show_default=True)
@pass_terminal
def job_list(terminal: Terminal, kind: str | None, state: str | None, number: int) -> None:
    """List jobs, newest first."""
    from zoo.jobs import JobKind, JobState

    filters: dict[str, Any] = {"kind": JobKind(kind)} if kind else {}
    filters |= {"state": JobState(state)} if state else {}
    with terminal.zoo() as zoo:
        found = list(islice(zoo.jobs(**filters), number))
    now = datetime.now(UTC)
    rows = [
        (
            short(item.id),
            str(item.kind),
            item.name,
            progress_text(item),
            item.owner,
            age(item.created_at, now),
        )
        for item in found
    ]
    terminal.table(
        ("JOB", "KIND", "NAME", "STATE", "OWNER", "SUBMITTED"),
        rows,
        values=[item.to_json() for item in found],
        ids=[item.id for item in found],
    )


@job.command("show")
@job_argument
@pass_terminal
def job_show(terminal: Terminal, reference: str) -> None:
    """Show one job: state, times, request and result."""
    with terminal.zoo() as zoo:
        found = find_job(zoo, reference)
        saved = zoo.savings(found.id)
        if terminal.json:
            origins = [item.to_json() for item in zoo.origins(found.id)]
            terminal.answer({**found.to_json(), "savings": dict(saved), "origins": origins})
            return
        terminal.facts(_facts(found, saved), value=None)
        if found.kind == "search" and found.result:
            show_search(terminal, zoo, found)
        elif found.result:
            click.echo(json.dumps(found.to_json()["result"], indent=2, ensure_ascii=False))


@job.command("savings")
@click.argument("reference", metavar="[JOB]", required=False)
@click.option("--owner", help="Only this owner's jobs; for admins.")
@pass_terminal
def job_savings(terminal: Terminal, reference: str | None, owner: str | None) -> None:
    """Show what reused evaluations saved, in JOB or in all, and from which jobs they came."""
    with terminal.zoo() as zoo:
        found = find_job(zoo, reference) if reference else None
        job_id = found.id if found else None
        saved, origins = zoo.savings(job_id, owner=owner), zoo.origins(job_id, owner=owner)
    if terminal.json:
        listed = [item.to_json() for item in origins]
        terminal.answer({**saved, "origins": listed})
        return
    if not terminal.quiet:
        facts = {
            "candidates": f"{saved['candidates']:,.0f}",
            "evaluated": f"{saved['evaluations']:,.0f}",
            "reused": f"{saved['hits']:,.0f}",
            "device time spent": duration(saved["spent_s"]),
            "device time saved": duration(saved["saved_s"]),
        }
        terminal.facts(facts, value=None)
    rows = [
        (origin_name(item.job, found), str(item.hits), duration(item.saved_s)) for item in origins
    ]
    if rows:
        terminal.table(
            ("REUSED FROM", "EVALUATIONS", "SAVED"),
            rows,
            values=[],
            ids=[item.job for item in origins if item.job is not None],
        )


def _facts(found: Job, saved: Mapping[str, float]) -> dict[str, str]:
    facts = {
        "job": found.id,
        "kind": str(found.kind),
        "name": found.name,
        "state": progress_text(found),
        "owner": found.owner,
        "worker": found.worker or "",
        "device": found.device or "any",
        "attempt": str(found.attempt),
    }
    for name in ("created_at", "started_at", "finished_at"):
        moment = getattr(found, name)
        facts[name.removesuffix("_at")] = f"{moment:%Y-%m-%d %H:%M:%S} UTC" if moment else ""
    facts["device time"] = f"{duration(saved['spent_s'])} spent, {duration(saved['saved_s'])} saved"
    facts["request"] = json.dumps(found.to_json()["spec"], ensure_ascii=False)
    return {name: fact for name, fact in facts.items() if fact}


@job.command("watch")
@job_argument
@pass_terminal
def job_watch(terminal: Terminal, reference: str) -> None:
    """Watch a job until it ends; with --json one line for every change."""
    with terminal.zoo() as zoo:
        found = find_job(zoo, reference)
        if not found.state.final and not zoo.workers():
            terminal.say(f"no worker lives; start one with: {hint('worker', '', terminal)}")
        if terminal.json:
            for snapshot in zoo.watch(found.id):
                click.echo(json.dumps(snapshot.to_json(), ensure_ascii=False))
        else:
            screen = reporter(terminal)
            try:
                screen.show(found)
                for snapshot in zoo.watch(found.id):
                    screen.show(snapshot)
            finally:
                screen.close()
        found = zoo.job(found.id)
        if not terminal.json:
            _ended(terminal, zoo, found)
        if found.state in ("failed", "cancelled"):
            raise click.ClickException(f"job {found.id} {found.state}: {found.reason or 'asked'}")


def _ended(terminal: Terminal, zoo: Zoo, found: Job) -> None:
    """Print the answer of a job that ended well."""
    if found.state != "succeeded":
        return
    if found.kind == "search":
        show_search(terminal, zoo, found)
    elif found.kind == "train":
        show_training(terminal, found)
    elif found.kind == "preview":
        show_preview(terminal, found)
    else:
        terminal.answer(found.to_json()["result"])


@job.command("cancel")
@job_argument
@pass_terminal
def job_cancel(terminal: Terminal, reference: str) -> None:
    """Cancel a job; what it has evaluated stays known."""
    with terminal.zoo() as zoo:
        _moved(terminal, zoo.cancel(find_job(zoo, reference).id), "cancel")


@job.command("delete")
@job_argument
@pass_terminal
def job_delete(terminal: Terminal, reference: str) -> None:
    """Delete a job that is over, with its candidates and log; its models stay in the zoo."""
    with terminal.zoo() as zoo:
        found = find_job(zoo, reference)
        terminal.confirm(f"Delete {found.kind} {found.id} with its candidates and log?")
        zoo.delete_job(found.id)
    terminal.facts({found.id: "deleted"}, value={"id": found.id, "deleted": True})


@job.command("pause")
@job_argument
@pass_terminal
def job_pause(terminal: Terminal, reference: str) -> None:
    """Pause a job at its next step."""
    with terminal.zoo() as zoo:
        _moved(terminal, zoo.pause(find_job(zoo, reference).id), "pause")


def _moved(terminal: Terminal, found: Job, request: str) -> None:
    waiting = f" (asked to {request} at its next step)" if found.request else ""
    terminal.facts({found.id: f"{found.state}{waiting}"}, value=found.to_json())


@job.command("resume")
@job_argument
@click.option("--detach", "-d", is_flag=True, help="Put it in the queue and return at once.")
@pass_terminal
def job_resume(terminal: Terminal, reference: str, detach: bool) -> None:
    """Go on with a paused job where it stopped."""
    with terminal.zoo() as zoo:
        found = zoo.resume(find_job(zoo, reference).id)
        _run(terminal, zoo, found, detach=detach)


@job.command("clone")
@job_argument
@click.option(
    "--set", "changes", multiple=True, metavar="FIELD=VALUE", help="method.params.trials=40"
)
@click.option(
    "--limit", "-l", "limits", multiple=True, metavar="LIMIT", help="latency_ms<=2; repeat."
)
@click.option("--seed", type=int)
@click.option("--detach", "-d", is_flag=True, help="Submit and return at once.")
@pass_terminal
def job_clone(
    terminal: Terminal,
    reference: str,
    changes: tuple[str, ...],
    limits: tuple[str, ...],
    seed: int | None,
    detach: bool,
) -> None:
    """Submit a job's request again, changed; what is known is not evaluated again."""
    from ui import request_text

    with terminal.zoo() as zoo:
        found = find_job(zoo, reference)
        spec = request_text.changed(found.spec, changes)
        if limits:
            spec["limits"] = request_text.limits(limits)
        if seed is not None:
            spec["seed"] = seed
        _run(terminal, zoo, zoo.clone(found.id, **spec), detach=detach)


def _run(terminal: Terminal, zoo: Zoo, found: Job, *, detach: bool) -> None:
    if detach:
        terminal.facts({found.id: ""}, value=found.to_json())
        return
    terminal.say(f"job {found.id}")
    _ended(terminal, zoo, follow(terminal, zoo, found))


@job.command("logs")
@job_argument
@click.option("--follow", "-f", "following", is_flag=True, help="Go on until the job ends.")
@click.option("--after", type=int, default=0, help="Number of the last line already seen.")
@pass_terminal
def job_logs(terminal: Terminal, reference: str, following: bool, after: int) -> None:
    """Print a job's log."""
    import time

    with terminal.zoo() as zoo:
        found = find_job(zoo, reference)
        while True:
            ended = zoo.job(found.id).state.final
            for event in zoo.events(found.id, after=after):
                after = event.number
                _log_line(terminal, event)
            if ended or not following:
                return
            time.sleep(POLL_S)


def _log_line(terminal: Terminal, event: Event) -> None:
    if terminal.json:
        click.echo(json.dumps(event.to_json(), ensure_ascii=False))
    else:
        click.echo(f"{event.at:%H:%M:%S}  {event.level:<7}  {event.message}")
