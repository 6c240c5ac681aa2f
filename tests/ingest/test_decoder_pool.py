"""Several decoding processes: the answers of one, in order, bounded, and gone when nobody wants them."""

import os
import pickle
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from subprocess import PIPE, Popen

import numpy as np
import pytest

from ingest.decode import Decoded, DecodeSettings, decode
from ingest.decoder import Decoder
from ingest.decoder_pool import DecoderPool
from ingest.errors import BadInput, Unavailable
from ingest.outcomes import Outcome, Rejected
from tests.ingest.hostile import CORPUS, LIMITS, encoded, photograph, png

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

GOOD = encoded(photograph(), "JPEG")
SLOW_SIDE = 6000  # of a picture that takes half a second and 140 MB
LONG = 60.0  # seconds after which a test that waits has failed


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """After every test: no child and no thread that was not there before it."""
    processes, threads = children(), set(threading.enumerate())
    yield
    assert children() <= processes
    assert set(threading.enumerate()) <= threads


def children() -> set[int]:
    """Process ids of this process's decoding processes that have not been waited for."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            command = (stat.parent / "cmdline").read_bytes()  # empty at its very start
            if parent == os.getpid() and (not command or b"ingest.decoder_child" in command):
                found.add(int(stat.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def until(happened: Callable[[], object]) -> None:
    """Waits for something that takes a while; failing is the last resort."""
    deadline = time.monotonic() + LONG
    while not happened():
        assert time.monotonic() < deadline, "what the test waits for does not happen"
        time.sleep(0.005)


def in_the_middle_of_a_slow_image() -> set[int]:
    """The children that hold over 100 MB, which only a slow picture takes."""
    busy = set()
    for child in children():
        try:
            pages = int(Path(f"/proc/{child}/statm").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if pages * os.sysconf("SC_PAGE_SIZE") > 100 * 2**20:
            busy.add(child)
    return busy


@contextmanager
def suspended(count: int) -> Iterator[set[int]]:
    """Children, each suspended in the middle of a slow image; they go on when the block ends.

    What waits for them inside the block waits for ever. If it does, they are killed, so that it ends.
    """
    held: set[int] = set()

    def hold() -> bool:
        for child in in_the_middle_of_a_slow_image() - held:
            os.kill(child, signal.SIGSTOP)
            held.add(child)
        return len(held) == count

    try:
        until(hold)
        yield held
    except BaseException:
        _signal(held, signal.SIGKILL)
        raise
    _signal(held, signal.SIGCONT)


def _signal(processes: set[int], number: int) -> None:
    for process in processes & children():
        os.kill(process, number)


def same(one: Decoded | Rejected, other: Decoded | Rejected) -> bool:
    if isinstance(one, Rejected) or isinstance(other, Rejected):
        return one == other
    rest = (one.width, one.height, one.box) == (other.width, other.height, other.box)
    return rest and np.array_equal(one.pixels, other.pixels)


@cache
def slow_png() -> bytes:
    return png(SLOW_SIDE, SLOW_SIDE, 8, 2, bytes((3 * SLOW_SIDE + 1) * SLOW_SIDE))


@cache
def greedy_png() -> bytes:
    """The header promises 1 byte a pixel, decoding needs 9: over `LIMITS` in memory."""
    return png(5000, 5000, 8, 3, bytes(5001 * 5000), (b"PLTE", bytes(768)), (b"tRNS", b"\0"))


def many(count: int) -> list[bytes]:
    return [encoded(photograph(24 + 8 * (seed % 9), 40, seed), "PNG") for seed in range(count)]


MIXED: list[bytes | Rejected] = [
    Rejected(Outcome.MISSING, "gone"),
    *(data for data, _ in CORPUS.values()),
    GOOD,
    greedy_png(),
    *many(20),
    b"",
    Rejected(Outcome.CHANGED, "another"),
]


@pytest.fixture(scope="module")
def expected() -> list[Decoded | Rejected]:
    """What one decoder says of `MIXED`."""
    with Decoder(LIMITS) as decoder:
        return list(decoder.decode_ahead(MIXED))


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_the_answers_of_one_decoder_in_order(processes: int, expected: list[Decoded | Rejected]) -> None:
    """A file that exhausts its process is in the middle; the second round meets the one started after it."""
    with DecoderPool(LIMITS, processes) as pool:
        for _ in range(2):
            answers = list(pool.decode_ahead(iter(MIXED)))
            assert len(answers) == len(expected)
            assert all(map(same, answers, expected))
        assert list(pool.decode_ahead([])) == []
    assert sum(isinstance(answer, Decoded) for answer in expected) > 20


def test_the_next_in_order_is_waited_for_though_others_are_ready() -> None:
    images = [slow_png(), *many(6), slow_png(), *many(5)]
    with DecoderPool(LIMITS.model_copy(update={"max_memory_mb": 1024}), 2) as pool:
        answers = list(pool.decode_ahead(images))
    widths = [answer.width for answer in answers if isinstance(answer, Decoded)]
    small = [24 + 8 * (seed % 9) for seed in range(6)]
    assert widths == [SLOW_SIDE, *small, SLOW_SIDE, *small[:5]]


def test_every_process_works_and_lives_on() -> None:
    with DecoderPool(DecodeSettings(), 3) as pool:
        before = children()
        reader = threading.Thread(target=lambda: list(pool.decode_ahead([slow_png()] * 3)))
        reader.start()
        with suspended(3):
            pass
        reader.join()
        assert len(list(pool.decode_ahead(many(30)))) == 30
        assert children() == before and len(before) == 3


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_what_is_in_memory_is_bounded(processes: int) -> None:
    taken = 0

    def source() -> Iterator[bytes | Rejected]:
        nonlocal taken
        for number in range(60):
            taken += 1
            yield GOOD if number % 5 else Rejected(Outcome.MISSING)

    with DecoderPool(LIMITS, processes) as pool:
        for given, _ in enumerate(pool.decode_ahead(source()), start=1):
            if processes > 1:  # it gets as far as it may, and no further
                until(lambda given=given: taken >= min(60, given + 2 * processes))  # type: ignore[misc]
                time.sleep(0.01)
            assert taken <= given + 2 * processes


def test_reading_and_decoding_go_on_while_the_caller_works() -> None:
    full = threading.Event()
    threads = set()

    def source() -> Iterator[bytes]:
        for number in range(20):
            threads.add(threading.get_ident())
            if number == 4:
                full.set()
            yield GOOD

    with DecoderPool(LIMITS, 2) as pool:
        answers = pool.decode_ahead(source())
        assert threads == set()  # lazy: nothing is read before the first answer is asked for
        next(answers)
        assert full.wait(LONG)
        assert len(list(answers)) == 19
    assert len(threads) == 1 and threading.get_ident() not in threads


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("good", [0, 1, 7])
def test_what_the_source_raises_is_raised_in_its_place(processes: int, good: int) -> None:
    images = many(good)

    def source() -> Iterator[bytes]:
        yield from images
        raise Unavailable("the store is away")

    with DecoderPool(LIMITS, processes) as pool:
        before = children()
        for _ in range(2):
            answers = pool.decode_ahead(source())
            for image in images:
                assert same(next(answers), decode(image, LIMITS))
            with pytest.raises(Unavailable, match="away"):
                next(answers)
            assert list(answers) == []
        assert children() == before  # nothing was torn away: each had finished


def test_a_child_killed_while_decoding_costs_that_image_only() -> None:
    images = [GOOD, GOOD, slow_png(), *many(12)]
    with DecoderPool(DecodeSettings(), 2) as pool:
        answers = pool.decode_ahead(images)
        found = [next(answers), next(answers)]
        with suspended(1) as victims:
            os.kill(*victims, signal.SIGKILL)
        found += answers
        assert not victims & children()
    assert found[2] == Rejected(Outcome.DECODER_DIED, "decoding ended its process")
    for place, image in enumerate(images):
        assert place == 2 or same(found[place], decode(image, DecodeSettings()))


def test_children_killed_while_idle_cost_nothing() -> None:
    images = many(8)
    with DecoderPool(LIMITS, 2) as pool:
        list(pool.decode_ahead(images))
        for child in children():
            os.kill(child, signal.SIGKILL)
            until(lambda child=child: not _runs(child))  # type: ignore[misc]
        assert all(map(same, pool.decode_ahead(images), [decode(image, LIMITS) for image in images]))


def test_cpu_over_the_limit_costs_that_image_only() -> None:
    limits = DecodeSettings(max_cpu_seconds=0.1)
    images = [GOOD, slow_png(), GOOD, slow_png(), slow_png(), GOOD]
    with DecoderPool(limits, 2) as pool:
        answers = list(pool.decode_ahead(images))
    costly = Rejected(Outcome.TOO_COSTLY, "decoding took over 0.1 seconds of CPU time")
    assert [answer if isinstance(answer, Rejected) else "ok" for answer in answers] == [
        "ok",
        costly,
        "ok",
        costly,
        costly,
        "ok",
    ]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("how", ["closed", "dropped"])
def test_an_abandoned_iterator_leaves_nobody_at_work(processes: int, how: str) -> None:
    with DecoderPool(DecodeSettings(), processes) as pool:
        threads = threading.active_count()
        answers = pool.decode_ahead([GOOD, *[slow_png()] * 8])
        next(answers)
        with suspended(processes) as at_work:
            if how == "closed":
                answers.close()  # type: ignore[attr-defined]
            del answers
            assert not at_work & children()
        assert threading.active_count() == threads
        images = many(9)
        assert all(
            map(same, pool.decode_ahead(images), [decode(image, DecodeSettings()) for image in images])
        )
        assert same(pool.decode(GOOD), decode(GOOD, DecodeSettings()))
        assert len(children()) == processes


def test_closing_the_iterator_waits_for_the_read_under_way_and_for_no_other() -> None:
    reading, may_go_on = threading.Event(), threading.Event()
    read = []

    def source() -> Iterator[bytes]:
        yield GOOD
        reading.set()
        assert may_go_on.wait(LONG)
        for number in range(9):
            read.append(number)
            yield GOOD

    with DecoderPool(LIMITS, 2) as pool:
        answers = pool.decode_ahead(source())
        next(answers)
        assert reading.wait(LONG)
        closing = threading.Thread(target=answers.close)  # type: ignore[attr-defined]
        closing.start()
        until(lambda: pool._stream is not None and pool._stream._stopped)
        assert closing.is_alive()
        may_go_on.set()
        closing.join()
        assert read == [0]
        assert isinstance(pool.decode(GOOD), Decoded)


def test_an_iterator_may_be_dropped_in_a_thread_of_its_own() -> None:
    """As the collector does, in whichever thread it happens to run."""
    box: list[Iterator[Decoded | Rejected]] = []
    given, dropped = threading.Event(), threading.Event()

    def source() -> Iterator[bytes]:
        yield GOOD
        assert given.wait(LONG)
        box.pop().close()  # type: ignore[attr-defined]
        dropped.set()
        yield GOOD

    with DecoderPool(LIMITS, 2) as pool:
        threads = threading.active_count()
        box.append(pool.decode_ahead(source()))
        next(box[0])
        given.set()
        assert dropped.wait(LONG)
        until(lambda: threading.active_count() == threads)
        assert isinstance(pool.decode(GOOD), Decoded)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_pool_serves_one_thing_at_a_time(processes: int) -> None:
    with DecoderPool(LIMITS, processes) as pool:
        answers = pool.decode_ahead([GOOD] * 5)
        next(answers)
        with pytest.raises(BadInput, match="decode_ahead"):
            pool.decode(GOOD)
        with pytest.raises(BadInput, match="decode_ahead"):
            next(pool.decode_ahead([GOOD]))
        assert len(list(answers)) == 4
        assert isinstance(pool.decode(GOOD), Decoded)


@pytest.mark.parametrize("processes", [1, 2])
def test_single_images_with_boxes_and_mistakes(processes: int) -> None:
    box = (10.2, 5.0, 50.0, 44.0)
    with DecoderPool(LIMITS, processes) as pool:
        assert same(pool.decode(GOOD, box), decode(GOOD, LIMITS, box))
        with pytest.raises(BadInput, match="96 x 64 pixels"):
            pool.decode(GOOD, (96.0, 0.0, 99.0, 9.0))
        assert same(pool.decode(GOOD), decode(GOOD, LIMITS))


def test_threads_share_the_processes() -> None:
    images = many(12)
    answers: dict[int, Decoded | Rejected] = {}
    with DecoderPool(DecodeSettings(), 2) as pool:

        def work(number: int) -> None:
            answers[number] = pool.decode(images[number])

        slow = [threading.Thread(target=pool.decode, args=(slow_png(),)) for _ in range(2)]
        threads = slow + [threading.Thread(target=work, args=(number,)) for number in range(12)]
        for thread in slow:
            thread.start()
        with suspended(2):
            for thread in threads[2:]:
                thread.start()
        for thread in threads:
            thread.join()
    assert all(same(answers[number], decode(image, DecodeSettings())) for number, image in enumerate(images))


def test_decode_ahead_begins_when_single_images_under_way_are_done() -> None:
    found: list[Decoded | Rejected] = []
    with DecoderPool(DecodeSettings(), 2) as pool:
        single = threading.Thread(target=lambda: found.append(pool.decode(slow_png())))
        single.start()
        with suspended(1):
            answers = pool.decode_ahead([GOOD] * 5)
            first = threading.Thread(target=lambda: found.append(next(answers)))
            first.start()
            first.join(0.5)
            assert first.is_alive()
        first.join()
        single.join()
        answers.close()  # type: ignore[attr-defined]
    widths = {answer.width for answer in found if isinstance(answer, Decoded)}
    assert widths == {SLOW_SIDE, 96}


@pytest.mark.parametrize("processes", [1, 2])
def test_closing(processes: int) -> None:
    pool = DecoderPool(LIMITS, processes)
    assert len(children()) == processes
    assert isinstance(pool.decode(GOOD), Decoded)
    pool.close()
    pool.close()
    assert children() == set()
    with pytest.raises(BadInput, match="closed"):
        pool.decode(GOOD)
    with pytest.raises(BadInput, match="closed"):
        list(pool.decode_ahead([GOOD]))


@pytest.mark.parametrize("processes", [1, 2])
def test_closing_the_pool_in_the_middle(processes: int) -> None:
    threads = threading.active_count()
    pool = DecoderPool(DecodeSettings(), processes)
    answers = pool.decode_ahead([GOOD, *[slow_png()] * 4])
    next(answers)
    pool.close()
    assert children() == set() and threading.active_count() == threads
    with pytest.raises(BadInput, match="closed"):
        next(answers)


def test_closing_the_pool_wakes_who_waits_for_an_image() -> None:
    waiting = threading.Event()
    raised: list[BaseException] = []
    pool = DecoderPool(DecodeSettings(), 2)

    def read() -> None:
        try:
            for _ in pool.decode_ahead([GOOD, slow_png(), slow_png()]):
                waiting.set()
        except BadInput as error:
            raised.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    assert waiting.wait(LONG)
    pool.close()
    reader.join()
    assert len(raised) == 1 and "closed" in str(raised[0])


def test_children_that_cannot_start_are_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with DecoderPool(LIMITS, 2) as pool, pytest.raises(Unavailable, match="does not start"):
        list(pool.decode_ahead([GOOD] * 4))


def test_a_pool_that_cannot_start_all_its_processes_keeps_none(monkeypatch: pytest.MonkeyPatch) -> None:
    started = 0

    def few(*arguments: object, **options: object) -> Popen[bytes]:
        nonlocal started
        started += 1
        if started > 2:
            raise BlockingIOError("no more processes")
        return Popen(*arguments, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr("ingest.decoder.subprocess.Popen", few)
    with pytest.raises(Unavailable, match="could not start"):
        DecoderPool(LIMITS, 3)
    assert children() == set()


def test_no_processes_are_a_mistake() -> None:
    with pytest.raises(BadInput, match="at least 1"):
        DecoderPool(LIMITS, 0)


def test_pickling_carries_the_arguments_and_other_children() -> None:
    with DecoderPool(LIMITS, 2) as pool, pickle.loads(pickle.dumps(pool)) as copy:
        assert (copy.settings, copy.processes) == (LIMITS, 2)
        assert len(children()) == 4
        assert isinstance(copy.decode(GOOD), Decoded)


@pytest.mark.parametrize("end", ["killed", "returned"])
def test_a_parent_that_ends_in_the_middle_leaves_no_orphan(end: str) -> None:
    script = """
        import pathlib, sys, time
        from ingest.decode import DecodeSettings
        from ingest.decoder_pool import DecoderPool
        pool = DecoderPool(DecodeSettings(), 2)
        image = sys.stdin.buffer.read()
        answers = pool.decode_ahead([image] * 9)
        next(answers)
        print(*[member.child_pid for member in pool._members], flush=True)
        time.sleep(600 if sys.argv[1] == "killed" else 0)
    """
    with Popen([sys.executable, "-c", textwrap.dedent(script), end], stdin=PIPE, stdout=PIPE) as parent:
        assert parent.stdin is not None and parent.stdout is not None
        try:
            parent.stdin.write(GOOD)
            parent.stdin.close()
            orphans = [int(pid) for pid in parent.stdout.readline().split()]
            if end == "returned":
                assert parent.wait(LONG) == 0
        finally:
            parent.kill()
    assert len(orphans) == 2
    until(lambda: not any(_runs(pid) for pid in orphans))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
