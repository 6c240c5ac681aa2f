"""One replica of a group of shards: generations side by side in memory, checked before they answer.

Whoever calls (`serve.replicas.embedded`, `serve.cluster.app`) brings the threads. At most two generations
are loaded: the one that is served and its successor; what both hold is in memory once (`index.group`).
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np

from index.cache import Cache
from index.generation import Generation, read_generation
from index.group import Row, Scan, Scanned, ShardGroup, assign_shards, new_bytes, open_group
from index.projection import l2_normalised
from ingest.errors import BadInput, Corrupt, NotFound, OverBudget, ReseenError
from ingest.gallery import Gallery
from serve.backend import GroupState
from serve.query import version_warning
from serve.wire import decode_scans, encode_scanned

logger = logging.getLogger(__name__)

MOST_LOADED = 2
IDLE_S = 30.0  # a generation that nobody scanned for so long may be dropped
_CHECK_K = 10


@dataclass
class _Loaded:
    """A generation in memory. `last`: when it was last asked something; `order`: of loading."""

    group: ShardGroup
    seconds: float
    order: int
    last: float = -np.inf


class GroupServer:
    """Scans one group of a gallery's shards. May be shared by threads; loading does not hold up scans.

    Args:
        group, groups: which of how many (`index.group.assign_shards`).
        cache: local copies of index objects.
        memory_bytes: what lists and row tables of all loaded generations may take; None: no limit.
        clock: seconds, as `time.monotonic`.
    """

    def __init__(
        self,
        gallery: Gallery,
        group: int,
        groups: int,
        cache: Cache | None = None,
        memory_bytes: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 <= group < groups:
            raise BadInput(f"there is no group {group} of {groups}: they are numbered from 0")
        self.gallery, self.group, self.groups = gallery, group, groups
        self._cache, self._memory_bytes, self._clock = cache, memory_bytes, clock
        self._loaded: dict[int, _Loaded] = {}
        self._lock = Lock()  # of the table, held for moments
        self._loading = Lock()  # one load at a time
        self._loads = 0

    def load(self, generation: int, replace: bool = False, keep: int | None = None) -> GroupState:
        """See `serve.backend.Replica.load`.

        Besides, a third generation takes the place of the one that was asked longest ago or never, but of
        `keep` last. A load that fails leaves the other; after `replace`, the best of what was dropped for it
        is loaded again.
        """
        with self._loading:
            with self._lock:
                present = self._loaded.get(generation)
            if present is not None:
                return self._state(present)
            wanted = read_generation(self.gallery, generation)
            _warn_of_versions(wanted)
            return self._state(self._add(wanted, replace, keep))

    def states(self) -> list[GroupState]:
        """The loaded generations, oldest first; each has just answered a real query.

        Raises:
            Corrupt: one answers wrongly: the replica should be started again.
        """
        self._drop_superseded()
        with self._lock:
            loaded = list(self._loaded.values())
        for each in loaded:
            _check(each.group, each.group.generation.recipe.nprobe or 1)
        return [self._state(each) for each in loaded]

    def scan(self, generation: int, batch: bytes) -> bytes:
        """Answers a batch of scans (`serve.wire`), each as if it were alone; one's error is its answer.

        Raises:
            NotFound: that generation is not loaded, or not any more.
        """
        group = self._used(generation)
        return encode_scanned([_answer(group, scan) for scan in decode_scans(batch)])

    def rows(self, generation: int, image_ids: Sequence[int]) -> list[Row | None]:
        """The rows of some images; None for those that this group has not.

        Raises:
            NotFound: that generation is not loaded, or not any more.
        """
        return self._used(generation).rows_of(image_ids)

    def _used(self, generation: int) -> ShardGroup:
        with self._lock:
            loaded = self._loaded.get(generation)
            if loaded is None:
                there = ", ".join(map(str, self._loaded)) or "none"
                raise NotFound(
                    f"group {self.group} has not loaded generation {generation} (loaded: {there}): load it, "
                    "or ask for one of those"
                )
            loaded.last = self._clock()
            return loaded.group

    # -- loading ----------------------------------------------------------------------------------------

    def _add(self, wanted: Generation, replace: bool, keep: int | None) -> _Loaded:
        shards = assign_shards(wanted.shards, self.groups)[self.group]
        with self._lock:
            before = dict(self._loaded)
        by_use = sorted(
            before, key=lambda number: (number == keep, before[number].last, before[number].order)
        )
        leaving = by_use if replace else by_use[: max(0, len(before) + 1 - MOST_LOADED)]
        staying = [each for number, each in before.items() if number not in leaving]
        near = [each.group for each in staying]
        self._check_budget(wanted, new_bytes(wanted, shards, near), near, replace)
        with self._lock:
            for number in leaving:
                self._loaded.pop(number, None)
        del before  # what leaves is in memory no longer than needed
        start = time.perf_counter()
        try:
            group = open_group(self.gallery, wanted, shards, self._cache, near)
            _check(group, group.lists, thorough=True)
        except Exception:
            if replace and leaving:
                self._restore(leaving[-1])
            raise
        return self._keep(group, time.perf_counter() - start)

    def _keep(self, group: ShardGroup, seconds: float) -> _Loaded:
        with self._lock:
            self._loads += 1
            loaded = _Loaded(group, seconds, self._loads)
            self._loaded[group.generation.number] = loaded
            return loaded

    def _restore(self, number: int) -> None:
        """Loads again what made room for a generation that then failed to load."""
        try:
            known = read_generation(self.gallery, number)
            shards = assign_shards(known.shards, self.groups)[self.group]
            start = time.perf_counter()
            self._keep(open_group(self.gallery, known, shards, self._cache), time.perf_counter() - start)
        except ReseenError as error:
            logger.warning("group %d could not load generation %d again: %s", self.group, number, error)

    def _check_budget(self, wanted: Generation, new: int, near: Sequence[ShardGroup], replace: bool) -> None:
        if self._memory_bytes is None:
            return
        taken = _bytes_of(near)
        if taken + new <= self._memory_bytes:
            return
        advice = (
            "allow more memory, or cut the shards into more groups"
            if replace
            else "load it in the place of the other"
        )
        raise OverBudget(
            f"generation {wanted.number} takes {new / 2**20:.1f} MiB more in group {self.group}, "
            f"{taken / 2**20:.1f} MiB are taken, and {self._memory_bytes / 2**20:.1f} are allowed: {advice}"
        )

    def _drop_superseded(self) -> None:
        """Drops an older generation that nobody has asked for 30 s while a later one is asked."""
        now = self._clock()
        with self._lock:
            for number, each in list(self._loaded.items()):
                later = [other for other in self._loaded.values() if other.order > each.order]
                if now - each.last >= IDLE_S and any(other.last > each.last for other in later):
                    del self._loaded[number]

    def _state(self, loaded: _Loaded) -> GroupState:
        group = loaded.group
        with self._lock:
            older = [each.group for each in self._loaded.values() if each.order < loaded.order]
        return GroupState(
            generation=group.generation.number,
            group=self.group,
            shards=tuple(shard.shard for shard in group.shards),
            rows=group.rows,
            lists=group.lists,
            dim=group.dim,
            columns=dict(group.columns),
            code_bytes=_bytes_of([group, *older]) - _bytes_of(older),
            seconds=loaded.seconds,
        )


def _bytes_of(groups: Iterable[ShardGroup]) -> int:
    """Memory of some groups; what several share is counted once."""
    return sum({id(segment): segment.nbytes for group in groups for segment in group.segments}.values())


def _answer(group: ShardGroup, scan: Scan) -> Scanned | ReseenError:
    try:
        return group.scan(scan)
    except ReseenError as error:
        return error


def _check(group: ShardGroup, lists: int, thorough: bool = False) -> None:
    """Asks a group something and looks at the answer.

    Args:
        thorough: so many answers as there can be are wanted, and the way back from the first to its row;
            only with all lists.

    Raises:
        Corrupt: the answer cannot be right.
    """
    if group.rows == 0:
        return
    direction = np.random.default_rng(0).standard_normal((1, group.dim)).astype(np.float32)
    try:
        found = group.scan(Scan(l2_normalised(direction)[0], _CHECK_K, lists, None, 1))
    except BadInput as error:
        raise _wrong(group, str(error)) from error
    scores, ids = found.scores, found.image_ids
    if not np.isfinite(scores).all() or (np.abs(scores) > 1 + 1e-5).any():
        raise _wrong(group, "scores that are none")
    ahead, behind = slice(None, -1), slice(1, None)
    tied = scores[ahead] == scores[behind]
    if (scores[ahead] < scores[behind]).any() or (ids[ahead] >= ids[behind])[tied].any():
        raise _wrong(group, "answers out of order")
    if thorough and len(ids) != min(_CHECK_K, group.rows):
        raise _wrong(group, f"{len(ids)} answers where it has {group.rows} rows")
    if thorough and group.locate(int(ids[0])) != found.places[0]:
        raise _wrong(group, "a place that is not its image's")


def _wrong(group: ShardGroup, what: str) -> Corrupt:
    return Corrupt(
        f"generation {group.generation.number}, asked for the rows nearest to a vector, gives {what}: verify "
        "the gallery (reseen generations verify), and build again with --rebuild if it is damaged"
    )


def _warn_of_versions(generation: Generation) -> None:
    if warning := version_warning(generation.versions):
        logger.warning("generation %d: %s", generation.number, warning)
