"""The latency model that the router runs with: a roofline until steps are measured, then what they
say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from router.latency.errors import Errors, Kind
from router.latency.model import HardwareClass
from router.latency.prior import EFFICIENCY, prior
from router.latency.step_times import Deviation, StepTimes
from router.latency.transfers import MeasuredTransfer, TransferTimes
from workers.core.errors import ConfigError
from workers.core.hardware import HardwareProfile, hardware
from workers.core.step_work import MeasuredStep, StepWork
from workers.models.architecture import ModelConfig
from workers.models.costs import step_costs
from workers.models.sizing import Split


class _Place(NamedTuple):
    """Where a replica runs, and the most tokens of a prompt that it computes in one step."""

    hardware_class: HardwareClass
    times: StepTimes
    deviation: Deviation
    chunk: int


class FittedLatency:
    """A LatencyModel. Replicas that were never placed are of the class `usual`."""

    def __init__(self, config: ModelConfig, usual: HardwareClass | None = None) -> None:
        self.errors = Errors()
        self._config = config
        self._classes: dict[HardwareClass, StepTimes] = {}
        usual = usual or HardwareClass()
        self._usual = _Place(usual, self._times(usual), Deviation(), 0)
        self._places: dict[str, _Place] = {}
        profile = _profile(usual)
        self._transfers = TransferTimes(profile.network_bandwidth * EFFICIENCY)

    def prefill_s(self, replica: str, new_tokens: int, context_tokens: int) -> float:
        if new_tokens <= 0:
            return 0.0
        _, times, deviation, chunk = self._places.get(replica, self._usual)
        seconds = times.coefficients.prompt_s(new_tokens, context_tokens, chunk)
        return seconds * deviation.prompts

    def decode_s(self, replica: str, num_seqs: int, kv_tokens: int) -> float:
        if num_seqs <= 0:
            return 0.0
        _, times, deviation, _ = self._places.get(replica, self._usual)
        return times.coefficients.decode_s(num_seqs, kv_tokens) * deviation.decodes

    def step_s(self, replica: str, work: StepWork) -> float:
        _, times, deviation, _ = self._places.get(replica, self._usual)
        return times.coefficients.step_s(work) * deviation.of(work)

    def transfer_s(self, num_bytes: int, sender: str, receiver: str) -> float:
        return self._transfers.line(sender, receiver).at(num_bytes) if num_bytes > 0 else 0.0

    def placed(self, replica: str, hardware_class: HardwareClass, step_tokens: int) -> None:
        place = self._places.get(replica)
        if place is not None and place.hardware_class == hardware_class:
            if place.chunk != step_tokens:
                self._places[replica] = place._replace(chunk=step_tokens)
            return
        if place is not None:
            self.forget(replica)
        times = self._times(hardware_class)
        self._places[replica] = _Place(hardware_class, times, Deviation(), step_tokens)
        network = _profile(hardware_class).network_bandwidth
        self._transfers.placed(replica, network * EFFICIENCY)

    def observe(self, replica: str, steps: Sequence[MeasuredStep]) -> None:
        if not steps:
            return
        if replica not in self._places:
            self._places[replica] = self._usual._replace(deviation=Deviation())
        for work, seconds in steps:
            kind: Kind = "prefill step" if work.prefill_tokens else "decode step"
            self.errors.note(replica, kind, self.step_s(replica, work), seconds)
        place = self._places[replica]
        place.times.observe(place.deviation, steps)

    def observe_transfers(self, receiver: str, transfers: Sequence[MeasuredTransfer]) -> None:
        for sender, num_bytes, seconds, _ in transfers:
            predicted_s = self.transfer_s(num_bytes, sender, receiver)
            self.errors.note(receiver, "transfer", predicted_s, seconds)
        self._transfers.observe(receiver, transfers)

    def forget(self, replica: str) -> None:
        """What its class learnt from it stays: one that takes its place is predicted well from its
        first step on."""
        place = self._places.pop(replica, None)
        if place is not None:
            place.times.forget(place.deviation)
        self._transfers.forget(replica)
        self.errors.forget(replica)

    def _times(self, hardware_class: HardwareClass) -> StepTimes:
        times = self._classes.get(hardware_class)
        if times is None:
            split = Split(hardware_class.tensor_ranks, hardware_class.expert_ranks)
            known = prior(step_costs(self._config, split), _profile(hardware_class))
            times = self._classes[hardware_class] = StepTimes(known)
        return times


def _profile(hardware_class: HardwareClass) -> HardwareProfile:
    """Of a name that a newer worker knows and we do not, the slowest: steps will say better."""
    try:
        return hardware(hardware_class.hardware)
    except ConfigError:
        return hardware("cpu")
