"""Calibrating scores by an evaluation: its answers are labelled pairs, half of the labels fit the curve.

The other half judges it. Labels are dealt out by their images' ids, so that the halves stay as they are when
the same images are ingested anew.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy.evaluation import Evaluation, LabelledAnswers, evaluate_labels
from index.calibration import Calibration, Count, Reliability, calibrate, calibration_bytes
from index.generation import read_generation
from index.sampling import ranks
from index.score_curve import Pairs
from ingest.errors import BadInput
from ingest.job import Job

if TYPE_CHECKING:
    from rich.table import Table

TOP = 10
SEED = 1  # deals labels to the half that fits and the half that judges


@dataclass
class LabelledPairs:
    """The first answers of every query of an evaluation, in halves by label; give `observe` to it."""

    top: int = TOP
    answers: list[LabelledAnswers] = field(default_factory=list)

    def observe(self, answers: LabelledAnswers) -> None:
        first = slice(self.top)
        self.answers.append(LabelledAnswers(answers.label, answers.scores[first], answers.same[first]))

    def half(self, number: int) -> Pairs:
        """The pairs of the queries of half the labels; `number` is 0 or 1."""
        labels = np.array([each.label for each in self.answers], np.int64)
        halves = ranks(labels, SEED) % np.uint64(2)
        return _pairs([self.answers[at] for at in np.flatnonzero(halves == number)])

    @property
    def all(self) -> Pairs:
        return _pairs(self.answers)


def _pairs(answers: list[LabelledAnswers]) -> Pairs:
    scores = [each.scores for each in answers]
    same = [each.same for each in answers]
    return Pairs(
        np.concatenate([np.empty(0), *scores]), np.concatenate([np.empty(0, bool), *same]), len(answers)
    )


def calibrate_labels(
    job: Job, label_pattern: str, *, data: str | None = None, top: int = TOP, **options: Any
) -> tuple[Evaluation, Calibration]:
    """Evaluates a generation and calibrates its scores by the same labels.

    Args:
        data: what the labels are of, in words; by default the gallery and its generation.
        top: answers of each query that are pairs.
        options: of `deploy.evaluation.evaluate_labels`; a `generation`, if it matters which.

    Raises:
        BadInput: what `evaluate_labels` raises; `exact` scores, which no search gives; too few labels.
    """
    if options.get("exact"):
        raise BadInput("exact scores are not those of a search: calibrate without --exact")
    pairs = LabelledPairs(top)
    evaluation = evaluate_labels(job, label_pattern, observe=pairs.observe, **options)
    recipe = read_generation(job.gallery, evaluation.generation).recipe
    steps = options.get("steps")
    said = f"generation {evaluation.generation}: {evaluation.protocol}" if data is None else data
    return evaluation, calibrate(
        recipe, recipe.steps if steps is None else steps, pairs.half(0), pairs.half(1), said, top
    )


def write_calibration(calibration: Calibration, path: str) -> None:
    """Writes the file that `reseen serve --calibration` reads; `BadInput` if it cannot be written."""
    try:
        Path(path).write_bytes(calibration_bytes(calibration))
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}; name another file") from None


def calibration_table(calibration: Calibration, path: str) -> "Table":
    """What the verdicts were worth, for people."""
    from rich.table import Table

    judged = calibration.judged
    caption = (
        f"{path}: the first {calibration.top} answers of {judged.queries} queries, by labels that the curve "
        f"was not fitted to; Brier score {judged.brier:.4f}, of always saying the share of same pairs "
        f"{brier_of_share(judged):.4f}"
    )
    table = Table(title="What scores mean", caption=caption, caption_justify="left")
    for column in ("verdict", "pairs", "same thing", "share"):
        table.add_column(column, justify="left" if column == "verdict" else "right")
    for label, count in judged.verdicts.items():
        table.add_row(label, f"{count.pairs:,}", f"{count.same:,}", share(count))
    return table


def share(count: Count) -> str:
    """The share of same pairs, or a dash where there are no pairs."""
    return f"{count.same / count.pairs:.3f}" if count.pairs else "-"


def brier_of_share(reliability: Reliability) -> float:
    """The Brier score of always saying the share of same pairs: what any calibration has to beat."""
    part = reliability.same / reliability.pairs
    return part * (1 - part)
