"""Two workers with a device each: latency is measured by the owner, also when it is busy."""

from __future__ import annotations

from tests import toys
from workers.embedded import EmbeddedWorker
from zoo.jobs import Arm, JobKind, JobState
from zoo.spec import Device
from zoo.store.protocols import JobQuery, Store

HERE = Device(name="cpu", kind="cpu", info={"model": "this machine"})
THERE = Device(name="cpu", kind="cpu", info={"model": "another machine"})


def test_two_searches_that_need_each_others_device_both_end(store: Store) -> None:
    toys.install()
    workers = {
        device.id: EmbeddedWorker(store, devices=[device], timing=toys.QUICK)
        for device in (HERE, THERE)
    }
    for worker in workers.values():
        worker.start()
    try:
        jobs = [
            store.jobs.submit(
                JobKind.SEARCH,
                toys.search(
                    seed=seed,
                    candidates=4,
                    device=target.id,
                    objectives=["accuracy", "latency_ms"],
                    space={"widths": [4 + seed, 8 + seed], "twins": 1},
                ),
                device=home.id,
            )
            for seed, home, target in ((1, HERE, THERE), (2, THERE, HERE))
        ]
        ended = [toys.succeeded(store, job.id, timeout_s=120) for job in jobs]
    finally:
        for worker in workers.values():
            worker.stop()
    measured = store.jobs.jobs(JobQuery(kind=JobKind.MEASURE)).items
    assert len(measured) == 4  # two networks for each, never twice
    for job in measured:
        assert job.state is JobState.SUCCEEDED
        assert job.device is not None
        assert job.worker == workers[job.device].id
    for job, target in zip(ended, (THERE, HERE), strict=True):
        assert job.worker == workers[str(job.device)].id
        for item in store.jobs.candidates(job.id, arm=Arm.SEARCH):
            assert item.metrics["latency_ms"] > 0
        assert job.result is not None
        chain = store.blocks.chain(job.result["winners"][0]["chain"])  # type: ignore[index,call-overload,arg-type]
        assert {profile.device for profile in store.blocks.profiles(chain.id)} == {target.id}
