"""Memory is bounded by the part, never by the collection.

The law: a run over four times as many images takes at its peak less than a third of the added data more.
What may grow with the collection is its catalogue, some 100 bytes an image; the data are 120 kB of features
an image in the one case and 1 kB of vector in the other. Neither the speed nor the size of the machine is in
it: each run is a process of its own, whose allocator gives large blocks back; its peak grew by 2 and 11 MB
when measured, and the limits are 7 and 31 MB.
"""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}

IMAGES = """
    import sys
    import numpy as np
    from PIL import Image
    from ingest.features import FeatureSettings
    from ingest.sift import SiftSettings
    from ingest.sources import Listed
    from ingest.synthetic import bmp
    from tests.pipeline.small import HereDecoder, build_images, ingest, job_on, small_recipe
    from ingest import features

    features.DecoderPool = HereDecoder  # a child's memory is not this process's

    DENSE = SiftSettings(contrast_threshold=0, edge_threshold=1000)

    class Noise:
        '''Images that are made when they are read, each full of key points.'''
        name, url = "noise", "noise:"
        def listing(self):
            return (Listed(f"{n}.bmp", 54 + 160 * 160 * 3, "1") for n in range(int(sys.argv[2])))
        def read(self, key, max_bytes=None):
            drawn = np.random.default_rng(int(key.split(".")[0]))
            coarse = Image.fromarray(drawn.integers(0, 256, (80, 80, 3), dtype=np.uint8))
            return bmp(np.asarray(coarse.resize((160, 160), Image.Resampling.BICUBIC)))

    features = FeatureSettings(describe={"local": DENSE})
    recipe = small_recipe(shard_rows=64).model_copy(update={"features": features})
    job, source = job_on(sys.argv[1]), Noise()
    ingest(job, source, recipe, most_images=32)
    build_images(job, recipe, source)
    kinds = ["features"]
"""

VECTORS = """
    import sys
    import numpy as np
    from index.ready_made import ingest_vectors
    from ingest.sources import open_source
    from ingest.store import Store
    from tests.tiny import RECIPE, build_tiny, job_on

    count, path = int(sys.argv[2]), sys.argv[1] + ".npy"
    with open(path, "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, 256)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, count, 4096):
            rows = min(4096, count - start)
            file.write(np.random.default_rng(start).standard_normal((rows, 256)).astype("<f4").tobytes())
    job = job_on(Store(sys.argv[1]))
    ingest_vectors(job, open_source("vectors:" + path))
    build_tiny(job, recipe=RECIPE.model_copy(update={"shard_rows": 16_384}))
    kinds = ["encodings"]
"""

PEAK = """
    import json, resource
    data = sum(info.size for kind in kinds for info in job.gallery.store.listing(kind))
    print(json.dumps([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, data]))
"""


@pytest.mark.parametrize(
    ("script", "count"), [(IMAGES, 64), (VECTORS, 2 * 16_384)], ids=["images", "ready-made vectors"]
)
def test_four_times_the_images_take_the_same_memory(script: str, count: int, tmp_path: Path) -> None:
    small, small_data = _peak(script, tmp_path / "small", count)
    large, large_data = _peak(script, tmp_path / "large", 4 * count)
    assert large_data - small_data > 20 * 2**20  # there is enough of it to be seen
    assert large - small < (large_data - small_data) / 3


def _peak(script: str, place: Path, count: int) -> tuple[int, int]:
    """Bytes at the peak of an ingest and a build, and bytes of data that they wrote."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script) + textwrap.dedent(PEAK), str(place), str(count)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **_ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    peak, data = json.loads(done.stdout)
    print(f"{count}: peak {peak / 2**20:.0f} MB, data {data / 2**20:.0f} MB")
    return peak, data
