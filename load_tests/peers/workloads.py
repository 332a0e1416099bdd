"""The workloads that every system gets: exact lengths, token ids as prompts, nothing sampled.

a-d send all their requests at once; the e's are streams that prompts disturb. Token ids follow
from a seed alone. Every run has its own seed, so no prefix cache helps but with what a workload
shares on purpose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.bench.interference import Plan
from cluster.bench.workload import Job


@dataclass(frozen=True, slots=True)
class Batch:
    """`requests` at once; the first `shared` tokens are equal in all of them."""

    requests: int
    input_tokens: int
    output_tokens: int
    shared: int = 0

    def jobs(self, seed: str) -> list[Job]:
        prefix = (f"{seed} prefix",) if self.shared else ()
        return [
            Job(
                0.0, self.input_tokens, self.output_tokens, f"{seed} r{number}", prefix, self.shared
            )
            for number in range(self.requests)
        ]


BATCHES = {
    "a": Batch(1, 512, 128),
    "b": Batch(8, 512, 128),
    "c": Batch(16, 128, 128),
    "d": Batch(16, 1024 + 64, 32, shared=1024),
    "d0": Batch(16, 1024 + 64, 32),  # d without sharing: what the prefix cache is worth
}
INTERFERENCES = {
    "e": Plan(every_s=4.0),
    "e2": Plan(every_s=2.0),
    # For processors without matrix units, on which every 4 s is more than anybody can compute.
    "e512": Plan(every_s=8.0, prompt_input=512),
}
WORKLOADS = (*BATCHES, *INTERFERENCES)

# Enough for servers to compile, allocate and settle; never measured.
WARM_UP = (Batch(1, 512, 8), Batch(8, 64, 8))


def prompts(jobs: Sequence[Job]) -> list[list[int]]:
    return [job.token_ids() for job in jobs]
