"""`kvasir status`: what the router knows, as a table."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from cluster.access import Access, ApiKey, Ca, Cert
from cluster.admin_client import AdminClient
from workers.wire import admin_pb2 as admin
from workers.wire import common_pb2 as common

Router = Annotated[str, typer.Option("--router", help="gRPC address of the router")]
DEFAULT_ROUTER = "127.0.0.1:9000"


def status(
    router: Router = DEFAULT_ROUTER,
    api_key: ApiKey = None,
    ca: Ca = None,
    cert: Cert = None,
) -> None:
    """Pools, replicas, their load, KV use and prefix hits; how right predictions are."""
    with AdminClient(router, Access(api_key, ca, cert)) as client:
        answer = client.status()
    console = Console(highlight=False)
    console.print(replica_table(answer))
    console.print(class_table(answer))
    console.print(prediction_table(answer))
    redis = "up" if answer.redis_up else "[red]away[/red]"
    console.print(
        f"{answer.requests_in_flight} requests in flight, {answer.requests_total} since start, "
        f"{answer.requests_failed} failed; redis {redis}; {answer.index_blocks} blocks in the index"
    )
    for other in answer.others:
        console.print(
            f"router {other.id}, heard {other.heard_s:.1f} s ago: {other.seqs} sequences, "
            f"{other.pending_tokens} tokens to prefill, {other.kv_tokens} of KV"
        )


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


def class_table(answer: admin.StatusResponse) -> Table:
    """Who waits in front of the cluster. `good`: of what ended, within the targets of its class."""
    table = Table(box=SIMPLE, padding=0, show_edge=False)
    table.add_column("class", no_wrap=True)
    for name in ("queued", "admitted", "refused", "good"):
        table.add_column(name, justify="right", no_wrap=True)
    for slo in answer.classes:
        counts = (slo.queued, slo.admitted, slo.refused)
        table.add_row(slo.name, *map(str, counts), _percent(slo.good, slo.ended))
    return table


def prediction_table(answer: admin.StatusResponse) -> Table:
    """Predicted beside actual: the newest of each kind, and over many how far off and to which
    side (+: predicted too long)."""
    table = Table(box=SIMPLE, padding=0, show_edge=False)
    for name in ("replica", "predicted"):
        table.add_column(name, no_wrap=True)
    for name in ("times", "last", "actual", "off", "bias"):
        table.add_column(name, justify="right", no_wrap=True)
    for replica in sorted(answer.replicas, key=_position):
        for each in replica.predictions:
            table.add_row(replica.load.replica.id, *_prediction(each))
    for each in answer.requests:
        table.add_row("requests", *_prediction(each))
    return table


def _prediction(each: admin.Prediction) -> tuple[str, ...]:
    return (
        each.kind,
        str(each.count),
        f"{each.predicted_s * 1e3:.1f} ms",
        f"{each.actual_s * 1e3:.1f} ms",
        f"{100 * each.error:.0f} %",
        f"{100 * each.bias:+.0f} %",
    )


def _position(replica: admin.ReplicaStatus) -> tuple[int, str]:
    """Prefill before decode: the order in which a request meets them."""
    return replica.load.role, replica.load.replica.id


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"
