"""The shipped file for `serve deploy`, sent to a head with token authentication, changed, and ended."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

import deploy
from deploy.serve_config import check_serve_config
from serve.api import SearchRequest, SearchResponse
from serve.searcher import open_searcher
from tests.pipeline.small import stored_vectors
from tests.serve.cluster.traffic import Traffic
from tests.serve.served import Served, compared, searched, served_gallery
from tests.serving.ray_head import RayHead, free_port, ray_head
from tests.serving.ray_server import awaited

SHIPPED = Path(deploy.__file__).with_name("serve_config.yaml")
_PATIENCE_S = 120  # on a busy machine


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    with ray_head(tmp_path_factory.mktemp("head")) as running:
        yield running


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return served_gallery(str(tmp_path_factory.mktemp("served") / "gallery"))


@pytest.fixture
def config(served: Served, tmp_path: Path) -> Any:
    """The shipped file's contents for a gallery here."""
    config = yaml.safe_load(SHIPPED.read_text())
    config["http_options"]["port"] = free_port()
    for each in config["applications"]:
        each["args"] |= {"gallery": served.job.gallery.store.url, "log_level": "warning"}
        if "cache" in each["args"]:
            each["args"]["cache"] = str(tmp_path / "cache")
    return config


def deployed(head: RayHead, config: Any, file: Path) -> None:
    file.write_text(yaml.safe_dump(config))
    check_serve_config(file)
    head.command("serve", "deploy", file)


def running(head: RayHead, replicas: int) -> bool:
    """Whether Serve says that all is well, with so many replicas."""
    applications = head.applications().values()
    well = {each["status"] for each in applications} == {"RUNNING"}
    states = [
        replica["state"]
        for each in applications
        for deployment in each["deployments"].values()
        for replica in deployment["replicas"]
    ]
    return well and states == ["RUNNING"] * replicas


def pids(head: RayHead) -> dict[str, set[int]]:
    parts = [("reseen-a", "group-0"), ("reseen-b", "group-0")]
    parts += [("reseen", name) for name in ("ingress", "encoder", "reranker")]
    return {f"{name}:{part}": set(head.replicas(name, part)) for name, part in parts}


@pytest.mark.ray
def test_the_shipped_file_is_deployed_changed_and_ended_over_rest(
    head: RayHead, served: Served, config: Any, tmp_path: Path
) -> None:
    file, url = tmp_path / "serve.yaml", f"http://127.0.0.1:{config['http_options']['port']}"
    assert httpx.get(f"{head.dashboard}/api/serve/applications/").status_code == 401  # no token
    deployed(head, config, file)
    assert awaited(lambda: running(head, 6), _PATIENCE_S)

    image = served.query(7)
    reply = httpx.post(f"{url}/v1/search/upload", files={"image": ("7.bmp", image.data)}, timeout=30)
    with open_searcher(served.job.gallery) as searcher:
        expected = searched(searcher, SearchRequest(), image)
    assert compared(SearchResponse.model_validate(reply.json()).results) == expected

    before = pids(head)
    slot_a, _, front = config["applications"]
    slot_a["args"]["revision"] += 1
    front["deployments"][1]["autoscaling_config"]["min_replicas"] = 2
    vector = stored_vectors(served.job.gallery)[1][3].tolist()
    with Traffic(url, SearchRequest(vectors=[vector], timeout_ms=20_000)) as traffic:
        deployed(head, config, file)
        assert awaited(lambda: running(head, 7), _PATIENCE_S)
    after = pids(head)
    assert not after["reseen-a:group-0"] & before["reseen-a:group-0"]
    assert after["reseen:encoder"] > before["reseen:encoder"]
    for name in ("reseen-b:group-0", "reseen:reranker", "reseen:ingress"):
        assert after[name] == before[name], name
    assert traffic.answers and not traffic.failures
    assert not any(answer.partial for answer in traffic.answers)

    assert len(head.serve()) == 2
    head.command("serve", "shutdown", "--yes")
    assert awaited(lambda: not any(pids(head).values()) and not head.serve(), _PATIENCE_S)
