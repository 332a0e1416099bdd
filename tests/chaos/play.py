"""Plays one plan and looks whether anything was lost, said twice, corrupted, or left behind."""

from __future__ import annotations

import asyncio
import gc
import random
import secrets
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from typing import Any

from tests.chaos.checks import Client, Outcome, crashes, held, kept, look, missing
from tests.chaos.cluster import TTL_S, Cluster
from tests.chaos.fabric import Fabric
from tests.chaos.faults import Striker
from tests.chaos.hosts import ChaosLoop
from tests.chaos.network import Network, Weather
from tests.chaos.plan import FAULTS_UNTIL_S, Kind, Plan
from tests.chaos.runner import BLOCK
from workers import registry
from workers.core.errors import KvasirError
from workers.core.sim_runner import SLOT_BYTES
from workers.transfer import sender

ANSWERED_WITHIN_S = 150.0  # of virtual time, once everything is mended
PRESSURE = "pressure"  # pools so small that sequences were preempted
BACK_S = 1.5  # in which pages come back when every end was heard of
PROMPT = {Kind.KILL, Kind.CANCEL, Kind.CORRUPT, Kind.CUT, Kind.MOVE, Kind.REDIS}
QUIET_WITHIN_S = 4 * TTL_S


def play(plan: Plan) -> Outcome:
    """In virtual time; the same plan gives the same outcome."""
    outcome = Outcome(plan.seed)
    gc.disable()
    try:
        with (
            _drawn_secrets(plan.seed),
            _small_messages(plan),
            asyncio.Runner(loop_factory=ChaosLoop) as runner,
        ):
            runner.run(_play(plan, outcome))
    finally:
        gc.enable()
    return outcome


async def _play(plan: Plan, outcome: Outcome) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, what: outcome.problems.append(_unhandled(what)))
    rng = random.Random(plan.seed ^ 0x5EED)
    weather = Weather(latency_s=(plan.latency_s / 4, plan.latency_s), window=plan.window)
    network = Network(rng, weather)
    cluster = Cluster(plan, network, Fabric(network, rng, delay_s=plan.wire_s))
    await cluster.open()
    clients = {asked.request.id: Client(asked) for asked in plan.asked}

    def cancel(request: str) -> bool:
        client = clients.get(request)
        if client is None or client.task is None or client.task.done():
            return False
        client.left = client.task.cancel()
        return True

    striker = Striker(plan, cluster, cancel, rng)
    began = loop.time()
    for client in clients.values():
        client.task = cluster.router.host.spawn(_ask(cluster, client), client.id)
    striker.arm()
    tasks = [client.task for client in clients.values() if client.task is not None]
    await asyncio.wait(tasks, timeout=FAULTS_UNTIL_S)
    last = max((fault.at_s for fault in plan.faults), default=0.0)
    await asyncio.sleep(began + last - loop.time())
    striker.heal()
    await asyncio.wait(tasks, timeout=ANSWERED_WITHIN_S)
    back_s = await _quiet(cluster)
    outcome.problems += look(cluster, clients, outcome)
    kinds = {strike.fault.kind for strike in striker.strikes}
    if back_s > BACK_S and kinds <= PROMPT:
        outcome.problems.append(f"pages and tickets came back only after {back_s:.2f} s")
    _count(striker, clients, cluster, outcome)
    if outcome.problems:
        outcome.story = _story(plan, striker, cluster, clients)
    await _take_apart(cluster, tasks, outcome)
    outcome.ended_s = loop.time()


async def _ask(cluster: Cluster, client: Client) -> None:
    asked = client.asked
    await asyncio.sleep(asked.at_s)
    loop = asyncio.get_running_loop()
    try:
        async with aclosing(cluster.router.dispatcher.run(asked.request)) as emissions:
            async for emission in emissions:
                for token in emission.tokens:
                    due = asked.request.prompt_len + len(client.tokens)
                    if token.position != due:
                        client.wrong.append(f"position {token.position} where {due} was due")
                    client.tokens.append(token.id)
                client.times.append(loop.time())
                client.finish = emission.finish_reason
                if asked.patience is not None and len(client.tokens) >= asked.patience:
                    client.left = True
                    return
    except KvasirError as error:
        client.error = f"{type(error).__name__}: {error.message}"


