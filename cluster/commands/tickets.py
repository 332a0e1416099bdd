"""`kvasir tickets`: handoffs that are open now, and the pairs that their blocks go over."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.access import Access, ApiKey, Ca, Cert
from cluster.admin_client import AdminClient
from cluster.commands.status import DEFAULT_ROUTER, Router
from workers.wire import admin_pb2 as admin
from workers.wire import worker_pb2 as worker
from workers.wire.as_dict import as_dict

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
Json = Annotated[bool, typer.Option("--json", help="one JSON object, every field in it")]


def tickets(
    router: Router = DEFAULT_ROUTER,
    as_json: Json = False,
    api_key: ApiKey = None,
    ca: Ca = None,
    cert: Cert = None,
) -> None:
    """Handoffs that are open now, how each came to be where it is, and the workers' pairs."""
    with AdminClient(router, Access(api_key, ca, cert)) as client:
        answer = client.tickets()
    if as_json:
        typer.echo(json.dumps(as_dict(answer), indent=2))
        return
    console = Console(highlight=False)
    has_tickets = any(one.held.tickets for one in answer.replicas)
    console.print(ticket_table(answer) if has_tickets else "no ticket is open")
    if any(one.held.pairs for one in answer.replicas):
        console.print(pair_table(answer))
    for one in answer.replicas:
        if one.error:
            console.print(f"[red]{escape(one.replica)} does not answer[/red]: {escape(one.error)}")


def ticket_table(answer: admin.ClusterTickets) -> Table:
    table = Table(title="tickets", title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("holder", "ticket", "request", "state"):
        table.add_column(name)
    for name in ("epoch", "blocks", "age", "lease left"):
        table.add_column(name, justify="right")
    table.add_column("story", overflow="fold")
    for one in answer.replicas:
        for ticket in one.held.tickets:
            table.add_row(
                one.replica,
                ticket.id[:12],
                escape(ticket.request_id),
                ticket.state,
                str(ticket.epoch),
                str(ticket.num_blocks),
                f"{ticket.age_s:.1f} s",
                f"{ticket.lease_left_s:.1f} s",
                escape("; ".join(ticket.story)),
            )
    return table


def pair_table(answer: admin.ClusterTickets) -> Table:
    """One row for each end of a pair: what it costs there and how it does."""
    # As narrow as it gets, like `kvasir status`.
    table = Table(title="pairs", title_justify="left", box=SIMPLE, padding=0, show_edge=False)
    for name in ("replica", "peer", "over"):
        table.add_column(name, no_wrap=True)
    for name in ("gen", "lanes", "staging", "thr", "fds", "open", "chunks", "bytes"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", overflow="fold")
    for one in answer.replicas:
        for pair in one.held.pairs:
            table.add_row(
                one.replica,
                f"{'to' if pair.sending else 'from'} {pair.peer}",
                pair.transport or "inline",
                str(pair.generation),
                str(pair.lanes),
                _size(pair.staging_bytes),
                str(pair.threads),
                str(pair.fds),
                str(pair.offers_under_way),
                str(pair.chunks),
                _size(pair.num_bytes),
                _state(pair),
            )
    return table


def _state(pair: worker.PairInfo) -> str:
    parts = [f"[red]failed[/red]: {escape(pair.failed)}"] if pair.failed else []
    if pair.failures:
        parts.append(f"{pair.failures} failures in a row")
    if pair.quarantine_left_s > 0:
        parts.append(f"quarantine for {pair.quarantine_left_s:.1f} s")
    return "; ".join(parts) or "ok"


def _size(num_bytes: int) -> str:
    """In the largest unit of which there is one: 1536 -> 1.5 KiB."""
    power = max(0, min(4, (num_bytes.bit_length() - 1) // 10))
    return f"{num_bytes / 1024**power:.3g} {UNITS[power]}"
