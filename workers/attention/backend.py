"""The seam between a decoder and how attention over pages is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from workers.attention.context import ForwardContext


@dataclass(frozen=True, slots=True)
class Scores:
    """How a layer weighs what its queries see. Scores are query . key times `scale`.

    `window`: the query at position p sees keys p - window + 1 .. p; None: all up to p.
    `sinks` [heads]: a logit for each head that takes its part of the softmax and has no value.
    `value_dim`: pages hold one side alone, and a token's value is that many leading dimensions of
    its key (latent attention).
    """

    scale: float
    window: int | None = None
    sinks: Tensor | None = None
    value_dim: int | None = None


class AttentionPlan(Protocol):
    """One step's attention. Valid until its backend plans the next step."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor | None, scores: Scores
    ) -> Tensor:
        """Write key and value [T, kv_heads, D] into the pages, then attend causally with query
        [T, heads, D] to what its sequence has there. `value` is None where scores.value_dim is
        set. Returns [T, heads, D], or [T, heads, value_dim]."""


class AttentionBackend(Protocol):
    """Owns the scratch memory; what all layers share is computed once, in `plan`."""

    def plan(self, context: ForwardContext) -> AttentionPlan: ...
