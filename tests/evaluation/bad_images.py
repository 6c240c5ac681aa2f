"""Decodes an archive of malformed and hostile files, and says what became of each.

    python -m tests.evaluation.bad_images [--archive PATH] [--out docs/bad_images.md]

The archive is read as a stream, member by member; nothing is written to disk but the report.
"""

import argparse
import os
import resource
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ingest.decode import DecodeSettings
from ingest.decoder import Decoder
from ingest.outcomes import Outcome, Rejected

ROOT = Path(__file__).parents[2]
ARCHIVE = ROOT.parent / "shared" / "data" / "bad_images.tar.gz"
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Row:
    """What one file came to: CPU seconds and the peak of the child's resident memory in MiB."""

    name: str
    outcome: Outcome
    detail: str
    cpu_seconds: float
    peak_mib: float
    died: bool


def regular_files(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Every regular file of a tar archive, in order; links, devices and folders are passed over."""
    with tarfile.open(archive, "r|*") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isreg() else None
            if file is not None:
                yield member.name, file.read()


def measured(decoder: Decoder, name: str, data: bytes) -> Row:
    """Decodes one file, watching the child from outside."""
    pid = decoder.child_pid
    with suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak starts anew
    before, reaped = _cpu_seconds(pid), _reaped_seconds()
    answer = decoder.decode(data)
    died = decoder.child_pid != pid
    cpu = _reaped_seconds() - reaped - before if died else _cpu_seconds(pid) - before
    reason, detail = (answer.reason, answer.detail) if isinstance(answer, Rejected) else (Outcome.OK, "")
    return Row(name, reason, detail, cpu, float("nan") if died else _peak_mib(pid), died)


def _cpu_seconds(pid: int) -> float:
    # schedstat counts nanoseconds; stat counts ticks of 10 ms.
    with suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _reaped_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _peak_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def report(rows: list[Row], settings: DecodeSettings, idle_mib: float) -> str:
    """The Markdown page."""
    counts = Counter(row.outcome for row in rows)
    lines = [
        "# What malformed and hostile images come to",
        "",
        f"{len(rows):,} files (Pillow's own test images, EXIF orientation examples, a PNG suite, and hostile "
        "files made by hand), each through the isolated decoder with default limits: "
        f"{settings.max_bytes >> 20} MiB, {settings.max_pixels // 1_000_000} megapixels, "
        f"{settings.max_memory_mb} MiB of memory, {settings.max_cpu_seconds:g} s of CPU time. Measured on a "
        "machine with 2 cores; written by `python -m tests.evaluation.bad_images`.",
        "",
        "| outcome | files |",
        "|---|---:|",
        *(f"| {outcome} | {counts[outcome]:,} |" for outcome in Outcome if counts[outcome]),
        f"| **all** | **{sum(counts.values()):,}** |",
        "",
        f"The decoding process died {sum(row.died for row in rows)} times, and the parent never. Total CPU "
        f"time in the child: {sum(row.cpu_seconds for row in rows):.1f} s.",
        "",
        "## Most CPU time",
        "",
        "| file | outcome | seconds |",
        "|---|---|---:|",
        *(
            f"| {_cell(row.name)} | {row.outcome} | {row.cpu_seconds:.3f} |"
            for row in sorted(rows, key=lambda row: -row.cpu_seconds)[:10]
        ),
        "",
        "## Most memory",
        "",
        f"Peak resident memory of the child; idle, it holds {idle_mib:.0f} MiB.",
        "",
        "| file | outcome | MiB |",
        "|---|---|---:|",
        *(
            f"| {_cell(row.name)} | {row.outcome} | {row.peak_mib:.0f} |"
            for row in sorted(rows, key=lambda row: -row.peak_mib if row.peak_mib == row.peak_mib else 0)[:10]
        ),
        "",
    ]
    return "\n".join(lines)


def _cell(name: str) -> str:
    """A file's name, which may hold anything, as a table's cell."""
    shown = "".join(c if c.isprintable() else "?" for c in name).replace("`", "'").replace("|", "?")
    return f"`{shown}`"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--archive", type=Path, default=ARCHIVE)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "bad_images.md")
    arguments = parser.parse_args()
    if not arguments.archive.exists():
        parser.error(f"there is no {arguments.archive}; name another with --archive")
    settings = DecodeSettings()
    read, rows = 0, []
    with Decoder(settings) as decoder:
        decoder.decode(b"GIF89a")  # waits until the child has started
        idle = _peak_mib(decoder.child_pid)
        for name, data in regular_files(arguments.archive):
            read += 1
            rows.append(measured(decoder, name, data))
    if len(rows) != read or not rows:
        raise SystemExit(f"{read} files were read and {len(rows)} have an outcome")
    text = report(rows, settings, idle)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
