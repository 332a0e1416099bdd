"""python -m router --config slice.json: one router process, until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import gc
import signal
import sys
from pathlib import Path

import uvloop

from router.app import Ports, serve
from router.config import RouterConfig, load_config
from workers.core.errors import CheckpointError, ConfigError
from workers.logs import log_to_stderr

EXIT_CONFIG = 2
GARBAGE = 20_000  # objects between two collections


async def _main(config: RouterConfig) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # Who became this process may have held them back until somebody listens.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
    await serve(config, stop, _listening)


def tame_garbage() -> None:
    """What is there now stays. Requests leave few circles behind: looking for them at every 700th
    object is time lost, and with a million blocks in the index a long pause."""
    gc.freeze()
    gc.set_threshold(GARBAGE, 20, 50)


def _listening(ports: Ports) -> None:
    tame_garbage()
    print(
        f"kvasir router listening: grpc {ports.grpc}, http {ports.http}, admin {ports.admin}",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m router", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="JSON of a RouterConfig")
    parser.add_argument("--log-level", default="INFO")
    arguments = parser.parse_args()
    try:
        config = load_config(arguments.config)
        log_to_stderr(config.telemetry.logs, "router", arguments.log_level)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_main(config))
    except (ConfigError, CheckpointError) as error:
        print(f"kvasir router: {error.message}", file=sys.stderr)
        return EXIT_CONFIG
    return 0


if __name__ == "__main__":
    sys.exit(main())
