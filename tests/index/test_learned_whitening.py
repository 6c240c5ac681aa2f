"""Learned whitening: parity with the reference, its defining properties, few pairs, how pairs are made."""

import importlib.util
import itertools
from pathlib import Path
from types import ModuleType
from typing import Annotated

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter, ValidationError

from index.learned_whitening import (
    LearnedWhiteningSettings,
    fit_learned_whitening,
    labels_of,
    pairs_of_labels,
)
from index.projection import Projection, ProjectionSettings, fit_projection, l2_normalised
from ingest.errors import BadInput
from ingest.threads import fixed_threads

GOLDEN = Path(__file__).parents[1] / "golden"
LABELS = st.lists(st.sampled_from(["a", "b", "c", None]), max_size=24)


def seeded_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("seeded", GOLDEN / "seeded.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def chosen(dim: int = 128, epsilon: float = 0.0) -> LearnedWhiteningSettings:
    return LearnedWhiteningSettings(dim=dim, epsilon=epsilon, label_pattern="(.)")


def things(classes: int, d: int, each: int = 4, seed: int = 0) -> tuple[np.ndarray, list[str | None]]:
    """Unit vectors of some things: images of one differ in other directions than the things do."""
    rng = np.random.default_rng(seed)
    between, within = np.random.default_rng(7).standard_normal((2, d, d))
    between *= np.exp(-np.arange(d) / 6)[:, None]
    within *= 2 * np.exp(-np.arange(d) / 9)[:, None] + 0.02
    middles = np.repeat(rng.standard_normal((classes, d)) @ between, each, axis=0)
    vectors = middles + rng.standard_normal((classes * each, d)) @ within + 0.5
    return l2_normalised(vectors.astype(np.float32)), [f"thing {n // each}" for n in range(classes * each)]


def fit(vectors: np.ndarray, labels: list[str | None], dim: int = 128, epsilon: float = 0.0) -> Projection:
    return fit_learned_whitening(vectors, *pairs_of_labels(labels, 0, 10_000), chosen(dim, epsilon))


# -- the fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dim", "golden"), [(12, "lw_sims"), (5, "lw5_sims")])
def test_it_equals_the_reference_implementation(dim: int, golden: str) -> None:
    seeded = seeded_module().seeded
    vectors = seeded("white").standard_normal((12, 12)) @ seeded("white2").standard_normal((12, 200)) + 0.3
    vectors = np.ascontiguousarray(vectors.T.astype(np.float32))
    projection = fit_learned_whitening(vectors, np.arange(80), np.arange(80, 160), chosen(dim))
    projected = projection.apply(vectors)
    with np.load(GOLDEN / "pooling_whitening.npz") as file:
        np.testing.assert_allclose(projection.mean, file["lw_m"][:, 0], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(np.abs(projection.matrix), file["lw_absP"][:dim], rtol=1e-4, atol=3e-5)
        np.testing.assert_allclose(projected[:10] @ projected[10:30].T, file[golden], rtol=1e-4, atol=1e-5)
        if dim == 12:
            gram = projection.matrix.T @ projection.matrix
            np.testing.assert_allclose(gram, file["lw_gram"], rtol=1e-5, atol=1e-4)
    assert projection.notes == ()


@pytest.mark.parametrize("d", [20, 200])  # more dimensions than vectors: the dual
def test_differences_become_white_and_all_vectors_uncorrelated(d: int) -> None:
    vectors, labels = things(45, 20)
    vectors = vectors @ np.linalg.qr(np.random.default_rng(1).standard_normal((d, 20)))[0].T.astype(
        np.float32
    )
    queries, positives = pairs_of_labels(labels, 0, 10_000)
    projection = fit_learned_whitening(vectors, queries, positives, chosen(20))
    assert projection.dim == 20
    np.testing.assert_allclose(projection.mean, vectors[queries].mean(axis=0), atol=1e-6)
    projected = (vectors - projection.mean).astype(np.float64) @ projection.matrix.T
    differences = projected[queries] - projected[positives]
    np.testing.assert_allclose(differences.T @ differences / len(queries), np.eye(20), atol=1e-2)
    moments = projected.T @ projected
    assert (np.diff(np.diag(moments)) < 0).all()
    np.testing.assert_allclose(moments / moments[0, 0], np.diag(np.diag(moments)) / moments[0, 0], atol=1e-4)


def test_the_dual_gives_what_the_primal_gives() -> None:
    vectors, labels = things(10, 39)  # 40 vectors
    padded = np.pad(vectors, ((0, 0), (0, 5)))
    for epsilon in (0.0, 0.05):
        primal, dual = fit(vectors, labels, 10, epsilon), fit(padded, labels, 10, epsilon)
        np.testing.assert_allclose(primal.apply(vectors), dual.apply(padded), atol=1e-4)
        assert primal.notes == dual.notes


def test_channels_that_are_always_zero_change_nothing() -> None:
    vectors, labels = things(60, 20)
    dead = np.insert(vectors, [3, 11], 0, axis=1)
    plain, projection = fit(vectors, labels, 8), fit(dead, labels, 8)
    assert projection.notes == ()
    np.testing.assert_allclose(projection.apply(dead), plain.apply(vectors), atol=1e-4)


def mean_average_precision(vectors: np.ndarray, labels: list[str | None]) -> float:
    right = np.array(labels)[:, None] == np.array(labels)
    similarities = vectors @ vectors.T
    np.fill_diagonal(similarities, -2)
    order = np.argsort(-similarities, axis=1)[:, :-1]
    right = np.take_along_axis(right, order, axis=1)
    precision = right.cumsum(axis=1) / np.arange(1, right.shape[1] + 1)
    return float(((precision * right).sum(axis=1) / right.sum(axis=1)).mean())


def test_pairs_teach_what_pca_cannot_know() -> None:
    vectors, labels = things(150, 64)
    unseen, theirs = things(60, 64, seed=1)
    by_pairs = mean_average_precision(fit(vectors, labels, 16).apply(unseen), theirs)
    by_pca = mean_average_precision(fit_projection(vectors, ProjectionSettings(dim=16)).apply(unseen), theirs)
    assert by_pairs > by_pca + 0.2


def test_a_large_epsilon_leaves_the_principal_directions() -> None:
    vectors, labels = things(60, 20)
    projection = fit(vectors, labels, 4, epsilon=1e6)
    centred = vectors - projection.mean
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    found = projection.matrix / np.linalg.norm(projection.matrix, axis=1, keepdims=True)
    np.testing.assert_allclose(np.abs(found @ directions[:4].T), np.eye(4), atol=1e-2)


def test_signs_are_fixed() -> None:
    for d in (30, 300):
        matrix = fit(*things(30, d), 12).matrix
        assert (matrix[np.arange(12), np.abs(matrix).argmax(axis=1)] > 0).all()


@pytest.mark.parametrize("around", [1, 2])
@pytest.mark.parametrize("d", [60, 300])
def test_the_same_vectors_give_the_same_bytes_whatever_the_callers_threads(around: int, d: int) -> None:
    vectors, labels = things(40, d)
    with fixed_threads(around):
        again = fit(vectors.copy(), labels, 16)
    assert fit(vectors, labels, 16).matrix.tobytes() == again.matrix.tobytes()


@pytest.mark.parametrize("epsilon", [0.0, 1e-20, 0.01, 0.5])
def test_fewer_pairs_than_dimensions_give_finite_numbers_and_a_note(epsilon: float) -> None:
    vectors, labels = things(100, 64)
    few = [label if n < 20 else None for n, label in enumerate(labels)]  # 5 things, 15 directions
    projection = fit(vectors, few, 32, epsilon)
    assert "differ in 15 of 64 directions" in projection.notes[0]
    assert f"epsilon {max(epsilon, 0.01):g} " in projection.notes[0]
    assert projection.dim == 32
    projected = projection.apply(vectors)
    assert np.isfinite(projected).all()
    np.testing.assert_allclose(np.linalg.norm(projected, axis=1), 1, atol=1e-5)


def test_pairs_of_copies_whiten_nothing() -> None:
    vectors, _ = things(30, 20, each=1)
    copies, labels = np.repeat(vectors, 2, axis=0), [str(n // 2) for n in range(60)]
    projection = fit(copies, list(labels), 8)
    assert "copies" in projection.notes[0]
    np.testing.assert_allclose(projection.matrix @ projection.matrix.T, np.eye(8), atol=1e-5)


def test_equal_vectors_give_random_directions() -> None:
    projection = fit(np.tile(things(1, 200, each=1)[0], (4, 1)), ["a"] * 4, 64)
    assert "random" in projection.notes[0]
    assert projection.dim == 64


def test_few_images_give_few_dimensions_and_a_note() -> None:
    vectors, labels = things(3, 500)
    projection = fit(vectors, labels, 128)
    assert projection.dim == 11
    assert "11 components instead of 128" in projection.notes[-1]
    assert np.isfinite(projection.apply(vectors)).all()


def test_nothing_to_learn_from_is_the_callers_mistake() -> None:
    vectors, _ = things(5, 8)
    with pytest.raises(BadInput, match="label_pattern"):
        fit(vectors, [None] * 20)
    with pytest.raises(BadInput, match="2 queries and 1 positives"):
        fit_learned_whitening(vectors, np.array([0, 1]), np.array([2]), chosen())
    with pytest.raises(BadInput, match="NaN"):
        fit(np.full((2, 4), np.nan, np.float32), ["a", "a"])


def test_saved_and_loaded_it_projects_the_same() -> None:
    vectors, labels = things(5, 30)
    projection = fit(vectors, labels, 64)
    loaded = Projection.from_arrays({name: array.copy() for name, array in projection.to_arrays().items()})
    np.testing.assert_array_equal(loaded.apply(vectors), projection.apply(vectors))
    assert (loaded.asked, loaded.notes) == (64, projection.notes)


# -- labels and pairs ---------------------------------------------------------------------------------------


def test_a_label_is_the_first_group_wherever_the_pattern_matches() -> None:
    names = ["smvs/dvd/012_a.jpg", "smvs/dvd/012_b.jpg", "smvs/dvd/cover.jpg", "holidays/100301.jpg"]
    assert labels_of(names, r"(\d+)_[a-z]") == ["012", "012", None, None]
    assert labels_of(names, r"^smvs/(?P<kind>\w+)/") == ["dvd", "dvd", "dvd", None]


@pytest.mark.parametrize(("pattern", "said"), [(r"\d+", "no group"), (r"(\d+", "no regular expression")])
def test_a_pattern_without_a_group_is_refused(pattern: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        LearnedWhiteningSettings(label_pattern=pattern)


@given(LABELS, st.integers(0, 9), st.integers(1, 60))
def test_pairs_share_a_label_and_none_comes_twice(labels: list[str | None], seed: int, most: int) -> None:
    queries, positives = pairs_of_labels(labels, seed, most)
    assert queries.dtype == positives.dtype == np.int64
    made = {frozenset(pair) for pair in zip(queries.tolist(), positives.tolist(), strict=True)}
    possible = {
        frozenset(pair)
        for pair in itertools.combinations(range(len(labels)), 2)
        if labels[pair[0]] == labels[pair[1]] is not None
    }
    assert made <= possible
    assert len(made) == len(queries) == min(most, len(possible))


def test_each_image_is_in_about_as_many_pairs() -> None:
    labels: list[str | None] = ["large"] * 100 + ["small"] * 5 + [None] * 3
    for most, least, top in ((105, 2, 2), (210, 4, 4), (150, 2, 4)):
        queries, positives = pairs_of_labels(labels, 0, most)
        assert len(queries) == most
        counts = np.bincount(np.concatenate([queries, positives]), minlength=108)
        assert (counts[:105].min(), counts[:105].max()) == (least, top)
        assert not counts[105:].any()


def test_the_seed_draws_the_pairs() -> None:
    labels: list[str | None] = ["a"] * 30
    for most in (20, 30):  # 30: a whole round
        one, again, other = (pairs_of_labels(labels, seed, most) for seed in (1, 1, 2))
        np.testing.assert_array_equal(one, again)
        assert not np.array_equal(one, other)


def test_settings_are_told_apart_by_their_kind() -> None:
    either = TypeAdapter(
        Annotated[ProjectionSettings | LearnedWhiteningSettings, Field(discriminator="kind")]
    )
    learned = {"kind": "learned", "label_pattern": "(a)"}
    assert isinstance(either.validate_python({"kind": "pca"}), ProjectionSettings)
    assert isinstance(either.validate_python(learned), LearnedWhiteningSettings)
