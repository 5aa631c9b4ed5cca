"""Nobody gets in by a door that was forgotten: every route, every owner, every trick."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from serving.api import ApiSettings, create_app
from serving.api.auth import OPEN, ROUTES, required_scope
from serving.engine import Engine
from tests.running_server import Running, running, until
from zoo.canonical import content_id
from zoo.jobs import Arm, Candidate, CandidateState, JobKind, JobState
from zoo.store.protocols import SCOPES, Store

SEARCH = {
    "method": {"name": "nsga2"},
    "space": {"name": "darts"},
    "data": "digits",
}


def routes_of(app: FastAPI) -> list[tuple[str, str]]:
    """Every method and path template that the application answers."""
    found = []
    for route in iter_route_contexts(app.router.routes):
        assert route.path is not None
        found += [(method, route.path) for method in sorted(route.methods or ["WEBSOCKET"])]
    return found


@pytest.fixture(scope="module")
def app() -> Iterator[FastAPI]:
    class NoStore:
        keys = None

    with Engine(device="cpu") as engine:
        yield create_app(ApiSettings(), NoStore(), queue=None, engine=engine)  # type: ignore[arg-type]


@pytest.fixture
def walled(store: Store) -> Iterator[Running]:
    with running(store, anonymous=False) as server:
        yield server


def filled(path: str) -> str:
    return path.replace("{digest}", "a" * 64).replace("{", "").replace("}", "")


def test_every_route_is_listed_and_nothing_else_is(app: FastAPI) -> None:
    routes = routes_of(app)
    assert len(routes) == len(set(routes))
    served = {f"{method} {path}" for method, path in routes}
    # The documentation pages answer HEAD as well; unlisted, that asks for admin.
    assert served - set(ROUTES) == {"HEAD /docs", "HEAD /openapi.json"}
    assert set(ROUTES) <= served
    assert set(ROUTES.values()) == {*SCOPES, OPEN}


def test_only_liveness_is_open(app: FastAPI) -> None:
    assert [route for route, scope in ROUTES.items() if scope == OPEN] == ["GET /health"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/anything"),
        ("POST", "/v1/jobs/"),
        ("GET", "/v1/jobs\n"),
        ("GET", "/v1//jobs"),
        ("PATCH", "/v1/jobs"),
        ("GET", "/V1/jobs"),
        ("OPTIONS", "/v1/jobs"),
        ("GET", "/health/"),
        ("POST", "/health"),
    ],
)
def test_what_is_not_listed_asks_for_admin(method: str, path: str) -> None:
    assert required_scope(method, path) == "admin"


def test_every_route_refuses_a_caller_without_key(walled: Running) -> None:
    with walled.client() as client:
        for method, path in routes_of(walled.app):
            answer = client.request(method, filled(path))
            if (method, path) == ("GET", "/health"):
                assert answer.json() == {"live": True}
                continue
            assert answer.status_code == 401, (method, path)
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert client.get("/no/such/page").status_code == 401


def test_every_route_refuses_a_key_without_its_scope(walled: Running) -> None:
    secrets = {scope: walled.key(scope) for scope in SCOPES}
    with walled.client() as client:
        for method, path in routes_of(walled.app):
            needed = ROUTES.get(f"{method} {path}", "admin")
            for scope in set(SCOPES) - {needed, "admin"} if needed != OPEN else ():
                headers = {"Authorization": f"Bearer {secrets[scope]}"}
                answer = client.request(method, filled(path), headers=headers)
                assert answer.status_code == 403, (method, path, scope)
                if method != "HEAD":
                    assert needed in answer.text
        headers = {"Authorization": f"Bearer {secrets['read']}"}
        assert client.get("/no/such/page", headers=headers).status_code == 403


def test_every_route_lets_the_right_scope_and_admin_in(walled: Running) -> None:
    secrets = {scope: walled.key(scope) for scope in SCOPES}
    with walled.client() as client:
        for method, path in routes_of(walled.app):
            needed = ROUTES.get(f"{method} {path}", "admin")
            for scope in {needed, "admin"} - {OPEN}:
                headers = {"Authorization": f"Bearer {secrets[scope]}"}
                answer = client.request(method, filled(path), headers=headers)
                assert answer.status_code not in (401, 403), (method, path, scope)
                assert answer.status_code < 500, (method, path, answer.text)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Basic YWRtaW46YWRtaW4=",
        "Bearer by_0123456789abcdef_" + "A" * 43,
        "Bearer by_'; DROP TABLE api_keys; --_" + "A" * 43,
        "Bearer \xff\xfe",
        "bearer null",
    ],
)
def test_a_bad_key_is_no_key(walled: Running, header: str) -> None:
    with walled.client() as client:
        raw = [(b"Authorization", header.encode("latin-1"))]
        assert client.get("/v1/whoami", headers=raw).status_code == 401  # type: ignore[arg-type]


def test_a_bad_key_does_not_fall_back_to_anonymous(store: Store) -> None:
    with running(store) as server, server.client("by_x_" + "A" * 43) as client:
        assert client.get("/v1/whoami").status_code == 401


def test_callers_of_this_machine_need_no_key(store: Store) -> None:
    with running(store) as server, server.client() as client:
        assert client.get("/v1/whoami").json() == {
            "owner": "local",
            "scopes": sorted(SCOPES),
            "key": None,
        }
        same = {"Origin": server.url}
        assert client.get("/v1/whoami", headers=same).status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        {"X-Forwarded-For": "127.0.0.1"},
        {"Forwarded": "for=127.0.0.1"},
        {"X-Real-IP": "127.0.0.1"},
        {"Via": "1.1 proxy"},
        {"Host": "blockyard.example.com"},
        {"Host": "127.0.0.1.example.com"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
    ],
)
def test_who_may_come_from_elsewhere_is_not_anonymous(store: Store, header: dict[str, str]) -> None:
    with running(store) as server, server.client() as client:
        assert client.get("/v1/whoami", headers=header).status_code == 401
        secret = server.key("read")
    with running(store) as server, server.client(secret) as client:
        assert client.get("/v1/whoami", headers=header).json()["owner"] == "alice"


def test_beyond_loopback_nobody_is_anonymous(store: Store) -> None:
    with running(store, host="0.0.0.0", anonymous=True) as server, server.client() as client:
        assert client.get("/v1/whoami").status_code == 401
        assert client.get("/health").status_code == 200


def test_a_websocket_is_refused(walled: Running) -> None:
    port = int(walled.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
        raw.sendall(
            b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert raw.recv(64).split()[1] in (b"401", b"403")


def test_a_revoked_key_dies_at_once_and_an_expired_one_in_time(store: Store) -> None:
    with (
        running(store, anonymous=False, key_cache_s=60) as server,
        server.client(server.key("admin")) as admin,
    ):
        expires = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        body = {"name": "ci", "owner": "bob", "scopes": ["read"], "expires_at": expires}
        made = admin.post("/v1/keys", json=body).json()
        with server.client(made["secret"]) as client:
            assert client.get("/v1/whoami").json()["owner"] == "bob"
            assert admin.delete(f"/v1/keys/{made['key']['id']}").status_code == 204
            assert client.get("/v1/whoami").status_code == 401
        listed = admin.get("/v1/keys").text
        assert made["key"]["id"] in listed
        assert made["secret"] not in listed
        assert made["secret"][-43:] not in listed


def test_a_key_revoked_elsewhere_dies_within_the_cache_time(store: Store) -> None:
    with running(store, anonymous=False, key_cache_s=0.05) as server:
        key, secret = store.keys.create("k", owner="bob", scopes=["read"])
        with server.client(secret) as client:
            assert client.get("/v1/whoami").status_code == 200
            store.keys.revoke(key.id)
            until(lambda: client.get("/v1/whoami").status_code == 401)


def test_another_owners_job_is_not_there(walled: Running) -> None:
    jobs = walled.store.jobs
    mine = jobs.submit(JobKind.SEARCH, SEARCH, owner="alice")
    theirs = jobs.submit(JobKind.SEARCH, SEARCH, owner="bob")
    every = [scope for scope in SCOPES if scope != "admin"]
    with walled.client(walled.key(*every, owner="alice")) as client:
        paths = [
            ("GET", ""),
            ("POST", "/cancel"),
            ("POST", "/pause"),
            ("POST", "/resume"),
            ("GET", "/events"),
            ("GET", "/candidates"),
        ]
        for method, path in paths:
            hidden = client.request(method, f"/v1/jobs/{theirs.id}{path}")
            missing = client.request(method, f"/v1/jobs/{mine.id[:-1]}x{path}")
            assert hidden.status_code == missing.status_code == 404
            assert hidden.text.replace(theirs.id, "") == missing.text.replace(
                f"{mine.id[:-1]}x", ""
            )
        for path in (f"/v1/savings?job={theirs.id}", f"/v1/lineage/{theirs.id}"):
            assert client.get(path).status_code == 404
        for query in ("", "?owner=bob", "?state=queued", "?kind=search"):
            listed = client.get(f"/v1/jobs{query}").json()["items"]
            assert [job["id"] for job in listed] == [mine.id]
        assert client.get(f"/v1/jobs/{mine.id}").status_code == 200
        body = {"edges": [{"child": "a" * 64, "parent": theirs.id, "relation": "searched-by"}]}
        assert client.post("/v1/lineage", json=body).status_code == 404
    assert walled.store.jobs.job(theirs.id).state is JobState.QUEUED
    with walled.client(walled.key("admin", owner="root")) as client:
        listed = client.get("/v1/jobs").json()["items"]
        assert {job["id"] for job in listed} == {mine.id, theirs.id}
        assert len(client.get("/v1/jobs?owner=bob").json()["items"]) == 1


def test_whose_evaluation_was_reused_is_told_only_to_who_may_see_it(walled: Running) -> None:
    jobs = walled.store.jobs
    first = jobs.submit(JobKind.SEARCH, SEARCH, owner="bob")
    second = jobs.submit(JobKind.SEARCH, SEARCH, owner="alice")
    claimed = jobs.claim("w", lease_s=60, job_id=second.id)
    assert claimed is not None
    for number, source in enumerate((first.id, second.id)):
        candidate = Candidate(
            job=second.id,
            number=number,
            architecture={"choices": [number]},
            architecture_id=content_id({"choices": [number]}),
            arm=Arm.SEARCH,
            state=CandidateState.EVALUATED,
            reused_from=source,
            saved_s=2.0,
        )
        jobs.put_candidate(candidate, claimed.token)
    path = f"/v1/jobs/{second.id}/candidates"
    with walled.client(walled.key("read", owner="alice")) as client:
        told = [(item["reused_from"], item["saved_s"]) for item in client.get(path).json()]
        assert told == [(None, 2.0), (second.id, 2.0)]
        assert [item["reused"] for item in client.get(path).json()] == [True, True]
        assert client.get("/v1/savings").json()["saved_s"] == 4.0
        assert client.get("/v1/savings?owner=bob").json()["saved_s"] == 4.0  # her own still
        origins = [
            {"job": second.id, "hits": 1, "saved_s": 2.0},
            {"job": None, "hits": 1, "saved_s": 2.0},
        ]
        assert client.get("/v1/savings/origins").json() == origins
        assert client.get(f"/v1/savings/origins?job={second.id}").json() == origins
        assert client.get(f"/v1/savings/origins?job={first.id}").status_code == 404
    with walled.client(walled.key("read", owner="carol")) as client:
        assert client.get("/v1/savings").json()["saved_s"] == 0.0
    with walled.client(walled.key("admin")) as client:
        assert client.get(path).json()[0]["reused_from"] == first.id
        named = {item["job"] for item in client.get("/v1/savings/origins").json()}
        assert named == {first.id, second.id}
        assert client.get("/v1/savings?owner=alice").json()["hits"] == 2
        assert client.get("/v1/savings?owner=bob").json()["hits"] == 0


def test_an_admin_says_whether_an_owner_shares(walled: Running) -> None:
    with walled.client(walled.key("admin", owner="root")) as admin:
        body = {"name": "ci", "owner": "eve", "scopes": ["submit"], "shares": False}
        made = admin.post("/v1/keys", json=body).json()
        assert made["key"]["shares"] is False
        with walled.client(made["secret"]) as eve:
            job = eve.post("/v1/jobs", json={"kind": "search", "spec": SEARCH}).json()
            assert job["shares"] is False
            path = f"/v1/keys/{made['key']['id']}"
            assert eve.patch(path, json={"shares": True}).status_code == 403
            assert admin.patch(path, json={"shares": True}).json()["shares"] is True
            again = eve.post("/v1/jobs", json={"kind": "search", "spec": SEARCH}).json()
            assert again["shares"] is True
        assert admin.patch("/v1/keys/nothing", json={"shares": True}).status_code == 404
        assert admin.patch(path, json={}).status_code == 400


def test_the_owner_of_a_job_is_the_keys_whatever_is_asked(walled: Running) -> None:
    with walled.client(walled.key("submit", owner="alice")) as client:
        body = {"kind": "search", "spec": SEARCH}
        assert client.post("/v1/jobs", json=body).json()["owner"] == "alice"
        forged = client.post("/v1/jobs", json=body | {"owner": "bob"})
        assert forged.status_code == 400
        assert "owner" in forged.json()["error"]["message"]


def test_an_idempotency_key_is_each_owners_own(walled: Running) -> None:
    body = {"kind": "search", "spec": SEARCH}
    headers = {"Idempotency-Key": "release-1"}

    def submit(client: httpx.Client) -> str:
        answer = client.post("/v1/jobs", json=body, headers=headers)
        assert answer.status_code == 202
        return str(answer.json()["id"])

    with (
        walled.client(walled.key("submit", owner="alice")) as alice,
        walled.client(walled.key("submit", owner="bob")) as bob,
    ):
        assert submit(alice) == submit(alice) != submit(bob)
