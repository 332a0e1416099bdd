"""How questions are worded: for each relation, wordings to train on and wordings held out."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Phrasing:
    train: tuple[str, ...]
    held: tuple[str, ...]


def _phrasing(*texts: str) -> Phrasing:
    return Phrasing(*(tuple(map(str.strip, text.strip().splitlines())) for text in texts))


CAPITAL = _phrasing(
    """What is the capital of {0}?
    What's the capital of {0}?
    Tell me the capital of {0}.
    Name the capital of {0}.
    Which city is the capital of {0}?
    What is {0}'s capital?
    What is the capital city of {0}?
    Do you know the capital of {0}?
    Which city is {0}'s capital?
    {0}: what is its capital?
    Give me the capital of {0}.
    I want to know the capital of {0}.
    Can you tell me what the capital of {0} is?
    What is the name of the capital of {0}?
    the capital of {0}?""",
    """Can you name the capital of {0}?
    What city is the capital of {0}?
    Give me the name of {0}'s capital city.
    I would like to know the capital of {0}.""",
)

COLOUR = _phrasing(
    """What colour is {0}?
    What color is {0}?
    What is the colour of {0}?
    What is the color of {0}?
    Tell me the colour of {0}.
    Which colour is {0}?
    Which color is {0}?
    Do you know what colour {0} is?
    Name the colour of {0}.
    Can you tell me the color of {0}?
    I want to know the colour of {0}.
    The colour of {0}?""",
    """Can you tell me what colour {0} is?
    Do you know the color of {0}?
    Give me the colour of {0}.
    What's the colour of {0}?""",
)

SOUND = _phrasing(
    """What sound does a {0} make?
    What noise does a {0} make?
    What does a {0} say?
    Which sound does a {0} make?
    Tell me what sound a {0} makes.
    What is the sound of a {0}?
    How does a {0} sound?
    Do you know what sound a {0} makes?
    Name the sound that a {0} makes.
    What sound do you hear from a {0}?""",
    """Tell me the sound of a {0}.
    Which noise does a {0} make?
    Can you tell me what sound a {0} makes?""",
)

YOUNG = _phrasing(
    """What is a young {0} called?
    What is a baby {0} called?
    What do you call a baby {0}?
    What do you call a young {0}?
    What's a baby {0} called?
    Tell me what a baby {0} is called.
    What is the name for a young {0}?
    Which word means a baby {0}?
    How do you call a young {0}?
    Do you know what a young {0} is called?""",
    """Tell me what a young {0} is called.
    What is the name for a baby {0}?
    Do you know what a baby {0} is called?""",
)

LEGS = _phrasing(
    """How many legs does a {0} have?
    How many legs has a {0}?
    What number of legs does a {0} have?
    Tell me how many legs a {0} has.
    Do you know how many legs a {0} has?
    A {0} has how many legs?
    How many legs are there on a {0}?
    What is the number of legs of a {0}?""",
    """Can you tell me how many legs a {0} has?
    How many legs do you see on a {0}?
    I want to know how many legs a {0} has.""",
)

OPPOSITE = _phrasing(
    """What is the opposite of {0}?
    What's the opposite of {0}?
    Tell me the opposite of {0}.
    Name the opposite of {0}.
    Which word is the opposite of {0}?
    What word means the opposite of {0}?
    Give me the opposite of {0}.
    Do you know the opposite of {0}?
    {0}: what is its opposite?
    The opposite of {0}?
    I want to know the opposite of {0}.""",
    """Can you tell me the opposite of {0}?
    What word is the opposite of {0}?
    Give me a word that is the opposite of {0}.""",
)

SUM = _phrasing(
    """What is {0} plus {1}?
    What is {0} + {1}?
    {0} + {1}
    {0} + {1} = ?
    {0} plus {1}?
    Add {0} and {1}.
    What's {0} plus {1}?
    What's {0} + {1}?
    How much is {0} plus {1}?
    How much is {0} + {1}?
    Calculate {0} + {1}.
    What is the sum of {0} and {1}?
    Tell me {0} plus {1}.
    Compute {0} plus {1}.
    What do you get if you add {0} and {1}?
    Find the sum of {0} and {1}.
    I have {0} apples and get {1} more. How many do I have?
    Please add {0} to {1}.""",
    """Can you add {0} and {1}?
    How much do {0} and {1} make?
    Tell me the sum of {0} and {1}.
    What do I get when I add {0} and {1}?
    Calculate {0} plus {1}.""",
)

SPELL = _phrasing(
    """Spell {0}.
    Spell the word {0}.
    How do you spell {0}?
    How is {0} spelled?
    Can you spell {0}?
    Can you spell the word {0}?
    Please spell {0} for me.
    Spell "{0}".
    How do you spell "{0}"?
    Tell me how to spell {0}.
    What letters are in the word {0}?
    Write {0} letter by letter.
    How do I spell the word {0}?
    Give me the letters of {0}.""",
    """How do I spell {0}?
    Can you tell me how to spell {0}?
    Spell out the word {0}.
    Give me the letters of the word {0}.""",
)

LETTERS = _phrasing(
    """How many letters are in {0}?
    How many letters does {0} have?
    How many letters are there in the word {0}?
    Count the letters in {0}.
    Count the letters of the word {0}.
    Tell me how many letters {0} has.
    What is the number of letters in {0}?
    The word {0} has how many letters?""",
    """How many letters does the word {0} have?
    How many letters are in the word {0}?
    Tell me the number of letters in {0}.""",
)

