"""The page as a person uses it: a visitor in a browser window, and what the browser complained of."""

import base64
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from PIL import Image
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Locator,
    Page,
    Request,
    Route,
    ViewportSize,
    expect,
)

DESKTOP: ViewportSize = {"width": 1280, "height": 860}
PHONE: ViewportSize = {"width": 390, "height": 844}
SMALL_PHONE: ViewportSize = {"width": 360, "height": 640}
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_MOST_BYTES = 150_000  # of a screenshot
_LISTEN = (
    "window.violations = []; addEventListener('securitypolicyviolation', "
    "(event) => window.violations.push(event.violatedDirective + ' ' + event.blockedURI));"
)


@dataclass
class Visitor:
    """One window. `expected`: statuses that may be logged as failed loads; all else that is logged fails."""

    page: Page
    url: str
    shots: Path
    logged: list[str] = field(default_factory=list)
    expected: set[int] = field(default_factory=set)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def open(self, address: str = "") -> "Visitor":
        self.page.goto(address if address.startswith("http") else self.url + address)
        return self

    # -- searching --------------------------------------------------------------------------------------

    def pick(self, *images: bytes, name: str = "query.png", more: bool = False) -> "Visitor":
        """Chooses files; waits for the answer."""
        self.choose(*images, name=name, more=more)
        return self.settled()

    def choose(self, *images: bytes, name: str = "query.png", more: bool = False) -> None:
        files: Any = [
            {"name": f"{at}-{name}", "mimeType": "image/png", "buffer": data}
            for at, data in enumerate(images)
        ]
        start = self.page.locator("#pick-start")
        asked = self.page.locator("#clear-query").is_visible()
        chosen = self.page.locator("#pick-more" if more else "#pick") if asked else start
        chosen.set_input_files(files)

    def hand_over(self, event: str, images: Sequence[bytes], target: str = "body") -> None:
        """Drops or pastes files as the browser does, with a DataTransfer."""
        self.page.evaluate(
            """([kind, files, target]) => {
                const data = new DataTransfer();
                for (const text of files) {
                    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
                    data.items.add(new File([bytes], "given.png", { type: "image/png" }));
                }
                const at = document.querySelector(target);
                const up = { bubbles: true, cancelable: true };
                const pasted = kind === "paste";
                at.dispatchEvent(pasted ? new ClipboardEvent(kind, { ...up, clipboardData: data })
                    : new DragEvent(kind, { ...up, dataTransfer: data }));
            }""",
            [event, [base64.b64encode(data).decode() for data in images], target],
        )

    def settled(self) -> "Visitor":
        """Until the answer to the last change is shown."""
        expect(self.page.locator("#progress")).to_be_hidden()
        expect(self.page.locator("#summary")).to_be_visible()
        return self

    @property
    def cards(self) -> Locator:
        return self.page.locator("#results > li")

    def card(self, name: str) -> Locator:
        """The result of this file name."""
        return self.cards.filter(has=self.page.locator(f".open[title={json.dumps(name)}]"))

    def names(self) -> list[str]:
        """The file names of the results, in their order."""
        opens = self.cards.locator(".open").all()
        return [each.get_attribute("title") or "" for each in opens]

    def state(self) -> dict[str, list[str]]:
        """What the address says."""
        return parse_qs(urlsplit(self.page.url).fragment)

    # -- what was sent ----------------------------------------------------------------------------------

    def sent(self, path: str) -> list[dict[str, Any]]:
        """The bodies of all requests to a path, in their order."""
        return [body for asked, body in self.asked if asked == path]

    def note(self, request: Request) -> None:
        kind = request.headers.get("content-type") or ""
        if request.method == "POST" and kind.startswith("application/json"):
            self.asked.append((urlsplit(request.url).path, dict(request.post_data_json or {})))

    def note_logged(self, said: ConsoleMessage) -> None:
        if said.type in ("error", "warning"):
            self.logged.append(said.text)

    def answer(self, path: str, change: Callable[[dict[str, Any]], None]) -> None:
        """Changes what the server says at a path, before the page sees it."""

        def handle(route: Route) -> None:
            response = route.fetch()
            body = response.json()
            change(body)
            route.fulfill(response=response, json=body)

        self.page.route(f"**{path}", handle)

    def refuse(self, path: str, status: int, code: str, times: int, **headers: str) -> None:
        """Lets the server say no so many times, then as it will."""
        left = [times]
        self.expected.add(status)

        def handle(route: Route) -> None:
            if left[0] == 0:
                route.fallback()
                return
            left[0] -= 1
            problem = {"code": code, "title": code, "status": status, "detail": "", "request_id": "r-1"}
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            route.fulfill(status=status, headers=named, json=problem, content_type="application/problem+json")

        self.page.route(f"**{path}", handle)

    # -- looking ----------------------------------------------------------------------------------------

    def shoot(self, name: str) -> None:
        """A screenshot for people, as JPEG of at most 150 KB."""
        self.pictures_loaded()
        self.page.evaluate(
            """() => [...document.querySelectorAll("dd")].forEach((dd) => {
                dd.textContent = dd.textContent.replace(/^.*\\/pictures\\//, "/photographs/");
            })"""  # where this run's pictures lie tells nobody anything
        )
        pixels = Image.open(io.BytesIO(self.page.screenshot(animations="disabled"))).convert("RGB")
        for quality in (88, 80, 70, 60, 45):
            buffer = io.BytesIO()
            pixels.save(buffer, "JPEG", quality=quality, optimize=True)
            if buffer.tell() <= _MOST_BYTES:
                break
        self.shots.mkdir(parents=True, exist_ok=True)
        (self.shots / f"{name}.jpg").write_bytes(buffer.getvalue())

    def pictures_loaded(self) -> None:
        """Until every picture in the window is there."""
        self.page.wait_for_function(
            """() => [...document.images].every((img) => {
                const at = img.getBoundingClientRect();
                const seen = at.width > 0 && at.top < innerHeight && at.bottom > 0;
                return !seen || img.classList.contains("absent") || (img.complete && img.naturalWidth > 0);
            })"""
        )

    def complaints(self) -> list[str]:
        """What the browser logged that no test expected, and what its content policy stopped."""
        statuses = "|".join(map(str, self.expected or [0]))
        allowed = re.compile(rf"Failed to load resource: .* status of ({statuses})\b")
        stopped: list[str] = [] if self.page.is_closed() else self.page.evaluate("window.violations ?? []")
        return [line for line in self.logged if not allowed.search(line)] + stopped


@contextmanager
def visiting(
    browser: Browser, url: str, shots: Path, context: BrowserContext | None = None, **options: Any
) -> Iterator[Visitor]:
    """A visitor in a browser of their own, or in another tab of `context`; fails on any complaint."""
    own = context or browser.new_context(**({"viewport": DESKTOP} | options))
    page = own.new_page()
    visitor = Visitor(page, url, shots)
    page.add_init_script(_LISTEN)
    page.on("console", visitor.note_logged)
    page.on("pageerror", lambda error: visitor.logged.append(str(error)))
    page.on("request", visitor.note)
    try:
        yield visitor
        found = visitor.complaints()
        assert not found, f"the browser complained: {found}"
    finally:
        page.unroute_all(behavior="ignoreErrors")
        page.close() if context else own.close()
