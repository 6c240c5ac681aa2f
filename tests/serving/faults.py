"""Faults done to a server on Ray under a steady load, one phase after the other, and what became of requests.

The same phases, shorter, are a test (`tests/faults/test_served_faults.py`), and as they stand a section of
docs/evaluation.md (`tests/evaluation/served_faults.py`).
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from index.encodings import read_encodings
from index.generation import read_generation
from index.removal import delete, restore, rollback
from ingest.catalogue import read_catalogue
from ingest.gallery import Gallery
from ingest.job import Job
from serve.query import ImageQuery
from serve.searcher import Searcher, open_searcher
from tests.serving.app import asked
from tests.serving.processes_under_test import kill, stopped
from tests.serving.ray_server import RayServed, awaited
from tests.serving.records import Record, ids_digest
from tests.serving.running_load import RunningLoad

BACK_S = 60.0  # patience with what must come back by itself
TOP = 10
_SEEN_S = 1.5  # within which every service has looked at every replica

Whose = tuple[str, int]  # slot and group of a replica


@dataclass
class Phase:
    """A stretch of the load.

    back: seconds until every replica was ready again, or every ingress served a new generation; the pauses of
        looking, some 1.5 s, included.
    """

    name: str
    begin: float
    end: float = 0.0
    back: list[float] = field(default_factory=list)
    lost: str = ""

    def of(self, records: list[Record]) -> list[Record]:
        """The requests that were to be sent while it lasted."""
        return [record for record in records if self.begin <= record.start < self.end]


@dataclass
class Faults:
    """What is done, to whom, under which load.

    job: for publishing, on the gallery that is served. load: what runs meanwhile.
    """

    job: Job
    server: RayServed
    load: RunningLoad
    phases: list[Phase] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str, settle_s: float = 2.0) -> Iterator[Phase]:
        """A phase, which ends a little after what is done in it; the next one begins there."""
        phase = Phase(name, time.time())
        self.phases.append(phase)
        try:
            yield phase
        finally:
            time.sleep(settle_s)
            phase.end = time.time()

    # -- what is done -------------------------------------------------------------------------------------

    def nothing(self, seconds: float) -> None:
        with self.phase("nothing done", 0.0):
            time.sleep(seconds)

    def each_replica_killed(self, groups: Sequence[int] | None = None) -> None:
        """Each replica of each group (or of some), the next one when the last is back."""
        with self.phase("each replica killed in turn") as phase:
            for slot in self.server.slots:
                for group in range(self.server.groups) if groups is None else groups:
                    self._until_back(phase, [(slot, group)], self._killed([(slot, group)]))

    def flipped(self, times: int) -> None:
        """So many generations published, each when the last is served: images go and come back, rollbacks."""
        image = self._some_image()
        with self.phase(f"generation flipped {times} times") as phase:
            for turn in range(times):
                if turn % 5 == 4:
                    published = rollback(self.job, read_generation(self.job.gallery).number - 1)
                else:
                    published = (delete if turn % 2 == 0 else restore)(self.job, [image])
                assert published is not None
                number = published.number
                took = awaited(lambda number=number: self.serves(number), BACK_S)  # type: ignore[misc]
                _note(phase, took, f"generation {number}")

    def rolled(self) -> None:
        """`reseen serve --ray --roll`: every replica of everything started anew."""
        with self.phase("rolling redeploy") as phase:
            begun = time.monotonic()
            done = subprocess.run(
                self.server.command,
                env={**os.environ, "RAY_ADDRESS": self.server.address},
                capture_output=True,
                text=True,
                timeout=400,
            )
            if done.returncode:
                phase.lost = f"--roll ended with {done.returncode}: {done.stderr[-500:]}"
            found = awaited(self._whole, BACK_S)
            _note(phase, None if found is None else time.monotonic() - begun, "the rolled server")

    def group_lost(self, group: int = 0, meanwhile: Callable[[], None] = lambda: None) -> None:
        """All replicas of a group killed at once; `meanwhile` is called before they can be back."""
        with self.phase("all replicas of one group killed") as phase:
            whole = [(slot, group) for slot in self.server.slots]
            pids = self._killed(whole)
            meanwhile()
            self._until_back(phase, whole, pids)

    def replica_stopped(self, group: int = 0) -> None:
        """One replica stands still (SIGSTOP) until the supervision has replaced it."""
        self._stand_still("one replica stopped", [(self.server.slots[0], group)])

    def group_stopped(self, group: int = 0) -> None:
        """All replicas of a group stand still at once, until they have been replaced."""
        everyone = [(slot, group) for slot in self.server.slots]
        self._stand_still("all replicas of one group stopped", everyone)

    def _stand_still(self, name: str, whose: list[Whose]) -> None:
        with self.phase(name) as phase:
            pids = self._pids(whose)
            with stopped_all(sorted(pids)):
                self._until_back(phase, whose, pids)

    def _killed(self, whose: list[Whose]) -> set[int]:
        pids = self._pids(whose)
        for pid in pids:
            kill(pid)
        return pids

    def _pids(self, whose: list[Whose]) -> set[int]:
        return {pid for slot, group in whose for pid in self.server.group(slot, group)}

    def store_stopped(self, pid: int, seconds: float) -> None:
        """The store does not answer for so long."""
        with self.phase(f"store silent for {seconds:g} s"), stopped(pid):
            time.sleep(seconds)

    # -- what is seen -------------------------------------------------------------------------------------

    def serves(self, generation: int) -> bool:
        """Whether every ingress serves a generation, as far as ten questions tell."""
        return all(self._generation() == generation for _ in range(10))

    def _generation(self) -> int:
        status, body = asked(f"{self.server.url}/v1/generation")
        return int(json.loads(body)["number"]) if status == 200 else 0

    def _until_back(self, phase: Phase, whose: list[Whose], before: set[int]) -> None:
        """Waits until each of some replicas has a new process, and every ingress has seen all whole."""
        begun = time.monotonic()

        def replaced() -> bool:
            return all((now := self._pids([each])) and not now & before for each in whose)

        found = awaited(replaced, BACK_S)
        time.sleep(_SEEN_S)
        if found is not None:
            found = awaited(self._whole, BACK_S)
        what = ", ".join(f"{slot}/{group}" for slot, group in whose)
        _note(phase, None if found is None else time.monotonic() - begun, what)

    def _whole(self) -> bool:
        return all(self._all_ready() for _ in range(10))

    def _all_ready(self) -> bool:
        status, body = asked(f"{self.server.url}/v1/generation")
        if status != 200:
            return False
        said = json.loads(body)
        replicas = [each for group in said["groups"] for each in group["replicas"]]
        return all(each["ready"] and said["number"] in each["generations"] for each in replicas)

    def _some_image(self) -> int:
        catalogue = read_catalogue(self.job.gallery)
        digest = read_generation(self.job.gallery).models.encodings
        return int(read_encodings(self.job.gallery, digest, catalogue.parts[0].part)[1][0])


def _note(phase: Phase, took: float | None, what: str) -> None:
    if took is None:
        phase.lost = phase.lost or f"{what} was not back after {BACK_S:g} s"
    else:
        phase.back.append(took)


@contextmanager
def stopped_all(pids: list[int]) -> Iterator[None]:
    """Some processes stand still; those that live at the end go on."""
    if not pids:
        yield
        return
    with stopped(pids[0]), stopped_all(pids[1:]):
        yield


# -- what had to be answered ------------------------------------------------------------------------------


def stored_queries(gallery: Gallery, count: int) -> np.ndarray:
    """(count, d) stored vectors of images spread over the gallery."""
    generation = read_generation(gallery)
    vectors = [
        read_encodings(gallery, generation.models.encodings, part.part)[2]
        for part in read_catalogue(gallery, generation.catalogue).parts
    ]
    rows = np.concatenate([each for each in vectors if len(each)])
    return np.ascontiguousarray(rows[np.linspace(0, len(rows) - 1, count).astype(int)])


def wrong_answers(gallery: Gallery, records: list[Record], vectors: np.ndarray, images: list[bytes]) -> int:
    """Full answers whose ids are not those that `Searcher` finds in the generation that they name."""
    wrong = 0
    for number in sorted({record.generation for record in records if record.generation is not None}):
        with open_searcher(gallery, number) as searcher:
            expected = _expected(searcher, vectors, images)
        wrong += sum(
            record.ids != expected[record.kind][record.query % len(expected[record.kind])]
            for record in records
            if record.generation == number and record.full
        )
    return wrong


def _expected(searcher: Searcher, vectors: np.ndarray, images: list[bytes]) -> dict[str, list[str]]:
    by_vector = searcher.search_vectors(vectors, TOP)
    by_image = searcher.search_images([ImageQuery(each) for each in images], TOP)
    return {
        kind: [ids_digest([found.image_id for found in answer.results]) for answer in answers]
        for kind, answers in (("vector", by_vector), ("image", by_image))
    }


def query_images(folder: Path, count: int) -> list[Path]:
    """Some image files of a folder."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".png"))[:count]
