"""Continuous batching over a block pool: who runs in the next step, and what the step changed.

Events in (add, reserve, start, abort, release), a Batch out; no I/O, no clock. A second batch may
be scheduled while the first is under way: its decodes continue with tokens not known yet, and who
turns out to have ended has computed one step in vain. Pages are given back when no batch that
writes them is under way: after update() or fail() for each.
"""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Callable

from workers.core.batch import Batch, Chunk, SequenceUpdate, StepOutput
from workers.core.block_pool import BlockPool
from workers.core.block_pools import BlockPools
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
        self, pool: BlockPools, *, step_tokens: int, max_seqs: int, finish: FinishCheck
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
        self._under_way = 0  # batches
        self._leaving: set[Sequence] = set()  # finished, their pages still written

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
        if not self._allocate(seq, beside=(*self.running, *self.reserved)):
            return False
        self._move(seq, S.RESERVED)
        self.reserved.add(seq)
        return True

    def start(self, seq: Sequence) -> None:
        """All KV of a reserved sequence but its last token's is in its pages, checked."""
        self.reserved.remove(seq)
        seq.begin_at(len(seq.tokens) - 1)
        self._commit(seq)
        self._move(seq, S.RUNNING)
        self.running.append(seq)

    def abort(self, seq: Sequence) -> None:
        """End it in whatever state it is; idempotent. Its pages go when no step writes them."""
        if seq.status is not S.FINISHED:
            self._retire(seq)

    # -- one step ----------------------------------------------------------------------------

    def schedule(self) -> Batch | None:
        """The next batch: every decode, then prefill chunks, then newly admitted ones, within
        `step_tokens`. None when nothing can run, or not before the batch under way is over."""
        assert self._under_way < 2, "two batches are under way"
        if self._under_way and not self._can_run_ahead():
            return None
        decodes = self._schedule_decodes()
        if decodes is None:
            return None
        budget = self.step_tokens - len(decodes)
        prefills: list[Chunk] = []
        for seq in self.running:
            if budget > 0 and seq.num_unlaunched > 1:
                prefills.append(self._chunk(seq, budget))
                budget -= prefills[-1].num_tokens
        while budget > 0 and self.waiting and self._admit(self.waiting[0]):
            seq = self.waiting.popleft()
            chunk = self._chunk(seq, budget)
            (decodes if chunk.is_decode else prefills).append(chunk)
            budget -= chunk.num_tokens
        chunks = self._by_shard([*decodes, *prefills])
        return self._launched(Batch(chunks)) if chunks else None

    def update(self, batch: Batch, output: StepOutput) -> list[SequenceUpdate]:
        """Apply what the oldest batch under way computed; one update for each sequence that is
        still wanted. One whose choice is an error ends, alone."""
        self._landed(batch)
        choices = iter(output.tokens)
        updates = []
        for chunk in batch.chunks:
            seq = chunk.sequence
            choice = next(choices) if chunk.sample else None
            if seq.status is S.FINISHED:
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
        """The step raised: end every sequence of it. Returns those that had not ended before."""
        self._landed(batch)
        failed = [c.sequence for c in batch.chunks if c.sequence.status is not S.FINISHED]
        for seq in failed:
            self._retire(seq)
        return failed

    def check_integrity(self) -> None:
        """Raise AssertionError unless every page is explained by exactly the sequences here."""
        everyone = [*self.waiting, *self.running, *self.reserved, *self.held, *self._leaving]
        assert len(set(everyone)) == len(everyone), "a sequence is in two queues"
        for seq in self.waiting:
            assert seq.status is S.WAITING and not seq.blocks, seq
        for seq in self.running:
            assert seq.status is S.RUNNING and seq.num_computed < len(seq.tokens), seq
        for seq in self._leaving:
            assert seq.status is S.FINISHED and seq.steps_under_way, seq
        for seq in everyone:
            assert len(seq.blocks) * self.pool.block_size >= seq.num_launched, seq
        self.pool.check_integrity(seq.blocks for seq in everyone)

    # -- inside ------------------------------------------------------------------------------

    def _can_run_ahead(self) -> bool:
        """Whether a step may begin without the tokens that the one under way samples."""
        return not any(
            seq.num_awaited and seq.params.penalised and not _over_with_awaited(seq)
            for seq in self.running
        )

    def _by_shard(self, chunks: list[Chunk]) -> tuple[Chunk, ...]:
        if len(self.pool.shards) > 1:
            chunks.sort(key=lambda chunk: chunk.sequence.shard)
        return tuple(chunks)

    def _launched(self, batch: Batch) -> Batch:
        self._under_way += 1
        for chunk in batch.chunks:
            seq = chunk.sequence
            seq.num_launched = chunk.end
            seq.num_awaited += chunk.sample
            seq.steps_under_way += 1
        return batch

    def _landed(self, batch: Batch) -> None:
        self._under_way -= 1
        for chunk in batch.chunks:
            seq = chunk.sequence
            seq.num_awaited -= chunk.sample
            seq.steps_under_way -= 1
            if not seq.steps_under_way and seq in self._leaving:
                self._leaving.remove(seq)
                self._give_back(seq)

    def _schedule_decodes(self) -> list[Chunk] | None:
        """A chunk for each running sequence that needs one token; who finds no page preempts the
        youngest, at last itself. None: that has to wait for the batch under way."""
        chunks: dict[Sequence, Chunk] = {}
        for seq in list(self.running):
            if seq.status is not S.RUNNING or seq.num_unlaunched != 1 or _over_with_awaited(seq):
                continue
            while not self._grow(seq):
                if self._under_way:
                    return None
                victim = next(s for s in reversed(self.running) if s.shard == seq.shard)
                self._preempt(victim)
                chunks.pop(victim, None)
                if victim is seq:
                    break
            if seq.status is S.RUNNING:
                chunks[seq] = Chunk(seq, seq.num_launched, 1, sample=True)
        return list(chunks.values())

    def _grow(self, seq: Sequence) -> bool:
        if len(seq.blocks) * self.pool.block_size > seq.num_launched:
            return True
        pool = self._pool_of(seq)
        if pool.num_available == 0:
            return False
        seq.blocks.extend(pool.allocate(1))
        return True

    def _chunk(self, seq: Sequence, budget: int) -> Chunk:
        count = min(seq.num_unlaunched, budget)
        start = seq.num_launched
        return Chunk(seq, start, count, sample=start + count == len(seq.tokens))

    def _admit(self, seq: Sequence) -> bool:
        if len(self.running) + len(self.reserved) >= self.max_seqs:
            return False
        if seq.hold and self._pins_too_much(seq):
            return False
        if not self._allocate(seq):
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

    def _allocate(self, seq: Sequence, *, beside: tuple[Sequence, ...] = ()) -> bool:
        """Match the prefix cache, then take pages for all tokens, leaving one to each sequence
        `beside` it. The block of the last token is never matched: that token must be computed, and
        not into a page that others read."""
        seq.hasher.extend(seq.tokens)
        ids = seq.hasher.ids[: (len(seq.tokens) - 1) // self.pool.block_size]
        total = self.pool.blocks_for(len(seq.tokens))
        crowds = Counter(other.shard for other in beside)
        fitting = []
        for shard, pool in enumerate(self.pool.shards):
            matched = pool.match(ids)
            if pool.fits(matched, total - len(matched) + crowds[shard]):
                # A block that others hold and one that is computed again are alike: where most is
                # cached, unless that is where everybody is.
                fitting.append((pool.num_referenced - len(matched), shard, matched))
        if not fitting:
            return False
        _, seq.shard, matched = min(fitting)
        pool = self._pool_of(seq)
        pool.acquire(matched)
        seq.blocks = array("i", matched + pool.allocate(total - len(matched)))
        seq.num_committed = len(matched)
        seq.num_cached = len(matched) * self.pool.block_size
        seq.begin_at(seq.num_cached)
        self.query_tokens += len(seq.tokens)
        self.hit_tokens += seq.num_cached
        return True

    def _pool_of(self, seq: Sequence) -> BlockPool:
        return self.pool.shards[seq.shard]

    def _commit(self, seq: Sequence) -> None:
        full = seq.num_computed // self.pool.block_size
        if full <= seq.num_committed:
            return  # most decode steps: no block has become full
        seq.hasher.extend(seq.tokens)
        for index in range(seq.num_committed, full):
            self._pool_of(seq).commit(seq.blocks[index], seq.hasher.ids[index])
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
        if seq.steps_under_way:
            self._leaving.add(seq)
        else:
            self._give_back(seq)
        self._move(seq, S.FINISHED)

    def _give_back(self, seq: Sequence) -> None:
        self._pool_of(seq).release(seq.blocks)
        seq.blocks = array("i")
        seq.begin_at(0)
        seq.num_committed = 0

    def _move(self, seq: Sequence, to: SequenceStatus) -> None:
        assert (seq.status, to) in TRANSITIONS, f"{seq} cannot become {to}: {seq.story}"
        seq.story.append(f"{seq.status} -> {to}")
        seq.status = to


def _over_with_awaited(seq: Sequence) -> bool:
    """Whether the token under way is its last here, whichever it is."""
    return seq.num_awaited > 0 and (
        seq.hold or len(seq.tokens) + seq.num_awaited >= seq.most_tokens
    )
