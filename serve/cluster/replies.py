"""Errors as values: what a replica answers instead of raising, because an exception does not travel well.

Ray wraps what is raised far away, and an exception whose arguments are not its message cannot be pickled. The
class of the error and its message are all that the caller needs.
"""

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

from ingest.errors import BadInput, Conflict, Corrupt, NotFound, OverBudget, ReseenError, Unavailable
from serve.refusals import Overloaded

T = TypeVar("T")

_TREE = {error.__name__: error for error in (BadInput, NotFound, Conflict, Corrupt, Unavailable, OverBudget)}


@dataclass(frozen=True)
class Failed:
    """An error of the tree. `retry_after_s`: of `Overloaded` alone."""

    kind: str
    message: str
    retry_after_s: float | None = None

    def error(self) -> ReseenError:
        if self.retry_after_s is not None:
            return Overloaded(self.retry_after_s)
        return _TREE[self.kind](self.message)


async def replied(work: Awaitable[T]) -> T | Failed:
    """What some work gives, or the error of the tree that it raises; other exceptions are bugs, and pass."""
    try:
        return await work
    except Overloaded as error:
        return Failed("OverBudget", str(error), error.retry_after_s)
    except ReseenError as error:
        kind = next((name for name, known in _TREE.items() if isinstance(error, known)), "Unavailable")
        return Failed(kind, str(error))
