"""The engine: sharing, batching, failure, cancellation, limits, loading and draining."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError

import pytest
import torch
from torch import Tensor, nn

from serving.engine import Engine, EngineBlock, EngineLimits
from serving.engine.plans import partition
from serving.engine.requests import Answer, Piece, gather
from zoo.builders import ChainModule
from zoo.errors import (
    ConflictError,
    DeadlineExceededError,
    IncompatibleShapeError,
    InvalidInputError,
    NotFoundError,
    NotReadyError,
    OverloadedError,
    RunnerError,
    UnknownNameError,
)
from zoo.spec import TensorSpec

WAIT_S = 20.0
VECTOR = (TensorSpec(shape=(4,)),)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "condition did not come true"
        threading.Event().wait(0.001)


class Gate(nn.Module):
    """Passes its input on once opened, and remembers the sizes of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.batches: list[int] = []

    def __deepcopy__(self, memo: object) -> Gate:
        return self

    def forward(self, vector: Tensor) -> Tensor:
        self.batches.append(len(vector))
        self.entered.set()
        assert self.open.wait(WAIT_S)
        return vector * 1.0

    def shut(self) -> None:
        self.open.clear()
        self.entered.clear()
        self.batches.clear()


class Picky(nn.Module):
    """Fails for a batch that has a very negative value anywhere."""

    def forward(self, vector: Tensor) -> Tensor:
        if bool((vector < -50).any()):
            raise ValueError("a negative value")
        return vector + 1


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, vector: Tensor) -> Tensor:
        return vector * self.factor


def block(name: str, module: nn.Module, specs: tuple[TensorSpec, ...] = VECTOR) -> EngineBlock:
    return EngineBlock(id=name, module=module, inputs=specs, outputs=specs)


def row(value: float, rows: int = 1) -> tuple[Tensor]:
    return (torch.full((rows, 4), value),)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


@pytest.fixture
def engine(gate: Gate) -> Iterator[Engine]:
    """``a``, ``b``: a shared gate, then ×2 and ×3; ``picky``: the gate, then one that fails."""
    with Engine(device="cpu", limits=EngineLimits(max_queue=40, max_batch=16)) as engine:
        engine.load("a", [block("gate", gate), block("double", Scale(2.0))])
        engine.load("b", [block("gate", gate), block("triple", Scale(3.0))])
        engine.load("picky", [block("gate", gate), block("picky", Picky())])
        gate.batches.clear()
        gate.entered.clear()
        yield engine
        gate.open.set()


def occupy(engine: Engine, gate: Gate) -> Answer:
    """Keep the engine busy with one row until the gate opens."""
    gate.shut()
    answer = engine.submit("a", row(0.0))
    assert gate.entered.wait(WAIT_S)
    return answer


def value(answer: Answer) -> float:
    (result,) = answer.result(WAIT_S)
    return float(result[0, 0])


def test_segments_are_the_longest_runs_that_always_go_together() -> None:
    paths = partition({"a": "stxy", "b": "stz", "c": "w"})
    assert paths == {
        "a": (("s", "t"), ("x", "y")),
        "b": (("s", "t"), ("z",)),
        "c": (("w",),),
    }


def test_chains_that_share_a_middle_or_repeat_a_block_are_cut_there() -> None:
    assert partition({"a": "xmy", "b": "umv"})["a"] == (("x",), ("m",), ("y",))
    assert partition({"a": "xmmy"})["a"] == (("x",), ("m",), ("m",), ("y",))
    assert partition({"a": "xy", "b": "x"})["a"] == (("x",), ("y",))
    assert partition({"a": "xy", "b": "y"})["a"] == (("x",), ("y",))
    assert partition({"a": "xy", "b": "yx"}) == {"a": (("x",), ("y",)), "b": (("y",), ("x",))}


def test_requests_of_different_chains_share_one_batch_at_a_shared_block(
    engine: Engine, gate: Gate
) -> None:
    first = occupy(engine, gate)
    answers = [engine.submit("ab"[index % 2], row(float(index))) for index in range(10)]
    gate.open.set()
    assert value(first) == 0.0
    expected = [float(index * (2 if index % 2 == 0 else 3)) for index in range(10)]
    assert [value(answer) for answer in answers] == expected
    assert gate.batches == [1, 10]


def test_a_lone_request_is_served_at_once(engine: Engine, gate: Gate) -> None:
    assert value(engine.submit("b", row(5.0))) == 15.0
    assert gate.batches == [1]


