"""Questions about something said earlier: finding it in a long prompt, and short dialogues."""

from collections.abc import Callable
from random import Random

from . import facts, words
from .phrasings import Phrasing
from .questions import Question, decorate, is_held_pair, single

_CODE_TOLD = Phrasing(
    ("My code word is {0}.", "The code word is {0}.", "Remember this: the code word is {0}.",
     "Please remember the code word {0}.", "The secret code word is {0}.",
     "Our code word is {0}.", "Today the code word is {0}.", "Remember that {0} is the code word.",
     "The code word that we use is {0}.", "The code word of the house is {0}.",
     "Use {0} as the code word.", "The code word for the gate is {0}.",
     "The code word this week is {0}.", "We chose the code word {0}."),
    ("Remember that the code word is {0}.", "My secret code word is {0}.",
     "The code word for today is {0}."),
)  # fmt: skip
_CODE_ASKED = Phrasing(
    ("What is the code word?", "What was the code word?", "What is my code word?",
     "Tell me the code word.", "Which code word did I give you?", "Do you remember the code word?",
     "What's the secret code word?"),
    ("What was my code word?", "Can you tell me the code word?", "Which was the code word?"),
)  # fmt: skip
_PLACE_TOLD = Phrasing(
    ("The {0} is in the {1}.", "I put the {0} in the {1}.", "You can find the {0} in the {1}.",
     "They keep the {0} in the {1}.", "She left the {0} in the {1}.", "My {0} is in the {1}.",
     "He keeps the {0} in the {1}.", "We put the {0} in the {1}."),
    ("We left the {0} in the {1}.", "I keep the {0} in the {1}.", "I hid the {0} in the {1}."),
)  # fmt: skip
_PLACE_ASKED = Phrasing(
    ("Where is the {0}?", "Where can I find the {0}?", "In which room is the {0}?",
     "Tell me where the {0} is.", "Where did I put the {0}?", "Do you know where the {0} is?"),
    ("Can you tell me where the {0} is?", "In what room is the {0}?", "Where do I find the {0}?"),
)  # fmt: skip
_HOME_TOLD = Phrasing(
    ("{0} lives in {1}.", "{0} has a house in {1}.", "{0} moved to {1}.",
     "{0} has lived in {1} for years.", "{0} still lives in {1}.", "{0} has a flat in {1}.",
     "{0} owns a home near the park in {1}.", "{0} and a friend live in {1}.",
     "{0} lives and works in {1}.", "{0} has a new house in {1}.", "{0} stays in {1}.",
     "{0} is at home in {1}.", "{0} often says: I live in {1}."),
    ("{0} now lives in {1}.", "{0} has a home in {1}.", "These days {0} lives in {1}."),
)  # fmt: skip
_HOME_ASKED = Phrasing(
    ("Where does {0} live?", "In which city does {0} live?", "Which city does {0} live in?",
     "Tell me where {0} lives.", "Do you know where {0} lives?", "What city does {0} live in?",
     "In what town does {0} live?", "Can you say where {0} lives?", "Where is the home of {0}?"),
    ("Can you tell me where {0} lives?", "In what city does {0} live?",
     "Do you remember where {0} lives?"),
)  # fmt: skip


def _pick(rng: Random, phrasing: Phrasing, held: bool, *slots: object) -> str:
    return rng.choice(phrasing.held if held else phrasing.train).format(*slots)


def _needle(rng: Random, held: bool) -> tuple[list[str], str, str]:
    """Sentences to hide (the last one is asked about), the question, and its answer."""
    draw = rng.random()
    if draw < 0.4:
        code = str(rng.randint(1000, 9999)) if rng.random() < 0.3 else words.any_word(rng, 0.3)
        told = [_pick(rng, _CODE_TOLD, held, code)]
        return told, _pick(rng, _CODE_ASKED, held), f"The code word is {code}."
    amount = rng.randint(1, 4)
    if draw < 0.7:
        things, rooms = rng.sample(words.THINGS, amount), rng.choices(words.ROOMS, k=amount)
        told = [_pick(rng, _PLACE_TOLD, held, *pair) for pair in zip(things, rooms, strict=True)]
        asked = _pick(rng, _PLACE_ASKED, held, things[-1])
        return told, asked, f"The {things[-1]} is in the {rooms[-1]}."
    people, towns = rng.sample(words.NAMES, amount), rng.choices(words.TOWNS, k=amount)
    told = [_pick(rng, _HOME_TOLD, held, *pair) for pair in zip(people, towns, strict=True)]
    return told, _pick(rng, _HOME_ASKED, held, people[-1]), f"{people[-1]} lives in {towns[-1]}."


