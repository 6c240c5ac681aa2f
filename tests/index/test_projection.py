"""The projection: parity with the reference, PCA's defining properties, and few images."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from index.projection import Projection, ProjectionSettings, fit_projection, l2_normalised
from ingest.errors import BadInput
from ingest.threads import fixed_threads

GOLDEN = Path(__file__).parents[1] / "golden"


def seeded_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("seeded", GOLDEN / "seeded.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def draw(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Correlated vectors with a mean."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((d, d)) * np.exp(-np.arange(d) / 6)[:, None]
    return (rng.standard_normal((n, d)) @ mixing + 0.3).astype(np.float32)


def unscaled(projection: Projection) -> np.ndarray:
    return projection.matrix / np.linalg.norm(projection.matrix, axis=1, keepdims=True)


def test_whitening_equals_the_reference_implementation() -> None:
    seeded = seeded_module().seeded
    vectors = seeded("white").standard_normal((12, 12)) @ seeded("white2").standard_normal((12, 200)) + 0.3
    vectors = np.ascontiguousarray(vectors.T.astype(np.float32))
    projection = fit_projection(vectors, ProjectionSettings(dim=12))
    projected = projection.apply(vectors)
    with np.load(GOLDEN / "pooling_whitening.npz") as file:
        np.testing.assert_allclose(projection.mean, file["pcaw_m"].ravel(), rtol=1e-5)
        np.testing.assert_allclose(np.abs(projection.matrix), file["pcaw_absP"], rtol=1e-5)  # signs are free
        np.testing.assert_allclose(projected[:10] @ projected[10:30].T, file["pcaw_sims"], atol=1e-5)


@pytest.mark.parametrize(
    ("n", "d"), [(300, 20), (20, 300), (20, 4500)]
)  # the last: several blocks of columns
def test_directions_are_the_leading_eigenvectors_of_the_covariance(n: int, d: int) -> None:
    vectors = draw(n, 20) @ np.random.default_rng(1).standard_normal((20, d), dtype=np.float32)
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    _, deviations, directions = np.linalg.svd(centred, full_matrices=False)
    projection = fit_projection(vectors, ProjectionSettings(dim=5, whiten=False))
    np.testing.assert_allclose(np.abs(unscaled(projection) @ directions[:5].T), np.eye(5), atol=1e-3)
    variances = ((vectors - projection.mean) @ projection.matrix.T).var(axis=0)
    np.testing.assert_allclose(variances, deviations[:5] ** 2 / n, rtol=1e-4)


def test_whitened_components_are_uncorrelated_with_unit_variance() -> None:
    for vectors in (draw(500, 30), draw(60, 400)):
        projection = fit_projection(vectors, ProjectionSettings(dim=25))
        components = (vectors - projection.mean) @ projection.matrix.T
        np.testing.assert_allclose(np.cov(components.T, bias=True), np.eye(25), atol=2e-3)


def test_the_dual_gives_what_the_primal_gives() -> None:
    vectors = draw(40, 39)  # primal: as many images as dimensions, or more
    padded = np.pad(vectors, ((0, 0), (0, 5)))  # dual: the same points among more dimensions
    chosen = ProjectionSettings(dim=10)
    primal, dual = fit_projection(vectors, chosen), fit_projection(padded, chosen)
    np.testing.assert_allclose(primal.apply(vectors), dual.apply(padded), atol=1e-4)


def test_signs_are_fixed() -> None:
    for vectors in (draw(100, 30), draw(30, 100)):
        matrix = fit_projection(vectors, ProjectionSettings(dim=12)).matrix
        assert (matrix[np.arange(12), np.abs(matrix).argmax(axis=1)] > 0).all()


@pytest.mark.parametrize("around", [1, 2])
def test_the_same_vectors_give_the_same_bytes_whatever_the_callers_threads(around: int) -> None:
    vectors, chosen = draw(200, 300), ProjectionSettings(dim=64, sample_images=150)
    with fixed_threads(around):
        again = fit_projection(vectors.copy(), chosen)
    expected = fit_projection(vectors, chosen)
    assert again.matrix.tobytes() == expected.matrix.tobytes()
    assert again.mean.tobytes() == expected.mean.tobytes()


def test_results_have_unit_length_and_do_not_depend_on_the_batch() -> None:
    vectors = draw(1100, 40)  # more than one block of rows
    projection = fit_projection(vectors, ProjectionSettings(dim=16))
    projected = projection.apply(vectors)
    np.testing.assert_allclose(np.linalg.norm(projected, axis=1), 1, atol=1e-6)
    alone = np.concatenate([projection.apply(vectors[row : row + 1]) for row in (0, 511, 512, 1099)])
    np.testing.assert_allclose(projected[[0, 511, 512, 1099]], alone, atol=1e-5)


def test_epsilon_shrinks_small_components() -> None:
    vectors = draw(300, 20)
    plain, shrunk = (fit_projection(vectors, ProjectionSettings(dim=20, epsilon=e)) for e in (0, 0.5))
    ratio = np.linalg.norm(shrunk.matrix, axis=1) / np.linalg.norm(plain.matrix, axis=1)
    assert (np.diff(ratio) < 0).all()


@pytest.mark.parametrize("n", [2, 5, 100])
def test_few_images_give_few_dimensions_and_a_note(n: int) -> None:
    vectors = l2_normalised(np.random.default_rng(0).standard_normal((n, 500)).astype(np.float32))
    projection = fit_projection(vectors, ProjectionSettings(dim=128))
    assert projection.dim == n - 1
    assert f"{n - 1} components instead of 128" in projection.notes[0]
    projected = projection.apply(vectors)
    assert np.isfinite(projected).all()
    similarities = projected @ projected.T
    assert (similarities.argmax(axis=1) == np.arange(n)).all()


@pytest.mark.parametrize("n", [1, 4])
def test_one_image_or_copies_of_it_keep_similarities_roughly(n: int) -> None:
    rng = np.random.default_rng(0)
    vector = l2_normalised(rng.standard_normal((1, 2000)).astype(np.float32))
    projection = fit_projection(np.tile(vector, (n, 1)), ProjectionSettings(dim=128))
    assert projection.dim == 128
    assert "random" in projection.notes[0]
    other = l2_normalised(rng.standard_normal((1, 2000)).astype(np.float32))
    one, two = projection.apply(vector), projection.apply(other)
    assert (one @ one.T).item() == pytest.approx(1, abs=1e-5)
    assert abs((one @ two.T).item()) < 0.4


def test_nothing_to_fit_on_is_the_callers_mistake() -> None:
    with pytest.raises(BadInput, match="no vectors"):
        fit_projection(np.zeros((0, 8), np.float32), ProjectionSettings())
    with pytest.raises(BadInput, match="NaN"):
        fit_projection(np.full((9, 4), np.nan, np.float32), ProjectionSettings())


def test_vectors_of_another_length_are_refused() -> None:
    projection = fit_projection(draw(50, 20), ProjectionSettings(dim=4))
    with pytest.raises(BadInput, match="20 components"):
        projection.apply(draw(3, 21))


@pytest.mark.parametrize("n", [3, 50])
def test_saved_and_loaded_it_projects_the_same(n: int) -> None:
    vectors = draw(n, 20)
    projection = fit_projection(vectors, ProjectionSettings(dim=8))
    loaded = Projection.from_arrays({name: array.copy() for name, array in projection.to_arrays().items()})
    np.testing.assert_array_equal(loaded.apply(vectors), projection.apply(vectors))
    assert (loaded.asked, loaded.notes) == (projection.asked, projection.notes)
