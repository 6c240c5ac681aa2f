"""A second look by geometry: what it adds on the DVD covers, to the ranking by SIFT-VLAD and to that by GeM.

One ingest for both recipes: it stores the key points that the recipe `sift-vlad` describes, and the pooled
maps of `effnet-gem`.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from deploy.evaluation import Evaluation
from deploy.jobs import build_index, ingest, open_job, open_sources
from deploy.recipes import load_recipe
from index.expansion import ExpansionSettings
from index.geometry import GeometrySettings
from index.recipe import Recipe
from index.steps import StepSettings
from ingest.job import Job
from ingest.threads import fixed_threads
from tests.evaluation.page import Cell, table
from tests.evaluation.smvs import FOLDERS, Target, evaluate_covers

DEPTHS = (10, 30, 100)
DEPTH = 30
LIFT = 0.03
TIMED = r"^smvs_dvd/Canon/0[0-3]"  # queries that are timed, one after the other


@dataclass
class StageSeconds:
    """A progress that only adds up the seconds of each stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, total: int | None, unit: str = "images") -> Iterator["StageSeconds"]:
        begun = time.perf_counter()
        yield self
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun

    def advance(self, n: int = 1, rejects: int = 0) -> None:
        """Nothing: the end of the stage is what counts."""


@dataclass(frozen=True)
class Ranked:
    """A recipe's figures after some steps."""

    recipe: str
    steps: str
    found: Evaluation


def rerank(shared: Path, url: str) -> tuple[str, list[Target]]:
    """The section of the page, and what has to hold."""
    with open_job(url, "ray", create=True) as job:
        sources = open_sources([str(shared / "data" / folder) for folder in FOLDERS])
        ingest(job, sources, sift_recipe())
        ranked = [*_ranked(job, sift_recipe(), sift_steps()), *_ranked(job, gem_recipe(), gem_steps())]
    milliseconds = milliseconds_a_query(url)
    return _text(ranked, milliseconds), [_target(ranked)]


def sift_recipe() -> Recipe:
    """`sift-vlad`, which describes pooled maps too."""
    return _on_both("sift-vlad")


def gem_recipe() -> Recipe:
    """`effnet-gem` on the same features: its map is that of the image reduced to 320 pixels."""
    return _on_both("effnet-gem")


def _on_both(name: str) -> Recipe:
    """A shipped recipe on what both recipes describe."""
    sift, gem = load_recipe("sift-vlad").features, load_recipe("effnet-gem").features
    assert sift is not None
    assert gem is not None
    features = sift.model_dump(mode="json")
    pooled = gem.describe["global"].model_dump(mode="json")
    features["describe"]["global"] = {**pooled, "longest_side": gem.decode.longest_side}
    return Recipe.model_validate({**load_recipe(name).model_dump(mode="json"), "features": features})


def sift_steps() -> dict[str, tuple[StepSettings, ...]]:
    """Steps after the ranking by SIFT-VLAD, by what the page calls them."""
    expand, look = ExpansionSettings(), GeometrySettings(depth=DEPTH)
    return {
        "none": (),
        **{f"geometry of the first {depth}": (GeometrySettings(depth=depth),) for depth in DEPTHS},
        f"expand ({expand.neighbours} neighbours, alpha {expand.alpha:g})": (expand,),
        f"expand, then geometry of the first {DEPTH}": (expand, look),
        f"geometry of the first {DEPTH}, then expand": (look, expand),
    }


def gem_steps() -> dict[str, tuple[StepSettings, ...]]:
    """Likewise after the ranking by GeM."""
    looks = {f"geometry of the first {depth}": (GeometrySettings(depth=depth),) for depth in DEPTHS[1:]}
    return {"none": (), **looks}


def _ranked(job: Job, recipe: Recipe, steps: dict[str, tuple[StepSettings, ...]]) -> Iterator[Ranked]:
    number = build_index(job, recipe).number
    for name, chosen in steps.items():
        yield Ranked(recipe.name, name, evaluate_covers(job, number, steps=chosen))


def milliseconds_a_query(url: str) -> dict[int, float]:
    """By depth, what looking again takes a query: one process, one thread, features from the disk."""
    found = {}
    for depth in DEPTHS:
        progress = StageSeconds()
        with open_job(url, "inline", progress=progress) as job, fixed_threads(1):
            number = build_index(job, sift_recipe()).number
            steps = (GeometrySettings(depth=depth),)
            timed = evaluate_covers(job, number, query_pattern=TIMED, steps=steps)
        found[depth] = 1e3 * progress.seconds["rerank"] / timed.queries
    return found


def _text(ranked: Sequence[Ranked], milliseconds: dict[int, float]) -> str:
    first, settings = ranked[0].found, GeometrySettings()
    base = {each.recipe: each.found.map for each in ranked if each.steps == "none"}
    rows: list[list[Cell]] = [
        [
            f"`{each.recipe}`: {each.steps}",
            each.found.map,
            None if each.steps == "none" else f"{each.found.map - base[each.recipe]:+.4f}",
            each.found.recall_at[1],
            each.found.recall_at[10],
        ]
        for each in ranked
    ]
    costs: list[list[Cell]] = [
        [f"geometry of the first {depth}", f"{spent:,.0f}", f"{spent / depth:.1f}"]
        for depth, spent in milliseconds.items()
    ]
    return (
        f"{first.queries} queries among {first.images} images, as in the first section, by codes of "
        "`sift-vlad` (128-D, 16 bytes) or of `effnet-gem`; both look at the same SIFT key points, stored. "
        f"Geometry: one {settings.model} a pair, similarity + {settings.weight:g} x min(inliers, "
        f"{settings.cap}). Expansion searches again with the query mixed with its neighbours; followed by "
        "nothing, its ranking is that of the second search.\n\n"
        + table(["recipe: steps", "mAP", "lift", "recall@1", "recall@10"], rows)
        + "\nMilliseconds, wall clock, of reading the stored features and looking again: one process, one "
        "thread for the arithmetic.\n\n"
        + table(["step", "a query", "a pair"], costs)
        + "\nOf CVNet-Rerank there is no row: its published weights are not at hand. That it computes what "
        "the paper's code computes is tested against golden outputs (`tests/index/test_cvnet.py`); what it "
        "costs is in the [benchmarks](benchmarks.md).\n"
    )


def _target(ranked: Sequence[Ranked]) -> Target:
    found = {each.steps: each.found.map for each in ranked if each.recipe == "sift-vlad"}
    before, after = found["none"], found[f"geometry of the first {DEPTH}"]
    name = f"geometry of the first {DEPTH} of `sift-vlad` lifts mAP by >= {LIFT:g}"
    return Target(name, after - before >= LIFT, f"{before:.4f} to {after:.4f}")