def find(rng: Random, held: bool, sentences: int | None = None) -> Question:
    """Something said in a prompt with this many sentences of filler, asked for at its end."""
    if sentences is None:
        sentences = rng.randint(0, 12)
    told, asked, answer = _needle(rng, held)
    text = [words.sentence(rng) for _ in range(sentences)]
    for line in told:
        text.insert(rng.randint(0, len(text)), line)
    return Question("finding", (f"{' '.join(text)} {asked}",), answer)


def recite(rng: Random, held: bool, sentences: int) -> Question:
    """A long text that must come back word for word."""
    text = " ".join(words.sentence(rng) for _ in range(sentences))
    asked = single(rng, "repeating", held)
    return Question("repeating", (asked.turns[0].replace(asked.answer, text),), text)


def _filler_turns(rng: Random) -> tuple[str, ...]:
    """A question of another kind with its answer, or nothing."""
    if rng.random() < 0.5:
        return ()
    kind = rng.choice(("capitals", "facts", "sums", "days", "months"))
    aside = single(rng, kind, held=False)
    return (*aside.turns, aside.answer)


_NAME_TOLD = Phrasing(
    ("My name is {0}.", "I am {0}.", "Hello, my name is {0}.", "Hi, I am {0}.", "I'm {0}.",
     "You can call me {0}.", "Please call me {0}."),
    ("Hi, my name is {0}.", "Hello, I'm {0}."),
)  # fmt: skip
_NAME_ASKED = Phrasing(
    ("What is my name?", "What's my name?", "Do you remember my name?", "Tell me my name.",
     "Who am I?", "Do you know my name?"),
    ("Can you tell me my name?", "What was my name?"),
)  # fmt: skip
_LIKE_TOLD = Phrasing(
    ("My favourite {0} is {1}.", "My favorite {0} is {1}.", "I like {1} best of every {0}.",
     "The {0} that I like best is {1}."),
    ("Remember this: my favourite {0} is {1}.", "The {0} I like best is {1}."),
)  # fmt: skip
_LIKE_ASKED = Phrasing(
    ("What is my favourite {0}?", "What is my favorite {0}?", "Which {0} do I like best?",
     "Tell me my favourite {0}.", "Do you remember my favourite {0}?", "What's my favourite {0}?"),
    ("What was my favourite {0}?", "Can you tell me my favorite {0}?", "What {0} do I like best?"),
)  # fmt: skip
_PET_TOLD = Phrasing(
    ("I have a {0} called {1}.", "I have a {0}. It is called {1}.", "My {0} is called {1}.",
     "The name of my {0} is {1}."),
    ("I have a {0} and it is called {1}.", "My {0}'s name is {1}."),
)  # fmt: skip
_PET_ASKED = Phrasing(
    ("What is my {0} called?", "What is the name of my {0}?", "Tell me the name of my {0}.",
     "Do you remember the name of my {0}?", "What's my {0}'s name?"),
    ("What is my {0}'s name?", "What's the name of my {0}?"),
)  # fmt: skip


def _told_name(rng: Random, held: bool) -> Question:
    name = rng.choice(words.NAMES)
    turns = (_pick(rng, _NAME_TOLD, held, name), f"Nice to meet you, {name}.")
    asked = _pick(rng, _NAME_ASKED, held)
    return Question("dialogues", (*turns, *_filler_turns(rng), asked), f"Your name is {name}.")


_LIKES = {
    "fruit": words.FRUITS, "colour": words.COLOUR_NAMES, "food": words.FOODS,
    "sport": words.SPORTS, "city": words.TOWNS, "animal": words.PETS,
}  # fmt: skip


