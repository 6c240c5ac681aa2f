"""Fan-out: one scan to every group of shards, the answers merged, and who did not answer.

No group escalates on its own: where a mask or filter leaves too few results, all groups read more lists
together, so that any grouping answers as the single index would.
"""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from index.filters import Filter
from index.group import Row, Scan, Scanned, enough, list_schedule, merge_scanned
from ingest.errors import ReseenError
from serve.service.batching import Lane, Reply
from serve.service.course import Course
from serve.service.deadline import Deadline
from serve.service.hedging import Absent

MORE_LISTS = "more-lists"  # the step that an answer goes without where a filter needs more than there is time
_ROUND_SHARE = 0.7  # part of the time left after which groups that are late may hold up no further round


@dataclass(frozen=True)
class Ask:
    """What is asked of all groups: the k best for a vector.

    vector: (d,) float32, L2-normalised. nprobe: lists to read first; None for the recipe's number.
    detail: how many of the best come with their row.
    """

    vector: Float32[np.ndarray, " d"]
    k: int
    nprobe: int | None = None
    where: Filter | None = None
    detail: int = 0


class FanOut:
    """Asks all groups. For one event loop."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.lanes = lanes

    async def scan(self, course: Course, ask: Ask, deadline: Deadline) -> Scanned | None:
        """The best of all groups that answer in time; None if none does.

        The course learns who is missing; who was missing before is not asked. Where there is no time for the
        further lists that a filter needs, the answer is what the first ones have, and the course says so.
        """
        view = course.view
        if not view.filled:
            return _NOTHING
        latest: dict[int, Scanned] = {}
        merged: Scanned | None = None
        first = ask.nprobe or view.generation.recipe.nprobe or 1
        for lists in list_schedule(first, view.lists):
            scan = Scan(ask.vector, ask.k, lists, ask.where, ask.detail)
            before = set(course.missing)
            patience = 1.0 if lists == view.lists else _ROUND_SHARE
            found = await self._round(course, scan, deadline, patience)
            if not found:
                if merged is not None:
                    course.missing = before
                    course.skip(MORE_LISTS)
                break
            for group in course.missing & latest.keys():  # no results of shards that are said to miss
                del latest[group]
            latest.update(found)
            with course.stage("merge"):
                merged = merge_scanned(list(latest.values()), ask.k)
            if enough(merged, ask.k):
                break
        return merged

    async def _round(
        self, course: Course, scan: Scan, deadline: Deadline, patience: float
    ) -> dict[int, Scanned]:
        groups = [group for group in course.view.filled if group not in course.missing]
        with course.stage("fan_out"):
            asked = [self.lanes[group].scan(course.view.number, scan) for group in groups]
            replies = await _replies(asked, scan.k, deadline, patience)
        found = {}
        for group, reply in zip(groups, replies, strict=True):
            if isinstance(reply, ReseenError):
                raise reply
            if isinstance(reply, Scanned):
                found[group] = reply
            else:
                _lacks(course, group, reply)
        if found:
            course.took("scan", max(each.seconds for each in found.values()))
        return found

    async def rows(
        self, course: Course, ids: Sequence[int], groups: Collection[int], deadline: Deadline
    ) -> dict[int, Row]:
        """The rows of some images, by id, from those of the groups that have them."""
        number, loop = course.view.number, asyncio.get_running_loop()
        asked = {
            loop.create_task(
                self.lanes[group].asker.ask(number, lambda replica: replica.rows(number, ids))
            ): group
            for group in course.view.filled
            if group in groups
        }
        found: dict[int, Row] = {}
        try:
            while asked and len(found) < len(ids):  # an image is in one group: the rest has no more
                done, _ = await asyncio.wait(
                    asked, timeout=deadline.left(), return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    break
                for task in done:
                    group, rows = asked.pop(task), task.result()
                    if isinstance(rows, Absent):
                        _lacks(course, group, rows)
                    else:
                        found.update((row.image_id, row) for row in rows if row is not None)
            if len(found) < len(ids):
                for group in asked.values():
                    _lacks(course, group, None)
        finally:
            for task in asked:
                task.cancel()
        return found

    def close(self) -> None:
        """Ends whatever is under way."""
        for lane in self.lanes:
            lane.close()


def _lacks(course: Course, group: int, why: Absent | Reply | None) -> None:
    if isinstance(why, Absent):
        course.lacks(group, why.reason, why.gone)
    else:
        course.lacks(group, None)


async def _replies(
    asked: "Sequence[asyncio.Future[Reply]]", k: int, deadline: Deadline, patience: float
) -> list[Reply | None]:
    """The replies in their order; None, and the work cancelled, for those that are late.

    Late is who has not answered by the deadline; or, where those who have must read more lists, when this
    part of the time is over. When the caller is cancelled, all are.
    """
    try:
        late = await _wait(asked, deadline.part(patience))
        if late and patience < 1:
            replies = [each.result() for each in asked if each not in late]
            scanned = [reply for reply in replies if isinstance(reply, Scanned)]
            if not scanned or enough(merge_scanned(scanned, k), k):
                await _wait(asked, deadline)
    finally:
        for each in asked:
            each.cancel()  # does nothing to those that are done
    return [None if each.cancelled() else each.result() for each in asked]


async def _wait(
    replies: "Sequence[asyncio.Future[Reply]]", deadline: Deadline
) -> "set[asyncio.Future[Reply]]":
    """Those that are not there by the deadline; nothing is cancelled."""
    late = {each for each in replies if not each.done()}
    if late and not deadline.over:
        _, late = await asyncio.wait(late, timeout=deadline.left())
    return late


_NOTHING = Scanned(np.empty(0, np.float32), np.empty(0, np.int64), (), 0, (), 0.0)
