"""What one owner may do to another's things through the server: nothing."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.running_server import Running, linear, put_block, running
from zoo.jobs import JobKind
from zoo.spec import Chain
from zoo.store.protocols import SCOPES, Edge, Store

EVERY = [scope for scope in SCOPES if scope != "admin"]


@pytest.fixture
def server(store: Store) -> Iterator[Running]:
    with running(store, anonymous=False) as server:
        yield server


@pytest.fixture
def bob(server: Running) -> Iterator[httpx.Client]:
    with server.client(server.key(*EVERY, owner="bob")) as client:
        yield client


@pytest.fixture
def chain(server: Running) -> Chain:
    """A chain that alice searched for, under her alias ``prod``."""
    store = server.store
    job = store.jobs.submit(JobKind.SEARCH, {}, owner="alice")
    card = {"job": job.id, "trained": {"by": [job.id, "job"]}, "task": "digits"}
    made = Chain(blocks=(put_block(store, linear(4, 2)),), card=card)
    store.blocks.put_chain(made, job=job.id)
    store.blocks.set_alias("prod", made.id, owner="alice")
    store.blocks.add_edges([Edge(child=made.id, parent=job.id, relation="searched-by")])
    return made


def test_another_owners_chain_and_alias_are_left_alone(
    server: Running, bob: httpx.Client, chain: Chain
) -> None:
    profile = {
        "subject": chain.id,
        "device": "cpu",
        "runtime": "torch",
        "precision": "float32",
        "batch": 1,
        "median_ms": 0.001,
        "p95_ms": 0.001,
        "samples": [0.001],
    }
    other = Chain(blocks=(put_block(server.store, linear(4, 2), seed=1),))
    body = {"blocks": [block.id for block in other.blocks], "card": {}}
    assert bob.post("/v1/chains", json=body).status_code == 201
    edges = [{"child": chain.id, "parent": other.id, "relation": "assembled-from"}]
    for answer in (
        bob.post("/v1/chains", json={"blocks": [chain.blocks[0].id], "card": {"mine": True}}),
        bob.put("/v1/aliases/prod", json={"chain": other.id}),
        bob.delete(f"/v1/chains/{chain.id}"),
        bob.delete("/v1/chains/prod"),
        bob.post("/v1/profiles", json=profile),
        bob.post("/v1/lineage", json={"edges": edges}),
        bob.post("/v1/assemble", json={"name": "prod"}),
        bob.post("/v1/jobs", json={"kind": "assemble", "spec": {"name": "prod"}}),
    ):
        assert answer.status_code == 403, answer.text
        assert answer.json()["error"]["type"] == "ForbiddenError"
    blocks = server.store.blocks
    assert blocks.chain("prod").card == chain.card
    assert blocks.profiles(chain.id) == ()
    assert len(blocks.lineage(chain.id)) == 1
    assert bob.delete(f"/v1/chains/{other.id}").status_code == 204


@pytest.mark.parametrize(("owner", "scopes"), [("alice", EVERY), ("root", ["admin"])])
def test_the_owner_and_an_admin_may(
    server: Running, chain: Chain, owner: str, scopes: list[str]
) -> None:
    with server.client(server.key(*scopes, owner=owner)) as client:
        body = {"blocks": [chain.blocks[0].id], "card": {"newer": True}}
        assert client.post("/v1/chains", json=body).status_code == 201
        assert client.put("/v1/aliases/prod", json={"chain": chain.id}).status_code == 200
        assert client.get("/v1/chains/prod").json()["card"] == {"newer": True}
        assert client.delete("/v1/chains/prod").status_code == 204


def test_another_owners_job_is_named_nowhere(
    server: Running, bob: httpx.Client, chain: Chain
) -> None:
    job_id = str(chain.card["job"])
    shown = bob.get("/v1/chains/prod").json()
    assert shown["card"] == {
        "job": None,
        "trained": {"by": [None, "job"]},
        "task": "digits",
    }
    for path in ("/v1/chains", "/v1/lineage/prod", f"/v1/lineage/{chain.id}", "/v1/savings"):
        assert job_id not in bob.get(path).text
    assert bob.get("/v1/chains", params={"job": job_id}).status_code == 404
    with server.client(server.key("read", owner="alice")) as alice:
        assert alice.get("/v1/chains/prod").json()["card"] == chain.card
        assert job_id in alice.get(f"/v1/lineage/{chain.id}").text
        assert alice.get("/v1/chains", params={"job": job_id}).json()["items"]


def test_a_job_is_deleted_by_its_owner_once_it_is_over(server: Running, bob: httpx.Client) -> None:
    job = server.store.jobs.submit(JobKind.SEARCH, {}, owner="alice")
    assert bob.delete(f"/v1/jobs/{job.id}").status_code == 404
    with server.client(server.key(*EVERY, owner="alice")) as alice:
        assert alice.delete(f"/v1/jobs/{job.id}").status_code == 409
        assert alice.post(f"/v1/jobs/{job.id}/cancel").status_code == 200
        assert alice.delete(f"/v1/jobs/{job.id}").status_code == 204
        assert alice.get(f"/v1/jobs/{job.id}").status_code == 404
