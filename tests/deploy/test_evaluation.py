"""Evaluation by labels: against a naive implementation, and on galleries whose figures are known by hand."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import deploy.evaluation
from deploy.evaluation import evaluate_labels, evaluation_table
from deploy.labels import label_reader
from index.build import build
from index.flat import FlatSettings
from index.ivfadc import IvfadcSettings
from index.quantizer import QuantizerSettings
from index.recipe import GateSettings, Recipe
from index.removal import delete
from ingest.errors import BadInput
from ingest.job import Job
from ingest.parts import ingest_source
from ingest.records import image_identity
from ingest.sources import Source, open_source
from tests.tiny import RECIPE, TinyVectors, build_tiny, ingest, job_on, memory_store

FOLDER = r"/([^/]+)/[^/]+$"


def _gallery(
    points: dict[str, tuple[float, ...]], name: str = "photos", quantizer: QuantizerSettings | None = None
) -> Job:
    job = job_on(memory_store())
    dim = len(next(iter(points.values())))
    ingest(job, TinyVectors(name, points, dim=dim))
    recipe = RECIPE.model_copy(
        update={"quantizer": quantizer or FlatSettings(), "gate": GateSettings(recall=0, queries=4)}
    )
    build_tiny(job, recipe=recipe)
    return job


def _on_circle(**degrees: float) -> dict[str, tuple[float, ...]]:
    """Named unit vectors; `a_1` is the key `a/1.jpg`, and nearness is nearness in angle."""
    return {
        f"{key.replace('_', '/')}.jpg": (
            float(np.cos(np.radians(angle))),
            float(np.sin(np.radians(angle))),
            0.0,
            0.0,
        )
        for key, angle in degrees.items()
    }


def _random(images: int, labels: int, dim: int = 8) -> dict[str, tuple[float, ...]]:
    random = np.random.default_rng(11)
    centres = random.standard_normal((labels, dim))
    named = {}
    for n in range(images):
        vector = centres[n % labels] + 1.2 * random.standard_normal(dim)
        folder = f"label{n % labels}/" if n % 5 else ""
        named[f"{folder}{n}.jpg"] = tuple(map(float, vector / np.linalg.norm(vector)))
    return named


def _naive_map(points: dict[str, tuple[float, ...]], depth: int) -> tuple[float, int]:
    keys, vectors = list(points), np.array(list(points.values()), np.float32)
    labels = [key.split("/")[0] if "/" in key else None for key in keys]
    values = []
    for q, label in enumerate(labels):
        positives = sum(other == label for other in labels) - 1
        if label is None or positives == 0:
            continue
        ranked = [int(n) for n in np.argsort(-(vectors @ vectors[q]), kind="stable") if n != q][:depth]
        found, area = 0, 0.0
        for rank, n in enumerate(ranked):
            if labels[n] == label:
                before = found / rank if rank else 1.0
                found += 1
                area += (before + found / (rank + 1)) / 2 / positives
        values.append(area)
    return float(np.mean(values)), len(values)


@pytest.mark.parametrize("depth", [1, 5, 59])
@pytest.mark.parametrize("exact", [False, True])
def test_agrees_with_a_naive_implementation(depth: int, exact: bool) -> None:
    points = _random(60, 7)
    figures = evaluate_labels(_gallery(points), FOLDER, depth=depth, exact=exact)
    expected, queries = _naive_map(points, depth)
    assert figures.map == pytest.approx(expected, abs=1e-6)
    assert (figures.queries, figures.images, figures.labels) == (queries, 60, 7)
    assert 0 < figures.map < 1


def test_batches_do_not_change_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    job = _gallery(_random(60, 7))
    whole = evaluate_labels(job, FOLDER)
    monkeypatch.setattr(deploy.evaluation, "_BATCH_QUERIES", 5)
    in_fives = evaluate_labels(job, FOLDER)
    assert replace(in_fives, map=0.0) == replace(whole, map=0.0)
    assert in_fives.map == pytest.approx(whole.map, abs=1e-9)


def test_a_perfect_gallery_is_perfect() -> None:
    figures = evaluate_labels(_gallery(_on_circle(a_1=0, a_2=1, a_3=2, b_1=90, b_2=91)), FOLDER)
    assert (figures.map, figures.queries, figures.depth) == (1.0, 5, 4)
    assert figures.recall_at == {1: 1.0}
    assert figures.exact_recall_at == {1: 1.0, 10: 1.0, 100: 1.0}


def test_a_gallery_in_which_the_positive_comes_last() -> None:
    # Of each image's two others the wrong one is nearer: precision is 0 before rank 1 and 1/2 after it.
    job = _gallery(_on_circle(a_1=0, b_1=10, a_2=25))
    figures = evaluate_labels(job, FOLDER, depth=2)
    assert figures.map == pytest.approx(0.25)
    assert figures.recall_at == {1: 0.0}
    assert evaluate_labels(job, FOLDER, ap_rule="rectangle").map == pytest.approx(0.5)


def test_queries_without_positives_are_left_out_and_counted() -> None:
    figures = evaluate_labels(_gallery(_on_circle(a_1=0, a_2=1, b_1=90)), FOLDER)
    assert (figures.queries, figures.skipped_queries, figures.labelled) == (2, 1, 3)
    assert figures.map == 1.0


def test_distractors_are_ranked_but_neither_query_nor_positive() -> None:
    points = _on_circle(a_1=0, a_2=10)
    without = evaluate_labels(_gallery(points), FOLDER)
    far = _on_circle(x=180, y=181)
    near = _on_circle(x=4, y=6)
    behind = evaluate_labels(_gallery(points | far), FOLDER)
    between = evaluate_labels(_gallery(points | near), FOLDER)
    assert (without.map, behind.map) == (1.0, 1.0)
    assert between.map == pytest.approx((0 + 1 / 3) / 2)  # at rank 2, after both
    assert (behind.queries, between.queries, between.labelled, between.images) == (2, 2, 2, 4)


def test_positives_beyond_the_depth_count_as_zero() -> None:
    job = _gallery(_on_circle(a_1=0, a_2=1, a_3=60, b_1=30, b_2=31))
    figures = evaluate_labels(job, FOLDER, query_pattern="a/1", depth=1)
    assert figures.queries == 1
    assert figures.map == pytest.approx(0.5)  # the first of two at rank 0, the other not returned


def test_query_pattern_chooses_queries_and_not_positives() -> None:
    job = _gallery(_on_circle(a_1=0, a_2=1, b_1=90, b_2=91))
    figures = evaluate_labels(job, FOLDER, query_pattern=r"/1\.jpg$")
    assert (figures.queries, figures.map, figures.labelled) == (2, 1.0, 4)


def test_deleted_images_are_not_in_it() -> None:
    job = _gallery(_on_circle(a_1=0, a_2=1, a_3=2, b_1=90, b_2=91))
    ids = TinyVectors("photos", _on_circle(a_2=1)).ids()
    delete(job, ids)
    figures = evaluate_labels(job, FOLDER)
    assert (figures.images, figures.queries, figures.generation) == (4, 4, 2)
    assert evaluate_labels(job, FOLDER, generation=1).generation == 1


def test_exact_neighbours_that_tie_all_count() -> None:
    # Equal images, the highest ids in the first rows: an index and an exact search cut them differently.
    keys = sorted(
        (f"a/{n}.jpg" for n in range(150)), key=lambda key: image_identity("photos", key)[0], reverse=True
    )
    figures = evaluate_labels(_gallery(dict.fromkeys(keys, (1.0, 0.0, 0.0, 0.0))), FOLDER, depth=3)
    assert figures.exact_recall_at == {1: 1.0, 10: 1.0, 100: 1.0}


def test_the_depth_holds_also_where_the_query_is_not_in_its_own_ranking() -> None:
    points = {f"a/{n}.jpg": (1.0, 0.0, 0.0, 0.0) for n in range(5)}
    for exact in (False, True):
        figures = evaluate_labels(_gallery(points), FOLDER, depth=1, exact=exact)
        assert figures.map == pytest.approx(1 / 4)


def test_a_coarse_quantizer_loses_exact_neighbours_and_is_told() -> None:
    points = _random(400, 20, dim=16)
    coarse = IvfadcSettings(lists=4, nprobe=1, code_bytes=1)
    job = _gallery(points, quantizer=coarse)
    figures = evaluate_labels(job, FOLDER)
    recalls = figures.exact_recall_at
    assert recalls[1] < 0.9 and recalls[1] <= recalls[10] <= recalls[100]
    exact = evaluate_labels(job, FOLDER, exact=True)
    assert exact.map > figures.map
    assert (figures.nprobe, exact.nprobe, exact.exact_recall_at) == (1, None, {})


def test_rejected_images_count_as_zero_as_positives_and_as_queries(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    (tmp_path / "a").mkdir()
    for name in ("1.png", "2.png"):
        Image.fromarray(noise).resize((160, 160)).save(tmp_path / "a" / name)
    Image.new("RGB", (160, 160), (90, 90, 90)).save(tmp_path / "a" / "3.png")  # nothing to describe
    job, source = job_on(memory_store()), open_source(str(tmp_path))
    assert isinstance(source, Source)
    ingest_source(job.gallery, source, job.progress)
    encoder = {"kind": "vlad", "codebook": {"words": 2}}
    recipe = {"name": "t", "features": {}, "encoder": encoder, "quantizer": {"kind": "flat"}}
    build(job, Recipe.model_validate(recipe), {source.name: source})
    figures = evaluate_labels(job, FOLDER)
    assert (figures.queries, figures.unanswered_queries, figures.images) == (3, 1, 3)
    assert figures.map == pytest.approx((0.5 + 0.5 + 0) / 3)
    assert figures.recall_at == {1: pytest.approx(2 / 3)}
    assert figures.exact_recall_at[1] == 1.0  # of the queries that have a vector


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"label_pattern": "("}, "regular expression"),
        ({"label_pattern": FOLDER, "query_pattern": "["}, "regular expression"),
        ({"label_pattern": "holiday-[0-9]+"}, "found in no name of 3 images"),
        ({"label_pattern": FOLDER, "query_pattern": "nowhere"}, "--queries"),
        ({"label_pattern": ".+"}, "no query has a positive"),
    ],
)
def test_mistakes_say_what_to_do_and_show_a_name(options: dict[str, str], says: str) -> None:
    job = _gallery(_on_circle(a_1=0, a_2=1, b_1=90))
    with pytest.raises(BadInput, match=says) as caught:
        evaluate_labels(job, **options)
    assert "photos/" in str(caught.value) or "SOURCE/KEY" in str(caught.value)


def test_labels_are_the_first_group_or_the_whole_match_of_source_and_key() -> None:
    assert label_reader(r"scene-\d+")("town/scene-07/view-1.jpg") == "scene-07"
    assert label_reader(r"scene-(\d+)/(.)")("town/scene-07/view-1.jpg") == "07"
    assert label_reader(r"^(\w+)/")("town/scene-07/view-1.jpg") == "town"
    assert label_reader(r"x(y)?")("town/x.jpg") is None
    assert label_reader(r"z*")("town/a.jpg") is None


def test_figures_as_json_and_as_a_table() -> None:
    figures = evaluate_labels(_gallery(_on_circle(a_1=0, a_2=1, b_1=90)), FOLDER)
    record = json.loads(json.dumps(figures.to_json()))
    assert record["map"] == 1.0 and record["recall_at"] == {"1": 1.0}
    assert record["queries"] == 2 and "trapezoid" in record["protocol"]
    console = Console(width=100, file=io.StringIO())
    with console.capture() as capture:
        console.print(evaluation_table(figures))
    shown = capture.get()
    assert "mAP" in shown and "1.0000" in shown and "left out" in shown
