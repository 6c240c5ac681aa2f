"""What is drawn comes in the order of image ids, whoever brings it first; an image's rows stay together."""

from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from index.samplers import Drawn, in_order


def drawn_of(images: list[tuple[int, int]]) -> Drawn:
    """As many rows of each image as told: its id and their number."""
    rows = [(image, number) for image, many in images for number in range(many)]
    labels = tuple(f"label {image}" for image, _ in rows)
    return Drawn(np.array([image for image, _ in rows]), np.array(rows).reshape(len(rows), 2), labels)


@settings(deadline=None)
@given(
    st.dictionaries(st.integers(0, 2**62), st.integers(1, 4), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
    st.integers(1, 5),
)
def test_any_cut_gives_the_same_rows_by_image(images: dict[int, int], random: Random, parts: int) -> None:
    shuffled = list(images.items())
    random.shuffle(shuffled)
    cut = [drawn_of(shuffled[at::parts]) for at in range(parts) if shuffled[at::parts]]
    expected, found = drawn_of(sorted(images.items())), in_order(cut)
    np.testing.assert_array_equal(found.image_ids, expected.image_ids)
    np.testing.assert_array_equal(found.rows, expected.rows)
    assert found.labels == expected.labels


def test_rows_without_labels_have_none() -> None:
    assert in_order([Drawn(np.array([2, 1]), np.eye(2, dtype=np.uint8))]).labels == ()
    assert in_order([Drawn(np.array([2, 1]), np.eye(2, dtype=np.uint8))]).rows.dtype == np.uint8
