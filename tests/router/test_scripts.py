"""Whatever workers do at whatever step: each position once, in order, and nothing is left."""

from __future__ import annotations

import asyncio

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.config import Limits
from router.latency import FittedLatency
from tests.router.fleet import SHAPE, FakeWorker, House, house, request, until
from tests.router.test_dispatch import check_output
from tests.router.test_early import SlowEverything

LIMITS = Limits(retry_attempts=60, retry_s=60.0, worker_wait_s=60.0, worker_silence_s=1.0)
ERRORS = ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION")
PREFILL = ["ok", "die first", "lose ticket", "die opened"] + [
    f"{error} {moment}" for error in ERRORS for moment in ("before", "opened", "computed")
]
DECODE = ["ok", "repeat", "old attempt", "skip", "die redeemed", "die after 2", "die offered"] + [
    f"{error} {moment}"
    for error in ERRORS
    for moment in ("before", "redeemed", "after 0", "after 2", "offered", "moved")
]
ROLES = {"prefill": PREFILL, "decode": DECODE, "aggregated": DECODE}
NAMES = st.sampled_from(
    [
        ("prefill-1", "decode-1", "decode-2"),
        ("prefill-1", "prefill-2", "decode-1"),
        ("prefill-1", "decode-1", "aggregated-1"),
        ("aggregated-1", "aggregated-2"),
    ]
)


def scripts(names: tuple[str, ...]) -> st.SearchStrategy[dict[str, list[str]]]:
    words = {name: ROLES[name.partition("-")[0]] for name in names}
    return st.fixed_dictionaries(
        {name: st.lists(st.sampled_from(words[name]), max_size=3) for name in names}
    )


async def play(script: dict[str, list[str]], early: bool, moves: list[int]) -> None:
    """One request, asked to move at each of `moves` tokens; who died is started again."""
    latency = SlowEverything() if early else FittedLatency(SHAPE)
    async with house(*script, limits=LIMITS, latency=latency) as inside:
        await until(lambda: all(r.load.kv_bytes_per_token for r in inside.pool))
        for name, words in script.items():
            inside.fleet[name].script.extend(words)
            inside.fleet[name].pace_s = 0.002
        healing = asyncio.create_task(heal(inside))
        asked, got = request(max_tokens=16), []
        async with asyncio.timeout(30):
            async for emission in inside.dispatcher.run(asked):
                got.append(emission)
                if len(got) in moves:
                    for fake in list(inside.fleet.workers.values()):
                        ask_to_move(fake, asked.id)
        check_output(asked, got)
        healing.cancel()
        await asyncio.gather(healing, return_exceptions=True)
        await inside.fleet.quiet()


def ask_to_move(fake: FakeWorker, request_id: str) -> None:
    if request_id in fake.live:
        fake.live[request_id].asked = True


async def heal(inside: House) -> None:
    while True:
        await asyncio.sleep(0.02)
        for fake in inside.fleet.workers.values():
            if not fake.running:
                await fake.start()


@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(
    script=NAMES.flatmap(scripts),
    early=st.booleans(),
    moves=st.lists(st.integers(1, 14), max_size=2),
)
def test_each_position_once_under_every_script(
    script: dict[str, list[str]], early: bool, moves: list[int]
) -> None:
    asyncio.run(play(script, early, moves))
