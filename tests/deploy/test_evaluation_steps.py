"""Evaluation with steps: as a search answers, query by query, in any engine; and what junk does to it."""

import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from rich.console import Console

import deploy.evaluation
from deploy.evaluation import Evaluation, evaluate_labels, evaluation_table
from index.expansion import ExpansionSettings
from index.geometry import GeometrySettings
from index.metrics import average_precision, recall_at
from index.steps import StepSettings
from ingest.engine import open_engine
from ingest.errors import BadInput
from ingest.job import Job
from ingest.store import Store
from serve.searcher import Searcher, open_searcher
from tests.pipeline.small import stored_vectors
from tests.scenes import IMAGES, LABELS, label_of, scene_gallery, scene_recipe
from tests.tiny import RECIPE, TinyVectors, build_tiny, ingest, job_on, memory_store

GEOMETRY = GeometrySettings(depth=8)
EXPAND = ExpansionSettings(neighbours=2)
JUNK = "view-01"  # one of the three views of each scene, and of no distractor


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    recipe = scene_recipe(steps=[GEOMETRY.model_dump()])
    return scene_gallery(Store(str(tmp_path_factory.mktemp("scenes") / "gallery")), recipe)


@pytest.fixture(scope="module")
def searcher(job: Job) -> Iterator[Searcher]:
    with open_searcher(job.gallery) as opened:
        yield opened


@dataclass(frozen=True)
class Ranking:
    """What a search says of an image: keys of the others, best first."""

    query: str
    keys: list[str]

    def judged(self, junk: str | None, top: int) -> np.ndarray:
        keys = [key for key in self.keys if junk is None or not re.search(junk, key)][:top]
        return np.array(
            [rank for rank, key in enumerate(keys) if label_of(key) == label_of(self.query)], np.int64
        )


def rankings(searcher: Searcher, steps: Sequence[StepSettings], junk: str | None = None) -> list[Ranking]:
    """Of every labelled image that is no junk, one query after the other."""
    found = []
    for image in stored_vectors(searcher.gallery)[0].tolist():
        key = searcher.image(image).key
        if label_of(key) is not None and not (junk and re.search(junk, key)):
            results = searcher.similar_to(image, IMAGES - 1, steps=tuple(steps)).results
            found.append(Ranking(key, [result.key for result in results]))
    return found


def figures(found: list[Ranking], positives: int, junk: str | None = None, top: int = IMAGES) -> list[float]:
    """mAP, and recall at 1 and 5 where so many are judged."""
    ranks = [ranking.judged(junk, top) for ranking in found]
    precision = float(np.mean([average_precision(each, positives) for each in ranks]))
    return [precision, *(recall_at(ranks, k) for k in (1, 5) if k <= top)]


def of(evaluation: Evaluation) -> list[float]:
    return [evaluation.map, *(evaluation.recall_at[k] for k in (1, 5) if k in evaluation.recall_at)]


# -- as a search answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "steps",
    [
        (),
        (GEOMETRY,),
        (EXPAND,),
        (EXPAND, GEOMETRY),
        (GEOMETRY, EXPAND, GeometrySettings(depth=3), GeometrySettings(depth=9)),
    ],
    ids=lambda steps: "-".join(step.kind for step in steps) or "none",
)
def test_figures_are_those_of_one_search_after_the_other(
    steps: tuple[StepSettings, ...], job: Job, searcher: Searcher
) -> None:
    found = evaluate_labels(job, LABELS, steps=steps)
    assert of(found) == pytest.approx(figures(rankings(searcher, steps), 2), abs=1e-6)
    assert (found.queries, found.depth) == (18, IMAGES - 1)
    exact = evaluate_labels(job, LABELS, steps=steps, exact=True)  # a flat index is exact
    assert of(exact) == pytest.approx(of(found), abs=1e-6)


