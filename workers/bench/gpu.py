"""`python -m workers.bench.gpu --model DIR`: how near decode and prefill come to the GPU's limits.

Bytes that a decode step must move (weights once, the KV of every sequence) and operations of either
are divided by the time of whole steps, host included, and stand beside a device-to-device copy and
a large bf16 product of the same run. All times are between CUDA events.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import torch

from workers.bench.engine import DECODE_STEPS, GREEDY, WARM_STEPS, Row
from workers.config import EngineConfig
from workers.core.batch import Batch, Chunk
from workers.core.errors import KvasirError
from workers.core.hashing import BlockHasher
from workers.core.request import Request, Sequence
from workers.layers.linear import Linear
from workers.models.architecture import HeadAttention
from workers.runner.load import load_runner
from workers.runner.model_runner import ModelRunner

COPIED = 2 << 30  # bytes; far more than any cache
PRODUCT = 8192  # rows, inner and columns of the large product
REPEATS = 20
TERA = 1e12


class Stopwatch(Protocol):
    def start(self) -> None: ...

    def stop(self) -> float:
        """Seconds since start, once the device has done what was asked of it in between."""


class CudaStopwatch:
    def __init__(self) -> None:
        self._began, self._ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def start(self) -> None:
        self._began.record()

    def stop(self) -> float:
        self._ended.record()
        self._ended.synchronize()
        return self._began.elapsed_time(self._ended) / 1e3


def seconds_each(run: Callable[[], object], watch: Stopwatch, repeats: int = REPEATS) -> float:
    for _ in range(3):
        run()
    watch.start()
    for _ in range(repeats):
        run()
    return watch.stop() / repeats


def copy_bandwidth(device: torch.device, watch: Stopwatch, size: int = COPIED) -> float:
    """Bytes a second, read and written."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / seconds_each(lambda: target.copy_(source), watch)


def product_rate(device: torch.device, watch: Stopwatch, size: int = PRODUCT) -> float:
    """Operations a second of a bf16 product; of random numbers, since zeros take less power."""
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    return 2.0 * size**3 / seconds_each(lambda: a @ b, watch)


