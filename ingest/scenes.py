"""The project's own scenes: what stands there, where the camera was, and the picture it took.

A scene is a box with a painted front (a building of 10 to 18 m, or a package of 12 to 30 cm) on a ground,
before a background. Ground, background and neighbours come from a small common stock, so that different
scenes share them, as real ones do. Each view has its own camera, light, blur, noise and things in the way.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import UInt8, UInt16

from ingest import scene_textures
from ingest.scene_camera import (
    Camera,
    Packed,
    Pyramid,
    Surface,
    blurred,
    develop,
    draw_surface,
    look_at,
    pack,
    pyramid,
    tone_table,
    turn,
)
from ingest.scene_random import Draws

VERSION = 1  # of the pixels and the ground truth: any change to either is a new one

Kind = Literal["facade", "object", "distractor"]
KINDS: tuple[Kind, ...] = ("distractor", "facade", "object")

_STOCK = 12  # pieces of clutter that the scenes of one seed share
_SPACING_M = 60.0
_STREETS = 256
_METRES_A_DEGREE = 111_195.0  # on a sphere of 6,371 km
_STREAMS = {"shape": 1, "paint": 2, "view": 3, "stock": 4, "neighbour": 5, "light": 6}


@dataclass(frozen=True)
class Shot:
    """One view of one scene. size: the longer side in pixels; the shorter is three quarters of it."""

    seed: int
    kind: Kind
    number: int
    view: int
    size: int

    def draws(self, stream: str, *more: int) -> Draws:
        """The draws of the scene (one stream for all its views), or with `more` of something in it."""
        return Draws(self.seed, KINDS.index(self.kind), self.number, _STREAMS[stream], *more)


@dataclass(frozen=True)
class Box:
    """A scene's box, in metres: width, height, depth; and whether it is a building."""

    w: float
    h: float
    d: float
    building: bool


def box_of(shot: Shot) -> Box:
    """The shape of a scene's box, the same in all its views."""
    return _box(shot.seed, shot.kind, shot.number)


@lru_cache(maxsize=8)
def _box(seed: int, kind: Kind, number: int) -> Box:
    draws = Shot(seed, kind, number, 0, 0).draws("shape")
    building = kind == "facade" or (kind == "distractor" and draws.chance(50))
    if building:
        w = draws.real(10.0, 18.0)
        return Box(w, w * draws.real(0.62, 0.95), draws.real(6.0, 12.0), True)
    w = draws.real(0.12, 0.24)
    return Box(w, w * draws.real(0.8, 1.45), w * draws.real(0.12, 0.4), False)


def camera_of(shot: Shot) -> Camera:
    """Where a view was taken from: in front of the box, up to about 40 degrees to either side."""
    draws, box = shot.draws("view", shot.view), box_of(shot)
    portrait = draws.chance(25)
    short = shot.size * 3 // 4
    width, height = (short, shot.size) if portrait else (shot.size, short)
    focal = shot.size * draws.real(0.85, 1.25)
    cosine, sine = turn(draws.real(-0.36, 0.36))
    if box.building:
        distance = focal * box.w / (width * draws.real(0.72, 1.25))
        target = (box.w * draws.real(-0.12, 0.12), box.h * draws.real(0.38, 0.56), 0.0)
        position = (target[0] + distance * sine, draws.real(1.4, 2.6), distance * cosine)
        roll = draws.real(-0.025, 0.025)
    else:
        distance = focal * max(box.w / width, box.h / height) / draws.real(0.6, 1.1)
        target = (box.w * draws.real(-0.15, 0.15), box.h * draws.real(0.4, 0.6), 0.0)
        raised = target[1] + distance * draws.real(0.05, 0.45)
        position = (target[0] + distance * sine, raised, distance * cosine)
        roll = draws.real(-0.12, 0.12)
    return look_at(position, target, roll, focal, width, height)


