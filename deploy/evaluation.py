"""Evaluation by labels: every labelled image queries all others, and its like should come first.

The protocol: a query is an image of the gallery, by its stored vector, and is taken out of its own ranking.
Positive is what has the query's label. Images without a label are distractors: ranked, never positive,
never a query. Average precision is over the first `depth` others; a positive that is not among them, or
that has no vector, counts as zero. A query without positives is left out; one that has positives and no
vector (its image was rejected) counts as zero.

All recall figures are those of a search for the best hundred; with steps, those of the ranking after them.
Ranking deeper than that, for average precision, an index with lists reads more of them until enough is found,
as it does for any user.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from deploy.evaluation_steps import Answers, EvaluationSteps
from deploy.labels import Labels, read_labels
from index.cache import Cache
from index.exact import Collection, exact_topk, read_collection
from index.gate import QueryReader
from index.generation import Generation, read_generation
from index.metrics import Rule, average_precision, ranks_of_positives, recall_at
from index.opened import Hits, OpenGeneration, open_generation
from index.samplers import Sample
from index.steps import StepSettings, looks_at
from ingest.catalogue import PartRef
from ingest.errors import BadInput
from ingest.job import Job

if TYPE_CHECKING:
    from rich.table import Table

WHOLE_GALLERY = 10_000  # images up to which every query ranks all others, unless told otherwise
DEPTH = 1000  # results of a query in larger galleries
RECALL_AT = (1, 5, 10, 20, 50, 100)
EXACT_RECALL_AT = (1, 10, 100)
_HEAD = 100
_TIE = 1e-6  # scores this close are ties: any of them counts as the nearest
_BATCH_RESULTS = 4_000_000  # results in memory at once: 12 bytes each, some copies
_BATCH_QUERIES = 4096


@dataclass(frozen=True)
class Evaluation:
    """The figures of one evaluation, and what they are figures of.

    Attributes:
        map: mean average precision over `queries`.
        recall_at: by k, the share of queries with a positive among the first k.
        exact_recall_at: by k, the share of queries whose exact nearest neighbour (ties count) is among the
            index's first k; empty where the search was exact.
        queries: that were counted.
        depth: results of a query that were looked at, itself not counted.
        nprobe: lists that were read first; None where there are none.
        images: in force, rejected ones included; `labelled` of them have one of `labels` labels.
        skipped_queries: without positives, left out.
        unanswered_queries: of `queries`, without a vector, counted as zero.
        steps: what was done with the answers, a sentence each.
    """

    map: float
    recall_at: dict[int, float]
    exact_recall_at: dict[int, float]
    queries: int
    protocol: str
    depth: int
    nprobe: int | None
    generation: int
    images: int
    labelled: int
    labels: int
    skipped_queries: int
    unanswered_queries: int
    ap_rule: Rule
    exact: bool
    steps: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values; the k of recalls become text."""
        record = asdict(self)
        for name in ("recall_at", "exact_recall_at"):
            record[name] = {str(k): round(value, 6) for k, value in record[name].items()}
        return record | {"map": round(self.map, 6)}


@dataclass(frozen=True)
class LabelledAnswers:
    """The answers to one query, itself and junk left out, best first.

    label: of the query: the least image id that has it, whatever parts the images are in.
    scores: (r,) after all steps. same: (r,) whether each has the query's label.
    """

    label: int
    scores: Float64[np.ndarray, " r"]
    same: Bool[np.ndarray, " r"]


Observe = Callable[[LabelledAnswers], None]


