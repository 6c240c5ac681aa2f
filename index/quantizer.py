"""Quantizers: how vectors are stored and compared. One table of kinds, one fitted value.

To add a kind: a file with its settings (a `kind` literal) and a function that trains an empty inner-product
index; a line in `QUANTIZERS` and in `QuantizerSettings`; `probe_quantizer` then says whether faiss does
with it what searching needs.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
from jaxtyping import Float32
from pydantic import BaseModel, Field

from index.fitting import draw_rows
from index.flat import FlatSettings, train_flat
from index.ivfadc import IvfadcSettings, train_ivfadc
from index.nearest import MISSING_ROW, search, selector_bitmap
from index.projection import l2_normalised
from index.serialised import deserialise, ivf_of, merge_indexes, serialise
from ingest.errors import BadInput, ReseenError

if TYPE_CHECKING:
    import faiss

__all__ = [
    "QUANTIZERS",
    "FlatSettings",
    "IvfadcSettings",
    "Quantizer",
    "QuantizerSettings",
    "deserialise",
    "fit_quantizer",
    "merge_indexes",
    "probe_quantizer",
    "search",
    "selector_bitmap",
    "serialise",
]

QuantizerSettings = Annotated[FlatSettings | IvfadcSettings, Field(discriminator="kind")]


@dataclass(frozen=True)
class Kind:
    """A kind of quantizer: its settings, and what trains an empty index (and says what it did otherwise)."""

    settings: type[BaseModel]
    train: Callable[[Any, Any], tuple["faiss.Index", tuple[str, ...]]]


QUANTIZERS: dict[str, Kind] = {
    "flat": Kind(FlatSettings, train_flat),
    "ivfadc": Kind(IvfadcSettings, train_ivfadc),
}


@dataclass(frozen=True)
class Quantizer:
    """A fitted quantizer.

    template: an empty trained faiss index, serialised; all shards start from it, so that scores compare.
    notes: what was done otherwise than asked, a sentence each.
    """

    settings: FlatSettings | IvfadcSettings
    template: bytes
    notes: tuple[str, ...] = ()

    def new_index(self) -> "faiss.Index":
        """An empty index; add L2-normalised float32 vectors, in row order."""
        return deserialise(self.template)

    @property
    def dim(self) -> int:
        """Components of the vectors that it takes."""
        return int(self.new_index().d)

    @property
    def nprobe(self) -> int | None:
        """Lists that a query reads unless it says otherwise; None where there are no lists."""
        return getattr(self.settings, "nprobe", None)

    def to_arrays(self) -> dict[str, np.ndarray]:
        return {
            "settings": np.frombuffer(self.settings.model_dump_json().encode(), np.uint8),
            "template": np.frombuffer(self.template, np.uint8),
            "notes": np.frombuffer("\n".join(self.notes).encode(), np.uint8),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        settings, template, notes = (
            np.asarray(arrays[name], np.uint8).tobytes() for name in ("settings", "template", "notes")
        )
        kind = kind_named(json.loads(settings)["kind"])
        parsed: Any = kind.settings.model_validate_json(settings)
        return cls(parsed, template, tuple(notes.decode().splitlines()))


def kind_named(name: str) -> Kind:
    """The kind of that name; `BadInput` with the choices if there is none."""
    if name not in QUANTIZERS:
        raise BadInput(f"there is no quantizer {name!r}: choose one of {', '.join(sorted(QUANTIZERS))}")
    return QUANTIZERS[name]


def fit_quantizer(vectors: Float32[np.ndarray, "n d"], settings: FlatSettings | IvfadcSettings) -> Quantizer:
    """Trains a quantizer on L2-normalised vectors.

    The same vectors in the same order give the same bytes. Too few vectors for what was asked give less
    (fewer lists; a flat index), said in `notes`.

    Raises:
        BadInput: there are no vectors, or they are not finite and L2-normalised, or settings contradict
            each other.
    """
    if vectors.ndim != 2 or len(vectors) == 0:
        raise BadInput("cannot fit a quantizer on no vectors: no image could be encoded")
    sample = draw_rows(vectors, settings.sample_vectors, getattr(settings, "seed", 0))
    norms = np.sqrt(np.einsum("nd,nd->n", sample, sample))
    if not (np.isfinite(norms).all() and ((np.abs(norms - 1) < 1e-3) | (norms == 0)).all()):
        raise BadInput("cannot fit a quantizer: vectors must be finite and L2-normalised")
    index, notes = kind_named(settings.kind).train(sample, settings)
    return Quantizer(settings, serialise(index), notes)


def probe_quantizer(quantizer: Quantizer) -> None:
    """Tries what searching needs on made-up vectors: adding, bytes, selecting, scores, merging.

    Some faiss kinds throw on a selector, ignore it in silence, or score in a way of their own; a kind that
    does is refused here, before anything is built with it. Takes some milliseconds.

    Raises:
        BadInput: naming what failed.
    """
    for name, check in _PROBES.items():
        try:
            passed = check(quantizer)
        except ReseenError as error:
            raise _refused(quantizer, name) from error
        except Exception as error:  # faiss raises RuntimeError, AssertionError and others
            raise _refused(quantizer, name) from error
        if not passed:
            raise _refused(quantizer, name)


def _refused(quantizer: Quantizer, what: str) -> BadInput:
    return BadInput(
        f"quantizer {quantizer.settings.kind!r} cannot be used with this faiss: {what} failed; choose one of "
        f"{', '.join(sorted(QUANTIZERS))} with other settings"
    )


_PROBE_ROWS = 100
_PROBE_K = 7


def _probe_vectors(quantizer: Quantizer) -> np.ndarray:
    drawn = np.random.default_rng(0).standard_normal((_PROBE_ROWS, quantizer.dim)).astype(np.float32)
    return l2_normalised(drawn)


def _filled(quantizer: Quantizer, vectors: np.ndarray) -> "faiss.Index":
    index = quantizer.new_index()
    index.add(vectors)
    return index


def _adds(quantizer: Quantizer) -> bool:
    index = quantizer.new_index()
    return bool(index.is_trained) and _filled(quantizer, _probe_vectors(quantizer)).ntotal == _PROBE_ROWS


def _keeps_bytes(quantizer: Quantizer) -> bool:
    vectors = _probe_vectors(quantizer)
    index = _filled(quantizer, vectors)
    data = serialise(index)
    restored = deserialise(data)
    before, after = search(index, vectors, _PROBE_K), search(restored, vectors, _PROBE_K)
    return serialise(restored) == data and all(map(np.array_equal, before, after))


def _selects(quantizer: Quantizer) -> bool:
    vectors = _probe_vectors(quantizer)
    index = _filled(quantizer, vectors)
    allowed = np.arange(_PROBE_ROWS) % 9 == 4
    _, chosen = search(index, vectors, _PROBE_K, selector=selector_bitmap(allowed))
    return bool((chosen != MISSING_ROW).all() and allowed[chosen].all())


def _scores(quantizer: Quantizer) -> bool:
    """Scores are inner products with what the index gives back for a row, clipped."""
    vectors = _probe_vectors(quantizer)
    index = _filled(quantizer, vectors)
    ivf = ivf_of(index)
    if ivf is not None:
        ivf.make_direct_map()
    stored = index.reconstruct_n(0, _PROBE_ROWS)
    scores, rows = search(index, vectors, _PROBE_ROWS)
    expected = np.clip(np.take_along_axis(vectors @ stored.T, rows, axis=1), -1, 1)
    return bool((rows != MISSING_ROW).all() and np.allclose(scores, expected, atol=1e-5))


def _merges(quantizer: Quantizer) -> bool:
    vectors = _probe_vectors(quantizer)
    whole = _filled(quantizer, vectors)
    merged = merge_indexes(_filled(quantizer, part) for part in np.array_split(vectors, 3))
    one, other = search(whole, vectors, _PROBE_K)[0], search(merged, vectors, _PROBE_K)[0]
    return merged.ntotal == _PROBE_ROWS and bool(np.allclose(one, other, atol=1e-6))


_PROBES: dict[str, Callable[[Quantizer], bool]] = {
    "training and adding": _adds,
    "writing and reading": _keeps_bytes,
    "selecting rows": _selects,
    "scoring by inner product": _scores,
    "merging": _merges,
}
