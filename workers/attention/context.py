"""What attention must know of one step. Built once from a Batch, passed as an argument."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class ForwardContext:
    """T tokens of n chunks, packed one after another; chunk i is rows starts[i]..starts[i + 1].
    Chunks of one token come first, by length, so that neighbours can attend together.

    The tuples are for planning on the host; the tensors lie on the model's device.
    """

    token_ids: Tensor  # int64 [T]
    positions: Tensor  # int64 [T] index of the token in its sequence
    slots: Tensor  # int64 [T] block * block_size + offset: where the token's KV goes
    sample_rows: Tensor  # int64, rows whose logits are wanted, in the order of the batch
    block_tables: Tensor  # int32 [n, most blocks of a chunk], rows padded with their own first one
    starts: tuple[int, ...]  # n + 1 offsets into T
    lengths: tuple[int, ...]  # n: tokens of each sequence once this step is done
    starts_tensor: Tensor  # int32 [n + 1]
    lengths_tensor: Tensor  # int32 [n]

    def queries(self, chunk: int) -> int:
        """Tokens that this step computes of a chunk."""
        return self.starts[chunk + 1] - self.starts[chunk]
