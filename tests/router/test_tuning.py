"""SLO targets made into batch and chunk sizes, by a model in which a sequence and a token of a
prompt each take a millisecond."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from router.flow.classes import SloClass, SloConfig
from router.flow.control import IN_USE_S, FlowControl, Wish
from router.flow.tuning import EngineTuner, Sizes, chunk_budget
from router.latency import FittedLatency, HardwareClass, MeasuredTransfer
from router.placement.moment import MARGIN
from router.replica import Replica, ReplicaState
from router.worker_client import WorkerFailed
from workers.core.clock import VirtualClock, run_virtual
from workers.core.roles import RoleName
from workers.core.step_work import MeasuredStep, StepWork
from workers.models.config import read_shape
from workers.wire import worker_pb2 as worker
from workers.wire.redis_keys import ReplicaRecord

MOST = Sizes(32, 512)


class Milliseconds:
    """A LatencyModel."""

    def prefill_s(self, replica: str, new_tokens: int, context_tokens: int) -> float:
        return new_tokens / 1e3

    def decode_s(self, replica: str, num_seqs: int, kv_tokens: int) -> float:
        return num_seqs / 1e3

    def transfer_s(self, num_bytes: int, sender: str, receiver: str) -> float:
        return 0.0

    def step_s(self, replica: str, work: StepWork) -> float:
        return (work.prefill_tokens + work.decode_seqs) / 1e3

    def placed(self, replica: str, hardware_class: HardwareClass, step_tokens: int) -> None: ...

    def observe(self, replica: str, steps: Sequence[MeasuredStep]) -> None: ...

    def observe_transfers(self, receiver: str, transfers: Sequence[MeasuredTransfer]) -> None: ...

    def forget(self, replica: str) -> None: ...


class Client:
    """A WorkerClient of a worker that takes limits, and reports them when asked to."""

    def __init__(self) -> None:
        self.told: list[Sizes] = []
        self.fails = False

    async def set_limits(self, max_seqs: int, step_tokens: int) -> None:
        if self.fails:
            raise WorkerFailed("gone")
        self.told.append(Sizes(max_seqs, step_tokens))


def replica_of(role: RoleName) -> tuple[Replica, Client]:
    record = ReplicaRecord(
        id="r", incarnation="1", address="", pool="p", role=role, model="", kv_abi="",
        block_size=16, context_length=4096, kv_tokens=65536,
    )  # fmt: skip
    client = Client()
    replica = Replica(record, client)  # type: ignore[arg-type]
    replica.move(ReplicaState.UP, "a test")
    report(replica, MOST)
    return replica, client


def report(replica: Replica, sizes: Sizes) -> None:
    replica.load = worker.LoadReport(
        max_seqs=MOST.max_seqs,
        most_step_tokens=MOST.step_tokens,
        seqs_limit=sizes.max_seqs,
        step_tokens=sizes.step_tokens,
    )


def sizes(role: RoleName, itl_s: float | None, running: int = 0) -> Sizes:
    replica, _ = replica_of(role)
    for _ in range(running):
        replica.assigned(0, 100).__enter__()
    return EngineTuner([replica], Milliseconds(), lambda: itl_s).sizes(replica)


def kept(itl_s: float) -> float:
    """The target that steps of `itl_s` keep with the margin that predictions need."""
    return itl_s / (1 - MARGIN) + 1e-9


def test_a_decode_batch_fills_the_target_and_a_chunk_what_is_left_of_it() -> None:
    assert sizes("decode", kept(0.020)) == Sizes(20, 20)
    assert sizes("decode", kept(0.020), running=4) == Sizes(20, 20)  # 16 ms of prompt, 4 decodes
    assert sizes("decode", kept(0.100)) == Sizes(32, 100)


def test_who_also_prefills_keeps_half_of_each_step_for_it() -> None:
    assert sizes("aggregated", kept(0.040), running=30) == Sizes(20, 40)


def test_a_chunk_that_has_become_small_grows_again() -> None:
    """What a step costs before any work is paid once, by decodes and prompts together, and however
    small the chunks are now: for these a longer prompt would pay it many times."""
    latency, name = FittedLatency(read_shape("llama-8b"), HardwareClass("h100")), "r"
    itl_s = 2 * latency.decode_s(name, 1, 100)  # most of which is reading weights
    found = []
    for chunk in (0, 16, 2048):
        latency.placed(name, HardwareClass("h100"), chunk)
        found.append(chunk_budget(latency, name, itl_s, 8, 8000, 2048))
    assert found[0] == found[1] == found[2] > 100
    step = StepWork.chunk(found[0] - 8, 0)._replace(decode_seqs=8, decode_kv=8000)
    assert 0.95 * itl_s < latency.step_s(name, step) <= itl_s


def test_without_a_target_that_can_be_kept_sizes_are_as_started() -> None:
    assert sizes("decode", None) == MOST
    assert sizes("decode", 0.0001) == MOST, "not even one alone would be in time"
    assert sizes("prefill", 0.020) == MOST, "nobody decodes there"


async def test_workers_are_told_what_they_do_not_report_yet() -> None:
    replica, client = replica_of("decode")
    target = kept(0.020)
    tuner = EngineTuner([replica], Milliseconds(), lambda: target)
    client.fails = True
    await tuner.look()
    client.fails = False
    await tuner.look()
    assert client.told == [Sizes(20, 20)]
    report(replica, client.told[-1])
    await tuner.look()
    assert len(client.told) == 1, "it has what it should have"
    report(replica, MOST)  # it was started again
    await tuner.look()
    target = kept(0.0205)
    report(replica, client.told[-1])
    await tuner.look()
    assert client.told == [Sizes(20, 20)] * 2, "so small a change is not worth a message"


def test_the_tightest_target_of_classes_in_use_counts_and_of_all_while_there_is_none() -> None:
    async def scene() -> list[float | None]:
        classes = {
            "chat": SloClass(itl=0.03),
            "slow": SloClass(itl=0.2),
            "batch": SloClass(background=True),
        }
        slo = SloConfig(classes=classes, default="slow")
        flow = FlowControl(slo, NoRoom(), VirtualClock())
        found = [flow.itl_target_s()]
        async with flow.admit(Wish(0.1)):
            found.append(flow.itl_target_s())
        async with flow.admit(Wish(0.1, slo_class="chat")):
            found.append(flow.itl_target_s())
        await asyncio.sleep(IN_USE_S + 1)
        async with flow.admit(Wish(0.1)):
            found.append(flow.itl_target_s())
        await asyncio.sleep(IN_USE_S + 1)
        found.append(flow.itl_target_s())
        flow.change(SloConfig(classes={"a": SloClass(itl=0.5)}, default="a"))
        found.append(flow.itl_target_s())
        return found

    assert run_virtual(scene()) == [0.03, 0.2, 0.03, 0.2, 0.03, 0.5]


class NoRoom:
    """A Room without replicas: everybody is let through."""

    servers = 0

    def backlog_s(self, unplaced_s: float, *, background: bool, itl_s: float | None) -> float:
        return 0.0
