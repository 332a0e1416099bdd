"""Which rank of a sender gives which KV heads to which rank of a receiver, however many."""

from __future__ import annotations

from dataclasses import dataclass

from workers.core.errors import TransferError
from workers.core.span import Span, share

MOST_RANKS = 1024  # a peer says how many it has


@dataclass(frozen=True, slots=True)
class Lane:
    """What rank `source` of the sender's shard gives to rank `target` of the receiver's: these of
    all KV heads. Latent attention has one head."""

    source: int
    target: int
    heads: Span

    def bytes_of(self, block_bytes: int) -> int:
        """Of one block, where a block with all heads has `block_bytes`."""
        return block_bytes // self.heads.total * self.heads.size


def lanes(kv_heads: int, sender_ranks: int, receiver_ranks: int) -> tuple[Lane, ...]:
    """In the order of (target, source), alike on both sides. Each target gets each of its heads
    once. Of sources with the same heads (more ranks than heads) one gives them to one target, and
    targets that want the same take turns over them. Raises TransferError where ranks and heads do
    not divide each other."""
    for ranks in (sender_ranks, receiver_ranks):
        if not 0 < ranks <= MOST_RANKS or (kv_heads % ranks and ranks % kv_heads):
            raise TransferError(f"{kv_heads} KV heads cannot lie on {ranks} ranks")
    copies = max(1, sender_ranks // kv_heads)  # neighbours, as share() has it
    found = []
    for target in range(receiver_ranks):
        wanted = share(kv_heads, target, receiver_ranks)
        for first in range(0, sender_ranks, copies):
            held = share(kv_heads, first, sender_ranks)
            common = Span(kv_heads, max(wanted.first, held.first), min(wanted.end, held.end))
            if common.size > 0:
                found.append(Lane(first + target % copies, target, common))
    return tuple(found)
