"""Steps in a search: scenes whose right views a weak index misses and geometry finds, evidence, expansion."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pytest

from index.expansion import ExpansionSettings
from index.geometry import GeometrySettings
from index.metrics import average_precision
from index.region_scores import RegionStepSettings
from index.removal import delete
from index.steps import StepSettings
from ingest.compute import Compute
from ingest.errors import BadInput
from ingest.job import Job
from ingest.store import Store
from serve.query import ImageQuery
from serve.searcher import Answer, Searcher, open_searcher
from tests.pipeline.small import rendered, stored_vectors
from tests.scenes import IMAGES, SCENES, front_between, label_of, mapped, scene_gallery, scene_recipe
from tests.tiny import build_tiny, ingest, job_on, memory_store, vectors

GEOMETRY = GeometrySettings(depth=12)
RECIPE = scene_recipe(steps=[GEOMETRY.model_dump()])


@dataclass(frozen=True)
class Town:
    """A gallery of scenes whose recipe looks again by geometry, and its images by key."""

    job: Job
    files: dict[str, bytes]

    def query(self, key: str) -> ImageQuery:
        return ImageQuery(self.files[key], None, key)

    @property
    def labelled(self) -> list[ImageQuery]:
        return [self.query(key) for key in self.files if label_of(key) is not None]


@pytest.fixture(scope="module")
def town() -> Town:
    return Town(scene_gallery(memory_store(), RECIPE), rendered(SCENES))


@pytest.fixture(scope="module")
def searcher(town: Town) -> Iterator[Searcher]:
    with open_searcher(town.job.gallery, 1) as opened:  # a test takes an image down
        yield opened


def assert_same(some: Sequence[Answer], others: Sequence[Answer]) -> None:
    """The same images in the same order by the same evidence, and scores but for rounding."""
    assert [answer.query for answer in some] == [answer.query for answer in others]
    for one, other in zip(some, others, strict=True):
        assert [r.image_id for r in one.results] == [r.image_id for r in other.results]
        for mine, theirs in zip(one.results, other.results, strict=True):
            assert (mine.key, mine.rank) == (theirs.key, theirs.rank)
            assert [e.figures for e in mine.evidence] == [e.figures for e in theirs.evidence]
            assert mine.similarity == pytest.approx(theirs.similarity, abs=2e-6)
            assert mine.score == pytest.approx(theirs.score, abs=2e-6)


def mean_ap(answers: Sequence[Answer]) -> float:
    found = []
    for answer in answers:
        keys = [result.key for result in answer.results if result.key != answer.query]
        ranks = [rank for rank, key in enumerate(keys) if label_of(key) == label_of(answer.query)]
        found.append(average_precision(np.array(ranks, np.int64), 2))
    return float(np.mean(found))


# -- geometry ---------------------------------------------------------------------------------------------


def test_geometry_lifts_the_right_views(town: Town, searcher: Searcher) -> None:
    without = searcher.search_images(town.labelled, IMAGES, steps=())
    found = {
        depth: mean_ap(searcher.search_images(town.labelled, IMAGES, steps=(GeometrySettings(depth=depth),)))
        for depth in (12, IMAGES)
    }
    assert mean_ap(without) + 0.15 < found[12]
    assert found[12] + 0.05 < found[IMAGES]
    assert found[IMAGES] > 0.9


def test_evidence_lies_on_the_same_front_in_pixels_of_both_originals(town: Town, searcher: Searcher) -> None:
    """By the homography that the cameras of the two views make; the images were described at 5/6."""
    looked_at = 0
    for query in town.labelled:
        (answer,) = searcher.search_images([query], IMAGES, steps=(GeometrySettings(depth=IMAGES),))
        for result in answer.results:
            (found,) = result.evidence
            assert found.points is not None
            if label_of(result.key) != label_of(query.name):
                assert found.added == 0
            elif result.key != query.name:
                here, there = found.points
                misses = np.linalg.norm(mapped(front_between(query.name, result.key), here) - there, axis=1)
                assert len(misses) == found.figures["inliers"] >= 8
                assert np.median(misses) < 1.2
                looked_at += 1
    assert looked_at == 36


def test_evidence_of_a_part_of_an_image_is_in_pixels_of_the_whole(town: Town, searcher: Searcher) -> None:
    key, other = "facade-000001/view-00.bmp", "facade-000001/view-01.bmp"
    box = (60.0, 20.0, 230.0, 160.0)
    (answer,) = searcher.search_images([ImageQuery(town.files[key], box, key)], 12)
    (evidence,) = next(result.evidence for result in answer.results if result.key == other)
    assert evidence.points is not None
    here, there = evidence.points
    assert (here >= box[:2]).all() and (here <= box[2:]).all()
    assert len(here) >= 20
    assert np.median(np.linalg.norm(mapped(front_between(key, other), here) - there, axis=1)) < 1.2


def test_a_score_is_the_similarity_and_what_was_added_and_orders_the_answers(
    town: Town, searcher: Searcher
) -> None:
    before = searcher.search_images(town.labelled, IMAGES, steps=())
    after = searcher.search_images(town.labelled, IMAGES)
    for plainly, again in zip(before, after, strict=True):
        first = {result.image_id for result in plainly.results[:12]}
        similarity = {result.image_id: result.similarity for result in plainly.results}
        assert all(result.score == result.similarity and not result.evidence for result in plainly.results)
        assert {result.image_id for result in again.results if result.evidence} == first
        for result in again.results:
            assert result.similarity == pytest.approx(similarity[result.image_id], abs=1e-6)
            assert result.score == result.similarity + sum(each.added for each in result.evidence)
        keys = [(-result.score, result.image_id) for result in again.results]
        assert keys == sorted(keys)
        assert [result.rank for result in again.results] == list(range(1, IMAGES + 1))


def test_the_recipes_steps_are_taken_unless_others_are_given(town: Town, searcher: Searcher) -> None:
    queries = town.labelled[:4]
    by_default = searcher.search_images(queries, 5)
    assert_same(by_default, searcher.search_images(queries, 5, steps=(GEOMETRY,)))
    nothing = searcher.search_images(queries, 5, steps=())
    as_vectors = [query.vector for query in searcher.encoder.encode(queries)]  # type: ignore[union-attr]
    by_vector = searcher.search_vectors(np.stack(as_vectors), 5, names=[query.name for query in queries])
    assert_same(nothing, by_vector)
    assert [r.score for r in nothing[0].results] != [r.score for r in by_default[0].results]


def test_a_step_looks_deeper_than_the_answer_is_long(town: Town, searcher: Searcher) -> None:
    query = [town.query("facade-000000/view-02.bmp")]
    (whole,) = searcher.search_images(query, IMAGES, steps=(GeometrySettings(depth=IMAGES),))
    (short,) = searcher.search_images(query, 3, steps=(GeometrySettings(depth=IMAGES),))
    assert_same([short], [replace(whole, results=whole.results[:3])])
    assert {label_of(result.key) for result in short.results} == {"facade-000000"}


def test_an_image_of_the_gallery_is_looked_at_by_what_is_stored_of_it(town: Town, searcher: Searcher) -> None:
    for query in town.labelled[:6]:
        (by_image,) = searcher.search_images([query], IMAGES, steps=(GeometrySettings(depth=13),))
        own, *others = by_image.results
        assert own.key == query.name
        similar = searcher.similar_to(own.image_id, IMAGES - 1, steps=(GEOMETRY,))
        assert [r.image_id for r in similar.results] == [r.image_id for r in others]
        assert [r.score for r in similar.results] == pytest.approx([r.score for r in others], abs=1e-6)
        assert similar.results[0].evidence[0].figures == others[0].evidence[0].figures


def test_a_query_that_cannot_be_used_does_not_stop_the_others(town: Town, searcher: Searcher) -> None:
    good = town.labelled[0]
    bad, found = searcher.search_images([ImageQuery(b"no image", None, "bad"), good], 3)
    assert bad.rejected is not None and bad.results == ()
    assert_same([found], searcher.search_images([good], 3))


def test_a_step_that_reads_what_there_is_not_is_refused_and_the_searcher_goes_on(
    town: Town, searcher: Searcher
) -> None:
    with pytest.raises(BadInput, match="describes only: local"):
        searcher.search_images(town.labelled[:1], 3, steps=(GeometrySettings(reads="points"),))
    with pytest.raises(BadInput, match="must be `pooled`"):
        searcher.search_images(town.labelled[:1], 3, steps=(RegionStepSettings(reads="local"),))
    assert searcher.search_images(town.labelled[:1], 3)[0].results


# -- expansion --------------------------------------------------------------------------------------------


def naive_expansion(gallery_vectors: np.ndarray, query: np.ndarray, k: int, alpha: float) -> np.ndarray:
    products = gallery_vectors @ query
    mixed = query.astype(np.float64)
    for row in np.argsort(-products, kind="stable")[:k]:
        weight = max(float(products[row]), 0.0) ** alpha if products[row] > 0 else 0.0
        mixed = mixed + weight * gallery_vectors[row]
    return mixed / np.linalg.norm(mixed)


@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_expansion_asks_again_with_the_mean_of_the_first_answers(
    alpha: float, town: Town, searcher: Searcher
) -> None:
    step = ExpansionSettings(neighbours=3, alpha=alpha)
    ids, gallery_vectors = stored_vectors(town.job.gallery, 1)
    by_id = dict(zip(ids.tolist(), gallery_vectors, strict=True))
    for query in town.labelled[::5]:
        (answer,) = searcher.search_images([query], 7, steps=(step,))
        (encoded,) = searcher.encoder.encode([query])
        expanded = naive_expansion(gallery_vectors, encoded.vector, 3, alpha)  # type: ignore[union-attr]
        products = gallery_vectors @ expanded
        expected = np.sort(products)[::-1][:7]
        assert [result.score for result in answer.results] == pytest.approx(expected.tolist(), abs=1e-5)
        for result in answer.results:
            assert result.score == pytest.approx(float(by_id[result.image_id] @ expanded), abs=1e-5)


def test_what_was_expanded_can_be_looked_at_again(town: Town, searcher: Searcher) -> None:
    expand = ExpansionSettings(neighbours=2)
    for query in town.labelled[::6]:
        (asked,) = searcher.search_images([query], IMAGES, steps=(expand,))
        (both,) = searcher.search_images([query], IMAGES, steps=(expand, GEOMETRY))
        similarity = {result.image_id: result.score for result in asked.results}
        assert {r.image_id for r in both.results if r.evidence} == {r.image_id for r in asked.results[:12]}
        assert [r.similarity for r in both.results] == pytest.approx(
            [similarity[r.image_id] for r in both.results], abs=1e-6
        )
        (turned,) = searcher.search_images([query], IMAGES, steps=(GEOMETRY, expand))
        assert not any(result.evidence for result in turned.results), "a new search has new answers"


@pytest.mark.parametrize(
    "steps", [(ExpansionSettings(neighbours=3),), (ExpansionSettings(neighbours=3), GEOMETRY)]
)
def test_an_image_never_comes_back_among_what_is_similar_to_it(
    steps: tuple[StepSettings, ...], searcher: Searcher
) -> None:
    ids, gallery_vectors = stored_vectors(searcher.gallery, 1)
    for place in range(0, IMAGES, 5):
        own = int(ids[place])
        found = searcher.similar_to(own, 12, steps=steps).results
        assert len(found) == 12 and own not in [result.image_id for result in found]
        assert [bool(result.evidence) for result in found] == [len(steps) == 2] * 12
        others = np.delete(gallery_vectors, place, axis=0)
        expanded = naive_expansion(others, gallery_vectors[place], 3, 3.0)
        best = np.sort(others @ expanded)[::-1][:12]
        assert sorted(r.similarity for r in found) == pytest.approx(sorted(best.tolist()), abs=1e-5)


def test_ready_made_vectors_can_be_expanded_and_not_looked_at() -> None:
    job, source = job_on(memory_store()), vectors("cloud", 20)
    ingest(job, source)
    build_tiny(job)
    own = source.ids()[4]
    with open_searcher(job.gallery) as opened:
        found = opened.similar_to(own, 5, steps=(ExpansionSettings(neighbours=2),))
        assert len(found.results) == 5 and own not in [result.image_id for result in found.results]
        with pytest.raises(BadInput, match="ready-made vectors"):
            opened.similar_to(own, 5, steps=(GEOMETRY,))
        with pytest.raises(BadInput, match="ready-made vectors"):
            opened.search_images([ImageQuery(b"x")], 1, steps=(GEOMETRY,))


# -- one by one, together, at once, elsewhere -------------------------------------------------------------


@pytest.mark.parametrize(
    "steps", [(GEOMETRY,), (ExpansionSettings(neighbours=2), GEOMETRY)], ids=["geometry", "both"]
)
def test_a_batch_and_threads_answer_as_one_by_one(
    steps: tuple[StepSettings, ...], town: Town, searcher: Searcher
) -> None:
    queries = town.labelled[:8]
    apart = [searcher.search_images([query], 6, steps=steps)[0] for query in queries]
    assert_same(searcher.search_images(queries, 6, steps=steps), apart)
    with open_searcher(town.job.gallery, 1) as fresh, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda query: fresh.search_images([query], 6, steps=steps)[0], queries))
    assert_same(found, apart)


def test_shards_and_stores_do_not_change_an_answer(gallery_url: str, town: Town, searcher: Searcher) -> None:
    steps = (ExpansionSettings(neighbours=2), GEOMETRY)
    job = scene_gallery(Store(gallery_url), RECIPE.model_copy(update={"shard_rows": 6}))
    queries = town.labelled[::3]
    with open_searcher(job.gallery) as other:
        assert (len(other.opened.shards), len(searcher.opened.shards)) == (4, 1)
        assert_same(
            other.search_images(queries, 8, steps=steps), searcher.search_images(queries, 8, steps=steps)
        )
        own = searcher.search_images(queries[:1], 1)[0].results[0].image_id
        assert_same([other.similar_to(own, 8)], [searcher.similar_to(own, 8)])


def test_no_step_brings_back_what_was_taken_down(town: Town, searcher: Searcher) -> None:
    query = town.query("facade-000001/view-00.bmp")
    taken = searcher.search_images([query], 3)[0].results[1].image_id
    number = delete(town.job, [taken]).number
    with open_searcher(town.job.gallery, number) as after:
        for steps in ((GEOMETRY,), (ExpansionSettings(neighbours=2), GEOMETRY)):
            (answer,) = after.search_images([query], IMAGES, steps=steps)
            assert len(answer.results) == IMAGES - 1
            assert taken not in [result.image_id for result in answer.results]


# -- regions ----------------------------------------------------------------------------------------------


def test_the_best_region_of_each_answer_is_named_in_pixels_of_its_original(town: Town) -> None:
    network = {"name": "efficientnet-lite0"}
    describe = {"global": {"kind": "cnn-global", "network": network, "regions": {"kind": "sfrs"}}}
    recipe = scene_recipe(
        features={"decode": {"longest_side": 128}, "describe": describe},
        encoder={"kind": "pooled"},
        steps=[{"kind": "regions", "depth": 10}],
    )
    job = scene_gallery(memory_store(), recipe)
    with open_searcher(job.gallery, compute=Compute(threads=1)) as opened:
        answers = opened.search_images(town.labelled[:6], IMAGES)
        without = opened.search_images(town.labelled[:6], IMAGES, steps=())
    parts = 0
    for answer, plainly in zip(answers, without, strict=True):
        first = {result.image_id for result in plainly.results[:10]}
        assert {result.image_id for result in answer.results if result.evidence} == first
        for result in answer.results:
            for found in result.evidence:
                assert found.box is not None
                x0, y0, x1, y1 = found.box
                assert 0 <= x0 < x1 <= 240 and 0 <= y0 < y1 <= 240
                assert result.score == pytest.approx(max(found.figures["score"], result.similarity), abs=1e-6)
                parts += found.figures["region"] > 0
    assert parts > 10
