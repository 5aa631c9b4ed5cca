"""Put a server together: API, engine, the way to the workers, and maybe a worker and pages."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from serving.api import ApiSettings, create_app
from serving.api import serve as serve_api
from serving.api.server import bind
from serving.hosting import host_engine
from serving.runners.devices import resolve
from workers.embedded import EmbeddedWorker
from workers.protocols import JobQueue
from workers.supervisor import SECRETS
from zoo.errors import InvalidInputError
from zoo.store.protocols import Store

PAGES = Path(__file__).parents[1] / "ui" / "app.py"

REACHED_AT = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
"""Where a server that listens on every address is reached from its own machine."""

STOP_PAGES_S = 10.0


def serve(
    store: Store,
    settings: ApiSettings,
    *,
    broker: str | None,
    with_worker: bool,
    data_root: Path | None,
    device: str = "auto",
    pages_port: int | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain, hand the present job back, and return.

    Args:
        store: Stays the caller's to close.
        settings: Address and limits.
        broker: Redis URL on which workers are told of jobs.
        with_worker: Run jobs in this process too.
        data_root: Folder of data sets for that worker.
        device: Where models are served.
        pages_port: Start the pages there, beside the server; 0 takes a free port.

    Raises:
        PortInUseError: A port is taken.
        InvalidInputError: Pages were asked for beside a server on a random port.
    """
    if pages_port is not None and settings.port == 0:
        raise InvalidInputError("the pages must know the server's port; give --port a number")
    _free_port(settings, settings.port)  # before a worker starts and says that it lives
    if pages_port is not None:
        pages_port = _free_port(settings, pages_port)
    with ExitStack() as stack:
        queue: JobQueue | None = None
        if broker is not None:
            queue = stack.enter_context(contextlib.closing(_celery_queue(broker, store)))
        if with_worker:
            worker = EmbeddedWorker(store, data_root=data_root)
            stack.callback(worker.stop)
            worker.start()
            queue = queue or worker
        engine = host_engine(resolve(device))
        stack.callback(engine.close)
        if pages_port is not None:
            stack.enter_context(_pages(settings, pages_port))
        serve_api(create_app(settings, store, queue=queue, engine=engine), settings)


def _celery_queue(broker: str, store: Store) -> JobQueue:
    from workers.app import CeleryQueue  # only where there is a broker: Celery loads slowly

    return CeleryQueue(broker, store)


def _free_port(settings: ApiSettings, port: int) -> int:
    """Return ``port``, or a free one for 0.

    Raises:
        PortInUseError: Another process listens there.
    """
    with bind(settings.model_copy(update={"port": port})) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def _pages(settings: ApiSettings, port: int) -> Iterator[None]:
    """Run the pages as a process of their own while the server runs.

    Beyond this machine they ask every visitor for an API key (``ui.website.admitted``).
    """
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    options = {
        "server.address": settings.host,
        "server.port": str(port),
        "server.headless": "true",
        "browser.gatherUsageStats": "false",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    url = f"http://{REACHED_AT.get(settings.host, host)}:{settings.port}"
    command = [sys.executable, "-m", "streamlit", "run", str(PAGES), *words, "--", "--url", url]
    environment = {name: text for name, text in os.environ.items() if name not in SECRETS}
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
    sys.stdout.write(f"Pages on http://{host}:{port}\n")
    sys.stdout.flush()
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_PAGES_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
