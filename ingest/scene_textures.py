"""What the synthetic scenes show: building fronts, packaging covers, and the clutter around them.

Every function paints one flat surface from a stream of draws. Repetition (bricks, windows, shelves) and
what only this surface has (blinds, posters, signs, pictures) are mixed as on real ones.
"""

import numpy as np
from jaxtyping import Bool, Int16

from ingest.scene_paint import (
    Canvas,
    Colour,
    bar,
    blank,
    ellipse,
    frame,
    masked_stamp,
    picture,
    relief,
    shaded,
    smooth_noise,
    text,
    tinted,
    triangle,
    vivid,
)
from ingest.scene_random import Draws

_WALLS: list[Colour] = [
    (158, 92, 72), (176, 120, 88), (196, 178, 148), (208, 196, 170), (150, 146, 140), (186, 168, 120),
    (170, 140, 128), (128, 132, 138), (198, 150, 110), (148, 168, 172), (214, 206, 196), (120, 96, 84),
]  # fmt: skip
_UNPAINTED = (1, 2, 3)
_TRIMS: list[Colour] = [(232, 228, 216), (92, 70, 56), (60, 66, 74), (206, 190, 160), (70, 96, 84)]
_WINDOWS = 7  # different ones a building; their order tells buildings of one kind of window apart
_GLASS: list[Colour] = [(44, 54, 66), (66, 82, 96), (34, 38, 44), (92, 112, 124)]


