"""Getting an image into the page: chosen, dropped, pasted; several of them; a box drawn on one."""

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Route, expect

from ingest.gallery import Gallery
from tests.browser.conftest import Visit
from tests.browser.pages import PHONE, Visitor
from tests.browser.town import (
    COPIED,
    GENERATION,
    QUERY,
    SIZE,
    as_tiff,
    enlarged,
    featureless,
    image_ids,
    on_its_side,
    scene_of,
    town_files,
)

pytestmark = pytest.mark.browser
FILES = town_files()
OBJECT = "object-000000-view-00.png"


def test_an_image_that_was_chosen_is_found_with_other_views_of_it(visitor: Visitor) -> None:
    expect(visitor.page.get_by_role("heading", name="Find every image of the same thing")).to_be_visible()
    visitor.shoot("start")
    visitor.pick(FILES[QUERY])
    names = visitor.names()
    assert names[0] == QUERY
    assert {scene_of(name) for name in names[:3]} == {scene_of(QUERY)}
    expect(visitor.page.locator("#summary")).to_contain_text(f"24 results · generation {GENERATION} · 100 %")
    expect(visitor.page.locator("#live")).to_have_text(f"24 results of generation {GENERATION}.")
    visitor.shoot("results")


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_an_image_can_be_dropped_anywhere_or_pasted(event: str, visitor: Visitor) -> None:
    visitor.hand_over(event, [FILES[QUERY]], "main")
    visitor.settled()
    assert visitor.names()[0] == QUERY
    visitor.hand_over(event, [FILES[OBJECT]], ".bar")
    expect(visitor.cards.first.locator(".open")).to_have_attribute("title", OBJECT)
    assert len(visitor.state()["upload"]) == 1, "another image takes the place of the first"


def test_a_file_over_the_page_shows_where_it_would_go(visitor: Visitor) -> None:
    visitor.hand_over("dragenter", [FILES[QUERY]])
    expect(visitor.page.get_by_text("Drop to search with it")).to_be_visible()
    visitor.hand_over("dragleave", [FILES[QUERY]])
    expect(visitor.page.get_by_text("Drop to search with it")).to_be_hidden()


def test_text_that_was_pasted_is_no_image_and_says_so(visitor: Visitor) -> None:
    visitor.hand_over("paste", [])
    expect(visitor.page.locator("#live")).to_contain_text("There is no image on the clipboard")
    assert visitor.sent("/v1/search") == []


def test_several_images_are_searched_with_together(visitor: Visitor) -> None:
    visitor.pick(FILES[QUERY], FILES[OBJECT])
    tiles = visitor.page.locator("#query-tiles li")
    expect(tiles).to_have_count(2)
    assert {QUERY, OBJECT} <= set(visitor.names()[:6])
    assert len(visitor.sent("/v1/search")[-1]["uploads"]) == 2
    visitor.pick(FILES["object-000002-view-00.png"], more=True)
    expect(tiles).to_have_count(3)
    visitor.page.get_by_role("button", name="Remove uploaded image 1").click()
    expect(tiles).to_have_count(2)
    visitor.settled()
    assert len(visitor.sent("/v1/search")[-1]["uploads"]) == 2


def test_what_is_no_image_says_why_and_the_page_goes_on(visitor: Visitor) -> None:
    visitor.expected.add(422)
    visitor.choose(b"no image", name="letter.png")
    alert = visitor.page.locator("#problem")
    expect(alert).to_contain_text("This image cannot be used")
    expect(alert).to_contain_text("no known image format")
    visitor.pick(FILES[QUERY])
    expect(alert).to_be_empty()
    assert visitor.names()[0] == QUERY


def test_an_image_with_hardly_any_structure_is_said_to_be_weak(visitor: Visitor) -> None:
    visitor.pick(featureless())
    expect(visitor.page.locator(".notice.weak")).to_contain_text(
        "This image has too little structure to match"
    )
    expect(visitor.page.locator(".notice")).to_have_count(1)
    expect(visitor.page.locator("#live")).to_contain_text("too little structure")
    visitor.shoot("weak")
    visitor.pick(FILES[QUERY])
    expect(visitor.page.locator(".notice")).to_have_count(0)


def test_one_of_several_files_that_cannot_be_used_is_named(visitor: Visitor) -> None:
    visitor.expected.add(422)
    visitor.choose(FILES[QUERY], b"no image", name="scan.png")
    expect(visitor.page.locator("#problem")).to_contain_text("This image cannot be used: 1-scan.png")


