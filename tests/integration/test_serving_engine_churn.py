"""The engine under everything at once: whatever happens, every request ends once, rightly."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import CancelledError

import pytest
import torch
from torch import Tensor, nn

from serving.engine import Engine, EngineBlock, EngineLimits
from serving.engine.requests import Answer
from zoo.errors import CapacityError, NotFoundError, OverloadedError, RunnerError
from zoo.spec import TensorSpec

WAIT_S = 30.0
VECTOR = (TensorSpec(shape=(3,), dtype="float64"),)
CHAINS = {"a": "stx", "b": "sty", "c": "sz", "d": "zts", "e": "w"}
FACTORS = {"s": 2.0, "t": 3.0, "x": 5.0, "y": 7.0, "z": 11.0, "w": 13.0}


class Scale(nn.Module):
    """Multiplies; refuses rows that hold NaN."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))

    def forward(self, vector: Tensor) -> Tensor:
        if bool(vector.isnan().any()):
            raise ValueError("not a number")
        return vector * self.factor


def blocks(chain: str) -> list[EngineBlock]:
    return [
        EngineBlock(id=name, module=Scale(FACTORS[name]), inputs=VECTOR, outputs=VECTOR)
        for name in CHAINS[chain]
    ]


def product(chain: str) -> float:
    result = 1.0
    for name in CHAINS[chain]:
        result *= FACTORS[name]
    return result


def churn(engine: Engine, stop: threading.Event) -> None:
    rng = random.Random(7)
    while not stop.is_set():
        name = rng.choice("cde")
        if name in engine.loaded():
            engine.unload(name)
        else:
            engine.load(name, blocks(name))


class Client:
    """Submits at random, cancels some, poisons some, and checks every answer."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine = engine
        self.rng = random.Random(seed)
        self.outcomes: list[str] = []
        self.wrong: list[str] = []

    def run(self) -> None:
        for _ in range(60):
            burst = [self.submit() for _ in range(self.rng.randint(1, 12))]
            for item in burst:
                if item is not None:
                    self.settle(*item)

    def submit(self) -> tuple[Answer, str, Tensor] | None:
        name = self.rng.choice("aaabbbcde")
        rows = self.rng.choice([1, 1, 1, 2, 5, 11])
        given = torch.randn(rows, 3, dtype=torch.float64)
        if self.rng.random() < 0.05:
            given[0, 0] = float("nan")
        deadline = time.monotonic() + self.rng.choice([0.0005, WAIT_S])
        try:
            tenant = self.rng.choice(["t1", "t2", "t3"])
            answer = self.engine.submit(name, (given,), deadline=deadline, tenant=tenant)
        except (OverloadedError, NotFoundError):
            return None
        if self.rng.random() < 0.2:
            answer.cancel()
        return answer, name, given

    def settle(self, answer: Answer, name: str, given: Tensor) -> None:
        poisoned = bool(given.isnan().any())
        try:
            (result,) = answer.result(WAIT_S)
        except CancelledError:
            self.outcomes.append("cancelled")
        except CapacityError:
            self.outcomes.append("late or displaced")
        except RunnerError:
            self.outcomes.append("failed")
            if not poisoned:
                self.wrong.append(f"{name} failed without cause")
        else:
            self.outcomes.append("completed")
            if poisoned or not torch.allclose(result, given * product(name), rtol=1e-12, atol=0):
                self.wrong.append(f"{name} answered wrongly")


@pytest.mark.parametrize(("seed", "lanes"), [(1, 1), (2, 3)])
def test_every_request_ends_once_and_rightly_under_load_churn_and_cancellation(
    seed: int, lanes: int
) -> None:
    engine = Engine(
        device="cpu",
        precision="float64",
        limits=EngineLimits(max_queue=60, max_batch=8),
        lanes=lanes,
    )
    with engine:
        for name in "ab":
            engine.load(name, blocks(name))
        stop = threading.Event()
        churner = threading.Thread(target=churn, args=(engine, stop))
        clients = [Client(engine, 10 * seed + number) for number in range(4)]
        threads = [threading.Thread(target=client.run) for client in clients]
        for thread in (churner, *threads):
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
            assert not thread.is_alive(), "a client waits for an answer that never comes"
        stop.set()
        churner.join(WAIT_S)
        assert not churner.is_alive(), "an unload never ends"
        assert engine.drain(WAIT_S)
        stats = engine.stats()
        assert [wrong for client in clients for wrong in client.wrong] == []
        ends = stats.completed + stats.failed + stats.expired + stats.cancelled + stats.displaced
        assert ends == stats.accepted == sum(len(client.outcomes) for client in clients)
        assert stats.active_requests == stats.waiting_rows == 0
        assert stats.waiting_by_tenant == {}
        assert min(stats.completed, stats.failed, stats.cancelled) > 0
    assert engine.stats().resident_blocks == 0
