"""A planner that applies its plans on real clusters: pools grow under load and go when it ends, a
flex replica follows what is asked for. No request is lost, no answer is wrong."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from cluster.admin_client import AdminClient
from cluster.autoscaler.published import Published
from load_tests.chaos_work import WORDS, Work, same_tokens
from tests.e2e.ray_serving import answers, ray_serve, under_load
from tests.e2e.serving import Serving, kvasir, kvasir_serve
from tests.e2e.test_serve import long_stream, read
from workers.core.errors import PlanNotFound
from workers.core.waits import let_go
from workers.wire import admin_pb2 as admin
from workers.wire import common_pb2 as common

PLANNER = {
    "mode": "apply", "every_s": 1, "settle_s": 2, "idle_s": 5, "cold_start_s": 5,
    "forecast": False, "metrics_port": 0,
}  # fmt: skip
ENGINE = {"dtype": "float32", "kv_tokens": 8192, "threads": 1}
ROUTER = {"limits": {"worker_wait_s": 300, "retry_s": 300}}  # a start takes as long as it takes
CLIENTS = 3
MORE = 4  # answers that must come after it

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def started(
    backend: str, folder: Path, pools: list[dict[str, Any]], **changes: Any
) -> AbstractContextManager[Serving]:
    """The same pools, engine and planner on either."""
    changes["router"] = ROUTER
    if backend == "ray":
        return ray_serve(folder, pools, changes)
    return kvasir_serve(folder, changes={**changes, "pools": pools})


async def comes(serving: Serving, holds: Callable[[admin.StatusResponse], object]) -> None:
    """However long a start, or the planner's certainty, takes."""
    while not holds(serving.status()):
        await asyncio.sleep(0.2)


def ready(now: admin.StatusResponse, pool: str) -> int:
    return sum(each.pool == pool and each.load.state == "ready" for each in now.replicas)


def explained(serving: Serving) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(
        kvasir("explain", "scale", f"--router={serving.grpc}", "--json")
    )
    return told


# -- sizes ----------------------------------------------------------------------------------------


@dataclass
class Asking:
    """Clients of the gateway that stream one answer after the other, until `stopped`."""

    client: AsyncOpenAI
    model: str
    texts: dict[str, str]  # the right answers, by prompt
    answered: int = 0
    stopped: bool = False

    async def ask(self, prompt: str) -> None:
        stream = await long_stream(self.client, self.model, prompt=prompt)
        assert await read(stream) == self.texts[prompt]
        self.answered += 1

    async def go_on(self, rng: random.Random) -> None:
        while not self.stopped:
            await self.ask(rng.choice(list(self.texts)))


@asynccontextmanager
async def openai_load(serving: Serving, clients: int) -> AsyncIterator[Asking]:
    base = f"{serving.url}/v1"
    async with AsyncOpenAI(base_url=base, api_key="none", max_retries=0) as client:
        prompts = [" ".join(random.Random(n).choices(WORDS, k=12)) for n in range(4)]
        texts = {p: await read(await long_stream(client, serving.model, prompt=p)) for p in prompts}
        asking = Asking(client, serving.model, texts)
        async with asyncio.TaskGroup() as tasks:
            for number in range(clients):
                tasks.create_task(asking.go_on(random.Random(number)))
            yield asking
            asking.stopped = True


