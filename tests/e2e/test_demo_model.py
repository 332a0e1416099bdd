"""The shipped model's answers through the running cluster: prefill, handoff, decode, gateway."""

from __future__ import annotations

import asyncio

import pytest
from openai import AsyncOpenAI

from tests.e2e.serving import Serving
from workers.demo.evaluate import held_out, outside, report, tally
from workers.demo.questions import Question

AT_ONCE = 8


@pytest.mark.timeout(300)  # it starts the cluster
@pytest.mark.parametrize(
    ("per_kind", "every"), [(6, 5), pytest.param(40, 1, marks=pytest.mark.slow)]
)
async def test_held_out_questions_and_questions_outside(
    per_kind: int, every: int, cluster: Serving
) -> None:
    """95% of the held-out questions are right, and 90% of those outside are not known."""
    unknown = outside()[::every]
    questions = held_out(per_kind) + unknown
    gate = asyncio.Semaphore(AT_ONCE)
    async with AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key="none") as client:

        async def ask(question: Question) -> str:
            async with gate:
                done = await client.chat.completions.create(
                    model=cluster.model,
                    messages=question.messages(),  # type: ignore[arg-type]
                    temperature=0,
                    max_tokens=160,
                )
            return done.choices[0].message.content or ""

        replies = await asyncio.gather(*map(ask, questions))
    await cluster.idle()
    scores = tally(questions, replies)
    print(report(scores))
    inside = [score for kind, score in scores.items() if kind != "outside"]
    right, asked = sum(s.right for s in inside), sum(s.asked for s in inside)
    assert right / asked >= 0.95, report(scores)
    assert scores["outside"].asked == len(unknown) == 200 // every
    assert scores["outside"].share >= 0.9, report(scores)
