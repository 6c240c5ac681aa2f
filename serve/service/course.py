"""The course of one request: the generation that it is pinned to, its deadline, and what happened to it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from serve.metrics import Metrics
from serve.service.deadline import Deadline
from serve.service.view import View


class GenerationGone(Exception):
    """Replicas have dropped the generation that a request is pinned to: begin again with a newer one."""


@dataclass
class Course:
    """What is known of a request so far.

    deadline: when the answer has to be written. newer: whether a newer generation is served by now.
    missing: groups that it does without; `why` each. late: for one of them the time was over.
    gone: a replica has not its generation any more.
    skipped: steps that could not be done. warnings: sentences for its answer.
    seconds: by stage.
    """

    view: View
    deadline: Deadline
    metrics: Metrics
    newer: Callable[[], bool]
    missing: set[int] = field(default_factory=set)
    why: dict[int, str] = field(default_factory=dict)
    late: bool = False
    gone: bool = False
    skipped: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def coverage(self) -> float:
        return self.view.coverage(self.missing)

    @property
    def missing_shards(self) -> list[str]:
        return self.view.shards_of(self.missing)

    @property
    def partial(self) -> bool:
        return bool(self.missing or self.skipped)

    def lacks(self, group: int, why: str | None, gone: bool = False) -> None:
        """A group did not answer. `why`: None where the time was over."""
        self.missing.add(group)
        self.gone |= gone
        self.late |= why is None
        self.why[group] = why or "it did not answer in time"

    def check_gone(self) -> None:
        """`GenerationGone` where a replica has dropped the generation, and a newer one is served."""
        if self.gone and self.newer():
            raise GenerationGone

    def skip(self, step: str) -> None:
        """A step could not be done: the answer goes without it."""
        if step not in self.skipped:
            self.skipped.append(step)
        self.metrics.count("skipped_steps", step=step)

    def warn(self, sentence: str | None) -> None:
        if sentence is not None and sentence not in self.warnings:
            self.warnings.append(sentence)

    def took(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        self.metrics.observe(stage, seconds)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage, also one that fails."""
        since = self.deadline.clock()
        try:
            yield
        finally:
            self.took(name, self.deadline.clock() - since)
