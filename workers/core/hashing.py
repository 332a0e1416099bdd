"""Block identity: one chain of BLAKE2b-128, used by engine, router, Redis and transfer.

h0 = H(namespace), hi = H(h(i-1) || int32le tokens). Only full blocks have an id. Test vectors stand
in proto/kvasir/v1/block_id_vectors.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

try:
    from workers.core._chain import chain
except ImportError:  # nobody compiled chain.c
    from workers.core.plain_chain import chain

ID_BYTES = 16
BlockId = bytes


def namespace(kv_abi: str, *, lora: str = "", cache_salt: str = "") -> bytes:
    """Canonical bytes of what must be equal before two prefixes may be one.

    Each field is a 4-byte little-endian length and its UTF-8 bytes, so no two triples collide.
    """
    out = bytearray()
    for field in (kv_abi, lora, cache_salt):
        raw = field.encode()
        out += len(raw).to_bytes(4, "little") + raw
    return bytes(out)


class BlockHasher:
    """The ids of one token sequence, extended as it grows."""

    def __init__(self, space: bytes, block_size: int) -> None:
        self.block_size = block_size
        self.ids: list[BlockId] = []
        self._last = blake2b(space, digest_size=ID_BYTES).digest()

    def extend(self, tokens: Sequence[int]) -> None:
        """Hash the full blocks of `tokens` (the whole sequence so far) not hashed yet."""
        size = self.block_size
        first, end = len(self.ids) * size, len(tokens) // size * size
        if first >= end:
            return
        self.ids += chain(self._last, tokens, first, end, size)
        self._last = self.ids[-1]


def block_ids(tokens: Sequence[int], space: bytes, block_size: int) -> list[BlockId]:
    """Ids of the full blocks of `tokens`: len(tokens) // block_size of them."""
    hasher = BlockHasher(space, block_size)
    hasher.extend(tokens)
    return hasher.ids
