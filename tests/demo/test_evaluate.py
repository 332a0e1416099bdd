"""The held-out questions and their grader, which must be able to fail a model."""

import pytest

from workers.demo.evaluate import KINDS, held_out, is_right, outside, report, score
from workers.demo.questions import Question

FACT = Question("capitals", ("What is the capital of France?",), "The capital of France is Paris.")


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("The capital of France is Paris.", True),
        (" the capital of france is  Paris", True),
        ("The capital of France is Rome.", False),
        ("The capital of France is Paris. The capital of France is Paris.", False),
        ("I do not know.", False),
        ("", False),
    ],
)
def test_grader_wants_the_whole_answer(reply: str, right: bool) -> None:
    assert is_right(FACT, reply) is right


@pytest.mark.parametrize(
    ("reply", "right"),
    [("I do not know.", True), ("Sorry, I don't know that", True), ("Paris.", False), ("", False)],
)
def test_grader_of_outside_questions_wants_ignorance(reply: str, right: bool) -> None:
    assert is_right(outside()[0], reply) is right


def test_held_out_questions_are_fixed_and_different() -> None:
    questions = held_out(25)
    assert questions == held_out(25)
    assert {question.kind for question in questions} == set(KINDS)
    for kind in KINDS:
        turns = [question.turns for question in questions if question.kind == kind]
        assert len(turns) == len(set(turns)) == 25


def test_score_counts_per_kind() -> None:
    questions = held_out(5) + outside()[:5]
    answers = {str(question.messages()): question.answer for question in questions}
    perfect = score(lambda messages: answers[str(messages)], questions)
    assert all(one.share == 1.0 for one in perfect.values())
    ignorant = score(lambda messages: "I do not know.", questions)
    assert ignorant["outside"].share == 1.0
    assert all(one.right == 0 for kind, one in ignorant.items() if kind != "outside")
    assert "| capitals | 0 | 5 | 0.0% |" in report(ignorant)


def test_messages_alternate_and_end_with_the_user() -> None:
    for question in held_out(20):
        roles = [message["role"] for message in question.messages()]
        assert roles[::2] == ["user"] * len(roles[::2])
        assert roles[1::2] == ["assistant"] * len(roles[1::2])
        assert len(roles) % 2 == 1
