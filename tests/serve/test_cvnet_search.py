"""CVNet's second look in a search, end to end, against the networks applied to each image and pair alone."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from index.build import build
from index.cvnet import CvnetReranker, load_learner
from index.cvnet_settings import CvnetSettings
from index.recipe import Recipe
from ingest.compute import Compute
from ingest.decode import Decoded, DecodeSettings, decode
from ingest.image_tensors import to_tensor
from ingest.job import Job
from ingest.network_kinds import NETWORKS
from ingest.networks import NetworkSettings, build_network
from ingest.parts import PartSizes, ingest_source
from ingest.store import Store
from serve.query import ImageQuery
from serve.searcher import Result, Searcher, open_searcher
from tests.cvnet_checkpoint import golden_state, write_golden_checkpoint
from tests.pipeline.small import images_of, job_on, rendered

SCENES = "synthetic:scenes=2,views=2,distractors=2,size=72,seed=2"
STORAGE = {"exact": "float32", "half": "float16", "bytes": "int8", "pyramid": "none"}
WEIGHT = 0.5
ONE_THREAD = Compute(device="cpu", threads=1)


@dataclass(frozen=True)
class Album:
    """A gallery of six pictures in a folder, by a network with golden weights.

    vectors, pyramids: of each image by key, from the network itself.
    """

    job: Job
    folder: Path
    files: dict[str, bytes]
    vectors: dict[str, np.ndarray]
    pyramids: dict[str, list[np.ndarray]]

    def query(self, key: str) -> ImageQuery:
        return ImageQuery(self.files[key], None, key)


def _recipe(checkpoint: Path) -> Recipe:
    network = {"name": "cvnet-r50", "weights": str(checkpoint)}
    pyramids = {
        label: {"kind": "cvnet-pyramid", "network": network, "storage": storage}
        for label, storage in STORAGE.items()
    }
    return Recipe.model_validate(
        {
            "name": "cvnet",
            "features": {
                "describe": {"global": {"kind": "cnn-global", "network": network, "head": True}, **pyramids}
            },
            "encoder": {"kind": "pooled"},
            "quantizer": {"kind": "flat"},
            "steps": [{"kind": "cvnet", "reads": "exact"}],
            "gate": {"recall": 0.0},
        }
    )


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Album:
    place = tmp_path_factory.mktemp("cvnet")
    files = rendered(SCENES)
    for key, data in files.items():
        (place / "photos" / key).parent.mkdir(parents=True, exist_ok=True)
        (place / "photos" / key).write_bytes(data)
    checkpoint = write_golden_checkpoint(place)
    job, source = job_on(Store(str(place / "gallery"))), images_of(str(place / "photos"))
    ingest_source(job.gallery, source, job.progress, PartSizes(most_images=4))
    build(job, _recipe(checkpoint), {source.name: source})
    checkpoint.unlink()  # from now on the gallery's own copy is used
    vectors, pyramids = {}, {}
    settings = NetworkSettings(name="cvnet-r50", weights="seed:0")
    network = build_network(
        settings, {k: v for k, v in golden_state().items() if not k.startswith("cv_learner.")}
    )
    for key, data in files.items():
        image = decode(data, DecodeSettings())
        assert isinstance(image, Decoded)
        with torch.inference_mode():
            maps = network(to_tensor(image.pixels, NETWORKS["cvnet-r50"].preprocessing)[None])
            pyramid = network.project_pyramid(maps["s3_pre"])  # type: ignore[operator]
            vectors[key] = network.global_descriptor(maps["s4"])[0].numpy()  # type: ignore[operator]
        pyramids[key] = [level[0].numpy() for level in pyramid]
    return Album(job, place / "photos", files, vectors, pyramids)


@pytest.fixture(scope="module")
def searcher(album: Album) -> Iterator[Searcher]:
    with open_searcher(album.job.gallery, compute=ONE_THREAD) as opened:
        yield opened


@pytest.fixture(scope="module")
def probabilities(album: Album) -> dict[tuple[str, str], float]:
    """That both are of one thing, by query and candidate."""
    reranker = CvnetReranker(load_learner(golden_state()))
    keys, found = list(album.files), {}
    for query in keys:
        scores = reranker.scores(album.pyramids[query], [album.pyramids[key] for key in keys])
        found.update({(query, key): float(score) for key, score in zip(keys, scores, strict=True)})
    return found


def by_key(results: tuple[Result, ...]) -> dict[str, Result]:
    return {result.key: result for result in results}


def test_similarities_are_those_of_the_networks_own_head(album: Album, searcher: Searcher) -> None:
    for key in album.files:
        (answer,) = searcher.search_images([album.query(key)], 6, steps=())
        for result in answer.results:
            expected = float(album.vectors[key] @ album.vectors[result.key])
            assert result.score == pytest.approx(expected, abs=1e-5)


# The bound for what is rounded is that of the settings' description.
@pytest.mark.parametrize(
    ("label", "bound"),
    [("exact", 1e-5), ("pyramid", 1e-5), ("half", 0.01 * WEIGHT), ("bytes", 0.01 * WEIGHT)],
)
def test_a_pair_gains_half_the_probability_that_it_shows_one_thing(
    label: str, bound: float, album: Album, searcher: Searcher, probabilities: dict[tuple[str, str], float]
) -> None:
    step = CvnetSettings(reads=label, depth=4)
    gains = []
    for key in album.files:
        (plain,) = searcher.search_images([album.query(key)], 6, steps=())
        (answer,) = searcher.search_images([album.query(key)], 6, steps=(step,))
        first = {result.key for result in plain.results[:4]}
        assert {result.key for result in answer.results if result.evidence} == first
        for result in answer.results:
            assert result.similarity == pytest.approx(by_key(plain.results)[result.key].score, abs=1e-6)
            assert result.score == result.similarity + sum(each.added for each in result.evidence)
            for found in result.evidence:
                expected = probabilities[key, result.key]
                assert found.added == pytest.approx(WEIGHT * expected, abs=bound)
                assert found.figures == {"score": pytest.approx(found.added / WEIGHT)}
                gains.append(expected)
        assert [result.score for result in answer.results] == sorted(
            (result.score for result in answer.results), reverse=True
        )
    assert np.ptp(gains) > 0.02, "pairs differ, so that a mix-up would be seen"


def test_the_query_comes_first_in_the_pair(
    album: Album, searcher: Searcher, probabilities: dict[tuple[str, str], float]
) -> None:
    """The score is not symmetric."""
    one, other = max(probabilities, key=lambda pair: abs(probabilities[pair] - probabilities[pair[::-1]]))
    assert abs(probabilities[one, other] - probabilities[other, one]) > 1e-4
    for query, candidate in ((one, other), (other, one)):
        (answer,) = searcher.search_images([album.query(query)], 6, steps=(CvnetSettings(reads="exact"),))
        found = by_key(answer.results)[candidate].evidence[0].figures["score"]
        assert found == pytest.approx(probabilities[query, candidate], abs=1e-5)


def test_an_image_of_the_gallery_needs_no_network(album: Album, searcher: Searcher) -> None:
    key = list(album.files)[1]
    (by_image,) = searcher.search_images([album.query(key)], 6)
    own = by_key(by_image.results)[key].image_id
    similar = searcher.similar_to(own, 5)
    expected = [result for result in by_image.results if result.image_id != own]
    assert [r.image_id for r in similar.results] == [r.image_id for r in expected]
    assert [r.score for r in similar.results] == pytest.approx([r.score for r in expected], abs=1e-5)


def test_where_two_images_correspond_is_told_for_a_picture(album: Album, searcher: Searcher) -> None:
    key, other = list(album.files)[2:4]
    steps = (CvnetSettings(reads="half"),)
    (answer,) = searcher.search_images([album.query(key)], 6, steps=steps)
    assert answer.seen is not None
    found = searcher.correspondence(answer.seen, by_key(answer.results)[other].image_id, steps)
    assert found is not None
    for heat, pyramid in zip(found, (album.pyramids[key], album.pyramids[other]), strict=True):
        assert heat.shape == pyramid[-1].shape[1:]
        assert heat.min() >= 0 and 0 < heat.max() <= 1


def test_candidates_whose_image_is_gone_or_another_now_are_not_looked_at(
    album: Album, probabilities: dict[tuple[str, str], float]
) -> None:
    key, gone, changed, *_ = album.files
    step = CvnetSettings(reads="pyramid")
    other = io.BytesIO()
    Image.open(io.BytesIO(album.files[changed])).rotate(180).save(other, "BMP")
    (album.folder / gone).rename(album.folder.parent / "away.bmp")
    (album.folder / changed).write_bytes(other.getvalue())
    try:
        with open_searcher(album.job.gallery, compute=ONE_THREAD) as opened:
            (answer,) = opened.search_images([album.query(key)], 6, steps=(step,))
            found = by_key(answer.results)
            own = found[gone].image_id
            similar, plain = opened.similar_to(own, 5, steps=(step,)), opened.similar_to(own, 5, steps=())
            stored = opened.search_images([album.query(key)], 6, steps=(CvnetSettings(reads="exact"),))[0]
    finally:
        (album.folder.parent / "away.bmp").rename(album.folder / gone)
        (album.folder / changed).write_bytes(album.files[changed])
    assert {name for name, result in found.items() if not result.evidence} == {gone, changed}
    for name, result in found.items():
        if result.evidence:
            assert result.evidence[0].added == pytest.approx(WEIGHT * probabilities[key, name], abs=1e-5)
        else:
            assert result.score == result.similarity
    assert similar.results == plain.results, "a query that is gone is answered as without the step"
    assert all(result.evidence for result in stored.results), "what is stored needs no file"


def test_a_folder_that_is_gone_leaves_the_answers_as_the_index_has_them(album: Album) -> None:
    away = album.folder.rename(album.folder.parent / "elsewhere")
    key = next(iter(album.files))
    try:
        with open_searcher(album.job.gallery, compute=ONE_THREAD) as opened:
            (answer,) = opened.search_images([album.query(key)], 6, steps=(CvnetSettings(reads="pyramid"),))
            (plain,) = opened.search_images([album.query(key)], 6, steps=())
    finally:
        away.rename(album.folder)
    assert answer.results == plain.results
