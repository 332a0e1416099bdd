"""Which transports a worker has, whom they reach, and who may take their memory."""

from __future__ import annotations

import asyncio
import os
import socket
import threading

import pytest
import torch

from tests.workers.links import HOST, joined, some_pages, transport
from workers.attention.kv_cache import KVCache, KVShape
from workers.config import TransportConfig
from workers.core.errors import ConfigError, TransferError
from workers.parallel.nccl import CALM, calm_watchdog
from workers.transfer.link import RECEIVER, SENDER
from workers.transfer.pick import pick_transports
from workers.transfer.segment import make_memory, map_memory
from workers.transfer.threads import CallThread

SLOT = 1 << 15
CPU = torch.device("cpu")


def names(backend: str) -> list[str]:
    config = TransportConfig.model_validate({"backend": backend})
    return [made.name for made in pick_transports(config, HOST)]


def test_which_transports_are_picked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert names("inline") == []
    assert names("shm") == ["shm"] and names("gloo") == ["gloo"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert names("auto") == ["shm", "gloo"]
    with pytest.raises(ConfigError, match="no CUDA"):
        names("nccl")
    for name in (*CALM, "TORCH_NCCL_NONBLOCKING_TIMEOUT"):
        monkeypatch.setenv(name, "0")  # as it was before, afterwards
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert names("auto") == ["nccl", "shm", "gloo"]


def test_an_address_that_is_no_address_of_this_machine() -> None:
    config = TransportConfig(backend="gloo")
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
        pick_transports(config, "192.0.2.1")


@pytest.mark.parametrize(
    ("address", "here"),
    [
        ("127.0.0.1:5000", True),
        ("127.0.0.2:5000", True),
        ("localhost:5000", True),
        ("[::1]:5000", socket.has_ipv6),
        (f"{socket.gethostname()}:5000", True),
        ("192.0.2.1:5000", False),
        ("prefill-3.kvasir.example:5000", False),
        ("", False),
    ],
)
def test_shared_memory_reaches_this_host_only(address: str, here: bool) -> None:
    if "::1" in address and not _has_loopback6():
        here = False
    assert transport("shm").reaches(address) is here
    assert transport("gloo").reaches(address)


def _has_loopback6() -> bool:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        return probe.connect_ex(("::1", 9)) == 0


async def test_a_stranger_gets_no_memory_and_holds_nobody_up() -> None:
    made = transport("shm")
    sender = await made.offer(SENDER, some_pages(), SLOT)
    receiver = await made.offer(RECEIVER, some_pages(), SLOT)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
        stranger.connect(sender.blob[16:])
        stranger.send(b"let me in, it's me")
        stranger.setblocking(False)
        sending, receiving = await asyncio.gather(
            sender.join(receiver.blob), receiver.join(sender.blob)
        )
        assert stranger.recv(64) == b""
    sending.close()
    receiving.close()


async def test_a_wrong_secret_and_a_sender_of_elsewhere_fail_at_once() -> None:
    made = transport("shm", 0.5)
    sender = await made.offer(SENDER, some_pages(), SLOT)
    receiver = await made.offer(RECEIVER, some_pages(), SLOT)
    guess = bytes(16) + sender.blob[16:]
    both = await asyncio.gather(
        sender.join(receiver.blob), receiver.join(guess), return_exceptions=True
    )
    assert all(isinstance(ended, TransferError) for ended in both)
    with pytest.raises(TransferError, match="not on this host"):
        await (await made.offer(RECEIVER, some_pages(), SLOT)).join(sender.blob)


async def test_more_memory_than_was_offered_is_refused_and_less_is_taken() -> None:
    made = transport("shm", 5.0)
    for offered, works in ((SLOT, True), (2 * SLOT, True), (SLOT // 2, False)):
        sender = await made.offer(SENDER, some_pages(), SLOT)
        receiver = await made.offer(RECEIVER, some_pages(), offered)
        both = await asyncio.gather(
            sender.join(receiver.blob), receiver.join(sender.blob), return_exceptions=True
        )
        assert isinstance(both[1], TransferError) is not works
        for link in both:
            if not isinstance(link, BaseException):
                link.close()


def test_memory_that_could_shrink_under_us_is_refused() -> None:
    unsealed = os.memfd_create("t", os.MFD_ALLOW_SEALING)
    os.ftruncate(unsealed, SLOT)
    with pytest.raises(TransferError, match="sealed"):
        map_memory(unsealed, SLOT, CPU)
    memory = make_memory(SLOT)
    with pytest.raises(OSError):
        os.ftruncate(memory, SLOT // 2)
    one, other = map_memory(os.dup(memory), SLOT, CPU), map_memory(memory, SLOT, CPU)
    one[5] = 9
    assert other[5] == 9 and other.sum() == 9


async def test_what_nobody_waits_for_breaks_the_link() -> None:
    sender, receiver = await joined(transport("shm"))
    arrival = receiver.recv(0, 10, 1)
    await sender.send(0, 11, 1)
    with pytest.raises(TransferError, match="nobody waits for"):
        await arrival
    sender.close()


async def test_calls_of_a_thread_run_in_order_and_end_before_it_does() -> None:
    came: list[int] = []
    thread, last = CallThread("kvasir-test"), asyncio.Event()
    gate = threading.Event()
    thread.run(gate.wait, lambda _: came.append(1))
    for number in (2, 3):
        thread.run(lambda number=number: number, came.append)  # type: ignore[misc]
    thread.run(lambda: None, lambda _: last.set())
    thread.close()
    await asyncio.sleep(0.01)
    assert came == []
    gate.set()
    await asyncio.wait_for(last.wait(), 10)
    assert came == [1, 2, 3]


def test_the_watchdog_is_calmed_before_a_group_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CALM:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_NCCL_ENABLE_MONITORING", "1")
    calm_watchdog()
    assert os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "0"
    assert os.environ["TORCH_NCCL_ENABLE_MONITORING"] == "1", "what an operator set stays"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("head_dim", [8, 3])
def test_scatter_puts_back_what_gather_took(dtype: torch.dtype, head_dim: int) -> None:
    """All heads and a part of them, in words of eight bytes where they fit and else in narrower."""
    shape = KVShape(3, 4, head_dim, 2, dtype)
    first, second = (KVCache(shape, 6, torch.device("cpu")) for _ in range(2))
    first.pages.view(torch.uint8).random_(0, 255)
    blocks, there = [4, 0, 3], [1, 5, 2]
    staging = first.new_staging(3 * first.block_bytes)
    first.gather(blocks, staging)
    second.scatter(staging, there)
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[dtype.itemsize]
    assert torch.equal(second.pages[there].view(bits), first.pages[blocks].view(bits))
    assert not second.pages[[0, 3, 4]].view(torch.uint8).any()

    part = slice(1, 3)
    first.gather(blocks, staging, part)
    third = KVCache(shape, 6, torch.device("cpu"))
    third.scatter(staging, there, part)
    want = first.pages[blocks].view(bits)[..., part, :]
    assert torch.equal(third.pages[there].view(bits)[..., part, :], want)
    assert not third.pages[..., [0, 3], :].view(torch.uint8).any()
