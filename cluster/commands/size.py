"""`kvasir size`: what a model needs and what fits, computed from its config.json alone."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from cluster.model_source import DEMO, demo_model
from workers.config import DType, EngineConfig
from workers.core.errors import CheckpointError, ConfigError
from workers.core.hardware import HardwareProfile, hardware
from workers.models.architecture import ModelConfig
from workers.models.config import read_config
from workers.models.fields import Fields, read_json
from workers.models.plan import Demand, Fit, fit, splits
from workers.models.quantisation import read_quantisation
from workers.models.shapes import SHAPES
from workers.models.sizing import Split, parameters, rank_weights, rule_of_thumb
from workers.models.split import check_split

KVType = Literal["auto", "bfloat16", "float16", "float32", "fp8"]
ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "fp8": 1}
GIB = 1 << 30
ENGINE = EngineConfig()


def size(
    model: Annotated[str, typer.Argument(help="checkpoint directory, config.json, or a shape")],
    device: Annotated[str, typer.Option("--hardware", help="one for each rank")] = "h100",
    tensor: Annotated[int, typer.Option("--tp", min=1, help="ranks that share heads")] = 1,
    experts: Annotated[int, typer.Option("--ep", min=1, help="ranks that share experts")] = 1,
    context: Annotated[
        int | None, typer.Option(min=1, help="tokens of a sequence; the model's own if not given")
    ] = None,
    dtype: Annotated[DType, typer.Option(help="of weights; auto: config.json's")] = "auto",
    kv_dtype: Annotated[KVType, typer.Option(help="auto: that of the weights")] = "auto",
    step_tokens: Annotated[int, typer.Option(min=1)] = ENGINE.step_tokens,
    max_seqs: Annotated[int, typer.Option(min=1)] = ENGINE.max_seqs,
    memory_share: Annotated[
        float, typer.Option(min=0.1, max=1.0, help="of a device's memory that may be taken")
    ] = 0.9,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the figures here")] = None,
) -> None:
    """Weights, KV and activations of each rank, what fits beside them, and which splits work."""
    fields = _fields(model)
    config, profile, split = read_config(fields), hardware(device), Split(tensor, experts)
    check_split(config, tensor, experts)
    length = _context(config, context)
    precision = (config.dtype or "bfloat16") if dtype == "auto" else dtype
    kept = precision if kv_dtype == "auto" else kv_dtype
    demand = Demand(
        memory=profile.memory_bytes,
        share=memory_share,
        item=ITEM_BYTES[precision],
        kv_item=ITEM_BYTES[kept],
        context=length,
        block_size=ENGINE.block_size,
        step_tokens=step_tokens,
        max_seqs=max_seqs,
        packed=profile.name == "cpu" and precision == "bfloat16",
    )
    asked = fit(config, split, demand)
    table = [fit(config, each, demand) for each in splits(config, split)]
    console = Console(highlight=False)
    console.print(
        f"{model}: {config.architecture}, {parameters(config) / 1e9:,.2f} billion parameters in "
        f"{precision}, sequences of {length:,} tokens"
    )
    if read_quantisation(fields.values, fields.path) is not None:
        console.print("quantised in its files; its weights are dequantised when they are loaded")
    if kept == "fp8":
        console.print("the engine has no fp8 KV yet: this is what it would take")
    _print_rank(console, config, profile, demand, asked)
    _print_table(console, table, asked, length)
    if json_file:
        figures = _figures(config, profile, demand, asked, table)
        json_file.write_text(json.dumps(figures, indent=2) + "\n")


def _fields(model: str) -> Fields:
    path = demo_model() if model == DEMO else Path(model).expanduser()
    if path.is_dir():
        path /= "config.json"
    elif model in SHAPES and not path.exists():
        return Fields(Path(model), SHAPES[model])
    elif not path.is_file():
        raise CheckpointError(
            f"model {model!r} is neither a directory, nor a config.json, nor one of "
            f"{', '.join((DEMO, *SHAPES))}"
        )
    return Fields(path, read_json(path))


def _context(config: ModelConfig, asked: int | None) -> int:
    if asked is not None and asked > config.context_length:
        raise ConfigError(
            f"context {asked} is longer than the model's own, {config.context_length}"
        )
    return asked or config.context_length


def _print_rank(
    console: Console, config: ModelConfig, profile: HardwareProfile, demand: Demand, asked: Fit
) -> None:
    weights = rank_weights(config, asked.split, demand.item, packed=demand.packed)
    parts = [f"{name.replace('_', ' ')} {_gib(n)}" for name, n in asdict(weights).items() if n]
    thumb = rule_of_thumb(parameters(config), demand.item)
    world = asked.split.world
    left = demand.memory * demand.share - asked.weights - asked.activations
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(justify="left")
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    table.add_row("weights", _gib(asked.weights), ", ".join(parts))
    table.add_row(
        "activations",
        _gib(asked.activations),
        f"estimate, steps of {demand.step_tokens} tokens and {demand.max_seqs} sequences",
    )
    table.add_row("KV of a token", f"{asked.kv_bytes_per_token:,} B", "all layers")
    table.add_row(
        "left for KV",
        _gib(max(left, 0)),
        f"of {_gib(demand.memory)}, {demand.share:.0%} of which may be taken",
    )
    shards = asked.split.shards
    where = f", over {shards} shards of {asked.split.tensor} ranks" if shards > 1 else ""
    table.add_row("", f"{asked.kv_tokens:,}", f"tokens in blocks of {demand.block_size}{where}")
    table.add_row("", f"{asked.sequences:,}", f"sequences of {demand.context:,} tokens")
    table.add_row(
        "rule of thumb",
        _gib(thumb / world),
        f"P x Q/8 x 1.2 over {world} ranks, beside {_gib(asked.weights + asked.activations)} here",
    )
    console.print(f"\neach of {world} ranks on {profile.name}, tp {_split(asked.split)}:")
    console.print(table)


def _print_table(console: Console, fits: list[Fit], asked: Fit, context: int) -> None:
    table = Table(title="splits", title_justify="left", box=SIMPLE, padding=(0, 1), show_edge=False)
    for name in ("tp", "ep", "weights", "KV/token", "KV tokens", f"x {context:,}"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for each in fits:
        split = (str(each.split.tensor), str(each.split.experts))
        if each.faults:
            table.add_row(*split, "", "", "", "", "; ".join(each.faults), style="dim")
            continue
        verdict = "" if each.works else "does not fit"
        table.add_row(
            *split,
            _gib(each.weights),
            f"{each.kv_bytes_per_token:,} B",
            f"{each.kv_tokens:,}",
            f"{each.sequences:,}",
            verdict if each.split != asked.split else f"{verdict} <- asked".strip(),
        )
    console.print()
    console.print(table)


def _figures(
    config: ModelConfig, profile: HardwareProfile, demand: Demand, asked: Fit, fits: list[Fit]
) -> dict[str, Any]:
    return {
        "architecture": config.architecture,
        "parameters": parameters(config),
        "hardware": profile.name,
        "demand": asdict(demand),
        "rule_of_thumb_bytes": rule_of_thumb(parameters(config), demand.item),
        "weights": asdict(rank_weights(config, asked.split, demand.item, packed=demand.packed)),
        "asked": asdict(asked),
        "splits": [asdict(each) | {"works": each.works} for each in fits],
    }


def _split(split: Split) -> str:
    return f"{split.tensor}, ep {split.experts}"


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:,.2f} GiB"
