"""The load ahead: by its level, its trend, its own cycle and the season, whichever was right of
late. How wrong it was is known too, and is what is planned for on top."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from cluster.planner.history import History

LEVEL_S, SLOW_S, TREND_S = 30.0, 240.0, 60.0  # how far back
NOISE = 2.0  # standard deviations of a level that are hardly a change
DAMPED_S = 120.0  # a trend is taken to fade in so long, and a rise not
KEPT_ERRORS = 120
LEARNT_S = 900.0  # over which errors tell who is best
FINE_S, FINE = 10.0, 1080  # three hours
COARSE_S, COARSE = 300.0, 2304  # eight days
LOOK_S = 60.0  # between two looks for a cycle
CYCLES = 3  # that are averaged
AROUND = 2  # bins on either side that say what the rate of a moment was
SURE = 0.5  # of the level's errors: what repeats with less is sure to
OFFSET = 10  # part of a period, over which it shows whether this one is higher than the last
PASSING_S = 120.0  # a difference beyond that is taken to pass
SHORT_S = 60.0  # a horizon that tells who is right before the real one can
WORST_PART = 0.75  # of the errors of late that is planned for
DRIFT = 2.5e-4  # a second: 19 times in 20 ServeGen's m-large grows no more than that
QUARTILE = 0.674  # standard deviations
WAYS = ("level", "trend", "cycle", "season")
UNSEEN = 1.1  # times the highest load of late: a margin adds no more than up to that
CLEARLY = 0.85  # by how much better another way must be


class _Promise(NamedTuple):
    due: float
    rates: dict[str, float]


class _Errors:
    """Of one way, at one horizon."""

    def __init__(self) -> None:
        self.mean = 0.0
        self.weight = 0.0
        self.recent: deque[float] = deque(maxlen=KEPT_ERRORS)  # truth - forecast

    def note(self, error: float, keep: float) -> None:
        self.mean = (self.mean * self.weight * keep + abs(error)) / (self.weight * keep + 1.0)
        self.weight = self.weight * keep + 1.0
        self.recent.append(error)

    @property
    def shortfall(self) -> float:
        ranked = sorted(self.recent)
        return max(0.0, ranked[int(WORST_PART * (len(ranked) - 1))]) if ranked else 0.0


class Ahead(NamedTuple):
    """`rate` at the horizon, `margin` on top of it; `peak` of all times up to then and a while
    longer, margin included. `way`: what foresaw it; `sure`: the load repeats itself, and of late
    did so closely."""

    rate: float
    margin: float
    peak: float
    way: str
    sure: bool = False


class Forecast:
    """note() each interval, then ahead() for some horizons, the same each time."""

    def __init__(self, season_s: float | None, enabled: bool = True) -> None:
        self.level = 0.0
        self.trend = 0.0  # per second
        self._fast = self._slow = 0.0
        self.cycle_s: float | None = None
        self._season_s = season_s
        self._enabled = enabled
        self._fine = History(FINE_S, FINE)
        self._coarse = History(COARSE_S, COARSE)
        self._noted: float | None = None
        self._looked = -math.inf
        self._promises: dict[float, deque[_Promise]] = {}
        self._errors: dict[tuple[float, str], _Errors] = {}
        self._way: dict[float, str] = {}
        self._spread = 0.0  # mean size of surprises
        self._blur = 0.0  # standard deviation of a level that only seems to change

    def learn(self, past: Iterable[tuple[float, float]]) -> None:
        """(time, rate) of before we were there, oldest first."""
        for when, rate in past:
            self._coarse.add(rate, when)

    def note(self, rate: float, now: float) -> None:
        if self._noted is None:
            self.level = self._fast = self._slow = self._spread = rate
            middle = now
        else:
            self._follow(rate, now - self._noted)
            middle = (self._noted + now) / 2
        self._noted = now
        self._fine.add(rate, middle)
        self._coarse.add(rate, now)
        if self._enabled and now - self._looked >= LOOK_S:
            self._looked, self.cycle_s = now, self._fine.cycle_s()
        for horizon, promises in self._promises.items():
            while promises and promises[0].due + AROUND * FINE_S <= now:
                self._judge(horizon, promises.popleft())

    def _follow(self, rate: float, elapsed: float) -> None:
        expected = self._fast + self.trend * elapsed
        surprise = rate - expected
        most = 4.0 * self._spread  # one wild interval is not a level
        tame = max(-most, min(most, surprise))
        fast = max(0.0, expected + (1.0 - math.exp(-elapsed / LEVEL_S)) * tame)
        turn = 1.0 - math.exp(-elapsed / TREND_S)
        self.trend += turn * ((fast - self._fast) / elapsed - self.trend)
        self._fast = fast
        self._slow += (1.0 - math.exp(-elapsed / SLOW_S)) * (rate - self._slow)
        self._spread += 0.1 * (abs(surprise) - self._spread)
        # Slow as long as the difference may be noise: what is constant should look it.
        self._blur = 1.25 * self._spread * math.sqrt(elapsed / (2.0 * SLOW_S))
        noise = NOISE * self._blur * math.sqrt(SLOW_S / LEVEL_S)
        apart = self._fast - self._slow
        weight = apart * apart / (apart * apart + noise * noise) if apart else 0.0
        self.level = self._slow + weight * apart

    def expected(self, interval_s: float) -> float:
        """Requests a second in the interval that comes."""
        now = self._noted or 0.0
        if self._sure(SHORT_S, "cycle"):
            repeated = self._by("cycle", now, interval_s / 2)
            if repeated is not None:
                return repeated
        return max(0.0, self.level + self.trend * interval_s)

    def ahead(self, horizon: float, hold: float) -> Ahead:
        """At `horizon` seconds from now, and the peak until `hold` seconds behind it; what is sure
        needs no such patience, and a cycle that is no margin: it is missed as often from above."""
        now = self._noted or 0.0
        rates = self._all(now, horizon)
        self._promise(horizon, rates)
        self._promise(SHORT_S, self._all(now, SHORT_S))
        way = self._best(horizon, rates)
        sure = self._sure(horizon, way)
        margin = 0.0
        if not sure or way == "season":
            unseen = max(0.0, UNSEEN * self._fine.most - rates[way])
            margin = min(self._margin(horizon, way), unseen)
        if way in ("level", "trend"):
            margin = max(margin, DRIFT * horizon * rates[way])
        until = horizon if sure else horizon + hold
        steps = max(1, min(24, math.ceil(until / FINE_S)))
        between = (self._by(way, now, until * place / steps) for place in range(steps + 1))
        peak = max(rate for rate in (*between, rates[way]) if rate is not None)
        if not sure:
            peak = max(peak, self.level)
        return Ahead(rates[way], margin, peak + margin, way, sure)

    def _sure(self, horizon: float, way: str) -> bool:
        mine, plain = (self._errors.get((horizon, each)) for each in (way, "level"))
        if way not in ("cycle", "season") or mine is None or plain is None:
            return False
        return mine.mean < SURE * plain.mean

    def _margin(self, horizon: float, way: str) -> float:
        """How much higher the load was than foreseen, without what both levels are blurred by: the
        queueing models know that arrivals are uneven."""
        errors = self._errors.get((horizon, way))
        seen = 1.25 * self._spread / math.sqrt(1 + 2 * AROUND)
        blur = QUARTILE * math.hypot(self._blur, seen)
        return math.sqrt(max(0.0, errors.shortfall**2 - blur**2)) if errors else 0.0

    def _promise(self, horizon: float, rates: dict[str, float]) -> None:
        due = (self._noted or 0.0) + horizon
        promises = self._promises.setdefault(horizon, deque())
        if not promises or promises[-1].due < due:
            promises.append(_Promise(due, rates))

    def _best(self, horizon: float, rates: dict[str, float]) -> str:
        means = self._means(horizon, rates)
        if not means and "season" in rates:
            return "season"
        means = means or self._means(SHORT_S, rates)
        if not means:
            return "level"
        best = min(means, key=means.__getitem__)
        last = self._way.get(horizon)
        if last in means and means[best] > CLEARLY * means[last]:
            best = last
        self._way[horizon] = best
        return best

    def _means(self, horizon: float, rates: dict[str, float]) -> dict[str, float]:
        found = {way: self._errors.get((horizon, way)) for way in rates}
        return {way: errors.mean for way, errors in found.items() if errors is not None}

    def _judge(self, horizon: float, promise: _Promise) -> None:
        keep = math.exp(-FINE_S / LEARNT_S)
        came = self._fine.around(promise.due, AROUND)
        assert came is not None
        for way, rate in promise.rates.items():
            errors = self._errors.setdefault((horizon, way), _Errors())
            errors.note(came - rate, keep)

    def _all(self, now: float, ahead: float) -> dict[str, float]:
        found = {way: self._by(way, now, ahead) for way in WAYS}
        return {way: rate for way, rate in found.items() if rate is not None}

    def _by(self, way: str, now: float, ahead: float) -> float | None:
        if way == "level":
            return self.level
        if not self._enabled:
            return None
        if way == "trend":
            faded = DAMPED_S * (1.0 - math.exp(-ahead / DAMPED_S))
            return max(0.0, self.level + self.trend * faded)
        if way == "cycle":
            return self._repeated(self._fine, self.cycle_s, now, ahead)
        return self._repeated(self._coarse, self._season_s, now, ahead)

    def _repeated(
        self, history: History, period_s: float | None, now: float, ahead: float
    ) -> float | None:
        """As it was whole periods ago, as much higher or lower as it is now; the further ahead, the
        less of that difference."""
        if period_s is None:
            return None
        then, today, lasting = [], [], []
        bins = max(1, round(period_s / OFFSET / history.bin_s))
        smooth, short = (AROUND, round(LEVEL_S / FINE_S)) if history is self._fine else (0, 0)
        for count in range(1, CYCLES + 1):
            at = now - count * period_s
            while at + ahead > now - history.bin_s:
                at -= period_s
            last = now - FINE_S / 2 if smooth else now  # in the last bin
            before = last - (now - at)
            both = min(bins, history.known(before))
            recent, around = history.mean(last, both), history.mean(before, both)
            later = history.around(at + ahead, smooth)
            level = history.mean(last, short) if short else self.level
            same = history.mean(before, short) if short else history.at(at)
            if later is None or same is None or around is None or recent is None or level is None:
                break
            then.append(later)
            today.append(level - same)
            lasting.append(recent - around)
        if not then:
            return None
        stays = sum(lasting) / len(then)
        passes = (sum(today) / len(then) - stays) * math.exp(-ahead / PASSING_S)
        return max(0.0, sum(then) / len(then) + stays * math.exp(-ahead / period_s) + passes)
