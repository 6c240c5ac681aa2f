"""A view: where the rows of a generation are, also where two builds at once covered the same part."""

from dataclasses import replace

import numpy as np
import pytest

from index.shards import Shard
from ingest.tables import ObjectRef
from serve.service.view import Reading, View, shares_of
from tests.serve.fake_backend import generation


def shard(name: str, *parts: str) -> Shard:
    return Shard(name, ObjectRef(name, 1, "0"), ObjectRef(name, 1, "0", 10), parts)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_a_part_that_two_shards_cover_is_asked_where_its_rows_are_not_masked(groups: int) -> None:
    made = replace(
        generation(1), shards=(shard("a", "p", "q"), shard("b", "q", "r")), masks={"b": np.arange(10) < 5}
    )
    view = View(Reading(made, {}), groups, [])
    assert [view.group_of(part) for part in "pqr"] == [0, 0, min(1, groups - 1)]
    assert view.rows == sum(share.rows for share in shares_of(made, groups)) == 15
