"""Quality on real photographs, into docs/evaluation.md.

    python -m tests.evaluation.run [--shared PATH] [--out docs/evaluation.md] [--only SECTION]

Exit codes: 0; 1 if a target is missed; 2 if the photographs are not at hand.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from deploy.jobs import open_job
from tests.evaluation import (
    affine,
    calibration,
    cnn_descriptors,
    equality,
    overload,
    real_descriptors,
    rerank,
    served,
    served_bad_images,
    served_faults,
    smvs,
)
from tests.evaluation.page import machine, put_section, table, versions

ROOT = Path(__file__).parents[2]
SECTIONS = (
    *("quality", "descriptors", "rerank", "planes", "equality", "recall", "bad-images", "calibration"),
    *("served", "served-faults", "overload", "served-bad-images"),
)
NEEDED = (
    "data/smvs_dvd",
    "data/dvd_extra",
    "data/grocery",
    "data/strecha",
    "data/oxford_affine",
    "data/bad_images.tar.gz",
)


def main() -> None:
    arguments = _arguments()
    os.environ.pop("RAY_ADDRESS", None)  # the figures are of this machine
    missing = [name for name in NEEDED if not (arguments.shared / name).exists()]
    if missing:
        print(
            f"there is no {', '.join(str(arguments.shared / name) for name in missing)}: the evaluation "
            "needs the photographs; name their folder with --shared PATH",
            file=sys.stderr,
        )
        raise SystemExit(2)
    held = True
    with tempfile.TemporaryDirectory(prefix="reseen-evaluation-") as folder:
        for name, section in _sections(arguments.shared, Path(folder)).items():
            if name not in arguments.only:
                continue
            print(f"--- {name}", flush=True)
            text, targets = section()
            text += "\n" + _verdicts(targets) if targets else ""
            print(text, flush=True)
            put_section(arguments.out, _head(), SECTIONS, name, text)
            held = held and all(target.holds for target in targets)
    raise SystemExit(0 if held else 1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder of photographs")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "evaluation.md")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="only this section of the page")
    arguments = parser.parse_args()
    arguments.only = arguments.only or list(SECTIONS)
    return arguments


Section = Callable[[], tuple[str, list[smvs.Target]]]


def _sections(shared: Path, folder: Path) -> dict[str, Section]:
    def quality() -> tuple[str, list[smvs.Target]]:
        url = str(folder / "quality")
        with smvs.dvd_gallery(shared, url):
            pass
        with open_job(url, "inline") as job:  # eight small builds: starting Ray's workers would cost more
            found = smvs.quality(job)
        return "## The DVD covers\n\n" + found.text, found.targets

    def descriptors() -> tuple[str, list[smvs.Target]]:
        text, targets = cnn_descriptors.descriptors(shared, folder)
        return "## CNN descriptors\n\n" + text, targets

    def reranked() -> tuple[str, list[smvs.Target]]:
        text, targets = rerank.rerank(shared, str(folder / "rerank"))
        return "## A second look\n\n" + text, targets

    def planes() -> tuple[str, list[smvs.Target]]:
        text, targets = affine.planes(shared)
        return "## Fitted homographies\n\n" + text, targets

    def equal() -> tuple[str, list[smvs.Target]]:
        with equality.s3_server() as server:
            found = list(equality.ways(shared, folder, server.bucket()))
        text, target = equality.equality(found)
        return "## The same answers, however it was built\n\n" + text, [target]

    def recall() -> tuple[str, list[smvs.Target]]:
        return "## Recall against exact search\n\n" + real_descriptors.recall(shared, folder / "recall"), []

    def hostile() -> tuple[str, list[smvs.Target]]:
        # A process of its own: it counts the CPU time of all its children.
        command = [sys.executable, "-m", "tests.evaluation.bad_images"]
        command += ["--archive", str(shared / "data" / "bad_images.tar.gz")]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        target = smvs.Target("every malformed file accounted for", done.returncode == 0, "bad_images.md")
        return "## Malformed and hostile images\n\nSee [bad_images.md](bad_images.md).\n", [target]

    def calibrated() -> tuple[str, list[smvs.Target]]:
        text, targets = calibration.calibrations(shared, folder / "calibration")
        return "## What scores mean\n\n" + text, targets

    def same_answers() -> tuple[str, list[smvs.Target]]:
        text, targets = served.equal_answers(shared)
        return "## The server answers as the command\n\n" + text, targets

    def faults() -> tuple[str, list[smvs.Target]]:
        text, targets = served_faults.faults(shared)
        return "## The server under faults\n\n" + text, targets

    def overloaded() -> tuple[str, list[smvs.Target]]:
        text, targets = overload.overload(shared)
        return "## The server under overload\n\n" + text, targets

    def uploaded() -> tuple[str, list[smvs.Target]]:
        text, targets = served_bad_images.served_bad_images(shared)
        return "## Malformed and hostile uploads\n\n" + text, targets

    return {
        "quality": quality,
        "descriptors": descriptors,
        "rerank": reranked,
        "planes": planes,
        "equality": equal,
        "recall": recall,
        "bad-images": hostile,
        "calibration": calibrated,
        "served": same_answers,
        "served-faults": faults,
        "overload": overloaded,
        "served-bad-images": uploaded,
    }


def _verdicts(targets: list[smvs.Target]) -> str:
    rows = [[target.name, target.figures, "holds" if target.holds else "MISSED"] for target in targets]
    return table(["target", "measured", ""], rows)


def _head() -> str:
    return (
        "# Evaluation\n\n"
        "Written by `make evaluate` (`python -m tests.evaluation.run`), from the photographs in `../shared`, "
        f"through the functions that the commands call. Machine: {machine()}. {versions()}.\n"
    )


if __name__ == "__main__":
    main()
