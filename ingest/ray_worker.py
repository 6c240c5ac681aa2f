"""What runs inside a Ray worker process: the loaded function, and replies that travel as bytes.

A reply is `("ok", pickled result)` or `("error", pickled exception, traceback)`. Exceptions are replies,
not Ray errors, so that they arrive as they were raised; results are bytes, so that the caller owns the
arrays in them (Ray's own are read-only) and the object store is free again at once.
"""

import traceback
from collections.abc import Callable
from typing import Any

from ingest.engine import Worker, close_function
from ingest.packages import check_packages
from ingest.threads import set_threads

Reply = tuple[str, bytes] | tuple[str, bytes, str]


class WorkerHost:
    """Keeps one worker's loaded function in one process."""

    def __init__(self) -> None:
        self._function: Callable[[Any], Any] | None = None

    def start(self, worker: bytes, threads: int) -> Reply:
        def load() -> None:
            from ray import cloudpickle

            check_packages()
            set_threads(threads)  # before the heavy imports, for what they read as they load
            loaded: Worker[Any, Any] = cloudpickle.loads(worker)
            self._function = loaded.start()
            set_threads(threads)  # and after them, for what has counts of its own

        return reply(load)

    def run(self, task: bytes) -> Reply:
        def call() -> Any:
            from ray import cloudpickle

            assert self._function is not None, "the engine starts a worker before it sends a task"
            return self._function(cloudpickle.loads(task))

        return reply(call)

    def stop(self) -> Reply:
        function, self._function = self._function, None
        return reply(lambda: close_function(function))


def reply(action: Callable[[], Any]) -> Reply:
    """What an action returned or raised. Only what is not an `Exception` gets out and ends the process."""
    from ray import cloudpickle

    try:
        return "ok", cloudpickle.dumps(action())
    except Exception as error:
        text = traceback.format_exc()
        return "error", _pickled(error), text


def _pickled(error: Exception) -> bytes:
    """An exception as bytes; one that does not survive the way becomes a `RuntimeError` of its text."""
    from ray import cloudpickle

    try:
        data: bytes = cloudpickle.dumps(error)
        cloudpickle.loads(data)
    except Exception:
        data = cloudpickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return data
