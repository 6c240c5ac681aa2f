"""Weights in a gallery: kept by their content, whatever file they came in, while something needs them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from index.build import BuildOptions, build
from index.collect import collect
from index.generation import read_generation
from index.publish import check_present
from index.recipe import Recipe, with_read_weights
from index.verify import verify
from ingest.describe import ImageDescriber
from ingest.errors import BadInput, Corrupt, NotFound
from ingest.features import FeatureSettings
from ingest.gallery import model_path
from ingest.job import Job
from ingest.weights import known_digest, network_of, read_describers_weights, weights_loader
from serve.query import ImageQuery, open_query_encoder
from tests.ingest.tiny_networks import averages_state, network
from tests.pipeline.small import Album, HereDecoder, contents, ingest, job_on, rendered

ALBUM = Album("town", rendered("synthetic:scenes=2,views=3,distractors=0,size=64,seed=2"))


@pytest.fixture(autouse=True)
def _decode_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.features.DecoderPool", HereDecoder)


def features_of(weights: str | Path, **others: Any) -> FeatureSettings:
    """Pooled descriptors by `Averages`; other settings as `network__NAME` or `NAME` of the label."""
    stated = {name[9:]: value for name, value in others.items() if name.startswith("network__")}
    label = {"kind": "cnn-global", "network": network("Averages", str(weights), **stated), "layer": "far"}
    label |= {name: value for name, value in others.items() if not name.startswith("network__")}
    return FeatureSettings.model_validate({"decode": {"longest_side": 64}, "describe": {"global": label}})


def recipe_of(weights: str | Path, **others: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "tiny",
            "features": features_of(weights, **others),
            "encoder": {"kind": "pooled"},
            "quantizer": {"kind": "flat"},
            "gate": {"recall": 0, "queries": 2},
        }
    )


def saved(file: Path, state: Mapping[str, Tensor]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".safetensors":
        save_file(dict(state), file)
    else:
        torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, file)
    return file


def digest_of(features: FeatureSettings) -> str:
    (digest,) = known_features(features).weights
    return digest


def known_features(features: FeatureSettings) -> FeatureSettings:
    return features.model_copy(update={"describe": read_describers_weights(features.describe).describe})


@pytest.fixture
def built(tmp_path: Path) -> Iterator[tuple[Job, Path]]:
    """A gallery that was built with weights from a file, and the file."""
    file = saved(tmp_path / "mine.pth", averages_state())
    job = job_on(str(tmp_path / "gallery"))
    ingest(job, ALBUM, recipe_of(file))
    publish(job, recipe_of(file))
    yield job, file


def publish(job: Job, recipe: Recipe, **options: bool) -> int:
    return build(job, recipe, {"town": ALBUM}, BuildOptions(**options)).number


def kept(job: Job) -> set[str]:
    """The digests of the weights that a gallery keeps."""
    names = [info.path.split("/")[1] for info in job.gallery.store.listing("models")]
    found = set()
    for digest in names:
        try:
            weights_loader(job.gallery)(digest)
            found.add(digest)
        except Corrupt:  # another model
            continue
    return found


# -- by content ---------------------------------------------------------------------------------------------


def test_equal_weights_have_one_name_in_whatever_file_they_lie(tmp_path: Path) -> None:
    state = averages_state()
    backwards = dict(reversed(state.items()))
    files = [
        saved(tmp_path / "a.pth", state),
        saved(tmp_path / "elsewhere" / "b.pth", backwards),
        saved(tmp_path / "c.safetensors", state),
    ]
    read = [read_describers_weights(features_of(file).describe) for file in files]
    objects = [each.objects for each in read]
    assert objects[0] == objects[1] == objects[2]
    other = saved(tmp_path / "other.pth", averages_state(1))
    assert digest_of(features_of(other)) not in objects[0]


def test_the_weights_of_a_network_inside_another_are_the_same(tmp_path: Path) -> None:
    alone = saved(tmp_path / "alone.pth", averages_state())
    inside = {f"backbone.{key}": value for key, value in averages_state().items()}
    within = saved(tmp_path / "within.pth", {**inside, "head.weight": torch.ones(2)})
    assert digest_of(features_of(within, network__prefix="backbone.")) == digest_of(features_of(alone))


def test_a_network_is_read_once_for_all_its_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ingest import networks

    read = []
    original = networks.read_weights
    monkeypatch.setattr(
        networks, "read_weights", lambda settings: read.append(settings) or original(settings)
    )
    one, other = network("Averages"), network("Averages", "seed:1")
    describe = {
        "a": {"kind": "cnn-global", "network": one, "layer": "far"},
        "b": {"kind": "cnn-columns", "network": one, "layer": "near"},
        "c": {"kind": "cnn-patches", "network": other, "layer": "far"},
        "d": {"kind": "sift"},
    }
    features = FeatureSettings.model_validate({"describe": describe})
    found = read_describers_weights(features.describe)
    assert len(read) == 2 and len(found.objects) == 2
    networks_of = {label: network_of(settings) for label, settings in found.describe.items()}
    assert networks_of["a"] == networks_of["b"] != networks_of["c"]
    assert networks_of["d"] is None
    assert features.model_copy(update={"describe": found.describe}).weights == set(found.objects)


def test_what_a_gallery_keeps_computes_what_the_file_did(built: tuple[Job, Path]) -> None:
    job, file = built
    (digest,) = kept(job)
    state = weights_loader(job.gallery)(digest)
    assert {key: value.tolist() for key, value in state.items()} == {
        key: value.tolist() for key, value in averages_state().items()
    }
    assert read_generation(job.gallery).recipe.weights == {digest} == {digest_of(features_of(file))}


# -- names of what is computed ------------------------------------------------------------------------------


def test_the_digest_of_features_tells_what_is_computed_and_not_where_its_weights_lay(tmp_path: Path) -> None:
    here = saved(tmp_path / "here.pth", averages_state())
    there = saved(tmp_path / "there.safetensors", averages_state())
    other = saved(tmp_path / "other.pth", averages_state(1))
    inside = {f"backbone.{key}": value for key, value in averages_state().items()}
    within = saved(tmp_path / "within.pth", inside)
    alike = [features_of(here), features_of(there), features_of(within, network__prefix="backbone.")]
    different = [
        features_of(other),
        features_of(here, layer="near"),
        features_of(here, pooling={"kind": "mac"}),
        features_of(here, scales=(1.0, 0.5)),
        features_of(here, longest_side=32),
        features_of(here, network__precision="float32"),
        features_of(here, network__mean=(0.5, 0.5, 0.5)),
        features_of(here, network__factory="tests.ingest.test_weights:Another"),
    ]
    names = [known_features(features).digest for features in (*alike, *different)]
    assert len(set(names[: len(alike)])) == 1
    assert len(set(names)) == 1 + len(different)


def Another() -> torch.nn.Module:  # noqa: N802 - it stands for a class
    from tests.ingest.tiny_networks import Averages

    return Averages()


def test_recipes_are_named_alike(tmp_path: Path) -> None:
    here, there = (saved(tmp_path / name, averages_state()) for name in ("a.pth", "b.safetensors"))
    one, other = (with_read_weights(recipe_of(file))[0] for file in (here, there))
    assert one != other
    assert (one.digest, one.vectors_digest) == (other.digest, other.vectors_digest)


def test_before_its_weights_are_read_what_a_network_computes_has_no_name() -> None:
    features = features_of("seed:0")
    for unnamed in (lambda: features.digest, lambda: features.weights, lambda: recipe_of("seed:0").digest):
        with pytest.raises(BadInput, match=r"weights of network 'module' \(seed:0\) have not been read yet"):
            unnamed()
    network = network_of(features.describe["global"])
    assert network is not None
    with pytest.raises(BadInput, match="have not been read yet"):
        known_digest(network)


# -- a digest that a recipe states --------------------------------------------------------------------------


def test_weights_that_are_not_those_of_the_stated_digest_are_refused(tmp_path: Path) -> None:
    job = job_on(str(tmp_path / "gallery"))
    mine = saved(tmp_path / "mine.pth", averages_state())
    stated = digest_of(features_of(mine))
    same = recipe_of(saved(tmp_path / "again.safetensors", averages_state()), network__digest=stated)
    assert with_read_weights(same)[0].weights == {stated}
    other = saved(tmp_path / "other.pth", averages_state(1))
    with pytest.raises(BadInput, match=rf"{other} have the digest \w+, and the recipe states {stated}"):
        ingest(job, ALBUM, recipe_of(other, network__digest=stated))
    assert contents(job.gallery.store) == {}


def test_weights_that_do_not_fit_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    job = job_on(str(tmp_path / "gallery"))
    state = averages_state()
    state["mix.gain"] = state.pop("mix.bias")
    with pytest.raises(BadInput, match=r"1 missing: mix\.bias; 1 left over: mix\.gain"):
        ingest(job, ALBUM, recipe_of(saved(tmp_path / "mine.pth", state)))
    assert contents(job.gallery.store) == {}


# -- without the file ---------------------------------------------------------------------------------------


def test_a_gallery_lives_on_after_the_file_is_gone(built: tuple[Job, Path]) -> None:
    job, file = built
    image = next(iter(ALBUM.images.values()))
    vector = described(job, image)
    before = contents(job.gallery.store)
    file.unlink()
    recipe = read_generation(job.gallery).recipe
    assert publish(job, recipe) == 1
    assert publish(job, recipe, rebuild=True) == 1  # the same shards
    for path in [path for path in before if path.startswith(("features", "encodings", "shards"))]:
        job.gallery.store.delete(path)
    publish(job, recipe, refit=True)  # described anew, by the gallery's own weights
    assert contents(job.gallery.store).items() >= before.items()
    assert described(job, image) == vector
    with pytest.raises(NotFound, match=file.name):  # a recipe that names the file alone
        publish(job, recipe_of(file))


def described(job: Job, data: bytes) -> bytes:
    """A query's vector."""
    with open_query_encoder(job.gallery, read_generation(job.gallery)) as encoder:
        (query,) = encoder.encode([ImageQuery(data)])
        return query.vector.tobytes()  # type: ignore[union-attr]


