"""Several decoding processes as one: images in their order, decoded at the same time.

For whoever uses images up faster than one process decodes them, a GPU above all. Each image passes through
one `ingest.decoder.Decoder`, so pixels, limits, outcomes and deaths are those of one, whatever their number.

While `decode_ahead` runs there is one thread that reads, and one for each process that waits for it. The
source is read in a thread of its own because reading waits for object storage and the caller for its GPU: in
the caller's thread, the processes would wait for both. It is one thread because an iterator has one reader.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

from ingest.decode import Box, Decoded, DecodeSettings
from ingest.decoder import Decoder
from ingest.errors import BadInput
from ingest.outcomes import Rejected

_AHEAD = 2  # images in memory for each process: one that it is at, and one that is ready for it or from it
_SECONDS_BETWEEN_KILLS = 0.05

_CLOSED = "this decoder pool is closed; make a new one"


class DecoderPool:
    """So many decoding processes. A context manager; pickling it carries its two arguments only.

    One process is one `Decoder`, without threads. Each process costs about 60 MB and a third of a second to
    start, and may use `max_memory_mb` more. It can be used from several threads.
    """

    def __init__(self, settings: DecodeSettings, processes: int) -> None:
        """Starts the processes; they are waited for at the first images.

        Raises:
            BadInput: fewer than one process.
            Unavailable: the system starts no more processes.
        """
        if processes < 1:
            raise BadInput(f"{processes} decoding processes were asked for; give at least 1")
        self.settings, self.processes = settings, processes
        self._state = threading.Condition()
        self._closed = self._running_ahead = False
        self._stream: _Stream | None = None  # of decode_ahead, if there are several processes
        self._members: list[_Member] = []
        try:
            for _ in range(processes):
                self._members.append(_Member(settings))
        except BaseException:
            self.close()
            raise
        self._idle = list(self._members)

    def __reduce__(self) -> tuple[Any, ...]:
        return DecoderPool, (self.settings, self.processes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def decode(self, data: bytes, box: Box | None = None) -> Decoded | Rejected:
        """What `Decoder.decode` returns and raises; as many calls at a time as there are processes."""
        with self._state:
            self._state.wait_for(lambda: self._idle or self._running_ahead or self._closed)
            self._check_free()
            member = self._idle.pop()
        try:
            return member.decode(data, box)
        finally:
            with self._state:
                self._idle.append(member)
                self._state.notify_all()

    def decode_ahead(self, images: Iterable[bytes | Rejected]) -> Iterator[Decoded | Rejected]:
        """Decodes images in order, each process at one of them, while the caller works on the last one.

        What is `Rejected` already passes through in its place; what `images` raises is raised in its place.
        While this runs, the pool serves nothing else.

        Memory: 2 x `processes` images besides the last that the caller was given, each as its file's bytes,
        its pixels or, while it is decoded, both. `images` is asked for the next one only when there is room,
        and in a thread of its own (in the caller's if there is one process only).

        Leaving early (closing or dropping the iterator) ends the processes that are in the middle of an
        image, others start when they are needed, and waits for the one read of `images` that is under way.
        """
        with self._state:
            self._check_free()
            self._running_ahead = True
            self._state.notify_all()
        try:
            with self._state:  # calls of `decode` from other threads come to their end first
                self._state.wait_for(lambda: len(self._idle) == self.processes or self._closed)
            yield from self._in_one(images) if self.processes == 1 else self._in_several(images)
        finally:
            with self._state:
                self._running_ahead = False
                self._state.notify_all()

    def close(self) -> None:
        """Ends the processes and threads; a call of `decode` under way in another thread is finished first.

        Closing twice is fine; decoding afterwards is not.
        """
        with self._state:
            self._closed = True
            stream = self._stream
            self._state.notify_all()
        if stream is not None:
            stream.stop()
        for member in self._members:
            member.close()

    def _in_several(self, images: Iterable[bytes | Rejected]) -> Iterator[Decoded | Rejected]:
        self._stream = stream = _Stream(self._members)
        try:
            yield from stream.answers(images)
        finally:
            stream.stop()
            self._stream = None

    def _in_one(self, images: Iterable[bytes | Rejected]) -> Iterator[Decoded | Rejected]:
        failures: list[Exception] = []

        def until_it_fails() -> Iterator[bytes | Rejected]:
            try:
                yield from images
            except Exception as error:  # to be raised after the answer to the image before
                failures.append(error)

        yield from self._members[0].decode_ahead(until_it_fails())
        if failures:
            raise failures[0]

    def _check_free(self) -> None:
        if self._closed:
            raise BadInput(_CLOSED)
        if self._running_ahead:
            raise BadInput("this decoder pool is in the middle of decode_ahead; use another one beside it")


class _Member(Decoder):
    """A decoder that another thread can tear away from its image."""

    def interrupt(self) -> None:
        """Kills the child, without the lock, which the thread that decodes holds until it has an answer."""
        if (child := self._child) is not None:
            child.process.kill()


@dataclass(eq=False)
class _Image:
    """An image between the source and the caller: its bytes, and later what became of it."""

    data: bytes = b""
    answer: Decoded | Rejected | BaseException | None = None


class _Stream:
    """One run of `decode_ahead`: what its threads share."""

    def __init__(self, members: list[_Member]) -> None:
        self._members = members
        self._room = _AHEAD * len(members)
        self._changed = threading.Condition()
        self._order: deque[_Image] = deque()  # read, and not yet handed out
        self._waiting: deque[_Image] = deque()  # of these, what no process has begun
        self._at_work: set[_Member] = set()
        self._all_read = False
        self._stopped = False
        self._threads: list[threading.Thread] = []

    def answers(self, images: Iterable[bytes | Rejected]) -> Iterator[Decoded | Rejected]:
        """Starts the threads, and hands out what they find. Whoever calls it calls `stop` afterwards."""
        self._start(self._read, images)
        for member in self._members:
            self._start(self._decode, member)
        while (image := self._next_in_order()) is not None:
            if isinstance(image.answer, BaseException):
                raise image.answer
            assert image.answer is not None
            yield image.answer

    def stop(self) -> None:
        """Ends the threads, wherever they are. Stopping twice is fine."""
        with self._changed:
            self._stopped = True
            self._order.clear()
            self._waiting.clear()
            self._changed.notify_all()
        while alive := [thread for thread in self._threads if thread.is_alive()]:
            with self._changed:
                for member in self._at_work:
                    member.interrupt()
            if threading.current_thread() in alive:
                return  # the collector dropped the iterator in one of these threads, maybe with the lock held
            # Again and again: a decoder may just have been about to start a process.
            alive[0].join(_SECONDS_BETWEEN_KILLS)

    def _start(self, work: Callable[[Any], None], argument: object) -> None:
        # Daemons: an iterator that nobody has closed must not keep the interpreter from ending.
        thread = threading.Thread(target=work, args=(argument,), name="reseen-decoder-pool", daemon=True)
        with self._changed:
            if not self._stopped:
                thread.start()
                self._threads.append(thread)

    # --- the caller's thread ---

    def _next_in_order(self) -> _Image | None:
        """The next image, once there is an answer; None after the last."""

        def ready() -> bool:
            if self._order:
                return self._order[0].answer is not None
            return self._all_read

        with self._changed:
            self._changed.wait_for(lambda: self._stopped or ready())
            if self._stopped:
                raise BadInput("the decoder pool was closed while it was decoding")
            if not self._order:
                return None
            self._changed.notify_all()  # there is room for another
            return self._order.popleft()

    # --- the reader's thread. No local variable keeps an image that others have let go, here and below. ---

    def _read(self, images: Iterable[bytes | Rejected]) -> None:
        try:
            source = iter(images)
            while self._has_room():
                self._take(next(source))
        except StopIteration:
            pass
        except BaseException as error:  # in its place, and the caller's to handle
            self._take(error)
        with self._changed:
            self._all_read = True
            self._changed.notify_all()

    def _has_room(self) -> bool:
        """Waits for room for one more image; False if none is wanted any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or len(self._order) < self._room)
            return not self._stopped

    def _take(self, found: bytes | Rejected | BaseException) -> None:
        with self._changed:
            if self._stopped:
                return
            if isinstance(found, Rejected | BaseException):
                self._order.append(_Image(answer=found))
            else:
                self._order.append(_Image(found))
                self._waiting.append(self._order[-1])
            self._changed.notify_all()

    # --- a thread for each process ---

    def _decode(self, member: _Member) -> None:
        while self._decode_one(member):
            pass

    def _decode_one(self, member: _Member) -> bool:
        """Decodes the next image that nobody has begun; False if there is none to come."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._waiting or self._all_read)
            if not self._waiting:
                return False
            image = self._waiting.popleft()
            self._at_work.add(member)
        answer: Decoded | Rejected | BaseException
        try:
            answer = member.decode(image.data)
        except BaseException as error:
            answer = error
        with self._changed:
            self._at_work.discard(member)
            image.data, image.answer = b"", answer
            self._changed.notify_all()
        return True
