"""Following a job on the terminal: a progress line with ETA, and what Ctrl-C means."""

from __future__ import annotations

import shlex
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import click

from ui.formats import duration
from ui.terminal import Terminal

if TYPE_CHECKING:
    from zoo.client import Zoo
    from zoo.jobs import Job

POLL_S = 0.5
STOP_S = 15.0
"""How long to wait after Ctrl-C for the worker to stop at a step; it needs at most 10 s."""


class Reporter(Protocol):
    """Shows snapshots of one job."""

    def show(self, job: Job) -> None: ...

    def close(self) -> None: ...


def progress_text(job: Job) -> str:
    """Say in one line where a job stands: phase, step, message, time left."""
    from zoo.jobs import JobState

    progress = {} if job.state is JobState.SUCCEEDED else job.progress
    parts = [str(job.state)]
    if progress.get("phase"):
        parts.append(str(progress["phase"]))
    if progress.get("total"):
        parts.append(f"{progress.get('step', 0)}/{progress['total']}")
    if progress.get("message"):
        parts.append(str(progress["message"]))
    eta = progress.get("eta_s")
    if isinstance(eta, int | float) and not job.state.final:
        parts.append(f"{duration(eta)} left")
    if job.reason:
        parts.append(job.reason)
    return " · ".join(parts)


def fraction(job: Job) -> float:
    """Return how much of a job is done, 0 to 1."""
    from zoo.jobs import JobState

    if job.state is JobState.SUCCEEDED:
        return 1.0
    step, total = job.progress.get("step"), job.progress.get("total")
    if isinstance(step, int | float) and isinstance(total, int | float) and total > 0:
        return min(max(step / total, 0.0), 1.0)
    return 0.0


class Lines:
    """A line on stderr whenever the job's state or phase changes, else every few seconds."""

    def __init__(self, every_s: float = 5.0) -> None:
        self._every_s = every_s
        self._last: tuple[object, ...] = ()
        self._text = ""
        self._at = 0.0

    def show(self, job: Job) -> None:
        key = (job.state, job.progress.get("phase"))
        text = progress_text(job)
        now = time.monotonic()
        late = text != self._text and now - self._at >= self._every_s
        if key != self._last or late:
            self._last, self._text, self._at = key, text, now
            click.echo(text, err=True)

    def close(self) -> None:
        """Nothing to tidy up."""


class Bar:
    """A bar that stays in one line of the terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("waiting", total=1.0)
        self._progress.start()

    def show(self, job: Job) -> None:
        self._progress.update(self._task, completed=fraction(job), description=progress_text(job))

    def close(self) -> None:
        self._progress.stop()


class Silence:
    """No progress at all, for ``--quiet``."""

    def show(self, job: Job) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Nothing to tidy up."""


def reporter(terminal: Terminal) -> Reporter:
    """Choose how to show progress: a bar on a terminal, lines in a log, nothing if quiet."""
    if terminal.quiet:
        return Silence()
    return Bar() if sys.stderr.isatty() else Lines()


def follow(terminal: Terminal, zoo: Zoo, job: Job) -> Job:
    """Wait until a job has succeeded, showing its progress; return it as it ended.

    Without a live worker on a database, one runs in a child process meanwhile.

    Raises:
        BlockyardError: The job failed or was cancelled, by whomever.
        click.Abort: Ctrl-C; the job was paused, cancelled or left, as was asked.
    """
    try:
        with _showing(terminal, zoo, job.id):
            return zoo.wait(job.id)
    except KeyboardInterrupt:
        _stop(terminal, zoo, job.id)
        raise click.Abort from None


@contextmanager
def _showing(terminal: Terminal, zoo: Zoo, job_id: str) -> Iterator[None]:
    """Show the job's progress from a second thread while the body waits."""
    done = threading.Event()
    screen = reporter(terminal)

    def show() -> None:
        from zoo.errors import BlockyardError

        while True:
            try:
                screen.show(zoo.job(job_id))
            except BlockyardError:
                return  # The waiting thread meets the same error and reports it.
            if done.wait(POLL_S):
                return

    thread = threading.Thread(target=show, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        screen.close()


def _stop(terminal: Terminal, zoo: Zoo, job_id: str) -> None:
    """Ask what to do with a job whose watcher pressed Ctrl-C, and do it."""
    answer = "pause"
    if sys.stdin.isatty() and not terminal.yes:
        answer = click.prompt(
            "Stop watching: pause the job, cancel it, or leave it running?",
            type=click.Choice(["pause", "cancel", "leave"]),
            default="pause",
            err=True,
        )
    if answer == "leave":
        terminal.say(f"job {job_id} goes on; watch it with: {hint('job watch', job_id, terminal)}")
        return
    job = zoo.cancel(job_id) if answer == "cancel" else zoo.pause(job_id)
    deadline = time.monotonic() + STOP_S
    while job.state == "running" and time.monotonic() < deadline:
        time.sleep(POLL_S)
        job = zoo.job(job_id)
    told = "asked to stop at its next step" if job.state == "running" else f"is {job.state}"
    terminal.say(f"job {job_id} {told}")
    if answer == "pause":
        terminal.say(f"go on with: {hint('job resume', job_id, terminal)}")


def hint(command: str, argument: str, terminal: Terminal) -> str:
    """Return a command line that reaches the same store."""
    from ui.connection import DEFAULT_URL

    url = terminal.connection.url
    where = "" if url == DEFAULT_URL else f"--url {shlex.quote(url)} "
    return f"blockyard {where}{command} {argument}"
