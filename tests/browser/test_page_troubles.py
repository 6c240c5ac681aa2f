"""Filters, right and wrong; servers that are busy, loading, out of reach, or ask for a key."""

import re
from typing import Any

import pytest
from playwright.sync_api import Request, expect

from tests.browser.conftest import Visit
from tests.browser.pages import Visitor
from tests.browser.town import GENERATION, QUERY, town_files
from tests.browser.town_server import TownServer

pytestmark = pytest.mark.browser
FILES = town_files()
WHERE = "Only images whose metadata fit"


# -- filters -------------------------------------------------------------------------------------------


def test_a_filter_is_applied_and_taken_away_again(visitor: Visitor) -> None:
    visitor.pick(FILES[QUERY])
    page, all_names = visitor.page, visitor.names()
    page.keyboard.press("/")
    expect(page.get_by_label(WHERE)).to_be_focused()
    page.keyboard.type('key prefix "object" and year >= 1980')
    page.keyboard.press("Enter")
    visitor.settled()
    assert visitor.names() and all(name.startswith("object") for name in visitor.names())
    expect(page.locator("#filter-state")).to_have_text("on")
    visitor.shoot("filter")
    page.get_by_role("button", name="Remove filter").click()
    visitor.settled()
    assert visitor.names() == all_names and "where" not in visitor.state()


def test_the_columns_are_named_with_their_types_and_can_be_clicked_together(visitor: Visitor) -> None:
    visitor.pick(FILES[QUERY])
    page = visitor.page
    columns = page.get_by_role("group", name="Columns")
    told = {button.get_attribute("aria-label") for button in columns.get_by_role("button").all()}
    assert told >= {"year, integer", "city, text", "private, boolean", "price, number", "key, text"}
    columns.get_by_role("button", name="private, boolean").click()
    page.keyboard.type("= true and ")
    columns.get_by_role("button", name="year, integer").click()
    page.keyboard.type("< 2000")
    expect(page.get_by_label(WHERE)).to_have_value("private = true and year < 2000")
    page.locator("#filter").get_by_role("button", name="Apply").click()
    visitor.settled()
    assert visitor.sent("/v1/search")[-1]["where"] == "private = true and year < 2000"
    assert 0 < len(visitor.names()) < 10


@pytest.mark.parametrize(("where", "why"), [("year >=", "cannot be read"), ("colour = 1", "no such column")])
def test_what_is_wrong_with_a_filter_stands_beside_it(where: str, why: str, visitor: Visitor) -> None:
    visitor.expected.add(422)
    visitor.pick(FILES[QUERY])
    page, names = visitor.page, visitor.names()
    page.get_by_label(WHERE).fill(where)
    page.keyboard.press("Enter")
    error = page.locator("#where-error")
    expect(error).to_contain_text(why)
    expect(page.get_by_label(WHERE)).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#problem")).to_be_empty()
    expect(page.locator("#summary")).to_contain_text("results from before")
    assert visitor.names() == names
    visitor.shoot("filter-error")
    page.get_by_label(WHERE).fill("year >= 1980")
    page.keyboard.press("Enter")
    visitor.settled()
    expect(error).to_be_empty()
    assert visitor.names() == names


def test_a_link_with_a_wrong_filter_says_that_nothing_was_searched(visitor: Visitor, visit: Visit) -> None:
    visitor.pick(FILES[QUERY])
    other = visit()
    other.expected.add(422)
    other.open(f"{visitor.page.url}&where=year")
    expect(other.page.locator("#summary")).to_have_text(
        "The filter could not be applied: nothing was searched."
    )
    expect(other.page.locator("#where-error")).not_to_be_empty()


def test_a_filter_that_was_refused_is_not_tried_again_by_looking_at_results(visitor: Visitor) -> None:
    visitor.expected.add(422)
    visitor.pick(FILES[QUERY])
    visitor.page.get_by_label(WHERE).fill("year")
    visitor.page.keyboard.press("Enter")
    expect(visitor.page.locator("#where-error")).not_to_be_empty()
    visitor.cards.nth(1).locator(".open").click()
    expect(visitor.page.locator("#stage-text")).to_contain_text("corresponding point")
    visitor.page.keyboard.press("Escape")
    expect(visitor.page.get_by_role("dialog")).to_be_hidden()
    expect(visitor.page.locator("#summary")).to_contain_text("results from before")
    assert len(visitor.sent("/v1/search")) == 2


