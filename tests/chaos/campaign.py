"""Many runs, on several processes, and what they add up to."""

from __future__ import annotations

import logging
import multiprocessing
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.chaos.checks import Outcome
from tests.chaos.plan import STEPS, draw
from tests.chaos.play import play
from tests.chaos.report import Tally

FAILURES_TOLD = 5


@dataclass
class Campaign:
    tally: Tally = field(default_factory=Tally)
    failed: list[Outcome] = field(default_factory=list)
    struck: Counter[str] = field(default_factory=Counter)  # steps, by faults at them
    seen: Counter[str] = field(default_factory=Counter)  # steps, by messages
    preemptions: int = 0

    def add(self, outcome: Outcome) -> None:
        bad = Counter(
            {
                "wrong tokens": outcome.wrong,
                "duplicated or missing tokens": outcome.duplicated,
                "leaked pages": outcome.leaked,
                "stuck tickets": outcome.stuck,
                "errors": outcome.errors,
            }
        )
        bad["other problems"] = len(outcome.problems) if not any(bad.values()) else 0
        self.tally.add(
            Tally(
                runs=1,
                requests=outcome.requests,
                answered=outcome.answered,
                left=outcome.left,
                faults=outcome.faults,
                bad=bad,
                recovered_s=outcome.recovered_s,
            )
        )
        self.struck.update(outcome.steps)
        self.seen.update(outcome.seen)
        self.preemptions += outcome.preemptions
        if outcome.problems:
            self.failed.append(outcome)
        self.tally.more = {
            "preemptions": self.preemptions,
            "protocol steps struck": f"{len(self.struck)} of {len(STEPS)}",
        }


def run(seeds: range, jobs: int = 1) -> Iterator[Campaign]:
    """The campaign so far, after each run."""
    campaign = Campaign()
    if jobs == 1:
        yield from (_added(campaign, one(seed)) for seed in seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for outcome in pool.imap_unordered(one, seeds, chunksize=16):
            yield _added(campaign, outcome)


def one(seed: int) -> Outcome:
    logging.disable(logging.CRITICAL)  # its story says more
    try:
        return play(draw(seed))
    finally:
        logging.disable(logging.NOTSET)


def tell(outcome: Outcome) -> str:
    lines = [f"seed {outcome.seed}:", *(f"  ! {problem}" for problem in outcome.problems)]
    lines += [f"  {line}" for line in outcome.story]
    lines.append(f"  play it again: make chaos SEED={outcome.seed}")
    return "\n".join(lines)


def _added(campaign: Campaign, outcome: Outcome) -> Campaign:
    campaign.add(outcome)
    return campaign
