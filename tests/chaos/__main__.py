"""python -m tests.chaos: the fault campaign in virtual time."""

from __future__ import annotations

import argparse
import logging
import os
import sys

from tests.chaos.campaign import FAILURES_TOLD, Campaign, run, tell
from tests.chaos.plan import draw
from tests.chaos.play import play
from tests.chaos.report import table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first run")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, help="play this one and tell its story")
    options = parser.parse_args()
    if options.seed is not None:
        return _replay(options.seed)
    campaign = Campaign()
    told = 0
    for campaign in run(range(options.first, options.first + options.runs), options.jobs):
        for outcome in campaign.failed[told:FAILURES_TOLD]:
            print(tell(outcome), end="\n\n", flush=True)
        told = len(campaign.failed)
        done = campaign.tally.runs
        if done % 500 == 0:
            print(f"{done} runs, {len(campaign.failed)} failed", file=sys.stderr, flush=True)
    if campaign.failed:
        print("seeds that failed:", *sorted(failed.seed for failed in campaign.failed))
    print(table(campaign.tally, "virtual"))
    return 0 if campaign.tally.clean else 1


def _replay(seed: int) -> int:
    logging.basicConfig(level=logging.DEBUG, format="  | %(name)s: %(message)s")
    plan = draw(seed)
    print(*(str(fault) for fault in plan.faults), sep="\n")
    outcome = play(plan)
    print(tell(outcome))
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # sets of strings in the same order each time
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.chaos", *sys.argv[1:]],
            os.environ | {"PYTHONHASHSEED": "0"},
        )
    sys.exit(main())
