"""Images drawn label by label, and the learned whitening that a build fits on them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.evaluation import evaluate_labels
from index.build import build
from index.encodings import read_encodings
from index.exact import Collection
from index.fit import SEED, draw
from index.generation import Generation
from index.label_sample import UNLABELLED, groups_first, read_label_numbers
from index.learned_whitening import (
    LearnedWhiteningSettings,
    fit_learned_whitening,
    labels_of,
    pairs_of_labels,
)
from index.projection import Projection
from index.recipe import Recipe
from index.sampling import lowest, ranks
from ingest.catalogue import live_rows, read_catalogue, read_part
from ingest.errors import BadInput
from ingest.job import Job
from ingest.models import load_model
from ingest.parts import PartSizes, ingest_source
from ingest.records import decode_key
from tests.pipeline.small import Album, rendered
from tests.tiny import job_on, memory_store

# -- which images -----------------------------------------------------------------------------------------


def drawn_ids(count: int, seed: int = 0) -> np.ndarray:
    """Sorted, as the rows in force are."""
    return np.sort(np.random.default_rng(seed).choice(2**62, count, replace=False)).astype(np.int64)


def naive(ids: np.ndarray, labels: np.ndarray, count: int, seed: int) -> list[int]:
    order = {int(image): int(rank) for image, rank in zip(ids, ranks(ids, seed), strict=True)}
    members: dict[int, list[int]] = {}
    for image, label in zip(ids.tolist(), labels.tolist(), strict=True):
        if label != UNLABELLED:
            members.setdefault(label, []).append(image)
    groups = [group for group in members.values() if len(group) > 1]
    chosen: list[int] = []
    for group in sorted(groups, key=lambda group: order[min(group)]):
        chosen += sorted(group, key=lambda image: order[image])[:16]
    rest = sorted(set(ids.tolist()) - set(chosen), key=lambda image: order[image])
    return sorted((chosen + rest)[:count])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-1, 6), max_size=120), st.integers(0, 130), st.integers(0, 3), st.integers(0, 5))
def test_groups_come_first_then_anyone(labels: list[int], count: int, seed: int, drawn: int) -> None:
    ids, numbers = drawn_ids(len(labels), drawn), np.array(labels, np.int64)
    chosen = groups_first(ids, numbers, count, seed)
    assert ids[chosen].tolist() == naive(ids, numbers, count, seed)
    assert len(chosen) == min(count, len(labels))


def test_large_labels_come_no_earlier_than_small_ones() -> None:
    """Of 40 labels of 2 images and 10 of 12, the label that comes first is a small one four times of five."""
    labels = np.concatenate([np.repeat(np.arange(40), 2), np.repeat(np.arange(40, 50), 12)])
    first_is_small = []
    for seed in range(200):
        shuffled = np.random.default_rng(seed).permutation(labels)
        first_is_small.append((shuffled[groups_first(drawn_ids(200, seed), shuffled, 2, SEED)] < 40).all())
    assert 0.7 < np.mean(first_is_small) < 0.9


def test_where_few_would_meet_their_like_by_chance_pairs_are_found() -> None:
    """Of 20,000 images of 8,000 things, a thousand drawn one by one make a few hundred pairs at most."""
    ids = drawn_ids(20_000)
    labels = np.random.default_rng(1).integers(0, 8000, 20_000)
    by_label = [str(labels[at]) for at in groups_first(ids, labels, 1000, SEED)]
    one_by_one = [str(labels[at]) for at in lowest(ids, 1000, SEED)]
    pairs = [len(pairs_of_labels(some, 0, 10**6)[0]) for some in (by_label, one_by_one)]
    assert pairs[0] > 900
    assert pairs[0] > 10 * pairs[1]


# -- in a gallery -----------------------------------------------------------------------------------------

LABELS = r"/((?:facade|object)-\d+)/"
ENCODER = {"kind": "vlad", "codebook": {"words": 4, "sample_descriptors": 4000}}


@dataclass(frozen=True)
class Town:
    """A gallery of twelve scenes in four views each, and of twelve other pictures."""

    job: Job
    source: Album

    def built(self, projection: dict[str, Any] | None, encoder: dict[str, Any] = ENCODER) -> Generation:
        recipe = Recipe.model_validate(
            {
                "name": "whitened",
                "features": {"describe": {"local": {"kind": "sift", "max_keypoints": 150}}},
                "encoder": encoder,
                "projection": projection,
                "quantizer": {"kind": "flat"},
                "gate": {"recall": 0.0},
            }
        )
        return build(self.job, recipe, {self.source.name: self.source})


@pytest.fixture(scope="module")
def town() -> Town:
    source = Album("town", rendered("synthetic:scenes=12,views=4,distractors=12,size=112,seed=5"))
    job = job_on(memory_store())
    ingest_source(job.gallery, source, job.progress, PartSizes(most_images=7))
    return Town(job, source)


def _vectors_and_labels(town: Town, plain: Generation) -> tuple[np.ndarray, list[str | None]]:
    """As encoded, in the order of the images' ids."""
    gallery, ids, vectors, labels = town.job.gallery, [], [], []
    for part in read_catalogue(gallery).parts:
        rows, some, found = read_encodings(gallery, plain.models.encodings, part.part)
        keys = read_part(gallery, part, ["key"])["key"].to_pylist()
        ids.append(some)
        vectors.append(found)
        labels += labels_of([f"town/{decode_key(keys[row])}" for row in rows], LABELS)
    order = np.argsort(np.concatenate(ids))
    return np.concatenate(vectors)[order], [labels[at] for at in order]


