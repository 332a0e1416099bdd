"""Many short arrays in one buffer: one copy to the device for all that a step needs there."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Span(NamedTuple):
    """`size` values from byte `begin` on."""

    dtype: torch.dtype
    begin: int
    size: int

    def of(self, data: Tensor) -> Tensor:
        """The values, [size], as a view. data: the buffer, uint8, on any device."""
        end = self.begin + self.size * self.dtype.itemsize
        return data[self.begin : end].view(self.dtype)


class Packer:
    def __init__(self) -> None:
        self._bytes = bytearray()

    def ints(self, values: Iterable[int]) -> Span:
        """As int64."""
        return self._add(torch.int64, array("q", values))

    def floats(self, values: Iterable[float]) -> Span:
        """As float32."""
        return self._add(torch.float32, array("f", values))

    def pack(self, device: torch.device) -> Tensor:
        """Everything added, uint8, in memory of the host from where `device` can fetch it."""
        if not self._bytes:
            return torch.empty(0, dtype=torch.uint8)
        host = torch.frombuffer(self._bytes, dtype=torch.uint8)
        return host.pin_memory() if device.type == "cuda" else host

    def _add(self, dtype: torch.dtype, values: array[int] | array[float]) -> Span:
        span = Span(dtype, len(self._bytes), len(values))
        self._bytes += values.tobytes()
        self._bytes += bytes(-len(self._bytes) % 8)  # the next may be of int64
        return span
