"""Continuous batching over a block pool: who runs in the next step, and what the step changed.

Events in (add, reserve, start, freeze, resume, pin, unpin, abort), a Batch out; no I/O, no clock. A
second batch may be scheduled while the first is under way: its decodes continue with tokens not
known yet, and who turns out to have ended has computed one step in vain. Pages are given back when
no batch that writes them is under way, after update() or fail() for each, and nobody reads them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from workers.core.batch import Batch, Choice, Chunk, SequenceUpdate, StepOutput
from workers.core.block_pools import BlockPools
from workers.core.errors import KvasirError
from workers.core.request import (
    TRANSITIONS,
    FinishReason,
    SampledToken,
    Sequence,
    SequenceStatus,
)
from workers.core.sequence_pages import SequencePages

S = SequenceStatus
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
        self.preemptions = 0
        self._pages = SequencePages(pool)
        self._finish = finish
        self._under_way = 0  # batches
        self._leaving: set[Sequence] = set()  # finished, their pages still in use

    @property
    def query_tokens(self) -> int:
        """That were looked up in the prefix cache."""
        return self._pages.query_tokens

    @property
    def hit_tokens(self) -> int:
        return self._pages.hit_tokens

    # -- events ------------------------------------------------------------------------------

    def add(self, seq: Sequence) -> None:
        self.waiting.append(seq)
        self._pages.expect(seq)

    def reserve(self, seq: Sequence) -> bool:
        """Pin the cached prefix and allocate pages for all of `seq`'s tokens, those to come
        included, in one step; False when there is no room now. One block a running sequence is left
        for their growth."""
        assert seq.status is S.WAITING and seq not in self.waiting
        # Preempted ones go first. Prompts that wait because tickets pin too much do not: on one
        # worker of both roles it is a reservation that frees those pins.
        if self._crowd >= self.max_seqs or any(not other.hold for other in self.waiting):
            return False
        if not self._pages.allocate(seq, beside=(*self.running, *self.reserved)):
            return False
        self._move(seq, S.RESERVED)
        self.reserved.add(seq)
        return True

    def extend(self, seq: Sequence, num_blocks: int) -> bool:
        """Pages up to `num_blocks` for a reserved sequence that grows where its KV comes from;
        False when there are none now."""
        assert seq.status is S.RESERVED, seq
        return self._pages.extend(seq, num_blocks)

    def start(self, seq: Sequence, tokens: Iterable[int] = ()) -> None:
        """All KV of a reserved sequence but its last token's is in its pages, checked; `tokens`
        came with it."""
        self.reserved.remove(seq)
        seq.tokens.extend(tokens)
        seq.to_come = 0
        seq.begin_at(len(seq.tokens) - 1)
        self._pages.commit(seq)
        self._move(seq, S.RUNNING)
        self.running.append(seq)

    def freeze(self, seq: Sequence) -> None:
        """A running sequence stands still, HELD, as soon as no step computes it: now, or with its
        next token."""
        assert seq.status is S.RUNNING, seq
        seq.hold = seq.frozen = True
        if not seq.steps_under_way and seq.num_unlaunched == 1:
            self._hold(seq)

    def resume(self, seq: Sequence) -> None:
        """A sequence that was to be handed on runs here again."""
        seq.hold = seq.frozen = False
        if seq.status is S.HELD:
            self.held.remove(seq)
            self._move(seq, S.RUNNING)
            self.running.append(seq)

    def pin(self, seq: Sequence) -> None:
        """Somebody else reads its pages: they stay, whatever happens to it."""
        seq.pinned = True

    def unpin(self, seq: Sequence) -> None:
        seq.pinned = False
        self._leave(seq)

    def abort(self, seq: Sequence) -> None:
        """End it in whatever state it is; idempotent. Its pages go when nobody uses them."""
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
            self._pages.settle(seq)
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
            choice = next(choices) if chunk.sample else None
            if chunk.sequence.status is not S.FINISHED:
                updates.append(self._apply(chunk, choice))
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
            assert seq.status is S.FINISHED and (seq.steps_under_way or seq.pinned), seq
        for seq in everyone:
            assert len(seq.blocks) * self.pool.block_size >= seq.num_launched, seq
        self.pool.check_integrity(seq.blocks for seq in everyone)

    # -- inside ------------------------------------------------------------------------------

    @property
    def _crowd(self) -> int:
        """Who runs, or may at any moment."""
        return len(self.running) + len(self.reserved) + sum(seq.frozen for seq in self.held)

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
            self._leave(seq)

    def _schedule_decodes(self) -> list[Chunk] | None:
        """A chunk for each running sequence that needs one token; who finds no page preempts the
        youngest, at last itself, but nobody whose pages others read: who is one of those waits.
        None: that has to wait for the batch under way."""
        chunks: dict[Sequence, Chunk] = {}
        for seq in list(self.running):
            if seq.status is not S.RUNNING or seq.num_unlaunched != 1 or _over_with_awaited(seq):
                continue
            while not self._pages.grow(seq):
                if self._under_way:
                    return None
                victim = self._victim(seq.shard)
                if victim is None:
                    break
                self._preempt(victim)
                chunks.pop(victim, None)
                if victim is seq:
                    break
            else:
                chunks[seq] = Chunk(seq, seq.num_launched, 1, sample=True)
        return list(chunks.values())

    def _victim(self, shard: int) -> Sequence | None:
        able = (s for s in reversed(self.running) if s.shard == shard and not s.pinned)
        return next(able, None)

    def _chunk(self, seq: Sequence, budget: int) -> Chunk:
        count = min(seq.num_unlaunched, budget)
        start = seq.num_launched
        return Chunk(seq, start, count, sample=start + count == len(seq.tokens))

    def _admit(self, seq: Sequence) -> bool:
        if self._crowd >= self.max_seqs:
            return False
        if seq.hold and self._pins_too_much(seq):
            return False
        if not self._pages.allocate(seq):
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

    def _apply(self, chunk: Chunk, choice: Choice | None) -> SequenceUpdate:
        seq = chunk.sequence
        if isinstance(choice, KvasirError):
            self._retire(seq)  # uncommitted: pages behind bad logits serve nobody else
            return SequenceUpdate(seq, finished=True, error=choice)
        seq.num_computed = chunk.end
        self._pages.commit(seq)
        return SequenceUpdate(seq) if choice is None else self._append(seq, choice)

    def _append(self, seq: Sequence, token: SampledToken) -> SequenceUpdate:
        seq.tokens.append(token.id)
        seq.finish_reason = self._finish(seq, token.id)
        if seq.finish_reason is not None:
            self._retire(seq)
        elif seq.hold and not seq.steps_under_way:
            self._hold(seq)
        return SequenceUpdate(seq, (token,), finished=seq.finish_reason is not None)

    def _hold(self, seq: Sequence) -> None:
        self.running.remove(seq)
        self._move(seq, S.HELD)
        self.held.add(seq)

    def _preempt(self, seq: Sequence) -> None:
        self.running.remove(seq)
        self._pages.give_back(seq)
        self.preemptions += 1
        self._move(seq, S.WAITING)
        self.waiting.appendleft(seq)
        self._pages.expect(seq)

    def _retire(self, seq: Sequence) -> None:
        match seq.status:
            case S.WAITING:
                if seq in self.waiting:
                    self.waiting.remove(seq)
                    self._pages.settle(seq)
            case S.RUNNING:
                self.running.remove(seq)
            case S.RESERVED:
                self.reserved.remove(seq)
            case S.HELD:
                self.held.remove(seq)
        self._move(seq, S.FINISHED)
        self._leaving.add(seq)
        self._leave(seq)

    def _leave(self, seq: Sequence) -> None:
        """The pages of a finished sequence go as soon as no step and no fetch uses them."""
        if seq in self._leaving and not seq.steps_under_way and not seq.pinned:
            self._leaving.remove(seq)
            self._pages.give_back(seq)

    def _move(self, seq: Sequence, to: SequenceStatus) -> None:
        assert (seq.status, to) in TRANSITIONS, f"{seq} cannot become {to}: {seq.story}"
        seq.story.append(f"{seq.status} -> {to}")
        seq.status = to


def _over_with_awaited(seq: Sequence) -> bool:
    """Whether the token under way is its last here, whichever it is."""
    return seq.num_awaited > 0 and (
        seq.hold or len(seq.tokens) + seq.num_awaited >= seq.most_tokens
    )
