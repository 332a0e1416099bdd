"""Logits in, one token per sequence out: greedy in one pass, the rest by one exact random draw."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.sampling.draw import draw
from workers.sampling.largest import largest
from workers.sampling.logits import Row, edit
from workers.sampling.plan import Group, SamplingPlan, make_plan
from workers.sampling.sampled import UNUSABLE, Sampled
from workers.sampling.truncation import (
    TopP,
    digit_by_digit,
    likeliest_first,
    pick_rows,
    token_weights,
)

_CACHED_ELEMENTS = 1 << 19  # of logits; their int64 weights are 4 MB
_DEVICE_ELEMENTS = 1 << 24  # ... 128 MB, and what is computed on the way some times as much


class Sampler:
    """Chooses tokens for one model, in two phases: what the requests want is read on the event loop
    and tokens are chosen behind the forward, on the device, which nothing here waits for.

    A row's result depends on its own logits, parameters, tokens and position alone, bit for bit:
    neither on its neighbours in the batch nor on the worker it runs on.
    """

    def __init__(
        self,
        vocab_size: int,
        eos_token_ids: tuple[int, ...],
        device: torch.device,
        top_p: TopP | None = None,
    ) -> None:
        """`device`: of the logits. `top_p`: other than the one that suits it."""
        self.vocab_size = vocab_size
        self.eos_token_ids = eos_token_ids
        self._device = device
        on_cpu = device.type == "cpu"
        self._top_p = top_p or (likeliest_first if on_cpu else digit_by_digit)
        # A CPU goes through the vocabulary some ten times: in its caches, and in memory that the
        # allocator keeps, that takes a quarter of the time.
        elements = _CACHED_ELEMENTS if on_cpu else _DEVICE_ELEMENTS
        self._group_rows = max(elements // vocab_size, 1)

    def plan(self, rows: list[Row]) -> SamplingPlan:
        """Reads the sequences now, on the host alone."""
        return make_plan(
            rows,
            vocab=self.vocab_size,
            eos_token_ids=self.eos_token_ids,
            group_rows=self._group_rows,
            device=self._device,
        )

    def launch(self, logits: Tensor, plan: SamplingPlan) -> Sampled:
        """logits: [n, vocab], any float type, left as they are and kept until the result is read;
        row i belongs to plan.rows[i]. Returns before a GPU has chosen."""
        assert logits.shape == (len(plan.rows), self.vocab_size), logits.shape
        if plan.all_grouped:
            best = logits.new_empty(len(logits), dtype=torch.float32)
            tokens = logits.new_empty(len(logits), dtype=torch.int64)
        else:
            best, tokens = _greedy(logits)
        if plan.groups:
            data = plan.data.to(logits.device, non_blocking=True)
            for group in plan.groups:
                rows = group.rows.of(data)
                best[rows], tokens[rows] = self._choose(logits, rows, group, data)
        return Sampled(plan, logits, best, tokens)

    def _choose(
        self, logits: Tensor, rows: Tensor, group: Group, data: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The largest edited logits of the group's rows, and their tokens."""
        own = logits.index_select(0, rows).to(torch.float32)  # a copy
        edit(own, group.edits, data)
        best, tokens = _greedy(own)
        if group.drawn.size:
            drawn = group.drawn.of(data)
            high = pick_rows(best, drawn)
            weights = token_weights(pick_rows(own, drawn), high, group.filters, data, self._top_p)
            chosen = draw(weights, group.numbers.of(data))
            tokens[drawn] = torch.where(torch.isfinite(high), chosen, UNUSABLE)
        return best, tokens


def _greedy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of each row, float32, and the first token where it stands: UNUSABLE where the
    largest is infinite or any is NaN."""
    values, tokens = largest(logits)
    return values.float(), torch.where(torch.isfinite(values), tokens, UNUSABLE)
