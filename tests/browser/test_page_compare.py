"""A result beside the query: lines between corresponding points, the overlay, the heat map."""

from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Route, expect

from tests.browser.conftest import Visit
from tests.browser.pages import DESKTOP, PHONE, Visitor
from tests.browser.test_page_query import drawn
from tests.browser.town import QUERY, SIZE, scene_of, town_files

pytestmark = pytest.mark.browser
FILES = town_files()
MATCH = "facade-000000-view-03.png"


@pytest.fixture
def told(visitor: Visitor) -> list[dict[str, Any]]:
    """What the server says at /v1/compare."""
    answers: list[dict[str, Any]] = []
    visitor.answer("/v1/compare", answers.append)
    return answers


def compare(visitor: Visitor, name: str = MATCH) -> None:
    visitor.card(name).locator(".open").click()
    expect(visitor.page.locator("#stage img, #stage .frame").first).to_be_visible()
    visitor.pictures_loaded()


def area_of(visitor: Visitor, at: int) -> tuple[np.ndarray, np.ndarray]:
    """Corner and size of one of the two images on the stage, in pixels of the stage."""
    corner, size = visitor.page.evaluate(
        """(at) => {
            const image = document.querySelectorAll("#stage img")[at].getBoundingClientRect();
            const stage = document.querySelector("#stage").getBoundingClientRect();
            return [[image.left - stage.left, image.top - stage.top], [image.width, image.height]];
        }""",
        at,
    )
    return np.array(corner), np.array(size)


def lines(visitor: Visitor) -> np.ndarray:
    """(n, 2, 2): both ends of each line on the stage."""
    found = visitor.page.evaluate(
        """[...document.querySelectorAll("#stage .link line:last-child")].map((line) =>
            [["x1", "y1"], ["x2", "y2"]].map((end) => end.map((name) => Number(line.getAttribute(name)))))"""
    )
    return np.array(found)


def all_lines(visitor: Visitor) -> None:
    visitor.page.get_by_label("Lines").focus()
    visitor.page.keyboard.press("End")


def test_lines_join_the_points_that_correspond(visitor: Visitor, told: list[dict[str, Any]]) -> None:
    visitor.pick(FILES[QUERY])
    compare(visitor)
    expect(visitor.page.locator("#stage .link")).to_have_count(48)
    visitor.shoot("side-by-side")
    all_lines(visitor)
    (step,) = told[0]["steps"]
    here, there = map(np.array, step["points"])
    expect(visitor.page.locator("#stage .link")).to_have_count(int(step["figures"]["inliers"]))
    drawn_lines = lines(visitor)
    for at, points in enumerate((here, there)):
        corner, size = area_of(visitor, at)
        originals = np.array([SIZE, 240]) if size[0] > size[1] else np.array([240, SIZE])
        expected = corner + (points + 0.5) * size / originals
        np.testing.assert_allclose(drawn_lines[:, at], expected, atol=0.1)
    expect(visitor.page.locator("#stage-text")).to_contain_text(f"{len(here)} corresponding points")


def test_only_points_in_the_box_are_joined(visitor: Visitor, told: list[dict[str, Any]]) -> None:
    visitor.pick(FILES[QUERY])
    x0, y0, x1, y1 = drawn(visitor, (0.1, 0.05), (0.95, 0.6))
    compare(visitor)
    all_lines(visitor)
    assert visitor.sent("/v1/compare")[-1]["box"] == [x0, y0, x1, y1]
    corner, size = area_of(visitor, 0)
    ends = (lines(visitor)[:, 0] - corner) / size * (SIZE, 240)
    assert len(ends) >= 8
    assert (ends >= (x0 - 1, y0 - 1)).all() and (ends <= (x1 + 1, y1 + 1)).all()
    part = visitor.page.locator("#stage .part")
    assert float(part.get_attribute("width") or 0) == pytest.approx((x1 - x0) * size[0] / SIZE, abs=0.1)


