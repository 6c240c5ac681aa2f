"""Searching with image files: they are read, searched with together, and the answers made printable."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingest.errors import BadInput, NotFound, Unavailable
from serve.answers import result_fields

if TYPE_CHECKING:
    from deploy.sheet_evidence import Heat
    from deploy.terminal import Output
    from index.steps import StepSettings
    from ingest.decode import Box
    from serve.query import ImageQuery
    from serve.searcher import Answer, Result, Searcher


def search(
    gallery: str,
    images: Sequence[str],
    box: str | None,
    top: int,
    generation: int | None,
    nprobe: int | None,
    cache: Path,
    output: "Output",
    sheet: str | None = None,
    rerank: str | None = None,
    depth: int | None = None,
    where: str | None = None,
) -> dict[str, Any]:
    """Searches a gallery with images by path or URL; writes a contact sheet if asked to.

    Returns:
        `queries`, in the order given: the query, its ranked results, and why it was rejected, if it was.

    Raises:
        NotFound: there is no such image, gallery or generation.
        BadInput: the box or the filter is wrong, or the gallery holds ready-made vectors.
    """
    from index.cache import Cache
    from index.filters import parse_filter
    from index.step_choice import chosen_steps
    from ingest.gallery import open_gallery
    from ingest.store import Store
    from serve.searcher import open_searcher

    area = parse_box(box) if box is not None else None
    only = parse_filter(where)
    opened = open_gallery(Store(gallery))
    with output.working("opening the gallery"), open_searcher(opened, generation, Cache(cache)) as searcher:
        steps = chosen_steps(searcher.opened.generation.recipe, rerank, depth)
        encoder = searcher.encoder_for(steps)
        queries = [_query(image, area, encoder.features.decode.max_bytes) for image in images]
        answers = searcher.search_images(queries, top, nprobe, steps, only)
        if encoder.warning:
            output.warn(encoder.warning)
        if sheet is not None:
            left_out = _write_sheet(searcher, queries, answers, steps, sheet)
            output.say(f"wrote {sheet}" + (f" ({left_out})" if left_out else ""))
        number = searcher.opened.generation.number
    return {"generation": number, "queries": [answer_json(answer) for answer in answers]}


def parse_box(text: str) -> "Box":
    """`X0,Y0,X1,Y1` in pixels; `BadInput` unless it is four numbers that span something."""
    try:
        x0, y0, x1, y1 = map(float, text.split(","))
    except ValueError:
        raise BadInput(f"--box {text!r} is not X0,Y0,X1,Y1: four numbers, in pixels") from None
    if not (all(map(math.isfinite, (x0, y0, x1, y1))) and x0 < x1 and y0 < y1):
        raise BadInput(f"--box {text!r} is empty: X0 < X1 and Y0 < Y1, (0, 0) at the top left")
    return x0, y0, x1, y1


def _query(image: str, box: "Box | None", most: int) -> "ImageQuery":
    from serve.query import ImageQuery

    return ImageQuery(read_image(image, most), box, "standard input" if image == "-" else image)


def read_image(image: str, most: int) -> bytes:
    """The bytes of an image by path or fsspec URL, `-` for standard input; at most one more than `most`.

    Raises:
        NotFound: there is none. BadInput: it cannot be read. Unavailable: the store did not answer.
    """
    if image == "-":
        return sys.stdin.buffer.read(most + 1)
    if "://" not in image:
        return _read_file(Path(image), most)
    import fsspec

    try:
        with fsspec.open(image, "rb") as file:
            data: bytes = file.read(most + 1)
            return data
    except FileNotFoundError:
        raise NotFound(f"there is no image {image}: check the spelling") from None
    except (ValueError, ImportError) as error:
        raise BadInput(f"cannot open {image}: {error}") from error
    except Exception as error:  # each store has errors of its own
        raise Unavailable(
            f"{image} could not be read: {error}; check the network and the credentials"
        ) from error


def _read_file(path: Path, most: int) -> bytes:
    if not path.exists():
        raise NotFound(f"there is no image {path}: check the spelling")
    if not path.is_file():  # reading a FIFO would wait for ever
        raise BadInput(f"{path} is not a file: give an image file, or - for standard input")
    try:
        with path.open("rb") as file:
            return file.read(most + 1)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error


def answer_json(answer: "Answer") -> dict[str, Any]:
    """An answer as JSON values; what JSON has no word for (NaN) becomes null."""
    rejected = answer.rejected
    return {
        "query": answer.query,
        "results": [_result_json(found) for found in answer.results],
        "rejected": {"reason": str(rejected.reason), "detail": rejected.detail} if rejected else None,
    }


def _result_json(found: "Result") -> dict[str, Any]:
    """The fields of a result, the figures of its steps among their own."""
    fields = result_fields(found)
    return fields | {"steps": [_flat(step) for step in fields["steps"]]}


def _flat(step: dict[str, Any]) -> dict[str, Any]:
    box = {"box": step["box"]} if "box" in step else {}
    return {"step": step["step"], "added": step["added"], **step["figures"], **box}


def _write_sheet(
    searcher: "Searcher",
    queries: "Sequence[ImageQuery]",
    answers: "Sequence[Answer]",
    steps: "Sequence[StepSettings]",
    sheet: str,
) -> str | None:
    """Draws and writes a contact sheet; returns what was left out of it."""
    from deploy.sheet import draw_sheet

    def heat_of(answer: "Answer", result: "Result") -> "Heat | None":
        return searcher.correspondence(answer.seen, result.image_id, steps) if answer.seen else None

    drawn = draw_sheet(queries, answers, searcher.catalogue.sources, heat_of=heat_of)
    drawn.save(Path(sheet))
    return drawn.left_out