# -- garbage ------------------------------------------------------------------------------------------------


def test_weights_stay_while_a_generation_names_them_and_orphans_go(
    built: tuple[Job, Path], tmp_path: Path
) -> None:
    job, _ = built
    (first,) = kept(job)
    with_read_weights(recipe_of("seed:1"))[1].keep(job.gallery)  # what a stopped ingest leaves
    second = recipe_of(saved(tmp_path / "second.pth", averages_state(2)))
    ingest(job, ALBUM, second)
    publish(job, second)
    newest = read_generation(job.gallery).recipe.weights
    assert len(kept(job)) == 3
    collect(job.gallery, keep=2, grace_s=3600)
    assert len(kept(job)) == 3  # young
    collect(job.gallery, keep=2, grace_s=0)
    assert kept(job) == {first} | newest
    assert verify(job, 1).problems == ()
    collect(job.gallery, keep=1, grace_s=0)
    assert kept(job) == newest
    assert verify(job).problems == ()


# -- damage and loss ----------------------------------------------------------------------------------------


def test_damaged_weights_are_named_and_compute_nothing(built: tuple[Job, Path]) -> None:
    job, _ = built
    (digest,) = kept(job)
    path = model_path(digest)
    data = bytearray(job.gallery.store.read(path))
    data[-1] ^= 1
    job.gallery.store.replace(path, bytes(data))
    (problem,) = verify(job).problems
    assert path in problem and "damaged" in problem
    with pytest.raises(Corrupt, match=path), open_query_encoder(job.gallery, read_generation(job.gallery)):
        pass
    features = read_generation(job.gallery).recipe.features
    assert features is not None
    with pytest.raises(Corrupt, match=path):
        ImageDescriber(features.describe, weights_loader(job.gallery), job.compute)


def test_lost_weights_are_noticed_and_a_build_from_the_file_brings_them_back(built: tuple[Job, Path]) -> None:
    job, file = built
    generation = read_generation(job.gallery)
    check_present(job.gallery, generation)
    (digest,) = kept(job)
    data = job.gallery.store.read(model_path(digest))
    job.gallery.store.delete(model_path(digest))
    with pytest.raises(NotFound, match=f"the weights {digest} .* are gone"):
        check_present(job.gallery, generation)
    (problem,) = verify(job).problems
    assert model_path(digest) in problem
    assert publish(job, recipe_of(file)) == 1
    assert job.gallery.store.read(model_path(digest)) == data
    assert verify(job).problems == ()
