"""Processor time and memory, ours and that of others, as Linux tells in /proc."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Usage:
    """Seconds of processor time since boot: of all cores together, and of one tree of processes
    (with its children that have ended)."""

    everybody: float
    tree: float


def usage(root: int, proc: Path = PROC) -> Usage:
    tick = 1 / os.sysconf("SC_CLK_TCK")
    # user nice system idle iowait irq softirq steal; the guest's are within user and nice
    counts = [int(word) for word in (proc / "stat").read_text().splitlines()[0].split()[1:9]]
    busy = sum(counts) - counts[3] - counts[4]
    processes = _processes(proc)
    ours = sum(processes[pid].ticks for pid in _tree(root, processes))
    return Usage(busy * tick, ours * tick)


def others_share(before: Usage, after: Usage, wall_s: float, cores: int) -> float:
    """The part of the machine, 0 to 1, that others took between two readings. Time stolen by a
    hypervisor counts as theirs."""
    everybody, tree = after.everybody - before.everybody, after.tree - before.tree
    return min(1.0, max(0.0, (everybody - tree) / (wall_s * cores)))


def memory(root: int, proc: Path = PROC) -> int:
    """Bytes held by a tree of processes; what several share counts once."""
    total = 0
    for pid in _tree(root, _processes(proc)):
        try:
            rollup = (proc / str(pid) / "smaps_rollup").read_text()
        except OSError:  # it has just ended
            continue
        total += sum(int(li.split()[1]) for li in rollup.splitlines() if li.startswith("Pss:"))
    return total * 1024


def descendants(root: int, proc: Path = PROC) -> dict[int, int]:
    """The tree below `root` without it: pid -> when it started, which tells it from a later
    process of the same number."""
    processes = _processes(proc)
    return {pid: processes[pid].started for pid in _tree(root, processes)[1:]}


def still_there(pid: int, started: int, proc: Path = PROC) -> bool:
    """Dead ones that nobody has waited for yet are gone too."""
    process = _processes(proc).get(pid)
    return process is not None and process.started == started and process.state != "Z"


def describe(proc: Path = PROC) -> dict[str, object]:
    """Processor, cores, the instructions that matter, memory in GiB."""
    cpuinfo = (proc / "cpuinfo").read_text()
    fields = {
        line.partition(":")[0].strip(): line.partition(":")[2].strip()
        for line in cpuinfo.splitlines()
    }
    flags = fields.get("flags", "").split()
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    total = (proc / "meminfo").read_text().split("MemTotal:")[1].split()[0]
    return {
        "processor": fields.get("model name", "unknown"),
        "cores": len(os.sched_getaffinity(0)),
        "instructions": [flag for flag in wanted if flag in flags],
        "memory_gib": round(int(total) / 1024**2, 1),
    }


@dataclass(frozen=True, slots=True)
class _Process:
    state: str
    parent: int
    ticks: int
    started: int


def _processes(proc: Path) -> dict[int, _Process]:
    found = {}
    for path in proc.glob("[0-9]*/stat"):
        try:
            # The name stands in parentheses and may hold anything, parentheses too.
            words = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        # From the third field on: state, ppid, ..., utime stime cutime cstime, ..., starttime.
        parent, ticks = int(words[1]), sum(map(int, words[11:15]))
        found[int(path.parent.name)] = _Process(words[0], parent, ticks, int(words[19]))
    return found


def _tree(root: int, processes: dict[int, _Process]) -> list[int]:
    children = defaultdict(list)
    for pid, process in processes.items():
        children[process.parent].append(pid)
    tree = [root] if root in processes else []
    for pid in tree:
        tree += children[pid]
    return tree
