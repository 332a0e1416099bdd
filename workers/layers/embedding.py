"""Tokens to vectors and back."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workers.layers.build import Build
from workers.layers.linear import Linear
from workers.layers.weights import Targets, whole


class Embedding(nn.Module):
    def __init__(self, vocab_size: int, width: int, build: Build) -> None:
        super().__init__()
        self.weight = build.parameter(vocab_size, width)

    def forward(self, token_ids: Tensor) -> Tensor:
        """[T] -> [T, width]."""
        return F.embedding(token_ids, self.weight)

    def targets(self, prefix: str) -> Targets:
        return {f"{prefix}.weight": whole(self.weight)}


def new_head(embedding: Embedding, build: Build, *, tied: bool) -> Linear:
    """Vectors to logits over the vocabulary; tied: with the embedding's own weights."""
    vocab_size, width = embedding.weight.shape
    if not tied:
        return Linear(width, {"lm_head": vocab_size}, build, bias=False)
    # On the meta device no memory is taken for a weight that is replaced at once.
    nowhere = replace(build, device=torch.device("meta"))
    head = Linear(width, {"lm_head": vocab_size}, nowhere, bias=False)
    head.weight = embedding.weight
    return head
