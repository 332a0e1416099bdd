"""Rotary position embedding (Su et al., 2021) and how it is stretched to longer contexts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.models.architecture import RopeConfig


@dataclass(frozen=True, slots=True)
class Rotation:
    """Cosine and sine of a step's positions, float32 [T, width / 2]."""

    cos: Tensor
    sin: Tensor


class RotaryEmbedding:
    """Positions -> Rotation of `width` dimensions of a head. Computed in float32 each step, once
    for all layers that rotate alike: a table would take memory by context length and save nothing
    that shows."""

    def __init__(
        self, width: int, config: RopeConfig, context_length: int, device: torch.device
    ) -> None:
        self._inverse = inverse_frequencies(width, config, context_length).to(device)
        self._scale = _attention_scale(config)

    def __call__(self, positions: Tensor) -> Rotation:
        angles = positions[:, None].float() * self._inverse
        return Rotation(angles.cos() * self._scale, angles.sin() * self._scale)


def inverse_frequencies(width: int, config: RopeConfig, context_length: int) -> Tensor:
    """[width / 2] radians per position.

    `dynamic` equals `default` here: it changes frequencies only beyond max_position_embeddings,
    where the context ends (see ModelConfig.context_length). `longrope` takes its short factors
    where the context is served up to the original one only, else the long ones for every length:
    a key that is cached cannot change when its sequence grows.
    """
    plain = 1.0 / config.theta ** (torch.arange(0, width, 2).float() / width)
    match config.kind:
        case "linear":
            return plain / config.factor
        case "llama3":
            return _llama3(plain, config)
        case "yarn":
            return _yarn(plain, width, config)
        case "longrope":
            long = context_length > config.original_context
            return plain / torch.tensor(config.long_factors if long else config.short_factors)
        case _:
            return plain


def _llama3(plain: Tensor, config: RopeConfig) -> Tensor:
    """Long waves are slowed down by `factor`, short ones kept, those between blended."""
    wavelength = 2 * math.pi / plain
    turns = config.original_context / wavelength
    low, high = config.low_freq_factor, config.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return keep * plain + (1 - keep) * plain / config.factor


def _yarn(plain: Tensor, dimensions: int, config: RopeConfig) -> Tensor:
    """Peng et al., 2023: interpolate the slow dimensions, keep the fast, a ramp between."""

    def dimension(rotations: float) -> float:
        ratio = config.original_context / (rotations * 2 * math.pi)
        return dimensions * math.log(ratio) / (2 * math.log(config.theta))

    low, high = dimension(config.beta_fast), dimension(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dimensions - 1)
    width = high - low if high != low else 0.001
    slow = ((torch.arange(dimensions // 2).float() - low) / width).clamp(0, 1)
    return slow * plain / config.factor + (1 - slow) * plain


def _attention_scale(config: RopeConfig) -> float:
    """YaRN and LongRoPE sharpen attention by scaling cosine and sine; the others leave it."""
    if config.kind not in ("yarn", "longrope"):
        return 1.0
    if config.attention_factor is not None:
        return config.attention_factor
    if config.factor <= 1:
        return 1.0
    log = math.log(config.factor)
    if config.kind == "longrope":
        return math.sqrt(1 + log / math.log(config.original_context))
    if config.mscale and config.mscale_all_dim:
        return (0.1 * config.mscale * log + 1) / (0.1 * config.mscale_all_dim * log + 1)
    return 0.1 * log + 1
