"""What became of each request of a load, and what that amounts to."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.serving.connections import Reply


@dataclass(frozen=True, slots=True)
class Record:
    """One request.

    kind: vector or image. query: which of its kind. request_id: as in the server's log.
    start: when it was to be sent, seconds since 1970. latency: from then to the end of the answer, seconds:
        a client that falls behind does not look like a fast server.
    status: of HTTP; 0 where no answer came, `error` says why. code: of a problem document.
    ids: digest of the ids in their order. skipped: steps left out. reconnected: a kept connection had died.
    """

    kind: str
    query: int
    request_id: str
    start: float
    latency: float
    status: int
    error: str = ""
    code: str = ""
    generation: int | None = None
    partial: bool | None = None
    coverage: float | None = None
    skipped: tuple[str, ...] = ()
    ids: str = ""
    results: int = 0
    retry_after: float | None = None
    reconnected: bool = False

    @property
    def full(self) -> bool:
        """Whether it was answered, and by everything."""
        return self.status == 200 and not self.partial

    def line(self) -> str:
        return json.dumps(asdict(self))


def record_of(kind: str, query: int, request_id: str, start: float, latency: float, reply: Reply) -> Record:
    """The record of an answer; one that cannot be read is an error."""
    try:
        said = json.loads(reply.body)
        if reply.status == 200:
            ids = [found["image_id"] for found in said["results"]]
            told: dict[str, Any] = {
                "generation": said["generation"],
                "partial": said["partial"],
                "coverage": said["coverage"],
                "skipped": tuple(said["skipped_steps"]),
                "ids": ids_digest(ids),
                "results": len(ids),
            }
        else:
            after = reply.headers.get(b"retry-after")
            told = {"code": said["code"], "retry_after": None if after is None else float(after)}
    except (ValueError, KeyError, TypeError) as error:
        told = {"error": f"cannot be read: {type(error).__name__}: {error}"}
    return Record(
        kind, query, request_id, start, latency, reply.status, reconnected=reply.reconnected, **told
    )


def ids_digest(ids: Iterable[int | str]) -> str:
    """Names a list of ids, in their order."""
    return hashlib.blake2b(",".join(map(str, ids)).encode(), digest_size=8).hexdigest()


def read_records(file: Path) -> list[Record]:
    """The records of a file of JSON lines; a line that is still being written is left out."""
    whole = file.read_text("utf-8").rpartition("\n")[0]
    lines = [json.loads(line) for line in whole.splitlines()]
    return [Record(**{**line, "skipped": tuple(line["skipped"])}) for line in lines]


@dataclass(frozen=True)
class Summary:
    """A load of one kind. Latencies in milliseconds, of answers with status 200.

    answered: a second. statuses: how many of each. failed: neither 200 nor 429, or not to be read.
    inconsistent: queries that got different ids in full answers of the same generation.
    """

    kind: str
    requests: int
    seconds: float
    answered: float
    statuses: dict[int, int]
    codes: dict[str, int]
    failed: int
    partial: int
    least_coverage: float
    generations: dict[int, int]
    inconsistent: int
    reconnected: int
    p50: float
    p95: float
    p99: float
    worst: float

    def line(self) -> str:
        return json.dumps(asdict(self))


def summary(records: Sequence[Record], kind: str = "all") -> Summary:
    """Sums up some records; `kind` is only a name."""
    good = [record for record in records if record.status == 200 and not record.error]
    begin = min((record.start for record in records), default=0.0)
    end = max((record.start + record.latency for record in records), default=0.0)
    seconds = max(end - begin, 1e-9)
    took = np.array([record.latency for record in good] or [np.nan]) * 1000
    p50, p95, p99 = np.percentile(took, (50, 95, 99))
    return Summary(
        kind=kind,
        requests=len(records),
        seconds=round(seconds, 3),
        answered=round(len(good) / seconds, 3),
        statuses=dict(sorted(Counter(record.status for record in records).items())),
        codes=dict(sorted(Counter(record.code for record in records if record.code).items())),
        failed=sum(record.status not in (200, 429) or bool(record.error) for record in records),
        partial=sum(bool(record.partial) for record in good),
        least_coverage=min((record.coverage for record in good if record.coverage is not None), default=1.0),
        generations=dict(
            sorted(Counter(record.generation for record in good if record.generation is not None).items())
        ),
        inconsistent=len(inconsistent(records)),
        reconnected=sum(record.reconnected for record in records),
        p50=round(float(p50), 3),
        p95=round(float(p95), 3),
        p99=round(float(p99), 3),
        worst=round(float(took.max()), 3),
    )


def summaries(records: Sequence[Record]) -> list[Summary]:
    """A summary for each kind."""
    kinds: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        kinds[record.kind].append(record)
    return [summary(found, kind) for kind, found in sorted(kinds.items())]


def inconsistent(records: Iterable[Record]) -> list[tuple[str, int, int | None]]:
    """(kind, query, generation) where full answers differ: no answer may depend on who gave it."""
    seen: dict[tuple[str, int, int | None], set[str]] = defaultdict(set)
    for record in records:
        if record.full and not record.error:
            seen[record.kind, record.query, record.generation].add(record.ids)
    return sorted((key for key, ids in seen.items() if len(ids) > 1), key=repr)
