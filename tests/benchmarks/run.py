"""Speed as ratios, into docs/benchmarks.md.

    python -m tests.benchmarks.run [--shared PATH] [--out docs/benchmarks.md] [--only SECTION] [--repeats N]

Both sides of a ratio are measured in one run, in turns. Nothing here asserts seconds.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks import cvnet_bench, encode_bench, ingest_bench, million, search_bench, serve_bench
from tests.evaluation.page import machine, put_section, versions

ROOT = Path(__file__).parents[2]
SECTIONS = ("ingest", "encode", "cvnet", "million", "serve")


def main() -> None:
    arguments = _arguments()
    os.environ.pop("RAY_ADDRESS", None)  # the figures are of this machine
    with tempfile.TemporaryDirectory(prefix="reseen-benchmarks-") as folder:
        for name, section in _sections(arguments, Path(folder)).items():
            if name in arguments.only:
                print(f"--- {name}", flush=True)
                text = section()
                print(text, flush=True)
                put_section(arguments.out, _head(), SECTIONS, name, text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder of photographs")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks.md")
    parser.add_argument("--repeats", type=int, default=3, help="turns of ingest, encode, cvnet")
    parser.add_argument("--builds", type=int, default=1, help="turns of the builds of a million")
    parser.add_argument("--work", type=Path, help="a folder that keeps the million vectors for the next run")
    parser.add_argument("--rows", type=int, default=million.ROWS, help="vectors, where there are so many")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="only this section of the page")
    arguments = parser.parse_args()
    arguments.only = arguments.only or list(SECTIONS)
    return arguments


def _sections(arguments: argparse.Namespace, folder: Path) -> dict[str, Callable[[], str]]:
    def ingest() -> str:
        return ingest_bench.ingest_bench(arguments.shared, folder, arguments.repeats)

    def encode() -> str:
        return encode_bench.encode_bench(arguments.shared, folder, arguments.repeats)

    def cvnet() -> str:
        return cvnet_bench.cvnet_bench(folder, arguments.repeats)

    def descriptors() -> str:
        import faiss

        if not (arguments.shared / "data" / "smvs_dvd").exists():
            print(f"there are no photographs in {arguments.shared}", file=sys.stderr)
            return (
                "## A million descriptors\n\nNot measured: the photographs of `../shared` were not at hand.\n"
            )
        found = million.prepare(arguments.shared, arguments.work or folder / "million", arguments.rows)
        builds = million.build_turns(found, arguments.builds)
        opened = found.opened()
        text = million.section(found, builds, million.recalls(found, opened))
        single = faiss.read_index(str(found.folder / "single.faiss"))
        text += "\n" + search_bench.merged_against_single(opened, single, found.queries)
        return text + "\n" + search_bench.search_bench(opened, found.queries)

    def serve() -> str:
        if not (arguments.shared / "data" / "smvs_dvd").exists():
            print(f"there are no photographs in {arguments.shared}", file=sys.stderr)
            return "## Serving\n\nNot measured: the photographs of `../shared` were not at hand.\n"
        found = million.prepare(arguments.shared, arguments.work or folder / "million", arguments.rows)
        gallery = found.folder / "served"
        if not gallery.exists():
            million.product(str(gallery), str(found.vectors), -(-found.rows // million.SHARDS), "inline")
        return serve_bench.serve_bench(gallery, found.folder / "queries.npy")

    return {"ingest": ingest, "encode": encode, "cvnet": cvnet, "million": descriptors, "serve": serve}


def _head() -> str:
    return (
        "# Benchmarks\n\n"
        "Written by `make bench` (`python -m tests.benchmarks.run`). Machine: "
        f"{machine()}. {versions()}. Other programs may run on the machine at the same time: the two sides "
        "of a ratio take turns (A B A B), so that what slows one slows the other, and each ratio is a median "
        "with its least and most.\n"
    )


if __name__ == "__main__":
    main()
