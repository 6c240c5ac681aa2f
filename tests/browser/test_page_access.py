"""For everybody: names and roles, contrast, focus, phones, dark and light, and no markup made of data."""

import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import ViewportSize, expect

import serve
from tests.browser.conftest import Visit
from tests.browser.pages import PHONE, SMALL_PHONE, Visitor
from tests.browser.town import COPIED, QUERY, featureless, town_files

pytestmark = pytest.mark.browser
FILES = town_files()
PAGE = Path(serve.__file__).parent / "page"

AUDIT = (Path(__file__).parent / "audit.js").read_text()

CONTRAST = (Path(__file__).parent / "contrast.js").read_text()


def states(visitor: Visitor) -> Any:
    """The page's main states, one after the other."""
    yield "start"
    visitor.pick(FILES[COPIED])
    visitor.page.locator("#options-panel summary").click()
    visitor.page.locator(".stack").first.click()
    yield "results"
    visitor.cards.nth(1).get_by_role("button", name="Not this").click()
    visitor.settled()
    visitor.cards.nth(1).get_by_role("button", name="Hide").click()
    visitor.settled()
    visitor.page.get_by_role("button", name="Draw a box").focus()
    visitor.page.keyboard.press("Enter")
    yield "box"
    visitor.pick(featureless())
    yield "weak"
    visitor.cards.first.locator(".open").click()
    expect(visitor.page.locator("#stage-text")).to_contain_text("corresponding point")
    yield "compare"
    visitor.page.keyboard.press("Escape")
    visitor.page.get_by_role("button", name="Shortcuts").click()
    yield "shortcuts"
    visitor.page.get_by_role("button", name="Close", exact=True).click()
    visitor.expected.add(422)
    visitor.choose(b"no image")
    expect(visitor.page.locator("#problem")).not_to_be_empty()
    yield "problem"


def test_every_control_has_a_name_and_the_roles_are_right(visitor: Visitor) -> None:
    for state in states(visitor):
        assert visitor.page.evaluate(AUDIT) == [], state


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(scheme: str, visit: Visit) -> None:
    visitor = visit(color_scheme=scheme).open()
    for state in states(visitor):
        looked, faint = visitor.page.evaluate(CONTRAST)
        assert (looked > 5, faint) == (True, []), state
        if (scheme, state) == ("dark", "results"):
            visitor.shoot("dark")


def test_colours_can_be_chosen_and_are_kept(visitor: Visitor) -> None:
    def paper() -> int:
        colour: str = visitor.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    assert paper() > 600
    button = visitor.page.get_by_role("button", name="Colours")
    button.click()
    button.click()
    expect(button).to_have_text("Colours: dark")
    assert paper() < 150
    visitor.page.reload()
    expect(button).to_have_text("Colours: dark")
    assert paper() < 150


def test_all_of_it_is_reached_by_tab_and_shows_where_one_is(visitor: Visitor) -> None:
    visitor.pick(FILES[QUERY])
    visitor.page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(60):
        visitor.page.keyboard.press("Tab")
        where, outlined = visitor.page.evaluate(
            """() => {
                const e = document.activeElement;
                const rings = [e, e.closest(".button")].filter(Boolean);
                const ring = rings.some((x) => getComputedStyle(x).outlineStyle !== "none");
                const name = e.id || e.className || e.dataset.act || e.textContent.trim();
                return [e === document.body ? "" : name, ring];
            }"""
        )
        if not where:
            break
        assert outlined, where
        reached.append(where)
    wanted = ["skip", "home", "theme", "help", "clear-query", "draw-box"]
    wanted += ["pick", "pick-more", "where", "open"]
    assert [each for each in reached if each in wanted] == wanted
    acts = ["search", "more", "unlike", "hide"]
    assert [each for each in reached if each in acts] == acts, "those of one card"


@pytest.mark.parametrize("phone", [SMALL_PHONE, PHONE], ids=["small", "usual"])
def test_a_phone_has_room_for_all_of_it(phone: ViewportSize, visit: Visit) -> None:
    visitor = visit(viewport=phone, has_touch=True, is_mobile=True, device_scale_factor=2).open()
    page = visitor.page

    def fits() -> None:
        assert page.evaluate("document.documentElement.scrollWidth") <= phone["width"]
        small = page.evaluate(
            """[...document.querySelectorAll("button, .button, select, input[type=number]")].filter((e) => {
                const at = e.getBoundingClientRect();
                const shown = e.checkVisibility() && at.width > 1 && !e.closest(".skip");
                return shown && Math.min(at.width, at.height) < 34;
            }).map((e) => e.outerHTML.slice(0, 80))"""
        )
        assert small == []

    fits()
    tops = [page.locator(part).evaluate("(e) => e.offsetTop") for part in ("main", "#filter-panel")]
    assert tops[0] < tops[1], "what to do comes before what may be done"
    page.get_by_role("button", name="Shortcuts").tap()
    title = page.get_by_role("heading", name="Shortcuts").bounding_box()
    assert title is not None and title["y"] >= 0, "a list is read from its beginning"
    page.get_by_role("button", name="Close", exact=True).tap()
    visitor.pick(FILES[QUERY])
    fits()
    first = visitor.cards.first.bounding_box()
    assert first is not None and first["y"] < phone["height"] - 100, "results begin in the first window"
    assert first["width"] > phone["width"] / 3
    visitor.shoot("phone")
    page.locator("#filter-panel summary").tap()
    page.locator("#options-panel summary").tap()
    fits()
    visitor.cards.nth(1).locator(".open").tap()
    expect(page.locator("#stage .link").first).to_be_visible()
    tops = page.evaluate("[...document.querySelectorAll('#stage img')].map((e) => e.offsetTop)")
    assert tops[1] > tops[0], "one above the other"
    fits()
    visitor.shoot("phone-side-by-side")


def test_nothing_moves_for_those_who_asked_for_that(visit: Visit) -> None:
    visitor = visit(reduced_motion="reduce").open()
    visitor.refuse("/v1/search", 429, "overloaded", times=1, Retry_After="600")
    visitor.choose(FILES[QUERY])
    expect(visitor.page.locator("#progress")).to_be_visible()
    moving = "document.getAnimations().length"
    assert visitor.page.evaluate(moving) == 0
    visitor.page.emulate_media(reduced_motion="no-preference")
    assert visitor.page.evaluate(moving) == 1


def test_the_shortcuts_are_listed(visitor: Visitor) -> None:
    visitor.page.get_by_role("button", name="Shortcuts").click()
    dialog = visitor.page.get_by_role("dialog", name="Shortcuts")
    expect(dialog.get_by_text("compare a result with the query")).to_be_visible()
    visitor.page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()


# -- the files -----------------------------------------------------------------------------------------


def test_the_page_has_no_inline_code_and_makes_no_markup_of_data() -> None:
    html = (PAGE / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=|javascript:|https?://", html)
    for file in PAGE.glob("*.js"):
        code = file.read_text()
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", code
        ), file
        assert not re.search(r"(from|import\()\s*[\"'](?!\./)", code), f"{file.name} imports from elsewhere"


def test_every_file_of_the_page_is_used() -> None:
    html = (PAGE / "index.html").read_text()
    used = {"index.html", *re.findall(r"static/([\w.]+)", html)}
    code = [file.read_text() for file in PAGE.glob("*.js")]
    used |= {name for text in code for name in re.findall(r"from \"\./([\w.]+)\"", text)}
    assert {file.name for file in PAGE.iterdir()} == used
