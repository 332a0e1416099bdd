"""What changes logits before a token is chosen: bias, bars and penalties."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from workers.core.errors import InvalidRequest
from workers.core.request import Sequence
from workers.sampling.buffer import Packer, Span


class Row(NamedTuple):
    """A token to choose. `position`: its index in prompt + output. The token before it may still be
    on its way, where the request has no penalties."""

    sequence: Sequence
    position: int

    @property
    def bars_tokens(self) -> bool:
        return self.position - self.sequence.prompt_len < self.sequence.params.min_tokens

    @property
    def changes_logits(self) -> bool:
        params = self.sequence.params
        return bool(params.logit_bias) or params.penalised or self.bars_tokens


class Values(NamedTuple):
    """One for each of some places in a group's rows laid end to end."""

    at: Span
    values: Span


@dataclass(frozen=True, slots=True)
class Edits:
    """Changes of the logits of a group's rows."""

    bias: Values
    bars: Values
    repetition: Values
    loss: Values  # by presence and frequency


def plan_edits(
    rows: list[Row], vocab: int, eos_token_ids: tuple[int, ...], packer: Packer
) -> Edits:
    """Token ids outside the vocabulary are passed over."""

    def spans(of_rows: Iterable[Mapping[int, float]]) -> Values:
        at: list[int] = []
        values: list[float] = []
        for index, by_token in enumerate(of_rows):
            if not by_token:
                continue
            kept = [token for token in by_token if 0 <= token < vocab]
            at += [index * vocab + token for token in kept]
            values += [by_token[token] for token in kept]
        return Values(packer.ints(at), packer.floats(values))

    return Edits(
        bias=spans(row.sequence.params.logit_bias for row in rows),
        bars=spans(_bars(row, eos_token_ids) for row in rows),
        repetition=spans(_repetition(row) for row in rows),
        loss=spans(_loss(row) for row in rows),
    )


def edit(logits: Tensor, edits: Edits, data: Tensor) -> None:
    """Change rows in place, in vLLM's order: bias, bars, penalties. logits: float32 [n, vocab],
    contiguous; `data`: the plan's buffer, on the same device."""
    flat = logits.view(-1)
    if edits.bias.at.size:
        flat[edits.bias.at.of(data)] += edits.bias.values.of(data)
    if edits.bars.at.size:
        flat[edits.bars.at.of(data)] = edits.bars.values.of(data)
    if edits.repetition.at.size:
        at, penalty = edits.repetition.at.of(data), edits.repetition.values.of(data)
        before = flat[at]
        flat[at] = torch.where(before > 0, before / penalty, before * penalty)
    if edits.loss.at.size:
        flat[edits.loss.at.of(data)] -= edits.loss.values.of(data)


def _bars(row: Row, eos_token_ids: tuple[int, ...]) -> dict[int, float]:
    if not row.bars_tokens:
        return {}
    params = row.sequence.params
    barred = params.stop_token_ids + (() if params.ignore_eos else eos_token_ids)
    return dict.fromkeys(barred, -math.inf)


def _repetition(row: Row) -> dict[int, float]:
    """Looks at prompt and output, as in transformers."""
    penalty = row.sequence.params.repetition_penalty
    return {} if penalty == 1.0 else dict.fromkeys(_tokens(row), penalty)


def _loss(row: Row) -> dict[int, float]:
    """Looks at output only."""
    params = row.sequence.params
    if params.presence_penalty == 0.0 and params.frequency_penalty == 0.0:
        return {}
    counts = Counter(_tokens(row)[row.sequence.prompt_len :])
    times = torch.tensor(list(counts.values()), dtype=torch.float32)
    loss = params.presence_penalty + params.frequency_penalty * times
    return dict(zip(counts, loss.tolist(), strict=True))


def _tokens(row: Row) -> list[int]:
    assert len(row.sequence.tokens) == row.position, "penalties need every token before"
    return row.sequence.tokens


def params_error(row: Row, largest: float) -> InvalidRequest:
    """Which parameter left no token to choose, where the model's own logits were usable.
    `largest`: of the edited row, not finite."""
    sequence, position = row
    if largest == -math.inf and row.bars_tokens:
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
