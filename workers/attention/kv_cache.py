"""The pages: one tensor, block-major, so that a block is one run of bytes for every transport."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.attention.copy_stream import CopyStream
from workers.kernels.huge_pages import huge_zeros

_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}  # by bytes


@dataclass(frozen=True, slots=True)
class KVShape:
    """Sizes of one block; `head_dim` and `kv_heads` are what this process holds. `sides`: keys and
    values, or 1 where a token's value is part of its key (latent attention)."""

    layers: int
    kv_heads: int
    head_dim: int
    block_size: int
    dtype: torch.dtype
    sides: int = 2

    @property
    def token_bytes(self) -> int:
        return self.layers * self.sides * self.kv_heads * self.head_dim * self.dtype.itemsize

    @property
    def block_bytes(self) -> int:
        return self.token_bytes * self.block_size


class KVCache:
    """PageStore over [num_blocks, layers, sides (key, value), block_size, kv_heads, head_dim].

    Attention addresses it by rows of flat views, since index_select and index_copy_ on whole rows
    are plain copies and can write into a kept buffer.
    """

    def __init__(self, shape: KVShape, num_blocks: int, device: torch.device) -> None:
        self.shape = shape
        self.num_blocks = num_blocks
        self.block_bytes = shape.block_bytes
        # Zeros, not empty: a last block travels whole, and must not carry what this process had
        # in that memory before.
        num_bytes = num_blocks * shape.block_bytes
        if device.type == "cpu":
            # Written now, so that the memory is ours: who starts next must see what is left.
            memory = huge_zeros(num_bytes).zero_()
        else:
            memory = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
        self.pages = memory.view(shape.dtype).view(
            *(num_blocks, shape.layers, shape.sides),
            *(shape.block_size, shape.kv_heads, shape.head_dim),
        )
        width = shape.kv_heads * shape.head_dim
        self._tokens = self.pages.view(-1, width)
        self._pages_of_a_layer = self.pages.view(-1, shape.block_size * width)
        # For copies as integers, the widest that no head shares with another: few are moved.
        head_bytes = shape.head_dim * shape.dtype.itemsize
        size = next(size for size in _INTEGERS if head_bytes % size == 0)
        self._head_words = head_bytes // size
        words = memory.view(_INTEGERS[size])
        self._words = words.view(num_blocks, -1, shape.kv_heads * self._head_words)
        self.beside = CopyStream(device)  # what copies of these pages are queued on

    @property
    def device(self) -> torch.device:
        return self.pages.device

    # What attention needs. A slot is block * block_size + offset.

    def token_rows(self, slots: Tensor) -> Tensor:
        """[T] rows that hold the keys of layer 0; `write` steps on from there."""
        shape = self.shape
        blocks = torch.div(slots, shape.block_size, rounding_mode="floor")
        layers = shape.layers * shape.sides * shape.block_size
        return blocks * layers + slots % shape.block_size

    def page_rows(self, blocks: Tensor) -> Tensor:
        """Rows that hold the keys of layer 0 in these blocks; `read` steps on from there."""
        return blocks * (self.shape.layers * self.shape.sides)

    def write(self, layer: int, token_rows: Tensor, *sides: Tensor) -> None:
        """sides: key and value, or the key alone; each [T, kv_heads, head_dim]."""
        for row, tensor in self._sides(layer, sides):
            rows = token_rows + row * self.shape.block_size
            self._tokens.index_copy_(0, rows, tensor.reshape(rows.numel(), -1))

    def read(self, layer: int, page_rows: Tensor, *sides: Tensor) -> None:
        """Copy the pages at `page_rows` [n] into keys and values, each n pages long."""
        for row, target in self._sides(layer, sides):
            rows = page_rows + row
            out = target.view(rows.numel(), -1)
            torch.index_select(self._pages_of_a_layer, 0, rows, out=out)

    def _sides(self, layer: int, sides: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
        """Each side with how many pages after layer 0's keys it stands in a block."""
        assert len(sides) == self.shape.sides, f"{len(sides)} sides of {self.shape.sides}"
        return enumerate(sides, layer * self.shape.sides)

    # PageStore. Staging is uint8 on the device of the pages, or on the CPU, then best pinned.

    def new_staging(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, device=self.device)

    def gather(self, blocks: Sequence[int], staging: Tensor, heads: slice | None = None) -> None:
        """Over when it returns, wherever staging lies; of `heads` alone where they are given, then
        with nothing between them. Raises Unavailable like CopyStream."""
        rows = self._rows_of(heads)
        with self.beside():
            index, out = self._index(blocks), self._typed(staging, len(blocks), rows)
            if staging.device == self.device:
                torch.index_select(rows, 0, index, out=out)
            else:
                out.copy_(rows.index_select(0, index), non_blocking=True)

    def scatter(self, staging: Tensor, blocks: Sequence[int], heads: slice | None = None) -> None:
        """Over when it returns, like gather."""
        rows = self._rows_of(heads)
        with self.beside():
            came = self._typed(staging, len(blocks), rows).to(self.device, non_blocking=True)
            if self.device.type != "cpu":
                rows.index_copy_(0, self._index(blocks), came)
                return
            # On a CPU index_copy_ moves word by word; this one call copies tensor by tensor.
            torch._foreach_copy_([rows[block] for block in blocks], came.unbind())

    def to_bytes(self, staging: Tensor, num_bytes: int) -> bytes:
        return staging[:num_bytes].cpu().numpy().tobytes()

    def from_bytes(self, data: bytes) -> Tensor:
        # A bytearray, since a tensor over read-only bytes is a warning and a trap.
        return torch.frombuffer(bytearray(data), dtype=torch.uint8).to(self.device)

    def _index(self, blocks: Sequence[int]) -> Tensor:
        return torch.tensor(blocks, dtype=torch.int64, device=self.device)

    def _rows_of(self, heads: slice | None) -> Tensor:
        """[num_blocks, layers * sides * block_size, words of these heads]."""
        if heads is None:
            return self._words
        width = self._head_words
        return self._words[:, :, heads.start * width : heads.stop * width]

    def _typed(self, staging: Tensor, num_blocks: int, rows: Tensor) -> Tensor:
        """The start of staging, as so many blocks of `rows`."""
        used = num_blocks * rows[0].numel() * rows.itemsize
        assert staging.numel() >= used, f"staging of {staging.numel()} bytes for {used}"
        return staging[:used].view(rows.dtype).view(num_blocks, *rows.shape[1:])
