"""How a command speaks: results to standard output, all else to standard error; errors become exit codes.

0    done
1    failed: damaged objects, an unavailable store, a limit reached, a lost race, a bug
2    the caller's mistake: bad input, something that is not there, wrong usage
130  stopped by Ctrl-C or SIGTERM; the next run resumes
"""

import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from ingest.errors import BadInput, NotFound, ReseenError
from ingest.progress import Progress, open_progress

FAILED, MISTAKE, STOPPED = 1, 2, 130


class Commands(TyperGroup):
    """The top of the command tree: what goes wrong in any command becomes one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ReseenError as error:
            code = MISTAKE if isinstance(error, BadInput | NotFound) else FAILED
            raise _failure(str(error), code, ctx.params) from None
        except KeyboardInterrupt:
            text = "stopped; what is done is kept, and the same command run again goes on from there"
            raise _failure(text, STOPPED, ctx.params) from None
        except BrokenPipeError:  # the reader of our output has gone: nobody is left to tell
            raise typer.Exit(FAILED) from None
        except Exception as error:
            if type(error).__module__.startswith(("typer", "click")):
                raise  # usage, help and exit: typer's own
            text = (
                f"this is a bug in Reseen: {type(error).__name__}: {_one_line(error)} (--debug shows where)"
            )
            raise _failure(text, FAILED, ctx.params) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]


def _failure(text: str, code: int, params: Mapping[str, Any]) -> typer.Exit:
    if params.get("debug"):
        traceback.print_exc()
    print(f"reseen: {text}", file=sys.stderr)
    return typer.Exit(code)


def stop_on_sigterm() -> None:
    """SIGTERM stops like Ctrl-C. Ray puts a handler of its own when it starts: call this again then."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: somebody else's program
        return


def prepare_process() -> None:
    """What must be set before heavy libraries load. Only `deploy/` looks at the environment."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting OpenMP threads must not spin
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(_StderrLines(logging.WARNING))


class _StderrLines(logging.Handler):
    """Log records as plain lines on whatever standard error is now: a live bar redirects it."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"reseen: {record.getMessage()}", file=sys.stderr)


class Output:
    """Where one command writes: `json` wants one object on standard output, `quiet` no news on the way."""

    def __init__(self, json: bool, quiet: bool) -> None:
        self.json = json
        self.quiet = quiet

    def progress(self) -> Progress:
        return open_progress(self.quiet)

    def say(self, text: str) -> None:
        """News for people, not part of the result."""
        if not self.quiet:
            print(text, file=sys.stderr)

    def warn(self, text: str) -> None:
        """What a user should know even when quiet."""
        print(f"reseen: {text}", file=sys.stderr)

    def result(self, value: Mapping[str, Any], text: str) -> None:
        """The result, once and whole: the object for programs, the text for people."""
        if self.json:
            text = json.dumps(value, allow_nan=False)
        sys.stdout.write(text.rstrip("\n") + "\n" if text else "")
        sys.stdout.flush()

    @contextmanager
    def working(self, text: str) -> Iterator[None]:
        """A spinner on a terminal, for what takes seconds and has no count."""
        if self.quiet or not sys.stderr.isatty():
            yield
            return
        from rich.console import Console

        with Console(stderr=True).status(text):
            yield


def plain(drawn: object) -> str:
    """What rich would draw, as text without colours, 100 columns wide."""
    import io

    from rich.console import Console

    page = io.StringIO()
    Console(file=page, width=100, no_color=True).print(drawn)
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines())


def table(rows: list[list[str]]) -> str:
    """Rows as aligned plain columns, numbers to the right; the first row is the head."""
    if not rows:
        return ""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    number = [all(_numeric(row[column]) for row in rows[1:]) for column in range(len(widths))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, number, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _numeric(cell: str) -> bool:
    return (
        not cell
        or cell == "-"
        or cell.replace(",", "").replace(".", "").replace("-", "").rstrip("%").isdigit()
    )
