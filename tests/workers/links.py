"""Two ends of a link for tests: in one process, or with the sender in another."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import torch

from workers.attention.kv_cache import KVCache, KVShape
from workers.config import TransportConfig
from workers.transfer.link import RECEIVER, SENDER, Link, Transport
from workers.transfer.pick import pick_transports

HOST = "127.0.0.1"


def transport(name: str, timeout_s: float = 5.0) -> Transport:
    config = TransportConfig.model_validate(
        {"backend": name, "connect_timeout_s": timeout_s, "chunk_timeout_s": timeout_s}
    )
    (made,) = pick_transports(config, HOST)
    return made


def some_pages() -> KVCache:
    return KVCache(KVShape(2, 2, 8, 16, torch.bfloat16), 4, torch.device("cpu"))


async def joined(made: Transport, size: int = 1 << 16) -> tuple[Link, Link]:
    """Sender and receiver of one process."""
    sender = await made.offer(SENDER, some_pages(), size)
    receiver = await made.offer(RECEIVER, some_pages(), size)
    return await asyncio.gather(sender.join(receiver.blob), receiver.join(sender.blob))


def held() -> tuple[int, int]:
    """Threads and file descriptors of this process."""
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))


async def holds(before: tuple[int, int], threads: int, fds: int) -> None:
    """Wait until so many more of each are held: threads that made the link end by themselves."""
    wanted = (before[0] + threads, before[1] + fds)
    try:
        async with asyncio.timeout(10):
            while held() != wanted:
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{held()} are held, not {wanted}") from None


async def returned(before: tuple[int, int]) -> None:
    """Wait until no more threads and descriptors are held than `before`."""
    async with asyncio.timeout(20):
        while any(now > then for now, then in zip(held(), before, strict=True)):
            await asyncio.sleep(0.02)


async def threads_end(before: set[threading.Thread]) -> None:
    """Wait until none of ours runs that was not there `before`."""

    def ours() -> list[str]:
        running = set(threading.enumerate()) - before
        return [thread.name for thread in running if thread.name.startswith("kvasir-")]

    try:
        async with asyncio.timeout(20):
            while ours():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"still running: {ours()}") from None


PEER = textwrap.dedent(
    """
    import asyncio, sys
    from tests.workers.links import some_pages, transport

    async def main(name, size):
        made, link = transport(name, 60.0), None
        print("ready", flush=True)
        for line in iter(sys.stdin.readline, ""):
            if line.strip() == "join":
                half = await made.offer(0, some_pages(), size)
                print(half.blob.hex(), flush=True)
                link = await half.join(bytes.fromhex(sys.stdin.readline()))
                link.staging.fill_(7)
                print("joined", flush=True)
            else:
                await link.send(0, size, int(line))
                print("sent", flush=True)

    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
    """
)


class PeerProcess:
    """A sender in a process of its own: told "join" it makes a new link, told a number it sends its
    whole staging as that one."""

    def __init__(self, name: str, size: int) -> None:
        self.size = size
        self.process = subprocess.Popen(
            [sys.executable, "-c", PEER, name, str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    async def says(self) -> str:
        assert self.process.stdout
        line = await asyncio.wait_for(asyncio.to_thread(self.process.stdout.readline), 60)
        return line.strip()

    def tell(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    async def joined(self, made: Transport) -> Link:
        """Our end: the receiver's."""
        self.tell("join")
        blob = bytes.fromhex(await self.says())
        half = await made.offer(RECEIVER, some_pages(), self.size)
        self.tell(half.blob.hex())
        link = await half.join(blob)
        assert await self.says() == "joined"
        return link

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        self.process.send_signal(number)


@asynccontextmanager
async def peer_process(name: str, size: int = 1 << 16) -> AsyncIterator[PeerProcess]:
    peer = PeerProcess(name, size)
    try:
        assert await peer.says() == "ready"
        yield peer
    finally:
        peer.process.kill()
        peer.process.wait()
        for pipe in (peer.process.stdin, peer.process.stdout):
            assert pipe
            pipe.close()
