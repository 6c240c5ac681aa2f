"""Search by image and by vector, in a gallery of rendered scenes whose folder is gone by then."""

import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from index.build import build
from index.cache import Cache
from index.filters import parse_filter
from index.recipe import Recipe
from index.removal import delete
from index.steps import Query
from ingest.engine import InlineEngine
from ingest.errors import BadInput, NotFound
from ingest.gallery import create_gallery
from ingest.job import Job
from ingest.outcomes import Outcome, Rejected
from ingest.parts import PartSizes, ingest_source
from ingest.progress import SilentProgress
from ingest.records import image_identity
from ingest.sources import Listed, Source, open_source
from ingest.store import Store
from serve.query import ImageQuery, open_query_encoder, version_warning
from serve.searcher import Searcher, open_searcher, uri_of
from tests.tiny import build_tiny, ingest, job_on, memory_store, vectors

SCENES = "synthetic:scenes=8,views=3,distractors=8,size=160,seed=1"


@dataclass(frozen=True)
class Album:
    """A gallery, the bytes of its images by key, and the folder that they were in."""

    job: Job
    images: dict[str, bytes]
    folder: Path
    uris: dict[str, str]


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Album:
    place = tmp_path_factory.mktemp("album")
    folder = place / "photos"
    scenes = open_source(SCENES)
    assert isinstance(scenes, Source)
    images = {entry.key: scenes.read(entry.key) for entry in scenes.listing() if isinstance(entry, Listed)}
    for key, data in images.items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(data)
    rows = "\n".join(f"{key},{key[:6]}" for key in images if "view-00" in key)
    (folder / "metadata.csv").write_text(f"key,kind\n{rows}\n")
    job = Job(create_gallery(Store(str(place / "gallery"))), InlineEngine(), SilentProgress())
    source = open_source(str(folder))
    assert isinstance(source, Source)
    ingest_source(job.gallery, source, job.progress, PartSizes(most_images=5))
    recipe = Recipe.model_validate(
        {
            "name": "small",
            "features": {},
            "encoder": {"kind": "vlad", "codebook": {"words": 8}},
            "quantizer": {"kind": "flat"},
            "shard_rows": 12,
        }
    )
    build(job, recipe, {source.name: source})
    uris = {key: source.uri(key) for key in images}
    shutil.rmtree(folder)
    return Album(job, images, folder, uris)


@pytest.fixture(scope="module")
def searcher(album: Album) -> Iterator[Searcher]:
    with open_searcher(album.job.gallery) as opened:
        yield opened


def vector_of(found: Query | Rejected) -> np.ndarray:
    assert isinstance(found, Query)
    return found.vector


def _queries(album: Album, count: int) -> list[ImageQuery]:
    return [ImageQuery(data, None, key) for key, data in list(album.images.items())[:count]]


def test_an_image_of_the_gallery_finds_itself_first(album: Album, searcher: Searcher) -> None:
    for query, answer in zip(
        _queries(album, 32), searcher.search_images(_queries(album, 32), 3), strict=True
    ):
        best = answer.results[0]
        assert (answer.query, best.key, best.rank, answer.rejected) == (query.name, query.name, 1, None)
        assert best.score == pytest.approx(1, abs=1e-5)
        assert best.image_id == image_identity("photos", query.name)[0]


def test_results_are_ranked_and_say_where_they_lay(album: Album, searcher: Searcher) -> None:
    (answer,) = searcher.search_images(_queries(album, 1), 32)
    assert [result.rank for result in answer.results] == list(range(1, 33))
    scores = [result.score for result in answer.results]
    assert scores == sorted(scores, reverse=True)
    assert {result.key: result.uri for result in answer.results} == album.uris
    assert not album.folder.exists()


def test_metadata_comes_along_and_absent_values_do_not(album: Album, searcher: Searcher) -> None:
    (answer,) = searcher.search_images(_queries(album, 1), 32)
    for result in answer.results:
        assert result.metadata == ({"kind": result.key[:6]} if "view-00" in result.key else {})
        assert result.source == "photos"


