"""Fitting: encoder, projection and quantizer, once, from a stated catalogue, on bounded even samples.

Samples are drawn by `index.sampling`; workers read only the parts that hold them, and the fit itself runs
here at a fixed number of threads. Each function returns the digest of the model that it saved.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from index.encoders import OneEncoderSettings, encoder_kind, fit_encoder
from index.encodings import EncodingSet, read_encodings, vectorise
from index.exact import Collection
from index.fused import (
    AnyProjectionSettings,
    EncoderSettings,
    Fused,
    FusedPart,
    FusedSettings,
    ImageEncoder,
    Vectoriser,
    load_encoder,
    save_encoder,
)
from index.label_sample import groups_first, read_label_numbers
from index.learned_whitening import fit_learned_whitening, labels_of, pairs_of_labels
from index.projection import Projection, ProjectionSettings, fit_projection
from index.quantizer import fit_quantizer, probe_quantizer
from index.recipe import Recipe
from index.sampling import lowest
from ingest.catalogue import Catalogue, LiveRows, PartRef, read_part
from ingest.errors import BadInput
from ingest.features import read_features
from ingest.gallery import Gallery
from ingest.image_features import ImageFeatures
from ingest.job import Job
from ingest.models import save_model
from ingest.records import decode_key, image_identity

SEED = 1  # of the order in which images are drawn; held-out queries are the last of the same order
_DESCRIPTORS_OF_AN_IMAGE = (
    64  # at least, where there are enough images: more images teach more than more of one
)
_LEAST_IMAGES = 1024  # also where one descriptor suffices: some images may have none


@dataclass(frozen=True)
class Sample:
    """Rows of one part that a fit reads."""

    part: PartRef
    rows: tuple[int, ...]

    def __str__(self) -> str:
        return f"a sample of {self.part}"


def draw(catalogue: Catalogue, live: LiveRows, images: int) -> list[Sample]:
    """The first `images` images of the fitting order, gathered by part, in the catalogue's order."""
    return _gathered(catalogue, live, lowest(live.image_id, images, SEED))


def _gathered(catalogue: Catalogue, live: LiveRows, chosen: Int64[np.ndarray, " n"]) -> list[Sample]:
    """Images by their positions among the rows in force, gathered by part, in the catalogue's order."""
    order = chosen[np.lexsort((live.row[chosen], live.part[chosen]))]
    if not len(order):
        return []
    places, starts = np.unique(live.part[order], return_index=True)
    groups = np.split(live.row[order], starts[1:])
    return [
        Sample(catalogue.parts[place], tuple(map(int, rows)))
        for place, rows in zip(places, groups, strict=True)
        if len(rows)
    ]


@dataclass(frozen=True)
class Fitting:
    """What models are fitted on: the images in force of a catalogue, by their stored features."""

    job: Job
    catalogue: Catalogue
    live: LiveRows
    features: str


def fit_gallery_encoder(fitting: Fitting, settings: EncoderSettings) -> str:
    """Fits the encoder, with the projections of its parts if it has several; returns its model's digest."""
    encoder: ImageEncoder
    if isinstance(settings, FusedSettings):
        parts = tuple(_fit_part(fitting, part) for part in settings.parts)
        encoder = Fused(parts, tuple(part.weight for part in settings.parts))
    else:
        encoder = _fit_one(fitting, settings)
    header = {"catalogue": fitting.catalogue.number}
    return save_encoder(fitting.job.gallery, encoder, header)


def _fit_part(fitting: Fitting, part: FusedPart) -> Vectoriser:
    fitted = _fit_one(fitting, part.encoder)
    if part.projection is None:
        return fitted
    return replace(fitted, projection=_fit_projection(fitting, fitted, part.projection))


