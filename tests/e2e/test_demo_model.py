"""The shipped model's answers through the running cluster: prefill, handoff, decode, gateway."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from openai import AsyncOpenAI

from tests.e2e.serving import kvasir_serve
from workers.demo.evaluate import held_out, outside, report, tally
from workers.demo.questions import Question

AT_ONCE = 8
PER_KIND = 40


@pytest.mark.timeout(300)
async def test_held_out_questions_and_questions_outside(tmp_path: Path) -> None:
    """95% of the held-out questions are right, and 90% of those outside are not known."""
    questions = held_out(PER_KIND) + outside()
    gate = asyncio.Semaphore(AT_ONCE)
    with kvasir_serve(tmp_path) as serving:
        async with AsyncOpenAI(base_url=f"{serving.url}/v1", api_key="none") as client:

            async def ask(question: Question) -> str:
                async with gate:
                    done = await client.chat.completions.create(
                        model=serving.model,
                        messages=question.messages(),  # type: ignore[arg-type]
                        temperature=0,
                        max_tokens=160,
                    )
                return done.choices[0].message.content or ""

            replies = await asyncio.gather(*map(ask, questions))
        await serving.idle()
    scores = tally(questions, replies)
    print(report(scores))
    inside = [score for kind, score in scores.items() if kind != "outside"]
    right, asked = sum(s.right for s in inside), sum(s.asked for s in inside)
    assert right / asked >= 0.95, report(scores)
    assert scores["outside"].asked == 200
    assert scores["outside"].share >= 0.9, report(scores)
