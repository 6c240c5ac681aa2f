"""The gallery against a dictionary: a hypothesis state machine over everything that changes one."""

from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from index.build import BuildOptions
from index.collect import collect
from index.generation import read_generation
from index.removal import delete, restore, rollback
from index.verify import verify
from ingest.errors import Conflict, NotFound
from tests.tiny import (
    answers,
    build_tiny,
    exists,
    expected,
    ingest,
    job_on,
    memory_store,
    purge_tiny,
    vectors,
)

SOURCES = ("a", "b", "c")


class GalleryMachine(RuleBasedStateMachine):
    """Model: what the catalogue has (score by id), what was taken down, and each generation's content."""

    @initialize()
    def start(self) -> None:
        self.job = job_on(memory_store())
        self.catalogue: dict[int, float] = {}
        self.deleted: set[int] = set()
        self.purged: set[int] = set()
        # By number: the catalogue that it was built from. What is found is that, less what is taken down.
        self.generations: dict[int, dict[int, float]] = {}
        self.unsure: set[int] = set()  # generations that a collection or a purge may have taken

    @property
    def newest(self) -> int:
        return max(self.generations, default=0)

    def publish(self, number: int, content: dict[int, float]) -> None:
        self.generations[number] = dict(content)
        self.found = {image: score for image, score in content.items() if image not in self.deleted}

    @rule(name=st.sampled_from(SOURCES), count=st.integers(1, 6), version=st.sampled_from("123"))
    def ingest(self, name: str, count: int, version: str) -> None:
        source = vectors(name, count, version=version)
        ingest(self.job, source)
        # What is on the deletion list is left out: it comes back as it was, if it is restored.
        listed = expected(source).items()
        self.catalogue |= {image: score for image, score in listed if image not in self.deleted}

    @precondition(lambda self: self.generations or self.catalogue.keys() - self.deleted)
    @rule(rebuild=st.booleans())
    def build(self, rebuild: bool) -> None:
        generation = build_tiny(self.job, BuildOptions(rebuild=rebuild))
        self.publish(generation.number, self.catalogue)

    @precondition(lambda self: self.catalogue)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        image = data.draw(st.sampled_from(sorted(self.catalogue)))
        if image in self.purged:
            return
        self.deleted.add(image)
        self.republished(delete(self.job, [image]))

    @precondition(lambda self: self.deleted - self.purged)
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        image = data.draw(st.sampled_from(sorted(self.deleted - self.purged)))
        self.deleted.remove(image)
        self.republished(restore(self.job, [image]))

    def republished(self, generation: object) -> None:
        if generation is not None:
            self.publish(generation.number, self.generations[self.newest])  # type: ignore[attr-defined]

    @precondition(lambda self: self.generations)
    @rule(data=st.data())
    def rollback(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.generations)))
        with self.allowed_to_fail(number in self.unsure):
            generation = rollback(self.job, number)
            self.publish(generation.number, self.generations[number])

    @contextmanager
    def allowed_to_fail(self, allowed: bool) -> Iterator[None]:
        try:
            yield
        except (NotFound, Conflict):
            if not allowed:
                raise

    @rule(keep=st.integers(1, 3))
    def collect(self, keep: int) -> None:
        collect(self.job.gallery, keep=keep, grace_s=0)
        self.unsure |= set(sorted(self.generations)[:-keep])

    @precondition(lambda self: self.generations)
    @rule()
    def purge(self) -> None:
        built_from = read_generation(self.job.gallery).catalogue
        content = self.generations[self.newest]
        report = purge_tiny(self.job)
        self.purged |= self.deleted
        for image in self.deleted:
            self.catalogue.pop(image, None)
        if report.parts:
            self.unsure |= set(self.generations)
        published = read_generation(self.job.gallery)
        assert published.number == report.generation
        # Without parts to leave out it is a fence: the same again. With them, everything is built anew.
        rebuilt = published.catalogue != built_from
        self.publish(published.number, self.catalogue if rebuilt else content)

    @invariant()
    def readers_get_what_was_published(self) -> None:
        if not hasattr(self, "job"):
            return
        if not self.generations:
            assert answers(self.job.gallery) == {}
            return
        got = answers(self.job.gallery)
        assert got == self.found, (set(got) ^ set(self.found), self.deleted, self.purged)
        assert self.job.gallery.generations.newest() == self.newest

    def teardown(self) -> None:
        if getattr(self, "generations", None):
            assert verify(self.job).problems == ()
            missing = [
                n for n in self.generations if n not in self.unsure and not exists(self.job.gallery, n)
            ]
            assert missing == [], "generations vanished that neither collection nor purge may take"


TestGalleryMachine = GalleryMachine.TestCase
TestGalleryMachine.settings = settings(
    max_examples=90,  # some 3,400 steps
    stateful_step_count=40,
    deadline=None,
    derandomize=True,  # the same steps everywhere; to look for more, take this out and run it for an hour
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking takes minutes: add it to debug
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