def test_the_overlay_lays_each_point_of_the_query_on_its_point_of_the_match(
    visitor: Visitor, told: list[dict[str, Any]]
) -> None:
    visitor.pick(FILES[QUERY])
    compare(visitor)
    visitor.page.get_by_role("radio", name="Overlay").check()
    query = visitor.page.locator("#stage .frame img").nth(1)
    expect(query).to_have_css("opacity", "0.5")
    here, there = map(np.array, told[0]["steps"][0]["points"])
    moved = visitor.page.evaluate(
        """(points) => {
            const img = document.querySelectorAll("#stage .frame img")[1];
            const model = new DOMMatrix(getComputedStyle(img).transform);
            return points.map(([x, y]) => {
                const from = new DOMPoint(x * img.offsetWidth, y * img.offsetHeight, 0, 1);
                const to = model.transformPoint(from);
                return [to.x / to.w, to.y / to.w];
            });
        }""",
        ((here + 0.5) / (SIZE, 240)).tolist(),
    )
    _, size = area_of(visitor, 0)
    on_match = np.array(moved) / size * (SIZE, 240) - 0.5
    misses = np.linalg.norm(on_match - there, axis=1)
    assert np.median(misses) < 1.5 and misses.max() < 8
    assert visitor.state()["look"] == ["overlay"]
    visitor.shoot("overlay")


def test_the_overlay_fades_and_flips(visitor: Visitor) -> None:
    visitor.pick(FILES[QUERY])
    compare(visitor)
    page = visitor.page
    page.get_by_role("radio", name="Overlay").check()
    query = page.locator("#stage .frame img").nth(1)
    page.get_by_role("slider", name="Query").fill("80")
    expect(query).to_have_css("opacity", "0.8")
    page.get_by_role("button", name="Flip").click()
    expect(query).to_have_css("opacity", "0")
    page.keyboard.press("f")
    expect(query).to_have_css("opacity", "1")


def test_where_no_plane_was_found_there_is_no_overlay_and_it_says_so(visitor: Visitor) -> None:
    visitor.pick(FILES[QUERY])
    other = next(name for name in reversed(visitor.names()) if scene_of(name) != scene_of(QUERY))
    compare(visitor, other)
    expect(visitor.page.get_by_role("radio", name="Overlay (No plane was found")).to_be_disabled()
    expect(visitor.page.get_by_role("radio", name="Heat map (No step")).to_be_disabled()
    expect(visitor.page.locator("#stage-text")).to_have_text("No corresponding points were found.")


def test_the_heat_map_lies_on_both_images(visitor: Visitor) -> None:
    """The town's recipe has no step that makes one: the answer gets one on its way."""
    rows, columns = np.mgrid[0:6, 0:8]
    warm = np.exp(-((rows - 2.5) ** 2 + (columns - 3.5) ** 2) / 5)

    def heated(answer: dict[str, Any]) -> None:
        answer["heat"] = {"query": warm.tolist(), "image": warm[:, ::-1].T.tolist()}

    visitor.answer("/v1/compare", heated)
    visitor.pick(FILES[QUERY])
    compare(visitor)
    visitor.page.get_by_role("radio", name="Heat map").check()
    maps = visitor.page.locator("#stage canvas")
    expect(maps).to_have_count(2)
    visitor.shoot("heat")
    for at in (0, 1):
        corner, size = area_of(visitor, at)
        box = visitor.page.evaluate(
            "(at) => { const c = document.querySelectorAll('#stage canvas')[at];"
            " return [c.offsetLeft, c.offsetTop, c.offsetWidth, c.offsetHeight]; }",
            at,
        )
        np.testing.assert_allclose(box, [*corner, *size], atol=1)
    hottest = visitor.page.evaluate(
        """() => {
            const canvas = document.querySelector("#stage canvas");
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            const light = [...Array(data.length / 4).keys()].map((i) => data[4 * i] + data[4 * i + 1]);
            const at = light.indexOf(Math.max(...light));
            return [at % canvas.width, Math.floor(at / canvas.width)];
        }"""
    )
    assert hottest[0] in (3, 4) and hottest[1] in (2, 3)
    visitor.page.get_by_label("Heat", exact=True).fill("30")
    expect(maps.first).to_have_css("opacity", "0.3")


def test_keys_open_turn_and_close_the_comparison(visitor: Visitor) -> None:
    visitor.pick(FILES[QUERY])
    page, names = visitor.page, visitor.names()
    visitor.cards.first.locator(".open").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    title = page.locator("#compare-title")
    expect(title).to_have_text(names[1])
    page.keyboard.press("ArrowRight")
    expect(title).to_have_text(names[2])
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(title).to_have_text(names[0])
    expect(page.get_by_role("button", name="Result before")).to_be_disabled()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(visitor.cards.first.locator(".open")).to_be_focused()
    assert "open" not in visitor.state()


