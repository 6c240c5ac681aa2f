"""Chromium, the town's server and its visitors: one browser and one server for all tests."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from ingest.gallery import Gallery
from serve.http.key_file import add_key
from serve.http.keys import Keys
from tests.browser.pages import ARGUMENTS, Visitor, visiting
from tests.browser.town import make_town, town_calibration
from tests.browser.town_server import TownServer, serving

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

Visit = Callable[..., Visitor]


@pytest.fixture(scope="package")
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    found = next((path for path in map(shutil.which, _NAMES) if path), None)
    if found is None:
        missing = "there is no Chromium on PATH: install it (Debian: apt-get install chromium)"
        if request.config.getoption("--require-browser"):
            pytest.fail(missing)
        pytest.skip(missing)
    expect.set_options(timeout=20_000)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture(scope="package")
def town(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    return make_town(tmp_path_factory.mktemp("town")).gallery


@pytest.fixture(scope="package")
def running(town: Gallery, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TownServer]:
    calibrations = [town_calibration(town)]
    with serving(town, tmp_path_factory.mktemp("served") / "open", calibrations) as server:
        yield server


@pytest.fixture
def server(running: TownServer) -> Iterator[TownServer]:
    """The town's server, whole again after the test."""
    yield running
    running.switches.reset()


@pytest.fixture(scope="package")
def locked(town: Gallery, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TownServer, str]]:
    """A server that asks for a key, and whose scores are not calibrated; and the key."""
    folder = tmp_path_factory.mktemp("locked")
    _, key = add_key(folder / "keys.json", "visitor")
    with serving(town, folder / "served", keys=Keys(folder / "keys.json")) as server:
        yield server, key


@pytest.fixture(scope="package")
def shots(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go: the option --screenshots, or nowhere that lasts."""
    chosen: Path | None = request.config.getoption("--screenshots")
    return chosen or tmp_path_factory.mktemp("screenshots")


@pytest.fixture
def visit(browser: Browser, server: TownServer, shots: Path) -> Iterator[Visit]:
    """Opens windows on the town's server, or at `url`; at the end none may have had a complaint."""
    with ExitStack() as stack:

        def come(url: str | None = None, **options: Any) -> Visitor:
            return stack.enter_context(visiting(browser, url or server.url, shots, **options))

        yield come


@pytest.fixture
def visitor(visit: Visit) -> Visitor:
    """A window with the page, where nothing was searched yet."""
    return visit().open()
