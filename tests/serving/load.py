"""A load for a running server, from a process of its own: `python -m tests.serving.load --help`.

Open loop: requests leave at a steady rate whatever becomes of them, as from many people who do not know of
each other. Closed loop: each of so many clients asks again as soon as it has its answer. Nothing is repeated:
every status is what is wanted to know.
"""

import argparse
import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from tests.serving.connections import Pool, Prepared, prepared
from tests.serving.records import Record, Summary, record_of, summaries, summary

_TICK_S = 0.001  # of the event loop's timers
_LOOK_S = 0.1  # between two looks whether to stop
_BOUNDARY = "reseen-load-3b9f1c"


@dataclass(frozen=True)
class Stream:
    """Requests of one kind, in turn for ever, so many a second."""

    requests: Sequence[Prepared]
    rate: float


class Load:
    """Sends requests and keeps their records.

    Args:
        pool: where to. give_up_s: a request without an answer by then is recorded with status 0.
        keep: what is done with each record as it comes.
    """

    def __init__(self, pool: Pool, give_up_s: float, keep: Callable[[Record], None]) -> None:
        self._pool, self._give_up_s, self._keep = pool, give_up_s, keep
        self._numbers = count()
        self._stopped = False

    def stop(self) -> None:
        """No further requests; those under way end."""
        self._stopped = True

    async def open_loop(self, streams: Sequence[Stream], seconds: float) -> None:
        """All streams side by side for some seconds, and until the last request has ended."""
        async with asyncio.TaskGroup() as group:
            for stream in streams:
                group.create_task(self._steady(stream, seconds, group))

    async def _steady(self, stream: Stream, seconds: float, group: asyncio.TaskGroup) -> None:
        begun, wall = time.perf_counter(), time.time()
        for number in range(int(seconds * stream.rate)):
            due = number / stream.rate
            await self._until(begun + due)
            if self._stopped:
                return
            asked = stream.requests[number % len(stream.requests)]
            group.create_task(self._one(asked, wall + due, min(begun + due, time.perf_counter())))

    async def _until(self, due: float) -> None:
        """Waits until a moment of the clock, as well as timers can tell, or until the load is stopped."""
        while (left := due - time.perf_counter()) > _TICK_S / 2 and not self._stopped:
            await asyncio.sleep(min(left, _LOOK_S))

    async def closed_loop(self, requests: Sequence[Prepared], clients: int, seconds: float) -> None:
        """So many clients, each asking as soon as it is answered, through the requests from another start."""
        end = time.perf_counter() + seconds
        async with asyncio.TaskGroup() as group:
            for client in range(clients):
                group.create_task(self._busy(requests, client * len(requests) // clients, end))

    async def _busy(self, requests: Sequence[Prepared], first: int, end: float) -> None:
        for number in count(first):
            if self._stopped or time.perf_counter() >= end:
                return
            await self._one(requests[number % len(requests)], time.time(), time.perf_counter())

    async def _one(self, asked: Prepared, start: float, begun: float) -> None:
        name = f"load-{next(self._numbers)}"
        try:
            async with asyncio.timeout(self._give_up_s):
                reply = await self._pool.ask(asked.named(name))
        except (OSError, TimeoutError) as error:  # one of them is the other
            took, why = time.perf_counter() - begun, f"{type(error).__name__}: {error}"
            self._keep(Record(asked.kind, asked.query, name, start, took, 0, error=why))
            return
        took = time.perf_counter() - begun
        self._keep(record_of(asked.kind, asked.query, name, start, took, reply))


def vector_requests(
    pool: Pool, vectors: np.ndarray, options: dict[str, Any], key: str | None = None
) -> list[Prepared]:
    """A search by JSON for each row of (n, d) vectors; `options` are fields of the request."""
    bodies = (json.dumps({"vectors": [row.tolist()], **options}).encode() for row in vectors)
    return [
        prepared(pool, "vector", row, "/v1/search", "application/json", body, key)
        for row, body in enumerate(bodies)
    ]


def image_requests(
    pool: Pool, images: Sequence[bytes], options: dict[str, Any], key: str | None = None
) -> list[Prepared]:
    """A search by a form for each image."""
    request = json.dumps(options).encode()
    return [
        prepared(
            pool,
            "image",
            number,
            "/v1/search/upload",
            f"multipart/form-data; boundary={_BOUNDARY}",
            _form(image, request),
            key,
        )
        for number, image in enumerate(images)
    ]


def _form(image: bytes, request: bytes) -> bytes:
    def part(name: str, kind: str, data: bytes) -> bytes:
        head = f"--{_BOUNDARY}\r\nContent-Disposition: form-data; {name}\r\nContent-Type: {kind}\r\n\r\n"
        return head.encode() + data + b"\r\n"

    image_part = part('name="image"; filename="query"', "application/octet-stream", image)
    return image_part + part('name="request"', "application/json", request) + f"--{_BOUNDARY}--\r\n".encode()


def run(main: Callable[[], Any]) -> Any:
    """Runs a coroutine function on uvloop: a third less work a request."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


# -- the command ------------------------------------------------------------------------------------------


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.serving.load", description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--key-file", type=Path, help="holds an API key")
    parser.add_argument("--vectors", type=Path, help="(n, d) as .npy: queries in turn")
    parser.add_argument("--rate", type=float, default=20.0, help="vector queries a second")
    parser.add_argument(
        "--image", type=Path, action="append", default=[], help="query image; may be repeated"
    )
    parser.add_argument("--image-rate", type=float, default=1.0, help="image queries a second")
    parser.add_argument("--clients", help="closed loop instead, with so many clients in turn: 1,4,16")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="of the load, or of each number of clients"
    )
    parser.add_argument(
        "--give-up", type=float, default=30.0, help="seconds after which no answer is awaited"
    )
    parser.add_argument("--request", type=json.loads, default={}, help='fields of each: {"top": 10}')
    parser.add_argument("--image-request", type=json.loads, help="the same for images; default: --request")
    parser.add_argument("--out", type=Path, help="records as JSON lines, as they come")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> list[Summary]:
    """Runs a load and prints a summary a line; returns them."""
    given = _arguments(words)
    pool = Pool(given.url)
    key = given.key_file.read_text().strip() if given.key_file else None
    vectors = [] if given.vectors is None else np.load(given.vectors)
    of_images = given.request if given.image_request is None else given.image_request
    by_vector = vector_requests(pool, vectors, given.request, key)
    by_image = image_requests(pool, [image.read_bytes() for image in given.image], of_images, key)
    if not by_vector and not by_image:
        sys.exit("nothing to ask with: give --vectors or --image")
    if given.out is not None:
        given.out.write_text("")
    told: list[Summary] = []
    for found in run_all(given, pool, by_vector, by_image):
        print(found.line(), flush=True)
        told.append(found)
    return told


def run_all(
    given: argparse.Namespace, pool: Pool, by_vector: Sequence[Prepared], by_image: Sequence[Prepared]
) -> Iterator[Summary]:
    """The loads that arguments name, and a summary of each kind and number of clients."""
    if given.clients is None:
        streams = [Stream(by_vector, given.rate)] if by_vector else []
        streams += [Stream(by_image, given.image_rate)] if by_image else []
        yield from summaries(_recorded(given, pool, lambda load: load.open_loop(streams, given.seconds)))
        return
    for clients in map(int, given.clients.split(",")):
        for asked in filter(None, (by_vector, by_image)):
            records = _recorded(given, pool, lambda load: load.closed_loop(asked, clients, given.seconds))  # noqa: B023
            yield replace(summary(records), kind=f"{asked[0].kind} x{clients}")


def _recorded(given: argparse.Namespace, pool: Pool, ask: Callable[[Load], Any]) -> list[Record]:
    records: list[Record] = []
    written = 0

    def write() -> None:
        nonlocal written
        if given.out is not None and len(records) > written:
            with given.out.open("a") as file:
                file.writelines(record.line() + "\n" for record in records[written:])
            written = len(records)

    async def loaded() -> None:
        load = Load(pool, given.give_up, records.append)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, load.stop)
        task = asyncio.ensure_future(ask(load))
        while not task.done():
            await asyncio.wait([task], timeout=0.25)
            write()
        pool.close()
        await task

    run(loaded)
    write()
    return records


if __name__ == "__main__":
    main()
