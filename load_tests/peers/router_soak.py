"""Whether the memory of our router stays flat: short requests without end, each from a tenant of
its own and with a prompt of its own.

    python -m load_tests.peers.router_soak --model DIR --requests 1000000

Prints requests, MB and CPU ms/request at every step; `flat` compares the last step's memory with
that after the first, in which caches and rings fill.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from load_tests.leaving import leave_on_sigterm
from load_tests.peers import machine
from load_tests.peers.router_client import at_once, http_request
from load_tests.peers.router_model import write_model
from load_tests.peers.router_start import Place, started
from workers.core.clock import SystemClock

CONNECTIONS = 64
TOKENS = 1
STEPS = 10
GROWTH = 1.1  # of the memory after the first step: no more is flat


def main() -> None:
    leave_on_sigterm()
    parser = argparse.ArgumentParser(description=" ".join((__doc__ or "").split("\n")[:2]))
    parser.add_argument("--model", type=Path, required=True, help="made if it is not there")
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--minutes", type=float, default=600.0, help="then no other step begins")
    parser.add_argument(
        "--kv-tokens", type=int, default=1 << 20, help="of a worker; few: the index is full sooner"
    )
    parser.add_argument("--logs", type=Path, default=Path("router-logs"))
    arguments = parser.parse_args()
    arguments.logs.mkdir(parents=True, exist_ok=True)
    write_model(arguments.model)
    sys.exit(asyncio.run(_soak(arguments)))


async def _soak(arguments: argparse.Namespace) -> bool:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    model, logs = arguments.model.resolve(), arguments.logs.resolve()
    place = Place(Path(), model, logs, arguments.kv_tokens)
    clock, rng, sizes = SystemClock(), random.Random(0), []
    step = arguments.requests // STEPS
    async with started("kvasir", place) as router:
        began = clock.now()
        for number in range(1, STEPS + 1):
            before = machine.usage(router.pid).tree
            await at_once(router.port, _requests(rng, step), CONNECTIONS)
            cpu_ms = (machine.usage(router.pid).tree - before) / step * 1e3
            sizes.append(machine.memory(router.pid) / 1e6)
            print(f"{number * step:>10,} requests {sizes[-1]:8.1f} MB {cpu_ms:6.2f} ms", flush=True)
            if clock.now() - began > 60 * arguments.minutes:
                break
    flat = sizes[-1] <= GROWTH * sizes[0]
    print(f"flat: {'yes' if flat else 'NO'}, {sizes[-1] / sizes[0]:.3f} x after the first step")
    return not flat


def _requests(rng: random.Random, count: int) -> Iterator[bytes]:
    for _ in range(count):
        number = f"{rng.getrandbits(64):x}"
        words = " ".join(f"{rng.getrandbits(16):x}" for _ in range(8))
        messages = [{"role": "user", "content": f"Say {number} and then {words}."}]
        yield http_request(messages, TOKENS, {"x-kvasir-tenant": number, "x-request-id": number})


if __name__ == "__main__":
    main()
