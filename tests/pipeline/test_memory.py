"""Memory is bounded by the part, never by the collection.

The law: a run over four times as many images takes at its peak less than a third of the added data more.
What may grow with the collection is its catalogue, some 200 bytes an image; what must not is the data: 200 kB of
features an image in the one case, 2 kB of vector in the other. It cannot flake with the speed or the size
of the machine: nothing but the peak of resident memory of a process of its own is looked at, where the
allocator returns what is freed, and the limit is tens of MB, which is far more than a peak varies by (1 to 3).
"""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

# Large blocks go back to the system when they are freed: the peak is then what was held at once.
ENVIRONMENT = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}

IMAGES = """
    import io, sys
    from dataclasses import dataclass
    import numpy as np
    from ingest.sources import Listed
    from tests.pipeline.small import HereDecoder, build_images, ingest, job_on, small_recipe
    import ingest.features
    from ingest.features import FeatureSettings
    from ingest.synthetic import bmp

    ingest.features.Decoder = HereDecoder  # a process of its own is not measured here

    @dataclass(frozen=True)
    class Noise:
        '''Images that are made when they are read, each full of key points.'''
        count: int
        name: str = "noise"
        url: str = "noise:"
        def listing(self):
            return (Listed(f"{n}.bmp", 54 + 160 * 160 * 3, "1") for n in range(self.count))
        def read(self, key, max_bytes=None):
            drawn = np.random.default_rng(int(key.split(".")[0]))
            return bmp(drawn.integers(0, 256, (160, 160, 3), dtype=np.uint8))

    url, count = sys.argv[1], int(sys.argv[2])
    base = small_recipe(shard_rows=64)
    settings = FeatureSettings.model_validate({"describe": {"octave_layers": 5}})
    recipe = base.model_copy(update={"features": settings})
    job, source = job_on(url), Noise(count)
    ingest.features  # noqa: B018
    from tests.pipeline.small import ingest as ingest_images
    ingest_images(job, source, recipe, most_images=32)
    build_images(job, recipe, source)
"""

VECTORS = """
    import sys
    from pathlib import Path
    import numpy as np
    from index.ready_made import ingest_vectors
    from ingest.sources import open_source
    from tests.tiny import RECIPE, build_tiny, job_on
    from ingest.store import Store

    url, count = sys.argv[1], int(sys.argv[2])
    path = Path(url).with_suffix(".npy")
    drawn = np.random.default_rng(0)
    file = np.lib.format.open_memmap(path, "w+", np.float32, (count, 512))
    for start in range(0, count, 4096):
        file[start:start + 4096] = drawn.standard_normal((len(file[start:start + 4096]), 512))
    file.flush()
    del file
"""

PEAK = """
    import json, resource
    store = job.gallery.store
    data = sum(info.size for info in store.listing("features")) + sum(i.size for i in store.listing("encodings"))
    print(json.dumps([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, data]))
"""
