"""The jobs that the command line runs, each a few stages in order.

with open_job(url, engine="ray", create=True) as job:
    ingest(job, open_sources(["photos/"]), recipe)
    generation = build_index(job, recipe)
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from ingest.errors import BadInput, NotFound
from ingest.job import Job
from ingest.parts import ListingReport, PartSizes, ingest_source
from ingest.progress import Progress, SilentProgress
from ingest.sources import KINDS, Listed, Skipped, Source, VectorSource, open_source

if TYPE_CHECKING:
    from index.build import BuildOptions
    from index.generation import Generation
    from index.purge import PurgeReport
    from index.recipe import Recipe
    from ingest.catalogue import Catalogue
    from ingest.compute import Compute
    from ingest.extract import FeatureSet
    from ingest.gallery import Gallery

EngineKind = Literal["ray", "inline"]


@contextmanager
def open_job(
    url: str,
    engine: EngineKind = "inline",
    workers: int | None = None,
    progress: Progress | None = None,
    create: bool = False,
    compute: "Compute | None" = None,
) -> Iterator[Job]:
    """A gallery and an engine, for a `with` statement; `create` makes the gallery if there is none.

    Args:
        compute: devices and processes of what describes images.

    Raises:
        NotFound: there is no gallery, and `create` is not set.
        BadInput: the store is unusable, or the engine cannot work with it.
    """
    from ingest.compute import Compute
    from ingest.engine import open_engine
    from ingest.gallery import create_gallery, open_gallery
    from ingest.store import Store

    if engine == "inline" and (workers or 1) > 1:
        raise BadInput(f"--workers {workers} needs --engine ray: the inline engine is one process")
    if engine == "ray" and url.startswith("memory:"):
        raise BadInput(f"{url} lives in this process, which Ray's workers cannot see: use --engine inline")
    store = Store(url)
    gallery = create_gallery(store) if create else open_gallery(store)
    compute = compute or Compute()
    gpu = {"auto": None, "cpu": False, "cuda": True}[compute.device]
    with open_engine(engine, workers, gpu=gpu, address=os.environ.get("RAY_ADDRESS")) as opened:
        yield Job(gallery, opened, progress or SilentProgress(), compute)


# -- sources ------------------------------------------------------------------------------------------------


def open_sources(texts: Sequence[str], metadata: str | None = None) -> list[Source | VectorSource]:
    """Opens sources as a person writes them; relative paths are made absolute, for later runs elsewhere.

    Raises:
        BadInput: one cannot be understood, two have one name, or several are to share one metadata file.
        NotFound: a folder or file does not exist.
    """
    if metadata is not None and len(texts) > 1:
        raise BadInput("--metadata describes one source: ingest the sources one at a time")
    sources = [open_source(absolute(text), metadata) for text in texts]
    twice = [name for name, count in Counter(source.name for source in sources).items() if count > 1]
    if twice:
        raise BadInput(f"two sources are called {twice[0]!r}: name one of them (OTHER=URL)")
    return sources


def absolute(text: str) -> str:
    """`[NAME=]URL` with a relative path made absolute; URLs and made-up sources stay as they are."""
    named = re.fullmatch(r"([A-Za-z0-9._-]+=)?(.*)", text, re.DOTALL)
    name, url = (named[1] or "", named[2]) if named else ("", text)
    prefix, colon, rest = url.partition(":")
    kind = f"{prefix}:" if colon and prefix in KINDS else ""
    path = rest if kind else url
    if not path.strip() or "://" in path or kind == "synthetic:":
        return text
    return name + kind + os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 (keeps globs as text)


def known_sources(catalogue: "Catalogue") -> dict[str, Source]:
    """The sources of images that a catalogue names; one that is gone says so when it is read."""
    opened = {name: _known_source(name, url) for name, url in catalogue.sources.items()}
    return {name: source for name, source in opened.items() if isinstance(source, Source)}


def _known_source(name: str, url: str) -> Source | VectorSource:
    try:
        return open_source(f"{name}={url}")
    except (NotFound, BadInput) as error:
        return _GoneSource(name, url, str(error))


@dataclass(frozen=True)
class GallerySources(Mapping[str, Source]):
    """The sources of images of a gallery's newest catalogue, whatever that is when one is looked up."""

    gallery: "Gallery"

    def __getitem__(self, name: str) -> Source:
        return known_sources(self._catalogue())[name]

    def __iter__(self) -> Iterator[str]:
        return iter(known_sources(self._catalogue()))

    def __len__(self) -> int:
        return len(known_sources(self._catalogue()))

    def _catalogue(self) -> "Catalogue":
        from ingest.catalogue import read_catalogue

        return read_catalogue(self.gallery)


@dataclass(frozen=True)
class _GoneSource:
    """A source that could not be opened: harmless until somebody needs an image that has no features yet."""

    name: str
    url: str
    why: str

    def listing(self) -> Iterator[Listed | Skipped]:
        raise self._error()

    def read(self, key: str, max_bytes: int | None = None) -> bytes:
        raise self._error()

    def uri(self, key: str) -> str:
        return f"{self.url}/{key}"

    def _error(self) -> BadInput:
        return BadInput(
            f"images of source {self.name!r} have no features yet, and it cannot be opened ({self.why}); "
            f"if it moved: reseen ingest {self.name}=NEW_URL --moved"
        )


