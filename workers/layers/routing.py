"""Which experts a token goes through, and how much each of them counts."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.models.architecture import Experts

TINY = 1e-20  # sigmoids may all be 0


def choose(logits: Tensor, config: Experts, correction: Tensor | None) -> tuple[Tensor, Tensor]:
    """logits [T, count] and correction [count], both float32 -> expert ids and weights (float32),
    [T, active] each. Bit for bit what transformers computes in float32."""
    if config.score == "softmax_of_chosen":
        best, ids = logits.topk(config.active, dim=-1)
        return ids, _weigh(best.softmax(-1), config)
    sigmoid = config.score == "sigmoid"
    scores = logits.sigmoid() if sigmoid else logits.softmax(-1)
    worth = scores if correction is None else scores + correction
    if config.active_groups < config.groups:
        worth = _best_groups(worth, config)
    # The order matters for the sum of weights alone.
    ids = worth.topk(config.active, dim=-1, sorted=not sigmoid).indices
    weights = scores.gather(1, ids)
    if config.normalise:
        weights = weights / (weights.sum(-1, keepdim=True) + TINY)
    return ids, _weigh(weights, config)


def _weigh(weights: Tensor, config: Experts) -> Tensor:
    return weights if config.scale == 1.0 else weights * config.scale


def _best_groups(worth: Tensor, config: Experts) -> Tensor:
    """worth [T, count], minus infinity outside of each token's best groups."""
    grouped = worth.unflatten(-1, (config.groups, -1))  # [T, groups, count / groups]
    group_worth = grouped.topk(config.group_best, dim=-1).values.sum(-1)
    best = group_worth.topk(config.active_groups, dim=-1, sorted=False).indices
    left_out = torch.ones_like(group_worth, dtype=torch.bool).scatter_(1, best, False)
    return grouped.masked_fill(left_out.unsqueeze(-1), float("-inf")).flatten(1)
