"""Laws of the synthetic scenes: frozen pixels, any order, growth without change, and true ground truth."""

import hashlib
import io
import itertools
import math
import pickle
import re

import numpy as np
import pytest
from PIL import Image

from ingest.errors import BadInput, NotFound
from ingest.scene_camera import Surface, draw_surface, look_at, pack, pyramid, tone_table
from ingest.scene_paint import smooth_noise
from ingest.scene_random import Draws
from ingest.scenes import VERSION, Shot, box_of, camera_of, ground_truth
from ingest.sources import Listed, Source, open_source

GOLDEN = {
    (
        "size=320",
        "facade-000000/view-00.bmp",
    ): "ea304c1e0f309feaa8e8d6acfa5a1e637e25c3e47d750b33eb3dc6f5530255c2",
    (
        "size=320",
        "object-000001/view-02.bmp",
    ): "980bc57f7d5c37994d4ec8da8b18aee56482c4ba3bee40c3fe7847be6f3a9eb4",
    (
        "size=160",
        "distractor-000007/view-00.bmp",
    ): "1c7a58f7cae7372686668ce768d374fa5a02ca29ed6bc03fcc50e133ef1a4a25",
    (
        "size=160,seed=2",
        "facade-000003/view-01.bmp",
    ): "2c19067db2af8c083eff8466bc164254daff17e10e8141015bbf86d2a86a54c5",
    (
        "size=101",
        "object-000004/view-00.bmp",
    ): "ff988302bd1e39042c7687786e797baa93dff42e9fdeb06f091717850596a98c",
    (
        "size=640",
        "distractor-000002/view-00.bmp",
    ): "10fad99bbab2d34396826222f38fe6cf8efabd3d4ad195fd3d2277918316b7d6",
}
TRUTH = {
    "scene": "object-000000",
    "view": 1,
    "kind": "object",
    "x": 59.715,
    "y": 179.473,
    "z": 0.19,
    "heading": 28.49,
    "lat": 0.001614,
    "lon": 0.000537,
}


def source_of(text: str) -> Source:
    source = open_source(text)
    assert isinstance(source, Source)
    return source


def listed(text: str) -> list[Listed]:
    return [entry for entry in source_of(text).listing() if isinstance(entry, Listed)]


@pytest.mark.parametrize(("settings", "key"), GOLDEN)
def test_the_pixels_of_this_version_are_frozen(settings: str, key: str) -> None:
    """If this fails, the pictures changed: put them back, or raise VERSION and write down why."""
    assert VERSION == 1
    data = source_of(f"synthetic:{settings}").read(key)
    assert hashlib.sha256(data).hexdigest() == GOLDEN[settings, key]


def test_the_ground_truth_of_this_version_is_frozen() -> None:
    entry = listed("synthetic:scenes=2,distractors=0")[4]
    assert entry.key == "object-000000/view-01.bmp"
    assert entry.version == "1-1-320"
    assert dict(entry.metadata) == TRUTH


