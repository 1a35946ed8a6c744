"""How a process on the CPU gets its memory."""

from __future__ import annotations

import ctypes
import sys

# of mallopt(3)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 2**31 - 1  # bytes; an int's


def reuse_freed_memory() -> bool:
    """Keep freed memory for the next tensor, instead of handing it back to the system.

    glibc takes blocks of more than 32 MB from the system each time, which clears every page of
    them first. Features of a few hundred regions are that large: a training step on the CPU is 15
    to 20 % faster without (docs/BENCHMARKS.md). The process keeps what it once had.

    Returns:
        whether this system has the setting.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, _LARGEST))
