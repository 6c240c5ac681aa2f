"""What both clients are made of: where to, as whom, how long, how often."""

import ssl
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypedDict, TypeVar

import httpx

from ingest.errors import BadInput
from serve.client.answers import Answer
from serve.client.calls import Call, httpx_arguments, key_headers, server_url
from serve.client.retries import REAL, Broken, Retries, Send, Surroundings, Talk, talk

Value = TypeVar("Value")
AnyClient = TypeVar("AnyClient", httpx.Client, httpx.AsyncClient)

_CONNECT_S = 5.0  # a machine that is not there does not refuse: it says nothing
_KEPT_S = 4.0  # uvicorn closes an idle connection after 5 s: be first


class ClientOptions(TypedDict, total=False):
    """Options of a client, and their defaults.

    timeout_s: 30.0; the deadline of a call with all its retries. Most of what is left of it is sent along, so
        that the server answers with what it has, or stops.
    retries: `Retries()`.
    connections: 32; most that are open at once, and kept.
    verify: True; False, or a context of your own, for certificates that no public authority has signed.
    proxy: None; URL of a proxy.
    from_environment: False; True takes proxies and certificates as HTTP_PROXY and its kin say.
    surroundings: the real clocks and randomness.
    """

    timeout_s: float
    retries: Retries
    connections: int
    verify: ssl.SSLContext | bool
    proxy: str | None
    from_environment: bool
    surroundings: Surroundings


class ClientSettings:
    """A client without its connections.

    Args:
        url: of the server, and the path before `/v1` if there is one.
        key: the API key; a server bound to loopback may need none.

    Raises:
        BadInput: `url` or `key` is no such thing.
    """

    def __init__(self, url: str, key: str | None, options: ClientOptions) -> None:
        self.url = server_url(url)
        self.timeout_s = options.get("timeout_s", 30.0)
        self.retries = options.get("retries", Retries())
        self.surroundings = options.get("surroundings", REAL)
        most = options.get("connections", 32)
        self.http: dict[str, Any] = {
            "headers": {"User-Agent": "reseen-client", **key_headers(key)},
            "limits": httpx.Limits(
                max_connections=most, max_keepalive_connections=most, keepalive_expiry=_KEPT_S
            ),
            "verify": options.get("verify", True),
            "proxy": options.get("proxy"),
            "trust_env": options.get("from_environment", False),
            "follow_redirects": False,  # nobody else gets the key
        }
        try:
            _ = httpx.URL(self.url).host  # read again for every request
        except (httpx.InvalidURL, ValueError) as error:
            raise BadInput(f"{url!r} is not the URL of a server: {error}") from None

    def opened(self, kind: type[AnyClient]) -> AnyClient:
        """A client of httpx, which opens connections when they are needed.

        Raises:
            BadInput: the proxy or the certificates, given or of the environment, cannot be used.
        """
        try:
            return kind(**self.http)
        except (httpx.InvalidURL, ValueError, ImportError, OSError) as error:
            raise BadInput(
                f"no connection to {self.url} can be made ({error}): check the proxy and the certificates"
            ) from None

    def talk(self, call: Call[Value], timeout_s: float | None, request_id: str | None) -> Talk[Value]:
        """The conversation about a call, with these settings where none are given."""
        whole = self.timeout_s if timeout_s is None else timeout_s
        return talk(call, self.url, self.retries, whole, request_id, self.surroundings)

    def arguments(self, step: Send) -> dict[str, Any]:
        """What httpx builds a request from."""
        timeout = httpx.Timeout(step.left_s, connect=min(_CONNECT_S, step.left_s))
        return httpx_arguments(step.request, self.url) | {"timeout": timeout}


class Paced(httpx.SyncByteStream):
    """A body that is sent until the deadline: httpx's timeout is of each piece, not of all."""

    def __init__(self, body: Iterable[bytes], clock: Callable[[], float], deadline: float) -> None:
        self._body, self._clock, self._deadline = body, clock, deadline

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._body:
            if self._clock() > self._deadline:
                raise httpx.WriteTimeout("the deadline passed while the request was sent")
            yield piece


def answer_of(response: httpx.Response, body: bytes, step: Send) -> Answer:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(response.status_code, body, headers, headers.get("x-request-id", step.request_id))


def broken_by(error: httpx.HTTPError) -> Broken:
    late = isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout)
    return Broken(str(error) or type(error).__name__, late)
