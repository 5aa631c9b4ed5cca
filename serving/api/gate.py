"""The one door: every request is named, authorised, bounded and counted here."""

from __future__ import annotations

import itertools
import re
import secrets
import time
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api.auth import Authenticator, required_scope
from serving.api.errors import error_response
from serving.api.metrics import Metrics
from serving.api.settings import ApiSettings
from zoo.errors import BlockyardError, InvalidInputError, TooLargeError

REQUEST_ID = re.compile(rb"[0-9A-Za-z._-]{1,128}")
NOSNIFF = (b"x-content-type-options", b"nosniff")
BOUNDED_BY_ROUTE = re.compile(r"/v1/files/[^/]+|/v2/models/[^/]+(/versions/[^/]+)?/infer")
"""Routes that read their bodies themselves, under limits of their own."""

_PROCESS = secrets.token_hex(8).encode()
_numbers = itertools.count(1)
# A number is enough to tell requests apart: asking the system for randomness for each
# would let go of the interpreter lock, and getting it back waits for the engine's threads.


class Gate:
    """ASGI middleware around the whole application, its documentation and its 404s."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: ApiSettings,
        authenticator: Authenticator,
        metrics: Metrics,
    ) -> None:
        self._app = app
        self._max_bytes = settings.max_json_bytes
        self._authenticator = authenticator
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008, "reason": "not offered"})
            return
        began = time.perf_counter()
        headers = dict(scope["headers"])
        request_id = _request_id(headers)
        status = 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = ((b"x-request-id", request_id), NOSNIFF)
                message["headers"] = [*message.get("headers", ()), *extra]
            await send(message)

        try:
            try:
                needed = required_scope(scope["method"], scope["path"])
                scope["principal"] = await self._authenticator.authorize(scope, headers, needed)
                self._check_size(scope, headers)
            except BlockyardError as error:
                await error_response(error, scope["path"])(scope, receive, answer)
                return
            await self._app(scope, receive, answer)
        finally:
            self._metrics.request(scope, status, time.perf_counter() - began)

    def _check_size(self, scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        """Refuse a body that is too long, or whose length is not known beforehand."""
        if BOUNDED_BY_ROUTE.fullmatch(scope["path"]):
            return
        if b"transfer-encoding" in headers:
            raise InvalidInputError("send this body with a Content-Length, not in chunks")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._max_bytes:
            raise TooLargeError(
                f"the body has {length.decode('latin-1')[:20]} bytes; "
                f"at most {self._max_bytes} are read here"
            )


def _request_id(headers: Mapping[bytes, bytes]) -> bytes:
    given = headers.get(b"x-request-id", b"")
    if given and REQUEST_ID.fullmatch(given):
        return given
    return b"%s-%d" % (_PROCESS, next(_numbers))
