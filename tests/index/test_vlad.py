"""VLAD: parity with the reference implementation, the defining sum, and its invariances."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.codebook import Codebook
from index.vlad import Vlad, VladSettings, normalise, prepared, vlad
from ingest.errors import BadInput
from ingest.sift import rootsift

GOLDEN = Path(__file__).parents[1] / "golden" / "vlad_fisher.npz"


def naive_vlad(descriptors: np.ndarray, words: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    sums = np.zeros(centroids.shape, np.float64)
    for descriptor, word in zip(descriptors.astype(np.float64), words, strict=True):
        sums[word] += descriptor - centroids[word]
    return sums


def draw(n: int, k: int, d: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    descriptors = rng.standard_normal((n, d)).astype(np.float32)
    return descriptors, rng.integers(0, k, n), rng.standard_normal((k, d)).astype(np.float32)


def local_features(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"descriptors": np.random.default_rng(seed).integers(0, 256, (n, 128), dtype=np.uint8)}


def encoder(k: int = 16, **chosen: object) -> Vlad:
    words = rootsift(local_features(k, seed=1)["descriptors"])
    return Vlad(Codebook(words, k), VladSettings.model_validate(chosen))


def decided(descriptors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The descriptors that rounding cannot move from one word to another: a product's last bits depend on
    the place of a row, on some processors."""
    roots = rootsift(descriptors).astype(np.float64)
    closeness = np.sort(roots @ centroids.T - (centroids.astype(np.float64) ** 2).sum(axis=1) / 2, axis=1)
    kept = descriptors[closeness[:, -1] - closeness[:, -2] > 1e-5]
    assert len(kept) > 0.9 * len(descriptors)
    return kept


@pytest.mark.parametrize(
    ("how", "golden"),
    [
        ("l2", "vlad_l2"),
        ("ssr", "vlad_ssr_l2"),
        ("intra", "vlad_intra_l2"),
        ("ssr+intra", "vlad_ssr_intra_l2"),
    ],
)
def test_each_normalisation_equals_the_reference_implementation(how: str, golden: str) -> None:
    with np.load(GOLDEN) as file:
        residuals = vlad(file["descriptors"], file["assignments"], file["means"])
        np.testing.assert_allclose(normalise(residuals, how), file[golden], rtol=1e-5, atol=1e-7)


def test_the_raw_sums_equal_the_reference_implementation() -> None:
    with np.load(GOLDEN) as file:
        residuals = vlad(file["descriptors"], file["assignments"], file["means"])
        np.testing.assert_allclose(residuals.ravel(), file["vlad_raw"], rtol=1e-5, atol=1e-5)


def test_mass_equals_the_reference_implementation() -> None:
    with np.load(GOLDEN) as file:
        words = file["assignments"]
        residuals = by_mass(vlad(file["descriptors"], words, file["means"]), words)
        np.testing.assert_allclose(normalise(residuals, "l2"), file["vlad_mass_l2"], rtol=1e-5, atol=1e-7)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 60), st.integers(1, 9), st.integers(0, 10**6))
def test_it_is_the_sum_of_residuals(n: int, k: int, seed: int) -> None:
    descriptors, words, centroids = draw(n, k, seed=seed)
    expected = naive_vlad(descriptors, words, centroids)
    np.testing.assert_allclose(vlad(descriptors, words, centroids), expected, rtol=1e-5, atol=1e-5)


def test_a_word_number_above_16_bits_is_not_cut_off() -> None:
    descriptors, _, _ = draw(3, 1, d=2)
    words, centroids = np.array([65_535, 255, 65_535]), np.zeros((65_536, 2), np.float32)
    found = vlad(descriptors, words, centroids)
    np.testing.assert_allclose(found[65_535], descriptors[0] + descriptors[2], rtol=1e-6)
    np.testing.assert_allclose(found[255], descriptors[1])


@pytest.mark.parametrize("how", ["l2", "ssr", "intra", "ssr+intra"])
@pytest.mark.parametrize("mass", [False, True])
def test_the_order_of_descriptors_does_not_matter(how: str, mass: bool) -> None:
    fitted = encoder(normalise=how, mass=mass)
    local = {"descriptors": decided(local_features(700)["descriptors"], fitted.codebook.centroids)}
    shuffled = {"descriptors": np.random.default_rng(5).permutation(local["descriptors"])}
    # The square root magnifies differences near zero.
    tolerance = 1e-4 if "ssr" in how else 1e-6
    np.testing.assert_allclose(fitted.encode(local), fitted.encode(shuffled), atol=tolerance)
    assert fitted.encode(local) @ fitted.encode(shuffled) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("how", ["l2", "ssr", "intra", "ssr+intra"])
