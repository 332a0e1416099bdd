"""A bare engine that runs steps of one kind when it is told to: fidelity_cores.py runs two."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys

from cluster.simulator.fleet.cores import KINDS, StepKind
from workers.config import EngineConfig
from workers.core.clock import SystemClock
from workers.core.request import Request, SamplingParams
from workers.engine import Engine
from workers.runner.ranks import load_replica

CONTEXT = 48  # tokens of a prompt, and of what decodes begin behind
ANSWER = 200
SEQUENCES: dict[StepKind, int] = {"single": 1, "several": 4, "prompt": 1}
SKIPPED = 2  # first steps of a stretch: the other engine may not have begun
LEAST_STEPS = 3


class Bare:
    """An engine that has one kind of step to do."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._clock = SystemClock()
        self._count = 0

    async def run(self, kind: StepKind, seconds: float) -> list[float]:
        """What its steps took."""
        engine = self._engine
        while engine.has_work:
            await engine.step()
        took: list[float] = []
        until = self._clock.now() + seconds
        while self._clock.now() < until or len(took) < SKIPPED + LEAST_STEPS:
            while len(engine.scheduler.waiting) + len(engine.scheduler.running) < SEQUENCES[kind]:
                engine.add(self._request(1 if kind == "prompt" else ANSWER))
            await engine.step()
            work, step_s = engine.steps.newest[-1] if engine.steps.newest else (None, 0.0)
            if work is not None and (work.prefill_tokens > 0) == (kind == "prompt"):
                took.append(step_s)
        for seq in list(engine.scheduler.running):
            engine.abort(seq)
        return took[SKIPPED:]

    def _request(self, most: int) -> Request:
        self._count += 1
        tokens = tuple(random.Random(self._count).choices(range(32, 232), k=CONTEXT))
        params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=most)
        return Request(f"{self._count}", tokens, CONTEXT, params)


async def serve(model: str, config: EngineConfig) -> None:
    """Reads `KIND SECONDS` a line, answers with what steps took, as JSON."""
    runner = load_replica(model, config)
    try:
        engine = Engine(
            runner,
            block_size=config.block_size,
            step_tokens=config.step_tokens,
            max_seqs=config.max_seqs,
        )
        bare = Bare(engine)
        for kind in KINDS:  # allocation and caches
            await bare.run(kind, 0.0)
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            kind, seconds = line.split()
            print(json.dumps(await bare.run(kind, float(seconds))), flush=True)  # type: ignore[arg-type]
    finally:
        await runner.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--engine", default="{}", help="JSON, as in cluster.yaml")
    options = parser.parse_args()
    asyncio.run(serve(options.model, EngineConfig.model_validate(json.loads(options.engine))))


if __name__ == "__main__":
    main()