def test_the_generator_is_splitmix64() -> None:
    draws = Draws()
    assert [draws.bits() for _ in range(3)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_an_array_of_draws_is_the_draws_one_by_one() -> None:
    one, many = Draws(5, 6), Draws(5, 6)
    assert many.array(9).tolist() == [one.bits() for _ in range(9)]
    assert many.bits() == one.bits()
    assert {Draws(1, 2).bits(), Draws(2, 1).bits(), Draws(1).bits(), Draws(1, 2, 0).bits()}.__len__() == 4
    below = [one.below(7) for _ in range(700)]
    assert set(below) == set(range(7))
    assert all(0.25 <= one.real(0.25, 0.5) < 0.5 for _ in range(100))


def test_any_order_of_reads_gives_the_same_bytes_of_the_listed_size() -> None:
    entries = listed("synthetic:scenes=6,views=2,distractors=4,size=67,seed=9")
    forward = source_of("synthetic:scenes=6,views=2,distractors=4,size=67,seed=9")
    first = {entry.key: forward.read(entry.key) for entry in entries}
    for entry in reversed(entries):
        assert pickle.loads(pickle.dumps(forward)).read(entry.key) == first[entry.key]
        assert len(first[entry.key]) == entry.size
        picture = Image.open(io.BytesIO(first[entry.key]))
        assert (picture.format, picture.mode) == ("BMP", "RGB")
        assert sorted(picture.size) == [50, 67]
    assert len(set(first.values())) == len(entries)
    assert forward.read(entries[0].key, 10) == first[entries[0].key][:11]


def test_growth_adds_keys_and_changes_none() -> None:
    small = {entry.key: entry for entry in listed("synthetic:scenes=5,views=2,distractors=3,size=64")}
    large = {entry.key: entry for entry in listed("synthetic:scenes=8,views=3,distractors=9,size=64")}
    assert small.items() <= large.items()
    assert len(small) == 5 * 2 + 3
    assert len(large) == 8 * 3 + 9
    key = "facade-000002/view-01.bmp"
    assert source_of("synthetic:scenes=5,views=2,size=64").read(key) == source_of("synthetic:size=64").read(
        key
    )


def test_another_seed_or_size_is_another_version_and_other_pixels() -> None:
    key = "object-000001/view-00.bmp"
    texts = [f"synthetic:scenes=4,size={size},seed={seed}" for size, seed in ((64, 1), (64, 2), (66, 1))]
    assert len({next(e.version for e in listed(text)) for text in texts}) == 3
    assert len({source_of(text).read(key) for text in texts}) == 3


def test_labels_keys_and_places_agree() -> None:
    entries = listed("synthetic:scenes=60,views=3,distractors=30,size=64")
    places: dict[str, list[tuple[float, float]]] = {}
    for entry in entries:
        scene, truth = entry.key.split("/")[0], entry.metadata
        assert truth["scene"] == scene
        assert truth["kind"] == scene.split("-")[0]
        assert entry.key.endswith(f"view-{truth['view']:02d}.bmp")
        assert bool(re.match(r"(facade-\d+|object-\d+)", entry.key)) == (truth["kind"] != "distractor")
        x, y = float(truth["x"]), float(truth["y"])
        assert math.isclose(float(truth["lat"]) * 111_195, y, abs_tol=0.02)
        assert math.isclose(float(truth["lon"]) * 111_195, x, abs_tol=0.02)
        assert 0 <= float(truth["heading"]) < 360
        places.setdefault(scene, []).append((x, y))
    for one, other in itertools.combinations(places, 2):
        assert all(math.dist(a, b) > 25 for a in places[one] for b in places[other])


@pytest.mark.parametrize("kind", ["facade", "object", "distractor"])
def test_the_heading_points_at_the_scene(kind: str) -> None:
    for number in range(12):
        shot = Shot(1, kind, number, 0, 320)  # type: ignore[arg-type]
        camera, truth = camera_of(shot), ground_truth(shot, camera_of(shot))
        angle = math.radians(float(truth["heading"]))
        distance = -camera.position[2] / camera.forward[2]
        east = camera.position[0] + distance * math.hypot(camera.forward[0], camera.forward[2]) * math.sin(
            angle
        )
        assert abs(east) <= 0.16 * box_of(shot).w
        assert math.cos(angle) > 0.6


@pytest.mark.parametrize("roll", [0.0, 0.1])
def test_a_surface_is_drawn_where_its_points_project(roll: float) -> None:
    """Each corner of a bright square, projected by hand, is where the picture's brightness begins."""
    texture = pyramid(np.full((64, 64, 3), 255, np.uint8))
    camera = look_at((3.0, 2.0, 6.0), (0.2, 1.0, 0.0), roll, 150.0, 160, 120)
    image = pack(np.zeros((120, 160, 3), np.uint8))
    surface = Surface((-1.0, 2.0, 0.0), (2.0, 0.0, 0.0), (0.0, -2.0, 0.0), texture)
    draw_surface(image, camera, surface)
    bright = (image & np.uint64(255)) > 0
    for x in range(0, 160, 3):
        for y in range(0, 120, 3):
            ray = [
                camera.focal * f + (x - 79.5) * r + (y - 59.5) * d
                for f, r, d in zip(camera.forward, camera.right, camera.down, strict=True)
            ]
            far = -camera.position[2] / ray[2]
            at_x, at_y = camera.position[0] + far * ray[0], camera.position[1] + far * ray[1]
            margin = min(1 - abs(at_x), 1 - abs(at_y - 1))
            if abs(margin) > 1e-6:
                assert bright[y, x] == (far > 0 and margin > 0)
    assert 500 < bright.sum() < 10_000


def test_texture_is_sampled_bilinearly() -> None:
    """A surface seen head-on, one texel a pixel and half a texel off, shows the means of neighbours."""
    texels = Draws(3).bytes(40 * 40 * 3).reshape(40, 40, 3)
    camera = look_at((0.5, 0.0, 39.0), (0.5, 0.0, 0.0), 0.0, 39.0, 40, 40)
    image = pack(np.zeros((40, 40, 3), np.uint8))
    # 40 texels span 39 metres, hence one metre, and one pixel at this distance, from texel to texel
    draw_surface(
        image, camera, Surface((-19.5, 19.5, 0.0), (39.0, 0.0, 0.0), (0.0, -39.0, 0.0), (pack(texels),))
    )
    red, wide = (image & np.uint64(255)).astype(int), texels[..., 0].astype(int)
    expected = (wide[:, :-1] + wide[:, 1:]) / 2
    assert (
        np.abs(red[1:-1, 1:-2] - expected[1:-1, 1:-1]).max() <= 4
    )  # positions are rounded to 1/64 of 255 levels


def test_smooth_noise_keeps_its_bounds_and_tones_rise() -> None:
    noise = smooth_noise(Draws(1), 70, 90, 9, 30)
    assert noise.shape == (70, 90)
    assert 15 < np.abs(noise).max() <= 30
    assert np.abs(np.diff(noise.astype(int), axis=1)).max() <= 2 * 30 // 8 + 1
    for gain, bend in itertools.product((0.7, 1.0, 1.2), (-0.45, 0.0, 0.8)):
        table = tone_table(gain, bend)
        assert (np.diff(table.astype(int)) >= 0).all()
        assert table[255] == min(255, int(255 * gain + 0.5))
    assert tone_table(1.0, 0.0).tolist() == list(range(256))


@pytest.mark.parametrize(
    "settings",
    [
        "scene=3",
        "scenes",
        "scenes=",
        "scenes=-1",
        "scenes=1.5",
        "views=0",
        "size=63",
        "size=9999",
        "seed=1,seed=1",
    ],
)
def test_settings_that_are_unknown_or_out_of_bounds_are_refused(settings: str) -> None:
    with pytest.raises(BadInput, match="choose from scenes=250, views=3"):
        open_source(f"synthetic:{settings}")


@pytest.mark.parametrize(
    "key",
    [
        "facade-000003/view-00.bmp",  # 5 scenes: facades 0 to 2
        "object-000002/view-00.bmp",
        "facade-000000/view-02.bmp",
        "distractor-000000/view-01.bmp",
        "facade-0000000/view-00.bmp",
        "facade-000000/view-00.BMP",
        "facade-000000/view-00.bmp\n",
        "../facade-000000/view-00.bmp",
        "",
    ],
)
def test_a_key_that_is_not_listed_is_not_found(key: str) -> None:
    with pytest.raises(NotFound):
        source_of("synthetic:scenes=5,views=2,distractors=1,size=64").read(key)


def test_listing_a_billion_images_starts_at_once() -> None:
    listing = source_of("synthetic:scenes=1000000000,distractors=0").listing()
    assert [entry.key for entry in itertools.islice(listing, 4)][3] == "facade-000001/view-00.bmp"
