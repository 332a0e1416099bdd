"""How wrong predictions were: medians over the newest, so that one stall says nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

KEPT = 128
Kind = Literal["prefill step", "decode step", "transfer", "TTFT", "FIRST_GAP"]


@dataclass(slots=True)
class ErrorTrack:
    """Of one kind. `count`: ever noted."""

    count: int = 0
    predicted_s: float = 0.0  # the newest
    actual_s: float = 0.0
    _off: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))

    def note(self, predicted_s: float, actual_s: float) -> None:
        """Before anything is learnt from it."""
        if actual_s > 0:
            self.count += 1
            self.predicted_s, self.actual_s = predicted_s, actual_s
            self._off.append((predicted_s - actual_s) / actual_s)

    @property
    def error(self) -> float:
        """The median of |predicted - actual| / actual; 0 before the first."""
        return median(map(abs, self._off)) if self._off else 0.0

    @property
    def bias(self) -> float:
        """The median of (predicted - actual) / actual: above 0, predictions are too long."""
        return median(self._off) if self._off else 0.0


class Errors:
    """By replica and kind."""

    def __init__(self) -> None:
        self._tracks: dict[str, dict[Kind, ErrorTrack]] = {}

    def note(self, replica: str, kind: Kind, predicted_s: float, actual_s: float) -> None:
        kinds = self._tracks.setdefault(replica, {})
        kinds.setdefault(kind, ErrorTrack()).note(predicted_s, actual_s)

    def of(self, replica: str) -> dict[Kind, ErrorTrack]:
        return self._tracks.get(replica, {})

    def __iter__(self) -> Iterator[tuple[str, Kind, ErrorTrack]]:
        """Replica, kind, track."""
        for replica, kinds in self._tracks.items():
            for kind, track in kinds.items():
                yield replica, kind, track

    def forget(self, replica: str) -> None:
        self._tracks.pop(replica, None)
