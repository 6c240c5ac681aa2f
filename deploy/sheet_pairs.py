"""Pictures of pairs: a query and one answer side by side, with what makes them the same.

`draw_matches` joins the points that geometry found, `draw_heat` colours where two maps correspond, and
`draw_pairs_sheet` puts such pictures in a column under one line of text each. Lines and dots are drawn at
four times their size and reduced, which smooths them and leaves the images as they are; that takes 30 MB and
a tenth of a second for a picture 1200 pixels wide.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, UInt8
from PIL import Image, ImageDraw, ImageFont

from deploy.sheet_text import drawable, plain_font, shortened
from ingest.decode import Decoded, WholeBox
from ingest.errors import BadInput

MOST_LINES = 48  # more of them hide the images
LEAST_WIDTH = 16  # pixels of a picture of a pair

_PAPER, _MAT, _INK, _RULE = (255, 255, 255), (240, 240, 242), (28, 28, 32), (224, 224, 228)
_FINER = 4

# A circle of colours, all light, so that the dark outline sets each off from any image.
_HUES = (
    (255, 92, 92),
    (255, 165, 50),
    (245, 230, 70),
    (110, 225, 95),
    (60, 220, 215),
    (95, 165, 255),
    (175, 130, 255),
    (255, 120, 210),
)

# Black over violet and orange to pale yellow (the "inferno" of matplotlib, CC0), lighter in even steps.
HEAT_COLOURS = (
    (0, 0, 4),
    (33, 12, 74),
    (86, 16, 110),
    (137, 34, 106),
    (187, 55, 84),
    (227, 89, 50),
    (249, 140, 10),
    (249, 201, 50),
    (252, 255, 164),
)
_HEAT_OPACITY = (0.45, 0.8)  # of heat 0 and of heat 1

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Place:
    """Where an image lies on a picture, in its whole pixels, and the part of the original that it shows."""

    left: int
    top: int
    width: int
    height: int
    box: WholeBox

    def to_picture(self, points: Float[np.ndarray, "m 2"]) -> Float64[np.ndarray, "m 2"]:
        """Points (x, y) of the original on the picture; in both, the top-left pixel's centre is (0, 0)."""
        x0, y0, x1, y1 = self.box
        scale = (self.width / (x1 - x0), self.height / (y1 - y0))
        moved: np.ndarray = (np.asarray(points, np.float64) + 0.5 - (x0, y0)) * scale - 0.5
        moved += (self.left, self.top)
        return moved

    def shows(self, points: Float[np.ndarray, "m 2"]) -> Bool[np.ndarray, " m"]:
        """Whether each point of the original is in the part that is shown."""
        x0, y0, x1, y1 = self.box
        low, high = np.array((x0, y0)) - 0.5, np.array((x1, y1)) - 0.5
        inside: np.ndarray = np.all((points >= low) & (points <= high), axis=1)
        return inside


@dataclass(frozen=True)
class PairLayout:
    """Two images next to each other at the same height, in the middle of a picture."""

    width: int
    height: int
    query: Place
    answer: Place


