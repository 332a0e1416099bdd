"""What a process needs to know and do in a container of its own."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from pydantic import BaseModel

from cluster.config_ports import PortsSection
from workers.core.errors import ConfigError

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
LOCAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
SYSCTL = "net.ipv4.ip_local_port_range"
ENDS = (signal.SIGTERM, signal.SIGINT)


def cores() -> int:
    """That this process may use, within its container's limit."""
    affinity = len(os.sched_getaffinity(0))
    try:
        quota, period = CPU_MAX.read_text().split()
        return max(1, min(affinity, int(quota) // int(period)))
    except (OSError, ValueError):
        return affinity  # no container with cgroup v2, or no limit ("max")


def check_transfer_ports(ports: PortsSection) -> None:
    """Gloo and NCCL listen where the kernel lets them, and know no other way: so it must give out
    none but `ports.transfer`. Raises ConfigError where it would."""
    if ports.transfer is None:
        return
    first, last = map(int, LOCAL_PORTS.read_text().split())
    allowed = ports.transfer_range
    if not allowed[0] <= first <= last <= allowed[1]:
        raise ConfigError(
            f"ports.transfer is {ports.transfer}, but {SYSCTL} is {first} {last} here, and that is "
            f"where transfers would listen: set it to {allowed[0]} {allowed[1]} (in a pod: "
            "securityContext.sysctls, it is a safe one), or leave ports.transfer out"
        )


def become(module: str, slice_: BaseModel, *flags: str, env: Mapping[str, str]) -> NoReturn:
    """This process becomes `python -m module --config slice`, as a backend would start it. The
    slice travels in memory: the root may be read-only. A signal that comes meanwhile waits for the
    module's handlers: the kernel would drop it for process 1, which a container's is."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
    memory = os.memfd_create("kvasir-slice", 0)  # inherited
    os.write(memory, slice_.model_dump_json().encode())
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(
        sys.executable,
        [sys.executable, "-m", module, *flags, "--config", f"/proc/self/fd/{memory}"],
        {**os.environ, **env},
    )
