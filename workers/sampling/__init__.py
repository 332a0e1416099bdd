"""Choosing the next token of many sequences at once."""

from workers.sampling.sampler import Sampler

__all__ = ["Sampler"]
