"""What a process in a container makes of the config, its cores, its ports and early signals."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster import container
from cluster.commands.router import router_slice
from cluster.commands.worker import worker_slice
from cluster.config import ClusterConfig, load_config
from cluster.config_ports import PortsSection
from cluster.container import become, check_transfer_ports, cores
from workers.config import WorkerConfig
from workers.core.errors import ConfigError

PATIENCE_S = 150.0


def test_a_signal_that_comes_before_anybody_listens_is_not_lost(tmp_path: Path) -> None:
    """As process 1 of a container it would be: the kernel drops what nobody handles. Here it would
    kill, and the code would be another."""
    script = f"""
import os, signal
from cluster.container import ENDS, become
from workers.config import WorkerConfig
signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
os.kill(os.getpid(), signal.SIGTERM)
nothing = WorkerConfig(replica="r", pool="p", role="decode", model={str(tmp_path)!r})
become("workers", nothing, env={{}})
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_process_is_the_one_that_backends_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *arguments: ran.append(arguments))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    told = WorkerConfig(replica="r", pool="p", role="decode", model="m")
    try:
        become("workers", told, "--role", "decode", env={"OMP_NUM_THREADS": "3"})
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    ((program, argv, env),) = ran
    assert program == sys.executable and argv[:5] == [program, "-m", "workers", "--role", "decode"]
    assert argv[5] == "--config" and env["OMP_NUM_THREADS"] == "3"
    memory = int(re.fullmatch(r"/proc/self/fd/(\d+)", argv[6])[1])  # type: ignore[index]
    assert WorkerConfig.model_validate_json(Path(argv[6]).read_text()) == told
    os.close(memory)


@pytest.fixture
def config() -> ClusterConfig:
    return ClusterConfig.model_validate(
        {
            "model": "demo",
            "redis": "redis://redis:6379/0",
            "pools": [
                {"name": "p", "role": "prefill"},
                {"name": "d", "role": "flex", "tensor_parallel": 2},
            ],
            "ports": {"worker": 9100, "metrics": 9101},
        }
    )


def test_a_slice_has_the_pods_name_address_and_all_its_cores(
    config: ClusterConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.commands.worker.cores", lambda: 8)
    slice_ = worker_slice(config, "d", "kvasir-d-6f-abc", "10.1.2.3")
    assert (slice_.replica, slice_.pool, slice_.role) == ("kvasir-d-6f-abc", "d", "decode")
    assert (slice_.host, slice_.port, slice_.metrics_port) == ("10.1.2.3", 9100, 9101)
    assert slice_.engine.threads == 4, "two ranks share them"
    with pytest.raises(ConfigError, match="no pool 'x' in the config; there are p, d"):
        worker_slice(config, "x", "a", "10.1.2.3")
    alone = config.model_copy(update={"redis": ClusterConfig(model="demo").redis})
    with pytest.raises(ConfigError, match="redis: processes in containers"):
        worker_slice(alone, "p", "a", "10.1.2.3")


def test_the_router_listens_on_every_address_and_the_configs_ports(config: ClusterConfig) -> None:
    slice_ = router_slice(config, "0.0.0.0")
    assert [str(door) for door in (slice_.grpc, slice_.http, slice_.admin)] == [
        "0.0.0.0:9000",
        "0.0.0.0:8000",
        "0.0.0.0:8001",
    ]


@pytest.mark.parametrize(
    ("text", "expected"), [("250000 100000", 2), ("50000 100000", 1), ("max 100000", 64)]
)
def test_cores_are_those_that_the_container_may_use(
    text: str, expected: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    limit = tmp_path / "cpu.max"
    limit.write_text(f"{text}\n")
    monkeypatch.setattr(container, "CPU_MAX", limit)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    assert cores() == expected


@pytest.mark.parametrize(
    ("kernel", "fits"), [("9200\t9999", True), ("9300\t9400", True), ("32768\t60999", False)]
)
def test_transfers_listen_where_network_policies_are_open_or_it_is_said(
    kernel: str, fits: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither Gloo nor NCCL can be told a port: the kernel gives them out."""
    file = tmp_path / "range"
    file.write_text(f"{kernel}\n")
    monkeypatch.setattr(container, "LOCAL_PORTS", file)
    check_transfer_ports(PortsSection())
    ports = PortsSection(transfer="9200-9999")
    if fits:
        check_transfer_ports(ports)
    else:
        with pytest.raises(ConfigError, match=r"ip_local_port_range is 32768 60999 .*9200 9999"):
            check_transfer_ports(ports)


@pytest.mark.slow
def test_gloo_listens_in_the_range_of_its_network_namespace() -> None:
    script = """
import torch.distributed as dist
from cluster.config_ports import PortsSection
from cluster.container import check_transfer_ports
check_transfer_ports(PortsSection(transfer="9200-9999"))
devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1") for _ in range(8)]
rows = [line.split() for line in open("/proc/net/tcp")][1:]
print(*(int(row[1].split(":")[1], 16) for row in rows if row[3] == "0A"))
"""
    pod = "ip link set lo up && echo 9200 9999 > /proc/sys/net/ipv4/ip_local_port_range"
    if subprocess.run(["unshare", "-rn", "sh", "-c", pod], capture_output=True).returncode:
        pytest.skip("no right to make network namespaces")
    done = subprocess.run(
        ["unshare", "-rn", "sh", "-c", f'{pod} && exec "$0" -c "$1"', sys.executable, script],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    ports = [int(port) for port in done.stdout.split()]
    assert len(ports) == 8 and all(9200 <= port <= 9999 for port in ports), done.stderr


@pytest.mark.parametrize(
    ("ports", "why"),
    [
        ("{worker: 9100, metrics: 9100}", "must be different"),
        ("{transfer: 9000-9200}", "must not lie in ports.transfer"),
        ("{transfer: 9300-9200}", "expected first-last"),
        ("{transfer: 9300-99999}", "expected first-last"),
        ("{transfer: 9300}", "ports.transfer"),
    ],
)
def test_ports_that_cannot_be_are_refused(ports: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(f"model: demo\nports: {ports}\n")
    with pytest.raises(ConfigError, match=why):
        load_config(path)
