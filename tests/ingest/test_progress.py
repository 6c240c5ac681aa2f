"""The figures of progress, by an injected clock and stream."""

import io

import pytest
from rich.console import Console

from ingest.progress import BarProgress, LineProgress, SilentProgress, duration, open_progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_line_has_rate_time_left_and_rejects(clock: Clock) -> None:
    stream = io.StringIO()
    with LineProgress(stream, clock).stage("describe", 40_000) as stage:
        clock.now += 10
        stage.advance(1_200, rejects=14)
    first, last = stream.getvalue().splitlines()
    assert first == "describe: 1,200 of 40,000 images, 120/s, 5 min 23 s left, 14 rejected"
    assert last == "describe: 1,200 images in 10 s, 120/s, 14 rejected"


def test_lines_are_spaced(clock: Clock) -> None:
    """However often work advances, the lines are at least `every_s` apart, and the sum is whole."""
    stream = io.StringIO()
    with LineProgress(stream, clock, every_s=5).stage("list", None, "files") as stage:
        for _ in range(100):
            clock.now += 0.25
            stage.advance(3, rejects=1)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 25 / 5 + 1
    assert lines[0] == "list: 60 files, 12/s, 20 rejected"
    assert lines[-1] == "list: 300 files in 25 s, 12/s, 100 rejected"


def test_an_unfinished_stage_says_where_it_stopped(clock: Clock) -> None:
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), LineProgress(stream, clock).stage("encode", 10) as stage:
        clock.now += 2
        stage.advance(4)
        raise KeyboardInterrupt
    assert stream.getvalue() == "encode: stopped after 4 of 10 images in 2 s, 2.0/s, 0 rejected\n"


def test_a_stage_without_work_ends_well(clock: Clock) -> None:
    stream = io.StringIO()
    with LineProgress(stream, clock).stage("encode", 0):
        pass
    assert stream.getvalue() == "encode: 0 images in 0 s, 0.0/s, 0 rejected\n"


def test_the_bar_shows_the_same_figures(clock: Clock) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120, color_system=None)
    with BarProgress(console, clock).stage("[describe]", 40_000) as stage:
        clock.now += 10
        stage.advance(1_200, rejects=14)
    shown = stream.getvalue()
    assert "1,200 of 40,000 images, 120/s, 5 min 23 s left, 14 rejected" in shown
    assert "[describe]: 1,200 images in 10 s, 120/s, 14 rejected\n" in shown


def test_the_stream_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", terminal)
    assert isinstance(open_progress(), BarProgress)
    assert isinstance(open_progress(quiet=True), SilentProgress)
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert isinstance(open_progress(), LineProgress)


def test_silence(capfd: pytest.CaptureFixture[str]) -> None:
    with SilentProgress().stage("describe", 5) as stage:
        stage.advance(5, rejects=1)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (3_600 * 3.17, "3 h 10 min"),
     (86_400 * 2 + 3_600 * 4, "2 d 04 h")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
