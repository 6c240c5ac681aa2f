"""The service answers as the searcher does, whatever the grouping; and says what it did without."""

import asyncio
import io
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image

from index.calibration import Calibration, Reliability, scoring_of
from index.combine import combine
from index.geometry import GeometrySettings
from index.score_curve import Curve
from index.step_choice import chosen_steps
from ingest.compute import Compute
from ingest.errors import BadInput, NotFound
from ingest.job import Job
from serve.api import CompareRequest, SearchRequest, SearchResponse
from serve.query import ImageQuery
from serve.refusals import ImageRejected
from serve.replicas.embedded import open_embedded
from serve.searcher import Result, Searcher, open_searcher
from serve.service.search_service import SearchService
from serve.service.settings import ServiceSettings
from tests.pipeline.small import rendered, stored_vectors
from tests.scenes import IMAGES, SCENES, label_of, scene_gallery, scene_recipe
from tests.serve.made_up_service import Test
from tests.tiny import memory_store

RECIPE = scene_recipe(steps=[GeometrySettings(depth=12).model_dump()])
ONE_THREAD = Compute(threads=1)
PATIENT = ServiceSettings(image_timeout_ms=120_000, vector_timeout_ms=120_000, poll_s=600)


@dataclass(frozen=True)
class Town:
    """A gallery of scenes in four shards, its images by key, and the searcher that is right by definition."""

    job: Job
    files: dict[str, bytes]
    searcher: Searcher

    def query(self, key: str) -> ImageQuery:
        return ImageQuery(self.files[key], None, key)

    @property
    def keys(self) -> list[str]:
        return [key for key in self.files if label_of(key) is not None]


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    job = scene_gallery(memory_store(), RECIPE.model_copy(update={"shard_rows": 6}))
    with open_searcher(job.gallery, compute=ONE_THREAD) as searcher:
        yield Town(job, rendered(SCENES), searcher)


@asynccontextmanager
async def serving(town: Town, groups: int = 2, **options: Any) -> AsyncIterator[SearchService]:
    gallery = town.job.gallery
    async with (
        open_embedded(gallery, groups=groups, compute=ONE_THREAD) as backend,
        SearchService(gallery, backend, settings=PATIENT, **options) as service,
    ):
        yield service


def in_town(town: Town, test: Test, groups: int = 2, **options: Any) -> None:
    async def run() -> None:
        async with serving(town, groups, **options) as service:
            await test(service)

    asyncio.run(run())


def assert_same(found: SearchResponse, expected: Sequence[Result]) -> None:
    """The very same results, as numbers are written."""
    assert [int(each.image_id) for each in found.results] == [each.image_id for each in expected]
    for mine, theirs in zip(found.results, expected, strict=True):
        assert (mine.rank, mine.uri, mine.source, mine.key) == (
            theirs.rank,
            theirs.uri,
            theirs.source,
            theirs.key,
        )
        assert (mine.score, mine.similarity) == (round(theirs.score, 6), round(theirs.similarity, 6))
        assert mine.metadata == theirs.metadata
        assert [(step.step, step.added) for step in mine.steps] == [
            (step.kind, round(step.added, 6)) for step in theirs.evidence
        ]


# -- equal to the searcher --------------------------------------------------------------------------------

RERANKS = [None, "none", "expand", "expand,geometry", "geometry,expand"]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_an_upload_an_image_and_a_vector_answer_as_the_searcher_does(groups: int, town: Town) -> None:
    async def test(service: SearchService) -> None:
        for rerank in RERANKS if groups == 2 else RERANKS[:1]:
            steps = chosen_steps(RECIPE, rerank, None)
            for key in town.keys[::7]:
                query = town.query(key)
                (expected,) = town.searcher.search_images([query], 9, steps=steps)
                found = await service.search(SearchRequest(top=9, rerank=rerank), [query], "r")
                assert_same(found, expected.results)
                own = expected.results[0].image_id
                request = SearchRequest(top=9, rerank=rerank, image_ids=[own])
                similar = town.searcher.similar_to(own, 9, steps=steps)
                assert_same(await service.search(request, [], "r"), similar.results)
        vectors = stored_vectors(town.job.gallery, 1)[1][::5]
        for vector, answer in zip(vectors, town.searcher.search_vectors(vectors, 9), strict=True):
            request = SearchRequest(top=9, vectors=[vector.tolist()])
            assert_same(await service.search(request, [], "r"), answer.results)

    in_town(town, test, groups)


