"""Building a generation: fit what is not fitted, encode and shard what is new, check, publish."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from index.encodings import EncodingSet, encode, encodings_digest
from index.fit import (
    SAMPLING,
    Fitting,
    fit_gallery_encoder,
    fit_gallery_projection,
    fit_gallery_quantizer,
)
from index.generation import Generation, Models, read_generation
from index.pins import Pin, Renewing, earlier_fits, hold
from index.publish import Proposal, check_present, publish
from index.ready_made import ready_made_encodings
from index.recipe import Recipe, with_read_weights
from index.shards import Shard, build_shards, plan_shards
from ingest.catalogue import Catalogue, LiveRows, PartRef, live_rows, read_catalogue
from ingest.errors import BadInput, Conflict, NotFound
from ingest.extract import extract
from ingest.gallery import Gallery, follow
from ingest.job import Job
from ingest.records import digest_of
from ingest.sources import Source
from ingest.weights import ReadWeights

_REPLANS = 20


@dataclass(frozen=True)
class BuildOptions:
    """What a build may do besides adding what is new.

    rebuild: cut all shards anew, with the models as they are.
    refit: fit all models anew on the catalogue as it is; implies rebuild.
    max_rejects: share of images without features above which the build stops.
    action: what the generation says published it.
    """

    rebuild: bool = False
    refit: bool = False
    max_rejects: float = 0.5
    action: str = "build"

    @property
    def replaces(self) -> bool:
        return self.rebuild or self.refit


def build(
    job: Job, recipe: Recipe, sources: Mapping[str, Source], options: BuildOptions | None = None
) -> Generation:
    """Publishes a generation of the newest catalogue by a recipe.

    Models that a generation with the same recipe has are carried on; its shards are kept, and new ones
    added for parts that they do not cover. Whoever publishes meanwhile is built upon; only an explicit
    rebuild or refit reports the conflict.

    Args:
        sources: by name; looked up anew at every plan, since another writer may have added one meanwhile.

    Returns:
        The generation in force: the newest one as it was, if there is nothing to add.
    """
    options = options or BuildOptions()
    recipe, weights = with_read_weights(recipe, job.gallery)
    for _ in range(_REPLANS):
        try:
            return follow(job.gallery, lambda: _build(job, recipe, weights, sources, options))
        except Conflict:
            if options.replaces:
                raise
    raise Conflict(f"{job.gallery.store.url} changes faster than this build can follow; run again later")


def _build(
    job: Job, recipe: Recipe, weights: ReadWeights, sources: Mapping[str, Source], options: BuildOptions
) -> Generation:
    weighty = [f"models/{digest}/" for digest in sorted(recipe.weights)]
    with hold(job.gallery, "manifests/", *weighty, resumes=True) as pin:
        weights.keep(job.gallery)
        job = replace(job, progress=Renewing(job.progress, pin))
        base = job.gallery.generations.newest()
        catalogue = read_catalogue(job.gallery)
        parent = None if options.refit else lineage(job.gallery, recipe.digest, base)
        if not catalogue.parts and parent is None:
            raise NotFound(f"{job.gallery.store.url} has no images yet: run reseen ingest SOURCE first")
        if parent is not None:
            pin.keep(generations=[parent.number])
        kept = [] if parent is None or options.rebuild else _usable_shards(parent, catalogue)
        covered = {part for shard in kept for part in shard.parts}
        todo = [part for part in catalogue.parts if part.part not in covered]
        plan = _Plan(job, recipe, pin, catalogue, options, base)
        models, encodings = _vectors(plan, parent, todo, sources)
        plans = plan_shards(todo, encodings.counts, recipe.shard_rows, models.encodings, models.quantizer)
        pin.keep(*(f"shards/{plan.digest}/" for plan in plans), *_model_prefixes(models))
        shards = build_shards(job, plans, encodings.counts)
        pin.keep_alive()
        grows = parent is not None and parent.number == base and len(kept) == len(parent.shards)
        proposal = Proposal(
            action=options.action,
            recipe=recipe,
            models=models,
            shards=tuple(shards) if grows else (*kept, *shards),
            catalogue=catalogue.number,
            base=base,
            adds=grows,
            gated=options.action == "build",  # a purge takes images down: no gate may stop that
            gate=dict(parent.gate) if parent is not None else {},
        )
        return publish(job, proposal)


def lineage(gallery: Gallery, digest: str, newest: int, of: str = "recipe_digest") -> Generation | None:
    """The newest generation, up to `newest`, that was built by the same settings and is still whole.

    Args:
        digest: of the settings: `Recipe.digest`, or `Recipe.vectors_digest` with `of="vectors_digest"`.
    """
    for number in sorted((n for n in gallery.generations.numbers() if n <= newest), reverse=True):
        if gallery.generations.read(number)[of] != digest:
            continue
        try:
            generation = read_generation(gallery, number)
            check_present(gallery, generation)
        except NotFound:  # it was collected or purged, wholly or in part
            continue
        return generation
    return None


def _usable_shards(parent: Generation, catalogue: Catalogue) -> list[Shard]:
    """The parent's shards whose every part is still in the catalogue (a purge replaces parts)."""
    return [shard for shard in parent.shards if catalogue.position.keys() >= set(shard.parts)]


