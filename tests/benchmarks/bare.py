"""The bare kernel: photographs to VLAD with OpenCV and numpy, one process, one thread, nothing kept.

    python -m tests.benchmarks.bare NICENESS CENTROIDS.npy LONGEST_SIDE KEYPOINTS FILE...

Prints seconds and CPU seconds as JSON, without imports and first touch.
"""

import json
import os
import sys
import time
from pathlib import Path

import cv2
import numpy as np

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def main() -> None:
    cv2.setNumThreads(1)
    os.nice(int(sys.argv[1]))
    centroids = np.load(sys.argv[2])
    longest, keypoints, files = int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:]
    sift = cv2.SIFT_create(nfeatures=keypoints, enable_precise_upscale=True)
    half_norms = (centroids * centroids).sum(axis=1) / 2

    def vector(file: str) -> np.ndarray:
        image = cv2.imdecode(np.frombuffer(Path(file).read_bytes(), np.uint8), cv2.IMREAD_COLOR)
        scale = longest / max(image.shape[:2])
        if scale < 1:
            image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        _, descriptors = sift.detectAndCompute(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), None)
        roots = np.sqrt(descriptors / descriptors.sum(axis=1, keepdims=True))
        words = (roots @ centroids.T - half_norms).argmax(axis=1)
        order = np.argsort(words, kind="stable")
        present, starts = np.unique(words[order], return_index=True)
        sums = np.zeros_like(centroids)
        sums[present] = np.add.reduceat((roots - centroids[words])[order], starts, axis=0)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        flat = (sums / np.where(norms > 0, norms, 1)).reshape(-1)
        whole: np.ndarray = flat / np.linalg.norm(flat)
        return whole

    vector(files[0])
    begun, cpu = time.perf_counter(), time.process_time()
    vectors = [vector(file) for file in files]
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    sample = [[round(float(value), 6) for value in vector[:256]] for vector in vectors[:4]]
    print(json.dumps({"images": len(files), "seconds": seconds, "cpu_seconds": cpu, "sample": sample}))


if __name__ == "__main__":
    main()
