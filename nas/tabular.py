"""Published tables of trained networks, as evaluators that answer at once.

A table holds what every network of one space scored, so that any search can be replayed
in seconds and compared with the known optimum. Its files lie under ``tables/`` of the data
folder. Scores are looked up by architecture, never by what a network computes: two cells
of one function were trained apart, and each keeps its own numbers.

| space | file | accuracy (default first) | other metrics |
|---|---|---|---|
| nas-bench-201 | nasbench201 | validation-12, test-12, test-200 | latency_ms, flops, num_params |
| nats-bench-size | natsbench_size_cifar10 | test | flops, num_params |
| nas-bench-macro | nasbench_macro_cifar10 | test | flops, num_params |
| nas-bench-101 | ecnas_nb101_4v5v_4epochs | validation-4, test-4 | num_params, and energy |

The number is that of training epochs. Accuracies are shares of 1. Where a network was
trained several times, its numbers are the means. Multiply-adds and parameters of the size
space are counted here, the others are the tables'; energy is ``training_energy_kwh``.

Source:
    Dong and Yang (2020), arXiv:2001.00326; Dong et al. (2021), arXiv:2009.00437; Su et al.
    (2021), arXiv:2103.11922; Bakhtiarifard et al. (2022), arXiv:2210.06015. Latencies: Lee
    et al. (2021), "HELP", arXiv:2106.08630.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nas.evaluation import EvaluatorContext
from nas.pareto import front
from nas.protocols import SearchSpace
from nas.table_columns import SOURCES, Content, Source
from zoo.canonical import Json
from zoo.errors import InvalidInputError, MissingDataError, UnknownNameError
from zoo.spec import METRICS, Architecture, Evaluation

VERSION = 1
"""Raised whenever the same file would give other scores."""

FOLDER = "tables"


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """What the networks of one space scored; one row a network.

    ``metrics`` has an array ``(rows,)`` for each metric, under the names of
    ``zoo.spec.METRICS``; ``truth`` is the accuracy by which a search is judged in the end,
    that of the longest training on the test images. ``digest`` is the file's sha256.
    """

    space: SearchSpace
    digest: str
    metrics: Mapping[str, NDArray[np.float64]]
    truth: NDArray[np.float64]
    choices: tuple[tuple[int, ...], ...]
    key: Callable[[SearchSpace, Architecture], Hashable]
    rows: Mapping[Hashable, int]

    def __len__(self) -> int:
        return len(self.truth)

    def row(self, architecture: Architecture) -> int:
        """Return the row of an architecture.

        Raises:
            InvalidInputError: It is not of this table's space, or not in the table.
        """
        self.space.check(architecture)
        row = self.rows.get(self.key(self.space, architecture))
        if row is None:
            raise InvalidInputError(
                f"{self.space.summary(architecture)} is not among the {len(self)} networks "
                "of the table"
            )
        return row

    def scores(self, architecture: Architecture) -> dict[str, float]:
        """Return all metrics of an architecture.

        Raises:
            InvalidInputError: As for ``row``.
        """
        row = self.row(architecture)
        return {name: float(values[row]) for name, values in self.metrics.items()}

    def architecture(self, row: int) -> Architecture:
        """Return an architecture of a row."""
        return Architecture(space=self.space.describe(), choices=self.choices[row])

    def optimum(self, metric: str = "accuracy") -> int:
        """Return the row with the best value of ``metric``; the first of equal ones.

        Raises:
            UnknownNameError: The table does not have the metric.
        """
        values = self._column(metric)
        return int(values.argmax() if METRICS[metric] == "maximize" else values.argmin())

    def front(self, objectives: Sequence[str]) -> NDArray[np.intp]:
        """Return the rows that no other row dominates, ascending.

        Raises:
            UnknownNameError: The table does not have an objective.
        """
        points = np.stack([self._column(name) for name in objectives], axis=1)
        return front(points, [METRICS[name] for name in objectives])

    def _column(self, metric: str) -> NDArray[np.float64]:
        if metric not in self.metrics:
            raise UnknownNameError("metric of this table", metric, self.metrics)
        return self.metrics[metric]


def open_table(
    space: SearchSpace,
    root: Path | None,
    *,
    data: str = "cifar10",
    accuracy: str | None = None,
    device: str | None = None,
) -> Table:
    """Read the table of a space.

    Args:
        space: One of the spaces above, with its published parameters.
        root: The data folder.
        data: The images on which the networks were trained.
        accuracy: Which accuracy counts; None for the table's first.
        device: Whose latency counts; None for no latency.

    Raises:
        InvalidInputError: There is no table of these networks, or the file is no table.
        UnknownNameError: The table does not have such data, accuracy or device.
        MissingDataError: The file is not there; the message says what to put where.
    """
    described = space.describe()
    name = str(described["name"])
    if name not in SOURCES:
        raise UnknownNameError("search space with a table", name, SOURCES)
    source = SOURCES[name]
    _check_published(space, source)
    path = _file(source, root)
    stamp = path.stat()
    digest, content = _content(
        name, path, stamp.st_mtime_ns, stamp.st_size, data=data, accuracy=accuracy, device=device
    )
    return Table(
        space=space,
        digest=digest,
        metrics=content.metrics,
        truth=content.truth,
        choices=content.choices,
        key=source.key,
        rows=content.rows,
    )


@final
class TabularEvaluator:
    """Looks scores up in a published table of the space: exact, at once, without training.

    Args:
        context: The space, and the data folder; the job's data and recipe play no part.
        data: The images on which the table's networks were trained.
        accuracy: Which accuracy counts, e.g. ``validation-12`` or ``test-200``; the table's
            first if None.
        device: Whose latency is ``latency_ms``; none is reported if None.

    Raises:
        InvalidInputError: There is no table of this space and its parameters.
        UnknownNameError: The table does not have such data, accuracy or device.
        MissingDataError: The file is not there; the message says what to put where.
    """

    looks_up = True

    def __init__(
        self,
        context: EvaluatorContext,
        *,
        data: str = "cifar10",
        accuracy: str | None = None,
        device: str | None = None,
    ) -> None:
        self._table = open_table(
            context.space, context.data_root, data=data, accuracy=accuracy, device=device
        )
        self._terms: dict[str, Json] = {"data": data, "accuracy": accuracy, "device": device}

    def describe(self) -> dict[str, Json]:
        return {
            "evaluator": "tabular",
            "version": VERSION,
            "table": self._table.digest,
            **self._terms,
        }

    def evaluate(self, architecture: Architecture) -> Evaluation:
        return Evaluation(metrics=self._table.scores(architecture), cost_s=0.0)


def _check_published(space: SearchSpace, source: Source) -> None:
    described: Any = space.describe()
    params = described["params"]
    for name, values in source.published.items():
        if params[name] not in values:
            raise InvalidInputError(
                f"the table of {described['name']} holds networks with {name} "
                f"{' or '.join(map(str, values))}, not {params[name]}"
            )


def _file(source: Source, root: Path | None) -> Path:
    wanted = f"{FOLDER}/{source.file}"
    if root is None:
        raise MissingDataError(
            f"a tabular evaluator needs files: set BLOCKYARD_DATA (or --data) to the folder "
            f"that holds {wanted}"
        )
    path = root / FOLDER / source.file
    if not path.is_file():
        raise MissingDataError(f"there is no {wanted} under {root}; put the table there")
    return path


@lru_cache(maxsize=8)
def _content(
    name: str,
    path: Path,
    _modified_ns: int,
    _size: int,
    *,
    data: str,
    accuracy: str | None,
    device: str | None,
) -> tuple[str, Content]:
    """Return a file's digest and content; the stamp makes a changed file another entry."""
    raw = path.read_bytes()
    try:
        table = pq.read_table(pa.BufferReader(raw))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise InvalidInputError(f"{path} is no parquet table: {error}") from error
    columns = {column: table[column].to_numpy() for column in table.column_names}
    try:
        content = SOURCES[name].content(columns, data=data, accuracy=accuracy, device=device)
    except KeyError as error:
        raise InvalidInputError(
            f"{path} has no column {error}; it has {', '.join(columns)}"
        ) from error
    return sha256(raw).hexdigest(), content
