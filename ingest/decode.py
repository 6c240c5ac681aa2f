"""Bytes to pixels: the one decoder that gallery and query images go through.

What is read: JPEG, PNG, WebP, GIF (first frame), TIFF (first page) and BMP, told apart by content alone.
The order is fixed: size of the file, kind of file, size of the picture, and only then a pixel.

How pixels come about (all of it is part of `DECODE_VERSION`):

- EXIF orientation is applied. Damaged EXIF data counts as none. Colour profiles are ignored.
- 16-bit samples keep their high byte. 32-bit integer and floating point pictures have no agreed range:
  the least and greatest finite value of the whole picture become 0 and 255.
- CMYK becomes R = (255 - C)(255 - K) / 255 and so on; CMYK JPEG is taken to be inverted, as Adobe writes it.
- Transparent pictures lie on white: that is what the flattened copy of the same picture nearly always has,
  and gallery and query must agree. (White ink on nothing is lost; on grey, all contrasts would be halved.)
- A JPEG is decoded at 1/2, 1/4 or 1/8 by its own cosine transform while both sides stay as long as needed.
  The rest is a triangle filter as wide as the reduction (Pillow's BILINEAR), after a box filter where that
  reduction exceeds four. Geometry stays exact: the filter is told the fractional size. Measured by correct
  SIFT matches on planar scenes reduced 1.4, 2.2 and 4.4 times: 6,496, 5,649 and 1,897, against Lanczos'
  5,936, 4,978 and 1,504, whose ringing and aliasing differ from view to view; and it takes less time.

`decode` works in this process, with caps on what the header says only. Use `ingest.decoder.Decoder` for
bytes from outside.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile
from pydantic import BaseModel, ConfigDict, Field

from ingest.errors import BadInput
from ingest.outcomes import Outcome, Rejected

DECODE_VERSION = 1  # goes up whenever the same bytes and settings give other pixels or another outcome

Box = tuple[float, float, float, float]
WholeBox = tuple[int, int, int, int]


class DecodeSettings(BaseModel):
    """What is accepted and how large it comes out. All of it is in the features' digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    longest_side: int = Field(
        default=640,
        ge=1,
        le=16_384,
        description="pixels of the longest side after decoding; images are only ever reduced; the cost of "
        "what follows grows with its square",
    )
    shortest_side_least: int = Field(
        default=16, ge=1, description="pixels; an image with a shorter side, after reduction, is too_small"
    )
    max_bytes: int = Field(default=64 * 2**20, ge=1, description="bytes of a file; above: too_many_bytes")
    max_pixels: int = Field(
        default=100_000_000,
        ge=1,
        le=178_956_970,  # where Pillow itself refuses
        description="width x height that a header may state; above: too_many_pixels; 4 bytes each, twice",
    )
    max_memory_mb: int = Field(
        default=1024,
        ge=32,
        description="MiB that decoding one image may add to its process, the file's own bytes included; "
        "above: too_costly; each decoding process may reach it",
    )
    max_cpu_seconds: float = Field(
        default=20.0, gt=0, description="CPU seconds that decoding one image may take; above: too_costly"
    )


@dataclass(frozen=True)
class Decoded:
    """One image as pixels.

    pixels: (h, w, 3) uint8 RGB, after EXIF orientation, cropped to `box` and reduced.
    width, height: of the whole original after EXIF orientation, in pixels.
    box: (x0, y0, x1, y1), the part of the original that `pixels` shows, whole pixels, x1 and y1 excluded.
    """

    pixels: UInt8[np.ndarray, "h w 3"]
    width: int
    height: int
    box: WholeBox

    def to_original(self, points: Float32[np.ndarray, "n 2"]) -> Float32[np.ndarray, "n 2"]:
        """Points (x, y) of `pixels` in pixels of the original.

        In both frames the centre of the top-left pixel is (0, 0).
        """
        x0, y0, x1, y1 = self.box
        height, width = self.pixels.shape[:2]
        scale = np.array([(x1 - x0) / width, (y1 - y0) / height])
        moved = (np.asarray(points, np.float64) + 0.5) * scale - 0.5 + (x0, y0)
        return np.asarray(moved, np.float32)


