"""Contact sheets: the images are where they should be, and nothing that a name or a source does stops one."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.labels import label_reader
from deploy.sheet import SheetSettings, draw_sheet
from deploy.sheet_text import ascii_like, drawable, printable, shortened
from ingest.errors import BadInput
from ingest.outcomes import Outcome, Rejected
from serve.query import ImageQuery
from serve.searcher import Answer, Result

COLOURS = {"red/1.png": (220, 30, 30), "green/1.png": (20, 170, 60), "blue/1.png": (40, 60, 210)}
GREY = (206, 206, 210)
SMALL = SheetSettings(tile=64)


def _png(colour: tuple[int, int, int], size: tuple[int, int] = (64, 64)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, "PNG")
    return data.getvalue()


def _result(key: str, rank: int, source: str = "photos") -> Result:
    return Result(rank, 1 / rank, f"/photos/{key}", source, key, {}, rank, 1 / rank)


@pytest.fixture
def photos(tmp_path: Path) -> dict[str, str]:
    for key, colour in COLOURS.items():
        (tmp_path / key).parent.mkdir(exist_ok=True)
        (tmp_path / key).write_bytes(_png(colour))
    return {"photos": str(tmp_path)}


def _middle(image: Image.Image, place: tuple[int, int], tile: int = 64) -> tuple[int, ...]:
    pixel = image.getpixel((place[0] + tile // 2, place[1] + tile // 2))
    assert isinstance(pixel, tuple)
    return pixel


def test_every_image_is_in_its_place(photos: dict[str, str]) -> None:
    queries = [ImageQuery(_png(colour), None, key) for key, colour in COLOURS.items()]
    keys = list(COLOURS)
    answers = [
        Answer(key, tuple(_result(keys[(n + k) % 3], k + 1) for k in range(3))) for n, key in enumerate(keys)
    ]
    sheet = draw_sheet(queries, answers, photos, SMALL)
    assert sheet.image.size == sheet.layout.size and sheet.left_out is None
    for row, (query, answer) in enumerate(zip(queries, answers, strict=True)):
        assert _middle(sheet.image, sheet.layout.place(row, 0)) == COLOURS[query.name]
        for column, result in enumerate(answer.results, start=1):
            assert _middle(sheet.image, sheet.layout.place(row, column)) == COLOURS[result.key]


def test_tiles_are_aligned_apart_and_inside_the_sheet() -> None:
    for settings in (SMALL, SheetSettings(tile=200)):
        sheet = draw_sheet(
            [ImageQuery(b"")] * 3, [Answer("", tuple(_result("x", k) for k in (1, 2)))] * 3, {}, settings
        )
        tile = settings.tile
        corners = {(r, c): sheet.layout.place(r, c) for r in range(3) for c in range(3)}
        for (r, c), (x, y) in corners.items():
            assert x == corners[0, c][0] and y == corners[r, 0][1]
            assert x > 0 and x + tile < sheet.image.width
            assert y > 0 and y + tile + sheet.layout.caption < sheet.image.height
            if c:
                assert x - corners[r, c - 1][0] > tile
            if r:
                assert y - corners[r - 1, c][1] > tile + sheet.layout.caption


def test_images_keep_their_shape_on_a_tile(photos: dict[str, str]) -> None:
    query = ImageQuery(_png((220, 30, 30), (128, 32)))
    sheet = draw_sheet([query], [Answer("")], photos, SMALL)
    x, y = sheet.layout.place(0, 0)
    column = np.asarray(sheet.image)[y : y + 64, x + 32]
    assert (column == (220, 30, 30)).all(axis=1).sum() == 16  # 128 x 32 becomes 64 x 16


def test_the_box_is_drawn_on_the_query_where_it_is(photos: dict[str, str]) -> None:
    plain, boxed = (
        np.asarray(
            draw_sheet([ImageQuery(_png((20, 170, 60), (128, 128)), box)], [Answer("")], photos, SMALL).image
        )
        for box in (None, (32.0, 16.0, 96.0, 112.0))
    )
    ys, xs = np.nonzero((plain != boxed).any(axis=2))
    x, y = draw_sheet([ImageQuery(b"")], [Answer("")], photos, SMALL).layout.place(0, 0)
    assert (xs.min() - x, ys.min() - y, xs.max() - x, ys.max() - y) == (16, 8, 47, 55)
    assert (boxed[y + 32, x + 32] == (20, 170, 60)).all()


def test_what_cannot_be_shown_is_a_grey_tile(photos: dict[str, str]) -> None:
    (Path(photos["photos"]) / "broken.png").write_bytes(_png((1, 2, 3))[:40])
    results = tuple(
        _result(key, rank, source)
        for rank, (key, source) in enumerate(
            [
                ("gone.png", "photos"),
                ("red/1.png", "lost"),
                ("broken.png", "photos"),
                ("red/1.png", "photos"),
            ],
            1,
        )
    )
    for sources in (photos, photos | {"lost": "/nowhere/at/all"}):
        sheet = draw_sheet([ImageQuery(_png((9, 9, 9)))], [Answer("", results)], sources, SMALL)
        for column in (1, 2, 3):
            x, y = sheet.layout.place(0, column)
            assert sheet.image.getpixel((x + 1, y + 1)) == GREY
        assert _middle(sheet.image, sheet.layout.place(0, 4)) == COLOURS["red/1.png"]


def test_a_query_that_was_rejected_has_its_row(photos: dict[str, str]) -> None:
    rejected = Answer("bad", rejected=Rejected(Outcome.UNKNOWN_FORMAT, "not a JPEG"))
    good = Answer("red", (_result("red/1.png", 1),))
    queries = [ImageQuery(b"what?", None, "bad"), ImageQuery(_png(COLOURS["red/1.png"]), None, "red")]
    sheet = draw_sheet(queries, [rejected, good], photos, SMALL)
    x, y = sheet.layout.place(0, 0)
    assert sheet.image.getpixel((x + 1, y + 1)) == GREY
    assert _middle(sheet.image, sheet.layout.place(1, 1)) == COLOURS["red/1.png"]


def test_labels_frame_right_and_wrong_and_leave_the_rest(photos: dict[str, str]) -> None:
    (Path(photos["photos"]) / "other.png").write_bytes(_png((9, 9, 9)))
    results = (_result("red/1.png", 1), _result("blue/1.png", 2), _result("other.png", 3))
    query = ImageQuery(_png((220, 30, 30)), None, "red/2.png")
    label = label_reader(r"(red|blue)/")
    framed = draw_sheet([query], [Answer("", results)], photos, SMALL, label)
    colours = []
    for column in (1, 2, 3):
        x, y = framed.layout.place(0, column)
        colours.append(framed.image.getpixel((x - 1, y - 1)))
        assert _middle(framed.image, (x, y)) == _middle(
            draw_sheet([query], [Answer("", results)], photos, SMALL).image, (x, y)
        )
    assert colours == [(34, 150, 70), (208, 52, 44), (255, 255, 255)]


def test_what_does_not_fit_is_left_out_and_said(photos: dict[str, str]) -> None:
    queries = [ImageQuery(_png((9, 9, 9)))] * 5
    answers = [Answer("", tuple(_result("red/1.png", k + 1) for k in range(7)))] * 5
    sheet = draw_sheet(queries, answers, photos, SheetSettings(tile=48, rows=3, columns=4))
    assert (sheet.layout.rows, sheet.layout.columns) == (3, 4)
    assert sheet.left_out == "not shown: 2 more queries and up to 3 more results a query"


@pytest.mark.parametrize(
    "name", ["größe/été.jpg", "東京/京都.jpg", "a\nb\x00c", "\udcff\udc80.jpg", "", "x" * 5000]
)
def test_no_name_stops_a_sheet(name: str, photos: dict[str, str], tmp_path: Path) -> None:
    answer = Answer(name, (_result(name or "-", 1),))
    sheet = draw_sheet([ImageQuery(_png((9, 9, 9)), None, name)], [answer], photos, SMALL)
    sheet.save(tmp_path / "sheet.jpg")
    assert Image.open(tmp_path / "sheet.jpg").size == sheet.layout.size


def test_a_file_is_replaced_whole_or_not_at_all(photos: dict[str, str], tmp_path: Path) -> None:
    sheet = draw_sheet([ImageQuery(_png((9, 9, 9)))], [Answer("")], photos, SMALL)
    path = tmp_path / "sheet.jpg"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        sheet.save(path)
        assert reader.read() == b"old"  # who had it open still has the old one
    assert Image.open(path).size == sheet.layout.size
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []
    with pytest.raises(BadInput, match="folder that exists"):
        sheet.save(tmp_path / "no" / "sheet.jpg")


def test_long_names_lose_their_middle() -> None:
    assert shortened("short.jpg", 10, len) == "short.jpg"
    for width in range(3, 12):
        cut = shortened("holiday/beach/IMG_0001.jpg", width, len)
        assert len(cut) == width and "…" in cut
        assert "holiday/beach/IMG_0001.jpg".startswith(cut.split("…")[0])
        assert cut.endswith(cut.split("…")[1]) and "IMG_0001.jpg".endswith(cut.split("…")[1])


def test_text_that_no_font_refuses() -> None:
    assert printable("a\nb\udcffc") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c"
    assert ascii_like("Größe été 東京") == "Gro?e ete ??"
    assert drawable("plain.jpg", 12)[0] == "plain.jpg"


def test_a_sheet_without_queries_is_refused() -> None:
    with pytest.raises(BadInput, match="at least one"):
        draw_sheet([], [], {})
