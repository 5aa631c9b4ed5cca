"""Who may call what: deny by default, keys with scopes, anonymous only on loopback."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from starlette.concurrency import run_in_threadpool
from starlette.types import Scope

from serving.api.settings import ApiSettings
from zoo.errors import ForbiddenError, UnauthenticatedError
from zoo.names import is_loopback
from zoo.store.protocols import SCOPES, ApiKey, KeyStore

OPEN = "open"

ROUTES: Mapping[str, str] = {
    "GET /health": OPEN,
    "GET /ready": "read",
    "GET /metrics": "read",
    "GET /docs": "read",
    "GET /openapi.json": "read",
    "GET /v2": "read",
    "GET /v2/health/live": "read",
    "GET /v2/health/ready": "read",
    "GET /v2/models/{name}": "read",
    "GET /v2/models/{name}/ready": "read",
    "GET /v2/models/{name}/versions/{version}": "read",
    "GET /v2/models/{name}/versions/{version}/ready": "read",
    "POST /v2/models/{name}/infer": "infer",
    "POST /v2/models/{name}/versions/{version}/infer": "infer",
    "POST /v2/repository/index": "read",
    "POST /v2/repository/models/{name}/load": "admin",
    "POST /v2/repository/models/{name}/unload": "admin",
    "GET /v1/whoami": "read",
    "GET /v1/jobs": "read",
    "POST /v1/jobs": "submit",
    "GET /v1/jobs/{job_id}": "read",
    "DELETE /v1/jobs/{job_id}": "submit",
    "POST /v1/jobs/{job_id}/cancel": "submit",
    "POST /v1/jobs/{job_id}/pause": "submit",
    "POST /v1/jobs/{job_id}/resume": "submit",
    "GET /v1/jobs/{job_id}/events": "read",
    "GET /v1/jobs/{job_id}/candidates": "read",
    "GET /v1/savings": "read",
    "GET /v1/savings/origins": "read",
    "POST /v1/assemble": "submit",
    "GET /v1/blocks": "read",
    "POST /v1/blocks": "write",
    "GET /v1/blocks/{ref}": "read",
    "GET /v1/chains": "read",
    "POST /v1/chains": "write",
    "GET /v1/chains/{ref}": "read",
    "DELETE /v1/chains/{ref}": "write",
    "GET /v1/chains/{ref}/onnx": "read",
    "HEAD /v1/chains/{ref}/onnx": "read",
    "GET /v1/aliases": "read",
    "GET /v1/aliases/{name}": "read",
    "PUT /v1/aliases/{name}": "write",
    "GET /v1/profiles": "read",
    "POST /v1/profiles": "write",
    "GET /v1/lineage/{ref}": "read",
    "POST /v1/lineage": "write",
    "GET /v1/files": "admin",
    "GET /v1/files/{digest}": "read",
    "HEAD /v1/files/{digest}": "read",
    "PUT /v1/files/{digest}": "write",
    "DELETE /v1/files/{digest}": "admin",
    "GET /v1/verify": "admin",
    "POST /v1/gc": "admin",
    "GET /v1/workers": "read",
    "GET /v1/devices": "read",
    "GET /v1/devices/{ref}": "read",
    "GET /v1/catalogue": "read",
    "GET /v1/keys": "admin",
    "POST /v1/keys": "admin",
    "PATCH /v1/keys/{key_id}": "admin",
    "DELETE /v1/keys/{key_id}": "admin",
}
"""The scope each route asks for. What is not listed asks for ``admin``; only ``OPEN`` needs
no key, and it tells nothing but that the process lives."""

SECRET = re.compile(r"by_[0-9A-Za-z-]{1,64}_[0-9A-Za-z_-]{43}")
PROXY_HEADERS = (b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip", b"via")
CACHED_KEYS = 4096


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who makes a request: the owner of what it makes, and what it may do."""

    owner: str
    scopes: frozenset[str]
    key: str | None = None

    @property
    def admin(self) -> bool:
        """Whether this caller sees every owner's jobs; ``admin`` includes all scopes."""
        return "admin" in self.scopes

    def may(self, scope: str) -> bool:
        return scope in self.scopes or self.admin


