"""Logits in, one token per sequence out: greedy in one pass, the rest by one exact random draw."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workers.core.batch import Choice
from workers.core.errors import KvasirError
from workers.core.request import SampledToken, SamplingParams, Sequence
from workers.core.rng import random_bits
from workers.sampling.logits import adjust, changes_logits, params_error
from workers.sampling.truncation import pick_rows, token_weights

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
        assert logits.shape == (len(sequences), self.vocab_size), logits.shape
        if not sequences:
            return []
        adjusted = self._adjusted(logits, sequences)
        best, greedy = adjusted.max(-1)
        errors = _errors(logits, best, sequences)
        tokens: list[int] = greedy.tolist()
        drawn = [
            row
            for row, sequence in enumerate(sequences)
            if _draws(sequence.params) and row not in errors
        ]
        if drawn:
            rows = pick_rows(adjusted, drawn).to(torch.float32, copy=True)
            for row, token in zip(drawn, _draw(rows, [sequences[i] for i in drawn]), strict=True):
                tokens[row] = token
        return [
            errors.get(row) or _sampled(logits[row], sequence, tokens[row])
            for row, sequence in enumerate(sequences)
        ]

    def _adjusted(self, logits: Tensor, sequences: list[Sequence]) -> Tensor:
        """The logits themselves when no row asks for a change, else a float32 copy."""
        changed = [row for row, sequence in enumerate(sequences) if changes_logits(sequence)]
        if not changed:
            return logits
        adjusted = logits.to(torch.float32, copy=True)
        for row in changed:
            adjust(adjusted[row], sequences[row], self.eos_token_ids)
        return adjusted


def _errors(logits: Tensor, best: Tensor, sequences: list[Sequence]) -> dict[int, KvasirError]:
    """By row, why no token of it can be chosen. best: [n], the largest of the adjusted logits."""
    finite = torch.isfinite(best)  # max passes NaN on, so this sees any NaN of a row
    if bool(finite.all()):
        return {}
    errors: dict[int, KvasirError] = {}
    for row in (~finite).nonzero()[:, 0].tolist():
        sequence = sequences[row]
        own = float(logits[row].amax())
        if math.isfinite(own):
            errors[row] = params_error(sequence, float(best[row]))
        else:
            errors[row] = KvasirError(
                f"request {sequence.id}: the model gave no usable logits for position "
                f"{len(sequence.tokens)} (largest is {own})"
            )
    return errors


def _draws(params: SamplingParams) -> bool:
    """Whether chance has a say; top_k 1 and very small temperatures leave it none."""
    return params.temperature >= _COLDEST and params.top_k != 1


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


def _sampled(logits: Tensor, sequence: Sequence, token: int) -> SampledToken:
    """The token with the logprobs asked for, of the model's own distribution. logits: [vocab]."""
    position = len(sequence.tokens)
    count = sequence.params.logprobs
    if count is None:
        return SampledToken(token, position)
    # One row at a time: the order of a batched reduction may depend on the batch.
    row = logits.to(torch.float32, copy=True)
    total = row.logsumexp(-1)
    logprob = float(row[token] - total)
    if count == 0:
        return SampledToken(token, position, logprob)
    top = row.topk(min(count, len(row)))
    alternatives = zip(top.indices.tolist(), (top.values - total).tolist(), strict=True)
    return SampledToken(token, position, logprob, tuple(alternatives))
