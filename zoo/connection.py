"""Requests to a Blockyard server: sent, retried where that is safe, and turned into errors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx

from zoo import errors

ATTEMPTS = 4
PAUSE_S = 0.1
_KEY = re.compile(r"[\x21-\x7e]+")
IDEMPOTENT = frozenset({"GET", "HEAD", "PUT"})


class Connection:
    """Sends requests, tries again where that is safe, and turns answers into errors."""

    def __init__(
        self, url: str, api_key: str | None, *, timeout_s: float, sleep: Callable[[float], None]
    ) -> None:
        self._url = url.rstrip("/")
        self._sleep = sleep
        if api_key and not _KEY.fullmatch(api_key):
            raise errors.InvalidInputError(
                "the API key has characters that no key has; copy it again, without spaces"
            )
        try:
            self._client = httpx.Client(
                base_url=self._url,
                headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
                timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 10.0)),
                trust_env=False,
                verify=not self._url.lower().startswith("http://"),  # loading CAs takes 0.2 s
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise errors.InvalidInputError(
                f"{url!r:.200} is no address of a server ({error}); give http://host:port"
            ) from error

    def close(self) -> None:
        self._client.close()

    def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request and return its good answer.

        Raises:
            BlockyardError: What the server refused it with, as the same class.
            NotReadyError: No server answers.
            DeadlineExceededError: The server was silent for too long.
        """
        attempts = ATTEMPTS if method in IDEMPOTENT else 1
        for attempt in range(attempts):
            try:
                answer = self._client.request(method, path, **options)
                break
            except httpx.TimeoutException as error:
                raise errors.DeadlineExceededError(
                    f"{self._url} did not answer {method} {path} in time"
                ) from error
            except httpx.TransportError as error:
                if attempt + 1 == attempts:
                    raise errors.NotReadyError(
                        f"no server answers at {self._url} ({error}); "
                        "check the address, or start one with `blockyard serve`"
                    ) from error
                self._sleep(PAUSE_S * 2**attempt)
        if not answer.is_success:
            raise error_of(answer)
        return answer

    def json(self, method: str, path: str, **options: Any) -> Any:
        """Send a request and return the JSON of its answer.

        Raises:
            BlockyardError: As ``send``.
            EnvironmentUnfitError: The answer is no JSON: something else listens there.
        """
        answer = self.send(method, path, **options)
        try:
            return answer.json()
        except ValueError as error:
            raise errors.EnvironmentUnfitError(
                f"{self._url} answered {method} {path} with something else than JSON, so it is "
                "no Blockyard server; check the address"
            ) from error


def _tree(root: type[errors.BlockyardError]) -> Iterator[type[errors.BlockyardError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


_BY_STATUS: Mapping[int, type[errors.BlockyardError]] = {
    401: errors.UnauthenticatedError,
    403: errors.ForbiddenError,
    404: errors.NotFoundError,
    409: errors.ConflictError,
    413: errors.TooLargeError,
    502: errors.NotReadyError,
    503: errors.NotReadyError,
    504: errors.DeadlineExceededError,
    507: errors.StorageFullError,
}


def error_of(answer: httpx.Response) -> errors.BlockyardError:
    """Return the error that an answer stands for: by its type if known, else by its status."""
    try:
        body = answer.json()["error"]
        kind, message, details = body["type"], str(body["message"]), body.get("details") or {}
    except (ValueError, KeyError, TypeError):
        kind, message, details = "", "", {}
    url = answer.request.url
    message = message or (
        f"{url.scheme}://{url.netloc.decode()} answered {answer.status_code} "
        f"{answer.reason_phrase} to {answer.request.method} {url.path}"
        + (", and not as a Blockyard server does; check the address" if answer.content else "")
    )
    known = {cls.__name__: cls for cls in _tree(errors.BlockyardError)}
    cls = known.get(kind)
    if cls is errors.UnknownNameError and details:
        return errors.UnknownNameError(details["kind"], details["name"], details["choices"])
    if cls is errors.OverloadedError or answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
        wait_s = float(details.get("retry_after_s", 1.0))
        return errors.OverloadedError(message, retry_after_s=wait_s)
    if cls is errors.InfeasibleError:
        return errors.InfeasibleError(message, nearest=details.get("nearest"))
    if cls is None or cls is errors.UnknownNameError:
        fallback = errors.InvalidInputError if answer.is_client_error else None
        cls = _BY_STATUS.get(answer.status_code, fallback or errors.EnvironmentUnfitError)
    return cls(message)
