"""How long blocks take from one replica to another: a latency and a bandwidth for each pair."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from router.latency.terms import Floats

OF_A_SIZE = 8  # newest transfers of about the same size (within four times) that are kept
HALF_LIFE = 64  # transfers after which one weighs half
LEAST_WEIGHT = 0.05
WORTH = 4  # new transfers that are worth a fit, once there are FEW
FEW = 16
PRIOR_LATENCY_S = 2e-3  # of one fetch: a stream, a reservation, a few messages

ROUNDS = 12
HUBER = 1.2  # deviations within which a transfer counts in full
LEAST_SPREAD = 0.1  # relative
LONGEST_JUMP = 2.0  # of a logarithm in one round
CLOSE = 1e-3


class MeasuredTransfer(NamedTuple):
    """Bytes that nothing hid, and how long they took, as the receiver timed them: the whole of a
    fetch; of one that began while its prompt was computed, what came after that."""

    sender: str
    num_bytes: int
    seconds: float
    transport: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds of a transfer: `latency_s` and `s_per_byte` for each byte."""

    latency_s: float
    s_per_byte: float

    def at(self, num_bytes: int) -> float:
        return self.latency_s + num_bytes * self.s_per_byte


@dataclass(frozen=True, slots=True)
class Doubt:
    """By which factor a prior may well be wrong."""

    latency: float
    bandwidth: float


OF_A_PROFILE = Doubt(latency=4.0, bandwidth=10.0)  # a data sheet knows no topology
OF_A_TRANSPORT = Doubt(latency=2.0, bandwidth=2.0)  # other pairs do


class _Samples:
    """Newest transfers of every size, and the line through them."""

    def __init__(self) -> None:
        self.line: Line | None = None
        self.transport = ""
        self._by_size: dict[int, deque[tuple[int, float, int]]] = {}  # bytes, seconds, number
        self._count = 0
        self._new = 0

    def add(self, transfer: MeasuredTransfer) -> None:
        size = transfer.num_bytes.bit_length() // 2
        kept = self._by_size.setdefault(size, deque(maxlen=OF_A_SIZE))
        kept.append((transfer.num_bytes, transfer.seconds, self._count))
        self.transport = transfer.transport
        self._count += 1
        self._new += 1

    def learn(self, prior: Line, doubt: Doubt) -> None:
        if self._new and (self._count <= FEW or self._new >= WORTH):
            self._new = 0
            seen = np.array([each for kept in self._by_size.values() for each in kept], float)
            sizes, seconds, numbers = seen.T
            weights = np.maximum(LEAST_WEIGHT, 0.5 ** ((self._count - 1 - numbers) / HALF_LIFE))
            self.line = fit(sizes, seconds, weights, prior, doubt)


class TransferTimes:
    """A pair's prior is what all pairs of its transport tell, and theirs is the data sheet of the
    receiver. A pair never measured is taken to use the transport that its receiver used last, or
    else anybody."""

    def __init__(self, bytes_per_s: float) -> None:
        """`bytes_per_s`: the data sheet of who was never placed."""
        self._prior = Line(PRIOR_LATENCY_S, 1 / bytes_per_s)
        self._priors: dict[str, Line] = {}
        self._pairs: dict[tuple[str, str], _Samples] = {}
        self._transports: dict[str, _Samples] = {}
        self._last: dict[str, str] = {}  # receiver -> transport
        self._last_of_all = ""

    def placed(self, receiver: str, bytes_per_s: float) -> None:
        self._priors[receiver] = Line(PRIOR_LATENCY_S, 1 / bytes_per_s)

    def line(self, sender: str, receiver: str) -> Line:
        pair = self._pairs.get((sender, receiver))
        if pair is not None and pair.line is not None:
            return pair.line
        return self._usual(self._last.get(receiver, self._last_of_all), receiver)

    def observe(self, receiver: str, transfers: Iterable[MeasuredTransfer]) -> None:
        new: set[tuple[str, str]] = set()
        for transfer in transfers:
            if transfer.num_bytes <= 0 or not 0 < transfer.seconds < math.inf:
                continue
            pair, transport = (transfer.sender, receiver), transfer.transport
            self._pairs.setdefault(pair, _Samples()).add(transfer)
            self._transports.setdefault(transport, _Samples()).add(transfer)
            self._last[receiver] = self._last_of_all = transport
            new.add(pair)
        for transport in {self._pairs[pair].transport for pair in new}:
            prior = self._priors.get(receiver, self._prior)
            self._transports[transport].learn(prior, OF_A_PROFILE)
        for pair in new:
            samples = self._pairs[pair]
            samples.learn(self._usual(samples.transport, receiver), OF_A_TRANSPORT)

    def forget(self, replica: str) -> None:
        """What its transport learnt from it stays."""
        for pair in [pair for pair in self._pairs if replica in pair]:
            del self._pairs[pair]
        self._last.pop(replica, None)
        self._priors.pop(replica, None)

    def _usual(self, transport: str, receiver: str) -> Line:
        known = self._transports.get(transport)
        if known is None or known.line is None:
            return self._priors.get(receiver, self._prior)
        return known.line


