"""Names and checksums: what makes an object's name a promise about its content.

A *digest* is the first 32 hexadecimal digits of a sha256 (128 bits). Small JSON records carry their own
checksum and exist in exactly one spelling (canonical JSON), so that any changed byte is refused.
"""

import hashlib
import json
from typing import Any

from ingest.errors import Corrupt

DIGEST_LENGTH = 32


def sha256(data: bytes | memoryview) -> str:
    """The full sha256 of some bytes, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: Any) -> bytes:
    """The one spelling of a JSON value: sorted keys, no spaces, UTF-8, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def digest_of(value: Any) -> str:
    """The digest of a JSON value, the name of work whose settings and inputs it describes."""
    return sha256(canonical_json(value))[:DIGEST_LENGTH]


def digest_of_bytes(data: bytes | memoryview) -> str:
    """The digest of some bytes, the name of an object that is named by its content."""
    return sha256(data)[:DIGEST_LENGTH]


def seal(record: dict[str, Any]) -> bytes:
    """Canonical JSON of a record with its own checksum added under `checksum`."""
    if "checksum" in record:
        raise ValueError("a record is sealed once: it has a checksum already")
    return canonical_json({**record, "checksum": sha256(canonical_json(record))})


def unseal(data: bytes, path: str) -> dict[str, Any]:
    """The record that `seal` wrote; `Corrupt`, naming `path`, unless every byte is as written."""
    try:
        record = json.loads(data)
        if not isinstance(record, dict):
            raise TypeError("not an object")
        stated = record.pop("checksum")
        intact = seal(record) == data and stated == sha256(canonical_json(record))
    except (ValueError, TypeError, KeyError, RecursionError):
        intact = False
    if not intact:
        raise Corrupt(f"{path} is damaged: its bytes do not match its own checksum; restore it from a copy")
    return record  # type: ignore[no-any-return, unused-ignore]


def image_identity(source: str, key: str) -> tuple[int, int]:
    """The id of an image and a check value that tells two keys with one id apart.

    Args:
        source: the source's name, as it stands in the catalogue.
        key: the image's path relative to the source's root, with forward slashes.

    Returns:
        `(image_id, check)`: a 63-bit non-negative and a 64-bit signed integer, both from one sha256 of
        name and key, so that they are the same on every store.
    """
    hashed = hashlib.sha256(encode_key(f"{source}\0{key}")).digest()
    return int.from_bytes(hashed[:8], "big") >> 1, int.from_bytes(hashed[8:16], "big", signed=True)


def encode_key(key: str) -> bytes:
    """A source's key as it is stored; file names that are not UTF-8 keep their bytes."""
    return key.encode("utf-8", "surrogateescape")


def decode_key(key: bytes) -> str:
    """The inverse of `encode_key`."""
    return key.decode("utf-8", "surrogateescape")