def test_the_vector_has_unit_length_and_the_stated_type(how: str) -> None:
    vector = encoder(normalise=how).encode(local_features(50))
    assert vector.dtype == np.float32
    assert vector.shape == (encoder().dim,) == (16 * 128,)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)


def test_without_square_root_repeating_every_descriptor_changes_nothing() -> None:
    local = local_features(40)
    twice = {"descriptors": np.repeat(local["descriptors"], 2, axis=0)}
    for how in ("l2", "intra"):
        fitted = encoder(normalise=how)
        np.testing.assert_allclose(fitted.encode(local), fitted.encode(twice), atol=1e-6)


def test_intra_gives_each_present_word_the_same_share() -> None:
    descriptors, words, centroids = draw(200, 5)
    shares = np.linalg.norm(normalise(vlad(descriptors, words, centroids), "intra").reshape(5, -1), axis=1)
    np.testing.assert_allclose(shares, np.sqrt(1 / 5), atol=1e-6)


def test_a_word_without_descriptors_stays_zero() -> None:
    descriptors, words, centroids = draw(30, 4)
    words[:] = 2
    for how in ("l2", "ssr", "intra", "ssr+intra"):
        blocks = normalise(vlad(descriptors, words, centroids), how).reshape(4, -1)
        assert (np.abs(blocks).sum(axis=1) > 0).tolist() == [False, False, True, False]
        assert np.isfinite(blocks).all()


def test_one_descriptor_and_none() -> None:
    assert np.linalg.norm(encoder().encode(local_features(1))) == pytest.approx(1, abs=1e-6)
    assert not encoder().encode(local_features(0)).any()


def test_mass_divides_each_word_by_its_descriptors() -> None:
    fitted, local = encoder(normalise="l2", mass=True), local_features(300)
    descriptors = rootsift(local["descriptors"])
    words = fitted.codebook.assign(descriptors)
    residuals = by_mass(naive_vlad(descriptors, words, fitted.codebook.centroids), words)
    expected = residuals.ravel() / np.linalg.norm(residuals)
    np.testing.assert_allclose(fitted.encode(local), expected, atol=1e-6)


def by_mass(residuals: np.ndarray, words: np.ndarray) -> np.ndarray:
    counts = np.bincount(words, minlength=len(residuals))[:, None]
    return np.divide(residuals, counts, out=np.zeros_like(residuals), where=counts > 0)


def test_saved_and_loaded_it_encodes_the_same() -> None:
    fitted = encoder(normalise="ssr", mass=True)
    loaded = Vlad.from_arrays({name: array.copy() for name, array in fitted.to_arrays().items()})
    assert loaded.settings == fitted.settings
    local = local_features(90)
    np.testing.assert_array_equal(loaded.encode(local), fitted.encode(local))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.uint8])
def test_l2_gives_descriptors_of_any_type_unit_length(dtype: type) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (20, 1280)).astype(dtype)  # squares beyond float16
    stored[3] = 0
    found = prepared(stored, "l2")
    wide = stored.astype(np.float64)
    expected = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-9)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not found[3].any()
    np.testing.assert_array_equal(stored.astype(np.float64), wide)  # what is stored stays as it is


def test_rootsift_is_what_is_done_unless_the_settings_say_l2() -> None:
    local = local_features(30)
    np.testing.assert_array_equal(prepared(local["descriptors"], "rootsift"), rootsift(local["descriptors"]))
    default, columns = encoder(), encoder(prepare="l2")
    unit = prepared(local["descriptors"], "l2")
    residuals = vlad(unit, columns.codebook.assign(unit), columns.codebook.centroids)
    np.testing.assert_array_equal(columns.encode(local), normalise(residuals, "intra"))
    assert not np.allclose(default.encode(local), columns.encode(local))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_rootsift_of_what_is_not_sift_is_refused(dtype: type) -> None:
    local = {"descriptors": np.ones((3, 128), dtype)}
    with pytest.raises(BadInput, match="prepare: l2"):
        encoder().encode(local)
    assert np.linalg.norm(encoder(prepare="l2").encode(local)) == pytest.approx(1, abs=1e-6)
