"""What a router costs: time, beside that of a worker asked directly, processor time and memory.

    python -m load_tests.peers.router_compare --peers FOLDER --model DIR [--repeats 3] [--json FILE]

One router runs at a time, with four instant workers; they alternate over the repeats. README.md
beside this has the caveats.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from cluster.bench.report import percentile
from load_tests.leaving import leave_on_sigterm
from load_tests.peers import machine
from load_tests.peers.process import PeerFailed
from load_tests.peers.router_client import at_once, count_tokens, http_request, one_by_one
from load_tests.peers.router_model import Prose, alone, shared, write_model
from load_tests.peers.router_start import DYNAMO, Place, Router, started
from load_tests.peers.table import spread
from workers.core.clock import SystemClock, unix_time
from workers.text import Tokenizer

ROUTERS = ("kvasir", *DYNAMO, "sglang-router", "vllm-router")
KINDS = {"alone": alone, "shared": shared}
# Prompt bytes: requests one by one, requests over many connections.
SIZES = {2_048: (100, 400), 16_384: (50, 200), 220_000: (10, 40)}
CONNECTIONS = 16
Row = dict[str, Any]


def main() -> None:
    leave_on_sigterm()
    arguments = _arguments()
    arguments.logs.mkdir(parents=True, exist_ok=True)
    write_model(arguments.model)
    rows: list[Row] = []
    try:
        uvloop.run(_repeats(arguments, rows))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted; the rows so far:", file=sys.stderr)
    finally:
        if arguments.json is not None:
            about = {"command": sys.argv, "machine": machine.describe(), "rows": rows}
            arguments.json.write_text(json.dumps(about, indent=1) + "\n")
        print(table(rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", type=Path, required=True, help="see install_routers.sh")
    parser.add_argument("--model", type=Path, required=True, help="made if it is not there")
    parser.add_argument("--routers", nargs="+", default=ROUTERS, choices=ROUTERS)
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), choices=SIZES)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--tokens", type=int, default=8, help="of an answer")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--logs", type=Path, default=Path("router-logs"))
    return parser.parse_args()


async def _repeats(arguments: argparse.Namespace, rows: list[Row]) -> None:
    task = asyncio.current_task()
    assert task is not None
    # As Ctrl-C does: whatever ends this program, the router that is up ends with it.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    place = Place(arguments.peers.resolve(), arguments.model.resolve(), arguments.logs.resolve())
    for repeat in range(arguments.repeats):
        for name in arguments.routers:
            async with started(name, place) as router:
                prose = Prose(f"{unix_time()}")
                if router.tokenises:
                    await _check_counts(name, router, prose, arguments)
                await one_by_one(router.port, _requests("alone", prose, 2_048, 200, arguments))
                for size in arguments.sizes:
                    for kind in arguments.kinds:
                        row = await _measure(router, kind, size, prose, arguments)
                        rows.append({"router": name, "repeat": repeat} | row)
                        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)


async def _check_counts(
    name: str, router: Router, prose: Prose, arguments: argparse.Namespace
) -> None:
    """Raises PeerFailed where its tokens are not those of the checkpoint's tokenizer, or its answer
    is not as long as asked for: then it did other work than it is measured for."""
    tokenizer = Tokenizer.load(str(arguments.model))
    for size in arguments.sizes:
        for kind in arguments.kinds:
            [messages] = KINDS[kind](prose, size, 1)
            wanted = len(tokenizer.apply_chat_template(messages)), arguments.tokens
            counted = await count_tokens(router.port, messages, arguments.tokens)
            if counted != wanted:
                raise PeerFailed(f"{name} counts {counted} tokens of {kind} {size}, not {wanted}")


async def _measure(
    router: Router, kind: str, size: int, prose: Prose, arguments: argparse.Namespace
) -> Row:
    single, many = SIZES[size]
    direct: Row = {}
    if router.direct is not None:
        async with router.direct() as ask:
            prompts = KINDS[kind](prose, size, single)
            answers = [await ask(messages, arguments.tokens) for messages in prompts]
        direct |= _times("direct_first", [answer.first_s for answer in answers])
        direct |= _times("direct_whole", [answer.whole_s for answer in answers])
    through = await one_by_one(router.port, _requests(kind, prose, size, single, arguments))
    requests = _requests(kind, prose, size, many, arguments)
    memory = machine.memory(router.pid)
    clock, cores = SystemClock(), len(os.sched_getaffinity(0))
    began, before = clock.now(), machine.usage(router.pid)
    mine = machine.usage(os.getpid())
    await at_once(router.port, requests, CONNECTIONS)
    after, wall_s = machine.usage(router.pid), clock.now() - began
    others = machine.others_share(mine, machine.usage(os.getpid()), wall_s, cores)
    return {
        "kind": kind,
        "size": size,
        **direct,
        **_times("first", [answer.first_s for answer in through]),
        **_times("whole", [answer.whole_s for answer in through]),
        "cpu_ms": (after.tree - before.tree) / many * 1e3,
        "memory_mb": machine.memory(router.pid) / 1e6,
        "grown_mb": (machine.memory(router.pid) - memory) / 1e6,
        "per_s": many / wall_s,
        "others": others,
    }


def _requests(
    kind: str, prose: Prose, size: int, count: int, arguments: argparse.Namespace
) -> list[bytes]:
    prompts = KINDS[kind](prose, size, count)
    return [http_request(messages, arguments.tokens) for messages in prompts]


def _times(what: str, seconds: Sequence[float]) -> Row:
    return {f"{what}_p{q}_ms": percentile(seconds, q / 100) * 1e3 for q in (50, 99)}


COLUMNS = {
    "direct_first_p50_ms": ("first token, direct p50 ms", 2),
    "first_p50_ms": ("through p50", 2),
    "first_p99_ms": ("p99", 2),
    "direct_whole_p50_ms": ("whole answer, direct p50 ms", 2),
    "whole_p50_ms": ("through p50", 2),
    "whole_p99_ms": ("p99", 2),
    "cpu_ms": ("CPU ms/request", 2),
    "memory_mb": ("MB", 0),
    "others": ("others", 2),
}


def table(rows: Sequence[Row]) -> str:
    head = ["bytes", "prompts", "router", *(title for title, _ in COLUMNS.values())]
    lines = [head, ["---"] * len(head)]
    groups: dict[tuple[int, str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row["size"], row["kind"], row["router"])):
        groups.setdefault((row["size"], row["kind"], row["router"]), []).append(row)
    for (size, kind, router), repeats in groups.items():
        cells = [
            spread([row[key] for row in repeats], places) if key in repeats[0] else "-"
            for key, (_, places) in COLUMNS.items()
        ]
        lines.append([f"{size:,}", kind, router, *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