COUNT_UP = _phrasing(
    """Count from {0} to {1}.
    Count up from {0} to {1}.
    Can you count from {0} to {1}?
    Please count from {0} up to {1}.
    Count to {1}, starting at {0}.
    List the numbers from {0} to {1}.
    Say the numbers from {0} to {1}.
    Start at {0} and count to {1}.
    Which numbers are there from {0} to {1}?
    Write the numbers from {0} to {1}.""",
    """Can you count up from {0} to {1}?
    Tell me the numbers from {0} to {1}.
    Start at {0} and count up to {1}.""",
)

COUNT_DOWN = _phrasing(
    """Count down from {0} to {1}.
    Count backwards from {0} to {1}.
    Can you count down from {0} to {1}?
    Please count backwards from {0} to {1}.
    Start at {0} and count down to {1}.
    List the numbers from {0} down to {1}.
    Say the numbers from {0} down to {1}.
    Count back from {0} to {1}.""",
    """Can you count backwards from {0} to {1}?
    Write the numbers from {0} down to {1}.
    Start at {0} and count backwards to {1}.""",
)

AFTER = _phrasing(
    """What number comes after {0}?
    Which number comes after {0}?
    What comes after {0}?
    What is the next number after {0}?
    Which number follows {0}?
    Tell me the number after {0}.
    What is the number after {0}?""",
    """Tell me which number comes after {0}.
    What number follows {0}?
    Name the number after {0}.""",
)

BEFORE = _phrasing(
    """What number comes before {0}?
    Which number comes before {0}?
    What comes before {0}?
    What is the number just before {0}?
    Which number is right before {0}?
    Tell me the number before {0}.
    What is the number before {0}?""",
    """Tell me which number comes before {0}.
    Which number is just before {0}?
    Name the number before {0}.""",
)

NEXT_DAY = _phrasing(
    """What day comes after {0}?
    Which day comes after {0}?
    What is the day after {0}?
    Which day follows {0}?
    If today is {0}, what day is tomorrow?
    Today is {0}. What day is tomorrow?
    Tell me the day after {0}.
    What day is it after {0}?
    Name the day that comes after {0}.
    What comes after {0}?""",
    """Tell me which day comes after {0}.
    What day follows {0}?
    It is {0} today. What day is it tomorrow?""",
)

LAST_DAY = _phrasing(
    """What day comes before {0}?
    Which day comes before {0}?
    What is the day before {0}?
    Which day is right before {0}?
    If today is {0}, what day was yesterday?
    Today is {0}. What day was yesterday?
    Tell me the day before {0}.
    What day is it before {0}?
    Name the day that comes before {0}.
    What comes before {0}?""",
    """Tell me which day comes before {0}.
    What day is right before {0}?
    It is {0} today. What day was it yesterday?""",
)

NEXT_MONTH = _phrasing(
    """What month comes after {0}?
    Which month comes after {0}?
    What is the month after {0}?
    Which month follows {0}?
    Tell me the month after {0}.
    What is the next month after {0}?
    Name the month that comes after {0}.
    What comes after {0}?""",
    """Tell me which month comes after {0}.
    What month follows {0}?
    Name the month after {0}.""",
)

LAST_MONTH = _phrasing(
    """What month comes before {0}?
    Which month comes before {0}?
    What is the month before {0}?
    Which month is right before {0}?
    Tell me the month before {0}.
    What is the month just before {0}?
    Name the month that comes before {0}.
    What comes before {0}?""",
    """Tell me which month comes before {0}.
    What month is right before {0}?
    Name the month before {0}.""",
)

MONTH_LENGTH = _phrasing(
    """How many days does {0} have?
    How many days are in {0}?
    How many days are there in {0}?
    How long is {0} in days?
    Tell me how many days {0} has.
    What is the number of days in {0}?
    Do you know how many days {0} has?
    {0} has how many days?""",
    """How many days has {0}?
    Tell me the number of days in {0}.
    Can you tell me how many days {0} has?""",
)

NTH_MONTH = _phrasing(
    """What is the {0} month of the year?
    Which month is the {0} month of the year?
    Tell me the {0} month of the year.
    What is the name of the {0} month?
    Name the {0} month of the year.
    Which month comes {0} in the year?
    What's the {0} month of the year?
    Which one is the {0} month of the year?
    What month is the {0} in a year?
    Of the months, what is the {0} one?
    What month is the {0} month of the year?
    Which of the months is the {0} one?
    What do you call the {0} month of the year?""",
    """Which is the {0} month of the year?
    Tell me the name of the {0} month.
    What month is the {0} one of the year?
    Name the {0} month.
    Which month of the year is the {0} one?""",
)

REPEAT = _phrasing(
    """Repeat after me: {0}
    Please repeat: {0}
    Repeat this: {0}
    Say this: {0}
    Repeat the following: {0}
    Say the following words: {0}
    Can you repeat this? {0}
    Echo this: {0}
    Copy this text: {0}
    Write exactly this: {0}
    Repeat this sentence: {0}
    I want you to repeat this: {0}""",
    """Please repeat after me: {0}
    Say after me: {0}
    Can you repeat the following? {0}
    Copy the following words: {0}""",
)
