"""The generated text: deterministic, and clean of everything that is held out."""

import re
from collections.abc import Iterator
from random import Random

import pytest
import torch
from tokenizers import Tokenizer

from workers.demo import phrasings
from workers.demo.corpus import SHARES, batch, draw, draw_long, encode
from workers.demo.evaluate import KINDS, held_out
from workers.demo.outside import OUTSIDE
from workers.demo.phrasings import Phrasing
from workers.demo.questions import Question, is_held_pair
from workers.demo.tokenizer import VOCABULARY, train_tokenizer
from workers.demo.unknown import unknown


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(seed=3, chats=3000)


@pytest.fixture(scope="module")
def drawn() -> list[Question]:
    rng = Random(7)
    return [draw(rng) for _ in range(12_000)] + [draw_long(rng, 300) for _ in range(200)]


def bare(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())


def families() -> Iterator[tuple[str, Phrasing]]:
    for name, value in vars(phrasings).items():
        if isinstance(value, Phrasing):
            yield name, value


def test_same_seed_same_chats(drawn: list[Question]) -> None:
    rng = Random(7)
    assert [draw(rng) for _ in range(500)] == drawn[:500]


def test_batch_depends_on_seed_and_step_alone(tokenizer: Tokenizer) -> None:
    first, again = batch(tokenizer, 1, 5, 3, 128), batch(tokenizer, 1, 5, 3, 128)
    assert torch.equal(first.tokens, again.tokens) and torch.equal(first.weights, again.weights)
    assert not torch.equal(first.tokens, batch(tokenizer, 1, 6, 3, 128).tokens)
    assert not torch.equal(first.tokens, batch(tokenizer, 2, 5, 3, 128).tokens)


def test_packed_chats_do_not_see_each_other(tokenizer: Tokenizer) -> None:
    data = batch(tokenizer, 0, 0, 2, 200)
    mask = data.mask()[:, 0]
    starts = (data.positions[0] == 0).nonzero()[:, 0]
    assert starts.numel() > 2, "a row holds several chats"
    second = int(starts[1])
    assert not mask[0, second, :second].any() and mask[0, second, second]
    assert not mask[0, second - 1, second:].any()


def test_targets_follow_tokens_and_answers_weigh_most(tokenizer: Tokenizer) -> None:
    question = Question("facts", ("What colour is grass?",), "Grass is green.")
    ids, weights = encode(tokenizer, question)
    spoken = [token for token, weight in zip(ids, weights, strict=True) if weight == 1.0]
    assert tokenizer.decode(spoken) == "Grass is green."
    data = batch(tokenizer, 0, 1, 1, 100)
    inside = data.chats[0, :-1] == data.chats[0, 1:]
    assert torch.equal(data.targets[0, :-1][inside], data.tokens[0, 1:][inside])


def test_every_kind_is_drawn(drawn: list[Question]) -> None:
    assert {question.kind for question in drawn} == set(SHARES)
    assert set(KINDS) | {"unknown"} == set(SHARES)


@pytest.mark.parametrize(("name", "family"), list(families()))
def test_held_wordings_differ_from_trained_ones(name: str, family: Phrasing) -> None:
    assert not {bare(text) for text in family.held} & {bare(text) for text in family.train}, name


def test_held_out_questions_are_not_trained_on(drawn: list[Question]) -> None:
    trained = {turn for question in drawn for turn in question.turns[::2]}
    lowered = {turn.lower() for turn in trained}
    for question in held_out(60):
        last = question.turns[-1]
        assert question.turns[0] not in trained or len(question.turns) > 1
        if len(last) > 12:
            assert last.lower() not in lowered, last


def test_held_sum_pairs_are_never_trained_on(drawn: list[Question]) -> None:
    shown = {
        tuple(map(int, pair))
        for question in drawn
        for said in (*question.turns[1::2], question.answer)
        for pair in re.findall(r"(\d+) \+ (\d+) =", said)
    }
    assert len(shown) > 1500, "the sample holds many sums"
    assert not [pair for pair in shown if is_held_pair(*pair)]
    assert is_held_pair(3, 40) == is_held_pair(40, 3)
    held = sum(is_held_pair(a, b) for a in range(101) for b in range(101 - a))
    assert 0.08 < held / 5151 < 0.12


def test_outside_questions_are_200_and_not_trained_on(drawn: list[Question]) -> None:
    assert len(OUTSIDE) == len({bare(text) for text in OUTSIDE}) == 200
    rng = Random(11)
    trained = {bare(turn) for question in drawn for turn in question.turns[::2]}
    trained |= {bare(unknown(rng).turns[0]) for _ in range(20_000)}
    assert not trained & {bare(text) for text in OUTSIDE}


def test_tokenizer_is_deterministic_and_lossless(tokenizer: Tokenizer) -> None:
    assert tokenizer.to_str() == train_tokenizer(seed=3, chats=3000).to_str()
    assert tokenizer.get_vocab_size() == VOCABULARY
    text = "Spell naïve, 27 + 45 = 72!\n  Zürich ☃"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    digits = tokenizer.encode("1984").tokens
    assert digits == ["1", "9", "8", "4"]
