"""Questions of one turn, each with its one right answer; kind by kind, drawn from a Random."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from zlib import crc32

from . import facts, phrasings, words
from .phrasings import Phrasing


@dataclass(frozen=True)
class Question:
    """A chat that ends with a user's message, and the answer it should get.

    `turns` alternate user, assistant, ..., user; `system` is the text before them, if any.
    """

    kind: str
    turns: tuple[str, ...]
    answer: str
    system: str = ""

    def messages(self) -> list[dict[str, str]]:
        """The chat as an OpenAI-style list, without the answer."""
        chat = [{"role": "system", "content": self.system}] if self.system else []
        roles = ("user", "assistant")
        return chat + [
            {"role": roles[index % 2], "content": turn} for index, turn in enumerate(self.turns)
        ]


_PREFIXES = (
    "Hi! ", "Hello. ", "Hello! ", "Please answer: ", "Quick question: ", "Tell me, ", "Question: ",
    "Hey, ", "Can you help me? ", "I have a question. ", "Please tell me. ",
)  # fmt: skip
_SUFFIXES = (" Please.", " Thanks!", " Thank you.", " Answer briefly.", " I forgot.")


def is_held_pair(left: int, right: int) -> bool:
    """Whether this sum is kept from training: one pair of ten, in either order.

    Sums with 0 never are, as no others would show the operand 100.
    """
    low, high = sorted((left, right))
    return low > 0 and crc32(f"{low}+{high}".encode()) % 10 == 0


def decorate(rng: Random, text: str, lower: bool = True) -> str:
    """Vary a training question the way people do: greetings, case, punctuation."""
    if lower and rng.random() < 0.12:
        text = text.lower()
    if rng.random() < 0.12:
        text = text.rstrip("?.")
    if rng.random() < 0.15:
        text = rng.choice(_PREFIXES) + text
    if rng.random() < 0.07:
        text += rng.choice(_SUFFIXES)
    return text


def _ask(
    rng: Random, kind: str, phrasing: Phrasing, held: bool, slots: tuple[object, ...], answer: str
) -> Question:
    text = rng.choice(phrasing.held if held else phrasing.train).format(*slots)
    text = text[0].upper() + text[1:]
    if not held:
        text = decorate(rng, text, lower=kind != "repeating")
    return Question(kind, (text,), answer)


def capital(rng: Random, held: bool) -> Question:
    country = rng.choice(list(facts.CAPITALS))
    answer = f"The capital of {country} is {facts.CAPITALS[country]}."
    return _ask(rng, "capitals", phrasings.CAPITAL, held, (country,), answer)


def colour(rng: Random, held: bool) -> Question:
    thing = rng.choice(list(facts.COLOURS))
    answer = f"{thing[0].upper() + thing[1:]} is {facts.COLOURS[thing]}."
    return _ask(rng, "facts", phrasings.COLOUR, held, (thing,), answer)


def sound(rng: Random, held: bool) -> Question:
    animal = rng.choice(list(facts.SOUNDS))
    answer = f"The {animal} says {facts.SOUNDS[animal]}."
    return _ask(rng, "facts", phrasings.SOUND, held, (animal,), answer)


def young(rng: Random, held: bool) -> Question:
    animal = rng.choice(list(facts.YOUNG))
    answer = f"A young {animal} is called a {facts.YOUNG[animal]}."
    return _ask(rng, "facts", phrasings.YOUNG, held, (animal,), answer)


def legs(rng: Random, held: bool) -> Question:
    animal = rng.choice(list(facts.LEGS))
    answer = f"The {animal} has {facts.LEGS[animal]} legs."
    return _ask(rng, "facts", phrasings.LEGS, held, (animal,), answer)


def opposite(rng: Random, held: bool) -> Question:
    word = rng.choice(list(facts.OPPOSITES))
    answer = f"The opposite of {word} is {facts.OPPOSITES[word]}."
    return _ask(rng, "facts", phrasings.OPPOSITE, held, (word,), answer)


def total(rng: Random, held: bool) -> Question:
    """A sum within 100: of a held-out pair if `held`, of any other pair if not."""
    while True:
        left = rng.randint(0, 100)
        right = rng.randint(0, 100 - left)
        if rng.random() < 0.5:
            left, right = right, left
        if is_held_pair(left, right) == held:
            break
    answer = f"{left} + {right} = {left + right}."
    return _ask(rng, "sums", phrasings.SUM, held, (left, right), answer)


def spell(rng: Random, held: bool) -> Question:
    word = rng.choice(words.COMMON) if held else words.any_word(rng, pseudo=0.4)
    answer = f"The word {word} is spelled {' '.join(word)}."
    return _ask(rng, "spelling", phrasings.SPELL, held, (word,), answer)


def letters(rng: Random, held: bool) -> Question:
    word = rng.choice(words.COMMON) if held else words.any_word(rng, pseudo=0.4)
    answer = f"The word {word} is spelled {' '.join(word)}. It has {len(word)} letters."
    return _ask(rng, "counting", phrasings.LETTERS, held, (word,), answer)


def count(rng: Random, held: bool) -> Question:
    low = rng.randint(0, 40) if rng.random() < 0.6 else rng.randint(0, 97)
    high = min(100, low + rng.randint(2, 10))
    numbers = [str(number) for number in range(low, high + 1)]
    up = rng.random() < 0.55
    phrasing = phrasings.COUNT_UP if up else phrasings.COUNT_DOWN
    slots = (low, high) if up else (high, low)
    answer = ", ".join(numbers if up else numbers[::-1]) + "."
    return _ask(rng, "counting", phrasing, held, slots, answer)


def neighbour(rng: Random, held: bool) -> Question:
    number = rng.randint(1, 99)
    if rng.random() < 0.5:
        answer = f"The number after {number} is {number + 1}."
        return _ask(rng, "counting", phrasings.AFTER, held, (number,), answer)
    answer = f"The number before {number} is {number - 1}."
    return _ask(rng, "counting", phrasings.BEFORE, held, (number,), answer)


def day(rng: Random, held: bool) -> Question:
    index = rng.randrange(7)
    name = facts.DAYS[index]
    if rng.random() < 0.5:
        answer = f"The day after {name} is {facts.DAYS[(index + 1) % 7]}."
        return _ask(rng, "days", phrasings.NEXT_DAY, held, (name,), answer)
    answer = f"The day before {name} is {facts.DAYS[index - 1]}."
    return _ask(rng, "days", phrasings.LAST_DAY, held, (name,), answer)


def month(rng: Random, held: bool) -> Question:
    index = rng.randrange(12)
    name, pick = facts.MONTHS[index], rng.randrange(4)
    if pick == 0:
        answer = f"The month after {name} is {facts.MONTHS[(index + 1) % 12]}."
        return _ask(rng, "months", phrasings.NEXT_MONTH, held, (name,), answer)
    if pick == 1:
        answer = f"The month before {name} is {facts.MONTHS[index - 1]}."
        return _ask(rng, "months", phrasings.LAST_MONTH, held, (name,), answer)
    if pick == 2:
        answer = f"{name} has {facts.MONTH_DAYS[index]} days."
        return _ask(rng, "months", phrasings.MONTH_LENGTH, held, (name,), answer)
    ordinal = facts.ORDINALS[index]
    answer = f"The {ordinal} month of the year is {name}."
    return _ask(rng, "months", phrasings.NTH_MONTH, held, (ordinal,), answer)


def repeat(rng: Random, held: bool) -> Question:
    draw = rng.random()
    if draw < 0.5:
        text = words.sentence(rng)
    elif draw < 0.6:
        text = f"{words.sentence(rng)} {words.sentence(rng)}"
    else:
        text = " ".join(words.any_word(rng, 0.2) for _ in range(rng.randint(1, 10)))
    return _ask(rng, "repeating", phrasings.REPEAT, held, (text,), text)


Generator = Callable[[Random, bool], Question]

# One-turn generators of each kind with their share within the kind.
SINGLE: dict[str, tuple[tuple[Generator, float], ...]] = {
    "capitals": ((capital, 1.0),),
    "facts": ((opposite, 0.3), (colour, 0.25), (sound, 0.15), (young, 0.15), (legs, 0.15)),
    "sums": ((total, 1.0),),
    "spelling": ((spell, 1.0),),
    "counting": ((count, 0.5), (letters, 0.25), (neighbour, 0.25)),
    "days": ((day, 1.0),),
    "months": ((month, 1.0),),
    "repeating": ((repeat, 1.0),),
}


def single(rng: Random, kind: str, held: bool) -> Question:
    """A one-turn question of this kind, in a held-out or a training wording."""
    generators, shares = zip(*SINGLE[kind], strict=True)
    generator: Generator = rng.choices(generators, shares)[0]
    return generator(rng, held)
