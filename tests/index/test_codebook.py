"""The codebook: exact assignment, repeatable fitting, and what few descriptors give."""

import numpy as np
import pytest

from index.codebook import Codebook, CodebookSettings, fit_codebook
from ingest.errors import BadInput
from ingest.threads import fixed_threads


def blobs(n: int, centres: int, d: int = 8, spread: float = 0.01) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    middles = rng.standard_normal((centres, d))
    rows = middles[np.arange(n) % centres] + spread * rng.standard_normal((n, d))
    return rows.astype(np.float32), middles.astype(np.float32)


def test_assignment_is_the_nearest_centroid() -> None:
    rng = np.random.default_rng(0)
    codebook = Codebook(rng.standard_normal((37, 8)).astype(np.float32), 37)
    descriptors = rng.standard_normal((20_000, 8)).astype(np.float32)  # more than one block of rows
    distances = ((descriptors[:, None].astype(np.float64) - codebook.centroids[None]) ** 2).sum(axis=2)
    words = codebook.assign(descriptors)
    assert words.dtype == np.int64
    chosen = np.take_along_axis(distances, words[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(chosen, distances.min(axis=1), atol=1e-5)


def test_of_equal_words_the_lowest_wins() -> None:
    codebook = Codebook(np.array([[5, 5], [1, 0], [1, 0], [-1, 0]], np.float32), 4)
    assert codebook.assign(np.array([[1, 0], [0, 3], [0, -9]], np.float32)).tolist() == [1, 1, 1]


def test_no_descriptors_are_no_words() -> None:
    assert Codebook(np.eye(3, dtype=np.float32), 3).assign(np.zeros((0, 3), np.float32)).shape == (0,)


def test_well_separated_clusters_are_found() -> None:
    descriptors, middles = blobs(2000, 6)
    codebook = fit_codebook(descriptors, CodebookSettings(words=6))
    distances = np.linalg.norm(middles[:, None] - codebook.centroids[None], axis=2)
    assert distances.min(axis=1).max() < 0.01
    assert not codebook.reduced
    assert codebook.notes == ()


@pytest.mark.parametrize("around", [1, 2])
def test_the_same_descriptors_give_the_same_bytes(around: int) -> None:
    descriptors, _ = blobs(3000, 40, spread=1)
    chosen = CodebookSettings(words=32, sample_descriptors=1500)
    with fixed_threads(around):
        again = fit_codebook(descriptors.copy(), chosen)
    assert fit_codebook(descriptors, chosen).centroids.tobytes() == again.centroids.tobytes()


def test_another_seed_gives_other_words() -> None:
    descriptors, _ = blobs(3000, 40, spread=1)
    one, other = (fit_codebook(descriptors, CodebookSettings(words=32, seed=seed)) for seed in (0, 1))
    assert not np.array_equal(one.centroids, other.centroids)


@pytest.mark.parametrize("distinct", [1, 5, 100, 255])
def test_fewer_distinct_descriptors_than_words_are_words_themselves(distinct: int) -> None:
    rows = np.random.default_rng(1).standard_normal((distinct, 16)).astype(np.float32)
    codebook = fit_codebook(np.tile(rows, (3, 1)), CodebookSettings(words=256))
    np.testing.assert_array_equal(codebook.centroids, rows)
    assert codebook.reduced
    assert str(distinct) in codebook.notes[0]
    np.testing.assert_array_equal(codebook.assign(rows), np.arange(distinct))


def test_nothing_to_fit_on_is_the_callers_mistake() -> None:
    with pytest.raises(BadInput, match="no descriptors"):
        fit_codebook(np.zeros((0, 128), np.float32), CodebookSettings())
    with pytest.raises(BadInput, match="NaN"):
        fit_codebook(np.full((9, 4), np.nan, np.float32), CodebookSettings())


def test_saved_and_loaded_it_is_the_same() -> None:
    codebook = fit_codebook(blobs(9, 9)[0], CodebookSettings(words=32))
    loaded = Codebook.from_arrays(codebook.to_arrays())
    np.testing.assert_array_equal(loaded.centroids, codebook.centroids)
    assert (loaded.asked, loaded.notes) == (32, codebook.notes)
