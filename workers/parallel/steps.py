"""How many steps of a rank are over, for copies of pages that must come after them."""

from __future__ import annotations

import threading

from workers.core.errors import Unavailable

WAIT_S = 25.0


class Steps:
    """Counted alike on all ranks of a replica. Any thread may ask."""

    def __init__(self) -> None:
        self.done = 0
        self._changed = threading.Condition()

    def over(self) -> None:
        """One more."""
        with self._changed:
            self.done += 1
            self._changed.notify_all()

    def wait(self, count: int) -> None:
        """Until so many are. Blocking; raises Unavailable."""
        if self.done >= count:
            return
        with self._changed:
            if not self._changed.wait_for(lambda: self.done >= count, WAIT_S):
                raise Unavailable(f"step {count} is not over after {WAIT_S:.0f} s")