def test_a_file_that_cannot_be_read_any_more_is_not_the_servers_fault(
    visitor: Visitor, tmp_path: Path
) -> None:
    file = tmp_path / "query.png"
    file.write_bytes(FILES[QUERY])
    visitor.refuse("/v1/uploads", 504, "deadline-exceeded", times=1)
    visitor.page.locator("#pick-start").set_input_files(file)
    again = visitor.page.get_by_role("button", name="Try again")
    expect(again).to_be_visible()
    file.unlink()
    again.click()
    expect(visitor.page.locator("#problem")).to_contain_text("This file cannot be read")


def test_more_images_than_a_search_takes_are_refused_and_none_is_sent(visitor: Visitor) -> None:
    visitor.choose(*[FILES[QUERY]] * 17)
    expect(visitor.page.locator("#problem")).to_contain_text("A search takes 16 at most")
    expect(visitor.page.locator("#start")).to_be_visible()
    expect(visitor.page.locator("#progress")).to_be_hidden()


def test_no_image_is_added_to_a_search_that_is_full(visitor: Visitor, town: Gallery) -> None:
    sixteen = list(image_ids(town).values())[:16]
    visitor.open("#rerank=none&" + "&".join(f"image={each}" for each in sixteen)).settled()
    address = visitor.page.url
    visitor.cards.last.locator(".open").click()
    visitor.page.get_by_role("dialog").get_by_role("button", name="More like this").click()
    expect(visitor.page.get_by_role("dialog")).to_be_hidden()
    expect(visitor.page.locator("#problem")).to_contain_text("Too many images")
    assert visitor.page.url == address and len(visitor.sent("/v1/search")) == 1


def test_who_leaves_while_an_image_is_sent_is_not_called_back(visitor: Visitor) -> None:
    held: list[Route] = []
    visitor.page.route("**/v1/uploads", lambda route: held.append(route))
    with visitor.page.expect_request("**/v1/uploads"):
        visitor.choose(FILES[QUERY])
    expect(visitor.page.locator("#progress")).to_be_visible()
    visitor.page.get_by_role("link", name="Reseen").click()
    expect(visitor.page.locator("#start")).to_be_visible()
    held[0].continue_()
    visitor.page.wait_for_timeout(500)
    assert visitor.page.url == visitor.url and visitor.sent("/v1/search") == []


# -- the box -------------------------------------------------------------------------------------------


def drawn(visitor: Visitor, start: tuple[float, float], end: tuple[float, float]) -> list[float]:
    """Drags over the image, between places given in shares of its sides; the box that was searched with."""
    area = visitor.page.locator(".boxer img").bounding_box()
    assert area is not None
    before = len(visitor.sent("/v1/search"))
    places = [
        (area["x"] + share_x * area["width"], area["y"] + share_y * area["height"])
        for share_x, share_y in (start, end)
    ]
    visitor.page.mouse.move(*places[0])
    visitor.page.mouse.down()
    visitor.page.mouse.move(*places[1], steps=4)
    visitor.page.mouse.up()
    return searched_box(visitor, before)


def searched_box(visitor: Visitor, before: int) -> list[float]:
    with_box = visitor.page.locator(".box")
    expect(with_box).to_be_visible()
    visitor.page.wait_for_function("() => location.hash.includes('box=')")
    visitor.settled()
    sent = visitor.sent("/v1/search")
    assert len(sent) == before + 1
    box: list[float] = sent[-1]["box"]
    return box


@pytest.mark.parametrize("kind", ["WEBP", "JPEG"])
def test_a_box_is_in_pixels_of_the_image_as_it_is_seen(kind: str, visitor: Visitor) -> None:
    """Of a photograph that EXIF turns: stored on its side, 240 x 320, seen 320 x 240.

    Chromium turns no WebP: there the server's picture is shown.
    """
    visitor.pick(on_its_side(kind))
    expect(visitor.page.locator(".boxer.sized img")).to_have_js_property("naturalWidth", SIZE)
    box = drawn(visitor, (0.15, 0.1), (0.85, 0.8))
    assert box == pytest.approx([0.15 * SIZE, 0.1 * 240, 0.85 * SIZE, 0.8 * 240], abs=2.5)
    assert visitor.names()[0] == QUERY
    expect(visitor.page.locator("#box-text")).to_contain_text("Only ")
    visitor.shoot("box")
    assert visitor.state()["box"] == [",".join(str(side) for side in box)]


def test_a_box_is_moved_resized_and_cleared(visitor: Visitor) -> None:
    visitor.pick(FILES[QUERY])
    first = drawn(visitor, (0.2, 0.2), (0.6, 0.6))
    moved = drawn(visitor, (0.4, 0.4), (0.5, 0.45))
    by = (0.1 * SIZE, 0.05 * 240)
    assert moved == pytest.approx([side + by[at % 2] for at, side in enumerate(first)], abs=3)
    x0, y0, x1, y1 = moved
    larger = drawn(visitor, (x1 / SIZE, y1 / 240), (0.95, 0.9))
    assert larger == pytest.approx([x0, y0, 0.95 * SIZE, 0.9 * 240], abs=4)
    visitor.page.get_by_role("button", name="Clear box").click()
    expect(visitor.page.locator(".box")).to_be_hidden()
    visitor.settled()
    assert "box" not in visitor.state() and "box" not in visitor.sent("/v1/search")[-1]


