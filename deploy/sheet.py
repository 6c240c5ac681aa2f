"""Contact sheets: a row a query, the query first and what was found for it after it, in one JPEG.

Images are read through their sources and decoded as everything else is; what cannot be shown is a grey
tile that says why.
"""

import contextlib
import io
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from deploy.sheet_evidence import HeatOf, chosen_pairs, draw_evidence
from deploy.sheet_images import ResultImages
from deploy.sheet_pairs import append_below
from deploy.sheet_text import drawable, plain_font, printable, shortened
from ingest.decode import Box, Decoded, DecodeSettings
from ingest.decoder import Decoder
from ingest.errors import BadInput
from ingest.outcomes import Rejected
from serve.query import ImageQuery
from serve.searcher import Answer, Result

if TYPE_CHECKING:
    from PIL import Image

_PAPER, _MAT, _INK, _FAINT = (255, 255, 255), (240, 240, 242), (28, 28, 32), (118, 118, 126)
_GREY, _RULE, _MARK = (206, 206, 210), (224, 224, 228), (255, 196, 0)
_RIGHT, _WRONG = (34, 150, 70), (208, 52, 44)

LabelOf = Callable[[str], str | None]


class SheetSettings(BaseModel):
    """How a sheet looks. Nothing here changes results."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tile: int = Field(
        default=176,
        ge=48,
        le=512,
        description="pixels of a tile's side; memory grows with its square, 0.5 GB at the most",
    )
    rows: int = Field(
        default=20, ge=1, le=20, description="queries on a sheet; the rest is left out, and said"
    )
    columns: int = Field(
        default=8, ge=1, le=20, description="results of a query; the rest is left out, and said"
    )
    pairs: int = Field(
        default=6, ge=0, le=20, description="pairs that are shown large, where steps have looked at pairs"
    )


@dataclass(frozen=True)
class Layout:
    """Where things are on a sheet, in pixels; (x, y) of the top-left corner of each tile.

    columns: of results; the query's own is besides.
    """

    tile: int
    columns: int
    rows: int

    @property
    def text(self) -> int:
        """Height of letters."""
        return max(11, round(self.tile / 13))

    @property
    def margin(self) -> int:
        return max(12, self.tile // 8)

    @property
    def gap(self) -> int:
        return max(6, self.tile // 16)

    @property
    def caption(self) -> int:
        """Height of the two lines below a tile, and of what is above them."""
        return round(2.9 * self.text)

    @property
    def footer(self) -> int:
        return round(1.6 * self.text)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the sheet."""
        right, _ = self.place(0, self.columns)
        _, last = self.place(self.rows - 1, 0)
        height = last + self.tile + self.caption + self.footer + self.margin
        return right + self.tile + self.margin, height

    def place(self, row: int, column: int) -> tuple[int, int]:
        """The tile of a row; column 0 is the query, which stands a little apart, 1 the best result."""
        apart = 2 * self.gap if column else 0
        x = self.margin + column * (self.tile + self.gap) + apart
        return x, self.margin + row * (self.tile + self.caption + 2 * self.gap)


@dataclass(frozen=True)
class Sheet:
    """A drawn sheet, and a sentence on what was left out of it (None: nothing was)."""

    image: "Image.Image"
    layout: Layout
    left_out: str | None

    def save(self, path: Path) -> None:
        """Writes a JPEG; whoever reads it meanwhile sees the old file or the whole new one.

        Raises:
            BadInput: there is no such folder, or it cannot be written to.
        """
        data = io.BytesIO()
        self.image.save(data, "JPEG", quality=90, subsampling=0)
        temporary = path.with_name(f".{uuid.uuid4().hex}.part")
        try:
            temporary.write_bytes(data.getvalue())
            temporary.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise BadInput(
                f"cannot write {path}: {error.strerror}; give a file in a folder that exists"
            ) from error


