"""`kvasir simulate cluster`: a whole cluster under a trace, in virtual time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from cluster.bench.workload import read_trace
from cluster.config import load_config
from cluster.simulator.arrivals import spread
from cluster.simulator.fleet.asks import asks
from cluster.simulator.fleet.failures import read_failures
from cluster.simulator.fleet.figures import Figures, Quantiles, figures
from cluster.simulator.fleet.page import page
from cluster.simulator.fleet.play import play
from cluster.simulator.fleet.setup import Options, fleet_plan, read_model, resized
from router.flow.classes import SloConfig
from router.placement.placement import Disaggregation
from workers.core.errors import ConfigError


def cluster(
    config: Annotated[Path, typer.Option(help="cluster.yaml: pools, engine sizes, SLO classes")],
    trace: Annotated[Path, typer.Option(help="JSONL or .gz; see load_tests/traces")],
    model: Annotated[
        str | None, typer.Option(help="directory, config.json or a shape; else the config's")
    ] = None,
    scale: Annotated[float, typer.Option(min=1e-3, help="times the trace's request rate")] = 1.0,
    rate: Annotated[
        float | None, typer.Option(min=1e-3, help="requests a second on average, instead of scale")
    ] = None,
    duration: Annotated[
        float | None,
        typer.Option(min=1.0, help="seconds of arrivals; the trace is cut, or played again"),
    ] = None,
    mode: Annotated[
        Disaggregation | None, typer.Option(help="instead of the config's router.disaggregation")
    ] = None,
    replicas: Annotated[
        list[str] | None, typer.Option(help="POOL=N instead of the config's; may be repeated")
    ] = None,
    slo_class: Annotated[
        str | None,
        typer.Option(
            "--class", help="of all requests; else as the trace says, or the config's default"
        ),
    ] = None,
    steps: Annotated[
        Path | None, typer.Option(help="of a live cluster, as `kvasir record --steps` wrote them")
    ] = None,
    fail: Annotated[
        list[str] | None,
        typer.Option(help="decode-1@120s[+30s|+never], or @FILE with one a line"),
    ] = None,
    noise: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="of step times: sigma of the logarithm")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="of ties, noise, and stamps that are spread")] = 1,
    report: Annotated[Path | None, typer.Option(help="write a page with plots here")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the figures here")] = None,
) -> None:
    """TTFT, ITL, goodput and utilisation of a cluster: the router's own code and the workers' own
    schedulers, with step times from the latency model."""
    loaded = load_config(config)
    if replicas:
        loaded = resized(loaded, _sizes(replicas))
    plan = fleet_plan(loaded, read_model(model or loaded.model), Options(mode, noise, seed, steps))
    failures = read_failures(fail or [], [replica.name for replica in plan.replicas])
    jobs = spread(read_trace(trace), seed)
    _check_classes(loaded.slo, [slo_class] if slo_class else [job.slo_class for job in jobs])
    speed = scale if rate is None else rate * jobs[-1].at_s / max(1, len(jobs) - 1) or 1.0
    window_s = duration or max(1.0, jobs[-1].at_s / speed)
    block_size = loaded.engine.block_size
    coming = asks(jobs, block_size, rate=speed, duration_s=duration, slo_class=slo_class)
    played = play(plan, coming, window_s, failures)
    found = figures(played)
    _print(found)
    if json_file is not None:
        json_file.write_text(json.dumps(found.as_json(), indent=2) + "\n")
    if report is not None:
        title = f"{trace.name} on {', '.join(f'{p.replicas} {n}' for n, p in found.pools.items())}"
        report.write_text(page(title, played, found))


def _check_classes(slo: SloConfig, asked: Sequence[str | None]) -> None:
    for name in dict.fromkeys(asked):
        if name is not None and name not in slo.classes:
            raise ConfigError(
                f"no service class {name!r}; there are: {', '.join(slo.classes)}. "
                "--class NAME puts all requests into one"
            )


def _sizes(given: list[str]) -> dict[str, int]:
    sizes = {}
    for text in given:
        name, equals, count = text.partition("=")
        if not equals or not count.isdigit():
            raise ConfigError(f"--replicas {text!r}: write POOL=N")
        sizes[name] = int(count)
    return sizes


def _print(found: Figures) -> None:
    console = Console(highlight=False)
    console.print(
        f"{found.requests:,} requests in {found.window_s:,.0f} s: {found.throughput:,.2f} served a "
        f"second, {found.goodput:,.2f} of them well ({found.attainment:.1%} of all), "
        f"{found.output_tokens_per_s:,.0f} tokens a second\n"
        f"{found.refused:,} refused, {found.failed:,} failed, {found.preemptions:,} preempted; "
        f"{found.hit:.1%} of prompt tokens cached; {found.replica_hours:,.2f} replica-hours"
    )
    counts = _table("class", "requests", "good", "late", "slow", "refused", "failed")
    latencies = _table("class", "TTFT p50 ms", "p90", "p99", "ITL mean ms", "p50", "p90", "p99")
    for name, each in found.classes.items():
        numbers = (each.requests, each.good, each.late, each.slow, each.refused, each.failed)
        counts.add_row(name, *(f"{number:,}" for number in numbers))
        latencies.add_row(name, *_ms(each.ttft)[1:], *_ms(each.itl))
    console.print(counts)
    console.print(latencies)
    pools = _table("pool", "replicas", "hours", "busy", "preempted", "steps")
    for name, pool in found.pools.items():
        pools.add_row(
            name, f"{pool.replicas}", f"{pool.replica_hours:,.2f}", f"{pool.utilisation:.1%}",
            f"{pool.preemptions:,}", f"{pool.steps:,}",
        )  # fmt: skip
    console.print(pools)


def _table(first: str, *columns: str) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1), show_edge=False)
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _ms(values: Quantiles) -> list[str]:
    return [f"{1e3 * v:,.1f}" for v in (values.mean, values.p50, values.p90, values.p99)]
