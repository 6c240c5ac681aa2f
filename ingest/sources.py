"""Where images and vectors come from: one table of kinds, and `open_source` over it.

    photos/                      a folder, and every folder below it
    photos/**/*.jpg              a glob: what it matches, whatever the extension
    s3://bucket/photos           either of the two on any fsspec store
    synthetic:scenes=250,seed=1  the project's own scenes (`ingest.synthetic`)
    vectors:base.npy             ready-made vectors (.npy, .fvecs, .parquet)
    NAME=URL                     any of them, under a name of your choice

The name goes into every image's id, the place does not: a folder may move if its name is kept.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from ingest.errors import BadInput

Value = str | int | float | bool


@dataclass(frozen=True)
class Listed:
    """An image of a source.

    key: its path relative to the source's root, forward slashes; bytes that are not UTF-8 are escaped as
        by `os.fsdecode`.
    size: bytes that `read` gives.
    version: differs whenever the content may: an ETag, size and time of change, or the generator's version.
    metadata: its row of the sidecar, or the generator's ground truth; absent values have no entry.
    """

    key: str
    size: int
    version: str
    metadata: Mapping[str, Value] = field(default_factory=dict)


class Skip(StrEnum):
    """Why something in a listing is not an image of the source."""

    HIDDEN = "hidden"  # its name starts with a dot; a hidden folder is skipped whole, as one entry
    NOT_AN_IMAGE_NAME = "not_an_image_name"  # no image extension (a glob lists any extension)
    SPECIAL_FILE = "special_file"  # a FIFO, device or socket
    LINK_OUT_OF_ROOT = "link_out_of_root"  # what it points to is outside the source
    LINK_TO_FOLDER = "link_to_folder"  # its content is listed under its own name, if it is inside
    BROKEN_LINK = "broken_link"  # it points to nothing, or to itself
    UNREADABLE = "unreadable"  # no permission to look at it
    UNUSABLE_NAME = "unusable_name"  # an object whose key has empty or dot components
    SIDECAR = "sidecar"  # the metadata file itself
    METADATA_WITHOUT_IMAGE = "metadata_without_image"  # a row of the sidecar whose key was not listed


@dataclass(frozen=True)
class Skipped:
    """Something in a listing that is not an image of the source, and why."""

    key: str
    why: Skip


@runtime_checkable
class Source(Protocol):
    """A collection of images. Picklable: connections open on first use."""

    @property
    def name(self) -> str: ...

    @property
    def url(self) -> str: ...

    def listing(self) -> Iterator[Listed | Skipped]:
        """Everything in the source, as a stream: folder by folder, sorted by name within each.

        Raises:
            NotFound: the root does not exist.
            BadInput: the sidecar is unusable.
            Unavailable: the store did not answer.
        """

    def read(self, key: str, max_bytes: int | None = None) -> bytes:
        """An image's bytes; with `max_bytes`, at most one more than that, which tells that it is longer.

        Raises:
            NotFound: it is gone, or is no longer a plain file inside the root.
            Unavailable: the store did not answer, after retries.
        """

    def uri(self, key: str) -> str:
        """Where the image lies, for people and for links."""


@runtime_checkable
class VectorSource(Protocol):
    """A collection of ready-made vectors, `rows` x `dim`. Picklable."""

    @property
    def name(self) -> str: ...

    @property
    def url(self) -> str: ...

    @property
    def rows(self) -> int: ...

    @property
    def dim(self) -> int: ...

    @property
    def version(self) -> str: ...

    def read(self, start: int, stop: int) -> Float32[np.ndarray, "n d"]:
        """Rows `start` to `stop` (exclusive), finite; `BadInput`, naming file and row, if they are not."""

    def keys(self, start: int, stop: int) -> list[str]:
        """Each row's key: the `id` column of a Parquet file, or the row's number in nine digits."""

    def metadata(self, start: int, stop: int) -> list[dict[str, Value]]:
        """Each row's other columns; empty where the format has none."""


@dataclass(frozen=True)
class Kind:
    """A kind of source: how it is written, what it is, how it is opened."""

    form: str
    purpose: str
    open: Callable[[str | None, str, str | None, dict[str, Any]], Source | VectorSource]


def _open_folder(name: str | None, url: str, metadata: str | None, options: dict[str, Any]) -> Source:
    from ingest.folder_source import open_folder

    return open_folder(name, url, metadata, options)


def _open_synthetic(name: str | None, url: str, metadata: str | None, options: dict[str, Any]) -> Source:
    from ingest.synthetic import open_synthetic

    _no_sidecar(url, metadata)
    return open_synthetic(name, url)


def _open_vectors(name: str | None, url: str, metadata: str | None, options: dict[str, Any]) -> VectorSource:
    from ingest.vector_files import open_vectors

    _no_sidecar(url, metadata)
    return open_vectors(name, url, options)


def _no_sidecar(url: str, metadata: str | None) -> None:
    if metadata is not None:
        raise BadInput(f"{url} takes no metadata file ({metadata}): leave --metadata out, or give a folder")


KINDS = {
    "": Kind("FOLDER, GLOB or URL", "image files, on a disk or any fsspec store", _open_folder),
    "synthetic": Kind("synthetic:[KEY=VALUE,...]", "the project's own rendered scenes", _open_synthetic),
    "vectors": Kind("vectors:FILE", "ready-made vectors: .npy, .fvecs or .parquet", _open_vectors),
}

_NAMED = re.compile(r"([A-Za-z0-9._-]+)=(.*)", re.DOTALL)


def open_source(
    text: str, metadata: str | None = None, options: Mapping[str, Any] | None = None
) -> Source | VectorSource:
    """Opens a source as a person writes it; the module's docstring lists the forms.

    Args:
        text: `[NAME=]URL`. A relative folder whose own name contains `=` is written `./a=b`.
        metadata: path or URL of a sidecar (CSV or Parquet), in place of `<root>/metadata.csv`.
        options: what fsspec needs besides the URL (endpoint, credentials).

    Raises:
        BadInput: it cannot be understood, or its kind refuses it.
        NotFound: there is no such folder or file.
    """
    named = _NAMED.fullmatch(text)
    name, url = (named[1], named[2]) if named else (None, text)
    if not url.strip() or "\0" in url:
        raise BadInput(f"{text!r} is no source: give {_forms()}")
    if name is not None and not name.strip("."):
        raise BadInput(f"{name!r} cannot be a source's name: use letters, digits, '-', '_' and '.'")
    prefix, colon, _ = url.partition(":")
    kind = KINDS[prefix if colon and prefix in KINDS else ""]
    return kind.open(name, url, metadata, dict(options or {}))


def _forms() -> str:
    return "; ".join(f"{kind.form} ({kind.purpose})" for kind in KINDS.values())


def default_name(url: str) -> str:
    """A source's name where none is given: the last component of its URL, other characters as `-`."""
    last = re.split(r"[/:\\]", url.rstrip("/"))[-1]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-")
    if not name.strip("."):
        raise BadInput(f"no name for the source can be taken from {url!r}: write NAME={url}")
    return name
