"""Publishing: a generation is composed on what is newest, checked, and committed; who loses looks again.

Additions (shards, masks) are united with the winner's and checked again. What replaces the whole content
(a rebuild, a rollback) does not unite: it reports the conflict. No publisher's images vanish.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from index.gate import check_gate
from index.generation import Generation, Models, commit, library_versions, read_generation, write_manifests
from index.masks import compute_masks
from index.recipe import Recipe
from index.shards import Shard
from ingest.catalogue import Catalogue, LiveRows, live_rows, read_catalogue
from ingest.errors import Conflict, NotFound
from ingest.gallery import Gallery, model_path
from ingest.job import Job
from ingest.tables import read_manifest, read_table
from ingest.weights import without_sources

_TRIES = 1000  # lost races before a publisher gives up


@dataclass(frozen=True)
class Proposal:
    """What a publisher wants in force.

    Attributes:
        action: build, rollback, delete, restore or purge.
        shards: for an addition those to be added to the newest generation's; else all of them.
        catalogue: the commit whose parts the proposal covers.
        base: the newest generation that the publisher saw; 0 for none.
        adds: whether it unites with what others publish meanwhile.
        gated: whether it is searched before publishing; taking images down never waits for that.
        gate: figures to carry along where it is not.
        fences: published even if it changes nothing: whoever composed earlier then loses the race for the
            number, and composes again on what is true now.
    """

    action: str
    recipe: Recipe
    models: Models
    shards: tuple[Shard, ...]
    catalogue: int
    base: int
    adds: bool
    gated: bool = True
    gate: dict[str, object] = field(default_factory=dict)
    fences: bool = False


def newest_generation(gallery: Gallery) -> Generation | None:
    """The generation in force; None before the first."""
    number = gallery.generations.newest()
    return read_generation(gallery, number) if number else None


def publish(job: Job, proposal: Proposal) -> Generation:
    """Publishes a proposal, united with whatever was published meanwhile.

    Returns:
        The published generation; the newest one unchanged where the proposal adds nothing to it.

    Raises:
        Conflict: another generation was published since `base`, and the proposal replaces the content.
        OverBudget, Corrupt: the gate; nothing is published.
        NotFound: something that the generation would name is gone.
    """
    publisher = _Publisher(job)
    for _ in range(_TRIES):
        newest = newest_generation(job.gallery)
        candidate = publisher.compose(newest, proposal)
        if newest is not None and not proposal.fences and publisher.same_content(newest, candidate):
            return newest
        if proposal.gated:
            candidate = replace(candidate, gate=publisher.gate(candidate))
        if publisher.deletions_changed(candidate):  # the gate may have taken hours
            continue
        candidate = write_manifests(job.gallery, candidate)
        check_present(job.gallery, candidate)
        if not commit(job.gallery, candidate):
            continue
        if publisher.deletions_changed(candidate):
            # A takedown that had no generation to publish on, or is about to publish: do it for it.
            return republish(job, "delete")
        return read_generation(job.gallery, candidate.number)
    raise Conflict(f"{job.gallery.store.url} changes faster than this publisher can follow; run again later")


def _mask_bytes(generation: Generation) -> dict[str, bytes]:
    return {shard: mask.tobytes() for shard, mask in generation.masks.items()}


class _Publisher:
    """Composes generations, again after every lost race; keeps what it has read."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.tables: dict[str, pa.Table] = {}
        self.catalogues: dict[int, Catalogue] = {}
        self.live: dict[tuple[int, int], LiveRows] = {}

    def compose(self, newest: Generation | None, proposal: Proposal) -> Generation:
        """What publishing the proposal now would put in force. It has no manifests yet."""
        url = self.job.gallery.store.url
        shards, catalogue = unite(newest, proposal, url)
        deletions = max(self.job.gallery.catalogue.newest(), catalogue)
        _check_covers(shards, newest, self.catalogue(catalogue), self.catalogue(deletions), url)
        live = self.live_rows(catalogue, deletions)
        masks = compute_masks(
            shards, [self.table(shard) for shard in shards], live, self.catalogue(catalogue).position
        )
        rows = sum(shard.count for shard in shards)
        masked = sum(int(mask.sum()) for mask in masks.values())
        return Generation(
            number=(newest.number if newest else 0) + 1,
            action=proposal.action,
            recipe=proposal.recipe,
            models=proposal.models,
            catalogue=catalogue,
            deletions=deletions,
            shards=shards,
            masks=masks,
            counts={
                "rows": rows,
                "masked": masked,
                "live": rows - masked,
                "rejected": len(live.image_id) - (rows - masked),
            },
            gate=proposal.gate,
            versions=library_versions(),
            parent=newest.number if newest else 0,
        )

    def same_content(self, newest: Generation, candidate: Generation) -> bool:
        """Whether publishing the candidate would change nothing that a search can tell."""
        if newest.models != candidate.models or newest.shards != candidate.shards:
            return False
        recipes = (without_sources(each.recipe.model_dump(mode="json")) for each in (newest, candidate))
        if next(recipes) != next(recipes):
            return False
        parts = (self.catalogue(generation.catalogue).parts for generation in (newest, candidate))
        return next(parts) == next(parts) and _mask_bytes(newest) == _mask_bytes(candidate)

    def deletions_changed(self, candidate: Generation) -> bool:
        """Whether images were taken down or restored since the candidate was composed."""
        newest = self.catalogue(self.job.gallery.catalogue.newest())
        return not np.array_equal(newest.deleted, self.catalogue(candidate.deletions).deleted)

    def gate(self, candidate: Generation) -> dict[str, object]:
        return check_gate(
            self.job,
            candidate.recipe,
            candidate.models.encodings,
            self.catalogue(candidate.catalogue),
            self.live_rows(candidate.catalogue, candidate.deletions),
            candidate.shards,
            candidate.masks,
            [self.table(shard) for shard in candidate.shards],
        )

    def catalogue(self, number: int) -> Catalogue:
        if number not in self.catalogues:
            self.catalogues[number] = read_catalogue(self.job.gallery, number) if number else Catalogue()
        return self.catalogues[number]

    def live_rows(self, parts_of: int, deletions_of: int) -> LiveRows:
        key = (parts_of, deletions_of)
        if key not in self.live:
            catalogue = replace(self.catalogue(parts_of), deleted=self.catalogue(deletions_of).deleted)
            self.live[key] = live_rows(self.job.gallery, catalogue)
        return self.live[key]

    def table(self, shard: Shard) -> pa.Table:
        if shard.shard not in self.tables:
            columns = ["image_id", "part", "row"]
            self.tables[shard.shard] = read_table(self.job.gallery.store, shard.rows, columns)
        return self.tables[shard.shard]


