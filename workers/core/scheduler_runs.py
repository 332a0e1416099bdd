"""Runs of equal decode steps, taken at once: what a simulator of many hours needs of a scheduler.

While nobody comes, ends or lacks a page, each step decodes the same sequences one token further.
advance() does so many of them at once and leaves everything as that many steps would have: tokens,
pages, their numbers, and the order of what the pool's log says.
"""

from __future__ import annotations

from workers.core.batch import Batch, Chunk, SequenceUpdate
from workers.core.request import SampledToken, Sequence, SequenceStatus
from workers.core.scheduler import Scheduler


class RunScheduler(Scheduler):
    """A Scheduler with one batch under way at a time. No token but its last may end a sequence, and
    nobody who waits begins with what a running one generates."""

    def repeats(self, batch: Batch) -> int:
        """How often `batch`, just scheduled, would be scheduled again after itself if nothing came
        from outside: 0 unless all that runs decodes in it."""
        if len(batch.chunks) != len(self.running):
            return 0
        for seq, _, count, sample in batch.chunks:
            if count > 1 or not sample or seq.hold:
                return 0
        most = min(seq.most_tokens - len(seq.tokens) for seq in self.running) - 1
        if most <= 0 or self._fit(most):
            return max(0, most)
        least = 0
        while most - least > 1:  # so many fit, and so many do not
            middle = (least + most) // 2
            least, most = (middle, most) if self._fit(middle) else (least, middle)
        return least

    def advance(self, batch: Batch, count: int, token: int = 0) -> Batch:
        """`count` steps of `batch`, the one under way included, have run, and sampled `token` each
        time; the batch that is under way then. Needs 0 < count <= repeats(batch)."""
        size = self.pool.block_size
        due = []  # (step after which a sequence's last block is full, place in the batch)
        for place, (seq, start, _, _) in enumerate(batch.chunks):
            seq.tokens.extend([token] * count)
            due += [(step, place) for step in range(size - start % size, count + 1, size)]
        due.sort()
        self._fill(batch, due)
        chunks = []
        for seq, start, _, _ in batch.chunks:
            seq.num_computed = start + count
            seq.num_launched = start + count + 1
            chunks.append(Chunk(seq, start + count, 1, sample=True))
        return Batch(tuple(chunks))

    def land(self, batch: Batch, token: int = 0) -> tuple[list[Sequence], list[SequenceUpdate]]:
        """update() with `token` as every choice. Sequences that merely have one token more come
        first: there are many of them, and nothing else is to be said."""
        self._landed(batch)
        size = self.pool.block_size
        longer: list[Sequence] = []
        updates: list[SequenceUpdate] = []
        for chunk in batch.chunks:
            seq, start, count, sample = chunk
            if seq.status is SequenceStatus.FINISHED:
                continue
            decodes = count == 1 and sample and not seq.hold
            if decodes and start + 2 < seq.most_tokens:
                seq.num_computed = start + 1
                if (start + 1) % size == 0:
                    self._pages.commit(seq)
                seq.tokens.append(token)
                longer.append(seq)
            else:
                choice = SampledToken(token, start + count) if sample else None
                updates.append(self._apply(chunk, choice))
        return longer, updates

    def _fill(self, batch: Batch, due: list[tuple[int, int]]) -> None:
        """Step by step, full blocks become findable, then their sequences get the next one."""
        several = len(self.pool.shards) > 1
        at = 0
        while at < len(due):
            step, full = due[at][0], []
            while at < len(due) and due[at][0] == step:
                seq, start, _, _ = batch.chunks[due[at][1]]
                seq.num_computed = seq.num_launched = start + step
                self._pages.commit(seq)
                full.append(seq)
                at += 1
            if several:
                full.sort(key=self.running.index)  # a batch goes shard by shard, the others do not
            for seq in full:
                grown = self._pages.grow(seq)
                assert grown, f"{seq} has no page in the middle of a run"

    def _fit(self, count: int) -> bool:
        """Whether there are pages for so many steps more."""
        missing = [0] * len(self.pool.shards)
        for seq in self.running:
            missing[seq.shard] += max(0, self._blocks_after(seq, count) - len(seq.blocks))
        pools = zip(missing, self.pool.shards, strict=True)
        return all(blocks <= pool.num_available for blocks, pool in pools)

    def _blocks_after(self, seq: Sequence, count: int) -> int:
        return self.pool.blocks_for(seq.num_launched + count)
