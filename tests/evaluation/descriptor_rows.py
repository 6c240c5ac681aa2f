"""The rows of the table of descriptors: what is described, and the recipes that read it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from deploy.recipes import load_recipe
from index.recipe import Recipe

Settings = dict[str, Any]

LONGEST = 320  # pixels of what the network sees of a whole image
DIM = 128
_NETWORK = {"name": "efficientnet-lite0"}
_POOLINGS = {
    "mac": "MAC",
    "spoc": "SPoC",
    "gem": "GeM",
    "rmac": "R-MAC",
    "crow": "CroW",
    "centre": "centre prior",
}
_SCALES = (0.7071, 1.0, 1.4142)
_COLUMNS = (3, 4, 5)  # numbers of the network's reductions
_PLACES = ("grid", "mser", "keypoints")
_WHITEN: Settings = {"kind": "pca", "dim": DIM, "epsilon": 1.0}
_LEARNED: Settings = {"kind": "learned", "dim": DIM}
WORDS, MORE_WORDS = 64, 128
_PATCHES: Settings = {"layer": "reduction_5", "max_patches": 128, "least": 64, "side": 96}
_WEIGHT = 0.5  # of the network's part, beside SIFT-VLAD's 1

GEM = ("GeM", "GeM, whitened")
COLUMNS_BEST = f"columns of reduction 4, NetVLAD of {MORE_WORDS} words, whitened"
PATCHES_BEST = f"patches (keypoints), NetVLAD of {MORE_WORDS} words, whitened"
HYBRID = (
    *(f"patches ({at}), {how}, whitened" for at in _PLACES for how in ("NetVLAD", "VLAD")),
    PATCHES_BEST,
)
FUSED = (
    "SIFT-VLAD + GeM, by score",
    "SIFT-VLAD + columns of reduction 4, by score",
    "SIFT-VLAD + patches (keypoints), by score",
    f"SIFT-VLAD + patches (keypoints), concatenated, {DIM}-D",
    f"SIFT-VLAD + patches (keypoints), concatenated, {2 * DIM}-D",
)


SETTINGS = f"""\
Pooled rows take the map of reduction 5 (320 channels). Whitened: PCA-whitening to {DIM} dimensions, epsilon
1; learned whitening, from the names of products, has as many. VLAD and NetVLAD (initialised by clustering,
nothing trained) have {WORDS} words unless told otherwise. Patches: at most {_PATCHES["max_patches"]} an
image, sides of {_PATCHES["least"]} pixels or more, each seen at {_PATCHES["side"]} x {_PATCHES["side"]},
reduction 5, GeM; the grid has some 50, a third and a half of the shorter side. Fused by score: the mean of
both scores, SIFT-VLAD's counting 1, the other's {_WEIGHT:g}; concatenated: one PCA-whitening of both vectors,
unwhitened, with the same weights; the network's part of fused rows is GeM or NetVLAD of {MORE_WORDS} words.
Size and layer of patches, words and weights were chosen on `smvs_dvd`, so its column flatters them; the other
sets had no say.
""".replace("\n", " ").strip()


@dataclass(frozen=True)
class Row:
    """One descriptor: an encoder of described features, and the projection after it, as a recipe has them.

    learned: whether the projection learns from labels, whose pattern is filled in.
    """

    name: str
    encoder: Settings
    projection: Settings | None = None
    learned: bool = False

    def recipe(self, label_pattern: str | None = None) -> Recipe:
        """Its recipe on the features of all rows, compared exactly."""
        projection = self.projection
        if self.learned:
            projection = {**(projection or {}), "label_pattern": label_pattern}
        return _recipe(described(), self.encoder, projection)

    @property
    def labels(self) -> set[str]:
        """Of the features that it reads."""
        return {part["encoder"]["reads"] for part in self.encoder.get("parts", [{"encoder": self.encoder}])}


def described() -> dict[str, Settings]:
    """What is looked for in an image, by label."""
    reduced = {"network": _NETWORK, "longest_side": LONGEST}
    last = {"kind": "cnn-global", "layer": "reduction_5", **reduced}
    patches = {"kind": "cnn-patches", "network": _NETWORK, **_PATCHES}
    return {
        **{kind: {**last, "pooling": {"kind": kind}} for kind in _POOLINGS},
        "gem-scales": {**last, "scales": _SCALES},
        **{f"columns-{n}": {"kind": "cnn-columns", "layer": f"reduction_{n}", **reduced} for n in _COLUMNS},
        **{f"patches-{at}": {**patches, "at": at} for at in _PLACES},
        "local": {"kind": "sift"},
    }


def alone(label: str) -> Recipe:
    """A recipe that describes one label only."""
    reader = next(row.encoder for row in rows() if row.labels == {label})
    return _recipe({label: described()[label]}, reader, None)


def _recipe(describe: dict[str, Settings], encoder: Settings, projection: Settings | None) -> Recipe:
    settings = load_recipe("sift-vlad").model_dump(mode="json")
    return Recipe.model_validate(
        {
            **settings,
            "name": "row",
            "features": {**settings["features"], "describe": describe},
            "encoder": encoder,
            "projection": projection,
            "quantizer": {"kind": "flat"},
        }
    )


def rows() -> list[Row]:
    """The table, from the plain to the fused."""
    return [*_pooled_rows(), *_columns_rows(), *_patches_rows(), *_fused_rows()]


def _pooled_rows() -> Iterator[Row]:
    for label, name in {**_POOLINGS, "gem-scales": "GeM at three scales"}.items():
        yield Row(name, _pooled(label))
        yield Row(f"{name}, whitened", _pooled(label), _WHITEN)
        if label == "gem":
            yield Row(f"{name}, learned whitening", _pooled(label), _LEARNED, learned=True)


def _columns_rows() -> Iterator[Row]:
    for n in _COLUMNS:
        yield Row(f"columns of reduction {n}, NetVLAD, whitened", _netvlad(f"columns-{n}"), _WHITEN)
        yield Row(f"columns of reduction {n}, VLAD, whitened", _l2_vlad(f"columns-{n}"), _WHITEN)
    yield Row(COLUMNS_BEST, _netvlad("columns-4", MORE_WORDS), _WHITEN)


def _patches_rows() -> Iterator[Row]:
    for at in _PLACES:
        yield Row(f"patches ({at}), NetVLAD, whitened", _netvlad(f"patches-{at}"), _WHITEN)
        yield Row(f"patches ({at}), VLAD, whitened", _l2_vlad(f"patches-{at}"), _WHITEN)
    yield Row(PATCHES_BEST, _netvlad("patches-keypoints", MORE_WORDS), _WHITEN)


def _fused_rows() -> Iterator[Row]:
    yield Row("SIFT-VLAD, whitened (`sift-vlad` before its codes)", _vlad("local"), _WHITEN)
    others = (
        _pooled("gem"),
        _netvlad("columns-4", MORE_WORDS),
        _netvlad("patches-keypoints", MORE_WORDS),
    )
    for name, other in zip(FUSED, others, strict=False):
        yield Row(name, _fused(other, _WHITEN))
    for name, dim in zip(FUSED[len(others) :], (DIM, 2 * DIM), strict=True):
        yield Row(name, _fused(others[-1], None), {**_WHITEN, "dim": dim})


def _pooled(label: str) -> Settings:
    return {"kind": "pooled", "reads": label}


def _vlad(label: str) -> Settings:
    encoder = load_recipe("sift-vlad").model_dump(mode="json")["encoder"]
    return {**encoder, "reads": label}


def _l2_vlad(label: str) -> Settings:
    return {"kind": "vlad", "reads": label, "prepare": "l2", "codebook": {"words": WORDS}}


def _netvlad(label: str, words: int = WORDS) -> Settings:
    return {"kind": "netvlad", "reads": label, "codebook": {"words": words}}


def _fused(other: Settings, projection: Settings | None) -> Settings:
    parts = [
        {"encoder": _vlad("local"), "projection": projection},
        {"encoder": other, "projection": projection, "weight": _WEIGHT},
    ]
    return {"kind": "fused", "parts": parts}
