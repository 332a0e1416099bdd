"""Servers of both roles that keep the SLO together at the least cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from cluster.planner.decode_model import DecodeModel
from cluster.planner.prefill_model import PrefillModel

TRIED = 5  # prefill servers beyond the fewest that might do


class Servers(NamedTuple):
    prefill: int
    decode: int

    def __str__(self) -> str:
        return f"{self.prefill} prefill + {self.decode} decode"


class Rates(NamedTuple):
    """Requests a second that each role is sized for."""

    prefill: float
    decode: float


@dataclass(frozen=True, slots=True)
class Rejected:
    servers: Servers
    why: str


@dataclass(frozen=True, slots=True)
class Need:
    servers: Servers
    attainment: float
    feasible: bool
    rejected: list[Rejected] = field(default_factory=list)
    why: str = ""


@dataclass(frozen=True, slots=True)
class Sizer:
    """`most`: of each role, by the bounds; `fits`: whether the budget has room for both; `prices`:
    of one server of each role."""

    prefill: PrefillModel
    decode: DecodeModel
    most: Servers
    prices: tuple[float, float]
    fits: Callable[[Servers], bool]

    def attainment(self, servers: Servers, rates: Rates) -> float:
        return self.prefill.attainment(servers.prefill, rates.prefill) * self.decode.attainment(
            servers.decode, rates.decode
        )

    def cost(self, servers: Servers) -> float:
        return servers.prefill * self.prices[0] + servers.decode * self.prices[1]

    def need(self, rates: Rates, goal: float) -> Need:
        """The cheapest that reaches `goal`; where none does, the best that the bounds allow."""
        if rates.prefill <= 0 and rates.decode <= 0:
            return Need(Servers(0, 0), 1.0, True)
        rejected: list[Rejected] = []
        found: list[Servers] = []
        few = least(lambda n: self.prefill.attainment(n, rates.prefill) >= goal, self.most.prefill)
        if few is not None:
            for count in range(max(1, few), min(few + TRIED, self.most.prefill) + 1):
                enough = least(
                    lambda n, p=count: self.attainment(Servers(p, n), rates) >= goal,  # type: ignore[misc]
                    self.most.decode,
                )
                if enough is None:
                    rejected.append(self._too_few(Servers(count, self.most.decode), rates, goal))
                    continue
                each = Servers(count, max(1, enough))
                if self.fits(each):
                    found.append(each)
                else:
                    rejected.append(Rejected(each, "over the budget"))
        if not found:
            return self._nearest(rates, goal, rejected, few)
        best = min(found, key=lambda each: (self.cost(each), -self.attainment(each, rates)))
        rejected += [
            Rejected(each, f"costs {self.cost(each):g} instead of {self.cost(best):g}")
            for each in found
            if each != best
        ]
        for less in (
            Servers(best.prefill - 1, best.decode),
            Servers(best.prefill, best.decode - 1),
        ):
            if min(less) >= 1:
                rejected.append(self._too_few(less, rates, goal))
        why = self._hopeless(goal)
        return Need(best, self._honest(best, rates), not why, rejected, why)

    def _nearest(
        self, rates: Rates, goal: float, rejected: list[Rejected], few: int | None
    ) -> Need:
        options = []
        for count in range(1, self.most.prefill + 1):
            enough = least(lambda n, p=count: not self.fits(Servers(p, n)), self.most.decode)  # type: ignore[misc]
            room = self.most.decode if enough is None else enough - 1
            if room >= 1:
                options.append(Servers(count, room))
        if not options:
            return Need(Servers(1, 1), 0.0, False, rejected, "one of each is over the budget")
        best = max(options, key=lambda each: self._merit(each, rates))
        why = f"{best} is the best within bounds and budget: "
        if few is None:
            why += f"TTFT would take more than {self.most.prefill} prefill"
        elif self.decode.attainment(self.most.decode, rates.decode) < goal:
            why += f"{self.decode.bound} would take more than {self.most.decode} decode"
        else:
            why += "the budget holds no more"
        return Need(best, self._honest(best, rates), False, rejected, why)

    def _merit(self, servers: Servers, rates: Rates) -> tuple[float, float, float]:
        fullest = max(
            self.prefill.busy(servers.prefill, rates.prefill),
            self.decode.busy(servers.decode, rates.decode),
        )
        return round(self.attainment(servers, rates), 3), -fullest, -self.cost(servers)

    def _too_few(self, servers: Servers, rates: Rates, goal: float) -> Rejected:
        first = self.prefill.attainment(servers.prefill, rates.prefill)
        second = self.decode.attainment(servers.decode, rates.decode)
        return Rejected(
            servers,
            f"{first * second:.3f} in time, {goal:.3f} asked "
            f"(TTFT {first:.3f}, ITL {second:.3f}; "
            f"{self.prefill.busy(servers.prefill, rates.prefill):.0%} and "
            f"{self.decode.busy(servers.decode, rates.decode):.0%} busy)",
        )

    def _honest(self, servers: Servers, rates: Rates) -> float:
        """Who cannot be in time is not."""
        if not self.decode.keeps_target:
            return 0.0
        return self.attainment(servers, rates) * self.prefill.ceiling

    def _hopeless(self, goal: float) -> str:
        """What no number of replicas could mend; empty where nothing is."""
        if not self.decode.keeps_target:
            return (
                "the ITL target is too tight: not even one sequence alone keeps it; "
                f"sized for {self.decode.bound} instead"
            )
        if self.prefill.ceiling < goal:
            return (
                f"the TTFT target is too tight: only {self.prefill.ceiling:.3f} of prompts keep it "
                "on an idle replica; the others are planned to wait no longer than it"
            )
        return ""


def least(enough: Callable[[int], bool], most: int) -> int | None:
    """The least of 0..most that is enough, where more are enough too; None if not even `most`."""
    if not enough(most):
        return None
    low, high = 0, 1
    while high < most and not enough(high):
        low, high = high, 2 * high
    high = min(high, most)
    while low < high:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle + 1
    return low