@dataclass(frozen=True)
class _Plan:
    job: Job
    recipe: Recipe
    pin: Pin
    catalogue: Catalogue
    options: BuildOptions
    base: int


def _vectors(
    plan: _Plan, parent: Generation | None, todo: Sequence[PartRef], sources: Mapping[str, Source]
) -> tuple[Models, EncodingSet]:
    """The models of the generation, and the vectors of the parts that its shards do not cover yet."""
    job, recipe, live = plan.job, plan.recipe, live_rows(plan.job.gallery, plan.catalogue)
    if recipe.features is None or recipe.encoder is None:
        encodings = ready_made_encodings(job.gallery, todo)
        if parent is not None:
            return parent.models, encodings
        return Models(None, None, None, encodings.digest, _fit_quantizer(plan, live, encodings)), encodings
    features = recipe.features.digest
    plan.pin.keep(f"features/{features}/")
    catalogue = plan.catalogue
    missing = Catalogue(catalogue.number, catalogue.sources, tuple(todo), catalogue.deleted)
    needed = {name: sources[name] for name in {part.source for part in todo}}
    extract(job, missing, recipe.features, needed, plan.options.max_rejects, _published_outcomes(parent))
    encoder, projection = _encoder(plan, parent, live, features)
    plan.pin.keep(f"encodings/{encodings_digest(features, encoder, projection)}/")
    encodings = encode(job, todo, features, encoder, projection)
    plan.pin.keep_alive()
    quantizer = parent.models.quantizer if parent else _fit_quantizer(plan, live, encodings)
    return Models(features, encoder, projection, encodings.digest, quantizer), encodings


def _published_outcomes(parent: Generation | None) -> dict[str, int]:
    """What became of the images that are published already; rejects of any kind as one."""
    if parent is None:
        return {}
    return {"ok": parent.counts["live"], "rejected before": parent.counts["rejected"]}


def _encoder(plan: _Plan, parent: Generation | None, live: LiveRows, features: str) -> tuple[str, str | None]:
    """The encoder and projection that the gallery has for these settings; fitted if it has none.

    Another quantizer is no reason to fit them again, nor to encode again.
    """
    if parent is None and not plan.options.refit:
        parent = lineage(plan.job.gallery, plan.recipe.vectors_digest, plan.base, of="vectors_digest")
    if parent is not None and parent.models.encoder is not None:
        return parent.models.encoder, parent.models.projection
    return _fit_encoder(plan, live, features)


def _fit_encoder(plan: _Plan, live: LiveRows, features: str) -> tuple[str, str | None]:
    job, recipe, catalogue = plan.job, plan.recipe, plan.catalogue
    settings = recipe.encoder
    if settings is None:
        raise BadInput(f"recipe {recipe.name!r} has no encoder")
    work = _work(plan, "encoder", settings.model_dump(mode="json"), features)
    fitting = Fitting(job, catalogue, live, features)
    encoder = _recall(plan, work) or fit_gallery_encoder(fitting, settings)
    _remember(plan, work, encoder)
    if recipe.projection is None:
        return encoder, None
    work = _work(plan, "projection", recipe.projection.model_dump(mode="json"), encoder)
    projection = _recall(plan, work) or fit_gallery_projection(fitting, encoder, recipe.projection)
    _remember(plan, work, projection)
    return encoder, projection


def _fit_quantizer(plan: _Plan, live: LiveRows, encodings: EncodingSet) -> str:
    settings = plan.recipe.quantizer.model_dump(mode="json")
    work = _work(plan, "quantizer", settings, encodings.digest)
    quantizer = _recall(plan, work) or fit_gallery_quantizer(
        plan.job, plan.catalogue, live, encodings, plan.recipe
    )
    _remember(plan, work, quantizer)
    return quantizer


def _work(plan: _Plan, kind: str, settings: object, inputs: str) -> str:
    """The digest of a fit: its settings, its inputs, and the images that it may draw from, and how."""
    images = {
        "parts": [part.part for part in plan.catalogue.parts],
        "deleted": plan.catalogue.deleted.tolist(),
        "sampling": SAMPLING,
    }
    return digest_of({"fit": kind, "settings": settings, "inputs": inputs, **images})


def _recall(plan: _Plan, work: str) -> str | None:
    """A model that an earlier, unfinished build fitted for the same work, if it is still there."""
    model = earlier_fits(plan.job.gallery).get(work)
    there = model is not None and plan.job.gallery.store.exists(f"models/{model}/model.safetensors")
    return model if there else None


def _remember(plan: _Plan, work: str, model: str) -> None:
    plan.pin.fits[work] = model
    plan.pin.prefixes.add(f"models/{model}/")
    plan.pin.save()


def _model_prefixes(models: Models) -> list[str]:
    return [f"models/{digest}/" for digest in models.fitted.values()]
