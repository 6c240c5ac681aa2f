"""Decoding in this process: every format, mode and orientation, geometry, and malformed files."""

import itertools
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ingest.decode import Decoded, DecodeSettings, decode
from ingest.errors import BadInput
from ingest.outcomes import Outcome, Rejected
from tests.ingest.hostile import CORPUS, LIMITS, encoded, photograph, png

# Pillow warns about malformed files; in the decoding process nobody listens either.
pytestmark = pytest.mark.filterwarnings("ignore")

SETTINGS = DecodeSettings()


def pixels_of(data: bytes, **changes: object) -> np.ndarray:
    return decoded(data, **changes).pixels


def decoded(data: bytes, box: object = None, **changes: object) -> Decoded:
    answer = decode(data, SETTINGS.model_copy(update=changes), box)  # type: ignore[arg-type]
    assert isinstance(answer, Decoded), answer
    return answer


def reason_of(answer: Decoded | Rejected) -> Outcome:
    return answer.reason if isinstance(answer, Rejected) else Outcome.OK


# --- formats and modes ---


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP"])
def test_lossless_formats_give_the_pixels_that_were_put_in(kind: str) -> None:
    image = photograph()
    if kind == "GIF":
        image = image.quantize(64)
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(pixels_of(encoded(image, kind, **options)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "packbits"])
def test_compressed_tiff(compression: str) -> None:
    image = photograph()
    assert np.array_equal(pixels_of(encoded(image, "TIFF", compression=compression)), np.asarray(image))


def test_jpeg_is_close_to_the_original() -> None:
    image = photograph(320, 200)
    difference = pixels_of(encoded(image, "JPEG", quality=95)).astype(int) - np.asarray(image)
    assert np.abs(difference).mean() < 3


@pytest.mark.parametrize("mode", ["1", "L"])
def test_grey_and_bilevel_become_three_equal_channels(mode: str) -> None:
    image = photograph().convert(mode)
    expected = np.asarray(image.convert("L"))
    got = pixels_of(encoded(image, "PNG"))
    assert all(np.array_equal(got[..., channel], expected) for channel in range(3))


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bit_grey_keeps_its_high_byte(order: str) -> None:
    values = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    tags = [(256, 3, 1, 64), (257, 3, 1, 64), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 0)]
    tags += [(277, 3, 1, 1), (278, 3, 1, 64), (279, 4, 1, 64 * 64 * 2)]
    start = 8 + 2 + 12 * len(tags) + 4
    body = struct.pack(order + "H", len(tags))
    for tag, kind, count, value in tags:
        field = struct.pack(
            order + ("HH" if kind == 3 else "I"), *((value, 0) if kind == 3 else (value or start,))
        )
        body += struct.pack(order + "HHI", tag, kind, count) + field
    magic = b"II*\0" if order == "<" else b"MM\0*"
    data = magic + struct.pack(order + "I", 8) + body + bytes(4) + values.astype(f"{order}u2").tobytes()
    assert np.array_equal(pixels_of(data)[..., 0], values >> 8)


def test_sixteen_bit_png_keeps_its_high_byte() -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (32, 32), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    assert np.array_equal(pixels_of(png(32, 32, 16, 0, rows))[..., 1], values >> 8)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_samples_without_a_range_are_stretched_over_the_whole_image(dtype: type) -> None:
    values = np.linspace(-1000, 5000, 32 * 32).reshape(32, 32).astype(dtype)
    data = encoded(Image.fromarray(values), "TIFF")
    whole = pixels_of(data)[..., 0]
    assert whole.min() == 0 and whole.max() == 255
    assert np.abs(whole - (values - values.min()) / 6000 * 255).max() <= 1
    assert np.array_equal(decoded(data, (0, 0, 32, 16)).pixels, pixels_of(data)[:16])


def test_floats_that_are_not_numbers_are_black() -> None:
    values = np.linspace(0, 1, 32 * 32, dtype=np.float32).reshape(32, 32)
    values[3, 4], values[5, 6] = np.nan, np.inf
    got = pixels_of(encoded(Image.fromarray(values), "TIFF"))[..., 0]
    assert got[3, 4] == 0 and got[5, 6] == 255 and got[31, 31] == 255 and got[0, 0] == 0


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_lie_on_white(mode: str) -> None:
    image = photograph().convert("L" if mode == "LA" else "RGB").convert(mode)
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (0, 0, 40, 64))
    alpha.paste(128, (40, 0, 60, 64))
    image.putalpha(alpha)
    got = pixels_of(encoded(image, "PNG")).astype(float)
    weight = np.asarray(alpha)[..., None] / 255
    expected = np.asarray(image.convert("RGBA"))[..., :3] * weight + 255 * (1 - weight)
    assert np.abs(got - expected).max() <= 1


