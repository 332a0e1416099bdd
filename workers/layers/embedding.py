"""Tokens to vectors and back."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workers.core.span import Span, whole
from workers.layers.build import Build
from workers.layers.linear import Linear
from workers.layers.weights import Target, Targets
from workers.parallel.group import Group


def vocabulary_share(vocab_size: int, rank: int, size: int) -> Span:
    """Equal shares but for the last rank's, which may be smaller."""
    width = -(-vocab_size // size)
    first = min(rank * width, vocab_size)
    return Span(vocab_size, first, min(first + width, vocab_size))


class Embedding(nn.Module):
    """A rank holds a share of the vocabulary. `scale` multiplies vectors, rounded as they are."""

    def __init__(self, vocab_size: int, width: int, build: Build, *, scale: float = 1.0) -> None:
        super().__init__()
        self._ranks = ranks = build.ranks.tensor
        self.ids = vocabulary_share(vocab_size, ranks.rank, ranks.size)
        self.weight = build.parameter(self.ids.size, width)
        self._scale = float(torch.tensor(scale, dtype=build.dtype))

    def forward(self, token_ids: Tensor) -> Tensor:
        """[T] -> [T, width]."""
        if self._ranks.size == 1:
            vectors = F.embedding(token_ids, self.weight)
        else:
            vectors = self._ranks.all_reduce(self._own(token_ids))
        return vectors if self._scale == 1.0 else vectors * self._scale

    def _own(self, token_ids: Tensor) -> Tensor:
        """Zeros for tokens that other ranks hold."""
        foreign = (token_ids < self.ids.first) | (token_ids >= self.ids.end)
        own = (token_ids - self.ids.first).masked_fill_(foreign, 0)
        return F.embedding(own, self.weight).masked_fill_(foreign[:, None], 0)

    def targets(self, prefix: str) -> Targets:
        shape = (self.ids.total, self.weight.shape[1])
        return [Target(f"{prefix}.weight", self.weight.data, shape, (self.ids.part,))]


def new_head(embedding: Embedding, name: str, build: Build, *, tied: bool) -> Linear:
    """Vectors to logits over the share of the vocabulary that the embedding has; tied: with its own
    weights."""
    # On the meta device no memory is taken for a weight that is replaced at once.
    place = replace(build, device=torch.device("meta")) if tied else build
    width = whole(embedding.weight.shape[1])
    head = Linear(width, [(name, embedding.ids)], place, bias=False)
    if tied:
        head.weight = embedding.weight
    return head


def gather_logits(logits: Tensor, ids: Span, group: Group) -> Tensor | None:
    """[n, the rank's share] -> [n, vocabulary] on rank 0, None on the others."""
    if group.size == 1:
        return logits
    rows, widest = len(logits), vocabulary_share(ids.total, 0, group.size).size
    if ids.size < widest:
        logits = F.pad(logits, (0, widest - ids.size))
    shares = group.gather(logits)
    if shares is None:
        return None
    # What is padded stands at the end, as only the last shares are smaller.
    return shares.view(group.size, rows, widest).transpose(0, 1).flatten(1)[:, : ids.total]
