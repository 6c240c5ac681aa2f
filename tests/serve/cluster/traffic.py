"""A steady stream of searches, beside which something is done to a server."""

import threading
import time
from typing import Any

import httpx

from serve.api import SearchRequest, SearchResponse


class Traffic:
    """Searches by vector one after the other, in a thread, until the context ends; what they gave."""

    def __init__(self, url: str, request: SearchRequest) -> None:
        self.answers: list[SearchResponse] = []
        self.failures: list[str] = []
        self._url, self._body = url, request.model_dump(exclude_unset=True)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with httpx.Client(timeout=30) as client:
            while not self._stop.is_set():
                reply = client.post(f"{self._url}/v1/search", json=self._body)
                if reply.status_code == 200:
                    self.answers.append(SearchResponse.model_validate(reply.json()))
                else:
                    self.failures.append(reply.text)
                time.sleep(0.02)

    def __enter__(self) -> "Traffic":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()
