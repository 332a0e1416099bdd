"""`kvasir bench engine`: one engine without network, each figure beside its limit of the same run.

The limit of a step is a roofline: bytes that must move (weights once, the KV of every sequence)
over the measured read bandwidth, or its matrix products at the measured rate of so many rows,
whichever takes longer.
"""

from __future__ import annotations

import asyncio
import math
import statistics
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch

from workers.bench.limits import MatmulRates, read_bandwidth
from workers.bench.noop import noop_runner
from workers.bench.traffic import Traffic, dense_bytes
from workers.core.batch import Batch, Chunk
from workers.core.clock import Clock, SystemClock
from workers.core.errors import KvasirError
from workers.core.hashing import BlockHasher
from workers.core.request import Request, SamplingParams, Sequence
from workers.engine import Engine
from workers.layers.linear import Linear
from workers.runner.model_runner import ModelRunner

WARM_STEPS = 2
DECODE_STEPS = 8
PREFILL_REPEATS = 3
PREFILL_S = 10.0  # of one length, unless once takes longer
NOOP_CONTEXT = 1024
NOOP_STEPS = 100
GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)


class Step(NamedTuple):
    """Seconds of an engine's step, of the forward in it, and of the collectives in that; bytes that
    this rank brought to them."""

    seconds: float
    forward: float
    communication: float
    bytes: int


@dataclass(frozen=True, slots=True)
class Row:
    """`ratio`: the share of the limit that was reached; None where there is no physical limit."""

    name: str
    value: float
    unit: str
    limit: float | None
    ratio: float | None

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


