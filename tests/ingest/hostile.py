"""A small corpus of malformed and hostile files, made here, with the outcome that each must have.

Outcomes are those under `LIMITS`, whose caps are low so that the costly cases stay quick.
"""

import gzip
import io
import struct
import tarfile
import zipfile
import zlib

import numpy as np
from PIL import Image

from ingest.decode import DecodeSettings
from ingest.outcomes import Outcome

LIMITS = DecodeSettings(
    longest_side=64, max_bytes=2_000_000, max_pixels=40_000_000, max_memory_mb=96, max_cpu_seconds=5
)


def photograph(width: int = 96, height: int = 64, seed: int = 0) -> Image.Image:
    """A picture with structure at several scales, the same for the same arguments."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """A picture as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG with any header over any data: `rows` is what the compressed part unpacks to."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(*tags: tuple[int, int, int, int], following: int = 0, count: int | None = None) -> bytes:
    """A little-endian TIFF of one directory, of (tag, type, count, value), and nothing else."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    number = len(tags) if count is None else count
    return b"II*\0" + struct.pack("<IH", 8, number) + entries + struct.pack("<I", following)


def _archive(kind: str) -> bytes:
    file = io.BytesIO()
    jpeg = encoded(photograph(), "JPEG")
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("../../evil.jpg", jpeg)
    else:
        with tarfile.open(fileobj=file, mode="w") as archive:
            entry = tarfile.TarInfo("../../evil.jpg")
            entry.size = len(jpeg)
            archive.addfile(entry, io.BytesIO(jpeg))
    return file.getvalue()


def _with_size(jpeg: bytes, width: int, height: int) -> bytes:
    """A JPEG whose frame header states another size."""
    at = jpeg.index(b"\xff\xc0")
    return jpeg[: at + 5] + struct.pack(">HH", height, width) + jpeg[at + 9 :]


def _grown_gif() -> bytes:
    """A GIF whose first frame is stated to be far larger than its canvas."""
    gif = bytearray(encoded(photograph().convert("P"), "GIF"))
    at = gif.index(struct.pack("<cHHHH", b",", 0, 0, 96, 64))
    gif[at + 5 : at + 9] = struct.pack("<HH", 65535, 65535)
    return bytes(gif)


def _large_webp(width: int, height: int) -> bytes:
    """A WebP file whose header states a canvas of any size."""
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunks = b"VP8X" + struct.pack("<II", 10, 0) + sides + _WEBP[12:]
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def _rows(width_bytes: int, height: int) -> bytes:
    return bytes((width_bytes + 1) * height)


def _animation(kind: str) -> bytes:
    frames = [photograph(seed=seed) for seed in range(3)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)


_WIDE = ((256, 3, 1, 64), (257, 3, 1, 64), (258, 3, 1, 8), (262, 3, 1, 1))
_JPEG, _PNG = encoded(photograph(), "JPEG"), encoded(photograph(), "PNG")
_GIF, _WEBP = encoded(photograph(), "GIF"), encoded(photograph(), "WEBP")
_TIFF, _BMP = encoded(photograph(), "TIFF"), encoded(photograph(), "BMP")
_BOMB_TEXT = b"Comment\0\0" + zlib.compress(bytes(20_000_000), 1)
_BOMB_PROFILE = b"profile\0\0" + zlib.compress(bytes(20_000_000), 1)

CORPUS: dict[str, tuple[bytes, Outcome]] = {
    "empty": (b"", Outcome.EMPTY),
    "one byte": (b"\xff", Outcome.UNKNOWN_FORMAT),
    "text named jpg": (b"hello world\n" * 50, Outcome.UNKNOWN_FORMAT),
    "text that begins with BM": (b"BMW builds cars, and this is no bitmap at all", Outcome.UNKNOWN_FORMAT),
    "html": (b"<html><script>alert(1)</script></html>", Outcome.UNKNOWN_FORMAT),
    "svg with an external entity": (
        b'<?xml version="1.0"?><!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>',
        Outcome.UNKNOWN_FORMAT,
    ),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n", Outcome.UNKNOWN_FORMAT),
    "zip with a path upwards": (_archive("zip"), Outcome.UNKNOWN_FORMAT),
    "tar with a path upwards": (_archive("tar"), Outcome.UNKNOWN_FORMAT),
    "gzip": (gzip.compress(_JPEG, mtime=0), Outcome.UNKNOWN_FORMAT),
    "too many bytes": (_JPEG + bytes(2_000_000), Outcome.TOO_MANY_BYTES),
    "jpeg with a tail of zeros": (_JPEG + bytes(1_000_000), Outcome.OK),
    "jpeg and zip in one": (_JPEG + _archive("zip"), Outcome.OK),
    "jpeg of three bytes": (_JPEG[:3], Outcome.TRUNCATED),
    "jpeg cut in the header": (_JPEG[:200], Outcome.TRUNCATED),
    "jpeg cut in the middle": (_JPEG[: len(_JPEG) * 2 // 3], Outcome.TRUNCATED),
    "jpeg without its last bytes": (_JPEG[:-8], Outcome.TRUNCATED),
    "jpeg stated gigantic": (_with_size(_JPEG, 65500, 65500), Outcome.TOO_MANY_PIXELS),
    "jpeg stated larger than it is": (_with_size(_JPEG, 960, 640), Outcome.OK),
    "jpeg of 12 bits": (_JPEG.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"), Outcome.UNSUPPORTED),
    "progressive jpeg of 324 bytes": (
        _with_size(
            encoded(Image.new("RGB", (16, 16)), "JPEG", progressive=True, subsampling=0).replace(
                b"\xff\xc2", b"\xff\xc0"
            ),
            6000,
            6000,
        ).replace(b"\xff\xc0", b"\xff\xc2"),
        Outcome.TOO_COSTLY,
    ),
    "png cut in the header": (_PNG[:20], Outcome.TRUNCATED),
    "png cut in the pixels": (_PNG[: len(_PNG) // 2], Outcome.TRUNCATED),
    "png with a hole in its pixels": (_PNG[:200] + b"\xff" * 50 + _PNG[250:], Outcome.DAMAGED),
    "png whose pixels are not compressed": (
        _PNG[:41] + b"\x11\x11" + _PNG[43:],
        Outcome.DAMAGED,
    ),
    "png stated gigantic": (png(65535, 32767, 8, 2, b"\0"), Outcome.TOO_MANY_PIXELS),
    "png stated 0 wide": (png(0, 64, 8, 0, b"\0"), Outcome.DAMAGED),
    "png bomb within the pixel cap": (png(6000, 6000, 8, 2, _rows(18000, 600)), Outcome.TOO_COSTLY),
    "png bomb in its text": (png(32, 32, 8, 0, _rows(32, 32), (b"zTXt", _BOMB_TEXT)), Outcome.TOO_COSTLY),
    "png bomb in its profile": (
        png(32, 32, 8, 0, _rows(32, 32), (b"iCCP", _BOMB_PROFILE)),
        Outcome.TOO_COSTLY,
    ),
    "png of 16 bits": (png(32, 32, 16, 0, _rows(64, 32)), Outcome.OK),
    "png of 1 x 1": (png(1, 1, 8, 0, _rows(1, 1)), Outcome.TOO_SMALL),
    "png of 1 x 10000": (png(1, 10000, 8, 0, _rows(1, 10000)), Outcome.TOO_SMALL),
    "png animated": (_animation("PNG"), Outcome.OK),
    "bmp stated gigantic": (
        _BMP[:18] + struct.pack("<ii", 3_000_000, 2_000_000) + _BMP[26:],
        Outcome.TOO_MANY_PIXELS,
    ),
    "bmp cut": (_BMP[: len(_BMP) // 2], Outcome.TRUNCATED),
    "bmp of an unknown compression": (_BMP[:30] + struct.pack("<I", 77) + _BMP[34:], Outcome.UNSUPPORTED),
    "gif animated": (_animation("GIF"), Outcome.OK),
    "gif with a frame larger than its canvas": (_grown_gif(), Outcome.TOO_MANY_PIXELS),
    "gif cut": (_GIF[: len(_GIF) // 2], Outcome.TRUNCATED),
    "gif without a frame": (_GIF[:10] + bytes(3) + b";", Outcome.DAMAGED),
    "webp animated": (_animation("WEBP"), Outcome.OK),
    "webp cut": (_WEBP[: len(_WEBP) // 2], Outcome.TRUNCATED),
    "webp cut in the header": (_WEBP[:22], Outcome.TRUNCATED),
    "webp large and flat": (_large_webp(6000, 6000), Outcome.TOO_COSTLY),
    "webp with a chunk of no kind": (_WEBP[:12] + b"ABCD" + _WEBP[16:], Outcome.DAMAGED),
    "tiff cut": (_TIFF[: len(_TIFF) // 2], Outcome.TRUNCATED),
    "tiff whose directories form a ring": (
        tiff(*_WIDE, (273, 4, 1, 0), (278, 3, 1, 64), (279, 4, 1, 4096), following=8) + bytes(5000),
        Outcome.OK,
    ),
    "tiff with 65535 tags stated": (tiff(*_WIDE, count=65535), Outcome.TRUNCATED),
    "tiff with a tag of 4 billion values": (
        tiff(*_WIDE, (273, 4, 1, 8), (279, 4, 0xFFFFFFFF, 8)),
        Outcome.TRUNCATED,
    ),
    "tiff without a size": (tiff((258, 3, 1, 8)), Outcome.DAMAGED),
    "tiff of a mode that is unknown": (
        tiff(*_WIDE[:2], (258, 3, 1, 7), (262, 3, 1, 9), (273, 4, 1, 8)),
        Outcome.UNSUPPORTED,
    ),
}