def decode(data: bytes, settings: DecodeSettings, box: Box | None = None) -> Decoded | Rejected:
    """Decodes one image in this process.

    Args:
        data: the file's bytes; its name does not matter.
        settings: caps and sizes. `max_cpu_seconds` and true memory are watched by `Decoder` only; here
            memory is judged by the header where libraries hide their running out of it.
        box: (x0, y0, x1, y1) in pixels of the original after EXIF orientation; only this part is returned.
            It grows to whole pixels and is clipped to the image.

    Returns:
        The pixels, or why there are none.

    Raises:
        BadInput: the box is empty, not finite or outside the image.
    """
    refused = refuse_unread(data, settings)
    if refused is not None:
        return refused
    source = _Source(data)
    try:
        return _decode(source, settings, box)
    except _Refused as refusal:
        return refusal.rejected
    except BadInput:
        raise
    except Exception as error:  # Pillow raises a dozen kinds on malformed files
        return _explain(error, source)


def refuse_unread(data: bytes, settings: DecodeSettings) -> Rejected | None:
    """What can be refused by length and first bytes alone, before any library sees the file."""
    if not data:
        return Rejected(Outcome.EMPTY, "the file has no bytes")
    if len(data) > settings.max_bytes:
        return Rejected(Outcome.TOO_MANY_BYTES, f"{len(data)} bytes; the limit is {settings.max_bytes}")
    if _plugin_of(data) is None:
        return Rejected(Outcome.UNKNOWN_FORMAT, "not a JPEG, PNG, WebP, GIF, TIFF or BMP file")
    return None


class _Refused(Exception):
    def __init__(self, reason: Outcome, detail: str) -> None:
        super().__init__(detail)
        self.rejected = Rejected(reason, detail)


class _Source(io.BytesIO):
    """The file's bytes, and whether the decoder wanted bytes beyond their end.

    Pillow says in a dozen ways that a file ends early; what it asked for says so in one.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.data = data
        self.ran_out = False

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        # Pixels are read in blocks of MAXBLOCK: the last may be short, and only an empty one is a lack.
        if size is not None and len(found) < size and (not found or size != ImageFile.MAXBLOCK):
            self.ran_out = True
        return found


def _decode(source: _Source, settings: DecodeSettings, box: Box | None) -> Decoded:
    image = _open(source, settings)
    # A JPEG's header says how it is turned. A PNG may say so behind its pixels (asking earlier loads them and
    # hides how that went), and a TIFF is turned by Pillow while it loads. Nothing is ever loaded twice.
    by_header = isinstance(image, JpegImageFile)
    if not by_header:
        _load(image, settings)
    turn = _turn_of(image)
    plan = _plan(image.size, turn, settings, box)
    factor = 1
    if by_header:
        factor = _reduce_in_codec(image, plan)
        _load(image, settings)
    pixels = np.asarray(_onto_white(_resized(_plain(image), plan, factor)))
    return Decoded(turn.applied_to(pixels), *turn.size(plan.original), plan.shown)


# --- header -----------------------------------------------------------------------------------------------


def _plugin_of(data: bytes) -> Callable[[io.BytesIO], ImageFile.ImageFile] | None:
    # The plugin's class rather than Image.open: one format is tried, and the pixel cap is ours.
    head = data[:18]
    if head.startswith(b"\xff\xd8\xff"):
        return JpegImageFile
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return WebPImageFile
    if head.startswith((b"GIF87a", b"GIF89a")):
        return GifImageFile
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return TiffImageFile
    # "BM" alone begins many a text: the length of the second header has few values.
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in (12, 16, 40, 52, 56, 64, 108, 124):
        return BmpImageFile
    return None


def _open(source: _Source, settings: DecodeSettings) -> ImageFile.ImageFile:
    plugin = _plugin_of(source.data)
    assert plugin is not None  # refuse_unread has looked
    if plugin is WebPImageFile:  # opening allocates the whole canvas, so its size is read beforehand
        width, height = _webp_size(source.data)
        _check_pixels(width, height, settings)
        # Two canvases, the frame, a copy as bytes, and the image: libwebp reports lack of memory as damage.
        _check_memory(20 * width * height, settings)
    image = plugin(source)
    _check_pixels(*image.size, settings)
    if isinstance(image, JpegImageFile) and image.info.get("progressive"):
        _check_memory(_coefficient_bytes(image), settings)
    return image


def _check_pixels(width: int, height: int, settings: DecodeSettings) -> None:
    if width * height > settings.max_pixels:
        raise _Refused(
            Outcome.TOO_MANY_PIXELS,
            f"the header says {width} x {height} pixels; the limit is {settings.max_pixels} in all",
        )


def _check_memory(needed: int, settings: DecodeSettings) -> None:
    if needed > settings.max_memory_mb * 2**20:
        raise _Refused(
            Outcome.TOO_COSTLY,
            f"decoding needs about {needed >> 20} MiB; the limit is {settings.max_memory_mb} MiB",
        )


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height by the first chunk of a WebP file."""
    kind, body = data[12:16], data[20:30]
    if len(kind) < 4 or (kind in (b"VP8 ", b"VP8X", b"VP8L") and len(body) < 10):
        raise _Refused(Outcome.TRUNCATED, "WebP: the data ends within the header")
    if kind == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    raise _Refused(Outcome.DAMAGED, "WebP: the first chunk is of no known kind")


