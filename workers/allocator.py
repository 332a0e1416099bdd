"""How this process's malloc treats what is freed."""

from __future__ import annotations

import contextlib
import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt, in glibc's malloc.h
KEPT_BYTES = 128 << 20
LARGEST_FROM_HEAP = 32 << 20  # glibc's own most


def keep_freed_memory() -> None:
    """Buffers of a megabyte, as blocks inside gRPC need half a dozen of for each message, stay ours
    when they are freed. By default each is given back to the system at once and every 4 KiB of the
    next one is a page fault: half of the time such a message took. Where there is no glibc nothing
    happens."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(MMAP_THRESHOLD, LARGEST_FROM_HEAP)
        libc.mallopt(TRIM_THRESHOLD, KEPT_BYTES)
