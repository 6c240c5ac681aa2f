"""What is loopback is told from what only looks like it."""

import pytest

from serve.loopback import is_loopback


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST", "localhost.", "a.localhost"]
)
def test_names_and_addresses_of_this_machine_are_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "0.0.0.0",
        "::",
        "128.0.0.1",
        "127.0.0.1.example",
        "127.1",
        "localhost.example",
        "notlocalhost",
        "[::1]",
        "127.0.0.1:80",
    ],
)
def test_anything_else_is_not(host: str) -> None:
    assert not is_loopback(host)
