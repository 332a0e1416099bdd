"""What others gave to one replica: what their routers told, and what its worker reports beyond it.

    foreign = told now + max(0, reported - known)

`reported`: of the worker's last report, what was not ours when it came. `known`: the most that
other routers told from the report until it settled. A decision is in the report at once and is
told a little later; taken as the most of that while, what is told counts once and not twice. What
is told after it was decided after the report, so it counts beside what the report holds of those
who tell nothing. The sum is never less than what was told, and where nobody tells it is the
report's.
"""

from __future__ import annotations

from typing import NamedTuple


class Load(NamedTuple):
    """Work on one replica: uncached prompt tokens not yet computed, KV tokens, and sequences."""

    pending_tokens: int = 0
    kv_tokens: int = 0
    seqs: int = 0

    def plus(self, other: Load) -> Load:
        return Load(self[0] + other[0], self[1] + other[1], self[2] + other[2])

    def beyond(self, other: Load) -> Load:
        """Of each kind, what is more than in `other`."""
        return Load(
            max(0, self[0] - other[0]), max(0, self[1] - other[1]), max(0, self[2] - other[2])
        )

    def most(self, other: Load) -> Load:
        """Of each kind, the larger one."""
        return Load(max(self[0], other[0]), max(self[1], other[1]), max(self[2], other[2]))


NOTHING = Load()


class Foreign:
    """Placement reads the sums for every candidate, so they are plain attributes."""

    __slots__ = ("_known", "_reported", "kv_tokens", "pending_tokens", "seqs", "told")

    def __init__(self) -> None:
        self.pending_tokens = 0
        self.kv_tokens = 0
        self.seqs = 0
        self.told = NOTHING  # by all other routers together
        self._reported = NOTHING
        self._known = NOTHING

    def report(self, reported: Load) -> None:
        """The worker's, without what was ours when it came."""
        self._reported = reported
        self._known = self.told
        self._sum()

    def tell(self, told: Load, *, settled: bool) -> None:
        """What the others say now. `settled`: the last report came so long ago that what is new
        was decided after it."""
        self.told = told
        if not settled:
            self._known = self._known.most(told)
        self._sum()

    def unsay(self, told: Load) -> None:
        """Somebody fell silent: what is left counts, and for the rest the last report again."""
        self.told = self._known = told
        self._sum()

    def clear(self) -> None:
        """The worker is gone, and all that it was given."""
        self.told = self._reported = self._known = NOTHING
        self._sum()

    def _sum(self) -> None:
        load = self.told.plus(self._reported.beyond(self._known))
        self.pending_tokens, self.kv_tokens, self.seqs = load
