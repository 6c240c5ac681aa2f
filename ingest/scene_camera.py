"""Photographs of flat surfaces: cameras, the perspective of a plane, and what a camera does to a picture.

World: x right along the front, y up, z out of the front towards the viewer, in metres; the front's foot
is the origin. Image: x right, y down, in pixels; the centre of the top-left pixel is (0, 0).

Only + - * / and sqrt of doubles, which IEEE 754 rounds in one way, and integers: the same pixels on every
machine. Pixels travel packed, three lanes of 20 bits in a uint64, so that one gather fetches a colour.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float64, Int16, Int64, UInt8, UInt16, UInt64

from ingest.scene_paint import Canvas
from ingest.scene_random import Draws

Vector = tuple[float, float, float]
Packed = UInt64[np.ndarray, "h w"]

Pyramid = tuple[Packed, ...]

_GRAINS = 1 << 18
_STRIP = 8192  # pixels drawn at a time, so that what is between stays in the cache
_LANE = np.uint64(0xFF | 0xFF << 20 | 0xFF << 40)
_SUB = 64  # positions between texels; 255 x 64 x 64 fits a lane
_HALF = np.uint64(2048 | 2048 << 20 | 2048 << 40)


def pack(canvas: Canvas) -> Packed:
    """(h, w, 3) uint8 to (h, w) uint64, one lane of 20 bits a channel."""
    wide = canvas.astype(np.uint64)
    packed: Packed = wide[..., 0] | wide[..., 1] << np.uint64(20) | wide[..., 2] << np.uint64(40)
    return packed


def halved(texture: Packed) -> Packed:
    """Half the width and height: the mean of two by two texels."""
    h, w = texture.shape[0] // 2 * 2, texture.shape[1] // 2 * 2
    total = texture[0:h:2, 0:w:2] + texture[1:h:2, 0:w:2] + texture[0:h:2, 1:w:2] + texture[1:h:2, 1:w:2]
    mean: Packed = (total >> np.uint64(2)) & _LANE
    return mean


def pyramid(canvas: Canvas) -> Pyramid:
    """A packed canvas at full size, half, a quarter, ... down to about 16 texels."""
    levels = [pack(canvas)]
    while min(levels[-1].shape) > 16:
        levels.append(halved(levels[-1]))
    return tuple(levels)


def _dot(a: Vector, b: Vector) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _cross(a: Vector, b: Vector) -> Vector:
    return (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])


def _minus(a: Vector, b: Vector) -> Vector:
    return (a[0] - b[0], a[1] - b[1], a[2] - b[2])


def _unit(a: Vector) -> Vector:
    norm = math.sqrt(_dot(a, a))
    return (a[0] / norm, a[1] / norm, a[2] / norm)


def turn(half_tangent: float) -> tuple[float, float]:
    """(cosine, sine) of twice the angle with this tangent, by rational functions alone."""
    t2 = half_tangent * half_tangent
    return (1 - t2) / (1 + t2), 2 * half_tangent / (1 + t2)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: its place, its axes (unit vectors), its focal length and picture size in pixels."""

    position: Vector
    right: Vector
    down: Vector
    forward: Vector
    focal: float
    width: int
    height: int


def look_at(position: Vector, target: Vector, roll: float, focal: float, width: int, height: int) -> Camera:
    """A camera that sees `target` in the middle; `roll` is the tangent of half its turn about the axis."""
    forward = _unit(_minus(target, position))
    right = _unit(_cross(forward, (0.0, 1.0, 0.0)))
    down = _cross(forward, right)
    c, s = turn(roll)
    turned = tuple(c * r + s * d for r, d in zip(right, down, strict=True))
    across = tuple(c * d - s * r for r, d in zip(right, down, strict=True))
    return Camera(
        position,
        (turned[0], turned[1], turned[2]),
        (across[0], across[1], across[2]),
        forward,
        focal,
        width,
        height,
    )


@dataclass(frozen=True)
class Surface:
    """A textured rectangle: its top-left corner, its edges along the texture's x and y, in metres.

    texture: its levels; `tiles`: repeats along x and y, not interpolated; (0, 0) for one, interpolated.
    """

    corner: Vector
    along: Vector
    downward: Vector
    texture: Pyramid
    tiles: tuple[float, float] = (0.0, 0.0)