# -- ingest -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class IngestOptions:
    """What an ingest may do.

    moved: the sources' names are known with other URLs, and that is meant.
    max_rejects: share of images without features above which it stops.
    sizes: when a part closes.
    before: is told how many images the gallery lists, before their features are written.
    """

    moved: bool = False
    max_rejects: float = 0.5
    sizes: PartSizes | None = None
    before: Callable[[int], None] | None = None


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did.

    listings: by source what listing found. outcomes: all images of the gallery by outcome.
    described: images that this run described; `seconds` of it by stage, of all workers together.
    """

    catalogue: int
    listings: Mapping[str, ListingReport]
    outcomes: Mapping[str, int]
    described: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)


def ingest(
    job: Job, sources: Sequence[Source | VectorSource], recipe: "Recipe", options: IngestOptions | None = None
) -> IngestReport:
    """Lists sources, commits the catalogue, and extracts features by the recipe.

    Stopped at any moment, a rerun adopts what is there and goes on.

    Raises:
        BadInput: sources and recipe do not go together, or a source is unusable.
        OverBudget: more rejects than allowed; what was done is kept.
    """
    from index.pins import Renewing, hold
    from index.recipe import with_read_weights
    from ingest.catalogue import read_catalogue

    options = options or IngestOptions()
    _check_together(job, sources, recipe)
    # All models are held, for the gallery's own copies of weights are looked for inside.
    with hold(job.gallery, "parts/", "manifests/", "models/") as pin:
        recipe, weights = with_read_weights(recipe, job.gallery)
        pin.keep(*_folders(sources, recipe))
        weights.keep(job.gallery)
        job = replace(job, progress=Renewing(job.progress, pin))
        listings = {source.name: _list(job, source, options) for source in sources}
        catalogue = read_catalogue(job.gallery)
        if options.before is not None:
            options.before(catalogue.rows)
        found = _describe(job, catalogue, sources, recipe, options)
    if found is None:
        return IngestReport(catalogue.number, listings, {"ok": catalogue.rows})
    return IngestReport(catalogue.number, listings, found.outcomes, found.described, found.seconds)


def _check_together(job: Job, sources: Sequence[Source | VectorSource], recipe: "Recipe") -> None:
    from ingest.catalogue import read_catalogue

    for source in sources:
        if isinstance(source, VectorSource) != recipe.ready_made:
            holds, takes = ("images", "vectors") if recipe.ready_made else ("vectors", "images")
            raise BadInput(
                f"{source.url} holds {holds}, and recipe {recipe.name!r} takes {takes}: choose another "
                "recipe (reseen recipe list)"
            )
    vectors = [
        name for name, url in read_catalogue(job.gallery).sources.items() if url.startswith("vectors:")
    ]
    if vectors and not recipe.ready_made:
        raise BadInput(
            f"{job.gallery.store.url} holds ready-made vectors ({vectors[0]}): put images into a gallery of "
            "their own"
        )


def _folders(sources: Sequence[Source | VectorSource], recipe: "Recipe") -> list[str]:
    """The folders that an ingest works in besides the catalogue's."""
    from index.ready_made import ready_made_digest

    if recipe.features is not None:
        return [f"features/{recipe.features.digest}/"]
    return [f"encodings/{ready_made_digest(s.dim)}/" for s in sources if isinstance(s, VectorSource)]


def _list(job: Job, source: Source | VectorSource, options: IngestOptions) -> ListingReport:
    from index.ready_made import ingest_vectors

    if isinstance(source, VectorSource):
        return ingest_vectors(job, source, options.moved)
    return ingest_source(job.gallery, source, job.progress, options.sizes, options.moved)


def _describe(
    job: Job,
    catalogue: "Catalogue",
    sources: Sequence[Source | VectorSource],
    recipe: "Recipe",
    options: IngestOptions,
) -> "FeatureSet | None":
    from ingest.extract import extract

    if recipe.features is None:
        return None
    given = {source.name: source for source in sources if isinstance(source, Source)}
    known = known_sources(catalogue) | given
    return extract(job, catalogue, recipe.features, known, options.max_rejects)


# -- build and purge ----------------------------------------------------------------------------------------


def build_index(job: Job, recipe: "Recipe", options: "BuildOptions | None" = None) -> "Generation":
    """Publishes a generation of everything that was ingested, by a recipe.

    Raises:
        NotFound: nothing was ingested.
        OverBudget: the gate, or too many rejects; nothing is published.
        Conflict: a rebuild or refit lost against another publisher.
    """
    from index.build import build

    return build(job, recipe, GallerySources(job.gallery), options)


def purge_deleted(job: Job) -> "PurgeReport":
    """Removes everything on the deletion list from the store, and builds what that leaves."""
    from index.build import BuildOptions
    from index.purge import purge

    anything = BuildOptions(
        max_rejects=1.0, action="purge"
    )  # taking images down never waits for a share of rejects
    return purge(job, lambda newest: build_index(job, newest.recipe, anything))
