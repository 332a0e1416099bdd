"""The seam between a decoder and how attention over pages is computed."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from workers.attention.context import ForwardContext


class AttentionPlan(Protocol):
    """One step's attention. Valid until its backend plans the next step."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Write key and value [T, kv_heads, D] into the pages, then attend causally with query
        [T, heads, D] to everything that its sequence has there. Returns [T, heads, D]."""


class AttentionBackend(Protocol):
    """Owns the scratch memory; what all layers share is computed once, in `plan`."""

    def plan(self, context: ForwardContext) -> AttentionPlan: ...
