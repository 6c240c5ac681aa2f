"""The paths that there are, and who may pass, by host, origin, key, scope and rate: before any body is read.

What is not in the table is not there: a new route that is forgotten here answers 404, never without a key.
"""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from starlette.datastructures import Headers
from starlette.types import Scope as ConnectionScope

from serve.http.key_file import Key, Scope
from serve.http.keys import Keys
from serve.http.problems import Refused, overloaded
from serve.http.settings import HttpSettings
from serve.loopback import is_loopback

Body = Literal["none", "json", "image", "images"]

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True)
class Door:
    """A path: the scope that a key needs for it (None: open to all), and what its body may be."""

    path: str
    scope: Scope | None
    body: Body = "none"


DOORS = (
    Door("/", None),
    Door("/static/{name}", None),
    Door("/openapi.json", None),
    Door("/livez", None),
    Door("/readyz", None),
    Door("/metrics", Scope.METRICS),
    Door("/v1/search", Scope.SEARCH, "json"),
    Door("/v1/search/upload", Scope.SEARCH, "images"),
    Door("/v1/uploads", Scope.SEARCH, "image"),
    Door("/v1/uploads/{digest}/thumbnail", Scope.READ),
    Door("/v1/images/{image_id}", Scope.READ),
    Door("/v1/images/{image_id}/thumbnail", Scope.READ),
    Door("/v1/images/{image_id}/similar", Scope.SEARCH),
    Door("/v1/images/{image_id}/duplicates", Scope.SEARCH),
    Door("/v1/compare", Scope.SEARCH, "json"),
    Door("/v1/generation", Scope.READ),
)
_BY_PATH = {door.path: door for door in DOORS if "{" not in door.path}
_BY_PATTERN = [
    (re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(door.path))), door)
    for door in DOORS
    if "{" in door.path
]


def door_of(path: str) -> Door | None:
    """The door that a path (percent-decoded, without the prefix of a mounted application) leads to."""
    found = _BY_PATH.get(path)
    if found is None:
        found = next((door for pattern, door in _BY_PATTERN if pattern.fullmatch(path)), None)
    return found


def path_of(scope: ConnectionScope) -> str:
    """The path of a request below the prefix that the application is mounted at."""
    path, prefix = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(prefix) :] if prefix and path.startswith(prefix + "/") else path


class Doorkeeper:
    """Lets requests in, or says why not. Used from one event loop.

    Args:
        keys: who may call; None: anybody, as long as the request's Host is loopback, or one of
            `settings.hosts`. (A page of another site that makes its own name point to this machine could
            else read answers.)
        clock: seconds of a steady clock.
    """

    def __init__(
        self, settings: HttpSettings, keys: Keys | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._keys, self._settings = keys, settings
        self._hosts = frozenset(host.lower().rstrip(".") for host in settings.hosts)
        self._buckets = _Buckets(settings.rate_per_s, settings.rate_burst, clock)

    def admit(self, door: Door, method: str, headers: Headers) -> Key | None:
        """The key that a request came with, where one was needed.

        Raises:
            Refused: unauthorized, forbidden or overloaded.
        """
        if self._keys is None:
            self._check_host(door, headers)
            self._check_origin(method, headers)
            return None
        if door.scope is None:
            return None
        key = self._keys.check(_given_key(headers))
        if key is None:
            raise Refused(
                "unauthorized",
                "send a valid key: Authorization: Bearer KEY, or X-API-Key: KEY",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if door.scope not in key.scopes:
            raise Refused("forbidden", f"this key is not for this: it needs the scope {door.scope}")
        wait = self._buckets.take(key.id)
        if wait > 0:
            raise overloaded(wait, f"this key asks too often: at most {self._settings.rate_per_s:g} a second")
        return key

    def _check_host(self, door: Door, headers: Headers) -> None:
        if door.path in ("/livez", "/readyz"):
            return
        given = headers.getlist("host")
        host = _host_name(given[0]) if len(given) == 1 else ""  # of two, a proxy may have looked at the other
        if not is_loopback(host) and host not in self._hosts:
            raise Refused(
                "forbidden",
                "without keys this server answers only where it is called by a loopback name (127.0.0.1, "
                "localhost); require keys, or allow the name",
            )

    def _check_origin(self, method: str, headers: Headers) -> None:
        """Nobody's page but ours may make this server do something, were it only by a form."""
        origin = headers.get("origin")
        if method in _SAFE_METHODS or origin is None or origin in self._settings.origins:
            return
        if origin.partition("://")[2].lower() != headers.get("host", "").lower():
            raise Refused("forbidden", "pages of other origins may not call this server")


def _given_key(headers: Headers) -> str:
    given = headers.getlist("authorization") + headers.getlist("x-api-key")
    if len(given) != 1:
        return ""
    scheme, _, text = given[0].partition(" ")
    if "authorization" in headers:
        return text.strip() if scheme.lower() == "bearer" else ""
    return given[0].strip()


def _host_name(host: str) -> str:
    """A Host header without its port."""
    matched = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]*)(:[0-9]{0,5})?", host)
    return matched[1].lower().strip("[]").rstrip(".") if matched else ""


class _Buckets:
    """A token bucket a caller: full at first, filled at a steady rate, one taken a request."""

    def __init__(self, rate_per_s: float | None, burst: int, clock: Callable[[], float]) -> None:
        self._rate, self._burst, self._clock = rate_per_s, burst, clock
        self._left: dict[str, tuple[float, float]] = {}  # tokens, and the time of that

    def take(self, caller: str) -> float:
        """0, and a token is taken; or the seconds until there is one."""
        if self._rate is None:
            return 0.0
        now = self._clock()
        tokens, since = self._left.get(caller, (float(self._burst), now))
        tokens = min(float(self._burst), tokens + (now - since) * self._rate)
        enough = tokens >= 1
        self._left[caller] = (tokens - 1 if enough else tokens, now)
        return 0.0 if enough else (1 - tokens) / self._rate


def body_limit(door: Door, settings: HttpSettings) -> int:
    """Bytes that a body may have."""
    limits: Mapping[Body, int] = {
        "none": 16_384,
        "json": settings.max_json_bytes,
        "image": settings.max_image_bytes + 16_384,  # and what a form needs around it
        "images": settings.max_multipart_bytes,
    }
    return limits[door.body]