def test_a_filter_that_is_being_written_outlives_other_searches(visitor: Visitor) -> None:
    visitor.pick(FILES[QUERY])
    visitor.page.get_by_label(WHERE).fill("year >= 19")
    visitor.cards.nth(1).get_by_role("button", name="Hide").click()
    visitor.settled()
    expect(visitor.page.get_by_label(WHERE)).to_have_value("year >= 19")
    visitor.page.get_by_role("button", name="Clear", exact=True).click()
    expect(visitor.page.get_by_label(WHERE)).to_have_value("")


def test_nothing_found_is_said(visitor: Visitor) -> None:
    visitor.pick(FILES[QUERY])
    visitor.page.get_by_label(WHERE).fill("year > 3000")
    visitor.page.keyboard.press("Enter")
    expect(visitor.page.locator("#summary")).to_contain_text("Nothing was found")
    expect(visitor.cards).to_have_count(0)


def test_wrong_options_are_told_and_not_sent(visitor: Visitor) -> None:
    visitor.pick(FILES[QUERY])
    visitor.page.locator("#options-panel summary").click()
    visitor.page.get_by_label("How many results").fill("5000")
    visitor.page.locator("#options").get_by_role("button", name="Apply").click()
    expect(visitor.page.locator("#options-error")).to_have_text(
        "How many results: a whole number from 1 to 1,000."
    )
    assert len(visitor.sent("/v1/search")) == 1


def test_a_second_look_can_be_chosen(visitor: Visitor) -> None:
    visitor.pick(FILES[QUERY])
    visitor.page.locator("#options-panel summary").click()
    visitor.page.get_by_label("Second look").select_option("none")
    visitor.settled()
    assert visitor.sent("/v1/search")[-1]["rerank"] == "none"
    expect(visitor.cards.get_by_text("points agree")).to_have_count(0)
    expect(visitor.page.locator(".verdict")).to_have_count(0)


# -- the server ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [(429, "overloaded", "The server is busy"), (503, "not-ready", "The server is not ready for this")],
)
def test_a_busy_server_is_asked_again_after_the_time_it_names(
    status: int, code: str, said: str, visitor: Visitor
) -> None:
    visitor.refuse("/v1/search", status, code, times=1, Retry_After="2")
    visitor.choose(FILES[QUERY])
    waiting = visitor.page.locator(".waiting")
    expect(waiting).to_contain_text(f"{said}. Trying again in 2 seconds.")
    if status == 429:
        visitor.shoot("busy")
    expect(waiting).to_contain_text("Trying again in 1 second.")
    visitor.settled()
    expect(waiting).to_have_count(0)
    assert visitor.names()[0] == QUERY and len(visitor.sent("/v1/search")) == 2


def test_waiting_can_be_stopped_and_taken_up_again(visitor: Visitor) -> None:
    visitor.refuse("/v1/search", 429, "overloaded", times=1, Retry_After="600")
    visitor.choose(FILES[QUERY])
    visitor.page.get_by_role("button", name="Stop waiting").click()
    expect(visitor.page.locator("#problem")).to_contain_text("Not searched")
    visitor.page.get_by_role("button", name="Search now").click()
    visitor.settled()
    assert visitor.names()[0] == QUERY


def test_what_was_found_before_is_no_answer_to_a_search_that_nobody_waited_for(visitor: Visitor) -> None:
    visitor.pick(FILES[QUERY])
    visitor.refuse("/v1/search", 429, "overloaded", times=1, Retry_After="600")
    visitor.cards.first.get_by_role("button", name="Search with this").click()
    visitor.page.get_by_role("button", name="Stop waiting").click()
    expect(visitor.page.locator("#problem")).to_contain_text("Not searched")
    expect(visitor.cards).to_have_count(0)
    expect(visitor.page.locator("#summary")).to_be_hidden()


def test_an_image_that_nobody_waited_for_can_be_sent_again(visitor: Visitor) -> None:
    visitor.refuse("/v1/uploads", 429, "overloaded", times=1, Retry_After="600")
    visitor.choose(FILES[QUERY])
    visitor.page.get_by_role("button", name="Stop waiting").click()
    visitor.page.get_by_role("button", name="Search now").click()
    visitor.settled()
    assert visitor.names()[0] == QUERY


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (504, "deadline-exceeded", "The search took too long"),
        (500, "internal", "Something went wrong on the server"),
        (502, "", "The server answered 502"),
    ],
)
def test_errors_are_told_in_words_with_the_request_to_ask_about(
    status: int, code: str, said: str, visitor: Visitor
) -> None:
    visitor.refuse("/v1/search", status, code or "http-502", times=1)
    visitor.choose(FILES[QUERY])
    problem = visitor.page.get_by_role("alert").filter(has_text=said)
    expect(problem).to_contain_text("Request r-1")
    problem.get_by_role("button", name="Try again").click()
    visitor.settled()
    assert visitor.names()[0] == QUERY


