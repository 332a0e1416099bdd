"""The planner beside `kvasir serve`: load makes it add a replica, quiet gives it back, and no
request is lost on the way."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest

from load_tests.chaos_work import same_tokens, works
from tests.e2e.ray_serving import answers, under_load
from tests.e2e.serving import kvasir, kvasir_serve
from workers.wire import admin_pb2 as admin

# One sequence keeps a decode replica busy, however fast this machine is.
CHANGES: dict[str, Any] = {
    "engine": {"max_seqs": 1, "kv_tokens": 8192, "threads": 1},
    "pools": [
        {"name": "prefill", "role": "prefill"},
        {"name": "decode", "role": "decode", "min": 1, "max": 2},
    ],
    "planner": {
        "mode": "apply", "every_s": 1, "settle_s": 2, "idle_s": 5, "cold_start_s": 5,
        "forecast": False, "metrics_port": 0,
    },
}  # fmt: skip
KINDS = 4
CLIENTS = 3
MORE = 4  # answers that must come after it

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


async def test_load_adds_a_replica_and_quiet_gives_it_back(tmp_path: Path) -> None:
    with kvasir_serve(tmp_path, changes=CHANGES) as serving:
        work = await same_tokens(serving.grpc, serving.model, works(random.Random(3))[:KINDS])
        async with under_load(serving, work, clients=CLIENTS) as load:
            while decodes(serving.status()) < 2:  # a start takes its time where tests run beside it
                await asyncio.sleep(0.2)
            await answers(load, MORE)
            said = kvasir("explain", "scale", f"--router={serving.grpc}", "--json")
            told = json.loads(said)
            assert told["orders"] == {"prefill": 1, "decode": 2}
            assert told["published"]["plan"]["inputs"]["offered"] > 0
        while decodes(serving.status()) == 2:
            await asyncio.sleep(0.2)
        await serving.until(lambda now: len(now.replicas) == 2)
        await serving.idle()


def decodes(now: admin.StatusResponse) -> int:
    return sum(each.pool == "decode" and each.load.state == "ready" for each in now.replicas)
