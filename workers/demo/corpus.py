"""Training batches without end: chats drawn by kind, packed into rows, with loss weights.

A batch is a function of (seed, step) alone, so a resumed run sees what the first would have.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from . import questions
from .dialogue import dialogue, find, recite
from .questions import Question
from .unknown import unknown

ASSISTANT, END, PAD, SYSTEM, USER = "<|assistant|>", "<|end|>", "<|pad|>", "<|system|>", "<|user|>"
SPECIALS = (PAD, END, SYSTEM, USER, ASSISTANT)

PROMPT_WEIGHT = 0.05  # loss on the user's tokens, a little, so that wordings are learnt as well

# How often each kind is drawn (relative to each other): from step 0, and once the facts and
# then the sums are learnt; what takes longest is to copy without a slip.
SHARES: dict[str, float] = {
    "sums": 0.20, "capitals": 0.08, "facts": 0.11, "spelling": 0.11, "counting": 0.11,
    "days": 0.04, "months": 0.06, "repeating": 0.08, "finding": 0.08, "dialogues": 0.10,
    "unknown": 0.20,
}  # fmt: skip
LATER_SHARES: dict[str, float] = {
    "sums": 0.17, "capitals": 0.06, "facts": 0.08, "spelling": 0.14, "counting": 0.08,
    "days": 0.03, "months": 0.05, "repeating": 0.16, "finding": 0.16, "dialogues": 0.11,
    "unknown": 0.18,
}  # fmt: skip
LAST_SHARES: dict[str, float] = {
    "sums": 0.15, "capitals": 0.04, "facts": 0.06, "spelling": 0.10, "counting": 0.06,
    "days": 0.02, "months": 0.04, "repeating": 0.20, "finding": 0.30, "dialogues": 0.10,
    "unknown": 0.15,
}  # fmt: skip

_SYSTEMS = (
    "You are a helpful assistant.", "You are Kvasir, a small assistant.", "Answer briefly.",
    "Be helpful and polite.", "You are a friendly assistant. Keep your answers short.",
)  # fmt: skip


def draw(rng: Random, shares: dict[str, float] = SHARES) -> Question:
    """One training chat of a kind drawn by these shares."""
    kind = rng.choices(list(shares), list(shares.values()))[0]
    if kind == "unknown":
        question = unknown(rng)
    elif kind == "finding":
        question = find(rng, held=False)
    elif kind == "dialogues":
        question = dialogue(rng, held=False)
    else:
        question = questions.single(rng, kind, held=False)
    if rng.random() < 0.1:
        question = _after_another(rng, question)
    if rng.random() < 0.08:
        question = replace(question, system=rng.choice(_SYSTEMS))
    return question


def _after_another(rng: Random, question: Question) -> Question:
    """The same chat, opened by an unrelated question and its answer."""
    if rng.random() < 0.3:
        first = unknown(rng)
    else:
        first = questions.single(rng, rng.choice(list(questions.SINGLE)), held=False)
    return replace(question, turns=(*first.turns, first.answer, *question.turns))


def draw_long(rng: Random, budget: int) -> Question:
    """A chat of up to about `budget` tokens: something to find, now and then to recite."""
    if rng.random() < 0.12:
        return recite(rng, False, rng.randint(2, 8))
    return find(rng, False, rng.randint(budget // 80, budget // 9))


def pieces(question: Question) -> Iterator[tuple[str, bool]]:
    """The chat as text, in order, each piece with whether the assistant must say it."""
    if question.system:
        yield f"{SYSTEM}{question.system}{END}", False
    for index, turn in enumerate((*question.turns, question.answer)):
        if index % 2 == 0:
            yield f"{USER}{turn}{END}{ASSISTANT}", False
        else:
            yield f"{turn}{END}", True


@dataclass(frozen=True)
class Batch:
    """Packed rows; a token attends to earlier tokens of its own chat only."""

    tokens: Tensor  # [B, T]
    positions: Tensor  # [B, T], from 0 in each chat
    chats: Tensor  # [B, T], number of the chat in its row
    targets: Tensor  # [B, T]
    weights: Tensor  # [B, T]

    def mask(self) -> Tensor:
        """[B, 1, T, T], true where the query (dim 2) may look."""
        same = self.chats[:, None, :, None] == self.chats[:, None, None, :]
        return same.tril()


def encode(tokenizer: Tokenizer, question: Question) -> tuple[list[int], list[float]]:
    """Token ids of a chat, and for each the weight of predicting it."""
    ids: list[int] = []
    weights: list[float] = []
    for text, spoken in pieces(question):
        part = tokenizer.encode(text, add_special_tokens=False).ids
        ids += part
        weights += [1.0 if spoken else PROMPT_WEIGHT] * len(part)
    return ids, weights


def batch(
    tokenizer: Tokenizer,
    seed: int,
    step: int,
    rows: int,
    length: int,
    shares: dict[str, float] = SHARES,
) -> Batch:
    """The batch of this step: `rows` packed rows of `length` tokens."""
    rng = Random(f"{seed}/{step}")
    shape = (rows, length)
    tokens, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    chats, weights = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    targets = np.zeros(shape, np.int64)
    for row in range(rows):
        start, number = 0, 0
        while start < length - 24:
            long = length > 512 and number == 0
            question = draw_long(rng, length) if long else draw(rng, shares)
            ids, loss = encode(tokenizer, question)
            if len(ids) - 1 > length - start:
                if long or len(ids) > 60:
                    continue
                break
            number, stop = number + 1, start + len(ids) - 1
            tokens[row, start:stop], targets[row, start:stop] = ids[:-1], ids[1:]
            weights[row, start:stop] = loss[1:]
            positions[row, start:stop] = np.arange(len(ids) - 1)
            chats[row, start:stop] = number
            start = stop
    arrays = (tokens, positions, chats, targets, weights)
    return Batch(*(torch.from_numpy(array) for array in arrays))
