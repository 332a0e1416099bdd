"""`kvasir bench engine`: one engine of this process, no network, each figure beside its limit."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

Sizes = Annotated[str, typer.Option(help="comma-separated")]


def engine(
    model: Annotated[str, typer.Option(help="checkpoint directory or hub id")],
    threads: Annotated[int, typer.Option(min=1, help="torch threads of each rank")] = 1,
    tp: Annotated[int, typer.Option(min=1, help="ranks; of more a step is shown in parts")] = 1,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float32")] = "auto",
    kv_tokens: Annotated[int, typer.Option(min=1024, help="KV pool; larger points are skipped")] = (
        70_000
    ),
    step_tokens: Annotated[int, typer.Option(min=1, help="prefill chunk")] = 512,
    prefill: Sizes = "128,512,2048,8192",
    batches: Sizes = "1,4,8,16,32,64",
    contexts: Sizes = "128,1024,4096",
    mixed: Annotated[
        str, typer.Option(help="decodes x context x prefill tokens, comma-separated")
    ] = ("8x1024x256,8x1024x512"),
    json_file: Annotated[Path | None, typer.Option("--json", help="write the rows here")] = None,
) -> None:
    """Prefill, decode and the time outside the model; a row is printed when it is measured."""
    # Here and not above: the other commands answer without waiting for torch.
    from workers.bench.engine import EngineBench, Plan, measure
    from workers.bench.traffic import Traffic
    from workers.config import EngineConfig
    from workers.runner.ranks import load_replica

    plan = Plan(_sizes(prefill), _sizes(batches), _sizes(contexts), _points(mixed), tensor=tp)
    config = EngineConfig.model_validate(
        {
            "dtype": dtype,
            "kv_tokens": kv_tokens,
            "step_tokens": step_tokens,
            "max_seqs": 64,
            "threads": threads,
            "tensor_parallel": tp,
        }
    )
    console = Console(highlight=False)
    console.print(f"loading {model} and measuring this machine with {threads} torch threads")
    traffic = Traffic()
    runner = load_replica(model, config, measured=traffic.of)
    bench = EngineBench(runner, config.block_size, step_tokens, traffic)
    rows = []
    try:
        for row in measure(bench, plan):
            rows.append(row)
            limit = "" if row.limit is None else f"  limit {row.limit:.2f}  ratio {row.ratio:.2f}"
            console.print(f"  {row.name:<24} {row.value:10.2f} {row.unit:<14}{limit}")
    finally:
        asyncio.run(runner.close())
    if json_file:
        json_file.write_text(json.dumps([row.as_dict() for row in rows], indent=2) + "\n")


def _points(text: str) -> tuple[tuple[int, int, int], ...]:
    points = [_sizes(part.replace("x", ",")) for part in text.split(",") if part]
    if any(len(point) != 3 for point in points):
        raise typer.BadParameter(f"decodes x context x prefill tokens, not {text!r}")
    return tuple((batch, context, tokens) for batch, context, tokens in points)


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        raise typer.BadParameter(f"comma-separated numbers, not {text!r}") from None
