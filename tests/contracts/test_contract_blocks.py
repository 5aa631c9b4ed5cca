"""What every ``BlockStore`` promises."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from zoo.canonical import digest as digest_of
from zoo.errors import InvalidInputError, NotFoundError
from zoo.jobs import JobKind, JobState
from zoo.spec import Chain, Device, Profile
from zoo.store.protocols import BlockQuery, ChainQuery, Edge, WorkerInfo

CARD = {"task": "digits", "metrics": {"accuracy": 0.9}, "seed": 3}


def profile(subject: str, median_ms: float = 1.0, **changes: Any) -> Profile:
    values: dict[str, Any] = {
        "subject": subject,
        "device": "d" * 16,
        "runtime": "torch",
        "precision": "float32",
        "batch": 1,
        "median_ms": median_ms,
        "p95_ms": 2 * median_ms,
        "samples": (median_ms, 1.5),
        "peak_bytes": 2**33,
    }
    return Profile(**(values | changes))


class TestBlocks:
    def test_a_block_comes_back_as_it_was(self, make_store: Any, make_block: Any) -> None:
        store = make_store()
        block = make_block(store, signature="sig", size_bytes=2**33)
        assert store.blocks.put_block(block) == block.id
        assert store.blocks.put_block(block) == block.id
        assert store.blocks.block(block.id) == block
        assert store.blocks.block(block.id[:8]) == block
        assert store.blocks.blocks().items == (block,)

    def test_a_block_needs_its_weights(self, make_store: Any, make_block: Any) -> None:
        store = make_store()
        block = make_block(store, weights=digest_of(b"nowhere"))
        with pytest.raises(NotFoundError, match=block.weights):
            store.blocks.put_block(block)

    def test_32_clients_that_push_one_block_make_one(
        self, make_store: Any, make_block: Any
    ) -> None:
        store = make_store()
        with ThreadPoolExecutor(32) as pool:
            ids = set(pool.map(lambda _: store.blocks.put_block(make_block(store)), range(32)))
        assert len(ids) == 1
        assert len(store.blocks.blocks().items) == 1
        assert len(list(store.files.digests())) == 1

    @pytest.mark.parametrize("ref", ["0" * 64, "0" * 8, "short", "", "../x", "%00"])
    def test_an_unknown_reference_is_not_found(self, make_store: Any, ref: str) -> None:
        blocks = make_store().blocks
        for act in (blocks.block, blocks.chain, blocks.onnx, blocks.delete_chain):
            with pytest.raises(NotFoundError):
                act(ref)

    def test_filters_and_orders(self, make_store: Any, make_block: Any) -> None:
        blocks = (store := make_store()).blocks
        made = [make_block(store, value, signature=f"s{value % 2}") for value in (2, 0, 3, 1)]
        for block in made:
            blocks.put_block(block)

        def params(**query: Any) -> list[int]:
            return [block.num_params - 10 for block in blocks.blocks(BlockQuery(**query)).items]

        assert params() == [2, 0, 3, 1]
        assert params(descending=True) == [1, 3, 0, 2]
        assert params(order="num_params") == [0, 1, 2, 3]
        assert params(order="size_bytes", descending=True) == [3, 2, 1, 0]
        assert params(op="other") == []
        assert params(op="test.op", signature="s1", max_params=12) == [1]
        assert params(max_size_bytes=41, order="num_params") == [0, 1]

    @pytest.mark.parametrize("order", ["created", "num_params"])
    @pytest.mark.parametrize("descending", [False, True])
    def test_pages_hold_every_block_once_while_others_come(
        self, make_store: Any, make_block: Any, clock: Any, order: Any, descending: bool
    ) -> None:
        blocks = (store := make_store(now=clock)).blocks
        made = {
            blocks.put_block(make_block(store, value, num_params=value // 2)) for value in range(7)
        }
        query = BlockQuery(order=order, descending=descending)
        page = blocks.blocks(query, limit=2)
        seen = [block.id for block in page.items]
        extra = 100
        while page.next:
            blocks.put_block(make_block(store, extra, num_params=extra % 5))
            extra += 1
            page = blocks.blocks(query, limit=2, cursor=page.next)
            seen += [block.id for block in page.items]
        assert len(seen) == len(set(seen))
        assert made <= set(seen)

    def test_a_cursor_of_another_order_is_refused(self, make_store: Any, make_block: Any) -> None:
        blocks = (store := make_store()).blocks
        for value in range(3):
            blocks.put_block(make_block(store, value))
        cursor = blocks.blocks(limit=1).next
        with pytest.raises(InvalidInputError, match="cursor"):
            blocks.blocks(BlockQuery(order="size_bytes"), limit=1, cursor=cursor)


class TestChains:
    def test_a_chain_comes_back_as_it_was(self, make_store: Any, put_chain: Any) -> None:
        store = make_store()
        chain = put_chain(store, 1, 2, 1, card=CARD)
        assert store.blocks.chain(chain.id) == chain
        assert store.blocks.chain(chain.id[:8]) == chain
        assert store.blocks.chains().items == (chain,)

    def test_a_chain_needs_its_blocks(self, make_store: Any, make_block: Any) -> None:
        store = make_store()
        block = make_block(store)
        with pytest.raises(NotFoundError, match=block.id):
            store.blocks.put_chain(Chain(blocks=(block,)))
        assert store.blocks.chains().items == ()

    def test_a_known_chain_takes_the_newer_card_and_keeps_its_file(
        self, make_store: Any, put_chain: Any, onnx_file: bytes
    ) -> None:
        store = make_store()
        onnx = store.files.put(onnx_file)
        chain = put_chain(store, 1, card=CARD, onnx=onnx, job="job_1")
        newer = {**CARD, "task": "cifar10", "metrics": {"accuracy": 0.5}}
        assert store.blocks.put_chain(Chain(blocks=chain.blocks, card=newer)) == chain.id
        assert store.blocks.chain(chain.id).card == newer
        assert store.blocks.onnx(chain.id) == onnx
        assert store.blocks.chains(ChainQuery(task="cifar10", job="job_1")).items != ()
        assert store.blocks.chains(ChainQuery(task="digits")).items == ()

    def test_a_chain_without_export_has_no_onnx_file(self, make_store: Any, put_chain: Any) -> None:
        store = make_store()
        assert store.blocks.onnx(put_chain(store, 1).id) is None
        with pytest.raises(NotFoundError):
            put_chain(store, 2, onnx=digest_of(b"nowhere"))

    def test_filters_and_orders(self, make_store: Any, put_chain: Any) -> None:
        store = make_store()
        chains = {}
        for value, accuracy in ((1, 0.7), (2, 0.9), (3, None)):
            card = {"task": "digits", "metrics": {"accuracy": accuracy} if accuracy else {}}
            chains[value] = put_chain(store, value, card=card, job=f"job_{value}")
        numbers = {chain.id: value for value, chain in chains.items()}

        def found(**query: Any) -> list[int]:
            return [numbers[chain.id] for chain in store.blocks.chains(ChainQuery(**query)).items]

        assert found() == [1, 2, 3]
        assert found(order="accuracy", descending=True) == [2, 1, 3]
        assert found(order="num_params", descending=True) == [3, 2, 1]
        assert found(min_accuracy=0.8) == [2]
        assert found(job="job_3") == [3]
        assert found(block=chains[2].blocks[0].id) == [2]
        assert found(task="cifar10") == []
        assert found(max_params=11) == [1]
        assert found(max_size_bytes=42, order="size_bytes") == [1, 2]

    def test_latency_filters_use_the_profile_of_the_device(
        self, make_store: Any, put_chain: Any
    ) -> None:
        store = make_store()
        device = Device(name="cpu", kind="cpu", info={})
        fast, slow, unmeasured = (put_chain(store, value) for value in (1, 2, 3))
        for chain, latency in ((fast, 1.0), (slow, 9.0)):
            store.blocks.put_profile(profile(chain.id, latency, device=device.id))
            store.blocks.put_profile(profile(chain.id, 50.0, device=device.id, batch=8))
            store.blocks.put_profile(profile(chain.id, 50.0, device=device.id, runtime="onnx"))
        store.devices.announce(WorkerInfo(id="w", devices=(device,), catalogue={}))
        for ref in (device.id, "cpu"):
            within = store.blocks.chains(ChainQuery(device=ref, max_latency_ms=5.0)).items
            assert within == (fast,)
            ordered = store.blocks.chains(
                ChainQuery(device=ref, order="latency", descending=True), limit=1
            )
            assert ordered.items == (slow,)
            query = ChainQuery(device=ref, order="latency", descending=True)
            assert store.blocks.chains(query, limit=1, cursor=ordered.next).items == (fast,)
        assert unmeasured in store.blocks.chains().items
        with pytest.raises(InvalidInputError, match="device"):
            store.blocks.chains(ChainQuery(max_latency_ms=5.0))

    def test_an_alias_moves(self, make_store: Any, put_chain: Any) -> None:
        store = make_store()
        first, second = put_chain(store, 1), put_chain(store, 2)
        store.blocks.set_alias("best", first.id)
        store.blocks.set_alias("best", second.id[:10])
        assert store.blocks.aliases() == {"best": second.id}
        assert store.blocks.chain("best") == second
        with pytest.raises(NotFoundError):
            store.blocks.set_alias("best", "0" * 64)

    @pytest.mark.parametrize("alias", ["", "a b", "../x", "deadbeef", "ü", "a/b", "x" * 129, ".a"])
    def test_a_name_that_could_be_something_else_is_no_alias(
        self, make_store: Any, put_chain: Any, alias: str
    ) -> None:
        store = make_store()
        chain = put_chain(store, 1)
        with pytest.raises(InvalidInputError, match="alias"):
            store.blocks.set_alias(alias, chain.id)

    def test_a_deleted_chain_leaves_nothing_dangling(self, make_store: Any, put_chain: Any) -> None:
        store = make_store()
        chain, other = put_chain(store, 1, 2), put_chain(store, 2)
        store.blocks.set_alias("best", chain.id)
        store.blocks.put_profile(profile(chain.id))
        store.blocks.add_edges([Edge(child=chain.id, parent="job_1", relation="searched-by")])
        store.blocks.delete_chain("best")
        assert store.blocks.aliases() == {}
        assert store.blocks.profiles(chain.id) == ()
        assert store.blocks.lineage("job_1") == ()
        assert store.blocks.chains().items == (other,)
        with pytest.raises(NotFoundError):
            store.blocks.chain(chain.id)


class TestFindings:
    def test_a_newer_profile_replaces_the_one_under_the_same_conditions(
        self, make_store: Any, put_chain: Any
    ) -> None:
        store = make_store()
        chain = put_chain(store, 1)
        block_id = chain.blocks[0].id
        for made in (
            profile(chain.id, 3.0),
            profile(chain.id, 1.0),
            profile(chain.id, 2.0, batch=8),
            profile(chain.id, 4.0, device="e" * 16),
            profile(block_id, 0.5),
        ):
            store.blocks.put_profile(made)
        assert [item.median_ms for item in store.blocks.profiles(chain.id)] == [1.0, 2.0, 4.0]
        assert store.blocks.profiles(chain.id, device="e" * 16)[0].median_ms == 4.0
        assert store.blocks.profiles(block_id) == (profile(block_id, 0.5),)
        with pytest.raises(NotFoundError):
            store.blocks.put_profile(profile("0" * 64))

    def test_lineage_goes_up_and_down_but_not_sideways(self, make_store: Any) -> None:
        blocks = make_store().blocks
        edges = [
            Edge(child="chain", parent="job", relation="searched-by"),
            Edge(child="block", parent="chain", relation="block-of"),
            Edge(child="new", parent="block", relation="assembled-from"),
            Edge(child="sibling", parent="job", relation="searched-by"),
            Edge(child="job", parent="new", relation="trained-from"),  # a loop
        ]
        blocks.add_edges(edges[:4])
        blocks.add_edges(edges[:2])
        assert set(blocks.lineage("block")) == set(edges[:3])
        assert set(blocks.lineage("sibling")) == {edges[3]}
        assert blocks.lineage("nobody") == ()
        blocks.add_edges(edges[4:])
        assert set(blocks.lineage("block")) == set(edges)


class TestGarbage:
    implementations = ("sqlite", "postgres")

    def test_only_what_nothing_refers_to_is_collected(
        self, make_store: Any, make_block: Any, put_chain: Any, clock: Any
    ) -> None:
        store = make_store(now=clock, grace_s=60)
        by_hand = make_block(store, 1)
        store.blocks.put_block(by_hand)
        chain = put_chain(store, 2, job="job_1", onnx=store.files.put(b"onnx"))
        gone = put_chain(store, 2, 3, job="job_1", onnx=store.files.put(b"gone"))
        store.blocks.put_profile(profile(gone.blocks[1].id))
        store.blocks.delete_chain(gone.id)
        orphan = store.files.put(b"orphan")
        clock.advance(61)
        blocks, files = store.blocks.garbage()
        assert blocks == [gone.blocks[1].id]
        assert sorted(files) == sorted([gone.blocks[1].weights, orphan, digest_of(b"gone")])
        assert store.blocks.collect() == (1, 3)
        assert store.blocks.garbage() == ([], [])
        assert store.blocks.collect() == (0, 0)
        assert store.blocks.chain(chain.id) == chain
        assert store.blocks.block(by_hand.id) == by_hand
        assert store.blocks.profiles(gone.blocks[1].id) == ()
        kept = {chain.blocks[0].weights, by_hand.weights, digest_of(b"onnx")}
        assert set(store.files.digests()) == kept

    def test_what_is_young_or_was_put_again_is_left_alone(
        self, make_store: Any, make_block: Any, clock: Any
    ) -> None:
        store = make_store(now=clock, grace_s=60)
        block = make_block(store, 1)
        store.blocks.put_block(block, job="job_1")
        loose = store.files.put(b"loose")
        assert store.blocks.garbage() == ([], [])
        clock.advance(61)
        assert store.blocks.garbage() == ([block.id], sorted([block.weights, loose]))
        store.blocks.put_block(block, job="job_2")
        store.files.put(b"loose")
        assert store.blocks.collect() == (0, 0)
        store.blocks.put_block(block)  # now by hand
        clock.advance(61)
        assert store.blocks.collect() == (0, 1)
        assert store.blocks.block(block.id) == block

    def test_checkpoints_are_kept_while_their_job_may_need_them(
        self, make_store: Any, clock: Any
    ) -> None:
        store = make_store(now=clock, grace_s=60)
        store.jobs.submit(JobKind.SEARCH, {})
        job = store.jobs.claim("w", lease_s=1000)
        digest = store.files.put(b"state")
        store.jobs.save_checkpoint(job.id, job.token, digest, 1)
        clock.advance(61)
        assert store.blocks.collect() == (0, 0)
        store.jobs.finish(job.id, job.token, JobState.SUCCEEDED)
        assert store.blocks.collect() == (0, 1)
        assert store.jobs.checkpoints(job.id) == ()

    def test_collecting_while_others_push_loses_nothing_alive(
        self, make_store: Any, make_block: Any, put_chain: Any, clock: Any
    ) -> None:
        store = make_store(now=clock, grace_s=60)
        for turn in range(24):  # old garbage, which the pushes below bring back to life
            store.blocks.delete_chain(put_chain(store, turn, job="job_1").id)
        clock.advance(61)

        def push(worker: int) -> list[Chain]:
            made = []
            for turn in range(worker % 2, 24, 2):
                chain = put_chain(store, turn, 100 + worker * 30 + turn, job="job_1")
                if turn % 3:
                    made.append(chain)
                else:
                    store.blocks.delete_chain(chain.id)
            return made

        with ThreadPoolExecutor(4) as pool:
            pushes = [pool.submit(push, worker) for worker in range(4)]
            while not all(task.done() for task in pushes):
                store.blocks.collect()
        alive = [chain for task in pushes for chain in task.result()]
        clock.advance(61)
        store.blocks.collect()
        for chain in alive:
            assert store.blocks.chain(chain.id) == chain
        needed = {block.weights for chain in alive for block in chain.blocks}
        assert set(store.files.digests()) == needed
