"""Marks on a picture: the brushes that the synthetic scenes are painted with.

A canvas is (h, w, 3) uint8, RGB; every brush writes into it, clipped at its borders, with integers only.
Positions and sizes are whole pixels; (0, 0) is the top-left pixel.
"""

import numpy as np
from jaxtyping import Bool, Int16, Int32, UInt8

from ingest.scene_random import Draws

Canvas = UInt8[np.ndarray, "h w 3"]
Colour = tuple[int, int, int]


def blank(h: int, w: int, colour: Colour) -> Canvas:
    canvas = np.empty((h, w, 3), np.uint8)
    canvas[:] = colour
    return canvas


def vivid(draws: Draws) -> Colour:
    """A saturated colour of any hue, of middle lightness."""
    hue, dark, light = draws.below(1536), draws.between(20, 90), draws.between(150, 235)
    ramp = [max(0, min(255, abs((hue + 1536 - at) % 1536 - 768) - 256)) for at in (0, 512, 1024)]
    r, g, b = (dark + (light - dark) * value // 255 for value in ramp)
    return r, g, b


def tinted(draws: Draws, colour: Colour, spread: int) -> Colour:
    """A colour near another."""
    r, g, b = (max(0, min(255, c + draws.between(-spread, spread))) for c in colour)
    return r, g, b


def shaded(colour: Colour, percent: int) -> Colour:
    r, g, b = (min(255, c * percent // 100) for c in colour)
    return r, g, b


def bar(canvas: Canvas, x: int, y: int, w: int, h: int, colour: Colour) -> None:
    """A filled rectangle."""
    canvas[max(0, y) : max(0, y + h), max(0, x) : max(0, x + w)] = colour


def frame(canvas: Canvas, x: int, y: int, w: int, h: int, t: int, colour: Colour) -> None:
    """The outline of a rectangle, t thick, inside it."""
    for at in ((x, y, w, t), (x, y + h - t, w, t), (x, y, t, h), (x + w - t, y, t, h)):
        bar(canvas, *at, colour)


def _window(canvas: Canvas, x: int, y: int, w: int, h: int) -> tuple[Canvas, int, int]:
    """The part of a canvas under a rectangle, and that part's own left and top."""
    left, top = max(0, x), max(0, y)
    return canvas[top : max(top, y + h), left : max(left, x + w)], left, top


def ellipse(canvas: Canvas, x: int, y: int, rx: int, ry: int, colour: Colour) -> None:
    """A filled ellipse about (x, y)."""
    part, left, top = _window(canvas, x - rx, y - ry, 2 * rx + 1, 2 * ry + 1)
    dx = np.arange(left - x, left - x + part.shape[1]) * ry
    dy = np.arange(top - y, top - y + part.shape[0]) * rx
    part[(dx * dx)[None, :] + (dy * dy)[:, None] <= rx * rx * ry * ry] = colour


def triangle(canvas: Canvas, corners: list[tuple[int, int]], colour: Colour) -> None:
    """A filled triangle, of either orientation."""
    xs, ys = [c[0] for c in corners], [c[1] for c in corners]
    part, left, top = _window(canvas, min(xs), min(ys), max(xs) - min(xs) + 1, max(ys) - min(ys) + 1)
    px = np.arange(left, left + part.shape[1])[None, :]
    py = np.arange(top, top + part.shape[0])[:, None]
    sides = []
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        sides.append((bx - ax) * (py - ay) - (by - ay) * (px - ax) >= 0)
    part[(sides[0] == sides[1]) & (sides[1] == sides[2])] = colour


def text(canvas: Canvas, draws: Draws, x: int, y: int, w: int, unit: int, colour: Colour) -> None:
    """A line of text-like marks in words, w wide, letters 5 x 7 units of `unit` pixels."""
    letters = max(1, w // (6 * unit))
    bits = np.zeros((7, letters, 6), bool)
    ink = (draws.array(letters)[:, None] >> np.arange(35, dtype=np.uint64)) & np.uint64(1)
    ink = ink.reshape(letters, 7, 5).astype(bool)
    ink[:, :, 0] |= ink[:, 0, :1]  # stems make the marks look like letters
    ink[:, 3, 1:4] |= ink[:, 1, 1:2]
    bits[:, :, :5] = ink.transpose(1, 0, 2)
    bits[:, (draws.array(letters) & np.uint64(7)) == 0] = False
    line = bits.reshape(7, letters * 6).repeat(unit, 0).repeat(unit, 1)
    part, left, top = _window(canvas, x, y, line.shape[1], line.shape[0])
    part[line[top - y : top - y + part.shape[0], left - x : left - x + part.shape[1]]] = colour


def picture(canvas: Canvas, draws: Draws, x: int, y: int, w: int, h: int, marks: int) -> None:
    """An abstract picture of overlapping shapes in a few colours, clipped to a rectangle."""
    part, _, _ = _window(canvas, x, y, w, h)
    h, w = part.shape[:2]
    if h < 4 or w < 4:
        return
    colours = [vivid(draws) for _ in range(4)] + [(240, 236, 224), (28, 28, 34)]
    part[:] = draws.pick(colours)
    for mark in range(marks):
        size = max(2, min(w, h) * draws.between(6, 38) // (100 + 4 * mark))
        at_x, at_y, colour = draws.below(w), draws.below(h), draws.pick(colours)
        shape = draws.below(4)
        if shape == 0:
            ellipse(part, at_x, at_y, size, max(2, size * draws.between(40, 130) // 100), colour)
        elif shape == 1:
            bar(part, at_x, at_y, size * 2, max(2, size // draws.between(1, 5)), colour)
        elif shape == 2:
            bar(part, at_x, at_y, max(2, size // draws.between(1, 5)), size * 2, colour)
        else:
            spread = 2 * size
            corners = [
                (at_x + draws.between(-spread, spread), at_y + draws.between(-spread, spread))
                for _ in range(3)
            ]
            triangle(part, corners, colour)


def smooth_noise(draws: Draws, h: int, w: int, cell: int, amplitude: int) -> Int16[np.ndarray, "h w"]:
    """Value noise between -amplitude and amplitude: random values, linear between them.

    They lie 2, 4, 8, ... pixels apart, the greatest of these that does not exceed `cell`.
    """
    bits = max(1, cell.bit_length() - 1)
    step = 1 << bits
    rows, columns = (h >> bits) + 2, (w >> bits) + 2
    grid = (draws.bytes(rows * columns).reshape(rows, columns).astype(np.int32) - 128) * amplitude
    ramp = np.arange(step, dtype=np.int32)
    down: Int32[np.ndarray, "rows columns"] = grid[1:] - grid[:-1]
    lines: Int32[np.ndarray, "cells step columns"] = (grid[:-1, None] << bits) + down[:, None] * ramp[:, None]
    by_row: Int32[np.ndarray, "h columns"] = lines.reshape(-1, columns)[:h] >> (bits + 3)
    across: Int32[np.ndarray, "h columns"] = by_row[:, 1:] - by_row[:, :-1]
    values: Int32[np.ndarray, "h columns step"] = (by_row[:, :-1, None] << bits) + across[:, :, None] * ramp
    noise: Int16[np.ndarray, "h w"] = (values.reshape(h, -1)[:, :w] >> (bits + 4)).astype(np.int16)
    return noise


def relief(canvas: Canvas, change: Int16[np.ndarray, "h w"]) -> None:
    """Adds a brightness to every pixel, the same in the three channels."""
    canvas[:] = np.clip(canvas + change[:, :, None], 0, 255)


def masked_stamp(canvas: Canvas, stamp: Canvas, painted: Bool[np.ndarray, "h w"], x: int, y: int) -> None:
    """Copies the painted pixels of a small canvas onto a large one."""
    part, left, top = _window(canvas, x, y, stamp.shape[1], stamp.shape[0])
    here = slice(top - y, top - y + part.shape[0]), slice(left - x, left - x + part.shape[1])
    np.copyto(part, stamp[here], where=painted[here][:, :, None])