def pair_layout(query: Decoded, answer: Decoded, width: int) -> PairLayout:
    """Where the images of a pair lie on a picture `width` pixels wide.

    They keep their shapes, as near as whole pixels allow, and fill the width unless that made the picture
    higher than half of it.

    Raises:
        BadInput: the width is below `LEAST_WIDTH`.
    """
    if width < LEAST_WIDTH:
        raise BadInput(f"a picture of a pair {width} pixels wide shows nothing; give at least {LEAST_WIDTH}")
    gap = max(2, width // 150)
    room = width - gap
    shapes = [(x1 - x0) / (y1 - y0) for x0, y0, x1, y1 in (query.box, answer.box)]
    exact = min(width / 2, room / sum(shapes))
    height = max(1, int(exact))
    first = min(max(1, round(exact * shapes[0])), room - 1)
    second = min(max(1, round(exact * shapes[1])), room - first)
    left = (room - first - second) // 2
    return PairLayout(
        width,
        height,
        Place(left, 0, first, height, query.box),
        Place(left + first + gap, 0, second, height, answer.box),
    )


def draw_matches(
    query: Decoded,
    answer: Decoded,
    points_q: Float32[np.ndarray, "m 2"],
    points_a: Float32[np.ndarray, "m 2"],
    width: int,
) -> Image.Image:
    """The two images, with a dot on every point and lines between at most `MOST_LINES` of them.

    Args:
        points_q: (m, 2) float32, (x, y) in pixels of the query's original, the centre of the top-left one
            (0, 0); row i and row i of `points_a` are the same point of the thing. Pairs of which a point is
            not in the part that is shown are left out.
        points_a: (m, 2) float32, in pixels of the answer's original.
        width: pixels of the picture.

    Returns:
        An RGB picture, `width` pixels wide and at most half as high. Where no points are left, it says so.

    Raises:
        BadInput: points that are not pairs; a width below `LEAST_WIDTH`.
    """
    points_q, points_a = np.asarray(points_q, np.float64), np.asarray(points_a, np.float64)
    if points_q.shape != points_a.shape or points_q.shape[1:] != (2,):
        raise BadInput(
            f"points of shapes {points_q.shape} and {points_a.shape} are not pairs; give (m, 2) twice"
        )
    layout = pair_layout(query, answer, width)
    picture = _paste(layout, query.pixels, answer.pixels)
    shown = layout.query.shows(points_q) & layout.answer.shows(points_a)
    if not shown.any():
        return _say(picture, "no common points")
    starts = layout.query.to_picture(points_q[shown])
    ends = layout.answer.to_picture(points_a[shown])
    return _Lines(picture, width).drawn(starts, ends, _colours(starts))


def draw_heat(
    query: Decoded,
    answer: Decoded,
    heat_q: Float32[np.ndarray, "h w"],
    heat_a: Float32[np.ndarray, "H W"],
    width: int,
) -> Image.Image:
    """The two images in grey, under the colours of a map each: dark is 0, pale yellow 1.

    Args:
        heat_q: (h, w) float32 in [0, 1], over the part of the query that `query` shows: cell (i, j) is
            centred at ((j + .5) / w, (i + .5) / h) of it. Between centres it is bilinear, outside them
            constant. What is not finite counts as 0.
        heat_a: (H, W) float32, of the answer.
        width: pixels of the picture.

    Returns:
        An RGB picture, `width` pixels wide and at most half as high.

    Raises:
        BadInput: a map that is not two-dimensional, or has no cells; a width below `LEAST_WIDTH`.
    """
    layout = pair_layout(query, answer, width)
    heated = (
        _heated(image.pixels, heat, place)
        for image, heat, place in ((query, heat_q, layout.query), (answer, heat_a, layout.answer))
    )
    return _paste(layout, *heated)


def draw_pairs_sheet(rows: Sequence[tuple[str, Image.Image]], margin: int = 22) -> Image.Image:
    """A column of pictures, each below its caption of one line, cut in its middle where it is too long.

    Args:
        rows: caption (rank, name, score, inliers) and picture of each.
        margin: pixels around everything.

    Raises:
        BadInput: there is no picture.
    """
    if not rows:
        raise BadInput("a sheet of pairs needs a pair")
    width = max(picture.width for _, picture in rows)
    size = max(11, width // 85)
    above, below = round(1.7 * size), round(1.6 * size)
    height = sum(above + picture.height + below for _, picture in rows) - below
    sheet = Image.new("RGB", (width + 2 * margin, height + 2 * margin), _PAPER)
    draw = ImageDraw.Draw(sheet)
    y = margin
    for title, picture in rows:
        text, font = drawable(title, size)
        text = shortened(text, width, partial(_length, draw, font))
        draw.text((margin, y), text, _INK, font)
        sheet.paste(picture, (margin, y + above))
        y += above + picture.height + below
    return sheet


def _length(draw: ImageDraw.ImageDraw, font: Font, text: str) -> float:
    return draw.textlength(text, font)


def append_below(above: Image.Image, below: Image.Image) -> Image.Image:
    """One picture of two, on white, with a thin rule between them."""
    sheet = Image.new("RGB", (max(above.width, below.width), above.height + 1 + below.height), _PAPER)
    sheet.paste(above, (0, 0))
    sheet.paste(_RULE, (0, above.height, sheet.width, above.height + 1))
    sheet.paste(below, (0, above.height + 1))
    return sheet


# --- images -----------------------------------------------------------------------------------------------


def _paste(layout: PairLayout, *images: UInt8[np.ndarray, "h w 3"]) -> Image.Image:
    picture = Image.new("RGB", (layout.width, layout.height), _MAT)
    for pixels, place in zip(images, (layout.query, layout.answer), strict=True):
        picture.paste(_resized(Image.fromarray(pixels), place), (place.left, place.top))
    return picture


def _resized(image: Image.Image, place: Place) -> Image.Image:
    return image.resize((place.width, place.height), Image.Resampling.BICUBIC)


def _heated(
    pixels: UInt8[np.ndarray, "h w 3"], heat: Float32[np.ndarray, "H W"], place: Place
) -> UInt8[np.ndarray, "a b 3"]:
    if heat.ndim != 2 or heat.size == 0:
        raise BadInput(f"a heat map of shape {heat.shape} cannot be drawn; give (h, w), both at least 1")
    values = np.clip(np.nan_to_num(heat.astype(np.float32), nan=0, posinf=0, neginf=0), 0, 1)
    size = (place.width, place.height)
    smooth = np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))
    grey = np.asarray(_resized(Image.fromarray(pixels).convert("L"), place), np.float32)[..., None]
    opacity = np.interp(smooth, (0, 1), _HEAT_OPACITY)[..., None]
    mixed: np.ndarray = (1 - opacity) * grey + opacity * heat_colours(smooth)
    return mixed.round().astype(np.uint8)


