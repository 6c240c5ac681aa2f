"""Samples are bounded, even over parts, the same in any order, and hardly move when a gallery grows."""

import numpy as np
import pytest

from index.fit import draw
from index.sampling import highest, lowest
from ingest.catalogue import Catalogue, LiveRows, PartRef
from ingest.records import image_identity
from ingest.tables import ObjectRef

PARTS, ROWS = 8, 1000
IDS = np.array([image_identity("photos", f"{n // ROWS}/{n}.jpg")[0] for n in range(PARTS * ROWS)], np.int64)


@pytest.mark.parametrize("choose", [lowest, highest])
@pytest.mark.parametrize("count", [0, 1, 800, 8000, 9000])
def test_a_sample_is_bounded_and_does_not_depend_on_the_order(choose: object, count: int) -> None:
    assert callable(choose)
    positions = choose(IDS, count, 1)
    assert len(set(positions.tolist())) == len(positions) == min(count, len(IDS))
    order = np.random.default_rng(0).permutation(len(IDS))
    assert set(IDS[order][choose(IDS[order], count, 1)].tolist()) == set(IDS[positions].tolist())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_part_gives_its_share(seed: int) -> None:
    shares = np.bincount(lowest(IDS, 800, seed) // ROWS, minlength=PARTS)
    assert shares.sum() == 800
    assert np.abs(shares - 100).max() < 5 * np.sqrt(100 * 0.9), "five standard deviations"


def test_another_seed_is_another_sample() -> None:
    common = set(lowest(IDS, 800, 0).tolist()) & set(lowest(IDS, 800, 1).tolist())
    assert len(common) < 200


def test_a_tenth_more_images_move_a_tenth_of_the_sample() -> None:
    before = set(IDS[:7000][lowest(IDS[:7000], 700, 1)].tolist())
    after = set(IDS[lowest(IDS, 700, 1)].tolist())
    assert len(before - after) == len(after - before) < 150
    assert after <= before | set(IDS[7000:].tolist())


def test_the_first_and_the_last_of_an_order_have_nothing_in_common() -> None:
    assert not set(lowest(IDS, 7900, 1).tolist()) & set(highest(IDS, 100, 1).tolist())


def test_a_draw_names_parts_and_rows_of_exactly_the_sample() -> None:
    parts = tuple(
        PartRef(f"part{n}", "photos", ObjectRef(f"parts/part{n}", 1, "", ROWS)) for n in range(PARTS)
    )
    order = np.argsort(IDS)
    places = np.arange(len(IDS))
    nothing = np.zeros(len(IDS), np.int64)
    live = LiveRows(IDS[order], nothing, nothing, (places // ROWS)[order], (places % ROWS)[order])
    samples = draw(Catalogue(1, {}, parts), live, 800)
    drawn = {int(sample.part.part[4:]) * ROWS + row for sample in samples for row in sample.rows}
    assert drawn == set(lowest(IDS, 800, 1).tolist())
    assert [sample.part for sample in samples] == list(parts), "in the catalogue's order"
    assert all(list(sample.rows) == sorted(sample.rows) for sample in samples)