LOCAL = Principal(owner="local", scopes=frozenset(SCOPES))
"""A caller without a key on the same machine."""

_PATTERNS = [
    (method, re.compile(re.sub(r"\{\w+\}", "[^/]+", path)), needed)
    for method, path, needed in ((*key.split(" ", 1), value) for key, value in ROUTES.items())
]


@lru_cache(maxsize=4096)
def required_scope(method: str, path: str) -> str:
    """Return the scope that a request needs, ``admin`` for whatever no rule names."""
    for known, pattern, needed in _PATTERNS:
        if method == known and pattern.fullmatch(path):
            return needed
    return "admin"


class Authenticator:
    """Finds the principal of a request; remembers good keys for ``key_cache_s``."""

    def __init__(
        self,
        keys: KeyStore,
        settings: ApiSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = keys
        self._anonymous = settings.anonymous and settings.loopback
        self._ttl_s = settings.key_cache_s
        self._clock = clock
        self._known: dict[bytes, tuple[Principal, float]] = {}

    async def authorize(
        self, scope: Scope, headers: Mapping[bytes, bytes], needed: str
    ) -> Principal | None:
        """Return who calls, or None on an open route.

        Raises:
            UnauthenticatedError: No key came, or not a good one.
            ForbiddenError: The key lacks the scope ``needed``.
        """
        if needed == OPEN:
            return None
        authorization = headers.get(b"authorization")
        if authorization is None and self._anonymous and is_local(scope, headers):
            return LOCAL
        principal = await self._principal(authorization)
        if not principal.may(needed):
            raise ForbiddenError(
                f"the key has the scopes {', '.join(sorted(principal.scopes)) or 'none'}, and "
                f"{scope['method']} here needs {needed!r}; create one with it"
            )
        return principal

    def forget(self, key_id: str) -> None:
        """Stop trusting a key at once, on this server."""
        stale = [name for name, (known, _) in self._known.items() if known.key == key_id]
        for name in stale:
            self._known.pop(name, None)

    async def _principal(self, authorization: bytes | None) -> Principal:
        if authorization is None:
            raise UnauthenticatedError(
                "this request needs an API key; send the header 'Authorization: Bearer KEY'"
            )
        scheme, _, secret = authorization.decode("latin-1").partition(" ")
        if scheme.lower() != "bearer" or not SECRET.fullmatch(secret.strip()):
            raise UnauthenticatedError("the Authorization header holds no API key of this server")
        secret = secret.strip()
        name = hashlib.sha256(secret.encode()).digest()
        principal, expires = self._known.get(name, (None, 0.0))
        if principal is not None and self._clock() < expires:
            return principal
        self._known.pop(name, None)
        principal = _principal_of(await run_in_threadpool(self._keys.authenticate, secret))
        if len(self._known) >= CACHED_KEYS:
            self._known.clear()
        self._known[name] = (principal, self._clock() + self._ttl_s)
        return principal


def is_local(scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
    """Say whether the request surely comes from this machine and from no web page.

    A proxy on this machine would make everybody local, so its headers rule that out.
    A page of another site, or one whose name was pointed at 127.0.0.1, shows in Origin
    or Host.
    """
    client = scope.get("client")
    if client is None or not is_loopback(client[0]):
        return False
    if any(name in headers for name in PROXY_HEADERS):
        return False
    host = headers.get(b"host", b"")
    origin = headers.get(b"origin")
    return is_loopback(_host_name(host)) and (origin is None or origin.partition(b"://")[2] == host)


def _host_name(host: bytes) -> str:
    text = host.decode("latin-1")
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]


def _principal_of(key: ApiKey) -> Principal:
    return Principal(owner=key.owner, scopes=frozenset(key.scopes), key=key.id)
