"""Laws of digests and sealed records."""

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.errors import Corrupt
from ingest.records import (
    canonical_json,
    digest_of,
    digest_of_bytes,
    image_identity,
    seal,
    sha256,
    unseal,
)

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abcé", max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
records = st.dictionaries(st.text("abcdé", min_size=1, max_size=4), values, max_size=4)

RECORD = {"number": 42, "parts": ["a", "é"], "gate": {"recall": 0.875, "passed": True}, "parent": None}


@given(records)
def test_a_record_comes_back(record: dict[str, Any]) -> None:
    assert unseal(seal(record), "x") == record


@given(records)
def test_the_order_of_keys_does_not_matter(record: dict[str, Any]) -> None:
    backwards = dict(reversed(record.items()))
    assert canonical_json(backwards) == canonical_json(record)
    assert seal(backwards) == seal(record)
    assert digest_of(backwards) == digest_of(record)


@given(records, records)
def test_other_records_have_other_digests(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert (digest_of(a) == digest_of(b)) == (canonical_json(a) == canonical_json(b))


def test_canonical_json_is_one_known_spelling() -> None:
    assert canonical_json({"b": [1, 2.5], "a": "é"}) == '{"a":"é","b":[1,2.5]}'.encode()
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            canonical_json(value)


def test_every_changed_byte_is_refused_by_name() -> None:
    sealed = seal(RECORD)
    for at in range(len(sealed)):
        for mask in (0x01, 0x20, 0x80):
            damaged = bytearray(sealed)
            damaged[at] ^= mask
            with pytest.raises(Corrupt, match="generations/7"):
                unseal(bytes(damaged), "generations/7")


def test_every_shortened_or_lengthened_record_is_refused() -> None:
    sealed = seal(RECORD)
    for data in [*(sealed[:n] for n in range(len(sealed))), sealed + b" ", sealed + sealed, b"\n" + sealed]:
        with pytest.raises(Corrupt):
            unseal(data, "x")


@pytest.mark.parametrize(
    "data",
    [
        b"[]",
        b"{}",
        b'"text"',
        b"\xff\xfe",
        b"[" * 100_000,
        json.dumps(json.loads(seal(RECORD))).encode(),  # another spelling, spaces
        seal(RECORD).replace(b'{"checksum"', b'{"checksum":"","checksum"'),
        seal({**RECORD, "x": 1.0}).replace(b'"x":1.0', b'"x":NaN'),
    ],
)
def test_what_is_no_sealed_record_is_refused(data: bytes) -> None:
    with pytest.raises(Corrupt):
        unseal(data, "x")


def test_a_record_is_sealed_once() -> None:
    with pytest.raises(ValueError, match="sealed once"):
        seal({"checksum": "x"})


@given(st.binary())
def test_digests_are_the_head_of_the_sha256(data: bytes) -> None:
    assert sha256(data) == sha256(memoryview(data)) == hashlib.sha256(data).hexdigest()
    assert digest_of_bytes(data) == hashlib.sha256(data).hexdigest()[:32]


names = st.text(st.characters(exclude_characters="\0"))  # surrogates, too: file names that are not UTF-8


@given(names, names)
def test_an_identity_fits_and_repeats(source: str, key: str) -> None:
    try:
        image_id, check = image_identity(source, key)
    except UnicodeEncodeError:  # surrogates that no file name gives
        assert not all(0xDC80 <= ord(c) <= 0xDCFF for c in source + key if 0xD800 <= ord(c) <= 0xDFFF)
        return
    assert 0 <= image_id < 2**63
    assert -(2**63) <= check < 2**63
    assert image_identity(source, key) == (image_id, check)


def test_identities_tell_source_and_key_apart() -> None:
    pairs = [("a", "b/c"), ("a/b", "c"), ("ab", "c"), ("a", "bc"), ("b/c", "a"), ("", "ab"), ("ab", "")]
    assert len({image_identity(*pair) for pair in pairs}) == len(pairs)


def test_an_identity_never_changes() -> None:
    """It names images in every gallery ever written. 63 and 64 bits of sha256(source, NUL, key)."""
    hashed = int(hashlib.sha256(b"holidays\x00100000.jpg").hexdigest(), 16)
    unsigned = (hashed >> 128) & (2**64 - 1)
    assert image_identity("holidays", "100000.jpg") == (
        hashed >> 193,
        unsigned - 2**64 if unsigned >= 2**63 else unsigned,
    )
    hashed_bytes = hashlib.sha256(b"s\0\xff.jpg").digest()
    assert image_identity("s", "\udcff.jpg")[0] == int.from_bytes(hashed_bytes[:8], "big") // 2
