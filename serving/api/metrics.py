"""Prometheus metrics of one application, in a registry of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from prometheus_client.registry import Collector
from starlette.types import Scope

from serving.engine import EngineStats

__all__ = ["CONTENT_TYPE", "Metrics"]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
UNMATCHED = "unmatched"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
ENDINGS = ("completed", "failed", "expired", "cancelled", "displaced", "rejected")


class Metrics:
    """What happened, by route and by model, and the state of the engine when asked.

    Routes are labelled by their templates, so that ids in paths make no new series.
    """

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "blockyard_requests",
            "HTTP requests answered",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "blockyard_request_seconds",
            "Time from a request's head to the end of its answer",
            ("route",),
            buckets=SECONDS,
            registry=self._registry,
        )
        self._rows = Counter(
            "blockyard_model_rows", "Rows answered, by model", ("model",), registry=self._registry
        )
        self._gone = Counter(
            "blockyard_disconnects",
            "Inference requests whose client left before the answer",
            registry=self._registry,
        )
        self._registry.register(_EngineCollector(stats))

    def request(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request that was answered with ``status``."""
        route = getattr(scope.get("route"), "path", UNMATCHED)
        method = scope["method"] if scope["method"] in METHODS else "OTHER"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def served(self, model: str, rows: int) -> None:
        """Count the rows of an answered inference request."""
        self._rows.labels(model).inc(rows)

    def disconnected(self) -> None:
        """Count an inference request that was dropped because its client left."""
        self._gone.inc()

    def render(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    """Reads the engine's own counters at the moment they are asked for."""

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        gauges = {
            "blockyard_queue_rows": ("Rows that wait in the engine", stats.waiting_rows),
            "blockyard_active_requests": ("Requests queued or running", stats.active_requests),
            "blockyard_loaded_models": ("Models in the engine", len(stats.chains)),
            "blockyard_loaded_blocks": ("Distinct blocks in memory", stats.resident_blocks),
            "blockyard_loaded_bytes": ("Bytes of those blocks", stats.resident_bytes),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(name, text, value=value)
        yield CounterMetricFamily(
            "blockyard_engine_accepted", "Requests taken by the engine", value=stats.accepted
        )
        endings = CounterMetricFamily(
            "blockyard_engine_requests", "Requests that ended, by how", labels=("ending",)
        )
        for ending in ENDINGS:
            endings.add_metric((ending,), getattr(stats, ending))
        yield endings
        yield from _segments(stats)


def _segments(stats: EngineStats) -> Iterator[Metric]:
    """Batches and rows by segment; rows over batches is the mean batch size."""
    families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {
        "batches": CounterMetricFamily(
            "blockyard_segment_batches", "Batches run, by segment", labels=("segment",)
        ),
        "rows": CounterMetricFamily(
            "blockyard_segment_rows", "Rows run, by segment", labels=("segment",)
        ),
        "busy_s": CounterMetricFamily(
            "blockyard_segment_busy_seconds", "Time spent running, by segment", labels=("segment",)
        ),
        "waiting_rows": GaugeMetricFamily(
            "blockyard_segment_queue_rows", "Rows that wait, by segment", labels=("segment",)
        ),
    }
    for segment in stats.segments:
        label = ("+".join(block[:12] for block in segment.blocks),)
        for name, family in families.items():
            family.add_metric(label, getattr(segment, name))
    yield from families.values()
