"""The results: what stands on them, how they are gone through, and what can be done with each."""

import re
from typing import Any

import pytest
from playwright.sync_api import expect

from ingest.gallery import Gallery
from tests.browser.pages import Visitor
from tests.browser.town import COPIED, COPIES, HOSTILE, QUERY, image_ids, scene_of, town_files
from tests.browser.town_server import TownServer

pytestmark = pytest.mark.browser
FILES = town_files()
WORDS = {"same thing", "maybe", "unlikely"}


@pytest.fixture(scope="module")
def ids(town: Gallery) -> dict[str, str]:
    return {name: str(image_id) for name, image_id in image_ids(town).items()}


def test_results_have_scores_that_fall_and_a_verdict_in_words(visitor: Visitor) -> None:
    visitor.pick(FILES[QUERY])
    scores = [float(text) for text in visitor.cards.locator(".score").all_inner_texts()]
    assert scores == sorted(scores, reverse=True) and len(scores) > 15
    verdicts = visitor.cards.locator(".verdict").all_inner_texts()
    assert len(verdicts) == len(scores) and set(verdicts) <= WORDS
    assert verdicts[0] == "same thing" and verdicts[-1] == "unlikely"
    expect(visitor.card(QUERY)).to_contain_text("points agree")
    first = visitor.cards.first.locator(".open")
    label = first.get_attribute("aria-label") or ""
    assert label.startswith(f"Result 1: {QUERY}, score {scores[0]:.3f}, same thing")


def test_no_verdict_is_given_where_scores_are_not_calibrated(visitor: Visitor) -> None:
    def uncalibrated(answer: dict[str, Any]) -> None:
        for result in answer["results"]:
            result["verdict"] = None

    visitor.answer("/v1/search", uncalibrated)
    visitor.pick(FILES[QUERY])
    expect(visitor.cards.first.locator(".score")).to_be_visible()
    expect(visitor.page.locator(".verdict")).to_have_count(0)


def test_near_duplicates_are_folded_with_their_number_and_unfold(visitor: Visitor) -> None:
    visitor.pick(FILES[COPIED])
    leader = visitor.names()[0]  # any of them: their scores are all but the same
    alike = {COPIED, *COPIES} - {leader}
    assert len(alike) == 3
    stack = visitor.card(leader).get_by_role("button", name="+ 3 near-duplicates")
    expect(stack).to_have_attribute("aria-expanded", "false")
    assert not alike & set(visitor.names())
    visitor.shoot("folded")
    stack.click()
    assert set(visitor.names()[1:4]) == alike
    expect(visitor.cards.nth(1).locator(".open")).to_have_attribute(
        "aria-label", re.compile("near-duplicate")
    )
    visitor.shoot("unfolded")
    visitor.page.keyboard.press("Enter")
    assert not alike & set(visitor.names()), "the same button folds them again, and has kept the focus"
    visitor.page.locator("#options-panel summary").click()
    visitor.page.get_by_label("Fold near-duplicates").uncheck()
    visitor.settled()
    expect(visitor.page.locator(".stack")).to_have_count(0)
    assert alike <= set(visitor.names()) and visitor.state()["fold"] == ["no"]


# -- searching on --------------------------------------------------------------------------------------


def test_searching_with_a_result_leaves_the_image_behind(visitor: Visitor, ids: dict[str, str]) -> None:
    visitor.pick(FILES[QUERY])
    visitor.card("facade-000000-view-03.png").get_by_role("button", name="Search with this").click()
    visitor.settled()
    sent = visitor.sent("/v1/search")[-1]
    assert (sent["uploads"], sent["image_ids"]) == ([], [ids["facade-000000-view-03.png"]])
    assert {scene_of(name) for name in visitor.names()[:2]} == {scene_of(QUERY)}
    expect(visitor.page.locator("#query-tiles img")).to_have_count(1)


def test_more_like_a_result_is_asked_besides_the_image(visitor: Visitor, ids: dict[str, str]) -> None:
    visitor.pick(FILES[QUERY])
    digest = visitor.state()["upload"]
    visitor.card("facade-000000-view-03.png").get_by_role("button", name="More like this").click()
    visitor.settled()
    sent = visitor.sent("/v1/search")[-1]
    assert (sent["uploads"], sent["image_ids"]) == (digest, [ids["facade-000000-view-03.png"]])
    expect(visitor.page.locator("#query-tiles li")).to_have_count(2)


def test_what_is_not_the_thing_is_looked_away_from_and_can_come_back(
    visitor: Visitor, ids: dict[str, str]
) -> None:
    visitor.pick(FILES[QUERY])
    wrong = next(name for name in visitor.names() if scene_of(name) != scene_of(QUERY))
    visitor.card(wrong).get_by_role("button", name="Not this").click()
    visitor.settled()
    sent = visitor.sent("/v1/search")[-1]
    assert sent["unlike_ids"] == [ids[wrong]]
    assert wrong not in visitor.names()
    visitor.page.get_by_role("button", name="Remove image 1 that shows something else").click()
    visitor.settled()
    assert wrong in visitor.names() and visitor.sent("/v1/search")[-1]["unlike_ids"] == []


def test_a_hidden_result_makes_room_and_can_be_shown_again(visitor: Visitor, ids: dict[str, str]) -> None:
    visitor.pick(FILES[QUERY])
    second = visitor.names()[1]
    visitor.card(second).get_by_role("button", name="Hide").click()
    visitor.settled()
    assert second not in visitor.names()
    assert visitor.sent("/v1/search")[-1]["exclude_ids"] == [ids[second]]
    expect(visitor.page.get_by_text("1 image hidden.")).to_be_visible()
    visitor.page.get_by_role("button", name="Show again").click()
    visitor.settled()
    assert visitor.names()[1] == second


