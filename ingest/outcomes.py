"""What became of an image: `ok`, or one reason of a closed set.

An outcome depends on the decoder's settings and limits, so it is stored with the features, not with the
listing. Failures that may pass (store, network) are never outcomes: they are retried, then raised.
"""

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """Why an image has features (`OK`), or why it has none."""

    OK = "ok"
    MISSING = "missing"  # it was listed, and is gone
    CHANGED = "changed"  # it is not the version that was listed: list again
    EMPTY = "empty"  # no bytes
    TOO_MANY_BYTES = "too_many_bytes"  # over the cap on the file's size
    UNKNOWN_FORMAT = "unknown_format"  # not one of the accepted formats
    UNSUPPORTED = "unsupported"  # an accepted format, a variant that the decoder does not read
    TOO_MANY_PIXELS = "too_many_pixels"  # over the cap on width x height
    TOO_SMALL = "too_small"  # a side is shorter than the recipe's least
    TRUNCATED = "truncated"  # the data ends early
    DAMAGED = "damaged"  # the data contradicts itself
    TOO_COSTLY = "too_costly"  # decoding went over its memory or CPU limit
    DECODER_DIED = "decoder_died"  # decoding crashed its process
    NOT_FINITE = "not_finite"  # a network gave values that are no numbers
    NO_FEATURES = "no_features"  # decoded, and nothing in it to describe


@dataclass(frozen=True)
class Rejected:
    """An image that has no features, why, and one deterministic sentence (no addresses, no times)."""

    reason: Outcome
    detail: str = ""
