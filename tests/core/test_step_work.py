"""What a step computes, counted from its batch."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.core.batch import Batch, Chunk
from workers.core.step_work import StepWork

SEQUENCE = None  # a chunk's sizes say all


def chunk(start: int, tokens: int, *, sample: bool) -> Chunk:
    return Chunk(SEQUENCE, start, tokens, sample)  # type: ignore[arg-type]


def test_decodes_and_prompts_are_told_apart() -> None:
    decodes = chunk(9, 1, sample=True), chunk(99, 1, sample=True)
    prompts = chunk(100, 3, sample=False), chunk(0, 4, sample=True)
    work = StepWork.of(Batch((*decodes, *prompts)))
    assert (work.decode_seqs, work.decode_kv) == (2, 110)
    assert (work.prefill_tokens, work.prefill_kv) == (7, 107)
    assert work.prefill_pairs == (101 + 102 + 103) + (1 + 2 + 3 + 4)


def test_one_token_of_a_prompt_that_goes_on_is_no_decode() -> None:
    work = StepWork.of(Batch((chunk(5, 1, sample=False),)))
    assert work == StepWork.chunk(1, 5)


@given(st.integers(1, 300), st.integers(0, 300), st.integers(1, 299))
def test_pairs_do_not_depend_on_chunks(new: int, context: int, cut: int) -> None:
    whole = StepWork.chunk(new, context)
    first = min(cut, new)
    parts = StepWork.chunk(first, context), StepWork.chunk(new - first, context + first)
    assert sum(part.prefill_pairs for part in parts) == whole.prefill_pairs
    assert sum(part.prefill_tokens for part in parts) == whole.prefill_tokens == new
