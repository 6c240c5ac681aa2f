"""The features stage: every part of a catalogue that has no features yet gets them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from ingest.catalogue import Catalogue
from ingest.errors import OverBudget
from ingest.features import ExtractWorker, FeatureSettings, PartFeatures
from ingest.job import Job
from ingest.sources import Source

_ENOUGH_TO_JUDGE = 200  # images, before a high share of rejects stops a run early


@dataclass(frozen=True)
class FeatureSet:
    """The features of a catalogue: their digest, and what each part has.

    seconds: by stage, of all workers together; of the parts that this run worked on, `described` rows.
    """

    digest: str
    parts: Mapping[str, PartFeatures]

    @property
    def seconds(self) -> dict[str, float]:
        total: dict[str, float] = {}
        for part in self.parts.values():
            for stage, seconds in part.seconds.items():
                total[stage] = total.get(stage, 0.0) + seconds
        return total

    @property
    def described(self) -> int:
        return sum(part.rows for part in self.parts.values() if part.seconds)

    @property
    def outcomes(self) -> Counter[str]:
        """Rows of all parts by outcome."""
        total: Counter[str] = Counter()
        for part in self.parts.values():
            total.update(part.outcomes)
        return total


def extract(
    job: Job,
    catalogue: Catalogue,
    settings: FeatureSettings,
    sources: Mapping[str, Source],
    max_rejects: float = 0.5,
    before: Mapping[str, int] | None = None,
) -> FeatureSet:
    """Features of every part of a catalogue; what is there already is adopted.

    Args:
        sources: by the names that the catalogue's parts state.
        max_rejects: share of images without features above which the run stops.
        before: outcomes of images that are not in these parts, and count in the share all the same.

    Raises:
        OverBudget: more than `max_rejects` of the images have no features.
    """
    done: dict[str, PartFeatures] = {}
    outcomes: Counter[str] = Counter(before or {})
    worker = ExtractWorker(job.gallery, sources, settings, job.compute)
    with job.progress.stage("describe", catalogue.rows) as stage:
        for part in job.engine.map(worker, catalogue.parts):
            done[part.part] = part
            outcomes.update(part.outcomes)
            stage.advance(part.rows, rejects=part.rejects)
            if outcomes.total() >= _ENOUGH_TO_JUDGE:
                _check_rejects(outcomes, max_rejects)
    _check_rejects(outcomes, max_rejects)
    return FeatureSet(settings.digest, {part.part: done[part.part] for part in catalogue.parts})


def _check_rejects(outcomes: Counter[str], limit: float) -> None:
    rejects = outcomes.total() - outcomes["ok"]
    if rejects > limit * outcomes.total():
        reasons = ", ".join(f"{count} {reason}" for reason, count in outcomes.most_common() if reason != "ok")
        raise OverBudget(
            f"{rejects} of {outcomes.total()} images have no features ({reasons}): more than the limit of "
            f"{limit:.0%}; look at the source, or allow it with --max-rejects 1 (nothing done so far is lost)"
        )
