"""NetVLAD over stored features: parity, agreement with the layer, its fit, and its invariances."""

from pathlib import Path

import numpy as np
import pytest

from index.codebook import Codebook
from index.netvlad import NetVlad, NetVladSettings, assignment_v1, assignment_v2, fit_netvlad
from index.vlad import Vlad, VladSettings
from ingest.errors import BadInput
from ingest.threads import fixed_threads

GOLDEN = Path(__file__).parents[1] / "golden" / "netvlad_sare_sfrs.npz"


def golden(name: str) -> np.ndarray:
    with np.load(GOLDEN) as file:
        array: np.ndarray = file[name]
    return array


def columns(maps: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Maps (b, c, h, w) as the local features of each image."""
    return [{"descriptors": np.ascontiguousarray(each.reshape(len(each), -1).T)} for each in maps]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def draw(n: int, d: int = 24, seed: int = 0) -> np.ndarray:
    """Clustered descriptors of several lengths."""
    rng = np.random.default_rng(seed)
    middles = np.random.default_rng(99).standard_normal((12, d))
    return (middles[rng.integers(0, 12, n)] + 0.5 * rng.standard_normal((n, d))).astype(np.float32)


def fitted(init: str = "v1", words: int = 8, **chosen: object) -> NetVlad:
    codebook = {"words": words, "sample_descriptors": 600, **chosen}
    return fit_netvlad(draw(800), NetVladSettings.model_validate({"init": init, "codebook": codebook}))


# -- the vector ---------------------------------------------------------------------------------------------


def test_it_equals_the_reference_implementation() -> None:
    encoder = NetVlad(golden("nv_conv"), None, golden("nv_centroids"), NetVladSettings())
    vectors = [encoder.encode(local) for local in columns(golden("nv_x"))]
    np.testing.assert_allclose(vectors, golden("nv_vlad"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("init", ["v1", "v2"])
def test_it_equals_the_layer_with_the_same_weights(init: str) -> None:
    import torch

    from ingest.netvlad_layer import NetVladLayer

    encoder = fitted(init)
    layer = NetVladLayer(8, 24, bias=encoder.bias is not None)
    state = {"conv.weight": encoder.weights[:, :, None, None], "centroids": encoder.centroids}
    if encoder.bias is not None:
        state["conv.bias"] = encoder.bias
    layer.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    maps = draw(3 * 5 * 7, seed=1).T.reshape(24, 3, 5, 7).transpose(1, 0, 2, 3)
    with torch.inference_mode():
        expected = layer(torch.from_numpy(np.ascontiguousarray(maps))).numpy()
    np.testing.assert_allclose([encoder.encode(local) for local in columns(maps)], expected, atol=1e-5)


@pytest.mark.parametrize("init", ["v1", "v2"])
def test_the_order_of_descriptors_and_their_lengths_do_not_matter(init: str) -> None:
    encoder, descriptors = fitted(init), draw(300, seed=1)
    expected = encoder.encode({"descriptors": descriptors})
    rng = np.random.default_rng(0)
    shuffled = {"descriptors": rng.permutation(descriptors)}
    stretched = {"descriptors": descriptors * rng.uniform(0.1, 9, (300, 1)).astype(np.float32)}
    np.testing.assert_allclose(encoder.encode(shuffled), expected, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(stretched), expected, atol=1e-5)


def test_the_vector_has_unit_length_and_the_stated_type() -> None:
    encoder = fitted()
    vector = encoder.encode({"descriptors": draw(50)})
    assert vector.dtype == np.float32
    assert vector.shape == (encoder.dim,) == (8 * 24,)
    np.testing.assert_allclose(np.linalg.norm(vector.reshape(8, 24), axis=1), 8**-0.5, atol=1e-6)


def test_float16_descriptors_give_nearly_the_same() -> None:
    encoder, descriptors = fitted(), draw(200) * 500  # squares beyond float16
    half = encoder.encode({"descriptors": descriptors.astype(np.float16)})
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, encoder.encode({"descriptors": descriptors}), atol=1e-3)


def test_a_sharp_assignment_by_distance_is_vlad() -> None:
    codebook, descriptors = Codebook(fitted().centroids, 8), {"descriptors": draw(100, seed=3)}
    weights = (2e4 * codebook.centroids).astype(np.float32)
    bias = -1e4 * np.einsum("kd,kd->k", codebook.centroids, codebook.centroids)
    hard = NetVlad(weights, bias.astype(np.float32), codebook.centroids, NetVladSettings())
    vlad = Vlad(codebook, VladSettings(prepare="l2", normalise="intra"))
    np.testing.assert_allclose(hard.encode(descriptors), vlad.encode(descriptors), atol=1e-4)


def test_descriptors_of_zeros_and_none() -> None:
    encoder = fitted()
    assert np.isfinite(encoder.encode({"descriptors": np.zeros((4, 24), np.float16)})).all()
    for empty in (np.zeros((0, 24), np.float32), np.zeros((0, 0), np.float16)):
        assert not encoder.encode({"descriptors": empty}).any()


def test_descriptors_of_another_length_are_refused() -> None:
    with pytest.raises(BadInput, match="24 components, got 25"):
        fitted().encode({"descriptors": draw(3, 25)})


# -- the fit ------------------------------------------------------------------------------------------------


def test_initialisation_v1_equals_the_reference_implementation() -> None:
    clusters = golden("nv_clusters")
    weights, bias = assignment_v1(Codebook(clusters, len(clusters)), golden("nv_train"))
    assert bias is None
    np.testing.assert_allclose(weights, golden("nv_conv"), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(weights, axis=1), golden("nv_alpha"), rtol=1e-5)


def test_initialisation_v2_assigns_by_distance() -> None:
    clusters, descriptors = golden("nv_clusters"), golden("nv_train")
    weights, bias = assignment_v2(Codebook(clusters, len(clusters)), descriptors)
    distances = ((descriptors[:, None].astype(np.float64) - clusters) ** 2).sum(axis=2)
    nearest = np.sort(distances, axis=1)
    alpha = -np.log(0.01) / (nearest[:, 1] - nearest[:, 0]).mean()
    shifted = descriptors @ weights.T + bias + alpha * distances  # alpha |x|^2, the same for all words
    np.testing.assert_allclose(shifted, np.repeat(shifted[:, :1], 8, axis=1), atol=1e-3)
    np.testing.assert_allclose(shifted[:, 0], alpha, rtol=1e-4)


@pytest.mark.parametrize("init", ["v1", "v2"])
def test_the_second_word_has_a_hundredth_of_the_first_in_the_mean(init: str) -> None:
    descriptors = unit(draw(600))
    encoder = fit_netvlad(
        descriptors, NetVladSettings.model_validate({"init": init, "codebook": {"words": 8}})
    )
    logits = descriptors @ encoder.weights.T + (0 if encoder.bias is None else encoder.bias)
    ordered = np.sort(logits, axis=1)
    assert (ordered[:, -1] - ordered[:, -2]).mean() == pytest.approx(np.log(100), rel=1e-4)


def test_words_are_means_of_unit_descriptors() -> None:
    encoder = fitted(words=12)
    lengths = np.linalg.norm(encoder.centroids, axis=1)
    assert (lengths < 1).all()
    assert (lengths > 0.5).all()
    nearest = (unit(encoder.centroids) @ unit(np.random.default_rng(99).standard_normal((12, 24))).T).max(
        axis=0
    )
    assert np.median(nearest) > 0.95


@pytest.mark.parametrize("init", ["v1", "v2"])
@pytest.mark.parametrize("around", [1, 2])
def test_the_same_descriptors_give_the_same_bytes_whatever_the_threads(init: str, around: int) -> None:
    with fixed_threads(around):
        again = fitted(init)
    for name, array in fitted(init).to_arrays().items():
        assert array.tobytes() == again.to_arrays()[name].tobytes()


@pytest.mark.parametrize("init", ["v1", "v2"])
def test_few_descriptors_give_few_words_and_a_note(init: str) -> None:
    for n in (1, 3):
        encoder = fit_netvlad(draw(n), NetVladSettings(init=init))
        assert encoder.dim == n * 24
        assert f"{n} words instead of 64" in encoder.notes[0]
        vector = encoder.encode({"descriptors": draw(30, seed=2)})
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_words_that_cannot_be_told_apart_share_their_descriptors() -> None:
    descriptors = unit(draw(20, 2))
    weights, _ = assignment_v1(Codebook(np.array([[0.5, 0], [1, 0]], np.float32), 2), descriptors)
    assert np.isfinite(weights).all()
    np.testing.assert_array_equal(weights[0], weights[1])
    twice, bias = assignment_v2(Codebook(np.ones((2, 2), np.float32), 2), descriptors)
    assert np.isfinite(twice).all()
    assert bias[0] == bias[1]
    assert np.isfinite(bias).all()


def test_descriptors_of_zeros_teach_nothing() -> None:
    descriptors = draw(400)
    padded = np.insert(descriptors, range(0, 400, 5), 0, axis=0)
    chosen = NetVladSettings.model_validate({"codebook": {"words": 6}})
    one, other = fit_netvlad(descriptors, chosen), fit_netvlad(padded, chosen)
    np.testing.assert_array_equal(one.weights, other.weights)


def test_nothing_to_fit_on_is_the_callers_mistake() -> None:
    for nothing in (np.zeros((0, 24), np.float16), np.zeros((5, 24), np.float32)):
        with pytest.raises(BadInput, match="no descriptors"):
            fit_netvlad(nothing, NetVladSettings())
    with pytest.raises(BadInput, match="NaN"):
        fit_netvlad(np.full((9, 4), np.nan, np.float32), NetVladSettings())


@pytest.mark.parametrize("init", ["v1", "v2"])
def test_saved_and_loaded_it_encodes_the_same(init: str) -> None:
    encoder = fit_netvlad(draw(40), NetVladSettings(init=init, reads="columns"))
    loaded = NetVlad.from_arrays({name: array.copy() for name, array in encoder.to_arrays().items()})
    assert (loaded.settings, loaded.notes) == (encoder.settings, encoder.notes)
    assert (loaded.bias is None) == (init == "v1")
    local = {"descriptors": draw(90, seed=4)}
    np.testing.assert_array_equal(loaded.encode(local), encoder.encode(local))


def test_a_recipe_that_sets_one_thing_of_the_words_keeps_netvlads_other_defaults() -> None:
    chosen = NetVladSettings.model_validate({"codebook": {"seed": 3}}).codebook
    assert (chosen.words, chosen.sample_descriptors, chosen.seed) == (64, 50_000, 3)
