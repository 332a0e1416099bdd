#!/usr/bin/env python3
"""Steps of a real engine under loads of all kinds, each as a line of JSON: what bench_latency.py
replays. Prompts come in bursts or one by one, long or short, with shared prefixes or without.
`cpu_seconds` are those of the process: on a machine shared with others, and with one thread, what
`seconds` would be on one of its own.

python load_tests/record_steps.py --model demo --steps 1500 --out steps.jsonl
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from pathlib import Path
from time import process_time

from cluster.model_source import resolve_model
from workers.config import EngineConfig
from workers.core.errors import KvasirError
from workers.core.request import Request, SamplingParams
from workers.engine import Engine
from workers.runner.ranks import load_replica

EPISODE_STEPS = 60  # of one kind of load


class Load:
    """Requests of one kind: sizes are drawn anew for each episode."""

    def __init__(self, rng: random.Random, engine: Engine, most_tokens: int) -> None:
        self._rng = rng
        self._engine = engine
        self._most = most_tokens
        self._count = 0
        self._prefixes: list[tuple[int, ...]] = []
        self.next()

    def next(self) -> None:
        rng = self._rng
        self._in_flight = rng.choice([1, 2, 4, 8, 16, 32])
        self._prompt = rng.choice([30, 120, 400, 1200])
        self._output = rng.choice([2, 8, 40, 150])
        self._shared = rng.choice([0.0, 0.5])

    def fill(self) -> None:
        """One request at most for each step, so that batches grow and prompts meet decodes."""
        scheduler = self._engine.scheduler
        if len(scheduler.waiting) + len(scheduler.running) < self._in_flight:
            self._engine.add(self._request())

    def _request(self) -> Request:
        rng, self._count = self._rng, self._count + 1
        output = max(2, round(rng.lognormvariate(0, 0.5) * self._output))
        length = max(4, round(rng.lognormvariate(0, 0.7) * self._prompt))
        length = min(length, self._most - output - 1)
        tokens: tuple[int, ...] = ()
        if self._prefixes and rng.random() < self._shared:
            tokens = rng.choice(self._prefixes[-20:])[: length - 1]
        vocabulary = self._engine.info.vocab_size
        tokens += tuple(rng.randrange(vocabulary) for _ in range(length - len(tokens)))
        self._prefixes.append(tokens)
        params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=output)
        return Request(f"r{self._count}", tokens, length, params)


async def record(engine: Engine, options: argparse.Namespace) -> None:
    load = Load(random.Random(options.seed), engine, min(engine.max_tokens, 3000))
    seen = 0
    with options.out.open("w", encoding="utf-8") as file:
        while engine.steps.recorded < options.steps:
            load.fill()
            began = process_time()
            await engine.step()
            cpu_s = process_time() - began
            if engine.steps.recorded == seen:
                continue
            seen = engine.steps.recorded
            work, seconds = engine.steps.newest[-1]
            times = {"seconds": round(seconds, 7), "cpu_seconds": round(cpu_s, 7)}
            file.write(json.dumps({**work._asdict(), **times}) + "\n")
            if seen % EPISODE_STEPS == 0:
                load.next()
                file.flush()


async def run(options: argparse.Namespace) -> None:
    config = EngineConfig(threads=options.threads, kv_tokens=options.kv_tokens)
    runner = load_replica(str(resolve_model(options.model)), config)
    try:
        engine = Engine(
            runner,
            block_size=config.block_size,
            step_tokens=config.step_tokens,
            max_seqs=config.max_seqs,
        )
        await record(engine, options)
    finally:
        await runner.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kv-tokens", type=int, default=40_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    try:
        asyncio.run(run(options))
    except KvasirError as error:
        raise SystemExit(error.message) from None


if __name__ == "__main__":
    main()
