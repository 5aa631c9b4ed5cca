"""Whatever is sent, the answer is deliberate: no 5xx, no hang, nothing written elsewhere."""

from __future__ import annotations

import base64
import json
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import iter_route_contexts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.api.gate import BOUNDED_BY_ROUTE
from tests.running_server import Running, linear, put_block, put_chain, running
from zoo.jobs import JobKind
from zoo.store import open_store

SEARCH = {"method": {"name": "nsga2"}, "space": {"name": "darts"}, "data": "digits"}

TRAVERSALS = [
    "../../../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "..%252f..%252fetc%252fpasswd",
    "..\\..\\windows\\win.ini",
    "%c0%ae%c0%ae/etc/passwd",
    "/etc/passwd",
    "//etc/passwd",
    "\\\\host\\share",
    "file:///etc/passwd",
    "C:\\x",
    "a\x00b",
    "a%00.json",
    "....//....//etc",
    "~/x",
    "$(touch x)",
    "`touch x`",
    "; touch x",
    "\n",
    "a" * 5000,
    "\u202e",
    "ü/../ö",
    ".",
    "..",
]

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=2**63)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(TRAVERSALS),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    store = open_store(f"sqlite:///{folder}/zoo.db")
    put_chain(store, put_block(store, linear(4, 2)), alias="flowers")
    store.jobs.submit(JobKind.SEARCH, SEARCH)
    with running(store, max_infer_bytes=10_000, max_json_bytes=100_000) as started:
        yield started
    store.close()


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as opened:
        yield opened


def known(server: Running) -> dict[str, list[str]]:
    chain = server.store.blocks.chain("flowers")
    jobs = server.store.jobs  # a request may have deleted the job of the ones before it
    job = next(iter(jobs.jobs().items), None) or jobs.submit(JobKind.SEARCH, SEARCH)
    return {
        "{name}": ["flowers", chain.id],
        "{version}": [chain.id],
        "{ref}": ["flowers", chain.id, chain.blocks[0].id, job.id],
        "{job_id}": [job.id],
        "{digest}": [chain.blocks[0].weights],
        "{key_id}": ["0123456789abcdef"],
    }


