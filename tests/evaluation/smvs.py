"""The DVD covers of the Stanford mobile visual search set: what each step of the recipes is worth.

300 photographs of 100 covers, each photograph a query against all others, 257 further covers as distractors,
and 7 as junk, neither right nor wrong. Models are fitted on this gallery. Features are computed once:
all recipes ask for the same ones.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.evaluation import Evaluation, evaluate_labels
from deploy.jobs import build_index, ingest, open_job, open_sources
from deploy.recipes import load_recipe
from index.generation import Generation
from index.recipe import Recipe
from ingest.job import Job
from tests.evaluation.page import table

LABELS = r"^smvs_dvd/[^/]+/(\d+)\."
FOLDERS = ("smvs_dvd", "dvd_extra")
# Covers of dvd_extra that smvs_dvd has too: to find one is right, and its name does not say so.
KNOWN = (
    "the_incredibles",
    "walle",
    "matrix_reloaded",
    "the_sixth_sense",
    "my_big_fat_greek_wedding",
    "the_lion_king",
    "toy_story_3",
)
JUNK = rf"^dvd_extra/({'|'.join(KNOWN)})\."
NORMALISATIONS = ("l2", "ssr", "intra")
WORDS = (64, 256)
NPROBES = (1, 2, 4, 8)
TOP = 100


@dataclass(frozen=True)
class Target:
    """Something that has to hold, whether it does, and the figures that say so."""

    name: str
    holds: bool
    figures: str


@contextmanager
def dvd_gallery(
    shared: Path, url: str, engine: Any = "ray", workers: int | None = None, folders: Sequence[str] = FOLDERS
) -> Iterator[Job]:
    """A gallery with the photographs ingested by `sift-vlad`, as `reseen ingest` does it."""
    with open_job(url, engine, workers, create=True) as job:
        sources = open_sources([str(shared / "data" / folder) for folder in folders])
        ingest(job, sources, load_recipe("sift-vlad"))
        yield job


def changed(name: str, **parts: dict[str, Any] | None) -> Recipe:
    """A shipped recipe with some settings changed; None takes a part out."""
    settings = load_recipe(name).model_dump(mode="json")
    for part, changes in parts.items():
        settings[part] = None if changes is None else _merged(settings[part], changes)
    return Recipe.model_validate(settings)


def _merged(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    if "kind" in changes and changes["kind"] != settings.get("kind"):
        return changes
    merged = dict(settings)
    for name, value in changes.items():
        merged[name] = _merged(merged[name], value) if isinstance(value, dict) else value
    return merged


def vlad_recipe(words: int, normalisation: str) -> Recipe:
    encoder = {"codebook": {"words": words}, "normalise": normalisation}
    return changed("sift-vlad-full", encoder=encoder)


def evaluate_covers(job: Job, generation: int, **options: Any) -> Evaluation:
    """A generation, by the labels of its covers."""
    found = evaluate_labels(job, LABELS, junk_pattern=JUNK, generation=generation, **options)
    assert f"; {len(KNOWN)} junk images" in found.protocol, "the names of KNOWN are not those of the files"
    return found


def evaluated(job: Job, recipe: Recipe) -> Evaluation:
    return evaluate_covers(job, build_index(job, recipe).number)


@dataclass
class Quality:
    """The section of the page, and what has to hold."""

    text: str
    targets: list[Target]


def quality(job: Job) -> Quality:
    """All tables on one gallery."""
    full = {
        (words, how): evaluated(job, vlad_recipe(words, how)) for words in WORDS for how in NORMALISATIONS
    }
    short = evaluated(job, changed("sift-vlad", quantizer={"kind": "flat"}))
    recipe = load_recipe("sift-vlad")
    generation = build_index(job, recipe)
    coded = evaluate_covers(job, generation.number)
    text = "\n".join(
        [_protocol(coded), _normalisations(full), _steps(full, short, coded), _lists(job, generation, coded)]
    )
    return Quality(text, _targets(full, short, coded))


def _protocol(evaluation: Evaluation) -> str:
    distractors = evaluation.images - evaluation.labelled - len(KNOWN)
    return (
        f"{evaluation.images} images, {evaluation.labels} labels; {evaluation.queries} queries "
        f"({evaluation.unanswered_queries} without a vector, counted as zero), each against all others, "
        f"{distractors} of them distractors. mAP by the {evaluation.ap_rule} rule.\n\n"
        f"{len(KNOWN)} photographs of `dvd_extra` show covers that `smvs_dvd` has too, under names that say "
        f"nothing of it: {', '.join(f'`{name}`' for name in KNOWN)}. Here and in all sections below they are "
        "junk: in the gallery, and looked at by steps, as in any search, but taken out of a ranking before "
        "it is judged, neither right nor wrong. One homography joins 125 or more of their key points to a "
        "photograph of `smvs_dvd`, of no other distractor more than 46; `et` and `mission_impossible`, other "
        "editions with artwork in common, stay distractors.\n"
    )


def _normalisations(full: dict[tuple[int, str], Evaluation]) -> str:
    rows = [[f"k = {words}", *(full[words, how].map for how in NORMALISATIONS)] for words in WORDS]
    head = ["full VLAD, exact search, mAP", "L2", "SSR", "intra"]
    return table(head, rows)


def _steps(full: dict[tuple[int, str], Evaluation], short: Evaluation, coded: Evaluation) -> str:
    rows: list[list[Any]] = [
        ["full VLAD, k = 256, intra (`sift-vlad-full`)", 131_072, full[256, "intra"].map],
        ["PCA-whitened to 128-D, exact", 512, short.map],
        ["OPQ + 16 bytes (`sift-vlad`)", 24, coded.map],
    ]
    evaluations = (full[256, "intra"], short, coded)
    for row, evaluation in zip(rows, evaluations, strict=True):
        row += [evaluation.recall_at[1], evaluation.recall_at[10], _probed(evaluation), evaluation.depth]
    head = ["step", "bytes an image", "mAP", "recall@1", "recall@10", "nprobe", "depth"]
    return table(head, rows)


def _probed(evaluation: Evaluation) -> str:
    return "-" if evaluation.nprobe is None else str(evaluation.nprobe)


def _lists(job: Job, generation: Generation, coded: Evaluation) -> str:
    from index.opened import open_generation
    from index.serialised import ivf_of

    opened = open_generation(job.gallery, generation.number)
    assert opened.index is not None
    ivf = ivf_of(opened.index)
    assert ivf is not None
    rows: list[list[Any]] = []
    for nprobe in [n for n in NPROBES if n < ivf.nlist] + [ivf.nlist]:
        found = evaluate_covers(job, generation.number, depth=TOP, nprobe=nprobe)
        rows.append([f"{nprobe} of {ivf.nlist}", found.map, *found.exact_recall_at.values()])
    head = [
        f"`sift-vlad`, lists read first, depth {TOP}",
        "mAP",
        *(f"exact nearest in top {k}" for k in (1, 10, 100)),
    ]
    return (
        f"At this size `lists: auto` gives {ivf.nlist} list(s), so the recipe's nprobe of {coded.nprobe} "
        f"reads every code. Fewer lists lose as follows; where {TOP} results are not found in them, the "
        "search reads more.\n\n" + table(head, rows)
    )


def _targets(full: dict[tuple[int, str], Evaluation], short: Evaluation, coded: Evaluation) -> list[Target]:
    whole = full[256, "intra"].map
    targets = [
        Target("full VLAD (k = 256, intra): mAP >= .85", whole >= 0.85, f"{whole:.4f}"),
        Target("whitened to 128-D: mAP >= .88", short.map >= 0.88, f"{short.map:.4f}"),
        Target(
            f"OPQ + 16 bytes: mAP >= .87 (nprobe {coded.nprobe}, depth {coded.depth})",
            coded.map >= 0.87,
            f"{coded.map:.4f}",
        ),
    ]
    for words in WORDS:
        maps = [full[words, how].map for how in NORMALISATIONS]
        shown = " < ".join(f"{value:.4f}" for value in maps)
        targets.append(Target(f"L2 < SSR < intra at k = {words}", maps[0] < maps[1] < maps[2], shown))
    return targets