def test_a_box_and_a_depth_go_the_same_way(town: Town) -> None:
    key, box = "facade-000001/view-00.bmp", (60.0, 20.0, 230.0, 160.0)
    steps = chosen_steps(RECIPE, "geometry", 20)
    (expected,) = town.searcher.search_images([ImageQuery(town.files[key], box, key)], 5, steps=steps)

    async def test(service: SearchService) -> None:
        request = SearchRequest(top=5, rerank="geometry", depth=20, box=box, explain=True)
        found = await service.search(request, [town.query(key)], "r")
        assert_same(found, expected.results)
        points = found.results[0].steps[0].points
        theirs = expected.results[0].evidence[0].points
        assert points is not None and theirs is not None
        np.testing.assert_allclose(points[0], theirs[0], atol=0.006)
        assert {"decode", "encode", "fan_out", "scan", "merge", "rerank", "metadata"} <= set(found.timings_ms)

    in_town(town, test)


def test_several_images_of_one_thing_are_averaged_and_the_best_look_counts(town: Town) -> None:
    keys = [f"facade-000001/view-0{view}.bmp" for view in range(3)]
    assert all(key in town.files for key in keys)

    async def test(service: SearchService) -> None:
        request = SearchRequest(top=IMAGES, depth=IMAGES)
        alone = [
            await service.search(SearchRequest(top=IMAGES, depth=IMAGES), [town.query(key)], "r")
            for key in keys
        ]
        request = SearchRequest(top=IMAGES, depth=IMAGES)
        both = await service.search(request, [town.query(key) for key in keys], "r")
        for result in both.results:
            added = [
                next(each for each in answer.results if each.image_id == result.image_id).steps[0].added
                for answer in alone
            ]
            assert result.steps[0].added == max(added)
            assert result.score == pytest.approx(result.similarity + max(added), abs=2e-6)
        encoded = [query.vector for query in town.searcher.encoder.encode(list(map(town.query, keys)))]  # type: ignore[union-attr]
        (plain,) = town.searcher.search_vectors(combine(np.stack(encoded))[None], IMAGES)
        similarity = {str(each.image_id): each.similarity for each in plain.results}
        for result in both.results:
            assert result.similarity == pytest.approx(similarity[result.image_id], abs=2e-6)
        assert [query.name for query in both.queries] == keys

    in_town(town, test)


def test_what_is_unlike_is_pushed_away_and_never_returned(town: Town) -> None:
    all_ids, vectors = stored_vectors(town.job.gallery, 1)
    like, unlike = int(all_ids[3]), int(all_ids[9])
    mixed = combine(vectors[[3]], vectors[[9]])
    (expected,) = town.searcher.search_vectors(mixed[None], IMAGES)
    others = [each for each in expected.results if each.image_id not in (like, unlike)]

    async def test(service: SearchService) -> None:
        request = SearchRequest(image_ids=[like], unlike_ids=[unlike], rerank="none", top=12)
        found = await service.search(request, [], "r")
        assert [int(each.image_id) for each in found.results] == [each.image_id for each in others[:12]]

    in_town(town, test)


# -- filters and exclusions -------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 4])
def test_as_many_come_back_as_the_filter_lets_through(groups: int, town: Town) -> None:
    async def test(service: SearchService) -> None:
        query = town.query(town.keys[0])
        whole = await service.search(SearchRequest(top=IMAGES, rerank="none"), [query], "r")
        for where in ("view >= 1", 'scene = "facade-000001" or not view < 2', 'key prefix "distractor"'):
            found = await service.search(SearchRequest(top=5, rerank="none", where=where), [query], "r")
            kept = [each for each in whole.results if fits(where, each.key, each.metadata)]
            assert len(kept) >= 3
            assert [each.image_id for each in found.results] == [each.image_id for each in kept[:5]]
        for wrong in ('colour = "red"', "view = 'x'", "view >"):
            with pytest.raises(BadInput, match=r"filter|column"):
                await service.search(SearchRequest(where=wrong), [query], "r")

    in_town(town, test, groups)


