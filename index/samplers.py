"""What fits read: descriptors and vectors of sampled images, drawn by workers, in the order of image ids.

What is drawn, and its order, goes by image ids alone: the same images give the same sample, however they were
cut into parts and whenever their files were written.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from index.encodings import read_encodings, vectorise
from index.fused import ImageEncoder
from index.learned_whitening import labels_of
from index.sampling import lowest
from ingest.catalogue import PartRef, read_part
from ingest.errors import BadInput
from ingest.features import FeatureTable
from ingest.gallery import Gallery
from ingest.image_features import ImageFeatures
from ingest.job import Job
from ingest.records import decode_key


@dataclass(frozen=True)
class Sample:
    """Rows of one part that a fit reads."""

    part: PartRef
    rows: tuple[int, ...]

    def __str__(self) -> str:
        return f"a sample of {self.part}"


@dataclass(frozen=True)
class Drawn:
    """What was drawn: (m, d) rows, the image of each, and for some fits the label of each."""

    image_ids: Int64[np.ndarray, " m"]
    rows: np.ndarray
    labels: tuple[str | None, ...] = ()


def collect(job: Job, worker: "Sampler", samples: Sequence[Sample], title: str) -> Drawn:
    """What the worker draws from all samples, in the order of the images' ids.

    Raises:
        BadInput: no image has anything to draw.
    """
    found: dict[str, Drawn] = {}
    with job.progress.stage(title, sum(len(sample.rows) for sample in samples)) as stage:
        for part, drawn, images in job.engine.map(worker, samples):
            found[part] = drawn
            stage.advance(images)
    filled = [found[sample.part.part] for sample in samples if len(found[sample.part.part].rows)]
    if not filled:
        raise BadInput(
            f"{job.gallery.store.url} has no image with features, so there is nothing to fit models on; "
            "look at the rejects that `reseen ingest` reported, and ingest other images"
        )
    return in_order(filled)


def in_order(drawn: Sequence[Drawn]) -> Drawn:
    """Several as one, by image id; the rows of one image stay in their order. Memory: the rows once more."""
    ids = np.concatenate([each.image_ids for each in drawn])
    order = np.argsort(ids, kind="stable")
    place = np.empty(len(ids), np.int64)
    place[order] = np.arange(len(ids))
    rows = np.empty((len(ids), drawn[0].rows.shape[1]), drawn[0].rows.dtype)
    ends = np.cumsum([len(each.rows) for each in drawn])
    for each, places in zip(drawn, np.split(place, ends[:-1]), strict=True):
        rows[places] = each.rows
    labels = [label for each in drawn for label in each.labels]
    return Drawn(ids[order], rows, tuple(labels[at] for at in order) if labels else ())


class Sampler(ABC):
    """A worker that returns the part's digest, what it drew, and how many images it looked at."""

    def start(self) -> "Sampler":
        return self

    def __call__(self, sample: Sample) -> tuple[str, Drawn, int]:
        return sample.part.part, self.drawn(sample), len(sample.rows)

    @abstractmethod
    def drawn(self, sample: Sample) -> Drawn:
        """What the fit wants of a sample."""


@dataclass
class DescriptorSampler(Sampler):
    """At most `quota` descriptors of each sampled image, drawn by their number and the image's id."""

    gallery: Gallery
    features: str
    label: str
    quota: int

    def drawn(self, sample: Sample) -> Drawn:
        table = FeatureTable(self.gallery, self.features, sample.part.part)
        drawn: list[np.ndarray] = []
        ids: list[int] = []
        for row, image in table.read(list(sample.rows), [self.label]):
            image_id = int(table.rows[row]["image_id"])
            descriptors = self._quota(image_id, image.of(self.label)["descriptors"])
            if len(descriptors):
                drawn.append(descriptors)
                ids += [image_id] * len(descriptors)
        rows = np.concatenate(drawn) if drawn else np.empty((0, 0), np.uint8)
        return Drawn(np.array(ids, np.int64), rows)

    def _quota(self, image_id: int, descriptors: np.ndarray) -> np.ndarray:
        kept: np.ndarray = descriptors[lowest(np.arange(len(descriptors)), self.quota, seed=image_id)]
        return kept


@dataclass
class VectorSampler(Sampler):
    """The encoded vectors of the sampled images."""

    gallery: Gallery
    features: str
    encoder: ImageEncoder

    def drawn(self, sample: Sample) -> Drawn:
        table = FeatureTable(self.gallery, self.features, sample.part.part)
        images = dict(table.read(list(sample.rows), self.encoder.labels))
        ids = [int(table.rows[row]["image_id"]) for row in images]
        vectors = vectorise(self.encoder, None, list(images.values()))
        return Drawn(np.array(ids, np.int64), vectors, self._labels(sample, images))

    def _labels(self, sample: Sample, images: dict[int, ImageFeatures]) -> tuple[str | None, ...]:
        return ()


@dataclass
class LabelledSampler(VectorSampler):
    """The encoded vectors of the sampled images, and the label in each one's `SOURCE/KEY`."""

    pattern: str

    def _labels(self, sample: Sample, images: dict[int, ImageFeatures]) -> tuple[str | None, ...]:
        keys = read_part(self.gallery, sample.part, ["key"])["key"].to_pylist()
        return tuple(
            labels_of([f"{sample.part.source}/{decode_key(keys[row])}" for row in images], self.pattern)
        )


@dataclass
class EncodingSampler(Sampler):
    """The stored vectors of the sampled images."""

    gallery: Gallery
    encodings: str

    def drawn(self, sample: Sample) -> Drawn:
        rows, ids, vectors = read_encodings(self.gallery, self.encodings, sample.part.part)
        asked = np.isin(rows, sample.rows)
        return Drawn(ids[asked], vectors[asked])
