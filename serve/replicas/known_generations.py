"""Generations that were read: what servers ask about at every request need not be fetched again.

A published generation never changes, so its record and manifests are read once, and are there while the store
is not.
"""

from collections import OrderedDict
from threading import Lock

from index.generation import Generation, read_generation
from ingest.gallery import Gallery

_KEPT = 4  # requests are pinned to the newest, or the one before


class KnownGenerations:
    """The generations of a gallery by number; those asked for last are kept. May be shared by threads."""

    def __init__(self, gallery: Gallery) -> None:
        self._gallery = gallery
        self._kept: OrderedDict[int, Generation] = OrderedDict()
        self._lock = Lock()

    def get(self, number: int) -> Generation:
        """A generation.

        Raises:
            NotFound: there is none, or it was collected. Corrupt: its record or a manifest is damaged.
            Unavailable: the store did not answer, and it was not asked for before.
        """
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
        generation = read_generation(self._gallery, number)
        with self._lock:
            self._kept[number] = generation
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return generation