def fits(where: str, key: str, row: dict[str, Any]) -> bool:
    if where.startswith("view"):
        return bool(row["view"] >= 1)
    if where.startswith("scene"):
        return bool(row["scene"] == "facade-000001" or not row["view"] < 2)
    return key.startswith("distractor")


def test_what_is_excluded_makes_room_for_others(town: Town) -> None:
    async def test(service: SearchService) -> None:
        query = town.query(town.keys[0])
        for rerank in (None, "expand"):
            whole = await service.search(SearchRequest(top=IMAGES, rerank=rerank), [query], "r")
            out = [each.image_id for each in whole.results[:4]]
            request = SearchRequest(top=6, rerank=rerank, exclude_ids=out)
            found = await service.search(request, [query], "r")
            assert len(found.results) == 6
            assert not {each.image_id for each in found.results} & set(out)
            assert [each.rank for each in found.results] == list(range(1, 7))

    in_town(town, test)


# -- what cannot be asked ---------------------------------------------------------------------------------


def test_queries_that_cannot_be_used_say_why(town: Town) -> None:
    good = town.query(town.keys[0])
    one, dim = [[1.0, *[0.0] * 15]], 16
    requests: list[tuple[dict[str, Any], list[ImageQuery], str]] = [
        ({}, [], "nothing to search with"),
        ({"vectors": [[1.0, 2.0]]}, [], f"2 dimensions, and the gallery's have {dim}"),
        ({"vectors": [[0.0] * dim]}, [], "zero"),
        ({"vectors": [[1e39] * dim]}, [], "too large"),
        ({"vectors": one * 16}, [good], "more than 16"),
        ({"vectors": one, "rerank": "geometry"}, [], "a vector shows none"),
        ({"vectors": one, "depth": 3}, [], "needs a step"),
        ({"rerank": "magic"}, [good], "no step 'magic'"),
        ({"rerank": "cvnet"}, [good], "describes only: local"),
        ({"box": (5, 5, 5, 9)}, [good], "box is empty"),
        ({"box": (0, 0, 9, 9)}, [good, good], "exactly one upload"),
        ({"box": (0, 0, 9, 9), "vectors": one}, [], "exactly one upload"),
        ({"box": (4000, 4000, 5000, 5000)}, [good], "outside|beyond|box"),
    ]

    async def test(service: SearchService) -> None:
        for fields, images, message in requests:
            with pytest.raises(BadInput, match=message):
                await service.search(SearchRequest(**fields), images, "r")
        with pytest.raises(ImageRejected) as rejected:
            await service.search(SearchRequest(), [ImageQuery(b"no image", None, "bad.jpg")], "r")
        assert rejected.value.reason == "unknown_format" and "bad.jpg" in str(rejected.value)
        for fields in ({"image_ids": ["12345"]}, {"image_ids": ["12345"], "unlike_ids": ["12345"]}):
            with pytest.raises(NotFound, match="has no image 12345"):
                await service.search(SearchRequest.model_validate(fields), [], "r")
        assert (await service.search(SearchRequest(), [good], "r")).results

    in_town(town, test)


def test_an_image_with_little_structure_is_told(town: Town) -> None:
    file = io.BytesIO()
    pixels = np.full((120, 160), 128, np.uint8)
    pixels[40:60, 50:80] = 255
    Image.fromarray(pixels).save(file, "PNG")

    async def test(service: SearchService) -> None:
        found = await service.search(SearchRequest(), [ImageQuery(file.getvalue(), None, "flat.png")], "r")
        (query,) = found.queries
        assert query.weak and 0 < query.features["local"] < 50
        assert any("flat.png has only" in warning for warning in found.warnings)
        found = await service.search(SearchRequest(), [town.query(town.keys[0])], "r")
        assert found.queries[0].weak is False and found.warnings == []
        assert (found.queries[0].width, found.queries[0].height) == (240, 180)

    in_town(town, test)


