"""Memory that two processes of one host share without a name: a sealed memfd, mapped by both. It is
gone with the last of them, however they end."""

from __future__ import annotations

import fcntl
import mmap
import os

import torch
from torch import Tensor

from workers.core.errors import TransferError

PORTABLE = 1  # cudaHostRegisterPortable: pinned for every CUDA context


def make_memory(num_bytes: int) -> int:
    """A file descriptor of so many bytes of zeros, whose size can never change: a peer that cut it
    short would end us with SIGBUS. Raises OSError."""
    fd = os.memfd_create("kvasir-staging", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, num_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except OSError:
        os.close(fd)
        raise
    return fd


def map_memory(fd: int, num_bytes: int, device: torch.device) -> Tensor:
    """uint8 [num_bytes] over what make_memory() made, here or elsewhere; closes `fd`. It stays
    mapped as long as a tensor lies in it, and is pinned where `device` is a GPU. Blocking: the
    memory is taken now. Raises TransferError where it has another size, or could get one; OSError.
    """
    try:
        sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        if os.fstat(fd).st_size != num_bytes or not sealed:
            raise TransferError(f"shm: the peer's memory is not {num_bytes} sealed bytes")
        memory = _Mapping(fd, num_bytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    finally:
        os.close(fd)
    staging = torch.frombuffer(memory, dtype=torch.uint8)
    if device.type == "cuda":
        with torch.cuda.device(device):  # a thread's own would be the first GPU
            memory.pin(staging.data_ptr())
    return staging


class _Mapping(mmap.mmap):
    """Lives as long as a tensor lies in it."""

    pinned = 0  # address, where CUDA knows it

    def pin(self, address: int) -> None:
        """So that copies from and to a GPU need no buffer between; slower without, and no fault."""
        if int(torch.cuda.cudart().cudaHostRegister(address, len(self), PORTABLE)) == 0:
            self.pinned = address

    def __del__(self) -> None:
        if self.pinned:  # before the memory is unmapped, which mmap does after this
            torch.cuda.cudart().cudaHostUnregister(self.pinned)
