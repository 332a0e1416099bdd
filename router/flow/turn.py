"""What a request has once the line has let it go."""

from __future__ import annotations

import math

from router.flow.book import Book, Result, result_of
from router.flow.classes import SloClass
from router.flow.waiting import Waiting
from router.placement.decision import Targets


class Unplaced:
    """Work that was granted and that no replica's load counts yet."""

    def __init__(self) -> None:
        self.work_s = 0.0
        self._turns: dict[Turn, float] = {}

    def add(self, turn: Turn, work_s: float) -> None:
        self._turns[turn] = work_s
        self.work_s += work_s

    def remove(self, turn: Turn) -> None:
        """Idempotent."""
        self.work_s -= self._turns.pop(turn, 0.0)
        if not self._turns:
            self.work_s = 0.0  # and not what is left of rounding


class Turn:
    """A place in the cluster. placed() when a replica has been chosen: from then on its load counts
    the work. served() or failed() once, unless its client leaves."""

    def __init__(
        self,
        waiting: Waiting,
        slo: SloClass,
        unplaced: Unplaced,
        book: Book,
        waited_s: float = 0.0,
        others_itl_s: float | None = None,
    ) -> None:
        """`others_itl_s`: the tightest target of those who are served beside it."""
        self.flow = waiting.flow
        self.targets = Targets(
            math.inf if slo.ttft is None else slo.ttft - waited_s,
            slo.itl or math.inf,
            others_itl_s or math.inf,
        )
        self.waited_s = waited_s
        self._slo = slo
        self._book = book
        self._unplaced = unplaced
        unplaced.add(self, waiting.work_s)

    def placed(self) -> None:
        self._unplaced.remove(self)

    def served(self, ttft_s: float, itl_s: float | None) -> None:
        """`itl_s`: the mean, None for an answer of one token."""
        self._book.ended(self.flow, result_of(self._slo, ttft_s, itl_s))

    def failed(self) -> None:
        """By our fault."""
        self._book.ended(self.flow, Result.FAILED)
