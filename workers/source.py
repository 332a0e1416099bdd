"""What a ticket's fetch sends: the blocks of a sequence of our engine, in order, as they fill.

A block is complete when no step writes it any more: the full ones of what is computed, and the last
one, perhaps partly filled, when the sequence stands still.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence as Blocks

from workers.core.errors import TicketError
from workers.core.request import Sequence, SequenceStatus
from workers.engine import Engine
from workers.wire import worker_pb2 as worker

ROUNDS = 4  # each sends what came while the one before was under way


class SequenceSource:
    """Of one fetch. A prompt under way is sent block range by block range. A sequence that decodes
    is frozen when all of its full blocks have been sent, so that the rest of it can follow; or
    after a few rounds, for it may fill blocks as fast as they travel."""

    def __init__(self, engine: Engine, seq: Sequence, stopping: asyncio.Event) -> None:
        """`stopping`: the fetch's; from then on the sequence is not its to freeze."""
        self.live = not seq.hold
        self._engine = engine
        self._stopping = stopping
        self._seq = seq
        self._rounds = 0

    async def blocks(self, first: int) -> Blocks[int]:
        """Pages of the complete blocks from `first` on, as soon as there is one; none at the end.
        Raises TicketError when the sequence has ended."""
        seq = self._seq
        while True:
            if seq.status is SequenceStatus.FINISHED:
                raise TicketError(f"{seq.id} ended where it was computed")
            if self._stopping.is_set():
                raise TicketError(f"{seq.id} is no longer fetched")
            if seq.status is SequenceStatus.HELD:
                return seq.blocks[first : self._engine.pool.blocks_for(seq.num_computed)]
            full = seq.num_computed // self._engine.block_size
            if first < full and (seq.hold or self._rounds < ROUNDS):
                self._rounds += 1
                return seq.blocks[first:full]
            if seq.status is SequenceStatus.RUNNING and not seq.hold:
                self._engine.freeze(seq)
            else:
                await self._engine.changed(seq)

    def complete(self, known_tokens: int) -> worker.Complete | None:
        """What there is in all, once it stands still. Raises TicketError for tokens that the
        sequence never had."""
        seq = self._seq
        if seq.status is not SequenceStatus.HELD:
            return None
        if not 0 < known_tokens <= len(seq.tokens):
            raise TicketError(
                f"{seq.id} has {len(seq.tokens)} tokens, the receiver speaks of {known_tokens}"
            )
        return worker.Complete(num_tokens=seq.num_computed, token_ids=seq.tokens[known_tokens:])
