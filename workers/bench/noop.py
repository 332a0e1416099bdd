"""A model that costs nothing: what is left of an engine step is everything but the model."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from workers.attention.backend import AttentionPlan, Scores
from workers.attention.context import ForwardContext
from workers.attention.kv_cache import KVCache, KVShape
from workers.core.runner import ModelInfo
from workers.models.decoder import Decoder
from workers.runner.forward import Forward
from workers.runner.model_runner import ModelRunner


class NoopDecoder(Decoder):
    """The same logits for everybody at every step."""

    def __init__(self, rows: int, vocab_size: int, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)  # no weights
        self._logits = torch.randn(rows, vocab_size).to(dtype)

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        plan: AttentionPlan,
        rows: Tensor | None = None,
    ) -> Tensor:
        return (token_ids if rows is None else token_ids[rows])[:, None]

    def logits(self, hidden: Tensor) -> Tensor:
        return self._logits[: len(hidden)]


class NoopPlan:
    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor | None, scores: Scores
    ) -> Tensor:
        raise AssertionError("a NoopDecoder has no layers")


class NoopBackend:
    def plan(self, context: ForwardContext) -> AttentionPlan:
        return NoopPlan()


def noop_runner(
    like: ModelInfo, dtype: torch.dtype, block_size: int, *, batch: int, tokens: int
) -> ModelRunner:
    """For `batch` sequences of `tokens` tokens each, with the vocabulary of a real model."""
    shape = KVShape(layers=1, kv_heads=1, head_dim=1, block_size=block_size, dtype=dtype)
    pages = KVCache(shape, batch * (tokens // block_size + 1), torch.device("cpu"))
    info = replace(like, context_length=tokens + 1, kv_bytes_per_token=shape.token_bytes)
    decoder = NoopDecoder(batch, like.vocab_size, dtype)
    return ModelRunner(info, Forward(decoder, pages, NoopBackend()))
