"""Rotary position embedding (Su et al., 2021) and how it is stretched to longer contexts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.models.config import RopeConfig


@dataclass(frozen=True, slots=True)
class Rotation:
    """Cosine and sine of a step's positions, float32 [T, head_dim / 2]."""

    cos: Tensor
    sin: Tensor


class RotaryEmbedding:
    """Positions -> Rotation. Computed in float32 each step, once for all layers: a table would take
    memory by context length and save nothing that shows."""

    def __init__(self, head_dim: int, config: RopeConfig, device: torch.device) -> None:
        self._inverse = inverse_frequencies(head_dim, config).to(device)
        self._scale = _attention_scale(config)

    def __call__(self, positions: Tensor) -> Rotation:
        angles = positions[:, None].float() * self._inverse
        return Rotation(angles.cos() * self._scale, angles.sin() * self._scale)


def inverse_frequencies(head_dim: int, config: RopeConfig) -> Tensor:
    """[head_dim / 2] radians per position.

    `dynamic` equals `default` here: it changes frequencies only beyond max_position_embeddings,
    where the context ends (see ModelConfig.context_length).
    """
    plain = 1.0 / config.theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    match config.kind:
        case "linear":
            return plain / config.factor
        case "llama3":
            return _llama3(plain, config)
        case "yarn":
            return _yarn(plain, head_dim, config)
        case _:
            return plain


def _llama3(plain: Tensor, config: RopeConfig) -> Tensor:
    """Long waves are slowed down by `factor`, short ones kept, those between blended."""
    wavelength = 2 * math.pi / plain
    turns = config.original_context / wavelength
    low, high = config.low_freq_factor, config.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return keep * plain + (1 - keep) * plain / config.factor


def _yarn(plain: Tensor, head_dim: int, config: RopeConfig) -> Tensor:
    """Peng et al., 2023: interpolate the slow dimensions, keep the fast, a ramp between."""

    def dimension(rotations: float) -> float:
        ratio = config.original_context / (rotations * 2 * math.pi)
        return head_dim * math.log(ratio) / (2 * math.log(config.theta))

    low, high = dimension(config.beta_fast), dimension(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low if high != low else 0.001
    slow = ((torch.arange(head_dim // 2).float() - low) / width).clamp(0, 1)
    return slow * plain / config.factor + (1 - slow) * plain


def _attention_scale(config: RopeConfig) -> float:
    """YaRN sharpens attention by scaling cosine and sine; the others leave it."""
    if config.kind != "yarn":
        return 1.0
    if config.attention_factor is not None:
        return config.attention_factor

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(config.factor) + 1.0 if config.factor > 1 else 1.0

    if config.mscale and config.mscale_all_dim:
        return magnitude(config.mscale) / magnitude(config.mscale_all_dim)
    return magnitude(1.0)
