"""Decoding of bytes from outside: the same pixels as `ingest.decode`, in a process that may die.

A hostile file can cost gigabytes, minutes or the process. So one child decodes, with its memory and its CPU
time (not wall time: a busy machine must not change outcomes) bounded by the kernel; when it dies, the image
has an outcome, a new child is started, and the next image is served. A child costs about 60 MB and a third
of a second to start.

Nothing from the child is believed: its replies are fixed numbers, text or pixels, of bounded length.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any, Self

import numpy as np

from ingest.decode import Box, Decoded, DecodeSettings, refuse_unread
from ingest.decoder_child import BAD_INPUT, PIXELS, READY, REJECTED, REPLY, REQUEST
from ingest.errors import BadInput, Unavailable
from ingest.outcomes import Outcome, Rejected

_LONGEST_TEXT = 10_000  # bytes; the child's sentences are far shorter
_PIPE_BYTES = 2**20  # a decoded image passes in one or two turns instead of twenty
_SECONDS_TO_START = 120.0

# One thread, and memory that goes back to the system when it is freed: what one image took must not count
# against the next. (Without the fixed threshold, glibc keeps ever larger blocks.)
_CHILD_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**20),
    "MALLOC_TRIM_THRESHOLD_": str(8 * 2**20),
}


@dataclass(frozen=True)
class _Sent:
    """An image that the child is at work on."""


class Decoder:
    """One decoding process, replaced when it dies. A context manager; pickling it carries the settings only.

    Calls from several threads are served one after the other. To decode in parallel, make several.
    """

    def __init__(self, settings: DecodeSettings) -> None:
        self.settings = settings
        self._lock = threading.RLock()
        self._child: _Child | None = None
        self._busy = False  # an image is with the child, or its reply is under way
        self._running_ahead = False
        self._closed = False
        self._running()  # starts now, and is waited for at the first image

    def __reduce__(self) -> tuple[Any, ...]:
        return Decoder, (self.settings,)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def child_pid(self) -> int:
        """The process id of the child, for those who watch it; another one after each death."""
        with self._lock:
            return self._running().pid

    def decode(self, data: bytes, box: Box | None = None) -> Decoded | Rejected:
        """What `ingest.decode.decode` returns and raises; besides, `too_costly` and `decoder_died`."""
        with self._lock:
            self._check_free()
            ticket = self._send(data, box)
            return self._receive() if isinstance(ticket, _Sent) else ticket

    def decode_ahead(self, images: Iterable[bytes | Rejected]) -> Iterator[Decoded | Rejected]:
        """Decodes images in order; the child is at the next one while the caller works on this one.

        What is `Rejected` already passes through in its place. Memory: two encoded images and two decoded
        ones, however many there are. While this runs, the decoder serves nothing else.

        It cannot deadlock: the next image is sent only after the reply to the one before has been read to
        its end, so the child is reading whenever we write, and nobody else writes to it.
        """
        with self._lock:
            self._check_free()
            self._running_ahead = True
        waiting: _Sent | Rejected | None = None
        try:
            for image in images:
                answer = self._receive() if isinstance(waiting, _Sent) else waiting
                waiting = self._send(image)
                if answer is not None:
                    yield answer
            if waiting is not None:
                yield self._receive() if isinstance(waiting, _Sent) else waiting
        finally:
            with self._lock:
                self._running_ahead = False
                if self._busy:  # abandoned half-way: the reply under way has no reader
                    self._stop()

    def close(self) -> None:
        """Ends the child. Closing twice is fine; decoding afterwards is not."""
        with self._lock:
            self._closed = True
            self._stop()

    # --- one exchange ---

    def _check_free(self) -> None:
        if self._running_ahead:
            raise BadInput("this decoder is in the middle of decode_ahead; use another Decoder beside it")

    def _send(self, image: bytes | Rejected, box: Box | None = None) -> _Sent | Rejected:
        if isinstance(image, Rejected):
            return image
        refused = refuse_unread(image, self.settings)
        if refused is not None:
            return refused
        with self._lock:
            if self._busy:  # an interrupt kept the last reply from being read: it must not answer this image
                self._stop()
            request = REQUEST.pack(len(image), box is not None, *(box or (0.0,) * 4))
            try:
                # A child that died idle, or before it had all of the image, died of something else.
                for _ in range(2):
                    if self._running().sends(request, image):
                        self._busy = True
                        return _Sent()
                    self._stop()
            except BaseException:  # half a request is no request
                self._stop()
                raise
            return Rejected(Outcome.DECODER_DIED, "the decoding process died before it had the image")

    def _receive(self) -> Decoded | Rejected:
        with self._lock:
            child = self._child
            if child is None:
                raise BadInput("the decoder was closed while it was decoding")
            try:
                answer = child.reply(self.settings)
            except _Died as death:
                self._stop()
                return death.rejected
            except BadInput:
                self._busy = False
                raise
            except BaseException:  # an interrupt in mid-reply: the rest of it must not answer the next image
                self._stop()
                raise
            self._busy = False
            return answer

    # --- the child's life ---

    def _running(self) -> "_Child":
        if self._closed:
            raise BadInput("this decoder is closed; make a new one")
        if self._child is not None and self._child.owner != os.getpid():
            self._child, self._busy = None, False  # after a fork: the child is our parent's
        if self._child is not None and not self._busy and not self._child.alive():
            self._stop()
        if self._child is None:
            self._child = _Child(self.settings)
        return self._child

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
        self._child, self._busy = None, False


class _Died(Exception):
    def __init__(self, reason: Outcome, detail: str) -> None:
        super().__init__(detail)
        self.rejected = Rejected(reason, detail)


class _Child:
    """The process and its two pipes."""

    def __init__(self, settings: DecodeSettings) -> None:
        self.owner = os.getpid()
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - what it says while it starts
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "ingest.decoder_child", settings.model_dump_json()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                bufsize=0,
                close_fds=True,
                env={**os.environ, **_CHILD_ENVIRONMENT},
            )
        except OSError as error:
            self.errors.close()
            raise Unavailable(
                f"could not start a decoding process ({type(error).__name__}: {error}); free memory or "
                "processes and run again"
            ) from error
        assert self.process.stdin is not None and self.process.stdout is not None
        self.to_child, self.from_child = self.process.stdin.fileno(), self.process.stdout.fileno()
        for pipe in (self.to_child, self.from_child):
            os.set_blocking(pipe, False)
            _widen(pipe)
        self.ready = False

    @property
    def pid(self) -> int:
        return self.process.pid

    def alive(self) -> bool:
        return self.process.poll() is None

    def sends(self, *parts: bytes) -> bool:
        """Hands over a request; False if the child died before it had all of it."""
        self._await_start()
        deadline = time.monotonic() + _SECONDS_TO_START
        try:
            for part in parts:
                self._transfer(memoryview(part), self.to_child, select.POLLOUT, os.write, deadline)
        except (BrokenPipeError, TimeoutError):
            return False
        return True

    def reply(self, settings: DecodeSettings) -> Decoded | Rejected:
        """The reply to the last request; `_Died`, with the outcome, if none comes."""
        # The kernel counts CPU time. Wall time is for a child that hangs without using any.
        deadline = time.monotonic() + 60 + 20 * settings.max_cpu_seconds
        try:
            head = memoryview(bytearray(REPLY.size))
            self._read(head, deadline)
            kind, *numbers = REPLY.unpack(head)
            if kind == PIXELS:
                return self._pixels(numbers, settings, deadline)
            return _said(kind, self._text(numbers[-1], deadline))
        except EOFError:
            raise self._died(settings) from None
        except TimeoutError:
            raise _Died(Outcome.DECODER_DIED, "the decoding process hung") from None
        except ValueError:
            raise _Died(Outcome.DECODER_DIED, "the decoding process sent what it never should") from None

    def kill(self) -> None:
        """Ends the process, which holds nothing worth saving, and reaps it."""
        for pipe in (self.process.stdin, self.process.stdout, self.errors):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        if self.owner == os.getpid():
            self.process.kill()
            self.process.wait()

    def _await_start(self) -> None:
        if self.ready:
            return
        hello = memoryview(bytearray(len(READY)))
        try:
            self._read(hello, time.monotonic() + _SECONDS_TO_START)
        except (EOFError, TimeoutError):
            self.errors.seek(0)
            said = self.errors.read(4_000).decode(errors="replace").strip()
            raise Unavailable(
                f"the decoding process does not start; it said: {said or 'nothing'}; check that "
                f"`{sys.executable} -P -m ingest.decoder_child` can import ingest and Pillow"
            ) from None
        self.ready = True

    def _pixels(self, numbers: list[int], settings: DecodeSettings, deadline: float) -> Decoded:
        width, height, x0, y0, x1, y1, rows, columns = numbers
        if min(rows, columns) < 1 or max(rows, columns) > settings.longest_side:
            raise ValueError
        pixels = np.empty((rows, columns, 3), np.uint8)
        self._read(memoryview(pixels.reshape(-1).data), deadline)
        return Decoded(pixels, width, height, (x0, y0, x1, y1))

    def _text(self, length: int, deadline: float) -> str:
        if length > _LONGEST_TEXT:
            raise ValueError
        text = bytearray(length)
        self._read(memoryview(text), deadline)
        return text.decode()

    def _died(self, settings: DecodeSettings) -> _Died:
        self.process.kill()  # it closed its pipe, so it is dying; do not wait for more than that
        if self.process.wait() == -signal.SIGPROF:
            return _Died(
                Outcome.TOO_COSTLY, f"decoding took over {settings.max_cpu_seconds:g} seconds of CPU time"
            )
        return _Died(Outcome.DECODER_DIED, "decoding ended its process")

    def _read(self, view: memoryview, deadline: float) -> None:
        def read_some(pipe: int, rest: memoryview) -> int:
            return os.readv(pipe, [rest])

        self._transfer(view, self.from_child, select.POLLIN, read_some, deadline)

    def _transfer(
        self,
        view: memoryview,
        pipe: int,
        event: int,
        move: Callable[[int, memoryview], int],
        deadline: float,
    ) -> None:
        """Reads or writes all of `view`; EOFError if the other end is gone, TimeoutError when it is late."""
        poll = select.poll()
        poll.register(pipe, event)
        while view:
            try:
                moved = move(pipe, view)
            except BlockingIOError:
                wait = deadline - time.monotonic()
                if wait <= 0:
                    raise TimeoutError from None
                poll.poll(1000 * min(wait, 60.0))
                continue
            if moved == 0:
                raise EOFError
            view = view[moved:]


def _said(kind: int, text: str) -> Rejected:
    if kind == BAD_INPUT:
        raise BadInput(text)
    if kind != REJECTED:
        raise ValueError
    reason, _, detail = text.partition("\n")
    return Rejected(Outcome(reason), detail)


def _widen(pipe: int) -> None:
    if sys.platform == "linux":
        import fcntl

        with contextlib.suppress(OSError):  # beyond a user's share of pipe memory: slower, no worse
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
