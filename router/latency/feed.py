"""From what workers report to what the latency model learns."""

from __future__ import annotations

from router.latency.model import HardwareClass, LatencyModel
from router.latency.transfers import MeasuredTransfer
from router.replica import Replica
from workers.wire import worker_pb2 as worker
from workers.wire.codec import step_from_wire

LEARNT = 32  # steps of a report, or a few more: hundreds of one half second say no more than these


class LatencyFeed:
    """A PoolListener that hands measured steps and transfers to the latency model."""

    def __init__(self, latency: LatencyModel) -> None:
        self._latency = latency

    def reported(self, replica: Replica, load: worker.LoadReport) -> None:
        record = replica.record
        where = HardwareClass(
            record.hardware, record.tensor_ranks, replica.kv_abi, record.expert_ranks
        )
        self._latency.placed(replica.id, where, load.step_tokens)
        if steps := load.steps:  # most reports have none
            # An odd stride: steps with prompts and without may take turns.
            some = steps[:: len(steps) // LEARNT | 1]
            self._latency.observe(replica.id, [step_from_wire(step) for step in some])
        if transfers := load.transfers:
            self._latency.observe_transfers(
                replica.id,
                [
                    MeasuredTransfer(t.sender, t.num_bytes, t.seconds, t.transport)
                    for t in transfers
                ],
            )

    def lost(self, replica: Replica) -> None:
        """A restarted worker runs on the same hardware: what was measured stays."""

    def forgotten(self, replica: Replica) -> None:
        self._latency.forget(replica.id)
