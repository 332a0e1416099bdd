"""Logits in, one token per sequence out: greedy in one pass, the rest by one exact random draw."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workers.core.batch import Choice
from workers.core.errors import KvasirError
from workers.core.request import SampledToken, SamplingParams, Sequence
from workers.core.rng import random_bits
from workers.sampling.largest import largest
from workers.sampling.logits import adjust, changes_logits, params_error
from workers.sampling.truncation import pick_rows, token_weights

_UNUSABLE = -1  # in place of a token
_CACHED_ELEMENTS = 1 << 19  # of logits; their int64 weights are 4 MB
_COLDEST = 1e-5  # below this temperature the second best token has no chance worth computing


class Sampler:
    """Chooses tokens for one model.

    A row's result depends on its own logits, parameters, tokens and position alone, bit for bit:
    neither on its neighbours in the batch nor on the worker it runs on.
    """

    def __init__(self, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self.vocab_size = vocab_size
        self.eos_token_ids = eos_token_ids

    def sample(self, logits: Tensor, sequences: list[Sequence]) -> list[Choice]:
        """logits: [n, vocab], any float type, left as they are; row i belongs to sequences[i].

        A row without a finite largest logit gets an error naming its request: InvalidRequest where
        the request's own parameters made it so, else KvasirError.
        """
        n = len(sequences)
        assert logits.shape == (n, self.vocab_size), logits.shape
        special = [row for row in range(n) if _wants_more(sequences[row])]
        tokens = _greedy(logits) if len(special) < n else [_UNUSABLE] * n
        group = _group_rows(logits)
        for first in range(0, len(special), group):
            rows = special[first : first + group]
            for row, token in zip(rows, self._choose(logits, rows, sequences), strict=True):
                tokens[row] = token
        return [
            self._error(logits[row], sequences[row])
            if token == _UNUSABLE
            else _sampled(logits, row, sequences[row], token)
            for row, token in enumerate(tokens)
        ]

    def _choose(self, logits: Tensor, rows: list[int], sequences: list[Sequence]) -> list[int]:
        """Tokens of rows whose logits change or where chance has a say."""
        own = logits[rows].to(torch.float32)  # indexing has copied them
        chosen = [sequences[row] for row in rows]
        for values, sequence in zip(own, chosen, strict=True):
            if changes_logits(sequence):
                adjust(values, sequence, self.eos_token_ids)
        tokens = _greedy(own)
        drawn = [i for i, seq in enumerate(chosen) if _draws(seq.params) and tokens[i] != _UNUSABLE]
        if drawn:
            draws = _draw(pick_rows(own, drawn), [chosen[i] for i in drawn])
            for i, token in zip(drawn, draws, strict=True):
                tokens[i] = token
        return tokens

    def _error(self, logits: Tensor, sequence: Sequence) -> KvasirError:
        """Why no token of this row can be chosen. logits: the model's own, [vocab]."""
        own = float(logits.amax())
        if math.isfinite(own):
            adjusted = logits.to(torch.float32, copy=True)
            adjust(adjusted, sequence, self.eos_token_ids)
            return params_error(sequence, float(adjusted.amax()))
        return KvasirError(
            f"request {sequence.id}: the model gave no usable logits for position "
            f"{len(sequence.tokens)} (largest is {own})"
        )


def _greedy(logits: Tensor) -> list[int]:
    """The likeliest token of each row, _UNUSABLE where the largest is infinite or any is NaN; one
    transfer from the device for all rows."""
    values, tokens = largest(logits)
    return torch.where(torch.isfinite(values), tokens, _UNUSABLE).tolist()


def _wants_more(sequence: Sequence) -> bool:
    """Than the likeliest token of the model's own logits."""
    return _draws(sequence.params) or changes_logits(sequence)


def _draws(params: SamplingParams) -> bool:
    """Whether chance has a say; top_k 1 and very small temperatures leave it none."""
    return params.temperature >= _COLDEST and params.top_k != 1


def _group_rows(logits: Tensor) -> int:
    """Rows worked on at once. A CPU goes through the vocabulary some ten times: in its caches, and
    in memory that the allocator keeps, that takes a quarter of the time."""
    if logits.device.type != "cpu":
        return max(len(logits), 1)
    return max(_CACHED_ELEMENTS // logits.shape[1], 1)


def _draw(logits: Tensor, sequences: list[Sequence]) -> list[int]:
    """One token per row by inverse CDF. logits: float32 [n, vocab], used up."""
    weights = token_weights(logits, [sequence.params for sequence in sequences])
    cumulative = weights.cumsum_(-1)
    targets = []
    for sequence, total in zip(sequences, cumulative[:, -1].tolist(), strict=True):
        assert sequence.params.seed is not None, f"{sequence.id}: sampling needs a seed"
        targets.append(random_bits(sequence.params.seed, len(sequence.tokens)) * total >> 64)
    target = torch.tensor(targets, device=logits.device)[:, None]
    tokens: list[int] = torch.searchsorted(cumulative, target, right=True)[:, 0].tolist()
    return tokens


def _sampled(logits: Tensor, row: int, sequence: Sequence, token: int) -> SampledToken:
    """The token with the logprobs asked for, of the model's own distribution."""
    position = len(sequence.tokens)
    count = sequence.params.logprobs
    if count is None:
        return SampledToken(token, position)
    # One row at a time: the order of a batched reduction may depend on the batch.
    own = logits[row].to(torch.float32, copy=True)
    total = own.logsumexp(-1)
    logprob = float(own[token] - total)
    if count == 0:
        return SampledToken(token, position, logprob)
    top = own.topk(min(count, len(own)))
    alternatives = zip(top.indices.tolist(), (top.values - total).tolist(), strict=True)
    return SampledToken(token, position, logprob, tuple(alternatives))
