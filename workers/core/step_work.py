"""What a step computes: the sizes that its time depends on."""

from __future__ import annotations

from typing import NamedTuple

from workers.core.batch import Batch


class StepWork(NamedTuple):
    """Sizes of one step. A NamedTuple: placement makes hundreds of them in a decision.

    `prefill_kv`, `decode_kv`: KV tokens that prompt chunks and decodes read, those of the step
    itself included. `prefill_pairs`: (query, KV) pairs of the prompt chunks, as attention is
    causal.
    """

    prefill_tokens: int = 0
    prefill_kv: int = 0
    prefill_pairs: int = 0
    decode_seqs: int = 0
    decode_kv: int = 0

    @classmethod
    def of(cls, batch: Batch) -> StepWork:
        tokens = kv = pairs = seqs = decode_kv = 0
        for _, start, count, sample in batch.chunks:
            if count == 1 and sample:
                seqs += 1
                decode_kv += start + 1
            else:
                tokens += count
                kv += start + count
                pairs += count * start + count * (count + 1) // 2
        return cls(tokens, kv, pairs, seqs, decode_kv)

    @classmethod
    def chunk(cls, new_tokens: int, context_tokens: int) -> StepWork:
        """`new_tokens` of one prompt behind `context_tokens`, in one step of its own."""
        pairs = new_tokens * context_tokens + new_tokens * (new_tokens + 1) // 2
        return cls(new_tokens, context_tokens + new_tokens, pairs)

    @classmethod
    def decode(cls, num_seqs: int, kv_tokens: int) -> StepWork:
        """A step of decodes alone."""
        return cls(decode_seqs=num_seqs, decode_kv=kv_tokens)


class MeasuredStep(NamedTuple):
    """One step as a worker timed it."""

    work: StepWork
    seconds: float
