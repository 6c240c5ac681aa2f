"""What steps found in the best pairs, drawn large: corresponding points, heat where two images correspond."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from deploy.sheet_images import ResultImages
from deploy.sheet_pairs import draw_heat, draw_matches, draw_pairs_sheet
from ingest.decode import Decoded, DecodeSettings
from ingest.decoder import Decoder
from ingest.outcomes import Rejected
from serve.query import ImageQuery
from serve.searcher import Answer, Result

if TYPE_CHECKING:
    from PIL import Image

_LEAST_WIDTH = 480  # pixels: smaller pictures of pairs show nothing

Heat = tuple[Float32[np.ndarray, "h w"], Float32[np.ndarray, "i j"]]
HeatOf = Callable[[Answer, Result], Heat | None]
Pair = tuple[ImageQuery, Answer, Result]


def chosen_pairs(shown: Sequence[tuple[ImageQuery, Answer]], room: int) -> list[Pair]:
    """The best results of each query that a step has looked at, as many as there is room for."""
    most = max(1, room // len(shown))
    found = [
        (query, answer, result)
        for query, answer in shown
        for result in [each for each in answer.results if each.evidence][:most]
    ]
    return found[:room]


def draw_evidence(
    pairs: Sequence[Pair], sources: Mapping[str, str], heat_of: HeatOf | None, width: int, margin: int
) -> "Image.Image | None":
    """Pictures of pairs, one below the other; None where no image can be shown.

    Args:
        heat_of: where a query and a result correspond; None where nothing tells it.
        width: pixels of a picture, at least; margin: around all of them.
    """
    width = max(_LEAST_WIDTH, width)
    decode = DecodeSettings(longest_side=width // 2, shortest_side_least=1)
    images, rows = ResultImages(sources, decode), []
    with Decoder(decode) as decoder:
        for query, answer, result in pairs:
            data = images.read(result)
            ours = decoder.decode(query.data, query.box)  # the part that steps saw, and heat lies over
            theirs = data if isinstance(data, Rejected) else decoder.decode(data)
            if isinstance(ours, Rejected) or isinstance(theirs, Rejected):
                continue
            heat = heat_of(answer, result) if heat_of else None
            title = _title(query, result)
            rows += [(title, picture) for picture in _pictures(ours, theirs, result, heat, width)]
    return draw_pairs_sheet(rows, margin) if rows else None


def _pictures(
    ours: Decoded, theirs: Decoded, result: Result, heat: Heat | None, width: int
) -> Iterator["Image.Image"]:
    for evidence in result.evidence:
        if evidence.points is not None:
            yield draw_matches(ours, theirs, *evidence.points, width)
    if heat is not None:
        yield draw_heat(ours, theirs, *heat, width)


def _title(query: ImageQuery, result: Result) -> str:
    """`query and 1. photos/a.jpg, 1.302 = 0.552 + 0.750 geometry (75 inliers)`."""
    added = [f"{each.added:.3f} {each.kind}{_figures(each.figures)}" for each in result.evidence]
    total = " + ".join([f"{result.score:.3f} = {result.similarity:.3f}", *added])
    return f"{query.name} and {result.rank}. {result.source}/{result.key}: {total}"


def _figures(figures: Mapping[str, float]) -> str:
    told = [f"{figures['inliers']:.0f} inliers"] if "inliers" in figures else []
    return f" ({', '.join(told)})" if told else ""
