"""Memory that a step streams through, in pages of 2 MiB where the kernel gives them: with 4 KiB
pages a decode's attention waits for address translation half of its time (measured in a VM)."""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

HUGE = 2 << 20
SLAB = 64 << 20
LINE = 64  # bytes; what is taken begins on a cache line


def huge_zeros(num_bytes: int) -> Tensor:
    """uint8 [num_bytes] of zeros on the CPU, taken from the system as it is written."""
    # Private: shared memory, mmap's default, has small pages whatever is advised.
    memory = mmap.mmap(-1, num_bytes + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    start = -whole.data_ptr() % HUGE
    return whole[start : start + num_bytes]


class Slabs:
    """Hands out pieces of huge pages, many small tensors to one; they are given back together."""

    def __init__(self) -> None:
        self._rest = torch.empty(0, dtype=torch.uint8)

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor that nobody else has."""
        num_bytes = torch.Size(shape).numel() * dtype.itemsize
        taken = -(-num_bytes // LINE) * LINE
        if self._rest.numel() < taken:
            self._rest = huge_zeros(max(taken, SLAB))
        piece, self._rest = self._rest[:num_bytes], self._rest[taken:]
        return piece.view(dtype).view(shape)
