"""Errors as HTTP answers: one table from error classes to status codes."""

from __future__ import annotations

import json
from collections.abc import Mapping

from starlette.responses import Response

from zoo import errors
from zoo.errors import BlockyardError

STATUS: Mapping[type[BlockyardError], int] = {
    errors.BlockyardError: 500,
    errors.InvalidInputError: 400,
    errors.UnknownNameError: 400,
    errors.IncompatibleShapeError: 400,
    errors.MissingDataError: 400,
    errors.TooLargeError: 413,
    errors.InfeasibleError: 422,
    errors.NotFoundError: 404,
    errors.ConflictError: 409,
    errors.IllegalTransitionError: 409,
    errors.StaleTokenError: 409,
    errors.AccessError: 403,
    errors.UnauthenticatedError: 401,
    errors.ForbiddenError: 403,
    errors.CapacityError: 503,
    errors.OverloadedError: 429,
    errors.NotReadyError: 503,
    errors.DeadlineExceededError: 504,
    errors.StorageFullError: 507,
    errors.CorruptArtifactError: 500,
    errors.EnvironmentUnfitError: 500,
    errors.PortInUseError: 500,
    errors.RunnerError: 500,
    errors.TrainerError: 500,
    errors.TrainerCrashError: 500,
    errors.TrainerTimeoutError: 500,
}
"""Every class of the tree; a subclass that a plug-in adds takes its parent's status."""

NOT_READY_RETRY_S = 1.0


def status_of(error: BlockyardError) -> int:
    """Return the HTTP status of an error: its own, or that of its nearest parent."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def error_response(error: BlockyardError, path: str) -> Response:
    """Answer with ``error``: ``{"error": message}`` under /v2 (as KServe), typed elsewhere."""
    headers = {}
    if isinstance(error, errors.UnauthenticatedError):
        headers["WWW-Authenticate"] = 'Bearer realm="blockyard"'
    if isinstance(error, errors.OverloadedError):
        headers["Retry-After"] = f"{max(1, round(error.retry_after_s))}"
    elif isinstance(error, errors.NotReadyError):
        headers["Retry-After"] = f"{NOT_READY_RETRY_S:.0f}"
    return failure(
        path, status_of(error), type(error).__name__, str(error), _details(error), headers
    )


def failure(
    path: str,
    status: int,
    kind: str,
    message: str,
    details: Mapping[str, object] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Answer with an error in the form of the protocol that ``path`` belongs to."""
    body: object = message
    if not path.startswith("/v2"):
        body = {"type": kind, "message": message, **({"details": details} if details else {})}
    return json_response({"error": body}, status, headers)


def json_response(
    content: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Answer in ASCII JSON, which carries any string that JSON can."""
    data = json.dumps(content, separators=(",", ":"), allow_nan=False, default=str)
    return Response(data.encode(), status, dict(headers or {}), media_type="application/json")


def _details(error: BlockyardError) -> dict[str, object]:
    """What a client needs to build the same error again."""
    if isinstance(error, errors.UnknownNameError):
        return {"kind": error.kind, "name": error.name, "choices": list(error.choices)}
    if isinstance(error, errors.OverloadedError):
        return {"retry_after_s": error.retry_after_s}
    if isinstance(error, errors.InfeasibleError) and error.nearest is not None:
        return {"nearest": error.nearest}
    return {}
