"""Many requests while workers refuse, lie, die, fall silent, drain and come back, at random."""

from __future__ import annotations

import asyncio
import random

import pytest

from router.config import Limits
from tests.router.fleet import FakeWorker, House, house, request, token_at
from workers.core.request import FinishReason, Request

SPLIT = ("prefill-1", "prefill-2", "decode-1", "decode-2")
MIXED = ("prefill-1", "decode-1", "aggregated-1")
LIMITS = Limits(retry_attempts=60, retry_s=60.0, worker_wait_s=60.0, worker_silence_s=1.0)
WORDS = {
    "prefill": ("ok", "ok", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "lose ticket", "die before"),
    "decode": ("ok", "ok", "UNAVAILABLE", "repeat", "old attempt", "skip", "die after 2"),
    "aggregated": ("ok", "ok", "RESOURCE_EXHAUSTED", "old attempt", "skip", "die after 2"),
}


async def trouble(inside: House, rng: random.Random) -> None:
    """Kills, drains and revives, one worker at a time."""
    while True:
        await asyncio.sleep(rng.uniform(0.01, 0.1))
        fake = inside.fleet[rng.choice(list(inside.fleet.workers))]
        fake.state = rng.choice(["ready", "ready", "draining"])
        if rng.random() < 0.3:
            await fake.kill()
        await revive(fake)


async def revive(fake: FakeWorker) -> None:
    if not fake.running:
        await fake.start()


async def client(inside: House, asked: Request, patience: int | None) -> None:
    """Reads to the end, or leaves after `patience` tokens."""
    got: list[int] = []
    emissions = inside.dispatcher.run(asked)
    async for emission in emissions:
        for token in emission.tokens:
            assert token.position == asked.prompt_len + len(got)
            assert token.id == token_at(token.position)
            got.append(token.id)
        if patience is not None and len(got) >= patience:
            break
        if emission.finish_reason is not None:
            assert emission.finish_reason is FinishReason.LENGTH
            assert len(got) == asked.params.max_tokens
    await emissions.aclose()


@pytest.mark.parametrize("names", [SPLIT, MIXED], ids=["split", "mixed"])
@pytest.mark.parametrize("seed", [1, 2])
async def test_every_position_once_and_nothing_left(seed: int, names: tuple[str, ...]) -> None:
    rng = random.Random(seed)
    async with house(*names, limits=LIMITS) as inside:
        for fake in inside.fleet.workers.values():
            fake.script.extend(rng.choices(WORDS[fake.role], k=15))
        troubling = asyncio.create_task(trouble(inside, rng))
        clients = [
            client(inside, request(max_tokens=10), rng.choice([None, None, 0, 1, 4]))
            for _ in range(30)
        ]
        async with asyncio.timeout(60):
            await asyncio.gather(*clients)
        troubling.cancel()
        await asyncio.gather(troubling, return_exceptions=True)
        for fake in inside.fleet.workers.values():
            fake.state = "ready"
            await revive(fake)
        await inside.fleet.quiet()
