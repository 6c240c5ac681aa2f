"""Quantizers: fitting, bytes, merging, masks, escalation, and the probe that decides what is accepted."""

import dataclasses

import numpy as np
import pytest

from index import quantizer as quantizer_module
from index.projection import l2_normalised
from index.quantizer import (
    QUANTIZERS,
    FlatSettings,
    IvfadcSettings,
    Kind,
    Quantizer,
    deserialise,
    fit_quantizer,
    merge_indexes,
    probe_quantizer,
    search,
    selector_bitmap,
    serialise,
)
from index.serialised import ivf_of
from ingest.errors import BadInput, Corrupt
from ingest.threads import fixed_threads

DIM = 32
PLAIN = IvfadcSettings(lists=16, code_bytes=8, opq=False, nprobe=2)
ROTATED = IvfadcSettings(lists=16, code_bytes=8, opq_iterations=2, nprobe=2)
REDUCED = IvfadcSettings(lists=16, code_bytes=8, opq_dim=16, opq_iterations=2, nprobe=2)
ALL = [FlatSettings(), PLAIN, ROTATED, REDUCED]
NAMES = ["flat", "ivfadc", "opq", "opq-reduced"]


def draw(n: int, seed: int = 0, d: int = DIM) -> np.ndarray:
    """Clustered unit vectors."""
    rng = np.random.default_rng(seed)
    middles = np.random.default_rng(99).standard_normal((20, d))
    rows = middles[rng.integers(0, 20, n)] + 0.7 * rng.standard_normal((n, d))
    return l2_normalised(rows.astype(np.float32))


_FITTED: dict[str, Quantizer] = {}


def fitted(settings: FlatSettings | IvfadcSettings) -> Quantizer:
    key = settings.model_dump_json()
    if key not in _FITTED:
        _FITTED[key] = fit_quantizer(draw(1000), settings)
    return _FITTED[key]


def filled(quantizer: Quantizer, vectors: np.ndarray):
    index = quantizer.new_index()
    index.add(vectors)
    return index


