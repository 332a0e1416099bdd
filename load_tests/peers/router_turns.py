"""Processor time of routers on a machine with other work: all of them up at once, small batches by
turns, so that whatever load there is falls on all alike.

    python -m load_tests.peers.router_turns --peers FOLDER --model DIR --routers kvasir dynamo

Prints ms a request, and the median over the rounds of the first router's by each other's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
from collections import defaultdict
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop

from load_tests.leaving import leave_on_sigterm
from load_tests.peers import machine
from load_tests.peers.router_client import at_once, http_request
from load_tests.peers.router_compare import CONNECTIONS, KINDS, ROUTERS
from load_tests.peers.router_model import Prose, write_model
from load_tests.peers.router_start import Place, Router, started
from load_tests.peers.table import spread
from workers.core.clock import unix_time

SIZES = {2_048: 96, 16_384: 48}  # prompt bytes: requests of a batch
TOKENS = 8
WARM_UP = 200  # requests
Case = tuple[int, str]


def main() -> None:
    leave_on_sigterm()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--peers", type=Path, required=True, help="see install_routers.sh")
    parser.add_argument("--model", type=Path, required=True, help="made if it is not there")
    parser.add_argument("--routers", nargs="+", default=ROUTERS, choices=ROUTERS)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--logs", type=Path, default=Path("router-logs"))
    arguments = parser.parse_args()
    write_model(arguments.model)
    costs = uvloop.run(_rounds(arguments))
    if arguments.json is not None:
        rows = [{"size": s, "kind": k, "cpu_ms": by_router} for (s, k), by_router in costs.items()]
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(costs))


async def _rounds(arguments: argparse.Namespace) -> dict[Case, dict[str, list[float]]]:
    """ms a request: case -> router -> one for each round."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    prose = Prose(f"{unix_time()}")
    costs: dict[Case, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    async with AsyncExitStack() as stack:
        routers = {}
        for name in arguments.routers:
            logs = arguments.logs.resolve() / name
            logs.mkdir(parents=True, exist_ok=True)
            place = Place(arguments.peers.resolve(), arguments.model.resolve(), logs)
            routers[name] = await stack.enter_async_context(started(name, place))
            await _cost_ms(routers[name], prose, (2_048, "alone"), WARM_UP)
        for _ in range(arguments.rounds):
            for case in [(size, kind) for size in SIZES for kind in KINDS]:
                for name, router in routers.items():
                    cost = await _cost_ms(router, prose, case, SIZES[case[0]])
                    costs[case][name].append(cost)
    return costs


async def _cost_ms(router: Router, prose: Prose, case: Case, count: int) -> float:
    size, kind = case
    requests = [http_request(messages, TOKENS) for messages in KINDS[kind](prose, size, count)]
    before = machine.usage(router.pid).tree
    await at_once(router.port, requests, CONNECTIONS)
    return (machine.usage(router.pid).tree - before) / count * 1e3


def table(costs: dict[Case, dict[str, list[float]]]) -> str:
    lines = ["| bytes | prompts | router | CPU ms/request | first / this |", "|" + "---|" * 5]
    for (size, kind), by_router in sorted(costs.items()):
        first = next(iter(by_router.values()))
        for name, mine in by_router.items():
            ratio = statistics.median(a / b for a, b in zip(first, mine, strict=True) if b)
            lines.append(f"| {size:,} | {kind} | {name} | {spread(mine, 2)} | {ratio:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
