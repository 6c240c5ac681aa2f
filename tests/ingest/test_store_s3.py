"""What only a real S3 server shows: the wire, the environment, big objects."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ingest.errors import NotFound, Unavailable
from ingest.store import Store

pytestmark = pytest.mark.s3


class Cutter:
    """A TCP proxy before the server that cuts the connection in or after the next `cuts` PUT requests."""

    def __init__(self, upstream: str) -> None:
        host, port = upstream.removeprefix("http://").split(":")
        self.upstream = (host, int(port))
        self.within, self.cuts, self.puts = False, 0, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:  # closed
                return
            server = socket.create_connection(self.upstream)
            doomed = threading.Event()
            for pump in (self._to_server, self._to_client):
                threading.Thread(target=pump, args=(client, server, doomed), daemon=True).start()

    def _to_server(self, client: socket.socket, server: socket.socket, doomed: threading.Event) -> None:
        try:
            while data := client.recv(1 << 16):
                if data.startswith(b"PUT "):
                    self.puts += 1
                    if self.cuts > 0:
                        self.cuts -= 1
                        doomed.set()
                if doomed.is_set() and self.within:
                    server.sendall(data[: len(data) // 2])
                    break
                server.sendall(data)
        except OSError:
            pass
        _close(client, server)

    def _to_client(self, client: socket.socket, server: socket.socket, doomed: threading.Event) -> None:
        try:
            while data := server.recv(1 << 16):
                if doomed.is_set() and not data.startswith(b"HTTP/1.1 100"):
                    break
                client.sendall(data)
        except OSError:
            pass
        _close(client, server)


def _close(*ends: socket.socket) -> None:
    for end in ends:
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            continue


@pytest.fixture
def cutter(s3) -> Iterator[Cutter]:
    proxy = Cutter(s3.endpoint)
    yield proxy
    proxy.listener.close()


@pytest.fixture
def url(s3) -> str:
    return f"s3://{s3.bucket()}/store"


def through(cutter: Cutter, url: str) -> Store:
    return Store(url, {"endpoint_url": cutter.endpoint}, pauses=(0.0,) * 4)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("cuts", [1, 2, 3])
def test_a_write_whose_reply_is_lost_is_ours(cutter: Cutter, url: str, warm: bool, cuts: int) -> None:
    store = through(cutter, url)
    if warm:  # on a connection that was used before, the HTTP client sends a PUT again by itself
        store.create("before", b"x")
    cutter.cuts = cuts
    assert store.create("a", b"mine")
    assert cutter.cuts == 0
    assert not store.create("a", b"another's")
    assert Store(url).read("a") == b"mine"


def test_a_write_cut_in_the_middle_shows_nothing_and_is_done_again(cutter: Cutter, url: str) -> None:
    store, data = through(cutter, url), os.urandom(1 << 20)
    cutter.within, cutter.cuts = True, 100
    with pytest.raises(Unavailable, match="a"):
        store.create("a", data)
    assert Store(url).listing("") == []
    with pytest.raises(NotFound):
        Store(url).read("a")
    cutter.cuts = 2
    assert store.create("a", data)
    assert Store(url).read("a") == data


def test_attempts_are_ours_alone(cutter: Cutter, url: str) -> None:
    """Five attempts, each sent at most twice by the HTTP client; not 5 x 5 x 5."""
    cutter.cuts = 1000
    with pytest.raises(Unavailable):
        through(cutter, url).create("a", b"x")
    assert 5 <= cutter.puts <= 10


def test_a_big_object_is_one_request_and_create_only(cutter: Cutter, url: str) -> None:
    """From 100 MB on s3fs would upload in parts, which a stopped writer leaves behind."""
    store, data = through(cutter, url), bytes(105 << 20)
    assert store.create("big", data)
    assert cutter.puts == 1
    assert not store.create("big", b"small")
    assert store.info("big").size == len(data)
    assert store.read_range("big", len(data) - 5, 10) == bytes(5)
    assert store.read("big") == data


def test_plain_urls_reach_the_server_in_child_processes(url: str) -> None:
    script = "import sys; from ingest.store import Store; Store(sys.argv[1]).create('a', b'child')"
    subprocess.run([sys.executable, "-c", script, url], check=True)
    assert Store(url).read("a") == b"child"


def test_refused_keys_are_said_at_once(url: str) -> None:
    Store(url).create("a", b"x")
    with pytest.raises(Unavailable, match=r"access is refused"):
        Store(url, {"secret": "wrong"}).read("a")


def test_missing_keys_are_said_at_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec.config

    Store(url).create("a", b"x")
    configured = {"endpoint_url": fsspec.config.conf["s3"]["endpoint_url"]}
    monkeypatch.setitem(fsspec.config.conf, "s3", configured)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    with pytest.raises(Unavailable, match=r"no usable credentials.*AWS_ACCESS_KEY_ID"):
        Store(url).read("a")


def test_a_missing_bucket_is_named(s3) -> None:
    for ask in (lambda store: store.listing(""), lambda store: store.read("a")):
        with pytest.raises(NotFound, match=r"nowhere-at-all.*bucket"):
            ask(Store("s3://nowhere-at-all/store"))


def test_the_server_listens_on_loopback_only(s3) -> None:
    """All of its ports: master, volumes, filer, S3, and what else it opens."""
    inodes = set()
    for handle in Path(f"/proc/{s3.pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            inodes.add(str(handle.readlink()))
    listening = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                address, _, port = fields[1].partition(":")
                listening[int(port, 16)] = address
    assert int(s3.endpoint.rpartition(":")[2]) in listening
    assert set(listening.values()) == {"0100007F"}, listening  # 127.0.0.1, as the kernel spells it