def test_a_filter_gives_the_full_answers_first_that_pass_it(album: Album, searcher: Searcher) -> None:
    where = parse_filter('kind >= "facade" and not key contains "00000/"')
    queries = _queries(album, 4)
    vectors = np.stack([vector_of(query) for query in searcher.encoder.encode(queries)])
    whole = searcher.search_images(queries, 32)
    expected = [
        [
            r.image_id
            for r in answer.results
            if r.metadata.get("kind", "") >= "facade" and "00000/" not in r.key
        ]
        for answer in whole
    ]
    assert 3 < len(expected[0]) < 32
    for found in (
        searcher.search_images(queries, 3, where=where),
        searcher.search_vectors(vectors, 3, where=where),
    ):
        assert [[r.image_id for r in answer.results] for answer in found] == [ids[:3] for ids in expected]
    own = whole[0].results[0].image_id
    similar = searcher.similar_to(own, 32, where=where)
    assert [r.image_id for r in similar.results] == [image for image in expected[0] if image != own]
    with pytest.raises(BadInput, match="no such column; they have key, kind, source"):
        searcher.search_images(queries, where=parse_filter("year = 1"))


def test_views_of_the_same_scene_come_before_others(album: Album, searcher: Searcher) -> None:
    keys = [key for key in album.images if key.endswith("view-01.bmp")]
    answers = searcher.search_images([ImageQuery(album.images[key]) for key in keys], 2)
    same = [
        answer.results[1].key.split("/")[0] == key.split("/")[0]
        for key, answer in zip(keys, answers, strict=True)
    ]
    assert np.mean(same) >= 0.5  # 2 of 31 others would be right by chance


def test_a_batch_answers_as_one_by_one(album: Album, searcher: Searcher) -> None:
    queries = _queries(album, 6)
    queries[2] = replace(queries[2], box=(20.0, 10.0, 130.0, 100.0))
    queries.insert(4, ImageQuery(b"", None, "empty"))
    together = searcher.search_images(queries, 5)
    apart = [searcher.search_images([query], 5)[0] for query in queries]
    for one, other in zip(together, apart, strict=True):
        assert (one.query, one.rejected) == (other.query, other.rejected)
        assert [r.image_id for r in one.results] == [r.image_id for r in other.results]
        assert [r.score for r in one.results] == pytest.approx([r.score for r in other.results], abs=1e-6)


def test_a_vector_does_not_depend_on_the_batch(album: Album, searcher: Searcher) -> None:
    queries = _queries(album, 5)
    together = searcher.encoder.encode(queries)
    apart = [searcher.encoder.encode([query])[0] for query in queries]
    for one, other in zip(together, apart, strict=True):
        assert np.array_equal(vector_of(one), vector_of(other))


def test_a_box_around_everything_is_no_box(album: Album, searcher: Searcher) -> None:
    key, data = next(iter(album.images.items()))
    width, height = Image.open(io.BytesIO(data)).size
    whole, boxed, part = searcher.encoder.encode(
        [
            ImageQuery(data),
            ImageQuery(data, (0, 0, width, height)),
            ImageQuery(data, (0, 0, width / 2, height)),
        ]
    )
    assert np.array_equal(vector_of(whole), vector_of(boxed)), key
    assert not np.array_equal(vector_of(whole), vector_of(part))


def test_a_box_outside_the_image_names_the_query(album: Album, searcher: Searcher) -> None:
    data = next(iter(album.images.values()))
    with pytest.raises(BadInput, match=r"cat\.bmp"):
        searcher.search_images([ImageQuery(data, (5000, 5000, 6000, 6000), "cat.bmp")])
    assert searcher.search_images([ImageQuery(data)], 1)[0].results  # and the decoder still works


def test_what_is_no_image_has_a_reason_and_does_not_stop_the_others(album: Album, searcher: Searcher) -> None:
    flat = io.BytesIO()
    Image.new("RGB", (64, 64), (90, 90, 90)).save(flat, "PNG")
    good = next(iter(album.images.values()))
    answers = searcher.search_images(
        [ImageQuery(b"not an image", None, "bad"), ImageQuery(flat.getvalue()), ImageQuery(good)], 2
    )
    reasons = [answer.rejected.reason if answer.rejected else None for answer in answers]
    assert reasons == [Outcome.UNKNOWN_FORMAT, Outcome.NO_FEATURES, None]
    assert [len(answer.results) for answer in answers] == [0, 0, 2]
    assert [answer.results for answer in searcher.search_images([ImageQuery(b"")], 2)] == [()]
    assert searcher.search_images([], 2) == []


def test_more_than_the_gallery_has_gives_what_there_is(album: Album, searcher: Searcher) -> None:
    (answer,) = searcher.search_images(_queries(album, 1), 10**12)
    assert len({result.image_id for result in answer.results}) == len(answer.results) == 32
    with pytest.raises(BadInput):
        searcher.search_images(_queries(album, 1), 0)


