"""Text on pictures: fonts that are at hand, names that no font refuses, lines that fit."""

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING
from unicodedata import combining, normalize

if TYPE_CHECKING:
    from PIL import ImageFont

# Pillow looks for these where the system keeps its fonts; the first that is installed is used.
_WIDE_FONTS = ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf")


@lru_cache(maxsize=8)
def plain_font(size: int) -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
    """The font that comes with Pillow. It has little beyond ASCII."""
    from PIL import ImageFont

    return ImageFont.load_default(size)


@lru_cache(maxsize=8)
def wide_font(size: int) -> "ImageFont.FreeTypeFont | None":
    """An installed font with more letters; None where there is none."""
    from PIL import ImageFont

    for name in _WIDE_FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return None


def drawable(text: str, size: int) -> "tuple[str, ImageFont.FreeTypeFont | ImageFont.ImageFont]":
    """A text as it can be drawn, and the font to draw it with."""
    text = printable(text)
    if text.isascii():
        return text, plain_font(size)
    wide = wide_font(size)
    return (ascii_like(text), plain_font(size)) if wide is None else (text, wide)


def printable(text: str) -> str:
    """Text that any font can be asked to draw: no line breaks, no bytes that are no characters."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)


def ascii_like(text: str) -> str:
    """Text without accents, and with a question mark for each other character that ASCII has not."""
    plain = "".join(sign for sign in normalize("NFKD", text) if not combining(sign))
    return plain.encode("ascii", "replace").decode()


def shortened(text: str, width: float, measure: Callable[[str], float]) -> str:
    """Text cut in its middle, where names of files differ least, until it is at most `width` wide."""
    if measure(text) <= width:
        return text
    kept, most = 0, len(text) - 1
    while kept < most:
        middle = (kept + most + 1) // 2
        if measure(_cut(text, middle)) <= width:
            kept = middle
        else:
            most = middle - 1
    return _cut(text, kept)


def _cut(text: str, kept: int) -> str:
    tail = kept - kept // 3  # the end tells more: it is what numbers and extensions are
    return f"{text[: kept - tail]}…{text[len(text) - tail :]}"
