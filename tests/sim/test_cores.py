"""Workers that share cores: whose steps make whose longer, and by how much."""

from __future__ import annotations

import asyncio

import pytest

from cluster.simulator.fleet.cores import Contention, SharedCores, kind_of
from workers.core.clock import run_virtual
from workers.core.step_work import StepWork

SINGLE, SEVERAL, PROMPT = StepWork.decode(1, 64), StepWork.decode(4, 256), StepWork.chunk(48, 0)
MIXED = PROMPT._replace(decode_seqs=4, decode_kv=256)
#                 beside    single several prompt
UNEVEN = Contention(((1.0, 1.1, 1.2), (1.0, 1.5, 1.6), (1.0, 1.8, 2.0)))


def took(*steps: tuple[StepWork, float]) -> list[float]:
    """When each is over, of steps that begin together and would take so long alone."""

    async def all_of_them() -> list[float]:
        loop = asyncio.get_running_loop()
        cores, ends = SharedCores(UNEVEN), [0.0] * len(steps)
        over = asyncio.Event()

        def ended(place: int) -> None:
            ends[place] = loop.time() - began
            if all(ends):
                over.set()

        began = loop.time()
        for place, (work, seconds) in enumerate(steps):
            cores.begin(work, seconds, lambda place=place: ended(place))  # type: ignore[misc]
        await over.wait()
        return ends

    return run_virtual(all_of_them())


def test_a_step_is_of_the_kind_that_makes_it_long() -> None:
    kinds = [kind_of(work) for work in (SINGLE, SEVERAL, PROMPT, MIXED)]
    assert kinds == ["single", "several", "prompt", "prompt"]


def test_a_step_is_slowed_by_what_runs_beside_it_and_as_long_as_that_runs() -> None:
    assert took((PROMPT, 1.0)) == pytest.approx([1.0])
    assert took((PROMPT, 1.0), (PROMPT, 1.0)) == pytest.approx([2.0, 2.0])
    # a decode of one takes memory, and is hardly slowed; the prompt does not notice
    assert took((SINGLE, 1.0), (PROMPT, 2.0)) == pytest.approx([1.2, 2.0])
    # 1.6 s beside each other, in which the prompt gets 1.6 / 1.8 of a second on
    assert took((SEVERAL, 1.0), (PROMPT, 1.0)) == pytest.approx([1.6, 1.6 + 1.0 - 1.6 / 1.8])


def test_each_further_worker_adds_as_much_again() -> None:
    assert took((PROMPT, 1.0), (PROMPT, 1.0), (PROMPT, 1.0)) == pytest.approx([3.0] * 3)
    assert UNEVEN.factor("prompt", {"single": 3, "several": 1}) == pytest.approx(1.8)
    assert Contention.even(1.0).factor("several", {"prompt": 5}) == 1.0
