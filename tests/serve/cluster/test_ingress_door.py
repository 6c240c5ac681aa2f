"""An ingress without keys starts only where Serve listens to this machine alone."""

from types import SimpleNamespace

import pytest

from ingest.errors import BadInput
from serve.cluster import deployments
from serve.cluster.settings import FrontSettings


def start(monkeypatch: pytest.MonkeyPatch, host: str, keys: str | None) -> None:
    """An ingress beside a proxy that listens there, as far as its replica makes it."""
    from ray.serve.config import HTTPOptions

    serve = SimpleNamespace(http_config=HTTPOptions(host=host))
    monkeypatch.setattr("ray.serve.context._get_global_client", lambda: serve)
    monkeypatch.setattr(deployments, "_prepare", lambda *_: None)
    monkeypatch.delattr(deployments.Ingress, "__del__", raising=False)  # a coroutine, which Serve awaits
    deployments.Ingress(FrontSettings(gallery="gallery", keys_file=keys), None, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_without_keys_nothing_is_served_to_other_machines(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    with pytest.raises(BadInput, match=f"listens on {host}, which lets other machines in"):
        start(monkeypatch, host, None)
    start(monkeypatch, host, "keys.json")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_this_machine_needs_no_keys(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    start(monkeypatch, host, None)
