"""`kvasir status` and `kvasir tickets`: what the router knows, as tables."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from cluster.admin_client import AdminClient
from workers.wire import admin_pb2 as admin
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker

Router = Annotated[str, typer.Option("--router", help="gRPC address of the router")]
DEFAULT_ROUTER = "127.0.0.1:9000"


def status(router: Router = DEFAULT_ROUTER) -> None:
    """Pools, replicas, their load, KV use and prefix hits."""
    with AdminClient(router) as client:
        answer = client.status()
    console = Console(highlight=False)
    console.print(replica_table(answer))
    redis = "up" if answer.redis_up else "[red]away[/red]"
    console.print(
        f"{answer.requests_in_flight} requests in flight, {answer.requests_total} since start, "
        f"{answer.requests_failed} failed; redis {redis}; {answer.index_blocks} blocks in the index"
    )


def tickets(router: Router = DEFAULT_ROUTER) -> None:
    """Handoffs that are open now, and how each came to be where it is."""
    with AdminClient(router) as client:
        answer = client.tickets()
    console = Console(highlight=False)
    console.print(ticket_table(answer) if answer.tickets else "no ticket is open")


def replica_table(answer: admin.StatusResponse) -> Table:
    # As narrow as it gets: the longest names of ours fit into 80 columns.
    table = Table(
        title=f"model {answer.model}", title_justify="left", box=SIMPLE, padding=0, show_edge=False
    )
    for name in ("pool", "replica", "role", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("run", "wait", "KV", "cached", "tickets", "hits"):
        table.add_column(name, justify="right", no_wrap=True)
    for replica in sorted(answer.replicas, key=_position):
        load = replica.load
        table.add_row(
            replica.pool,
            load.replica.id,
            common.Role.Name(load.role).removeprefix("ROLE_").lower(),
            load.state if replica.up else "[red]down[/red]",
            str(load.running),
            str(load.waiting),
            _percent(load.blocks_used, load.blocks_total),
            _percent(load.blocks_cached, load.blocks_total),
            str(load.tickets_open),
            _percent(load.prefix_hit_tokens, load.prefix_query_tokens),
        )
    return table


def _position(replica: admin.ReplicaStatus) -> tuple[int, str]:
    """Prefill before decode: the order in which a request meets them."""
    return replica.load.role, replica.load.replica.id


def ticket_table(answer: worker.TicketsResponse) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("ticket", "request", "state"):
        table.add_column(name)
    for name in ("epoch", "blocks", "age", "lease left"):
        table.add_column(name, justify="right")
    table.add_column("story", overflow="fold")
    for ticket in answer.tickets:
        table.add_row(
            ticket.id[:12],
            ticket.request_id,
            ticket.state,
            str(ticket.epoch),
            str(ticket.num_blocks),
            f"{ticket.age_s:.1f} s",
            f"{ticket.lease_left_s:.1f} s",
            "; ".join(ticket.story),
        )
    return table


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"
