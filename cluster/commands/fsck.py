"""`kvasir fsck`: do workers, Redis and routers agree on which blocks are cached where?"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from cluster.access import Access, ApiKey, Ca, Cert
from cluster.admin_client import AdminClient
from cluster.commands.status import DEFAULT_ROUTER
from workers.wire import admin_pb2 as admin

Routers = Annotated[list[str], typer.Option("--router", help="gRPC address; once for each router")]
Repair = Annotated[bool, typer.Option("--repair", help="mend what differs")]


def fsck(
    router: Routers = [DEFAULT_ROUTER],  # noqa: B006
    repair: Repair = False,
    api_key: ApiKey = None,
    ca: Ca = None,
    cert: Cert = None,
) -> None:
    """Compare the block tables of workers, Redis and routers; exit code 1 if they still differ."""
    console = Console(highlight=False)
    clean = True
    for address in router:
        with AdminClient(address, Access(api_key, ca, cert)) as client:
            answer = client.fsck(repair)
        console.print(fsck_table(address, answer))
        for line in remarks(answer, repair):
            console.print(line)
        clean &= agrees(answer, repair)
    if not clean:
        raise typer.Exit(1)


def agrees(answer: admin.FsckResponse, repair: bool) -> bool:
    """Nothing differs, or no more."""
    faulty = [replica for replica in answer.replicas if _differs(replica) and not replica.mended]
    return answer.redis_up and not faulty and (repair or not answer.orphans)


def fsck_table(address: str, answer: admin.FsckResponse) -> Table:
    title = f"router {address}"
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("replica", no_wrap=True)
    for name in ("event", "worker", "redis", "missing", "extra", "mirror", "missing", "extra"):
        table.add_column(name, justify="right")
    table.add_column("")
    for one in sorted(answer.replicas, key=lambda replica: replica.replica):
        numbers = (
            one.event_seq, one.table_blocks,
            one.log_blocks, one.log_missing, one.log_extra,
            one.mirror_blocks, one.mirror_missing, one.mirror_extra,
        )  # fmt: skip
        verdict = "ok" if not _differs(one) else "mended" if one.mended else "[red]differs[/red]"
        table.add_row(one.replica, *map(str, numbers), verdict)
    return table


def remarks(answer: admin.FsckResponse, repair: bool) -> list[str]:
    found = [f"{one.replica}: {fault}" for one in answer.replicas for fault in one.faults]
    done = "removed" if repair else "nobody knows it"
    found += [f"{name}: Redis has blocks of it, {done}" for name in answer.orphans]
    if not answer.redis_up:
        found.append("Redis is away")
    return found


def _differs(one: admin.FsckReplica) -> bool:
    counts = (one.log_missing, one.log_extra, one.mirror_missing, one.mirror_extra)
    return any(counts) or bool(one.faults)
