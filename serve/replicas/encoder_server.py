"""Query images to vectors and features, for every generation that is served.

What decides a vector is the settings and fitted models, not the generation: a flip to one that keeps them
opens nothing.
"""

from collections import OrderedDict
from collections.abc import Collection
from threading import Lock

from index.fused import encoders_in
from index.generation import Generation
from ingest.compute import Compute
from ingest.errors import BadInput, Unavailable
from ingest.gallery import Gallery
from ingest.outcomes import Rejected
from serve.backend import Encoded
from serve.query import QUERY_COMPUTE, ImageQuery, QueryEncoder, open_query_encoder, version_warning
from serve.refusals import Away
from serve.replicas.known_generations import KnownGenerations

_OPENED = 3  # encoders at once: each has networks, and a decoding process of 60 MB

_Key = tuple[str | None, str | None, str | None, frozenset[str]]


class EncoderServer:
    """Encodes query images, one at a time: a network uses all processors. May be shared by threads."""

    def __init__(self, gallery: Gallery, compute: Compute = QUERY_COMPUTE) -> None:
        self._gallery, self._compute = gallery, compute
        self._generations = KnownGenerations(gallery)
        self._encoders: OrderedDict[_Key, QueryEncoder] = OrderedDict()
        self._lock = Lock()
        self._closed = False

    def encode(self, generation: int, image: ImageQuery, labels: Collection[str]) -> Encoded | Rejected:
        """A query image as vector and features, or why it cannot be used.

        Args:
            labels: of features that steps will read, besides what the encoder reads.

        Raises:
            BadInput: the box is empty or outside the image, or the gallery's vectors came ready-made.
            NotFound, Corrupt, Unavailable: the generation or its models cannot be read.
            Away: images cannot be decoded now.
        """
        known = self._generations.get(generation)
        with self._lock:
            encoder = self._encoder(known, labels)
            try:
                found, seconds = encoder.encode_timed(image)
            except Unavailable as error:  # it reads no store: its decoding process does not start
                raise Away("the encoder cannot start its decoding process: try again soon") from error
        if isinstance(found, Rejected):
            return found
        return Encoded(found, seconds, version_warning(known.versions))

    def warm(self, generation: int) -> None:
        """Opens what the recipe's own steps will need, so that no request waits for it."""
        known = self._generations.get(generation)
        if known.recipe.ready_made:
            return
        with self._lock:
            self._encoder(known, {step.reads for step in known.recipe.steps if hasattr(step, "reads")})

    def _encoder(self, generation: Generation, labels: Collection[str]) -> QueryEncoder:
        if self._closed:
            raise BadInput("this encoder is closed")
        key = _key(generation, labels)
        if key not in self._encoders:
            while len(self._encoders) >= _OPENED:
                self._encoders.popitem(last=False)[1].close()
            self._encoders[key] = open_query_encoder(self._gallery, generation, key[-1], self._compute)
        self._encoders.move_to_end(key)
        return self._encoders[key]

    def close(self) -> None:
        """Ends the decoding processes."""
        with self._lock:
            self._closed = True
            while self._encoders:
                self._encoders.popitem()[1].close()


def _key(generation: Generation, labels: Collection[str]) -> _Key:
    """What decides a query's vector and features. Labels that are described anyhow make no difference."""
    recipe, models = generation.recipe, generation.models
    described = set() if recipe.features is None else set(recipe.features.describe)
    read = set() if recipe.encoder is None else {each.reads for each in encoders_in(recipe.encoder)}
    return models.features, models.encoder, models.projection, frozenset((set(labels) & described) - read)