@pytest.mark.parametrize("backend", ["process", "ray"])
async def test_pools_grow_under_load_go_to_zero_and_come_back(backend: str, tmp_path: Path) -> None:
    # One sequence keeps a decode replica busy, however fast this machine is.
    pools = [
        {"name": "prefill", "role": "prefill", "min": 0, "max": 1},
        {"name": "decode", "role": "decode", "min": 0, "max": 2},
    ]
    engine = {**ENGINE, "max_seqs": 1}
    with started(backend, tmp_path, pools, engine=engine, planner=PLANNER) as serving:
        async with openai_load(serving, CLIENTS) as load:
            await comes(serving, lambda now: ready(now, "decode") == 2)
            enough = load.answered + MORE
            while load.answered < enough:
                await asyncio.sleep(0.1)
            told = explained(serving)
            assert told["orders"] == {"prefill": 1, "decode": 2}
            plan = told["published"]["plan"]
            assert plan["inputs"]["offered"] > 0 and plan["prediction"]["decode_busy"] > 0
            assert plan["reasons"] and plan["rejected"]
        await comes(serving, lambda now: not now.replicas)
        assert explained(serving)["orders"] == {"prefill": 0, "decode": 0}
        assert "prefill 0" in kvasir("explain", "scale", f"--router={serving.grpc}")
        async with AsyncOpenAI(base_url=f"{serving.url}/v1", api_key="none") as client:
            load.client = client
            await load.ask(min(load.texts))  # which brings one of each back
        await serving.idle()


# -- roles ----------------------------------------------------------------------------------------

FLEX = [
    {"name": "prefill", "role": "prefill"},
    {"name": "decode", "role": "decode"},
    {"name": "flex", "role": "flex", "starts_as": "decode"},
]
# No prompt is that fast, so none may wait: half of them do where a prefill server is half busy.
TARGETS = {"classes": {"standard": {"ttft": "1ms", "max_wait": "10m"}}}


def prompts(count: int, words: int, max_tokens: int) -> list[Work]:
    rng = random.Random(words)
    texts = (" ".join(rng.choices(WORDS, k=words)) for _ in range(count))
    return [Work(text, None, max_tokens) for text in texts]


async def test_a_flex_replica_follows_the_load_with_sequences_under_way(tmp_path: Path) -> None:
    # All heavy prompts together find no room in the cache.
    changes = {"engine": {**ENGINE, "max_seqs": 2}, "slo": TARGETS}
    planner = {**PLANNER, "attainment": 0.5, "settle_s": 6}
    with started("process", tmp_path, FLEX, planner=planner, **changes) as serving:
        heavy = await same_tokens(serving.grpc, serving.model, prompts(16, 700, 1))
        long = await same_tokens(serving.grpc, serving.model, prompts(4, 8, 400))
        async with plans(serving) as seen, under_load(serving, long, clients=1) as decoding:
            async with under_load(serving, heavy, clients=4) as load:
                await comes(serving, lambda now: has_role(now, common.ROLE_PREFILL))
                await answers(load, MORE)
                await answers(decoding, 1)
            async with under_load(serving, long, clients=3) as load:
                await comes(serving, lambda now: has_role(now, common.ROLE_DECODE))
                await answers(load, MORE)
        ordered = [pool["flip"] for plan in seen for pool in plan.plan["pools"]]
        assert 1 in ordered and -1 in ordered
        flips = 'kvasir_planner_actions_total{kind="flip"'
        assert await sample(tmp_path / "planner.log", flips) >= 2
        changes_made = "kvasir_worker_role_change_seconds_count"
        assert await sample(tmp_path / "flex-0.log", changes_made) >= 2, "of the same process"
        await serving.idle()


def has_role(now: admin.StatusResponse, role: common.Role) -> bool:
    return any(each.pool == "flex" and each.load.role == role for each in now.replicas)


@asynccontextmanager
async def plans(serving: Serving) -> AsyncIterator[list[Published]]:
    """All that are published while the block runs."""
    seen: list[Published] = []

    async def follow() -> None:
        while True:
            with suppress(PlanNotFound), AdminClient(serving.grpc) as client:
                plan = Published.model_validate_json(client.explain_scale().json)
                if not seen or plan.at > seen[-1].at:
                    seen.append(plan)
            await asyncio.sleep(0.2)

    following = asyncio.create_task(follow())
    try:
        yield seen
    finally:
        await let_go(following)


async def sample(log: Path, name: str) -> float:
    """Of the metrics of a process, whose log says where they are; over all labels."""
    (port,) = re.findall(r"metrics on (?:port |http://127.0.0.1:)(\d+)", log.read_text())
    async with httpx.AsyncClient(trust_env=False) as client:
        text = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    found = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(name)]
    return sum(map(float, found))
