"""What the prefix index costs on one core, beside what it may cost.

    python load_tests/bench_index.py [--blocks 1000000] [--trace FILE] [--json FILE]

Prints name, value, target and verdict a line; exit code 1 if a target is missed. Times are CPU time
of one thread, the best of five rounds where a round is short; warming up is what a clock shows.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import gzip
import json
import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from time import thread_time as clock

from cluster.redis_server import server_executable, wait_until_up
from router.index.expecting import ExpectingIndex
from router.index.memory import MemoryIndex
from router.index.redis_log import RedisLog
from router.index.redis_reader import RedisReader
from router.replica import Replica
from router.worker_client import WorkerClient
from workers.core.block_pool import BlockPool
from workers.core.clock import SystemClock
from workers.core.events import EventKind, KVEvent
from workers.core.hashing import BlockHasher, BlockId, block_ids
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker
from workers.wire.redis_client import connect_redis
from workers.wire.redis_keys import (
    ReplicaRecord,
    blocks_key,
    events_key,
    pack_events,
    pack_ids,
    unpack_events,
)

CONVERSATION = Path(__file__).parent / "traces" / "mooncake_conversation_min00-15.jsonl.gz"
ROUNDS = 5
ENTRY = 256  # ids in one event: what a prompt of 4,096 tokens stores
REPLICAS = 8
PROMPT = 4000


class Report:
    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.missed: list[str] = []

    def note(self, name: str, value: float, unit: str, least=None, most=None) -> None:
        """`least` or `most` is the target; without one it is only told."""
        self.values[name] = value
        good = (least is None or value >= least) and (most is None or value <= most)
        target = f">= {least:,}" if least is not None else f"<= {most:,}" if most else "-"
        if not good:
            self.missed.append(name)
        verdict = "" if target == "-" else "ok" if good else "MISSED"
        print(f"{name:46} {value:>14,.2f} {unit:10} {target:>14} {verdict}", flush=True)


def best(work: Callable[[], int], setup: Callable[[], None] = lambda: None) -> float:
    """Things a second, of the fastest round; `work` says how many it did."""
    rates = []
    for _ in range(ROUNDS):
        setup()
        gc.collect()
        begin = clock()
        done = work()
        rates.append(done / (clock() - begin))
    return max(rates)


def read_trace(path: Path) -> list[list[BlockId]]:
    """The block ids of each request."""
    with gzip.open(path, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    return [
        [number.to_bytes(8, "little") * 2 for number in row["hash_ids"]][
            : row["input_length"] // row["block_size"]
        ]
        for row in rows
    ]


def fresh(prompts: list[list[BlockId]]) -> list[list[BlockId]]:
    """Ids as a hasher gives them: new objects whose own hash nobody has asked for."""
    return [[bytes(bytearray(block)) for block in prompt] for prompt in prompts]


class Worker:
    """A block pool that computes whatever it is sent."""

    def __init__(self, blocks: int) -> None:
        self.pool = BlockPool(blocks, 512)

    def take(self, prompt: list[BlockId]) -> list[KVEvent]:
        cached = self.pool.match(prompt[: self.pool.num_blocks])
        self.pool.acquire(cached)
        new = prompt[len(cached) : self.pool.num_blocks]
        blocks = self.pool.allocate(len(new))
        self.pool.commit(blocks, new)
        self.pool.release([*cached, *blocks])
        return self.pool.events.take()


def lookups(prompts: list[list[BlockId]], replicas: int, tokens: int) -> tuple[float, float]:
    """(lookups a second, mean blocks found) over the trace as it is served: each piece of it is
    looked up in the index that everything before it has left."""
    rng = random.Random(1)
    workers = {f"replica-{n}": Worker(tokens // 512) for n in range(replicas)}
    index = ExpectingIndex(SystemClock())
    for name in workers:
        index.apply(name, [])
    seconds, found = 1e-9, 0
    for start in range(0, len(prompts), 100):
        piece = prompts[start : start + 100]
        times = []
        for _ in range(ROUNDS):
            asked = fresh(piece)
            begin = clock()
            for prompt in asked:
                index.match(prompt)
            times.append(clock() - begin)
        seconds += min(times)
        for prompt in piece:
            depths = index.match(prompt)
            found += max(depths.values(), default=0)
            name = max(workers, key=lambda n: (depths.get(n, 0) // 4, rng.random()))
            index.expect(name, prompt)
            index.apply(name, workers[name].take(prompt))
    return len(prompts) / seconds, found / len(prompts)


def bench_lookups(report: Report, trace: Path) -> None:
    prompts = read_trace(trace)
    for replicas, tokens in ((8, 1_000_000), (64, 200_000)):
        rate, found = lookups(prompts, replicas, tokens)
        name = f"lookups, {replicas} replicas of {tokens // 1000}k tokens"
        report.note(name, rate, "1/s", least=200_000)
        report.note("  blocks found of 22 asked on average", found, "blocks")


def packed(ids: list[BlockId], kind: EventKind) -> list[bytes]:
    return [
        pack_events([KVEvent(kind, tuple(ids[at : at + ENTRY]))])
        for at in range(0, len(ids), ENTRY)
    ]


def bench_ingest(report: Report, count: int) -> None:
    """From bytes as they come from Redis to the mirror."""
    rng = random.Random(2)
    ids = [rng.randbytes(16) for _ in range(count)]
    stored, removed = packed(ids, EventKind.STORED), packed(ids, EventKind.REMOVED)
    index = ExpectingIndex(SystemClock(), 2 * count)

    def take(name: str, entries: list[bytes]) -> int:
        for data in entries:
            index.apply(name, unpack_events(data))
        return count

    def renew() -> None:
        nonlocal index
        index = ExpectingIndex(SystemClock(), 2 * count)

    def full() -> None:
        renew()
        take("replica-0", stored)

    rate = best(lambda: take("replica-0", stored), renew)
    report.note("ingest, blocks that are new", rate, "blocks/s", least=1_000_000)
    rate = best(lambda: take("replica-1", stored), full)
    report.note("ingest, blocks that another replica has", rate, "blocks/s", least=1_000_000)
    rate = best(lambda: take("replica-0", removed), full)
    report.note("ingest, blocks removed", rate, "blocks/s", least=1_000_000)
    index = ExpectingIndex(SystemClock(), count // 2)
    rate = best(lambda: take("replica-0", stored))
    report.note("ingest above the cap (each evicts another)", rate, "blocks/s")


def bench_memory(report: Report, count: int) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    for names, target in ((["a"], 250), ([f"replica-{n}" for n in range(64)], 250)):
        gc.collect()
        before = resident()
        index = MemoryIndex(count)
        rng = random.Random(3)
        for _ in range(0, count, ENTRY):
            event = KVEvent(EventKind.STORED, tuple(rng.randbytes(16) for _ in range(ENTRY)))
            for name in rng.sample(names, min(2, len(names))):
                index.apply(name, [event])
        used = (resident() - before) / 1e6
        label = f"memory, {len(index):,} blocks on {len(names)} replicas"
        report.note(label, used, "MB", most=target * count / 1e6)
        report.note("  a block", used * 1e6 / len(index), "bytes")
        del index


def bench_hashing(report: Report) -> None:
    rng = random.Random(4)
    tokens = [rng.randrange(150_000) for _ in range(PROMPT)]

    def whole() -> int:
        for _ in range(20):
            block_ids(tokens, b"ns", 16)
        return 20

    report.note(f"hashing {PROMPT:,} tokens in blocks of 16", 1e6 / best(whole), "us")

    index = ExpectingIndex(SystemClock())
    hasher = BlockHasher(b"ns", 16)
    hasher.extend(tokens)
    for number in range(64):
        ids = hasher.ids[: 1 + number * len(hasher.ids) // 64]
        index.apply(f"replica-{number}", [KVEvent(EventKind.STORED, tuple(ids))])
    times = []
    for _ in range(2000):
        begin = clock()
        found = index.match(block_ids(tokens, b"ns", 16))
        times.append(clock() - begin)
    assert len(found) == 64
    times.sort()
    report.note("  and match, 64 replicas each deeper, p50", times[1000] * 1e6, "us")
    report.note("  p99", times[1980] * 1e6, "us", most=1000)


async def warm(report: Report, url: str, count: int) -> None:
    """Eight replicas: of each a snapshot in Redis, and a log of a quarter as many blocks behind it.
    The workers themselves cannot be reached."""
    rng, each = random.Random(5), count // REPLICAS * 4 // 5
    names = [f"replica-{number}" for number in range(REPLICAS)]
    async with connect_redis(url, 10.0) as client:
        for name in names:
            data = pack_ids(rng.randbytes(16) for _ in range(each))
            fields: dict = {"inc": "i", "seq": 0, "at": "0-0", "data": data}
            await client.hset(blocks_key("bench", name), mapping=fields)
            for seq, entry in enumerate(
                packed([rng.randbytes(16) for _ in range(each // 4)], EventKind.STORED), 1
            ):
                await client.xadd(
                    events_key("bench", name), {"inc": "i", "seq": seq, "data": entry}
                )
        index = ExpectingIndex(SystemClock(), 2 * count)
        log = RedisLog(RedisReader(client, "bench"), index, SystemClock())
        for name in names:
            record = ReplicaRecord(
                id=name, incarnation="i", address="127.0.0.1:9", pool="p", role="prefill",
                model="m", kv_abi="a", block_size=16, context_length=1, kv_tokens=1, event_seq=seq,
            )  # fmt: skip
            load = worker.LoadReport(replica=common.ReplicaRef(id=name, incarnation="i"))
            log.reported(Replica(record, WorkerClient(name, record.address)), load)
        longest, last = 0.0, clock()
        begin, running = perf_counter(), asyncio.create_task(log.run())
        while not all(log.synced(name) for name in names):
            await asyncio.sleep(0)
            longest, last = max(longest, clock() - last), clock()
        seconds = perf_counter() - begin
        report.note(f"a new router knows {len(index):,} blocks after", seconds, "s", most=5)
        report.note("  longest turn of its event loop", longest * 1e3, "ms")
        assert log.repairs.saved == REPLICAS and not log.repairs.worker
        running.cancel()


def bench_warm(report: Report, count: int) -> None:
    with socket.socket() as sock, tempfile.TemporaryDirectory() as folder:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        sock.close()
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        server = subprocess.Popen([server_executable(), *options], stdout=subprocess.DEVNULL)
        try:
            url = f"redis://127.0.0.1:{port}/0"
            asyncio.run(wait_until_up(url, 10.0))
            asyncio.run(warm(report, url, count))
        finally:
            server.kill()
            server.wait()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=1_000_000)
    parser.add_argument("--trace", type=Path, default=CONVERSATION)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    given, report = arguments(), Report()
    bench_memory(report, given.blocks)  # first: a heap without holes
    bench_lookups(report, given.trace)
    bench_ingest(report, given.blocks)
    bench_hashing(report)
    bench_warm(report, given.blocks)
    if given.json:
        given.json.write_text(json.dumps(report.values, indent=1))
    sys.exit(bool(report.missed))


if __name__ == "__main__":
    main()