def draw_surface(image: Packed, camera: Camera, surface: Surface) -> None:
    """Draws a surface where it lies in front of the camera, over what is there."""
    inverse = _image_to_surface(camera, surface)
    box = _bounds(camera, surface)
    if inverse is None or box is None:
        return
    texture = _level(surface, box)
    left, top, right, bottom = box
    step = max(1, _STRIP // (right - left))
    for row in range(top, bottom, step):
        strip = image[row : min(bottom, row + step), left:right]
        _draw_strip(
            strip, left - (camera.width - 1) / 2, row - (camera.height - 1) / 2, inverse, surface, texture
        )


def _level(surface: Surface, box: tuple[int, int, int, int]) -> Packed:
    """The smallest level with about a texel a pixel."""
    left, top, right, bottom = box
    level = 0
    while level + 1 < len(surface.texture):
        h, w = surface.texture[level].shape
        across, down = max(1.0, surface.tiles[0]), max(1.0, surface.tiles[1])
        if w * across <= 1.7 * (right - left) or h * down <= 1.7 * (bottom - top):
            break
        level += 1
    return surface.texture[level]


def _draw_strip(
    strip: Packed,
    left: float,
    top: float,
    inverse: tuple[Vector, Vector, Vector],
    surface: Surface,
    texture: Packed,
) -> None:
    """Draws into rows of the image whose first pixel is at (left, top) from the image's centre."""
    x = (np.arange(strip.shape[1]) + left)[None, :]
    y = (np.arange(strip.shape[0]) + top)[:, None]
    (a, b, c), (d, e, f), (g, h, i) = inverse
    depth = (g * x + i) + h * y  # 1 / distance along the axis: positive in front of the camera
    seen = depth > 1e-9
    reciprocal = 1.0 / np.where(seen, depth, 1.0)
    s = ((a * x + c) + b * y) * reciprocal
    t = ((d * x + f) + e * y) * reciprocal
    seen &= (s >= 0) & (s < 1) & (t >= 0) & (t < 1)
    np.copyto(strip, _sample(texture, s, t, surface.tiles), where=seen)


def _image_to_surface(camera: Camera, surface: Surface) -> tuple[Vector, Vector, Vector] | None:
    """The homography from centred pixels to (s, t, 1) / depth, s and t from 0 to 1; None if edge-on."""

    def seen(v: Vector) -> Vector:
        return (
            camera.focal * _dot(camera.right, v),
            camera.focal * _dot(camera.down, v),
            _dot(camera.forward, v),
        )

    p, q = seen(surface.along), seen(surface.downward)
    r = seen(_minus(surface.corner, camera.position))
    rows = _cross(q, r), _cross(r, p), _cross(p, q)  # the adjugate of (p q r)
    determinant = _dot(p, rows[0])
    if abs(determinant) < 1e-12:
        return None
    inverse = [(v[0] / determinant, v[1] / determinant, v[2] / determinant) for v in rows]
    return inverse[0], inverse[1], inverse[2]


def _bounds(camera: Camera, surface: Surface) -> tuple[int, int, int, int] | None:
    """The part of the image that a surface can cover: left, top, right, bottom (exclusive); None if none."""
    xs, ys = [], []
    for u, v in ((0, 0), (1, 0), (0, 1), (1, 1)):
        corner = _minus(surface.corner, camera.position)
        at = tuple(corner[k] + u * surface.along[k] + v * surface.downward[k] for k in range(3))
        ray = (at[0], at[1], at[2])
        depth = _dot(camera.forward, ray)
        if depth < 1e-3:
            return 0, 0, camera.width, camera.height
        xs.append(camera.focal * _dot(camera.right, ray) / depth + camera.width / 2)
        ys.append(camera.focal * _dot(camera.down, ray) / depth + camera.height / 2)
    left, right = max(0, math.floor(min(xs)) - 1), min(camera.width, math.ceil(max(xs)) + 2)
    top, bottom = max(0, math.floor(min(ys)) - 1), min(camera.height, math.ceil(max(ys)) + 2)
    return (left, top, right, bottom) if left < right and top < bottom else None


def _sample(
    texture: Packed, s: Float64[np.ndarray, "h w"], t: Float64[np.ndarray, "h w"], tiles: tuple[float, float]
) -> Packed:
    """Samples at (s, t): bilinear to 1/64 of a texel, or nearest where tiled. Outside they mean nothing."""
    h, w = texture.shape
    flat = texture.ravel()
    if tiles[0]:
        u, v = _fixed(s, w * tiles[0]) >> 6, _fixed(t, h * tiles[1]) >> 6
        nearest: Packed = flat.take((v % h) * w + u % w)
        return nearest
    u = np.minimum(_fixed(s, float(w - 1)), (w - 1) * _SUB - 1)
    v = np.minimum(_fixed(t, float(h - 1)), (h - 1) * _SUB - 1)
    at = (v >> 6) * w + (u >> 6)
    fx, fy = (u & 63).view(np.uint64), (v & 63).view(np.uint64)
    gx, gy = np.uint64(_SUB) - fx, np.uint64(_SUB) - fy
    upper = flat.take(at) * gx + flat.take(at + 1) * fx
    at += w
    lower = flat.take(at) * gx + flat.take(at + 1) * fx
    mixed: Packed = ((upper * gy + lower * fy + _HALF) >> np.uint64(12)) & _LANE
    return mixed


def _fixed(position: Float64[np.ndarray, "h w"], texels: float) -> Int64[np.ndarray, "h w"]:
    """Positions from 0 to 1, clipped to them, in 1/64 of a texel, rounded down."""
    scaled = np.minimum(np.maximum(position, 0.0), 1.0) * (texels * _SUB)
    fixed: Int64[np.ndarray, "h w"] = scaled.astype(np.int64)
    return fixed


def blurred(image: Packed) -> Packed:
    """The image under the binomial filter (1 2 1) x (1 2 1) / 16, borders repeated."""
    wide = np.pad(image, 1, mode="edge")
    rows = wide[:-2] + wide[1:-1] * np.uint64(2) + wide[2:]
    both = rows[:, :-2] + rows[:, 1:-1] * np.uint64(2) + rows[:, 2:]
    mean: Packed = (both + np.uint64(8 | 8 << 20 | 8 << 40)) >> np.uint64(4) & _LANE
    return mean


def tone_table(gain: float, bend: float) -> UInt8[np.ndarray, " 256"]:
    """Brightness out for brightness in: v -> gain v (1 + bend) / (1 + bend v), v from 0 to 1.

    A rational stand-in for gamma: `bend` above 0 lifts the dark tones, below 0 deepens them.
    """
    v = np.arange(256) / 255.0
    out = 255.0 * gain * (v * (1.0 + bend)) / (1.0 + bend * v)
    return np.clip(out + 0.5, 0.0, 255.0).astype(np.uint8)


def develop(
    image: Packed,
    tables: list[UInt8[np.ndarray, " 256"]],
    light: UInt16[np.ndarray, "h w"],
    noise: int,
    draws: Draws,
) -> Canvas:
    """Packed pixels to (h, w, 3) uint8.

    tables: tone of each channel; light: 256 is full; noise: its standard deviation in 1/16 levels.
    """
    out = np.empty((*image.shape, 3), np.int16)
    for channel, table in enumerate(tables):
        value = table.take(((image >> np.uint64(20 * channel)) & np.uint64(255)).astype(np.uint8))
        out[..., channel] = (value.astype(np.uint16) * light) >> np.uint16(8)
    if noise:
        grain = np.resize(np.roll(_grain(), draws.below(_GRAINS)), out.shape)
        out += (grain * np.int16(noise)) >> np.int16(8)
    return np.clip(out, 0, 255).astype(np.uint8)


@lru_cache(maxsize=1)
def _grain() -> Int16[np.ndarray, " n"]:
    """Sums of four random bytes, centred: near enough to normal, with standard deviation 16."""
    four = Draws(0x6E6F697365).bytes(4 * _GRAINS).reshape(-1, 4)
    grain: Int16[np.ndarray, " n"] = ((four.sum(axis=1, dtype=np.int16) - 510) * 7 >> 6).astype(np.int16)
    return grain
