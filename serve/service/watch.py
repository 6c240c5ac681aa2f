"""Looks at the gallery off the event loop: a store that does not answer stops no search."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from index.generation import read_generation
from ingest.catalogue import read_catalogue
from ingest.gallery import Gallery
from serve.query import version_warning
from serve.service.view import Reading

_THREADS = 2
T = TypeVar("T")


class Watch(Protocol):
    """The generations of a gallery. Any method may raise `Unavailable`."""

    async def numbers(self) -> list[int]:
        """Of all generations that were published, ascending."""

    async def read(self, number: int) -> Reading:
        """`NotFound`, `Corrupt` or `BadInput` where it cannot be served."""

    def close(self) -> None: ...


class GalleryWatch:
    """`Watch` of a gallery, in threads of its own."""

    def __init__(self, gallery: Gallery) -> None:
        self._gallery = gallery
        self._threads = ThreadPoolExecutor(_THREADS, "watch")

    async def numbers(self) -> list[int]:
        return await self._off_loop(self._gallery.generations.numbers)

    async def read(self, number: int) -> Reading:
        return await self._off_loop(lambda: self._read(number))

    def _read(self, number: int) -> Reading:
        generation = read_generation(self._gallery, number)
        catalogue = read_catalogue(self._gallery, generation.catalogue)
        return Reading(generation, dict(catalogue.sources), version_warning(generation.versions))

    async def _off_loop(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
