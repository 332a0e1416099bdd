"""Which transports a worker has, by its config and its machine."""

from __future__ import annotations

import os

import torch

from workers.config import TransportConfig
from workers.core.errors import ConfigError
from workers.transfer.gloo import GlooTransport
from workers.transfer.link import Transport
from workers.transfer.nccl import NcclTransport
from workers.transfer.shm import ShmTransport


def pick_transports(config: TransportConfig, host: str) -> list[Transport]:
    """Best first; a pair takes the first that both ends have and that reaches the peer. `auto`:
    NCCL where there is CUDA (it uses NVLink, and refuses two workers on one GPU), then shared
    memory, then Gloo; `inline`: none, blocks go inside gRPC. `host`: where this worker listens.
    Raises ConfigError where what is asked for cannot be had."""
    if config.backend == "inline":
        return []
    linux, cuda = hasattr(os, "memfd_create"), torch.cuda.is_available()
    if config.backend == "shm" and not linux:
        raise ConfigError("transport.backend is shm, but only Linux has memory without a name")
    if config.backend == "nccl" and not cuda:
        raise ConfigError("transport.backend is nccl, but there is no CUDA device here")
    names: list[str] = [config.backend]
    if config.backend == "auto":
        names = ["nccl"] * cuda + ["shm"] * linux + ["gloo"]
    return [_make(name, config, host) for name in names]


def _make(name: str, config: TransportConfig, host: str) -> Transport:
    connect_s, chunk_s = config.connect_timeout_s, config.chunk_timeout_s
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    if name == "shm":
        return ShmTransport(
            host=host, device=device, connect_timeout_s=connect_s, chunk_timeout_s=chunk_s
        )
    if name == "nccl":
        return NcclTransport(device=device, connect_timeout_s=connect_s, chunk_timeout_s=chunk_s)
    return GlooTransport(host=host, connect_timeout_s=connect_s, chunk_timeout_s=chunk_s)
