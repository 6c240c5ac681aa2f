"""The errors a caller can act on, one class for each decision.

    ReseenError
    ├── BadInput      what was asked cannot be done: change the request
    ├── NotFound      it is not there: check the name, or make it first
    ├── Conflict      somebody else got there first: look again, then decide
    ├── Corrupt       the bytes are not those that were written: restore or rebuild the object
    ├── Unavailable   the store or the network did not answer: the same call may work later
    └── OverBudget    a stated limit (memory, time, share of rejects) was reached: raise it or ask for less

A message says what happened, where, and what to do. Problems of single images are not errors but
outcomes (`ingest.outcomes`).
"""


class ReseenError(Exception):
    """The root of all errors that Reseen raises on purpose."""


class BadInput(ReseenError):
    """The caller's mistake; the same call will fail again."""


class NotFound(ReseenError):
    """Something named by the caller, or needed by what was named, does not exist."""


class Conflict(ReseenError):
    """Another writer committed first, and the two changes cannot be united."""


class Corrupt(ReseenError):
    """An object's bytes differ from what its writer recorded."""


class Unavailable(ReseenError):
    """The store did not do it now (network, credentials, no space); nothing half-written is visible."""


class OverBudget(ReseenError):
    """A limit the caller set was reached."""
