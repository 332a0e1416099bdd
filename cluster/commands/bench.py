"""`kvasir bench serve`: load on an OpenAI endpoint, and what came of it."""

from __future__ import annotations

import asyncio
import json
import math
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cluster.access import Access, ApiKey, Ca, Cert
from cluster.bench.client import Target, find_model
from cluster.bench.report import Slo, as_table, summarise
from cluster.bench.runner import Run
from cluster.bench.workload import Job, fit_factor, read_trace, synthetic
from cluster.commands.bench_engine import engine
from cluster.commands.bench_transfer import transfer
from cluster.endpoint import parse_url, takes_proxy
from workers.core.clock import SystemClock
from workers.core.errors import ConfigError

app = typer.Typer(help="Measure a running cluster, one engine, or transfers.", no_args_is_help=True)
app.command()(engine)
app.command()(transfer)


@app.command()
def serve(
    url: Annotated[str, typer.Option(help="any OpenAI endpoint")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="without it the first one served")] = None,
    trace: Annotated[Path | None, typer.Option(help="JSONL or .gz; see load_tests")] = None,
    scale: Annotated[str, typer.Option(help="shrink the lengths: a factor, or auto")] = "auto",
    speed: Annotated[float, typer.Option(help="2 = the trace at twice its speed")] = 1.0,
    limit: Annotated[int | None, typer.Option(min=1, help="rows of the trace")] = None,
    input: Annotated[int, typer.Option(min=1, help="prompt tokens, without a trace")] = 128,
    output: Annotated[int, typer.Option(min=1, help="generated tokens, without a trace")] = 32,
    rate: Annotated[float | None, typer.Option(help="requests/s, Poisson; default 1")] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="closed loop with so many clients instead")
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="without a trace")] = 32,
    shared_prefix: Annotated[int, typer.Option(min=0, help="tokens equal in all prompts")] = 0,
    seed: Annotated[int, typer.Option(help="of arrivals and prompts")] = 0,
    slo: Annotated[str | None, typer.Option(help="ttft=1s,itl=50ms: reports goodput")] = None,
    timeout_s: Annotated[float, typer.Option(help="longest silence of one request")] = 120.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the report here")] = None,
    api_key: ApiKey = None,
    ca: Ca = None,
    cert: Cert = None,
) -> None:
    """Replay a trace or a synthetic workload and print latencies, throughput and goodput."""
    if rate is not None and (concurrency is not None or trace is not None):
        raise ConfigError("--rate goes with neither --concurrency nor --trace (which has --speed)")
    if speed <= 0 or (rate is not None and rate <= 0):
        raise ConfigError("--speed and --rate must be above 0")
    target_slo = Slo.parse(slo) if slo else None
    jobs = (
        read_trace(trace, limit=limit, speed=speed)
        if trace
        else synthetic(
            requests=requests,
            input_tokens=input,
            output_tokens=output,
            rate=rate if rate is not None or concurrency is not None else 1.0,
            shared_prefix=min(shared_prefix, input),
            seed=seed,
        )
    )
    report = asyncio.run(
        _measure(
            url, Access(api_key, ca, cert), model, jobs, scale, concurrency, timeout_s, target_slo
        )
    )
    Console(highlight=False).print(as_table(report))
    if json_file:
        json_file.write_text(json.dumps(report, indent=2) + "\n")
    if report["errors"] == report["requests"]:
        raise typer.Exit(1)


async def _measure(
    url: str,
    access: Access,
    model: str | None,
    jobs: Sequence[Job],
    scale: str,
    concurrency: int | None,
    timeout_s: float,
    slo: Slo | None,
) -> dict[str, object]:
    clock, screen = SystemClock(), Console(stderr=True, highlight=False)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    timeout = httpx.Timeout(timeout_s, connect=10.0)
    bar = Progress(
        TextColumn("requests"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=screen,
    )
    address = parse_url(url)
    async with httpx.AsyncClient(
        base_url=address,
        timeout=timeout,
        limits=limits,
        trust_env=takes_proxy(address),
        headers=access.headers,
        verify=access.context(),
    ) as client:
        name, context_length = await find_model(client, model)
        factor = scale_factor(jobs, scale, context_length)
        if factor != 1:
            jobs = [job.scaled(factor) for job in jobs]
            screen.print(f"every length is multiplied by {factor:.3g}")
        target = Target(client, clock, name)
        await target.probe()
        kind = "token ids" if target.takes_ids else "text"
        screen.print(f"{len(jobs)} requests to {name} at {url}, prompts as {kind}")
        with bar:
            task = bar.add_task("requests", total=len(jobs))
            run = Run(target, clock, lambda: bar.advance(task))
            sending = asyncio.ensure_future(
                run.closed_loop(jobs, concurrency) if concurrency else run.open_loop(jobs)
            )
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, sending.cancel)
            try:
                await sending
            except asyncio.CancelledError:
                screen.print(f"interrupted after {len(run.samples)} of {len(jobs)} requests")
    return {"scale": factor, **summarise(run.samples, slo)}


def scale_factor(jobs: Sequence[Job], scale: str, context_length: int | None) -> float:
    """`scale` is a factor, or `auto`: what makes the longest job fit the served context.

    Raises ConfigError where it is neither.
    """
    if scale == "auto":
        return fit_factor(jobs, context_length) if context_length else 1.0
    try:
        factor = float(scale)
    except ValueError:
        raise ConfigError(f"--scale {scale!r} is neither a number nor auto") from None
    if not 0 < factor < math.inf:
        raise ConfigError("--scale must be above 0")
    return factor