def facade(draws: Draws, h: int, w: int) -> Canvas:
    """The front of a building: (h, w, 3) uint8."""
    wall, trim = tinted(draws, draws.pick(_WALLS), 18), tinted(draws, draws.pick(_TRIMS), 12)
    canvas = blank(h, w, wall)
    relief(canvas, _masonry(draws, h, w))
    floors = draws.between(2, 5)
    top = h * draws.between(5, 15) // 100
    ground = h * draws.between(20, 30) // 100
    storey = (h - top - ground) // floors
    columns = draws.between(3, 7)
    window = _Windows(draws, max(8, w // columns * draws.between(45, 70) // 100), storey, trim)
    _pilasters(canvas, draws, columns, trim)
    for floor in range(floors):
        y = top + floor * storey
        for column in range(columns):
            x = w * (2 * column + 1) // (2 * columns) - window.w // 2
            window.put(canvas, draws.below(_WINDOWS), x, y + (storey - window.h) // 2)
        if draws.chance(60):
            _ledge(canvas, draws, y + storey - 2, trim)
    _roof(canvas, draws, top, trim)
    _ground_floor(canvas, draws, h - ground, trim)
    for _ in range(draws.between(2, 4)):
        _wall_mark(canvas, draws, top, h, max(6, w // 12))
    return canvas


def _masonry(draws: Draws, h: int, w: int) -> Int16[np.ndarray, "h w"]:
    """Courses of bricks or stones with shades of their own and joints, under stains; or plain plaster."""
    stains = smooth_noise(draws, h, w, w // draws.between(5, 9), 34)
    stains += smooth_noise(draws, h, w, w // 70, 16)
    if draws.chance(25):
        return stains
    high = max(3, h // draws.between(18, 52))
    long = high * draws.between(3, 6) // 2
    y, x = np.arange(h), np.arange(w)
    shift = (y // high) % 2 * (long // 2)
    across = x[None, :] + shift[:, None]
    shades = draws.bytes((h // high + 1) * (w // long + 2)).reshape(h // high + 1, -1)
    tones = shades.astype(np.int16) % 40 - 20
    stones: Int16[np.ndarray, "h w"] = tones[(y // high)[:, None], across // long]
    joint = -draws.between(18, 40) if draws.chance(60) else draws.between(14, 30)
    stones[y % high == 0] = joint
    stones[across % long == 0] = joint
    stones += stains
    return stones


class _Windows:
    """A building's kind of window, painted a few times with different things behind the glass."""

    def __init__(self, draws: Draws, w: int, storey: int, trim: Colour) -> None:
        self.w = w
        self.h = max(8, min(storey * draws.between(58, 82) // 100, w * draws.between(110, 210) // 100))
        self.border = max(1, w // draws.between(9, 16))
        self.bars = draws.between(0, 3), draws.between(0, 4)
        self.glass = draws.pick(_GLASS)
        self.margin = w // 2, max(w // 2, 5 * self.border)
        surround = blank(self.h + 2 * self.margin[1], w + 2 * self.margin[0], _UNPAINTED)
        self._surround(surround, draws, trim)
        self.stamps = [self._stamp(surround, draws, trim) for _ in range(_WINDOWS)]

    def put(self, canvas: Canvas, which: int, x: int, y: int) -> None:
        stamp, painted = self.stamps[which]
        masked_stamp(canvas, stamp, painted, x - self.margin[0], y - self.margin[1])

    def _stamp(self, surround: Canvas, draws: Draws, trim: Colour) -> tuple[Canvas, Bool[np.ndarray, "h w"]]:
        stamp, (x, y) = surround.copy(), self.margin
        pane = stamp[y : y + self.h, x : x + self.w]
        pane[:] = tinted(draws, self.glass, 14)
        self._behind(pane, draws)
        for at in range(1, self.bars[0] + 1):
            bar(pane, self.w * at // (self.bars[0] + 1), 0, max(1, self.border // 2), self.h, trim)
        for at in range(1, self.bars[1] + 1):
            bar(pane, 0, self.h * at // (self.bars[1] + 1), self.w, max(1, self.border // 2), trim)
        frame(pane, 0, 0, self.w, self.h, self.border, trim)
        if draws.chance(20):
            self._balcony(stamp, draws, x, y)
        return stamp, (stamp != _UNPAINTED).any(axis=2)

    def _surround(self, stamp: Canvas, draws: Draws, trim: Colour) -> None:
        (x, y), edge = self.margin, self.border
        lintel = draws.between(0, 2)
        if lintel == 1:
            bar(stamp, x - edge, y - 2 * edge, self.w + 2 * edge, 2 * edge, shaded(trim, 90))
        elif lintel == 2:
            peak = (x + self.w // 2, y - 4 * edge)
            triangle(stamp, [(x - edge, y), peak, (x + self.w + edge, y)], shaded(trim, 92))
        if draws.chance(25):
            ellipse(stamp, x + self.w // 2, y, self.w // 2, self.w // 4, trim)
            ellipse(stamp, x + self.w // 2, y, self.w // 2 - edge, self.w // 4 - edge, self.glass)
        if draws.chance(70):
            bar(stamp, x - edge, y + self.h, self.w + 2 * edge, edge + 1, trim)
            bar(stamp, x - edge, y + self.h + edge + 1, self.w + 2 * edge, 1, (40, 36, 34))
        if draws.chance(25):
            tone = vivid(draws)
            for side in (x - self.w // 3, x + self.w):
                bar(stamp, side, y, self.w // 3, self.h, tone)
                for slat in range(y + 2, y + self.h, max(3, self.h // 9)):
                    bar(stamp, side, slat, self.w // 3, 1, shaded(tone, 60))

    def _behind(self, pane: Canvas, draws: Draws) -> None:
        what, w, h = draws.below(8), self.w, self.h
        if what < 2:  # a blind, drawn to some height
            down, tone = h * draws.between(15, 95) // 100, tinted(draws, (206, 200, 184), 30)
            bar(pane, 0, 0, w, down, tone)
            for slat in range(0, down, max(2, h // 14)):
                bar(pane, 0, slat, w, 1, shaded(tone, 72))
        elif what < 4:  # curtains
            wide, tone = w * draws.between(15, 45) // 100, tinted(draws, vivid(draws), 10)
            triangle(pane, [(0, 0), (w // 2, 0), (0, h * draws.between(70, 160) // 100)], tone)
            bar(pane, w - wide, 0, wide, h, shaded(tone, 85))
        elif what < 6:  # a reflection of the sky and of what is across the street
            at = draws.between(-w // 2, w)
            triangle(
                pane, [(at, 0), (at + w, 0), (at - w // 2, h)], shaded(self.glass, draws.between(130, 220))
            )
            bar(pane, draws.below(w), h // 2, w // 3, h, shaded(self.glass, 60))
        elif what == 6:  # a lit room
            pane[:] = tinted(draws, (226, 190, 116), 24)
            bar(pane, draws.below(w), h * 2 // 3, w // 3, h, (96, 70, 50))
            ellipse(pane, draws.below(w), h // 3, max(1, w // 9), max(1, w // 9), (255, 244, 200))

    def _balcony(self, canvas: Canvas, draws: Draws, x: int, y: int) -> None:
        tone, top = draws.pick([(36, 38, 42), (220, 216, 208)]), y + self.h * 11 // 20
        bar(canvas, x - self.w // 4, top, self.w * 3 // 2, 2, tone)
        bar(canvas, x - self.w // 4, y + self.h, self.w * 3 // 2, 3, tone)
        for rail in range(x - self.w // 4, x + self.w * 5 // 4, max(3, self.w // 8)):
            bar(canvas, rail, top, 1, y + self.h - top, tone)
        for _ in range(draws.between(0, 5)):
            ellipse(
                canvas, x + draws.below(self.w), top, max(2, self.w // 8), max(2, self.w // 10), vivid(draws)
            )


def _pilasters(canvas: Canvas, draws: Draws, columns: int, trim: Colour) -> None:
    if not draws.chance(40):
        return
    w = canvas.shape[1]
    for at in range(columns + 1):
        wide = max(2, w // 50)
        bar(canvas, w * at // columns - wide // 2, 0, wide, canvas.shape[0], shaded(trim, 94))
        bar(canvas, w * at // columns + wide // 2, 0, 1, canvas.shape[0], shaded(trim, 55))


def _ledge(canvas: Canvas, draws: Draws, y: int, trim: Colour) -> None:
    h, w = canvas.shape[:2]
    thick = max(2, h // draws.between(60, 110))
    bar(canvas, 0, y, w, thick, trim)
    bar(canvas, 0, y + thick, w, max(1, thick // 2), (52, 46, 42))
    if draws.chance(50):
        step = max(4, w // draws.between(24, 60))
        for x in range(0, w, step):
            bar(canvas, x, y + thick, step // 2, thick, shaded(trim, 85))


def _roof(canvas: Canvas, draws: Draws, high: int, trim: Colour) -> None:
    w = canvas.shape[1]
    tone = tinted(draws, draws.pick([(120, 64, 52), (78, 80, 88), (104, 92, 80)]), 14)
    bar(canvas, 0, 0, w, high * 2 // 3, tone)
    step = max(3, w // draws.between(30, 70))
    for row, y in enumerate(range(0, high * 2 // 3, max(2, step // 2))):
        bar(canvas, 0, y, w, 1, shaded(tone, 70))
        canvas[y : y + max(2, step // 2), row % 2 * (step // 2) :: step] = shaded(tone, 78)
    for _ in range(draws.between(0, 3)):  # dormers
        x, wide = draws.below(w), max(6, w // draws.between(12, 24))
        bar(canvas, x, high // 6, wide, high // 2, shaded(trim, 96))
        bar(canvas, x + wide // 4, high // 4, wide // 2, high // 3, draws.pick(_GLASS))
    _ledge(canvas, draws, high * 2 // 3, trim)


def _ground_floor(canvas: Canvas, draws: Draws, y: int, trim: Colour) -> None:
    h, w = canvas.shape[:2]
    high = h - y
    if draws.chance(60):
        bar(canvas, 0, y, w, high, tinted(draws, draws.pick(_WALLS + _TRIMS), 16))
        for course in range(y, h, max(4, high // draws.between(4, 9))):
            bar(canvas, 0, course, w, 1, (84, 76, 70))
    _ledge(canvas, draws, y, trim)
    at = draws.between(0, w // 10)
    while at < w - w // 8:
        wide = w * draws.between(10, 26) // 100
        if draws.chance(40):
            _door(canvas, draws, at, y + high // 4, wide // 2, high * 3 // 4, trim)
            at += wide // 2
        else:
            _shop(canvas, draws, at, y + high // 8, wide, high * 7 // 8)
            at += wide
        at += w * draws.between(2, 10) // 100


def _door(canvas: Canvas, draws: Draws, x: int, y: int, w: int, h: int, trim: Colour) -> None:
    tone = vivid(draws)
    bar(canvas, x - 2, y - 2, w + 4, h, trim)
    bar(canvas, x, y, w, h, tone)
    for row in range(draws.between(1, 3)):
        frame(canvas, x + w // 6, y + h // 8 + row * h // 3, w * 2 // 3, max(3, h // 4), 1, shaded(tone, 55))
    ellipse(canvas, x + w * 5 // 6, y + h // 2, 1, 1, (240, 220, 120))
    text(canvas, draws, x + w // 4, y + h // 20, w // 2, 1, (245, 240, 220))


def _shop(canvas: Canvas, draws: Draws, x: int, y: int, w: int, h: int) -> None:
    board, ink = vivid(draws), draws.pick([(250, 246, 230), (24, 22, 20), (250, 214, 60)])
    bar(canvas, x, y + h // 4, w, h * 5 // 8, draws.pick(_GLASS))
    picture(canvas, draws, x + w // 12, y + h // 3, w * draws.between(30, 80) // 100, h * 4 // 9, 9)
    frame(canvas, x, y + h // 4, w, h * 3 // 4, max(1, w // 30), shaded(board, 70))
    if draws.chance(45):
        stripe = max(2, w // draws.between(7, 14))
        for at in range(0, w, 2 * stripe):
            bar(canvas, x + at, y + h // 4, min(stripe, w - at), h // 6, board)
            bar(
                canvas,
                x + at + stripe,
                y + h // 4,
                min(stripe, max(0, w - at - stripe)),
                h // 6,
                (238, 236, 228),
            )
    bar(canvas, x, y, w, h // 4, board)
    unit = max(1, h // 44)
    text(canvas, draws, x + 3 * unit, y + max(1, (h // 4 - 7 * unit) // 2), w - 6 * unit, unit, ink)


def _wall_mark(canvas: Canvas, draws: Draws, top: int, bottom: int, size: int) -> None:
    """A poster, a hanging sign, or a painted scrawl: what only this wall has."""
    w = canvas.shape[1]
    x, y = draws.below(w - size), draws.between(top, bottom - 2 * size)
    what = draws.below(3)
    if what == 0:
        wide, high = size * draws.between(7, 14) // 10, size * draws.between(9, 17) // 10
        bar(canvas, x - 1, y - 1, wide + 2, high + 2, (240, 238, 230))
        picture(canvas, draws, x, y, wide, high * 3 // 4, 8)
        text(canvas, draws, x + 1, y + high * 3 // 4 + 1, wide - 2, 1, (30, 28, 28))
    elif what == 1:
        tone = vivid(draws)
        bar(canvas, x, y, size // 2, size * 2, tone)
        frame(canvas, x, y, size // 2, size * 2, 1, (20, 20, 24))
        for row in range(3):
            text(
                canvas,
                draws,
                x + 2,
                y + 3 + row * size * 2 // 3,
                size // 2 - 2,
                max(1, size // 24),
                (250, 250, 240),
            )
    else:
        tone = vivid(draws)
        for _ in range(7):
            ellipse(canvas, x + draws.below(size), y + draws.below(size), size // 5, size // 9, tone)
            triangle(
                canvas, [(x + draws.below(size), y + draws.below(size)) for _ in range(3)], shaded(tone, 120)
            )


def cover(draws: Draws, h: int, w: int) -> Canvas:
    """The front of a package, book or record: (h, w, 3) uint8."""
    ground, second = vivid(draws), vivid(draws)
    canvas = blank(h, w, ground)
    _cover_ground(canvas, draws, second)
    left, top = w * draws.between(4, 14) // 100, h * draws.between(14, 32) // 100
    inner_w, inner_h = w - left - w * draws.between(4, 20) // 100, h * draws.between(36, 58) // 100
    picture(canvas, draws, left, top, inner_w, inner_h, draws.between(14, 26))
    if draws.chance(50):
        frame(canvas, left, top, inner_w, inner_h, max(1, w // 60), (244, 240, 230))
    ink = draws.pick([(250, 248, 240), (20, 20, 26), (252, 220, 70)])
    unit = max(1, min(w // draws.between(36, 70), top // 9))
    text(canvas, draws, left, max(1, top - 8 * unit), w - 2 * left, unit, ink)
    under = top + inner_h + max(2, h // 60)
    small = max(1, w // 160)
    for row in range(draws.between(2, 6)):
        line = under + row * 9 * small
        text(canvas, draws, left, line, w * draws.between(30, 80) // 100, small, ink)
    if draws.chance(60):
        at_x, at_y, r = (
            draws.between(w // 6, w * 5 // 6),
            draws.between(h // 2, h * 9 // 10),
            w // draws.between(8, 14),
        )
        ellipse(canvas, at_x, at_y, r, r, (250, 250, 244))
        ellipse(canvas, at_x, at_y, r * 5 // 6, r * 5 // 6, vivid(draws))
        text(canvas, draws, at_x - r // 2, at_y - 3 * small, r, small, (255, 255, 255))
    if draws.chance(50):
        _barcode(canvas, draws, w * draws.between(5, 70) // 100, h * 88 // 100, w // 4, h // 10)
    relief(canvas, smooth_noise(draws, h, w, w // 5, 12))
    return canvas


def _cover_ground(canvas: Canvas, draws: Draws, tone: Colour) -> None:
    h, w = canvas.shape[:2]
    style, step = draws.below(5), max(6, w // draws.between(6, 20))
    if style == 0:
        bar(canvas, 0, h * draws.between(30, 80) // 100, w, h, tone)
    elif style == 1:
        for x in range(0, w, 2 * step):
            bar(canvas, x, 0, step, h, tone)
    elif style == 2:
        diagonal = np.arange(h)[:, None] + np.arange(w)[None, :]
        canvas[diagonal // step % 2 == 0] = tone
    elif style == 3:
        for row, y in enumerate(range(0, h, step)):
            for x in range(row % 2 * step // 2, w, step):
                ellipse(canvas, x, y, step // 4, step // 4, tone)
    else:
        triangle(canvas, [(0, 0), (w, 0), (0, h * draws.between(50, 180) // 100)], tone)


def _barcode(canvas: Canvas, draws: Draws, x: int, y: int, w: int, h: int) -> None:
    bar(canvas, x, y, w, h, (248, 248, 246))
    at = x + 2
    while at < x + w - 3:
        wide = draws.between(1, 3)
        bar(canvas, at, y + 2, wide, h - 4, (16, 16, 18))
        at += wide + draws.between(1, 3)


def edge_face(draws: Draws, front: Canvas, h: int, w: int) -> Canvas:
    """A narrow side or top of a box: the front's colour, with a line of text."""
    tone = tuple(int(c) for c in front[front.shape[0] // 2, 0])
    canvas = blank(h, w, shaded((tone[0], tone[1], tone[2]), 80))
    relief(canvas, smooth_noise(draws, h, w, h // 8, 24))
    unit = max(1, min(h, w) // 14)
    text(canvas, draws, unit, h // 2 - 3 * unit, w - 2 * unit, unit, (240, 238, 230))
    frame(canvas, 0, 0, w, h, 1, shaded((tone[0], tone[1], tone[2]), 50))
    return canvas


def clutter(draws: Draws, style: int, size: int) -> Canvas:
    """A square of background, by style from 0 to 3: shelves, leaves, paving, cloth. Many scenes share it."""
    canvas = blank(size, size, tinted(draws, (120, 112, 100), 14 if style == 2 else 40))
    if style == 0:
        _shelves(canvas, draws)
    elif style == 1:
        for _ in range(260):
            tone = tinted(draws, (70, 104, 52), 38)
            ellipse(
                canvas, draws.below(size), draws.below(size), draws.between(3, 11), draws.between(3, 9), tone
            )
    elif style == 2:
        relief(canvas, _masonry(draws, size, size))
    else:
        tones = [vivid(draws) for _ in range(3)]
        for _ in range(24):
            bar(canvas, 0, draws.below(size), size, draws.between(1, 8), draws.pick(tones))
            bar(canvas, draws.below(size), 0, draws.between(1, 8), size, draws.pick(tones))
    relief(canvas, smooth_noise(draws, size, size, 16, 26))
    return canvas


def _shelves(canvas: Canvas, draws: Draws) -> None:
    size = canvas.shape[0]
    rows = draws.between(3, 5)
    for row in range(rows):
        bottom, high, x = size * (row + 1) // rows, size // rows, 0
        while x < size:
            wide, tall = draws.between(6, 22), high * draws.between(60, 95) // 100
            tone = vivid(draws)
            bar(canvas, x, bottom - tall, wide, tall, tone)
            bar(canvas, x, bottom - tall, 1, tall, shaded(tone, 55))
            text(canvas, draws, x + 2, bottom - tall * 2 // 3, wide - 3, 1, (240, 236, 220))
            x += wide
        bar(canvas, 0, bottom - 3, size, 3, (92, 66, 44))
