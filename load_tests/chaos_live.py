"""Faults against real processes: `kvasir serve` under load, while workers are killed, frozen and
told to leave, and clients go.

    python -m load_tests.chaos_live --faults 300 --minutes 12

Every answer is compared with the tokens of an undisturbed run of the same cluster; each token must
come once. At the end nothing may be held and no process may be left. The same faults in virtual
time, many more of them: `python -m tests.chaos`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio

from cluster.admin_client import AdminClient
from load_tests.chaos_work import Work, same_tokens, works
from load_tests.leaving import leave_on_sigterm
from tests.chaos.report import Tally, table
from tests.cluster.processes import children, is_alive
from tests.e2e.serving import Serving, fresh_report, kvasir_serve
from workers.core.clock import SystemClock
from workers.wire import inference_pb2_grpc

ANSWER_S = 180.0  # an answer that takes longer is lost
LIMITS = {"worker_wait_s": 120.0, "retry_s": 120.0, "retry_attempts": 200}
KINDS = {"kill": 3, "stop": 3, "term": 2, "cancel": 4}
LEAVES = 0.5  # of the clients that a cancel meets


@dataclass(eq=False)
class Request:
    """One answer under way. `left`: its client has gone."""

    work: Work
    task: asyncio.Task[None] | None = None
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    left: bool = False


@dataclass
class Load:
    """Clients that ask, one request after the other, `pause_s` apart, until `stop`."""

    address: str
    model: str
    work: list[Work]
    rng: random.Random
    tally: Tally
    pause_s: float = 0.0
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    running: set[Request] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    _clock: SystemClock = field(default_factory=SystemClock)

    async def client(self) -> None:
        async with grpc.aio.insecure_channel(
            self.address, options=[("grpc.enable_http_proxy", 0)]
        ) as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            while not self.stop.is_set():
                request = Request(self.rng.choice(self.work))
                request.task = asyncio.create_task(self._ask(stub, request))
                self.running.add(request)
                await asyncio.wait({request.task})
                self.running.discard(request)
                self._judge(request)
                await asyncio.sleep(self.pause_s)

    async def _ask(self, stub: inference_pb2_grpc.InferenceStub, request: Request) -> None:
        async with asyncio.timeout(ANSWER_S):
            call = stub.Generate(request.work.message(self.model))
            try:
                async for response in call:
                    for token in response.tokens:
                        due = request.work.num_prompt + len(request.tokens)
                        if token.position != due:
                            self._bad(
                                "duplicated or missing tokens", f"{token.position}, not {due}"
                            )
                        request.tokens.append(token.id)
                    request.times.append(self._clock.now())
            finally:
                call.cancel()

    def _judge(self, request: Request) -> None:
        assert request.task is not None
        self.tally.requests += 1
        want = request.work.tokens
        wrong = sum(a != b for a, b in zip(request.tokens, want, strict=False))
        if wrong:
            self._bad("wrong tokens", f"{request.work}: {request.tokens} for {want}", wrong)
        if request.left:
            self.tally.left += 1
        elif request.task.cancelled() or request.task.exception() is not None:
            why = "cancelled" if request.task.cancelled() else repr(request.task.exception())
            self._bad("errors", f"{request.work}: {why}")
        elif len(request.tokens) != len(want):
            missing = abs(len(want) - len(request.tokens))
            self._bad("duplicated or missing tokens", f"{request.work}", missing)
        else:
            self.tally.answered += 1

    def _bad(self, what: str, why: str, times: int = 1) -> None:
        self.tally.bad[what] += times
        self.problems.append(f"{what}: {why}")


@dataclass
class Striker:
    """Faults at random moments. At most one worker of a role is down or still at a time."""

    serving: Serving
    load: Load
    roles: dict[str, str]  # of each replica
    rng: random.Random
    seen: set[int] = field(default_factory=set)  # every process there ever was
    _still: set[str] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _clock: SystemClock = field(default_factory=SystemClock)

    async def run(self, faults: int, seconds: float) -> None:
        """So many, over so much time; a fault that finds nobody it may strike is another one."""
        end = self._clock.now() + seconds
        for left in range(faults, 0, -1):
            kind = self.rng.choices(list(KINDS), list(KINDS.values()))[0]
            if not self._strike(kind):
                self._strike("cancel")
            await asyncio.sleep(self.rng.uniform(0, 2) * max(0.0, end - self._clock.now()) / left)
        await asyncio.gather(*self._tasks)

    def _strike(self, kind: str) -> bool:
        if kind == "cancel":
            return self._cancel()
        pids = self.pids()
        down = {self.roles[name] for name in self.roles if name not in pids} | {
            self.roles[name] for name in self._still
        }
        able = [name for name in pids if self.roles[name] not in down]
        if not able:
            return False
        name = self.rng.choice(sorted(able))
        if kind == "kill":
            os.kill(pids[name], signal.SIGKILL)
        elif kind == "term":
            os.kill(pids[name], signal.SIGTERM)
            self._later(self._leaving(name, pids[name]))
        else:
            os.kill(pids[name], signal.SIGSTOP)
            self._later(self._go_on(name, pids[name], self.rng.choice((0.3, 1.0, 4.0, 7.0))))
        self._note(kind)
        return True

    def _cancel(self) -> bool:
        waiting = [r for r in self.load.running if r.task is not None and not r.task.done()]
        if not waiting:
            return False
        request = self.rng.choice(waiting)
        assert request.task is not None
        request.left = request.task.cancel()
        self.load.tally.faults["cancel"] += 1
        return True

    def _note(self, kind: str) -> None:
        self.load.tally.faults[kind] += 1
        self._later(self._recovery(self._clock.now(), list(self.load.running)))

    async def _recovery(self, at: float, running: list[Request]) -> None:
        """How long it takes until every request under way has its next token, or has ended."""
        while any(not r.left and not _after(r, at) and _alive(r) for r in running):
            await asyncio.sleep(0.02)
        waits = [min(_after(r, at)) - at for r in running if not r.left and _after(r, at)]
        if waits:
            self.load.tally.recovered_s.append(max(waits))

    async def _go_on(self, name: str, pid: int, seconds: float) -> None:
        self._still.add(name)
        await asyncio.sleep(seconds)
        if is_alive(pid):
            os.kill(pid, signal.SIGCONT)
        self._still.discard(name)

    async def _leaving(self, name: str, pid: int) -> None:
        self._still.add(name)
        while is_alive(pid):
            await asyncio.sleep(0.05)
        self._still.discard(name)

    def _later(self, work) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def pids(self) -> dict[str, int]:
        """Of the workers that run, by replica."""
        found = {}
        for pid, command in children(self.serving.process.pid).items():
            self.seen.add(pid)
            for name in self.roles:
                if f"/{name}.json" in command and is_alive(pid):
                    found[name] = pid
        return found


async def campaign(serving: Serving, tally: Tally, options: argparse.Namespace) -> list[str]:
    """Load and faults, then quiet. Returns what went wrong, in words."""
    rng = random.Random(options.seed)
    await serving.all_up()
    roles = {replica.load.replica.id: replica.pool for replica in serving.status().replicas}
    work = await same_tokens(serving.grpc, serving.model, works(rng))
    load = Load(serving.grpc, serving.model, work, rng, tally)
    striker = Striker(serving, load, roles, rng)
    clients = [asyncio.create_task(load.client()) for _ in range(options.clients)]
    await asyncio.sleep(1.0)
    await striker.run(options.faults, options.minutes * 60)
    load.stop.set()
    await asyncio.gather(*clients)
    await serving.all_up()
    try:
        await serving.idle()
    except AssertionError as error:
        load.problems.append(str(error))
    striker.pids()
    _look(serving, tally)
    tally.more["processes seen"] = len(striker.seen)
    tally.more["requests compared"] = f"{len(work)} kinds"
    options.pids = striker.seen | {serving.process.pid}
    return load.problems


def _look(serving: Serving, tally: Tally) -> None:
    addresses = [replica.load.replica.address for replica in serving.status().replicas]
    tally.bad["leaked pages"] += sum(fresh_report(a).blocks_used for a in addresses)
    with AdminClient(serving.grpc) as client:
        told = client.tickets().replicas
    tally.bad["stuck tickets"] += sum(len(replica.held.tickets) for replica in told)
    pairs = [pair.transport for replica in told for pair in replica.held.pairs if pair.transport]
    tally.more["pairs at the end"] = dict(Counter(pairs))


def _after(request: Request, at: float) -> list[float]:
    return [when for when in request.times if when > at]


def _alive(request: Request) -> bool:
    return request.task is not None and not request.task.done()


@contextmanager
def _folder(path: Path | None) -> Iterator[Path]:
    if path is not None:
        path.mkdir(parents=True, exist_ok=True)
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="kvasir-chaos-") as folder:
        yield Path(folder)


def run(options: argparse.Namespace) -> tuple[Tally, list[str]]:
    tally = Tally(runs=1)
    for name in ("wrong tokens", "duplicated or missing tokens", "errors", "orphan processes"):
        tally.bad[name] = 0
    changes = {
        "router": {"limits": LIMITS},
        "transport": {"backend": options.transport, "checksums": True},
    }
    with (
        _folder(options.logs) as folder,
        kvasir_serve(
            folder,
            f"--prefill={options.prefill}",
            f"--decode={options.decode}",
            f"--model={options.model}",
            workers=options.prefill + options.decode,
            changes=changes,
        ) as serving,
    ):
        problems = asyncio.run(campaign(serving, tally, options))
    tally.bad["orphan processes"] = sum(is_alive(pid) for pid in options.pids)
    return tally, problems


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m load_tests.chaos_live", description=__doc__)
    made.add_argument("--faults", type=int, default=300)
    made.add_argument("--minutes", type=float, default=12.0)
    made.add_argument("--clients", type=int, default=6)
    made.add_argument("--prefill", type=int, default=2)
    made.add_argument("--decode", type=int, default=2)
    made.add_argument("--model", default="demo", help="computed in float32")
    made.add_argument("--transport", default="auto", help="auto, shm, gloo or inline")
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--logs", type=Path, help="keep the processes' logs here")
    return made


def main() -> int:
    leave_on_sigterm()
    tally, problems = run(parser().parse_args())
    print(*problems[:20], sep="\n")
    print(table(tally, "wall"))
    return 0 if tally.clean and not problems else 1


if __name__ == "__main__":
    sys.exit(main())
