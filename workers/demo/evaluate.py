"""Held-out questions, their grader, and a command that reports a model's score per kind.

`score` takes any function from a chat to a reply, so a running cluster can be asked as well.
"""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import torch

from .dialogue import dialogue, find
from .outside import OUTSIDE
from .questions import SINGLE, Question, single
from .unknown import ANSWER

KINDS = (*SINGLE, "finding", "dialogues")
Answer = Callable[[list[dict[str, str]]], str]


def held_out(per_kind: int = 100, seed: int = 1234) -> list[Question]:
    """Different held-out questions of each kind, `per_kind` of each, in a fixed order."""
    chosen: list[Question] = []
    for kind in KINDS:
        rng = Random(f"held out/{seed}/{kind}")
        seen: dict[tuple[str, ...], Question] = {}
        for _ in range(per_kind * 50):
            if len(seen) == per_kind:
                break
            question = _draw(rng, kind, len(seen))
            seen.setdefault(question.turns, question)
        chosen += seen.values()
    return chosen


def _draw(rng: Random, kind: str, index: int) -> Question:
    if kind == "finding":  # every other prompt is long, up to about 1,000 tokens
        return find(rng, True, rng.randint(20, 88) if index % 2 else rng.randint(0, 19))
    if kind == "dialogues":
        return dialogue(rng, True)
    return single(rng, kind, held=True)


def outside() -> list[Question]:
    """The list of questions that the model must say it does not know."""
    return [Question("outside", (text,), ANSWER) for text in OUTSIDE]


def normalised(reply: str) -> str:
    """The reply without case, outer blanks or a closing full stop."""
    return " ".join(reply.lower().split()).rstrip(".! ")


def is_right(question: Question, reply: str) -> bool:
    """Whether this reply counts: the whole answer, or words that say 'I do not know'."""
    said = normalised(reply)
    if question.kind == "outside":
        return "do not know" in said or "don't know" in said
    return said == normalised(question.answer)


@dataclass
class Score:
    right: int = 0
    asked: int = 0

    @property
    def share(self) -> float:
        return self.right / self.asked if self.asked else 0.0


def tally(questions: Iterable[Question], replies: Iterable[str]) -> dict[str, Score]:
    """Right answers per kind."""
    scores: dict[str, Score] = {}
    for question, reply in zip(questions, replies, strict=True):
        score = scores.setdefault(question.kind, Score())
        score.asked += 1
        score.right += is_right(question, reply)
    return scores


def score(answer: Answer, questions: list[Question]) -> dict[str, Score]:
    """Ask every question and grade the replies, kind by kind."""
    return tally(questions, (answer(question.messages()) for question in questions))


def report(scores: dict[str, Score]) -> str:
    """A Markdown table of the scores."""
    lines = ["| kind | right | asked | share |", "|---|---:|---:|---:|"]
    for kind, one in scores.items():
        lines.append(f"| {kind} | {one.right} | {one.asked} | {one.share:.1%} |")
    return "\n".join(lines)


def transformers_replies(
    model: Path, dtype: torch.dtype, questions: list[Question], rows: int = 32, most: int = 160
) -> list[str]:
    """Greedy replies of the model in this folder, through transformers, `rows` at a time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    network = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
    template = partial(tokenizer.apply_chat_template, add_generation_prompt=True, tokenize=False)
    prompts = [str(template(question.messages())) for question in questions]
    replies = [""] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for first in range(0, len(prompts), rows):
        part = by_length[first : first + rows]
        coded = tokenizer(
            [prompts[index] for index in part],
            add_special_tokens=False,
            padding=True,
            return_tensors="pt",
        )
        tokens, mask = coded["input_ids"], coded["attention_mask"]  # [B, T]
        with torch.inference_mode():
            output = network.generate(
                tokens, attention_mask=mask, max_new_tokens=most, do_sample=False
            )
        texts = tokenizer.batch_decode(output[:, tokens.shape[1] :], skip_special_tokens=True)
        for index, text in zip(part, texts, strict=True):
            replies[index] = text
    return replies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path(__file__).parent / "model")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--per-kind", type=int, default=100)
    parser.add_argument("--wrong", action="store_true", help="show what was answered wrongly")
    options = parser.parse_args()
    questions = held_out(options.per_kind) + outside()
    replies = transformers_replies(options.model, getattr(torch, options.dtype), questions)
    if options.wrong:
        for question, reply in zip(questions, replies, strict=True):
            if not is_right(question, reply):
                asked = question.turns[-1][-70:]
                print(f"{question.kind}: {asked!r} -> {reply!r}, not {question.answer!r}")
    print(report(tally(questions, replies)))


if __name__ == "__main__":
    main()
