"""What a client raises: a class for each decision its caller can take, below those of `ingest.errors`.

    ServerProblem            what a server answered instead of a result; ReseenError
    ├── RequestRefused       BadInput: change the request (400, 405, 413, 415, 422)
    │   └── ImageRefused     BadInput: the query image cannot be used; `reason`
    ├── NotAllowed           BadInput: give another key (401, 403)
    ├── NotThere             NotFound (404)
    ├── ServerBusy           OverBudget: ask less often (429)
    ├── TooLate              OverBudget: no answer within the deadline (504, or the client's own clock)
    ├── NotServing           Unavailable: the same call may work later (502, 503)
    │   ├── PartialAnswer    with `allow_partial=false`: `coverage`, `missing_shards`
    │   └── Unreachable      no answer at all: `status` is 0
    ├── ServerFault          a bug over there (500)
    └── UnreadableAnswer     not what a Reseen server answers

By the time one is raised, all retries that make sense were made (`serve.client.retries`).
"""

from collections.abc import Mapping
from typing import Any

from ingest.errors import BadInput, NotFound, OverBudget, ReseenError, Unavailable


class ServerProblem(ReseenError):
    """A problem document of a server, or what took its place.

    Attributes:
        code: stable, for programs; `http-<status>` without such a document, `unreachable` without any.
        status: of HTTP; 0 without an answer.
        detail: the server's sentence.
        request_id: what to look for in the server's log.
        extra: more for programs; it depends on the code.
        retry_after_s: how long the server asked to be left alone.
        attempts: how often the request was sent.
    """

    def __init__(
        self,
        detail: str,
        code: str,
        status: int = 0,
        request_id: str = "",
        extra: Mapping[str, Any] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail, self.code, self.status, self.request_id = detail, code, status, request_id
        self.extra: dict[str, Any] = dict(extra or {})
        self.retry_after_s = retry_after_s
        self.attempts = 1

    def __str__(self) -> str:
        about = [self.code, f"request {self.request_id}"] if self.request_id else [self.code]
        if self.attempts > 1:
            about.append(f"{self.attempts} attempts")
        return f"{self.detail} ({', '.join(about)})"


class RequestRefused(ServerProblem, BadInput):
    """The request cannot be answered as it is."""


class ImageRefused(RequestRefused):
    """A query image cannot be used."""

    @property
    def reason(self) -> str:
        """One of `ingest.outcomes.Reason`, or what a newer server says."""
        return str(self.extra.get("reason", ""))


class NotAllowed(ServerProblem, BadInput):
    """The key is missing, unknown, expired, or has not the scope."""


class NotThere(ServerProblem, NotFound):
    """An image, an upload or a path that the server has not."""


class ServerBusy(ServerProblem, OverBudget):
    """More is asked of the server than it can answer."""


class TooLate(ServerProblem, OverBudget):
    """There was no answer within the deadline."""


class NotServing(ServerProblem, Unavailable):
    """The server, or what it depends on, does not work now."""


class PartialAnswer(NotServing):
    """Only a part of the index answered, and a partial answer was not allowed."""

    @property
    def coverage(self) -> float | None:
        """Rows searched / rows published; None where the server does not say."""
        found = self.extra.get("coverage")
        return float(found) if isinstance(found, int | float) else None

    @property
    def missing_shards(self) -> list[str]:
        found = self.extra.get("missing_shards", self.extra.get("missing", []))
        return [str(shard) for shard in found] if isinstance(found, list) else []


class Unreachable(NotServing):
    """The connection was refused, or broke before an answer."""


class ServerFault(ServerProblem):
    """The server failed: a bug, which its log explains under the request's id."""


class UnreadableAnswer(ServerProblem):
    """An answer that no Reseen server gives: is the URL right?"""


BY_CODE: Mapping[str, type[ServerProblem]] = {
    "image-rejected": ImageRefused,
    "unauthorized": NotAllowed,
    "forbidden": NotAllowed,
    "not-found": NotThere,
    "overloaded": ServerBusy,
    "deadline-exceeded": TooLate,
    "partial-refused": PartialAnswer,
    "not-ready": NotServing,
    "store-unavailable": NotServing,
    "internal": ServerFault,
}
_BY_STATUS: Mapping[int, type[ServerProblem]] = {
    401: NotAllowed,
    403: NotAllowed,
    404: NotThere,
    429: ServerBusy,
    502: NotServing,
    503: NotServing,
    504: TooLate,
}


def class_of(code: str, status: int) -> type[ServerProblem]:
    """The class of a problem: by its code, for codes of newer servers by its status."""
    if code in BY_CODE:
        return BY_CODE[code]
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if status >= 500:
        return ServerFault
    return RequestRefused if status >= 400 else UnreadableAnswer