def test_a_shared_block_is_resident_once_and_leaves_with_its_last_chain(engine: Engine) -> None:
    assert engine.stats().resident_blocks == 4
    assert engine.stats().resident_bytes == 8
    engine.unload("a")
    assert engine.stats().resident_blocks == 3
    engine.unload("b")
    engine.unload("picky")
    assert engine.stats().resident_blocks == 0
    assert engine.loaded() == ()


def test_chains_left_alone_fuse_into_one_segment(engine: Engine) -> None:
    engine.unload("b")
    engine.unload("picky")
    assert [segment.blocks for segment in engine.stats().segments] == [("gate", "double")]
    assert value(engine.submit("a", row(4.0))) == 8.0


def test_batches_count_rows_and_respect_the_cap(engine: Engine, gate: Gate) -> None:
    occupy(engine, gate)
    answers = [engine.submit("a", row(float(index), rows=5)) for index in range(5)]
    gate.open.set()
    assert [value(answer) for answer in answers] == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert gate.batches == [1, 15, 10]


def test_a_request_above_the_cap_is_computed_in_pieces_and_answered_whole(
    engine: Engine, gate: Gate
) -> None:
    image = torch.arange(40 * 4, dtype=torch.float32).reshape(40, 4)
    (result,) = engine.submit("b", (image,)).result(WAIT_S)
    assert torch.equal(result, image * 3)
    assert gate.batches == [16, 16, 8]


def test_a_failing_row_fails_its_own_request_only(engine: Engine, gate: Gate) -> None:
    occupy(engine, gate)
    answers = [engine.submit("picky", row(-99.0 if index == 3 else 1.0)) for index in range(8)]
    other = engine.submit("a", row(1.0))
    gate.open.set()
    for index, answer in enumerate(answers):
        if index == 3:
            with pytest.raises(
                RunnerError, match=r"model picky failed in segment picky: .*a negative value"
            ):
                answer.result(WAIT_S)
        else:
            assert value(answer) == 2.0
    assert value(other) == 2.0
    stats = engine.stats()
    assert (stats.failed, stats.completed) == (1, 9)


def test_a_full_queue_refuses_and_says_when_to_come_back(engine: Engine, gate: Gate) -> None:
    occupy(engine, gate)
    answers = [engine.submit("a", row(1.0, rows=20)) for _ in range(2)]
    with pytest.raises(OverloadedError, match="at most 40") as caught:
        engine.submit("a", row(1.0))
    assert 0.05 <= caught.value.retry_after_s <= 60
    gate.open.set()
    assert all(value(answer) == 2.0 for answer in answers)
    assert engine.stats().rejected == 1
    assert value(engine.submit("a", row(1.0))) == 2.0


def test_a_tenant_that_floods_the_queue_makes_room_for_others(engine: Engine, gate: Gate) -> None:
    occupy(engine, gate)
    flood = [engine.submit("a", row(1.0), tenant="flood") for _ in range(40)]
    quiet = engine.submit("b", row(1.0, rows=2), tenant="quiet")
    with pytest.raises(OverloadedError):
        flood[-1].result(WAIT_S)
    gate.open.set()
    assert value(quiet) == 3.0
    assert sum(answer.exception(WAIT_S) is None for answer in flood) == 38
    assert engine.stats().displaced == 2


def test_a_cancelled_request_in_the_queue_costs_nothing(engine: Engine, gate: Gate) -> None:
    occupy(engine, gate)
    answers = [engine.submit("a", row(float(index))) for index in range(4)]
    assert answers[1].cancel()
    assert engine.stats().waiting_rows == 3
    gate.open.set()
    assert [value(answers[index]) for index in (0, 2, 3)] == [0.0, 4.0, 6.0]
    assert gate.batches == [1, 3]
    with pytest.raises(CancelledError):
        answers[1].result(WAIT_S)
    assert engine.stats().cancelled == 1


def test_a_request_cancelled_while_it_runs_stops_at_the_next_segment(
    engine: Engine, gate: Gate
) -> None:
    answer = occupy(engine, gate)
    assert answer.cancel()
    gate.open.set()
    assert value(engine.submit("b", row(1.0))) == 3.0
    rows = {segment.blocks: segment.rows for segment in engine.stats().segments}
    assert rows == {("gate",): 2, ("double",): 0, ("triple",): 1, ("picky",): 0}


def test_a_finished_request_cannot_be_cancelled(engine: Engine) -> None:
    answer = engine.submit("a", row(1.0))
    assert value(answer) == 2.0
    assert not answer.cancel()


