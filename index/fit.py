"""Fitting: encoder, projection and quantizer, once, from a stated catalogue, on bounded even samples.

Samples are drawn by `index.sampling`; workers read only the parts that hold them, and the fit itself runs
here at a fixed number of threads. Each function returns the digest of the model that it saved.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from index.encoders import EncoderSettings, fit_encoder, load_encoder
from index.encodings import EncodingSet, read_encodings, vectorise
from index.models import save_model
from index.projection import ProjectionSettings, fit_projection
from index.quantizer import fit_quantizer, probe_quantizer
from index.recipe import Recipe
from index.sampling import lowest
from ingest.catalogue import Catalogue, LiveRows, PartRef
from ingest.errors import BadInput
from ingest.features import read_features
from ingest.gallery import Gallery
from ingest.job import Job
from ingest.records import image_identity

SEED = 1  # of the order in which images are drawn; held-out queries are the last of the same order
_DESCRIPTORS_OF_AN_IMAGE = (
    64  # at least, where there are enough images: more images teach more than more of one
)


@dataclass(frozen=True)
class Sample:
    """Rows of one part that a fit reads."""

    part: PartRef
    rows: tuple[int, ...]

    def __str__(self) -> str:
        return f"a sample of {self.part}"


def draw(catalogue: Catalogue, live: LiveRows, images: int) -> list[Sample]:
    """The first `images` images of the fitting order, gathered by part, in the catalogue's order."""
    chosen = lowest(live.image_id, images, SEED)
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


def fit_gallery_encoder(
    job: Job, catalogue: Catalogue, live: LiveRows, features: str, settings: EncoderSettings
) -> str:
    """Fits the encoder on descriptors drawn evenly from the gallery's images."""
    wanted = settings.codebook.sample_descriptors
    images = max(1, min(len(live.image_id), wanted // _DESCRIPTORS_OF_AN_IMAGE))
    samples = draw(catalogue, live, images)
    worker = DescriptorSampler(job.gallery, features, -(-wanted // images))
    descriptors = _gather(job, worker, samples, "sample descriptors")
    encoder = fit_encoder(descriptors[:wanted], settings)
    header = {"encoder": settings.kind, "catalogue": catalogue.number, "notes": list(encoder.notes)}
    return save_model(job.gallery, "encoder", header, encoder.to_arrays())


def fit_gallery_projection(
    job: Job, catalogue: Catalogue, live: LiveRows, features: str, encoder: str, settings: ProjectionSettings
) -> str:
    """Fits the projection on the encoded vectors of at most `sample_images` images."""
    samples = draw(catalogue, live, settings.sample_images)
    vectors = _gather(job, VectorSampler(job.gallery, features, encoder), samples, "sample vectors")
    projection = fit_projection(vectors, settings)
    header = {"catalogue": catalogue.number, "notes": list(projection.notes)}
    return save_model(job.gallery, "projection", header, projection.to_arrays())


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
    found: dict[str, np.ndarray] = {}
    with job.progress.stage(title, sum(len(sample.rows) for sample in samples)) as stage:
        for part, rows, images in job.engine.map(worker, samples):
            found[part] = rows
            stage.advance(images)
    arrays = [found[sample.part.part] for sample in samples]
    arrays = [array for array in arrays if len(array)]
    if not arrays:
        raise BadInput(
            f"{job.gallery.store.url} has no image with features, so there is nothing to fit models on; "
            "look at the rejects that `reseen ingest` reported, and ingest other images"
        )
    return np.concatenate(arrays)


class _Sampler(ABC):
    """A worker that returns the part's digest, an array of rows, and how many images it looked at."""

    def start(self) -> "_Sampler":
        return self

    def __call__(self, sample: Sample) -> tuple[str, np.ndarray, int]:
        return sample.part.part, self.rows(sample), len(sample.rows)

    @abstractmethod
    def rows(self, sample: Sample) -> np.ndarray:
        """The rows that the fit wants of a sample."""


@dataclass
class DescriptorSampler(_Sampler):
    """`quota` descriptors of each sampled image, drawn with a generator seeded by the image's place."""

    gallery: Gallery
    features: str
    quota: int

    def rows(self, sample: Sample) -> np.ndarray:
        drawn = []
        for row, local in read_features(self.gallery, self.features, sample.part, list(sample.rows)):
            descriptors = local["descriptors"]
            if len(descriptors) > self.quota:
                seed, _ = image_identity(sample.part.part, str(row))
                chosen = np.random.Generator(np.random.PCG64(seed)).permutation(len(descriptors))[
                    : self.quota
                ]
                descriptors = descriptors[np.sort(chosen)]
            drawn.append(descriptors)
        return np.concatenate(drawn) if drawn else np.empty((0, 0), np.uint8)


@dataclass
class VectorSampler(_Sampler):
    """The encoded vectors of the sampled images."""

    gallery: Gallery
    features: str
    encoder: str

    def start(self) -> "VectorSampler":
        self._encoder = load_encoder(self.gallery, self.encoder)
        return self

    def rows(self, sample: Sample) -> np.ndarray:
        found = read_features(self.gallery, self.features, sample.part, list(sample.rows))
        return vectorise(self._encoder, None, [local for _, local in found])


@dataclass
class EncodingSampler(_Sampler):
    """The stored vectors of the sampled images."""

    gallery: Gallery
    encodings: str

    def rows(self, sample: Sample) -> Float32[np.ndarray, "n d"]:
        rows, _, vectors = read_encodings(self.gallery, self.encodings, sample.part.part)
        return vectors[np.isin(rows, sample.rows)]


def model_notes(gallery: Gallery, models: Mapping[str, str]) -> list[str]:
    """What a user should know of the fits (too few images, fewer dimensions), a sentence each."""
    from index.models import load_model

    return [note for kind, digest in models.items() for note in load_model(gallery, digest, kind)[0]["notes"]]
