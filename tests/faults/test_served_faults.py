"""A server on Ray under a steady load loses nothing: killed replicas, flips, a group gone.

The whole course, with a store that falls silent and stopped processes, is `make evaluate` (served-faults).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from index.generation import Generation, read_generation
from index.group import assign_shards
from index.shards import Shard
from tests.serve.served import served_gallery
from tests.serving.faults import TOP, Faults, Phase, stored_queries, wrong_answers
from tests.serving.ray_server import ray_served
from tests.serving.records import Record
from tests.serving.running_load import running_load

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

_PATIENT_MS = 30_000  # on a busy machine a process takes long to start


def test_faults_under_load_cost_no_request_and_mix_no_generations(tmp_path: Path) -> None:
    served = served_gallery(str(tmp_path / "gallery"))
    gallery = served.job.gallery
    queries = stored_queries(gallery, 10)
    np.save(tmp_path / "queries.npy", queries)
    image = served.query(0)
    (tmp_path / "query.png").write_bytes(image.data)
    asked = {"top": TOP, "timeout_ms": _PATIENT_MS, "rerank": "none"}
    with (
        ray_served(gallery.store.url, tmp_path, 2, 2, "--ingress-replicas", "1") as server,
        running_load(
            server.url,
            tmp_path / "load.jsonl",
            vectors=tmp_path / "queries.npy",
            rate=10,
            image=[tmp_path / "query.png"],
            image_rate=0.5,
            seconds=600,
            give_up=60,
            request={key: value for key, value in asked.items() if key != "rerank"},
            image_request=asked,
        ) as load,
    ):
        done = Faults(served.job, server, load)
        done.flipped(5)
        done.each_replica_killed(groups=[0])
        impatient: list[dict[str, Any]] = []

        def ask() -> None:
            for timeout_ms in (300, 600, 1_200, 2_400):  # less than a replica takes to start
                hurried = {"vectors": [queries[0].tolist()], "timeout_ms": timeout_ms}
                answer = httpx.post(f"{server.url}/v1/search", json=hurried, timeout=30)
                if answer.status_code == 200:
                    break
            impatient.append(answer.json())

        done.group_lost(1, ask)
        records = load.stop()
    _lost_nothing(done.phases, records)
    generation = read_generation(gallery)
    (answer,) = impatient
    lost = assign_shards(generation.shards, server.groups)[1]
    assert answer["partial"] and answer["generation"] == generation.number
    assert set(answer["missing_shards"]) == {shard.shard for shard in lost}
    assert answer["coverage"] == pytest.approx(1 - _live(generation, lost) / generation.counts["live"])
    assert len({record.generation for record in records}) >= 5
    assert wrong_answers(gallery, records, queries, [image.data]) == 0


def _lost_nothing(phases: list[Phase], records: list[Record]) -> None:
    assert [phase.lost for phase in phases if phase.lost] == []
    assert [record for record in records if record.status != 200] == []
    whole = [record for phase in phases[:-1] for record in phase.of(records)]
    assert len(whole) > 50
    assert [record for record in whole if record.partial] == []


def _live(generation: Generation, shards: Sequence[Shard]) -> int:
    """How many images of some shards can be found."""
    masked = sum(int(np.sum(generation.masks.get(shard.shard, 0))) for shard in shards)
    return sum(shard.count for shard in shards) - masked