def brute_force(index, queries: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Every score of every row, from a search of all lists for all rows; -inf where not allowed."""
    scores, rows = search(index, queries, index.ntotal, nprobe=10**6)
    table = np.full((len(queries), index.ntotal), -np.inf, np.float32)
    np.put_along_axis(table, rows, scores, axis=1)
    table[:, ~allowed] = -np.inf
    return table


each_kind = pytest.mark.parametrize("settings", ALL, ids=NAMES)


@each_kind
def test_every_kind_passes_the_probe(settings) -> None:
    probe_quantizer(fitted(settings))


def test_the_table_names_every_kind() -> None:
    assert sorted(QUANTIZERS) == sorted({settings.kind for settings in ALL})


def test_flat_search_is_exact() -> None:
    vectors, queries = draw(500), draw(20, seed=1)
    scores, rows = search(filled(fitted(FlatSettings()), vectors), queries, 10)
    exact = queries @ vectors.T
    np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :10], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(exact, rows, axis=1), scores, atol=1e-6)


@pytest.mark.parametrize("settings", ALL[1:3], ids=NAMES[1:3])
def test_codes_find_most_of_what_is_near(settings) -> None:
    vectors = draw(1000)
    _, rows = search(filled(fitted(settings), vectors), vectors, 10, nprobe=16)
    assert (rows == np.arange(1000)[:, None]).any(axis=1).mean() > 0.95


@each_kind
def test_more_lists_never_find_worse(settings) -> None:
    index, queries = filled(fitted(settings), draw(1000)), draw(30, seed=1)
    best = [search(index, queries, 5, nprobe=nprobe)[0].sum(axis=1) for nprobe in (1, 4, 16)]
    assert (best[0] <= best[1] + 1e-5).all()
    assert (best[1] <= best[2] + 1e-5).all()


@each_kind
def test_bytes_come_back_as_the_same_index(settings) -> None:
    index, queries = filled(fitted(settings), draw(300)), draw(10, seed=1)
    data = serialise(index)
    restored = deserialise(data)
    assert serialise(restored) == data
    for one, other in zip(search(index, queries, 7), search(restored, queries, 7), strict=True):
        np.testing.assert_array_equal(one, other)


@each_kind
def test_the_same_vectors_give_the_same_bytes(settings) -> None:
    chosen = settings if settings.kind == "flat" else settings.model_copy(update={"sample_vectors": 800})
    assert fit_quantizer(draw(1000), chosen).template == fit_quantizer(draw(1000), chosen).template


def test_the_callers_thread_count_changes_no_byte() -> None:
    vectors = l2_normalised(np.random.default_rng(0).standard_normal((1000, 128), dtype=np.float32))
    chosen = IvfadcSettings(lists=4, opq_iterations=1)  # unheld, this differs at 1, 2 and 3 threads
    templates = []
    for around in (1, 2):
        with fixed_threads(around):
            templates.append(fit_quantizer(vectors, chosen).template)
    assert templates[0] == templates[1]


@each_kind
def test_saved_and_loaded_it_is_the_same(settings) -> None:
    quantizer = dataclasses.replace(fitted(settings), notes=("one thing", "another"))
    arrays = {name: array.copy() for name, array in quantizer.to_arrays().items()}
    assert Quantizer.from_arrays(arrays) == quantizer
    assert Quantizer.from_arrays(fitted(settings).to_arrays()) == fitted(settings)


def test_damaged_bytes_are_corrupt_and_limits_are_put_back() -> None:
    import faiss

    before = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
    data = serialise(filled(fitted(PLAIN), draw(50)))
    for damaged in (b"", b"nonsense", data[: len(data) // 2]):
        with pytest.raises(Corrupt, match="faiss index"):
            deserialise(damaged)
    assert before == (faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit())


def test_a_length_that_the_bytes_cannot_hold_is_refused_before_memory_is_asked_for() -> None:
    data = bytearray(serialise(filled(fitted(FlatSettings()), draw(50))))
    at = data.index((50 * DIM).to_bytes(8, "little"))  # faiss counts 4-byte words
    data[at : at + 8] = (2**36).to_bytes(8, "little")
    with pytest.raises(Corrupt) as raised:
        deserialise(bytes(data))
    assert "limit" in str(raised.value.__cause__)


@each_kind
@pytest.mark.parametrize("cuts", [[500], [0, 1, 2], [10, 10, 700, 999]])
def test_any_split_of_the_rows_merges_into_the_single_index(settings, cuts: list[int]) -> None:
    vectors, queries = draw(1000), draw(25, seed=1)
    whole = filled(fitted(settings), vectors)
    merged = merge_indexes(filled(fitted(settings), part) for part in np.split(vectors, cuts))
    assert merged.ntotal == 1000
    for one, other in zip(search(whole, queries, 9), search(merged, queries, 9), strict=True):
        np.testing.assert_array_equal(one, other)


def test_merging_what_was_coded_differently_is_refused() -> None:
    for settings in (PLAIN, ROTATED):
        other = fit_quantizer(draw(1000, seed=7), settings)
        with pytest.raises(BadInput, match="different quantizers"):
            merge_indexes([filled(fitted(settings), draw(10)), filled(other, draw(10))])
    with pytest.raises(BadInput, match="different quantizers"):
        merge_indexes([filled(fitted(PLAIN), draw(10)), filled(fitted(FlatSettings()), draw(10))])
    with pytest.raises(BadInput, match="no index"):
        merge_indexes([])


def test_merging_what_was_rotated_differently_is_refused() -> None:
    import faiss

    one, other = filled(fitted(ROTATED), draw(10)), filled(fitted(ROTATED), draw(10))
    rotation = faiss.downcast_VectorTransform(other.chain.at(0))
    faiss.copy_array_to_vector(-faiss.vector_to_array(rotation.A), rotation.A)
    with pytest.raises(BadInput, match="different quantizers"):
        merge_indexes([one, other])


@each_kind
@pytest.mark.parametrize("share", [0.9, 0.5, 0.03, 0.001])
def test_a_mask_gives_what_filtering_the_full_answer_gives(settings, share: float) -> None:
    index, queries = filled(fitted(settings), draw(1003)), draw(12, seed=1)
    allowed = np.random.default_rng(2).random(1003) < share
    allowed[1002] = True
    table = brute_force(index, queries, allowed)
    scores, rows = search(index, queries, 10, nprobe=16, selector=selector_bitmap(allowed))
    found = min(10, int(allowed.sum()))
    assert (rows[:, :found] >= 0).all()
    assert allowed[rows[:, :found]].all()
    np.testing.assert_allclose(scores[:, :found], -np.sort(-table, axis=1)[:, :found], atol=1e-6)
    assert (rows[:, found:] == -1).all()
    assert (scores[:, found:] == -1).all()


@each_kind
def test_k_results_come_back_if_k_exist(settings) -> None:
    index, queries = filled(fitted(settings), draw(1000)), draw(12, seed=1)
    _, rows = search(index, queries, 1000, nprobe=1)
    assert (np.sort(rows, axis=1) == np.arange(1000)).all()
    allowed = np.zeros(1000, bool)
    allowed[[3, 500, 999]] = True
    _, rows = search(index, queries, 5, nprobe=1, selector=selector_bitmap(allowed))
    assert (np.sort(rows, axis=1) == [-1, -1, 3, 500, 999]).all()


def test_a_query_that_has_enough_is_not_searched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    index, queries = filled(fitted(PLAIN), draw(1000)), draw(12, seed=1)
    batches: list[int] = []
    plain = type(index).search

    def counted(self, x, k, **options):
        batches.append(len(x))
        return plain(self, x, k, **options)

    monkeypatch.setattr(type(index), "search", counted)
    search(index, queries, 1, nprobe=4)
    assert batches == [12]
    batches.clear()
    search(index, queries, 1000, nprobe=4)
    assert batches == [12, 12]  # 4 and 16 lists


@each_kind
def test_searching_leaves_the_shared_index_as_it_was(settings) -> None:
    index = filled(fitted(settings), draw(400))
    before = serialise(index)
    search(index, draw(5), 400, nprobe=3, selector=selector_bitmap(np.arange(400) % 2 == 0))
    assert serialise(index) == before


def test_equal_scores_are_ordered_by_row_and_never_above_one() -> None:
    vectors = np.repeat(draw(1), 9, axis=0)
    for settings in (FlatSettings(), PLAIN):
        index = filled(fitted(settings), vectors)
        scores, rows = search(index, vectors[:1] * np.float32(1.5), 9)
        assert rows.tolist() == [list(range(9))]
        assert (scores <= 1).all()


def test_one_query_at_a_time_equals_a_batch() -> None:
    queries = draw(16, seed=1)
    for settings in ALL:
        index = filled(fitted(settings), draw(700))
        batch = search(index, queries, 6)[0]
        alone = np.concatenate([search(index, query[None], 6)[0] for query in queries])
        np.testing.assert_allclose(batch, alone, atol=1e-6)


def test_an_empty_index_no_queries_and_an_empty_mask() -> None:
    for settings in ALL:
        empty = fitted(settings).new_index()
        assert search(empty, draw(2), 3)[1].tolist() == [[-1] * 3] * 2
        index = filled(fitted(settings), draw(20))
        assert search(index, draw(0), 3)[0].shape == (0, 3)
        nothing = selector_bitmap(np.zeros(20, bool))
        assert search(index, draw(2), 3, selector=nothing)[1].tolist() == [[-1] * 3] * 2


def test_bits_beyond_the_last_row_are_not_rows() -> None:
    index = filled(fitted(PLAIN), draw(13))
    selector = np.full(2, 255, np.uint8)
    rows = search(index, draw(1), 20, selector=selector)[1]
    assert sorted(rows[0].tolist()) == [-1] * 7 + list(range(13))


@pytest.mark.parametrize(
    "change",
    [
        {"k": 0},
        {"nprobe": 0},
        {"queries": np.zeros((2, DIM + 1), np.float32)},
        {"queries": np.full((2, DIM), np.nan, np.float32)},
        {"selector": np.ones(50, bool)},
        {"selector": np.ones(50, np.uint8)},
    ],
)
def test_a_request_that_cannot_be_answered_is_refused(change: dict) -> None:
    index = filled(fitted(PLAIN), draw(50))
    with pytest.raises(BadInput):
        search(index, **{"queries": draw(2), "k": 3, **change})


@pytest.mark.parametrize("n", [1, 5, 100, 255])
def test_too_few_vectors_for_codes_give_a_flat_index_and_a_note(n: int) -> None:
    vectors = draw(n)
    quantizer = fit_quantizer(vectors, IvfadcSettings())
    assert ivf_of(quantizer.new_index()) is None
    assert "flat" in quantizer.notes[0]
    probe_quantizer(quantizer)
    _, rows = search(filled(quantizer, vectors), vectors, 1, quantizer.nprobe)
    assert (rows[:, 0] == np.arange(n)).all()


def test_lists_are_as_many_as_the_vectors_can_fit() -> None:
    def lists(n: int, asked: int | str) -> tuple[int, tuple[str, ...]]:
        fit = fit_quantizer(draw(n), IvfadcSettings(lists=asked, code_bytes=4, opq=False))
        return ivf_of(fit.new_index()).nlist, fit.notes

    assert lists(256, "auto") == (1, ())
    assert lists(9_999, "auto") == (1, ())
    assert lists(10_000, "auto") == (256, ())
    assert lists(400, 10) == (10, ())
    count, notes = lists(400, 64)
    assert count == 10
    assert "10 lists instead of 64" in notes[0]


def test_code_bytes_that_do_not_divide_the_dimension() -> None:
    vectors = draw(300, d=30)
    padded = fit_quantizer(vectors, IvfadcSettings(lists=1, code_bytes=16, opq_iterations=1))
    assert padded.dim == 30
    assert padded.notes == ()
    assert ivf_of(padded.new_index()).d == 32
    fewer = fit_quantizer(vectors, IvfadcSettings(lists=1, code_bytes=16, opq=False))
    assert ivf_of(fewer.new_index()).code_size == 15
    assert "15 bytes instead of 16" in fewer.notes[0]
    for settings in (IvfadcSettings(opq_dim=24), IvfadcSettings(opq=False, opq_dim=16)):
        with pytest.raises(BadInput, match="opq"):
            fit_quantizer(vectors, settings)


def test_an_explicit_number_of_lists_is_at_least_one() -> None:
    with pytest.raises(BadInput, match="lists"):
        fit_quantizer(draw(300), IvfadcSettings(lists=0))


@each_kind
def test_vectors_that_cannot_be_fitted_on_are_refused(settings) -> None:
    for vectors in (np.zeros((0, DIM), np.float32), 3 * draw(300), np.full((300, DIM), np.nan, np.float32)):
        with pytest.raises(BadInput):
            fit_quantizer(vectors, settings)


def _lsh(vectors: np.ndarray, settings: FlatSettings):
    import faiss

    index = faiss.IndexLSH(vectors.shape[1], 64)
    index.train(vectors)
    return index, ()


def _distance(vectors: np.ndarray, settings: FlatSettings):
    import faiss

    return faiss.IndexFlatL2(vectors.shape[1]), ()


def _untrained(vectors: np.ndarray, settings: FlatSettings):
    import faiss

    return faiss.index_factory(vectors.shape[1], "IVF4,Flat", faiss.METRIC_INNER_PRODUCT), ()


@pytest.mark.parametrize(
    ("train", "what"),
    [(_lsh, "selecting rows|writing and reading|scoring"), (_distance, "scoring"), (_untrained, "training")],
)
def test_the_probe_names_what_a_kind_cannot_do(monkeypatch: pytest.MonkeyPatch, train, what: str) -> None:
    monkeypatch.setitem(quantizer_module.QUANTIZERS, "flat", Kind(FlatSettings, train))
    with pytest.raises(BadInput, match=what):
        probe_quantizer(fit_quantizer(draw(300), FlatSettings()))


def test_an_unknown_kind_is_answered_with_the_choices() -> None:
    with pytest.raises(BadInput, match="flat, ivfadc"):
        quantizer_module.kind_named("magic")
