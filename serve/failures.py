"""Errors as values: what travels instead of an exception, which does not travel well.

Ray wraps what is raised far away, and an exception whose arguments are not its message cannot be pickled. The
class of the error and its message are all that the caller needs.
"""

from collections.abc import Awaitable
from typing import NamedTuple, TypeVar

from ingest.errors import BadInput, Conflict, Corrupt, NotFound, OverBudget, ReseenError, Unavailable
from serve.refusals import Away, Overloaded

T = TypeVar("T")

_KINDS = {  # of two that fit, the first is told
    error.__name__: error for error in (Away, BadInput, NotFound, Conflict, Corrupt, Unavailable, OverBudget)
}


class Failure(NamedTuple):
    """An error. `kind`: its class. `retry_after_s`: of `Overloaded` alone, whose kind is `OverBudget`."""

    kind: str
    message: str
    retry_after_s: float | None = None

    def error(self) -> ReseenError:
        """What `failure_of` was given, or the class above it that callers tell apart."""
        if self.retry_after_s is not None:
            return Overloaded(self.retry_after_s)
        return _KINDS[self.kind](self.message)


def failure_of(error: ReseenError) -> Failure:
    """An error as a value."""
    kind = next((name for name, known in _KINDS.items() if isinstance(error, known)), "Unavailable")
    return Failure(kind, str(error), error.retry_after_s if isinstance(error, Overloaded) else None)


async def replied(work: Awaitable[T]) -> T | Failure:
    """What some work gives, or the error of ours that it raises; other exceptions are bugs, and pass."""
    try:
        return await work
    except ReseenError as error:
        return failure_of(error)
