"""When a client asks again, and when it gives up. No connection and no waiting here: both clients drive it.

Every endpoint reads, or keeps something under the name of its content: to ask twice does no harm. So a call
is repeated when the connection breaks, when the server says that it is too busy or not able now (429, 502,
503, 504), and when a proxy says that its server is gone (408 and 500 without a problem document): after a
random part of a growing pause ("full jitter"), added to what Retry-After asks for; never beyond the call's
deadline.
"""

import random
import re
import time
import uuid
from collections.abc import Callable, Generator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from ingest.errors import BadInput
from serve.client.answers import Answer, problem_of
from serve.client.calls import Call, Request, request_of
from serve.client.errors import ServerProblem, TooLate, Unreachable

Value = TypeVar("Value")
AGAIN = frozenset({429, 502, 503, 504})
_AGAIN_OF_PROXIES = frozenset({"http-408", "http-500"})
_LONGEST_S = 1_000_000  # sockets take no more than so many
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class Retries:
    """How often and how soon. attempts: in all, 1 for no retries. first_s, most_s: of the growing pause."""

    attempts: int = 6
    first_s: float = 0.1
    most_s: float = 5.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or not 0 <= self.first_s <= self.most_s:
            raise BadInput(f"{self}: at least one attempt, and 0 <= first_s <= most_s")

    def pause_s(self, attempt: int, draw: float, asked: float | None) -> float:
        """Seconds to wait after attempt 1, 2, ...; `draw` is random in [0, 1), `asked` is of Retry-After."""
        return (asked or 0.0) + draw * min(self.most_s, self.first_s * 2.0 ** min(attempt - 1, 60))


@dataclass(frozen=True)
class Surroundings:
    """What the outcome depends on besides the server; tests give others.

    clock: seconds that only grow. now: the time of day. draw: random in [0, 1). new_id: of a request.
    """

    clock: Callable[[], float] = time.monotonic
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    draw: Callable[[], float] = random.random
    new_id: Callable[[], str] = lambda: uuid.uuid4().hex


REAL = Surroundings()


@dataclass(frozen=True)
class Send:
    """A request to send now, its answer to be whole at `deadline` of the clock, in `left_s` seconds."""

    request: Request
    request_id: str
    left_s: float
    deadline: float


@dataclass(frozen=True)
class Pause:
    """Seconds to wait."""

    seconds: float


@dataclass(frozen=True)
class Broken:
    """No answer came: the deadline passed (`late`), or the connection broke or was refused."""

    why: str
    late: bool = False


Talk = Generator[Send | Pause, Answer | Broken | None, Value]


def talk(
    call: Call[Value],
    server: str,
    retries: Retries,
    timeout_s: float,
    request_id: str | None = None,
    surroundings: Surroundings = REAL,
) -> Talk[Value]:
    """A call from its first attempt to its value. Each `Send` that it yields wants an `Answer` or `Broken`.

    Raises:
        ServerProblem: there is no value, and another attempt would not help or would be too late.
        BadInput: the deadline or the request's id is no such thing.
    """
    if not 0 < timeout_s <= _LONGEST_S:
        raise BadInput(f"a deadline of {timeout_s} seconds is none: give more than 0, up to {_LONGEST_S}")
    named = checked_id(request_id) if request_id is not None else surroundings.new_id()
    deadline = surroundings.clock() + timeout_s
    attempt = 0
    while True:
        attempt += 1
        left = deadline - surroundings.clock()
        if left <= 0:  # the pause took longer than it was told to
            raise _counted(_late(server, timeout_s, named), attempt - 1)
        outcome = yield Send(request_of(call, named, left), named, left, deadline)
        if isinstance(outcome, Answer) and outcome.status in call.fine:
            return call.read(outcome)
        problem = _problem(outcome, server, timeout_s, named, surroundings)
        pause = retries.pause_s(attempt, surroundings.draw(), problem.retry_after_s)
        passing = problem.status in AGAIN or problem.code in _AGAIN_OF_PROXIES
        again = passing or isinstance(problem, Unreachable)
        if not again or attempt == retries.attempts or surroundings.clock() + pause >= deadline:
            raise _counted(problem, attempt)
        yield Pause(pause)


def checked_id(request_id: str) -> str:
    """A request id that servers take over into their logs; `BadInput` otherwise."""
    if not _ID.fullmatch(request_id):
        raise BadInput("a request id is 1 to 64 letters, digits, dots, hyphens and underscores")
    return request_id


def _problem(
    outcome: Answer | Broken | None, server: str, timeout_s: float, named: str, surroundings: Surroundings
) -> ServerProblem:
    if isinstance(outcome, Answer):
        return problem_of(outcome, surroundings.now())
    if outcome is None or outcome.late:
        return _late(server, timeout_s, named)
    detail = f"{server} does not answer ({outcome.why}): check the URL, and that the server runs"
    return Unreachable(detail, "unreachable", request_id=named)


def _late(server: str, timeout_s: float, named: str) -> TooLate:
    detail = f"{server} did not answer within {timeout_s:g} s: ask for less, or wait longer"
    return TooLate(detail, "deadline-exceeded", request_id=named)


def _counted(problem: ServerProblem, attempts: int) -> ServerProblem:
    problem.attempts = attempts
    return problem
