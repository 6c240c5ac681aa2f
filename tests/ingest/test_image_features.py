"""Arrays as bytes: what is read is what was given, however it lay in memory."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load

from ingest.image_features import packed, to_float16


@given(st.permutations(range(3)), st.sampled_from([np.float32, np.float16, np.int8, np.uint8]), st.booleans())
def test_the_order_in_memory_does_not_matter(axes: list[int], kind: type, reversed_: bool) -> None:
    array: np.ndarray = np.arange(24).reshape(2, 3, 4).astype(kind).transpose(axes)[:: -1 if reversed_ else 1]
    found = load(packed({"a": array, "number": np.array(5)}))
    np.testing.assert_array_equal(found["a"], array)
    assert found["a"].dtype == kind and found["number"].shape == ()
    assert packed({"a": array}) == packed({"a": np.ascontiguousarray(array)})


def test_what_is_beyond_float16_comes_to_its_edge() -> None:
    found = to_float16(np.array([1e6, -1e6, 65_519, 0.5], np.float32))
    assert found.dtype == np.float16 and found.tolist() == [65_504, -65_504, 65_504, 0.5]
