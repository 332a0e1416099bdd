"""`kvasir explain`: why a request went where it went, and where its time went; `scale` stands in
explain_scale.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

from cluster.access import Access, ApiKey, Ca, Cert
from cluster.admin_client import AdminClient
from cluster.commands.explain_scale import scale
from cluster.commands.status import DEFAULT_ROUTER, Router
from workers.wire import admin_pb2 as admin
from workers.wire.as_dict import as_dict

TABLE_WIDTH = 140  # ids are there to be copied: a narrow terminal wraps the line, nothing is cut
BAR = 40  # cells of the longest part
EIGHTHS = " ▏▎▍▌▋▊▉"

app = typer.Typer(
    help="Why a request went where it went, or pools their size.", no_args_is_help=True
)
app.command()(scale)
Json = Annotated[bool, typer.Option("--json", help="one JSON object, every field in it")]


@app.command()
def request(
    name: Annotated[
        str,
        typer.Argument(
            metavar="ID", help="x-request-id, the id of the answer, or the id that workers log"
        ),
    ],
    router: Router = DEFAULT_ROUTER,
    as_json: Json = False,
    api_key: ApiKey = None,
    ca: Ca = None,
    cert: Cert = None,
) -> None:
    """Candidates and predictions of each decision, what then happened, and two waterfalls."""
    with AdminClient(router, Access(api_key, ca, cert)) as client:
        answer = client.explain_request(name)
    if as_json:
        typer.echo(json.dumps(as_dict(answer), indent=2))
        return
    console = Console(highlight=False)
    for told in answer.requests:
        for part in rendered(told):
            console.print(part, soft_wrap=isinstance(part, str))


@app.command()
def requests(
    router: Router = DEFAULT_ROUTER,
    limit: Annotated[int, typer.Option(min=1, help="how many")] = 20,
    as_json: Json = False,
    api_key: ApiKey = None,
    ca: Ca = None,
    cert: Cert = None,
) -> None:
    """The newest requests that can be explained."""
    with AdminClient(router, Access(api_key, ca, cert)) as client:
        answer = client.recent_requests(limit)
    if as_json:
        typer.echo(json.dumps(as_dict(answer), indent=2))
        return
    console = Console(highlight=False)
    console.width = max(console.width, TABLE_WIDTH)
    console.print(request_table(answer) if answer.requests else "no request is known")


def request_table(answer: admin.RecentRequestsResponse) -> Table:
    table = _table()
    for name in ("request", "how", "prefill", "decode"):
        table.add_column(name, no_wrap=True)
    for name in ("in", "out", "TTFT", "gap", "age"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in answer.requests:
        table.add_row(
            escape(one.id),
            one.outcome or "under way",
            one.prefill or "-",
            one.decode or "-",
            str(one.prompt_tokens),
            str(one.output_tokens),
            _ms(one.ttft_s) if one.HasField("ttft_s") else "-",
            _ms(one.first_gap_s) if one.HasField("first_gap_s") else "-",
            f"{one.age_s:.1f} s",
        )
    return table


def rendered(told: admin.Explanation) -> Iterator[RenderableType]:
    """From the whole to the parts: head, waterfalls, predictions, decisions, story."""
    yield _head(told.summary)
    if told.HasField("ttft"):
        yield _title(f"TTFT {_ms(told.ttft.total_s)}")
        yield waterfall_table(told.ttft)
    if told.HasField("first_gap"):
        yield _title(f"FIRST_GAP {_ms(told.first_gap.total_s)}, first token to second")
        yield waterfall_table(told.first_gap)
    if told.compared:
        yield _title("predicted and actual")
        yield compared_table(told)
    for choice in told.choices:
        yield _title(_decided(choice))
        yield from _reasons(choice)
        if choice.candidates:
            yield choice_table(choice)
    yield _title("what happened")
    yield story_table(told)


def _head(one: admin.RequestSummary) -> str:
    names = ", ".join(name for name in (*one.also, one.worker_id) if name and name != one.id)
    outcome = one.outcome or "under way"
    if one.error:
        outcome += f" ({one.error})"
    terms = [f"class {one.slo_class}"] if one.slo_class else []
    terms += [f"tenant {one.tenant}"] if one.tenant else []
    facts = (
        *terms,
        f"{one.prompt_tokens} tokens in, {one.output_tokens} out",
        f"{_ms(one.total_s)} in all, {one.age_s:.1f} s ago",
    )
    head = f"request [bold]{escape(one.id)}[/bold]: {escape(outcome)}\n  {escape(', '.join(facts))}"
    return f"{head}\n  also known as {escape(names)}" if names else head


def waterfall_table(poured: admin.Waterfall) -> Table:
    table = _table()
    table.add_column(min_width=17, no_wrap=True)
    table.add_column(justify="right", min_width=10, no_wrap=True)
    table.add_column(width=BAR, no_wrap=True)
    table.show_header = False
    before_s = 0.0
    for part in poured.parts:
        table.add_row(part.name, _ms(part.seconds), _bar(before_s, part.seconds, poured.total_s))
        before_s += part.seconds
    return table


def _bar(before_s: float, seconds: float, total_s: float) -> str:
    """Where in the whole it lies, in eighths of a cell; what there is is never invisible."""
    if not seconds or not total_s:
        return ""
    start = min(BAR - 1, round(BAR * before_s / total_s))
    eighths = max(1, min(8 * (BAR - start), round(8 * BAR * seconds / total_s)))
    return " " * start + "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def compared_table(told: admin.Explanation) -> Table:
    table = _table()
    table.add_column("", min_width=17, no_wrap=True)
    for name in ("predicted", "actual"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in told.compared:
        if one.unit == "s":
            table.add_row(one.name, _ms(one.predicted), _ms(one.actual))
        else:
            table.add_row(one.name, *(f"{n:.0f} {one.unit}" for n in (one.predicted, one.actual)))
    return table


def _decided(choice: admin.Choice) -> str:
    where = f" on {choice.replica}" if choice.replica else ": nobody can take it"
    return f"at {_ms(choice.at_s)}: {'move' if choice.moving else choice.phase}{where}"


def _reasons(choice: admin.Choice) -> Iterator[str]:
    """Beside the candidates' predictions: when to bind, and who is no candidate."""
    if choice.HasField("timing"):
        timing = choice.timing
        yield (
            f"  bind {timing.timing}: beside {_ms(timing.prefill_left_s)} of prefill "
            f"{_ms(timing.gain_s)} of {_ms(timing.transfer_s)} of transfer would hide; it wants "
            f"{timing.wanted_tokens} of {timing.free_tokens} free tokens"
        )
    refused: dict[str, list[str]] = {}
    for one in choice.refused:
        refused.setdefault(one.why, []).append(one.replica)
    for why, names in refused.items():
        yield f"  not considered ({why}): {escape(', '.join(names))}"


