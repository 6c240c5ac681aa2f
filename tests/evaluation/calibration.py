"""What verdicts are worth: the shipped calibrations, on photographs that they were not fitted to.

    python -m tests.evaluation.calibration --write index/calibrations [--shared PATH] [--recipe NAME]

fits them anew. Each is fitted to half of the labels of `FITTED`: covers and products, three photographs of
each.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.calibration_job import LabelledPairs, brier_of_share, calibrate_labels, share, write_calibration
from deploy.evaluation import evaluate_labels
from deploy.jobs import build_index, ingest, open_job, open_sources
from deploy.recipes import load_recipe
from index.calibration import Calibration, Count, Reliability, find_calibration, load_calibrations, observed
from index.geometry import GeometrySettings
from index.recipe import Recipe
from index.steps import StepSettings
from ingest.job import Job
from tests.evaluation.page import Cell, table
from tests.evaluation.smvs import JUNK, Target

ROOT = Path(__file__).parents[2]
LEAST_SAME = 0.9  # of the pairs that are called the same, on photographs of any kind
Steps = tuple[StepSettings, ...]


@dataclass(frozen=True)
class Photographs:
    """Photographs of one kind.

    sources: under the folder of photographs. labels, junk: patterns. said: in words.
    """

    name: str
    sources: tuple[str, ...]
    labels: str
    said: str
    junk: str | None = None


FITTED = Photographs(
    "covers-and-products",
    ("smvs_dvd", "dvd_extra", "train=grocery/train/*_0[01]5.jpg", "val=grocery/val/*_001.jpg"),
    r"^(?:smvs_dvd/[^/]+|train|val)/(\d+(?=\.)|.+(?=_\d+\.))",
    "DVD covers and packaged products, three photographs of each, among 257 other covers",
    JUNK,
)
OTHERS = (
    Photographs(
        "places",
        ("strecha", "oxford_affine", "vpr_corridor", "dvd_extra"),
        r"^(?:strecha|oxford_affine)/(Herz-Jesus|castle|entry|fountain|[a-z]+(?=/))",
        "8 places and planes, 6 to 49 photographs of each, among 486 others",
    ),
    Photographs(
        "products",
        ("train=grocery/train", "val=grocery/val"),
        r"^(?:train|val)/(.+)_\d+\.",
        "31 products, about 31 photographs of each, half of the products fitted to",
    ),
)
WAYS: dict[str, Sequence[Steps]] = {
    "sift-vlad": ((), (GeometrySettings(),)),
    "effnet-patches": ((),),
}


def calibrations(shared: Path, folder: Path) -> tuple[str, list[Target]]:
    """The section of the page, and what has to hold."""
    shipped, recipe = load_calibrations(), load_recipe("sift-vlad")
    found: list[tuple[Calibration, str, Reliability]] = []
    for photographs in (FITTED, *OTHERS):
        with open_job(str(folder / f"calibration-{photographs.name}"), "ray", create=True) as job:
            _build(job, shared, photographs, recipe)
            for steps in WAYS["sift-vlad"]:
                calibration = find_calibration(shipped, recipe, steps)
                assert calibration is not None, "every way of this recipe ships with a calibration"
                found.append((calibration, photographs.said, _judged(job, photographs, steps, calibration)))
    return _text(shipped, found), [_target(*each) for each in found]


def _build(job: Job, shared: Path, photographs: Photographs, recipe: Recipe) -> None:
    sources = [_located(shared, source) for source in photographs.sources]
    ingest(job, open_sources(sources), recipe)
    build_index(job, recipe)


def _located(shared: Path, source: str) -> str:
    name, equals, path = source.rpartition("=")
    return f"{name}{equals}{shared / 'data' / path}"


def _judged(job: Job, photographs: Photographs, steps: Steps, calibration: Calibration) -> Reliability:
    """On the labels that it was not fitted to; of other kinds, on all."""
    pairs = LabelledPairs(calibration.top)
    evaluate_labels(
        job, photographs.labels, junk_pattern=photographs.junk, steps=steps, observe=pairs.observe
    )
    return observed(calibration.curve, pairs.half(1) if photographs is FITTED else pairs.all)


def _target(calibration: Calibration, said: str, found: Reliability) -> Target:
    same = found.verdicts["same"]
    name = f"{_way(calibration)}, {said.split(',')[0]}: of the pairs called `same`, >= {LEAST_SAME:.0%} are"
    return Target(name, same.same >= LEAST_SAME * same.pairs > 0, f"{share(same)} of {same.pairs:,}")


def _way(calibration: Calibration) -> str:
    steps = calibration.scoring["steps"]
    assert isinstance(steps, list)
    kinds = [str(step["kind"]) for step in steps if isinstance(step, dict)]
    return f"`{calibration.recipe}`" + "".join(f", {kind}" for kind in kinds)


def _text(shipped: Sequence[Calibration], found: Sequence[tuple[Calibration, str, Reliability]]) -> str:
    curves: list[list[Cell]] = [
        [_way(each), f"{_reaches(each, 0.5):.3f}", f"{_reaches(each, 0.9):.3f}", *_cells(each.judged)]
        for each in shipped
    ]
    measured = [[f"{_way(each)}: {said}", *_cells(reliability)] for each, said, reliability in found]
    columns = ["pairs", "`same`", "`maybe`", "`unlikely`", "Brier", "of the share"]
    return (
        "A verdict is a probability, from a curve over the score that was fitted to labelled pairs (each "
        f"query and its first {shipped[0].top} answers): `same` from .9 on, `maybe` from .5. Under each "
        "verdict: the share of its pairs that are the same thing, of how many. Brier: mean square of "
        "probability - truth, and that of always saying the share of same pairs.\n\n"
        "The shipped curves, as their files state it: fitted to half of the labels of "
        f"{FITTED.said}; judged by the other half.\n\n"
        + table(["curve", "score of `maybe`", "of `same`", *columns], curves)
        + "\nThe same curves in galleries built for this page, whose models are fitted anew: first the half "
        "of the labels that they were not fitted to, then photographs of other kinds, of which there are "
        "many more of one thing. There the curves err to the safe side: what is called `same` is, and much "
        "that is the same is called `unlikely`.\n\n" + table(["curve: photographs", *columns], measured)
    )


def _reaches(calibration: Calibration, probability: float) -> float:
    """The score that has a probability."""
    from math import log

    return (log(probability / (1 - probability)) - calibration.curve.intercept) / calibration.curve.slope


def _cells(found: Reliability) -> list[Cell]:
    verdicts = [_counted(found.verdicts[label]) for label in ("same", "maybe", "unlikely")]
    return [found.pairs, *verdicts, found.brier, brier_of_share(found)]


def _counted(count: Count) -> str:
    return f"{share(count)} of {count.pairs:,}"


def write(shared: Path, into: Path, recipes: Sequence[str]) -> None:
    """Fits the calibrations that ship, and writes their files."""
    for name in recipes:
        with (
            tempfile.TemporaryDirectory(prefix="reseen-calibration-") as folder,
            open_job(f"{folder}/gallery", "ray", create=True) as job,
        ):
            _build(job, shared, FITTED, load_recipe(name))
            for steps in WAYS[name]:
                _, calibration = calibrate_labels(
                    job, FITTED.labels, data=FITTED.said, steps=steps, junk_pattern=FITTED.junk
                )
                path = into / f"{'-'.join([name, *(step.kind for step in steps)])}.json"
                write_calibration(calibration, str(path))
                print(path, calibration.curve, calibration.judged, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", type=Path, required=True, metavar="FOLDER", help="for the files")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder of photographs")
    parser.add_argument("--recipe", choices=sorted(WAYS), action="append", help="only this recipe")
    arguments = parser.parse_args()
    write(arguments.shared, arguments.write, arguments.recipe or list(WAYS))


if __name__ == "__main__":
    main()
