"""The isolated decoder: same answers as in process, limits that hold, deaths that cost one image."""

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from ingest.decode import Decoded, DecodeSettings, decode
from ingest.decoder import Decoder
from ingest.errors import BadInput, Unavailable
from ingest.outcomes import Outcome, Rejected
from tests.ingest.hostile import CORPUS, LIMITS, encoded, photograph, png

pytestmark = pytest.mark.filterwarnings("ignore")

GOOD = encoded(photograph(), "JPEG")


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(LIMITS) as shared:
        yield shared


def same(one: Decoded | Rejected, other: Decoded | Rejected) -> bool:
    if isinstance(one, Rejected) or isinstance(other, Rejected):
        return one == other
    rest = (one.width, one.height, one.box) == (other.width, other.height, other.box)
    return rest and np.array_equal(one.pixels, other.pixels)


def costly_png(side: int) -> bytes:
    """A palette with a transparent entry: the header promises 1 byte a pixel, decoding needs 9."""
    palette = (b"PLTE", bytes(768)), (b"tRNS", b"\0")
    return png(side, side, 8, 3, bytes((side + 1) * side), *palette)


def large_png(side: int) -> bytes:
    """A plain black picture: quick to make, and costing CPU time by its area."""
    return png(side, side, 8, 2, bytes((3 * side + 1) * side))


def gone(pid: int) -> bool:
    """Whether a process has ended, within a generous while."""
    for _ in range(600):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_the_same_answer_as_in_process_for_every_hostile_file(decoder: Decoder) -> None:
    first = decoder.child_pid
    for name, (data, expected) in CORPUS.items():
        answer = decoder.decode(data)
        assert same(answer, decode(data, LIMITS)), name
        assert (answer.reason if isinstance(answer, Rejected) else Outcome.OK) == expected, name
    assert decoder.child_pid == first  # none of them is worth a new process


def test_boxes_pass_through_and_mistakes_come_back(decoder: Decoder) -> None:
    box = (10.2, 5.0, 50.0, 44.0)
    assert same(decoder.decode(GOOD, box), decode(GOOD, LIMITS, box))
    with pytest.raises(BadInput, match="96 x 64 pixels"):
        decoder.decode(GOOD, (96.0, 0.0, 99.0, 9.0))
    assert isinstance(decoder.decode(GOOD), Decoded)


def test_pixels_can_be_written_to(decoder: Decoder) -> None:
    answer = decoder.decode(GOOD)
    assert isinstance(answer, Decoded) and answer.pixels.flags.writeable and answer.pixels.flags.c_contiguous


def test_memory_over_the_limit_is_too_costly_and_the_next_image_is_served(decoder: Decoder) -> None:
    data = costly_png(5000)  # 25 MB by its header, 225 MB in truth
    assert isinstance(decode(data, LIMITS), Decoded)
    for _ in range(2):
        answer = decoder.decode(data)
        assert isinstance(answer, Rejected) and answer.reason is Outcome.TOO_COSTLY, answer
        assert same(decoder.decode(GOOD), decode(GOOD, LIMITS))


def test_cpu_over_the_limit_is_too_costly_and_the_next_image_is_served() -> None:
    limits = DecodeSettings(max_cpu_seconds=0.05)
    costly = large_png(5000)
    with Decoder(limits) as decoder:
        first = decoder.child_pid
        answer = decoder.decode(costly)
        assert answer == Rejected(Outcome.TOO_COSTLY, "decoding took over 0.05 seconds of CPU time")
        assert isinstance(decoder.decode(GOOD), Decoded)
        assert decoder.child_pid != first and gone(first)


def test_cpu_time_is_counted_for_each_image_alone() -> None:
    with Decoder(DecodeSettings(max_cpu_seconds=0.3)) as decoder:
        first = decoder.child_pid
        image = large_png(1000)
        assert all(isinstance(decoder.decode(image), Decoded) for _ in range(60))
        assert decoder.child_pid == first


