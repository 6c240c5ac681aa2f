"""`reseen delete`, `restore` and `purge`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.options import Engine, EngineName, GalleryUrl, Json, Quiet, Workers
from deploy.terminal import Output, stop_on_sigterm

if TYPE_CHECKING:
    from index.generation import Generation

Images = Annotated[
    list[str] | None,
    typer.Argument(metavar="IMAGE", help="An image id, or SOURCE/KEY.", show_default=False),
]
FromFile = Annotated[
    str | None, typer.Option("--from", metavar="FILE", help="More of them, one a line; - is standard input.")
]


def add_to(app: typer.Typer) -> None:
    for command in (delete, restore, purge):
        app.command()(command)


def delete(
    gallery: GalleryUrl,
    images: Images = None,
    file: FromFile = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Take images down: no generation finds them, ingest leaves them out, until they are restored."""
    from index import removal

    _change(removal.delete, "taken down", gallery, images, file, Output(json, quiet))


def restore(
    gallery: GalleryUrl,
    images: Images = None,
    file: FromFile = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Put back images that were deleted and not purged."""
    from index import removal

    _change(removal.restore, "restored", gallery, images, file, Output(json, quiet))


def _change(
    change: Any, done: str, gallery: str, images: list[str] | None, file: str | None, output: Output
) -> None:
    from deploy.jobs import open_job

    ids = image_ids([*(images or []), *_lines_of(file)])
    with open_job(gallery, progress=output.progress()) as job:
        generation: Generation | None = change(job, ids)
    number = generation.number if generation else None
    where = f"generation {number} is in force" if number else "no generation is published yet"
    output.result({"images": ids, "generation": number}, f"{len(ids):,} image(s) {done}; {where}")


def image_ids(names: list[str]) -> list[int]:
    """Ids of images named by id or as SOURCE/KEY, sorted, each once.

    Raises:
        BadInput: nothing is named, or something is neither.
    """
    from ingest.errors import BadInput
    from ingest.records import image_identity

    if not names:
        raise BadInput("no images are named: give ids, SOURCE/KEY, or --from FILE")
    ids = set()
    for name in names:
        source, slash, key = name.partition("/")
        if name.isascii() and name.isdigit() and int(name) < 2**63:
            ids.add(int(name))
        elif slash and source and key:
            ids.add(image_identity(source, key)[0])
        else:
            raise BadInput(f"{name!r} names no image: give an id as search prints it, or SOURCE/KEY")
    return sorted(ids)


def _lines_of(file: str | None) -> list[str]:
    from ingest.errors import BadInput

    if file is None:
        return []
    try:
        # Names of files need not be UTF-8; they come back as they went out.
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise BadInput(f"--from {file} cannot be read: {error.strerror or error}") from error
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    return [line.removesuffix("\r") for line in lines if line.strip()]


def purge(
    gallery: GalleryUrl,
    engine: Engine = EngineName.ray,
    workers: Workers = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove everything about deleted images from the store, for good."""
    from deploy.jobs import open_job, purge_deleted

    output = Output(json, quiet)
    with open_job(gallery, engine.value, workers, output.progress()) as job:
        stop_on_sigterm()
        report = purge_deleted(job)
    text = (
        f"purged {report.images:,} image(s) from {report.parts:,} part(s); {report.objects:,} object(s) gone"
    )
    if report.generation:
        text += f"; generation {report.generation} is in force"
    output.result(vars(report), text)
