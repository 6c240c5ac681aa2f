"""Fitting: encoder, projection and quantizer, once, from a stated catalogue, on bounded even samples.

Samples are drawn by `index.sampling`; workers read only the parts that hold them, and the fit itself runs
here at a fixed number of threads. The same images give the same models, however they were cut into parts.
Each function returns the digest of the model that it saved.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int64

from index.encoders import OneEncoderSettings, encoder_kind, fit_encoder
from index.encodings import EncodingSet
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
from index.learned_whitening import fit_learned_whitening, pairs_of_labels
from index.projection import Projection, ProjectionSettings, fit_projection
from index.quantizer import fit_quantizer, probe_quantizer
from index.recipe import Recipe
from index.samplers import (
    DescriptorSampler,
    EncodingSampler,
    LabelledSampler,
    Sample,
    VectorSampler,
    collect,
)
from index.sampling import lowest
from ingest.catalogue import Catalogue, LiveRows
from ingest.gallery import Gallery
from ingest.job import Job
from ingest.models import save_model

SAMPLING = 2  # counts the ways of drawing; what an unfinished build fitted on another draw is not taken up
SEED = 1  # of the order in which images are drawn; held-out queries are the last of the same order
_DESCRIPTORS_OF_AN_IMAGE = (
    64  # at least, where there are enough images: more images teach more than more of one
)
_LEAST_IMAGES = 1024  # also where one descriptor suffices: some images may have none


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
    descriptors = collect(fitting.job, worker, samples, "sample descriptors").rows
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
        vectors = collect(job, VectorSampler(*place), samples, "sample vectors").rows
        return fit_projection(vectors, settings)
    collection = Collection(fitting.catalogue, fitting.live)
    numbers = read_label_numbers(job, collection, settings.label_pattern)
    chosen = groups_first(fitting.live.image_id, numbers, settings.sample_images, SEED)
    samples = _gathered(fitting.catalogue, fitting.live, chosen)
    worker = LabelledSampler(*place, settings.label_pattern)
    drawn = collect(job, worker, samples, "sample vectors")
    queries, positives = pairs_of_labels(drawn.labels, settings.seed, settings.sample_pairs)
    return fit_learned_whitening(drawn.rows, queries, positives, settings)


def fit_gallery_quantizer(
    job: Job, catalogue: Catalogue, live: LiveRows, encodings: EncodingSet, recipe: Recipe
) -> str:
    """Fits the quantizer on stored vectors, and shows by a probe that it does what search needs."""
    samples = draw(catalogue, live, recipe.sample_vectors)
    worker = EncodingSampler(job.gallery, encodings.digest)
    vectors = collect(job, worker, samples, "sample encodings").rows
    quantizer = fit_quantizer(vectors, recipe.quantizer)
    probe_quantizer(quantizer)
    header = {"catalogue": catalogue.number, "notes": list(quantizer.notes)}
    return save_model(job.gallery, "quantizer", header, quantizer.to_arrays())


def model_notes(gallery: Gallery, models: Mapping[str, str]) -> list[str]:
    """What a user should know of the fits (too few images, fewer dimensions), a sentence each."""
    from ingest.models import load_model

    return [note for kind, digest in models.items() for note in load_model(gallery, digest, kind)[0]["notes"]]
