"""Continuous batching over a block pool: who runs in the next step, and what the step changed.

Events in (add, reserve, start, abort, release), one Batch out at a time; no I/O, no clock.
Pages of a batch in flight are never given back before update() or fail() for that batch.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable

from workers.core.batch import Batch, Chunk, SequenceUpdate, StepOutput
from workers.core.block_pool import BlockPool
from workers.core.errors import KvasirError
from workers.core.request import FinishReason, SampledToken, Sequence, SequenceStatus

S = SequenceStatus
TRANSITIONS: frozenset[tuple[SequenceStatus, SequenceStatus]] = frozenset(
    {
        (S.WAITING, S.RUNNING),  # admitted: prefix matched, pages for all its tokens allocated
        (S.WAITING, S.RESERVED),  # decode side: pages allocated, KV still to arrive
        (S.WAITING, S.FINISHED),  # aborted in the queue
        (S.RESERVED, S.RUNNING),  # KV arrived
        (S.RESERVED, S.FINISHED),  # fetch failed or cancelled
        (S.RUNNING, S.WAITING),  # preempted: pages given back, computed again later
        (S.RUNNING, S.HELD),  # prefill done; a ticket pins the pages
        (S.RUNNING, S.FINISHED),  # stop, length, abort
        (S.HELD, S.FINISHED),  # ticket redeemed, released or expired
    }
)

FinishCheck = Callable[[Sequence, int], FinishReason | None]


class Scheduler:
    """`finish(sequence, token)` is asked after each sampled token has been appended."""

    def __init__(
        self, pool: BlockPool, *, step_tokens: int, max_seqs: int, finish: FinishCheck
    ) -> None:
        self.pool = pool
        self.step_tokens = step_tokens
        self.max_seqs = max_seqs
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.reserved: set[Sequence] = set()
        self.held: set[Sequence] = set()
        self.query_tokens = 0
        self.hit_tokens = 0
        self.preemptions = 0
        self._finish = finish
        self._in_flight: set[Sequence] = set()
        self._aborted: set[Sequence] = set()

    # -- events ------------------------------------------------------------------------------

    def add(self, seq: Sequence) -> None:
        self.waiting.append(seq)

    def reserve(self, seq: Sequence) -> bool:
        """Pin the cached prefix and allocate pages for all of `seq`'s tokens in one step; False
        when there is no room now. One block a running sequence is left for their growth."""
        assert seq.status is S.WAITING and seq not in self.waiting
        crowd = len(self.running) + len(self.reserved)
        # Preempted ones go first. Prompts that wait because tickets pin too much do not: on one
        # worker of both roles it is a reservation that frees those pins.
        if crowd >= self.max_seqs or any(not other.hold for other in self.waiting):
            return False
        if not self._allocate(seq, spare=crowd):
            return False
        self._move(seq, S.RESERVED)
        self.reserved.add(seq)
        return True

    def start(self, seq: Sequence) -> None:
        """All KV of a reserved sequence but its last token's is in its pages, checked."""
        self.reserved.remove(seq)
        seq.num_computed = len(seq.tokens) - 1
        self._commit(seq)
        self._move(seq, S.RUNNING)
        self.running.append(seq)

    def abort(self, seq: Sequence) -> None:
        """End it in whatever state it is; idempotent. Pages in flight go when the step is over."""
        if seq.status is S.FINISHED:
            return
        if seq in self._in_flight:
            self._aborted.add(seq)
        else:
            self._retire(seq)

    # -- one step ----------------------------------------------------------------------------

    def schedule(self) -> Batch | None:
        """The next batch: every decode, then prefill chunks, then newly admitted ones, within
        `step_tokens`. None when nothing can run."""
        assert not self._in_flight, "the last batch has not been updated"
        decodes = self._schedule_decodes()
        budget = self.step_tokens - len(decodes)
        prefills: list[Chunk] = []
        for seq in self.running:
            if budget > 0 and seq.num_uncomputed > 1:
                prefills.append(self._chunk(seq, budget))
                budget -= prefills[-1].num_tokens
        while budget > 0 and self.waiting and self._admit(self.waiting[0]):
            seq = self.waiting.popleft()
            chunk = self._chunk(seq, budget)
            (decodes if chunk.is_decode else prefills).append(chunk)
            budget -= chunk.num_tokens
        chunks = (*decodes, *prefills)
        self._in_flight = {chunk.sequence for chunk in chunks}
        return Batch(chunks) if chunks else None

    def update(self, batch: Batch, output: StepOutput) -> list[SequenceUpdate]:
        """Apply what the step computed; one update for each sequence that is still wanted. One
        whose choice is an error ends, alone."""
        self._in_flight.clear()
        choices = iter(output.tokens)
        updates = []
        for chunk in batch.chunks:
            seq = chunk.sequence
            choice = next(choices) if chunk.sample else None
            if seq in self._aborted:
                self._aborted.remove(seq)
                self._retire(seq)
                continue
            if isinstance(choice, KvasirError):
                self._retire(seq)  # uncommitted: pages behind bad logits serve nobody else
                updates.append(SequenceUpdate(seq, finished=True, error=choice))
                continue
            seq.num_computed = chunk.end
            self._commit(seq)
            updates.append(SequenceUpdate(seq) if choice is None else self._append(seq, choice))
        return updates

    def fail(self, batch: Batch) -> list[Sequence]:
        """The step raised: end every sequence of it. Returns them."""
        self._in_flight.clear()
        self._aborted.clear()
        failed = [chunk.sequence for chunk in batch.chunks]
        for seq in failed:
            self._retire(seq)
        return failed

    def check_integrity(self) -> None:
        """Raise AssertionError unless every page is explained by exactly the sequences here."""
        everyone = [*self.waiting, *self.running, *self.reserved, *self.held]
        assert len(set(everyone)) == len(everyone), "a sequence is in two queues"
        for seq in self.waiting:
            assert seq.status is S.WAITING and not seq.blocks, seq
        for seq in self.running:
            assert seq.status is S.RUNNING and seq.num_uncomputed >= 1, seq
        for seq in everyone:
            assert len(seq.blocks) * self.pool.block_size >= seq.num_computed, seq
        self.pool.check_integrity(seq.blocks for seq in everyone)

    # -- inside ------------------------------------------------------------------------------

    def _schedule_decodes(self) -> list[Chunk]:
        """A chunk for each running sequence that needs one token; who finds no page preempts the
        youngest, at last itself."""
        chunks: dict[Sequence, Chunk] = {}
        for seq in list(self.running):
            if seq.status is not S.RUNNING or seq.num_uncomputed != 1:
                continue
            while not self._grow(seq):
                victim = self.running[-1]
                self._preempt(victim)
                chunks.pop(victim, None)
                if victim is seq:
                    break
            if seq.status is S.RUNNING:
                chunks[seq] = Chunk(seq, seq.num_computed, 1, sample=True)
        return list(chunks.values())

    def _grow(self, seq: Sequence) -> bool:
        if len(seq.blocks) * self.pool.block_size > seq.num_computed:
            return True
        if self.pool.num_available == 0:
            return False
        seq.blocks.extend(self.pool.allocate(1))
        return True

    def _chunk(self, seq: Sequence, budget: int) -> Chunk:
        count = min(seq.num_uncomputed, budget)
        start = seq.num_computed
        return Chunk(seq, start, count, sample=start + count == len(seq.tokens))

    def _admit(self, seq: Sequence) -> bool:
        if len(self.running) + len(self.reserved) >= self.max_seqs:
            return False
        if seq.hold and self._pins_too_much(seq):
            return False
        if not self._allocate(seq, spare=0):
            return False
        self._move(seq, S.RUNNING)
        self.running.append(seq)
        return True

    def _pins_too_much(self, seq: Sequence) -> bool:
        """Pages for tickets are at most half the pool, unless one prompt alone is larger."""
        holding = [*self.held, *(other for other in self.running if other.hold)]
        pinned = sum(len(other.blocks) for other in holding)
        wanted = self.pool.blocks_for(len(seq.tokens))
        return bool(holding) and pinned + wanted > self.pool.num_blocks // 2

    def _allocate(self, seq: Sequence, *, spare: int) -> bool:
        """Match the prefix cache, then take pages for all tokens. The block of the last token is
        never matched: that token must be computed, and not into a page that others read."""
        seq.hasher.extend(seq.tokens)
        matchable = (len(seq.tokens) - 1) // self.pool.block_size
        matched = self.pool.match(seq.hasher.ids[:matchable])
        missing = self.pool.blocks_for(len(seq.tokens)) - len(matched)
        if not self.pool.fits(matched, missing + spare):
            return False
        self.pool.acquire(matched)
        seq.blocks = array("i", matched + self.pool.allocate(missing))
        seq.num_cached = seq.num_computed = len(matched) * self.pool.block_size
        seq.num_committed = len(matched)
        self.query_tokens += len(seq.tokens)
        self.hit_tokens += seq.num_cached
        return True

    def _commit(self, seq: Sequence) -> None:
        full = seq.num_computed // self.pool.block_size
        if full <= seq.num_committed:
            return  # most decode steps: no block has become full
        seq.hasher.extend(seq.tokens)
        for index in range(seq.num_committed, full):
            self.pool.commit(seq.blocks[index], seq.hasher.ids[index])
        seq.num_committed = full

    def _append(self, seq: Sequence, token: SampledToken) -> SequenceUpdate:
        seq.tokens.append(token.id)
        seq.finish_reason = self._finish(seq, token.id)
        if seq.finish_reason is not None:
            self._retire(seq)
        elif seq.hold:
            self.running.remove(seq)
            self._move(seq, S.HELD)
            self.held.add(seq)
        return SequenceUpdate(seq, (token,), finished=seq.finish_reason is not None)

    def _preempt(self, seq: Sequence) -> None:
        self.running.remove(seq)
        self._give_back(seq)
        self.preemptions += 1
        self._move(seq, S.WAITING)
        self.waiting.appendleft(seq)

    def _retire(self, seq: Sequence) -> None:
        match seq.status:
            case S.WAITING:
                if seq in self.waiting:
                    self.waiting.remove(seq)
            case S.RUNNING:
                self.running.remove(seq)
            case S.RESERVED:
                self.reserved.remove(seq)
            case S.HELD:
                self.held.remove(seq)
        self._give_back(seq)
        self._move(seq, S.FINISHED)

    def _give_back(self, seq: Sequence) -> None:
        self.pool.release(seq.blocks)
        seq.blocks = array("i")
        seq.num_computed = seq.num_committed = 0

    def _move(self, seq: Sequence, to: SequenceStatus) -> None:
        assert (seq.status, to) in TRANSITIONS, f"{seq} cannot become {to}: {seq.story}"
        seq.story.append(f"{seq.status} -> {to}")
        seq.status = to
