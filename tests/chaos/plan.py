"""What one run is: a cluster, some requests, and what befalls them, all of it drawn from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from enum import StrEnum

from tests.chaos.runner import with_stop
from workers.core.request import Request, SamplingParams


class Kind(StrEnum):
    KILL = "kill"  # a worker is gone, and started again later
    HANG = "hang"  # a worker stands still, and goes on later
    SLOW = "slow"  # its steps and its messages take longer
    PARTITION = "partition"  # two of router, workers, Redis do not reach each other
    DUPLICATE = "duplicate"  # calls arrive twice
    REORDER = "reorder"  # calls overtake each other
    CANCEL = "cancel"  # a client leaves
    CORRUPT = "corrupt"  # KV bytes change on their way
    CUT = "cut"  # links break, their workers live
    DRAIN = "drain"  # SIGTERM: a worker hands on what it has, leaves, and comes again
    MOVE = "move"  # a running decode is to be continued elsewhere
    REDIS = "redis"  # Redis goes away and comes back empty


# Where a fault may strike: as the nth message of this kind is sent. See docs/handoff.md.
STEPS = (
    "Prefill>",
    "Prefill<opened",
    "Prefill<progress",
    "Prefill<first_token",
    "Prefill<ok",
    "Decode>",
    "Decode>start",
    "Decode>cancel",
    "Decode<admitted",
    "Decode<tokens",
    "Decode<moving",
    "Decode<moved",
    "Decode<ok",
    "Connect>",
    "Connect<",
    "FetchKV>",
    "FetchKV>redeem",
    "FetchKV<offer",
    "FetchKV>ready",
    "FetchKV<go",
    "FetchKV>taken",
    "FetchKV<inline",
    "FetchKV>again",
    "FetchKV>leave",
    "FetchKV<complete",
    "FetchKV>received",
    "FetchKV<redeemed",
    "Renew>",
    "Release>",
    "Cancel>",
)
WEIGHTS = {
    Kind.KILL: 5,
    Kind.HANG: 4,
    Kind.SLOW: 2,
    Kind.PARTITION: 4,
    Kind.DUPLICATE: 2,
    Kind.REORDER: 2,
    Kind.CANCEL: 4,
    Kind.CORRUPT: 3,
    Kind.CUT: 2,
    Kind.DRAIN: 3,
    Kind.MOVE: 4,
    Kind.REDIS: 1,
}
FAULTS_UNTIL_S = 5.0  # then everything is mended


@dataclass(frozen=True, slots=True)
class Fault:
    """Strikes at `at_s`, or `lag_s` after the nth message `step`: there one of its two ends.
    `seconds`: how long it lasts."""

    kind: Kind
    at_s: float = 0.0
    step: str = ""
    nth: int = 0
    lag_s: float = 0.0
    end: int = 0  # of the message: 0 its sender, 1 who gets it
    target: str = ""
    other: str = ""
    seconds: float = 1.0

    def __str__(self) -> str:
        where = f"{self.target}" + (f"-{self.other}" if self.other else "")
        if self.step:
            where = f"the {'receiver' if self.end else 'sender'} of"
            when = f"{self.step} #{self.nth} +{self.lag_s:g} s"
        else:
            when = f"at {self.at_s:.3f} s"
        return f"{self.kind} {where} {when} for {self.seconds:.2f} s"


@dataclass(frozen=True, slots=True)
class Asked:
    """One client. It leaves after `patience` tokens, or after `leaves_s` seconds."""

    at_s: float
    request: Request
    patience: int | None = None
    leaves_s: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    seed: int
    prefill: int
    decode: int
    aggregated: int
    blocks: int  # of each worker's pool
    slots: int
    slot_blocks: int
    transport: bool  # False: all blocks go inline
    inline_blocks: int  # of one message
    prewarm: int
    early: bool  # tickets of long prompts are bound while they are computed
    overlap: bool  # engines schedule ahead
    window: int
    latency_s: float
    wire_s: float
    asked: tuple[Asked, ...] = ()
    faults: tuple[Fault, ...] = ()
    workers: tuple[str, ...] = field(default=(), compare=False)


def draw(seed: int) -> Plan:
    rng = random.Random(seed)
    crowded = rng.random() < 0.15
    prefill, decode = (1, 2) if crowded else rng.choice([(1, 2), (2, 2), (1, 3), (2, 3)])
    aggregated = int(rng.random() < 0.2)
    names = [
        *(f"p{i}" for i in range(prefill)),
        *(f"d{i}" for i in range(decode)),
        *(f"a{i}" for i in range(aggregated)),
    ]
    asked = _requests(rng, crowded)
    return Plan(
        seed=seed,
        prefill=prefill,
        decode=decode,
        aggregated=aggregated,
        blocks=25 if crowded else rng.choice([25, 28, 32, 48, 96]),
        slots=rng.choice([1, 2, 3]),
        slot_blocks=rng.choice([1, 2, 4]),
        transport=rng.random() < 0.85,
        inline_blocks=rng.choice([1, 3, 100]),
        prewarm=rng.choice([0, 4]),
        early=rng.random() < 0.6,
        overlap=rng.random() < 0.3,
        window=rng.choice([256, 4096, 1 << 16]),
        latency_s=rng.choice([0.0005, 0.002, 0.01]),
        wire_s=rng.choice([0.001, 0.01, 0.05]),
        asked=tuple(asked),
        faults=tuple(_fault(rng, names) for _ in range(rng.choice([1, 2, 2, 3, 4, 5]))),
        workers=tuple(names),
    )


def _requests(rng: random.Random, crowded: bool) -> list[Asked]:
    """`crowded`: so many at once, so long, that decode pools run out of pages."""
    found = []
    for i in range(rng.randint(6, 8) if crowded else rng.randint(2, 5)):
        family = rng.randrange(8 if crowded else 3)  # those of one share a prefix
        length = rng.choice([rng.randint(1, 12), rng.randint(10, 40), rng.randint(40, 72)])
        if crowded:
            length = rng.randint(8, 24)
        prompt = [family * 100 + k for k in range(length)]
        if rng.random() < 0.5:
            prompt[-1] = rng.randrange(1000)
        most = rng.choice([1, rng.randint(2, 10), rng.randint(8, 24)])
        params = SamplingParams(temperature=0.0, max_tokens=24 if crowded else most)
        if rng.random() < 0.5:
            params = replace(params, temperature=1.0, seed=rng.randrange(1 << 30))
        request = Request(f"r{i}", tuple(prompt), length, params)
        if rng.random() < 0.2:
            request = with_stop(request, rng.randrange(8))
        at_s = rng.choice([0.0, 0.3 * rng.random(), 1.5 * rng.random()])
        found.append(Asked(at_s=0.0 if crowded else at_s, request=request))
    return found


def _fault(rng: random.Random, names: list[str]) -> Fault:
    kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    target, other = rng.sample([*names], 2)
    if kind is Kind.PARTITION:
        other = rng.choice([other, "router", "redis"])
    elif kind is Kind.CANCEL:
        target, other = f"r{rng.randrange(6)}", ""
    else:
        other = ""
    lasts = rng.choice([rng.uniform(0.01, 0.3), rng.uniform(0.3, 2.0), rng.uniform(1.0, 6.0)])
    fault = Fault(kind, target=target, other=other, seconds=lasts)
    if rng.random() < 0.65:
        return Fault(
            kind,
            step=rng.choice(STEPS),
            nth=rng.choice([1, 1, 2, 3, 6]),
            lag_s=rng.choice([0.0, 0.0, 0.0005, 0.003, 0.03]),
            end=rng.randrange(2),
            target=target,
            other=other,
            seconds=lasts,
        )
    return Fault(kind, at_s=rng.uniform(0.0, 1.6), target=fault.target, other=other, seconds=lasts)