class GpuBench:
    """Drives a runner with sequences whose KV is taken as given: speed does not depend on it."""

    def __init__(
        self,
        runner: ModelRunner,
        watch: Stopwatch,
        *,
        block_size: int,
        step_tokens: int,
        bandwidth: float,
        rate: float,
    ) -> None:
        self._runner = runner
        self._watch = watch
        self._block_size = block_size
        self._step_tokens = step_tokens
        self._bandwidth = bandwidth
        self._rate = rate
        decoder, config = runner.forward.decoder, runner.forward.decoder.config
        self._head = math.prod(decoder.head.shape)
        linears = [module for module in decoder.modules() if isinstance(module, Linear)]
        self._layers = sum(math.prod(linear.shape) for linear in linears) - self._head
        self._weight_bytes = (self._layers + self._head) * decoder.head.dtype.itemsize
        # Of one query and one key: a product of head_dim with each, in every head and layer.
        self._pair_flops = sum(
            4 * layer.attention.heads * layer.attention.head_dim
            for layer in config.layers
            if isinstance(layer.attention, HeadAttention)
        )

    def machine(self) -> Iterator[Row]:
        yield Row("gpu/copy", self._bandwidth / TERA, "TB/s", None, None)
        yield Row("gpu/matmul", self._rate / TERA, "TFLOP/s", None, None)

    async def decode(self, batch: int, context: int) -> list[Row]:
        """Steps of `batch` sequences of `context` tokens each."""
        total = WARM_STEPS + DECODE_STEPS
        sequences = [self._sequence(i, context, context + total) for i in range(batch)]
        for step in range(total):
            if step == WARM_STEPS:
                self._watch.start()
            chunks = tuple(Chunk(s, len(s.tokens) - 1, 1, sample=True) for s in sequences)
            output = await self._runner.execute(Batch(chunks))
            for sequence, token in zip(sequences, output.tokens, strict=True):
                if isinstance(token, KvasirError):
                    raise token
                sequence.tokens.append(token.id)
        seconds = self._watch.stop() / DECODE_STEPS
        moved = self._weight_bytes + batch * context * self._runner.info.kv_bytes_per_token
        flops = batch * (2 * (self._layers + self._head) + context * self._pair_flops)
        name = f"gpu/decode/b{batch}/c{context}"
        return [
            Row(f"{name}/step", seconds * 1e3, "ms", None, None),
            self._row(f"{name}/bytes", moved / seconds, "TB/s", self._bandwidth),
            self._row(f"{name}/flops", flops / seconds, "TFLOP/s", self._rate),
        ]

    async def prefill(self, tokens: int) -> list[Row]:
        """One prompt, in chunks of step_tokens; the second of two runs."""
        seconds = 0.0
        for _ in range(2):
            sequence = self._sequence(0, tokens, tokens)
            self._watch.start()
            for start in range(0, tokens, self._step_tokens):
                count = min(self._step_tokens, tokens - start)
                chunk = Chunk(sequence, start, count, sample=start + count == tokens)
                await self._runner.execute(Batch((chunk,)))
            seconds = self._watch.stop()
        pairs = tokens * (tokens + 1) // 2
        flops = 2 * (tokens * self._layers + self._head) + pairs * self._pair_flops
        name = f"gpu/prefill/t{tokens}"
        return [
            Row(f"{name}/speed", tokens / seconds, "tok/s", None, None),
            self._row(f"{name}/flops", flops / seconds, "TFLOP/s", self._rate),
        ]

    def _row(self, name: str, value: float, unit: str, limit: float) -> Row:
        return Row(name, value / TERA, unit, limit / TERA, value / limit)

    def _sequence(self, index: int, num_tokens: int, room: int) -> Sequence:
        """`num_tokens` tokens, with pages of its own for `room`."""
        vocab = self._runner.info.vocab_size
        tokens = tuple((index + 17 * i) % vocab for i in range(num_tokens))
        hasher = BlockHasher(b"", self._block_size)
        sequence = Sequence(Request(f"bench-{index}", tokens, num_tokens, GREEDY), hasher)
        pages = -(-room // self._block_size)
        sequence.blocks = array("i", range(index * pages, (index + 1) * pages))
        return sequence


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m workers.bench.gpu", description=__doc__)
    parser.add_argument("--model", required=True, help="checkpoint directory or hub id")
    parser.add_argument("--dtype", default="bfloat16", help="auto, bfloat16, float16, float32")
    parser.add_argument("--step-tokens", type=int, default=2048, help="prefill chunk")
    parser.add_argument("--batches", type=_sizes, default=(1, 8, 64))
    parser.add_argument("--contexts", type=_sizes, default=(128, 1024, 4096))
    parser.add_argument("--prefill", type=_sizes, default=(512, 2048, 8192))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no CUDA device: this benchmark needs one", file=sys.stderr)
        return 2
    rows = []
    for row in _measure(options, torch.device("cuda")):
        rows.append(row)
        limit = "" if row.limit is None else f"  of {row.limit:8.2f}  ratio {row.ratio:.2f}"
        print(f"{row.name:<28} {row.value:10.3f} {row.unit:<8}{limit}", flush=True)
    if options.json:
        options.json.write_text(json.dumps([row.as_dict() for row in rows], indent=2) + "\n")
    return 0


def _measure(options: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    room = max(options.contexts) + WARM_STEPS + DECODE_STEPS
    config = EngineConfig.model_validate(
        {
            "dtype": options.dtype,
            "step_tokens": options.step_tokens,
            "max_seqs": max(options.batches),
            "kv_tokens": max(max(options.batches) * (room + 16), *options.prefill),
        }
    )
    watch = CudaStopwatch()
    # Before the model takes its memory.
    bandwidth, rate = copy_bandwidth(device, watch), product_rate(device, watch)
    runner = load_runner(options.model, config, device=device.type)
    bench = GpuBench(
        runner,
        watch,
        block_size=config.block_size,
        step_tokens=options.step_tokens,
        bandwidth=bandwidth,
        rate=rate,
    )
    yield from bench.machine()
    with asyncio.Runner() as loop:
        for tokens in options.prefill:
            yield from loop.run(bench.prefill(tokens))
        for context in options.contexts:
            for batch in options.batches:
                yield from loop.run(bench.decode(batch, context))
        loop.run(runner.close())


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
