"""The images of results, read through their sources, for pictures."""

from collections.abc import Mapping
from dataclasses import dataclass

from ingest.decode import DecodeSettings
from ingest.errors import NotFound, ReseenError, Unavailable
from ingest.outcomes import Outcome, Rejected
from ingest.sources import Source, open_source
from serve.searcher import Result


@dataclass
class ResultImages:
    """The bytes of results, read through sources that are opened when they are first needed."""

    sources: Mapping[str, str]
    decode: DecodeSettings

    def __post_init__(self) -> None:
        self.opened: dict[str, Source | Rejected] = {}

    def read(self, result: Result) -> bytes | Rejected:
        source = self._source(result.source)
        if isinstance(source, Rejected):
            return source
        try:
            return source.read(result.key, self.decode.max_bytes)
        except NotFound:
            return Rejected(Outcome.MISSING, "image is gone")
        except Unavailable:
            return Rejected(Outcome.MISSING, "source does not answer")

    def _source(self, name: str) -> Source | Rejected:
        if name not in self.opened:
            try:
                found = open_source(f"{name}={self.sources[name]}")
                no_image = Rejected(Outcome.MISSING, "a vector, no image")
                self.opened[name] = found if isinstance(found, Source) else no_image
            except (ReseenError, KeyError):
                self.opened[name] = Rejected(Outcome.MISSING, "source is gone")
        return self.opened[name]
