"""Pictures of pairs: what is drawn is where it belongs, and the images beneath stay as they are."""

import numpy as np
import pytest
from PIL import Image

from deploy.sheet_pairs import (
    HEAT_COLOURS,
    LEAST_WIDTH,
    MOST_LINES,
    append_below,
    draw_heat,
    draw_matches,
    draw_pairs_sheet,
    heat_colours,
    pair_layout,
)
from ingest.decode import Decoded, WholeBox
from ingest.errors import BadInput

BLACK, GREY = 0, 130
NONE = np.zeros((0, 2), np.float32)


def flat(
    width: int, height: int, value: int = BLACK, box: WholeBox | None = None, reduced: int = 1
) -> Decoded:
    """An image of one colour; `width` and `height` are the original's."""
    x0, y0, x1, y1 = box = box or (0, 0, width, height)
    shape = (max(1, (y1 - y0) // reduced), max(1, (x1 - x0) // reduced), 3)
    return Decoded(np.full(shape, value, np.uint8), width, height, box)


def noisy(width: int, height: int, seed: int) -> Decoded:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Decoded(pixels, width, height, (0, 0, width, height))


def rows(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, np.float32).reshape(-1, 2)


def coloured(picture: Image.Image) -> np.ndarray:
    """Where something bright was drawn on black, as y and x."""
    return np.argwhere(np.asarray(picture).max(axis=2) > 150)


def runs(line: np.ndarray) -> list[float]:
    """The middles of the stretches of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], line, [False]]).astype(int)))
    return [float(first + last - 1) / 2 for first, last in edges.reshape(-1, 2)]


# --- layout -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [LEAST_WIDTH, 333, 1200])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((640, 480), (500, 500)),
        ((480, 640), (480, 640)),
        ((1, 1000), (1, 1000)),
        ((1, 1000), (1000, 1)),
        ((1000, 1), (1000, 1)),
        ((1, 1), (3, 2)),
        ((10_000, 16), (640, 480)),
    ],
)
def test_both_images_are_whole_as_high_as_each_other_and_apart(
    width: int, one: tuple[int, int], other: tuple[int, int]
) -> None:
    query, answer = flat(*one), flat(*other)
    layout = pair_layout(query, answer, width)
    left, right = layout.query, layout.answer
    assert layout.width == width and 1 <= layout.height <= max(1, width // 2)
    assert left.height == right.height == layout.height and left.top == right.top == 0
    assert min(left.width, right.width) >= 1
    assert left.left >= 0 and left.left + left.width + 2 <= right.left
    assert right.left + right.width <= width
    for place, (w, h) in ((left, one), (right, other)):
        if place.width > 20 and place.height > 20:
            assert place.width / place.height == pytest.approx(w / h, rel=0.06)
    for picture in (
        draw_matches(query, answer, rows((0, 0)), rows((0, 0)), width),
        draw_matches(query, answer, NONE, NONE, width),
        draw_heat(query, answer, np.ones((3, 4), np.float32), np.zeros((1, 1), np.float32), width),
    ):
        assert picture.size == (layout.width, layout.height) and picture.mode == "RGB"


def test_the_width_is_filled_unless_the_picture_gets_too_high() -> None:
    wide = pair_layout(flat(640, 480), flat(640, 480), 1200)
    assert wide.query.left == 0 and wide.answer.left + wide.answer.width >= 1198
    high = pair_layout(flat(300, 600), flat(300, 600), 1200)
    assert high.height == 600
    assert abs(high.query.left - (1200 - high.answer.left - high.answer.width)) <= 1


# --- matches ----------------------------------------------------------------------------------------------

WHOLE = (flat(1600, 1200, reduced=4), flat(500, 500))
BOXED = (flat(1600, 1200, box=(400, 300, 1200, 900)), flat(500, 500, box=(100, 0, 400, 500)))


@pytest.mark.parametrize(("query", "answer"), [WHOLE, BOXED])
@pytest.mark.parametrize(
    ("point_q", "point_a"),
    [((500.0, 400.0), (150.0, 60.0)), ((1000.0, 850.0), (333.0, 444.0)), ((799.5, 599.5), (249.5, 249.5))],
)
def test_a_line_goes_from_the_point_to_its_partner(
    query: Decoded, answer: Decoded, point_q: tuple[float, float], point_a: tuple[float, float]
) -> None:
    width = 1200
    picture = draw_matches(query, answer, rows(point_q), rows(point_a), width)
    layout = pair_layout(query, answer, width)
    ends = []
    for point, place in ((point_q, layout.query), (point_a, layout.answer)):
        x0, y0, x1, y1 = place.box
        across, down = (point[0] + 0.5 - x0) / (x1 - x0), (point[1] + 0.5 - y0) / (y1 - y0)
        ends.append((place.left + across * place.width - 0.5, place.top + down * place.height - 0.5))
    (xq, yq), (xa, ya) = ends
    found = coloured(picture)
    on_images = np.zeros(width, bool)
    for place in (layout.query, layout.answer):
        on_images[place.left : place.left + place.width] = True
    inside = found[on_images[found[:, 1]]]
    assert inside[:, 1].min() == pytest.approx(xq - 3, abs=1.2)  # dots are 3 pixels in radius
    assert inside[:, 1].max() == pytest.approx(xa + 3, abs=1.2)
    for x, y in ends:
        dot = inside[np.hypot(inside[:, 1] - x, inside[:, 0] - y) < 3.5]
        assert len(dot) > 20
        assert dot.mean(axis=0) == pytest.approx((y, x), abs=0.5)
    for part in np.linspace(0, 1, 30):
        x, y = xq + part * (xa - xq), yq + part * (ya - yq)
        if not on_images[[int(x), int(x) + 1]].all():
            continue  # in the gap, which is light already
        assert np.hypot(inside[:, 1] - x, inside[:, 0] - y).min() < 1.2
    distance = np.abs((xa - xq) * (inside[:, 0] - yq) - (ya - yq) * (inside[:, 1] - xq)) / np.hypot(
        xa - xq, ya - yq
    )
    assert distance.max() < 3.7  # and nothing is anywhere else


def test_the_middle_of_a_corner_pixel_is_half_a_pixel_inside() -> None:
    query, answer = flat(4, 4), flat(4, 4)
    place = pair_layout(query, answer, 1200).query
    side = place.width / 4
    assert place.to_picture(rows((0, 0), (3, 3))) == pytest.approx(
        np.array([[place.left + side / 2 - 0.5] * 2, [place.left + 3.5 * side - 0.5] * 2]) - (0, place.left)
    )
    corners = rows((-0.5, -0.5), (3.5, 3.5))
    assert place.shows(corners).all() and not place.shows(corners * 1.01 + 0.0).all()


def test_the_images_are_untouched_where_nothing_is_drawn() -> None:
    query, answer = noisy(300, 200, 1), noisy(200, 200, 2)
    width = 503  # at which both are shown as they are
    layout = pair_layout(query, answer, width)
    joined = draw_matches(query, answer, rows((100, 20), (290, 30)), rows((100, 30), (190, 20)), width)
    unjoined = draw_matches(query, answer, NONE, NONE, width)
    for picture, untouched in ((joined, slice(50, 200)), (unjoined, slice(0, 80))):
        for place, image in ((layout.query, query), (layout.answer, answer)):
            assert (place.width, place.height) == (image.width, image.height)
            part = np.asarray(picture)[:, place.left : place.left + place.width]
            assert np.array_equal(part[untouched], image.pixels[untouched])
            assert image is answer or not np.array_equal(part, image.pixels)


def test_points_that_are_not_shown_are_left_out_with_their_lines() -> None:
    query, answer = BOXED
    inside = rows((500, 400)), rows((150, 60))
    outside_q = rows((500, 400), (300, 400), (500, 901)), rows((150, 60), (150, 60), (200, 80))
    outside_a = rows((500, 400), (700, 600), (700, 600)), rows((150, 60), (450, 60), (np.nan, 60))
    alone = draw_matches(query, answer, *inside, 600)
    for points in (outside_q, outside_a):
        assert draw_matches(query, answer, *points, 600) == alone
    nothing = draw_matches(query, answer, NONE, NONE, 600)
    assert draw_matches(query, answer, outside_q[0][1:], outside_q[1][1:], 600) == nothing != alone


def test_no_common_points_are_said_in_the_middle() -> None:
    picture = draw_matches(flat(400, 300), flat(400, 300), NONE, NONE, 800)
    found = coloured(picture)
    layout = pair_layout(flat(400, 300), flat(400, 300), 800)
    words = found[(found[:, 1] < layout.query.width - 1) | (found[:, 1] > layout.answer.left)]
    assert len(words) > 100
    assert np.ptp(words[:, 0]) < 30 and np.ptp(words[:, 1]) < 200
    assert abs(words.mean(axis=0) - (picture.height / 2, picture.width / 2)).max() < 8


def test_lines_are_at_most_so_many_and_spread_over_all_points() -> None:
    height = 300
    points = rows(*((100.0, float(y)) for y in np.linspace(2, height - 3, 8 * MOST_LINES)))
    query, answer = flat(400, height), flat(400, height)
    picture = np.asarray(draw_matches(query, answer, points, points, 3000))
    place = pair_layout(query, answer, 3000).query
    middle = runs(picture[:, place.left + place.width // 2].max(axis=1) > 120)
    assert len(middle) == MOST_LINES
    steps = np.diff(middle)
    assert steps.max() < 2.6 * steps.min()
    few = draw_matches(query, answer, points[:: 8 * 4], points[:: 8 * 4], 3000)
    assert len(runs(np.asarray(few)[:, place.left + place.width // 2].max(axis=1) > 120)) == MOST_LINES // 4


def test_every_point_has_a_dot_though_not_every_one_has_a_line() -> None:
    points = rows(*((float(x), float(y)) for y in range(10, 300, 12) for x in range(10, 400, 12)))
    assert len(points) > 10 * MOST_LINES
    query = flat(400, 300)
    picture = np.asarray(draw_matches(query, query, points, points, 1200)).max(axis=2)
    layout = pair_layout(query, query, 1200)
    for place in (layout.query, layout.answer):
        x, y = place.to_picture(points).round().astype(int).T
        assert (picture[y, x] > 90).mean() > 0.97  # an outline of a line may lie over a small one


def test_points_in_one_place_are_no_trouble() -> None:
    many, one = (rows(*[(100.0, 50.0)] * count) for count in (3 * MOST_LINES, 1))
    query = flat(400, 300)
    assert draw_matches(query, query, many, many, 600) == draw_matches(query, query, one, one, 600)


def test_colours_tell_directions_apart_and_do_not_depend_on_the_order() -> None:
    corners = rows((20, 20), (380, 20), (380, 280), (20, 280))
    query = flat(400, 300)
    picture = draw_matches(query, query, corners, corners, 1200)
    layout = pair_layout(query, query, 1200)
    colours = []
    for place in (layout.query, layout.answer):
        spots = place.to_picture(corners).round().astype(int).tolist()
        colours.append(np.array([picture.getpixel((x, y)) for x, y in spots], int))
    assert np.array_equal(*colours)  # the same on both sides
    for first in range(4):
        for second in range(first):
            assert np.abs(colours[0][first] - colours[0][second]).max() > 60
    turned = corners[::-1].copy()
    again = np.asarray(draw_matches(query, query, turned, turned, 1200), int)
    assert (np.abs(again - np.asarray(picture, int)).max(axis=2) > 0).mean() < 0.01  # crossings, at the most


@pytest.mark.parametrize("points", [np.zeros((2, 2)), np.zeros((3, 3)), np.zeros(3)])
def test_points_that_are_no_pairs_are_refused(points: np.ndarray) -> None:
    with pytest.raises(BadInput, match="not pairs"):
        draw_matches(flat(9, 9), flat(9, 9), np.zeros((3, 2), np.float32), points, 100)


def test_a_picture_too_narrow_is_refused() -> None:
    with pytest.raises(BadInput, match="at least"):
        draw_matches(flat(9, 9), flat(9, 9), NONE, NONE, LEAST_WIDTH - 1)


# --- heat -------------------------------------------------------------------------------------------------


def constant(value: float, shape: tuple[int, int] = (1, 1)) -> np.ndarray:
    return np.full(shape, value, np.float32)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_constant_heat_is_one_colour_whatever_the_map_s_size(value: float) -> None:
    query = flat(400, 300, GREY)
    layout = pair_layout(query, query, 600)
    pictures = [
        np.asarray(draw_heat(query, query, constant(value, shape), constant(value), 600))
        for shape in ((1, 1), (7, 3), (1, 40), (500, 600))
    ]
    for picture in pictures:
        assert np.array_equal(picture, pictures[0])
    for place in (layout.query, layout.answer):
        part = pictures[0][place.top : place.top + place.height, place.left : place.left + place.width]
        assert np.ptp(part, axis=(0, 1)).max() == 0
        assert tuple(part[0, 0]) != (GREY,) * 3


def test_more_heat_is_lighter_and_the_image_shows_through_all_of_it() -> None:
    def middle(grey: int, value: float) -> np.ndarray:
        image = flat(40, 40, grey)
        picture = draw_heat(image, image, constant(value), constant(value), 100)
        return np.asarray(picture, float)[20, 20]

    values = np.linspace(0, 1, 21)
    light = [_lightness(middle(GREY, value)) for value in values]
    assert (np.diff(light[2:]) > 0).all() and light[-1] - light[0] > 35
    for value in values:
        assert _lightness(middle(200, value)) - _lightness(middle(60, value)) > 4


def test_the_colours_of_heat_are_lighter_step_by_step() -> None:
    steps = np.diff([_lightness(np.array(colour, float)) for colour in HEAT_COLOURS])
    assert (steps > 8).all() and (steps < 16).all()
    ends = heat_colours(np.array([[0.0, 0.5, 1.0]], np.float32))
    assert np.array_equal(ends[0], [HEAT_COLOURS[0], HEAT_COLOURS[4], HEAT_COLOURS[-1]])


def _lightness(colour: np.ndarray) -> float:
    """CIE L* of an sRGB colour, 0 to 100."""
    part = colour / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    y = float(linear @ (0.2126, 0.7152, 0.0722))
    return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y


def test_heat_lies_where_its_cells_are() -> None:
    """Every pixel has the colour of a constant map of the bilinear value there."""
    heat = np.random.default_rng(5).random((4, 6)).astype(np.float32)
    query, answer = flat(640, 480, GREY, box=(100, 50, 500, 350)), flat(300, 400, GREY)
    layout = pair_layout(query, answer, 900)
    picture = np.asarray(draw_heat(query, answer, heat, heat.T, 900), int)
    for place, cells in ((layout.query, heat), (layout.answer, heat.T)):
        for u, v in np.random.default_rng(6).random((25, 2)):
            x, y = int(u * place.width), int(v * place.height)
            value = _bilinear(cells, (x + 0.5) / place.width, (y + 0.5) / place.height)
            same = draw_heat(query, answer, constant(value), constant(value), 900)
            at = (place.left + x, place.top + y)
            assert np.abs(picture[at[1], at[0]] - same.getpixel(at)).max() <= 1


def _bilinear(cells: np.ndarray, x: float, y: float) -> float:
    """The value at (x, y) of the unit square; cell (i, j) is centred at ((j + .5) / w, (i + .5) / h)."""
    h, w = cells.shape
    column, row = np.clip(x * w - 0.5, 0, w - 1), np.clip(y * h - 0.5, 0, h - 1)
    j, i = min(int(column), w - 2), min(int(row), h - 2)
    a, b = column - j, row - i
    top = (1 - a) * cells[i, j] + a * cells[i, j + 1]
    return float((1 - b) * top + b * ((1 - a) * cells[i + 1, j] + a * cells[i + 1, j + 1]))


def test_values_beyond_the_range_count_as_its_ends_and_what_is_no_number_as_none() -> None:
    query = flat(40, 40, GREY)
    for odd, plain in ((-3.0, 0.0), (2.0, 1.0), (np.nan, 0.0), (np.inf, 0.0), (-np.inf, 0.0)):
        drawn = draw_heat(query, query, constant(odd), constant(odd), 100)
        assert drawn == draw_heat(query, query, constant(plain), constant(plain), 100)


@pytest.mark.parametrize("shape", [(0, 3), (3,), (2, 2, 2)])
def test_a_map_of_no_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match="heat map"):
        draw_heat(flat(9, 9), flat(9, 9), np.zeros(shape, np.float32), constant(0), 100)


# --- the column -------------------------------------------------------------------------------------------


def test_pictures_stand_below_each_other_each_under_its_caption() -> None:
    colours = [(220, 30, 30), (20, 170, 60), (40, 60, 210)]
    pictures = [Image.new("RGB", (400, 90 + 10 * n), colour) for n, colour in enumerate(colours)]
    sheet = draw_pairs_sheet([(f"{n}  photo.jpg  0.9", picture) for n, picture in enumerate(pictures)], 20)
    assert sheet.width == 440
    pixels = np.asarray(sheet)
    bottom = 20
    for picture, colour in zip(pictures, colours, strict=True):
        ys, xs = np.nonzero((pixels == colour).all(axis=2))
        assert (xs.min(), xs.max()) == (20, 419)
        assert ys.max() - ys.min() + 1 == picture.height and len(ys) == 400 * picture.height
        caption = pixels[bottom : ys.min()]
        ink = np.nonzero((caption < 128).all(axis=2))[0]
        assert len(ink) > 20
        assert len(caption) - ink.max() < ink.min() + 30  # nearer to what it names than to what is above
        bottom = ys.max() + 1
    assert sheet.height == bottom + 20


@pytest.mark.parametrize("title", ["x" * 5000, "größe 東京.jpg", "a\nb\x00", "", "\udcff"])
def test_no_caption_breaks_the_column(title: str) -> None:
    picture = Image.new("RGB", (300, 50), (220, 30, 30))
    sheet = draw_pairs_sheet([(title, picture), ("plain", picture)])
    plain = draw_pairs_sheet([("plain", picture)] * 2)
    assert sheet.size == plain.size
    right = np.asarray(sheet)[:, -22:]
    assert (right == 255).all()  # nothing runs into the margin


def test_narrower_pictures_are_on_the_left() -> None:
    wide, narrow = Image.new("RGB", (300, 20), (220, 30, 30)), Image.new("RGB", (100, 20), (40, 60, 210))
    pixels = np.asarray(draw_pairs_sheet([("", wide), ("", narrow)], 10))
    assert np.nonzero((pixels == (40, 60, 210)).all(axis=2))[1].min() == 10
    assert pixels.shape[1] == 320


def test_a_column_of_nothing_is_refused() -> None:
    with pytest.raises(BadInput, match="needs a pair"):
        draw_pairs_sheet([])


def test_one_picture_below_another() -> None:
    above, below = noisy(80, 30, 3).pixels, noisy(50, 20, 4).pixels
    pixels = np.asarray(append_below(Image.fromarray(above), Image.fromarray(below)))
    assert pixels.shape == (51, 80, 3)
    assert np.array_equal(pixels[:30], above) and np.array_equal(pixels[31:, :50], below)
    assert (pixels[31:, 50:] == 255).all()
