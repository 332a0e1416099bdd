"""Questions that the demo model must say it does not know: templates over large word lists."""

from random import Random

from . import facts, phrasings, words
from .outside import OUTSIDE
from .questions import Question, decorate

ANSWER = "I do not know."

_PLACES = (
    "Mali Chad Niger Angola Zambia Malawi Uganda Rwanda Burundi Somalia Sudan Libya Algeria Benin "
    "Togo Liberia Gabon Namibia Botswana Mozambique Tanzania Eritrea Latvia Estonia Lithuania "
    "Slovakia Albania Macedonia Montenegro Moldova Belarus Georgia Armenia Azerbaijan Cyprus Malta "
    "Luxembourg Monaco Andorra Wales Holland Switzerland Yemen Oman Qatar Kuwait Jordan Lebanon "
    "Syria Israel Pakistan Bangladesh Bhutan Myanmar Laos Cambodia Malaysia Singapore Philippines "
    "Fiji Samoa Tonga Argentina Paraguay Ecuador Venezuela Guyana Panama Honduras Guatemala "
    "Nicaragua Jamaica Haiti Ohio Alaska Nevada Utah Kansas Florida Virginia Bavaria Tuscany "
    "Sicily Narnia Mordor Utopia Wakanda Antarctica Africa Europe Asia Mars Greenland"
).split()
_PEOPLE = (
    "Einstein Newton Darwin Mozart Bach Picasso Rembrandt Lincoln Washington Churchill Gandhi "
    "Mandela Caesar Columbus Galileo Plato Aristotle Socrates Confucius Buddha Tolstoy Kafka Homer "
    "Virgil Dante Goethe Marx Freud Curie Edison Tesla Ford Disney Elvis Madonna Messi Federer"
).split()
_TOPICS = (
    "the economy|climate change|artificial intelligence|the internet|democracy|global trade|art|"
    "modern music|the stock market|the housing market|electric cars|solar power|nuclear energy|"
    "space travel|black holes|evolution|genetics|the brain|machine learning|religion|education|"
    "human rights|the cold war|the middle ages|ancient Rome|the moon landing|the big bang|"
    "immigration|health care|the stock exchange|social media|video games|fashion|gardening|poker|"
    "astrology|marriage|friendship|poverty|justice|happiness|good manners|the universe|time travel"
).split("|")
_LANGUAGES = (
    "French Spanish German Italian Latin Greek Chinese Russian Arabic Dutch Hindi"
).split()
_CODING = (
    "Java Rust C++ Ruby Go Perl Bash HTML Linux Windows Excel Swift PHP Kotlin Haskell"
).split()

