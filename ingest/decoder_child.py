"""The decoding process: reads images from one pipe, writes pixels to another, within limits of its own.

`ingest.decoder.Decoder` starts it as `python -m ingest.decoder_child <settings as JSON>`. It opens no file,
writes none, and ends when its parent does (its input ends). What the frames look like:

    request   u64 length of the file, u8 whether a box follows, 4 x f64 box; then the file
    reply     u8 kind, 8 x u32, then: pixels (kind 1), or reason and detail (2), or a message (3), as UTF-8

The numbers of a reply are width, height, x0, y0, x1, y1 of `Decoded`, then height and width of its pixels;
for text the last one is its length in bytes.
"""

import os
import resource
import signal
import struct
import sys
import warnings
from pathlib import Path
from typing import BinaryIO

from ingest.decode import Box, Decoded, DecodeSettings, decode
from ingest.errors import BadInput
from ingest.outcomes import Rejected

REQUEST = struct.Struct("<QB4d")
REPLY = struct.Struct("<B8I")
PIXELS, REJECTED, BAD_INPUT = 1, 2, 3
READY = b"\x06"


def main() -> None:
    """Serves requests until the input ends."""
    settings = DecodeSettings.model_validate_json(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # the CPU timer ends the process, even inside C code
    warnings.simplefilter("ignore")
    requests, replies = _take_pipes()
    _limit(settings)
    replies.write(READY)
    # From here on libraries may write what they like: about hostile files they write megabytes.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    while (request := _read_request(requests)) is not None:
        signal.setitimer(signal.ITIMER_PROF, settings.max_cpu_seconds)
        head, body = _answer(*request, settings)
        signal.setitimer(signal.ITIMER_PROF, 0)
        try:
            _write(replies, head)
            _write(replies, body)
        except BrokenPipeError:  # the parent is gone
            return


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Moves the pipes away from 0 and 1, so that nothing a library prints gets between the frames."""
    requests, replies = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    return os.fdopen(requests, "rb"), os.fdopen(replies, "wb", buffering=0)


def _limit(settings: DecodeSettings) -> None:
    """Bounds memory, counted from what the interpreter and the libraries take, and forbids files."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    statm = Path("/proc/self/statm")
    if statm.exists():  # Linux; elsewhere address space cannot be limited, and the header caps remain
        base = int(statm.read_text().split()[0]) * resource.getpagesize()
        limit = base + settings.max_memory_mb * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _read_request(requests: BinaryIO) -> tuple[bytes, Box | None] | None:
    head = requests.read(REQUEST.size)
    if len(head) < REQUEST.size:
        return None
    length, boxed, *box = REQUEST.unpack(head)
    try:
        data = requests.read(length)
    except MemoryError:
        data = b""
    if len(data) < length:
        return None
    return data, (box[0], box[1], box[2], box[3]) if boxed else None


def _answer(data: bytes, box: Box | None, settings: DecodeSettings) -> tuple[bytes, bytes | memoryview]:
    try:
        answer = decode(data, settings, box)
    except BadInput as error:
        return _text(BAD_INPUT, str(error))
    if isinstance(answer, Rejected):
        return _text(REJECTED, f"{answer.reason}\n{answer.detail}")
    return _pixels(answer)


def _text(kind: int, text: str) -> tuple[bytes, bytes]:
    body = text.encode()
    return REPLY.pack(kind, *(0,) * 7, len(body)), body


def _pixels(answer: Decoded) -> tuple[bytes, memoryview]:
    head = REPLY.pack(PIXELS, answer.width, answer.height, *answer.box, *answer.pixels.shape[:2])
    return head, answer.pixels.reshape(-1).data


def _write(replies: BinaryIO, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[replies.write(rest) :]


if __name__ == "__main__":
    main()
