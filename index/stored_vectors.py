"""The stored vectors of single images, by place."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from index.encodings import read_encodings
from index.kept import Kept
from ingest.feature_reader import Place
from ingest.gallery import Gallery

_PARTS_KEPT = 64  # parts' vectors in memory: 1,024 x d x 4 bytes each, 0.5 MB at 128-D


class StoredVectors:
    """Reads vectors; the parts used last are kept. May be shared by threads."""

    def __init__(self, gallery: Gallery, encodings: str) -> None:
        self._gallery, self._encodings = gallery, encodings
        self._kept: Kept[tuple[np.ndarray, np.ndarray]] = Kept(_PARTS_KEPT)

    def read(self, places: Sequence[Place]) -> Float32[np.ndarray, "n d"]:
        """The vectors of some places, in their order."""
        rows = []
        for part, row in places:
            numbers, vectors = self._part(part)
            rows.append(vectors[np.searchsorted(numbers, row)])
        return np.stack(rows)

    def _part(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """Rows of a part, and their vectors."""

        def read() -> tuple[np.ndarray, np.ndarray]:
            rows, _, vectors = read_encodings(self._gallery, self._encodings, part)
            return rows, vectors

        return self._kept.get(part, read)
