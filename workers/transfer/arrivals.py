"""What a fetch is waiting for, on the receiving side: bookkeeping without I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from workers.core.errors import CorruptKV, TransferError
from workers.wire import worker_pb2 as worker


@dataclass(slots=True)
class Counts:
    """Blocks of one worker, since its start."""

    mismatched: int = 0  # came with a wrong checksum
    refetched: int = 0  # were asked for again, for that or because a pair broke
    gave_up: int = 0  # were wrong twice


class Arrivals:
    """Each block is offered once, in order, and from then on missing until it has landed; whatever
    is lost or wrong is asked for again, and comes inline."""

    def __init__(self, ticket_id: str, first_block: int, block_size: int, counts: Counts) -> None:
        self.first_block = first_block
        self.complete: worker.Complete | None = None
        self.landed_blocks = 0
        self.refetched = 0
        self._ticket_id = ticket_id
        self._block_size = block_size
        self._counts = counts
        self._next = first_block
        self._missing: set[int] = set()
        self._asked: set[int] = set()  # again
        self._wrong: set[int] = set()  # once

    @property
    def begun(self) -> bool:
        return self._next > self.first_block

    @property
    def done(self) -> bool:
        """Everything that there is has landed, checked."""
        return self.complete is not None and self._next == self._total and not self._missing

    def completed(self, complete: worker.Complete) -> None:
        self.complete = complete
        self._check_total()

    def offered(self, first: int, count: int) -> None:
        """Raises TransferError unless these blocks are the next."""
        if first != self._next or count < 1:
            raise TransferError(f"{count} blocks from {first} on came where {self._next} was due")
        self._next += count
        self._missing.update(range(first, first + count))
        self._check_total()

    def came_inline(self, first: int, count: int) -> None:
        """Raises TransferError unless these blocks are the next, or were asked for again."""
        if first == self._next:
            self.offered(first, count)
        elif count < 1 or not self._asked.issuperset(range(first, first + count)):
            raise TransferError(f"{count} blocks from {first} on came, which nobody asked for")

    def landed(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self._missing.remove(block)
            self._asked.discard(block)
            self.landed_blocks += 1

    def lost(self, blocks: Collection[int]) -> None:
        """To be asked for again, since their pair broke."""
        self._asked.update(blocks)
        self.refetched += len(blocks)
        self._counts.refetched += len(blocks)

    def wrong(self, blocks: Collection[int]) -> None:
        """To be asked for again, since their checksums are wrong. CorruptKV the second time."""
        self._counts.mismatched += len(blocks)
        twice = self._wrong.intersection(blocks)
        if twice:
            self._counts.gave_up += len(twice)
            raise CorruptKV(
                f"ticket {self._ticket_id}: blocks {sorted(twice)} came with wrong checksums twice"
            )
        self._wrong.update(blocks)
        self.lost(blocks)

    @property
    def _total(self) -> int:
        assert self.complete is not None
        return -(-self.complete.num_tokens // self._block_size)

    def _check_total(self) -> None:
        if self.complete is not None and self._next > self._total:
            raise TransferError(
                f"{self._next} blocks came of {self.complete.num_tokens} tokens, which fill "
                f"{self._total}"
            )
