"""Sampler: what it chooses, that neighbours cannot change it, and that chance is fair."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workers.core.batch import Choice
from workers.core.errors import Code, InvalidRequest, KvasirError
from workers.core.hashing import BlockHasher
from workers.core.request import Request, SampledToken, SamplingParams, Sequence
from workers.core.rng import random_bits
from workers.sampling import Row, Sampler

VOCAB = 37
EOS = 2


def sequence(
    prompt: tuple[int, ...] = (5, 6, 7), output: tuple[int, ...] = (), **params: Any
) -> Sequence:
    request = Request("r1", prompt + output, len(prompt), SamplingParams(**params))
    return Sequence(request, BlockHasher(b"", 16))


def choose(logits: Tensor, seqs: list[Sequence], eos: tuple[int, ...] = (EOS,)) -> list[Choice]:
    """The next token of each."""
    sampler = Sampler(logits.shape[-1], eos, logits.device)
    rows = [Row(seq, len(seq.tokens)) for seq in seqs]
    return sampler.launch(logits, sampler.plan(rows)).read()


def sample(logits: Tensor, seqs: list[Sequence], eos: tuple[int, ...] = ()) -> list[SampledToken]:
    """Where every row has a token."""
    choices = choose(logits, seqs, eos)
    tokens = [choice for choice in choices if isinstance(choice, SampledToken)]
    assert len(tokens) == len(choices), choices
    return tokens


def one(logits: Tensor, seq: Sequence) -> SampledToken:
    (token,) = sample(logits[None], [seq], (EOS,))
    return token


def random_logits(seed: int, rows: int = 1, vocab: int = VOCAB) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3


def frequencies(logits: Tensor, draws: int = 3000, **params: Any) -> Counter[int]:
    """Tokens drawn at one position under many seeds."""
    seqs = [sequence(seed=seed, **params) for seed in range(draws)]
    return Counter(t.id for t in sample(logits.expand(draws, -1), seqs))


def assert_fair(counts: Counter[int], expected: Tensor) -> None:
    """Every count within five standard deviations and five more (for the rare) of expectation."""
    total = sum(counts.values())
    for token, p in enumerate(expected.tolist()):
        spread = 5 * math.sqrt(total * p * (1 - p)) + (5 if p > 0 else 0)
        assert abs(counts[token] - total * p) <= spread, (token, counts[token], total * p)


def test_greedy_takes_the_first_of_the_largest() -> None:
    logits = torch.zeros(2, VOCAB, dtype=torch.bfloat16)
    logits[0, 9] = logits[0, 4] = 1.0
    logits[1, 36] = 2.0
    seqs = [sequence(temperature=0.0), sequence(output=(1, 2), temperature=0.0)]
    tokens = sample(logits, seqs, (EOS,))
    assert [(t.id, t.position) for t in tokens] == [(4, 3), (36, 5)]


def test_no_rows() -> None:
    assert choose(torch.empty(0, VOCAB), []) == []


def test_plain_sampling_follows_the_distribution() -> None:
    logits = random_logits(1)[0]
    assert_fair(frequencies(logits), logits.softmax(-1))
    assert_fair(frequencies(logits, temperature=0.5), (logits / 0.5).softmax(-1))
    assert_fair(frequencies(logits, temperature=2.0), (logits / 2).softmax(-1))


def test_the_draw_is_the_inverse_cdf_at_the_generators_number() -> None:
    logits = random_logits(2, vocab=300)[0]
    cdf = logits.double().softmax(-1).cumsum(-1)
    for seed in range(200):
        chosen = one(logits, sequence(seed=seed)).id
        assert chosen == int((cdf <= (random_bits(seed, 3) >> 11) * 2.0**-53).sum())


@pytest.mark.parametrize("vocab", [37, 700, 20_000])
@pytest.mark.parametrize("spread", [0.01, 3.0])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_smallest_sufficient_set(vocab: int, spread: float, top_p: float) -> None:
    """The flat distributions need more than the likeliest few: all tokens are looked at."""
    logits = random_logits(3, vocab=vocab)[0] * spread
    probs, order = logits.double().softmax(-1).sort(descending=True)
    kept = int((probs.cumsum(-1) < top_p).sum()) + 1
    counts = frequencies(logits, draws=100, top_p=top_p)
    assert set(counts) <= set(order[:kept].tolist())
    if kept <= 10:
        expected = torch.zeros(vocab, dtype=torch.float64)
        expected[order[:kept]] = probs[:kept] / probs[:kept].sum()
        assert_fair(counts, expected)


def test_top_k_keeps_the_k_likeliest() -> None:
    logits = random_logits(4)[0]
    best = logits.topk(5).indices
    expected = torch.zeros(VOCAB)
    expected[best] = logits[best].softmax(-1)
    assert_fair(frequencies(logits, top_k=5), expected)
    assert set(frequencies(logits, draws=50, top_k=1)) == {int(logits.argmax())}
    assert_fair(frequencies(logits, top_k=VOCAB + 9), logits.softmax(-1))


def test_min_p_is_relative_to_the_likeliest() -> None:
    logits = random_logits(5)[0]
    probs = logits.softmax(-1)
    kept = probs * (probs >= 0.1 * probs.max())
    assert 1 < int((kept > 0).sum()) < VOCAB
    assert_fair(frequencies(logits, min_p=0.1), kept / kept.sum())
    assert set(frequencies(logits, draws=50, min_p=1.0)) == {int(logits.argmax())}


def test_top_p_counts_the_mass_that_top_k_left() -> None:
    logits = torch.tensor([4.0, 3.0, 2.0, 1.0]).repeat_interleave(1)
    left = logits[:3].softmax(-1)
    assert float(left[0]) < 0.7 < float(left[:2].sum())
    assert set(frequencies(logits, draws=300, top_k=3, top_p=0.7)) == {0, 1}


@pytest.mark.parametrize("floor", [{"top_k": 3000}, {"min_p": 0.25}])
def test_top_p_of_a_flat_distribution_counts_what_others_left(floor: dict[str, Any]) -> None:
    logits = random_logits(12, vocab=20_000)[0] * 0.2
    probs, order = logits.double().softmax(-1).sort(descending=True)
    probs = probs[:3000] if "top_k" in floor else probs[probs >= 0.25 * probs[0]]
    assert 1000 < len(probs) < 20_000
    kept = int((probs.cumsum(-1) < 0.9 * probs.sum()).sum()) + 1
    counts = frequencies(logits, draws=400, top_p=0.9, **floor)
    assert set(counts) <= set(order[:kept].tolist())
    assert set(counts) & set(order[kept * 9 // 10 : kept].tolist()), "and no smaller set"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_large_vocabulary_is_sampled_a_few_rows_at_a_time(dtype: torch.dtype) -> None:
    vocab = 150_001
    logits = random_logits(13, rows=9, vocab=vocab).to(dtype)
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"seed": 1},
        {"temperature": 0.0, "repetition_penalty": 1.5, "logprobs": 2},
        {"seed": 2, "top_p": 0.9},
        {"seed": 3, "top_k": 40, "top_p": 0.8},
        {"seed": 4, "min_p": 0.1, "logit_bias": {7: 1.0}},
        {"temperature": 0.0},
        {"seed": 5, "frequency_penalty": 0.5},
        {"seed": 6, "temperature": 0.5},
    ]
    seqs = [sequence(**kind) for kind in kinds]
    together = sample(logits, seqs)
    assert together == [sample(logits[i : i + 1], [seq])[0] for i, seq in enumerate(seqs)]
    assert len({token.id for token in together}) > 5
    for row in (0, 6):
        assert together[row].id == int(logits[row].argmax())


def test_repetition_penalty_equals_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = random_logits(6, rows=1)
    seq = sequence(prompt=(1, 2, 3, 3), output=(4, 4, 9), temperature=0.0, repetition_penalty=1.7)
    theirs = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([seq.tokens]), logits.clone())
    assert one(logits[0], seq).id == int(theirs.argmax())
    logits[0, 9] = 5.0
    logits[0, 0] = 5.0 / 1.7 + 0.01
    logits[0, 1:9] = logits[0, 10:] = -1.0
    assert one(logits[0], seq).id == 0


def test_presence_and_frequency_look_at_output_only() -> None:
    logits = torch.zeros(VOCAB)
    logits[5], logits[6], logits[8] = 1.0, 0.9, 0.5
    greedy = {"temperature": 0.0, "prompt": (5, 5, 5)}
    assert one(logits, sequence(presence_penalty=2.0, **greedy)).id == 5
    assert one(logits, sequence(output=(5,), presence_penalty=0.05, **greedy)).id == 5
    assert one(logits, sequence(output=(5,), presence_penalty=0.2, **greedy)).id == 6
    assert one(logits, sequence(output=(5, 5, 5), frequency_penalty=0.03, **greedy)).id == 5
    assert one(logits, sequence(output=(5, 5, 5), frequency_penalty=0.04, **greedy)).id == 6
    assert one(logits, sequence(output=(8,), presence_penalty=-2.0, **greedy)).id == 8


def test_logit_bias_ignores_ids_outside_the_vocabulary() -> None:
    logits = torch.zeros(VOCAB)
    bias = {11: 5.0, 10_000: 100.0}
    assert one(logits, sequence(temperature=0.0, logit_bias=bias)).id == 11
    assert one(logits, sequence(seed=1, logit_bias={11: 100.0})).id == 11


def test_min_tokens_bars_every_stop_until_reached() -> None:
    logits = torch.zeros(VOCAB)
    logits[EOS], logits[9], logits[4] = 3.0, 2.0, 1.0
    params: dict[str, Any] = {"temperature": 0.0, "min_tokens": 2, "stop_token_ids": (9,)}
    assert one(logits, sequence(output=(1,), **params)).id == 4
    assert one(logits, sequence(output=(1, 1), **params)).id == EOS
    assert one(logits, sequence(output=(1,), ignore_eos=True, **params)).id == EOS
    logits[EOS] = 0.0
    assert one(logits, sequence(output=(1,), ignore_eos=True, **params)).id == 4


def test_tiny_temperature_is_greedy_without_overflow() -> None:
    logits = random_logits(7)[0] * 1e4
    for temperature in (1e-300, 1e-30, 1e-6, 1e-5, 1e-4):
        assert one(logits, sequence(seed=3, temperature=temperature)).id == int(logits.argmax())


def test_logprobs_are_the_models_own() -> None:
    logits = random_logits(8)[0]
    params: dict[str, Any] = {"seed": 1, "temperature": 0.3, "top_k": 2, "logit_bias": {3: 50.0}}
    token = one(logits, sequence(logprobs=4, **params))
    own = logits.log_softmax(-1)
    assert token.id == 3 and token.logprob == pytest.approx(float(own[3]))
    best = own.topk(4)
    assert [t for t, _ in token.top_logprobs] == best.indices.tolist()
    assert [p for _, p in token.top_logprobs] == pytest.approx(best.values.tolist())
    assert one(logits, sequence(logprobs=0, **params)).top_logprobs == ()
    assert one(logits, sequence(**params)).logprob is None


def beside_a_bad_row(logits: Tensor, bad: Sequence) -> KvasirError:
    """The error in the middle of three rows; the two others are what they are alone."""
    good = [sequence(temperature=0.0), sequence(seed=3, top_p=0.9, logprobs=2)]
    first, error, last = choose(logits, [good[0], bad, good[1]])
    assert [first] == choose(logits[:1], good[:1])
    assert [last] == choose(logits[2:], good[1:])
    assert isinstance(error, KvasirError) and "request r1" in error.message
    return error


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("more", [{}, {"min_tokens": 5, "repetition_penalty": 1.5}])
def test_unusable_logits_are_the_models_fault(
    bad: float, temperature: float, more: dict[str, Any]
) -> None:
    logits = random_logits(9, rows=3)
    logits[1, 17] = bad
    error = beside_a_bad_row(logits, sequence(seed=0, temperature=temperature, logprobs=2, **more))
    assert error.code is Code.INTERNAL


ALL_BUT_EOS = tuple(token for token in range(VOCAB) if token != EOS)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("param", "params"),
    [
        ("min_tokens", {"min_tokens": 1, "stop_token_ids": ALL_BUT_EOS}),
        ("repetition_penalty", {"repetition_penalty": 1e-39}),
        ("repetition_penalty", {"repetition_penalty": 1e-39, "min_tokens": 1}),
    ],
)
def test_params_that_leave_no_token_are_the_requests_fault(
    param: str, params: dict[str, Any], temperature: float
) -> None:
    logits = random_logits(9, rows=3).abs()
    error = beside_a_bad_row(logits, sequence(seed=0, temperature=temperature, **params))
    assert isinstance(error, InvalidRequest) and error.param == param


def test_logits_are_left_as_they_are() -> None:
    logits = random_logits(10)
    before = logits.clone()
    params: dict[str, Any] = {"repetition_penalty": 2.0, "logit_bias": {1: 1.0}, "min_tokens": 9}
    choose(logits, [sequence(seed=1, top_p=0.5, logprobs=2, **params)])
    assert torch.equal(logits, before)


@st.composite
def params(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "temperature": draw(st.sampled_from([0.0, 1e-6, 0.3, 1.0, 2.0])),
        "top_k": draw(st.sampled_from([0, 1, 3, 40, 4000])),
        "top_p": draw(st.sampled_from([1.0, 0.9, 0.3, 1e-4])),
        "min_p": draw(st.sampled_from([0.0, 0.05, 0.7])),
        "repetition_penalty": draw(st.sampled_from([1.0, 1.3])),
        "frequency_penalty": draw(st.sampled_from([0.0, -0.7])),
        "logprobs": draw(st.sampled_from([None, 0, 3])),
        "min_tokens": draw(st.sampled_from([0, 5])),
        "seed": draw(st.integers(0, 2**64 - 1)),
    }


@settings(max_examples=40)
@given(
    rows=st.lists(params(), min_size=1, max_size=6),
    vocab=st.sampled_from([37, 1000, 4099]),
    coarse=st.booleans(),
)
def test_a_row_alone_equals_the_row_in_a_batch(
    rows: list[dict[str, Any]], vocab: int, coarse: bool
) -> None:
    """Coarse logits have many ties, where orders of equal values could show."""
    logits = random_logits(11, len(rows), vocab)
    if coarse:
        logits = logits.round()
    seqs = [sequence(prompt=(1, 2, 3) * i, output=(4,), **p) for i, p in enumerate(rows, 1)]
    together = choose(logits, seqs)
    for i, seq in enumerate(seqs):
        assert choose(logits[i : i + 1].clone(), [seq]) == [together[i]]