def test_a_stored_vector_finds_what_its_image_finds_without_itself(album: Album, searcher: Searcher) -> None:
    query = _queries(album, 1)[0]
    (by_image,) = searcher.search_images([query], 6)
    own = by_image.results[0].image_id
    similar = searcher.similar_to(own, 5)
    assert [r.image_id for r in similar.results] == [r.image_id for r in by_image.results[1:]]
    assert [r.rank for r in similar.results] == [1, 2, 3, 4, 5]
    with pytest.raises(NotFound):
        searcher.similar_to(12345)


def test_vectors_are_searched_as_images_are_whatever_their_length(album: Album, searcher: Searcher) -> None:
    queries = _queries(album, 3)
    encoded = np.stack([vector_of(query) for query in searcher.encoder.encode(queries)])
    by_image = searcher.search_images(queries, 4)
    by_vector = searcher.search_vectors(7 * encoded, 4, names=["x", "y", "z"])
    assert [answer.query for answer in by_vector] == ["x", "y", "z"]
    for one, other in zip(by_image, by_vector, strict=True):
        assert [r.image_id for r in one.results] == [r.image_id for r in other.results]
    with pytest.raises(BadInput, match="dimensions"):
        searcher.search_vectors(encoded[:, :3], 1)


def test_the_query_encoder_gives_the_stored_vectors(album: Album, searcher: Searcher) -> None:
    queries = _queries(album, 4)
    with open_query_encoder(album.job.gallery, searcher.opened.generation) as encoder:
        encoded = encoder.encode(queries)
        assert encoder.warning is None
    for query, found in zip(queries, encoded, strict=True):
        (answer,) = searcher.search_vectors(vector_of(found)[None], 1)
        assert answer.results[0].image_id == image_identity("photos", query.name)[0]
        np.testing.assert_allclose(np.linalg.norm(vector_of(found)), 1, atol=1e-6)


def test_deleted_images_are_not_found_in_the_next_generation(album: Album) -> None:
    query = _queries(album, 12)[11]
    delete(album.job, [image_identity("photos", query.name)[0]])
    with open_searcher(album.job.gallery, 2) as after, open_searcher(album.job.gallery, 1) as before:
        assert query.name not in [r.key for r in after.search_images([query], 32)[0].results]
        assert before.search_images([query], 1)[0].results[0].key == query.name
        with pytest.raises(NotFound):
            after.image(image_identity("photos", query.name)[0])
        assert before.image(image_identity("photos", query.name)[0]).key == query.name


def test_a_cache_holds_all_that_answers_say(album: Album, tmp_path: Path) -> None:
    """Index and row table of each shard: nothing is read from listings."""
    cache = Cache(tmp_path / "cache")
    with open_searcher(album.job.gallery, 1, cache) as opened:
        first = opened.search_images(_queries(album, 2), 5)
        assert len(list(cache.folder.glob("??/*"))) == 2 * len(opened.opened.shards)
    with open_searcher(album.job.gallery, 1, cache) as opened:
        assert opened.search_images(_queries(album, 2), 5) == first


def test_ready_made_vectors_are_searched_by_vector_only() -> None:
    job = job_on(memory_store())
    source = vectors("cloud", 20)
    ingest(job, source)
    build_tiny(job)
    with open_searcher(job.gallery) as opened:
        answers = opened.search_vectors(source.read(0, 20), 2)
        assert [answer.results[0].key for answer in answers] == source.keys(0, 20)
        assert answers[3].results[0].uri == "vectors:cloud#3"
        with pytest.raises(BadInput, match="by vector"):
            opened.search_images([ImageQuery(b"x")], 1)


@pytest.mark.parametrize("form", ["{}", "file://{}", "{}/"])
def test_uris_are_those_of_the_source(form: str, tmp_path: Path) -> None:
    source = open_source(form.format(tmp_path))
    assert isinstance(source, Source)
    assert uri_of(source.url, "a/b c.jpg") == source.uri("a/b c.jpg") == f"{tmp_path}/a/b c.jpg"


def test_uris_of_other_sources() -> None:
    scenes = open_source(SCENES)
    assert isinstance(scenes, Source)
    assert uri_of(scenes.url, "k.bmp") == scenes.uri("k.bmp")
    assert uri_of("s3://bucket/photos", "k.jpg") == "s3://bucket/photos/k.jpg"


def test_other_versions_of_the_libraries_are_told() -> None:
    built = {"numpy": "2.0", "faiss-cpu": "1.10", "pillow": "11.0"}
    assert version_warning(built, built) is None
    assert version_warning(built, {"numpy": "2.0", "faiss-gpu": "1.10", "pillow": "11.0"}) is None
    told = version_warning(built, {"numpy": "2.1", "faiss-cpu": "1.10"})
    assert told is not None and "numpy 2.0 (here 2.1)" in told and "pillow 11.0 (here absent)" in told
