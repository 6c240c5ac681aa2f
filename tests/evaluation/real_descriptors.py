"""What reading fewer lists costs: recall against exact search, on descriptors of photographs."""

from pathlib import Path

from tests.benchmarks import million
from tests.evaluation.page import table

ROWS = 200_000
NPROBES = (4, 8, 16, 32, 64, 128)


def recall(shared: Path, folder: Path) -> str:
    """The section of the page."""
    found = million.prepare(shared, folder, ROWS)
    million.product(str(found.gallery(0)), str(found.vectors), found.rows)
    opened = found.opened()
    lines = million.recalls(found, opened, NPROBES)
    head = ["lists read (nprobe)", *(f"recall@{k}" for k in million.RECALL_AT)]
    return (
        f"{found.rows:,} RootSIFT descriptors of {found.images} photographs as ready-made vectors, recipe "
        f"`vectors-ivfadc`; {million.QUERIES} descriptors held out are the queries. recall@k: the exact "
        "nearest neighbour is among the first k. (A million of them: [benchmarks](benchmarks.md).)\n\n"
        + table(head, lines)
    )
