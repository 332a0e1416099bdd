"""Requests of a trace as the fleet gets them: lengths, and ids of blocks instead of text.

A prompt's tokens are all 0. What tells prompts apart are the ids of their blocks, which are made
from the trace's and not hashed from tokens: that would take longer than everything else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b

import numpy as np

from cluster.bench.workload import Job
from router.flight import BlockIds
from workers.core.hashing import ID_BYTES, BlockHasher, BlockId
from workers.core.request import Request, SamplingParams

_ODD = np.uint64(0x9E3779B97F4A7C15)  # of splitmix64, as are the shifts and factors below


class Ask:
    """One request. `ids`: of the full blocks of its prompt, and of all that it will generate."""

    def __init__(
        self,
        number: int,
        at_s: float,
        job: Job,
        ids: list[BlockId],
        *,
        slo_class: str | None = None,
        tenant: str = "",
    ) -> None:
        self.id = f"{number}"
        self.at_s = at_s
        self.input_tokens = job.input_tokens
        self.output_tokens = job.output_tokens
        self.slo_class = slo_class
        self.tenant = tenant
        self.ids = ids

    def request(self) -> Request:
        params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=self.output_tokens)
        return Request(self.id, (0,) * self.input_tokens, self.input_tokens, params)


class AskedIds(BlockIds):
    """BlockIds that are looked up. They are the same whatever the KV ABI: a fleet has one."""

    def __init__(self, ask: Ask, request: Request) -> None:
        super().__init__(request)
        self._ask = ask

    def of(self, kv_abi: str, block_size: int) -> list[BlockId]:
        return self._ask.ids[: (len(self.tokens) - 1) // block_size]


class AskedHasher(BlockHasher):
    """Of a Sequence: its ids are looked up too."""

    def __init__(self, ask: Ask, block_size: int) -> None:
        super().__init__(b"", block_size)
        self.ids = ask.ids

    def extend(self, tokens: Sequence[int]) -> None: ...


class BlockNames:
    """Makes ids of blocks of `block_size` tokens from a trace's blocks, whatever size those have.

    An id of a trace stands for all tokens up to its block's end, so it also says which blocks of
    ours end in it. What no block of the trace covers is the request's alone.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._known: dict[str, int] = {}

    def of(self, job: Job, own: str, lap: int = 0) -> list[BlockId]:
        """All full blocks of its prompt and of what it generates. `own` names the request, `lap`
        the round of the trace: rounds share nothing."""
        size = self._block_size
        count = (job.input_tokens + job.output_tokens) // size
        ends = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(size)
        seeds = np.full(len(ends), self._seed(own), dtype=np.uint64)
        if job.blocks:
            names = np.array([self._seed(f"{lap} {name}") for name in job.blocks], dtype=np.uint64)
            inside = (ends - np.uint64(1)) // np.uint64(job.block_size)
            covered = int(np.searchsorted(inside, len(names)))
            covered = min(covered, job.input_tokens // size)
            seeds[:covered] = names[inside[:covered]]
        low = _mixed(seeds + ends * _ODD)
        high = _mixed(low ^ seeds)
        data = np.stack((low, high), axis=1).tobytes()
        return [data[at : at + ID_BYTES] for at in range(0, len(data), ID_BYTES)]

    def _seed(self, name: str) -> int:
        seed = self._known.get(name)
        if seed is None:
            seed = self._known[name] = int.from_bytes(_digest(name)[:8], "little")
        return seed


def asks(
    jobs: Sequence[Job],
    block_size: int,
    *,
    rate: float = 1.0,
    duration_s: float | None = None,
    slo_class: str | None = None,
) -> Iterator[Ask]:
    """The jobs of a trace, in order, `rate` times as fast; up to `duration_s`, as often as it takes
    (once where it is None). `slo_class`: of all of them, whatever the trace says."""
    names, number, lap = BlockNames(block_size), 0, 0
    span_s = (jobs[-1].at_s + jobs[-1].at_s / max(1, len(jobs) - 1)) / rate
    while True:
        for job in jobs:
            at_s = lap * span_s + job.at_s / rate
            if duration_s is not None and at_s >= duration_s:
                return
            ids = names.of(job, f"own {number}", lap)
            yield Ask(
                number, at_s, job, ids, slo_class=slo_class or job.slo_class, tenant=job.tenant
            )
            number += 1
        lap += 1
        if duration_s is None or span_s <= 0:
            return


def _mixed(values: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser: neighbours become far apart."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _digest(name: str) -> BlockId:
    return blake2b(name.encode(), digest_size=ID_BYTES).digest()