def ground_truth(shot: Shot, camera: Camera) -> dict[str, str | int | float]:
    """What is known of a view, given `camera_of` it.

    scene (the label), view, kind; x, y, z: the camera's place in metres east, north and up of the origin of
    a fictitious town; heading: degrees clockwise from north, [0, 360); lat, lon: the same place in degrees,
    with the origin at (0, 0). All rounded, so that they are the same on every machine.
    """
    block = shot.number // _STREETS * len(KINDS) + KINDS.index(shot.kind)
    x = _SPACING_M * (1 + shot.number % _STREETS) + camera.position[0]
    y = _SPACING_M * (1 + block) - camera.position[2]  # fronts face south
    heading = math.degrees(math.atan2(camera.forward[0], -camera.forward[2])) % 360.0
    return {
        "scene": scene_name(shot.kind, shot.number),
        "view": shot.view,
        "kind": shot.kind,
        "x": round(x, 3),
        "y": round(y, 3),
        "z": round(camera.position[1], 3),
        "heading": round(heading, 2) % 360.0,
        "lat": round(y / _METRES_A_DEGREE, 7),
        "lon": round(x / _METRES_A_DEGREE, 7),
    }


def scene_name(kind: Kind, number: int) -> str:
    return f"{kind}-{number:06d}"


def render(shot: Shot) -> UInt8[np.ndarray, "h w 3"]:
    """The picture: (h, w, 3) uint8, RGB."""
    camera, box = camera_of(shot), box_of(shot)
    draws = shot.draws("light", shot.view)
    image = _background(shot, camera, box, draws)
    for surface in _surroundings(shot, box, draws) + _faces(shot, camera, box):
        draw_surface(image, camera, surface)
    for _ in range(draws.pick((0, 0, 1, 1, 2))):
        _occlude(image, shot, draws)
    for _ in range(draws.pick((0, 0, 1, 1, 2)) if shot.size >= 240 else draws.below(2)):
        image = blurred(image)
    gain, bend = draws.real(0.72, 1.22), draws.real(-0.45, 0.8)
    tables = [tone_table(gain * draws.real(0.93, 1.07), bend) for _ in range(3)]
    light = _light(camera.height, camera.width, draws)
    return develop(image, tables, light, draws.between(16, 110), draws)


