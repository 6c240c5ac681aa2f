"""faiss indexes as bytes, and several as one."""

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from ingest.errors import BadInput, Corrupt

if TYPE_CHECKING:
    import faiss

_LIMITS = threading.Lock()
_EXPANSION = 256


def serialise(index: "faiss.Index") -> bytes:
    """An index as faiss writes it. Equal indexes give equal bytes."""
    import faiss

    return faiss.serialize_index(index).tobytes()  # type: ignore[no-any-return, unused-ignore]


def deserialise(data: bytes) -> "faiss.Index":
    """The index that `serialise` wrote.

    faiss believes nearly everything it reads (of single flipped bits, 99.8 % load), so check the bytes'
    sha256 first. Here only what they can ask for is bounded: 256 times their own number (the table that faiss
    plans for IVF-PQ, lists x m x 256 floats, is at most 256 times its list centroids).

    Raises:
        Corrupt: faiss cannot read them.
    """
    import faiss

    with _LIMITS:  # the limits are the process's
        before = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
        faiss.set_deserialization_vector_byte_limit(_EXPANSION * (len(data) + 1))
        faiss.set_deserialization_loop_limit(len(data) + 1)  # what is counted takes a byte each at least
        try:
            return faiss.deserialize_index(np.frombuffer(data, np.uint8))
        except Exception as error:  # faiss raises RuntimeError, MemoryError, IndexError, AssertionError
            raise Corrupt(
                f"{len(data)} bytes are not a faiss index that version {faiss.__version__} can read; "
                "restore the object from a copy, or build it again"
            ) from error
        finally:
            faiss.set_deserialization_vector_byte_limit(before[0])
            faiss.set_deserialization_loop_limit(before[1])


def merge_indexes(indexes: "Iterable[faiss.Index]") -> "faiss.Index":
    """One index over the rows of all, in order: each one's row numbers grow by the rows before it.

    Takes the indexes over: the first one grows, the others are left empty, so memory never doubles; give
    a generator and only one waits at a time. Flat, IVF and a transform before either are understood.

    Raises:
        BadInput: there are none, or they were not made from one quantizer.
    """
    merged: faiss.Index | None = None
    for index in indexes:
        if merged is None:
            merged = index
            continue
        if not _same_quantizer(merged, index):
            raise BadInput(
                "these shards were coded by different quantizers, so their scores do not compare: "
                "merge shards of one generation only"
            )
        flat = ivf_of(merged) is None
        merged.merge_from(index, 0 if flat else merged.ntotal)  # flat rows have no stored number
    if merged is None:
        raise BadInput("there is no index to merge: name at least one shard")
    return merged


def ivf_of(index: "faiss.Index") -> "faiss.IndexIVF | None":
    """The inverted file inside an index, or None for a flat one."""
    import faiss

    ivf = faiss.try_extract_index_ivf(index)
    return None if ivf is None else faiss.downcast_index(ivf)


def _same_quantizer(one: "faiss.Index", other: "faiss.Index") -> bool:
    """Whether kind, transform, list centroids and codes agree (faiss itself compares only their sizes)."""
    import faiss

    one, other = faiss.downcast_index(one), faiss.downcast_index(other)
    if type(one) is not type(other) or one.d != other.d:
        return False
    a, b = ivf_of(one), ivf_of(other)
    if a is None or b is None:
        return a is b
    return type(a) is type(b) and all(
        np.array_equal(x, y) for x, y in zip(_fitted(one, a), _fitted(other, b), strict=True)
    )


def _fitted(index: "faiss.Index", ivf: "faiss.IndexIVF") -> list[np.ndarray]:
    import faiss

    arrays = [faiss.downcast_index(ivf.quantizer).reconstruct_n(0, ivf.nlist)]
    if hasattr(ivf, "pq"):
        arrays.append(faiss.vector_to_array(ivf.pq.centroids))
    if isinstance(index, faiss.IndexPreTransform):
        for place in range(index.chain.size()):
            step = faiss.downcast_VectorTransform(index.chain.at(place))
            arrays.append(faiss.vector_to_array(step.A))
    return arrays
