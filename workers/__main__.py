"""`python -m workers --role prefill --model DIR ...`: one worker process, started by hand or by a
backend with `--config slice.json`. Flags win over the file. Exit code 2: config or checkpoint."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import uvloop
from pydantic import ValidationError

from workers.allocator import keep_freed_memory
from workers.config import WorkerConfig
from workers.core.errors import CheckpointError, ConfigError
from workers.launch import leave, run_worker
from workers.logs import log_to_stderr

FLAGS = ("role", "model", "replica", "pool", "host", "port", "metrics_port", "redis", "cluster")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m workers", description=__doc__)
    parser.add_argument("--config", type=Path, help="WorkerConfig as JSON")
    for name in FLAGS:
        parser.add_argument(f"--{name.replace('_', '-')}")
    return parser


def read_config(args: argparse.Namespace) -> WorkerConfig:
    """Raises ConfigError naming each key at fault."""
    given = {name: getattr(args, name) for name in FLAGS if getattr(args, name) is not None}
    values: dict[str, Any] = {}
    try:
        if args.config is not None:
            values = WorkerConfig.model_validate_json(args.config.read_text()).model_dump()
        values |= given
        if "role" in values:
            values.setdefault("pool", values["role"])
            values.setdefault("replica", f"{values['role']}-0")
        return WorkerConfig.model_validate(values)
    except OSError as error:
        raise ConfigError(f"{args.config}: {error.strerror}") from error
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
        )
        raise ConfigError(f"worker config: {faults}") from error


def _end_while_it_loads() -> None:
    """A signal ends it at once until it serves: there is nothing to hand on. Process 1, which a
    container's is, would not even hear of it without a handler, nor of one that came before."""
    ends = (signal.SIGTERM, signal.SIGINT)
    for number in ends:
        signal.signal(number, lambda *_: os._exit(0))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ends)


def main() -> int:
    _end_while_it_loads()
    keep_freed_memory()
    try:
        config = read_config(_parser().parse_args())
        log_to_stderr(config.logs, config.replica)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run_worker(config))
    except (ConfigError, CheckpointError) as error:
        print(f"kvasir worker: {error.message}", file=sys.stderr)
        return 2
    except Exception:  # the edge of the process: whatever it was, others must not wait for us
        logging.exception("the worker broke")
        return 1
    return 0


if __name__ == "__main__":
    leave(main())