def draw_sheet(
    queries: Sequence[ImageQuery],
    answers: Sequence[Answer],
    sources: Mapping[str, str],
    settings: SheetSettings | None = None,
    label_of: LabelOf | None = None,
    heat_of: HeatOf | None = None,
) -> Sheet:
    """Draws queries and their answers, and below them, large, the best pairs that steps have looked at.

    Args:
        sources: URL of each source by name, as the catalogue has them.
        label_of: the label in a name (`deploy.labels.label_reader`). Where the query's name and a result's
            `SOURCE/KEY` both have one, the result is framed: green if they agree, red if not.
        heat_of: where a query and a result correspond (`Searcher.correspondence`), if something tells it.

    Raises:
        BadInput: there is no query.
    """
    settings = settings or SheetSettings()
    if not queries:
        raise BadInput("a contact sheet needs a query: name at least one image")
    shown = list(zip(queries, answers, strict=True))[: settings.rows]
    widest = max(len(answer.results) for _, answer in shown)
    layout = Layout(settings.tile, max(1, min(widest, settings.columns)), len(shown))
    left_out = _left_out(len(queries) - len(shown), widest - layout.columns)
    # A long panorama is thin on a tile, and still worth showing.
    decode = DecodeSettings(longest_side=settings.tile, shortest_side_least=1)
    with Decoder(decode) as decoder:
        painter = _Painter(layout, decoder, ResultImages(sources, decode), label_of)
        for row, (query, answer) in enumerate(shown):
            painter.draw_row(row, query, answer)
        painter.draw_footer(left_out)
    pairs, width = chosen_pairs(shown, settings.pairs), painter.image.width - 2 * layout.margin
    below = draw_evidence(pairs, sources, heat_of, width, layout.margin) if pairs else None
    whole = painter.image if below is None else append_below(painter.image, below)
    return Sheet(whole, layout, left_out)


def _left_out(queries: int, results: int) -> str | None:
    parts = [f"{queries} more queries"] if queries > 0 else []
    parts += [f"up to {results} more results a query"] if results > 0 else []
    return f"not shown: {' and '.join(parts)}" if parts else None


