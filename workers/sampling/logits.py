"""What changes logits before a token is chosen: bias, bars and penalties, row by row."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor

from workers.core.errors import InvalidRequest
from workers.core.request import SamplingParams, Sequence


def changes_logits(sequence: Sequence) -> bool:
    params = sequence.params
    return bool(params.logit_bias) or params.penalised or _bars_tokens(sequence)


def adjust(row: Tensor, sequence: Sequence, eos_token_ids: tuple[int, ...]) -> None:
    """Change one row in place, in vLLM's order: bias, bars, penalties. row: float32 [vocab]."""
    params = sequence.params
    vocab = row.shape[0]
    if params.logit_bias:
        ids = _indices(params.logit_bias, vocab, row.device)
        bias = [value for token, value in params.logit_bias.items() if 0 <= token < vocab]
        row[ids] += torch.tensor(bias, dtype=row.dtype, device=row.device)
    if _bars_tokens(sequence):
        barred = params.stop_token_ids + (() if params.ignore_eos else eos_token_ids)
        row[_indices(barred, vocab, row.device)] = -torch.inf
    if params.penalised:
        _penalise(row, sequence, params)


def params_error(sequence: Sequence, largest: float) -> InvalidRequest:
    """Which parameter left no token to choose, where the model's own logits were usable.
    `largest`: of the adjusted row, not finite."""
    position = len(sequence.tokens)
    if largest == -math.inf and _bars_tokens(sequence):
        return InvalidRequest(
            f"request {sequence.id}: below min_tokens {sequence.params.min_tokens} every token "
            f"that could come at position {position} would stop it",
            param="min_tokens",
        )
    return InvalidRequest(
        f"request {sequence.id}: its penalties leave no finite logits at position {position} "
        f"(largest is {largest})",
        param="repetition_penalty",
    )


def _bars_tokens(sequence: Sequence) -> bool:
    return sequence.num_output < sequence.params.min_tokens


def _indices(tokens: Iterable[int], vocab: int, device: torch.device) -> Tensor:
    kept = [token for token in tokens if 0 <= token < vocab]
    return torch.tensor(kept, dtype=torch.long, device=device)


def _penalise(row: Tensor, sequence: Sequence, params: SamplingParams) -> None:
    """Repetition looks at prompt and output (as in transformers), the two others at output only."""
    if params.repetition_penalty != 1.0:
        seen = _indices(set(sequence.tokens), row.shape[0], row.device)
        values = row[seen]
        row[seen] = torch.where(
            values > 0, values / params.repetition_penalty, values * params.repetition_penalty
        )
    if params.presence_penalty == 0.0 and params.frequency_penalty == 0.0:
        return
    counts = Counter(sequence.tokens[sequence.prompt_len :])
    used = torch.tensor(list(counts), dtype=torch.long, device=row.device)
    times = torch.tensor(list(counts.values()), dtype=row.dtype, device=row.device)
    row[used] -= params.presence_penalty + params.frequency_penalty * times
