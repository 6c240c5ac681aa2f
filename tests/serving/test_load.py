"""The load tells what happened, and only that: its own figures decide what is claimed of servers."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.serve.scripted_server import (
    Act,
    Scripted,
    answer,
    cut,
    drop,
    problem,
    scripted_server,
    silent,
)
from tests.serving.connections import Pool
from tests.serving.load import Load, Stream, image_requests, main, run, vector_requests
from tests.serving.processes_under_test import MemorySampler, kill, state, stopped, tree
from tests.serving.records import Record, inconsistent, read_records, summary
from tests.serving.running_load import running_load

VECTORS = np.eye(4, dtype=np.float32)


def found(*ids: int, generation: int = 1, **changed: Any) -> Act:
    results = [{"image_id": str(each)} for each in ids]
    body = {"generation": generation, "results": results, "partial": False, "coverage": 1.0}
    return answer(200, body | {"skipped_steps": []} | changed)


def loaded(server: Scripted, ask: Callable[[Load, Pool], Any], give_up_s: float = 20.0) -> list[Record]:
    records: list[Record] = []
    pool = Pool(server.url)

    async def go() -> None:
        await ask(Load(pool, give_up_s, records.append), pool)
        pool.close()

    run(go)
    return records


def one_by_one(vectors: np.ndarray, seconds: float = 0.1) -> Callable[[Load, Pool], Any]:
    """A stream of requests that leave after one another, each once."""

    def ask(load: Load, pool: Pool) -> Any:
        requests = vector_requests(pool, vectors, {"top": 3}, "the-key")
        return load.open_loop([Stream(requests, len(vectors) / seconds)], seconds)

    return ask


def test_an_open_loop_sends_each_stream_at_its_rate_and_in_turn() -> None:
    with scripted_server(found(1, 2)) as server:

        def ask(load: Load, pool: Pool) -> Any:
            by_vector = vector_requests(pool, VECTORS, {"top": 3}, "the-key")
            by_image = image_requests(pool, [b"\xff\xd8 pixels\r\n"], {"top": 2})
            return load.open_loop([Stream(by_vector, 50), Stream(by_image, 5)], 0.8)

        records = loaded(server, ask)
    assert sorted((r.kind, r.query) for r in records) == sorted(
        [("vector", n % 4) for n in range(40)] + [("image", 0)] * 4
    )
    starts = sorted(record.start for record in records if record.kind == "vector")
    assert np.diff(starts) == pytest.approx(0.02, abs=1e-4), "as planned, whenever they really left"
    assert all(record.latency > 0 for record in records)
    vector = next(asked for asked in server.asked if asked.path == "/v1/search")
    assert vector.json == {"vectors": [VECTORS[0].tolist()], "top": 3}
    assert vector.headers["authorization"] == "Bearer the-key"
    assert len({asked.headers["x-request-id"] for asked in server.asked}) == 44
    image = next(asked for asked in server.asked if asked.path == "/v1/search/upload")
    assert image.parts() == [
        ("image", "query", b"\xff\xd8 pixels\r\n"),
        ("request", None, b'{"top": 2}'),
    ]


def test_nobody_waits_for_the_answer_to_another() -> None:
    def when_all_have_asked(handler: Any) -> None:
        deadline = time.monotonic() + 20
        while len(handler.scripted.asked) < 4 and time.monotonic() < deadline:
            time.sleep(0.005)
        found(1)(handler)

    with scripted_server(when_all_have_asked) as server:
        records = loaded(server, one_by_one(VECTORS), give_up_s=10)
    assert [record.status for record in records] == [200] * 4


def test_a_server_without_an_answer_is_given_up_and_its_delay_counts() -> None:
    with scripted_server(silent) as server:
        records = loaded(server, one_by_one(VECTORS), give_up_s=0.4)
        assert server.closed_early.wait(20)
    assert [(record.status, record.error[:12]) for record in records] == [(0, "TimeoutError")] * 4
    assert all(record.latency >= 0.39 for record in records), "but for the resolution of timers"


def test_each_of_the_clients_of_a_closed_loop_asks_one_thing_at_a_time() -> None:
    open_now, most = 0, 0

    def counted(handler: Any) -> None:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        time.sleep(0.01)
        open_now -= 1
        found(1)(handler)

    with scripted_server(counted) as server:
        records = loaded(
            server,
            lambda load, pool: load.closed_loop(vector_requests(pool, VECTORS, {}), 3, 0.3),
        )
        assert most <= 3
        assert server.connections == 3
        assert len(records) == len(server.asked) >= 3
        first = [json.loads(asked.body)["vectors"][0] for asked in server.asked[:3]]
    assert len({tuple(vector) for vector in first}) == 3, "the clients do not ask the same thing in step"


def test_every_answer_is_recorded_for_what_it_is() -> None:
    partial = found(5, generation=8, partial=True, coverage=0.75, skipped_steps=["cvnet"])
    acts = [found(1, 2), partial, problem("overloaded", 429, Retry_After="2"), problem("not-ready", 503)]
    acts += [cut, answer(200, b"{"), answer(200, {"results": 3}), answer(500, b"<html>")]
    with scripted_server(*acts) as server:
        records = loaded(server, one_by_one(np.eye(8, dtype=np.float32), 0.8))
    by_query = {record.query: record for record in records}
    good, part, busy, away, broken, garbled, strange, wild = (by_query[n] for n in range(8))
    assert (good.status, good.generation, good.full, good.results) == (200, 1, True, 2)
    assert (part.generation, part.partial, part.coverage, part.full) == (8, True, 0.75, False)
    assert part.skipped == ("cvnet",)
    assert part.ids != good.ids
    assert (busy.status, busy.code, busy.retry_after) == (429, "overloaded", 2.0)
    assert (away.status, away.code) == (503, "not-ready")
    assert (broken.status, broken.error.split(":")[0]) == (0, "ConnectionResetError")
    assert [record.status for record in (garbled, strange, wild)] == [200, 200, 500]
    assert all(record.error for record in (garbled, strange, wild))
    told = summary(records)
    assert (told.requests, told.failed, told.partial, told.least_coverage) == (8, 5, 1, 0.75)
    assert told.statuses == {0: 1, 200: 4, 429: 1, 500: 1, 503: 1}
    assert told.generations == {1: 1, 8: 1}
    assert told.codes == {"not-ready": 1, "overloaded": 1}


def test_only_a_kept_connection_that_died_before_any_answer_is_replaced() -> None:
    with scripted_server(found(1), drop, found(2), cut) as server:
        records = loaded(server, one_by_one(VECTORS[:3], 0.6))
        assert len(server.asked) == 4
    assert [(record.status, record.reconnected) for record in records] == [
        (200, False),
        (200, True),
        (0, False),
    ]
    with scripted_server(drop) as server:
        (record,) = loaded(server, one_by_one(VECTORS[:1]))
        assert len(server.asked) == 1, "a connection that is new is not tried twice"
    assert record.status == 0


def test_a_server_that_is_not_there_is_recorded_and_no_end_of_the_load() -> None:
    with scripted_server(found(1)) as server:
        pass
    records = loaded(server, one_by_one(VECTORS))
    assert [(record.status, record.error.split(":")[0]) for record in records] == [
        (0, "ConnectionRefusedError")
    ] * 4


def test_answers_in_chunks_are_read() -> None:
    def chunked(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        body = b'{"generation": 1, "results": [], "partial": false, "coverage": 1.0, "skipped_steps": []}'
        for piece in (body[:7], body[7:]):
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        handler.wfile.write(b"0\r\n\r\n")

    with scripted_server(chunked) as server:
        records = loaded(server, one_by_one(VECTORS))
    assert [record.status for record in records] == [200] * 4


def record(query: int = 0, ids: str = "a", generation: int = 1, **changed: Any) -> Record:
    fields: dict[str, Any] = {"start": 0.0, "latency": 0.01, "status": 200, "partial": False, "coverage": 1.0}
    return Record("vector", query, "r", generation=generation, ids=ids, **(fields | changed))


def test_full_answers_of_one_generation_must_agree_and_others_need_not() -> None:
    agreed = [
        record(),
        record(),
        record(ids="b", generation=2),
        record(1, "c"),
        record(ids="x", partial=True),
    ]
    assert inconsistent(agreed) == []
    assert inconsistent([*agreed, record(ids="z")]) == [("vector", 0, 1)]
    assert summary([*agreed, record(ids="z")]).inconsistent == 1


def test_percentiles_are_of_answers_alone() -> None:
    records = [record(latency=n / 1000) for n in range(1, 101)]
    told = summary([*records, record(latency=9.0, status=429), record(latency=9.0, status=0, error="x")])
    assert told.p50 == pytest.approx(np.percentile(range(1, 101), 50))
    assert (told.p99, told.worst) == (pytest.approx(np.percentile(range(1, 101), 99)), 100.0)
    assert summary([record(status=503)]).answered == 0


def test_the_command_writes_records_and_prints_a_summary_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors, image, out = tmp_path / "v.npy", tmp_path / "q.jpg", tmp_path / "out.jsonl"
    np.save(vectors, VECTORS)
    image.write_bytes(b"pixels")
    with scripted_server(found(1)) as server:
        common = ["--url", server.url, "--vectors", str(vectors), "--image", str(image), "--out", str(out)]
        told = main([*common, "--rate", "20", "--image-rate", "10", "--seconds", "0.4"])
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [(line["kind"], line["requests"], line["failed"]) for line in lines] == [
            ("image", 4, 0),
            ("vector", 8, 0),
        ]
        assert [each.kind for each in told] == ["image", "vector"]
        assert len(read_records(out)) == 12
        told = main([*common, "--clients", "1,2", "--seconds", "0.1"])
    assert [each.kind for each in told] == ["vector x1", "image x1", "vector x2", "image x2"]
    assert all(each.requests and not each.failed for each in told)
    assert len(read_records(out)) == sum(each.requests for each in told)


def test_a_load_of_its_own_is_watched_and_stopped(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", VECTORS)
    with (
        scripted_server(found(1)) as server,
        running_load(
            server.url,
            tmp_path / "out.jsonl",
            vectors=tmp_path / "v.npy",
            rate=50,
            seconds=600,
            request={"top": 1},
        ) as load,
    ):
        deadline = time.monotonic() + 60
        while not load.records():
            assert load.process.poll() is None, load.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        records = load.stop()
        assert load.process.returncode == 0
        assert len(records) == len(server.asked)
        assert {each.status for each in records} == {200}


# -- faults and memory ------------------------------------------------------------------------------------


@contextmanager
def family() -> Iterator[subprocess.Popen[str]]:
    """A process with a child that says its id; both sleep."""
    told = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    child = f"[{sys.executable!r}, '-c', {told!r}]"
    script = f"import subprocess, time; subprocess.Popen({child}); time.sleep(600)"
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        yield parent
    finally:
        for pid in reversed(tree(parent.pid)):
            kill(pid)
        parent.communicate()


def test_processes_are_found_below_one_and_stopped_and_killed_by_their_ids() -> None:
    with family() as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert tree(parent.pid) == [parent.pid, child]
        with pytest.raises(KeyError), stopped(child):
            assert state(child) == "T"
            raise KeyError
        assert state(child) in ("R", "S")
        kill(child)
        assert state(child) in ("", "Z")
        assert state(parent.pid) in ("R", "S")
        kill(child)  # it is gone already


def test_memory_is_that_of_all_processes_below() -> None:
    block = bytearray(os.urandom(1 << 20)) * 64
    with MemorySampler((os.getpid(),), period_s=0.01) as sampler:
        begun = time.time()
        with family() as parent:
            assert parent.stdout is not None
            child = int(parent.stdout.readline())
            deadline = time.monotonic() + 60
            while not any({parent.pid, child} <= sample.mib.keys() for sample in list(sampler.samples)):
                assert time.monotonic() < deadline
                time.sleep(0.01)
    largest = max(sampler.samples, key=lambda sample: sample.total)
    assert sampler.peak == largest.total == pytest.approx(sum(largest.mib.values()))
    assert sampler.peak > len(block) / 2**20
    assert sampler.median(begun, time.time()) <= sampler.peak
    assert np.isnan(sampler.median(0, 1))
