"""Real process groups: bytes, deaths and goodbyes; and bf16 pages that arrive bit for bit."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch

from tests.checkpoints import make_checkpoint
from tests.handoff import both
from tests.sim.house import SimPeer
from workers.config import EngineConfig, TransportConfig
from workers.core.errors import TransferError
from workers.core.hashing import block_ids, namespace
from workers.core.request import Request, SamplingParams
from workers.engine import Engine
from workers.runner.load import load_runner
from workers.transfer.link import Link
from workers.transfer.threads import on_thread
from workers.transfer.torch_dist import GlooTransport, pick_transport
from workers.wire import common_pb2 as common
from workers.worker import Worker


def gloo(timeout_s: float = 5.0) -> GlooTransport:
    return GlooTransport(host="127.0.0.1", connect_timeout_s=timeout_s, chunk_timeout_s=timeout_s)


async def joined(transport: GlooTransport, size: int = 1 << 16) -> tuple[Link, Link]:
    """Sender and receiver of one process."""
    sender = await transport.offer(0, torch.zeros(size, dtype=torch.uint8))
    receiver = await transport.offer(1, torch.zeros(size, dtype=torch.uint8))
    return await asyncio.gather(sender.join(receiver.blob), receiver.join(sender.blob))


async def threads_end() -> None:
    async with asyncio.timeout(10):
        while any(thread.name.startswith("kvasir-") for thread in threading.enumerate()):
            await asyncio.sleep(0.02)


async def test_bytes_arrive_and_goodbye_ends_every_thread() -> None:
    sender, receiver = await joined(gloo())
    for seq, size in enumerate((1, 777, 1 << 16), start=1):
        sender.staging[:size] = torch.randint(0, 255, (size,), dtype=torch.uint8)
        arrival = receiver.recv(size, seq)
        await sender.send(size, seq)
        await arrival
        assert torch.equal(sender.staging[:size], receiver.staging[:size])
    sender.close()
    await threads_end()
    assert receiver.failed == "the peer closed the pair"
    with pytest.raises(TransferError, match="closed"):
        await receiver.recv(1, 9)


async def test_a_chunk_that_does_not_come_fails_at_its_deadline() -> None:
    sender, receiver = await joined(gloo(0.5))
    with pytest.raises(TransferError):
        await receiver.recv(10, 1)
    assert receiver.failed
    sender.close()
    await threads_end()


async def test_a_peer_that_never_answers_fails_the_rendezvous() -> None:
    half = await gloo(0.5).offer(0, torch.zeros(8, dtype=torch.uint8))
    stranger = await gloo(0.5).offer(1, torch.zeros(8, dtype=torch.uint8))
    with pytest.raises(TransferError, match="no pair"):
        await half.join(b"0/1\0not an address")
    with pytest.raises(TransferError, match="no pair"):
        await stranger.join(b"nonsense")
    await threads_end()


PEER = textwrap.dedent(
    """
    import asyncio, sys, torch
    from workers.transfer.torch_dist import GlooTransport

    async def main():
        transport = GlooTransport(host="127.0.0.1", connect_timeout_s=10, chunk_timeout_s=60)
        half = await transport.offer(0, torch.zeros(8, dtype=torch.uint8))
        print(half.blob.hex(), flush=True)
        link = await half.join(bytes.fromhex(sys.stdin.readline()))
        print("joined", flush=True)
        await asyncio.sleep(60)

    asyncio.run(main())
    """
)


async def test_a_killed_peer_is_noticed_while_a_receive_waits() -> None:
    """By the sentinel: long before the chunk's deadline of a minute."""
    peer = subprocess.Popen(
        [sys.executable, "-c", PEER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert peer.stdin and peer.stdout
    try:
        blob = bytes.fromhex((await asyncio.to_thread(peer.stdout.readline)).strip())
        half = await gloo(60.0).offer(1, torch.zeros(8, dtype=torch.uint8))
        peer.stdin.write(half.blob.hex() + "\n")
        peer.stdin.flush()
        link = await half.join(blob)
        assert (await asyncio.to_thread(peer.stdout.readline)).strip() == "joined"
        arrival = asyncio.ensure_future(link.recv(8, 1))
        await asyncio.sleep(0.2)
        peer.send_signal(signal.SIGKILL)
        with pytest.raises(TransferError):
            await asyncio.wait_for(arrival, 20)
        assert link.failed
        await threads_end()
    finally:
        peer.kill()
        peer.wait()
        peer.stdin.close()
        peer.stdout.close()


def test_which_transport_is_picked() -> None:
    timeouts = {"host": "127.0.0.1", "connect_timeout_s": 1.0, "chunk_timeout_s": 1.0}
    assert pick_transport("inline", **timeouts) is None  # type: ignore[arg-type]
    picked = pick_transport("auto", **timeouts)  # type: ignore[arg-type]
    assert picked is not None
    assert picked.name == ("nccl" if torch.cuda.is_available() else "gloo")


@pytest.mark.parametrize("backend", ["gloo", "inline"])
async def test_bf16_pages_are_equal_after_the_handoff(backend: str, tmp_path: Path) -> None:
    """Every byte of every block, and logprobs on both sides of the handoff within bf16's bounds."""
    model = make_checkpoint(tmp_path / "model", "llama", max_position_embeddings=1024)
    config = TransportConfig(staging_bytes=1 << 16, checksums=True)
    house: dict[str, Worker] = {}

    def start(name: str, role: common.Role) -> Worker:
        runner = load_runner(str(model), EngineConfig(dtype="bfloat16", kv_tokens=2048))
        engine = Engine(runner, block_size=16, step_tokens=128, max_seqs=4)
        made = Worker(
            engine,
            common.ReplicaRef(id=name, incarnation="1", address=name),
            role,
            peer_at=lambda address: SimPeer(house[address]),
            transport=gloo() if backend == "gloo" else None,
            config=config,
            ttl_s=10.0,
            offload=on_thread,
        )
        house[name] = made
        return made

    p, d = start("p", common.ROLE_PREFILL), start("d", common.ROLE_DECODE)
    running = [asyncio.create_task(made.run()) for made in (p, d)]
    prompt = tuple(i * 37 % 250 for i in range(700))
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
    admitted, tokens = await both(
        p.prefill.prefill, d.decode.decode, Request("r", prompt, len(prompt), params)
    )
    assert admitted.transport == backend and len(tokens) == 4

    ids = block_ids(prompt, namespace(p.engine.info.kv_abi), 16)
    pages = []
    for made in (p, d):
        blocks = made.engine.pool.shards[0].match(ids)
        assert len(blocks) == 700 // 16
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
    await threads_end()