def test_a_child_killed_while_decoding_costs_that_image_only() -> None:
    slow = large_png(6000)
    with Decoder(DecodeSettings()) as decoder:
        assert isinstance(decoder.decode(GOOD), Decoded)
        answers = decoder.decode_ahead([GOOD, slow, GOOD])
        assert isinstance(next(answers), Decoded)  # and the child is at the slow one now
        os.kill(decoder.child_pid, signal.SIGKILL)
        assert next(answers) == Rejected(Outcome.DECODER_DIED, "decoding ended its process")
        assert isinstance(next(answers), Decoded)


def test_a_child_killed_while_idle_costs_nothing() -> None:
    with Decoder(LIMITS) as decoder:
        assert isinstance(decoder.decode(GOOD), Decoded)
        first = decoder.child_pid
        os.kill(first, signal.SIGKILL)
        assert gone(first)
        assert isinstance(decoder.decode(GOOD), Decoded)
        assert decoder.child_pid != first


def test_a_child_that_answers_nonsense_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A taken-over child may claim any size: nothing of that length is read."""
    from ingest import decoder_child

    with Decoder(LIMITS) as decoder:
        assert isinstance(decoder.decode(GOOD), Decoded)
        huge = decoder_child.REPLY.pack(decoder_child.PIXELS, 9, 9, 0, 0, 9, 9, 2**31, 2**31)
        monkeypatch.setattr(
            "ingest.decoder._Child._read", lambda _, view, __: view.__setitem__(slice(None), huge)
        )
        answer = decoder.decode(GOOD)
        monkeypatch.undo()
        assert isinstance(answer, Rejected) and answer.reason is Outcome.DECODER_DIED
        assert isinstance(decoder.decode(GOOD), Decoded)


def test_decode_ahead_keeps_the_order_and_passes_rejects_through(decoder: Decoder) -> None:
    missing = Rejected(Outcome.MISSING, "gone")
    images = [missing, GOOD, b"", missing, *(data for data, _ in CORPUS.values()), GOOD, missing]
    answers = list(decoder.decode_ahead(images))
    assert len(answers) == len(images)
    for image, answer in zip(images, answers, strict=True):
        assert same(answer, image if isinstance(image, Rejected) else decode(image, LIMITS))
    assert list(decoder.decode_ahead([])) == []


def test_decode_ahead_holds_two_images_however_many_there_are(decoder: Decoder) -> None:
    taken = 0

    def source() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(40):
            taken += 1
            yield GOOD

    for given, _ in enumerate(decoder.decode_ahead(source()), start=1):
        assert taken <= given + 1


def test_large_files_and_large_answers_do_not_block_each_other() -> None:
    """Both pipes are far smaller than what passes through them."""
    limits = DecodeSettings(longest_side=3000)
    large = encoded(photograph(3000, 2000), "PNG", compress_level=0)
    assert len(large) > 15_000_000
    with Decoder(limits) as decoder:
        for answer in decoder.decode_ahead([large] * 4):
            assert isinstance(answer, Decoded) and answer.pixels.shape == (2000, 3000, 3)


def test_abandoning_decode_ahead_leaves_the_decoder_usable(decoder: Decoder) -> None:
    answers = decoder.decode_ahead([GOOD] * 5)
    next(answers)
    with pytest.raises(BadInput, match="decode_ahead"):
        decoder.decode(GOOD)
    answers.close()  # type: ignore[attr-defined]
    other = encoded(photograph(seed=7), "PNG")
    assert same(decoder.decode(other), decode(other, LIMITS))


@pytest.mark.parametrize("between", [GOOD, b"", Rejected(Outcome.MISSING, "gone")])
def test_a_second_stream_is_refused_and_does_the_first_no_harm(
    decoder: Decoder, between: bytes | Rejected
) -> None:
    """Also where the child has nothing to do just then: what comes next never goes to it."""
    images = [GOOD, between, GOOD, between, encoded(photograph(seed=9), "PNG")]
    answers = decoder.decode_ahead(images)
    child = decoder.child_pid
    for image in images[:-1]:
        assert same(next(answers), image if isinstance(image, Rejected) else decode(image, LIMITS))
        with pytest.raises(BadInput, match="decode_ahead"):
            next(decoder.decode_ahead([GOOD]))
        with pytest.raises(BadInput, match="decode_ahead"):
            decoder.decode(GOOD)
    assert same(next(answers), decode(images[-1], LIMITS))  # type: ignore[arg-type]
    assert list(answers) == [] and decoder.child_pid == child
    assert isinstance(decoder.decode(GOOD), Decoded)


def test_an_interrupted_exchange_does_not_answer_the_next_image(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: Decoder) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        monkeypatch.setattr(Decoder, "_receive", interrupted)
        decoder.decode(GOOD)
    monkeypatch.undo()
    other = encoded(photograph(seed=10), "PNG")
    assert same(decoder.decode(other), decode(other, LIMITS))


def test_a_failing_source_leaves_the_decoder_usable(decoder: Decoder) -> None:
    def source() -> Iterator[bytes]:
        yield GOOD
        raise Unavailable("the store is away")

    with pytest.raises(Unavailable):
        list(decoder.decode_ahead(source()))
    other = encoded(photograph(seed=8), "PNG")
    assert same(decoder.decode(other), decode(other, LIMITS))


def test_threads_are_served_one_after_the_other(decoder: Decoder) -> None:
    images = [encoded(photograph(seed=seed), "PNG") for seed in range(12)]
    answers: dict[int, Decoded | Rejected] = {}

    def work(number: int) -> None:
        answers[number] = decoder.decode(images[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(answers[number], decode(image, LIMITS)) for number, image in enumerate(images))


def test_closing() -> None:
    decoder = Decoder(LIMITS)
    assert isinstance(decoder.decode(GOOD), Decoded)
    pid = decoder.child_pid
    decoder.close()
    decoder.close()
    assert gone(pid)
    with pytest.raises(BadInput, match="closed"):
        decoder.decode(GOOD)


def test_pickling_carries_the_settings_and_another_child() -> None:
    with Decoder(LIMITS) as decoder, pickle.loads(pickle.dumps(decoder)) as copy:
        assert copy.settings == LIMITS and copy.child_pid != decoder.child_pid
        assert isinstance(copy.decode(GOOD), Decoded)


def test_a_child_that_cannot_start_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(Unavailable, match="does not start"), Decoder(LIMITS) as decoder:
        decoder.decode(GOOD)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_child_runs_one_thread_holds_no_files_and_dumps_no_core(decoder: Decoder) -> None:
    secret = os.open(__file__, os.O_RDONLY)
    os.set_inheritable(secret, True)
    try:
        with Decoder(LIMITS) as child:
            assert isinstance(child.decode(GOOD), Decoded)
            proc = Path(f"/proc/{child.child_pid}")
            assert len(list((proc / "task").iterdir())) == 1
            held = {str(entry.readlink()) for entry in (proc / "fd").iterdir()}
            assert all(name == "/dev/null" or name.startswith("pipe:") for name in held), held
            limits = (proc / "limits").read_text()
            for name in ("Max core file size", "Max file size"):
                line = next(line for line in limits.splitlines() if line.startswith(name))
                assert line[len(name) :].split()[:2] == ["0", "0"]
    finally:
        os.close(secret)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("working", [False, True])
def test_a_killed_parent_leaves_no_orphan(working: bool, tmp_path: Path) -> None:
    slow = tmp_path / "slow.png"
    slow.write_bytes(large_png(6000) if working else GOOD)
    script = """
        import sys, time, pathlib
        from ingest.decode import DecodeSettings
        from ingest.decoder import Decoder
        decoder = Decoder(DecodeSettings())
        image = pathlib.Path(sys.argv[1]).read_bytes()
        answers = decoder.decode_ahead(iter([image] * 3))
        next(answers)
        print(decoder.child_pid, flush=True)
        time.sleep(600)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(slow)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    try:
        assert gone(child)
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