def test_keys_go_on_working_at_both_ends_of_the_results(visitor: Visitor) -> None:
    visitor.answer("/v1/search", lambda answer: answer.update(results=answer["results"][:3]))
    visitor.pick(FILES[QUERY])
    page, names = visitor.page, visitor.names()
    title = page.locator("#compare-title")
    visitor.cards.first.locator(".open").click()
    expect(title).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(title).to_have_text(names[1])
    for button, end, back in (("before", names[0], "ArrowRight"), ("next", names[2], "ArrowLeft")):
        page.locator(f"#compare-{button}").focus()
        page.keyboard.press("Enter")
        expect(title).to_have_text(end)
        expect(page.locator(f"#compare-{button}")).to_be_disabled()
        page.keyboard.press(back)
        expect(title).to_have_text(names[1])


def test_the_next_result_is_that_of_the_next_card(visitor: Visitor) -> None:
    """Never one that is folded behind another: their order depends on scores that are almost the same."""

    def repeat(answer: dict[str, Any]) -> None:
        for result in answer["results"]:
            result["duplicate_of"] = None
        for copy in answer["results"][3:5]:
            copy["duplicate_of"] = answer["results"][2]["image_id"]

    visitor.answer("/v1/search", repeat)
    visitor.pick(FILES[QUERY])
    page, names = visitor.page, visitor.names()
    visitor.cards.nth(2).locator(".open").click()
    for key, name in (("ArrowRight", names[3]), ("ArrowLeft", names[2]), ("ArrowLeft", names[1])):
        page.keyboard.press(key)
        expect(page.locator("#compare-title")).to_have_text(name)


def test_to_close_it_twice_goes_back_once(visitor: Visitor) -> None:
    visitor.pick(FILES[QUERY])
    address = visitor.page.url
    visitor.card(MATCH).locator(".open").click()
    visitor.page.locator("#compare-close").evaluate("(button) => { button.click(); button.click(); }")
    expect(visitor.page).to_have_url(address)
    visitor.page.wait_for_timeout(300)  # the way back is taken in a while
    assert visitor.page.url == address


def test_buttons_are_about_the_image_that_is_being_looked_at(visitor: Visitor) -> None:
    visitor.pick(FILES[QUERY])
    names = visitor.names()
    compare(visitor, names[1])
    visitor.page.route("**/v1/compare", lambda route: None)  # it never answers
    visitor.page.keyboard.press("ArrowRight")
    expect(visitor.page.locator("#compare-title")).to_have_text(names[2])
    expect(visitor.page.locator("#compare-figures")).to_be_empty()
    visitor.page.get_by_role("dialog").get_by_role("button", name="Hide").click()
    visitor.settled()
    expect(visitor.card(names[2])).to_have_count(0)
    expect(visitor.card(names[1])).to_have_count(1)


def test_a_comparison_that_failed_can_be_tried_again(visitor: Visitor) -> None:
    visitor.pick(FILES[QUERY])
    compare(visitor)
    page = visitor.page
    page.get_by_role("radio", name="Side by side").focus()
    visitor.refuse("/v1/compare", 504, "deadline-exceeded", times=1)
    page.locator("#compare-next").click()
    expect(page.locator("#stage-text")).to_contain_text("The search took too long")
    again = page.get_by_role("dialog").get_by_role("button", name="Try again")
    again.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#stage-text")).to_contain_text("corresponding point")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#compare-title")).to_have_text(MATCH)


def test_a_comparison_that_comes_before_its_search_gets_rank_and_neighbours(
    visitor: Visitor, visit: Visit
) -> None:
    visitor.pick(FILES[QUERY])
    compare(visitor)
    held: list[Route] = []
    other = visit()
    other.page.route("**/v1/search", lambda route: held.append(route))
    other.open(visitor.page.url)
    expect(other.page.locator("#stage .link").first).to_be_visible()
    expect(other.page.get_by_role("button", name="Next result")).to_be_disabled()
    held[0].continue_()
    expect(other.page.get_by_role("button", name="Next result")).to_be_enabled()
    rank = visitor.names().index(MATCH) + 1
    expect(other.page.locator("#compare-verdict")).to_contain_text(f"{rank}. ")


