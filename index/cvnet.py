"""CVNet-Rerank (Lee et al. 2022): are these two images of the same thing?

A pair's cross-scale correlation goes through four blocks of centre-pivot convolutions, each with group norm
and ReLU, is averaged over all cells of both images, and classified. The score is the probability of "the
same"; it is not symmetric. What is read is the projected pyramid of each image, as it is stored.

Cost a pair, one thread of a 2-core machine: some 25 ms at 512 x 384 pixels, 0.5 s at 1024 x 768. It grows
with the square of the pixels; half of it is the correlation.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from index.centre_pivot import CentrePivotConv, GroupNorm4d, joined, over_image, rows_at_once
from index.correlation import LEVELS, Columns, columns, correlate_rows, together
from ingest.checkpoints import below, load_exactly
from ingest.errors import BadInput, OverBudget
from ingest.network_cvnet import PROJECTED_CHANNELS

Pyramid = Sequence[Float32[np.ndarray, "c h w"]]
Sides = tuple[tuple[int, int], ...]  # (h, w) of each level

MEMORY_BYTES = 2**30
_CPU_BATCH_BYTES = 32 * 2**20  # small maps gain fourfold from it; more leaves the cache, and gains nothing
_SAME = 1  # the class
_CORRELATIONS = LEVELS**2
_HIDDEN = 128
# (channels in, channels out, side of the kernel, stride) of each convolution of each block.
_BLOCKS = (
    ((_CORRELATIONS, 16, 5, 2),),
    ((16, 16, 3, 1), (16, 32, 3, 2)),
    ((32, 32, 3, 1), (32, 32, 3, 1), (32, 64, 3, 2)),
    ((64, 64, 3, 1), (64, 64, 3, 1), (64, _HIDDEN, 3, 1)),
)


class CvLearner(nn.Module):
    """From correlations to two logits, "another" and "the same"; tensors have their published names."""

    def __init__(self) -> None:
        super().__init__()
        self.block1, self.block2, self.block3, self.block4 = map(_block, _BLOCKS)
        self.mlp = nn.Sequential(nn.Linear(_HIDDEN, _HIDDEN), nn.ReLU(inplace=True), nn.Linear(_HIDDEN, 2))

    @property
    def step(self) -> int:
        """From one row of the `Columns` that are compared to the next."""
        return self._first.stride

    @property
    def _first(self) -> CentrePivotConv:
        first = self.block1[0]
        assert isinstance(first, CentrePivotConv)
        return first

    def forward(self, correlations: Float[Tensor, "p 9 hq wq hk wk"]) -> Float[Tensor, "p 2"]:
        return self._classified(self._first(correlations))

    def compare(self, query: Columns, key: Columns) -> Float[Tensor, "p 2"]:
        """The logits of p pairs, equal to `self(correlation(query, key))` without the correlation in memory.

        Args:
            query: of p images, prepared with `step`.
            key: likewise.
        """
        return self._classified(  # no name for what is large, or it would be kept to the end
            joined(
                over_image(self._first.conv1, _at_rows(key, query, rows_are_query=False)),
                over_image(self._first.conv2, _at_rows(query, key, rows_are_query=True)),
            )
        )

    def _classified(self, x: Float[Tensor, "p 16 iq jq ik jk"]) -> Float[Tensor, "p 2"]:
        _, norm, relu = self.block1
        for layer in (norm, relu, self.block2, self.block3, self.block4):
            x = layer(x)
        logits: Tensor = self.mlp(x.mean(dim=(2, 3, 4, 5)))
        return logits


def _block(layers: Sequence[tuple[int, int, int, int]]) -> nn.Sequential:
    members: list[nn.Module] = []
    for channels_in, channels_out, side, stride in layers:
        members.append(CentrePivotConv(channels_in, channels_out, side, stride))
        members += [GroupNorm4d(channels_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*members)


def _at_rows(
    given: Columns, image: Columns, rows_are_query: bool
) -> Iterator[Float[Tensor, "p rows ws 9 h w"]]:
    """The correlation of one image's rows with the other image, some at a time."""
    pairs, _, across = given.rows.shape[:3]
    height, width = image.sides[-1]
    count = rows_at_once(pairs * across * _row_bytes(height * width), given.rows.device)
    for part in torch.split(given.rows, count, dim=1):
        found = correlate_rows(part.flatten(1, 2), image, rows_are_query)
        yield found.view(*part.shape[:3], *found.shape[2:])