def unite(newest: Generation | None, proposal: Proposal, url: str) -> tuple[tuple[Shard, ...], int]:
    """The shards and the catalogue commit that a proposal puts in force on top of the newest generation.

    Raises:
        Conflict: the two cannot be united.
    """
    if newest is None:
        return proposal.shards, proposal.catalogue
    if proposal.adds and newest.models == proposal.models:
        have = {shard.shard for shard in newest.shards}
        covered = newest.parts
        new = [
            shard
            for shard in proposal.shards
            if shard.shard not in have and not covered.issuperset(shard.parts)
        ]
        return (*newest.shards, *new), max(newest.catalogue, proposal.catalogue)
    if newest.number != proposal.base:
        raise Conflict(
            f"generation {newest.number} of {url} was published ({newest.action}) while this "
            f"{proposal.action} was being made on top of {proposal.base or 'nothing'}: look at it (reseen "
            f"generations diff {proposal.base} {newest.number}), then run again"
        )
    return proposal.shards, proposal.catalogue


def _check_covers(
    shards: Sequence[Shard], newest: Generation | None, wanted: Catalogue, current: Catalogue, url: str
) -> None:
    """`Conflict` unless the shards cover the wanted catalogue, and none is brought back that a purge took.

    Shards of the newest generation may stay until the purge has published: their retired parts are masked.
    """
    missing = wanted.position.keys() - {part for shard in shards for part in shard.parts}
    if missing:
        raise Conflict(f"{url} was rolled back or purged meanwhile: {len(missing)} parts would be missing")
    had = {shard.shard for shard in newest.shards} if newest else set()
    purged = {part for shard in shards if shard.shard not in had for part in shard.parts}
    purged -= current.position.keys()
    if purged:
        raise Conflict(
            f"{len(purged)} parts of {url} were replaced by a purge: what holds them cannot be published"
        )


def republish(job: Job, action: str) -> Generation:
    """Publishes the newest generation again, with the masks of the newest deletion list.

    It is a fence (see `Proposal`), and never gives up for others that publish meanwhile.

    Raises:
        NotFound: there is no generation.
    """
    for _ in range(_TRIES):
        newest = read_generation(job.gallery)
        try:
            return publish(job, replace(same_shards(action, newest), adds=True, shards=(), fences=True))
        except Conflict:
            continue
    raise Conflict(f"{job.gallery.store.url} changes faster than {action} can follow; run again later")


def same_shards(action: str, generation: Generation) -> Proposal:
    """A proposal of a generation's contents as they are; no gate, for it has passed one."""
    return Proposal(
        action=action,
        recipe=generation.recipe,
        models=generation.models,
        shards=generation.shards,
        catalogue=generation.catalogue,
        base=generation.number,
        adds=False,
        gated=False,
        gate=dict(generation.gate),
    )


def check_present(gallery: Gallery, generation: Generation) -> None:
    """`NotFound`, by name, unless everything that a generation names is on the store."""
    store = gallery.store
    have: set[str] = set()
    for shard in generation.shards:
        have.update(info.path for info in store.listing(f"shards/{shard.shard}"))
        for ref in (shard.index, shard.rows):
            if ref.name not in have:
                raise NotFound(f"{store.where(ref.name)} is gone: build again, so that it is made anew")
    for kind, digest in generation.models.fitted.items():
        if not store.exists(model_path(digest)):
            raise NotFound(f"the {kind} {digest} of {store.url} is gone: fit anew with reseen build --refit")
    for digest in generation.recipe.weights:
        if not store.exists(model_path(digest)):
            raise NotFound(f"the weights {digest} of {store.url} are gone: build again by the recipe's file")
    for manifest in generation.manifests.values():
        if manifest is not None:
            read_manifest(store, manifest)
