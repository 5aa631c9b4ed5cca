"""What every ``DeviceStore`` promises."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from zoo.errors import InvalidInputError, NotFoundError
from zoo.spec import Device
from zoo.store.protocols import WorkerInfo

CPU = Device(name="cpu", kind="cpu", info={"model": "x", "threads": 2})
GPU = Device(name="cuda:0", kind="cuda", info={"model": "y", "driver": "1"})
NEWER_GPU = Device(name="cuda:0", kind="cuda", info={"model": "y", "driver": "2"})
WORKER = WorkerInfo(id="w1", devices=(CPU, GPU), catalogue={"spaces": [{"name": "darts"}]})


class TestWorkers:
    implementations = ("sqlite", "postgres")

    def test_a_worker_is_live_while_it_announces_itself(self, make_store: Any, clock: Any) -> None:
        devices = make_store(now=clock).devices
        devices.announce(WORKER)
        (found,) = devices.workers(within_s=60)
        assert (found.id, found.devices, found.catalogue) == ("w1", (CPU, GPU), WORKER.catalogue)
        assert found.seen_at == clock.moment
        clock.advance(61)
        assert devices.workers(within_s=60) == ()
        devices.announce(WORKER)
        assert len(devices.workers(within_s=60)) == 1

    def test_a_retired_worker_is_gone_but_its_devices_are_known(self, make_store: Any) -> None:
        devices = make_store().devices
        devices.announce(WORKER)
        devices.retire("w1")
        devices.retire("w1")
        assert devices.workers() == ()
        assert devices.devices() == (CPU, GPU)

    def test_a_device_is_found_by_id_and_by_name(self, make_store: Any, clock: Any) -> None:
        devices = make_store(now=clock).devices
        devices.announce(WORKER)
        clock.advance(1)
        devices.announce(WorkerInfo(id="w2", devices=(NEWER_GPU,), catalogue={}))
        assert devices.device(GPU.id) == GPU
        assert devices.device("cuda:0") == NEWER_GPU
        with pytest.raises(NotFoundError, match="cuda:7.*cpu"):
            devices.device("cuda:7")


class TestLeases:
    implementations = ("sqlite", "postgres")

    @pytest.fixture
    def devices(self, make_store: Any, clock: Any) -> Any:
        opened = make_store(now=clock).devices
        opened.announce(WORKER)
        return opened

    def test_many_train_and_one_measures_alone(self, devices: Any) -> None:
        assert devices.acquire(CPU.id, "a", "shared", lease_s=10)
        assert devices.acquire(CPU.id, "b", "shared", lease_s=10)
        assert not devices.acquire(CPU.id, "m", "exclusive", lease_s=10)
        devices.release(CPU.id, "a")
        devices.release(CPU.id, "b")
        assert devices.acquire(CPU.id, "m", "exclusive", lease_s=10)
        assert not devices.acquire(CPU.id, "a", "shared", lease_s=10)
        assert not devices.acquire(CPU.id, "n", "exclusive", lease_s=10)
        assert devices.acquire(GPU.id, "a", "exclusive", lease_s=10)

    def test_a_waiting_measurement_keeps_new_trainers_out(self, devices: Any, clock: Any) -> None:
        assert devices.acquire(CPU.id, "a", "shared", lease_s=10)
        assert not devices.acquire(CPU.id, "m", "exclusive", lease_s=10)
        assert not devices.acquire(CPU.id, "b", "shared", lease_s=10)
        assert devices.acquire(CPU.id, "a", "shared", lease_s=20)  # who trains may go on
        clock.advance(11)
        assert devices.acquire(CPU.id, "b", "shared", lease_s=10)  # it stopped asking

    def test_an_expired_lease_is_free(self, devices: Any, clock: Any) -> None:
        assert devices.acquire(CPU.id, "m", "exclusive", lease_s=10)
        clock.advance(9)
        assert devices.acquire(CPU.id, "m", "exclusive", lease_s=10)
        clock.advance(9)
        assert not devices.acquire(CPU.id, "a", "shared", lease_s=10)
        clock.advance(2)
        assert devices.acquire(CPU.id, "a", "shared", lease_s=10)

    def test_a_holder_may_change_its_mode(self, devices: Any) -> None:
        assert devices.acquire(CPU.id, "a", "shared", lease_s=10)
        assert devices.acquire(CPU.id, "a", "exclusive", lease_s=10)
        assert not devices.acquire(CPU.id, "b", "shared", lease_s=10)
        assert devices.acquire(CPU.id, "a", "shared", lease_s=10)
        assert devices.acquire(CPU.id, "b", "shared", lease_s=10)
        assert not devices.acquire(CPU.id, "a", "exclusive", lease_s=10)
        assert devices.acquire(CPU.id, "b", "shared", lease_s=10)  # it kept what it had

    def test_of_many_that_want_it_alone_one_gets_it(self, devices: Any) -> None:
        with ThreadPoolExecutor(16) as pool:
            granted = list(
                pool.map(
                    lambda n: devices.acquire(CPU.id, f"m{n}", "exclusive", lease_s=60), range(32)
                )
            )
        assert sum(granted) == 1

    def test_what_does_not_exist_is_refused(self, devices: Any) -> None:
        with pytest.raises(NotFoundError, match="tpu"):
            devices.acquire("tpu", "a", "shared", lease_s=10)
        with pytest.raises(InvalidInputError, match="loan"):
            devices.acquire(CPU.id, "a", "loan", lease_s=10)

    def test_equal_devices_in_two_places_are_leased_apart(self, devices: Any) -> None:
        twins = [Device(name="cuda:0", kind="cuda", info={}, place=f"host/{n}") for n in (0, 1)]
        assert twins[0] == twins[1]
        assert twins[0].id == twins[1].id
        for number, twin in enumerate(twins):
            devices.announce(WorkerInfo(id=f"t{number}", devices=(twin,), catalogue={}))
        assert devices.acquire(twins[0].place, "a", "exclusive", lease_s=10)
        assert devices.acquire(twins[1].place, "b", "exclusive", lease_s=10)
        assert not devices.acquire(twins[0].place, "b", "shared", lease_s=10)

    def test_unequal_fingerprints_of_one_place_share_its_lease(self, devices: Any) -> None:
        views = [Device(name="cpu", kind="cpu", info={"n": n}, place="host/cpu") for n in (1, 2)]
        devices.announce(WorkerInfo(id="v", devices=tuple(views), catalogue={}))
        assert devices.acquire(views[0].place, "a", "exclusive", lease_s=10)
        assert not devices.acquire(views[1].place, "b", "shared", lease_s=10)
