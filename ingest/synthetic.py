"""A source of synthetic scenes with known labels and camera positions: `synthetic:scenes=250,seed=1`.

An image is rendered when it is read, from its key and the settings alone: in any order, by any worker, the
same bytes. Adding scenes, views or distractors adds keys and changes none. Keys are
`facade-000012/view-02.bmp`, `object-000003/view-00.bmp` and `distractor-000250/view-00.bmp`; of the scenes
every other one is a facade. What a view shows is in `ingest.scenes`; its pixels are frozen for a version.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ingest.errors import BadInput, NotFound
from ingest.scenes import VERSION, Kind, Shot, camera_of, ground_truth, render, scene_name
from ingest.sources import Listed, Skipped, Source

_HEADER = struct.Struct("<2sIHHI IiiHHIIiiII")
_KEY = re.compile(r"(facade|object|distractor)-([0-9]{6,})/view-([0-9]{2,})\.bmp")


class SyntheticSettings(BaseModel):
    """What is rendered. Cost: see docs/synthetic.md; nothing is kept but a few surfaces a process."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scenes: int = Field(
        250, ge=0, le=10**9, description="things shown in several views, half of them facades"
    )
    views: int = Field(3, ge=1, le=10_000, description="views of each scene")
    distractors: int = Field(250, ge=0, le=10**9, description="more things, shown in one view each")
    size: int = Field(
        320, ge=64, le=2048, description="longer side in pixels; the time an image grows with its square"
    )
    seed: int = Field(1, ge=0, le=2**63 - 1, description="another seed is another town")


def open_synthetic(name: str | None, url: str) -> Source:
    """Opens `synthetic:KEY=VALUE,...`. `BadInput` for a key that is unknown, twice, or out of bounds."""
    given: dict[str, str] = {}
    for item in filter(None, url.partition(":")[2].split(",")):
        key, equals, value = item.partition("=")
        if not equals or key in given or not re.fullmatch(r"[0-9]{1,19}", value):
            raise BadInput(f"{url!r}: {item!r} is not KEY=NUMBER, given once; {_choices()}")
        given[key] = value
    try:
        settings = SyntheticSettings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(f"{url!r}: {first['loc'][0]}: {first['msg']}; {_choices()}") from None
    return Synthetic(name or "synthetic", url, settings)


def _choices() -> str:
    fields = SyntheticSettings.model_fields.items()
    return "choose from " + ", ".join(f"{name}={field.default}" for name, field in fields)


@dataclass(frozen=True)
class Synthetic:
    """The scenes of one seed and size."""

    name: str
    url: str
    settings: SyntheticSettings

    def listing(self) -> Iterator[Listed | Skipped]:
        """Every view of every scene: distractors, facades, objects, each by number and view."""
        version = f"{VERSION}-{self.settings.seed}-{self.settings.size}"
        for kind, count in self._counts().items():
            for number in range(count):
                for view in range(self._views(kind)):
                    shot = Shot(self.settings.seed, kind, number, view, self.settings.size)
                    camera = camera_of(shot)
                    size = _bmp_size(camera.height, camera.width)
                    yield Listed(_key(shot), size, version, ground_truth(shot, camera))

    def _counts(self) -> dict[Kind, int]:
        scenes = self.settings.scenes
        return {"distractor": self.settings.distractors, "facade": (scenes + 1) // 2, "object": scenes // 2}

    def _views(self, kind: Kind) -> int:
        return 1 if kind == "distractor" else self.settings.views

    def read(self, key: str, max_bytes: int | None = None) -> bytes:
        found = _KEY.fullmatch(key)
        kind: Kind | None = next((kind for kind in self._counts() if found and found[1] == kind), None)
        if found is not None and kind is not None:
            shot = Shot(self.settings.seed, kind, int(found[2]), int(found[3]), self.settings.size)
            known = shot.number < self._counts()[kind] and shot.view < self._views(kind)
            if known and _key(shot) == key:
                data = bmp(render(shot))
                return data if max_bytes is None else data[: max_bytes + 1]
        raise NotFound(f"{self.url} has no image {key!r}")

    def uri(self, key: str) -> str:
        return f"{self.url}#{key}"


def _key(shot: Shot) -> str:
    return f"{scene_name(shot.kind, shot.number)}/view-{shot.view:02d}.bmp"


def _bmp_size(h: int, w: int) -> int:
    return _HEADER.size + h * (-(-3 * w // 4) * 4)


def bmp(pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """An RGB picture as an uncompressed 24-bit BMP file: rows from the bottom up, padded to four bytes."""
    h, w = pixels.shape[:2]
    rows = np.zeros((h, -(-3 * w // 4) * 4), np.uint8)
    rows[:, : 3 * w] = pixels[::-1, :, ::-1].reshape(h, 3 * w)
    size = _bmp_size(h, w)
    header = _HEADER.pack(
        b"BM", size, 0, 0, _HEADER.size, 40, w, h, 1, 24, 0, size - _HEADER.size, 2835, 2835, 0, 0
    )
    return header + rows.tobytes()