async def _quiet(cluster: Cluster) -> float:
    """Until all is as if nothing had ever been asked, or patience ends. The seconds until nothing
    was held any more."""
    loop = asyncio.get_running_loop()
    began, back_s = loop.time(), None
    while loop.time() < began + QUIET_WITHIN_S:
        if back_s is None and not kept(cluster):
            back_s = loop.time() - began
        if back_s is not None and not held(cluster) and not missing(cluster):
            break
        await asyncio.sleep(0.25)
    return QUIET_WITHIN_S if back_s is None else back_s


def _count(
    striker: Striker, clients: dict[str, Client], cluster: Cluster, outcome: Outcome
) -> None:
    for strike in striker.strikes:
        if strike.fault.kind is Kind.CORRUPT and not cluster.fabric.corrupted:
            continue  # no KV was on its way any more
        outcome.faults[strike.fault.kind] += 1
        if strike.fault.step:
            outcome.steps[strike.fault.step] += 1
        for request in strike.struck:
            after = [when for when in clients[request].times if when > strike.at_s]
            if after:
                outcome.recovered_s.append(after[0] - strike.at_s)
    outcome.seen.update(cluster.network.hops)
    lives = (*cluster.workers.values(), *cluster.dead)
    workers = [made.worker for made in lives if made.worker is not None]
    outcome.preemptions = sum(worker.engine.scheduler.preemptions for worker in workers)
    if outcome.preemptions:
        outcome.faults[PRESSURE] += 1


def _story(plan: Plan, striker: Striker, cluster: Cluster, clients: dict[str, Client]) -> list[str]:
    lines = [f"plan: {plan.workers}, {plan.blocks} blocks, overlap {plan.overlap}"]
    lines += [f"{strike.at_s:8.3f} s  {strike.what}" for strike in striker.strikes]
    lines += [client.tell() for client in clients.values()]
    for made in (*cluster.workers.values(), *cluster.dead):
        if made.worker is None:
            continue
        for ticket in (
            *made.worker.desk.tickets.live(),
            *made.worker.desk.tickets.ended(),
        ):
            lines.append(f"{made.host} ticket of {ticket.request_id}: {'; '.join(ticket.story)}")
    for replica in cluster.router.pool:
        lines.append(replica.tell())
    return lines


async def _take_apart(
    cluster: Cluster, clients: list[asyncio.Task[None]], outcome: Outcome
) -> None:
    for task in clients:
        task.cancel()
    await asyncio.wait(clients)
    cluster.router.leave.set()
    await asyncio.wait([cluster.router.task], timeout=30)
    for made in list(cluster.workers.values()):
        made.leave.set()
    ends = [made.task for made in cluster.workers.values()]
    if ends:
        await asyncio.wait(ends, timeout=30)
    for host in (cluster.router.host, *(made.host for made in cluster.workers.values())):
        for task in host.pending():
            outcome.problems.append(f"still runs at the end: {task.get_name()} {task.get_coro()}")
    outcome.problems += crashes(cluster)
    for made in cluster.dead:
        await made.host.bury()


def _unhandled(what: dict[str, Any]) -> str:
    return f"{what.get('message')}: {what.get('exception')!r}"


@contextmanager
def _drawn_secrets(seed: int) -> Iterator[None]:
    """Ids of tickets come from the seed too."""
    rng, plain = random.Random(seed ^ 0x1D), secrets.token_hex
    secrets.token_hex = lambda size=32: rng.randbytes(size).hex()  # type: ignore[assignment]
    try:
        yield
    finally:
        secrets.token_hex = plain


@contextmanager
def _small_messages(plan: Plan) -> Iterator[None]:
    """Pages are tiny here, and so are inline messages."""
    before = sender.MESSAGE_BYTES, registry.PUBLISH_S
    sender.MESSAGE_BYTES = plan.inline_blocks * BLOCK * SLOT_BYTES
    registry.PUBLISH_S = 0.2  # looking for news is most of what an idle worker does
    try:
        yield
    finally:
        sender.MESSAGE_BYTES, registry.PUBLISH_S = before