def _coefficient_bytes(image: JpegImageFile) -> int:
    """What a progressive JPEG keeps of all its scans: 2 bytes a coefficient (libjpeg's failure is silent)."""
    width, height = image.size
    widest = max(max(h for _, h, _, _ in image.layer), 1)
    tallest = max(max(v for _, _, v, _ in image.layer), 1)
    return sum(
        2 * math.ceil(width * h / widest) * math.ceil(height * v / tallest) for _, h, v, _ in image.layer
    )


# --- geometry ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Turn:
    """An EXIF orientation: flip the stored picture along x, along y, then swap the axes."""

    flip_x: bool = False
    flip_y: bool = False
    swap: bool = False

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        return (size[1], size[0]) if self.swap else size

    def box_as_stored(self, box: WholeBox, stored: tuple[int, int]) -> WholeBox:
        """A box of the turned picture, in the stored one."""
        x0, y0, x1, y1 = (box[1], box[0], box[3], box[2]) if self.swap else box
        if self.flip_x:
            x0, x1 = stored[0] - x1, stored[0] - x0
        if self.flip_y:
            y0, y1 = stored[1] - y1, stored[1] - y0
        return x0, y0, x1, y1

    def applied_to(self, pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
        turned = pixels[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]
        return np.array(turned.transpose(1, 0, 2) if self.swap else turned, order="C")


_TURNS = {
    2: _Turn(flip_x=True),
    3: _Turn(flip_x=True, flip_y=True),
    4: _Turn(flip_y=True),
    5: _Turn(swap=True),
    6: _Turn(flip_y=True, swap=True),
    7: _Turn(flip_x=True, flip_y=True, swap=True),
    8: _Turn(flip_x=True, swap=True),
}
_ORIENTATION = 0x0112


def _turn_of(image: ImageFile.ImageFile) -> _Turn:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except MemoryError:
        raise
    except Exception:  # damaged EXIF data does not make the picture worthless
        return _Turn()
    return _TURNS.get(orientation, _Turn()) if isinstance(orientation, int) else _Turn()


@dataclass(frozen=True)
class _Plan:
    """What to cut out and how large to make it: `original`, `stored` and `target` in the stored frame."""

    original: tuple[int, int]
    shown: WholeBox
    stored: WholeBox
    target: tuple[int, int]


def _plan(original: tuple[int, int], turn: _Turn, settings: DecodeSettings, box: Box | None) -> _Plan:
    shown = _whole_box(turn.size(original), box)
    stored = turn.box_as_stored(shown, original)
    sides = (stored[2] - stored[0], stored[3] - stored[1])
    scale = min(1.0, settings.longest_side / max(sides))
    target = (max(1, round(sides[0] * scale)), max(1, round(sides[1] * scale)))
    if min(target) < settings.shortest_side_least:
        width, height = turn.size(target)
        raise _Refused(
            Outcome.TOO_SMALL,
            f"{width} x {height} pixels once reduced; no side may be under {settings.shortest_side_least}",
        )
    return _Plan(original, shown, stored, target)


def _whole_box(size: tuple[int, int], box: Box | None) -> WholeBox:
    width, height = size
    if box is None:
        return 0, 0, width, height
    if all(map(math.isfinite, box)) and box[0] < box[2] and box[1] < box[3]:
        x0, y0 = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
        x1, y1 = min(width, math.ceil(box[2])), min(height, math.ceil(box[3]))
        if x0 < x1 and y0 < y1:
            return x0, y0, x1, y1
    raise BadInput(
        f"the box {tuple(box)} holds no pixel of the image, which is {width} x {height} pixels; give "
        "(x0, y0, x1, y1) with x0 < x1 and y0 < y1, inside it"
    )


# --- pixels -----------------------------------------------------------------------------------------------


def _load(image: ImageFile.ImageFile, settings: DecodeSettings) -> None:
    width, height = image.size
    each = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4
    _check_memory(each * width * height, settings)
    image.load()


def _reduce_in_codec(image: ImageFile.ImageFile, plan: _Plan) -> int:
    """Lets a JPEG decode at 1/2, 1/4 or 1/8, where that leaves enough; returns the divisor."""
    width, height = plan.original
    sides = (plan.stored[2] - plan.stored[0], plan.stored[3] - plan.stored[1])
    factor = next(
        (n for n in (8, 4, 2) if all(s >= n * t for s, t in zip(sides, plan.target, strict=True))), 1
    )
    if factor > 1:
        image.draft(None, (width // factor, height // factor))
    return factor


def _plain(image: Image.Image) -> Image.Image:
    """The picture in a mode that can be filtered: L, RGB, or RGBA where it has transparent places."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> _spare_bits(image)).astype(np.uint8))
    if image.mode in ("I", "F"):
        return Image.fromarray(_stretched(np.asarray(image)))
    if image.has_transparency_data:
        return image if image.mode == "RGBA" else image.convert("RGBA")
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _spare_bits(image: Image.Image) -> int:
    """How far 16-bit samples are shifted to 8 bits; 12-bit TIFF fills only the lower 12."""
    twelve = isinstance(image, TiffImageFile) and image.tag_v2.get(258) == (12,)
    return 4 if twelve else 8


def _stretched(values: np.ndarray[Any, Any]) -> UInt8[np.ndarray, "h w"]:
    """Least to greatest finite value as 0 to 255; what is not finite becomes 0, or 255 if +inf."""
    finite = values[np.isfinite(values)].astype(np.float64)
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    scaled = (values - low) * (255 / (high - low) if high > low else 0.0)
    return np.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0).clip(0, 255).round().astype(np.uint8)


def _resized(image: Image.Image, plan: _Plan, factor: int) -> Image.Image:
    if factor == 1 and plan.target == (plan.stored[2] - plan.stored[0], plan.stored[3] - plan.stored[1]):
        return image if plan.target == image.size else image.crop(plan.stored)
    x0, y0, x1, y1 = (side / factor for side in plan.stored)
    return image.resize(plan.target, Image.Resampling.BILINEAR, box=(x0, y0, x1, y1), reducing_gap=2.0)


def _onto_white(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return image.convert("RGB")
    page = Image.new("RGB", image.size, (255, 255, 255))
    page.paste(image, mask=image.getchannel("A"))
    return page


# --- reasons ----------------------------------------------------------------------------------------------

_UNREADABLE = (
    "unsupported",
    "not supported",
    "cannot handle",
    "unknown pixel mode",
    "unknown data organization",
    "conversion from",
    "unrecognized image mode",
    "not available",
)


def _explain(error: Exception, source: _Source) -> Rejected:
    """The reason behind what Pillow raised. Its own words stay out: some hold object addresses."""
    plugin = _plugin_of(source.data)
    kind = getattr(plugin, "format", "image")
    words = str(error).lower()
    if isinstance(error, Image.DecompressionBombError):
        return Rejected(Outcome.TOO_MANY_PIXELS, f"{kind}: a frame or tile is larger than Pillow allows")
    if isinstance(error, MemoryError) or "out of memory" in words:
        return Rejected(Outcome.TOO_COSTLY, f"{kind}: decoding went over its memory limit")
    if "data too large" in words:  # text and profiles in a PNG that unpack to megabytes
        return Rejected(Outcome.TOO_COSTLY, f"{kind}: its text or profile unpacks to too many bytes")
    ends_early = Rejected(Outcome.TRUNCATED, f"{kind}: the data ends early")
    if source.ran_out:
        return ends_early
    if any(word in words for word in _UNREADABLE):
        return Rejected(Outcome.UNSUPPORTED, f"{kind}: a variant that is not read ({type(error).__name__})")
    if "truncated" in words or _states_more(source.data, plugin):
        return ends_early
    return Rejected(Outcome.DAMAGED, f"{kind}: the data contradicts itself ({type(error).__name__})")


def _states_more(data: bytes, plugin: object) -> bool:
    """Whether a file that is handed to its library whole says that it is longer than it is."""
    if plugin is WebPImageFile:
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    if plugin is TiffImageFile:
        try:
            tags = TiffImageFile(io.BytesIO(data)).tag_v2
            starts, lengths = (tags.get(273) or tags[324]), (tags.get(279) or tags[325])
            return any(start + length > len(data) for start, length in zip(starts, lengths, strict=False))
        except Exception:
            return False
    return False