def _told_like(rng: Random, held: bool) -> Question:
    topic = rng.choice(list(_LIKES))
    thing = rng.choice(_LIKES[topic])
    turns = (_pick(rng, _LIKE_TOLD, held, topic, thing), f"I see, you like {thing}.")
    asked, answer = _pick(rng, _LIKE_ASKED, held, topic), f"Your favourite {topic} is {thing}."
    return Question("dialogues", (*turns, *_filler_turns(rng), asked), answer)


def _told_pet(rng: Random, held: bool) -> Question:
    pet, name = rng.choice(words.PETS), rng.choice(words.PET_NAMES)
    turns = (_pick(rng, _PET_TOLD, held, pet, name), f"{name} is a nice name for a {pet}.")
    asked = _pick(rng, _PET_ASKED, held, pet)
    return Question("dialogues", (*turns, *_filler_turns(rng), asked), f"Your {pet} is {name}.")


_AND = Phrasing(
    ("And {0}?", "And of {0}?", "What about {0}?", "And what about {0}?", "How about {0}?",
     "Now {0}, please.", "Then {0}?"),
    ("And how about {0}?", "What about {0}, then?", "Now what about {0}?"),
)  # fmt: skip
_MORE = Phrasing(
    ("And plus {0}?", "Now add {0}.", "Add {0} to that.", "And {0} more?", "Plus {0}?",
     "What if you add {0} more?"),
    ("And add {0} to that?", "Now add {0} more.", "And what if you add {0}?"),
)  # fmt: skip


def _follow_fact(rng: Random, held: bool) -> Question:
    """A question, then the same one about something else."""
    if rng.random() < 0.5:
        table, form = facts.CAPITALS, "The capital of {0} is {1}."
        first, second = rng.sample(list(table), 2)
        opening = f"What is the capital of {first}?"
    else:
        table, form = facts.OPPOSITES, "The opposite of {0} is {1}."
        first, second = rng.sample(list(table), 2)
        opening = f"What is the opposite of {first}?"
    turns = (opening, form.format(first, table[first]), _pick(rng, _AND, held, second))
    return Question("dialogues", turns, form.format(second, table[second]))


def _follow_sum(rng: Random, held: bool) -> Question:
    """A sum, then one more number on top of it."""
    while True:
        first, second, third = (rng.randint(0, 40) for _ in range(3))
        if first + second + third <= 100 and not (
            is_held_pair(first, second) or is_held_pair(first + second, third)
        ):
            break
    middle = first + second
    turns = (f"What is {first} plus {second}?", f"{first} + {second} = {middle}.")
    asked = _pick(rng, _MORE, held, third)
    return Question("dialogues", (*turns, asked), f"{middle} + {third} = {middle + third}.")


_SMALL_TALK: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "Hello! How can I help you?": (
        ("Hello!", "Hi!", "Hello", "hi", "Hey!", "Hello there!", "Good morning!", "Good evening!"),
        ("Hi there!", "Hey", "Hello."),
    ),
    "You are welcome.": (
        ("Thank you.", "Thanks!", "Thank you very much!", "Thanks a lot.", "Many thanks.",
         "thank you", "Thanks for your help."),
        ("Thank you!", "Thanks.", "Thank you for your help."),
    ),
    "Goodbye!": (
        ("Goodbye!", "Bye!", "Bye bye!", "Goodbye.", "See you later!", "bye", "Good night!"),
        ("Bye.", "Goodbye, see you later!"),
    ),
}  # fmt: skip


def _small_talk(rng: Random, held: bool) -> Question:
    answer = rng.choice(list(_SMALL_TALK))
    said = rng.choice(_SMALL_TALK[answer][1 if held else 0])
    turns = () if answer.startswith("Hello") else _filler_turns(rng)
    return Question("dialogues", (*turns, said), answer)


def dialogue(rng: Random, held: bool) -> Question:
    """A chat of one to three user turns whose last answer needs what was said before."""
    makers: tuple[Callable[[Random, bool], Question], ...]
    makers = (_told_name, _told_like, _told_pet, _follow_fact, _follow_sum, _small_talk)
    question = rng.choices(makers, (3, 3, 2, 3, 2, 2))[0](rng, held)
    if held:
        return question
    return Question(
        question.kind, (*question.turns[:-1], decorate(rng, question.turns[-1])), question.answer
    )
