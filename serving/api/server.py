"""A server process: bind, say where, serve, and leave no request half-answered."""

from __future__ import annotations

import errno
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from serving.api.settings import ApiSettings
from zoo.errors import EnvironmentUnfitError, PortInUseError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
BACKLOG = 2048


class Server(uvicorn.Server):
    """Uvicorn that drains on SIGTERM or SIGINT and then returns instead of dying of it."""

    def __init__(self, app: FastAPI, settings: ApiSettings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="on",
                access_log=False,
                log_level="warning",
                server_header=False,
                proxy_headers=False,
                backlog=BACKLOG,
                timeout_graceful_shutdown=max(1, round(settings.drain_s)),
            )
        )
        self._app = app

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and only then say where: a signal that follows is handled already."""
        await super().startup(sockets=sockets)
        for listener in sockets or ():
            sys.stdout.write(f"Blockyard listens on {url_of(listener)}\n")
        sys.stdout.flush()

    def stop(self) -> None:
        """Stop accepting, answer what is under way, and return from ``run``."""
        self._app.state.draining = True
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while serving, without raising them again afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain; a second interrupt from the keyboard stops at once."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.stop()


def bind(settings: ApiSettings) -> socket.socket:
    """Listen on the address of ``settings``; port 0 takes a free one.

    Raises:
        PortInUseError: Another process listens there.
        EnvironmentUnfitError: The address is not of this machine, or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(
                f"{where} is taken by another process; choose another port, or 0 for a free one"
            ) from error
        raise EnvironmentUnfitError(
            f"cannot listen on {where}: {error.strerror}; choose another host or port"
        ) from error
    return listener


def serve(app: FastAPI, settings: ApiSettings) -> None:
    """Serve until SIGTERM or SIGINT; prints the URL once requests can be sent.

    On a signal the server stops accepting, finishes what is under way within
    ``settings.drain_s`` and returns.

    Raises:
        PortInUseError: Another process listens on the port.
        EnvironmentUnfitError: The address cannot be used.
    """
    Server(app, settings).run(sockets=[bind(settings)])


def url_of(listener: socket.socket) -> str:
    """Return the URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
