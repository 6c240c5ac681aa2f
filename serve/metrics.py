"""What a server counts and times: one small protocol, and Prometheus, Ray or nothing behind it.

Whoever serves writes against `Metrics`. A name or label that `FAMILIES` and `STAGES` do not list is a mistake
of the caller and raises `ValueError`, whatever is behind: a misspelt name would else be a line that no
dashboard draws.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol

STAGES = (
    "read",
    "decode",
    "encode",
    "fan_out",
    "scan",
    "merge",
    "rerank",
    "metadata",
    "thumbnail",
    "request",
)
"""Parts of a request in their order; `request` is the whole, from the headers to the last byte."""

BUCKETS_S = (*(0.0005 * 2**power for power in range(9)), 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)

PREFIX = "reseen_"


class Family(NamedTuple):
    """One metric: a counter, or a gauge, and the labels that a call may give (those left out are empty)."""

    kind: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...] = ()


FAMILIES: Mapping[str, Family] = {
    "requests": Family("counter", "answered requests", ("route", "method", "status", "code")),
    "partial": Family("counter", "partial answers", ("why",)),
    "hedged": Family("counter", "scans sent to a second replica", ("group",)),
    "shed": Family("counter", "requests refused because of too much work", ("kind",)),
    "skipped_steps": Family("counter", "steps that an answer goes without", ("step",)),
    "flips": Family("counter", "changes to another generation"),
    "refused_generations": Family("counter", "generations that failed to load"),
    "shard_loads": Family("counter", "groups of shards loaded, by outcome", ("group", "outcome")),
    "replica_failures": Family("counter", "calls of replicas that failed or were late", ("group", "replica")),
    "cancelled": Family("counter", "requests whose client went away"),
    "coverage": Family("gauge", "rows that answer now / rows published"),
    "generation": Family("gauge", "the generation that is served"),
    "index_age_seconds": Family("gauge", "since the served generation was published"),
    "in_flight": Family("gauge", "requests that are worked on", ("kind",)),
    "queued": Family("gauge", "requests that wait", ("kind",)),
    "memory_bytes": Family("gauge", "of loaded shards, of all replicas of a group", ("group",)),
    "upload_bytes": Family("gauge", "of uploads that are kept"),
}


class Metrics(Protocol):
    """Where a server's numbers go. Thread-safe; every call takes microseconds and does no input or output."""

    def observe(self, stage: str, seconds: float) -> None:
        """Adds a duration to the histogram of a stage (`STAGES`)."""

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        """Adds to a counter of `FAMILIES`; `by` > 0."""

    def gauge(self, name: str, value: float, **labels: str) -> None:
        """Sets a gauge of `FAMILIES`."""

    def text(self) -> str | None:
        """All of it in Prometheus' text format; None where something else collects it."""


def _check_stage(stage: str) -> None:
    if stage not in STAGES:
        raise ValueError(f"{stage!r} is no stage: add it to STAGES in serve/metrics.py")


def _check(kind: str, name: str, labels: Mapping[str, str]) -> Family:
    family = FAMILIES.get(name)
    if family is None or family.kind != kind:
        raise ValueError(f"{name!r} is no {kind}: add it to FAMILIES in serve/metrics.py")
    for label in labels:
        if label not in family.labels:
            raise ValueError(f"{name!r} has no label {label!r}: add it to FAMILIES in serve/metrics.py")
    return family


class NoMetrics:
    """Checks the names and forgets the numbers."""

    def observe(self, stage: str, seconds: float) -> None:
        _check_stage(stage)

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        _check("counter", name, labels)

    def gauge(self, name: str, value: float, **labels: str) -> None:
        _check("gauge", name, labels)

    def text(self) -> str | None:
        return None


class PrometheusMetrics:
    """Numbers of this process in a registry of their own, with the process's memory, CPU time and files.

    Every family is there from the start (those without labels at 0), so that a rate can be drawn from the
    first event on.
    """

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        stages = Histogram(
            f"{PREFIX}stage_seconds",
            "time that a stage of a request took",
            ["stage"],
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self._stages = {stage: stages.labels(stage) for stage in STAGES}
        kinds = {"counter": Counter, "gauge": Gauge}
        self._families: dict[str, Any] = {
            name: kinds[family.kind](f"{PREFIX}{name}", family.help, family.labels, registry=self.registry)
            for name, family in FAMILIES.items()
        }
        self._series: dict[tuple[str, tuple[str, ...]], Any] = {}

    def observe(self, stage: str, seconds: float) -> None:
        _check_stage(stage)
        self._stages[stage].observe(seconds)

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        self._one("counter", name, labels).inc(by)

    def gauge(self, name: str, value: float, **labels: str) -> None:
        self._one("gauge", name, labels).set(value)

    def text(self) -> str | None:
        from prometheus_client import generate_latest

        return generate_latest(self.registry).decode()

    def _one(self, kind: str, name: str, labels: Mapping[str, str]) -> Any:
        family = _check(kind, name, labels)
        if not family.labels:
            return self._families[name]
        values = tuple(labels.get(label, "") for label in family.labels)
        found = self._series.get((name, values))
        if found is None:
            found = self._series[name, values] = self._families[name].labels(*values)
        return found


class RayMetrics:
    """Numbers into Ray's own metrics, which its agents export with `ray_` before the name.

    Made inside a Ray process. They appear at the node's metrics port some seconds later.
    """

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        self._stages = Histogram(
            f"{PREFIX}stage_seconds",
            "time that a stage of a request took",
            boundaries=list(BUCKETS_S),
            tag_keys=("stage",),
        )
        kinds = {"counter": Counter, "gauge": Gauge}
        self._families: dict[str, Any] = {
            name: kinds[family.kind](f"{PREFIX}{name}", family.help, family.labels)
            for name, family in FAMILIES.items()
        }

    def observe(self, stage: str, seconds: float) -> None:
        _check_stage(stage)
        self._stages.observe(seconds, {"stage": stage})

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        self._families[name].inc(by, self._tags("counter", name, labels))

    def gauge(self, name: str, value: float, **labels: str) -> None:
        self._families[name].set(value, self._tags("gauge", name, labels))

    def text(self) -> str | None:
        return None

    @staticmethod
    def _tags(kind: str, name: str, labels: Mapping[str, str]) -> dict[str, str]:
        family = _check(kind, name, labels)
        return {label: labels.get(label, "") for label in family.labels}
