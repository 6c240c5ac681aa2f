"""Scans and their answers as bytes: what goes between the service and a replica, many in one message.

Plain: fixed headers, arrays as they lie in memory (little-endian), JSON for filters and rows. Nothing that
is read here can name code to run. Both ends are the same version of this package.
"""

import json
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from index.filters import Filter, filter_json, parse_filter
from index.group import Row, Scan, Scanned
from ingest.errors import ReseenError
from ingest.feature_reader import Place
from serve.failures import Failure, failure_of

_SCAN = struct.Struct("<iiiii")  # k, lists, detail, components, bytes of the filter
_FOUND = struct.Struct("<Bqdiii")  # 0, allowed, seconds, hits, bytes of the parts, bytes of the rows
_ERROR = struct.Struct("<Bi")  # 1, bytes of the failure


def encode_scans(scans: Sequence[Scan]) -> bytes:
    """A batch of scans as one message."""
    pieces: list[bytes] = []
    for scan in scans:
        where = b"" if scan.where is None else filter_json(scan.where).encode()
        vector = np.ascontiguousarray(scan.vector, "<f4")
        pieces += [
            _SCAN.pack(scan.k, scan.lists, scan.detail, len(vector), len(where)),
            vector.tobytes(),
            where,
        ]
    return b"".join(pieces)


def decode_scans(data: bytes) -> list[Scan]:
    """What `encode_scans` was given."""
    scans, at = [], 0
    while at < len(data):
        k, lists, detail, components, length = _SCAN.unpack_from(data, at)
        at += _SCAN.size
        vector = np.frombuffer(data, "<f4", components, at).copy()  # aligned, whatever came before
        at += vector.nbytes
        where = _parsed(data[at : at + length]) if length else None
        at += length
        scans.append(Scan(vector, k, lists, where, detail))
    return scans


def encode_scanned(answers: Sequence[Scanned | ReseenError]) -> bytes:
    """The answers to a batch, in its order; a scan that failed is answered by its error."""
    return b"".join(_error(each) if isinstance(each, ReseenError) else _found(each) for each in answers)


def decode_scanned(data: bytes) -> list[Scanned | ReseenError]:
    """What `encode_scanned` was given; errors as `serve.failures` tells them."""
    answers: list[Scanned | ReseenError] = []
    at = 0
    while at < len(data):
        at, answer = _read_error(data, at) if data[at] else _read_found(data, at)
        answers.append(answer)
    return answers


def _found(found: Scanned) -> bytes:
    names = list(dict.fromkeys(place.part for place in found.places))
    numbers = {name: number for number, name in enumerate(names)}
    places = np.array([(numbers[part], row) for part, row in found.places], "<i8")
    parts = "\n".join(names).encode()
    rows = _dumped(
        [[row.image_id, *row.place, row.source, row.key, dict(row.metadata)] for row in found.rows]
    )
    head = _FOUND.pack(0, found.allowed, found.seconds, len(found.image_ids), len(parts), len(rows))
    ids, scores = np.asarray(found.image_ids, "<i8"), np.asarray(found.scores, "<f4")
    return b"".join([head, ids.tobytes(), scores.tobytes(), places.tobytes(), parts, rows])


def _read_found(data: bytes, at: int) -> tuple[int, Scanned]:
    _, allowed, seconds, hits, parts_bytes, rows_bytes = _FOUND.unpack_from(data, at)
    at += _FOUND.size
    ids = np.frombuffer(data, "<i8", hits, at)
    at += ids.nbytes
    scores = np.frombuffer(data, "<f4", hits, at)
    at += scores.nbytes
    numbers = np.frombuffer(data, "<i8", 2 * hits, at)
    at += numbers.nbytes
    parts = data[at : at + parts_bytes].decode().split("\n")
    at += parts_bytes
    pairs = numbers.tolist()
    places = tuple(Place(parts[part], row) for part, row in zip(pairs[::2], pairs[1::2], strict=True))
    rows = json.loads(data[at : at + rows_bytes]) if rows_bytes > 2 else []
    detail = tuple(
        Row(image_id, Place(part, row), source, key, metadata)
        for image_id, part, row, source, key, metadata in rows
    )
    return at + rows_bytes, Scanned(scores, ids, places, allowed, detail, seconds)


def _error(error: ReseenError) -> bytes:
    told = _dumped(failure_of(error))
    return _ERROR.pack(1, len(told)) + told


def _read_error(data: bytes, at: int) -> tuple[int, ReseenError]:
    _, length = _ERROR.unpack_from(data, at)
    at += _ERROR.size
    return at + length, Failure(*json.loads(data[at : at + length])).error()


def _dumped(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


@lru_cache(maxsize=256)
def _parsed(where: bytes) -> Filter:
    """A filter that came over the wire. Cached: a batch repeats it, and an escalation asks again."""
    found = parse_filter(where.decode())
    assert found is not None
    return found
