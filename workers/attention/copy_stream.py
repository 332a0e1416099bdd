"""Copies of pages on a stream beside the steps', over when they are left."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from workers.core.clock import SystemClock
from workers.core.errors import Unavailable

# One copy on a device, and the steps it waits for there: a worker whose step hangs is given up
# before, and until then the pages are not free.
COPY_S = 180.0
POLL_S = 0.0002


class CopyStream:
    """A context for copies on `device`, from any thread: they begin when what was queued for the
    steps is done, so no page is read before the forward that writes it, and have ended when the
    context is left. On a CPU there is nothing to wait for.

    A stream of its own, since on the steps' one two ranks could queue a step and a copy in
    different orders and wait for each other for ever.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Raises Unavailable where the device does not finish in COPY_S."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.default_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield
            self._wait(self._stream.record_event())

    @staticmethod
    def _wait(done: torch.cuda.Event) -> None:
        """Polled: a wait of the driver's has no deadline."""
        clock, pause = SystemClock(), threading.Event()
        until = clock.now() + COPY_S
        while not done.query():
            if clock.now() > until:
                raise Unavailable(f"a copy of pages took longer than {COPY_S:.0f} s")
            pause.wait(POLL_S)
