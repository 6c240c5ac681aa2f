"""Calibrating by an evaluation: its pairs are a search's answers, and halves never share a label."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from deploy.calibration_job import LabelledPairs, calibrate_labels, calibration_table, write_calibration
from deploy.cli import app
from deploy.evaluation import evaluate_labels
from index.calibration import find_calibration, load_calibrations
from index.expansion import ExpansionSettings
from index.geometry import GeometrySettings
from index.steps import StepSettings
from ingest.errors import BadInput
from ingest.job import Job
from ingest.records import image_identity
from ingest.store import Store
from serve.searcher import open_searcher
from tests.pipeline.small import stored_vectors
from tests.scenes import LABELS, label_of, scene_gallery, scene_recipe
from tests.tiny import RECIPE, TinyVectors, build_tiny, ingest, job_on, memory_store

THINGS = r"/thing-(\d+)-"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return scene_gallery(Store(str(tmp_path_factory.mktemp("scenes") / "gallery")), scene_recipe())


def things(count: int = 60) -> Job:
    """`count` things, each seen three times with some noise, and as many images of nothing known."""
    rng = np.random.default_rng(3)
    centres = rng.standard_normal((count, 4))
    rows = {
        f"thing-{thing}-{view}.jpg": centre + 0.2 * rng.standard_normal(4)
        for thing, centre in enumerate(centres)
        for view in range(3)
    }
    rows |= {f"other-{number}.jpg": rng.standard_normal(4) for number in range(count)}
    named = {key: tuple(map(float, row / np.linalg.norm(row))) for key, row in rows.items()}
    job = job_on(memory_store())
    ingest(job, TinyVectors("photos", named))
    build_tiny(job)
    return job


@pytest.mark.parametrize(
    "steps",
    [(), (GeometrySettings(depth=8),), (ExpansionSettings(neighbours=2), GeometrySettings(depth=4))],
    ids=lambda steps: "-".join(step.kind for step in steps) or "none",
)
def test_pairs_are_the_answers_of_a_search_with_their_final_scores(
    scenes: Job, steps: Sequence[StepSettings]
) -> None:
    pairs = LabelledPairs(top=5)
    evaluate_labels(scenes, LABELS, steps=steps, observe=pairs.observe)
    expected = []
    with open_searcher(scenes.gallery) as searcher:
        for image in stored_vectors(scenes.gallery)[0].tolist():
            label = label_of(searcher.image(image).key)
            if label is not None:
                found = searcher.similar_to(image, 5, steps=steps).results
                expected += [(result.score, label_of(result.key) == label) for result in found]
    assert pairs.all.queries == 18
    assert sorted(pairs.all.same) == sorted(same for _, same in expected)
    np.testing.assert_allclose(
        sorted(zip(pairs.all.scores, pairs.all.same, strict=True)), sorted(expected), atol=1e-5
    )


def test_junk_and_the_query_itself_are_no_pairs(scenes: Job) -> None:
    pairs = LabelledPairs(top=23)
    evaluate_labels(scenes, LABELS, junk_pattern="view-01", observe=pairs.observe)
    assert pairs.all.queries == 12
    assert len(pairs.all.scores) == 12 * (24 - 6 - 1)
    assert pairs.all.same.sum() == 12  # the one other view of each


def test_halves_share_no_label_and_miss_none() -> None:
    pairs = LabelledPairs()
    evaluate_labels(things(), THINGS, observe=pairs.observe)
    one, other = pairs.half(0), pairs.half(1)
    assert one.queries + other.queries == pairs.all.queries == 180
    assert one.queries % 3 == other.queries % 3 == 0, "all views of a thing are in one half"
    assert min(one.queries, other.queries) > 45
    ids = [
        image_identity("photos", f"thing-{thing}-{view}.jpg")[0] for thing in range(60) for view in range(3)
    ]
    least = np.array(ids).reshape(60, 3).min(axis=1)
    assert sorted({each.label for each in pairs.answers}) == sorted(least), "whatever parts images are in"
    assert len(one.scores) + len(other.scores) == len(pairs.all.scores) == 1800


def test_the_curve_is_fitted_to_one_half_and_judged_by_the_other() -> None:
    job = things()
    pairs = LabelledPairs()
    evaluation = evaluate_labels(job, THINGS, observe=pairs.observe)
    found, calibration = calibrate_labels(job, THINGS)
    assert found == evaluation
    assert (calibration.fitted.queries, calibration.judged.queries) == (
        pairs.half(0).queries,
        pairs.half(1).queries,
    )
    assert calibration.judged.same == pairs.half(1).same.sum()
    assert find_calibration([calibration], RECIPE, ()) == calibration
    assert calibration.recipe == "tiny"
    assert calibration.data == f"generation 1: {evaluation.protocol}"


def test_fewer_answers_a_query_are_fewer_pairs() -> None:
    _, calibration = calibrate_labels(things(), THINGS, top=3, data="things")
    assert (calibration.top, calibration.data) == (3, "things")
    assert calibration.judged.pairs == 3 * calibration.judged.queries


def test_too_few_labels_are_refused() -> None:
    with pytest.raises(BadInput, match="label images until there are 10"):
        calibrate_labels(things(count=4), THINGS)


def test_scores_that_no_search_gives_are_refused() -> None:
    with pytest.raises(BadInput, match="without --exact"):
        calibrate_labels(things(), THINGS, exact=True)


def test_the_file_is_what_serving_reads_and_the_table_tells_it(tmp_path: Path) -> None:
    _, calibration = calibrate_labels(things(), THINGS)
    path = tmp_path / "things.json"
    write_calibration(calibration, str(path))
    assert load_calibrations([path])[-1] == calibration
    console = Console(width=120, file=io.StringIO())
    with console.capture() as capture:
        console.print(calibration_table(calibration, str(path)))
    told = [line.replace("│", " ").split() for line in capture.get().splitlines()]
    for label, count in calibration.judged.verdicts.items():
        share = f"{count.same / count.pairs:.3f}" if count.pairs else "-"
        assert [label, f"{count.pairs:,}", f"{count.same:,}", share] in told
    with pytest.raises(BadInput, match="cannot write"):
        write_calibration(calibration, str(tmp_path / "nowhere" / "things.json"))


def test_the_command_writes_the_file_and_says_what_is_in_it(scenes: Job, tmp_path: Path) -> None:
    path = tmp_path / "scenes.json"
    asked = [
        "evaluate",
        "-g",
        scenes.gallery.store.url,
        "--label-pattern",
        LABELS,
        "--calibration",
        str(path),
    ]
    told = CliRunner().invoke(app, [*asked, "--rerank", "geometry", "--json"])
    assert told.exit_code == 0, told.output
    calibration = load_calibrations([path])[-1]
    assert json.loads(told.stdout)["calibration"] == json.loads(path.read_text())
    assert find_calibration([calibration], scene_recipe(), (GeometrySettings(),)) == calibration
    assert find_calibration([calibration], scene_recipe(), ()) is None
    refused = CliRunner().invoke(app, [*asked, "--exact"])
    assert refused.exit_code == 2
    assert "without --exact" in refused.stderr