def test_a_step_looks_deeper_than_what_is_judged(job: Job, searcher: Searcher) -> None:
    found = evaluate_labels(job, LABELS, steps=(GEOMETRY,), depth=2)
    expected = figures(rankings(searcher, (GEOMETRY,)), 2, top=2)
    assert of(found) == pytest.approx(expected, abs=1e-6)
    assert found.depth == 2
    assert found.map > evaluate_labels(job, LABELS, steps=(GeometrySettings(depth=2),), depth=2).map


def test_geometry_ranks_better_and_the_recipes_steps_are_taken_by_default(job: Job) -> None:
    without, by_default = evaluate_labels(job, LABELS, steps=()), evaluate_labels(job, LABELS)
    assert by_default == evaluate_labels(job, LABELS, steps=(GEOMETRY,))
    assert without.map + 0.05 < by_default.map
    assert without.exact_recall_at == by_default.exact_recall_at, "of the index, whatever steps do"


def test_batches_do_not_change_figures(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = (EXPAND, GEOMETRY)
    whole = evaluate_labels(job, LABELS, steps=steps)
    monkeypatch.setattr(deploy.evaluation, "_BATCH_QUERIES", 5)
    assert of(evaluate_labels(job, LABELS, steps=steps)) == pytest.approx(of(whole), abs=1e-9)


@pytest.mark.ray
def test_workers_find_what_one_process_finds(ray_cluster: None, job: Job) -> None:
    steps = (EXPAND, GEOMETRY)
    here = evaluate_labels(job, LABELS, steps=steps)
    with open_engine("ray", 2) as engine:
        there = evaluate_labels(replace(job, engine=engine), LABELS, steps=steps)
    assert there == here


def test_steps_are_told(job: Job) -> None:
    found = evaluate_labels(job, LABELS, steps=(EXPAND, GEOMETRY))
    assert found.steps == ("expand of the first 2", "geometry of the first 8")
    assert found.protocol.endswith("; then expand of the first 2, then geometry of the first 8")
    assert json.loads(json.dumps(found.to_json()))["steps"] == list(found.steps)
    console = Console(width=120, file=io.StringIO())
    with console.capture() as capture:
        console.print(evaluation_table(found))
    assert re.search(r"step +│ +geometry of the first 8", capture.get())
    assert "then" not in evaluate_labels(job, LABELS, steps=()).protocol


# -- junk -------------------------------------------------------------------------------------------------


def test_junk_is_neither_right_nor_wrong_but_a_search_looks_at_it(job: Job, searcher: Searcher) -> None:
    found = evaluate_labels(job, LABELS, junk_pattern=JUNK)
    assert (found.queries, found.labelled, found.images) == (12, 12, IMAGES)
    expected = figures(rankings(searcher, (GEOMETRY,), JUNK), 1, JUNK)
    assert of(found) == pytest.approx(expected, abs=1e-6)
    assert "; 6 junk images are left out of the rankings; then geometry of the first 8" in found.protocol
    assert "SKIPPED" not in found.protocol
    short = evaluate_labels(job, LABELS, junk_pattern=JUNK, depth=3, steps=())
    expected = figures(rankings(searcher, (), JUNK), 1, JUNK, top=3)
    assert of(short) == pytest.approx(expected, abs=1e-6), "three that are no junk"


def test_junk_takes_no_place_among_candidates_only_if_that_is_asked_for(job: Job, searcher: Searcher) -> None:
    skipping = evaluate_labels(job, LABELS, junk_pattern=JUNK, steps_skip_junk=True)
    expected = figures(_without_junk_among_candidates(searcher, 8), 1, JUNK)
    assert of(skipping) == pytest.approx(expected, abs=1e-6)
    assert skipping.map > evaluate_labels(job, LABELS, junk_pattern=JUNK).map
    assert "JUNK SKIPPED while candidates are chosen (by the ground truth)" in skipping.protocol
    plain = evaluate_labels(job, LABELS, steps_skip_junk=True)
    assert plain == evaluate_labels(job, LABELS), "no junk, nothing to skip"


def _without_junk_among_candidates(searcher: Searcher, depth: int) -> list[Ranking]:
    """Geometry's gains, given to the first `depth` that are no junk."""
    found = []
    for image in stored_vectors(searcher.gallery)[0].tolist():
        key = searcher.image(image).key
        if label_of(key) is None or JUNK in key:
            continue
        looked = searcher.similar_to(image, IMAGES - 1, steps=(GeometrySettings(depth=IMAGES),)).results
        added = {result.key: result.evidence[0].added for result in looked}
        plain = [r for r in searcher.similar_to(image, IMAGES - 1, steps=()).results if JUNK not in r.key]
        scored = [
            (r.score + (added[r.key] if n < depth else 0), r.image_id, r.key) for n, r in enumerate(plain)
        ]
        found.append(Ranking(key, [name for *_, name in sorted(scored, key=lambda s: (-s[0], s[1]))]))
    return found


def _on_circle(**degrees: float) -> dict[str, tuple[float, ...]]:
    return {
        f"{key.replace('_', '/')}.jpg": (float(np.cos(np.radians(a))), float(np.sin(np.radians(a))), 0.0, 0.0)
        for key, a in degrees.items()
    }


def _circle(**degrees: float) -> Job:
    made = job_on(memory_store())
    ingest(made, TinyVectors("photos", _on_circle(**degrees)))
    build_tiny(made, recipe=RECIPE)
    return made


FOLDER = r"/([^/]+)/[^/]+$"


def test_junk_by_hand() -> None:
    """Of a/1 the nearest is junk of its own label, then comes the other a, then a stranger."""
    made = _circle(a_1=0, a_j=5, a_2=10, b_1=25, b_2=26)
    with_it = evaluate_labels(made, FOLDER, query_pattern="a/1")
    without = evaluate_labels(made, FOLDER, query_pattern="a/1", junk_pattern="/j")
    assert (with_it.map, without.map) == (1.0, 1.0)
    stranger = _circle(a_1=0, x_j=5, a_2=10, b_1=25, b_2=26)
    assert evaluate_labels(stranger, FOLDER, query_pattern="a/1").map == pytest.approx(0.25)
    assert evaluate_labels(stranger, FOLDER, query_pattern="a/1", junk_pattern="/j").map == 1.0
    assert evaluate_labels(stranger, FOLDER, query_pattern="a/1", junk_pattern="/j", depth=1).map == 1.0


def test_junk_is_no_query_and_no_positive() -> None:
    made = _circle(a_1=0, a_j=5, a_2=10, b_1=25, b_j=26)
    found = evaluate_labels(made, FOLDER, junk_pattern="/j")
    assert (found.queries, found.skipped_queries, found.labelled) == (2, 1, 3)
    with pytest.raises(BadInput, match="--junk-pattern"):
        evaluate_labels(made, FOLDER, junk_pattern="[")
    with pytest.raises(BadInput, match="found in no name"):
        evaluate_labels(made, FOLDER, junk_pattern=".")


# -- ready-made vectors -----------------------------------------------------------------------------------


def test_ready_made_vectors_are_expanded_and_not_looked_at() -> None:
    """Of a/1 the wrong b/1 is nearer than a/2; but the mean with its neighbour a/3 is nearer to a/2."""
    made = _circle(a_1=0, a_3=20, a_2=34, b_1=-30, b_2=-60)
    plain = evaluate_labels(made, FOLDER, query_pattern="a/1", steps=())
    expanded = evaluate_labels(made, FOLDER, query_pattern="a/1", steps=(ExpansionSettings(neighbours=1),))
    assert plain.map < 1 == expanded.map
    with pytest.raises(BadInput, match="ready-made vectors"):
        evaluate_labels(made, FOLDER, steps=(GEOMETRY,))
