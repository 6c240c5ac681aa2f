"""Metrics: every name that a server uses is there, misspelt ones are noticed, and nothing costs a request."""

import threading

import pytest

from serve.metrics import FAMILIES, STAGES, Metrics, NoMetrics, PrometheusMetrics, RayMetrics


def lines(metrics: PrometheusMetrics) -> dict[str, float]:
    text = metrics.text()
    assert text is not None
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def test_what_is_counted_timed_and_set_stands_in_the_text() -> None:
    metrics = PrometheusMetrics()
    metrics.count("hedged", group="0")
    metrics.count("hedged", 2, group="0")
    metrics.count("flips")
    metrics.gauge("generation", 12)
    metrics.gauge("queued", 3, kind="image")
    metrics.observe("scan", 0.003)
    found = lines(metrics)
    assert found['reseen_hedged_total{group="0"}'] == 3
    assert found["reseen_flips_total"] == 1 and found["reseen_generation"] == 12
    assert found['reseen_queued{kind="image"}'] == 3
    assert found['reseen_stage_seconds_count{stage="scan"}'] == 1
    assert found['reseen_stage_seconds_bucket{le="0.002",stage="scan"}'] == 0
    assert found['reseen_stage_seconds_bucket{le="0.004",stage="scan"}'] == 1
    assert found["process_resident_memory_bytes"] > 0


def test_every_stage_and_every_family_without_labels_is_there_from_the_start() -> None:
    found = lines(PrometheusMetrics())
    for stage in STAGES:
        assert found[f'reseen_stage_seconds_count{{stage="{stage}"}}'] == 0
    for name, family in FAMILIES.items():
        if not family.labels:
            assert found[f"reseen_{name}_total" if family.kind == "counter" else f"reseen_{name}"] == 0


def test_a_label_that_is_left_out_is_empty() -> None:
    metrics = PrometheusMetrics()
    metrics.count("requests", route="/livez", method="GET")
    series = 'reseen_requests_total{code="",method="GET",route="/livez",status=""}'
    assert lines(metrics)[series] == 1


@pytest.mark.parametrize("make", [NoMetrics, PrometheusMetrics])
def test_a_misspelt_name_is_noticed_whatever_is_behind(make: type[Metrics]) -> None:
    metrics = make()
    for wrong in (
        lambda: metrics.observe("scna", 1.0),
        lambda: metrics.count("hedge"),
        lambda: metrics.count("coverage"),
        lambda: metrics.gauge("hedged", 1),
        lambda: metrics.count("hedged", grp="0"),
    ):
        with pytest.raises(ValueError, match=r"serve/metrics\.py"):
            wrong()


def test_registries_do_not_share_numbers() -> None:
    one, other = PrometheusMetrics(), PrometheusMetrics()
    one.count("flips")
    assert lines(other)["reseen_flips_total"] == 0


def test_threads_lose_no_count() -> None:
    metrics = PrometheusMetrics()

    def work() -> None:
        for number in range(500):
            metrics.count("hedged", group=str(number % 3))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counted = [value for name, value in lines(metrics).items() if name.startswith("reseen_hedged_total")]
    assert sum(counted) == 2_000


@pytest.mark.ray
def test_ray_exports_the_same_families(ray_cluster: None) -> None:
    """Numbers given inside a Ray process are at the node's metrics port after a while."""
    import re
    import time
    import urllib.request

    import ray

    @ray.remote(num_cpus=0)
    class Counting:
        def __init__(self) -> None:
            self.metrics = RayMetrics()

        def count(self) -> str | None:
            self.metrics.count("requests", 3, route="/livez", method="GET", status="200")
            self.metrics.gauge("generation", 12)
            self.metrics.observe("scan", 0.003)
            return self.metrics.text()

    counting = Counting.remote()
    assert ray.get(counting.count.remote()) is None
    (node,) = [node for node in ray.nodes() if node["Alive"]]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline, text = time.monotonic() + 60, ""
    wanted = (
        r"ray_reseen_requests_total\{[^}]*livez",
        r"ray_reseen_generation\{",
        "ray_reseen_stage_seconds_",
    )
    while time.monotonic() < deadline and not all(re.search(each, text) for each in wanted):
        time.sleep(0.5)
        text = opener.open(url, timeout=10).read().decode()
    assert [each for each in wanted if not re.search(each, text)] == []
    ray.kill(counting)