def _projection(town: Town, generation: Generation) -> Projection:
    assert generation.models.projection is not None
    return Projection.from_arrays(load_model(town.job.gallery, generation.models.projection, "projection")[1])


def test_a_build_learns_from_the_pairs_that_its_labels_make(town: Town) -> None:
    chosen = LearnedWhiteningSettings(dim=10, label_pattern=LABELS, seed=3)
    fitted = _projection(town, town.built(chosen.model_dump()))
    vectors, labels = _vectors_and_labels(town, town.built(None))
    queries, positives = pairs_of_labels(labels, 3, chosen.sample_pairs)
    assert len(queries) == 12 * 6, "every pair of every scene"
    expected = fit_learned_whitening(vectors, queries, positives, chosen)
    np.testing.assert_array_equal(fitted.mean, expected.mean)
    np.testing.assert_array_equal(fitted.matrix, expected.matrix)


def test_it_ranks_better_than_whitening_that_knows_no_pairs(town: Town) -> None:
    learned = town.built({"kind": "learned", "dim": 16, "label_pattern": LABELS})
    whitened = town.built({"kind": "pca", "dim": 16, "whiten": True})
    found = [evaluate_labels(town.job, LABELS, generation=each.number).map for each in (learned, whitened)]
    assert found[0] > found[1] + 0.1


def test_a_sample_is_bounded_and_pairs_are_in_it(town: Town) -> None:
    """Sixteen of sixty images hold four whole scenes, all pairs of them, instead of the few of chance."""
    bounded = {"kind": "learned", "dim": 4, "label_pattern": LABELS, "sample_images": 16}
    fitted = _projection(town, town.built(bounded))
    vectors, labels = _vectors_and_labels(town, town.built(None))
    catalogue = read_catalogue(town.job.gallery)
    live = live_rows(town.job.gallery, catalogue)
    numbers = read_label_numbers(town.job, Collection(catalogue, live), LABELS)
    places = groups_first(live.image_id, numbers, 16, SEED)
    assert np.unique(numbers[places], return_counts=True)[1].tolist() == [4, 4, 4, 4]
    queries, positives = pairs_of_labels([labels[at] for at in places], 0, 10**6)
    assert len(queries) == 4 * 6
    chosen = LearnedWhiteningSettings.model_validate(bounded)
    expected = fit_learned_whitening(vectors[places], queries, positives, chosen)
    np.testing.assert_array_equal(fitted.matrix, expected.matrix)
    one_by_one = draw(catalogue, live, 16)
    assert sum(len(sample.rows) for sample in one_by_one) == 16


def test_label_numbers_are_those_of_the_names(town: Town) -> None:
    catalogue = read_catalogue(town.job.gallery)
    collection = Collection(catalogue, live_rows(town.job.gallery, catalogue))
    numbers = read_label_numbers(town.job, collection, LABELS)
    assert (numbers == UNLABELLED).sum() == 12
    assert np.bincount(numbers[numbers >= 0]).tolist() == [4] * 12
    by_view = read_label_numbers(town.job, collection, r"town/.*(view-\d+)")
    assert np.bincount(by_view).max() == 24


def test_a_part_of_a_fused_encoder_may_learn_too(town: Town) -> None:
    learned = {"kind": "learned", "dim": 8, "label_pattern": LABELS}
    other = {"kind": "vlad", "codebook": {"words": 2, "sample_descriptors": 2000}}
    fused = {"kind": "fused", "parts": [{"encoder": ENCODER, "projection": learned}, {"encoder": other}]}
    generation = town.built(None, fused)
    assert evaluate_labels(town.job, LABELS, generation=generation.number).map > 0.3


def test_labels_that_make_no_pair_are_told(town: Town) -> None:
    with pytest.raises(BadInput, match=r"no two images share a label of label_pattern '\(\.\+\)'"):
        town.built({"kind": "learned", "dim": 8, "label_pattern": "(.+)"})
