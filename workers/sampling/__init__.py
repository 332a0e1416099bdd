"""Choosing the next token of many sequences at once."""

from workers.sampling.logits import Row
from workers.sampling.plan import SamplingPlan
from workers.sampling.sampled import Sampled
from workers.sampling.sampler import Sampler

__all__ = ["Row", "Sampled", "Sampler", "SamplingPlan"]
