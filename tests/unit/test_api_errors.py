"""Errors as HTTP answers, and back as the same errors on the client."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from serving.api.errors import STATUS, error_response, status_of
from zoo import errors
from zoo.connection import error_of
from zoo.errors import BlockyardError


def tree(root: type[BlockyardError]) -> Iterator[type[BlockyardError]]:
    if root.__module__ == errors.__name__:
        yield root
    for child in root.__subclasses__():
        yield from tree(child)


EVERY = sorted(set(tree(BlockyardError)), key=lambda cls: cls.__name__)


def example(cls: type[BlockyardError]) -> BlockyardError:
    if cls is errors.UnknownNameError:
        return errors.UnknownNameError("method", "nas", ["tpe", "nsga2"])
    if cls is errors.OverloadedError:
        return errors.OverloadedError("full", retry_after_s=2.5)
    if cls is errors.InfeasibleError:
        return errors.InfeasibleError("too tight", nearest={"latency_ms": 3.0})
    return cls("what happened")


def sent(error: BlockyardError, path: str) -> httpx.Response:
    answer = error_response(error, path)
    request = httpx.Request("GET", f"http://server{path}")
    return httpx.Response(
        answer.status_code, headers=answer.raw_headers, content=answer.body, request=request
    )


def test_the_table_names_every_class_of_the_tree_and_nothing_else() -> None:
    assert set(STATUS) == set(EVERY)


@pytest.mark.parametrize("cls", EVERY)
def test_every_error_arrives_as_what_it_was(cls: type[BlockyardError]) -> None:
    error = example(cls)
    arrived = error_of(sent(error, "/v1/jobs"))
    assert type(arrived) is cls
    assert str(arrived) == str(error)
    assert vars(arrived) == vars(error)


@pytest.mark.parametrize("cls", EVERY)
def test_kserve_errors_are_one_message(cls: type[BlockyardError]) -> None:
    error = example(cls)
    answer = sent(error, "/v2/models/m/infer")
    assert answer.json() == {"error": str(error)}
    assert answer.status_code == STATUS[cls] >= 400


def test_an_error_of_a_plug_in_takes_its_parents_status() -> None:
    class LostError(errors.NotFoundError):
        """Known to a plug-in only."""

    assert status_of(LostError("where")) == 404
    answer = sent(LostError("where"), "/v1/jobs")
    del LostError
    body = json.loads(answer.content)
    body["error"]["type"] = "SomebodyElsesError"
    stranger = httpx.Response(404, json=body, request=answer.request)
    assert type(error_of(stranger)) is errors.NotFoundError


def test_who_is_told_to_wait_is_told_how_long() -> None:
    assert sent(example(errors.OverloadedError), "/v2").headers["Retry-After"] == "2"
    assert sent(errors.NotReadyError("loading"), "/v2").headers["Retry-After"] == "1"
    assert "Bearer" in sent(errors.UnauthenticatedError("who"), "/v1").headers["WWW-Authenticate"]


def test_a_text_that_utf8_cannot_hold_is_still_an_answer() -> None:
    answer = sent(errors.InvalidInputError("got '\ud800'"), "/v1/jobs")
    assert answer.json()["error"]["message"] == "got '\ud800'"


@pytest.mark.parametrize(
    ("status", "content", "cls"),
    [
        (502, b"<html>bad gateway</html>", errors.NotReadyError),
        (500, b"", errors.EnvironmentUnfitError),
        (418, b'{"error": "short"}', errors.InvalidInputError),
        (401, b"[]", errors.UnauthenticatedError),
        (429, b"slow down", errors.OverloadedError),
    ],
)
def test_answers_of_strangers_become_errors_by_their_status(
    status: int, content: bytes, cls: type[BlockyardError]
) -> None:
    request = httpx.Request("GET", "http://proxy/v1/jobs")
    error = error_of(httpx.Response(status, content=content, request=request))
    assert type(error) is cls
    assert str(error)
