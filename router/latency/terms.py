"""The time of a step as a sum of terms, none of them negative: what is computed, what is read.

    fixed + [any prompt] + f(rows) + seqs + prompt KV + prompt pairs + decode KV

`f` is piecewise linear in the tokens of the step, so that a device may be bound by reading weights
while they are few and by computing when they are many. A step of one token is `fixed`: products of
a matrix and a vector have kernels of their own, and from one to two tokens a step may take twice as
long. As every coefficient is at least 0, more work is never predicted to take less.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate, pairwise
from operator import mul

import numpy as np
from numpy.typing import NDArray

from workers.core.step_work import StepWork

Floats = NDArray[np.float64]

KNOTS = (1, 2, 8, 128, 1024)  # tokens of a step, where `f` may bend; 0 up to the first
FEW = 65  # tokens up to which `f` is looked up: most steps are decodes
FIXED, PROMPT, ROWS = 0, 1, slice(2, 2 + len(KNOTS))
SEQS, PROMPT_KV, PAIRS, DECODE_KV = range(ROWS.stop, ROWS.stop + 4)
NUM_TERMS = DECODE_KV + 1

_WIDTHS = np.array([*(b - a for a, b in pairwise(KNOTS)), np.inf])


def terms(work: Floats) -> Floats:
    """[steps, 5], columns as in StepWork, to [steps, NUM_TERMS]."""
    tokens, kv, pairs, seqs, decode_kv = work.T
    rows = tokens + seqs
    out = np.empty((len(work), NUM_TERMS))
    out[:, FIXED] = 1.0
    out[:, PROMPT] = tokens > 0
    out[:, ROWS] = np.clip(rows[:, None] - np.array(KNOTS), 0.0, _WIDTHS)
    for column, values in zip(
        (SEQS, PROMPT_KV, PAIRS, DECODE_KV), (seqs, kv, pairs, decode_kv), strict=True
    ):
        out[:, column] = values
    return out


class Coefficients:
    """Seconds of each term, for predictions one by one: no numpy, it is slow for single numbers."""

    def __init__(self, values: Floats) -> None:
        """[NUM_TERMS], none negative."""
        self.values: list[float] = values.tolist()
        self._fixed, self._prompt = self.values[FIXED], self.values[PROMPT]
        self._slopes = self.values[ROWS]
        widths = (b - a for a, b in pairwise(KNOTS))
        self._at_knots = tuple(accumulate(map(mul, self._slopes, widths), initial=0.0))
        self._few = (0.0, *map(self._bent, range(1, FEW)))
        self._seq, self._prompt_kv = self.values[SEQS], self.values[PROMPT_KV]
        self._pair, self._decode_kv = self.values[PAIRS], self.values[DECODE_KV]

    def step_s(self, work: StepWork) -> float:
        tokens, kv, pairs, seqs, decode_kv = work
        seconds = self._fixed + self.rows_s(tokens + seqs)
        if tokens:
            seconds += self._prompt + self._prompt_kv * kv + self._pair * pairs
        if seqs:
            seconds += self._seq * seqs + self._decode_kv * decode_kv
        return seconds

    def decode_s(self, num_seqs: int, kv_tokens: int) -> float:
        """A step of nothing else."""
        rows_s = self.rows_s(num_seqs)
        return self._fixed + rows_s + self._seq * num_seqs + self._decode_kv * kv_tokens

    def prompt_s(self, new_tokens: int, context_tokens: int, chunk: int) -> float:
        """`new_tokens` of one prompt behind `context_tokens`, in steps of `chunk` tokens; 0: in
        one. All terms but `f` are linear, so sums over chunks need no loop."""
        seconds = self._pair * (new_tokens * context_tokens + new_tokens * (new_tokens + 1) // 2)
        step_s = self._fixed + self._prompt
        rest = new_tokens
        if 0 < chunk < new_tokens:
            full, rest = divmod(new_tokens, chunk)
            # A chunk reads the KV up to its end: context + chunk, + 2 chunk, and so on.
            kv = full * context_tokens + chunk * full * (full + 1) // 2
            seconds += full * (step_s + self.rows_s(chunk)) + self._prompt_kv * kv
        if rest:
            kv = context_tokens + new_tokens
            seconds += step_s + self.rows_s(rest) + self._prompt_kv * kv
        return seconds

    def rows_s(self, rows: int) -> float:
        """`f`."""
        return self._few[rows] if rows < FEW else self._bent(rows)

    def _bent(self, rows: int) -> float:
        place = bisect_right(KNOTS, rows) - 1
        return self._at_knots[place] + self._slopes[place] * (rows - KNOTS[place])
