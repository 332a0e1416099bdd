"""Who is let in: a limit on requests in flight, and nobody while the router stops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from workers.core.errors import Overloaded, Unavailable


class Admission:
    """`queue_s` predicts how long the queue that is there now will take."""

    def __init__(self, max_requests: int, queue_s: Callable[[], float]) -> None:
        self._max_requests = max_requests
        self._queue_s = queue_s
        self._draining = False
        self.in_flight = 0

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Holds a place while the block runs. Raises Overloaded or Unavailable at once."""
        if self._draining:
            raise Unavailable("the router is stopping", retry_after_s=1.0)
        if self.in_flight >= self._max_requests:
            raise Overloaded(
                f"{self.in_flight} requests are in flight, as many as are allowed",
                retry_after_s=max(1.0, self._queue_s()),
            )
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    def drain(self) -> None:
        """Lets nobody in any more."""
        self._draining = True
