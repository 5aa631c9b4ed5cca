"""What the trainer answers to requests that a method serves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from nas.protocols import StepReport
from workers.duties import Duties


class Silent:
    """Reports nothing."""

    def __call__(self, **_: Any) -> None: ...

    def keep(self, state: bytes, *, epoch: int) -> None: ...


class Seldom:
    """A method that reports some numbers at its first step only."""

    def __init__(self) -> None:
        self._reports: Iterator[StepReport] = iter(
            StepReport(step=step, total=3, message=f"step {step}", metrics=metrics)
            for step, metrics in enumerate(({"loss": 3.0, "reward": 0.5}, {}, {"loss": 1.0}), 1)
        )

    def step(self) -> StepReport:
        return next(self._reports)


def test_the_report_of_several_steps_has_the_latest_value_of_every_metric() -> None:
    threads = torch.get_num_threads()
    duties = Duties(data_root=None, progress=Silent())
    torch.set_num_threads(threads)
    duties._method = Seldom()  # type: ignore[assignment]
    head = duties.perform("steps", {"seconds": 60}, ()).head
    assert (head["step"], head["count"], head["message"]) == (3, 3, "step 3")
    assert head["metrics"] == {"loss": 1.0, "reward": 0.5}
    duties._method = Seldom()  # type: ignore[assignment]
    assert duties.perform("steps", {"seconds": 0}, ()).head["count"] == 1