def _fit_one(fitting: Fitting, settings: OneEncoderSettings) -> Vectoriser:
    """Fits one encoder on descriptors drawn evenly from the gallery's images."""
    wanted = encoder_kind(settings.kind).sample(settings)
    images = max(_LEAST_IMAGES, wanted // _DESCRIPTORS_OF_AN_IMAGE)
    samples = draw(fitting.catalogue, fitting.live, images)
    drawn = sum(len(sample.rows) for sample in samples)
    quota = -(-wanted // max(1, drawn))
    worker = DescriptorSampler(fitting.job.gallery, fitting.features, settings.reads, quota)
    descriptors = _gather(fitting.job, worker, samples, "sample descriptors")
    return Vectoriser(fit_encoder(descriptors[:wanted], settings))


def fit_gallery_projection(fitting: Fitting, encoder: str, settings: AnyProjectionSettings) -> str:
    """Fits the projection on the encoded vectors of at most `sample_images` images."""
    projection = _fit_projection(fitting, load_encoder(fitting.job.gallery, encoder), settings)
    header = {"catalogue": fitting.catalogue.number, "notes": list(projection.notes)}
    return save_model(fitting.job.gallery, "projection", header, projection.to_arrays())


def _fit_projection(fitting: Fitting, encoder: ImageEncoder, settings: AnyProjectionSettings) -> Projection:
    job, place = fitting.job, (fitting.job.gallery, fitting.features, encoder)
    if isinstance(settings, ProjectionSettings):
        samples = draw(fitting.catalogue, fitting.live, settings.sample_images)
        return fit_projection(_gather(job, VectorSampler(*place), samples, "sample vectors"), settings)
    collection = Collection(fitting.catalogue, fitting.live)
    numbers = read_label_numbers(job, collection, settings.label_pattern)
    chosen = groups_first(fitting.live.image_id, numbers, settings.sample_images, SEED)
    samples = _gathered(fitting.catalogue, fitting.live, chosen)
    worker = LabelledSampler(*place, settings.label_pattern)
    drawn = _collect(job, worker, samples, "sample vectors")
    labels = [label for _, some in drawn for label in some]
    vectors = _stacked(job, [vectors for vectors, _ in drawn])
    queries, positives = pairs_of_labels(labels, settings.seed, settings.sample_pairs)
    return fit_learned_whitening(vectors, queries, positives, settings)


def fit_gallery_quantizer(
    job: Job, catalogue: Catalogue, live: LiveRows, encodings: EncodingSet, recipe: Recipe
) -> str:
    """Fits the quantizer on stored vectors, and shows by a probe that it does what search needs."""
    samples = draw(catalogue, live, recipe.sample_vectors)
    vectors = _gather(job, EncodingSampler(job.gallery, encodings.digest), samples, "sample encodings")
    quantizer = fit_quantizer(vectors, recipe.quantizer)
    probe_quantizer(quantizer)
    header = {"catalogue": catalogue.number, "notes": list(quantizer.notes)}
    return save_model(job.gallery, "quantizer", header, quantizer.to_arrays())


def _gather(job: Job, worker: "_Sampler", samples: Sequence[Sample], title: str) -> np.ndarray:
    """The rows that the worker returns for each sample, in the order of the samples."""
    return _stacked(job, _collect(job, worker, samples, title))


def _collect(job: Job, worker: "_Sampler", samples: Sequence[Sample], title: str) -> list[Any]:
    """What the worker returns for each sample, in the order of the samples."""
    found: dict[str, Any] = {}
    with job.progress.stage(title, sum(len(sample.rows) for sample in samples)) as stage:
        for part, drawn, images in job.engine.map(worker, samples):
            found[part] = drawn
            stage.advance(images)
    return [found[sample.part.part] for sample in samples]


def _stacked(job: Job, arrays: Sequence[np.ndarray]) -> np.ndarray:
    filled = [array for array in arrays if len(array)]
    if not filled:
        raise BadInput(
            f"{job.gallery.store.url} has no image with features, so there is nothing to fit models on; "
            "look at the rejects that `reseen ingest` reported, and ingest other images"
        )
    return np.concatenate(filled)


class _Sampler(ABC):
    """A worker that returns the part's digest, what it drew, and how many images it looked at."""

    def start(self) -> "_Sampler":
        return self

    def __call__(self, sample: Sample) -> tuple[str, Any, int]:
        return sample.part.part, self.drawn(sample), len(sample.rows)

    @abstractmethod
    def drawn(self, sample: Sample) -> Any:
        """What the fit wants of a sample: rows of an array, but for `LabelledSampler`."""


@dataclass
class DescriptorSampler(_Sampler):
    """`quota` descriptors of each sampled image, drawn with a generator seeded by the image's place."""

    gallery: Gallery
    features: str
    label: str
    quota: int

    def drawn(self, sample: Sample) -> np.ndarray:
        found = read_features(self.gallery, self.features, sample.part.part, list(sample.rows), [self.label])
        drawn = [self._quota(sample, row, image.of(self.label)["descriptors"]) for row, image in found]
        drawn = [descriptors for descriptors in drawn if len(descriptors)]
        return np.concatenate(drawn) if drawn else np.empty((0, 0), np.uint8)

    def _quota(self, sample: Sample, row: int, descriptors: np.ndarray) -> np.ndarray:
        if len(descriptors) <= self.quota:
            return descriptors
        seed, _ = image_identity(sample.part.part, str(row))
        order = np.random.Generator(np.random.PCG64(seed)).permutation(len(descriptors))
        return descriptors[np.sort(order[: self.quota])]


@dataclass
class VectorSampler(_Sampler):
    """The encoded vectors of the sampled images."""

    gallery: Gallery
    features: str
    encoder: ImageEncoder

    def drawn(self, sample: Sample) -> Any:
        return vectorise(self.encoder, None, [image for _, image in self._images(sample)])

    def _images(self, sample: Sample) -> list[tuple[int, ImageFeatures]]:
        wanted, labels = list(sample.rows), self.encoder.labels
        return list(read_features(self.gallery, self.features, sample.part.part, wanted, labels))


@dataclass
class LabelledSampler(VectorSampler):
    """The encoded vectors of the sampled images, and the label in each one's `SOURCE/KEY`."""

    pattern: str

    def drawn(self, sample: Sample) -> Any:
        images = self._images(sample)
        keys = read_part(self.gallery, sample.part, ["key"])["key"].to_pylist()
        names = [f"{sample.part.source}/{decode_key(keys[row])}" for row, _ in images]
        vectors = vectorise(self.encoder, None, [image for _, image in images])
        return vectors, labels_of(names, self.pattern)


@dataclass
class EncodingSampler(_Sampler):
    """The stored vectors of the sampled images."""

    gallery: Gallery
    encodings: str

    def drawn(self, sample: Sample) -> Float32[np.ndarray, "n d"]:
        rows, _, vectors = read_encodings(self.gallery, self.encodings, sample.part.part)
        return vectors[np.isin(rows, sample.rows)]


def model_notes(gallery: Gallery, models: Mapping[str, str]) -> list[str]:
    """What a user should know of the fits (too few images, fewer dimensions), a sentence each."""
    from ingest.models import load_model

    return [note for kind, digest in models.items() for note in load_model(gallery, digest, kind)[0]["notes"]]
