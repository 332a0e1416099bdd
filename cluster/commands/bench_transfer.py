"""`kvasir bench transfer`: KV between processes of this machine, each figure beside its limit."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from workers.bench.engine import Row

DEMO = Path(__file__).parents[2] / "workers/demo/model"


def transfer(
    model: Annotated[
        str | None, typer.Option(help="checkpoint for the overlap; without it the demo model")
    ] = None,
    sizes: Annotated[str, typer.Option(help="message sizes in KiB, comma-separated")] = (
        "64,256,1024,4096,16384,65536"
    ),
    overlap_tokens: Annotated[
        int, typer.Option(min=128, help="prompt of the overlap, in 8 steps")
    ] = 1024,
    only: Annotated[
        str, typer.Option(help="bandwidth,reshard,protocol,overlap,deaths; comma-separated")
    ] = "bandwidth,reshard,protocol,overlap,deaths",
    json_file: Annotated[Path | None, typer.Option("--json", help="write the rows here")] = None,
) -> None:
    """Bandwidth by message size, the protocol's cost, overlap, and what deaths cost; a row is
    printed when it is measured."""
    # Here and not above: the other commands answer without waiting for torch.
    from workers.bench.transfer import Plan, measure

    plan = Plan(
        [int(size) << 10 for size in sizes.split(",") if size],
        str(DEMO),
        model or str(DEMO),
        overlap_tokens,
        frozenset(only.split(",")),
    )
    console = Console(highlight=False)
    rows: list[Row] = []

    async def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async for row in measure(plan, Path(folder)):
                rows.append(row)
                limit = "" if row.limit is None else f"limit {row.limit:.3g}  ratio {row.ratio:.2f}"
                console.print(f"  {row.name:<28} {row.value:10.3f} {row.unit:<10} {limit}")

    asyncio.run(run())
    if json_file:
        json_file.write_text(json.dumps([row.as_dict() for row in rows], indent=2) + "\n")