def fit(sizes: Floats, seconds: Floats, weights: Floats, prior: Line, doubt: Doubt) -> Line:
    """The most likely latency and bandwidth, both of which are log-normal around the prior, where
    errors are relative and few of them are stalls.

    So transfers that are all alike move the one of the two that could explain them more easily:
    small ones the latency, large ones the bandwidth. Only sizes that are spread move both.
    """
    samples = _Logs(sizes, seconds, weights, prior, doubt)
    # What the prior does not explain may be latency or bandwidth: there is a valley for each.
    slower = math.log(max(1e-9, float(np.median(seconds / samples.predicted(samples.centre)))))
    valleys = [samples.descend(samples.centre + slower * np.eye(2)[which]) for which in (0, 1)]
    latency_s, s_per_byte = np.exp(min(valleys, key=samples.unlikely))
    return Line(float(latency_s), float(s_per_byte))


class _Logs:
    """Likelihood over the logarithms of latency and of seconds for each byte."""

    def __init__(
        self, sizes: Floats, seconds: Floats, weights: Floats, prior: Line, doubt: Doubt
    ) -> None:
        self.centre = np.log([prior.latency_s, prior.s_per_byte])
        self._hold = 1.0 / np.log([doubt.latency, doubt.bandwidth]) ** 2
        self._units = np.stack([np.ones_like(sizes), sizes], axis=1)
        self._seconds = seconds
        self._weights = weights

    def predicted(self, logs: Floats) -> Floats:
        return np.asarray(self._units @ np.exp(logs))

    def unlikely(self, logs: Floats) -> float:
        off = np.abs(np.log(self._seconds / self.predicted(logs))) / LEAST_SPREAD
        loss = np.where(off < HUBER, off**2, HUBER * (2 * off - HUBER))
        return float(self._weights @ loss + self._hold @ (logs - self.centre) ** 2)

    def descend(self, logs: Floats) -> Floats:
        """Gauss-Newton steps with Huber's weights."""
        for _ in range(ROUNDS):
            parts = self._units * np.exp(logs)
            predicted = parts.sum(axis=1)
            off = np.log(self._seconds / predicted)
            spread = max(LEAST_SPREAD, 1.4826 * float(np.median(np.abs(off - np.median(off)))))
            huber = np.minimum(1.0, HUBER * spread / np.maximum(np.abs(off), 1e-12))
            slopes = parts / predicted[:, None]
            weighted = slopes * (self._weights * huber / spread**2)[:, None]
            gram = weighted.T @ slopes + np.diag(self._hold)
            pull = weighted.T @ off - self._hold * (logs - self.centre)
            jump = np.linalg.solve(gram, pull)
            logs = logs + np.clip(jump, -LONGEST_JUMP, LONGEST_JUMP)
            if np.abs(jump).max() < CLOSE:
                break
        return logs
