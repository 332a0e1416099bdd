"""What leader and followers of a replica share, and a follower's whole life as a rank."""

from __future__ import annotations

import asyncio
import threading
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import torch

from workers.config import EngineConfig, TransportConfig
from workers.models.architecture import ModelConfig
from workers.models.kv_layout import kv_layout
from workers.parallel.channel import Bytes, GroupReceiver, Kind, Receiver
from workers.parallel.control import Line
from workers.parallel.follower import Leader
from workers.parallel.follower_port import FollowerPort
from workers.parallel.group import Group, Ranks
from workers.parallel.layout import Layout
from workers.parallel.pages import FollowerPages, HeadShares
from workers.parallel.ring import RingReceiver
from workers.parallel.steps import Steps
from workers.parallel.torch_group import Rendezvous, follower_store
from workers.runner.inputs import EMPTY, StepInputs
from workers.runner.load import load_forward
from workers.transfer.link import Transport
from workers.transfer.pick import pick_transports

# Of one collective. Who is dead or stopped is noticed elsewhere and sooner; one rank may take
# minutes longer to load than another.
GROUP_S = 600.0
IDLE_S = 60.0
LISTEN_S = 365 * 86400.0  # a follower for what its leader says next, where it cannot ask again


@dataclass(frozen=True, slots=True)
class Groups:
    """Everything that ranks say to each other with. `copies`: for pages alone."""

    ranks: Ranks
    copies: Group


def join(rendezvous: Rendezvous, layout: Layout, device: torch.device) -> Groups:
    """All ranks together. Blocking; raises Unavailable."""
    ranks = rendezvous.ranks(layout, device, GROUP_S)
    copies = rendezvous.group("copies", range(layout.world), device, GROUP_S)
    return Groups(ranks, copies)


def line_groups(rendezvous: Rendezvous, layout: Layout, deadline_s: float) -> tuple[Group, Group]:
    """What the leader says steps and page copies over where followers are on other hosts. All
    ranks together, after join()."""
    cpu, everybody = torch.device("cpu"), range(layout.world)
    steps = rendezvous.group("say/steps", everybody, cpu, deadline_s)
    return steps, rendezvous.group("say/copies", everybody, cpu, deadline_s)


def head_shares(layout: Layout, config: ModelConfig) -> HeadShares:
    return HeadShares(layout, kv_layout(config, 1).heads)


def to_wire(parts: Sequence[StepInputs]) -> tuple[Bytes, ...]:
    """How many parts, and for each the size of its data and its counts; then all data."""
    head = array("q", [len(parts)])
    for part in parts:
        head.extend((len(part.data), *part.counts))
    return head, *(part.data for part in parts)


def from_wire(payload: bytearray) -> list[StepInputs]:
    words = memoryview(payload).cast("B")[: len(payload) // 8 * 8].cast("q")
    width = 1 + len(EMPTY.counts)
    heads = [words[at : at + width] for at in range(1, 1 + words[0] * width, width)]
    parts, at = [], 8 * (1 + len(heads) * width)
    for size, *counts in heads:
        parts.append(StepInputs(tuple(counts), payload[at : at + size]))
        at += size
    return parts


def serve_part(leader: Leader) -> NoReturn:
    """Join, load, and compute until the process is ended. Raises KvasirError."""
    plan = leader.hear("plan")
    config = EngineConfig.model_validate(plan["engine"])
    layout = Layout(config.tensor_parallel, config.expert_parallel)
    rank, device = plan["rank"], torch.device(plan["device"])
    store = follower_store(plan["host"], plan["port"])

    def transports(told: Line) -> list[Transport]:
        transport = TransportConfig.model_validate(told["transport"])
        return pick_transports(transport, leader.own_host or told["host"])

    rendezvous = Rendezvous(store, leader.own_host or plan["host"], rank)
    groups = join(rendezvous, layout, device)
    steps, copies = _hear_from(leader, rank, rendezvous, layout)
    _, forward = load_forward(plan["model"], config, ranks=groups.ranks, device=plan["device"])
    shares = head_shares(layout, forward.decoder.config)
    done = Steps()
    pages = FollowerPages(forward.cache, shares, rank, groups.copies, done)
    first_block = rank // layout.tensor * forward.cache.num_blocks
    port = FollowerPort(forward.cache, shares.of(rank), first_block, done, transports)
    _beside_steps("kvasir-pages", leader, partial(_copy_pages, copies, pages))
    _beside_steps("kvasir-port", leader, lambda: asyncio.run(port.serve(leader.open_beside())))
    forward.warm_up()
    leader.say("ready")
    while True:
        message = steps.recv(IDLE_S)
        if message is None:
            continue
        if message.kind is Kind.BALANCE:
            forward.balance_experts()
        else:
            assert message.kind is Kind.STEP, message.kind
            forward.run(from_wire(message.payload))
            done.over()


def _hear_from(
    leader: Leader, rank: int, rendezvous: Rendezvous, layout: Layout
) -> tuple[Receiver, Receiver]:
    """Steps and page copies."""
    fds = leader.take_fds()
    if fds:
        return RingReceiver(fds[:3], rank - 1), RingReceiver(fds[3:], rank - 1)
    steps, copies = line_groups(rendezvous, layout, LISTEN_S)
    return GroupReceiver(steps), GroupReceiver(copies)


def _copy_pages(copies: Receiver, pages: FollowerPages) -> None:
    while True:
        message = copies.recv(IDLE_S)
        if message is not None:
            pages.answer(message)


def _beside_steps(name: str, leader: Leader, work: Callable[[], None]) -> None:
    def run() -> None:
        try:
            work()
        except Exception as error:  # an edge too: the process must not live on without this thread
            leader.fail(error)

    threading.Thread(target=run, name=name, daemon=True).start()