def _row_bytes(cells: int) -> int:
    return 4 * _CORRELATIONS * cells


def load_learner(state: Mapping[str, Tensor]) -> CvLearner:
    """The learner in a published checkpoint, in eval mode.

    Args:
        state: of the whole network; what is below `cv_learner.` is read.

    Raises:
        BadInput: tensors are missing (as in a checkpoint of CVNet-Global alone), left over or of another
            shape.
    """
    learner = CvLearner()
    load_exactly(learner, below(state, "cv_learner."))
    return learner.eval()


class CvnetReranker:
    """Scores pairs of stored pyramids, in float32.

    Args:
        learner: moved to the device.
        device: where it runs.
    """

    def __init__(self, learner: CvLearner, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.learner = learner.to(self.device).eval()

    def scores(
        self, query: Pyramid, candidates: Sequence[Pyramid], memory_bytes: int = MEMORY_BYTES
    ) -> Float32[np.ndarray, "n"]:
        """How sure it is that each candidate shows what the query shows; see `score_pairs`."""
        return self.score_pairs([(query, candidate) for candidate in candidates], memory_bytes)

    def score_pairs(
        self, pairs: Sequence[tuple[Pyramid, Pyramid]], memory_bytes: int = MEMORY_BYTES
    ) -> Float32[np.ndarray, "n"]:
        """The scores of pairs of any queries, those of equal sizes together.

        Args:
            pairs: (query, candidate), each three maps (256, h, w) float32, the largest last. An object that
                is in many pairs is prepared once.
            memory_bytes: that tensors may take on the device at a time, beside those given and the weights,
                as `pair_bytes` estimates it. It decides how many pairs make a batch, and changes no score.

        Returns:
            (n,) in [0, 1], in the order of `pairs`; the same to 1e-5 alone and in any batch.

        Raises:
            BadInput: a pyramid is not one, or a score is no number.
            OverBudget: one pair takes more than the limit.
        """
        pairs = list(pairs)  # one object an image, whatever kind of sequence this was
        scores = np.empty(len(pairs), np.float32)
        prepared: dict[int, Columns] = {}
        for batch in _batches(pairs, memory_bytes, self.device):
            members = {id(image): image for number in batch for image in pairs[number]}
            prepared = {known: prepared[known] for known in members if known in prepared}
            prepared |= {new: self._prepared(members[new]) for new in members if new not in prepared}
            scores[batch] = self._scored([tuple(prepared[id(i)] for i in pairs[number]) for number in batch])
        if not np.isfinite(scores).all():
            odd = np.flatnonzero(~np.isfinite(scores)).tolist()
            raise BadInput(f"pairs {odd[:8]} have no score: a pyramid holds values that are no numbers")
        return scores

    @torch.inference_mode()
    def _prepared(self, image: Pyramid) -> Columns:
        return columns(_on_device(image, self.device), self.learner.step)

    @torch.inference_mode()
    def _scored(self, pairs: Sequence[tuple[Columns, ...]]) -> Float32[np.ndarray, "n"]:
        queries, keys = (together(images) for images in zip(*pairs, strict=True))
        probabilities = self.learner.compare(queries, keys).softmax(dim=1)
        return probabilities[:, _SAME].cpu().numpy()


def _on_device(image: Pyramid, device: torch.device) -> list[Float32[Tensor, "1 c h w"]]:
    return [torch.from_numpy(np.array(level, np.float32)[None]).to(device) for level in image]


def _batches(
    pairs: Sequence[tuple[Pyramid, Pyramid]], memory_bytes: int, device: torch.device
) -> list[list[int]]:
    """Numbers of pairs of equal sizes, as many as the memory takes, in the order of their first."""
    groups: dict[tuple[Sides, Sides], list[int]] = {}
    for number, (query, candidate) in enumerate(pairs):
        sizes = _sides(query, f"the query of pair {number}"), _sides(candidate, f"candidate {number}")
        groups.setdefault(sizes, []).append(number)
    batches = []
    for sizes, members in groups.items():
        fixed, each = pair_bytes(*sizes, device=device)
        if fixed + each > memory_bytes:
            (hq, wq), (hk, wk) = sizes[0][-1], sizes[1][-1]
            raise OverBudget(
                f"a pair of maps of {hq} x {wq} and {hk} x {wk} cells takes {(fixed + each) / 1e6:,.0f} MB, "
                f"more than the limit of {memory_bytes / 1e6:,.0f} MB: raise it, or cap the size of the maps"
            )
        room = min(memory_bytes, _CPU_BATCH_BYTES) if device.type == "cpu" else memory_bytes
        count = max(1, (room - fixed) // each)
        batches += [members[start : start + count] for start in range(0, len(members), count)]
    return batches


def _sides(image: Pyramid, what: str) -> Sides:
    shapes = [tuple(level.shape) for level in image]
    if len(shapes) != LEVELS or any(len(shape) != 3 or shape[0] != PROJECTED_CHANNELS for shape in shapes):
        raise BadInput(
            f"{what} is no pyramid of {LEVELS} maps ({PROJECTED_CHANNELS}, h, w): its shapes are {shapes}"
        )
    if any(0 in shape for shape in shapes):
        raise BadInput(
            f"{what} is too small: its levels are {shapes}, for half of a side of 1 rounds to 0; CVNet needs "
            "images of 17 pixels or more a side"
        )
    return tuple((shape[1], shape[2]) for shape in shapes)


def pair_bytes(query: Sides, key: Sides, device: torch.device) -> tuple[int, int]:
    """What comparing pairs takes at a time: (whatever their number, for each pair) in bytes.

    A pair takes four times the output of the first layer, 16 channels at the pivots of both images (the next
    layer has its input, one half, and the other half in two copies), and the columns of both images. Beside
    that, what is being convolved is there about four times, at least one row of pivots with all of the other
    image; and an image that is being prepared three times. What a convolution takes for itself is not in it.
    """
    cells = [sum(h * w for h, w in sides) for sides in (query, key)]
    pivots = [-(-sides[-1][0] // 2) * -(-sides[-1][1] // 2) for sides in (query, key)]
    largest = [sides[-1][0] * sides[-1][1] for sides in (query, key)]
    activations = 4 * 4 * 16 * pivots[0] * pivots[1]
    prepared = 4 * PROJECTED_CHANNELS * (sum(cells) + LEVELS * sum(pivots))
    rows = max(-(-query[-1][1] // 2) * _row_bytes(largest[1]), -(-key[-1][1] // 2) * _row_bytes(largest[0]))
    fixed = 4 * rows_at_once(1, device) + 4 * PROJECTED_CHANNELS * 3 * LEVELS * max(largest)
    return fixed, activations + prepared + 4 * rows


@torch.inference_mode()
def correspondence(
    query: Pyramid, candidate: Pyramid, device: str | torch.device = "cpu"
) -> tuple[Float32[np.ndarray, "hq wq"], Float32[np.ndarray, "hk wk"]]:
    """Where two images correspond, for a picture: of each cell, the best mean of its 9 correlations.

    Args:
        query: three maps (256, h, w) float32, the largest last.
        candidate: likewise.
        device: where it is computed.

    Returns:
        A map over the query and one over the candidate, float32 in [0, 1], of the sizes of the largest maps.
        Exchanging the images exchanges the maps.

    Raises:
        BadInput: a pyramid is not one.
    """
    sides = [_sides(image, what)[-1] for image, what in ((query, "the query"), (candidate, "the candidate"))]
    # The learner is not asked, so that every cell is a row.
    first, second = (columns(_on_device(image, torch.device(device)), 1) for image in (query, candidate))
    over_query, over_key = [], torch.zeros(sides[1], device=device)
    for part in _at_rows(first, second, rows_are_query=True):
        means = part.mean(dim=3).flatten(0, 2)
        over_query.append(means.amax(dim=(1, 2)))
        over_key = torch.maximum(over_key, means.amax(dim=0))
    heat_query, heat_key = torch.cat(over_query).view(sides[0]), over_key
    return heat_query.clamp(max=1).cpu().numpy(), heat_key.clamp(max=1).cpu().numpy()
