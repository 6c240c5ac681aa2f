"""Where what a network describes lies in the original image, however that was reduced, turned and cut."""

import io
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ingest.cnn_patches import PatchesSettings, cut, place_patches
from ingest.decode import Box, Decoded, DecodeSettings, decode
from ingest.networks import NETWORKS
from tests.ingest.describing import one, open_describer, picture, whole
from tests.ingest.tiny_networks import network

WIDTH, HEIGHT = 512, 256
# Cells of 8 pixels whose values are colours from 0 to 1.
COLOURS = network("Averages", mean=(0, 0, 0), std=(1, 1, 1))
EFFICIENTNET = {"name": "efficientnet-lite0"}


def blob(x: float, y: float, side: int) -> np.ndarray:
    """(256, 512, 3): a bright square around (x, y) on black."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    left, top = round(x - (side - 1) / 2), round(y - (side - 1) / 2)
    pixels[top : top + side, left : left + side] = 255
    return pixels


def stored(pixels: np.ndarray, orientation: int) -> bytes:
    """The picture as a camera held that way stores it: turned, with a note of how to turn it back."""
    turned = {1: pixels, 3: pixels[::-1, ::-1], 6: np.rot90(pixels), 8: np.rot90(pixels, -1)}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(turned)).save(file, "PNG", exif=exif)
    return file.getvalue()


def seen(pixels: np.ndarray, orientation: int = 1, longest: int = 640, box: Box | None = None) -> Decoded:
    image = decode(stored(pixels, orientation), DecodeSettings(longest_side=longest), box)
    assert isinstance(image, Decoded), image
    assert (image.width, image.height) == (WIDTH, HEIGHT)
    return image


# -- columns ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize(
    ("longest", "reduced", "box", "cell"),
    [
        (640, None, None, 8),
        (256, None, None, 16),
        (640, 256, None, 16),
        (640, None, (256, 64, 512, 192), 8),  # a query's box
        (128, 64, (256, 64, 512, 192), 32),
    ],
)
def test_the_strongest_column_lies_on_the_brightest_place(
    longest: int, reduced: int | None, box: Box | None, cell: int, orientation: int
) -> None:
    """Where cells are the means of their pixels: the one that holds most of the blob."""
    settings = {"kind": "cnn-columns", "network": COLOURS, "layer": "near", "max_columns": 1}
    describer = open_describer({"a": {**settings, "longest_side": reduced}})
    for x, y in ((290, 80), (400, 100), (480, 170)):
        found = one(describer, seen(blob(x, y, cell), orientation, longest, box), "a")
        assert np.abs(found["keypoints"][0] - (x, y)).max() <= cell / 2 + 1
        assert found["diameters"].tolist() == [cell]
        assert found["descriptors"].shape == (1, 3)


@pytest.mark.parametrize(
    ("longest", "reduced", "box"),
    [(640, None, None), (256, None, None), (640, 256, None), (256, 64, (128, 64, 384, 192))],
)
def test_cells_tile_what_the_network_saw(longest: int, reduced: int | None, box: Box | None) -> None:
    """Each is centred on its tile, to the last digit, and as wide as that."""
    label = {"kind": "cnn-columns", "network": COLOURS, "layer": "near", "longest_side": reduced}
    x0, y0, x1, y1 = box or (0, 0, WIDTH, HEIGHT)
    shown = x1 - x0
    cell = 8 * shown / min(shown, longest, reduced or longest)
    found = one(open_describer({"a": label}), seen(picture(HEIGHT, WIDTH), 1, longest, box), "a")
    rows, columns = np.arange(y0, y1, cell), np.arange(x0, x1, cell)
    expected = [(x + (cell - 1) / 2, y + (cell - 1) / 2) for y in rows for x in columns]
    np.testing.assert_allclose(found["keypoints"], expected, atol=1e-4)
    np.testing.assert_allclose(found["diameters"], cell, rtol=1e-6)


@pytest.mark.parametrize("layer", ["reduction_1", "reduction_2", "reduction_3"])
@pytest.mark.parametrize("longest", [512, 256])
def test_a_cell_of_a_real_network_answers_to_what_is_drawn_where_it_lies(layer: str, longest: int) -> None:
    """The columns that a small square changes most are around it, within their stride."""
    known = NETWORKS["efficientnet-lite0"].layers[layer]
    describer = open_describer(
        {"a": {"kind": "cnn-columns", "network": EFFICIENTNET, "layer": layer, "max_columns": 65_536}}
    )
    scale = WIDTH / longest
    empty = one(describer, seen(np.zeros((HEIGHT, WIDTH, 3), np.uint8), longest=longest), "a")
    assert len(empty["keypoints"]) == (HEIGHT // (known.stride * scale)) * (WIDTH // (known.stride * scale))
    np.testing.assert_allclose(empty["diameters"], known.stride * scale, rtol=1e-6)
    np.testing.assert_allclose(empty["keypoints"][0], (known.offset + 0.5) * scale - 0.5, atol=1e-4)
    for x, y in ((290, 80), (131, 201)):
        drawn = one(describer, seen(blob(x, y, 8), longest=longest), "a")
        assert np.array_equal(drawn["keypoints"], empty["keypoints"])
        changed = drawn["descriptors"].astype(np.float32) - empty["descriptors"].astype(np.float32)
        weights = np.square(changed).sum(axis=1)
        centre = (drawn["keypoints"] * weights[:, None]).sum(axis=0) / weights.sum()
        assert np.abs(centre - (x, y)).max() < known.stride * scale


def test_columns_are_kept_by_their_strength_in_the_order_of_the_map() -> None:
    image = seen(picture(HEIGHT, WIDTH))
    label = {"kind": "cnn-columns", "network": EFFICIENTNET, "layer": "reduction_4"}
    every = one(open_describer({"a": label}), image, "a")
    some = one(open_describer({"a": {**label, "max_columns": 20}}), image, "a")
    assert (len(every["keypoints"]), len(some["keypoints"])) == (16 * 32, 20)
    assert every["descriptors"].dtype == np.float16
    norms = np.linalg.norm(every["descriptors"].astype(np.float64), axis=1)
    kept = [np.flatnonzero((every["keypoints"] == point).all(axis=1)).item() for point in some["keypoints"]]
    assert kept == sorted(kept)
    assert norms[kept].min() >= np.delete(norms, kept).max() * 0.999  # chosen before they were rounded
    assert np.array_equal(every["descriptors"][kept], some["descriptors"])


# -- pooled -------------------------------------------------------------------------------------------------

FLAGS = {  # colours of the quarters, row by row
    "four": ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)),
    "mixed": ((200, 10, 90), (30, 60, 220), (120, 120, 20), (10, 240, 130)),
}


def quarters(colours: tuple[tuple[int, int, int], ...]) -> np.ndarray:
    pixels = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    for place, colour in enumerate(colours):
        y, x = divmod(place, 2)
        pixels[y * HEIGHT // 2 : (y + 1) * HEIGHT // 2, x * WIDTH // 2 : (x + 1) * WIDTH // 2] = colour
    return pixels


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(
    ("regions", "longest", "box"),
    [
        ("sfrs", 640, None),
        ("sfrs", 256, None),
        ("rmac", 640, None),
        ("rmac", 256, None),
        ("sfrs", 640, (128, 64, 384, 192)),
        ("rmac", 128, (128, 0, 384, 256)),
    ],
)
def test_a_region_describes_what_is_in_its_box(
    regions: str, longest: int, box: Box | None, orientation: int, flag: str
) -> None:
    """Where cells are the colours of their pixels: each row is the mean colour of the original in its box."""
    label = {
        "kind": "cnn-global",
        "network": COLOURS,
        "layer": "near",
        "pooling": {"kind": "spoc"},
        "regions": {"kind": regions},
    }
    pixels = quarters(FLAGS[flag])
    found = one(open_describer({"a": label}), seen(pixels, orientation, longest, box), "a")
    assert found["boxes"].dtype == found["descriptors"].dtype == np.float32
    assert len(found["boxes"]) == len(found["descriptors"]) >= 9
    bound = 2e-3 if longest == 640 else 0.03  # reduced, borders of colours are blurred
    assert found["boxes"][0].tolist() == list(box or (0, 0, WIDTH, HEIGHT))
    for (x0, y0, x1, y1), descriptor in zip(
        found["boxes"].round().astype(int), found["descriptors"], strict=True
    ):
        colour = pixels[y0:y1, x0:x1].mean(axis=(0, 1))
        np.testing.assert_allclose(descriptor, colour / np.linalg.norm(colour), atol=bound)


@pytest.mark.parametrize("pooling", ["mac", "spoc", "gem", "rmac", "crow", "centre"])
@pytest.mark.parametrize("regions", ["sfrs", "rmac"])
def test_the_first_region_is_the_whole_image(pooling: str, regions: str) -> None:
    label = {"kind": "cnn-global", "network": EFFICIENTNET, "pooling": {"kind": pooling}}
    describer = open_describer({"whole": label, "regions": {**label, "regions": {"kind": regions}}})
    (found,) = describer.describe([seen(picture(HEIGHT, WIDTH))])
    alone, among = found.of("whole"), found.of("regions")  # type: ignore[union-attr]
    assert among["descriptors"][0].tobytes() == alone["descriptors"][0].tobytes()
    assert among["boxes"][0].tobytes() == alone["boxes"][0].tobytes()
    np.testing.assert_allclose(np.linalg.norm(among["descriptors"], axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("regions", ["none", "sfrs"])
def test_several_scales_are_the_mean_of_each(regions: str) -> None:
    scales = (0.5, 1.0, 1.4142)
    label = {"kind": "cnn-global", "network": EFFICIENTNET, "regions": {"kind": regions}}
    labels: dict[str, Any] = {str(scale): {**label, "scales": [scale]} for scale in scales}
    describer = open_describer({**labels, "all": {**label, "scales": list(scales)}})
    (found,) = describer.describe([seen(picture(HEIGHT, WIDTH), longest=192)])
    singles = [found.of(str(scale))["descriptors"] for scale in scales]  # type: ignore[union-attr]
    assert np.abs(singles[0] - singles[2]).max() > 0.01
    mean = np.mean(singles, axis=0)
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(found.of("all")["descriptors"], expected, atol=1e-6)  # type: ignore[union-attr]


# -- patches ------------------------------------------------------------------------------------------------

AT = ("grid", "mser", "keypoints")


def patches(at: str, **others: Any) -> PatchesSettings:
    return PatchesSettings.model_validate({"kind": "cnn-patches", "network": COLOURS, "at": at, **others})


def assert_inside(pixels: np.ndarray, chosen: PatchesSettings) -> None:
    height, width = pixels.shape[:2]
    squares = place_patches(pixels, chosen)
    assert 1 <= len(squares) <= chosen.max_patches
    assert np.isfinite(squares).all() and (squares[:, 2] > 0).all()
    half = squares[:, 2:] / 2
    assert (squares[:, :2] - half >= -0.5 - 1e-9).all()
    assert (squares[:, :2] + half <= np.array([width, height]) - 0.5 + 1e-9).all()
    for square in squares:
        piece = cut(pixels, square)
        assert piece.shape[0] == piece.shape[1] >= 1
        assert abs(piece.shape[0] - square[2]) <= 1
    assert np.array_equal(place_patches(pixels.copy(), chosen), squares)


@pytest.mark.parametrize("at", AT)
@pytest.mark.parametrize(
    "size", [(1, 1), (1, 50), (50, 1), (2, 3), (5, 5), (16, 16), (16, 400), (400, 16), (33, 47), (97, 64)]
)
def test_patches_are_inside_images_of_any_shape(at: str, size: tuple[int, int]) -> None:
    assert_inside(picture(*size), patches(at, max_patches=12))
    assert_inside(np.zeros((*size, 3), np.uint8), patches(at, max_patches=12))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 120),
    st.integers(1, 120),
    st.sampled_from(AT),
    st.lists(st.floats(0.05, 1), min_size=1, max_size=3),
    st.integers(1, 80),
    st.integers(8, 64),
)
def test_patches_are_inside_whatever_is_asked_for(
    height: int, width: int, at: str, sizes: list[float], most: int, least: int
) -> None:
    assert_inside(picture(height, width, most), patches(at, sizes=sizes, max_patches=most, least=least))


def test_a_grid_reaches_every_border_and_overlaps_by_half() -> None:
    squares = place_patches(picture(60, 120), patches("grid", sizes=[0.5], least=8))
    assert len(squares) == 3 * 7 and set(squares[:, 2]) == {30}
    assert sorted(set(squares[:, 0])) == [14.5, 29.5, 44.5, 59.5, 74.5, 89.5, 104.5]
    assert sorted(set(squares[:, 1])) == [14.5, 29.5, 44.5]


@pytest.mark.parametrize("centre", [(100, 90), (228, 154), (420, 58)])
@pytest.mark.parametrize("at", ["mser", "keypoints"])
def test_patches_lie_on_what_stands_out(at: str, centre: tuple[int, int]) -> None:
    disc = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.circle(disc, centre, 20, 255, -1)
    share = cv2.GaussianBlur(disc, (0, 0), 2)[:, :, None] / 255
    ground = picture(HEIGHT, WIDTH) * 0.2 + 150
    squares = place_patches((ground * (1 - share) + 20 * share).astype(np.uint8), patches(at))
    x, y, side = squares[np.hypot(*(squares[:, :2] - centre).T).argmin()]
    assert np.hypot(x - centre[0], y - centre[1]) < 1
    assert 40 < side < 80


@pytest.mark.parametrize("at", AT)
@pytest.mark.parametrize(("longest", "box"), [(640, None), (256, None), (256, (128, 64, 384, 192))])
def test_a_patch_describes_what_is_where_it_lies(at: str, longest: int, box: Box | None) -> None:
    """Where a map is its pixels' colours: a patch that is wholly in one quarter has that quarter's colour."""
    pixels = quarters(FLAGS["four"])
    for centre in ((190, 100), (330, 90), (200, 160), (300, 150)):  # something for mser and keypoints
        cv2.circle(pixels, centre, 8, (255, 255, 255), -1)
    label = {"kind": "cnn-patches", "network": COLOURS, "layer": "near", "at": at, "least": 8, "side": 32}
    found = one(
        open_describer({"a": {**label, "sizes": [0.2], "pooling": {"kind": "spoc"}}}),
        seen(pixels, longest=longest, box=box),
        "a",
    )
    assert found["descriptors"].dtype == np.float16
    assert found["keypoints"].dtype == found["diameters"].dtype == np.float32
    inside = 0
    for (x, y), side, colour in zip(*map(found.get, ("keypoints", "diameters", "descriptors")), strict=True):  # type: ignore[arg-type]
        left, top = round(x + 0.5 - side / 2), round(y + 0.5 - side / 2)
        piece = pixels[max(0, top) : top + round(side), max(0, left) : left + round(side)].astype(np.float64)
        if piece.reshape(-1, 3).std(axis=0).max() == 0:
            inside += 1
            np.testing.assert_allclose(colour.astype(np.float64), piece[0, 0] / 255, atol=0.02)
        else:
            np.testing.assert_allclose(colour.astype(np.float64), piece.mean(axis=(0, 1)) / 255, atol=0.12)
    assert inside or at != "grid"


def test_a_patch_beyond_the_range_of_float16_is_stored_at_its_edge() -> None:
    large = network("Averages", mean=(0, 0, 0), std=(1e-6, 1e-6, 1e-6))
    label = {"kind": "cnn-patches", "network": large, "layer": "near", "side": 32}
    found = one(open_describer({"a": label}), whole(picture(64, 64)), "a")
    assert (found["descriptors"] == 65_504).all()


def test_one_patch_as_large_as_the_image_is_the_image() -> None:
    image = whole(picture(64, 64))
    label: Mapping[str, Any] = {"kind": "cnn-patches", "network": EFFICIENTNET, "sizes": [1.0], "side": 64}
    describer = open_describer({"a": label, "b": {"kind": "cnn-global", "network": EFFICIENTNET}})
    (found,) = describer.describe([image])
    patch, descriptor = found.of("a"), found.of("b")["descriptors"][0]  # type: ignore[union-attr]
    assert patch["keypoints"].tolist() == [[31.5, 31.5]] and patch["diameters"].tolist() == [64]
    unit = patch["descriptors"][0].astype(np.float64)
    np.testing.assert_allclose(unit / np.linalg.norm(unit), descriptor, atol=1e-3)
