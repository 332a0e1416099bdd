"""Tokens to vectors and back."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workers.layers.linear import Linear
from workers.layers.weights import Targets, new_parameter, whole


class Embedding(nn.Module):
    def __init__(
        self, vocab_size: int, width: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.weight = new_parameter(vocab_size, width, dtype=dtype, device=device)

    def forward(self, token_ids: Tensor) -> Tensor:
        """[T] -> [T, width]."""
        return F.embedding(token_ids, self.weight)

    def targets(self, prefix: str) -> Targets:
        return {f"{prefix}.weight": whole(self.weight)}


def new_head(embedding: Embedding, *, tied: bool) -> Linear:
    """Vectors to logits over the vocabulary; tied: with the embedding's own weights."""
    vocab_size, width = embedding.weight.shape
    dtype, device = embedding.weight.dtype, embedding.weight.device
    if not tied:
        return Linear(width, {"lm_head": vocab_size}, bias=False, dtype=dtype, device=device)
    # On the meta device no memory is taken for a weight that is replaced at once.
    meta = torch.device("meta")
    head = Linear(width, {"lm_head": vocab_size}, bias=False, dtype=dtype, device=meta)
    head.weight = embedding.weight
    return head
