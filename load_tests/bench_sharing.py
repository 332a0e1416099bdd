#!/usr/bin/env python3
"""How soon other routers know of a decision, and what telling them costs: processes of their own,
a real Redis, no workers. Monotonic time is one for all processes of a host.

python -m load_tests.bench_sharing --rate 500 --replicas 64 --seconds 10
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import random
import subprocess
import tempfile
from collections import deque
from itertools import count
from pathlib import Path
from time import monotonic, process_time
from typing import Any, cast

from cluster.backends.ports import free_ports
from cluster.redis_server import check, server_spec
from cluster.simulator.route import quantile
from load_tests.leaving import leave_on_sigterm
from router.replica import Replica
from router.sharing.blocks import ToldIndex
from router.sharing.channel import Channel
from router.sharing.sharing import Sharing
from router.worker_client import WorkerClient
from workers.core.clock import SystemClock
from workers.core.errors import ConfigError
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker
from workers.wire.redis_client import connect_redis
from workers.wire.redis_keys import ReplicaRecord

MARK = 1 << 40  # KV tokens that one decision adds for good, so that it is known when it is seen
HELD_S = 2.0  # a decision is load for so long
REPORT_S = 0.5
SETTLE_S = 2.0  # before and after what is measured


class Counting(Channel):
    """A Channel that counts what is said."""

    said = 0
    said_bytes = 0

    async def say(self, message: bytes) -> None:
        self.said += 1
        self.said_bytes += len(message)
        await super().say(message)


class Watching(Sharing):
    """Writes down when each decision of others is seen: (replica, its number there, time)."""

    def __init__(self, line: Channel, index: ToldIndex, replicas: list[Replica]) -> None:
        super().__init__(line, SystemClock(), index)
        self.seen: list[tuple[str, int, float]] = []
        self._watched = replicas
        self._marks = [0] * len(replicas)

    def hear(self, message: bytes) -> None:
        super().hear(message)
        now = monotonic()
        for place, replica in enumerate(self._watched):
            marks = replica.foreign.told.kv_tokens // MARK
            if marks > self._marks[place]:
                numbers = range(self._marks[place], marks)
                self.seen += [(replica.id, number, now) for number in numbers]
                self._marks[place] = marks


def replica(number: int) -> Replica:
    record = ReplicaRecord(
        id=f"prefill-{number}", incarnation=f"{number:08x}", address="", pool="prefill",
        role="prefill", model="", kv_abi="", block_size=16, context_length=1 << 20,
        kv_tokens=1 << 20,
    )  # fmt: skip
    return Replica(record, cast(WorkerClient, None))


async def run(
    options: argparse.Namespace, url: str, meet: Any, decides: bool, shares: bool
) -> dict[str, Any]:
    """One router: it decides, or only hears. All `meet` before and after."""
    rng, replicas = random.Random(1), [replica(n) for n in range(options.replicas)]
    made: list[tuple[str, int, float]] = []
    async with connect_redis(url) as client:
        line = Counting(client, "bench")
        index = ToldIndex(SystemClock())
        sharing = Watching(line, index, replicas)
        tasks = [asyncio.create_task(_report(replicas, sharing))]
        if shares:
            tasks.append(asyncio.create_task(sharing.run()))
        await asyncio.to_thread(meet.wait)
        await asyncio.sleep(SETTLE_S)
        said, said_bytes, cpu, began = line.said, line.said_bytes, process_time(), monotonic()
        if decides:
            made = await _decide(options, replicas, index, rng)
        else:
            await asyncio.sleep(options.seconds)
        cpu, took = process_time() - cpu, monotonic() - began
        said, said_bytes = line.said - said, line.said_bytes - said_bytes
        await asyncio.sleep(SETTLE_S)
        await asyncio.to_thread(meet.wait)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    figures = {"cpu": cpu / took, "messages": said / took, "bytes": said_bytes / took}
    return {"made": made, "seen": sharing.seen, **figures}


async def _decide(
    options: argparse.Namespace, replicas: list[Replica], index: ToldIndex, rng: random.Random
) -> list[tuple[str, int, float]]:
    """Decisions at random times. Of each: prompt given, computed in two chunks, gone."""
    made: list[tuple[str, int, float]] = []
    marks = {one.id: one.assignments.add(0, 0) for one in replicas}
    counts = dict.fromkeys(marks, 0)
    held: deque[tuple[float, Replica, Any]] = deque()
    loop = asyncio.get_running_loop()
    due, end = loop.time(), loop.time() + options.seconds
    while due < end:
        due += rng.expovariate(options.rate)
        await asyncio.sleep(max(0.0, due - loop.time()))
        one, tokens = rng.choice(replicas), rng.randrange(1, 8000)
        held.append((due + HELD_S, one, one.assignments.add(tokens, tokens)))
        index.expect(one.id, [rng.randbytes(16) for _ in range(options.blocks)])
        counts[one.id] += 1
        marks[one.id].update(kv_tokens=counts[one.id] * MARK)
        made.append((one.id, counts[one.id] - 1, monotonic()))
        if len(held) > options.rate * HELD_S / 2:  # half of its prompt is computed
            half = held[len(held) // 2][2]
            half.update(pending_tokens=half.pending_tokens // 2)
        while held and held[0][0] <= due:
            _, replica, load = held.popleft()
            replica.assignments.remove(load)
    return made


async def _report(replicas: list[Replica], sharing: Sharing) -> None:
    """Workers that are alive; all at first, then a tenth of them at a time."""
    loads = [
        worker.LoadReport(
            replica=common.ReplicaRef(id=one.id, incarnation=one.incarnation),
            role=common.Role.ROLE_PREFILL,
            state="ready",
            blocks_total=1,
        )
        for one in replicas
    ]
    share = slice(None)
    for turn in count():
        for one, load in zip(replicas[share], loads[share], strict=True):
            one.report(load)
            sharing.reported(one, load)
        share = slice(turn % 10, None, 10)
        await asyncio.sleep(REPORT_S / 10)


def process(results: Any, name: str, *what: Any) -> None:
    results.put((name, asyncio.run(run(*what))))


def measure(options: argparse.Namespace, url: str, listeners: int, shares: bool) -> dict[str, Any]:
    """All routers at once, the first one decides."""
    context = multiprocessing.get_context("spawn")
    results, meet = context.Queue(), context.Barrier(1 + listeners)
    routers = [
        context.Process(target=process, args=(results, f"{n}", options, url, meet, n == 0, shares))
        for n in range(1 + listeners)
    ]
    for one in routers:
        one.start()
    found = dict(results.get(timeout=options.seconds + 60) for _ in routers)
    for one in routers:
        one.join()
    return found


def main() -> None:
    leave_on_sigterm()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", type=float, default=500.0, help="decisions a second")
    parser.add_argument("--replicas", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=64, help="new ones of each decision")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--listeners", type=int, default=1, help="routers that only hear")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        port = free_ports(1)[0]
        spec = server_spec(port, Path(folder))
        for path, text in spec.files.items():
            path.write_text(text)
        server = subprocess.Popen(spec.argv, stdout=subprocess.DEVNULL)
        try:
            url = f"redis://127.0.0.1:{port}/0"
            asyncio.run(_answers(url))
            alone = measure(options, url, 1, shares=False)
            found = measure(options, url, options.listeners, shares=True)
        finally:
            server.kill()
            server.wait()
    one, other = found["0"], found["1"]
    made = {(name, number): at for name, number, at in one["made"]}
    took = [(at - made[name, number]) * 1e3 for name, number, at in other["seen"]]
    print(f"decisions            {len(made)}, seen by the other router {len(took)}")
    print(f"until it is visible  p50 {quantile(took, 0.5):.1f} ms, p99 {quantile(took, 0.99):.1f}, "
          f"most {max(took):.1f}")  # fmt: skip
    print(f"messages             {one['messages']:.1f} a second, {one['bytes'] / 1e3:.1f} kB/s")
    print(f"CPU of telling       {100 * (one['cpu'] - alone['0']['cpu']):.1f} % of a core")
    print(f"CPU of hearing       {100 * (other['cpu'] - alone['1']['cpu']):.1f} % of a core")


async def _answers(url: str) -> None:
    """Waits for a server that starts."""
    async with asyncio.timeout(10.0):
        while True:
            try:
                return await check(url)
            except ConfigError:
                await asyncio.sleep(0.05)


if __name__ == "__main__":
    main()
