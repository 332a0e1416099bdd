"""Traces as the router's simulator reads them: when each prompt comes and which blocks it has."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from cluster.bench.workload import Job, read_trace
from workers.core.errors import ConfigError
from workers.core.hashing import ID_BYTES, BlockId

Part = Literal["all", "first", "second"]

COMMON = 0.01  # a block in more than this part of the requests names no conversation
BLOCK_SIZE = 16  # where a trace has no blocks


@dataclass(frozen=True, slots=True)
class Arrival:
    """One prompt. `ids`: of its full blocks, each standing for all tokens up to its end."""

    at_s: float
    tokens: int
    ids: tuple[BlockId, ...]
    session: BlockId


@dataclass(frozen=True, slots=True)
class Arrivals:
    """In order of time; the first at 0."""

    requests: tuple[Arrival, ...]
    block_size: int

    @property
    def tokens(self) -> int:
        return sum(request.tokens for request in self.requests)

    @property
    def span_s(self) -> float:
        return self.requests[-1].at_s

    def part(self, which: Part) -> Arrivals:
        """Half of the time, from 0 again."""
        if which == "all":
            return self
        middle = self.span_s / 2
        kept = [r for r in self.requests if (r.at_s < middle) == (which == "first")]
        if len(kept) < 2:
            raise ConfigError(f"the {which} half of the trace has {len(kept)} requests")
        began = kept[0].at_s
        shifted = tuple(replace(request, at_s=request.at_s - began) for request in kept)
        return Arrivals(shifted, self.block_size)


def read_arrivals(path: Path, *, seed: int = 1, spread_s: float | None = None) -> Arrivals:
    """`spread_s`: stamps are moved by up to so much, None = by as much as they are rounded to (3 s
    in Mooncake's). Raises ConfigError with the line."""
    jobs = spread(read_trace(path), seed, spread_s)
    if len(jobs) < 2:
        raise ConfigError(f"{path} has only one request")
    began = jobs[0].at_s
    known: dict[str, BlockId] = {}
    common = _common(jobs)
    size = jobs[0].block_size or BLOCK_SIZE
    requests = []
    for job in jobs:
        for name in job.blocks:
            if name not in known:
                known[name] = _digest(name)
        ids = tuple(known[name] for name in job.blocks)
        own = next((known[name] for name in job.blocks if name not in common), None)
        session = own or _digest(job.seed)
        requests.append(Arrival(job.at_s - began, job.input_tokens, ids, session))
    return Arrivals(tuple(requests), size)


def spread(jobs: list[Job], seed: int, spread_s: float | None = None) -> list[Job]:
    """Stamps moved by up to `spread_s`, in order again. None: by as much as they are rounded to."""
    width = _rounding_s(jobs) if spread_s is None else spread_s
    if not width:
        return jobs
    rng = random.Random(seed)
    moved = [replace(job, at_s=job.at_s + rng.random() * width) for job in jobs]
    return sorted(moved, key=lambda job: job.at_s)


def _rounding_s(jobs: Sequence[Job]) -> float:
    """3 where all stamps lie within a millisecond of whole multiples of 3 s."""
    off_ms = (abs((round(job.at_s * 1000) + 1500) % 3000 - 1500) for job in jobs)
    return 3.0 if max(off_ms) <= 1 else 0.0


def _common(jobs: Sequence[Job]) -> set[str]:
    """Blocks of so many requests that they are a system prompt's."""
    counts = Counter(name for job in jobs for name in set(job.blocks))
    most = max(2, len(jobs) * COMMON)
    return {name for name, count in counts.items() if count > most}


def _digest(name: str) -> BlockId:
    return blake2b(name.encode(), digest_size=ID_BYTES).digest()