def test_a_long_name_leaves_everything_in_the_window(visitor: Visitor) -> None:
    name = "a long name " * 40 + ".png"

    def lengthen(answer: dict[str, Any]) -> None:
        for result in answer["results"]:
            result["key"] = name

    visitor.answer("/v1/search", lengthen)
    visitor.pick(FILES[QUERY])
    visitor.cards.nth(1).locator(".open").click()
    expect(visitor.page.locator("#compare-title")).to_have_text(name.strip())
    for part in ("#compare-close", "#stage"):
        place = visitor.page.locator(part).bounding_box()
        assert place is not None and place["x"] + place["width"] <= DESKTOP["width"], part


def test_where_the_query_is_is_said_as_it_is_drawn(visit: Visit) -> None:
    """One above the other on a phone, and not equally wide."""
    visitor = visit(viewport=PHONE).open()
    visitor.answer("/v1/compare", lambda answer: answer.update(width=240, height=SIZE))
    visitor.pick(FILES[QUERY])
    visitor.card(MATCH).locator(".open").click()
    expect(visitor.page.locator("#stage-text")).to_contain_text("the query is above")
    (_, query), (_, match) = (area_of(visitor, at)[0] for at in (0, 1))
    assert query < match


def test_whole_numbers_are_shown_to_the_last_digit(visitor: Visitor) -> None:
    """Also those that a number of JavaScript cannot hold."""
    large = 3941654959055551397
    visitor.answer("/v1/search", lambda answer: answer["results"][1]["metadata"].update(number=large))
    visitor.pick(FILES[QUERY])
    visitor.cards.nth(1).locator(".open").click()
    expect(visitor.page.locator("#compare-figures")).to_contain_text(str(large))


def test_what_a_score_is_made_of_is_told(visitor: Visitor, told: list[dict[str, Any]]) -> None:
    visitor.pick(FILES[QUERY])
    compare(visitor)
    figures = visitor.page.locator("#compare-figures")
    (step,) = told[0]["steps"]
    for name, value in (
        ("similarity", f"{told[0]['image']['similarity']:.3f}"),
        ("geometry adds", f"{step['added']:.3f}"),
        ("geometry inliers", str(int(step["figures"]["inliers"]))),
        ("id", told[0]["image"]["image_id"]),
        ("key", MATCH),
    ):
        row = figures.locator("div").filter(has=visitor.page.locator("dt", has_text=name)).first
        expect(row.locator("dd")).to_have_text(value)


def test_searching_on_from_the_comparison_closes_it(visitor: Visitor) -> None:
    visitor.pick(FILES[QUERY])
    compare(visitor)
    dialog = visitor.page.get_by_role("dialog")
    dialog.get_by_role("button", name="Hide").click()
    expect(dialog).to_be_hidden()
    visitor.settled()
    assert MATCH not in visitor.names()


def test_each_of_several_query_images_can_be_compared(visitor: Visitor) -> None:
    visitor.pick(FILES[QUERY], FILES["object-000000-view-00.png"])
    compare(visitor)
    visitor.page.get_by_role("radio", name="Query 2").check()
    expect(visitor.page.locator("#stage-text")).to_have_text("No corresponding points were found.")
    first, second = (body["upload"] for body in visitor.sent("/v1/compare"))
    assert [first, second] == visitor.state()["upload"]
    visitor.page.reload()
    expect(visitor.page.get_by_role("radio", name="Query 2")).to_be_checked()
    assert visitor.sent("/v1/compare")[-1]["upload"] == second


def test_geometry_is_asked_for_where_no_step_looks_at_pairs_and_not_again_where_it_cannot(
    visitor: Visitor,
) -> None:
    visitor.answer("/v1/generation", lambda info: info.update(steps=["expand"]))
    visitor.page.reload()
    expect(visitor.page.locator("#rerank option").first).to_have_text("as the recipe (expand)")
    visitor.pick(FILES[QUERY])
    compare(visitor)
    assert visitor.sent("/v1/compare")[-1]["rerank"] == "geometry"
    visitor.refuse("/v1/compare", 422, "invalid", times=1)
    visitor.page.keyboard.press("ArrowRight")
    expect(visitor.page.locator("#compare-title")).to_have_text(visitor.names()[2])
    expect(visitor.page.locator("#stage .link").first).to_be_visible()
    visitor.page.keyboard.press("ArrowRight")
    expect(visitor.page.locator("#compare-title")).to_have_text(visitor.names()[3])
    expect(visitor.page.locator("#stage-text")).to_contain_text("corresponding point")
    assert [body.get("rerank") for body in visitor.sent("/v1/compare")[1:]] == ["geometry", None, None]
