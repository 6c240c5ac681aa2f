"""Errors that travel as values arrive as what they were, as far as callers tell them apart."""

import asyncio
import pickle

import pytest

from ingest.errors import BadInput, Conflict, Corrupt, NotFound, OverBudget, ReseenError, Unavailable
from ingest.outcomes import Outcome, Rejected
from serve.failures import Failure, failure_of, replied
from serve.refusals import Away, DeadlineExceeded, ImageRejected, NotReady, Overloaded


@pytest.mark.parametrize("kind", [BadInput, NotFound, Conflict, Corrupt, Unavailable, OverBudget, Away])
def test_an_error_arrives_with_its_class_and_message(kind: type[ReseenError]) -> None:
    arrived = pickle.loads(pickle.dumps(failure_of(kind("so it is: “x”")))).error()
    assert (type(arrived), str(arrived)) == (kind, "so it is: “x”")


def test_when_to_come_back_arrives_too() -> None:
    arrived = failure_of(Overloaded(2.5)).error()
    assert isinstance(arrived, Overloaded)
    assert (arrived.retry_after_s, str(arrived)) == (2.5, str(Overloaded(2.5)))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (NotReady("not yet"), Unavailable),
        (DeadlineExceeded("late"), OverBudget),
        (ImageRejected("a", Rejected(Outcome.TRUNCATED, "it ends early")), BadInput),
    ],
)
def test_an_error_below_those_arrives_as_the_one_above_it(
    error: ReseenError, kind: type[ReseenError]
) -> None:
    arrived = failure_of(error).error()
    assert (type(arrived), str(arrived)) == (kind, str(error))


def test_work_that_fails_is_answered_by_its_error_and_a_bug_is_raised() -> None:
    async def failing(error: Exception) -> int:
        raise error

    async def working() -> int:
        return 5

    assert asyncio.run(replied(working())) == 5
    assert asyncio.run(replied(failing(NotFound("b")))) == Failure("NotFound", "b")
    with pytest.raises(ZeroDivisionError):
        asyncio.run(replied(failing(ZeroDivisionError())))