EXAMPLES: dict[str, Any] = {
    "/v1/jobs": {"kind": "search", "spec": SEARCH, "name": "n", "device": None},
    "/v1/assemble": {"task": "digits", "limits": [{"metric": "latency_ms", "max": 1.0}]},
    "/v1/blocks": {
        "spec": {"op": "test.linear", "params": {}, "inputs": [], "outputs": []},
        "weights": "0" * 64,
        "num_params": 1,
        "size_bytes": 1,
        "signature": None,
        "job": None,
    },
    "/v1/chains": {"blocks": ["0" * 64], "card": {}, "job": None, "onnx": None},
    "/v1/aliases/{name}": {"chain": "flowers"},
    "/v1/profiles": {
        "subject": "0" * 64,
        "device": "d",
        "runtime": "torch",
        "precision": "float32",
        "batch": 1,
        "median_ms": 1.0,
        "p95_ms": 1.0,
        "samples": [],
    },
    "/v1/lineage": {"edges": [{"child": "a", "parent": "b", "relation": "block-of"}]},
    "/v1/keys": {"name": "n", "owner": "o", "scopes": ["read"], "expires_at": None},
    "/v1/gc": {"dry_run": True},
    "/v2/repository/index": {"ready": True},
    "/v2/models/{name}/infer": {
        "inputs": [{"name": "input_0", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]
    },
}
EXAMPLES["/v2/models/{name}/versions/{version}/infer"] = EXAMPLES["/v2/models/{name}/infer"]
QUERIES = ["limit", "cursor", "order", "descending", "device", "max_params", "max_latency_ms"]
QUERIES += ["min_accuracy", "batch", "task", "op", "job", "after", "arm", "kind", "state", "owner"]
QUERIES += ["subject", "within_s", "signature", "block", "runtime", "verify", "max_size_bytes"]
KEPT = {"DELETE /v1/chains/{ref}", "DELETE /v1/files/{digest}"}
"""What would take the other examples' objects away."""


def conforms(answer: httpx.Response, path: str) -> None:
    """Every answer is deliberate, and every error has its protocol's form."""
    if path.endswith("/ready") and answer.status_code == 503:
        return  # the model is known and not loaded
    assert answer.status_code < 500, (answer.request.method, str(answer.request.url), answer.text)
    if answer.status_code < 400 or answer.request.method == "HEAD":
        return
    if "application/json" in answer.headers.get("content-type", ""):
        error = answer.json()["error"]
        if path.startswith("/v2"):
            assert isinstance(error, str)
        else:
            assert set(error) <= {"type", "message", "details"}
            assert error["message"]


@settings(
    max_examples=250,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_no_request_causes_an_unexpected_error(
    server: Running, client: httpx.Client, data: st.DataObject
) -> None:
    routes = [
        (method, route.path)
        for route in iter_route_contexts(server.app.router.routes)
        for method in sorted(route.methods or [])
        if route.path is not None and f"{method} {route.path}" not in KEPT
    ]
    method, template = data.draw(st.sampled_from(routes))
    path = template
    for name, choices in known(server).items():
        if name in path:
            value = data.draw(st.sampled_from(choices) | st.text(max_size=20), label=name)
            path = path.replace(name, urllib.parse.quote(value, safe="", errors="replace"))
    names = st.sampled_from(QUERIES)
    values = st.text(max_size=10) | st.integers().map(str) | st.sampled_from(TRAVERSALS)
    query = data.draw(st.dictionaries(names, values, max_size=3), label="query")
    encoded = {key: value.encode("utf-8", "replace").decode() for key, value in query.items()}
    example = EXAMPLES.get(template)
    content: bytes | None = None
    if example is not None:
        changes = data.draw(st.dictionaries(st.sampled_from(list(example)), JSON, max_size=2))
        content = json.dumps({**example, **changes}).encode()
        if data.draw(st.integers(0, 9)) == 0:
            content = data.draw(st.binary(max_size=200)) + content
    answer = client.request(
        method,
        path,
        params=encoded or None,
        content=content,
        headers={"Content-Type": "application/json"} if content is not None else {},
    )
    conforms(answer, template)


TENSOR = b'{"inputs": [{"name": "input_0", "shape": [1, 4], "datatype": "FP32", "data": '

BODIES = [
    b"",
    b"null",
    b"[]",
    b'""',
    b"{",
    b"[" * 50_000,
    b'{"a":' * 900 + b"1" + b"}" * 900,
    b"\xff\xfe\x00",
    b"\x80\x04\x95pickle",
    b'{"kind": "search", "spec": {"seed": 1e999}}',
    b'{"kind": "search", "spec": {"seed": NaN}}',
    b'{"kind": "search", "spec": {"\\ud800": "\\u0000"}}',
    b'{"kind": "search", "kind": "preview", "spec": null}',
    TENSOR + b"[1e999, 1, 1, 1]}]}",
    TENSOR + b"[" * 90 + b"1" + b"]" * 90 + b"}]}",
    b"9" * 6000,
    b'{"kind": "search", "spec": ' + b"9" * 6000 + b"}",
]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_malformed_bodies_are_refused(server: Running, client: httpx.Client, body: bytes) -> None:
    for template in EXAMPLES:
        path = template
        for name, choices in known(server).items():
            path = path.replace(name, choices[0])
        for kind in ("application/json", "text/plain", "multipart/form-data; boundary=x", "x"):
            method = "PUT" if "aliases" in path else "POST"
            answer = client.request(method, path, content=body, headers={"Content-Type": kind})
            conforms(answer, template)
            if template not in ("/v2/repository/index",):
                assert answer.status_code >= 400, (path, body[:80])


def snapshot(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if not path.name.startswith("zoo.db")
    }


def test_traversals_touch_no_file(server: Running, client: httpx.Client, folder: Path) -> None:
    before = snapshot(folder)
    parameters = [name.strip("{}") for name in known(server)]
    for route in iter_route_contexts(server.app.router.routes):
        for method in sorted(route.methods or []):
            for text in TRAVERSALS if route.path and "{" in route.path else ():
                assert route.path is not None
                path = route.path
                for name in parameters:
                    quoted = urllib.parse.quote(text, safe="%", errors="replace")
                    path = path.replace(f"{{{name}}}", quoted)
                body = {"chain": text} if method == "PUT" else None
                raw = {"target": path.encode()}  # or httpx would tidy the path itself
                answer = client.request(method, "/", json=body, extensions=raw)
                conforms(answer, route.path)
                assert answer.status_code >= 400, (method, path)
                assert "root:" not in answer.text
    for template, example in EXAMPLES.items():
        if "{" in template:
            continue
        for field in example:
            for text in TRAVERSALS:
                answer = client.post(template, json=example | {field: text})
                conforms(answer, template)
    assert snapshot(folder) == before


def test_routes_that_bound_their_own_bodies_do(server: Running, client: httpx.Client) -> None:
    """The gate leaves these bodies to their handlers; each must then refuse a long one."""
    for method, path in (
        ("POST", "/v2/models/flowers/infer"),
        ("POST", f"/v2/models/flowers/versions/{known(server)['{version}'][0]}/infer"),
    ):
        assert BOUNDED_BY_ROUTE.fullmatch(path)
        assert client.request(method, path, content=b"x" * 10_001).status_code == 413


def test_a_forged_cursor_is_refused(client: httpx.Client) -> None:
    moments = [
        "2026-01-01T00:00:00+00:00",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
    ]
    tags: list[Any] = [{"at": moment} for moment in [*moments, "2026-01-01", "x", 5]]
    tags += [{"value": value} for value in (1, True, 2**80, 1.5, 1e308, None, "x", [], {})]
    tags += [{}, [], None, "at", {"value": float("nan")}, {"value": float("inf")}]
    for order, path in (
        ("created", "/v1/blocks"),
        ("num_params", "/v1/blocks"),
        ("jobs", "/v1/jobs"),
    ):
        for tag in tags:
            for last in ("x", "\x00", "\ud800", "x" * 100, 5, None):
                text = json.dumps([order, tag, last]).encode()
                cursor = base64.urlsafe_b64encode(text).rstrip(b"=").decode()
                query = {"cursor": cursor} | ({} if order == "jobs" else {"order": order})
                answer = client.get(path, params=query)
                conforms(answer, path)
