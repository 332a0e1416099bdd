"""`kvasir simulate`: decisions of the router on real traces, without a cluster."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from time import process_time
from typing import Annotated

import typer

from cluster.commands.simulate_cluster import cluster
from cluster.simulator.arrivals import Part, read_arrivals
from cluster.simulator.route import Setup, simulate
from router.placement.policies.names import PolicyName
from workers.core.eviction import EvictionName

app = typer.Typer(help="Play traces against the router's own code.", no_args_is_help=True)


@app.callback()
def simulations() -> None:
    """Play traces against the router's own code."""


app.command()(cluster)


@app.command()
def route(
    trace: Annotated[Path, typer.Option(help="JSONL or .gz; see load_tests/traces")],
    workers: Annotated[int, typer.Option(min=1)],
    cache_tokens: Annotated[int, typer.Option(min=1, help="of each worker")],
    policy: Annotated[PolicyName, typer.Option(help="of placement")] = "kvasir",
    eviction: Annotated[EvictionName, typer.Option(help="of the block pools")] = "adaptive",
    rho: Annotated[
        float, typer.Option(min=0.01, help="load of the fleet if nothing were ever cached")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="of ties, and of stamps that are spread")] = 1,
    part: Annotated[Part, typer.Option(help="of the trace's time: all, or one half")] = "all",
    events_only: Annotated[
        bool, typer.Option("--events-only", help="blocks count as cached once computed, not before")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the figures here")] = None,
) -> None:
    """Hit ratio, balance and TTFT of a prefill fleet: real index, placement and block pools against
    workers for which each uncached token costs the same. Its own speed, requests_per_cpu_s, is by
    the CPU time of this process; reading the trace does not count."""
    arrivals = read_arrivals(trace, seed=seed).part(part)
    setup = Setup(workers, cache_tokens, policy, eviction, rho, seed, not events_only)
    began = process_time()
    report = simulate(arrivals, setup)
    figures = asdict(report) | {"requests_per_cpu_s": report.requests / (process_time() - began)}
    for name, value in figures.items():
        print(f"{name:>18}  {value:,.4g}" if isinstance(value, float) else f"{name:>18}  {value:,}")
    print("requests_per_cpu_s: by the CPU time of this process, reading the trace not counted")
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")
