"""Cross-scale correlation: parity with the reference implementation and the plain formula, and its laws."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from index.correlation import _resized, _spread, columns, correlate_rows, correlation, together
from tests.golden.seeded import tensor
from tests.index.cvnet_pairs import (
    golden,
    golden_pyramids,
    plain_correlation,
    random_pyramid,
    relative_error,
    tensors,
)


def whole(query: list[np.ndarray], key: list[np.ndarray]) -> torch.Tensor:
    return correlation(columns(tensors(query), 1), columns(tensors(key), 1))[0]


def test_it_equals_the_reference_implementation() -> None:
    assert relative_error(whole(*golden_pyramids()), golden("fm_corr")) < 5e-6


def test_it_equals_the_reference_implementation_from_the_keys_side() -> None:
    query, key = (columns(tensors(pyramid), 1) for pyramid in golden_pyramids())
    found = correlate_rows(key.rows.flatten(1, 2), query, rows_are_query=False)[0]
    by_query = found.view(6, 9, 9, 10, 7).permute(2, 3, 4, 0, 1)
    assert relative_error(by_query, golden("fm_corr")) < 5e-6


def test_both_ways_of_resizing_together_equal_the_reference_implementation() -> None:
    x = torch.from_numpy(tensor("interp4d", (2, 5, 4, 6, 3)))
    over_query = _resized(x.flatten(3).permute(0, 3, 1, 2), (7, 6))
    over_key = _spread(over_query.flatten(2).transpose(1, 2).reshape(-1, 6, 3), (4, 5))
    assert relative_error(over_key.view(2, 7, 6, 4, 5), golden("interp4d")) < 1e-6


@settings(deadline=None, max_examples=15)
@given(st.tuples(*[st.integers(2, 9)] * 4), st.integers(0, 10**6))
def test_it_equals_the_plain_formula(sides: tuple[int, int, int, int], seed: int) -> None:
    query, key = random_pyramid(*sides[:2], seed), random_pyramid(*sides[2:], seed + 1)
    np.testing.assert_allclose(whole(query, key), plain_correlation(query, key), atol=2e-6)


def test_it_is_cut_off_after_resizing() -> None:
    query, key = random_pyramid(6, 6, 0), random_pyramid(6, 6, 1)
    for level in (*query, *key):
        level -= level.mean(axis=(1, 2), keepdims=True)  # so that half of the correlations are negative
    found = whole(query, key)
    assert found.min() == 0
    assert 0.2 < (found == 0).float().mean() < 0.8
    np.testing.assert_allclose(found, plain_correlation(query, key), atol=2e-6)


def test_exchanging_the_images_exchanges_all_that_is_theirs() -> None:
    query, key = random_pyramid(5, 7, 0), random_pyramid(8, 4, 1)
    exchanged = whole(key, query).view(3, 3, 8, 4, 5, 7).permute(1, 0, 4, 5, 2, 3).reshape(9, 5, 7, 8, 4)
    np.testing.assert_allclose(whole(query, key), exchanged, atol=1e-6)


def test_rows_at_a_step_are_every_so_manieth_of_all() -> None:
    query, key = random_pyramid(7, 5, 0), random_pyramid(4, 6, 1)
    given, image = columns(tensors(query), 2), columns(tensors(key), 2)
    found = correlate_rows(given.rows.flatten(1, 2), image, rows_are_query=True)[0].view(4, 3, 9, 4, 6)
    np.testing.assert_allclose(found.permute(2, 0, 1, 3, 4), whole(query, key)[:, ::2, ::2], atol=1e-6)


def test_a_factor_a_cell_changes_nothing() -> None:
    query, key = random_pyramid(5, 6, 0), random_pyramid(6, 4, 1)
    rng = np.random.default_rng(2)
    scaled = [level * rng.uniform(0.5, 20, level.shape[1:]).astype(np.float32) for level in query]
    np.testing.assert_allclose(whole(scaled, key), whole(query, key), atol=1e-6)


def test_cells_of_zeros_correlate_with_nothing() -> None:
    query, key = random_pyramid(5, 6, 0), random_pyramid(6, 4, 1)
    for level in query:
        level[:] = 0
    assert not whole(query, key).any()


def test_pairs_together_are_as_alone() -> None:
    queries = [random_pyramid(5, 6, seed) for seed in (0, 1, 2)]
    keys = [random_pyramid(4, 7, seed) for seed in (3, 4, 5)]
    batch = correlation(
        together([columns(tensors(query), 1) for query in queries]),
        together([columns(tensors(key), 1) for key in keys]),
    )
    alone = torch.stack([whole(query, key) for query, key in zip(queries, keys, strict=True)])
    np.testing.assert_allclose(batch, alone, atol=1e-6)


@pytest.mark.parametrize("step", [1, 2])
def test_it_runs_on_the_meta_device(step: int) -> None:
    query, key = (
        columns([level.to("meta") for level in tensors(pyramid)], step) for pyramid in golden_pyramids()
    )
    found = correlate_rows(query.rows.flatten(1, 2), key, rows_are_query=True)
    rows = 70 if step == 1 else 20
    assert (found.device.type, found.shape) == ("meta", (1, rows, 9, 6, 9))
