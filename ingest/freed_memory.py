"""Freed memory that stays in the process, for the next image.

Describing an image of 640 x 480 allocates some 64 MB of scale space and frees it again. By default glibc
gives it back to the kernel each time, and the next image faults it in anew, page by page: 16,000 faults and
40 of 150 ms of CPU time an image.
"""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's numbers for them (malloc.h)
_LARGEST_BLOCK = 32 * 2**20  # bytes; glibc takes no more
_KEPT = 256 * 2**20  # bytes


def keep_freed_memory() -> bool:
    """Lets this process keep up to 256 MiB of freed memory, in blocks of up to 32 MiB, for its next needs.

    Returns:
        Whether the C library can be told so: glibc can, others work on as they did.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK)) and bool(mallopt(_TRIM_THRESHOLD, _KEPT))