def test_a_slip_of_the_mouse_is_no_box(visitor: Visitor) -> None:
    """Of two pixels on the screen, which are many of a large image."""
    visitor.pick(enlarged(8))
    area = visitor.page.locator(".boxer img").bounding_box()
    assert area is not None
    visitor.page.mouse.move(area["x"] + 50, area["y"] + 50)
    visitor.page.mouse.down()
    visitor.page.mouse.move(area["x"] + 52, area["y"] + 52)
    visitor.page.mouse.up()
    expect(visitor.page.locator(".box")).to_be_hidden()
    assert len(visitor.sent("/v1/search")) == 1


def test_a_box_is_made_moved_and_cleared_by_keys(visitor: Visitor) -> None:
    visitor.pick(FILES[QUERY])
    page, before = visitor.page, len(visitor.sent("/v1/search"))
    page.get_by_role("button", name="Draw a box").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".box")).to_be_focused()
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "Shift+ArrowLeft", "Alt+ArrowDown"):
        page.keyboard.press(key)
    step = round(SIZE / 50)
    expected = [80 + 2 * step, 60 - step + 1, 240 + step, 180 - step + 1]
    assert searched_box(visitor, before) == expected, "one search, when the keys had rested"
    assert f"Box from {expected[0]} to" in (page.locator(".box").get_attribute("aria-label") or "")
    page.keyboard.press("Delete")
    expect(page.locator(".box")).to_be_hidden()
    visitor.settled()
    assert "box" not in visitor.sent("/v1/search")[-1]


def test_the_button_gives_the_mouse_a_box_to_move(visitor: Visitor) -> None:
    visitor.pick(FILES[QUERY])
    visitor.page.get_by_role("button", name="Draw a box").click()
    expect(visitor.page.locator(".box")).to_be_focused()
    assert drawn(visitor, (0.5, 0.5), (0.6, 0.5)) == pytest.approx([112, 60, 272, 180], abs=2)


def test_a_box_that_was_begun_is_not_for_the_next_image(visitor: Visitor) -> None:
    visitor.pick(FILES[QUERY])
    visitor.page.get_by_role("button", name="Draw a box").focus()
    visitor.page.keyboard.press("Enter")
    expect(visitor.page.locator(".box")).to_be_visible()
    visitor.pick(FILES[OBJECT])
    visitor.page.wait_for_timeout(700)  # longer than keys rest before a box is searched with
    assert "box" not in visitor.state() and "box" not in visitor.sent("/v1/search")[-1]


def test_a_finger_draws_while_the_button_is_pressed_and_scrolls_otherwise(visit: Visit) -> None:
    visitor = visit(viewport=PHONE, has_touch=True, is_mobile=True).open()
    visitor.pick(FILES[QUERY])
    page, before = visitor.page, len(visitor.sent("/v1/search"))
    area = page.locator(".boxer img").bounding_box()
    assert area is not None
    devtools = page.context.new_cdp_session(page)

    def drag() -> None:
        def touch(kind: str, *shares: tuple[float, float]) -> None:
            points: list[Any] = [
                {"x": area["x"] + x * area["width"], "y": area["y"] + y * area["height"]} for x, y in shares
            ]
            devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        touch("touchStart", (0.3, 0.3))
        touch("touchMove", (0.5, 0.5))
        touch("touchMove", (0.7, 0.8))
        touch("touchEnd")

    drag()
    expect(page.locator(".box")).to_be_hidden()
    page.evaluate("scrollTo(0, 0)")
    page.get_by_role("button", name="Draw a box").tap()
    drag()
    box = searched_box(visitor, before)
    assert box == pytest.approx([0.3 * SIZE, 0.3 * 240, 0.7 * SIZE, 0.8 * 240], abs=3)


def test_a_box_can_be_drawn_on_what_the_browser_cannot_show(visitor: Visitor) -> None:
    visitor.pick(as_tiff(), name="scan.tiff")
    box = drawn(visitor, (0.5, 0.5), (1.0, 1.0))
    assert box == pytest.approx([SIZE / 2, 120, SIZE, 240], abs=2.5)


def test_only_one_image_can_have_a_box(visitor: Visitor) -> None:
    visitor.pick(FILES[QUERY])
    drawn(visitor, (0.2, 0.2), (0.6, 0.6))
    visitor.pick(FILES[COPIED], more=True)
    expect(visitor.page.locator(".box")).to_be_hidden()
    assert "box" not in visitor.state() and "box" not in visitor.sent("/v1/search")[-1]