@lru_cache(maxsize=8)
def _painted(seed: int, kind: Kind, number: int, size: int) -> tuple[Pyramid, Pyramid, Pyramid]:
    """Front, side and top of a scene's box. Cached, since a scene's views are asked for one after another."""
    shot = Shot(seed, kind, number, 0, size)
    box, draws = box_of(shot), shot.draws("paint")
    if box.building:
        w = size * 6 // 5
        front = scene_textures.facade(draws, int(w * box.h / box.w), w)
        side = np.ascontiguousarray(front[:, : w // 3][:, ::-1])  # the same wall goes round the corner
        return pyramid(front), pyramid(side), pyramid(front[:8, :8])
    longer = size * 9 // 10
    w = int(longer * min(1.0, box.w / box.h))
    h = int(longer * min(1.0, box.h / box.w))
    front = scene_textures.cover(draws, h, w)
    deep = max(8, int(w * box.d / box.w))
    side = np.ascontiguousarray(scene_textures.edge_face(draws, front, deep, h).transpose(1, 0, 2))
    return pyramid(front), pyramid(side), pyramid(scene_textures.edge_face(draws, front, deep, w))


@lru_cache(maxsize=_STOCK)
def _stock(seed: int, piece: int) -> Pyramid:
    return pyramid(scene_textures.clutter(Draws(seed, 0, 0, _STREAMS["stock"], piece), piece % 4, 256))


@lru_cache(maxsize=_STOCK)
def _out_of_focus(seed: int, piece: int) -> Packed:
    texture = _stock(seed, piece)[0]
    for _ in range(5):
        texture = blurred(texture)
    return texture


@lru_cache(maxsize=4)
def _neighbour(seed: int, piece: int, size: int) -> Pyramid:
    return pyramid(
        scene_textures.facade(Draws(seed, 0, 0, _STREAMS["neighbour"], piece), size // 2, size // 2)
    )


def _background(shot: Shot, camera: Camera, box: Box, draws: Draws) -> Packed:
    """The sky, paler towards the horizon; or, behind an object, a wall of clutter."""
    h, w = camera.height, camera.width
    if not box.building:
        piece = _out_of_focus(shot.seed, draws.below(_STOCK))
        texels = draws.between(200, 400)  # across the picture
        rows = (np.arange(h) * texels // shot.size + draws.below(256)) & 255
        columns = (np.arange(w) * texels // shot.size + draws.below(256)) & 255
        backdrop: Packed = piece[rows[:, None], columns[None, :]]
        return backdrop
    zenith, horizon = draws.pick(_SKIES), (226, 228, 230)
    rows = np.arange(h, dtype=np.int64)[:, None]
    lines = (np.array(zenith) * (h - rows) + np.array(horizon) * rows) // h
    return np.repeat(pack(lines[:, None, :].astype(np.uint8)), w, axis=1)


_SKIES = ((104, 150, 210), (150, 176, 204), (188, 194, 200), (86, 112, 160), (214, 206, 190))


def _surroundings(shot: Shot, box: Box, draws: Draws) -> list[Surface]:
    """The ground, and the buildings to either side."""
    reach = 4.0 * max(box.w, box.h)
    tiles = 8.0 if box.building else 3.0
    floor = 4 * draws.below(_STOCK // 4) + (
        2 if box.building else draws.between(1, 3)
    )  # no shelves on floors
    ground = Surface(
        (-reach, 0.0, -reach / 4),
        (2 * reach, 0.0, 0.0),
        (0.0, 0.0, reach * 1.25),
        _stock(shot.seed, floor),
        (tiles, tiles * 0.6),
    )
    surfaces = [ground]
    if box.building:
        for side in (-1, 1):
            if draws.chance(65):
                w, h, gap = box.w * draws.real(0.6, 1.0), box.h * draws.real(0.6, 1.15), draws.real(0.0, 3.0)
                left = box.w / 2 + gap if side > 0 else -box.w / 2 - gap - w
                texture = _neighbour(shot.seed, draws.below(4), shot.size)
                surfaces.append(Surface((left, h, -0.5), (w, 0.0, 0.0), (0.0, -h, 0.0), texture))
    return surfaces


def _faces(shot: Shot, camera: Camera, box: Box) -> list[Surface]:
    """The faces of the box that the camera sees; they never cover one another."""
    front, side, top = _painted(shot.seed, shot.kind, shot.number, shot.size)
    x, y, _ = camera.position
    half = box.w / 2
    faces = []
    if x > half:
        faces.append(Surface((half, box.h, 0.0), (0.0, 0.0, -box.d), (0.0, -box.h, 0.0), side))
    elif x < -half:
        faces.append(Surface((-half, box.h, -box.d), (0.0, 0.0, box.d), (0.0, -box.h, 0.0), side))
    if y > box.h:
        faces.append(Surface((-half, box.h, -box.d), (box.w, 0.0, 0.0), (0.0, 0.0, box.d), top))
    return [*faces, Surface((-half, box.h, 0.0), (box.w, 0.0, 0.0), (0.0, -box.h, 0.0), front)]


def _occlude(image: Packed, shot: Shot, draws: Draws) -> None:
    """Something in the way: a post, or a round thing that stands on the lower border."""
    h, w = image.shape
    piece = _stock(shot.seed, draws.below(_STOCK))[0]
    if draws.chance(40):
        wide, at = w * draws.between(2, 7) // 100, draws.below(w)
        image[:, at : at + wide] = piece[draws.below(200), 0]
        return
    rx, ry = w * draws.between(5, 15) // 100, h * draws.between(12, 32) // 100
    x, y = draws.below(w), h - draws.between(0, ry)
    left, right, top, bottom = max(0, x - rx), min(w, x + rx), max(0, y - ry), min(h, y + ry)
    dx, dy = (np.arange(left, right) - x) * ry, (np.arange(top, bottom) - y) * rx
    inside = (dx * dx)[None, :] + (dy * dy)[:, None] <= rx * rx * ry * ry
    rows, columns = np.arange(top, bottom) & 255, np.arange(left, right) & 255
    np.copyto(image[top:bottom, left:right], piece[rows[:, None], columns[None, :]], where=inside)


def _light(h: int, w: int, draws: Draws) -> UInt16[np.ndarray, "h w"]:
    """Light on the picture, 256 full: a slope across it, and sometimes a cast shadow with a straight edge."""
    across, down = draws.between(-90, 90), draws.between(-50, 50)
    x, y = np.arange(w, dtype=np.int32)[None, :], np.arange(h, dtype=np.int32)[:, None]
    light = (
        256
        - abs(across) // 2
        - abs(down) // 2
        + across * (2 * x - w) // (2 * w)
        + down * (2 * y - h) // (2 * h)
    )
    if draws.chance(35):
        slope, at = draws.between(-120, 120), draws.between(-20, 120)
        shadow = 100 * x + slope * (y - h // 2) < at * w
        light = np.where(shadow, light * draws.between(45, 75) // 100, light)
    full: UInt16[np.ndarray, "h w"] = np.clip(light, 0, 256).astype(np.uint16)
    return full