def test_palette_with_a_transparent_entry_lies_on_white() -> None:
    image = Image.new("P", (32, 32), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(0, (0, 0, 16, 32))
    for kind in ("PNG", "GIF"):
        got = pixels_of(encoded(image, kind, transparency=0))
        assert (got[:, :16] == 255).all() and (got[:, 16:] == (0, 0, 255)).all()


def test_transparent_edges_do_not_bleed_hidden_colours_when_reduced() -> None:
    image = Image.new("RGBA", (256, 256), (255, 0, 0, 0))  # red, but invisible
    image.paste((255, 255, 255, 255), (100, 0, 256, 256))
    assert (pixels_of(encoded(image, "PNG"), longest_side=64) >= 254).all()


def test_cmyk_jpeg_has_the_colours_that_were_meant() -> None:
    for colour in ((200, 30, 60), (20, 160, 90), (255, 255, 255), (0, 0, 0)):
        image = Image.new("RGB", (64, 64), colour).convert("CMYK")
        got = pixels_of(encoded(image, "JPEG", quality=98))
        assert np.abs(got.astype(int) - colour).max() <= 4


def test_animations_give_their_first_frame() -> None:
    first = np.asarray(photograph(seed=0)).astype(int)
    for kind in ("png", "gif", "webp"):
        got = pixels_of(CORPUS[f"{kind} animated"][0])
        assert got.shape == first.shape
        assert np.abs(got - first).mean() < 12


# --- orientation, box and size ---


def oriented(image: Image.Image, orientation: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, kind, exif=exif)


def as_shown(stored: np.ndarray, orientation: int) -> np.ndarray:
    """What EXIF 2.32 says of tag 274: where row 0 and column 0 of the stored picture are shown."""
    return {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(stored),
    }[orientation]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_and_box(kind: str, orientation: int) -> None:
    image = photograph(96, 64)
    shown = as_shown(np.asarray(image), orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    answer = decoded(encoded(image, kind, exif=exif, **options))
    assert np.array_equal(answer.pixels, shown)
    assert (answer.height, answer.width) == shown.shape[:2]
    part = decoded(encoded(image, kind, exif=exif, **options), (10, 20, 40, 50))
    assert np.array_equal(part.pixels, shown[20:50, 10:40])
    assert (part.width, part.height) == (answer.width, answer.height)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("box", [None, (101.5, 33.0, 420.2, 381.9)])
def test_a_spot_lands_where_to_original_says(kind: str, orientation: int, box: object) -> None:
    stored = np.full((449, 601, 3), 40, np.uint8)
    stored[200:216, 300:316] = 250  # its centre: (307.5, 207.5) as stored
    shown = as_shown(stored, orientation)
    expected = np.argwhere(shown[..., 0] == 250).mean(0)[::-1]
    answer = decoded(oriented(Image.fromarray(stored), orientation, kind), box, longest_side=137)
    assert max(answer.pixels.shape) == 137 and (answer.height, answer.width) == shown.shape[:2]
    weight = answer.pixels[..., 0].astype(float) - 40
    weight[weight < 20] = 0
    rows, columns = np.indices(weight.shape)
    centre = np.array([[(columns * weight).sum(), (rows * weight).sum()]]) / weight.sum()
    assert np.abs(answer.to_original(centre.astype(np.float32)) - expected).max() < 0.25


def test_to_original_maps_outer_edges_to_the_box() -> None:
    answer = decoded(encoded(photograph(500, 300), "PNG"), (100, 50, 400, 250), longest_side=60)
    height, width = answer.pixels.shape[:2]
    corners = np.array([[-0.5, -0.5], [width - 0.5, height - 0.5]], np.float32)
    assert np.allclose(answer.to_original(corners), [[99.5, 49.5], [399.5, 249.5]])
    assert answer.to_original(corners).dtype == np.float32


def test_images_are_reduced_and_never_enlarged() -> None:
    assert pixels_of(encoded(photograph(1300, 700), "JPEG")).shape == (345, 640, 3)
    assert pixels_of(encoded(photograph(700, 1300), "PNG")).shape == (640, 345, 3)
    assert pixels_of(encoded(photograph(40, 30), "PNG")).shape == (30, 40, 3)


@pytest.mark.parametrize("size", [(1281, 959), (2560, 1920), (1279, 957), (5300, 777)])
def test_reduction_inside_the_jpeg_decoder_changes_little(size: tuple[int, int]) -> None:
    image = photograph(*size)
    by_codec = decoded(encoded(image, "JPEG", quality=95))
    exact = decoded(encoded(image, "PNG"))
    assert by_codec.pixels.shape == exact.pixels.shape
    assert (by_codec.width, by_codec.height) == size
    assert np.abs(by_codec.pixels.astype(int) - exact.pixels).mean() < 3


def test_reduction_averages_instead_of_picking() -> None:
    """A one-pixel checkerboard is grey from afar; picking pixels would give stripes."""
    board = (np.indices((512, 512)).sum(0) % 2 * 255).astype(np.uint8)
    got = pixels_of(encoded(Image.fromarray(board), "PNG"), longest_side=100)[8:-8, 8:-8].astype(int)
    assert np.abs(got - 127).max() <= 10


def test_a_box_that_reaches_outside_is_clipped() -> None:
    data = encoded(photograph(), "PNG")
    assert decoded(data, (-50, -50, 32.5, 2000)).box == (0, 0, 33, 64)


@pytest.mark.parametrize(
    "box",
    [(10, 10, 10, 30), (30, 10, 10, 30), (96, 0, 120, 64), (-9, 0, -1, 64), (0, 0, float("nan"), 9)],
)
def test_a_box_without_pixels_is_the_callers_mistake(box: tuple[float, ...]) -> None:
    with pytest.raises(BadInput, match="96 x 64 pixels"):
        decode(encoded(photograph(), "JPEG"), SETTINGS, box)  # type: ignore[arg-type]


def test_the_box_is_checked_against_the_turned_image() -> None:
    data = oriented(photograph(96, 64), 6, "JPEG")
    assert decoded(data, (0, 70, 64, 96)).pixels.shape == (26, 64, 3)
    with pytest.raises(BadInput, match="64 x 96 pixels"):
        decode(data, SETTINGS, (70, 0, 90, 64))


def test_damaged_exif_data_counts_as_none() -> None:
    data = oriented(photograph(), 6, "JPEG")
    at = data.index(b"Exif\0\0") + 6
    assert decoded(data[:at] + b"\xff" * 12 + data[at + 12 :]).pixels.shape == (64, 96, 3)


# --- refusals ---


@pytest.mark.parametrize("name", CORPUS)
def test_each_hostile_file_has_its_outcome(name: str) -> None:
    data, expected = CORPUS[name]
    answer = decode(data, LIMITS)
    assert reason_of(answer) == expected, answer
    if isinstance(answer, Rejected):
        assert answer.detail and "0x" not in answer.detail and "\n" not in answer.detail
        assert decode(data, LIMITS) == answer


def test_every_outcome_of_decoding_is_in_the_corpus() -> None:
    elsewhere = {Outcome.MISSING, Outcome.CHANGED, Outcome.NO_FEATURES, Outcome.NOT_FINITE}
    elsewhere.add(Outcome.DECODER_DIED)
    assert {outcome for _, outcome in CORPUS.values()} == set(Outcome) - elsewhere


def test_a_part_that_is_too_small_is_refused() -> None:
    answer = decode(encoded(photograph(), "PNG"), SETTINGS, (0, 0, 96, 15))
    assert reason_of(answer) == Outcome.TOO_SMALL


def test_same_bytes_same_pixels() -> None:
    data = encoded(photograph(1000, 700), "JPEG")
    assert np.array_equal(pixels_of(data), pixels_of(data))


VALID = {
    f"{kind} {number}": encoded(photograph(seed=number).convert(mode), kind, **options)
    for number, (kind, mode, options) in enumerate(
        [
            ("JPEG", "RGB", {}),
            ("JPEG", "CMYK", {"progressive": True}),
            ("PNG", "RGBA", {}),
            ("PNG", "P", {"transparency": 3}),
            ("GIF", "P", {"interlace": 1}),
            ("TIFF", "RGB", {}),
            ("TIFF", "L", {"compression": "tiff_lzw"}),
            ("BMP", "RGB", {}),
            ("WEBP", "RGB", {}),
            ("WEBP", "RGBA", {"lossless": True}),
        ]
    )
}


@pytest.mark.parametrize("name", VALID)
def test_a_file_cut_anywhere_is_truncated_or_whole(name: str) -> None:
    data = VALID[name]
    for part in itertools.chain(range(1, 60), range(60, len(data), max(1, len(data) // 60))):
        reason = reason_of(decode(data[:part], LIMITS))
        # Too few bytes to be of a kind; or all that is missing lies behind the last pixel.
        allowed = {Outcome.TRUNCATED} | ({Outcome.UNKNOWN_FORMAT} if part < 20 else set())
        assert reason in allowed or (reason is Outcome.OK and part > len(data) * 0.9), (part, reason)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(VALID)))
def test_changed_bytes_never_raise(data: st.DataObject, name: str) -> None:
    content = bytearray(VALID[name])
    for _ in range(data.draw(st.integers(1, 6))):
        # Mostly the header, where the numbers are.
        at = data.draw(st.one_of(st.integers(0, 120), st.integers(0, len(content) - 1)))
        content[at] = data.draw(st.integers(0, 255))
    end = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    assert isinstance(decode(bytes(content[:end]), LIMITS), Decoded | Rejected)