# -- keys ----------------------------------------------------------------------------------------------


def test_arrow_keys_go_through_the_grid_which_is_one_tab_stop(visitor: Visitor) -> None:
    visitor.pick(FILES[QUERY])
    page = visitor.page
    columns = page.evaluate(
        """[...document.querySelectorAll("#results > li")]
            .filter((card, _, all) => card.offsetTop === all[0].offsetTop).length"""
    )
    opens = visitor.cards.locator(".open")
    opens.first.focus()
    for key, place in (
        ("ArrowRight", 1),
        ("ArrowDown", 1 + columns),
        ("ArrowLeft", columns),
        ("ArrowUp", 0),
        ("ArrowUp", 0),
        ("End", visitor.cards.count() - 1),
        ("Home", 0),
    ):
        page.keyboard.press(key)
        expect(opens.nth(place)).to_be_focused()
    stops = page.locator("#results button[tabindex='0']").count()
    assert stops == visitor.cards.first.locator("button").count(), "only the buttons of one card"


def test_letters_search_on_and_the_focus_stays_in_its_place(visitor: Visitor) -> None:
    visitor.pick(FILES[QUERY])
    second, third = visitor.names()[1:3]
    visitor.cards.nth(1).locator(".open").focus()
    visitor.page.keyboard.press("h")
    expect(visitor.cards.nth(1).locator(".open")).to_have_attribute("title", third)
    expect(visitor.cards.nth(1).locator(".open")).to_be_focused()
    assert second not in visitor.names()
    visitor.page.keyboard.press("s")
    expect(visitor.page.locator("#query-tiles li")).to_have_count(1)
    visitor.settled()
    assert visitor.sent("/v1/search")[-1]["uploads"] == []


def test_the_skip_button_leads_to_the_results(visitor: Visitor) -> None:
    visitor.pick(FILES[QUERY])
    visitor.page.evaluate("document.activeElement.blur()")
    visitor.page.get_by_role("button", name="Skip to the results").focus()
    visitor.page.keyboard.press("Enter")
    expect(visitor.cards.first.locator(".open")).to_be_focused()


# -- what is not all well ------------------------------------------------------------------------------


def test_names_that_are_markup_are_shown_and_not_obeyed(visitor: Visitor) -> None:
    visitor.pick(FILES[HOSTILE])
    names = visitor.names()
    assert HOSTILE in names
    visitor.card(HOSTILE).locator(".open").click()
    dialog = visitor.page.get_by_role("dialog")
    expect(dialog.get_by_role("heading")).to_have_text(HOSTILE)
    expect(dialog.get_by_text(f"<i>{HOSTILE.removesuffix('.png')}</i> & more")).to_be_visible()
    assert visitor.page.title() == "Reseen"
    assert visitor.page.locator("img[src='x'], dialog i").count() == 0


def test_a_partial_answer_says_how_much_was_searched(visitor: Visitor, server: TownServer) -> None:
    server.switches.gone.add("1/a")
    visitor.pick(FILES[QUERY])
    notice = visitor.page.locator(".notice.partial")
    expect(notice).to_contain_text("Partial answer: ")
    coverage = (visitor.page.locator("#summary").inner_text().split(" · "))[2].removesuffix(" % searched")
    assert 10 < int(coverage) < 90
    expect(notice).to_contain_text(f"{coverage} % of the images were searched")
    notice.get_by_text("shards missing").click()
    assert notice.locator("li").count() == 2
    visitor.shoot("partial")
    server.switches.reset()
    for _ in range(100):  # the replica is looked at again after a pause
        visitor.page.reload()
        visitor.settled()
        if notice.count() == 0:
            break
    expect(visitor.page.locator("#summary")).to_contain_text("100 % searched")


def test_a_second_look_that_could_not_be_done_is_named(visitor: Visitor, server: TownServer) -> None:
    server.switches.no_looks = True
    visitor.pick(FILES[QUERY])
    expect(visitor.page.locator(".notice.partial")).to_contain_text("no second look by geometry")


def test_names_are_cut_between_letters(visitor: Visitor) -> None:
    name = "view of a long street \N{GRINNING FACE}12345678.jpg"

    def rename(answer: dict[str, Any]) -> None:
        for at, result in enumerate(answer["results"]):
            result["key"] = name[: len(name) - at % 5 - 1]

    visitor.answer("/v1/search", rename)
    visitor.pick(FILES[QUERY])
    halves = visitor.cards.locator(".name span")
    assert halves.evaluate_all("(all) => all.every((half) => half.textContent.isWellFormed())")


def test_from_a_folded_result_the_focus_comes_back_to_the_one_it_repeats(visitor: Visitor) -> None:
    told: list[dict[str, Any]] = []
    visitor.answer("/v1/search", told.append)
    visitor.pick(FILES[QUERY])
    folded = next(each for each in told[0]["results"] if each["duplicate_of"])
    leader = visitor.page.locator(f"#results > li[data-id='{folded['duplicate_of']}'] .open")
    assert leader.get_attribute("title") != visitor.names()[0]
    visitor.page.evaluate("(id) => { location.hash += `&open=${id}`; }", folded["image_id"])
    expect(visitor.page.locator("#compare-title")).to_have_text(folded["key"])
    visitor.page.keyboard.press("Escape")
    expect(leader).to_be_focused()
