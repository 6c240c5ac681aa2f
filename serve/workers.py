"""Blocking work of an event loop, in threads of its own and never more of it than was allowed.

A queue that grows is the end of a server: what is too much is refused at once.
"""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from serve.refusals import Overloaded

P = ParamSpec("P")
T = TypeVar("T")


class Workers:
    """A few threads for one kind of work. Used from one event loop; closed by whoever made it.

    Args:
        name: of the threads.
        threads: calls that run at once.
        waiting: calls that may wait besides; one more raises `Overloaded`.
        retry_after_s: what is told to whoever is refused.
    """

    def __init__(self, name: str, threads: int, waiting: int, retry_after_s: float = 1.0) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._room = threads + waiting
        self._taken = 0
        self._retry_after_s = retry_after_s

    async def run(self, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """The result of a call in a thread. Cancelled before it began, it never runs; then, it runs on."""
        if self._taken >= self._room:
            raise Overloaded(self._retry_after_s)
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[T] = loop.create_future()
        call = partial(contextvars.copy_context().run, partial(work, *arguments, **named))
        begun = self._pool.submit(call)
        self._taken += 1
        begun.add_done_callback(lambda _: loop.call_soon_threadsafe(self._done, begun, reply))
        try:
            return await reply
        except asyncio.CancelledError:
            begun.cancel()
            raise

    def _done(self, begun: "Future[T]", reply: "asyncio.Future[T]") -> None:
        """In the event loop, once for each call: the loop is woken once."""
        self._taken -= 1
        if reply.done():
            return
        if begun.cancelled():
            reply.cancel()
        elif (error := begun.exception()) is not None:
            reply.set_exception(error)
        else:
            reply.set_result(begun.result())

    def close(self) -> None:
        """Waits for nothing: what runs ends by itself, what waits is dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def drain(self) -> None:
        """As `close`, and waits for what runs."""
        self.close()
        await asyncio.to_thread(self._pool.shutdown, True)  # the loop turns on: what ends is told to it
