"""`kvasir explain scale`: how many replicas the planner wants, and why."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

from cluster.access import Access, ApiKey, Ca, Cert
from cluster.admin_client import AdminClient
from cluster.autoscaler.published import ByHand, Published, orders
from cluster.commands.status import DEFAULT_ROUTER, Router
from workers.wire import admin_pb2 as admin

OVERDUE = 3.0  # times the planner's interval, after which a plan is no longer news


def scale(
    router: Router = DEFAULT_ROUTER,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object with all of it")] = False,
    api_key: ApiKey = None,
    ca: Ca = None,
    cert: Cert = None,
) -> None:
    """The newest plan: what it was made from, what it expects, what it decided against and why."""
    with AdminClient(router, Access(api_key, ca, cert)) as client:
        told = client.explain_scale()
    plan = Published.model_validate_json(told.json) if told.json else None
    by_hand = {p: ByHand(replicas=a.replicas, at=a.at) for p, a in told.by_hand.items()}
    wanted = orders(plan, by_hand)
    if as_json:
        typer.echo(json.dumps(_as_json(told, by_hand, wanted), indent=2))
        return
    console = Console(highlight=False)
    if plan is not None:
        for part in rendered(plan, told.age_s):
            console.print(part, soft_wrap=isinstance(part, str))
    console.print("\n[bold]what holds[/bold]")
    for pool, asked in by_hand.items():
        held = "" if wanted.get(pool) == asked.replicas else ", which a plan came after"
        console.print(f"  {escape(pool)}: {asked.replicas} asked for by hand{held}")
    sizes = ", ".join(f"{escape(pool)} {count}" for pool, count in sorted(wanted.items()))
    console.print(f"  {sizes or 'nothing is ordered: pools stay as they are'}")


def _as_json(
    told: admin.ExplainScaleResponse, by_hand: Mapping[str, ByHand], wanted: Mapping[str, int]
) -> dict[str, Any]:
    return {
        "age_s": round(told.age_s, 3),
        "published": json.loads(told.json) if told.json else None,
        "by_hand": {pool: asked.model_dump() for pool, asked in by_hand.items()},
        "orders": dict(wanted),
    }


def rendered(told: Published, age_s: float) -> Iterator[RenderableType]:
    """From what is wanted to why not otherwise."""
    plan = told.plan
    late = " ([red]overdue[/red])" if age_s > OVERDUE * told.every_s else ""
    doing = "is applied" if told.mode == "apply" else "is advice"
    yield (
        f"plan of {escape(told.by)}, {age_s:.1f} s ago{late}, every {told.every_s:g} s; "
        f"mode {told.mode}: it {doing}"
    )
    yield pool_table(told)
    goal, expected = plan["goal"], plan["prediction"]
    feasible = "" if plan["feasible"] else "; [red]that is out of reach[/red]"
    yield f"\n{expected['attainment']:.1%} in time is expected, {goal:.0%} is wanted{feasible}"
    wait_s = expected["wait_p95_s"]
    yield (
        f"  TTFT {expected['ttft']:.1%}, ITL {expected['itl']:.1%}; prefill "
        f"{expected['prefill_busy']:.0%} busy, decode {expected['decode_busy']:.0%}; one in twenty "
        f"prompts waits {'without end' if wait_s is None else f'{wait_s * 1e3:.0f} ms'} or more"
    )
    yield _title("why")
    yield from (f"  {escape(reason)}" for reason in plan["reasons"])
    yield _title("made from")
    yield input_table(plan["inputs"])
    if plan["rejected"]:
        yield _title("decided against")
        yield rejected_table(plan["rejected"])


def pool_table(told: Published) -> Table:
    table = _table("pool", right=("wanted", "up", "starting", "draining"))
    table.add_column("")
    for pool, wanted in told.pools.items():
        seen = told.seen[pool]
        prefill = told.as_prefill.get(pool)
        roles = "" if prefill is None else f"{prefill} of them prefill (now {seen.as_prefill})"
        unfitted = "" if seen.fitted else "no step of it was measured yet"
        note = "; ".join(filter(None, (roles, unfitted)))
        counts = (wanted, seen.up, len(seen.starting), seen.draining)
        table.add_row(escape(pool), *map(str, counts), note)
    return table


def input_table(inputs: Mapping[str, Any]) -> Table:
    table = _table("", right=("",))
    table.show_header = False
    table.add_row("offered now", f"{inputs['offered']:.2f} requests/s")
    for role, each in inputs["roles"].items():
        table.add_row(
            f"{role}, in {each['horizon_s']:.0f} s",
            f"{each['rate']:.2f} + {each['margin']:.2f} by {each['way']}, peak {each['peak']:.2f}",
        )
    table.add_row("waiting", f"{inputs['queued']}")
    table.add_row("burstiness", f"{inputs['bursts']:.1f} (1 = Poisson)")
    table.add_row(
        "prompt", f"{inputs['prompt']:.0f} tokens, {inputs['uncached']:.0f} of them computed"
    )
    table.add_row("answer", f"{inputs['output']:.0f} tokens, P90 {inputs['output_p90']:.0f}")
    table.add_row("prefill of one", f"{inputs['prefill_s'] * 1e3:.1f} ms")
    table.add_row(
        "decode step", f"{inputs['step_s'] * 1e3:.2f} ms of {inputs['batch']} ({inputs['bound']})"
    )
    return table


def rejected_table(rejected: list[Mapping[str, str]]) -> Table:
    table = _table("instead")
    table.add_column("why not", overflow="fold")
    for each in rejected:
        table.add_row(escape(each["choice"]), escape(each["why"]))
    return table


def _table(name: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column(name, no_wrap=True)
    for column in right:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _title(text: str) -> str:
    return f"\n[bold]{escape(text)}[/bold]"
