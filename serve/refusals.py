"""Why a service does not answer: the errors that programs tell apart, each with what to do about it."""

from collections.abc import Sequence

from ingest.errors import BadInput, OverBudget, Unavailable
from ingest.outcomes import Outcome, Rejected


class Overloaded(OverBudget):
    """More is asked than can be answered in time. `retry_after_s`: when to come back, estimated."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(
            f"more searches are waiting than can be answered in time: try again in {retry_after_s:.1f} s"
        )
        self.retry_after_s = retry_after_s


class DeadlineExceeded(OverBudget):
    """The request's time was over before there was any answer."""


class PartialRefused(Unavailable):
    """Only part of an answer could be had, and the request wants all or nothing.

    coverage: rows searched / rows published. missing: digests of the shards that did not answer.
    skipped: steps that could not be done.
    """

    def __init__(self, coverage: float, missing: Sequence[str], skipped: Sequence[str] = ()) -> None:
        parts = [f"{len(missing)} shards did not answer (coverage {coverage:.3f})"] if missing else []
        parts += [f"these steps could not be done: {', '.join(skipped)}"] if skipped else []
        super().__init__(f"{'; '.join(parts)}: try again, or allow a partial answer (allow_partial)")
        self.coverage, self.missing, self.skipped = coverage, tuple(missing), tuple(skipped)


class NotReady(Unavailable):
    """Nothing can be searched now: no generation is loaded, or no group of shards answers."""


class Away(Unavailable):
    """A part of the server does not work now: the encoder, the reranker, a replica. The storage may be well.

    The message names the part, and is for callers: nothing of what its libraries said.
    """


class ImageRejected(BadInput):
    """A query image that cannot be used. `reason` is of a closed set; `detail` one sentence."""

    def __init__(self, name: str, rejected: Rejected) -> None:
        detail = f": {rejected.detail}" if rejected.detail else ""
        super().__init__(f"{name or 'the image'} cannot be searched with ({rejected.reason}){detail}")
        self.reason: Outcome = rejected.reason
        self.detail: str = rejected.detail