def evaluate_labels(
    job: Job,
    label_pattern: str,
    *,
    query_pattern: str | None = None,
    generation: int | None = None,
    depth: int | None = None,
    nprobe: int | None = None,
    ap_rule: Rule = "trapezoid",
    exact: bool = False,
    steps: Sequence[StepSettings] | None = None,
    junk_pattern: str | None = None,
    steps_skip_junk: bool = False,
    cache: Cache | None = None,
    observe: Observe | None = None,
) -> Evaluation:
    """Evaluates a generation, the newest by default, by labels in the names of its images.

    Memory: the opened index (none with `exact`), 60 bytes an image, and a batch of rankings.

    Args:
        label_pattern, query_pattern: regular expressions, searched in `SOURCE/KEY` (`deploy.labels`).
        depth: results of a query; by default all others up to 10,000 images, else 1,000.
        nprobe: lists to read first, instead of the recipe's number.
        exact: ranks by the stored vectors themselves, without the index: what the encodings are worth.
        steps: what is done with the answers, instead of the recipe's steps; () for nothing.
        junk_pattern: images in whose name it is found are neither right nor wrong: out of the ranking before
            it is judged, but not before steps look at it, for a search does not know junk either.
        steps_skip_junk: junk takes no place among what steps look at, as in the official evaluation of CVNet.
            It reads the ground truth, so its figures are not those of a search.
        observe: called with the answers to each query that has a vector, as a search for the best hundred
            gives them.

    Raises:
        BadInput: a pattern is wrong, no image has a label, or no query has a positive.
        NotFound: there is no such generation.
    """
    if depth is not None and depth < 1:
        raise BadInput(f"a ranking of depth {depth} has nothing in it: ask for 1 or more")
    opened = None if exact else open_generation(job.gallery, generation, cache)
    chosen = read_generation(job.gallery, generation) if opened is None else opened.generation
    collection = read_collection(job.gallery, chosen)
    labels = read_labels(job.gallery, collection, label_pattern, query_pattern, junk_pattern)
    queries = np.flatnonzero(labels.asked & (_positives(labels) > 0))
    if not len(queries):
        raise BadInput(
            f"no query has a positive: --label-pattern {label_pattern!r} finds {len(labels.sizes)} labels "
            f"in {int(labels.sizes.sum())} names, no other image has a query's label; capture less of the "
            f"name, which is SOURCE/KEY, such as {labels.example!r}"
        )
    others = max(1, chosen.counts["live"] - 1)
    if depth is None:
        depth = others if chosen.counts["live"] <= WHOLE_GALLERY else DEPTH
    run = _Run(job, chosen, opened, collection, labels, min(depth, others), nprobe, ap_rule)
    run.observe = observe
    run.junk = collection.live.image_id[labels.junk]
    taken = chosen.recipe.steps if steps is None else tuple(steps)
    if taken:
        ignored = run.junk if steps_skip_junk else np.empty(0, np.int64)
        run.steps = EvaluationSteps(job, chosen, collection, taken, run.deep, ignored)
    for batch in run.batches(queries):
        run.evaluate(batch)
    return run.result(len(queries), int(labels.asked.sum()))


def _positives(labels: Labels) -> Int64[np.ndarray, " n"]:
    """For each image, how many others have its label."""
    return np.where(labels.of >= 0, labels.sizes[labels.of] - 1, 0)