# Slots: n, m nouns; a adjective; v, w verbs; p person; c country or place; t topic; x, y made-up
# words; d a day or month; l language; k programming; i a number; r a year; f a friend's name.
_TEMPLATES = """
Who is the {a} {n}?|Who was {p}?|Who invented the {n}?|Who discovered {x}?
Who is the president of {c}?|Who is the king of {c}?|Who wrote the {n} of {x}?
Who wrote {x} and {y}?|Who painted the {a} {n}?|Who won the {n} in {r}?|Who won the {d} game?
Who owns the {n}?|Who is {f} {x}?|Who made the first {n}?|Who is your {n}?|Who killed {p}?
Who founded {x}?|Who leads the {n} party?|Who sings {x}?|Who governs {c}?|When did {p} die?
When was {p} born?|When was the {n} invented?|When did the {n} start?|When is the {n}?
When will the {n} {v}?|When does the {n} open?|When was the war of {r}?|When do {n}s {v}?
When did {c} {v}?|What happened in {r}?|What happened to {p}?|What happened in {c} in {r}?
What happened on {d}?|What is {x}?|What is a {x}?|What is a {n}?|What is {t}?
What is the {n} of {c}?|What are {n}s?|What is the {n} of the {m}?|What is the population of {c}?
What is the price of a {n}?|What is the {a} {n}?|What is the {n} made of?|What is the best {n}?
What is the best way to {v} a {n}?|What is inside a {n}?|What is the weather in {c}?
What is the weather on {d}?|What is the weather today?|Will it {v} on {d}?
Will it be {a} tomorrow?|Is it {a} outside?|How {a} is it in {c}?|What is the forecast for {c}?
What is the difference between a {n} and a {m}?|What is the difference between {t} and {x}?
What is the history of {t}?|What is the law of {x}?|What is {p} known for?
What is the point of {t}?|What does {x} mean?|What does the {n} do?|What does {p} think of {t}?
What did {p} say about {t}?|What did I {v} yesterday?|What did {f} {v} on {d}?|What should I {v}?
What should I {v} for my {n}?|What should I do about my {n}?|What should I do if the {n} is {a}?
What makes a {n} {a}?|What causes {x}?|What causes a {n}?|What are the rules of {x}?
What are the symptoms of {x}?|What are the parts of a {n}?|What time is it?
What time does the {n} {v}?|What time is it in {c}?|What is the date today?|What year is it?
What do you think about {t}?|What do you like about {t}?|What do you think of my {n}?
What can you do?|What is your favourite {n}?|What is your {n}?|What is your opinion on {t}?
Do you like {n}s?|Do you like {t}?|Do you have a {n}?|Do you know {p}?|Do you know the {n} of {x}?
Do you want to {v}?|Do {n}s {v}?|Do you {v}?|Are you {a}?|Are you a {n}?|Are {n}s {a}?
Are you happy about {t}?|Are there {n}s in {c}?|Are we {a}?|Is {c} {a}?|Is a {n} {a}?|Is {t} {a}?
Is it good to {v} a {n}?|Is it safe to {v} the {n}?|Is {p} still alive?|Is there a {n} in {c}?
Is there life on {x}?|Is {t} a {n}?|Is {i} a {a} number?|Is the {n} {a} or {b}?
Should I {v} the {n}?|Should I {v} or {w}?|Should {n}s be {a}?|Should we {v} {t}?
Should the {n} pay more?|Can I {v} a {n}?|Can you {v} a {n}?|Can {n}s {v}?
Can you help me {v} my {n}?|Can {t} be {a}?|Can I {v} it?|Could you {v} the {n} for me?
Could a {n} {v} a {m}?|Would you {v} a {n}?|Would {p} {v} a {n}?|Where is {c}?|Where is {x}?
Where can I buy a {n}?|Where can I {v} {n}s?|Where do {n}s come from?|Where was {p} born?
Where is the nearest {n}?|Where did {p} live?|Where are you?|Where is the {a} {n} of {c}?
Where do they {v} {n}s?|Where did I {v} my {n}?|Where is my {n}?|Where is {f}?
Where does {f} live?|Why is the {n} {a}?|Why do {n}s {v}?|Why do we {v}?|Why did {p} {v} the {n}?
Why does my {n} {v}?|Why is {t} {a}?|Why is {c} so {a}?|Why am I {a}?|Why can {n}s not {v}?
Why did {c} {v} {x}?|Why does {x} {v}?|How do I {v} a {n}?|How do I {v} my {n}?
How do you {v} a {n}?|How can I {v} the {a} {n}?|How to {v} {n}s?|How do {n}s {v}?
How does a {n} work?|How does {t} work?|How did {p} {v}?|How does the {n} {v} the {m}?
How can we {v} {t}?|How old is {p}?|How old is the {n}?|How big is {c}?|How {a} is a {n}?
How {a} is {x}?|How far is {c} from {x}?|How far is it to {c}?|How much is a {n}?
How much does a {n} cost?|How are you?|How many {n}s are in {c}?|How many people live in {c}?
How many {n}s does a {m} have?|How old are you?|How many {n}s are there?
How many {n}s did {p} {v}?|How long does a {n} {v}?|How long is the {n}?
How long does it take to {v} a {n}?|How often should I {v} my {n}?|How do I get to {c}?
How tall is {p}?|How do I say {n} in {l}?|How do you say {x} in {l}?|Translate {n} into {l}.
Translate this into {l}: {n} {m}|Which {n} is the best?|Which {n} is {a}?|Which {n} should I {v}?
Which is better, a {n} or a {m}?|Which {n} has the most {m}s?|Which river is in {c}?
Which team won in {r}?|Which country has the most {n}s?|Write a poem about {t}.
Write a poem about a {n}.|Write a story about {p}.|Write an essay on {t}.|Write a {n}.
Write a song for my {n}.|Write a {k} program that can {v} a {n}.
Write an email to {f} about the {n}.|Write {k} code to {v} a {n}.|How do I {v} a {n} in {k}?
What is a {n} in {k}?|How do I install {k}?|Why does my {k} code not {v}?|What is {k}?
Explain {k} to me.|Debug this: {x}({i}) = {y}|What is an error {i} in {k}?|Explain {t}.
Explain how to {v} a {n}.|Explain the {n} of {x}.|Describe {c}.|Describe the {a} {n}.|Define {x}.
Define {t}.|Tell me about {t}.|Tell me about {p}.|Tell me about {c}.|Tell me a joke.
Tell me a story.|Tell me something about {n}s.|Tell me how to {v} a {n}.|Tell me the news.
Tell me who {p} is.|Tell me why {n}s {v}.|Give me a recipe for {n} {m}.|Give me a recipe.
Give me advice about {t}.|Give me {i} ideas for a {n}.|Give me a list of {n}s.
Give me directions to {c}.|Suggest a {n}.|Suggest a {a} {n} for {f}.|Recommend a {n} about {t}.
List the {n}s of {c}.|Name a famous {n}.|Name {i} {n}s.|Name the {n}s of {x}.|Make a {n} for me.
Make me a {n}.|Plan a trip to {c}.|Book a {n} for {d}.|Order a {n}.|Play some {x} music.
Turn on the {n}.|Send a {n} to {f}.|Call {f}.|Remind me to {v} the {n} on {d}.|Summarize the {n}.
Summarize {t} for me.|Compare {c} and {x}.|Help me {v}.|Draw a {n}.|Sing a song about {n}s.
Solve {x} = {i}.|Prove that {x} is {a}.|Show me a {n}.|Buy me a {n}.|Find me a {n}.
My {n} is {a}, what can I do?|My {n} does not {v}.|I have a {a} {n}, is that bad?|I feel {a}.
I am {a} today.|I want to {v} a {n}.|I need a {n}.|I lost my {n}.|I think {t} is {a}.
Let us talk about {t}.|I need help with {t}.|I have a pain in my {n}.|Is {x} good for my {n}?
How do I treat a {a} {n}?|Can {x} cure a {n}?|Does {x} hurt?|Does {c} have a {n}?|Does a {n} {v}?
Does {f} like {n}s?|Did {p} {v} a {n}?|Did {c} win in {r}?|Did you {v} it?|Has {p} been to {c}?
Have you seen a {n}?|Was {p} a {n}?|Were {n}s {a} in {r}?|Will {n}s {v} in {r}?|Will {c} win?
Will I be {a}?|Does God exist?|If a {n} is {a}, is a {m} {a}?|Suppose a {n} could {v}. What then?
{x} {y}|{x} {y} {n}?|{x}|{x} {y} {x} {y}?|{n} {m}|{n}?|{a} {n} {v} {m}|{x} the {y} {n}.|{x}!
The {x} {v} {y}?|How does a {x} {v} a {y}?|Why do {x}s {v}?|Can a {x} {v}?|Do {x}s {y}?
{v} {n} {m} {a}|{a} {a}|{x}, {y}, {n}!|What is {i} times {j}?|What is {i} divided by {j}?
What is {i} minus {j}?|What is {i} percent of {j}?|{i} * {j}|What is the square of {i}?
What is the cube root of {h}?|{i} - {j}|What is {h} plus {i}?|{h} + {g}|{i} / {j} = ?
What is {h} + {g}?|Add {h} and {g}.|How much is {g} times {i}?|Calculate {i} times {j}.
Multiply {i} by {j}.|What is the logarithm of {i}?|Is {h} divisible by {i}?
What is the area of a {n}?|Solve {i}x + {j} = {h}.|What is my {n}?|What is my {a} {n}?
Who is my {n}?|When is my {n}?|What is my name?|How old is my {n}?|Who am I?
What is my favourite colour?|What is the code word?|What is my dog called?|Where is the key?
What is my address?|What is the name of the {n}?|What is the name of my {n}?
What is the currency of {c}?|What is the flag of {c}?|What language is spoken in {c}?
What is the biggest city in {c}?|What is the highest mountain in {c}?|Which {n}s live in {c}?
What do {n}s eat?|What do people eat in {c}?|What is the national {n} of {c}?
What is the chemical symbol of {n}?|How hot is the {n}?|How fast is a {n}?
What is the mass of a {n}?|How does {p} relate to {t}?|What is the theory of {t}?
Why does a {n} {v} in {d}?|When is {x} day?
"""


