"""What one GPU can show of the handoff: pages on the device through every staging, copies in order
with the steps that write them, a communicator with itself, two workers that share the device.
`make test-gpu` prints the speeds beside a copy on the device and one to a pinned host buffer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.checkpoints import make_checkpoint
from tests.handoff import both
from tests.workers.links import joined, transport
from tests.workers.processes import workers
from workers.attention.kv_cache import KVCache, KVShape
from workers.core.errors import TransferError
from workers.core.request import Request, SamplingParams
from workers.parallel.nccl import calm_watchdog
from workers.transfer.gloo import host_staging
from workers.transfer.link import Link
from workers.transfer.nccl import NcclLink, make_group
from workers.transfer.segment import make_memory, map_memory

SHAPE = KVShape(28, 8, 128, 16, torch.bfloat16)  # blocks of 1.75 MiB
BLOCKS = 64
SLOT = 16 * SHAPE.block_bytes
REPEATS = 20
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.fixture(scope="module")
def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def filled(device: torch.device, seed: int) -> KVCache:
    made = KVCache(SHAPE, BLOCKS, device)
    generator = torch.Generator(device).manual_seed(seed)
    made.pages.view(torch.int16).random_(generator=generator)
    return made


def bits(pages: KVCache, blocks: list[int]) -> Tensor:
    return pages.pages[blocks].view(torch.int16).cpu()


def shared_staging(num_bytes: int) -> Tensor:
    return map_memory(make_memory(num_bytes), num_bytes, torch.device("cuda", 0))


def device_staging(num_bytes: int) -> Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8, device="cuda")


STAGING: dict[str, Callable[[int], Tensor]] = {
    "device": device_staging,
    "pinned": host_staging,
    "shared": shared_staging,
}


@pytest.mark.parametrize("staging", STAGING)
@pytest.mark.parametrize("heads", [None, slice(2, 6)])
def test_pages_go_through_staging_bit_for_bit(
    staging: str, heads: slice | None, device: torch.device
) -> None:
    first, second = filled(device, 1), filled(device, 2)
    there, here = [5, 9, 0, 63], [3, 1, 60, 2]
    kept = bits(second, here)
    memory = STAGING[staging](4 * SHAPE.block_bytes)
    first.gather(there, memory, heads)
    second.scatter(memory, here, heads)
    want, part = bits(first, there), slice(None) if heads is None else heads
    kept[..., part, :] = want[..., part, :]
    assert torch.equal(bits(second, here), kept)


def test_staging_on_the_host_is_pinned() -> None:
    assert host_staging(1 << 20).is_pinned()
    assert shared_staging(1 << 20).is_pinned()


def test_a_gather_sees_what_the_step_before_it_writes(device: torch.device) -> None:
    """The step is queued and still runs when the gather is called."""
    pages = filled(device, 3)
    staging = device_staging(SHAPE.block_bytes)
    torch.cuda.synchronize()
    torch.cuda._sleep(200_000_000)  # a tenth of a second and more on the steps' stream
    pages.pages[7] = 1.5
    assert not torch.cuda.default_stream(device).query(), "the step was over too soon to tell"
    pages.gather([7], staging)
    assert bool((staging.view(torch.bfloat16) == 1.5).all())


def test_a_scatter_is_over_when_it_returns(device: torch.device) -> None:
    pages = filled(device, 4)
    staging = host_staging(SHAPE.block_bytes)
    for value in (1, 2, 3):
        staging.fill_(value)
        pages.scatter(staging, [7])
        staging.zero_()  # the next chunk's bytes
    assert bool((pages.pages[7].view(torch.uint8) == 3).all())


@pytest.mark.parametrize("name", ["shm", "gloo"])
async def test_pages_of_one_device_go_over_a_link(name: str, device: torch.device) -> None:
    first, second = filled(device, 5), filled(device, 6)
    sender, receiver = await joined(transport(name), 2 * SLOT)
    blocks = list(range(16))
    arrival = receiver.recv(SLOT, SLOT, 1)
    first.gather(blocks, sender.staging[SLOT:])
    await sender.send(SLOT, SLOT, 1)
    await arrival
    second.scatter(receiver.staging[SLOT:], blocks)
    assert torch.equal(bits(second, blocks), bits(first, blocks))
    sender.close()


def communicator(device: torch.device) -> Link:
    """Of one rank, whose peer is itself: two ranks on one GPU are refused."""
    calm_watchdog()
    group = make_group(dist.HashStore(), 0, 1, device, 10.0)  # type: ignore[attr-defined]
    return NcclLink(group, 0, device_staging(2 * SLOT), 10.0)


async def ready(link: Link) -> None:
    group = link._group  # type: ignore[attr-defined]
    async with asyncio.timeout(30):
        while not group._is_initialized():
            await asyncio.sleep(0.01)


async def test_a_communicator_sends_to_itself_in_order_and_can_be_aborted(
    device: torch.device,
) -> None:
    """Send and receive are one NCCL group here, since both are posted by one rank."""
    link = communicator(device)
    await ready(link)
    staging = link.staging
    staging[:SLOT] = 9
    staging[SLOT:] = 0
    torch.cuda.synchronize()
    group = link._group  # type: ignore[attr-defined]
    for _ in range(3):
        group._start_coalescing()
        group.send([staging[:SLOT]], 0, 0)
        group.recv([staging[SLOT:]], 0, 0)
        group._end_coalescing().wait()
    torch.cuda.synchronize()
    assert bool((staging[SLOT:] == 9).all())
    link.close()
    assert link.failed == "closed"
    with pytest.raises(TransferError, match="closed"):
        await link.send(0, 8, 2)


async def test_two_workers_on_one_device_hand_over_through_host_staging(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", max_position_embeddings=2048)
    engine = {"dtype": "float32", "kv_tokens": 4096}
    roles = {
        name: {"role": role, "engine": engine, "transport": {"backend": "shm", "inline_bytes": 0}}
        for name, role in (("p", "prefill"), ("d", "decode"), ("alone", "decode"))
    }
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    prompt = tuple(i * 37 % 250 for i in range(700))
    async with workers(tmp_path, model, **roles) as up:
        p, d = up["p"].stub.Prefill, up["d"].decode
        warm, first = await both(p, d, Request("a", prompt, 700, params))
        again, second = await both(p, d, Request("b", prompt, 700, params))
        assert first == second and again.cached_tokens == 43 * 16
        assert warm.transport in ("shm", "inline")  # the first need not wait for its pair
        other = tuple(reversed(prompt))
        admitted, _ = await both(p, d, Request("c", other, 700, params))
        assert admitted.transport == "shm"


def rate(copy: Callable[[], object]) -> float:
    """GB/s of slots of 28 MiB; everything is over when `copy` has returned and the device idle."""
    copy()
    torch.cuda.synchronize()
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    for _ in range(REPEATS):
        copy()
    ended.record()
    torch.cuda.synchronize()
    return REPEATS * SLOT / began.elapsed_time(ended) / 1e6


def test_speeds_beside_plain_copies(
    device: torch.device, capsys: pytest.CaptureFixture[str]
) -> None:
    pages, blocks = filled(device, 7), list(range(1, 32, 2))
    on_device, pinned = device_staging(SLOT), host_staging(SLOT)
    there = device_staging(SLOT)
    limits = {
        "device": rate(lambda: there.copy_(on_device)),
        "pinned": rate(lambda: pinned.copy_(on_device, non_blocking=True)),
    }
    lines = [f"{name} copy: {value:.1f} GB/s" for name, value in limits.items()]
    for name, make in STAGING.items():
        staging = make(SLOT)
        limit = limits["device" if name == "device" else "pinned"]
        for what, copy in (
            ("gather", partial(pages.gather, blocks, staging)),
            ("scatter", partial(pages.scatter, staging, blocks)),
        ):
            value = rate(copy)
            lines.append(f"{what}, {name} staging: {value:.1f} GB/s, {value / limit:.2f} of it")
            assert value > 0
    with capsys.disabled():
        print("", *lines, sep="\n")