class EngineBench:
    """Drives a runner directly with sequences whose KV is taken as given: speed does not depend on
    what stands in the pages."""

    def __init__(
        self,
        runner: ModelRunner,
        block_size: int,
        step_tokens: int,
        traffic: Traffic | None = None,
    ) -> None:
        """`traffic`: of the leader, where the runner has several ranks."""
        self._traffic = Traffic() if traffic is None else traffic
        self._runner = runner
        self._block_size = block_size
        self._step_tokens = step_tokens
        self._clock: Clock = SystemClock()
        self._bandwidth = read_bandwidth(self._clock)
        decoder = runner.forward.decoder
        self._dtype = decoder.head.dtype
        self._head = decoder.head.shape
        self._matrices = [
            module.shape
            for module in decoder.modules()
            if isinstance(module, Linear) and module is not decoder.head
        ]
        self._rates = MatmulRates(self._dtype, self._clock)

    def machine(self) -> Iterator[Row]:
        yield Row("machine/read", self._bandwidth / 1e9, "GB/s", None, None)
        _, inputs = max(self._matrices, key=math.prod)
        for rows in (1, 8, self._step_tokens):
            rate = self._rates.flops(rows, inputs)
            yield Row(f"machine/matmul/t{rows}", rate / 1e9, "GFLOP/s", None, None)

    def fits(self, batch: int, tokens: int) -> bool:
        """Whether the pool and the context hold `batch` sequences of `tokens`."""
        pages = -(-tokens // self._block_size)
        return (
            batch * pages <= self._runner.pages.num_blocks
            and tokens <= self._runner.info.context_length
        )

    async def decode(self, batch: int, context: int) -> Row:
        """Milliseconds of one step of `batch` sequences with `context` tokens each."""
        sequences = self._sequences(batch, context)
        value = await self._step_seconds(sequences)
        limit = self._limit(batch, batch * context, sampled=batch)
        return Row(f"decode/b{batch}/c{context}", value * 1e3, "ms", limit * 1e3, limit / value)

    async def mixed(self, batch: int, context: int, tokens: int) -> Row:
        """Milliseconds of one step of `batch` decodes and a chunk of a prompt, `tokens` long,
        behind as many tokens as each decode has: what the others wait when a prompt comes."""
        *decodes, prompt = self._sequences(batch + 1, context, room=tokens)
        chunk = Chunk(prompt, context, tokens, sample=False)
        prompt.tokens += prompt.tokens[:1] * tokens
        value = await self._step_seconds(decodes, chunk)
        limit = self._limit(batch + tokens, (batch + 1) * context + tokens, sampled=batch)
        name = f"mixed/b{batch}/c{context}/t{tokens}"
        return Row(name, value * 1e3, "ms", limit * 1e3, limit / value)

    async def prefill(self, tokens: int) -> Row:
        """Tokens a second of one prompt, in chunks of step_tokens."""
        sequence = self._sequence(0, tokens, tokens)
        chunks = []
        for start in range(0, tokens, self._step_tokens):
            count = min(self._step_tokens, tokens - start)
            chunks.append(Chunk(sequence, start, count, sample=start + count == tokens))
        seconds: list[float] = []
        while len(seconds) < PREFILL_REPEATS and sum(seconds) < PREFILL_S:
            began = self._clock.now()
            for chunk in chunks:
                await self._runner.execute(Batch((chunk,)))
            seconds.append(self._clock.now() - began)
        value = tokens / statistics.median(seconds)
        limit = tokens / sum(
            self._limit(chunk.num_tokens, chunk.end, sampled=int(chunk.sample)) for chunk in chunks
        )
        return Row(f"prefill/t{tokens}", value, "tok/s", limit, value / limit)

    async def outside(self, batch: int, *, overlap: bool = False) -> Row:
        """Share of a decode step that is not the model: schedule, inputs, sampling, update, event
        loop. `overlap`: with the next step prepared meanwhile."""
        steps = await self._engine_steps(self._runner, batch, prompt_len=9, overlap=overlap)
        share = statistics.median(1.0 - step.forward / step.seconds for step in steps)
        name = f"outside/b{batch}" + ("/overlap" if overlap else "")
        return Row(name, share * 100, "% of the step", 5.0, 5.0 / (share * 100))

    async def ranks(self, batch: int, tensor: int) -> list[Row]:
        """A decode step of the leader of several ranks in its parts. The limit of the volume is the
        formula for a model without experts."""
        steps = await self._engine_steps(self._runner, batch, prompt_len=9)
        median = sorted(steps)[len(steps) // 2]
        outside = (1.0 - median.forward / median.seconds) * 100
        decoder = self._runner.forward.decoder
        formula = dense_bytes(decoder.config, tensor, batch, self._dtype.itemsize) / 1024
        volume = median.bytes / 1024
        name = f"ranks/b{batch}"
        compute = (median.forward - median.communication) * 1e3
        return [
            Row(f"{name}/step", median.seconds * 1e3, "ms", None, None),
            Row(f"{name}/compute", compute, "ms", None, None),
            Row(f"{name}/communication", median.communication * 1e3, "ms", None, None),
            Row(f"{name}/overhead", outside, "% of the step", 5.0, 5.0 / outside),
            Row(f"{name}/volume", volume, "KiB", formula, formula / volume),
        ]

    async def outside_noop(self, batch: int, context: int = NOOP_CONTEXT) -> Row:
        """Milliseconds of a decode step where the model costs nothing. Its limit: 1 ms, and what
        reading the logits takes, since sampling must see each once."""
        info = self._runner.info
        tokens = context + WARM_STEPS + NOOP_STEPS + 2
        runner = noop_runner(info, self._dtype, self._block_size, batch=batch, tokens=tokens)
        steps = await self._engine_steps(runner, batch, prompt_len=context, measured=NOOP_STEPS)
        await runner.close()
        value = statistics.median(step.seconds for step in steps)
        limit = 1e-3 + batch * info.vocab_size * self._dtype.itemsize / self._bandwidth
        return Row(f"outside/b{batch}/noop", value * 1e3, "ms", limit * 1e3, limit / value)

    async def _engine_steps(
        self,
        runner: ModelRunner,
        batch: int,
        *,
        prompt_len: int,
        measured: int = DECODE_STEPS,
        overlap: bool = False,
    ) -> list[Step]:
        """Decode steps of an engine over `runner`."""
        engine = Engine(
            runner,
            block_size=self._block_size,
            step_tokens=batch * prompt_len,  # all are admitted at once
            max_seqs=batch,
            overlap=overlap,
        )
        for i in range(batch):
            prompt = tuple((i + j) % runner.info.vocab_size for j in range(prompt_len))
            engine.add(Request(f"r{i}", prompt, len(prompt), GREEDY))
        await engine.step()
        steps = []
        for _ in range(WARM_STEPS + measured):
            forward, traffic = runner.forward_seconds, self._traffic
            communication, moved = traffic.seconds, traffic.bytes
            began = self._clock.now()
            updates = await engine.step()
            steps.append(
                Step(
                    self._clock.now() - began,
                    runner.forward_seconds - forward,
                    traffic.seconds - communication,
                    traffic.bytes - moved,
                )
            )
            assert updates is not None and len(updates) == batch, "not everybody decodes"
        for seq in list(engine.scheduler.running):
            engine.abort(seq)
        while engine.has_work:  # a step may be under way
            await engine.step()
        return steps[WARM_STEPS:]

    async def _step_seconds(self, decodes: list[Sequence], *prefills: Chunk) -> float:
        """The median step that decodes each of `decodes` once more and computes `prefills`."""
        seconds = []
        for _ in range(WARM_STEPS + DECODE_STEPS):
            chunks = [Chunk(s, len(s.tokens) - 1, 1, sample=True) for s in decodes]
            began = self._clock.now()
            output = await self._runner.execute(Batch((*chunks, *prefills)))
            seconds.append(self._clock.now() - began)
            for sequence, token in zip(decodes, output.tokens, strict=True):
                if isinstance(token, KvasirError):
                    raise token
                sequence.tokens.append(token.id)
        return statistics.median(seconds[WARM_STEPS:])

    def _sequences(self, count: int, num_tokens: int, *, room: int = 0) -> list[Sequence]:
        room = num_tokens + max(room, WARM_STEPS + DECODE_STEPS)
        return [self._sequence(i, num_tokens, room) for i in range(count)]

    def _sequence(self, index: int, num_tokens: int, room: int) -> Sequence:
        """A sequence of random tokens with pages of its own for `room` tokens."""
        generator = torch.Generator().manual_seed(index)
        tokens = torch.randint(
            0, self._runner.info.vocab_size, (num_tokens,), generator=generator
        ).tolist()
        request = Request(f"bench-{index}", tuple(tokens), num_tokens, GREEDY)
        sequence = Sequence(request, BlockHasher(b"", self._block_size))
        pages = -(-room // self._block_size)
        sequence.blocks = array("i", range(index * pages, (index + 1) * pages))
        return sequence

    def _limit(self, rows: int, kv_tokens: int, *, sampled: int) -> float:
        """Seconds of a step at best: the larger of what memory and arithmetic take. All weights and
        the KV of `kv_tokens` are read once; `rows` go through the layers, `sampled` through the
        head. Attention's own operations are left out."""
        weights = sum(map(math.prod, self._matrices)) + (math.prod(self._head) if sampled else 0)
        kv = kv_tokens * self._runner.info.kv_bytes_per_token
        memory = (weights * self._dtype.itemsize + kv) / self._bandwidth
        products = self._rates.seconds(rows, self._matrices)
        if sampled:
            products += self._rates.seconds(sampled, [self._head])
        return max(memory, products)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. Points that do not fit the KV pool are skipped."""

    prefill: tuple[int, ...] = (128, 512, 2048, 8192)
    batches: tuple[int, ...] = (1, 4, 8, 16, 32, 64)
    contexts: tuple[int, ...] = (128, 1024, 4096)
    mixed: tuple[tuple[int, int, int], ...] = ((8, 1024, 256), (8, 1024, 512))
    outside: tuple[int, ...] = (1, 8, 64)
    tensor: int = 1


def measure(bench: EngineBench, plan: Plan) -> Iterator[Row]:
    """Blocking; rows as they are measured."""
    steps = WARM_STEPS + DECODE_STEPS
    yield from bench.machine()
    with asyncio.Runner() as loop:
        if plan.tensor > 1:
            for batch in plan.outside:
                yield from loop.run(bench.ranks(batch, plan.tensor))
        for tokens in plan.prefill:
            if bench.fits(1, tokens):
                yield loop.run(bench.prefill(tokens))
        for context in plan.contexts:
            for batch in plan.batches:
                if bench.fits(batch, context + steps):
                    yield loop.run(bench.decode(batch, context))
        for batch, context, tokens in plan.mixed:
            if bench.fits(batch + 1, context + max(tokens, steps)):
                yield loop.run(bench.mixed(batch, context, tokens))
        for batch in plan.outside:
            yield loop.run(bench.outside(batch))
            yield loop.run(bench.outside(batch, overlap=True))
        yield loop.run(bench.outside_noop(max(plan.outside)))
