"""What must be so when a run is over: tokens, pages, tickets, calls, what the router believes."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

from tests.chaos.cluster import Cluster
from tests.chaos.plan import Asked
from tests.chaos.runner import expected
from workers.core.request import FinishReason
from workers.worker import Worker


@dataclass
class Client:
    """One request as its client saw it."""

    asked: Asked
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    finish: FinishReason | None = None
    left: bool = False
    error: str = ""
    wrong: list[str] = field(default_factory=list)
    task: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        return self.asked.request.id

    def tell(self) -> str:
        want, why = expected(self.asked.request)
        times = ", ".join(f"{when:.3f}" for when in self.times)
        end = f"left after {len(self.tokens)}" if self.left else self.error or str(self.finish)
        return (
            f"{self.id}: {self.asked.request.prompt_len} prompt tokens, {len(self.tokens)} of "
            f"{len(want)} came at [{times}]; {end} (due: {why})"
        )


@dataclass
class Outcome:
    """Of one run. `problems` is empty when all is well."""

    seed: int
    problems: list[str] = field(default_factory=list)
    story: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)  # that a fault struck at
    seen: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    answered: int = 0
    left: int = 0
    errors: int = 0
    wrong: int = 0
    duplicated: int = 0
    leaked: int = 0
    stuck: int = 0
    preemptions: int = 0
    recovered_s: list[float] = field(default_factory=list)
    ended_s: float = 0.0


def kept(cluster: Cluster) -> list[str]:
    """Pages and tickets that somebody still has."""
    found = []
    for made in cluster.workers.values():
        worker = made.worker
        pages = 0 if worker is None else worker.engine.pool.num_referenced
        if worker is not None and (pages or worker.num_busy):
            found.append(f"{made.host} holds {pages} pages, busy {worker.num_busy}")
    if cluster.router.dispatcher.tickets_held:
        found.append(f"the router holds {cluster.router.dispatcher.tickets_held} tickets")
    return found


def held(cluster: Cluster) -> list[str]:
    """And calls: a fetch whose receiver left ends when its last chunk has drained or is given up,
    long after its pages."""
    calls = [
        call
        for call in cluster.network.calls
        if call.method != "Watch" and (call.method != "Decode" or call.request_ids)
    ]
    return kept(cluster) + [
        f"a call that never ended: {call.method} to {call.dst}" for call in calls
    ]


def missing(cluster: Cluster) -> list[str]:
    left = [name for name in cluster.plan.workers if name not in cluster.workers]
    leaving = [made.host for made in cluster.workers.values() if made.leave.is_set()]
    found = [f"{name} did not come back" for name in left]
    return found + [f"{host} never left" for host in leaving] + _unmirrored(cluster)


def _unmirrored(cluster: Cluster) -> list[str]:
    """What the router believes of prefix caches is what they have."""
    found = []
    for name, made in cluster.workers.items():
        if made.worker is None or not cluster.router.events.synced(name):
            found.append(f"the router's mirror of {name} is not in step")
        elif cluster.router.index.held(name) != set(made.worker.engine.pool.cached_ids()):
            found.append(f"the router's mirror of {name} is wrong")
    return found


def look(cluster: Cluster, clients: dict[str, Client], outcome: Outcome) -> list[str]:
    problems = crashes(cluster)
    for client in clients.values():
        problems += _judge(client, outcome)
    problems += [f"left behind: {what}" for what in held(cluster) + missing(cluster)]
    for made in (*cluster.workers.values(), *cluster.dead):
        if made.worker is not None:
            problems += _old_epochs(made.worker)
    for made in cluster.workers.values():
        assert made.worker is not None, "it was up"
        outcome.leaked += made.worker.engine.pool.num_referenced
        outcome.stuck += len(made.worker.desk.tickets.live())
        try:
            made.worker.check_integrity()
        except AssertionError as error:
            problems.append(f"{made.host}: integrity: {error}")
    outcome.stuck += cluster.router.dispatcher.tickets_held
    try:
        cluster.router.pool.check_integrity()
    except AssertionError as error:
        problems.append(f"router: integrity: {error}")
    for replica in cluster.router.pool:
        if replica.assignments.seqs:
            problems.append(f"the router still counts work on {replica.tell()}")
    return problems


def _old_epochs(made: Worker) -> list[str]:
    """Bindings that got a ticket after a higher one, or twice."""
    found = []
    for ticket in (*made.desk.tickets.live(), *made.desk.tickets.ended()):
        epochs = [
            int(epoch) for epoch in re.findall(r"fetching \(epoch (\d+)\)", str(ticket.story))
        ]
        if any(later <= before for before, later in pairwise(epochs)):
            found.append(f"{made.me.id}: old epochs fetched {ticket.story}")
    return found


def crashes(cluster: Cluster) -> list[str]:
    """Since the last time."""
    found = [*cluster.crashes, *cluster.network.crashes]
    cluster.crashes.clear()
    cluster.network.crashes.clear()
    return found


def _judge(client: Client, outcome: Outcome) -> list[str]:
    want, why = expected(client.asked.request)
    outcome.requests += 1
    found = list(client.wrong)
    outcome.duplicated += len(client.wrong)
    assert client.task is not None
    if not client.task.done():
        outcome.duplicated += 1
        found.append("it never ended")
    elif not client.task.cancelled() and (error := client.task.exception()) is not None:
        found.append(f"unexpected: {error!r}")
    bad = sum(a != b for a, b in zip(client.tokens, want, strict=False))
    if bad:
        outcome.wrong += bad
        found.append(f"{bad} wrong tokens: {client.tokens} where {list(want)} was due")
    if len(client.tokens) > len(want):
        outcome.duplicated += len(client.tokens) - len(want)
        found.append("more tokens than due")
    if client.left:
        outcome.left += 1
    elif client.error:
        outcome.errors += 1
        found.append(f"an error although everything was mended: {client.error}")
    elif client.task.done():
        outcome.answered += 1
        if len(client.tokens) < len(want):
            outcome.duplicated += len(want) - len(client.tokens)
            found.append("tokens are missing")
        if client.finish is not why:
            found.append(f"finish {client.finish}, {why} was due")
    return [f"{client.id}: {problem}" for problem in found]
