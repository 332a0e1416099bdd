"""How long the device worked between two points, without waiting for it."""

from __future__ import annotations

import threading
from collections import deque
from typing import Protocol

import torch

from workers.core.clock import Clock, SystemClock


class Timer(Protocol):
    @property
    def seconds(self) -> float:
        """Between begin() and end(), all that is over so far."""

    def begin(self) -> None: ...

    def end(self) -> None: ...


class HostTimer:
    """For devices that have done what they were asked to when the call returns."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.seconds = 0.0
        self._clock = SystemClock() if clock is None else clock
        self._began = 0.0

    def begin(self) -> None:
        self._began = self._clock.now()

    def end(self) -> None:
        self.seconds += self._clock.now() - self._began


class CudaTimer:
    """Events on the current stream. Any thread may read."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._began = torch.cuda.Event(enable_timing=True)
        self._open: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self._collecting = threading.Lock()

    @property
    def seconds(self) -> float:
        self._collect()
        return self._seconds

    def begin(self) -> None:
        self._collect()  # here too: nobody may ever ask
        self._began = torch.cuda.Event(enable_timing=True)
        self._began.record()

    def end(self) -> None:
        """Not called for what raised: that is forgotten."""
        ended = torch.cuda.Event(enable_timing=True)
        ended.record()
        self._open.append((self._began, ended))

    def _collect(self) -> None:
        with self._collecting:
            while self._open and self._open[0][1].query():
                began, ended = self._open.popleft()
                self._seconds += began.elapsed_time(ended) / 1e3


def pick_timer(device: torch.device) -> Timer:
    return CudaTimer() if device.type == "cuda" else HostTimer()
