"""Sampling on a GPU: nothing waits for it, and it draws what a CPU draws."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from tests.workers.test_sampling import EOS, choose, random_logits, sequence
from tests.workers.test_sampling_phases import KINDS, rows_of
from workers.core.errors import KvasirError
from workers.core.request import SampledToken
from workers.sampling import Sampler
from workers.sampling.draw import share_of
from workers.sampling.truncation import ONE, digit_by_digit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
VOCAB = 20_000


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Raises where the host waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def test_launch_never_waits(no_waiting: None) -> None:
    logits = random_logits(1, len(KINDS) + 1, VOCAB)
    logits[-1] = math.nan
    seqs = [sequence(output=(4, 4, 5), **kind) for kind in KINDS] + [sequence(temperature=0.0)]
    sampler = Sampler(VOCAB, (EOS,), torch.device("cuda"))
    plan = sampler.plan(rows_of(seqs))
    assert plan.data.is_pinned()
    on_device = logits.pin_memory().to("cuda", non_blocking=True)
    with torch.inference_mode():
        sampled = sampler.launch(on_device, plan)
    torch.cuda.set_sync_debug_mode("default")
    *choices, error = sampled.read()
    assert isinstance(error, KvasirError)
    assert sampled.tokens[:-1].tolist() == [
        choice.id for choice in choices if isinstance(choice, SampledToken)
    ]
    expected = choose(logits[:-1], seqs[:-1])
    for choice, same, kind in zip(choices, expected, KINDS, strict=True):
        assert isinstance(choice, SampledToken) and isinstance(same, SampledToken)
        # exp differs in its last bits: a draw may fall on a neighbour, once in a million
        assert (choice.id, choice.position) == (same.id, same.position), kind
        assert choice.logprob == pytest.approx(same.logprob, abs=1e-4)
        assert [t for t, _ in choice.top_logprobs] == [t for t, _ in same.top_logprobs]


def test_integers_are_the_same_everywhere() -> None:
    numbers = torch.randint(0, 2**62 - 1, (1000,))
    totals = torch.randint(0, 2**62 - 1, (1000,))
    assert torch.equal(share_of(numbers.cuda(), totals.cuda()).cpu(), share_of(numbers, totals))
    logits = random_logits(2, 5, VOCAB) * torch.tensor([0.0, 0.01, 1.0, 3.0, 9.0])[:, None]
    scaled = (logits - logits.amax(-1, keepdim=True)).exp() * ONE
    weights = scaled.long()
    need = (weights.sum(-1).double() * 0.9).long()
    found = digit_by_digit(scaled.cuda(), weights.cuda(), need.cuda())
    assert torch.equal(found.cpu(), digit_by_digit(scaled, weights, need))