def test_a_deadline_that_passes_in_the_queue_fails_the_request_uncomputed() -> None:
    now = [0.0]
    gate = Gate()
    with Engine(device="cpu", clock=lambda: now[0]) as engine:
        engine.load("a", [block("gate", gate)])
        occupy(engine, gate)
        late = engine.submit("a", row(1.0), deadline=5.0)
        kept = engine.submit("a", row(2.0), deadline=50.0)
        now[0] = 10.0
        gate.open.set()
        with pytest.raises(DeadlineExceededError, match="deadline"):
            late.result(WAIT_S)
        assert value(kept) == 2.0
        assert gate.batches == [1, 1]
        assert engine.stats().expired == 1


def test_an_answer_that_comes_after_its_deadline_is_not_given() -> None:
    now = [0.0]
    gate = Gate()
    with Engine(device="cpu", clock=lambda: now[0]) as engine:
        engine.load("a", [block("gate", gate), block("double", Scale(2.0))])
        gate.shut()
        answer = engine.submit("a", row(1.0), deadline=5.0)
        assert gate.entered.wait(WAIT_S)
        now[0] = 6.0
        gate.open.set()
        with pytest.raises(DeadlineExceededError):
            answer.result(WAIT_S)


def test_loading_a_chain_that_splits_a_segment_does_not_disturb_requests(gate: Gate) -> None:
    with Engine(device="cpu") as engine:
        engine.load("a", [block("gate", gate), block("double", Scale(2.0))])
        first = occupy(engine, gate)
        second = engine.submit("a", row(7.0))
        loader = threading.Thread(
            target=engine.load, args=("b", [block("double", Scale(2.0)), block("gate", gate)])
        )
        loader.start()
        gate.open.set()
        loader.join(WAIT_S)
        assert not loader.is_alive()
        assert value(first) == 0.0
        assert value(second) == 14.0
        assert value(engine.submit("b", row(1.0))) == 2.0
        assert len(engine.stats().segments) == 2


def test_unloading_during_use_finishes_what_is_under_way(engine: Engine, gate: Gate) -> None:
    occupy(engine, gate)
    answers = [engine.submit("b", row(1.0)) for _ in range(5)]
    thread = threading.Thread(target=engine.unload, args=("b",))
    thread.start()
    until(lambda: "b" not in engine.loaded())
    with pytest.raises(NotFoundError, match=r"'b' is not loaded; loaded are: a, picky"):
        engine.submit("b", row(1.0))
    assert thread.is_alive()
    gate.open.set()
    thread.join(WAIT_S)
    assert [value(answer) for answer in answers] == [3.0] * 5
    assert engine.stats().resident_blocks == 3


def test_draining_refuses_the_new_and_finishes_the_old(engine: Engine, gate: Gate) -> None:
    occupy(engine, gate)
    answer = engine.submit("b", row(1.0))
    assert not engine.drain(0.0)
    with pytest.raises(NotReadyError, match="drains"):
        engine.submit("a", row(1.0))
    gate.open.set()
    assert engine.drain(WAIT_S)
    assert value(answer) == 3.0


def test_closing_fails_what_is_not_done_and_may_be_repeated(gate: Gate) -> None:
    engine = Engine(device="cpu")
    engine.load("a", [block("gate", gate)])
    occupy(engine, gate)
    answer = engine.submit("a", row(1.0))
    closer = threading.Thread(target=engine.close)
    closer.start()
    with pytest.raises(NotReadyError, match="closed"):
        answer.result(WAIT_S)
    gate.open.set()
    closer.join(WAIT_S)
    engine.close()
    with pytest.raises(NotReadyError):
        engine.load("b", [block("gate", gate)])
    assert engine.stats().resident_blocks == 0


def test_a_chain_that_fails_to_load_leaves_nothing_and_disturbs_nobody(engine: Engine) -> None:
    class Liar(nn.Module):
        def forward(self, vector: Tensor) -> Tensor:
            return vector[:, :2]

    before = engine.stats()
    with pytest.raises(IncompatibleShapeError, match="float32"):
        engine.load("liar", [block("double", Scale(2.0)), block("liar", Liar())])
    after = engine.stats()
    assert after.chains == before.chains
    assert after.resident_blocks == before.resident_blocks
    assert {segment.blocks for segment in after.segments} == {
        segment.blocks for segment in before.segments
    }
    assert value(engine.submit("a", row(1.0))) == 2.0


def test_one_name_stands_for_one_chain(engine: Engine, gate: Gate) -> None:
    engine.load("a", [block("gate", gate), block("double", Scale(2.0))])
    with pytest.raises(ConflictError, match="unload it first"):
        engine.load("a", [block("gate", gate)])


