"""What a step must know of its requests to choose tokens: read from them and laid out at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.core.request import SamplingParams
from workers.sampling.buffer import Packer, Span
from workers.sampling.draw import random_number
from workers.sampling.logits import Edits, Row, plan_edits
from workers.sampling.truncation import Filters, plan_filters

_COLDEST = 1e-5  # below this temperature the second best token has no chance worth computing


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that take more than the likeliest token of the model's own logits, worked on at once."""

    rows: Span  # of the step
    edits: Edits
    drawn: Span  # which of `rows` chance has a say in; the rest below is of these
    filters: Filters
    numbers: Span  # random


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """Of a step's n rows. Nothing of the sequences but ids and parameters is looked at again."""

    rows: list[Row]
    groups: list[Group]
    all_grouped: bool  # no row takes the likeliest token just so
    logprobs: list[tuple[int, int]]  # (row, alternatives) of those that want them
    data: Tensor  # uint8, on the host: what the spans of `groups` point into


def make_plan(
    rows: list[Row],
    *,
    vocab: int,
    eos_token_ids: tuple[int, ...],
    group_rows: int,
    device: torch.device,
) -> SamplingPlan:
    packer = Packer()
    special = [i for i, row in enumerate(rows) if _wants_more(row)]
    groups = []
    for first in range(0, len(special), group_rows):
        places = special[first : first + group_rows]
        chosen = [rows[place] for place in places]
        drawn = [i for i, row in enumerate(chosen) if _draws(row.sequence.params)]
        groups.append(
            Group(
                rows=packer.ints(places),
                edits=plan_edits(chosen, vocab, eos_token_ids, packer),
                drawn=packer.ints(drawn),
                filters=plan_filters([chosen[i].sequence.params for i in drawn], vocab, packer),
                numbers=packer.ints(_number(chosen[i]) for i in drawn),
            )
        )
    logprobs = [
        (i, min(row.sequence.params.logprobs, vocab))
        for i, row in enumerate(rows)
        if row.sequence.params.logprobs is not None
    ]
    return SamplingPlan(rows, groups, len(special) == len(rows), logprobs, packer.pack(device))


def _wants_more(row: Row) -> bool:
    """Than the likeliest token of the model's own logits."""
    return row.changes_logits or _draws(row.sequence.params)


def _draws(params: SamplingParams) -> bool:
    """Whether chance has a say; top_k 1 and very small temperatures leave it none."""
    return params.temperature >= _COLDEST and params.top_k != 1


def _number(row: Row) -> int:
    seed = row.sequence.params.seed
    assert seed is not None, f"{row.sequence.id}: sampling needs a seed"
    return random_number(seed, row.position)