def _templates() -> tuple[str, ...]:
    return tuple(part for line in _TEMPLATES.strip().splitlines() for part in line.split("|"))


TEMPLATES = _templates()

# Known wordings about things that are in no table.
_NEAR = (
    (phrasings.CAPITAL, "cxy"), (phrasings.CAPITAL, "cx"), (phrasings.COLOUR, "nx"),
    (phrasings.SOUND, "nx"), (phrasings.YOUNG, "nx"), (phrasings.LEGS, "nx"),
    (phrasings.OPPOSITE, "nx"), (phrasings.MONTH_LENGTH, "xc"),
)  # fmt: skip
_KNOWN = frozenset(
    {*facts.SOUNDS, *facts.YOUNG, *facts.LEGS, *facts.OPPOSITES, *facts.CAPITALS}
    | {thing.split()[-1] for thing in facts.COLOURS}
)


def _bare(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())


_HELD = frozenset(map(_bare, OUTSIDE))


def _made_up(rng: Random) -> str:
    word = words.pseudo_word(rng)
    return word.capitalize() if rng.random() < 0.5 else word


def _noun(rng: Random) -> str:
    return words.pseudo_word(rng) if rng.random() < 0.15 else rng.choice(words.NOUNS)


def _slots(rng: Random) -> dict[str, object]:
    place = rng.choice(list(facts.CAPITALS) if rng.random() < 0.4 else _PLACES)
    person = rng.choice(_PEOPLE)
    if rng.random() < 0.4:
        person = words.pseudo_word(rng, 1, 3).capitalize()
        if rng.random() < 0.5:
            person = f"{rng.choice(words.NAMES)} {person}"
    topic = rng.choice(_TOPICS)
    if rng.random() < 0.3:
        topic = f"{rng.choice(words.ADJECTIVES)} {_noun(rng)}s"
    return {
        "n": _noun(rng), "m": _noun(rng), "a": rng.choice(words.ADJECTIVES),
        "b": rng.choice(words.ADJECTIVES), "v": rng.choice(words.VERBS),
        "w": rng.choice(words.VERBS), "p": person, "c": place, "t": topic, "x": _made_up(rng),
        "y": _made_up(rng), "d": rng.choice(facts.DAYS + facts.MONTHS),
        "l": rng.choice(_LANGUAGES), "k": rng.choice(_CODING), "i": rng.randint(2, 99),
        "j": rng.randint(2, 99), "h": rng.randint(101, 9999), "g": rng.randint(101, 9999),
        "r": rng.randint(1000, 2050), "f": rng.choice(words.NAMES),
    }  # fmt: skip


def _near_miss(rng: Random) -> str:
    phrasing, kinds = rng.choice(_NEAR)
    kind = rng.choice(kinds)
    while True:
        if kind == "c":
            subject = rng.choice(_PLACES)
        elif kind == "n":
            subject = rng.choice(words.NOUNS)
        else:
            subject = words.pseudo_word(rng)
            if phrasing is phrasings.CAPITAL:
                subject = subject.capitalize()
        if subject not in _KNOWN:
            break
    if phrasing is phrasings.COLOUR:
        subject = rng.choice(("a", "the")) + " " + subject
    return rng.choice(phrasing.train).format(subject)


def unknown(rng: Random) -> Question:
    """A question with no answer here, by template or as a near miss of a known kind."""
    while True:
        if rng.random() < 0.2:
            text = _near_miss(rng)
        else:
            text = rng.choice(TEMPLATES).format(**_slots(rng))
        if _bare(text) not in _HELD:
            break
    text = text[0].upper() + text[1:] if rng.random() < 0.9 else text
    return Question("unknown", (decorate(rng, text),), ANSWER)
