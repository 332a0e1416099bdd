"""`kvasir plan`: the cheapest cluster that holds an SLO under a trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cluster.bench.workload import read_trace
from cluster.simulator.arrivals import spread
from cluster.simulator.fleet.setup import read_model
from cluster.sizing.candidate import Candidate
from cluster.sizing.engines import engines
from cluster.sizing.load import WINDOW_S, Load, read_load
from cluster.sizing.question import Question, read_hardware, read_prices, read_slo, read_tensor
from cluster.sizing.reach import check_reach
from cluster.sizing.report import (
    HEAD,
    as_json,
    by_cost,
    comparison,
    described,
    page,
    paste,
    row,
    verdict,
)
from cluster.sizing.screen import Screen
from cluster.sizing.search import Answer, search
from router.latency import FittedLatency
from workers.core.errors import ConfigError


def plan(
    model: Annotated[str, typer.Option(help="checkpoint directory, config.json, or a shape")],
    hardware: Annotated[str, typer.Option(help="h100, or h100,l40s: pools may differ")],
    slo: Annotated[str, typer.Option(help="ttft=2s,itl=50ms, or one of them")],
    trace: Annotated[Path, typer.Option(help="JSONL or .gz; see load_tests/traces")],
    rate: Annotated[
        float | None, typer.Option(min=1e-3, help="requests a second on average; else the trace's")
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="at most so many")] = None,
    tensor: Annotated[
        str | None, typer.Option("--tp", help="tensor-parallel sizes that may be, e.g. 1,2,4")
    ] = None,
    price: Annotated[
        list[str] | None, typer.Option(help="of a GPU, h100=2.5; GPUs cost alike if not given")
    ] = None,
    attainment: Annotated[
        float, typer.Option(min=0.5, max=0.999, help="part of requests that keep both targets")
    ] = 0.95,
    window: Annotated[
        float, typer.Option(min=10.0, help="seconds of the trace, the busiest, that are played")
    ] = WINDOW_S,
    requests: Annotated[
        int, typer.Option(min=50, help="shorter than the window from so many on")
    ] = 1000,
    runs: Annotated[int, typer.Option(min=3, max=200, help="simulations at most")] = 20,
    out: Annotated[Path | None, typer.Option(help="write a page with plots here")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the figures here")] = None,
) -> None:
    """Pool sizes, tensor-parallel sizes and prefill:decode ratio at the least cost, first by
    queueing models, then in the whole-cluster simulator."""
    devices = read_hardware(hardware)
    question = Question(
        model,
        read_model(model),
        devices,
        read_slo(slo),
        attainment,
        gpus,
        read_prices(price or [], devices),
        read_tensor(tensor),
    )
    load = read_load(
        spread(read_trace(trace), seed=1),
        question.slo,
        context_length=question.model.context_length,
        rate=rate,
        window_s=window,
        most_requests=requests,
    )
    latency = FittedLatency(question.model)
    fitting = engines(question, load.longest, latency)
    screen = Screen(question, load, latency, fitting)
    check_reach(question, load, latency, screen)
    console = Console(highlight=False)
    console.print(f"{model}: {described(question, load)}")
    answer = _searched(question, load, screen, runs)
    _print(console, question, answer)
    if json_file is not None:
        json_file.write_text(json.dumps(as_json(question, load, answer), indent=2) + "\n")
    if out is not None:
        out.write_text(page(question, load, answer))
    if answer.best is None:
        raise ConfigError(
            f"{comparison(answer, question)}. Allow more GPUs or --runs, or ask for less"
        )
    console.print("\ncluster.yaml, beside its model:\n")
    console.out(paste(question, load, answer.best), highlight=False)


def _searched(question: Question, load: Load, screen: Screen, runs: int) -> Answer:
    words = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*words, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=runs)

        def told(candidate: Candidate, left: int) -> None:
            progress.update(task, completed=runs - left, description=f"playing {candidate}")

        return search(question, load, screen, runs, told)


def _print(console: Console, question: Question, answer: Answer) -> None:
    table = Table(box=SIMPLE, padding=(0, 1), show_edge=False)
    for place, name in enumerate(HEAD):
        table.add_column(
            name, justify="left" if place in (0, len(HEAD) - 1) else "right", no_wrap=True
        )
    for each in by_cost(answer.measured):
        style = "bold" if each is answer.best else "" if each.holds else "dim"
        table.add_row(*row(each, answer), style=style)
    console.print(table)
    console.print(verdict(answer, question), comparison(answer, question))
    if answer.spent:
        console.print("the runs ran out: a cheaper plan may be left, --runs looks further")
