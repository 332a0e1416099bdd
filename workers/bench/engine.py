"""`kvasir bench engine`: one engine without network, each figure beside its limit of the same run.

Decode's limit is bytes that must move (weights once, the KV of every sequence) over the measured
read bandwidth; prefill's is its matrix products at the measured rates of their shapes.
"""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch

from workers.bench.limits import MatmulRates, read_bandwidth
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
GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)


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

    def __init__(self, runner: ModelRunner, block_size: int, step_tokens: int) -> None:
        self._runner = runner
        self._block_size = block_size
        self._step_tokens = step_tokens
        self._clock: Clock = SystemClock()
        self._bandwidth = read_bandwidth(self._clock)
        decoder = runner.decoder
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
        outputs, inputs = max(self._matrices, key=math.prod)
        rate = self._rates.flops(self._step_tokens, inputs, outputs)
        yield Row(f"machine/matmul/t{self._step_tokens}", rate / 1e12, "TFLOP/s", None, None)

    def fits(self, batch: int, tokens: int) -> bool:
        """Whether the pool and the context hold `batch` sequences of `tokens`."""
        pages = -(-tokens // self._block_size)
        return (
            batch * pages <= self._runner.pages.num_blocks
            and tokens <= self._runner.info.context_length
        )

    async def decode(self, batch: int, context: int) -> Row:
        """Milliseconds of one step of `batch` sequences with `context` tokens each."""
        total = WARM_STEPS + DECODE_STEPS
        sequences = [self._sequence(i, context, context + total) for i in range(batch)]
        seconds = []
        for _ in range(total):
            chunks = tuple(Chunk(s, len(s.tokens) - 1, 1, sample=True) for s in sequences)
            began = self._clock.now()
            output = await self._runner.execute(Batch(chunks))
            seconds.append(self._clock.now() - began)
            for sequence, token in zip(sequences, output.tokens, strict=True):
                if isinstance(token, KvasirError):
                    raise token
                sequence.tokens.append(token.id)
        value = statistics.median(seconds[WARM_STEPS:])
        limit = self._decode_bytes(batch * context) / self._bandwidth
        return Row(f"decode/b{batch}/c{context}", value * 1e3, "ms", limit * 1e3, limit / value)

    async def prefill(self, tokens: int) -> Row:
        """Tokens a second of one prompt, in chunks of step_tokens."""
        sequence = self._sequence(0, tokens, tokens)
        began = self._clock.now()
        for start in range(0, tokens, self._step_tokens):
            count = min(self._step_tokens, tokens - start)
            chunk = Chunk(sequence, start, count, sample=start + count == tokens)
            await self._runner.execute(Batch((chunk,)))
        value = tokens / (self._clock.now() - began)
        limit = tokens / self._prefill_seconds(tokens)
        return Row(f"prefill/t{tokens}", value, "tok/s", limit, value / limit)

    async def outside(self, batch: int) -> Row:
        """Share of a decode step that is not the model: schedule, inputs, update, event loop."""
        engine = Engine(
            self._runner,
            block_size=self._block_size,
            step_tokens=self._step_tokens,
            max_seqs=batch,
        )
        prompt = tuple(range(1, 9))
        for i in range(batch):
            engine.add(Request(f"r{i}", (i + 1, *prompt), len(prompt) + 1, GREEDY))
        while len(engine.scheduler.running) < batch or engine.scheduler.waiting:
            await engine.step()
        await engine.step()
        shares = []
        for _ in range(WARM_STEPS + DECODE_STEPS):
            forward = self._runner.forward_seconds
            began = self._clock.now()
            await engine.step()
            step = self._clock.now() - began
            shares.append(1.0 - (self._runner.forward_seconds - forward) / step)
        for seq in list(engine.scheduler.running):
            engine.abort(seq)
        share = statistics.median(shares[WARM_STEPS:])
        return Row(f"outside/b{batch}", share * 100, "% of the step", 5.0, 5.0 / (share * 100))

    def _sequence(self, index: int, num_tokens: int, room: int) -> Sequence:
        """A sequence of random tokens with pages of its own for `room` tokens."""
        generator = torch.Generator().manual_seed(index)
        tokens = torch.randint(
            0, self._runner.info.vocab_size, (num_tokens,), generator=generator
        ).tolist()
        request = Request(f"bench-{index}", tuple(tokens), num_tokens, GREEDY)
        sequence = Sequence(request, BlockHasher(b"", self._block_size))
        pages = -(-room // self._block_size)
        sequence.blocks = list(range(index * pages, (index + 1) * pages))
        return sequence

    def _decode_bytes(self, kv_tokens: int) -> float:
        weights = sum(map(math.prod, [*self._matrices, self._head]))
        kv = kv_tokens * self._runner.info.kv_bytes_per_token
        return float(weights * self._dtype.itemsize + kv)

    def _prefill_seconds(self, tokens: int) -> float:
        """The layers' products, chunk by chunk, and the head's for one token. Attention's own are
        left out: they are what is not yet limited by products at these lengths."""
        chunks = [
            min(self._step_tokens, tokens - start) for start in range(0, tokens, self._step_tokens)
        ]
        layers = sum(self._rates.seconds(rows, self._matrices) for rows in chunks)
        return layers + self._rates.seconds(1, [self._head])


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. Points that do not fit the KV pool are skipped."""

    prefill: tuple[int, ...] = (128, 512, 2048, 8192)
    batches: tuple[int, ...] = (1, 4, 8, 16, 32, 64)
    contexts: tuple[int, ...] = (128, 1024, 4096)
    outside: tuple[int, ...] = (1, 8, 64)


def measure(bench: EngineBench, plan: Plan) -> Iterator[Row]:
    """Blocking; rows as they are measured."""
    yield from bench.machine()
    with asyncio.Runner() as loop:
        for tokens in plan.prefill:
            if bench.fits(1, tokens):
                yield loop.run(bench.prefill(tokens))
        for context in plan.contexts:
            for batch in plan.batches:
                if bench.fits(batch, context + WARM_STEPS + DECODE_STEPS):
                    yield loop.run(bench.decode(batch, context))
        for batch in plan.outside:
            yield loop.run(bench.outside(batch))
