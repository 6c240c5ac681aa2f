"""The address is the search: reload, back and forward, links to others, and uploads that have expired."""

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Visit
from tests.browser.pages import Visitor
from tests.browser.test_page_query import drawn
from tests.browser.town import QUERY, town_files
from tests.browser.town_server import TownServer

pytestmark = pytest.mark.browser
FILES = town_files()
MATCH = "facade-000000-view-03.png"
OBJECT = "object-000000-view-00.png"


def rich_search(visitor: Visitor) -> None:
    """An upload with a box, a filter, options, a hidden result, an open comparison as overlay."""
    visitor.pick(FILES[QUERY])
    drawn(visitor, (0.05, 0.05), (0.95, 0.95))
    page = visitor.page
    page.get_by_label("Only images whose metadata fit").fill('year >= 1985 and not city = "Nowhere"')
    page.keyboard.press("Enter")
    visitor.settled()
    page.locator("#options-panel summary").click()
    page.get_by_label("How many results").fill("12")
    page.get_by_label("Looks at the first").fill("20")
    page.locator("#options").get_by_role("button", name="Apply").click()
    expect(visitor.cards).to_have_count(12)
    visitor.cards.nth(5).get_by_role("button", name="Hide").click()
    visitor.settled()
    visitor.card(MATCH).locator(".open").click()
    page.get_by_role("radio", name="Overlay").check()
    expect(page.locator("#stage .frame")).to_be_visible()


def test_a_link_makes_the_same_search_in_another_browser(visitor: Visitor, visit: Visit) -> None:
    rich_search(visitor)
    other = visit().open(visitor.page.url)
    expect(other.page.locator("#stage .frame")).to_be_visible()
    expect(other.page.locator("#compare-title")).to_have_text(MATCH)
    assert other.sent("/v1/search") == visitor.sent("/v1/search")[-1:]
    assert other.sent("/v1/compare") == visitor.sent("/v1/compare")[-1:]
    other.page.keyboard.press("Escape")
    other.settled()
    assert other.names() == visitor.names()
    expect(other.page.locator(".box")).to_be_visible()
    expect(other.page.get_by_label("Only images whose metadata fit")).to_have_value(
        'year >= 1985 and not city = "Nowhere"'
    )
    expect(other.page.get_by_text("1 image hidden.")).to_be_visible()


def test_reloading_changes_nothing(visitor: Visitor) -> None:
    rich_search(visitor)
    names, address = visitor.names(), visitor.page.url
    visitor.page.reload()
    expect(visitor.page.locator("#stage .frame")).to_be_visible()
    visitor.settled()
    assert (visitor.names(), visitor.page.url) == (names, address)
    assert visitor.sent("/v1/search")[-1] == visitor.sent("/v1/search")[-2]


def test_back_and_forward_go_through_the_searches(visitor: Visitor) -> None:
    page = visitor.page
    visitor.pick(FILES[QUERY])
    first = visitor.names()
    visitor.pick(FILES[OBJECT])
    second = visitor.names()
    assert first[0] == QUERY and second[0] == OBJECT
    page.go_back()
    expect(visitor.cards.first.locator(".open")).to_have_attribute("title", QUERY)
    assert visitor.names() == first
    page.go_forward()
    expect(visitor.cards.first.locator(".open")).to_have_attribute("title", OBJECT)
    assert visitor.names() == second
    page.go_back()
    page.go_back()
    expect(page.locator("#start")).to_be_visible()
    expect(visitor.cards).to_have_count(0)


def test_back_closes_a_comparison_and_escape_leaves_no_trace_of_it(visitor: Visitor) -> None:
    page = visitor.page
    visitor.pick(FILES[QUERY])
    address = page.url
    for close in (page.go_back, lambda: page.keyboard.press("Escape")):
        visitor.card(MATCH).locator(".open").click()
        expect(page.get_by_role("dialog")).to_be_visible()
        close()
        expect(page.get_by_role("dialog")).to_be_hidden()
        assert page.url == address
    assert len(visitor.sent("/v1/search")) == 1, "the search was not made again"


def test_an_upload_that_expired_is_sent_again_by_the_browser_that_has_it(
    visitor: Visitor, server: TownServer
) -> None:
    visitor.expected.add(404)
    visitor.pick(FILES[QUERY])
    names = visitor.names()
    server.forget_uploads()
    visitor.page.reload()
    visitor.settled()
    assert visitor.names() == names
    expect(visitor.page.locator("#problem")).to_be_empty()


def test_an_upload_that_nobody_has_any_more_is_asked_for(
    visitor: Visitor, visit: Visit, server: TownServer
) -> None:
    visitor.pick(FILES[QUERY])
    names = visitor.names()
    server.forget_uploads()
    other = visit()
    other.expected.add(404)
    other.open(visitor.page.url)
    expect(other.page.locator("#problem")).to_contain_text("The image of this search is gone")
    other.shoot("expired")
    other.page.get_by_label("Choose it again").set_input_files(
        {"name": "again.png", "mimeType": "image/png", "buffer": FILES[QUERY]}
    )
    other.settled()
    assert other.names() == names
    assert other.page.url == visitor.page.url


def test_what_cannot_be_read_in_an_address_is_said_and_left_out(visitor: Visitor, visit: Visit) -> None:
    visitor.pick(FILES[QUERY])
    other = visit().open(f"{visitor.page.url}&box=1,2&hide=12x&colour=red")
    other.settled()
    assert other.names() == visitor.names()
    expect(other.page.locator(".notice")).to_have_text(
        "Parts of this address could not be read and were left out: box, hide, colour."
    )


def test_the_name_of_the_page_leads_to_the_start(visitor: Visitor) -> None:
    visitor.pick(FILES[QUERY])
    visitor.page.get_by_role("link", name="Reseen").click()
    expect(visitor.page.locator("#start")).to_be_visible()
    assert visitor.page.url == visitor.url
