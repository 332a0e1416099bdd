"""What a benchmark sends: requests with arrival times, from a trace or made up."""

from __future__ import annotations

import gzip
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from workers.core.errors import ConfigError

# Ordinary tokens of nearly every tokenizer: neither special ones nor beyond a small vocabulary.
FIRST_TOKEN, LAST_TOKEN = 32, 231
WORDS = "a be of in to it on he as do at by we or an my so up if go me no us am is".split()


@dataclass(frozen=True, slots=True)
class Job:
    """One request to send. `blocks`: a seed for each reusable block of the prompt; two jobs whose
    seeds are equal up to a block have equal tokens up to its end. `seed` makes the rest.
    `slo_class` and `tenant`: where the trace says them."""

    at_s: float
    input_tokens: int
    output_tokens: int
    seed: str
    blocks: tuple[str, ...] = ()
    block_size: int = 0
    slo_class: str | None = None
    tenant: str = ""

    def token_ids(self) -> list[int]:
        """The prompt: `input_tokens` ids that follow from the seeds alone."""
        ids: list[int] = []
        for block in self.blocks:
            ids += _tokens(block, self.block_size)
        return ids[: self.input_tokens] + _tokens(self.seed, max(0, self.input_tokens - len(ids)))

    def text(self) -> str:
        """For servers that take no ids: a word for each token, so lengths are nearly the same."""
        return " ".join(WORDS[token % len(WORDS)] for token in self.token_ids())

    def scaled(self, factor: float) -> Job:
        """Shorter by `factor`: lengths and blocks alike, so shared prefixes stay shared."""
        block_size = max(1, round(self.block_size * factor)) if self.blocks else 0
        input_tokens = max(1, round(self.input_tokens * factor))
        return replace(
            self,
            input_tokens=input_tokens,
            output_tokens=max(1, round(self.output_tokens * factor)),
            block_size=block_size,
            blocks=self.blocks[: input_tokens // block_size] if block_size else (),
        )


def read_trace(path: Path, *, limit: int | None = None, speed: float = 1.0) -> list[Job]:
    """Rows of JSONL (.gz or plain): timestamp_ms, input_length, output_length, hash_ids | null,
    block_size. `speed` 2 = twice as fast as it was recorded. Raises ConfigError with the line."""
    jobs: list[Job] = []
    for number, line in enumerate(itertools.islice(lines(path), limit), start=1):
        try:
            row = json.loads(line)
            block_size, hashes = row.get("block_size") or 0, row.get("hash_ids") or ()
            reusable = row["input_length"] // block_size if block_size else 0
            jobs.append(
                Job(
                    at_s=row["timestamp_ms"] / 1000 / speed,
                    input_tokens=max(1, row["input_length"]),
                    output_tokens=max(1, row["output_length"]),
                    seed=f"row {number}",
                    blocks=tuple(f"block {hash_id}" for hash_id in hashes[:reusable]),
                    block_size=block_size,
                    slo_class=row.get("slo_class") or None,
                    tenant=row.get("tenant") or "",
                )
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}:{number}: not a trace row: {error!r}") from None
    if not jobs:
        raise ConfigError(f"{path} has no rows")
    jobs.sort(key=lambda job: job.at_s)
    return [replace(job, at_s=job.at_s - jobs[0].at_s) for job in jobs]


def synthetic(
    *,
    requests: int,
    input_tokens: int,
    output_tokens: int,
    rate: float | None,
    shared_prefix: int = 0,
    seed: int = 0,
) -> list[Job]:
    """Equal lengths; the first `shared_prefix` tokens are the same in all of them. Arrivals are a
    Poisson process of `rate` a second, or all at once where it is None."""
    rng = random.Random(seed)
    jobs, at_s = [], 0.0
    for number in range(requests):
        if rate is not None and number:
            at_s += rng.expovariate(rate)
        job = Job(at_s, input_tokens, output_tokens, f"request {seed} {number}")
        if shared_prefix:
            job = replace(job, blocks=(f"prefix {seed}",), block_size=shared_prefix)
        jobs.append(job)
    return jobs


def fit_factor(jobs: Sequence[Job], context_length: int) -> float:
    """The factor, at most 1, that makes the longest job fit into `context_length`."""
    longest = max(job.input_tokens + job.output_tokens for job in jobs)
    room = context_length - 2  # rounding may add a token to either length
    return min(1.0, room / longest)


def _tokens(seed: str, count: int) -> list[int]:
    return random.Random(seed).choices(range(FIRST_TOKEN, LAST_TOKEN + 1), k=count)


def lines(path: Path) -> Iterator[str]:
    """Of a file, packed or not. Raises ConfigError where it cannot be read."""
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rt", encoding="utf-8") as packed:
                yield from packed
        else:
            with path.open(encoding="utf-8") as plain:
                yield from plain
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
