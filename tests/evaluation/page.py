"""Pages that commands write: Markdown tables, sections, and what the machine was."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

Cell = str | int | float | None


def table(head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    lines += [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Cell) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else value


def machine() -> str:
    """The machine in words, as far as results depend on it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {memory:.0f} GiB of memory, no GPU"


def versions() -> str:
    """The libraries that decide results."""
    import cv2
    import faiss
    import numpy as np

    return f"faiss {faiss.__version__}, OpenCV {cv2.__version__}, numpy {np.__version__}"


_SECTION = re.compile(r"<!-- section ([a-z-]+) -->\n(.*?)<!-- end -->\n", re.DOTALL)


def put_section(page: Path, head: str, order: Sequence[str], name: str, text: str) -> None:
    """Writes one section of a page, and leaves those that earlier runs wrote."""
    sections = dict(_SECTION.findall(page.read_text())) if page.exists() else {}
    sections[name] = text
    written = [f"<!-- section {at} -->\n{sections[at]}<!-- end -->\n" for at in order if at in sections]
    page.write_text("\n".join([head, *written]))