def choice_table(choice: admin.Choice) -> Table:
    table = _table()
    fetches = choice.phase == "decode"
    weighed = any(one.HasField("way") for one in choice.candidates)
    table.add_column("replica", no_wrap=True)
    for name in (
        "wait", *(["transfer"] if fetches else []), "work",
        *(["gap", "ITL", "after"] if weighed else []), "cost", "cached",
    ):  # fmt: skip
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for place, one in enumerate(choice.candidates):
        transfer = [_ms(one.transfer_s)] if fetches else []
        way = [_ms(s) for s in (one.way.gap_s, one.way.itl_s, one.way.after_s)] if weighed else []
        cost = _ms(one.cost_s) if one.HasField("cost_s") else "-"
        seconds = (_ms(one.wait_s), *transfer, _ms(one.work_s), *way, cost)
        table.add_row(_whither(one), *seconds, str(one.cached_tokens), _mark(choice, place))
    return table


def _whither(one: admin.Candidate) -> str:
    if not one.HasField("way"):
        return one.replica
    return f"{one.replica} alone" if one.way.alone else f"{one.replica} -> {one.way.decode or '?'}"


def _mark(choice: admin.Choice, place: int) -> str:
    if choice.HasField("taken") and place == choice.taken:
        return "chosen"
    return "the other way" if choice.HasField("otherwise") and place == choice.otherwise else ""


def story_table(told: admin.Explanation) -> Table:
    table = _table()
    table.show_header = False
    table.add_column(justify="right", min_width=10, no_wrap=True)
    table.add_column(overflow="fold")
    for line in told.story:
        table.add_row(_ms(line.at_s), escape(line.what))
    if told.left_out:
        table.add_row("", f"{told.left_out} events more were not kept")
    return table


def _title(text: str) -> str:
    return f"\n[bold]{escape(text)}[/bold]"


def _table() -> Table:
    return Table(box=SIMPLE, padding=(0, 1, 0, 0), show_edge=False)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"
