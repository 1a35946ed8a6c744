"""Settings of the memory allocator for training on the CPU."""

from __future__ import annotations

import ctypes
import sys

# of mallopt(3)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 2**31 - 1  # bytes; the maximum of an int


def reuse_freed_memory() -> bool:
    """Keep freed memory for the next tensor instead of returning it to the system.

    glibc requests blocks above 32 MB from the system each time, which zeroes every page. Features
    of a few hundred regions are that large: reusing memory makes a training step on the CPU 15 to
    20 % faster (docs/BENCHMARKS.md). The process never shrinks below its peak.

    Returns:
        Whether this system supports the setting.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, _LARGEST))