def test_a_server_out_of_reach_is_said_to_be_so(visitor: Visitor) -> None:
    visitor.pick(FILES[QUERY])
    visitor.page.context.set_offline(True)
    visitor.cards.nth(1).get_by_role("button", name="Hide").click()
    expect(visitor.page.locator("#problem")).to_contain_text("The server cannot be reached")
    visitor.page.context.set_offline(False)
    visitor.page.get_by_role("button", name="Try again").click()
    visitor.settled()
    visitor.logged[:] = [line for line in visitor.logged if "ERR_INTERNET_DISCONNECTED" not in line]


def test_what_is_no_answer_of_the_server_is_said_to_be_none(visitor: Visitor) -> None:
    visitor.page.route("**/v1/search", lambda route: route.fulfill(body="<h1>Proxy</h1>"), times=1)
    visitor.choose(FILES[QUERY])
    expect(visitor.page.locator("#problem")).to_contain_text("The server's answer cannot be read")
    visitor.page.get_by_role("button", name="Try again").click()
    visitor.settled()
    assert visitor.names()[0] == QUERY


def test_a_newer_search_overtakes_an_older_one(visitor: Visitor) -> None:
    visitor.refuse("/v1/search", 429, "overloaded", times=1, Retry_After="600")
    visitor.choose(FILES["object-000000-view-00.png"])
    expect(visitor.page.locator(".waiting")).to_be_visible()
    visitor.pick(FILES[QUERY])
    expect(visitor.page.locator(".waiting")).to_have_count(0)
    assert visitor.names()[0] == QUERY


def test_generations_that_failed_and_other_library_versions_are_told(visitor: Visitor) -> None:
    def troubled(info: dict[str, Any]) -> None:
        info["refused"] = {str(GENERATION + 1): "shard ab12 is damaged"}
        info["warning"] = "the gallery was built with faiss 1.0 (here 2.0): scores may differ slightly"

    visitor.answer("/v1/generation", troubled)
    visitor.page.reload()
    expect(visitor.page.locator("#gallery")).to_contain_text(f"generation {GENERATION}")
    visitor.pick(FILES[QUERY])
    notices = visitor.page.locator("#notices")
    expect(notices).to_contain_text(
        f"Generation {GENERATION + 1} could not be loaded; {GENERATION} answers. Shard ab12 is damaged."
    )
    expect(notices).to_contain_text("built with faiss 1.0")


# -- the key -------------------------------------------------------------------------------------------


def test_a_key_is_asked_for_refused_kept_in_the_tab_and_forgotten(
    locked: tuple[TownServer, str], visit: Visit
) -> None:
    server, key = locked
    visitor = visit(server.url)
    visitor.expected.add(401)
    page = visitor.open().page
    dialog = page.get_by_role("dialog", name="This server asks for a key")
    expect(dialog.get_by_label("API key")).to_be_focused()
    dialog.get_by_label("API key").fill("wrong")
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("That key was not accepted")
    visitor.shoot("key")
    dialog.get_by_label("API key").fill(key)
    dialog.get_by_role("button", name="Use it").click()
    expect(dialog).to_be_hidden()
    expect(page.locator("#gallery")).to_contain_text(f"generation {GENERATION}")

    headers: list[str] = []

    def note(request: Request) -> None:
        if "/thumbnail" in request.url:
            headers.append(request.headers.get("authorization", "none"))

    page.on("request", note)
    visitor.pick(FILES[QUERY])
    visitor.pictures_loaded()
    shown = visitor.cards.first.locator("img")
    expect(shown).to_have_attribute("src", re.compile("^blob:"))
    assert headers and set(headers) == {f"Bearer {key}"}
    expect(page.locator(".verdict")).to_have_count(0)
    assert key not in page.url and page.evaluate("localStorage.length") == 0

    page.reload()
    visitor.settled()
    expect(dialog).to_be_hidden()
    page.get_by_role("button", name="Forget key").click()
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#problem")).to_contain_text("This server asks for a key")


def test_a_key_serves_where_the_browser_stores_nothing(locked: tuple[TownServer, str], visit: Visit) -> None:
    server, key = locked
    visitor = visit(server.url)
    visitor.expected.add(401)
    page = visitor.page
    page.add_init_script(
        "Object.defineProperty(window, 'sessionStorage',"
        " { get() { throw new DOMException('', 'SecurityError'); } });"
    )
    visitor.open()
    page.get_by_label("API key").fill(key)
    page.keyboard.press("Enter")
    expect(page.locator("#gallery")).to_contain_text(f"generation {GENERATION}")
    visitor.pick(FILES[QUERY])
    assert visitor.names()[0] == QUERY
