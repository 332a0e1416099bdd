"""Measures systems against each other: same checkpoint, same cores, same client, alternating.

    python -m load_tests.peers.compare --model DIR --peers FOLDER --systems kvasir,vllm:float32

One system runs at a time. A repeat starts each of them in turn, warms it up, runs every workload
and stops it; then comes the next repeat. README.md beside this has the caveats.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.backends.ports import free_ports
from load_tests.leaving import leave_on_sigterm
from load_tests.peers import machine
from load_tests.peers.measure import measure, warm_up
from load_tests.peers.process import PeerFailed, running
from load_tests.peers.systems import SYSTEMS, Setting, System, find
from load_tests.peers.table import table
from load_tests.peers.workloads import WARM_UP, WORKLOADS
from workers.core.clock import unix_time
from workers.core.errors import Unavailable


def main() -> None:
    leave_on_sigterm()
    arguments = _arguments()
    arguments.logs.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "command": shlex.join(sys.argv),
        "machine": machine.describe(),
        "model": arguments.model.name,
        "threads": arguments.threads,
        "versions": {},
        "rows": [],
        "failures": [],
    }
    try:
        asyncio.run(_repeats(arguments, report))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted; the rows so far:", file=sys.stderr)
    print(json.dumps(report["machine"]))
    for workload in arguments.workloads:
        if any(row["workload"] == workload for row in report["rows"]):
            print("\n" + table(report["rows"], workload, arguments.against))
    for failure in report["failures"]:
        print(f"\nFAILED {failure['system']} in repeat {failure['repeat']}: {failure['why']}")
    sys.exit(bool(report["failures"]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])

    def names(text: str) -> list[str]:
        return [part.strip() for part in text.split(",")]

    parser.add_argument("--model", type=Path, required=True, help="see make_checkpoint.py")
    parser.add_argument("--peers", type=Path, required=True, help="what install_*.sh was given")
    parser.add_argument(
        "--systems", type=names, required=True, help=f"name or name:dtype of {', '.join(SYSTEMS)}"
    )
    parser.add_argument("--workloads", type=names, default=["a", "b", "c", "d", "e"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--against", help="the system that ratios are taken to")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, default=Path("peers.json"))
    parser.add_argument("--logs", type=Path, default=Path("peers-logs"))
    arguments = parser.parse_args()
    setting = Setting(arguments.peers.resolve(), arguments.model.resolve(), arguments.threads, 0)
    try:
        for name in arguments.systems:
            find(name, setting)
    except ValueError as error:
        parser.error(str(error))
    if unknown := set(arguments.workloads) - set(WORKLOADS):
        parser.error(f"no workload {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")
    if arguments.against not in (None, *arguments.systems):
        parser.error(f"--against {arguments.against} is not one of --systems")
    arguments.setting = setting
    return arguments


async def _repeats(arguments: argparse.Namespace, report: dict[str, Any]) -> None:
    task = asyncio.current_task()
    assert task is not None
    # As Ctrl-C does: whatever ends this program, the system that is up ends with it.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    run = f"{unix_time():.0f}"  # every run of this program has prompts of its own
    for repeat in range(arguments.repeats):
        for name in arguments.systems:
            setting = replace(arguments.setting, port=free_ports(1)[0])
            system = find(name, setting)
            if system.versions and system.versions.exists():
                report["versions"][name] = system.versions.read_text().split("\n")
            try:
                await _one(system, setting.port, arguments, report, repeat, run)
            except* (PeerFailed, Unavailable) as failed:
                why = _first(failed)
                report["failures"].append({"system": name, "repeat": repeat, "why": why})
                _say(f"FAILED {name}: {why}")
            arguments.json.write_text(json.dumps(report, indent=1) + "\n")


async def _one(
    system: System,
    port: int,
    arguments: argparse.Namespace,
    report: dict[str, Any],
    repeat: int,
    run: str,
) -> None:
    log = arguments.logs / f"{system.name.replace(':', '-')}.log"
    async with running(system, port, log) as up:
        _say(f"repeat {repeat + 1}: {system.name} is up after {up.start_s:.1f} s")
        await warm_up(up, WARM_UP, f"{run} {repeat}")
        for workload in arguments.workloads:
            row = await measure(up, workload, f"{run} {repeat} {workload}")
            if row is None:
                _say(f"  {workload}: not for {system.name}")
                continue
            about = {"system": system.name, "workload": workload, "repeat": repeat}
            report["rows"].append(about | {"start_s": up.start_s} | row)
            figures = (f"{key} {value:.4g}" for key, value in row.items())
            _say(f"  {workload}: {', '.join(figures)}")


def _first(group: BaseExceptionGroup[Exception]) -> str:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