class _Painter:
    """A sheet being drawn."""

    def __init__(
        self, layout: Layout, decoder: Decoder, images: ResultImages, label_of: LabelOf | None
    ) -> None:
        from PIL import Image, ImageDraw

        self.layout, self.decoder, self.images, self.label_of = layout, decoder, images, label_of
        self.image = Image.new("RGB", layout.size, _PAPER)
        self.draw: ImageDraw.ImageDraw = ImageDraw.Draw(self.image)
        self.font = plain_font(layout.text)

    def draw_row(self, row: int, query: ImageQuery, answer: Answer) -> None:
        label = self.label_of(query.name) if self.label_of else None
        place = self.layout.place(row, 0)
        self._tile(place, self.decoder.decode(query.data), query.box)
        self._caption(place, "query", query.name)
        first = self.layout.place(row, 1)
        if row:
            y = first[1] - self.layout.gap
            self.draw.line((self.layout.margin, y, self.layout.size[0] - self.layout.margin, y), _RULE)
        if not answer.results:
            self._nothing(first, answer.rejected)
        for column, result in enumerate(answer.results[: self.layout.columns], start=1):
            self._result(self.layout.place(row, column), result, label)

    def draw_footer(self, left_out: str | None) -> None:
        if left_out is not None:
            y = self.layout.size[1] - self.layout.margin - self.layout.text
            self.draw.text((self.layout.margin, y), left_out, _FAINT, self.font)

    def _result(self, place: tuple[int, int], result: Result, label: str | None) -> None:
        data = self.images.read(result)
        self._tile(place, data if isinstance(data, Rejected) else self.decoder.decode(data), None)
        theirs = self.label_of(f"{result.source}/{result.key}") if self.label_of else None
        if label is not None and theirs is not None:
            self._frame(place, _RIGHT if label == theirs else _WRONG)
        self._caption(place, f"{result.rank}", result.key, f"{result.score:.3f}")

    def _tile(self, place: tuple[int, int], image: Decoded | Rejected, box: Box | None) -> None:
        from PIL import Image

        (x, y), side = place, self.layout.tile
        if isinstance(image, Rejected):
            self.draw.rectangle((x, y, x + side - 1, y + side - 1), _GREY)
            self._lines(place, [str(image.reason).replace("_", " "), image.detail])
            return
        self.draw.rectangle((x, y, x + side - 1, y + side - 1), _MAT)
        height, width = image.pixels.shape[:2]
        left, top = x + (side - width) // 2, y + (side - height) // 2
        self.image.paste(Image.fromarray(image.pixels), (left, top))
        if box is not None:
            x0, y0, x1, y1 = (
                round(value * scale)
                for value, scale in zip(box, (width / image.width, height / image.height) * 2, strict=True)
            )
            inside = (max(0, x0), max(0, y0), min(width, x1) - 1, min(height, y1) - 1)
            self._box((left + inside[0], top + inside[1], left + inside[2], top + inside[3]))

    def _box(self, box: tuple[int, int, int, int]) -> None:
        """Yellow between black, to be seen on any image."""
        x0, y0, x1, y1 = box
        for inset, colour in enumerate((_INK, _MARK, _MARK, _INK)):
            if x1 - inset > x0 + inset and y1 - inset > y0 + inset:
                self.draw.rectangle((x0 + inset, y0 + inset, x1 - inset, y1 - inset), outline=colour)

    def _frame(self, place: tuple[int, int], colour: tuple[int, int, int]) -> None:
        """Around the tile, in the gap: no pixel of the image is hidden."""
        width = max(2, self.layout.gap // 2 - 1)
        (x, y), side = place, self.layout.tile
        outer = (x - width, y - width, x + side - 1 + width, y + side - 1 + width)
        self.draw.rectangle(outer, outline=colour, width=width)

    def _caption(self, place: tuple[int, int], head: str, name: str, right: str = "") -> None:
        (x, y), side = place, self.layout.tile
        top = y + side + round(0.45 * self.layout.text)
        self.draw.text((x, top), head, _FAINT, self.font)
        self.draw.text((x + side - self.draw.textlength(right, self.font), top), right, _INK, self.font)
        text, font = drawable(name, self.layout.text)
        short = shortened(text, side, lambda part: self.draw.textlength(part, font))
        self.draw.text((x, top + round(1.25 * self.layout.text)), short, _INK, font)

    def _nothing(self, place: tuple[int, int], rejected: Rejected | None) -> None:
        if rejected is None:
            text = "nothing was found"
        else:
            text = f"not searched: {str(rejected.reason).replace('_', ' ')}"
        self.draw.text((place[0], place[1] + self.layout.tile // 2), text, _FAINT, self.font, anchor="lm")

    def _lines(self, place: tuple[int, int], lines: list[str]) -> None:
        """Words in the middle of a tile, broken to its width."""
        (x, y), side = place, self.layout.tile
        broken = [part for line in lines for part in self._broken(printable(line), side - 12)]
        broken = broken[: max(1, int(side / (1.3 * self.layout.text)))]
        top = y + (side - 1.25 * self.layout.text * len(broken)) / 2
        for place_, text in enumerate(broken):
            middle = top + 1.25 * self.layout.text * (place_ + 0.5)
            self.draw.text((x + side / 2, middle), text, _INK, self.font, anchor="mm")

    def _broken(self, text: str, width: float) -> list[str]:
        lines: list[str] = []
        for word in text.split():
            joined = f"{lines[-1]} {word}" if lines else word
            if lines and self.draw.textlength(joined, self.font) <= width:
                lines[-1] = joined
            else:
                lines.append(shortened(word, width, lambda part: self.draw.textlength(part, self.font)))
        return lines
