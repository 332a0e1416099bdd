"""Rules that others scale by, as published, for comparison. Each pool by itself."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from cluster.simulator.route import quantile
from cluster.simulator.scaling.policy import Seen, Sizes
from cluster.simulator.scaling.sizes import Site
from workers.core.step_work import StepWork


class _Delayed:
    """Ray Serve's delays: a wish counts once it was the same direction for so long."""

    UP_S, DOWN_S = 30.0, 600.0

    def __init__(self) -> None:
        self._since: tuple[int, float] = (0, 0.0)

    def size(self, wished: int, have: int, now: float) -> int:
        way = (wished > have) - (wished < have)
        if way != self._since[0]:
            self._since = (way, now)
        due = self.UP_S if way > 0 else self.DOWN_S
        return wished if way and now - self._since[1] >= due else have


class QueueLength:
    """Ray Serve: ongoing requests over a target, averaged over 30 s. Its default target of 2 suits
    no decode replica, so each pool gets the part `full` of what one carries within the SLO."""

    LOOK_BACK_S = 30.0

    def __init__(self, targets: Sizes, most: Sizes) -> None:
        self._targets = targets
        self._most = most
        self._seen: deque[tuple[float, Sizes]] = deque()
        self._delays = (_Delayed(), _Delayed())

    def sizes(self, seen: Seen) -> Sizes:
        self._seen.append((seen.now, seen.ongoing))
        while self._seen[0][0] <= seen.now - self.LOOK_BACK_S:
            self._seen.popleft()
        found = []
        for place, delay in enumerate(self._delays):
            mean = sum(sizes[place] for _, sizes in self._seen) / len(self._seen)
            wished = _within(math.ceil(mean / self._targets[place]), self._most[place])
            found.append(delay.size(wished, seen.coming[place], seen.now))
        return Sizes(*found)


class Throughput:
    """Dynamo's throughput rule: completions of the last interval, mean lengths, replicas at full
    speed."""

    EVERY_S = 180.0

    def __init__(self, site: Site, most: Sizes) -> None:
        self._site = site
        self._most = most
        self._ended: list[tuple[int, int, int]] = []
        self._count = 0
        self._due = self.EVERY_S

    def sizes(self, seen: Seen) -> Sizes:
        self._ended += [(shape.prompt, shape.uncached, shape.output) for shape in seen.ended]
        if seen.now < self._due or not self._ended:
            return seen.coming
        self._due = seen.now + self.EVERY_S
        rate = len(self._ended) / self.EVERY_S
        prompt, uncached, output = (
            sum(c) / len(self._ended) for c in zip(*self._ended, strict=True)
        )
        self._ended.clear()
        site = self._site
        prefill, decode = site.pools["prefill"], site.pools["decode"]
        work_s = site.latency.prefill_s(prefill.model, round(uncached), round(prompt - uncached))
        context = round(prompt + output / 2)
        batch = site.batch(context)
        step_s = site.latency.step_s(decode.model, StepWork.decode(batch, batch * context))
        return Sizes(
            _within(math.ceil(rate * work_s), self._most.prefill),
            _within(math.ceil(rate * output * step_s / batch), self._most.decode),
        )


class P90:
    """llm-d's SLO law: s = mean over 45 s of P90 / SLO, at most 2; up above 0.55 with credit for
    what is ready, down below 0.40; at most max(100 %, 4) up a minute and one down in two."""

    OVER_S, UP, DOWN, MOST = 45.0, 0.55, 0.40, 2.0

    def __init__(self, site: Site, most: Sizes) -> None:
        self._targets = (site.promise.ttft_s, site.promise.itl_s)
        self._most = most
        self._scores: tuple[deque[tuple[float, float]], ...] = (deque(), deque())
        self._changed: list[deque[tuple[float, int]]] = [deque(), deque()]

    def sizes(self, seen: Seen) -> Sizes:
        found = []
        for place, (values, state) in enumerate(
            ((seen.ttfts, seen.prefill), (seen.itls, seen.decode))
        ):
            score = self._score(place, values, seen)
            size = have = state.coming
            if score > self.UP:
                ready = state.up / have if have else 1.0
                size = have + max(0, math.ceil(have * (score * ready / self.UP - 1)))
            elif score < self.DOWN:
                size = have - math.floor(have * (1 - score / self.DOWN))
            found.append(self._limited(place, _within(size, self._most[place]), have, seen.now))
        return Sizes(*found)

    def _score(self, place: int, values: Sequence[float], seen: Seen) -> float:
        scores = self._scores[place]
        if values:
            score = min(quantile(values, 0.9) / self._targets[place], self.MOST)
        elif seen.queued:
            score = self.MOST
        else:
            score = scores[-1][1] if scores and seen.ongoing[place] else 0.0
        scores.append((seen.now, score))
        while scores[0][0] <= seen.now - self.OVER_S:
            scores.popleft()
        return sum(each for _, each in scores) / len(scores)

    def _limited(self, place: int, size: int, have: int, now: float) -> int:
        changed = self._changed[place]
        while changed and changed[0][0] <= now - 120.0:
            changed.popleft()
        ups = sum(by for at, by in changed if by > 0 and at > now - 60.0)
        downs = -sum(by for _, by in changed if by < 0)
        before = have - ups
        most = before + max(before, 4)
        size = max(have - max(0, 1 - downs), min(size, max(have, most)))
        if size != have:
            changed.append((now, size - have))
        return size


def _within(size: int, most: int) -> int:
    return max(1, min(most, size))