# -- single images and pairs ------------------------------------------------------------------------------


def test_an_image_its_row_and_its_pair(town: Town) -> None:
    views = ["facade-000001/view-00.bmp", "facade-000001/view-01.bmp"]

    async def test(service: SearchService) -> None:
        found = await service.search(SearchRequest(top=IMAGES), [town.query(views[0])], "r")
        by_key = {each.key: each for each in found.results}
        own, other = (by_key[key] for key in views)
        image = await service.image(int(own.image_id))
        assert (image.key, image.metadata, image.rank, image.score) == (views[0], own.metadata, 0, 1.0)
        assert (await service.row(int(own.image_id))).key == views[0]
        with pytest.raises(NotFound):
            await service.image(12345)
        request = CompareRequest(query_id=own.image_id, image_id=other.image_id)
        by_id = await service.compare(request, None, "r")
        by_file = await service.compare(CompareRequest(image_id=other.image_id), town.query(views[0]), "r")
        for pair in (by_id, by_file):
            assert pair.image.key == views[1] and (pair.width, pair.height) == (240, 180)
            assert pair.steps[0].figures["inliers"] >= 8 and pair.homography is not None
            points = pair.steps[0].points
            assert points is not None and len(points[0]) == pair.steps[0].figures["inliers"]
            here = np.column_stack([np.array(points[0]), np.ones(len(points[0]))])
            there = here @ np.array(pair.homography).T
            misses = np.linalg.norm(there[:, :2] / there[:, 2:] - np.array(points[1]), axis=1)
            assert np.median(misses) < 2
            assert pair.image.score == pytest.approx(pair.image.similarity + pair.steps[0].added, abs=2e-6)
        for wrong in (
            CompareRequest(image_id="1"),
            CompareRequest(image_id="1", query_id="2", box=(0, 0, 1, 1)),
        ):
            with pytest.raises(BadInput):
                await service.compare(wrong, None, "r")
        with pytest.raises(NotFound):
            await service.compare(CompareRequest(image_id="12345"), town.query(views[0]), "r")

    in_town(town, test)


def test_duplicates_are_what_the_stored_vectors_say(town: Town) -> None:
    all_ids, vectors = stored_vectors(town.job.gallery, 1)
    products = vectors @ vectors.T

    async def test(service: SearchService) -> None:
        for row in range(0, IMAGES, 6):
            for threshold in (0.3, 0.8):
                found = await service.duplicates(int(all_ids[row]), threshold, IMAGES)
                near = {int(i) for i, p in zip(all_ids, products[row], strict=True) if p >= threshold}
                assert {int(each.image_id) for each in found.duplicates} == near - {int(all_ids[row])}
                scores = [each.similarity for each in found.duplicates]
                assert scores == sorted(scores, reverse=True)

    in_town(town, test)


def test_verdicts_come_from_the_calibration_of_the_steps_that_were_done(town: Town) -> None:
    nothing = Reliability(queries=1, pairs=1, same=0, brier=0, verdicts={})
    curves = [
        Calibration(
            recipe="scenes",
            scoring=scoring_of(RECIPE, steps),
            curve=Curve(slope=slope, intercept=-slope / 2),
            data="made up",
            top=10,
            fitted=nothing,
            judged=nothing,
        )
        for steps, slope in ((RECIPE.steps, 8.0), ((), 4.0))
    ]

    async def test(service: SearchService) -> None:
        assert service.generation().calibrated
        query = town.query(town.keys[0])
        for rerank, curve in ((None, curves[0]), ("none", curves[1])):
            found = await service.search(SearchRequest(rerank=rerank, top=IMAGES), [query], "r")
            for each in found.results:
                assert each.verdict is not None
                label, probability = curve.verdict(each.score)
                assert each.verdict.label == label
                assert each.verdict.probability == pytest.approx(probability, abs=1e-4)
        found = await service.search(SearchRequest(rerank="expand"), [query], "r")
        assert all(each.verdict is None for each in found.results)

    in_town(town, test, calibrations=curves)
