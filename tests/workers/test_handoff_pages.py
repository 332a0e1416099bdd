"""bf16 pages arrive bit for bit, whatever carries them."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint
from tests.handoff import both
from tests.sim.house import SimPeer
from tests.workers.links import HOST, threads_end
from workers.config import EngineConfig, TransportConfig
from workers.core.hashing import block_ids, namespace
from workers.core.request import Request, SamplingParams
from workers.engine import Engine
from workers.runner.load import load_runner
from workers.transfer.pick import pick_transports
from workers.transfer.threads import on_thread
from workers.wire import common_pb2 as common
from workers.worker import Worker

TOKENS = 700


@pytest.mark.parametrize("backend", ["shm", "gloo", "inline"])
async def test_bf16_pages_are_equal_after_the_handoff(backend: str, tmp_path: Path) -> None:
    """Every byte of every block."""
    before = set(threading.enumerate())
    model = make_checkpoint(tmp_path / "model", "llama", max_position_embeddings=1024)
    config = TransportConfig.model_validate(
        {"backend": backend, "staging_bytes": 1 << 16, "checksums": True, "inline_bytes": 0}
    )
    house: dict[str, Worker] = {}

    async def start(name: str, role: common.Role) -> Worker:
        runner = load_runner(str(model), EngineConfig(dtype="bfloat16", kv_tokens=2048))
        transports = pick_transports(config, HOST)
        address = f"{HOST}:{len(house)}"  # nobody listens there
        house[address] = Worker(
            Engine(runner, block_size=16, step_tokens=128, max_seqs=4),
            common.ReplicaRef(id=name, incarnation="1", address=address),
            role,
            peer_at=lambda address: SimPeer(house[address]),
            ports=await runner.ports(transports, config, HOST),
            transports=transports,
            config=config,
            ttl_s=10.0,
            offload=on_thread,
        )
        return house[address]

    p, d = await start("p", common.ROLE_PREFILL), await start("d", common.ROLE_DECODE)
    running = [asyncio.create_task(made.run()) for made in (p, d)]
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)

    async def hand_over(prompt: tuple[int, ...]) -> str:
        request = Request(str(prompt[0]), prompt, TOKENS, params)
        admitted, tokens = await both(p.prefill.prefill, d.decode.decode, request)
        assert len(tokens) == 4
        return str(admitted.transport)

    await hand_over(tuple(i * 31 % 250 for i in range(1, TOKENS + 1)))  # while a pair is made
    prompt = tuple(i * 37 % 250 for i in range(TOKENS))
    assert await hand_over(prompt) == backend

    ids = block_ids(prompt, namespace(p.engine.info.kv_abi), 16)
    pages = []
    for made in (p, d):
        blocks = made.engine.pool.shards[0].match(ids)
        assert len(blocks) == TOKENS // 16
        store = made.engine.runner.pages
        staging = store.new_staging(len(blocks) * store.block_bytes)
        store.gather(blocks, staging)
        pages.append(store.to_bytes(staging, len(blocks) * store.block_bytes))
    assert pages[0] == pages[1]
    assert len(set(pages[0])) > 100, "pages of zeros prove nothing"

    for task in running:
        task.cancel()
    await asyncio.wait(running)
    for made in (p, d):
        made.check_integrity()
        await made.close()
    await threads_end(before)
