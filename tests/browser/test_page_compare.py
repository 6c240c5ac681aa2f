"""A result beside the query: lines between corresponding points, the overlay, the heat map."""

from typing import Any

import numpy as np
import pytest
from playwright.sync_api import expect

from tests.browser.pages import Visitor
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
