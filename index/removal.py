"""Taking images down, putting them back, and going back to an older generation."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from index.generation import Generation, read_generation
from index.pins import hold
from index.publish import publish, republish, same_shards
from ingest.catalogue import Catalogue, all_rows, commit_catalogue, read_catalogue
from ingest.errors import NotFound
from ingest.gallery import Gallery, follow
from ingest.job import Job


def delete(job: Job, image_ids: list[int]) -> Generation | None:
    """Takes images down: puts them on the deletion list and publishes a generation that masks them.

    They stay in the store until `purge`, can be put back until then by `restore`, and are not ingested again.
    Stopped half-way, the list is in force for every later generation, and a rerun publishes.

    Returns:
        The generation in force; None if none was published yet.

    Raises:
        NotFound: an id is not in the gallery; nothing is deleted then.
    """
    ids = np.array(image_ids, np.int64)
    return _change_deletions(job, "delete", image_ids, lambda newest: newest.with_deleted(ids))


def restore(job: Job, image_ids: list[int]) -> Generation | None:
    """Takes images off the deletion list and publishes a generation that has them again.

    Images that are not on the list stay as they are: a rerun finishes what was stopped.

    Raises:
        NotFound: an image is not in the gallery, or was purged; nothing is restored then.
    """
    ids = np.array(image_ids, np.int64)
    return _change_deletions(job, "restore", image_ids, lambda newest: newest.without_deleted(ids))


def _change_deletions(
    job: Job, action: str, image_ids: list[int], change: Callable[[Catalogue], Catalogue]
) -> Generation | None:
    follow(job.gallery, lambda: _check_known(job.gallery, image_ids))
    with hold(job.gallery, "manifests/"):
        commit_catalogue(job.gallery, change)
        if action == "restore":  # a purge may have been faster
            follow(job.gallery, lambda: _check_known(job.gallery, image_ids))
        if not job.gallery.generations.newest():
            return None
        return follow(job.gallery, lambda: republish(job, action))


def _check_known(gallery: Gallery, image_ids: list[int]) -> None:
    known = all_rows(gallery, read_catalogue(gallery)).image_id
    unknown = sorted(set(image_ids) - set(known.tolist()))
    if unknown:
        raise NotFound(
            f"{gallery.store.url} has no image {unknown[0]}"
            + (f" (and {len(unknown) - 1} more of those named)" if len(unknown) > 1 else "")
            + ": it was purged, or never ingested; ids are what `reseen search --json` prints"
        )


def rollback(job: Job, number: int) -> Generation:
    """Publishes an older generation's contents again, except what is on the deletion list now.

    Raises:
        NotFound: there is no such generation, or garbage collection took its shards.
        Conflict: somebody published meanwhile.
    """
    with hold(job.gallery, "manifests/") as pin:
        pin.keep(generations=[number])
        base = job.gallery.generations.newest()
        old = read_generation(job.gallery, number)
        return publish(job, replace(same_shards("rollback", old), base=base))
