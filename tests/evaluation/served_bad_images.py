"""Malformed and hostile files against a real server, for docs/evaluation.md: what each gets, and its cost.

Every file goes the three ways that a file has into a server: searched with, kept as an upload, and (if it was
kept) shown as a thumbnail. The server is watched from outside, with its decoding processes.
"""

import os
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from ingest.outcomes import Outcome
from tests.evaluation.bad_images import regular_files
from tests.evaluation.page import table
from tests.evaluation.smvs import Target
from tests.scenes import scene_gallery
from tests.serve.served import served_recipe
from tests.serving.app import served
from tests.serving.processes_under_test import tree as family

WORST = 8
_TICKS = os.sysconf("SC_CLK_TCK")
_WAIT_S = 180.0
_DEFAULTS = {"decode": {}, "describe": {"local": {"kind": "sift"}}}  # of decoding: limits and size


@dataclass(frozen=True)
class Answer:
    """What one file got on one way.

    reason: of a rejected image. cpu_seconds, peak_mib: of the server and its children, summed.
    """

    way: str
    name: str
    status: int
    code: str
    reason: str
    seconds: float
    cpu_seconds: float
    peak_mib: float

    @property
    def reasoned(self) -> bool:
        """Whether it is an answer, or a refusal that says why."""
        if self.code == "image-rejected":
            return self.reason in set(Outcome)
        return self.status < 300 or (400 <= self.status < 500 and bool(self.code))


def served_bad_images(shared: Path) -> tuple[str, list[Target]]:
    """The section of the page, and what has to hold."""
    with tempfile.TemporaryDirectory(prefix="reseen-bad-images-") as name:
        folder = Path(name)
        scene_gallery(str(folder / "gallery"), served_recipe(features=_DEFAULTS))
        with served(folder / "gallery", folder) as server, httpx.Client(timeout=_WAIT_S) as client:
            client.base_url = httpx.URL(server.url)
            tree = _Tree(server.pid)
            before = tree.resident_mib()
            archive = shared / "data" / "bad_images.tar.gz"
            answers = [answer for file in regular_files(archive) for answer in _ask(client, tree, *file)]
            ready = client.get("/readyz").status_code == 200 and server.process.poll() is None
            after = tree.resident_mib()
    return _text(answers, before, after), _targets(answers, ready)


def _ask(client: httpx.Client, tree: "_Tree", name: str, data: bytes) -> list[Answer]:
    """One file, all ways that are open to it."""
    form = {"image": ("file", data, "application/octet-stream")}
    searched = _measured(client, tree, "search", name, "/v1/search/upload", files=form)
    kind = {"Content-Type": "application/octet-stream"}
    kept = _measured(client, tree, "upload", name, "/v1/uploads", content=data, headers=kind)
    if kept[0].status != 201:
        return [searched[0], kept[0]]
    path = f"/v1/uploads/{kept[1].json()['digest']}/thumbnail"
    return [searched[0], kept[0], _measured(client, tree, "thumbnail", name, path)[0]]


def _measured(
    client: httpx.Client, tree: "_Tree", way: str, name: str, path: str, **sent: object
) -> tuple[Answer, httpx.Response]:
    tree.forget_peaks()
    cpu, begun = tree.cpu_seconds(), time.perf_counter()
    response = client.request("POST" if sent else "GET", path, **sent)  # type: ignore[arg-type]
    seconds, cpu = time.perf_counter() - begun, tree.cpu_seconds() - cpu
    said = response.json() if "json" in response.headers["content-type"] else {}
    code, reason = said.get("code", ""), said.get("extra", {}).get("reason", "")
    answer = Answer(way, name, response.status_code, code, reason, seconds, cpu, tree.peak_mib())
    return answer, response


class _Tree:
    """A process and its children, as the kernel counts them."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def forget_peaks(self) -> None:
        for pid in self._pids():
            with suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")

    def peak_mib(self) -> float:
        return sum(_status_mib(pid, "VmHWM") for pid in self._pids())

    def resident_mib(self) -> float:
        return sum(_status_mib(pid, "VmRSS") for pid in self._pids())

    def cpu_seconds(self) -> float:
        """Of all that live, and of those that were reaped."""
        ticks = 0
        for pid in self._pids():
            with suppress(OSError, ValueError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += sum(map(int, fields[11:15]))
        return ticks / _TICKS

    def _pids(self) -> list[int]:
        return family(self._pid)


def _status_mib(pid: int, name: str) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) / 1024
    return 0.0


def _targets(answers: list[Answer], ready: bool) -> list[Target]:
    failed = [answer for answer in answers if answer.status >= 500]
    unreasoned = [answer for answer in answers if not answer.reasoned]
    return [
        Target("no file is answered with a 5xx", not failed, f"{len(failed)} of {len(answers)}"),
        Target(
            "every answer is one, or a 4xx with its reason",
            not unreasoned,
            f"{len(unreasoned)} without, of {len(answers)}",
        ),
        Target("the server is ready afterwards", ready, "the same process" if ready else "gone"),
    ]


def _text(answers: list[Answer], before: float, after: float) -> str:
    files = len({answer.name for answer in answers})
    counts = Counter((answer.way, answer.status, answer.code, answer.reason) for answer in answers)
    rows = [
        [f"{way}: {status} {code} {reason}".rstrip(), count]
        for (way, status, code, reason), count in sorted(counts.items())
    ]
    worst_cpu = sorted(answers, key=lambda answer: -answer.cpu_seconds)[:WORST]
    worst_memory = sorted(answers, key=lambda answer: -answer.peak_mib)[:WORST]
    return (
        f"{files:,} files, each sent to a server in a process of its own: as the image of a search, as an "
        "upload, and, if it was kept, shown as a thumbnail. CPU time and memory are of the server and its "
        f"decoding processes together. Before the first file they held {before:.0f} MiB, after the last "
        f"{after:.0f} MiB (models loaded, thumbnails kept, decoding processes started).\n\n"
        + table(["answer", "files"], rows)
        + "\nMost CPU time:\n\n"
        + _worst(worst_cpu)
        + "\nMost memory:\n\n"
        + _worst(worst_memory)
    )


def _worst(answers: list[Answer]) -> str:
    head = ["file", "way", "answer", "CPU s", "s", "peak MiB"]
    rows: list[list[str | float]] = [
        [
            _shown(answer.name),
            answer.way,
            f"{answer.status} {answer.reason}".rstrip(),
            round(answer.cpu_seconds, 2),
            round(answer.seconds, 3),
            round(answer.peak_mib, 1),
        ]
        for answer in answers
    ]
    return table(head, rows)


def _shown(name: str) -> str:
    """A file's name, which may hold anything, as a table's cell."""
    last = name.rpartition("/")[2]
    return "`" + "".join(c if c.isprintable() and c not in "`|" else "?" for c in last)[:60] + "`"
