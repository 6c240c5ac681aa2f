"""What a generation or a catalogue names: the objects that must be there for it to be used."""

from index.generation import Generation
from ingest.catalogue import Catalogue, read_catalogue
from ingest.gallery import Gallery, encodings_path, features_path, model_path
from ingest.tables import manifest_path


def objects_of_generation(gallery: Gallery, generation: Generation) -> set[str]:
    """Every object that a generation names: shards, models, manifests, its parts' rows, features, vectors."""
    named = {manifest_path(digest) for digest in generation.manifests.values() if digest is not None}
    for shard in generation.shards:
        named.update((shard.index.name, shard.rows.name))
    named.update(model_path(digest) for digest in generation.models.fitted.values())
    named.update(model_path(digest) for digest in generation.recipe.weights)
    catalogue = read_catalogue(gallery, generation.catalogue)
    named |= objects_of_catalogue(gallery, catalogue)
    named |= manifests_of_catalogue(gallery, generation.deletions)
    return named | objects_of_parts(generation, catalogue)


def objects_of_parts(generation: Generation, catalogue: Catalogue) -> set[str]:
    """The features and vectors of a catalogue's parts by a generation's models. Blobs go with tables."""
    named = set()
    for part in catalogue.parts:
        named.add(encodings_path(generation.models.encodings, part.part))
        if generation.models.features is not None:
            named.add(features_path(generation.models.features, part.part))
    return named


def manifests_of_catalogue(gallery: Gallery, number: int) -> set[str]:
    """The manifests that a commit of the catalogue names."""
    if number == 0:
        return set()
    record = gallery.catalogue.read(number)
    return {manifest_path(record[name]) for name in ("parts", "deleted") if record[name] is not None}


def objects_of_catalogue(gallery: Gallery, catalogue: Catalogue) -> set[str]:
    """The manifests of a commit of the catalogue, its parts, and the vectors that came ready-made."""
    named = {part.ref.name for part in catalogue.parts}
    named |= {encodings_path(part.ready_made, part.part) for part in catalogue.parts if part.ready_made}
    return manifests_of_catalogue(gallery, catalogue.number) | named
