"""Query images become vectors, by the very functions that made the gallery's."""

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from index.encodings import load_vectoriser, vectorise
from index.fused import ImageEncoder
from index.generation import Generation, library_versions
from index.projection import Projection
from index.steps import Query
from ingest.compute import Compute
from ingest.decode import Box, Decoded
from ingest.decoder import Decoder
from ingest.describe import ImageDescriber, LoadWeights
from ingest.errors import BadInput
from ingest.features import FeatureSettings
from ingest.gallery import Gallery
from ingest.outcomes import Rejected
from ingest.weights import weights_loader

QUERY_COMPUTE = Compute(threads=None)  # one image at a time: all processors for it

# Two packages of one library: the same version of either gives the same results.
_SAME_LIBRARY = {
    "faiss-cpu": "faiss",
    "faiss-gpu": "faiss",
    "opencv-python-headless": "opencv",
    "opencv-python": "opencv",
}


@dataclass(frozen=True)
class ImageQuery:
    """An image to search with.

    data: the bytes of its file.
    box: (x0, y0, x1, y1) in pixels of the image after EXIF orientation; only this part is looked for.
    name: for answers and messages.
    """

    data: bytes
    box: Box | None = None
    name: str = ""


class QueryEncoder:
    """Images to vectors and features. A context manager; calls from several threads take turns.

    Args:
        features: how the gallery's images were described.
        labels: what is described besides what the encoder reads, for steps that look at pairs.

    Attributes:
        warning: a sentence where the libraries that decide results are not those that built the gallery.
    """

    def __init__(
        self,
        features: FeatureSettings,
        encoder: ImageEncoder,
        projection: Projection | None,
        load_weights: LoadWeights,
        labels: Collection[str] = (),
        compute: Compute = QUERY_COMPUTE,
        warning: str | None = None,
    ) -> None:
        self.features = features
        self.warning = warning
        self._encoder, self._projection = encoder, projection
        self._decoder = Decoder(features.decode)
        wanted = encoder.labels | set(labels)
        described = {label: settings for label, settings in features.describe.items() if label in wanted}
        self._describer = ImageDescriber(described, load_weights, compute)
        self._lock = threading.Lock()

    def encode(self, queries: Sequence[ImageQuery]) -> list[Query | Rejected]:
        """Vector and features, or the reason why there are none, for each query, in their order.

        A query's vector does not depend on the others. Decoding runs ahead of describing. Memory: two
        decoded images at a time, and what was found in all.

        Raises:
            BadInput: a box is empty or outside its image; the query is named.
        """
        found: list[Query | Rejected | None] = [None] * len(queries)
        whole = [place for place, query in enumerate(queries) if query.box is None]
        with self._lock:
            decoded = self._decoder.decode_ahead(queries[place].data for place in whole)
            for place, image in zip(whole, decoded, strict=True):
                found[place] = self._query(image)
            for place, query in enumerate(queries):
                if query.box is not None:
                    found[place] = self._query(self._decode_box(query, query.box))
        return [each for each in found if each is not None]

    def encode_timed(self, query: ImageQuery) -> tuple[Query | Rejected, dict[str, float]]:
        """One query as `encode` gives it, and the seconds that it took to `decode` and to `encode` it."""
        with self._lock:
            start = time.perf_counter()
            if query.box is None:
                image = self._decoder.decode(query.data)
            else:
                image = self._decode_box(query, query.box)
            decoded = time.perf_counter()
            found = self._query(image)
            return found, {"decode": decoded - start, "encode": time.perf_counter() - decoded}

    def _decode_box(self, query: ImageQuery, box: Box) -> Decoded | Rejected:
        try:
            return self._decoder.decode(query.data, box)
        except BadInput as error:
            raise BadInput(f"{query.name or 'the query'}: {error}") from error

    def _query(self, image: Decoded | Rejected) -> Query | Rejected:
        features = image if isinstance(image, Rejected) else self._describer.describe([image])[0]
        if isinstance(features, Rejected):
            return features
        # One at a time: the last bits of a product depend on how many vectors are multiplied at once.
        return Query(vectorise(self._encoder, self._projection, [features])[0], features)

    def close(self) -> None:
        """Ends the decoding process; encoding afterwards raises `BadInput`."""
        self._decoder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_query_encoder(
    gallery: Gallery, generation: Generation, labels: Collection[str] = (), compute: Compute = QUERY_COMPUTE
) -> QueryEncoder:
    """The encoder of a generation's queries: its recipe's settings, its fitted models and its weights.

    Raises:
        BadInput: the gallery's vectors came ready-made.
        NotFound, Corrupt: a fitted model is gone, or damaged.
    """
    recipe, models = generation.recipe, generation.models
    if recipe.features is None or models.encoder is None:
        raise BadInput(
            f"{gallery.store.url} holds ready-made vectors, and nothing here knows how they were made: "
            "search by vector instead of by image"
        )
    encoder, projection = load_vectoriser(gallery, models.encoder, models.projection)
    warning = version_warning(generation.versions)
    return QueryEncoder(
        recipe.features, encoder, projection, weights_loader(gallery), labels, compute, warning
    )


def version_warning(built: Mapping[str, str], here: Mapping[str, str] | None = None) -> str | None:
    """A sentence where the versions here differ from those that built the gallery; None where they agree.

    Args:
        built: version by distribution, as a generation states them.
        here: the same of this environment, looked up by default.
    """
    then, now = _by_library(built), _by_library(library_versions() if here is None else here)
    changed = [
        f"{name} {then.get(name, 'absent')} (here {now.get(name, 'absent')})"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]
    if not changed:
        return None
    return (
        f"the gallery was built with {', '.join(changed)}: scores may differ slightly; "
        "install the same versions, or build again with --refit"
    )


def _by_library(versions: Mapping[str, str]) -> dict[str, str]:
    return {_SAME_LIBRARY.get(name, name): version for name, version in versions.items()}