def test_wrong_chains_and_inputs_are_refused_before_anything_runs(engine: Engine) -> None:
    with pytest.raises(IncompatibleShapeError, match="at least one"):
        engine.load("empty", [])
    wide = (TensorSpec(shape=(5,)),)
    with pytest.raises(IncompatibleShapeError, match="takes"):
        engine.load("unfit", [block("x", Scale(1.0)), block("y", Scale(1.0), wide)])
    with pytest.raises(IncompatibleShapeError, match=r"model a takes float32\[batch, 4\]"):
        engine.submit("a", (torch.zeros(1, 5),))
    with pytest.raises(IncompatibleShapeError, match="40 rows"):
        engine.submit("a", row(0.0, rows=41))
    with pytest.raises(NotFoundError):
        engine.unload("nobody")
    assert engine.stats().accepted == 0


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="max_batch is 0"):
        EngineLimits(max_batch=0)
    with pytest.raises(InvalidInputError, match="never fit"):
        EngineLimits(max_queue=5, max_request=6)
    with pytest.raises(UnknownNameError, match="onnx, torch"):
        Engine(device="cpu", runtime="tensorrt")  # type: ignore[arg-type]


def test_sizes_that_vary_are_batched_with_their_like(gate: Gate) -> None:
    free = (TensorSpec(shape=(None,)),)
    with Engine(device="cpu") as engine:
        engine.load("a", [block("gate", gate, free)])
        gate.shut()
        first = engine.submit("a", (torch.zeros(1, 2),))
        assert gate.entered.wait(WAIT_S)
        answers = [engine.submit("a", (torch.ones(1, 2 + index % 2),)) for index in range(6)]
        gate.open.set()
        first.result(WAIT_S)
        assert [answer.result(WAIT_S)[0].shape[1] for answer in answers] == [2, 3] * 3
        assert sorted(gate.batches) == [1, 3, 3]


def test_callbacks_of_answers_may_call_the_engine(engine: Engine) -> None:
    done = threading.Event()
    second: list[float] = []

    def again(answer: object) -> None:
        engine.submit("b", row(2.0)).add_done_callback(
            lambda other: (second.append(float(other.result()[0][0, 0])), done.set())
        )

    engine.submit("a", row(1.0)).add_done_callback(again)
    assert done.wait(WAIT_S)
    assert second == [6.0]


def test_rows_that_lie_side_by_side_are_gathered_without_a_copy(engine: Engine) -> None:
    base = (torch.arange(12.0).reshape(6, 2),)

    def piece(start: int, rows: int) -> Piece:
        return Piece(request=None, tenant="t", order=0, rows=rows, base=base, start=start)  # type: ignore[arg-type]

    (neighbours,) = gather([piece(1, 2), piece(3, 2)])
    assert neighbours.data_ptr() == base[0][1:].data_ptr()
    (apart,) = gather([piece(4, 2), piece(0, 1)])
    assert torch.equal(apart, base[0][[4, 5, 0]])


@pytest.mark.parametrize(
    ("runtime", "dtype", "bound"),
    [("torch", "float32", 1e-5), ("onnx", "float32", 1e-5), ("torch", "float64", 1e-12)],
)
def test_answers_equal_those_of_the_network_alone(runtime: str, dtype: str, bound: float) -> None:
    def specs(*shape: int) -> tuple[TensorSpec, ...]:
        return (TensorSpec(shape=shape, dtype=dtype),)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        heads = [nn.Sequential(nn.Flatten(), nn.Linear(8 * 36, 5)) for _ in range(3)]
        images = torch.randn(24, 3, 6, 6, dtype=getattr(torch, dtype))
    modules = [module.to(getattr(torch, dtype)).eval() for module in (stem, *heads)]
    shared = EngineBlock(
        id="stem", module=modules[0], inputs=specs(3, 6, 6), outputs=specs(8, 6, 6)
    )
    with Engine(device="cpu", runtime=runtime, precision=dtype) as engine:  # type: ignore[arg-type]
        for index, head in enumerate(modules[1:]):
            last = EngineBlock(
                id=f"head{index}", module=head, inputs=specs(8, 6, 6), outputs=specs(5)
            )
            engine.load(f"m{index}", [shared, last])
        answers = [engine.submit(f"m{i % 3}", (images[i : i + 1],)) for i in range(len(images))]
        for index, answer in enumerate(answers):
            network = ChainModule(modules[0], modules[1 + index % 3])
            with torch.inference_mode():
                expected = network(images[index : index + 1])
            (result,) = answer.result(WAIT_S)
            assert result.dtype == expected.dtype
            assert (result - expected).abs().max() <= bound * expected.abs().max()