@dataclass
class _Run:
    """One evaluation under way, and what its queries gave so far."""

    job: Job
    generation: Generation
    opened: OpenGeneration | None
    collection: Collection
    labels: Labels
    depth: int
    nprobe: int | None
    ap_rule: Rule
    average_precisions: list[float] = field(default_factory=list)
    head_ranks: list[np.ndarray] = field(default_factory=list)
    nearest_ranks: list[np.ndarray] = field(default_factory=list)
    junk: Int64[np.ndarray, " j"] = field(default_factory=lambda: np.empty(0, np.int64))
    steps: EvaluationSteps | None = None
    observe: Observe | None = None

    @property
    def searched(self) -> int:
        """Results that are asked for: steps may look at more than is judged, and junk is out before."""
        steps = () if self.steps is None else self.steps.steps
        deepest = max([self.depth, *map(looks_at, steps)])
        return min(deepest + len(self.junk), max(1, self.generation.counts["live"] - 1))

    def batches(self, queries: Int64[np.ndarray, " q"]) -> Iterator[list[tuple[PartRef, np.ndarray]]]:
        """The queries in batches, by part, so that few parts are read twice."""
        asked = np.zeros(len(self.labels.of), bool)
        asked[queries] = True
        room = most = max(1, min(_BATCH_QUERIES, _BATCH_RESULTS // (self.searched + 1)))
        batch: list[tuple[PartRef, np.ndarray]] = []
        for part, places in self.collection.by_part():
            wanted = places[asked[places]]
            while len(wanted):
                batch.append((part, wanted[:room]))
                room, wanted = room - len(wanted[:room]), wanted[room:]
                if not room:
                    yield batch
                    batch, room = [], most
        if batch:
            yield batch

    def evaluate(self, batch: list[tuple[PartRef, np.ndarray]]) -> None:
        places, vectors = self._vectors(batch)
        if not len(places):
            return
        deep, head = self._search(vectors)
        own = self.collection.live.image_id[places]
        positives = _positives(self.labels)
        rankings, heads = list(deep.image_ids), list(head.image_ids)
        if self.steps is not None:
            answers = self.steps.apply(places, vectors, deep)
            rankings = heads = [ids for ids, _ in answers]
        else:
            answers = list(zip(head.image_ids, head.scores, strict=True))
        for q, place in enumerate(places):
            alike = self._alike(int(self.labels.of[place]))
            left_out = np.append(self.junk, own[q])
            ranks = _ranks(rankings[q], alike, left_out, self.depth)
            self.average_precisions.append(average_precision(ranks, int(positives[place]), self.ap_rule))
            self.head_ranks.append(_ranks(heads[q], alike, left_out, _HEAD))
            if self.observe is not None:
                self.observe(_labelled(answers[q], alike, left_out))
        if self.opened is not None:
            for q, nearest in enumerate(self._nearest(vectors, own)):
                self.nearest_ranks.append(_ranks(head.image_ids[q], nearest, own[q : q + 1], _HEAD))

    def _alike(self, label: int) -> Int64[np.ndarray, " p"]:
        """The ids of the images of a label."""
        end = int(self._ends[label])
        places = self._by_label[end - int(self.labels.sizes[label]) : end]
        ids: np.ndarray = self.collection.live.image_id[places]
        return ids

    @cached_property
    def _by_label(self) -> Int64[np.ndarray, " n"]:
        return np.argsort(self.labels.of, kind="stable")

    @cached_property
    def _ends(self) -> Int64[np.ndarray, " labels"]:
        unlabelled = len(self.labels.of) - int(self.labels.sizes.sum())
        return unlabelled + np.cumsum(self.labels.sizes)

    def _vectors(self, batch: list[tuple[PartRef, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        """The places of the queries that have a vector, ascending, and the vectors."""
        rows = self.collection.live.row
        samples = [Sample(part, tuple(map(int, rows[places]))) for part, places in batch]
        reader = QueryReader(self.job.gallery, self.generation.models.encodings)
        read = [(ids, vectors) for _, ids, vectors in self.job.engine.map(reader, samples) if len(ids)]
        if not read:
            return np.empty(0, np.int64), np.empty((0, 0), np.float32)
        ids = np.concatenate([ids for ids, _ in read])
        order = np.argsort(ids)  # engines differ in who comes first
        places = np.searchsorted(self.collection.live.image_id, ids[order])
        return places, np.concatenate([vectors for _, vectors in read])[order]

    def _search(self, vectors: Float32[np.ndarray, "q d"]) -> tuple[Hits, Hits]:
        """The ranking to the full depth, and that of a search for the best hundred; queries included."""
        if self.opened is None:
            hits = self.deep(vectors)
            return hits, hits
        with self.job.progress.stage("search", len(vectors), "queries") as stage:
            deep = self.deep(vectors)
            head = self.opened.search(vectors, _HEAD + 1, self.nprobe)
            stage.advance(len(vectors))
        return deep, head

    def deep(self, vectors: Float32[np.ndarray, "q d"]) -> Hits:
        """The ranking as deep as it is searched; queries included."""
        if self.opened is None:
            return exact_topk(self.job, self.generation, vectors, self.searched + 1, self.collection)
        return self.opened.search(vectors, self.searched + 1, self.nprobe)

    def _nearest(
        self, vectors: Float32[np.ndarray, "q d"], own: Int64[np.ndarray, " q"]
    ) -> list[Int64[np.ndarray, " m"]]:
        """For each query the ids of its exact nearest neighbours: one, or all that tie with it."""
        nearest: list[np.ndarray] = [np.empty(0, np.int64)] * len(vectors)
        pending, k = np.arange(len(vectors)), 10
        while len(pending):
            hits = exact_topk(self.job, self.generation, vectors[pending], k, self.collection)
            ties_go_on = np.zeros(len(pending), bool)
            for at, q in enumerate(pending):
                other = (hits.image_ids[at] >= 0) & (hits.image_ids[at] != own[q])
                scores, ids = hits.scores[at][other], hits.image_ids[at][other]
                tied = scores >= scores[:1] - _TIE
                nearest[q] = ids[tied]
                ties_go_on[at] = hits.image_ids[at, -1] >= 0 and (not len(ids) or bool(tied[-1]))
            pending, k = pending[ties_go_on], 4 * k
        return nearest

    def result(self, queries: int, asked: int) -> Evaluation:
        answered = len(self.average_precisions)
        missing = [np.empty(0, np.int64)] * (queries - answered)
        exact_recall = {}
        if self.nearest_ranks:
            exact_recall = {k: recall_at(self.nearest_ranks, k) for k in EXACT_RECALL_AT}
        labelled = int((self.labels.of >= 0).sum())
        lists = self.generation.recipe.nprobe
        return Evaluation(
            map=float(np.sum(self.average_precisions) / queries),
            recall_at={k: recall_at([*self.head_ranks, *missing], k) for k in RECALL_AT if k <= self.depth},
            exact_recall_at=exact_recall,
            queries=queries,
            protocol=self._protocol(queries, len(self.labels.of) - labelled),
            depth=self.depth,
            nprobe=None if self.opened is None or lists is None else self.nprobe or lists,
            generation=self.generation.number,
            images=len(self.labels.of),
            labelled=labelled,
            labels=len(self.labels.sizes),
            skipped_queries=asked - queries,
            unanswered_queries=queries - answered,
            ap_rule=self.ap_rule,
            exact=self.opened is None,
            steps=() if self.steps is None else tuple(map(_told, self.steps.steps)),
        )

    def _protocol(self, queries: int, distractors: int) -> str:
        by = "exact search in the stored vectors" if self.opened is None else "the index"
        whole = self.depth >= self.generation.counts["live"] - 1
        return (
            f"{queries} images of the gallery as queries, by their stored vectors, each against all others "
            f"by {by}; {distractors} unlabelled images are distractors; average precision by the "
            f"{self.ap_rule} rule over {'all' if whole else 'the first'} {self.depth} others, a positive "
            "that is not returned counts as zero; queries without positives are left out" + self._steps_told()
        )

    def _steps_told(self) -> str:
        text = f"; {len(self.junk)} junk images are left out of the rankings" if len(self.junk) else ""
        if self.steps is not None:
            text += "; then " + ", then ".join(map(_told, self.steps.steps))
            if len(self.steps.ignored):
                text += ", JUNK SKIPPED while candidates are chosen (by the ground truth)"
        return text


def _labelled(
    answers: Answers, alike: Int64[np.ndarray, " p"], left_out: Int64[np.ndarray, " j"]
) -> LabelledAnswers:
    ids, scores = answers
    kept = (ids >= 0) & ~np.isin(ids, left_out)
    return LabelledAnswers(int(alike.min()), scores[kept].astype(np.float64), np.isin(ids[kept], alike))


def _told(step: StepSettings) -> str:
    return f"{step.kind} of the first {looks_at(step)}"


def _ranks(
    ids: Int64[np.ndarray, " r"], wanted: Int64[np.ndarray, " w"], junk: Int64[np.ndarray, " j"], depth: int
) -> Int64[np.ndarray, " p"]:
    """The ranks of some images among the first `depth` results, junk and the query itself not counted."""
    ranks = ranks_of_positives(ids, wanted, junk)
    return ranks[ranks < depth]


def evaluation_table(evaluation: Evaluation, title: str = "Evaluation") -> "Table":
    """The figures for people."""
    from rich.table import Table

    table = Table(title=title, caption=evaluation.protocol, caption_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in _lines(evaluation):
        table.add_row(name, value)
    return table


def _lines(evaluation: Evaluation) -> Sequence[tuple[str, str]]:
    lines = [("mAP", f"{evaluation.map:.4f}")]
    lines += [(f"recall@{k}", f"{value:.4f}") for k, value in evaluation.recall_at.items()]
    found = evaluation.exact_recall_at.items()
    lines += [(f"exact nearest in top {k}", f"{value:.4f}") for k, value in found]
    lines += [
        ("queries", f"{evaluation.queries:,}"),
        ("depth", f"{evaluation.depth:,}"),
        ("nprobe", "-" if evaluation.nprobe is None else str(evaluation.nprobe)),
        ("generation", str(evaluation.generation)),
        (
            "images",
            f"{evaluation.images:,} ({evaluation.labelled:,} with one of {evaluation.labels:,} labels)",
        ),
    ]
    lines += [("step", step) for step in evaluation.steps]
    if evaluation.skipped_queries:
        lines.append(("left out, no positive", f"{evaluation.skipped_queries:,}"))
    if evaluation.unanswered_queries:
        lines.append(("no vector, counted as zero", f"{evaluation.unanswered_queries:,}"))
    return lines
