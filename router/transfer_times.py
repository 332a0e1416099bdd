"""How long blocks take from one replica to another: a line through what was measured, per pair."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

KEPT = 16  # measurements of a pair; of so many, four may be stalls and the line stays
SPREAD = 2.0  # sizes closer than this factor say nothing of a slope
PRIOR_LATENCY_S = 2e-3  # of one fetch: a stream, a reservation, a few messages


@dataclass(frozen=True, slots=True)
class MeasuredTransfer:
    """One fetch as the receiver timed it."""

    sender: str
    num_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds of a transfer: `latency_s` and `s_per_byte` for each byte."""

    latency_s: float
    s_per_byte: float

    def at(self, num_bytes: int) -> float:
        return self.latency_s + num_bytes * self.s_per_byte


class TransferTimes:
    """A pair never measured takes the line of all pairs, and that begins as the prior."""

    def __init__(self, bytes_per_s: float) -> None:
        self._prior = Line(PRIOR_LATENCY_S, 1 / bytes_per_s)
        self._seen: dict[tuple[str, str], deque[tuple[int, float]]] = {}
        self._lines: dict[tuple[str, str], Line] = {}
        self._any: Line | None = self._prior  # None: to be computed when somebody asks

    def line(self, sender: str, receiver: str) -> Line:
        line = self._lines.get((sender, receiver)) or self._any
        if line is None:
            lines = self._lines.values()
            line = self._any = Line(
                median(line.latency_s for line in lines), median(line.s_per_byte for line in lines)
            )
        return line

    def observe(self, receiver: str, transfers: Sequence[MeasuredTransfer]) -> None:
        new = set()
        for transfer in transfers:
            if transfer.num_bytes <= 0 or transfer.seconds <= 0:
                continue
            pair = transfer.sender, receiver
            seen = self._seen.setdefault(pair, deque(maxlen=KEPT))
            seen.append((transfer.num_bytes, transfer.seconds))
            new.add(pair)
        for pair in new:
            self._lines[pair] = fit(list(self._seen[pair]), self._prior)
            self._any = None

    def forget(self, replica: str) -> None:
        for pair in [pair for pair in self._lines if replica in pair]:
            del self._seen[pair], self._lines[pair]
        if not self._lines:
            self._any = self._prior


def fit(seen: list[tuple[int, float]], prior: Line) -> Line:
    """The line through (bytes, seconds) after Theil and Sen: medians of slopes and of what is left,
    so that a stall moves nothing. Where all sizes are alike, the latency is the prior's, unless
    transfers are faster than that."""
    slopes = [
        (s2 - s1) / (n2 - n1)
        for (n1, s1), (n2, s2) in combinations(sorted(seen), 2)
        if n2 >= SPREAD * n1
    ]
    if len(slopes) < len(seen):
        latency_s = min(prior.latency_s, median(s for _, s in seen) / 2)
        return Line(latency_s, median((s - latency_s) / n for n, s in seen))
    s_per_byte = max(0.0, median(slopes))
    return Line(max(0.0, median(s - s_per_byte * n for n, s in seen)), s_per_byte)