def heat_colours(values: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w 3"]:
    """The colour of each value in [0, 1], between the nearest two of `HEAT_COLOURS`."""
    table = np.asarray(HEAT_COLOURS, np.float32)
    steps = np.linspace(0, 1, len(table))
    return np.stack([np.interp(values, steps, channel) for channel in table.T], axis=-1).astype(np.float32)


def _say(picture: Image.Image, text: str) -> Image.Image:
    """A few words in the middle of a picture, on a dark ground."""
    fine = _finer(picture)
    draw = ImageDraw.Draw(fine)
    font = plain_font(_FINER * max(9, picture.width // 60))
    middle = (fine.width / 2, fine.height / 2)
    x0, y0, x1, y1 = draw.textbbox(middle, text, font, anchor="mm")
    pad = (y1 - y0) * 0.7
    draw.rounded_rectangle((x0 - 1.5 * pad, y0 - pad, x1 + 1.5 * pad, y1 + pad), pad, _INK)
    draw.text(middle, text, _PAPER, font, anchor="mm")
    return fine.reduce(_FINER)


def _finer(picture: Image.Image) -> Image.Image:
    """Each pixel as a square of its colour, so that reducing gives back what was not drawn over."""
    size = (picture.width * _FINER, picture.height * _FINER)
    return picture.resize(size, Image.Resampling.NEAREST)


# --- lines ------------------------------------------------------------------------------------------------


def _colours(points: Float64[np.ndarray, "m 2"]) -> list[tuple[int, int, int]]:
    """A colour for each point by its direction from the middle of all, so that neighbours have like ones."""
    x, y = (points - (points.min(axis=0) + points.max(axis=0)) / 2).T
    turn = np.arctan2(y, x) / math.tau % 1 * len(_HUES)
    table = np.asarray((*_HUES, _HUES[0]), np.float64)
    steps = np.arange(len(table))
    found = np.stack([np.interp(turn, steps, channel) for channel in table.T], axis=1).round().astype(int)
    return [(red, green, blue) for red, green, blue in found.tolist()]


def _spread(points: Float64[np.ndarray, "m 2"], most: int) -> list[int]:
    """Indices of at most `most` points, each time the one that is farthest from those chosen before it."""
    chosen: list[int] = []
    apart = -((points - points.mean(axis=0)) ** 2).sum(axis=1)  # the first is the one in the middle
    for _ in range(min(most, len(points))):
        chosen.append(int(apart.argmax()))
        distance = ((points - points[chosen[-1]]) ** 2).sum(axis=1)
        apart = distance if len(chosen) == 1 else np.minimum(apart, distance)
    return chosen


class _Lines:
    """Points and lines on a picture, drawn finer than it is."""

    def __init__(self, picture: Image.Image, width: int) -> None:
        self.picture = _finer(picture)
        self.draw = ImageDraw.Draw(self.picture)
        self.unit = _FINER * max(1.0, width / 1200)

    def drawn(
        self,
        starts: Float64[np.ndarray, "m 2"],
        ends: Float64[np.ndarray, "m 2"],
        colours: list[tuple[int, int, int]],
    ) -> Image.Image:
        starts, ends = (starts + 0.5) * _FINER - 0.5, (ends + 0.5) * _FINER - 0.5
        joined = _spread(starts, MOST_LINES)
        for index in set(range(len(starts))) - set(joined):
            self._dots(starts[index], ends[index], 1.5, colours[index])
        for index in joined:
            line = (*starts[index], *ends[index])
            self.draw.line(line, _INK, round(2.6 * self.unit))
            self.draw.line(line, colours[index], round(1.5 * self.unit))
        for index in joined:
            self._dots(starts[index], ends[index], 3.0, colours[index])
        return self.picture.reduce(_FINER)

    def _dots(
        self,
        start: Float64[np.ndarray, "2"],
        end: Float64[np.ndarray, "2"],
        radius: float,
        colour: tuple[int, int, int],
    ) -> None:
        for x, y in (start, end):
            for size, fill in ((radius + 0.7, _INK), (radius, colour)):
                half = size * self.unit
                self.draw.ellipse((x - half, y - half, x + half, y + half), fill)
