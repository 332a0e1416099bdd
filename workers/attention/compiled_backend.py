"""Attention that reads the pages in place, compiled for this machine's CPU (kernels/cpu)."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.attention.backend import Scores
from workers.attention.context import ForwardContext
from workers.attention.kv_cache import KVCache
from workers.attention.torch_backend import TorchBackend, TorchPlan


class CompiledPlan:
    """`sequences`: how many of the step's first are computed here; `rest` has the others."""

    def __init__(
        self, cache: KVCache, context: ForwardContext, sequences: int, rest: TorchPlan | None
    ) -> None:
        self._pages = cache.pages
        self._slots = context.slots
        self._rows = context.starts[sequences]
        self._sequences = (
            context.block_tables[:sequences],
            context.starts_tensor[: sequences + 1],
            context.lengths_tensor[:sequences],
        )
        self._rest = rest

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor | None, scores: Scores
    ) -> Tensor:
        torch.ops.kvasir.write_pages(key, value, self._pages, layer, self._slots)
        if self._rest is None:
            return self._attend(layer, query, scores)
        outputs = self._rest.read(layer, query, key, value, scores)
        if self._rows:
            outputs.insert(0, self._attend(layer, query[: self._rows], scores))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _attend(self, layer: int, query: Tensor, scores: Scores) -> Tensor:
        rest = scores.scale, scores.window, scores.sinks, scores.value_dim
        return torch.ops.kvasir.attend(query, self._pages, layer, *self._sequences, *rest)


class CompiledBackend:
    """AttentionBackend over one KVCache, for one step at a time. `chunks`: computes what is longer
    than one token; None: that is done here as well, in float32."""

    def __init__(self, cache: KVCache, chunks: TorchBackend | None = None) -> None:
        self._cache = cache
        self._chunks = chunks

    def plan(self, context: ForwardContext) -> CompiledPlan:
        sequences = len(context.lengths)
        if self._chunks is None:
            return CompiledPlan(self._cache, context, sequences, None)
        decodes = sum(context.queries(i) == 1 for i in range(sequences))  # they come first
        rest = self._chunks.plan(context, first=decodes) if decodes < sequences else None
        return CompiledPlan(self._cache, context, decodes, rest)
